"""Where things are: the head as a gentle relief that turns, and the affine maps around it.

Three planes: the head's own (x, y of `identity`), the world (the head placed by its pose; the body
and the room stand here), and pixels. An affine map is float64 (2, 3), applied to column vectors.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from latentsync.training.synthetic.identity import Identity
from latentsync.types import FloatArray

__all__ = [
    "TEMPLATE",
    "TEMPLATE_SIZE",
    "Affine",
    "Pose",
    "apply",
    "chain",
    "crop_view",
    "invert",
    "placement",
    "project",
    "scene_view",
    "unproject",
]

Affine = NDArray[np.float64]

TEMPLATE = np.array([[17.0, 20.0], [58.0, 20.0], [37.5, 40.0]])
"""Brow centres and nose base in LatentSync's box of TEMPLATE_SIZE."""
TEMPLATE_SIZE = (75.0, 100.0)  # width, height

_NECK = np.array([0.0, 1.3])  # the head rolls about this point
_UNIT_PER_HEIGHT = 0.225  # half a face's width as a share of the frame's height
_CENTRE_Y = 0.46  # of the frame's height


@dataclass(frozen=True)
class Pose:
    """How the head is held at one moment."""

    yaw: float = 0.0  # rad, positive turns to the picture's right
    pitch: float = 0.0  # rad, positive looks down
    roll: float = 0.0  # rad, positive leans clockwise
    x: float = 0.0  # head units
    y: float = 0.0
    scale: float = 1.0
    blink: float = 0.0  # 0 open .. 1 shut
    gaze_x: float = 0.0  # -1..1
    gaze_y: float = 0.0
    tick: int = 0  # frame number; seeds the film grain


def apply(affine: Affine, points: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n, 2) points through the map."""
    return np.asarray(points, np.float64) @ affine[:, :2].T + affine[:, 2]


def chain(after: Affine, before: Affine) -> Affine:
    """The map that does `before`, then `after`."""
    linear = after[:, :2] @ before[:, :2]
    return np.column_stack([linear, after[:, :2] @ before[:, 2] + after[:, 2]])


def invert(affine: Affine) -> Affine:
    linear = np.linalg.inv(affine[:, :2])
    return np.column_stack([linear, -linear @ affine[:, 2]])


def _depth(who: Identity, x: NDArray[np.floating], y: NDArray[np.floating]) -> FloatArray:
    """How far a point of the face stands out towards the viewer: a dome with a nose."""
    dome = 0.9 * np.exp(-0.5 * ((x / 0.75) ** 2 + ((y + 0.1) / 1.25) ** 2))
    tip = who.nose_y - 0.12
    along = np.where(y < tip, (y - tip) / 0.26, (y - tip) / 0.12)
    nose = 0.2 * who.nose_bridge * np.exp(-0.5 * ((x / 0.15) ** 2 + along**2))
    return (dome + nose).astype(np.float32)


def project(
    who: Identity, pose: Pose, points: NDArray[np.floating], lift: float = 0.0
) -> NDArray[np.float64]:
    """(n, 2) points of the face -> the same after yaw and pitch; `lift` adds to their depth."""
    x, y = np.asarray(points, np.float64).T
    z = _depth(who, x, y) + lift
    deep = z * np.cos(pose.yaw) - x * np.sin(pose.yaw)
    turned_x = x * np.cos(pose.yaw) + z * np.sin(pose.yaw)
    return np.stack([turned_x, y * np.cos(pose.pitch) + deep * np.sin(pose.pitch)], axis=1)


def unproject(
    who: Identity, pose: Pose, x: FloatArray, y: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The inverse of `project`, for arrays of any one shape, by fixed-point iteration.

    It converges for |yaw| and |pitch| up to about 0.5: the relief is gentle.
    """
    face_x, face_y = x, y
    for _ in range(6):
        z = _depth(who, face_x, face_y)
        deep = z * np.cos(pose.yaw) - face_x * np.sin(pose.yaw)
        face_y = (y - deep * np.sin(pose.pitch)) / np.cos(pose.pitch)
        face_x = (x - z * np.sin(pose.yaw)) / np.cos(pose.yaw)
    return face_x.astype(np.float32), face_y.astype(np.float32)


def placement(pose: Pose) -> Affine:
    """Head plane -> world: roll and scale about the neck, then the shift."""
    cos, sin = np.cos(pose.roll) * pose.scale, np.sin(pose.roll) * pose.scale
    linear = np.array([[cos, -sin], [sin, cos]])
    return np.column_stack([linear, _NECK - linear @ _NECK + (pose.x, pose.y)])


def scene_view(width: int, height: int, zoom: float = 1.0) -> Affine:
    """World -> pixels of a frame with the head in its middle."""
    unit = _UNIT_PER_HEIGHT * height * zoom
    return np.array([[unit, 0, width / 2], [0, unit, height * _CENTRE_Y]])


def crop_view(anchors: NDArray[np.floating], size: int) -> Affine:
    """World -> pixels of LatentSync's aligned crop, `size` px square.

    `anchors` (3, 2): brow centres and nose base in the world. A similarity fits them to TEMPLATE
    (least squares), then the 75 x 100 box is squeezed to a square.
    """
    centre, goal = anchors.mean(axis=0), TEMPLATE.mean(axis=0)
    a, b = anchors - centre, TEMPLATE - goal
    norm = (a**2).sum()
    cos = (a * b).sum() / norm
    sin = (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / norm
    linear = np.array([[cos, -sin], [sin, cos]])
    squeeze = np.diag([size / TEMPLATE_SIZE[0], size / TEMPLATE_SIZE[1]])
    return squeeze @ np.column_stack([linear, goal - linear @ centre])
