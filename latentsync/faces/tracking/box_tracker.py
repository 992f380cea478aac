"""Template tracking of a user's box around a face, for faces that no detector finds."""

from collections import deque
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync.errors import OptionError
from latentsync.faces.detectors.frame_view import Array, FrameLike, FrameView
from latentsync.faces.tracking.shots import Cut
from latentsync.types import FloatArray, Frame

__all__ = ["TemplateTracker"]

Grey = NDArray[np.uint8]  # (h, w)

PATCH_SIDE = 64  # px, longest side of the template
FRAME_SIDE = 640  # px, longest side of the frame in which it is searched
SCALES = (0.95, 1.0, 1.05)  # sizes tried, of the last
SEARCH_RADIUS = 0.5  # of the box, around its last place
HOLD_THRESHOLD = 0.6  # correlation above which the box still has the same content
REDETECT_THRESHOLD = 0.8  # correlation with the first template, in a search of the whole frame
MAX_COLOUR_LEVELS = 5.0  # mean difference of colours; beyond, it is something else
COLOUR_SIDE, CELLS = 32, 4  # px of the box's picture, and cells a side whose colours are compared
DRIFT_THRESHOLD = 0.5  # correlation with the first template, below which the current one is kept
FLAT_LEVELS = 2.0  # standard deviation; a flatter template would match everywhere
LEARNING_RATE = 0.05  # share of the new picture in the template
BEFORE_SECONDS = 10  # of the shot, kept to follow the box backwards from its time


@dataclass
class _TemplateState:
    """The template, and where it was, in px of the shrunk frame."""

    first: Grey
    kept: NDArray[np.float32]
    box: Array | None  # left, top, width, height; None: lost
    shades: FloatArray | None = None  # of the box's content


@dataclass
class TemplateTracker:
    """Follows one box through frames in order; `boxes` has its place in each frame.

    Its template is searched by normalised correlation around its last place, at three sizes, and
    adapts to slow changes. Where nothing correlates, and at a cut, the box is lost and searched in
    the whole frame. From its time the box is also followed backwards, for up to BEFORE_SECONDS.

    Raises OptionError where the box lies beyond the frame.
    """

    box: tuple[float, ...]  # px of the frame: left, top, width, height
    start: int  # frame of the box's time
    fps: float = 25
    boxes: dict[int, Array] = field(default_factory=dict)  # frame -> its edges, in square px
    _colours: FloatArray | None = None  # of its content at that time
    _state: _TemplateState | None = None
    _before: deque[tuple[int, Grey]] = field(init=False)

    def __post_init__(self) -> None:
        self._before = deque(maxlen=round(BEFORE_SECONDS * self.fps))

    def process(self, index: int, frame: FrameLike, *, cut: Cut | None) -> None:
        """Process the next frame, with `cut` if a new shot begins."""
        for mixed in range(index - cut.dissolve, index) if cut else ():
            self.boxes.pop(mixed, None)
        view = FrameView(frame)
        box = np.array(self.box) * (view.aspect, 1, view.aspect, 1)  # square px
        longest = max(view.width, view.height)
        small = view.small(min(FRAME_SIDE, round(longest * PATCH_SIDE / box[2:].max())))
        grey, scale = cv2.cvtColor(small.pixels, cv2.COLOR_RGB2GRAY), 1 / np.tile(small.step, 2)
        if index < self.start:
            if cut:
                self._before.clear()
            self._before.append((index, grey))
            return
        if index == self.start:
            self._check(view)
            drawn = box * scale
            for earlier in [] if cut else [*self._before][::-1]:
                self._state = self._state or _start_template(grey, drawn)
                self._follow(*earlier, box * scale, scale)
            self._before.clear()
            self._state = _start_template(grey, drawn)
            self._colours = _colours(small.pixels, drawn)
        elif cut and self._state:
            self._state.box = None
        state = self._state
        assert state
        lost = state.box is None
        self._follow(index, grey, box * scale, scale)
        if lost and state.box is not None:
            assert self._colours is not None
            if _difference(_colours(small.pixels, state.box), self._colours) > MAX_COLOUR_LEVELS:
                state.box = None
                self.boxes.pop(index, None)

    def _check(self, view: FrameView) -> None:
        width, height = round(view.width / view.aspect), view.height
        left, top, wide, high = self.box
        right, bottom = left + wide, top + high
        if left + right > 2 * width or top + bottom > 2 * height:
            raise OptionError(
                f"the box {left:g},{top:g} to {right:g},{bottom:g} lies beyond the frame of "
                f"{width} x {height} px; give one that is in it"
            )

    def _follow(self, index: int, grey: Grey, drawn: Array, scale: Array) -> None:
        assert self._state
        shades = self._state.shades if self._state.box is not None else None
        _step(self._state, grey, drawn)
        if self._state.box is not None:
            self._state.shades = _colours(grey, self._state.box)
            if shades is not None and _difference(self._state.shades, shades) > MAX_COLOUR_LEVELS:
                self._state.box = None  # a cut that was not detected
                return
            corner, size = self._state.box[:2], self._state.box[2:]
            self.boxes[index] = np.concatenate([corner, corner + size]) / scale


def _colours(pixels: Frame | Grey, box: Array) -> FloatArray:
    """Average the box's content cell by cell, in Lab or in grey."""
    left, top, wide, high = box
    affine = np.array([[COLOUR_SIDE / wide, 0, 0], [0, COLOUR_SIDE / high, 0]])
    affine[:, 2] = -affine[:, :2] @ (left, top)
    size = (COLOUR_SIDE, COLOUR_SIDE)
    cut = cv2.warpAffine(pixels, affine, size, borderMode=cv2.BORDER_REPLICATE)
    cells = cv2.resize(cut, (CELLS, CELLS), interpolation=cv2.INTER_AREA)
    lab = cv2.cvtColor(cells, cv2.COLOR_RGB2LAB) if cells.ndim == 3 else cells
    return lab.astype(np.float32)


def _difference(colours: FloatArray, others: FloatArray) -> float:
    return float(np.abs(colours - others).mean())


def _start_template(grey: Grey, box: Array) -> _TemplateState:
    shape = np.maximum(4, np.round(box[2:])).astype(int)
    first = _warp(grey, box, shape)
    return _TemplateState(first, first.astype(np.float32), box)


def _step(state: _TemplateState, grey: Grey, first_box: Array) -> None:
    """Find the box in the next frame."""
    if state.box is None:
        everywhere = np.array([0.0, 0.0, grey.shape[1], grey.shape[0]])
        box, likeness = _search(grey, state.first, first_box[2:], everywhere)
        if likeness >= REDETECT_THRESHOLD:
            state.box, state.kept = box, state.first.astype(np.float32)
        return
    margin = SEARCH_RADIUS * state.box[2:]
    nearby = np.concatenate([state.box[:2] - margin, state.box[2:] + 2 * margin])
    state.box, likeness = _search(grey, state.kept.astype(np.uint8), state.box[2:], nearby)
    if likeness < HOLD_THRESHOLD:
        state.box = None
        return
    now = _warp(grey, state.box, np.array(state.first.shape[::-1]))
    if cv2.matchTemplate(now, state.first, cv2.TM_CCOEFF_NORMED).item() >= DRIFT_THRESHOLD:
        state.kept += LEARNING_RATE * (now - state.kept)


def _search(grey: Grey, picture: Grey, size: Array, area: Array) -> tuple[Array, float]:
    """Search an area for a picture of about a size; return its box and the correlation.

    The area is scaled instead of the picture, so that sizes needn't be whole numbers.
    """
    shape = np.array(picture.shape[::-1])
    found = []
    for scale in SCALES:
        unit = size * scale / shape  # px of the frame for one of the picture
        view = _warp(grey, area, np.maximum(shape, np.round(area[2:] / unit)).astype(int), unit)
        likeness = cv2.matchTemplate(view, picture, cv2.TM_CCOEFF_NORMED)
        _, most, _, (column, row) = cv2.minMaxLoc(likeness)
        beside = _peak_offset(likeness[row], column), _peak_offset(likeness[:, column], row)
        corner = area[:2] + (np.array([column, row]) + beside) * unit
        found.append((float(most), corner + size * scale / 2))
    likeness = np.array([most for most, _ in found])
    best = int(likeness.argmax())
    step = SCALES[1] - SCALES[0]
    scaled = size * (SCALES[best] + step * _peak_offset(likeness, best))
    sure = float(likeness[best]) if picture.std() > FLAT_LEVELS else 0.0
    return np.concatenate([found[best][1] - scaled / 2, scaled]), sure


def _warp(grey: Grey, area: Array, shape: NDArray[np.int64], unit: Array | None = None) -> Grey:
    """Warp an area of the frame to a shape (width, height); edges are repeated beyond."""
    unit = area[2:] / shape if unit is None else unit
    affine = np.column_stack([np.diag(1 / unit), -area[:2] / unit])
    view = cv2.warpAffine(grey, affine, shape.tolist(), borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(view, np.uint8)


def _peak_offset(values: NDArray[np.floating], at: int) -> float:
    """Return the sub-sample offset of a maximum, by a parabola through it and its neighbours."""
    if not 0 < at < len(values) - 1:
        return 0.0
    before, here, after = map(float, values[at - 1 : at + 2])
    bend = before - 2 * here + after
    return (before - after) / (2 * bend) if bend < 0 else 0.0
