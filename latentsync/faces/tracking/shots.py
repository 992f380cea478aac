"""Detection of cuts and dissolves from thumbnails, while the frames stream by."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync.faces.detectors.frame_view import FrameLike, FrameView

__all__ = ["Cut", "detect_shots"]

Thumbnail = NDArray[np.float32]  # (pixels,) grey levels

WIDTH, HEIGHT = 32, 18  # px of a thumbnail, whatever the frame's shape
THUMBNAIL_SIDE = 256  # px, longest side of the picture that it is made from, at most
NEIGHBOUR_STEPS = 3  # on either side of a cut, to compare it with; longer than a flash
MIN_CHANGE_LEVELS = 8.0  # of grey, on average over the thumbnail
MIN_CHANGE_RATIO = 1.5  # times the steps around it
# Where 25 of 30 frames a second are kept, every fifth step is twice as large as the others, and for
# a moving head that fills the picture larger than `MIN_CHANGE_LEVELS`.
SAME_SCENE_THRESHOLD = 0.9  # correlation of two pictures above which that may be the cause
MIN_SCENE_CHANGE_RATIO = 2.5  # in place of MIN_CHANGE_RATIO for a cut between such pictures

# A dissolve mixes two pictures that are not alike. A pan of a smooth picture looks like one for a
# while: a sine that has moved as far as leaves a correlation of 0.5 differs half way by 0.13 from a
# mixture. These two bounds exclude it.
MAX_MIXTURE_ERROR = 0.13  # of the difference of the two pictures
SAME_SHOT_THRESHOLD = 0.5  # correlation above which two pictures are one shot, perhaps relit
DISSOLVE_FRAMES = (12, 25, 50)  # lengths compared; of a longer dissolve the last part is found
MIN_DISSOLVE_FRAMES = 3
DISSOLVE_END_SHARE = 0.97  # share of the second picture at which a dissolve is over
BLANK_LEVELS = 4.0  # grey levels, standard deviation: a thumbnail with less is blank

# A graphic (a lower third, a side bar, an inset) changes rectangles of the picture and nothing
# else. A cut to another person in the same room changes none, because the room stays visible beside
# the head and above the shoulders.
CHANGED_LEVELS = 8.0  # of a channel: change of a cell that shows something else
MAX_GRAPHICS = 3  # rectangles at most
MIN_GRAPHIC_CELLS = 10  # cells of a thumbnail, of 576
MAX_GRAPHICS_SHARE = 0.6  # of the picture, all together
MIN_SHARP_SHARE = 0.7  # of the cells beside a rectangle's edge that don't change
MIN_STILL_SHARE = 0.65  # of the cells beside the rectangles that don't change
KEPT_THRESHOLD = 0.8  # correlation of the two pictures there


@dataclass(frozen=True)
class Cut:
    """The first frame of a new shot."""

    dissolve: int = 0  # frames before it that mix both shots


def detect_shots(frames: Iterable[FrameLike]) -> Iterator[tuple[FrameLike, Cut | None]]:
    """Iterate over the frames, each with a `Cut` if it begins a new shot; three frames late.

    A cut is a step from one frame to the next that is large, and far larger than the three steps
    before and after. So these aren't cuts: a flash, a fast pan, a motion with dropped frames, a
    graphic that covers part of the picture. After a dissolve, or a fade through black, the new shot
    begins where the old one is gone.
    """
    before: deque[float] = deque(maxlen=NEIGHBOUR_STEPS)  # steps
    waiting = deque[tuple[FrameLike, float, float, Thumbnail]]()  # with the step, its least ratio
    shot = _Shot()
    last: Thumbnail | None = None

    def first() -> tuple[FrameLike, Cut | None]:
        frame, step, ratio, now = waiting.popleft()
        around = max([*before, *(later for _, later, *_ in waiting)], default=0.0)
        before.append(step)
        cut = Cut() if step >= max(MIN_CHANGE_LEVELS, ratio * around) else None
        if cut is None and len(waiting) == NEIGHBOUR_STEPS:
            mixed = shot.dissolve_frames([now, *(later for *_, later in waiting)])
            cut = Cut(mixed) if mixed else None
        if cut:
            shot.begin()
        shot.add(now)
        return frame, cut

    for frame in frames:
        now = _thumbnail(frame)
        step = 0.0 if last is None or _graphic(last, now) else float(np.abs(now - last).mean())
        alike = False
        if step >= MIN_CHANGE_LEVELS and last is not None:
            alike = _correlation(last, now) > SAME_SCENE_THRESHOLD
        waiting.append((frame, step, MIN_SCENE_CHANGE_RATIO if alike else MIN_CHANGE_RATIO, now))
        last = now
        if len(waiting) > NEIGHBOUR_STEPS:
            yield first()
    while waiting:
        yield first()


class _Shot:
    """The last thumbnails of one shot."""

    def __init__(self) -> None:
        self._seen: deque[Thumbnail] = deque(maxlen=max(DISSOLVE_FRAMES))
        self._left: Thumbnail | None = None  # the last one before a blank picture

    def begin(self) -> None:
        self._seen.clear()
        self._left = None

    def add(self, now: Thumbnail) -> None:
        if now.std() < BLANK_LEVELS:  # a fade: mixtures from here on are with the next picture
            if self._seen and self._seen[-1].std() >= BLANK_LEVELS:
                self._left = self._seen[-1]
            self._seen.clear()
        self._seen.append(now)

    def dissolve_frames(self, following: Sequence[Thumbnail]) -> int:
        """Count the last frames that are a dissolve to the following ones; 0: no dissolve."""
        seen, most = list(self._seen), 0
        for span in {min(length, len(seen)) for length in DISSOLVE_FRAMES}:
            if span > MIN_DISSOLVE_FRAMES:
                pictures = np.stack([*seen[-span:], *following])
                most = max(most, self._count_mixtures(pictures, len(following)))
        return most

    def _count_mixtures(self, pictures: NDArray[np.float32], over: int) -> int:
        """Count mixtures of the first and last picture, if the last `over` equal the last."""
        before = self._left if pictures[0].std() < BLANK_LEVELS else pictures[0]
        way = pictures[-1] - pictures[0]
        if (
            np.abs(way).mean() < MIN_CHANGE_LEVELS
            or before is None
            or _correlation(before, pictures[-1]) >= SAME_SHOT_THRESHOLD
        ):
            return 0
        gone = pictures - pictures[0]
        share = gone @ way / (way @ way)
        off = np.sqrt(np.square(gone - np.outer(share, way)).mean(axis=1))
        between = np.flatnonzero((share > 1 - DISSOLVE_END_SHARE) & (share < DISSOLVE_END_SHARE))
        arrived = np.abs(share[-over:] - 1).max() <= 1 - DISSOLVE_END_SHARE
        mixed = off.max() <= MAX_MIXTURE_ERROR * np.sqrt(np.square(way).mean())
        gradual = len(between) >= MIN_DISSOLVE_FRAMES and arrived and mixed
        if not gradual or _graphic(before, pictures[-1]):
            return 0
        return int(len(pictures) - over - between[0])


def _graphic(before: Thumbnail, now: Thumbnail) -> bool:
    """Whether a graphic appeared or went: rectangles changed, and little else."""
    step = np.abs(now - before)
    if step.mean() < MIN_CHANGE_LEVELS:
        return False
    changed = step.reshape(HEIGHT, WIDTH, 3).max(axis=2) >= CHANGED_LEVELS
    cells = changed.astype(np.uint8)
    # A graphic may have holes, where it resembles the picture, and edges within cells.
    closed = cv2.morphologyEx(cells, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
    for clean in (cv2.medianBlur(cells, 3), closed):
        covered, beside = _rectangles(clean.astype(bool))
        if not covered or covered > MAX_GRAPHICS_SHARE * beside.size:
            continue
        rest = np.repeat(beside.ravel(), 3)
        still = 1 - changed[beside].mean()
        if still >= MIN_STILL_SHARE and _correlation(before[rest], now[rest]) >= KEPT_THRESHOLD:
            return True
    return False


def _rectangles(cells: NDArray[np.bool_]) -> tuple[int, NDArray[np.bool_]]:
    """Count the cells in sharp rectangles, and mark those that are neither in nor beside one."""
    left, beside, covered = cells.copy(), np.ones(cells.shape, bool), 0
    for _ in range(MAX_GRAPHICS):
        (top, bottom), (first, last) = rows, columns = _rectangle(left)
        area = (bottom - top) * (last - first)
        if area < MIN_GRAPHIC_CELLS or not _sharp(left, rows, columns):
            break
        covered += area
        grown = slice(max(0, top - 1), bottom + 1), slice(max(0, first - 1), last + 1)
        left[grown] = beside[grown] = False
    return covered, beside


def _rectangle(cells: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Find rows [a, b) and columns [a, b) of the largest rectangle of True cells."""
    best, where = 0, ((0, 0), (0, 0))
    for top in range(len(cells)):
        full = np.ones(cells.shape[1], bool)
        for bottom in range(top + 1, len(cells) + 1):
            full &= cells[bottom - 1]
            if not full.any():
                break
            edges = np.flatnonzero(np.diff(full, prepend=False, append=False))
            starts, widths = edges[::2], edges[1::2] - edges[::2]
            widest = int(widths.argmax())
            if widths[widest] * (bottom - top) > best:
                best = int(widths[widest]) * (bottom - top)
                where = (top, bottom), (int(starts[widest]), int(edges[1::2][widest]))
    return where


def _sharp(changed: NDArray[np.bool_], rows: tuple[int, int], columns: tuple[int, int]) -> bool:
    """Whether the change ends at the rectangle's edge; a cell there may be half inside."""
    (top, bottom), (left, right) = rows, columns
    height, width = changed.shape
    beside = [changed[line, left:right] for line in (top - 2, bottom + 1) if 0 <= line < height] + [
        changed[top:bottom, line] for line in (left - 2, right + 1) if 0 <= line < width
    ]
    return all(1 - line.mean() >= MIN_SHARP_SHARE for line in beside)


def _correlation(one: Thumbnail, other: Thumbnail) -> float:
    """Correlate two thumbnails, -1 to 1; 1 if one of them is blank."""
    if min(one.std(), other.std()) < BLANK_LEVELS:
        return 1.0
    return float(np.corrcoef(one, other)[0, 1])


def _thumbnail(frame: FrameLike) -> Thumbnail:
    """Average a frame to WIDTH x HEIGHT px."""
    view = FrameView(frame)
    longest = max(view.width, view.height)
    step = math.ceil(longest / THUMBNAIL_SIDE)  # a whole number, which is fast
    few = view.small(longest // step).pixels
    small = cv2.resize(few, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32).ravel()
