"""The context of a run: progress, cancellation, and timings by stage."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

from latentsync.errors import Cancelled
from latentsync.runtime.prefetch import POLL_SECONDS, consumer_gone
from latentsync.types import Frame, Progress, ProgressCallback

__all__ = ["RunContext", "interruptible"]

Answer = TypeVar("Answer")
Item = TypeVar("Item")


class RunContext:
    """Reports progress, stops a cancelled run, and sums up the time of each stage.

    The stages of a run share one, each from its own thread.
    """

    def __init__(
        self,
        progress: ProgressCallback | None = None,
        cancelled: Callable[[], bool] | None = None,
        preview: Callable[[Frame], None] | None = None,
    ) -> None:
        self._progress, self._cancelled, self._preview = progress, cancelled, preview
        self._started = time.perf_counter()
        self._spent: dict[str, float] = defaultdict(float)
        self._at = Progress("read", 0, None)
        self._summing = threading.Lock()

    def __call__(self, progress: Progress) -> None:
        """Report one step. Raises Cancelled if the caller wants to stop."""
        self._at = progress
        self.check()
        self.tell(progress)

    def check(self) -> None:
        """Raise Cancelled if the caller wants to stop, or a stage after this one has ended."""
        if consumer_gone() or (self._cancelled and self._cancelled()):
            raise Cancelled(f"cancelled at frame {self._at.done} of stage {self._at.stage!r}")

    def step(self, stage: str, done: int, total: int | None) -> None:
        self(Progress(stage, done, total))

    def tell(self, progress: Progress) -> None:
        """Report one step without checking for cancellation."""
        if self._progress:
            self._progress(progress)

    def show(self, crop: Frame) -> None:
        """Report a preview of a face, (R, R, 3) uint8."""
        if self._preview:
            self._preview(crop)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._summing:
                self._spent[stage] += time.perf_counter() - start

    def each(self, stage: str, items: Iterator[Item]) -> Generator[Item, None, None]:
        """Iterate over `items`, and add the time of each to a stage."""
        while True:
            with self.timed(stage):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def timings(self) -> dict[str, float]:
        """Seconds by stage, and "total" so far; parallel stages sum up to more."""
        return {**self._spent, "total": time.perf_counter() - self._started}


def interruptible(work: Callable[[Callable[[], bool]], Answer]) -> Answer:
    """Run `work(cancelled)` in another thread, and return its result.

    Ctrl-C and Cog's cancellation are exceptions thrown into the main thread at any place, and PyAV
    loses one that arrives while it raises an error of its own. So the main thread waits here, in
    plain Python. On an exception `cancelled` becomes true, and it is raised when `work` has ended.
    """
    stop = threading.Event()
    answer: Future[Answer] = Future()
    ended: list[bool] = []  # no lock: an exception at the wrong place would leave it locked

    def run() -> None:
        try:
            answer.set_result(work(stop.is_set))
        except BaseException as error:  # noqa: BLE001 - the waiting thread raises it
            answer.set_exception(error)
        ended.append(True)

    thread = threading.Thread(target=copy_context().run, args=[run])
    try:
        thread.start()
        while not ended:
            time.sleep(POLL_SECONDS)
    except BaseException:
        stop.set()
        raise
    finally:
        if thread.is_alive():
            thread.join()
    return answer.result()
