"""Colour transfer: a generated mouth gets the colours of its face."""

import numpy as np
import torch
from torch import Tensor

from latentsync.faces.mask import keep_mask, paste_share
from latentsync.types import FloatArray

__all__ = ["match_colour", "mouth_ring"]

LEVEL = 2 / 255  # a grey level, where colours are in [-1, 1]
RING_ROWS = 0.75  # of the crop's height: below are chin and neck, which speech moves
MIN_SHARE = 0.05  # weight of a ring's pixel, below which it would only cost time
OUTLIER_DEVIATIONS = 3.0  # from the ring's median difference; beyond, colour isn't the cause
MAD_TO_DEVIATION = 1.4826  # of a normal distribution
MIN_CONTRAST = 4 * LEVEL  # on a ring with less contrast the gain can't be measured
MAX_GAIN, MAX_SHIFT = 1.25, 32 * LEVEL  # more than any decoder's cast


def mouth_ring(resolution: int) -> FloatArray:
    """Return (resolution, resolution) float32: weights of the redrawn area's rim, 1 at its edge.

    It is the inner half of `paste_share`'s soft edge, beside nose and cheeks: not the outer half,
    where the crop has the frame's own pixels, nor the chin, which moves when the mouth opens.
    """
    rim = np.clip(2 * (1 - paste_share(resolution)), 0, 1) * (1 - keep_mask(resolution))
    rim[rim < MIN_SHARE] = 0
    rim[round(RING_ROWS * resolution) :] = 0
    return rim.astype(np.float32)


def match_colour(
    face: Tensor, original: Tensor, ring: Tensor, hole: Tensor | None = None
) -> Tensor:
    """Match a generated mouth to its face: mean and deviation of each channel on the ring.

    It works in the network's own RGB, in which a decoder's cast is a shift and a gain; on drawn
    faces linear RGB and Lab leave more of it. Outliers on the ring, such as a moved wrinkle, are
    left out.

    Args:
        face: (3, R, R) float32, about [-1, 1], generated.
        original: (3, R, R) float32 in [-1, 1], the same crop of the frame.
        ring: (R, R) float32, weights; see `mouth_ring`.
        hole: (R, R) float32 in [0, 1], where the face may change (1 - `keep_mask`), because the
            rest is the frame's own. None: everywhere.

    Returns:
        (3, R, R) float32; the face itself where the ring has no weight.
    """
    there = ring > 0
    if not there.any():
        return face
    drawn, own, weight = face[:, there], original[:, there], ring[there]
    apart = own - drawn
    off = (apart - apart.median(dim=1, keepdim=True).values).abs()
    usual = MAD_TO_DEVIATION * off.median(dim=1, keepdim=True).values + LEVEL
    weight = weight * (off <= OUTLIER_DEVIATIONS * usual).all(dim=0)
    (drawn_mean, drawn_spread), (own_mean, own_spread) = (
        _mean_and_variance(values, weight) for values in (drawn, own)
    )
    gain = ((own_spread + MIN_CONTRAST**2) / (drawn_spread + MIN_CONTRAST**2)).sqrt()
    gain = gain.clamp(1 / MAX_GAIN, MAX_GAIN)[:, None, None]
    shift = (own_mean - drawn_mean).clamp(-MAX_SHIFT, MAX_SHIFT)[:, None, None]
    change = (gain - 1) * (face - drawn_mean[:, None, None]) + shift
    return face + (change if hole is None else change * hole)


def _mean_and_variance(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (3,) mean and (3,) variance of (3, n) values with (n,) weights."""
    share = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
    mean = values @ share
    return mean, (values - mean[:, None]).square() @ share
