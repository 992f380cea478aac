"""YuNet by OpenCV: five points, permissive licence; brows and nose are derived from the eyes."""

from pathlib import Path

import cv2
import numpy as np

from latentsync.faces.detectors.base import (
    PUBLISHED,
    FaceFilter,
    PictureDetector,
    make_face,
    require_file,
    weights_mismatch,
)
from latentsync.faces.detectors.frame_view import Array, ViewRegion
from latentsync.types import Face

__all__ = ["YUNET_FILE", "YuNet", "points_from_eyes"]

YUNET_FILE = "face_detection_yunet_2023mar.onnx"
YUNET_SIDE = 640  # px, longest side of the searched picture
YUNET_OVERLAP = 0.3  # boxes that overlap more are one face (OpenCV's default)

# The template's points on a frontal face, in eye distances from the eyes: from the mean of the
# 68-point annotation scheme.
BROW_ABOVE_EYE = 0.28
NOSE_BELOW_EYES = 0.66


class YuNet(PictureDetector):
    """YuNet by `cv2.FaceDetectorYN`, on the CPU; brows and nose base are derived from the eyes.

    Raises as `create` does.
    """

    name = "yunet"

    def __init__(
        self, root: Path, filters: FaceFilter = PUBLISHED, *, search_side: int = YUNET_SIDE
    ) -> None:
        self.filters = filters
        self.search_side = search_side
        path = require_file(root / YUNET_FILE, self.name, self.name)
        try:
            self._net = cv2.FaceDetectorYN.create(
                str(path), "", (search_side, search_side), filters.min_score, YUNET_OVERLAP
            )
        except cv2.error as error:
            raise weights_mismatch(path, "a YuNet model", self.name) from error

    def describe(self) -> str:
        return f"yunet (longest side <= {self.search_side} px, on the CPU; {self.filters})"

    def _find(self, part: ViewRegion, filters: FaceFilter, rounded: bool) -> list[Face]:
        if not filters.fits(*part.size):
            return []
        height, width = part.pixels.shape[:2]
        self._net.setInputSize((width, height))
        self._net.setScoreThreshold(filters.min_score)
        _, rows = self._net.detect(cv2.cvtColor(part.pixels, cv2.COLOR_RGB2BGR))
        if rows is None:
            return []
        # (n, 15): left, top, width, height, two eyes, nose tip, two mouth corners, score
        rows = rows.astype(np.float64)
        sides, scores = np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:4]]), rows[:, 14]
        boxes = np.trunc(part.out(sides.reshape(-1, 2, 2)).reshape(-1, 4))
        eyes = part.out(rows[:, 4:8].reshape(-1, 2, 2))
        return [
            make_face(boxes[i], scores[i], points_from_eyes(eyes[i]), rounded)
            for i in filters.keep(boxes, scores)
        ]


def points_from_eyes(eyes: Array) -> Array:
    """Place the template's points (3, 2) by the mean shape, along the line through the eyes."""
    x, y = eyes[1] - eyes[0]
    down = np.array([-y, x])  # a quarter turn clockwise in the picture
    brows = eyes - BROW_ABOVE_EYE * down
    return np.vstack([brows, eyes.mean(axis=0) + NOSE_BELOW_EYES * down])
