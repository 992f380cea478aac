"""A worker: leases one task after the other, and runs each with the model it loaded once."""

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

from sqlalchemy.exc import SQLAlchemyError

from latentsync.errors import (
    BackendUnavailable,
    Cancelled,
    InputError,
    LatentSyncError,
    in_words_of,
)
from latentsync.options import Options
from latentsync.service.core import Service
from latentsync.service.fetching import Bounds, fetch
from latentsync.service.requests import asker, options_of
from latentsync.service.settings import Settings
from latentsync.service.storage import NotStored
from latentsync.service.tables import Task

__all__ = ["Run", "Worker", "load"]

POLL_SECONDS = 0.5  # from one look for a task to the next
BEATS = 4  # heartbeats in the time of a lease

Run = Callable[[Path, Path, Path, Options, Callable[[], bool]], None]
"""Video, audio, output, what to do, and whether to stop: the one thing a worker can do."""

log = logging.getLogger(__name__)


def load(settings: Settings) -> Run:
    """The real one: a model, loaded now, with kernels of its own where they are worth it."""
    from latentsync.devices import choose, is_cuda
    from latentsync.pipeline import LipSync

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
    """One that works until `stopping` is set."""

    def __init__(
        self, service: Service, run: Run, name: str, scratch: Path, stopping: threading.Event
    ) -> None:
        self._service, self._run, self._name = service, run, name
        self._scratch, self._stopping = scratch, stopping

    def work(self) -> None:
        """Work off tasks.

        Raises:
            Exception: a task failed as nobody foresaw; the process may be damaged, so end it.
        """
        while not self._stopping.is_set():
            if not self.work_once():
                self._stopping.wait(POLL_SECONDS)

    def work_once(self) -> bool:
        """Whether there was a task; it was worked on."""
        settings = self._service.settings
        lease = self._service.tasks.lease(self._name, settings.lease_seconds, settings.max_lost)
        if lease is None:
            return False
        log.info("task %s: begun by %s", lease.id, self._name)
        with TemporaryDirectory(dir=self._scratch) as folder, Pulse(self._service, lease) as pulse:
            try:
                self._do(lease, Path(folder), lambda: self._stopping.is_set() or pulse.lost)
            except Cancelled:
                if self._stopping.is_set() and self._service.tasks.release(lease):
                    log.info("task %s: left to another worker", lease.id)
                else:
                    log.info("task %s: stopped, because it was taken away", lease.id)
            except (LatentSyncError, OSError, MemoryError) as error:
                self._fail(lease, str(error) or type(error).__name__, folder)
            except SQLAlchemyError:
                raise  # not the task's fault: once its lease ran out, it is given to another
            except Exception as error:
                self._fail(lease, f"{type(error).__name__}: {error}", folder)
                raise
        return True

    def _do(self, lease: Task, folder: Path, cancelled: Callable[[], bool]) -> None:
        tasks, files = self._service.tasks, self._service.files
        options = options_of(lease.input, self._service.settings)
        video = self._fetched(lease, "video", folder, cancelled)
        audio = self._fetched(lease, "audio", folder, cancelled)
        output = folder / "output.mp4"
        began = time.monotonic()
        self._run(video, audio, output, options, cancelled)
        inference_ms = round(1000 * (time.monotonic() - began))
        kept = files.reserve_output(lease.key_id, lease.id, lease.fence, output.stat().st_size)
        delivered = False
        try:
            files.storage.put(kept.name, output)
            delivered = tasks.finish(lease, [kept.name], inference_ms, files.keep_until())
        finally:
            if not delivered:
                files.drop([kept.name])
        log.info("task %s: %s", lease.id, "completed" if delivered else "dropped: taken away")

    def _fetched(self, lease: Task, what: str, folder: Path, cancelled: Callable[[], bool]) -> Path:
        """The input, in a file; from this service's own storage, or from elsewhere."""
        settings, target = self._service.settings, folder / what
        if name := lease.stored.get(what):
            try:
                self._service.files.storage.get(name, target)
            except NotStored as error:
                raise InputError(f"the {what} has expired; upload it again") from error
            return target
        bounds = Bounds(
            max_bytes=settings.max_upload_bytes, allow_private=settings.private_addresses
        )
        fetch(lease.input[what], target, bounds=bounds, cancel=cancelled)
        return target

    def _fail(self, lease: Task, reason: str, folder: str) -> None:
        """Say why, without what only this machine knows."""
        reason = " ".join(reason.replace(f"{folder}/", "").split())
        log.warning("task %s: failed: %s", lease.id, reason)
        self._service.tasks.fail(lease, reason)


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
            except Exception:
                log.warning("task %s: no heartbeat", self._lease.id, exc_info=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
