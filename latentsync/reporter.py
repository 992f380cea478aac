"""What a run tells its caller while it lasts, and where its time goes."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from latentsync.errors import Cancelled
from latentsync.types import Progress, ProgressCallback

__all__ = ["Reporter"]


class Reporter:
    """Passes progress on, stops a cancelled run, and sums up the time of each stage."""

    def __init__(
        self,
        progress: ProgressCallback | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> None:
        self._progress, self._cancelled = progress, cancelled
        self._started = time.perf_counter()
        self._spent: dict[str, float] = defaultdict(float)

    def __call__(self, progress: Progress) -> None:
        """Pass one step on. Raises Cancelled when the caller wants to stop."""
        if self._cancelled and self._cancelled():
            raise Cancelled(f"cancelled at frame {progress.done} of stage {progress.stage!r}")
        self.tell(progress)

    def step(self, stage: str, done: int, total: int | None) -> None:
        self(Progress(stage, done, total))

    def tell(self, progress: Progress) -> None:
        """Pass one step on when it is too late to stop."""
        if self._progress:
            self._progress(progress)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._spent[stage] += time.perf_counter() - start

    def timings(self) -> dict[str, float]:
        """Seconds by stage, and of the whole run so far."""
        return {**self._spent, "total": time.perf_counter() - self._started}
