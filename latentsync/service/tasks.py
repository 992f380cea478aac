"""Tasks in the database: created once, leased to one worker at a time, finished once."""

import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, or_, select, update
from sqlalchemy.orm import Session

from latentsync.errors import InputError
from latentsync.service.guarded_http import host_of
from latentsync.service.tables import ENDED, UNFINISHED, Database, Delivery, File, Key, Task

__all__ = ["Conflict", "Page", "Tasks", "TooMany"]

PAUSE_SECONDS = (2.0, 60.0)  # before a postponed task is leased again, shortest and longest
ID = re.compile("[0-9a-f]{32}")  # of a task; databases refuse some other text


class TooMany(InputError):
    """The key has reached its limit of unfinished tasks or tickets."""


class Conflict(InputError):
    """The Idempotency-Key was used for another request."""


@dataclass(frozen=True)
class Page:
    """A page of a key's tasks, newest first."""

    tasks: list[Task]
    total: int  # on all pages


class Tasks:
    """The tasks of a database. Methods with a `key_id` see and change only that key's tasks."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        key: Key,
        model: str,
        asked: dict[str, Any],
        *,
        stored: dict[str, str] | None = None,
        webhook: str | None = None,
        idempotency_key: str | None = None,
    ) -> Task:
        """Create a task, or return the one that the key created with this idempotency key.

        Raises:
            Conflict: the idempotency key was used for another request.
            TooMany: the key has `at_once` unfinished tasks.
        """
        with self._database.writing() as session:
            # Other requests of this key wait here until this task is counted.
            session.execute(select(Key.id).where(Key.id == key.id).with_for_update())
            if idempotency_key is not None:
                before = session.scalar(
                    select(Task).where(
                        Task.key_id == key.id, Task.idempotency_key == idempotency_key
                    )
                )
                if before:
                    if (before.model, before.input, before.webhook) != (model, asked, webhook):
                        raise Conflict(
                            f"Idempotency-Key {idempotency_key!r} made task {before.id} of another "
                            "request; give another key"
                        )
                    return before
            unfinished = session.scalar(
                select(func.count()).where(Task.key_id == key.id, Task.status.in_(UNFINISHED))
            )
            if (unfinished or 0) >= key.at_once:
                raise TooMany(
                    f"{unfinished} unfinished tasks; this key may have {key.at_once} at once: "
                    "wait for one of them"
                )
            task = Task(
                id=secrets.token_hex(16),
                key_id=key.id,
                model=model,
                input=asked,
                stored=stored or {},
                webhook=webhook,
                idempotency_key=idempotency_key,
            )
            session.add(task)
        return task

    def get(self, key_id: str, task_id: str) -> Task | None:
        if not ID.fullmatch(task_id):
            return None
        with self._database.reading() as session:
            return session.scalar(select(Task).where(Task.id == task_id, Task.key_id == key_id))

    def page(
        self,
        key_id: str,
        number: int,
        size: int,
        *,
        status: str | None = None,
        model: str | None = None,
        after: float | None = None,
        before: float | None = None,
    ) -> Page:
        """Get page `number`, from 1, of `size` tasks; `after` and `before` bound `created_at`."""
        wanted: list[ColumnElement[bool]] = [Task.key_id == key_id]
        if status is not None:
            wanted.append(Task.status == status)
        if model is not None:
            wanted.append(Task.model == model)
        if after is not None:
            wanted.append(Task.created_at >= after)
        if before is not None:
            wanted.append(Task.created_at < before)
        with self._database.reading() as session:
            total = session.scalar(select(func.count()).select_from(Task).where(*wanted)) or 0
            newest = select(Task).where(*wanted).order_by(Task.created_at.desc(), Task.id)
            tasks = session.scalars(newest.offset((number - 1) * size).limit(size)).all()
        return Page(list(tasks), total)

    def cancel(self, key_id: str, task_id: str) -> Task | None:
        """Cancel a task unless it has ended; its worker notices at its next heartbeat."""
        if not ID.fullmatch(task_id):
            return None
        with self._database.writing() as session:
            mine = (Task.id == task_id, Task.key_id == key_id)
            _end(session, *mine, Task.status.in_(UNFINISHED), status="cancelled")
            return session.scalar(select(Task).where(*mine))

    def delete(self, key_id: str, task_ids: Sequence[str]) -> int:
        """Delete tasks and let their outputs expire; returns their number."""
        mine = (Task.key_id == key_id, Task.id.in_(filter(ID.fullmatch, task_ids)))
        with self._database.writing() as session:
            return _delete(session, session.scalars(select(Task.id).where(*mine)).all())

    def forget(self, ended_before: float) -> int:
        """Delete up to 1000 tasks that ended before that time; returns their number."""
        old = select(Task.id).where(Task.status.in_(ENDED), Task.ended_at < ended_before)
        with self._database.writing() as session:
            return _delete(session, session.scalars(old.limit(1000)).all())

    def deliveries(self, task_ids: Sequence[str]) -> dict[str, Delivery]:
        """The webhook deliveries of these tasks, by task."""
        with self._database.reading() as session:
            found = session.scalars(select(Delivery).where(Delivery.task_id.in_(task_ids))).all()
        return {delivery.task_id: delivery for delivery in found}

    def counts(self) -> dict[str, int]:
        """Number of tasks by status, over all keys."""
        with self._database.reading() as session:
            rows = session.execute(select(Task.status, func.count()).group_by(Task.status)).all()
        return {status: count for status, count in rows}  # noqa: C416 - rows are no plain tuples

    # For workers. A lease is the task as `lease` returned it. It is valid until it has run out and
    # the task is leased again, which raises `fence`.

    def lease(self, worker: str, seconds: float, max_lost: int) -> Task | None:
        """Lease the next task to a worker for a number of seconds.

        Keys take turns: first the key with the fewest tasks in progress; among several, the one
        whose last turn is longest ago. A key's oldest task goes first.

        A task whose lease ran out counts as waiting; if that happened `max_lost` times, it fails.
        """
        now = time.time()
        ran_out = (Task.status == "processing") & (Task.lease_until < now)
        ready = (Task.status == "created") & (func.coalesce(Task.not_before, 0) <= now)
        with self._database.reading() as session:  # usually there is none: no writer waits
            if session.scalar(select(Task.id).where(or_(ready, ran_out)).limit(1)) is None:
                return None
        with self._database.alone() as session:
            _end(
                session,
                ran_out,
                Task.lost >= max_lost - 1,
                status="failed",
                error=f"{max_lost} workers died over this task; is the clip too large for them?",
            )
            found = session.execute(_turns(now).where(or_(ready, ran_out)).limit(1)).first()
            if found is None:
                return None
            turn = update(Key).where(Key.id == found.key_id)
            session.execute(turn.values(turn_at=now))
            return session.scalar(
                update(Task)
                .where(Task.id == found.id, or_(ready, ran_out))  # unless cancelled meanwhile
                .values(
                    status="processing",
                    worker=worker,
                    lease_until=now + seconds,
                    fence=Task.fence + 1,
                    lost=Task.lost + (Task.status == "processing").cast(Task.lost.type),
                )
                .returning(Task)
            )

    def extend(self, lease: Task, seconds: float) -> bool:
        """Extend a lease to so many seconds from now; False if it is no longer valid."""
        return self._update(lease, lease_until=time.time() + seconds)

    def finish(self, lease: Task, outputs: list[str], inference_ms: int, expires_at: float) -> bool:
        """Complete the task with these outputs; False if the lease is no longer valid."""
        with self._database.writing() as session:
            done = _end(
                session,
                *_held(lease),
                status="completed",
                outputs=outputs,
                inference_ms=inference_ms,
            )
            if done:
                files = update(File).where(File.name.in_(outputs))
                session.execute(files.values(ready=True, expires_at=expires_at))
            return done

    def fail(self, lease: Task, reason: str) -> bool:
        """Fail the task for this reason; False if the lease is no longer valid."""
        with self._database.writing() as session:
            return _end(session, *_held(lease), status="failed", error=reason)

    def release(self, lease: Task) -> bool:
        """Give the task back for another worker; False if the lease is no longer valid."""
        return self._update(lease, status="created", lease_until=None)

    def postpone(self, lease: Task, give_up_seconds: float) -> bool:
        """Give the task back because of an outage; False if that lasts too long to try again.

        The next try comes after a pause as long as the outage so far, within PAUSE_SECONDS. After
        `give_up_seconds` of outage there is none.
        """
        now = time.time()
        since = lease.troubled_at or now
        if now - since > give_up_seconds:
            return False
        pause = min(max(now - since, PAUSE_SECONDS[0]), PAUSE_SECONDS[1])
        self._update(
            lease, status="created", lease_until=None, troubled_at=since, not_before=now + pause
        )
        return True

    def strike(self, lease: Task, max_lost: int) -> bool:
        """Give the task back as if its worker had died; False if that happened too often."""
        if lease.lost + 1 >= max_lost:
            return False
        self._update(lease, status="created", lease_until=None, lost=lease.lost + 1)
        return True

    def outlived(self, lease: Task) -> None:
        """Note that the worker of a lease that ran out is alive, and didn't lose the task."""
        taken_over = (Task.id == lease.id, Task.fence > lease.fence, Task.lost > 0)
        with self._database.writing() as session:
            session.execute(update(Task).where(*taken_over).values(lost=Task.lost - 1))

    def _update(self, lease: Task, **values: Any) -> bool:  # noqa: ANN401 - columns of Task
        with self._database.writing() as session:
            changed = update(Task).where(*_held(lease)).values(**values).returning(Task.id)
            return session.scalar(changed) is not None


def _turns(now: float) -> Select[str, str]:
    """Select tasks and their keys in the order of leasing."""
    busy = (
        select(Task.key_id, func.count().label("tasks"))
        .where(Task.status == "processing", Task.lease_until >= now)
        .group_by(Task.key_id)
        .subquery()
    )
    return (
        select(Task.id, Task.key_id)
        .join(Key, Key.id == Task.key_id)
        .outerjoin(busy, busy.c.key_id == Task.key_id)
        .order_by(
            func.coalesce(busy.c.tasks, 0),
            func.coalesce(Key.turn_at, 0.0),
            Task.created_at,
        )
    )


def _held(lease: Task) -> tuple[ColumnElement[bool], ...]:
    """The conditions of a valid lease: not leased again, cancelled or deleted since."""
    return (Task.id == lease.id, Task.fence == lease.fence, Task.status == "processing")


def _end(
    session: Session,
    *which: ColumnElement[bool],
    status: str,
    **values: Any,  # noqa: ANN401 - columns of Task
) -> bool:
    """End tasks and schedule their webhooks; False if there are no such tasks."""
    now = time.time()
    ended = session.execute(
        update(Task)
        .where(*which)
        .values(status=status, ended_at=now, lease_until=None, **values)
        .returning(Task.id, Task.key_id, Task.webhook)
    ).all()
    # In the same transaction, so that a task that ended always has its delivery. Of the files that
    # its workers stored only the outputs are kept.
    session.add_all(
        Delivery(task_id=task, key_id=key, host=host_of(webhook), next_at=now)
        for task, key, webhook in ended
        if webhook
    )
    stored = update(File).where(File.task_id.in_([task for task, *_ in ended]))
    unused = stored.where(File.name.not_in(values.get("outputs", [])))
    session.execute(unused.values(expires_at=0.0))
    return bool(ended)


def _delete(session: Session, task_ids: Sequence[str]) -> int:
    session.execute(update(File).where(File.task_id.in_(task_ids)).values(expires_at=0.0))
    session.execute(delete(Delivery).where(Delivery.task_id.in_(task_ids)))
    session.execute(delete(Task).where(Task.id.in_(task_ids)))
    return len(task_ids)
