"""Where the camera stands, so that it sees LatentSync's crop, or a whole scene.

Head coordinates as in makehuman.py. A camera of Blender is a pose, a lens and a shift, with a
sensor 36 mm wide.
"""

from dataclasses import dataclass

import numpy as np

from .makehuman import Floats
from .neck import HeadPose

__all__ = ["SENSOR_MM", "Camera", "crop_camera", "scene_camera"]

SENSOR_MM = 36.0
# As latentsync.faces.align: brow centres and nose base in a box 75 wide, 100 high.
TEMPLATE = np.array([[17.0, 20.0], [58.0, 20.0], [37.5, 40.0]])
BOX = np.array([75.0, 100.0])
_FACE_IN_SCENE = 0.45  # of the frame's height: where the middle of the face is
_FACE_HEIGHT_DM = 2.3  # from the hair line to the chin


@dataclass(frozen=True)
class Camera:
    """A pinhole camera."""

    position: Floats  # (3,) dm
    axes: Floats  # (3, 3) rows: right, up and back, unit vectors
    lens_mm: float
    shift: tuple[float, float]  # shares of the sensor's width
    size: tuple[int, int]  # width, height in px
    pixel_aspect: float  # height / width of a pixel
    scale: Floats  # (2,) px for each unit of the plane at depth 1
    offset: Floats  # (2,) px

    def project(self, points: Floats) -> Floats:
        """(n, 3) points of the head -> (n, 2) px, x right and y down."""
        return plane(points, self.position, self.axes) * self.scale + self.offset


def plane(points: Floats, position: Floats, axes: Floats) -> Floats:
    """Project onto the plane at depth 1, x right and y down."""
    right, up, back = ((points - position) @ axes.T).T
    return np.stack([right / -back, up / back], axis=-1)


def _looking(pose: HeadPose, yaw: float, pitch: float) -> Floats:
    """Axes of an upright camera of the room, in the head's coordinates.

    Args:
        yaw: of the camera round the head, positive to the picture's right.
        pitch: positive above the head.
    """
    back = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.cross((0.0, 1.0, 0.0), back)
    right /= np.linalg.norm(right)
    return np.asarray(np.stack([right, np.cross(back, right), back]) @ pose.rotation)


def crop_camera(
    anchors: Floats,
    centre: Floats,
    pose: HeadPose,
    view: tuple[float, float, float],
    size: int,
    jitter: Floats,
) -> Camera:
    """See the crop that LatentSync's alignment cuts, squeezed to a square.

    The similarity that fits the anchors to the template becomes the camera's roll, lens and shift.

    Args:
        anchors: (3, 3) brow centres (picture's left first) and nose base.
        centre: (3,) of the face, which the camera is turned to.
        view: distance in dm, yaw and pitch of the camera.
        jitter: (3, 2) error of the anchors, as a share of the distance of the brows.
    """
    distance, yaw, pitch = view
    right, up, back = _looking(pose, yaw, pitch)
    position = centre + distance * back
    seen = plane(anchors, position, np.stack([right, up, back]))
    seen = seen + jitter * np.linalg.norm(seen[1] - seen[0])
    middle, goal = seen.mean(axis=0), TEMPLATE.mean(axis=0)
    a, b = seen - middle, TEMPLATE - goal
    norm = (a**2).sum()
    cos, sin = (a * b).sum() / norm, (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / norm
    scale, roll = float(np.hypot(cos, sin)), np.arctan2(sin, cos)
    moved = goal - np.array([[cos, -sin], [sin, cos]]) @ middle
    rolled = np.stack(
        [
            np.cos(roll) * right + np.sin(roll) * up,
            -np.sin(roll) * right + np.cos(roll) * up,
            back,
        ]
    )
    return Camera(
        position=position,
        axes=rolled,
        lens_mm=SENSOR_MM * scale / BOX[0],
        shift=((BOX[0] / 2 - moved[0]) / BOX[0], -(BOX[1] / 2 - moved[1]) / BOX[0]),
        size=(size, size),
        pixel_aspect=BOX[1] / BOX[0],
        scale=scale * size / BOX,
        offset=moved * size / BOX,
    )


def scene_camera(
    centre: Floats, pose: HeadPose, distance: float, size: tuple[int, int], zoom: float
) -> Camera:
    """See head and shoulders from the front, level with the face.

    Args:
        centre: (3,) of the face of a head that is held upright.
        distance: dm.
        zoom: size of the face; at 1 it fills 45 % of the frame's height.
    """
    width, height = size
    focal = 0.45 * zoom * height * distance / _FACE_HEIGHT_DM  # px
    level = pose.to_head(centre + np.array([0.0, 0.0, distance]))
    return Camera(
        position=level,
        axes=_looking(pose, 0.0, 0.0),
        lens_mm=SENSOR_MM * focal / width,
        shift=(0.0, -(0.5 - _FACE_IN_SCENE) * height / width),
        size=size,
        pixel_aspect=1.0,
        scale=np.array([focal, focal]),
        offset=np.array([width / 2, height * _FACE_IN_SCENE]),
    )
