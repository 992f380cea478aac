"""Aligned crops of drawn heads in short windows, for training: what the network sees, and when."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentsync.training.synthetic.clips import Take
from latentsync.training.synthetic.geometry import crop_view
from latentsync.training.synthetic.heads import draw_crop, landmarks, measure
from latentsync.training.synthetic.mouth import Mouth
from latentsync.types import FloatArray, IntArray

__all__ = ["Crops", "draw_crops"]

_ANCHORS = [0, 1, 4]  # brows and nose base among LANDMARKS
_STEADY = 0.7  # share of the alignment's error that stays the same through a window
_WORLD = np.array([[1.0, 0, 0], [0, 1.0, 0]])


@dataclass(frozen=True)
class Crops:
    """Windows of consecutive frames of one take."""

    pixels: NDArray[np.uint8]  # (windows, frames, size, size, 3) RGB
    frames: IntArray  # (windows, frames), their numbers in the take
    mouths: FloatArray  # (windows, frames, 3): opening, width, rounding, as `measure` has them
    points: FloatArray  # (windows, frames, 12, 2) px of LANDMARKS


def draw_crops(
    take: Take, rng: np.random.Generator, *, windows: int, frames: int, size: int, jitter: float
) -> Crops:
    """Draw `windows` stretches of `frames` frames out of the take, each at a place by chance.

    `jitter` is the standard deviation of the error that alignment makes, per anchor and axis, as a
    share of the distance between the brows; most of it is the same through a window, as the errors
    of a detector are.
    """
    spans = np.sort(rng.integers(0, len(take) - frames + 1, windows))
    numbers = spans[:, None] + np.arange(frames)
    steady = rng.normal(0, jitter * _STEADY, (windows, 1, 3, 2))
    loose = rng.normal(0, jitter * np.sqrt(1 - _STEADY**2) * 0.3, (windows, frames, 3, 2))
    pixels = np.empty((windows, frames, size, size, 3), np.uint8)
    points = np.empty((windows, frames, 12, 2), np.float32)
    mouths = np.empty((windows, frames, 3), np.float32)
    for place in np.ndindex(windows, frames):
        number = int(numbers[place])
        pose, mouth = take.poses[number], Mouth.from_track(take.mouths[number])
        anchors = landmarks(take.identity, pose, Mouth(), _WORLD)[_ANCHORS]
        apart = float(np.linalg.norm(anchors[1] - anchors[0]))
        error = (steady + loose)[place] * apart
        view = crop_view(anchors + error, size)
        pixels[place], points[place] = draw_crop(take.identity, pose, mouth, size, view)
        mouths[place] = measure(take.identity, mouth)
    return Crops(pixels, numbers, mouths, points)
