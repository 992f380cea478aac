"""Tasks as rows: made once, leased to one worker at a time, finished once."""

import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, delete, func, or_, select, update
from sqlalchemy.orm import Session

from latentsync.errors import InputError
from latentsync.service.fetching import host_of
from latentsync.service.tables import ENDED, UNFINISHED, Database, Delivery, File, Key, Task

__all__ = ["Conflict", "Page", "Tasks", "TooMany"]

PAUSES = (2.0, 60.0)  # s before a task that was given back for trouble is taken again
ID = re.compile("[0-9a-f]{32}")  # of a task; a database refuses some of what isn't one


class TooMany(InputError):
    """The key has as many unfinished tasks as it may."""


class Conflict(InputError):
    """The Idempotency-Key was used for another request."""


@dataclass(frozen=True)
class Page:
    """Some of a key's tasks, the newest first."""

    tasks: list[Task]
    total: int  # on all pages


class Tasks:
    """The tasks of a database. What has a `key_id` sees and changes that key's alone."""

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
        """A new task; where the key gave this idempotency key before, the one made then.

        Raises:
            Conflict: it gave it with another request.
            TooMany: it has `at_once` unfinished tasks.
        """
        with self._database.writing() as session:
            # Whoever else makes a task with this key waits here until this one is counted.
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
        """Page `number`, from 1, of `size` tasks each; `after` and `before` bound `created_at`."""
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
        """The task, cancelled unless it had ended; its worker finds out at its next heartbeat."""
        if not ID.fullmatch(task_id):
            return None
        with self._database.writing() as session:
            mine = (Task.id == task_id, Task.key_id == key_id)
            _end(session, *mine, Task.status.in_(UNFINISHED), status="cancelled")
            return session.scalar(select(Task).where(*mine))

    def delete(self, key_id: str, task_ids: Sequence[str]) -> int:
        """How many of these tasks there were; they are gone, and their outputs are expired."""
        mine = (Task.key_id == key_id, Task.id.in_(filter(ID.fullmatch, task_ids)))
        with self._database.writing() as session:
            return _delete(session, session.scalars(select(Task.id).where(*mine)).all())

    def forget(self, ended_before: float) -> int:
        """Delete the tasks that ended before that time; how many these were."""
        old = select(Task.id).where(Task.status.in_(ENDED), Task.ended_at < ended_before)
        with self._database.writing() as session:
            return _delete(session, session.scalars(old.limit(1000)).all())

    def deliveries(self, task_ids: Sequence[str]) -> dict[str, Delivery]:
        """How the webhooks of these tasks fare, by task."""
        with self._database.reading() as session:
            found = session.scalars(select(Delivery).where(Delivery.task_id.in_(task_ids))).all()
        return {delivery.task_id: delivery for delivery in found}

    def counts(self) -> dict[str, int]:
        """How many tasks of all keys are created, processing, ..."""
        with self._database.reading() as session:
            rows = session.execute(select(Task.status, func.count()).group_by(Task.status)).all()
        return {status: count for status, count in rows}  # noqa: C416 - rows are no plain tuples

    # What workers do. A lease is the task as `lease` gave it; it is good until it runs out and
    # the task is given to another worker, which raises `fence`.

    def lease(self, worker: str, seconds: float, max_lost: int) -> Task | None:
        """The task whose turn it is, for this worker alone, for so many seconds.

        Keys take turns: the one of whose tasks fewest are worked on goes first; of several, the
        one that had its last turn longest ago. Of one key's tasks the oldest goes first.

        A task that nobody heard of until its lease ran out counts as waiting; where that happened
        `max_lost` times, it has failed.
        """
        now = time.time()
        ran_out = (Task.status == "processing") & (Task.lease_until < now)
        ready = (Task.status == "created") & (func.coalesce(Task.not_before, 0) <= now)
        with self._database.reading() as session:  # most looks find nothing: no writer waits then
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
        """Whether the lease was still good; then it is, for so many seconds from now."""
        with self._database.writing() as session:
            held = session.execute(
                update(Task)
                .where(*_held(lease))
                .values(lease_until=time.time() + seconds)
                .returning(Task.id)
            )
            return held.first() is not None

    def finish(self, lease: Task, outputs: list[str], inference_ms: int, expires_at: float) -> bool:
        """Whether the lease was still good; then the task is completed, with these outputs."""
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
        """Whether the lease was still good; then the task has failed, for this reason."""
        with self._database.writing() as session:
            return _end(session, *_held(lease), status="failed", error=reason)

    def release(self, lease: Task) -> bool:
        """Whether the lease was still good; then the task waits for another worker."""
        return self._give_back(lease)

    def postpone(self, lease: Task, give_up_seconds: float) -> bool:
        """Give the task back for what isn't its fault; whether it is to be tried again.

        It waits as long as the trouble has lasted, from PAUSES[0] to PAUSES[1]; it is not tried
        again where that is more than `give_up_seconds`.
        """
        now = time.time()
        since = lease.troubled_at or now
        if now - since > give_up_seconds:
            return False
        pause = min(max(now - since, PAUSES[0]), PAUSES[1])
        self._give_back(lease, troubled_at=since, not_before=now + pause)
        return True

    def strike(self, lease: Task, max_lost: int) -> bool:
        """Give the task back as one whose worker died; False where that happened too often."""
        if lease.lost + 1 >= max_lost:
            return False
        self._give_back(lease, lost=lease.lost + 1)
        return True

    def outlived(self, lease: Task) -> None:
        """Note that the worker of a lease that ran out is alive: it only couldn't say so."""
        taken_over = (Task.id == lease.id, Task.fence > lease.fence, Task.lost > 0)
        with self._database.writing() as session:
            session.execute(update(Task).where(*taken_over).values(lost=Task.lost - 1))

    def _give_back(self, lease: Task, **values: Any) -> bool:  # noqa: ANN401 - columns of Task
        with self._database.writing() as session:
            held = session.execute(
                update(Task)
                .where(*_held(lease))
                .values(status="created", lease_until=None, **values)
                .returning(Task.id)
            )
            return held.first() is not None


def _turns(now: float) -> Select[str, str]:
    """Tasks and their keys, in the order in which workers take them."""
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
    """That nobody else was given the task since, and nobody cancelled or deleted it."""
    return (Task.id == lease.id, Task.fence == lease.fence, Task.status == "processing")


def _end(
    session: Session,
    *which: ColumnElement[bool],
    status: str,
    **values: Any,  # noqa: ANN401 - columns of Task
) -> bool:
    """Whether there were such tasks; they have ended, and their webhooks will be called."""
    now = time.time()
    ended = session.execute(
        update(Task)
        .where(*which)
        .values(status=status, ended_at=now, lease_until=None, **values)
        .returning(Task.id, Task.key_id, Task.webhook)
    ).all()
    # In the same transaction: a task that ended has its delivery, whoever dies when, and of what
    # its workers stored only what counts is kept.
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
