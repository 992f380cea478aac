"""A worker: leases one task after the other, and runs each with the model it loaded once."""

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
from latentsync.service.core import Service
from latentsync.service.fetching import Bounds, FetchError, FetchRefused, fetch
from latentsync.service.files import StorageFull
from latentsync.service.outages import Backoff, Outage, is_full
from latentsync.service.requests import asker, options_of
from latentsync.service.settings import HOUR, ServiceSettings
from latentsync.service.storage import NotStored
from latentsync.service.tables import Task

__all__ = ["Run", "Worker", "load"]

POLL_SECONDS = 0.5  # from one look for a task to the next
BEATS = 4  # heartbeats in the time of a lease
TROUBLE_PAUSES = (1.0, 30.0)  # s from one try to the next in an outage
STORE_SECONDS = 600.0  # in which an output is tried to be stored, before its run is given up
FETCH_SECONDS = 300.0  # in which an address that doesn't answer is asked again
GIVEN_UP = "the service could not do this for a long time, for reasons of its own; submit it again"

Run = Callable[[Path, Path, Path, Options, Callable[[], bool]], None]
"""Video, audio, output, what to do, and whether to stop: the one thing a worker can do."""

Settled = TypeVar("Settled")

log = logging.getLogger(__name__)


def load(settings: ServiceSettings) -> Run:
    """The real one: a model, loaded now, with kernels of its own where they are worth it."""
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
    """One that works until `stopping` is set, or, after the task at hand, `leaving`."""

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
        self._pauses = Backoff(*TROUBLE_PAUSES)
        self._troubled = False

    def work(self) -> None:
        """Work off tasks; an outage is waited for.

        Raises:
            Exception: a task ended as nobody foresaw; the process may be damaged, so end it.
        """
        while not (self._stopping.is_set() or self._leaving.is_set()):
            self._troubled, busy = False, False
            try:
                busy = self.work_once()
            except Outage as outage:
                self._note(outage)
            if self._troubled:
                self._leaving.wait(self._pauses.pause())
            else:
                self._pauses.reset()
                if not busy:
                    self._leaving.wait(POLL_SECONDS)

    def work_once(self) -> bool:
        """Whether there was a task; it was worked on.

        Raises:
            Outage: the database can't be asked.
            Exception: the task ended as nobody foresaw.
        """
        self._service = self._service.agreeing()
        settings, tasks = self._service.settings, self._service.tasks
        lease = tasks.lease(self._name, settings.lease_seconds, settings.max_lost)
        if lease is None:
            return False
        log.info("task %s: begun by %s", lease.id, self._name)
        with TemporaryDirectory(dir=self._scratch) as folder, Pulse(self._service, lease) as pulse:
            try:
                self._do(lease, Path(folder), lambda: self._stopping.is_set() or pulse.lost)
            except Cancelled:
                if self._settled(lambda: tasks.release(lease)):
                    log.info("task %s: left to another worker", lease.id)
                else:
                    self._taken_away(lease)
            except Exception as error:
                self._end(lease, error, folder)
                if not isinstance(error, (LatentSyncError, OSError, MemoryError)):
                    raise
        return True

    def _do(self, lease: Task, folder: Path, cancelled: Callable[[], bool]) -> None:
        tasks, files = self._service.tasks, self._service.files
        options = options_of(lease.input, self._service.settings)
        video = self._fetched(lease, "video", folder, cancelled)
        audio = self._fetched(lease, "audio", folder, cancelled)
        output = folder / "output.mp4"
        # As large as its inputs, as far as anybody knows before it is made.
        kept = files.reserve_output(lease, video.stat().st_size + audio.stat().st_size).name
        delivered = False
        try:
            began = time.monotonic()
            self._run(video, audio, output, options, cancelled)
            inference_ms = round(1000 * (time.monotonic() - began))
            self._store(kept, output, cancelled)
            self._settled(lambda: files.settle(kept, output.stat().st_size))
            delivered = self._settled(
                lambda: tasks.finish(lease, [kept], inference_ms, files.keep_until())
            )
        finally:
            if not delivered:
                with suppress(Outage):  # it goes when the task ends
                    files.drop([kept])
        if delivered:
            log.info("task %s: completed", lease.id)
        else:
            self._taken_away(lease)

    def _fetched(self, lease: Task, what: str, folder: Path, cancelled: Callable[[], bool]) -> Path:
        """The input, in a file; from this service's own storage, or from elsewhere."""
        settings, target = self._service.settings, folder / what
        if name := lease.stored.get(what):
            files = self._service.files
            try:
                files.storage.get(name, target)
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
        """Put the output into the storage; where that can't be now, try again for a while."""
        pauses, end = Backoff(*TROUBLE_PAUSES), time.monotonic() + STORE_SECONDS
        while True:
            try:
                return self._service.files.storage.put(name, output)
            except Outage as outage:
                if cancelled():
                    raise Cancelled("cancelled while the output waited for the storage") from outage
                if time.monotonic() > end:
                    raise
                self._note(outage)
                self._stopping.wait(pauses.pause())

    def _settled(self, change: Callable[[], Settled]) -> Settled:
        """What `change` to the database returns, once it can be made; raises Outage on a stop.

        The lease may have run out by then: whether it still counts is for the database to say.
        """
        pauses = Backoff(*TROUBLE_PAUSES)
        while True:
            try:
                return change()
            except Outage as outage:
                if self._stopping.is_set():
                    raise
                self._note(outage)
                self._stopping.wait(pauses.pause())

    def _end(self, lease: Task, error: Exception, folder: str) -> None:
        """Fail a task for its own fault; for any other, give it back to be tried again."""
        settings, tasks = self._service.settings, self._service.tasks
        give_up = FETCH_SECONDS if isinstance(error, FetchError) else settings.give_up_hours * HOUR
        passing = isinstance(error, (Outage, FetchError, StorageFull)) or is_full(error)
        if passing and not isinstance(error, FetchRefused):
            log.warning("task %s: given back: %s", lease.id, error)
            self._troubled = not isinstance(error, (FetchError, StorageFull))
            if self._settled(lambda: tasks.postpone(lease, give_up)):
                return
            reason = error.told(asker()) if isinstance(error, FetchError) else GIVEN_UP
        elif isinstance(error, LatentSyncError):
            log.warning("task %s: %s", lease.id, error)
            reason = error.told(asker())
        else:
            log.exception("task %s: ended as nobody foresaw", lease.id)
            if self._settled(lambda: tasks.strike(lease, settings.max_lost)):
                return
            reason = (
                f"{settings.max_lost} tries ended by {type(error).__name__}; is the clip too large?"
            )
        reason = " ".join(reason.replace(f"{folder}/", "").split())  # without what is ours alone
        log.warning("task %s: failed: %s", lease.id, reason)
        if not self._settled(lambda: tasks.fail(lease, reason)):
            self._taken_away(lease)

    def _taken_away(self, lease: Task) -> None:
        log.info("task %s: dropped, because it was taken away", lease.id)
        self._settled(lambda: self._service.tasks.outlived(lease))

    def _note(self, outage: Outage) -> None:
        self._troubled = True
        log.warning("%s is waiting: %s", self._name, outage)


class Pulse:
    """Extends a lease as long as its task is worked on; `lost` once that didn't succeed in time."""

    def __init__(self, service: Service, lease: Task) -> None:
        self._service, self._lease = service, lease
        self._seconds = service.settings.lease_seconds
        self._good_until = time.monotonic() + self._seconds
        self._taken = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    @property
    def lost(self) -> bool:
        return self._taken or time.monotonic() > self._good_until

    def _beat(self) -> None:
        while not self._over.wait(self._seconds / BEATS) and not self._taken:
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
