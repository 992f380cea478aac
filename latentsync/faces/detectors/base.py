"""What all detectors share: the Protocol, which faces are acceptable, and how they are built."""

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
    "InPictures",
    "existing",
    "face",
    "mismatch",
    "nearest",
    "points_in",
]

Places = tuple[tuple[float, float], ...]
"""x, y of points in a box, of its width and height."""

FOLLOW_SIDE = 192  # px, longest side of the picture, twice a face's size, in which it is followed

# Not the template's own proportions, in which the nose base lies higher than on any face: points
# placed so would cut the crop a sixth too tight. Those of a common face in builtin's boxes.
IN_FACE_BOX: Places = ((0.23, 0.18), (0.77, 0.18), (0.5, 0.49))  # above the brows to chin, cheeks


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
        """Which boxes, (n, 4) left, top, right, bottom in whole px, to keep: largest first."""
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        aspect = width / np.maximum(height, 1)
        good = (width >= self.min_width) & (height >= self.min_height)
        good &= (aspect >= self.min_aspect) & (aspect <= self.max_aspect)
        good &= scores >= self.min_score
        # A stable sort: of two equal faces the one found first wins, as published.
        order = np.argsort(-width * height, kind="stable")
        return [int(i) for i in order if good[i]]

    def lenient(self) -> "FaceFilter":
        """For a face that was there a moment ago: half the score, three quarters of the size."""
        width, height = max(1, self.min_width * 3 // 4), max(1, self.min_height * 3 // 4)
        return replace(self, min_width=width, min_height=height, min_score=self.min_score / 2)

    def fits(self, width: float, height: float) -> bool:
        """Whether so many px can hold an acceptable face (and are no line of pixels)."""
        line = max(height, width) > 100 * min(height, width)
        return height >= self.min_height and width >= self.min_width and not line


PUBLISHED = FaceFilter()


class Detector(Protocol):
    """Finds faces in one frame. Not for two threads at once."""

    name: str

    def describe(self) -> str:
        """One line for a log or an error: thresholds, sizes, and the device really in use."""
        ...

    def detect(
        self, frame: FrameLike, *, rounded: bool = False, near: Box | None = None
    ) -> list[Face]:
        """The acceptable faces of a frame, largest first; an empty list where there is none.

        `near` is where a face was a moment ago that the frame as a whole doesn't show: then only
        the part around it is searched, that part larger, by the bounds of `FaceFilter.lenient`.

        Boxes are whole pixels. Points are sub-pixel, (0, 0) the centre of the frame's first pixel;
        `rounded` puts them on whole pixels as published (half to even; insightface's 106 points
        are rounded first).

        All are in square px: x is the frame's own times the aspect of its pixels.
        """
        ...

    def follow(
        self, frame: FrameLike, faces: Sequence[Face], *, rounded: bool = False
    ) -> list[Face | None]:
        """Where each face of the frame before is in this one; None where that isn't sure.

        It looks about their last places and nowhere else, so it takes a fraction of the time.
        """
        ...


class InPictures(ABC):
    """What detectors share that find all faces of a picture at once: which pictures they see."""

    filters: FaceFilter
    search_side: int  # px, longest side of a picture that is searched

    @abstractmethod
    def _find(self, part: ViewRegion, filters: FaceFilter, rounded: bool) -> list[Face]:
        """The acceptable faces of a picture, in px of the frame it is a part of."""

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
        view = FrameView(frame)
        return [nearest(self._find(_about(view, one), self.filters, rounded), one) for one in faces]


def existing(path: Path, detector: str, download: str) -> Path:
    if path.is_file():
        return path
    wanted = f"the {detector} detector wants it: run `latentsync download {download}`"
    raise WeightsMissing(f"{path} is not there; {wanted}")


def mismatch(path: Path, wanted: str, download: str) -> WeightsMismatch:
    fix = f"delete it and run `latentsync download {download}`"
    return WeightsMismatch(f"{path} is not {wanted}; {fix}")


def face(box: Array, score: float, points: Array, rounded: bool) -> Face:
    left, top, right, bottom = map(float, box)
    points = np.round(points) if rounded else points
    return Face((left, top, right, bottom), float(score), points.astype(np.float32))


def _about(view: FrameView, seen: Face) -> ViewRegion:
    """What is to be searched for a face that was there a frame ago."""
    near = Box(*(round(edge) for edge in seen.box))
    shrink = 2 * max(near.width, near.height) / FOLLOW_SIDE
    return view.around(near, shrink).shrunk(FOLLOW_SIDE)


def nearest(faces: Sequence[Face], seen: Face) -> Face | None:
    """The one whose box lies most as that of a face did a frame ago."""
    boxes = np.array([one.box for one in faces]).reshape(-1, 4)
    beside = np.abs(boxes - np.array(seen.box)).sum(axis=1)
    return faces[int(beside.argmin())] if len(faces) else None


def points_in(box: Array, places: Places = IN_FACE_BOX) -> Array:
    """The three points (3, 2) of a face of which only the box is known: at fixed places in it."""
    return np.asarray(box[:2] + np.array(places) * (box[2:] - box[:2]))
