"""What every route needs: who asks, what they may begin, and how a task is described to them."""

import asyncio
import math
import time
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from fastapi import Depends, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from latentsync.errors import about
from latentsync.service.answers import TaskData, task_data
from latentsync.service.core import Service
from latentsync.service.fetching import check_url
from latentsync.service.files import FILES
from latentsync.service.keys import Buckets
from latentsync.service.requests import TaskRequest, options_of
from latentsync.service.settings import HOUR, MODEL_PATH
from latentsync.service.signing import Signer
from latentsync.service.tables import ENDED, Key, Task
from latentsync.service.webhooks import state

__all__ = ["Beginner", "Caller", "Front", "FrontOf"]

LOOK_EVERY = 0.2  # s, at a task whose end is waited for
MAX_LINK_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True)
class Front:
    """A service, as it faces its clients."""

    service: Service
    signer: Signer
    needs_key: bool = True
    buckets: Buckets = field(default_factory=Buckets)
    receiving: set[str] = field(default_factory=set)  # files that are being uploaded now
    name: str = field(default_factory=lambda: uuid4().hex)  # of this one among several servers

    @property
    def incoming(self) -> Path:
        """The folder of uploads that are coming in."""
        return self.service.settings.data / "incoming" / self.name

    def signed(self, name: str) -> str:
        """The address of a stored file; who has it needs no key, for `url_hours`."""
        settings = self.service.settings
        seconds = round(min(settings.url_hours * HOUR, MAX_LINK_SECONDS))
        return settings.base + self.signer.sign(FILES + name, seconds=seconds)

    def describe(self, task: Task) -> TaskData:
        return self.describe_all([task])[0]

    def describe_all(self, tasks: list[Task]) -> list[TaskData]:
        """Tasks as their owner sees them."""
        called = [task.id for task in tasks if task.webhook and task.status in ENDED]
        deliveries = self.service.tasks.deliveries(called) if called else {}
        base = self.service.settings.base
        return [
            task_data(task, base, self.signed, state(task, deliveries.get(task.id)))
            for task in tasks
        ]

    def described(self, task: Task) -> dict[str, Any]:
        """The body of a webhook."""
        data = task_data(task, self.service.settings.base, self.signed, None)
        return data.model_dump(mode="json", exclude={"webhook"})

    def submit(
        self, key: Key, asked: TaskRequest, webhook: str | None, idempotency_key: str | None
    ) -> Task:
        """A task, made or found; what can't become one is refused here, not by a worker."""
        given = asked.model_dump(mode="json", exclude_unset=True, exclude={"enable_sync_mode"})
        options_of(given, self.service.settings)
        private = self.service.settings.private_addresses
        if webhook is not None:
            with about("webhook"):
                check_url(webhook, allow_private=private)
        stored = {}
        for what, url in (("video", asked.video), ("audio", asked.audio)):
            with about(what):
                if name := self.service.files.own(key.id, url):
                    stored[what] = name
                else:
                    check_url(url, allow_private=private)
        return self.service.tasks.create(
            key,
            MODEL_PATH,
            given,
            stored=stored,
            webhook=webhook,
            idempotency_key=idempotency_key,
        )

    async def ended(self, task: Task) -> TaskData:
        """The task once it ended, or as it is after `sync_seconds`."""
        end = time.monotonic() + self.service.settings.sync_seconds
        now: Task | None = task
        while now and now.status not in ENDED and time.monotonic() < end:
            await asyncio.sleep(LOOK_EVERY)
            now = await run_in_threadpool(self.service.tasks.get, task.key_id, task.id)
        data = await run_in_threadpool(self.describe, now or task)
        if data.status in ENDED:
            return data
        # By status and these words the hosted API's client knows that it may ask again.
        said = f"Sync mode timed out. Query the result later at: {data.urls.get}"
        return data.model_copy(update={"status": "processing", "error": said})


async def front(request: Request) -> Front:
    found: Front = request.app.state.front
    return found


FrontOf = Annotated[Front, Depends(front)]
_bearer = HTTPBearer(auto_error=False, description="A key of `latentsync keys create NAME`.")


async def caller(request: Request, _: Annotated[object, Depends(_bearer)]) -> Key:
    """Whose request this is, as `gate.Gate` found out."""
    key: Key = request.state.key
    return key


Caller = Annotated[Key, Depends(caller)]


async def beginner(front: FrontOf, key: Caller) -> Key:
    """Whose request this is, where it begins something."""
    if wait := front.buckets.take(key):
        raise HTTPException(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"more than {key.per_minute} tasks and uploads in a minute; wait {wait:.1f} s",
            {"Retry-After": str(math.ceil(wait))},
        )
    return key


Beginner = Annotated[Key, Depends(beginner)]
