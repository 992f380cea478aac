"""Files worked on side by side, each process at one of them, so that it is known who broke it.

A pool of the standard library would do but for two things: when a file takes its process along (a
decoder's bug, or memory), all of the pool is lost and nobody knows which file it was; and its
processes outlive a parent that is killed. Here the file gets its line, another process takes over,
and a process ends with its parent.
"""

import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import count, islice
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import NamedTuple

import cv2
import torch

from latentsync.errors import LatentSyncError, OutputError
from latentsync.training.preparation.settings import PreparationSettings
from latentsync.training.preparation.stretch import Tools
from latentsync.training.preparation.work import Outcome, Source, examine, failed

__all__ = ["Finished", "here", "in_processes"]

LOOK_EVERY = 0.1  # seconds between two looks at whether the run is cancelled

Finished = Generator[tuple[Source, Outcome, Path], None, None]
"""A file, what became of it, and the folder in which its clips lie until the next is asked for."""


class _PreparationWorker(NamedTuple):
    process: SpawnProcess
    folder: Path


def here(sources: Iterable[Source], settings: PreparationSettings, tools: Tools) -> Finished:
    """One file after the other, in this process."""
    threads = torch.get_num_threads(), cv2.getNumThreads()
    _take_one_thread()
    try:
        for source in sources:
            yield source, _examined(source, settings, tools), tools.folder
    finally:
        torch.set_num_threads(threads[0])
        cv2.setNumThreads(threads[1])


def in_processes(
    sources: Iterable[Source],
    settings: PreparationSettings,
    folder: Path,
    workers: int,
    check: Callable[[], None],
) -> Finished:
    """Several at a time, in whatever order they are done.

    Args:
        folder: exists; each process makes one of its own in it.
        check: called many times a second; raises to stop.

    Raises:
        LatentSyncError: as `examine` and `PreparationSettings.tools`.
    """
    queue, folders = iter(sources), (folder / str(number) for number in count())
    busy: dict[Connection, tuple[_PreparationWorker, Source]] = {}
    try:
        for source in islice(queue, workers):
            ours, worker = _started(settings, next(folders))
            busy[ours] = worker, source
            _send(ours, source)
        while busy:
            check()
            for pipe in wait(list(busy), LOOK_EVERY):
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
                        pipe, worker = _started(settings, next(folders))
                    busy[pipe] = worker, following
                    _send(pipe, following)
    finally:
        for pipe, (worker, _) in busy.items():
            worker.process.terminate()
            worker.process.join()
            pipe.close()


def _started(settings: PreparationSettings, folder: Path) -> tuple[Connection, _PreparationWorker]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, settings, folder), daemon=True)
    # Ctrl-C reaches every process; workers inherit the block, and are ended by this one.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    theirs.close()  # so that ours ends with the process
    return ours, _PreparationWorker(process, folder)


def _send(pipe: Connection, source: Source) -> None:
    try:
        pipe.send(source)
    except OSError:
        return  # the process has died, as waiting for its answer will tell


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
    """A worker's life."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _take_one_thread()
    try:
        tools = settings.tools(folder)
        for source in _received(pipe):
            pipe.send(_examined(source, settings, tools))
    except LatentSyncError as error:
        pipe.send(error)


def _received(pipe: Connection) -> Iterator[Source]:
    while True:
        try:
            yield pipe.recv()
        except EOFError:
            return


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _examined(source: Source, settings: PreparationSettings, tools: Tools) -> Outcome:
    shutil.rmtree(tools.folder, ignore_errors=True)  # what the file before left
    try:
        tools.folder.mkdir()
    except OSError as error:
        raise OutputError(
            f"{tools.folder} can't be made ({error.strerror or error}); make room, and start "
            "again: the run goes on"
        ) from error
    return examine(source, settings.steps(), settings.write(), tools)


def _take_one_thread() -> None:
    """Files are what runs side by side; and sums come out the same, however many there are."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
