"""Webhooks: called when a task has ended, and again until they answer."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import func, or_, select, update

from latentsync.service.guarded_http import WEBHOOK_BOUNDS, FetchError, FetchRefused, post
from latentsync.service.signing import Signer
from latentsync.service.tables import Database, Delivery, Task

__all__ = ["MAX_TRIES", "Webhooks", "state"]

MAX_TRIES = 8
FIRST_PAUSE_SECONDS = 10.0  # before the second try, doubled each time: 21 minutes before the last
MAX_CONCURRENT = 2  # deliveries of one key, and to one host
CLAIM_SECONDS = 120.0  # of a delivery, after which another caller may try it

log = logging.getLogger(__name__)


def state(task: Task, delivery: Delivery | None) -> dict[str, Any] | None:
    """State of a task's webhook; None if it has none."""
    if task.webhook is None:
        return None
    if delivery is None:  # of a task that hasn't ended
        return {"status": "waiting", "tries": 0, "error": ""}
    status = "waiting" if delivery.next_at else "delivered" if delivery.delivered_at else "failed"
    return {"status": status, "tries": delivery.tries, "error": delivery.error}


class Webhooks:
    """The webhook deliveries of a database; `describe` returns the body for a task."""

    def __init__(
        self,
        database: Database,
        signer: Signer,
        describe: Callable[[Task], dict[str, object]],
        *,
        allow_private: bool = False,
        first_pause: float = FIRST_PAUSE_SECONDS,
    ) -> None:
        self._database, self._signer, self._describe = database, signer, describe
        self._bounds = replace(WEBHOOK_BOUNDS, allow_private=allow_private)
        self._first_pause = first_pause

    def deliver(self, delivery: Delivery, task: Task) -> None:
        """Try a delivery that was claimed."""
        body = json.dumps(self._describe(task)).encode()
        # All tries of a delivery have one id, by which a receiver recognises repetitions.
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

    def claim(self) -> tuple[Delivery, Task] | None:
        """Claim the delivery that has been due for longest; returns it and its task.

        At most MAX_CONCURRENT of one key, and to one host, are tried at a time, so that a receiver
        that doesn't answer holds up only deliveries of its key, or to its host.
        """
        now = time.time()
        due = select(Delivery.id).where(Delivery.next_at <= now)
        with self._database.reading() as session:  # usually there is none: no writer waits
            if session.scalar(due.limit(1)) is None:
                return None
        with self._database.alone() as session:
            for column in (Delivery.key_id, Delivery.host):
                busy = select(column).where(Delivery.claimed_until > now, column.is_not(None))
                busy = busy.group_by(column).having(func.count() >= MAX_CONCURRENT)
                held_up = session.scalars(busy).all()
                due = due.where(or_(column.is_(None), column.not_in(held_up)))
            found = session.scalar(due.order_by(Delivery.next_at).limit(1))
            delivery = session.scalar(
                update(Delivery)
                .where(Delivery.id == found)
                .values(
                    next_at=now + CLAIM_SECONDS,
                    claimed_until=now + CLAIM_SECONDS,
                    tries=Delivery.tries + 1,
                )
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
                    claimed_until=None,
                    delivered_at=None if error else now,
                    next_at=now + pause if error and not last else None,
                )
            )
