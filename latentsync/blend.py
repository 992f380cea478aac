"""How a drawn mouth fits into its face: in its colours, and less of it on a face turned away."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentsync.mask import keep_mask, paste_share
from latentsync.types import FloatArray

__all__ = ["match_colour", "mouth_ring", "yaw", "yaw_strength"]

LEVEL = 2 / 255  # a grey level, where colours are in [-1, 1]
RING_ROWS = 0.75  # of the crop's height: what lies lower is chin and neck, which speech moves
MIN_SHARE = 0.05  # a ring's pixels of less weight would only cost time
OUTLIER = 3.0  # deviations off the ring's common difference, and it is no difference of colour
MAD_TO_DEVIATION = 1.4826  # of a normal distribution
STEADY = 4 * LEVEL  # on a ring with less contrast than that nothing tells the gain
MAX_GAIN, MAX_SHIFT = 1.25, 32 * LEVEL  # more than any decoder's cast

# How far the nose base stands out before the brows, in distances of the brows; the fit over 80
# drawn heads, each from -45 to 45 degrees.
NOSE_DEPTH = 0.376
MIN_BROWS = 1e-3  # px; brows closer together than this are no face
KERNEL = np.hanning(11)[1:-1]  # 9 frames, over which the strength changes gently


def mouth_ring(resolution: int) -> FloatArray:
    """(resolution, resolution) float32 in [0, 1]: the rim of what is drawn anew, 1 at its edge.

    The inner half of `paste_share`'s soft edge, beside nose and cheeks. Not the outer half, where
    the crop has the frame's own pixels, nor the chin, which is elsewhere when the mouth opens.
    """
    rim = np.clip(2 * (1 - paste_share(resolution)), 0, 1) * (1 - keep_mask(resolution))
    rim[rim < MIN_SHARE] = 0
    rim[round(RING_ROWS * resolution) :] = 0
    return rim.astype(np.float32)


def match_colour(
    face: Tensor, original: Tensor, ring: Tensor, hole: Tensor | None = None
) -> Tensor:
    """Give a drawn mouth the colours of its face: mean and deviation of each channel on the ring.

    In the network's own RGB, neither linear nor Lab: a decoder's cast is a shift and a gain there,
    and measured on drawn faces the other two leave more of it. Pixels that differ otherwise than
    the rest of the ring, such as a moved wrinkle, are left out.

    Args:
        face: (3, R, R) float32, about [-1, 1], drawn.
        original: (3, R, R) float32 in [-1, 1], the same crop of the frame.
        ring: (R, R) float32, weights; see `mouth_ring`.
        hole: (R, R) float32 in [0, 1], where the face may be changed (1 - `keep_mask`); the rest
            is the frame's own and fits already. None: everywhere.

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
    weight = weight * (off <= OUTLIER * usual).all(dim=0)
    (drawn_mean, drawn_spread), (own_mean, own_spread) = (
        _mean_and_variance(values, weight) for values in (drawn, own)
    )
    gain = ((own_spread + STEADY**2) / (drawn_spread + STEADY**2)).sqrt()
    gain = gain.clamp(1 / MAX_GAIN, MAX_GAIN)[:, None, None]
    shift = (own_mean - drawn_mean).clamp(-MAX_SHIFT, MAX_SHIFT)[:, None, None]
    change = (gain - 1) * (face - drawn_mean[:, None, None]) + shift
    return face + (change if hole is None else change * hole)


def _mean_and_variance(values: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """(3,) each, of (3, n) values with (n,) weights."""
    share = weight / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)
    mean = values @ share
    return mean, (values - mean[:, None]).square() @ share


def yaw(points: FloatArray) -> NDArray[np.float64]:
    """(n,) degrees by which each face is turned; positive to the picture's right.

    Seen from the front the nose base lies below the brows' middle. It stands out before them, so a
    turn by an angle moves it aside by its depth times the angle's tangent, in distances of the
    brows as these appear. One depth serves all heads, and a nod of a turned head looks like more
    or less of a turn: on drawn heads up to 30 degrees the answer is off by 4 degrees RMS.

    Args:
        points: (n, 3, 2) frame px: left brow, right brow, nose base.

    Returns:
        NaN where there is no face: points that aren't finite, or brows in one place.
    """
    left, right, nose = np.moveaxis(points.astype(np.float64), 1, 0)
    brows = right - left
    square = (brows**2).sum(axis=1)
    square[square < MIN_BROWS**2] = np.nan
    aside = ((nose - (left + right) / 2) * brows).sum(axis=1) / square
    return np.degrees(np.arctan(aside / NOSE_DEPTH))


def yaw_strength(
    yaw: NDArray[np.floating],
    limit: float,
    soft: float = 10.0,
    cut: NDArray[np.bool_] | None = None,
) -> FloatArray:
    """How much of a drawn mouth is laid on a face that turns away.

    Args:
        yaw: (n,) degrees; NaN where nobody knows, which counts for nothing.
        limit: degrees up to which all of it is laid on.
        soft: degrees beyond, over which it goes.
        cut: (n,) whether a shot begins. Over a few frames the strength changes gently, but never
            across a cut. None: nowhere.

    Returns:
        (n,) float32 in [0, 1]; 1 where nobody knows for frames around.
    """
    known = np.isfinite(yaw)
    sharp = np.where(known, np.clip((limit + soft - np.abs(yaw)) / soft, 0, 1), 0)
    starts = np.flatnonzero(np.zeros(0) if cut is None else cut[1:]) + 1
    shots = zip(np.split(sharp, starts), np.split(known.astype(float), starts), strict=True)
    parts = [(_smoothed(values), _smoothed(weights)) for values, weights in shots]
    total, weight = (np.concatenate(part) for part in zip(*parts, strict=True))
    strength = np.divide(total, weight, out=np.ones(len(yaw)), where=weight > 0)
    return strength.clip(0, 1).astype(np.float32)


def _smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """As long as the values, which are 0 around."""
    if len(values) == 0:
        return values
    half = len(KERNEL) // 2
    return np.convolve(values, KERNEL)[half : half + len(values)]
