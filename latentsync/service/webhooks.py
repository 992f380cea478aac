"""Webhooks: who asked for one is told when a task ended, again and again until they listened."""

import json
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import func, or_, select, update

from latentsync.service.fetching import WEBHOOK_BOUNDS, FetchError, FetchRefused, post
from latentsync.service.signing import Signer
from latentsync.service.tables import Database, Delivery, Task

__all__ = ["MAX_TRIES", "Webhooks", "state"]

MAX_TRIES = 8
FIRST_PAUSE = 10.0  # s before the second try, doubled each time: 21 minutes before the last
AT_ONCE = 2  # deliveries of one key, and to one host, that are tried at a time
CLAIM_SECONDS = 120.0  # in which whoever took a delivery has tried it, or died

log = logging.getLogger(__name__)


def state(task: Task, delivery: Delivery | None) -> dict[str, Any] | None:
    """How the webhook of a task fared; None where it has none."""
    if task.webhook is None:
        return None
    if delivery is None:  # of a task that hasn't ended
        return {"status": "waiting", "tries": 0, "error": ""}
    status = "waiting" if delivery.next_at else "delivered" if delivery.delivered_at else "failed"
    return {"status": status, "tries": delivery.tries, "error": delivery.error}


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
        claimed = self.claim()
        if claimed is not None:
            self.deliver(*claimed)
        return claimed is not None

    def deliver(self, delivery: Delivery, task: Task) -> None:
        """Try a delivery that was claimed."""
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

    def claim(self) -> tuple[Delivery, Task] | None:
        """The delivery that has been due for longest, for this caller alone, and its task.

        Of one key, and of one host, no more than AT_ONCE are tried at a time: a receiver that
        doesn't answer holds up its own key's deliveries, or those to its own host.
        """
        now = time.time()
        due = select(Delivery.id).where(Delivery.next_at <= now)
        with self._database.reading() as session:  # most looks find nothing: no writer waits then
            if session.scalar(due.limit(1)) is None:
                return None
        with self._database.alone() as session:
            for column in (Delivery.key_id, Delivery.host):
                busy = select(column).where(Delivery.claimed_until > now, column.is_not(None))
                busy = busy.group_by(column).having(func.count() >= AT_ONCE)
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
