"""A worker: leases one task after another, and runs each with a model that is loaded once."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self, TypeVar

from latentsync.errors import (
    BackendUnavailable,
    Cancelled,
    InputError,
    LatentSyncError,
    about,
    in_words_of,
)
from latentsync.options import Options
from latentsync.service.container import Service
from latentsync.service.files import StorageFull
from latentsync.service.guarded_http import Bounds, FetchError, FetchRefused, fetch
from latentsync.service.outages import Backoff, Outage, is_disk_full
from latentsync.service.requests import asker, options_of
from latentsync.service.settings import HOUR, ServiceSettings
from latentsync.service.storage import NotStored, write_whole
from latentsync.service.tables import Task

__all__ = ["Run", "Worker", "load"]

POLL_SECONDS = 0.5  # of the queue
BEATS_PER_LEASE = 4
PAUSE_SECONDS = (1.0, 30.0)  # between tries during an outage, first and longest
STORE_SECONDS = 600.0  # of tries to store an output, after which its run is given up
FETCH_SECONDS = 300.0  # of tries to fetch an address that doesn't answer
GIVEN_UP = "the service could not do this for a long time, for reasons of its own; submit it again"

Run = Callable[[Path, Path, Path, Options, Callable[[], bool]], None]
"""Lip-syncs: video, audio, output, options, and a function that says whether to stop."""

Result = TypeVar("Result")

log = logging.getLogger(__name__)


def load(settings: ServiceSettings) -> Run:
    """Load the model; with compiled kernels on a GPU, unless the settings say otherwise."""
    from latentsync.pipeline.lipsync import LipSync
    from latentsync.runtime.devices import choose, is_cuda

    model = partial(LipSync.load, settings.model, weights=settings.weights, device=settings.device)
    wanted = settings.compile
    on_gpu = is_cuda(choose(settings.device)[0])
    try:
        lipsync = model(compile=on_gpu if wanted is None else wanted)
    except BackendUnavailable as error:
        if wanted or not on_gpu:
            raise
        log.warning("%s; going on without", error)
        lipsync = model()

    def run(
        video: Path, audio: Path, output: Path, options: Options, cancelled: Callable[[], bool]
    ) -> None:
        named = {str(video): "video", str(audio): "audio", str(output): "the output"}
        with in_words_of(asker(named)):
            lipsync.run(video, audio, output, options=options, cancelled=cancelled)

    return run


class Worker:
    """Works until `stopping` is set, or until a task ends with `leaving` set."""

    def __init__(
        self,
        service: Service,
        run: Run,
        name: str,
        scratch: Path,
        stopping: threading.Event,
        leaving: threading.Event | None = None,
    ) -> None:
        self._service, self._run, self._name = service, run, name
        self._scratch, self._stopping = scratch, stopping
        self._leaving = leaving or stopping
        self._pauses = Backoff(*PAUSE_SECONDS)
        self._had_outage = False

    def work(self) -> None:
        """Run tasks until told to stop; during an outage, wait.

        Raises:
            Exception: a task failed unexpectedly; the process may be damaged, so end it.
        """
        while not (self._stopping.is_set() or self._leaving.is_set()):
            self._had_outage, busy = False, False
            try:
                busy = self.work_once()
            except Outage as outage:
                self._note_outage(outage)
            if self._had_outage:
                self._leaving.wait(self._pauses.pause())
            else:
                self._pauses.reset()
                if not busy:
                    self._leaving.wait(POLL_SECONDS)

    def work_once(self) -> bool:
        """Run the next task; False if there is none.

        Raises:
            Outage: the database can't be used.
            Exception: the task failed unexpectedly.
        """
        self._service = self._service.refreshed()
        settings, tasks = self._service.settings, self._service.tasks
        lease = tasks.lease(self._name, settings.lease_seconds, settings.max_lost)
        if lease is None:
            return False
        log.info("task %s: begun by %s", lease.id, self._name)
        with (
            TemporaryDirectory(dir=self._scratch) as folder,
            Heartbeat(self._service, lease) as beat,
        ):
            try:
                self._run_task(lease, Path(folder), lambda: self._stopping.is_set() or beat.lost)
            except Cancelled:
                if self._commit(lambda: tasks.release(lease)):
                    log.info("task %s: left to another worker", lease.id)
                else:
                    self._note_lost_lease(lease)
            except Exception as error:
                self._handle_error(lease, error, folder)
                if not isinstance(error, (LatentSyncError, OSError, MemoryError)):
                    raise
        return True

    def _run_task(self, lease: Task, folder: Path, cancelled: Callable[[], bool]) -> None:
        tasks, files = self._service.tasks, self._service.files
        options = options_of(lease.input, self._service.settings)
        video = self._fetch_input(lease, "video", folder, cancelled)
        audio = self._fetch_input(lease, "audio", folder, cancelled)
        output = folder / "output.mp4"
        # Until it is made, its size is estimated as that of its inputs.
        name = files.reserve_output(lease, video.stat().st_size + audio.stat().st_size).name
        delivered = False
        try:
            began = time.monotonic()
            self._run(video, audio, output, options, cancelled)
            inference_ms = round(1000 * (time.monotonic() - began))
            self._store(name, output, cancelled)
            self._commit(lambda: files.settle(name, output.stat().st_size))
            delivered = self._commit(
                lambda: tasks.finish(lease, [name], inference_ms, files.keep_until())
            )
        finally:
            if not delivered:
                with suppress(Outage):  # else it is removed when the task ends
                    files.drop([name])
        if delivered:
            log.info("task %s: completed", lease.id)
        else:
            self._note_lost_lease(lease)

    def _fetch_input(
        self, lease: Task, what: str, folder: Path, cancelled: Callable[[], bool]
    ) -> Path:
        """Copy an input from this service's storage, or fetch it from its address."""
        settings, target = self._service.settings, folder / what
        if name := lease.stored.get(what):
            files = self._service.files
            try:
                write_whole(files.storage.read(name), target)
            except NotStored as error:
                if (file := files.find(name)) and file.ready:
                    raise Outage(f"the storage has lost {name}, or is another") from error
                raise InputError(f"the {what} has expired; upload it again") from error
            return target
        bounds = Bounds(
            max_bytes=settings.max_upload_bytes, allow_private=settings.private_addresses
        )
        with about(what):
            fetch(lease.input[what], target, bounds=bounds, cancel=cancelled)
        return target

    def _store(self, name: str, output: Path, cancelled: Callable[[], bool]) -> None:
        """Put the output into the storage; during an outage, try for STORE_SECONDS."""
        end = time.monotonic() + STORE_SECONDS

        def check(outage: Outage) -> None:
            if cancelled():
                raise Cancelled("cancelled while the output waited for the storage") from outage
            if time.monotonic() > end:
                raise outage

        self._retry(lambda: self._service.files.storage.put(name, output), check)

    def _commit(self, change: Callable[[], Result]) -> Result:
        """Return the result of a change to the database; retry during an outage until stopped.

        The lease may have run out by then; the database decides whether it still counts.
        """

        def check(outage: Outage) -> None:
            if self._stopping.is_set():
                raise outage

        return self._retry(change, check)

    def _retry(self, action: Callable[[], Result], check: Callable[[Outage], None]) -> Result:
        """Return an action's result; after an outage, wait and try again unless `check` raises."""
        pauses = Backoff(*PAUSE_SECONDS)
        while True:
            try:
                return action()
            except Outage as outage:
                check(outage)
                self._note_outage(outage)
                self._stopping.wait(pauses.pause())

    def _handle_error(self, lease: Task, error: Exception, folder: str) -> None:
        """Fail a task that caused an error; give back one that didn't, for another try."""
        settings, tasks = self._service.settings, self._service.tasks
        give_up = FETCH_SECONDS if isinstance(error, FetchError) else settings.give_up_hours * HOUR
        temporary = isinstance(error, (Outage, FetchError, StorageFull)) or is_disk_full(error)
        if temporary and not isinstance(error, FetchRefused):
            log.warning("task %s: given back: %s", lease.id, error)
            self._had_outage = not isinstance(error, (FetchError, StorageFull))
            if self._commit(lambda: tasks.postpone(lease, give_up)):
                return
            reason = error.told(asker()) if isinstance(error, FetchError) else GIVEN_UP
        elif isinstance(error, LatentSyncError):
            log.warning("task %s: %s", lease.id, error)
            reason = error.told(asker())
        else:
            log.exception("task %s: failed unexpectedly", lease.id)
            if self._commit(lambda: tasks.strike(lease, settings.max_lost)):
                return
            reason = (
                f"{settings.max_lost} tries ended by {type(error).__name__}; is the clip too large?"
            )
        reason = " ".join(reason.replace(f"{folder}/", "").split())  # no path of ours
        log.warning("task %s: failed: %s", lease.id, reason)
        if not self._commit(lambda: tasks.fail(lease, reason)):
            self._note_lost_lease(lease)

    def _note_lost_lease(self, lease: Task) -> None:
        log.info("task %s: dropped, because it was taken away", lease.id)
        self._commit(lambda: self._service.tasks.outlived(lease))

    def _note_outage(self, outage: Outage) -> None:
        self._had_outage = True
        log.warning("%s is waiting: %s", self._name, outage)


class Heartbeat:
    """Extends a lease as long as its task runs; `lost` if that didn't succeed in time."""

    def __init__(self, service: Service, lease: Task) -> None:
        self._service, self._lease = service, lease
        self._seconds = service.settings.lease_seconds
        self._good_until = time.monotonic() + self._seconds
        self._taken = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    @property
    def lost(self) -> bool:
        return self._taken or time.monotonic() > self._good_until

    def _beat(self) -> None:
        while not self._over.wait(self._seconds / BEATS_PER_LEASE) and not self._taken:
            began = time.monotonic()
            try:
                self._taken = not self._service.tasks.extend(self._lease, self._seconds)
                self._good_until = began + self._seconds
            except Outage as outage:
                log.warning("task %s: no heartbeat: %s", self._lease.id, outage)
            except Exception:
                log.exception("task %s: no heartbeat", self._lease.id)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
