"""Crops of rendered people, framed as detectors frame real ones.

Rendered crops show a little more around the face than the crops of any detector, so that each
framing can be cut out of them when a person is loaded.
"""

import cv2
import numpy as np

from latentsync.training.crops import Pixels
from latentsync.types import FloatArray

__all__ = ["BUILTIN_ZOOM", "draw_zoom", "zoomed"]

# By which rendered crops are enlarged to look like those of the builtin detector on real clips:
# MediaPipe FaceMesh finds the eyes 31.9 units of the template apart on 20 real crops of 5 people,
# 27.4 on rendered ones; heights of eyes, mouth and chin fit CENTRE.
BUILTIN_ZOOM = 1.16
CENTRE = (0.5, 0.126)  # what keeps its place, as a share of width and height: above the brows
_ZOOMS = (1.0, 1.25)  # from points as the 68-point scheme has them, to drawn crops


def draw_zoom(rng: np.random.Generator) -> float:
    """Draw one person's zoom: detectors differ, and the network must not rely on one."""
    return float(rng.uniform(*_ZOOMS))


def zoomed(pixels: Pixels, points: FloatArray, zoom: float) -> tuple[Pixels, FloatArray]:
    """Enlarge crops about the point that all framings share.

    Args:
        pixels: (..., R, R, 3).
        points: (..., n, 2) px.
        zoom: at least 1.
    """
    side = pixels.shape[-2]
    fixed = np.array(CENTRE, np.float32) * side - 0.5  # (0, 0) is the centre of the first pixel
    shift = (1 - zoom) * fixed
    affine = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    enlarged = [cv2.warpAffine(one, affine, (side, side), flags=cv2.INTER_CUBIC) for one in flat]
    moved = fixed + zoom * (points - fixed)
    return np.stack(enlarged).astype(np.uint8).reshape(pixels.shape), moved.astype(np.float32)
