"""Background jobs of a server: webhook calls, and the removal of what has expired."""

import logging
import threading
import time
from collections.abc import Callable

from latentsync.service.context import ApiContext
from latentsync.service.outages import Backoff, Outage
from latentsync.service.settings import HOUR
from latentsync.service.tables import Delivery, Task
from latentsync.service.webhooks import Webhooks

__all__ = ["BackgroundJobs"]

SWEEP_POLL_SECONDS = 5.0
WEBHOOK_POLL_SECONDS = 0.5
STOP_SECONDS = 2.0  # a delivery that is cut off is tried again, by any server
MAX_CALLS = 16  # webhooks that are called at a time, of all keys
MAX_PAUSE_SECONDS = 30.0  # between tries during an outage of the database

log = logging.getLogger(__name__)


class BackgroundJobs:
    """Threads that run between `start` and `stop`."""

    def __init__(self, context: ApiContext) -> None:
        self._service = context.service
        self._webhooks = Webhooks(
            self._service.database,
            context.signer,
            context.webhook_body,
            allow_private=self._service.settings.private_addresses,
        )
        self._swept_unknown = time.monotonic()
        self._stopping = threading.Event()
        self._free = threading.Semaphore(MAX_CALLS)
        jobs = [(self._sweep, SWEEP_POLL_SECONDS), (self._call, WEBHOOK_POLL_SECONDS)]
        self._threads = [
            threading.Thread(target=self._repeat, args=job, daemon=True) for job in jobs
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(STOP_SECONDS)

    def _repeat(self, job: Callable[[], bool], seconds: float) -> None:
        """Run a job: again at once if there was something to do, else after a pause."""
        pauses = Backoff(seconds, MAX_PAUSE_SECONDS)
        while not self._stopping.is_set():
            try:
                pause = 0.0 if job() else seconds
                pauses.reset()
            except Outage as outage:
                log.warning("background jobs are waiting: %s", outage)
                pause = pauses.pause()
            except Exception:
                log.exception("background job")
                pause = pauses.pause()
            self._stopping.wait(pause)

    def _call(self) -> bool:
        """Call a due webhook in a thread; False if there was none."""
        if not self._free.acquire(timeout=WEBHOOK_POLL_SECONDS):
            return False
        claimed = None
        try:
            claimed = self._webhooks.claim()
        finally:
            if claimed is None:
                self._free.release()
        if claimed is not None:
            threading.Thread(target=self._deliver, args=claimed, daemon=True).start()
        return claimed is not None

    def _deliver(self, delivery: Delivery, task: Task) -> None:
        try:
            self._webhooks.deliver(delivery, task)
        except Outage as outage:  # it is tried again when its claim ends
            log.warning("webhook of task %s: %s", task.id, outage)
        except Exception:
            log.exception("webhook of task %s", task.id)
        finally:
            self._free.release()

    def _sweep(self) -> bool:
        """Remove expired tasks and files; False if there were none."""
        files, tasks = self._service.files, self._service.tasks
        keep = self._service.settings.keep_hours * HOUR
        files.keep_inputs()
        swept = tasks.forget(time.time() - keep) + files.sweep()
        if time.monotonic() - self._swept_unknown > HOUR:
            self._swept_unknown = time.monotonic()
            files.sweep_unknown()
        return swept > 0
