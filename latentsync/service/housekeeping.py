"""What a service does beside answering: it calls webhooks, and removes what has expired."""

import logging
import threading
import time
from collections.abc import Callable

from latentsync.service.front import Front
from latentsync.service.settings import HOUR
from latentsync.service.webhooks import Webhooks

__all__ = ["Housekeeping"]

SWEEP_SECONDS = 5.0
CALL_SECONDS = 0.5  # from one look for due webhooks to the next
STOP_SECONDS = 2.0  # to end in; a delivery that is cut off is tried again, by whoever is next
CALLERS = 4  # so that one receiver who is slow to answer doesn't hold up the others

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
        jobs = [
            (self._sweep, SWEEP_SECONDS),
            *[(self._webhooks.deliver_one, CALL_SECONDS)] * CALLERS,
        ]
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
        while not self._stopping.is_set():
            try:
                more = job()
            except Exception:
                log.exception("housekeeping")
                more = False
            if not more:
                self._stopping.wait(seconds)

    def _sweep(self) -> bool:
        files, tasks = self._service.files, self._service.tasks
        keep = self._service.settings.keep_hours * HOUR
        swept = tasks.forget(time.time() - keep) + files.sweep()
        if time.monotonic() - self._swept_unknown > HOUR:
            self._swept_unknown = time.monotonic()
            files.sweep_unknown()
        return swept > 0
