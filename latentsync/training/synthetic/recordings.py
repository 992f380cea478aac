"""Speech of which the phonemes' times are known, in files: voices that espeak-ng doesn't have."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.signal import resample_poly

from latentsync.errors import InputError
from latentsync.runtime.files import replacing
from latentsync.training.synthetic.speech import SAMPLE_RATE, Phoneme, Speech

__all__ = ["FILE_RATE", "draw_recording", "read_recording", "write_recording"]

FILE_RATE = 16_000  # Hz, of the waves in the files


def write_recording(path: Path, wave: NDArray[np.int16], phonemes: Sequence[Phoneme]) -> None:
    """Write an .npz that is whole or not there; the wave is (n,) at 16 kHz."""
    begins = [[phoneme.start_seconds, phoneme.name] for phoneme in phonemes]
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, wave=wave, phonemes=json.dumps(begins))


def read_recording(path: Path) -> tuple[NDArray[np.int16], list[Phoneme]]:
    """Read what `write_recording` wrote."""
    with np.load(path) as file:
        begins = json.loads(str(file["phonemes"]))
        return file["wave"], [Phoneme(at, name) for at, name in begins]


def draw_recording(folder: Path, rng: np.random.Generator, seconds: float) -> Speech:
    """Draw a stretch of one of the recordings in a folder; a shorter recording ends in silence.

    Raises:
        InputError: the folder holds none.
    """
    paths = sorted(folder.glob("[!.]*.npz"))
    if not paths:
        raise InputError(f"no recordings in {str(folder)!r}; scripts/train_ear.py writes them")
    wave, phonemes = read_recording(paths[rng.integers(len(paths))])
    start = rng.uniform(0, max(0.0, len(wave) / FILE_RATE - seconds))
    part = wave[int(start * FILE_RATE) :][: round(seconds * FILE_RATE)]
    part = np.pad(part, (0, round(seconds * FILE_RATE) - len(part)))
    at_rate = resample_poly(part.astype(np.float32), SAMPLE_RATE // 50, FILE_RATE // 50)
    before = [phoneme for phoneme in phonemes if phoneme.start_seconds < start]
    begun = [Phoneme(0.0, before[-1].name)] if before else []
    inside = [
        Phoneme(phoneme.start_seconds - start, phoneme.name)
        for phoneme in phonemes
        if start <= phoneme.start_seconds < start + seconds
    ]
    return Speech(np.clip(at_rate, -32768, 32767).astype(np.int16), (*begun, *inside))
