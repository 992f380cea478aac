"""A face's landmarks by a small net, from a rough place to a tenth of a per cent.

The net sees a crop with the face upright, at one size; each round's crop is placed by the points of
the round before. It is trained on drawn faces: see `synthetic.scenes`.
"""

from pathlib import Path

import cv2
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from latentsync.errors import WeightsMismatch, WeightsMissing
from latentsync.faces.detectors.frame_view import Array, FrameView
from latentsync.faces.detectors.landmark_net import SIDE, PointNet
from latentsync.types import FloatArray, Frame

__all__ = ["ANCHORS", "COUNT", "FILE", "MIRRORED", "MOUTH", "REFERENCE"]
__all__ += ["Landmarks", "cut", "similarity", "upright"]

COUNT = 12  # the points of `synthetic.LANDMARKS`, in its order
ANCHORS = [0, 1, 4]  # the template's points: brow centres and nose base
STABLE = [0, 1, 2, 3, 4]  # points that speech doesn't move: brows, pupils, nose base
MOUTH = slice(5, 11)  # corners, then edges of the lips downwards
MIRRORED = [1, 0, 3, 2, 4, 6, 5, 7, 8, 9, 10, 11]  # the order of a mirrored face's points
REFERENCE = np.array([[-0.35, -0.65], [0.35, -0.65], [-0.35, -0.4], [0.35, -0.4], [0, -0.1]])
"""(5, 2) the stable points of an average face in the crop, whose edges are -1 and 1."""

FILE = Path(__file__).resolve().parents[3] / "weights" / "demo" / "landmarks.safetensors"
# Where the score is halved. On photographs without a face the points of the picture and its mirror
# image were 0.04 to 0.2 apart, and logits reached 4.9; on faces they were at most 0.02 apart, with
# logits from 6.
SURE_LOGIT, MIRROR_DISTANCE = 3.0, 0.04
MAX_OVERSAMPLE = 8  # a crop is cut at up to this many times its size, then averaged


class Landmarks:
    """The net, loaded.

    Raises:
        WeightsMissing: no such file.
        WeightsMismatch: the file holds something else.
    """

    def __init__(self, file: Path = FILE) -> None:
        if not file.is_file():
            raise WeightsMissing(
                f"{file} is missing; it is part of the repository: restore it, or make it anew "
                "with scripts/train_measures.py"
            )
        self._net = PointNet(COUNT).eval().requires_grad_(False)
        try:
            self._net.load_state_dict(load_file(file))
        except (SafetensorError, RuntimeError) as error:
            raise WeightsMismatch(
                f"{file} does not hold the landmark net; restore it, or make it anew with "
                "scripts/train_measures.py"
            ) from error

    def predict(self, view: FrameView, crops: Array) -> tuple[Array, Array]:
        """Measure crops (n, 2, 3): points (n, 12, 2) in px of the view, and scores (n,) 0..1.

        Each is the mean over the crop and its mirror image, which removes the net's preference for
        a side and some jitter. Where the two disagree there is no face.
        """
        pictures = np.stack([cut(*view.under(crop, (-1, -1, 1, 1), SIDE)) for crop in crops])
        pictures = np.concatenate([pictures, pictures[:, :, ::-1]])
        tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.inference_mode():
            places, logits = self._net(tensor)
        there, mirrored = places.double().numpy().reshape(2, -1, COUNT, 2)
        mirrored = mirrored[:, MIRRORED] * (-1, 1)
        apart = np.linalg.norm(there - mirrored, axis=2).mean(axis=1)
        points = np.empty_like(there)
        for i, (crop, mean) in enumerate(zip(crops, (there + mirrored) / 2, strict=True)):
            back = np.linalg.inv(np.vstack([crop, [0, 0, 1]]))
            points[i] = mean @ back[:2, :2].T + back[:2, 2]
        sure = (logits.double() - SURE_LOGIT).sigmoid().numpy().reshape(2, -1).mean(axis=0)
        return points, sure / (1 + (apart / MIRROR_DISTANCE) ** 4)


def cut(frame: Frame, crop: Array, side: int = SIDE) -> Frame:
    """Cut (side, side, 3) out of a frame, smoothly shrunk; edges are repeated beyond it.

    `crop` (2, 3): frame px -> x, y in [-1, 1] from the crop's edge to its edge.
    """
    shrink = 2 / side / np.sqrt(abs(np.linalg.det(crop[:, :2])))  # frame px a px of the crop
    factor = int(np.clip(np.ceil(shrink), 1, MAX_OVERSAMPLE))
    half = side * factor / 2
    to_pixels = np.column_stack([crop[:, :2] * half, (crop[:, 2] + 1) * half - 0.5])
    large = cv2.warpAffine(
        frame,
        to_pixels,
        (side * factor, side * factor),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(cv2.resize(large, (side, side), interpolation=cv2.INTER_AREA), np.uint8)


def upright(points: Array | FloatArray) -> Array:
    """Return the crop (2, 3) in which a face with these points (12, 2) is upright and centred."""
    return similarity(np.asarray(points, np.float64)[STABLE], REFERENCE)


def similarity(points: Array, goal: Array) -> Array:
    """Fit the rotation, scale and shift (2, 3) of points (n, 2) onto a goal (n, 2)."""
    centre, goal_centre = points.mean(axis=0), goal.mean(axis=0)
    a, b = points - centre, goal - goal_centre
    cos, sin = (a * b).sum(), (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()
    linear = np.array([[cos, -sin], [sin, cos]]) / max((a**2).sum(), 1e-9)
    return np.column_stack([linear, goal_centre - linear @ centre])
