"""What a service does beside answering: it calls webhooks, and removes what has expired."""

import logging
import threading
import time
from collections.abc import Callable

from latentsync.service.front import Front
from latentsync.service.outages import Backoff, Outage
from latentsync.service.settings import HOUR
from latentsync.service.tables import Delivery, Task
from latentsync.service.webhooks import Webhooks

__all__ = ["Housekeeping"]

SWEEP_SECONDS = 5.0
CALL_SECONDS = 0.5  # from one look for due webhooks to the next
STOP_SECONDS = 2.0  # to end in; a delivery that is cut off is tried again, by whoever is next
CALLERS = 16  # webhooks that are called at a time, of all keys
OUTAGE_SECONDS = 30.0  # from one try to the next at most, while the database can't be used

log = logging.getLogger(__name__)


class Housekeeping:
    """Threads, between `start` and `stop`."""

    def __init__(self, front: Front) -> None:
        self._service = front.service
        self._webhooks = Webhooks(
            self._service.database,
            front.signer,
            front.described,
            allow_private=self._service.settings.private_addresses,
        )
        self._swept_unknown = time.monotonic()
        self._stopping = threading.Event()
        self._free = threading.Semaphore(CALLERS)
        jobs = [(self._sweep, SWEEP_SECONDS), (self._call, CALL_SECONDS)]
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
        """Do it again at once where there was something to do, and else after a while."""
        pauses = Backoff(seconds, OUTAGE_SECONDS)
        while not self._stopping.is_set():
            try:
                pause = 0.0 if job() else seconds
                pauses.reset()
            except Outage as outage:
                log.warning("housekeeping is waiting: %s", outage)
                pause = pauses.pause()
            except Exception:
                log.exception("housekeeping")
                pause = pauses.pause()
            self._stopping.wait(pause)

    def _call(self) -> bool:
        """Whether a webhook was due; a thread of its own calls it."""
        if not self._free.acquire(timeout=CALL_SECONDS):
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
        except Outage as outage:  # it is tried again when nobody has it any more
            log.warning("webhook of task %s: %s", task.id, outage)
        except Exception:
            log.exception("webhook of task %s", task.id)
        finally:
            self._free.release()

    def _sweep(self) -> bool:
        files, tasks = self._service.files, self._service.tasks
        keep = self._service.settings.keep_hours * HOUR
        files.keep_inputs()
        swept = tasks.forget(time.time() - keep) + files.sweep()
        if time.monotonic() - self._swept_unknown > HOUR:
            self._swept_unknown = time.monotonic()
            files.sweep_unknown()
        return swept > 0
