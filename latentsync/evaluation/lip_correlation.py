"""Does a mouth do what the voice says? Two tracks of it against each other, one number a frame.

A track is how far a mouth is open (or how wide, how round) in each frame: `measured` on an output,
and the `truth`, what the voice asks for. Their correlation is 1 where both move alike, about 0
where they have nothing to do with each other; it says nothing of how far the mouth moves, so
`amplitude_ratio` stands beside it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentsync.errors import OptionError

__all__ = [
    "LipCorrelation",
    "LipSummary",
    "amplitude_ratio",
    "lip_correlation",
    "pooled_correlation",
    "summarise",
    "wrong_pairs",
    "wrong_voice_correlation",
]

Track = NDArray[np.floating]
"""(n,) one value a frame."""

SKIP = 15  # frames, 0.6 s; by then every drawn voice has begun to speak
TIE = 1e-9  # correlations nearer to each other are equal
STILL = 1e-9  # a track whose values differ less than this, relative to their size, is constant


@dataclass(frozen=True)
class LipCorrelation:
    """How alike two tracks of one clip are; each correlation in -1..1, 0 for a constant track."""

    at_zero: float  # as they stand
    best: float  # the highest within the lags that were tried
    best_lag: int  # frames; positive: the measured mouth comes late


@dataclass(frozen=True)
class LipSummary:
    """What a set of clips says about a model."""

    mean: float  # of the clips' correlations at lag 0
    worst: float  # the lowest of them
    pooled: float  # one correlation over all frames of all clips
    wrong: float  # mean correlation to other clips' voices: what is had for nothing
    amplitude: float  # median of the clips' amplitude ratios


def lip_correlation(measured: Track, truth: Track, max_lag: int = 5) -> LipCorrelation:
    """Correlation of two tracks (n,) as they stand, and at the lag where it is highest.

    Of two lags that are equally good the smaller one is given. A clip too short for a lag (fewer
    than 3 frames would overlap) is not shifted that far.

    Args:
        max_lag: frames, tried either way.

    Raises:
        OptionError: the tracks differ in length, are empty, or hold a value that is not finite.
    """
    a, b = _checked(measured, truth)
    at_zero = best = _correlation(a, b)
    best_lag = 0
    reach = max(0, min(max_lag, len(a) - 3))
    for lag in sorted(range(-reach, reach + 1), key=abs):
        both = len(a) - abs(lag)
        here = _correlation(a[max(lag, 0) :][:both], b[max(-lag, 0) :][:both])
        if here > best + TIE:
            best, best_lag = here, lag
    return LipCorrelation(at_zero, best, best_lag)


def pooled_correlation(measured: Sequence[Track], truth: Sequence[Track]) -> float:
    """One correlation over the frames of all clips, which are not normalised one by one.

    So a model whose mouths are all open alike, whoever speaks and however loud, pays for it here.
    Raises as `lip_correlation` does.
    """
    pairs = [_checked(a, b) for a, b in zip(measured, truth, strict=True)]
    if not pairs:
        return 0.0
    return _correlation(*(np.concatenate(tracks) for tracks in zip(*pairs, strict=True)))


def amplitude_ratio(measured: Track, truth: Track) -> float:
    """Standard deviation of the measured track over the truth's; 1 moves as far as it should.

    Not the slope of a regression: that one is this times the correlation, so that a mouth which
    moves amply at the wrong moments would look as if it barely moved. 0 for a constant truth.
    Raises as `lip_correlation` does.
    """
    a, b = _checked(measured, truth)
    return 0.0 if _is_constant(b) else float(a.std() / b.std())


def wrong_pairs(count_clips: int, pairs: int = 40, seed: int = 0) -> list[tuple[int, int]]:
    """Up to `pairs` different (i, j), i != j, among so many clips; by chance, the same each time.

    All there are where there are no more than that; none of fewer than two clips.
    """
    every = [(i, j) for i in range(count_clips) for j in range(count_clips) if i != j]
    if len(every) <= pairs:
        return every
    drawn = np.random.default_rng(seed).choice(len(every), size=pairs, replace=False)
    return [every[k] for k in sorted(drawn)]


def wrong_voice_correlation(
    measured: Sequence[Track],
    truth: Sequence[Track],
    pairs: int = 40,
    seed: int = 0,
    skip: int = SKIP,
) -> float:
    """Mean correlation of clip i's mouth to what clip j's voice asks for, over `wrong_pairs`.

    Near 0 for a model that listens. Clips of different lengths are compared as far as both go; 0
    for fewer than two clips.

    Args:
        skip: frames left out at the beginning, though never more than half a clip: voices mostly
            begin with silence, and one silence is like another. With it even the truth would score
            0.1 over clips of 4 s, and 0.3 over clips of 2 s.
    """
    found = []
    for i, j in wrong_pairs(len(measured), pairs, seed):
        stop = min(len(measured[i]), len(truth[j]))
        both = slice(min(skip, stop // 2), stop)
        found.append(_correlation(*_checked(measured[i][both], truth[j][both])))
    return float(np.mean(found)) if found else 0.0


def summarise(measured: Sequence[Track], truth: Sequence[Track], seed: int = 0) -> LipSummary:
    """All of the above over a set of clips, each with its own truth; zeros of no clip.

    `seed` picks the pairs with a wrong voice. Raises as `lip_correlation` does.
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


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    if _is_constant(a) or _is_constant(b):
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))


def _is_constant(track: NDArray[np.float64]) -> bool:
    return bool(np.ptp(track) <= STILL * np.abs(track).max())


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
