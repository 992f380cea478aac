"""Worker processes, each working on one file at a time.

A pool of the standard library lacks two things. If a file ends its process (a decoder's bug, or
memory), the whole pool breaks and the file is not known; and the pool's processes outlive a killed
parent. Here the file is rejected with a line, another process takes over, and a process ends with
its parent.
"""

import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from itertools import count, islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

import cv2
import torch

from latentsync.errors import LatentSyncError, OutputError
from latentsync.runtime.processes import when_parent_ends
from latentsync.training.preparation.plan import load_tools, make_steps, make_write
from latentsync.training.preparation.stretch import Tools
from latentsync.training.preparation.work import Outcome, Source, examine, failed
from latentsync.training.settings import PreparationSettings

__all__ = ["Finished", "run_here", "run_in_processes"]

POLL_SECONDS = 0.1  # from one check of whether the run is cancelled to the next

Finished = Generator[tuple[Source, Outcome, Path], None, None]
"""A file, its outcome, and the folder that holds its clips until the next file is asked for."""


class _PreparationWorker(NamedTuple):
    process: SpawnProcess
    folder: Path


def run_here(sources: Iterable[Source], settings: PreparationSettings, tools: Tools) -> Finished:
    """Work on one file after the other, in this process."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    _use_one_thread()
    try:
        for source in sources:
            yield source, _examine(source, settings, tools), tools.folder
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def run_in_processes(
    sources: Iterable[Source],
    settings: PreparationSettings,
    folder: Path,
    workers: int,
    check: Callable[[], None],
) -> Finished:
    """Work on several files at a time, and yield them as they are done.

    Args:
        folder: an existing one, in which each process creates its own.
        check: called many times a second; raises to stop.

    Raises:
        LatentSyncError: as `examine` and `load_tools`.
    """
    queue, folders = iter(sources), (folder / str(number) for number in count())
    busy: dict[Connection, tuple[_PreparationWorker, Source]] = {}

    def assign(source: Source, pipe: Connection, worker: _PreparationWorker) -> None:
        busy[pipe] = worker, source
        with suppress(OSError):  # the process has died, which `_answer` finds out
            pipe.send(source)

    try:
        for source in islice(queue, workers):
            assign(source, *_start(settings, next(folders)))
        while busy:
            check()
            for pipe in wait(list(busy), POLL_SECONDS):
                assert isinstance(pipe, Connection)
                worker, source = busy[pipe]
                answer = _answer(pipe, worker, source)
                yield source, answer, worker.folder
                del busy[pipe]
                following = next(queue, None)
                if following is None or not worker.process.is_alive():
                    pipe.close()
                    worker.process.join()
                if following is not None:
                    if pipe.closed:
                        pipe, worker = _start(settings, next(folders))
                    assign(following, pipe, worker)
    finally:
        for pipe, (worker, _) in busy.items():
            worker.process.terminate()
            worker.process.join()
            pipe.close()


def _start(settings: PreparationSettings, folder: Path) -> tuple[Connection, _PreparationWorker]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, settings, folder), daemon=True)
    # Ctrl-C reaches every process. Workers inherit the block, and this process ends them.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    theirs.close()  # so that ours is closed when the process ends
    return ours, _PreparationWorker(process, folder)


def _answer(pipe: Connection, worker: _PreparationWorker, source: Source) -> Outcome:
    try:
        answer = pipe.recv()
    except (EOFError, OSError):
        worker.process.join()
        code = worker.process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"code {code}"
        return failed(source, f"the process that worked on it ended with {how}")
    if isinstance(answer, LatentSyncError):
        raise answer
    assert isinstance(answer, Outcome)
    return answer


def _serve(pipe: Connection, settings: PreparationSettings, folder: Path) -> None:
    """Run a worker process: examine each source that arrives."""
    when_parent_ends(lambda: os._exit(1))
    _use_one_thread()
    try:
        tools = load_tools(settings, folder)
        while True:
            try:
                source = pipe.recv()
            except EOFError:
                return
            pipe.send(_examine(source, settings, tools))
    except LatentSyncError as error:
        pipe.send(error)


def _examine(source: Source, settings: PreparationSettings, tools: Tools) -> Outcome:
    shutil.rmtree(tools.folder, ignore_errors=True)  # files of the previous source
    try:
        tools.folder.mkdir()
    except OSError as error:
        raise OutputError(
            f"{tools.folder} can't be made ({error.strerror or error}); make room, and start "
            "again: the run goes on"
        ) from error
    return examine(source, make_steps(settings), make_write(settings), tools)


def _use_one_thread() -> None:
    """Files run in parallel, and sums are equal for any number of cores."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
