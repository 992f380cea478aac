"""Temporal smoothing of restored faces, against the flicker of nets that see one picture at a time.

The detail that such a net adds to a crop is moved along with the face by optical flow, and blended
with the new detail. The weight of the past comes from the plain crops, which don't flicker: where
the warped past differs from the present (a mouth opens, an eye shuts), all detail is new, so that
nothing is smeared or late.

The plain crop is smoothed first. The nets remove its grain, and subtracting the grain frame by
frame would put it back into the detail.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync.types import FloatArray

__all__ = ["TemporalSmoother"]

Stack = NDArray[np.uint8]

# Chosen by benchmarks/restoration.py.
MAX_PAST_WEIGHT = 0.95  # at stability 1: the past fades to a third in 20 frames
SMOOTHING_SHARE = 1 / 170  # of the crop's side, standard deviation: 3 px at 512
CHANGE_LEVELS = 2.0  # change of the smoothed crop that halves the weight of the past
CHANGE_STEEPNESS = 4  # exponent of that fall


class TemporalSmoother:
    """Smooths the restored crops of one face over time.

    Args:
        stability: 0 leaves them unchanged, 1 is the most stable.
    """

    def __init__(self, stability: float) -> None:
        self._share = MAX_PAST_WEIGHT * stability
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
        self._past: tuple[FloatArray, FloatArray, NDArray[np.uint8]] | None = None

    def __call__(self, restored: Stack, plain: Stack, *, fresh: bool) -> Stack:
        """Smooth restored crops.

        Args:
            restored, plain: (f, S, S, 3) uint8, f successive frames; `plain` before the
                restoration, enlarged to the same size.
            fresh: whether the first frame doesn't follow the last one of the previous call.
        """
        if fresh:
            self._past = None
        if not self._share:
            return restored
        return np.stack([self._smooth(*pair) for pair in zip(restored, plain, strict=True)])

    def _smooth(self, restored: Stack, plain: Stack) -> Stack:
        sigma = plain.shape[0] * SMOOTHING_SHARE
        smooth = cv2.GaussianBlur(plain.astype(np.float32), (0, 0), sigma)
        detail = restored - smooth
        grey = cv2.cvtColor(cv2.convertScaleAbs(smooth), cv2.COLOR_RGB2GRAY)
        seen = smooth
        if self._past is not None:
            before, kept, shown = self._past
            rows, columns = np.indices(grey.shape, dtype=np.float32)
            flow = self._flow.calc(grey, shown, None)
            came_from = columns + flow[..., 0], rows + flow[..., 1]
            before = cv2.remap(before, *came_from, cv2.INTER_LINEAR, None, cv2.BORDER_REPLICATE)
            # Each frame resamples once more; cubic keeps the mouth sharp, bilinear wouldn't.
            kept = cv2.remap(kept, *came_from, cv2.INTER_CUBIC, None, cv2.BORDER_REPLICATE)
            share = self._share * _past_weight(np.abs(smooth - before).max(axis=2), sigma)
            # The reference is blended like the detail, so that a slow change adds up.
            seen = smooth + share * (before - smooth)
            detail += share * (kept - detail)
        self._past = seen, detail, grey
        return np.clip(smooth + detail + 0.5, 0, 255).astype(np.uint8)


def _past_weight(change: FloatArray, sigma: float) -> FloatArray:
    """Weigh the past, (S, S, 1) in [0, 1], by the grey levels of change here or nearby."""
    reach = 2 * round(sigma) + 1
    near = cv2.dilate(change, np.ones((reach, reach), np.uint8))
    near = cv2.GaussianBlur(near, (0, 0), sigma / 2)
    return (1 / (1 + (near / CHANGE_LEVELS) ** CHANGE_STEEPNESS))[..., None]
