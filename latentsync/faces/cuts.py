"""Where a film goes from one shot to the next, told from thumbnails while the frames stream by."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync.faces.view import Shown, View

__all__ = ["with_cuts"]

Thumbnail = NDArray[np.float32]  # (pixels,) grey levels

WIDTH, HEIGHT = 32, 18  # px of a thumbnail, whatever the frame's shape
SIDE = 256  # px, at most, longest side of the picture that it is made of
AROUND = 3  # steps on either side that a cut is compared with; a flash of so many frames is none
LEAST = 8.0  # grey levels by which two shots differ at least, on average over the thumbnail
CLEARLY = 1.5  # times the steps around it
# Where 25 of 30 frames a second are kept, every fifth step is twice as large as the others, and of
# a moving head that fills the picture larger than `LEAST`.
NEIGHBOURS = 0.9  # correlation of two pictures above which they may be such
SKIPPED = 2.5  # times the steps around it that a cut between such pictures must be

# A dissolve shows mixtures of two pictures that are not alike. A pan of a smooth picture looks like
# one for a while: of a sine, by as much as leaves a correlation of 0.5, what lies half way is 0.13
# off. So at these two bounds none is taken for a dissolve.
MIXED = 0.13  # of the way between the two pictures: how far a mixture may be off
ALIKE = 0.5  # correlation from which on two pictures are one shot, in another light say
LENGTHS = (12, 25, 50)  # frames looked back; a longer dissolve is seen by its last part
GRADUAL = 3  # frames that are mixtures, at least
ARRIVED = 0.97  # of the way: as near its end is a dissolve over
BLANK = 4.0  # grey levels, standard deviation: a thumbnail with less shows nothing


def with_cuts(frames: Iterable[Shown]) -> Iterator[tuple[Shown, bool]]:
    """Every frame, and whether it is the first of a new shot; three frames late.

    A cut is a step from one frame to the next that is large, and larger by far than the three
    steps before and the three after. So neither a flash is one, which goes as it came, nor a fast
    pan, which takes many large steps, nor a move of which frames are left out. After a dissolve, or
    a fade through black, the new shot begins where the old one is gone.
    """
    before: deque[float] = deque(maxlen=AROUND)  # steps
    waiting: deque[tuple[Shown, float, float, Thumbnail]] = deque()  # the step to it, CLEARLY there
    shot = _Shot()
    last: Thumbnail | None = None

    def first() -> tuple[Shown, bool]:
        frame, step, clearly, now = waiting.popleft()
        around = max([*before, *(later for _, later, *_ in waiting)], default=0.0)
        before.append(step)
        cut = step >= max(LEAST, clearly * around)
        if not cut and len(waiting) == AROUND:
            cut = shot.gone_over([now, *(later for *_, later in waiting)])
        if cut:
            shot.begin()
        shot.add(now)
        return frame, cut

    for frame in frames:
        now = _thumbnail(frame)
        step = 0.0 if last is None else float(np.abs(now - last).mean())
        alike = step >= LEAST and last is not None and _correlation(last, now) > NEIGHBOURS
        waiting.append((frame, step, SKIPPED if alike else CLEARLY, now))
        last = now
        if len(waiting) > AROUND:
            yield first()
    while waiting:
        yield first()


class _Shot:
    """The last thumbnails of one shot."""

    def __init__(self) -> None:
        self._seen: deque[Thumbnail] = deque(maxlen=max(LENGTHS))
        self._left: Thumbnail | None = None  # what was seen before a blank picture

    def begin(self) -> None:
        self._seen.clear()
        self._left = None

    def add(self, now: Thumbnail) -> None:
        if now.std() < BLANK:  # from here on mixtures are with the next picture
            if self._seen and self._seen[-1].std() >= BLANK:
                self._left = self._seen[-1]
            self._seen.clear()
        self._seen.append(now)

    def gone_over(self, following: Sequence[Thumbnail]) -> bool:
        """Whether the shot has become another one just now, and stays that."""
        seen = list(self._seen)
        spans = {min(length, len(seen)) for length in LENGTHS}
        return any(
            self._mixtures(np.stack([*seen[-span:], *following]), len(following))
            for span in spans
            if span > GRADUAL
        )

    def _mixtures(self, pictures: NDArray[np.float32], over: int) -> bool:
        """Whether all are mixtures of the first and the last, and the last `over` are but it."""
        before = self._left if pictures[0].std() < BLANK else pictures[0]
        way = pictures[-1] - pictures[0]
        if (
            np.abs(way).mean() < LEAST
            or before is None
            or _correlation(before, pictures[-1]) >= ALIKE
        ):
            return False
        gone = pictures - pictures[0]
        share = gone @ way / (way @ way)
        off = np.sqrt(np.square(gone - np.outer(share, way)).mean(axis=1))
        between = np.count_nonzero((share > 1 - ARRIVED) & (share < ARRIVED))
        arrived = np.abs(share[-over:] - 1).max() <= 1 - ARRIVED
        mixed = off.max() <= MIXED * np.sqrt(np.square(way).mean())
        return bool(between >= GRADUAL and arrived and mixed)


def _correlation(one: Thumbnail, other: Thumbnail) -> float:
    """From -1 to 1; 1 where one of them is blank, for who can tell."""
    if min(one.std(), other.std()) < BLANK:
        return 1.0
    return float(np.corrcoef(one, other)[0, 1])


def _thumbnail(frame: Shown) -> Thumbnail:
    """Few pixels of the frame, averaged."""
    view = View(frame)
    longest = max(view.width, view.height)
    few = view.small(longest // math.ceil(longest / SIDE)).pixels  # by a whole step, which is fast
    small = cv2.resize(few, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32).ravel()
