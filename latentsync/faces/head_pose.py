"""How far a head is turned, and in which frames it is turned too far."""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from latentsync.types import FloatArray

__all__ = ["nose_places", "turned_away", "yaw"]

# How far the nose base stands out before the brows, in distances of the brows; the fit over 80
# drawn heads, each from -45 to 45 degrees.
NOSE_DEPTH = 0.376
MIN_BROWS = 1e-3  # px; brows closer together than this are no face
# A face turned away counts as back when it is so far below the limit: more than the angle's error.
# Of a small limit it is a share, or it would never be.
HYSTERESIS_DEGREES, HYSTERESIS_SHARE = 5.0, 0.25
SMOOTHED_SECONDS = 0.36  # over which the angle is smoothed, so that one bad frame switches nothing
SHORTEST_SECONDS = 0.4  # of one mouth; twice the default fade and a few frames between


def nose_places(points: FloatArray) -> FloatArray:
    """(n, 2) how far the nose base lies aside of the brows' middle and below it, by their distance.

    Aside is positive to the picture's right, along the brows.

    Args:
        points: (n, 3, 2) frame px: left brow, right brow, nose base.

    Returns:
        NaN where there is no face: points that aren't finite, or brows in one place.
    """
    left, right, nose = np.moveaxis(points.astype(np.float64), 1, 0)
    brows, down = right - left, nose - (left + right) / 2
    square = (brows**2).sum(axis=1)
    square[square < MIN_BROWS**2] = np.nan
    aside = (down * brows).sum(axis=1) / square
    below = (down[:, 1] * brows[:, 0] - down[:, 0] * brows[:, 1]) / square
    return np.stack([aside, below], axis=1).astype(np.float32)


def yaw(noses: FloatArray) -> NDArray[np.float64]:
    """(n,) degrees by which each face is turned; positive to the picture's right.

    Seen from the front the nose base lies below the brows' middle. It stands out before them, so a
    turn by an angle moves it aside by its depth times the angle's tangent, in distances of the
    brows as these appear. One depth serves all heads, and a nod of a turned head looks like more
    or less of a turn: on drawn heads up to 30 degrees the answer is off by 4 degrees RMS.

    Args:
        noses: (n, 2) of `nose_places`; NaN gives NaN.
    """
    return np.degrees(np.arctan(noses[:, 0].astype(np.float64) / NOSE_DEPTH))


def turned_away(
    yaw: NDArray[np.floating],
    limit: float,
    fps: float = 25,
    cut: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Find the frames in which a face is turned too far to draw a mouth on it.

    Within each shot the angle is smoothed over time. A face is turned away as soon as it passes
    the limit, and until it is well below it. No switch is undone within SHORTEST_SECONDS.

    Args:
        yaw: (n,) degrees; NaN where it is unknown: there nothing changes.
        limit: degrees.
        fps: frames a second.
        cut: (n,) whether a new shot begins. None: nowhere.

    Returns:
        (n,) bool.
    """
    back = limit - min(HYSTERESIS_DEGREES, HYSTERESIS_SHARE * limit)
    half, shortest = round(SMOOTHED_SECONDS * fps / 2), round(SHORTEST_SECONDS * fps)
    kernel = np.hanning(2 * half + 3)[1:-1]
    away = np.zeros(len(yaw), bool)
    starts = [] if cut is None else (np.flatnonzero(cut[1:]) + 1).tolist()
    for start, stop in pairwise([0, *starts, len(yaw)]):
        state = False
        for i, angle in enumerate(_smoothed(np.abs(yaw[start:stop]), kernel), start):
            state = angle > limit if angle > limit or angle < back else state
            away[i] = state
        _lengthened(away[start:stop], shortest)
    return away


def _smoothed(values: NDArray[np.floating], kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted means of the known values around each place; NaN where none is known."""
    known, half = np.isfinite(values), len(kernel) // 2
    sums, weights = (
        np.convolve(part, kernel)[half : half + len(part)] if len(part) else part
        for part in (np.where(known, values, 0).astype(np.float64), known.astype(np.float64))
    )
    return np.divide(sums, weights, out=np.full(len(values), np.nan), where=weights > 0)


def _lengthened(flags: NDArray[np.bool_], shortest: int) -> None:
    """Grow, in place, each run of True to `shortest`, then fill each run of False that is shorter.

    A run of False at either end is filled as well; flags without any True stay.
    """
    for a, b in _runs(flags):
        grow = max(0, shortest - (b - a))
        flags[max(0, a - grow // 2) : b + grow - grow // 2] = True
    if flags.any():
        for a, b in _runs(~flags):
            flags[a:b] |= b - a < shortest


def _runs(flags: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[a, b) of each run of True."""
    edges = np.flatnonzero(np.diff(flags, prepend=False, append=False))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
