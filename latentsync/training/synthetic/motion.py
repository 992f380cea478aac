"""How a head is held while it talks: slow drift, nods, blinks and glances, by seed."""

import numpy as np

from latentsync.training.synthetic.geometry import Pose
from latentsync.types import FloatArray

__all__ = ["draw_motion", "drift"]

_BLINK = (0.0, 0.45, 1.0, 1.0, 0.7, 0.25, 0.0)  # shutting and opening, one value each 40 ms
_BLINK_EVERY_SECONDS = (1.6, 5.5)
_GLANCE_EVERY_SECONDS = (0.6, 2.5)


def draw_motion(
    rng: np.random.Generator, frames: int, *, fps: float = 25.0, amount: float = 1.0
) -> list[Pose]:
    """`frames` poses; `amount` 0 is a head that only blinks and looks around, 1 a lively one."""
    t = (np.arange(frames) / fps).astype(np.float32)
    columns = {
        "yaw": drift(rng, t, 0.2 * amount, 0.14) + rng.uniform(-0.12, 0.12) * amount,
        "pitch": drift(rng, t, 0.09 * amount, 0.2) + rng.uniform(-0.04, 0.06) * amount,
        "roll": drift(rng, t, 0.07 * amount, 0.12) + rng.uniform(-0.06, 0.06) * amount,
        "x": drift(rng, t, 0.12 * amount, 0.1),
        "y": drift(rng, t, 0.06 * amount, 0.16),
        "scale": 1 + drift(rng, t, 0.035 * amount, 0.09),
        "blink": _blinks(rng, frames, fps),
    }
    columns["gaze_x"], columns["gaze_y"] = _glances(rng, frames, fps).T
    rows = np.stack(list(columns.values()), axis=1).tolist()
    return [
        Pose(**dict(zip(columns, row, strict=True)), tick=tick) for tick, row in enumerate(rows)
    ]


def drift(rng: np.random.Generator, times: FloatArray, amount: float, hertz: float) -> FloatArray:
    """A wandering curve of about +-`amount`: three slow waves whose periods don't align."""
    total = np.zeros_like(times)
    for octave, share in ((1.0, 0.55), (2.3, 0.3), (4.7, 0.15)):
        rate = 2 * np.pi * hertz * octave * rng.uniform(0.7, 1.3)
        total += share * np.sin(rate * times + rng.uniform(0, 2 * np.pi))
    return (amount * total).astype(np.float32)


def _blinks(rng: np.random.Generator, frames: int, fps: float) -> FloatArray:
    lids = np.zeros(frames, np.float32)
    at = rng.uniform(0.4, _BLINK_EVERY_SECONDS[1])
    while at * fps < frames:
        seconds = np.arange(frames) / fps - at
        shape = np.interp(seconds, np.arange(-1, 6) * 0.04, _BLINK)
        lids = np.maximum(lids, shape.astype(np.float32))
        at += rng.uniform(*_BLINK_EVERY_SECONDS)
    return lids


def _glances(rng: np.random.Generator, frames: int, fps: float) -> FloatArray:
    """(frames, 2): the eyes rest on a spot, then jump to the next."""
    gaze = np.zeros((frames, 2), np.float32)
    at, spot = 0.0, np.zeros(2)
    while at * fps < frames:
        gaze[int(at * fps) :] = spot
        spot = rng.normal(0, 0.25, 2) * (rng.random() < 0.7)
        at += rng.uniform(*_GLANCE_EVERY_SECONDS)
    return np.clip(gaze, -0.8, 0.8)
