"""Correlation of two mouth tracks: does a mouth move as the voice asks?

A track is how far a mouth is open (or how wide, how round) in each frame: `measured` on an output,
and the `truth` that belongs to the voice. Their correlation is 1 if both move alike and about 0 if
they have nothing in common. It doesn't tell how far the mouth moves; `amplitude_ratio` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentsync.errors import OptionError
from latentsync.evaluation.sync import SAMPLES_PER_FRAME
from latentsync.media import AudioReader

__all__ = [
    "LipCorrelation",
    "LipSummary",
    "amplitude_ratio",
    "lip_correlation",
    "loudness_of",
    "pooled_correlation",
    "summarise",
    "wrong_pairs",
    "wrong_voice_correlation",
]

Track = NDArray[np.floating]
"""(n,) one value a frame."""

SILENCE = 1e-3  # of full scale, -60 dB
SKIP_FRAMES = 15  # 0.6 s; by then every drawn voice has begun to speak
MIN_GAIN = 1e-9  # of correlation, by which another lag must be better
MIN_SPREAD = 1e-9  # relative to its largest value; a track that varies less is constant


@dataclass(frozen=True)
class LipCorrelation:
    """Correlations of two tracks of one clip, in -1..1; 0 for a constant track."""

    at_zero: float  # without a lag
    best: float  # the highest of the lags that were tried
    best_lag: int  # frames; positive: the measured mouth is late


@dataclass(frozen=True)
class LipSummary:
    """The results of a model over a set of clips."""

    mean: float  # of the clips' correlations at lag 0
    worst: float  # the lowest of them
    pooled: float  # one correlation over all frames of all clips
    wrong: float  # mean correlation with other clips' voices: the chance level
    amplitude: float  # median of the clips' amplitude ratios


def lip_correlation(measured: Track, truth: Track, max_lag: int = 5) -> LipCorrelation:
    """Correlate two tracks (n,) without a lag, and at the lag with the highest correlation.

    Of two equally good lags the smaller one is taken. A lag at which fewer than 3 frames would
    overlap is not tried.

    Args:
        max_lag: frames, in either direction.

    Raises:
        OptionError: the tracks differ in length, are empty, or hold a value that is not finite.
    """
    a, b = _checked(measured, truth)
    at_zero = best = _correlation(a, b)
    best_lag = 0
    reach = max(0, min(max_lag, len(a) - 3))
    for lag in sorted(range(-reach, reach + 1), key=abs):
        overlap = len(a) - abs(lag)
        here = _correlation(a[max(lag, 0) :][:overlap], b[max(-lag, 0) :][:overlap])
        if here > best + MIN_GAIN:
            best, best_lag = here, lag
    return LipCorrelation(at_zero, best, best_lag)


def pooled_correlation(measured: Sequence[Track], truth: Sequence[Track]) -> float:
    """Correlate over the frames of all clips, without normalising each clip.

    So a model that opens every mouth equally far, however loud the voice, scores lower here.
    Raises as `lip_correlation` does.
    """
    pairs = [_checked(a, b) for a, b in zip(measured, truth, strict=True)]
    if not pairs:
        return 0.0
    return _correlation(*(np.concatenate(tracks) for tracks in zip(*pairs, strict=True)))


def amplitude_ratio(measured: Track, truth: Track) -> float:
    """Divide the measured track's standard deviation by the truth's; 0 for a constant truth.

    It is not the slope of a regression, which is this ratio times the correlation: then a mouth
    that moves far at the wrong moments would seem to move little. Raises as `lip_correlation` does.
    """
    a, b = _checked(measured, truth)
    return 0.0 if _is_constant(b) else float(a.std() / b.std())


def wrong_pairs(clips: int, pairs: int = 40, seed: int = 0) -> list[tuple[int, int]]:
    """Draw up to `pairs` different (i, j), i != j, of so many clips; the same for a seed."""
    every = [(i, j) for i in range(clips) for j in range(clips) if i != j]
    if len(every) <= pairs:
        return every
    drawn = np.random.default_rng(seed).choice(len(every), size=pairs, replace=False)
    return [every[k] for k in sorted(drawn)]


def wrong_voice_correlation(
    measured: Sequence[Track],
    truth: Sequence[Track],
    pairs: int = 40,
    seed: int = 0,
    skip: int = SKIP_FRAMES,
) -> float:
    """Mean correlation of clip i's mouth with the truth of clip j, over `wrong_pairs`.

    It is near 0 for a model that follows the voice, and 0 for fewer than two clips. Clips of
    different lengths are compared as far as both go.

    Args:
        skip: frames to leave out at the beginning, but never more than half a clip. Voices mostly
            begin with silence, and one silence is like another: without skipping, even the truth
            would score 0.1 over clips of 4 s, and 0.3 over clips of 2 s.
    """
    found = []
    for i, j in wrong_pairs(len(measured), pairs, seed):
        stop = min(len(measured[i]), len(truth[j]))
        both = slice(min(skip, stop // 2), stop)
        found.append(_correlation(*_checked(measured[i][both], truth[j][both])))
    return float(np.mean(found)) if found else 0.0


def summarise(measured: Sequence[Track], truth: Sequence[Track], seed: int = 0) -> LipSummary:
    """Compute all of the above over a set of clips, each with its own truth; zeros for no clip.

    `seed` chooses the pairs with a wrong voice. Raises as `lip_correlation` does.
    """
    if not measured:
        return LipSummary(0.0, 0.0, 0.0, 0.0, 0.0)
    pairs = list(zip(measured, truth, strict=True))
    single = [lip_correlation(a, b, max_lag=0).at_zero for a, b in pairs]
    return LipSummary(
        mean=float(np.mean(single)),
        worst=min(single),
        pooled=pooled_correlation(measured, truth),
        wrong=wrong_voice_correlation(measured, truth, seed=seed),
        amplitude=float(np.median([amplitude_ratio(a, b) for a, b in pairs])),
    )


def loudness_of(sound: AudioReader) -> NDArray[np.float64]:
    """(frames,) level of the sound during each frame, in dB of full scale."""
    levels = [np.empty(0)]
    for chunk in sound.chunks():  # each is a second, so each begins with a frame
        whole = chunk[: len(chunk) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME].astype(np.float64)
        power = np.mean(whole.reshape(-1, SAMPLES_PER_FRAME) ** 2, axis=1)
        levels.append(20 * np.log10(np.maximum(np.sqrt(power), SILENCE)))
    return np.concatenate(levels)


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if _is_constant(a) or _is_constant(b):
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))


def _is_constant(track: NDArray[np.float64]) -> bool:
    return bool(np.ptp(track) <= MIN_SPREAD * np.abs(track).max())


def _checked(measured: Track, truth: Track) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(measured, np.float64), np.asarray(truth, np.float64)
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise OptionError(
            f"mouth tracks are of shapes {a.shape} and {b.shape}; both must be (n,) with one value "
            "a frame: cut the longer one"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise OptionError(
            "a mouth track holds values that are not finite; fill or cut those frames"
        )
    return a, b
