"""Restored faces without the flicker of nets that look at one picture at a time.

What such a net adds to a crop, its detail, is carried along with the face from frame to frame and
blended with the detail drawn anew. How far a pixel may be trusted to the past is told by the plain
crops, in which nothing flickers: where the past, moved along, no longer shows what is there now (a
mouth opens, an eye shuts), all detail is the new one, so nothing is smeared or late.

The plain crop enters smoothed. Its own grain then stays out of the detail, for the nets take grain
away, and subtracting it frame by frame would put it back.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync.types import FloatArray

__all__ = ["TemporalSmoother"]

Stack = NDArray[np.uint8]

# What these are worth is measured by benchmarks/restoration.py.
MAX_PAST_WEIGHT = 0.95  # share of the past at stability 1: it fades to a third in 20 frames
SMOOTHING_SHARE = 1 / 170  # of the crop's side, standard deviation: 3 px at 512
CHANGE_LEVELS = 2.0  # grey levels of the smoothed crop that halve what is kept of the past
CHANGE_STEEPNESS = 4  # how fast it falls around that


class TemporalSmoother:
    """Steadies the restored crops of one face through one clip.

    Args:
        stability: 0 leaves them as they are, 1 holds them as still as can be.
    """

    def __init__(self, stability: float) -> None:
        self._share = MAX_PAST_WEIGHT * stability
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._past: tuple[FloatArray, FloatArray, NDArray[np.uint8]] | None = None

    def __call__(self, restored: Stack, plain: Stack, *, fresh: bool) -> Stack:
        """The restored crops, steadied.

        Args:
            restored, plain: (f, S, S, 3) uint8, f frames that follow each other; `plain` before
                the restoration, enlarged to the same size.
            fresh: whether the first one doesn't follow the last one of the call before.
        """
        if fresh:
            self._past = None
        if not self._share:
            return restored
        return np.stack([self._next(*pair) for pair in zip(restored, plain, strict=True)])

    def _next(self, restored: Stack, plain: Stack) -> Stack:
        sigma = plain.shape[0] * SMOOTHING_SHARE
        smooth = cv2.GaussianBlur(plain.astype(np.float32), (0, 0), sigma)
        detail = restored - smooth
        grey = cv2.cvtColor(cv2.convertScaleAbs(smooth), cv2.COLOR_RGB2GRAY)
        seen = smooth
        if self._past is not None:
            before, kept, shown = self._past
            came_from = _places(self._flow.calc(grey, shown, None))
            before = cv2.remap(before, *came_from, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
            # Each frame is one more resampling: cubic keeps of the mouth's sharpness what bilinear
            # would take.
            kept = cv2.remap(kept, *came_from, cv2.INTER_CUBIC, None, cv2.BORDER_REPLICATE)
            share = self._share * _unchanged(np.abs(smooth - before).max(axis=2), sigma)
            # What is compared is blended as the detail is: a slow change adds up until it is seen.
            seen = smooth + share * (before - smooth)
            detail += share * (kept - detail)
        self._past = seen, detail, grey
        return np.clip(smooth + detail + 0.5, 0, 255).astype(np.uint8)


def _places(flow: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Where each pixel was, as cv2.remap wants it, from (S, S, 2) px by which it has moved."""
    rows, columns = np.indices(flow.shape[:2], dtype=np.float32)
    return columns + flow[..., 0], rows + flow[..., 1]


def _unchanged(change: FloatArray, sigma: float) -> FloatArray:
    """(S, S, 1) in [0, 1] from grey levels of change, here or close by; soft in between."""
    reach = 2 * round(sigma) + 1
    near = cv2.dilate(change, np.ones((reach, reach), np.uint8))
    near = cv2.GaussianBlur(near, (0, 0), sigma / 2)
    return (1 / (1 + (near / CHANGE_LEVELS) ** CHANGE_STEEPNESS))[..., None]
