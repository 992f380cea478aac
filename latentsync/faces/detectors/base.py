"""What detectors share: their Protocol, the filter of faces, and the making of faces and errors."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from latentsync.errors import OptionError, WeightsMismatch, WeightsMissing
from latentsync.faces.detectors.frame_view import Array, FrameLike, FrameView, ViewRegion
from latentsync.types import Box, Face

__all__ = [
    "PUBLISHED",
    "Array",
    "Detector",
    "FaceFilter",
    "PictureDetector",
    "make_face",
    "nearest",
    "place_points",
    "require_file",
    "weights_mismatch",
]

RelativePoints = tuple[tuple[float, float], ...]
"""x, y of points in a box, of its width and height."""

FOLLOW_SIDE = 192  # px, longest side of the picture, twice a face's size, in which it is followed

# Of an average face in builtin's boxes: from above the brows to the chin, and from cheek to cheek.
# The template's own proportions have the nose base higher than any face; with them the crop would
# be a sixth too tight.
POINTS_IN_BOX: RelativePoints = ((0.23, 0.18), (0.77, 0.18), (0.5, 0.49))


@dataclass(frozen=True)
class FaceFilter:
    """Which faces are acceptable; the defaults are the published ones.

    Raises:
        OptionError: a bound out of its range.
    """

    min_width: int = 50  # px of the frame
    min_height: int = 80  # px of the frame
    min_aspect: float = 0.2  # width / height
    max_aspect: float = 1.5  # width / height
    min_score: float = 0.5  # 0..1, each detector's own scale

    def __post_init__(self) -> None:
        sizes = min(self.min_width, self.min_height) >= 1
        aspects = 0 <= self.min_aspect <= self.max_aspect
        if not (sizes and aspects and 0 <= self.min_score <= 1):
            wanted = "sizes from 1 px, width/height a range from 0 up, score 0-1"
            raise OptionError(f"the face filter is ({self}); it must be ({wanted})")

    def __str__(self) -> str:
        return (
            f"face >= {self.min_width}x{self.min_height} px, "
            f"width/height {self.min_aspect:g}-{self.max_aspect:g}, score >= {self.min_score:g}"
        )

    def keep(self, boxes: Array, scores: Array) -> list[int]:
        """Select acceptable boxes of (n, 4) left, top, right, bottom in whole px: largest first."""
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        aspect = width / np.maximum(height, 1)
        good = (width >= self.min_width) & (height >= self.min_height)
        good &= (aspect >= self.min_aspect) & (aspect <= self.max_aspect)
        good &= scores >= self.min_score
        # A stable sort: of two equal faces the one found first wins, as published.
        order = np.argsort(-width * height, kind="stable")
        return [int(i) for i in order if good[i]]

    def lenient(self) -> "FaceFilter":
        """Return bounds for a face seen before: half the score, three quarters of the size."""
        width, height = max(1, self.min_width * 3 // 4), max(1, self.min_height * 3 // 4)
        return replace(self, min_width=width, min_height=height, min_score=self.min_score / 2)

    def fits(self, width: float, height: float) -> bool:
        """Whether an area of this size in px, unless it is a line, can hold an acceptable face."""
        line = max(height, width) > 100 * min(height, width)
        return height >= self.min_height and width >= self.min_width and not line


PUBLISHED = FaceFilter()


class Detector(Protocol):
    """Finds faces in one frame. Not for two threads at once."""

    name: str

    def describe(self) -> str:
        """Describe it in one line for logs and errors: thresholds, sizes, and the device in use."""
        ...

    def detect(
        self, frame: FrameLike, *, rounded: bool = False, near: Box | None = None
    ) -> list[Face]:
        """Find the acceptable faces of a frame, largest first.

        `near` is the last place of a face that isn't found in the frame as a whole: only the part
        around it is searched, enlarged, by the bounds of `FaceFilter.lenient`.

        Boxes are whole pixels. Points are sub-pixel, (0, 0) the centre of the frame's first pixel;
        `rounded` puts them on whole pixels as published (half to even; insightface's 106 points
        are rounded first).

        All are in square px: the frame's own x times the aspect of its pixels.
        """
        ...

    def follow(
        self, frame: FrameLike, faces: Sequence[Face], *, rounded: bool = False
    ) -> list[Face | None]:
        """Find the faces of the frame before in this one; None where that is uncertain.

        Only their last places are searched, which takes a fraction of the time.
        """
        ...


class PictureDetector(ABC):
    """Base of detectors that find all faces of a picture at once."""

    filters: FaceFilter
    search_side: int  # px, longest side of a picture that is searched

    @abstractmethod
    def _find(self, part: ViewRegion, filters: FaceFilter, rounded: bool) -> list[Face]:
        """Find the acceptable faces of a part of a frame, in px of the frame."""

    def detect(
        self, frame: FrameLike, *, rounded: bool = False, near: Box | None = None
    ) -> list[Face]:
        """As in `Detector`."""
        view = FrameView(frame)
        if near is None:
            return self._find(view.small(self.search_side), self.filters, rounded)
        part = view.around(near).shrunk(self.search_side)
        return self._find(part, self.filters.lenient(), rounded)

    def follow(
        self, frame: FrameLike, faces: Sequence[Face], *, rounded: bool = False
    ) -> list[Face | None]:
        """As in `Detector`."""
        view, followed = FrameView(frame), []
        for seen in faces:
            near = Box(*(round(edge) for edge in seen.box))
            shrink = 2 * max(near.width, near.height) / FOLLOW_SIDE
            part = view.around(near, shrink).shrunk(FOLLOW_SIDE)
            followed.append(nearest(self._find(part, self.filters, rounded), seen))
        return followed


def require_file(path: Path, detector: str, download: str) -> Path:
    """Return the path; WeightsMissing where no file is there."""
    if path.is_file():
        return path
    wanted = f"the {detector} detector wants it: run `latentsync download {download}`"
    raise WeightsMissing(f"{path} is not there; {wanted}")


def weights_mismatch(path: Path, wanted: str, download: str) -> WeightsMismatch:
    """Make the error for a file that isn't what is wanted."""
    fix = f"delete it and run `latentsync download {download}`"
    return WeightsMismatch(f"{path} is not {wanted}; {fix}")


def make_face(box: Array, score: float, points: Array, rounded: bool) -> Face:
    """Make a face of a box, its score and its points (3, 2)."""
    left, top, right, bottom = map(float, box)
    points = np.round(points) if rounded else points
    return Face((left, top, right, bottom), float(score), points.astype(np.float32))


def nearest(faces: Sequence[Face], seen: Face) -> Face | None:
    """Return the face whose box is nearest to one in the frame before."""
    boxes = np.array([one.box for one in faces]).reshape(-1, 4)
    beside = np.abs(boxes - np.array(seen.box)).sum(axis=1)
    return faces[int(beside.argmin())] if len(faces) else None


def place_points(box: Array, places: RelativePoints = POINTS_IN_BOX) -> Array:
    """Place the three points (3, 2) of a face by its box alone."""
    return np.asarray(box[:2] + np.array(places) * (box[2:] - box[:2]))
