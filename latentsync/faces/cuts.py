"""Where a film cuts from one shot to the next, told from thumbnails while the frames stream by."""

from collections import deque
from collections.abc import Iterable, Iterator

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync.faces.view import Shown, View

__all__ = ["with_cuts"]

WIDTH, HEIGHT = 32, 18  # px of a thumbnail, whatever the frame's shape
SIDE = 256  # px, longest side of the picture that it is made of
AROUND = 3  # steps on either side that a cut is compared with; a flash of so many frames is none
LEAST = 8.0  # grey levels by which two shots differ at least, on average over the thumbnail
CLEARLY = 1.5  # times the steps around it


def with_cuts(frames: Iterable[Shown]) -> Iterator[tuple[Shown, bool]]:
    """Every frame, and whether it is the first of a new shot; three frames late.

    A cut is a step from one frame to the next that is large, and larger by far than the three
    steps before and the three after. So neither a flash is one, which goes as it came, nor a fast
    pan, which takes many large steps, nor a dissolve, which takes many small ones.
    """
    before: deque[float] = deque(maxlen=AROUND)  # steps
    waiting: deque[tuple[Shown, float]] = deque()  # frames, and the step to each
    last: NDArray[np.float32] | None = None

    def first() -> tuple[Shown, bool]:
        frame, step = waiting.popleft()
        around = max([*before, *(later for _, later in waiting)], default=0.0)
        before.append(step)
        return frame, step >= max(LEAST, CLEARLY * around)

    for frame in frames:
        now = _thumbnail(frame)
        waiting.append((frame, 0.0 if last is None else float(np.abs(now - last).mean())))
        last = now
        if len(waiting) > AROUND:
            yield first()
    while waiting:
        yield first()


def _thumbnail(frame: Shown) -> NDArray[np.float32]:
    """Few pixels of the frame, averaged."""
    few = View(frame).small(SIDE).pixels
    small = cv2.resize(few, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32)
