"""What happens to a voice on its way to a microphone and a file: rooms, noise, music, telephones.

Training hears every sentence in another place; lips don't depend on it. Nothing here moves a sound
in time, so that the truth about it stays true.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.signal import butter, fftconvolve, sosfilt

from latentsync.audio.mel import SAMPLE_RATE
from latentsync.types import FloatArray

__all__ = ["degrade"]

_ROOM, _NOISE, _MUSIC, _BABBLE, _BAND, _CLIP = 0.4, 0.6, 0.15, 0.15, 0.25, 0.1
"""Shares of the sounds to which each happens."""


def degrade(wave: FloatArray, rng: np.random.Generator, other: FloatArray) -> FloatArray:
    """Return the same speech in another place, (n,) float32; `other`, (n,), is another voice."""
    steps: Sequence[tuple[float, Callable[[FloatArray], FloatArray]]] = (
        (_ROOM, lambda x: _room(x, rng)),
        (_NOISE, lambda x: _add(x, _noise(len(x), rng), rng.uniform(0, 30))),
        (_MUSIC, lambda x: _add(x, _music(len(x), rng), rng.uniform(5, 25))),
        (_BABBLE, lambda x: _add(x, other, rng.uniform(8, 25))),
        (_BAND, lambda x: _band(x, rng)),
        (_CLIP, lambda x: np.clip(x * rng.uniform(2, 8), -0.9, 0.9)),
    )
    for share, step in steps:
        if rng.random() < share:
            wave = step(wave)
    return (wave * 10 ** rng.uniform(-1.0, 0.0)).astype(np.float32)


def _room(wave: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Add reverberation: noise that decays by 60 dB in 0.15 to 0.8 s, after the direct sound."""
    seconds = rng.uniform(0.15, 0.8)
    response = rng.standard_normal(int(seconds * SAMPLE_RATE))
    response *= 10 ** (-3 * np.arange(len(response)) / len(response))
    late = fftconvolve(wave, response)[: len(wave)]
    return _add(wave, late, rng.uniform(-2, 15))


def _noise(samples: int, rng: np.random.Generator) -> FloatArray:
    """White to brown noise: a spectrum that falls by 0 to 6 dB an octave."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    octaves = np.arange(1, len(spectrum) + 1) ** -rng.uniform(0, 1)
    return np.fft.irfft(spectrum * octaves, samples).astype(np.float32)


def _music(samples: int, rng: np.random.Generator) -> FloatArray:
    """Chords of plucked notes, two to four a second."""
    sound = np.zeros(samples + 4 * SAMPLE_RATE)
    beat = int(SAMPLE_RATE / rng.uniform(2, 4))
    time = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    for start in range(0, samples, beat):
        for _ in range(rng.integers(1, 5)):
            pitch = 110 * 2 ** (rng.integers(0, 37) / 12)  # A2 to A5
            partials = np.arange(1, 7)[:, None]
            tones = np.sin(2 * np.pi * pitch * partials * time) / partials
            note = tones[partials[:, 0] * pitch < SAMPLE_RATE / 2].sum(axis=0)
            sound[start : start + len(time)] += note * np.exp(-time * rng.uniform(2, 8))
    return sound[:samples].astype(np.float32)


def _band(wave: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Keep what a telephone (300 to 3400 Hz) or a poor codec (below 3 to 7 kHz) passes."""
    if rng.random() < 0.5:
        filters = butter(4, (300, 3400), "bandpass", fs=SAMPLE_RATE, output="sos")
    else:
        filters = butter(6, rng.uniform(3000, 7000), fs=SAMPLE_RATE, output="sos")
    return np.asarray(sosfilt(filters, wave), np.float32)


def _add(wave: FloatArray, other: FloatArray, decibels: float) -> FloatArray:
    """Add a sound that is `decibels` weaker than the wave."""
    own, added = float(np.square(wave).mean()), float(np.square(other).mean())
    gain = np.sqrt(own / max(added, 1e-12)) * 10 ** (-decibels / 20)
    return np.asarray(wave + gain * other, np.float32)
