"""Voice activity detection (VAD), by the level of the voice's band over the noise floor.

The noise floor is the 10th percentile of the level, over the 6 s before or the 6 s after,
whichever is higher: a fan that starts, or steady music, is then no speech. Why no library's
detector is used: benchmarks/README.md, voice_activity.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from latentsync.audio.mel import SAMPLE_RATE
from latentsync.audio.whisper import SpeechSource
from latentsync.types import FloatArray, IntArray

__all__ = ["VoiceActivity", "detect_speech"]

BLOCK_SECONDS = Fraction(1, 50)  # of one decision
BLOCK_SAMPLES = int(BLOCK_SECONDS * SAMPLE_RATE)
BAND = slice(4, 77)  # bins of 50 Hz: 200 to 3800 Hz, which has voices, and no mains hum

# Chosen by benchmarks/voice_activity.py:
FLOOR_BLOCKS = 300  # 6 s, longer than anybody holds a note
FLOOR_PERCENT = 10  # the floor's percentile: the gaps between sounds and words
SPEECH_DB = 10.0  # over the floor
FADING_DB = 5.0  # over the floor, right before or after speech: how words begin and fade
# A single word leaves no gaps to measure a floor in: levels near the 98th percentile are speech.
LOUDEST_PERCENT, NEAR_DB = 98, 12.0
RANGE_DB, SILENCE_DB = 45.0, -75.0  # the lowest floor: below the loudest, below full scale

MIN_SPEECH_BLOCKS = 3  # 60 ms; a shorter sound is a click
BLOCKS_BEFORE, BLOCKS_AFTER = 4, 10  # 80 and 200 ms: lips move before and after the sound
MIN_PAUSE_BLOCKS = 15  # 300 ms; a shorter gap belongs to the speech


@dataclass(frozen=True)
class VoiceActivity:
    """Times at which somebody speaks; 50 bytes for a second of sound."""

    blocks: NDArray[np.bool_]  # (n,) one for each 20 ms of the sound; outside it: False

    def at(
        self, begins: IntArray, time_base: Fraction, lead_in: Fraction = Fraction(0)
    ) -> NDArray[np.bool_]:
        """Return (n,) whether somebody speaks when each video frame begins.

        Args:
            begins: (n,) when each frame begins, in units of `time_base`.
            time_base: seconds.
            lead_in: seconds of frames before the sound begins.
        """
        # A thousandth of a block more: a frame may begin with a block, which rounding may miss.
        blocks = begins * float(time_base / BLOCK_SECONDS) - float(lead_in / BLOCK_SECONDS)
        places = np.floor(blocks + 1e-3)
        heard = (places >= 0) & (places < len(self.blocks))
        speaks = np.zeros(len(begins), dtype=bool)
        speaks[heard] = self.blocks[places[heard].astype(np.int64)]
        return speaks


def detect_speech(sound: SpeechSource) -> VoiceActivity:
    """Find the speech in a sound, which is read in chunks; the levels of an hour take 0.7 MB.

    Speech is widened, so that no word's end is cut, and includes its short pauses.
    """
    levels = np.fromiter(_levels(sound), dtype=np.float32)
    if len(levels) == 0:
        return VoiceActivity(np.zeros(0, dtype=bool))
    loudest = float(np.percentile(levels, LOUDEST_PERCENT))
    floor = np.maximum(_floor(levels), max(SILENCE_DB, loudest - RANGE_DB))
    loud = levels > np.minimum(floor + SPEECH_DB, max(SILENCE_DB + SPEECH_DB, loudest - NEAR_DB))
    return VoiceActivity(_whole_words(_faded(loud, levels > floor + FADING_DB)))


def _floor(levels: FloatArray) -> FloatArray:
    """Compute the noise floor, (n,) dB, of levels, (n,) dB.

    The sound is mirrored at its ends, here and not by scipy, whose 1.17 reads beyond arrays that
    are shorter than its window.
    """
    from scipy.ndimage import percentile_filter  # slow to import, and seldom needed

    around, half = np.pad(levels, FLOOR_BLOCKS, mode="symmetric"), FLOOR_BLOCKS // 2 - 1
    behind, ahead = (
        percentile_filter(around, FLOOR_PERCENT, size=FLOOR_BLOCKS, origin=origin)
        for origin in (half, -half)
    )
    return np.asarray(np.maximum(behind, ahead)[FLOOR_BLOCKS:-FLOOR_BLOCKS], np.float32)


def _levels(sound: SpeechSource) -> Iterator[float]:
    """Yield the level of the voice's band in each block, in dB; pad the last with silence."""
    window = np.hanning(BLOCK_SAMPLES).astype(np.float32)
    rest = np.zeros(0, dtype=np.float32)
    for chunk in sound.chunks():
        rest = np.concatenate([rest, chunk])
        whole = len(rest) // BLOCK_SAMPLES * BLOCK_SAMPLES
        yield from _decibels(rest[:whole].reshape(-1, BLOCK_SAMPLES) * window)
        rest = rest[whole:]
    if len(rest):
        yield from _decibels(np.pad(rest, (0, BLOCK_SAMPLES - len(rest)))[None] * window)


def _decibels(blocks: FloatArray) -> FloatArray:
    """Measure windowed blocks: (n, samples) -> (n,) dB."""
    powers = np.abs(np.fft.rfft(blocks)[:, BAND]) ** 2
    decibels: FloatArray = 10 * np.log10(powers.sum(axis=1) / BLOCK_SAMPLES**2 + 1e-10)
    return decibels.astype(np.float32)


def _faded(loud: NDArray[np.bool_], audible: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Widen each loud stretch by what is audible right before and after it."""
    either = loud | audible
    for start, stop in _runs(audible & ~loud):
        if not loud[max(0, start - 1) : stop + 1].any():
            either[start:stop] = False
    return either


def _whole_words(loud: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Remove clicks, widen words, and fill the short pauses between them."""
    speaks = np.zeros_like(loud)
    for start, stop in _runs(loud):
        if stop - start >= MIN_SPEECH_BLOCKS:
            speaks[max(0, start - BLOCKS_BEFORE) : stop + BLOCKS_AFTER] = True
    for start, stop in _runs(~speaks):
        if stop - start < MIN_PAUSE_BLOCKS and start > 0 and stop < len(speaks):
            speaks[start:stop] = True
    return speaks


def _runs(flags: NDArray[np.bool_]) -> list[list[int]]:
    """List [start, stop) of each stretch of true flags."""
    borders = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    runs: list[list[int]] = borders.reshape(-1, 2).tolist()
    return runs
