"""Worker processes that are restarted when they die."""

import logging
import multiprocessing
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from multiprocessing.context import SpawnProcess
from pathlib import Path

from latentsync.errors import LatentSyncError
from latentsync.runtime.processes import when_parent_ends
from latentsync.service.container import Service
from latentsync.service.outages import Backoff
from latentsync.service.settings import ServiceSettings, make_private, process_folder
from latentsync.service.worker import Run, Worker, load

__all__ = ["Supervisor"]

PAUSE_SECONDS = (1.0, 30.0)  # before a restart, first and longest
HEALTHY_SECONDS = 30.0  # of a process, after which the pauses start again with the first
STOP_SECONDS = 20.0  # in which a worker must give its task back
POLL_SECONDS = 0.2  # of a process

log = logging.getLogger(__name__)


class Supervisor:
    """Keeps a number of workers alive between `start` and `stop`.

    It makes a folder of its own in `scratch`, with a subfolder for each process that is removed
    with it; supervisors may share `scratch`.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        workers: int,
        scratch: Path,
        loader: Callable[[ServiceSettings], Run] = load,
    ) -> None:
        self._settings, self._scratch, self._loader = settings, scratch, loader
        self._stopping, self._opened = threading.Event(), ExitStack()
        self._closing = threading.Lock()
        self._slots = [
            threading.Thread(target=self._keep, args=[slot], name=f"worker-{slot}", daemon=True)
            for slot in range(workers)
        ]

    def start(self) -> None:
        self._scratch = self._opened.enter_context(process_folder(self._scratch))
        for slot in self._slots:
            slot.start()

    def stop(self) -> None:
        """Make the workers give their tasks back, and wait until they have ended."""
        self._stopping.set()
        with self._closing:
            for slot in self._slots:
                slot.join()
            self._opened.close()

    def wait(self) -> None:
        """Wait until `stop` is called, or an interrupt."""
        while not self._stopping.wait(1.0):
            pass

    def _keep(self, slot: int) -> None:
        pauses = Backoff(*PAUSE_SECONDS)
        while not self._stopping.is_set():
            scratch = self._scratch / str(slot)
            make_private(scratch)
            began = time.monotonic()
            # Spawned, because a process forked from one with threads may inherit locked locks.
            process = multiprocessing.get_context("spawn").Process(
                target=_work,
                args=(self._settings, self._loader, slot, scratch, logging.root.level),
                daemon=True,
            )
            process.start()
            self._watch(process)
            shutil.rmtree(scratch, ignore_errors=True)
            if self._stopping.is_set():
                return
            if time.monotonic() - began > HEALTHY_SECONDS:
                pauses.reset()
            pause = pauses.pause()
            log.warning("worker %d ended (%s); another in %g s", slot, process.exitcode, pause)
            self._stopping.wait(pause)

    def _watch(self, process: SpawnProcess) -> None:
        while process.is_alive() and not self._stopping.is_set():
            process.join(POLL_SECONDS)
        if process.is_alive():
            process.terminate()
            process.join(STOP_SECONDS)
        if process.is_alive():
            process.kill()
        process.join()


def _work(
    settings: ServiceSettings,
    loader: Callable[[ServiceSettings], Run],
    slot: int,
    scratch: Path,
    level: int,
) -> None:
    """A worker process."""
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("latentsync.service").setLevel(logging.INFO)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    when_parent_ends(stopping.set)
    try:
        with Service.open(settings) as service:
            name = f"{socket.gethostname()}:{os.getpid()}"
            Worker(service, loader(settings), name, scratch, stopping).work()
    except LatentSyncError as error:
        log.error("worker %d can't work: %s", slot, error)
        raise SystemExit(1) from None
