"""The bodies of answers, in the hosted API's form: `{code, message, data}`."""

from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Generic, Literal, TypeVar, cast

from pydantic import BaseModel

from latentsync.service.tables import Task

__all__ = [
    "Deleted",
    "DeletedAnswer",
    "DeletedTask",
    "DeletedTaskAnswer",
    "Health",
    "PageData",
    "Received",
    "ReceivedAnswer",
    "Secret",
    "SecretAnswer",
    "TaskAnswer",
    "TaskData",
    "TasksAnswer",
    "Ticket",
    "TicketAnswer",
    "Upload",
    "problems",
    "task_data",
]

Data = TypeVar("Data")
Status = Literal["created", "processing", "completed", "failed", "cancelled"]


class Answer(BaseModel, Generic[Data]):
    """The answer to a request that succeeded."""

    code: int = 200
    message: str = "success"
    data: Data


class Urls(BaseModel):
    """Addresses for further requests."""

    get: str
    cancel: str


class Timings(BaseModel):
    """Durations."""

    inference: int  # ms


class WebhookState(BaseModel):
    """State of a task's webhook."""

    status: str  # waiting (for its first or next try), delivered, failed
    tries: int
    error: str  # of the last try


class TaskData(BaseModel):
    """A task."""

    id: str
    model: str
    input: dict[str, Any]
    outputs: list[str]  # addresses, signed and expiring
    urls: Urls
    has_nsfw_contents: list[bool]  # always false: nothing is checked
    status: Status
    created_at: str
    error: str
    timings: Timings
    webhook: WebhookState | None = None  # null: the task has none


class PageData(BaseModel):
    """A page of tasks, newest first."""

    page: int
    total: int
    items: list[TaskData]


class Deleted(BaseModel):
    """Number of tasks deleted."""

    deleted_count: int


class DeletedTask(BaseModel):
    """A deleted task."""

    id: str
    status: Literal["deleted"] = "deleted"


class Received(BaseModel):
    """An uploaded file."""

    size: int  # bytes


class Secret(BaseModel):
    """The secret that webhook calls are signed with."""

    secret: str


class Health(BaseModel):
    """State of the service."""

    status: Literal["ok"] = "ok"
    tasks: dict[str, int]  # status -> how many tasks have it


class Upload(BaseModel):
    """The request that uploads a file."""

    method: str = "PUT"
    url: str
    headers: dict[str, str]


class Ticket(BaseModel):
    """Permission to upload a file, and its address for tasks."""

    upload: Upload
    download_url: str


# Clients generated from openapi.json know the answers by these names.
class TaskAnswer(Answer[TaskData]):
    """A task."""


class TasksAnswer(Answer[PageData]):
    """Tasks."""


class DeletedAnswer(Answer[Deleted]):
    """Tasks were deleted."""


class DeletedTaskAnswer(Answer[DeletedTask]):
    """A task was deleted."""


class TicketAnswer(Answer[Ticket]):
    """A file may be uploaded."""


class ReceivedAnswer(Answer[Received]):
    """A file was uploaded."""


class SecretAnswer(Answer[Secret]):
    """The secret of webhooks."""


class Problem(BaseModel):
    """The answer to a request that failed."""

    code: int  # the HTTP status
    message: str  # one line, for people
    data: dict[str, Any] = {}  # always empty


MEANINGS = {
    HTTPStatus.BAD_REQUEST: "The request can't be fulfilled; the message names the field.",
    HTTPStatus.UNAUTHORIZED: "No valid key.",
    HTTPStatus.FORBIDDEN: "The address is not signed for this, or has ended.",
    HTTPStatus.NOT_FOUND: "There is no such thing, or it belongs to another key.",
    HTTPStatus.CONFLICT: "Done before, for another request.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is too large.",
    HTTPStatus.TOO_MANY_REQUESTS: "More than the key may begin; Retry-After says when to ask.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "A fault of the service.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Not now; Retry-After says when to ask again.",
    HTTPStatus.INSUFFICIENT_STORAGE: "There is no room for the file.",
}
WAIT = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}


def problems(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """Describe these statuses, and those of every route, for a route's `responses`."""
    always = (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE)
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, *always}):
        found[int(status)] = {"model": Problem, "description": MEANINGS[status]}
        if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            found[int(status)]["headers"] = WAIT
    return found


def task_data(
    task: Task, base: str, signed: Callable[[str], str], webhook: dict[str, Any] | None
) -> TaskData:
    """Describe a task for its clients.

    Args:
        base: the service's address.
        signed: turns a file's name into a signed address.
        webhook: state of its webhook, by `webhooks.state`.
    """
    address = f"{base}/api/v3/predictions/{task.id}"
    return TaskData(
        id=task.id,
        model=task.model,
        input=task.input,
        outputs=[signed(name) for name in task.outputs],
        urls=Urls(get=f"{address}/result", cancel=f"{address}/cancel"),
        has_nsfw_contents=[False] * len(task.outputs),
        status=cast(Status, task.status),
        created_at=datetime.fromtimestamp(task.created_at, UTC).isoformat().replace("+00:00", "Z"),
        error=task.error,
        timings=Timings(inference=task.inference_ms),
        webhook=WebhookState(**webhook) if webhook else None,
    )
