"""What a run tells its caller while it lasts, where its time goes, and how it is stopped."""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import copy_context
from typing import TypeVar

from latentsync.errors import Cancelled
from latentsync.runtime.prefetch import consumer_gone
from latentsync.types import Frame, Progress, ProgressCallback

__all__ = ["RunContext", "interruptible"]

LOOK_EVERY = 0.05  # seconds

Answer = TypeVar("Answer")
Item = TypeVar("Item")


class RunContext:
    """Passes progress on, stops a cancelled run, and sums up the time of each stage.

    A run's stages may share one, each from its own thread.
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
        """Pass one step on. Raises Cancelled when the caller wants to stop."""
        self._at = progress
        self.check()
        self.tell(progress)

    def check(self) -> None:
        """Raise Cancelled when the caller wants to stop, or a stage after this one has ended."""
        if consumer_gone() or (self._cancelled and self._cancelled()):
            raise Cancelled(f"cancelled at frame {self._at.done} of stage {self._at.stage!r}")

    def step(self, stage: str, done: int, total: int | None) -> None:
        self(Progress(stage, done, total))

    def tell(self, progress: Progress) -> None:
        """Pass one step on when it is too late to stop."""
        if self._progress:
            self._progress(progress)

    def show(self, crop: Frame) -> None:
        """Pass on a face as it looks by now, (R, R, 3) uint8."""
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
        """The items, and the time that making each takes."""
        while True:
            with self.timed(stage):
                try:
                    item = next(items)
                except StopIteration:
                    return
            yield item

    def timings(self) -> dict[str, float]:
        """Seconds by stage, and of the whole run so far; stages side by side sum up to more."""
        return {**self._spent, "total": time.perf_counter() - self._started}


def interruptible(work: Callable[[Callable[[], bool]], Answer]) -> Answer:
    """The answer of `work(cancelled)`, which runs in a thread of its own.

    Ctrl-C and Cog's cancellation are exceptions that are thrown into the main thread wherever it
    is, and PyAV loses those that come while it makes an error of its own. So this thread waits in
    plain Python; once something is thrown, `cancelled` says so, and it goes on when `work` ended.
    """
    stop = threading.Event()
    answer: Future[Answer] = Future()
    ended: list[bool] = []  # and no lock, which an exception at the wrong place would leave locked

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
            time.sleep(LOOK_EVERY)
    except BaseException:
        stop.set()
        raise
    finally:
        if thread.is_alive():
            thread.join()
    return answer.result()
