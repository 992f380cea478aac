"""A user's OpenCV cascade (.xml): for faces that no detector here knows, such as drawn ones."""

from pathlib import Path

import cv2
import numpy as np

from latentsync.errors import WeightsMismatch, WeightsMissing
from latentsync.faces.detectors.base import (
    PUBLISHED,
    FaceFilter,
    PictureDetector,
    make_face,
    place_points,
)
from latentsync.faces.detectors.frame_view import ViewRegion
from latentsync.types import Face

__all__ = ["CascadeFile"]

SEARCH_SIDE = 960  # px, longest side of the picture that is searched
SCALE_STEP = 1.1  # from one window size to the next
# An average face's points in the squares of OpenCV's own cascades (see builtin).
POINTS_IN_SQUARE = ((0.3, 0.26), (0.7, 0.26), (0.5, 0.57))
HALF_SCORE_WINDOWS = 5  # windows at one place that make a score of 0.5


class CascadeFile(PictureDetector):
    """A cascade by path. It finds boxes only, so the three points are placed in each box.

    Raises:
        WeightsMissing: no such file.
        WeightsMismatch: OpenCV reads no cascade from it.
    """

    def __init__(self, path: Path, filters: FaceFilter = PUBLISHED) -> None:
        if not path.is_file():
            raise WeightsMissing(f"the face detector {path} is not there; give a cascade that is")
        self.name = path.stem
        self.filters, self.search_side = filters, SEARCH_SIDE
        self._cascade = cv2.CascadeClassifier()
        try:
            loaded = self._cascade.load(str(path))
        except cv2.error:
            loaded = False
        if not loaded:
            raise WeightsMismatch(f"{path} is no cascade that OpenCV reads; give one that is")

    def describe(self) -> str:
        return (
            f"cascade {self.name} (whole pixels, points placed by the box's proportions, longest "
            f"side <= {SEARCH_SIDE} px, on the CPU; {self.filters})"
        )

    def _find(self, part: ViewRegion, filters: FaceFilter, rounded: bool) -> list[Face]:
        if not filters.fits(*part.size):
            return []
        grey = cv2.cvtColor(part.pixels, cv2.COLOR_RGB2GRAY)
        smallest = (int(filters.min_width / part.step.max()),) * 2
        found, counts = self._cascade.detectMultiScale2(grey, SCALE_STEP, 1, minSize=smallest)
        rows = np.asarray(found, np.float64).reshape(-1, 4)
        sides = np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:]])
        boxes = np.trunc(part.out(sides.reshape(-1, 2, 2)).reshape(-1, 4))
        scores = np.asarray(counts, np.float64).reshape(-1)
        scores /= scores + HALF_SCORE_WINDOWS
        return [
            make_face(boxes[i], scores[i], place_points(boxes[i], POINTS_IN_SQUARE), rounded)
            for i in filters.keep(boxes, scores)
        ]
