"""Spectacles as outlines: two rims, two temples, a bridge."""

from dataclasses import dataclass

import numpy as np

from .makehuman import Floats

__all__ = ["Glasses", "draw_glasses"]

_NOSE_BRIDGE = 131  # vertex between the eyes


@dataclass(frozen=True)
class Glasses:
    rims: tuple[Floats, Floats]  # (48, 3) closed lines, dm
    bars: tuple[Floats, ...]  # open lines, (n, 3)
    wire_m: float  # radius
    colour: Floats  # (3,) linear RGB


def draw_glasses(
    rng: np.random.Generator, vertices: Floats, eyes: tuple[Floats, Floats]
) -> Glasses:
    """Fit glasses to a neutral face; `eyes` are the eyeballs' centres, the person's left first."""
    wide, high, power = rng.uniform(0.24, 0.3), rng.uniform(0.17, 0.24), rng.uniform(2.0, 4.0)
    front = vertices[_NOSE_BRIDGE, 2] + 0.06
    turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    x = np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** (2 / power) * wide
    y = np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** (2 / power) * high
    rims, bars = [], []
    for eye, side in zip(eyes, (1, -1), strict=True):
        across = eye[0] + side * 0.02 + x
        depth = front - 0.35 * np.clip(np.abs(across) - 0.15, 0, 1) ** 1.5
        rim = np.stack([across, eye[1] - 0.03 + y, depth], axis=1)
        rims.append(rim)
        hinge = (eye[0] + side * (0.02 + wide), eye[1] + 0.05, rim[0 if side > 0 else 24, 2])
        bars.append(
            np.array([hinge, (side * 0.76, eye[1] + 0.06, 0.9), (side * 0.78, eye[1] + 0.03, 0.2)])
        )
    left, right = eyes
    bars.append(
        np.array(
            [
                (left[0] - wide + 0.02, left[1] + 0.02, front),
                (0, left[1] + 0.05, front + 0.03),
                (right[0] + wide - 0.02, right[1] + 0.02, front),
            ]
        )
    )
    colour = rng.random(3) ** 2.2 * rng.choice([0.05, 0.4])
    return Glasses((rims[0], rims[1]), tuple(bars), rng.uniform(0.0008, 0.0026), colour)
