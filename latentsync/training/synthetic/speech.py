"""Spoken sentences with timed phonemes, by espeak-ng called through ctypes.

The library and its data come from the package `espeakng-loader`. It is under the GPL, so it is an
extra `train`, and this is the only module that imports it.
espeak-ng keeps its state in globals: one voice speaks at a time.
"""

import _ctypes
import ctypes
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentsync.errors import BackendUnavailable, OptionError
from latentsync.runtime.extras import install_command
from latentsync.training.synthetic.sentences import draw_sentence

__all__ = [
    "LANGUAGES",
    "PAUSE",
    "SAMPLE_RATE",
    "TRAINED_LANGUAGES",
    "VARIANTS",
    "Phoneme",
    "Speech",
    "Voice",
    "draw_speech",
    "draw_voice",
    "join",
    "speak",
]

SAMPLE_RATE = 22_050  # Hz, of every espeak-ng formant voice
PAUSE = "_:"  # espeak-ng's mnemonic for silence

_LANGUAGES = "en-us en-gb-x-rp en-gb-scotland en-029 de fr es it pt pt-br pl nl sv fi tr id"
# Without those that are defined with breath: its noise differs from process to process.
_VARIANTS = (
    "m1 m2 m3 m4 m5 m7 m8 f1 f4 Alex Andrea Andy Annie Denis Diogo Gene Henrique Hugo Jacky Lee "
    "Marco Mario Michael Mike Nguyen adam anika antonio aunty belinda benjamin boris david ed "
    "edward grandma gustave ian john linda marcelo max miguel norbert pablo paul pedro quincy rob "
    "robert shelby steph travis zac"
)
LANGUAGES = tuple(_LANGUAGES.split())
"""The languages that words.txt has words for."""
TRAINED_LANGUAGES = tuple(one for one in LANGUAGES if one != "tr")
"""Those that the demo model is trained on; the other one measures a language that is new to it."""
VARIANTS = tuple(_VARIANTS.split())
"""Speakers of espeak-ng that sound human enough; a voice is a language with one of these."""

# Constants of espeak-ng's speak_lib.h.
_SYNCHRONOUS = 2  # samples to the callback, in the calling thread
_PHONEME_EVENTS = 0x0001
_DONT_EXIT = 0x8000
_RATE, _PITCH, _RANGE = 1, 3, 4
_UTF8 = 1
_END_OF_LIST, _PHONEME = 0, 7


if TYPE_CHECKING:
    _Samples = ctypes._Pointer[ctypes.c_short]
    _Events = ctypes._Pointer["_Event"]


@dataclass(frozen=True)
class Voice:
    """Who speaks; the ranges are those that still sound like speech."""

    language: str = "en-us"
    variant: str = ""  # one of VARIANTS, or "" for the language's own speaker
    rate: int = 160  # words per minute, 80..450
    pitch: int = 50  # 0..100
    pitch_range: int = 50  # 0..100, 0 is a monotone

    @property
    def name(self) -> str:
        return f"{self.language}+{self.variant}" if self.variant else self.language


@dataclass(frozen=True)
class Phoneme:
    """One phoneme in espeak-ng's mnemonics, stress marks and all."""

    start_seconds: float
    name: str


@dataclass(frozen=True)
class Speech:
    """A mono wave and its phonemes."""

    wave: NDArray[np.int16]  # (samples,) at SAMPLE_RATE
    phonemes: tuple[Phoneme, ...]  # in order of time; each lasts until the next begins

    @property
    def seconds(self) -> float:
        return len(self.wave) / SAMPLE_RATE


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),  # ms since this call to espeak_Synth began
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),  # a union there; of a phoneme, its name
    )


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)


# espeak-ng keeps noise, phase and random numbers in globals, and no call resets them all.
# Unloading the library after each sentence does (6 ms), so equal calls give equal waves.
_LOCK = threading.Lock()


@contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, bytes]]:
    """The library, fresh, and the folder of its data; unloaded at the end."""
    try:
        import espeakng_loader

        data: bytes = espeakng_loader.get_data_path().encode()
        library = ctypes.CDLL(espeakng_loader.get_library_path())
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailable(
            f"espeak-ng can't be loaded ({error}); drawn faces need its voices: "
            f"install it by {install_command('train')}"
        ) from error
    try:
        yield library, data
    finally:
        library.espeak_Terminate()
        unload = getattr(_ctypes, "dlclose", None) or getattr(_ctypes, "FreeLibrary", None)
        if unload is not None:
            unload(library._handle)


def _synthesise(library: ctypes.CDLL, data: bytes, text: str, voice: Voice) -> Speech:
    waves: list[NDArray[np.int16]] = []
    phonemes: list[Phoneme] = []

    def receive(samples: "_Samples", count: int, events: "_Events") -> int:
        if samples and count > 0:
            waves.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while (event := events[index]).type != _END_OF_LIST:
            if event.type == _PHONEME:
                name = event.id.decode("utf-8", "ignore")
                phonemes.append(Phoneme(event.audio_position / 1000, name))
            index += 1
        return 0

    rate = library.espeak_Initialize(_SYNCHRONOUS, 0, data, _PHONEME_EVENTS | _DONT_EXIT)
    if rate != SAMPLE_RATE:
        raise BackendUnavailable(
            f"espeak-ng answered {rate} when started, wanted {SAMPLE_RATE} Hz; "
            "reinstall espeakng-loader"
        )
    callback = _Callback(receive)  # named: ctypes holds no reference of its own
    library.espeak_SetSynthCallback(callback)
    if library.espeak_SetVoiceByName(voice.name.encode()) != 0:
        raise OptionError(
            f"espeak-ng has no voice {voice.name!r}; take a language such as "
            f"{', '.join(LANGUAGES[:4])} and a variant such as {VARIANTS[0]}"
        )
    library.espeak_SetParameter(_RATE, voice.rate, 0)
    library.espeak_SetParameter(_PITCH, voice.pitch, 0)
    library.espeak_SetParameter(_RANGE, voice.pitch_range, 0)
    raw = text.encode()
    library.espeak_Synth(raw, ctypes.c_size_t(len(raw) + 1), 0, 1, 0, _UTF8, None, None)
    library.espeak_Synchronize()
    return Speech(np.concatenate([np.zeros(0, np.int16), *waves]), tuple(phonemes))


def speak(text: str, voice: Voice) -> Speech:
    """Say `text`; the same text and voice give the same samples.

    Raises:
        BackendUnavailable: there is no espeak-ng.
        OptionError: it has no such voice, or there is nothing to say in the text.
    """
    with _LOCK, _library() as (library, data):
        speech = _synthesise(library, data, text, voice)
    if all(phoneme.name.startswith("_") for phoneme in speech.phonemes):
        raise OptionError(f"nothing to say in {text!r}; wanted words in {voice.language}")
    return speech


def join(parts: list[Speech], gaps_seconds: list[float]) -> Speech:
    """Concatenate speeches, each after a silence; there are as many gaps as parts."""
    waves: list[NDArray[np.int16]] = []
    phonemes: list[Phoneme] = []
    samples = 0
    for part, gap_seconds in zip(parts, gaps_seconds, strict=True):
        phonemes.append(Phoneme(samples / SAMPLE_RATE, PAUSE))
        silence = np.zeros(round(gap_seconds * SAMPLE_RATE), np.int16)
        samples += len(silence)
        start = samples / SAMPLE_RATE
        phonemes += [Phoneme(start + p.start_seconds, p.name) for p in part.phonemes]
        waves += [silence, part.wave]
        samples += len(part.wave)
    phonemes.append(Phoneme(samples / SAMPLE_RATE, PAUSE))
    return Speech(np.concatenate(waves), tuple(phonemes))


def draw_voice(rng: np.random.Generator, languages: Sequence[str] = LANGUAGES) -> Voice:
    """Draw language, speaker, rate and pitch of a voice."""
    return Voice(
        language=languages[int(rng.integers(len(languages)))],
        variant=VARIANTS[int(rng.integers(len(VARIANTS)))],
        rate=int(rng.integers(115, 205)),
        pitch=int(rng.integers(20, 85)),
        pitch_range=int(rng.integers(25, 85)),
    )


def draw_speech(rng: np.random.Generator, seconds: float, voice: Voice) -> Speech:
    """Draw sentences with pauses between them, cut to exactly `seconds`."""
    parts: list[Speech] = []
    gaps: list[float] = []
    total = 0.0
    while total < seconds:
        gaps.append(float(rng.uniform(0.08, 0.6)))
        parts.append(speak(draw_sentence(rng, voice.language), voice))
        total += gaps[-1] + parts[-1].seconds
    joined = join(parts, gaps)
    wave = joined.wave[: round(seconds * SAMPLE_RATE)]
    return Speech(wave, tuple(p for p in joined.phonemes if p.start_seconds < seconds))
