"""Runs that somebody watches: one at a time, told step by step, and stopped when nobody listens."""

import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from latentsync.errors import LatentSyncError
from latentsync.options import Options
from latentsync.page.measure import Curves, measure
from latentsync.pipeline import LipSync
from latentsync.types import Frame, Progress, Result

__all__ = ["Desk", "Shown", "speak"]

LOOK_EVERY = 0.25  # seconds; how often the page is told what is new


@dataclass(frozen=True)
class Shown:
    """What there is to see of a run. Stages: "wait", "load", "read", `run`'s own, "measure"."""

    progress: Progress
    face: Frame | None = None  # the last one drawn, squeezed into a square
    result: Result | None = None  # its file is there until the run is asked for more, or closed
    curves: Curves | None = None
    unmeasured: str = ""  # why there will be no curves


class Desk:
    """A model, loaded when the first asks for it, and a thread in which runs wait for each other.

    A run that was given up may still be at a step of the network when the next one asks: that one
    then waits, though Gradio's own queue takes it for running.
    """

    def __init__(self, load: Callable[[], LipSync]) -> None:
        self.lipsync = cache(load)
        self.closed = threading.Event()  # set: everything that runs is given up
        self._pool = ThreadPoolExecutor(1, "latentsync-page")

    def later(self, work: Callable[[], Any]) -> Future[Any]:
        return self._pool.submit(work)

    def close(self) -> None:
        self.closed.set()
        self._pool.shutdown(cancel_futures=True)


def speak(desk: Desk, video: Path, voice: Path, options: Options) -> Generator[Shown, None, None]:
    """One run, as it is every quarter of a second; at last the output, then its curves.

    The output is a temporary file. Who closes the generator gives the run up, and can do so even
    while nothing new is told: it ends at its next step, in its own thread, and leaves nothing.

    Raises:
        LatentSyncError: as `LipSync.run`, and what loading the model raises.
    """
    given_up = threading.Event()
    folder = TemporaryDirectory(prefix="latentsync-page-")
    output = Path(folder.name) / f"{video.stem}-speaking.mp4"
    now, noting = Shown(Progress("wait", 0, None)), threading.Lock()

    def note(**news: Any) -> None:  # noqa: ANN401 - fields of Shown
        nonlocal now
        with noting:  # faces come from another thread
            now = replace(now, **news)

    def progress(at: Progress) -> None:
        note(progress=at)

    def cancelled() -> bool:
        return given_up.is_set() or desk.closed.is_set()

    def run() -> None:
        progress(Progress("load", 0, None))
        lipsync = desk.lipsync()
        progress(Progress("read", 0, None))
        result = lipsync.run(
            video,
            voice,
            output,
            options=options,
            progress=progress,
            cancelled=cancelled,
            preview=lambda face: note(face=face),
        )
        note(result=result, progress=Progress("measure", 0, None))

    def look() -> None:
        assert now.result is not None
        try:
            note(curves=measure(desk.lipsync(), now.result, options, cancelled))
        except LatentSyncError as error:
            note(unmeasured=str(error))

    work = None
    try:
        for step in (run, look):
            work = desk.later(step)
            while not work.done():
                wait([work], LOOK_EVERY)
                yield now
            work.result()
        yield now
    finally:
        given_up.set()
        if work:
            work.cancel()
            work.add_done_callback(lambda _: folder.cleanup())
