"""What clients are answered, as the hosted API has it: `{code, message, data}`, errors too."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Generic, Literal, TypeVar, cast

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from latentsync.errors import BackendUnavailable, InputError, LatentSyncError, OutputError
from latentsync.service.files import ShareFull, StorageFull
from latentsync.service.outages import NoRoom, Outage, is_full
from latentsync.service.requests import DESCRIPTIONS, asker
from latentsync.service.signing import BadSignature
from latentsync.service.storage import NotStored
from latentsync.service.tables import Task
from latentsync.service.tasks import Conflict, TooMany

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
    "answer_errors",
    "problem",
    "problems",
    "refusal",
    "task_data",
]

log = logging.getLogger(__name__)

RETRY_AFTER = {"Retry-After": "5"}  # s; until then a task may have ended
STATUSES: tuple[tuple[type[LatentSyncError], HTTPStatus, dict[str, str]], ...] = (
    (TooMany, HTTPStatus.TOO_MANY_REQUESTS, RETRY_AFTER),
    (Conflict, HTTPStatus.CONFLICT, {}),
    (ShareFull, HTTPStatus.INSUFFICIENT_STORAGE, {}),
    (StorageFull, HTTPStatus.INSUFFICIENT_STORAGE, RETRY_AFTER),
    (NoRoom, HTTPStatus.INSUFFICIENT_STORAGE, RETRY_AFTER),
    (Outage, HTTPStatus.SERVICE_UNAVAILABLE, RETRY_AFTER),
    (OutputError, HTTPStatus.SERVICE_UNAVAILABLE, RETRY_AFTER),  # a folder of ours
    (BadSignature, HTTPStatus.FORBIDDEN, {}),
    (NotStored, HTTPStatus.NOT_FOUND, {}),
    (InputError, HTTPStatus.BAD_REQUEST, {}),
    (BackendUnavailable, HTTPStatus.SERVICE_UNAVAILABLE, RETRY_AFTER),
    (LatentSyncError, HTTPStatus.INTERNAL_SERVER_ERROR, {}),
)  # the first that fits

OURS = {  # what is said of what is wrong with the service itself
    HTTPStatus.SERVICE_UNAVAILABLE: "the service can't do this at the moment; try again later",
    HTTPStatus.INSUFFICIENT_STORAGE: "the service has no room at the moment; try again later",
}

Data = TypeVar("Data")
Status = Literal["created", "processing", "completed", "failed", "cancelled"]


class Answer(BaseModel, Generic[Data]):
    """Of every request that succeeded."""

    code: int = 200
    message: str = "success"
    data: Data


class Urls(BaseModel):
    """Where to ask on."""

    get: str
    cancel: str


class Timings(BaseModel):
    """How long it took."""

    inference: int  # ms


class WebhookState(BaseModel):
    """How the webhook of a task fared."""

    status: str  # waiting for its first or its next try, delivered, failed
    tries: int
    error: str  # of the last try


class TaskData(BaseModel):
    """A task, as it is now."""

    id: str
    model: str
    input: dict[str, Any]
    outputs: list[str]  # addresses, signed and expiring
    urls: Urls
    has_nsfw_contents: list[bool]  # false for each output: nothing is checked
    status: Status
    created_at: str
    error: str
    timings: Timings
    webhook: WebhookState | None = None  # null: it has none


class PageData(BaseModel):
    """Some tasks, the newest first."""

    page: int
    total: int
    items: list[TaskData]


class Deleted(BaseModel):
    """How many of the tasks there were."""

    deleted_count: int


class DeletedTask(BaseModel):
    """The task that is gone."""

    id: str
    status: Literal["deleted"] = "deleted"


class Received(BaseModel):
    """What was uploaded."""

    size: int  # bytes


class Secret(BaseModel):
    """What the calls of webhooks are signed with."""

    secret: str


class Health(BaseModel):
    """The service's own state."""

    status: Literal["ok"] = "ok"
    tasks: dict[str, int]  # status -> how many tasks have it


class Upload(BaseModel):
    """How to upload."""

    method: str = "PUT"
    url: str
    headers: dict[str, str]


class Ticket(BaseModel):
    """Where to upload, and the address by which a task names the file then."""

    upload: Upload
    download_url: str


# By these names clients made from openapi.json know the answers.
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
    """Of every request that did not succeed."""

    code: int  # the HTTP status
    message: str  # one line for a person
    data: dict[str, Any] = {}  # always empty


WORDS = {  # of what pydantic says in its own
    "missing": "it is missing",
    "extra_forbidden": "this request has no such field",
    "string_pattern_mismatch": "it has another form than wanted",
    "model_attributes_type": "it must be a JSON object, sent with Content-Type: application/json",
}
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
    """What a route's `responses` has to say of these statuses, and of those that all have."""
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
    """A task as clients see it.

    Args:
        base: the service's address.
        signed: makes an address of a file's name.
        webhook: how its webhook fared, as `webhooks.state`.
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


def problem(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    line = " ".join(message.split()).encode(errors="replace").decode()  # half a pair has no UTF-8
    content = {"code": status, "message": line, "data": {}}
    return JSONResponse(content, status, headers)


def refusal(error: LatentSyncError) -> JSONResponse:
    """The answer that an error of ours becomes."""
    status, headers = next(row[1:] for row in STATUSES if isinstance(error, row[0]))
    if not isinstance(error, InputError) or isinstance(error, OutputError):
        log.warning("answered %d: %s", status, error)
    if status in OURS and not isinstance(error, ShareFull | StorageFull):
        return problem(status, OURS[status], headers)  # its text may name hosts and folders
    return problem(status, error.told(asker()), headers)


def answer_errors(app: FastAPI) -> None:
    """Let the app answer every error in the hosted API's form.

    The handlers are coroutines: Starlette would call functions in threads, also for strangers.
    """

    @app.exception_handler(LatentSyncError)
    async def ours(_: Request, error: LatentSyncError) -> JSONResponse:
        return refusal(error)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        said = WORDS.get(first["type"], first["msg"])
        if first["type"] == "json_invalid":
            where, said = "body", f"it isn't JSON, at character {where}: {first['ctx']['error']}"
        elif first["type"] == "value_error":  # by a check of ours
            said = str(first["ctx"]["error"])
        if where in DESCRIPTIONS:
            said = f"{said}; {DESCRIPTIONS[where]}"
        return problem(HTTPStatus.BAD_REQUEST, f"{where}: {said}")

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, _error: ClientDisconnect) -> JSONResponse:
        return problem(HTTPStatus.BAD_REQUEST, "the connection ended before the body did")

    @app.exception_handler(OSError)
    async def system(_: Request, error: OSError) -> JSONResponse:
        if is_full(error):
            return refusal(NoRoom(str(error)))
        log.exception("a fault of the service", exc_info=error)
        return await unforeseen(_, error)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        # Its text may hold what is no client's business; it stands in the log.
        return problem(500, f"{type(error).__name__}; this is a fault of the service")
