"""Webhooks: who asked for one is told when a task ended, again and again until they listened."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace

from sqlalchemy import select, update

from latentsync.service.fetching import WEBHOOK_BOUNDS, FetchError, FetchRefused, post
from latentsync.service.signing import Signer
from latentsync.service.tables import Database, Delivery, Task

__all__ = ["MAX_TRIES", "Webhooks"]

MAX_TRIES = 8
FIRST_PAUSE = 10.0  # s before the second try, doubled each time: 21 minutes before the last
CLAIM_SECONDS = 120.0  # in which whoever took a delivery has tried it, or died

log = logging.getLogger(__name__)


class Webhooks:
    """The deliveries of a database; `describe` makes the body of a task."""

    def __init__(
        self,
        database: Database,
        signer: Signer,
        describe: Callable[[Task], dict[str, object]],
        *,
        allow_private: bool = False,
        first_pause: float = FIRST_PAUSE,
    ) -> None:
        self._database, self._signer, self._describe = database, signer, describe
        self._bounds = replace(WEBHOOK_BOUNDS, allow_private=allow_private)
        self._first_pause = first_pause

    def deliver_one(self) -> bool:
        """Whether a delivery was due; it was tried, by this caller alone."""
        claimed = self._claim()
        if claimed is None:
            return False
        delivery, task = claimed
        body = json.dumps(self._describe(task)).encode()
        # One identity for all tries of a delivery: by it a receiver knows what it has already had.
        headers = {
            "Content-Type": "application/json",
            **self._signer.webhook_headers(task.key_id, message_id=delivery.id, body=body),
        }
        try:
            status = post(task.webhook or "", body, headers=headers, bounds=self._bounds)
            error = "" if 200 <= status < 300 else f"HTTP {status}"
            last = delivery.tries >= MAX_TRIES
        except FetchError as failure:
            error = str(failure)
            last = delivery.tries >= MAX_TRIES or isinstance(failure, FetchRefused)
        self._note(delivery, error, last)
        return True

    def _claim(self) -> tuple[Delivery, Task] | None:
        now = time.time()
        due = (
            select(Delivery.id)
            .where(Delivery.next_at <= now)
            .order_by(Delivery.next_at)
            .limit(1)
            .with_for_update(skip_locked=True)
        )
        with self._database.writing() as session:
            delivery = session.scalar(
                update(Delivery)
                .where(Delivery.id == due.scalar_subquery())
                .values(next_at=now + CLAIM_SECONDS, tries=Delivery.tries + 1)
                .returning(Delivery)
            )
            if delivery is None:
                return None
            return delivery, session.get_one(Task, delivery.task_id)

    def _note(self, delivery: Delivery, error: str, last: bool) -> None:
        now = time.time()
        pause = self._first_pause * 2 ** (delivery.tries - 1)
        if error:
            log.warning("webhook of task %s, try %d: %s", delivery.task_id, delivery.tries, error)
        with self._database.writing() as session:
            session.execute(
                update(Delivery)
                .where(Delivery.id == delivery.id)
                .values(
                    error=error,
                    delivered_at=None if error else now,
                    next_at=now + pause if error and not last else None,
                )
            )
