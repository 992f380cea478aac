"""Turning the head, by turning all that is not the head.

The head keeps its place, so that most of the scene stays the same between moments, which is what
makes rendering quick. Camera, lamps and room go round it the other way, and shoulders with them:
the neck bends between.
"""

from dataclasses import dataclass

import numpy as np

from .makehuman import Floats

__all__ = ["PIVOT", "HeadPose", "bend", "body_share"]

PIVOT = np.array([0.0, 6.3, 0.0])  # dm, about which a head turns: the top of the neck
_BODY_ENDS, _HEAD_STARTS = 5.55, 6.3  # dm, along the neck, which leans forwards
_LEAN = 0.45
_HALF_FACE = 0.75  # dm, the unit of a drawn pose's x and y


@dataclass(frozen=True)
class HeadPose:
    """How the head is held; angles in rad, signs as `latentsync.training.synthetic.Pose`."""

    yaw: float = 0.0  # positive turns to the picture's right
    pitch: float = 0.0  # positive looks down
    roll: float = 0.0  # positive leans clockwise
    x: float = 0.0  # to the picture's right, in half faces
    y: float = 0.0  # down

    @property
    def rotation(self) -> Floats:
        """(3, 3): directions of the head -> directions of the room."""
        (cy, sy), (cp, sp), (cr, sr) = (
            (np.cos(angle), np.sin(angle)) for angle in (self.yaw, self.pitch, self.roll)
        )
        yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
        pitch = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
        roll = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
        return np.asarray(yaw @ pitch @ roll)

    def to_head(self, points: Floats) -> Floats:
        """Convert points of the room into the head's coordinates."""
        shift = np.array([self.x, -self.y, 0.0]) * _HALF_FACE
        return np.asarray((points - PIVOT - shift) @ self.rotation + PIVOT)


def body_share(rest: Floats) -> Floats:
    """How far each vertex stays with the shoulders when the head turns, 0..1."""
    along = rest[:, 1] + _LEAN * (rest[:, 2] - 0.4)
    share = np.clip((_HEAD_STARTS - along) / (_HEAD_STARTS - _BODY_ENDS), 0, 1)
    return np.asarray(share * share * (3 - 2 * share))


def bend(vertices: Floats, share: Floats, pose: HeadPose) -> Floats:
    """Turn the shoulders away under the head."""
    turned = (vertices - PIVOT) @ pose.rotation + PIVOT
    return np.asarray(vertices + share[:, None] * (turned - vertices))
