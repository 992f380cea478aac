"""Runs of visitors: one at a time, told step by step, kept when their page is loaded anew."""

import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from anyio import sleep

from latentsync.errors import Cancelled, InputError, LatentSyncError
from latentsync.options import Options
from latentsync.pipeline.lipsync import LipSync
from latentsync.runtime.scratch import temporary_folder
from latentsync.service.page.measure import Curves, measure
from latentsync.types import Frame, Progress, Result

__all__ = ["Desk", "Given", "PageRun", "Shown"]

LOOK_SECONDS = 0.25  # from one look at a run to the next
UNWATCHED_SECONDS = 60.0  # after which a run is given up: its page was closed, not loaded anew
KEEP_SECONDS = 3600.0  # how long an ended run can be looked at
MAX_WAITING = 32  # runs


@dataclass(frozen=True)
class Given:
    """What a visitor gave, as a page that is loaded anew shows it again."""

    face: Path
    voice: Path
    values: tuple[Any, ...] = ()  # of the components, in their order


@dataclass(frozen=True)
class Shown:
    """What there is to see of a run. Stages: "wait", "load", "read", `LipSync.run`'s, "measure"."""

    progress: Progress
    face: Frame | None = None  # the last one drawn, squeezed into a square
    result: Result | None = None
    curves: Curves | None = None
    unmeasured: LatentSyncError | None = None  # why there are no curves
    error: Exception | None = None  # why there is no result
    ended: bool = False


class PageRun:
    """One run, from the moment it is asked for. `now` is replaced as it goes on."""

    def __init__(self, desk: "Desk", given: Given, options: Options) -> None:
        self.given, self.now = given, Shown(Progress("wait", 0, None))
        self._desk, self._options = desk, options
        self._noting = threading.Lock()  # faces come from another thread
        self._cancelled = threading.Event()
        self._watched_at = time.monotonic()
        opened = ExitStack()
        self._clean = weakref.finalize(self, opened.close)  # at the process's end at the latest
        folder = opened.enter_context(temporary_folder("latentsync-page-"))
        self.output = folder / f"{given.face.stem}-speaking.mp4"

    def cancel(self) -> None:
        """End it at its next step; whoever watches sees it as ended at once."""
        self._cancelled.set()

    async def watched(self) -> AsyncIterator[Shown]:
        """The run as it is every LOOK_SECONDS, and at last as it ended."""
        while not (now := self.seen()).ended:
            yield now
            await sleep(LOOK_SECONDS)
        yield now

    def seen(self) -> Shown:
        """The run as it is, for somebody who watches it."""
        self._watched_at = time.monotonic()
        now = self.now
        if self._cancelled.is_set() and now.result is None:
            return Shown(now.progress, error=Cancelled("cancelled"), ended=True)
        if now.progress.stage == "wait":
            return replace(now, progress=Progress("wait", self._desk.before(self), None))
        return now

    @property
    def over(self) -> bool:
        """Whether nobody has to wait for it."""
        return self.now.ended or self._cancelled.is_set()

    def ended_since(self) -> float:
        """Seconds since somebody last looked at it, once it ended; before that 0."""
        return time.monotonic() - self._watched_at if self.now.ended else 0.0

    def work(self) -> None:
        """Run, and measure; in the desk's thread."""
        try:
            self._note(progress=Progress("load", 0, None))
            self._check()
            lipsync = self._desk.lipsync()
            self._note(progress=Progress("read", 0, None))
            result = lipsync.run(
                self.given.face,
                self.given.voice,
                self.output,
                options=self._options,
                progress=lambda at: self._note(progress=at),
                cancelled=self._given_up,
                preview=lambda face: self._note(face=face),
            )
            self._note(result=result, progress=Progress("measure", 0, None))
            self._measure(lipsync, result)
        except Exception as error:  # noqa: BLE001 - whoever watches is told
            self._note(error=error)
            self.forget()
        self._note(ended=True)

    def forget(self) -> None:
        """Delete the output."""
        self._clean()

    def _measure(self, lipsync: LipSync, result: Result) -> None:
        try:
            self._note(curves=measure(lipsync, result, self._options, self._given_up))
        except LatentSyncError as error:
            self._note(unmeasured=error)

    def _note(self, **news: Any) -> None:  # noqa: ANN401 - fields of Shown
        with self._noting:
            self.now = replace(self.now, **news)

    def _given_up(self) -> bool:
        alone = time.monotonic() - self._watched_at > UNWATCHED_SECONDS
        return alone or self._cancelled.is_set() or self._desk.closed.is_set()

    def _check(self) -> None:
        if self._given_up():
            raise Cancelled("cancelled before it began")


class Desk:
    """A model, loaded by the first run, and a thread in which runs wait for each other."""

    def __init__(self, load: Callable[[], LipSync]) -> None:
        self.lipsync = cache(load)
        self.closed = threading.Event()  # set: everything that runs is given up
        self._runs: dict[str, PageRun] = {}  # in the order in which they were asked for
        self._pool = ThreadPoolExecutor(1, "latentsync-page")
        self._lock = threading.Lock()

    def begin(self, name: str, given: Given, options: Options) -> PageRun:
        """A run of that name, which waits for its turn.

        Raises:
            InputError: too many wait already, or the name is taken.
        """
        with self._lock:
            for old in [one for one, run in self._runs.items() if run.ended_since() > KEEP_SECONDS]:
                self._runs.pop(old).forget()
            if sum(not run.over for run in self._runs.values()) > MAX_WAITING:
                raise InputError(f"{MAX_WAITING} runs wait here already; try again in a while")
            if name in self._runs:
                raise InputError("this run was begun before; load the page anew")
            run = self._runs[name] = PageRun(self, given, options)
        self._pool.submit(run.work)
        return run

    def find(self, name: str) -> PageRun | None:
        """The run of that name, which whoever began it knows."""
        return self._runs.get(name)

    def before(self, waiting: PageRun) -> int:
        """How many runs come before this one."""
        with self._lock:
            runs = list(self._runs.values())
        return sum(not run.over for run in runs[: runs.index(waiting)])

    def close(self) -> None:
        """Give everything up, and delete all outputs."""
        self.closed.set()
        self._pool.shutdown(cancel_futures=True)
        for run in self._runs.values():
            run.forget()
