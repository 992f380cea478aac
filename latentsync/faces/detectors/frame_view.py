"""A frame as detectors see it: with square pixels, and only the parts that they need."""

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync.media import even_box
from latentsync.types import Box, Frame, Picture

__all__ = ["FrameLike", "FrameView", "ViewRegion"]

Array = NDArray[np.float64]
FrameLike = Frame | Picture
"""A frame in either form: all of its pixels, or a picture that gives them part by part."""

SMALL_SIDE = 640  # px, longest side of the small version, in which large faces are measured
MIN_OVERSAMPLE = 2  # px of the small version per px of a crop, for it to be used instead
MAX_PARTS = 4  # cached per frame, so that each face is converted once
MARGIN_SHARE = 0.125  # of a part's size, added around it for later searches


class ViewRegion(NamedTuple):
    """A part of a view, at its scale or smaller."""

    pixels: Frame
    corner: Array  # (2,) x, y of its corner in px of the view
    step: Array  # (2,) px of the view per pixel

    @property
    def size(self) -> tuple[float, float]:
        """Width and height in px of the view."""
        height, width = self.pixels.shape[:2]
        return float(width * self.step[0]), float(height * self.step[1])

    def out(self, places: Array) -> Array:
        """Convert places (..., 2) from its px to px of the view; (0, 0) is a corner in both."""
        return self.corner + self.step * places

    def out_centred(self, places: Array) -> Array:
        """Convert likewise, with (0, 0) the centre of the first pixel in both."""
        return self.out(places) + (self.step - 1) / 2

    def cut(self, box: Box) -> "ViewRegion":
        """Return the part of it in a box, in px of the view."""
        edges = (np.array([[box.left, box.top], [box.right, box.bottom]]) - self.corner) / self.step
        height, width = self.pixels.shape[:2]
        (left, top), (right, bottom) = np.clip(np.round(edges).astype(int), 0, (width, height))
        pixels = np.ascontiguousarray(self.pixels[top:bottom, left:right])
        return ViewRegion(pixels, self.out(np.array([left, top])), self.step)

    def shrunk(self, side: int) -> "ViewRegion":
        """Shrink it to at most `side` px on its longest side."""
        height, width = self.pixels.shape[:2]
        scale = min(1.0, side / max(width, height, 1))
        return self if scale == 1 else self.sized(_scaled(width, scale), _scaled(height, scale))

    def sized(self, width: int, height: int) -> "ViewRegion":
        """Resize it."""
        before = np.array(self.pixels.shape[1::-1])
        if (width, height) == tuple(before):
            return self
        method = cv2.INTER_AREA if height < before[1] or width < before[0] else cv2.INTER_LINEAR
        pixels = cv2.resize(self.pixels, (width, height), interpolation=method)
        return ViewRegion(
            np.asarray(pixels, np.uint8), self.corner, self.step * before / (width, height)
        )


class FrameView:
    """One frame in square px: x of the frame times the aspect of its pixels.

    Of a `Picture` only the needed parts are converted, or its small version where that is fine
    enough. An array is used as it is, so that results are those of the published pipeline.
    """

    def __init__(self, frame: FrameLike) -> None:
        self._frame = frame
        self.whole: ViewRegion | None = None  # all pixels, of an array
        if isinstance(frame, np.ndarray):
            self.aspect = 1.0
            self.height, self.width = frame.shape[:2]
            self.whole = ViewRegion(frame, np.zeros(2), np.ones(2))
        else:
            self.aspect = float(frame.pixel_aspect)
            self.width, self.height = _scaled(frame.width, self.aspect), frame.height
        self._small: dict[int, ViewRegion] = {}
        self._parts: dict[Box, ViewRegion] = {}  # the last ones, by their places

    def small(self, side: int) -> ViewRegion:
        """Return all of it, with at most `side` px on its longest side."""
        if side not in self._small:
            self._small[side] = self.whole.shrunk(side) if self.whole else self._thumbnail(side)
        return self._small[side]

    def part(self, low: Array, high: Array, shrink: float = 1.0) -> ViewRegion:
        """Return at least the part between two places (2,), or the nearest px beside the view.

        `shrink`: px of the view per px of what will be made of it.
        """
        if self.whole:
            return self.whole
        if shrink * SMALL_SIDE >= MIN_OVERSAMPLE * max(self.width, self.height):
            return self.small(SMALL_SIDE)
        box = self._inside(low, high)
        for held, part in self._parts.items():
            within = held.left <= box.left and box.right <= held.right
            if within and held.top <= box.top and box.bottom <= held.bottom:
                return part
        more = MARGIN_SHARE * (high - low) + 2
        box = self._inside(low - more, high + more)
        while len(self._parts) >= MAX_PARTS:
            del self._parts[next(iter(self._parts))]
        self._parts[box] = self._convert(box)
        return self._parts[box]

    def around(self, near: Box, shrink: float = 1.0) -> ViewRegion:
        """Return the part in a box twice as wide and high as `near`; `shrink` as in `part`."""
        low, high = np.array([near.left, near.top]), np.array([near.right, near.bottom])
        margin = (high - low) // 2
        return self.part(low - margin, high + margin, shrink).cut(
            self._inside(low - margin, high + margin)
        )

    def under(
        self, affine: Array, area: tuple[int, int, int, int], width: int
    ) -> tuple[Frame, Array]:
        """Return the pixels that an affine (2, 3) maps onto an area, and the affine from them.

        Args:
            affine: px of the view, (0, 0) the centre of the first, -> px of the area.
            area: left, top, right, bottom.
            width: px of what will be made of the area's width.
        """
        left, top, right, bottom = area
        corners = np.array([[left, top], [left, bottom], [right, top], [right, bottom]])
        there = (corners - affine[:, 2]) @ np.linalg.pinv(affine[:, :2]).T
        scale = max(1e-6, np.sqrt(abs(np.linalg.det(affine[:, :2]))))
        shrink = (right - left) / width / scale
        part = self.part(there.min(axis=0), there.max(axis=0), float(shrink))
        shift = affine[:, :2] @ part.out_centred(np.zeros(2)) + affine[:, 2]
        return part.pixels, np.column_stack([affine[:, :2] * part.step, shift])

    def _inside(self, low: Array, high: Array) -> Box:
        """Return the whole pixels between two places, cut to the view; at least one."""
        size = np.array([self.width, self.height])
        first = np.clip(np.floor(low), 0, np.maximum(0, size - 2)).astype(int)
        last = np.maximum(np.minimum(np.ceil(high), size), first + 1).astype(int)
        return Box(*first.tolist(), *last.tolist())

    def _convert(self, box: Box) -> ViewRegion:
        assert not isinstance(self._frame, np.ndarray)
        edges = (box.left / self.aspect, box.top, box.right / self.aspect, box.bottom)
        region = even_box(edges, width=self._frame.width, height=self._frame.height)
        assert region
        stretch = np.array([self.aspect, 1.0])
        part = ViewRegion(self._frame.rgb(region), stretch * (region.left, region.top), stretch)
        return part.sized(_scaled(region.width, self.aspect), region.height)

    def _thumbnail(self, side: int) -> ViewRegion:
        assert not isinstance(self._frame, np.ndarray)
        scale = min(1.0, side / max(self.width, self.height))
        stored = max(self._frame.width, self._frame.height)
        pixels = self._frame.thumbnail(_scaled(stored, scale))
        size = np.array([self._frame.width * self.aspect, self._frame.height])
        part = ViewRegion(pixels, np.zeros(2), size / pixels.shape[1::-1])
        return part.sized(_scaled(pixels.shape[1], self.aspect), pixels.shape[0])


def _scaled(length: int, scale: float) -> int:
    return max(1, round(length * scale))
