"""Is it told when somebody speaks, in noise and over music too?

    python benchmarks/voice_activity.py [--voice RECORDING]

Drawn voices (extra `[train]`), so every phoneme's time is known, with pauses of one to three
seconds; or somebody's recording, with pauses put around it. Compares `latentsync.audio.vad`
with WebRTC's detector (pip install webrtcvad-wheels), if there, in the same 20 ms blocks and with
the same treatment of short words and pauses.

    missed   share of the video frames with a phoneme that don't count as speech
    extra    share of the frames in pauses that do; frames within 0.3 s of speech aside
"""

import argparse
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from latentsync.audio import vad
from latentsync.audio.vad import VoiceActivity
from latentsync.media import AudioReader
from latentsync.training.synthetic import draw_voice, speak
from latentsync.training.synthetic.sentences import draw_sentence
from latentsync.training.synthetic.speech import SAMPLE_RATE, join
from latentsync.types import FloatArray

RATE = 16_000  # Hz
TICK = Fraction(1, 25)  # s, a frame
NEAR = 8  # frames; next to speech either answer is right

Array = NDArray[np.float64]
Sound = tuple[FloatArray, NDArray[np.bool_]]  # samples; whether each frame's time is spoken
Noise = Callable[[np.random.Generator, int], Array]


class Wave:
    def __init__(self, wave: FloatArray) -> None:
        self.wave = wave

    def chunks(self) -> Iterator[FloatArray]:
        yield self.wave


def talk(seed: int, sentences: int = 8) -> Sound:
    rng = np.random.default_rng([91, seed])
    voice = draw_voice(rng)
    parts = [speak(draw_sentence(rng, voice.language), voice) for _ in range(sentences)]
    speech = join(parts, [float(rng.uniform(1, 3)) for _ in parts])
    wave = resample_poly(speech.wave / 32768, RATE, SAMPLE_RATE).astype(np.float32)
    times = np.array([phoneme.start_seconds for phoneme in speech.phonemes])
    sounds = np.array([not phoneme.name.startswith("_") for phoneme in speech.phonemes])
    middles = (np.arange(len(wave) // (RATE // 25)) + 0.5) / 25
    return wave, sounds[np.maximum(np.searchsorted(times, middles) - 1, 0)]


def recording(path: Path) -> Sound:
    """From its first sound to its last, three times, two seconds apart."""
    wave = np.concatenate(list(AudioReader(path).chunks()))
    loud = np.flatnonzero(np.abs(wave) > 0.05 * np.abs(wave).max())
    wave = wave[loud[0] : loud[-1]]
    pause = np.zeros(2 * RATE, np.float32)
    parts = [pause, wave] * 3 + [pause]
    spoken = np.concatenate([np.full(len(part), part is wave) for part in parts])
    whole = len(spoken) // (RATE // 25)
    return np.concatenate(parts), spoken[RATE // 50 :: RATE // 25][:whole]


def white(rng: np.random.Generator, samples: int) -> Array:
    return rng.standard_normal(samples)


def pink(rng: np.random.Generator, samples: int) -> Array:
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    return np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 20)), samples)


def fan(rng: np.random.Generator, samples: int) -> Array:
    """Begins in the middle."""
    return pink(rng, samples) * np.where(np.arange(samples) < samples // 2, 0.02, 1)


def chords(rng: np.random.Generator, samples: int) -> Array:
    """Three plucked tones every 0.4 s, dying away."""
    out, step = np.zeros(samples), RATE * 2 // 5
    for start in range(0, samples, step):
        t = np.arange(min(3 * step, samples - start)) / RATE
        for hertz in rng.choice([220, 262, 294, 330, 392, 440, 523, 659], 3, replace=False):
            tone = sum(np.sin(2 * np.pi * hertz * h * t) / h for h in (1, 2, 3, 4))
            out[start : start + len(t)] += tone * np.exp(-3 * t)
    return out


def mixed(sound: Sound, noise: Array, snr_db: float) -> FloatArray:
    wave, spoken = sound
    frames = wave[: len(spoken) * RATE // 25].reshape(len(spoken), -1)
    ratio = np.sqrt((frames[spoken] ** 2).mean() / (noise**2).mean()) * 10 ** (-snr_db / 20)
    return np.clip(wave + ratio * noise, -1, 1).astype(np.float32)


def own(wave: FloatArray) -> VoiceActivity:
    return vad.detect_speech(Wave(wave))


def webrtc(mode: int) -> Callable[[FloatArray], VoiceActivity]:
    import webrtcvad

    def listen(wave: FloatArray) -> VoiceActivity:
        detector = webrtcvad.Vad(mode)
        size = vad.BLOCK_SAMPLES
        blocks = (wave[: len(wave) // size * size] * 32767).astype("<i2").reshape(-1, size)
        loud = np.array([detector.is_speech(block.tobytes(), RATE) for block in blocks])
        return VoiceActivity(vad._whole_words(loud))

    return listen


def score(activity: VoiceActivity, spoken: NDArray[np.bool_]) -> tuple[float, float]:
    heard = activity.at(np.arange(len(spoken)), TICK)
    pauses = np.convolve(spoken, np.ones(2 * NEAR + 1))[NEAR:-NEAR] < 0.5
    return float((~heard[spoken]).mean()), float(heard[pauses].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--voices", type=int, default=12)
    parser.add_argument("--voice", type=Path, help="a recording without long pauses")
    options = parser.parse_args()
    detectors = {"own": own}
    try:
        detectors |= {f"WebRTC {mode}": webrtc(mode) for mode in (1, 2, 3)}
    except ImportError:
        print("webrtcvad-wheels is not installed\n")
    sounds = (
        [recording(options.voice)] if options.voice else [talk(i) for i in range(options.voices)]
    )
    cases: dict[str, tuple[Noise, float]] = {
        "clean": (white, 60), "white noise, 20 dB": (white, 20), "white noise, 10 dB": (white, 10),
        "pink noise, 20 dB": (pink, 20), "pink noise, 10 dB": (pink, 10),
        "a fan that starts, 15 dB": (fan, 15), "chords, 20 dB": (chords, 20),
        "chords, 10 dB": (chords, 10),
    }  # fmt: skip
    print("| sound | " + " | ".join(f"{n}: missed | extra" for n in detectors) + " |")
    print("| --- |" + " --- |" * (2 * len(detectors)))
    for name, (noise, snr_db) in cases.items():
        waves = [
            mixed(sound, noise(np.random.default_rng(i), len(sound[0])), snr_db)
            for i, sound in enumerate(sounds)
        ]
        cells = []
        for listen in detectors.values():
            scores = [
                score(listen(w), spoken) for w, (_, spoken) in zip(waves, sounds, strict=True)
            ]
            missed, extra = 100 * np.mean(scores, axis=0)
            cells.append(f"{missed:.1f} | {extra:.1f}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
