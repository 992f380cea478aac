"""What routes depend on: the service, the caller's key, its rate limit, and answers about tasks."""

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
from latentsync.service.container import Service
from latentsync.service.files import FILES
from latentsync.service.guarded_http import check_url
from latentsync.service.keys import RateLimiter
from latentsync.service.requests import TaskRequest, options_of
from latentsync.service.schemas import TaskData, task_data
from latentsync.service.settings import HOUR, MODEL_PATH
from latentsync.service.signing import Signer
from latentsync.service.tables import ENDED, Key, Task
from latentsync.service.webhooks import state

__all__ = ["ApiContext", "CallerKey", "Context", "RateLimitedKey"]

POLL_SECONDS = 0.2  # of a task whose end is awaited
MAX_LINK_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True)
class ApiContext:
    """A service with what its API needs in addition."""

    service: Service
    signer: Signer
    needs_key: bool = True
    rate_limiter: RateLimiter = field(default_factory=RateLimiter)
    receiving: set[str] = field(default_factory=set)  # files whose upload is in progress
    name: str = field(default_factory=lambda: uuid4().hex)  # of this server among several

    @property
    def incoming(self) -> Path:
        """The folder of uploads in progress."""
        return self.service.settings.data / "incoming" / self.name

    def signed(self, name: str) -> str:
        """The address of a stored file, which works without a key for `url_hours`."""
        settings = self.service.settings
        seconds = round(min(settings.url_hours * HOUR, MAX_LINK_SECONDS))
        return settings.base + self.signer.sign(FILES + name, seconds=seconds)

    def describe(self, task: Task) -> TaskData:
        return self.describe_all([task])[0]

    def describe_all(self, tasks: list[Task]) -> list[TaskData]:
        """Describe tasks for their owner."""
        called = [task.id for task in tasks if task.webhook and task.status in ENDED]
        deliveries = self.service.tasks.deliveries(called) if called else {}
        base = self.service.settings.base
        return [
            task_data(task, base, self.signed, state(task, deliveries.get(task.id)))
            for task in tasks
        ]

    def webhook_body(self, task: Task) -> dict[str, Any]:
        """The body of a task's webhook."""
        data = task_data(task, self.service.settings.base, self.signed, None)
        return data.model_dump(mode="json", exclude={"webhook"})

    def submit(
        self, key: Key, asked: TaskRequest, webhook: str | None, idempotency_key: str | None
    ) -> Task:
        """Create a task, or find it by its idempotency key.

        Requests that can't be fulfilled are refused here, not by a worker.
        """
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

    async def wait_for_end(self, task: Task) -> TaskData:
        """Describe the task once it has ended, or after `sync_seconds`."""
        end = time.monotonic() + self.service.settings.sync_seconds
        now: Task | None = task
        while now and now.status not in ENDED and time.monotonic() < end:
            await asyncio.sleep(POLL_SECONDS)
            now = await run_in_threadpool(self.service.tasks.get, task.key_id, task.id)
        data = await run_in_threadpool(self.describe, now or task)
        if data.status in ENDED:
            return data
        # The hosted API's client recognises this status and text, and asks again.
        error = f"Sync mode timed out. Query the result later at: {data.urls.get}"
        return data.model_copy(update={"status": "processing", "error": error})


async def api_context(request: Request) -> ApiContext:
    found: ApiContext = request.app.state.context
    return found


Context = Annotated[ApiContext, Depends(api_context)]
_bearer = HTTPBearer(auto_error=False, description="A key of `latentsync keys create NAME`.")


async def caller_key(request: Request, _: Annotated[object, Depends(_bearer)]) -> Key:
    """The key of the request, found by `middleware.Authentication`."""
    key: Key = request.state.key
    return key


CallerKey = Annotated[Key, Depends(caller_key)]


async def rate_limited_key(context: Context, key: CallerKey) -> Key:
    """The key of a request that begins something, within the key's rate limit."""
    if wait := context.rate_limiter.take(key):
        raise HTTPException(
            HTTPStatus.TOO_MANY_REQUESTS,
            f"more than {key.per_minute} tasks and uploads in a minute; wait {wait:.1f} s",
            {"Retry-After": str(math.ceil(wait))},
        )
    return key


RateLimitedKey = Annotated[Key, Depends(rate_limited_key)]
