"""A cascade of one's own, an OpenCV .xml: for faces that no detector here knows, as drawn ones."""

from pathlib import Path

import cv2
import numpy as np

from latentsync.errors import WeightsMismatch, WeightsMissing
from latentsync.faces.base import PUBLISHED, FaceFilter, around, face, points_in, shrunk
from latentsync.types import Box, Face, Frame

__all__ = ["CascadeFile"]

SEARCH_SIDE = 960  # px, longest side of the picture that is searched
STEP = 1.1  # from one size of window to the next
# Where a common face's points lie in the squares of OpenCV's own cascades (see builtin).
IN_SQUARE = ((0.3, 0.26), (0.7, 0.26), (0.5, 0.57))
NEIGHBOURS = 5  # windows at one place that make a score of 0.5


class CascadeFile:
    """A cascade by path. It gives boxes alone, so the three points are placed in each box.

    Raises:
        WeightsMissing: no such file.
        WeightsMismatch: OpenCV reads no cascade from it.
    """

    def __init__(self, path: Path, filters: FaceFilter = PUBLISHED) -> None:
        if not path.is_file():
            raise WeightsMissing(f"the face detector {path} is not there; give a cascade that is")
        self.name = path.stem
        self.filters = filters
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

    def detect(self, frame: Frame, *, rounded: bool = False, near: Box | None = None) -> list[Face]:
        filters = self.filters.lenient() if near else self.filters
        part, corner = around(frame, near) if near else (frame, np.zeros(2))
        if not filters.fits(part):
            return []
        small, scale = shrunk(cv2.cvtColor(part, cv2.COLOR_RGB2GRAY), SEARCH_SIDE)
        smallest = (int(filters.min_width * scale),) * 2
        found, counts = self._cascade.detectMultiScale2(small, STEP, 1, minSize=smallest)
        rows = np.asarray(found, np.float64).reshape(-1, 4)
        sides = np.hstack([rows[:, :2], rows[:, :2] + rows[:, 2:]])
        boxes = np.trunc(sides / scale + np.tile(corner, 2))
        scores = np.asarray(counts, np.float64).reshape(-1)
        scores /= scores + NEIGHBOURS
        return [
            face(boxes[i], scores[i], points_in(boxes[i], IN_SQUARE), rounded)
            for i in filters.keep(boxes, scores)
        ]
