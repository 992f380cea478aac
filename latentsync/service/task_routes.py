"""The routes of tasks: submit, look, list, cancel, delete."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Header, Query
from fastapi.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from latentsync.service.answers import (
    Deleted,
    DeletedAnswer,
    DeletedTask,
    DeletedTaskAnswer,
    PageData,
    Secret,
    SecretAnswer,
    TaskAnswer,
    TasksAnswer,
    problems,
)
from latentsync.service.front import Beginner, Caller, Front, FrontOf
from latentsync.service.requests import MAX_ADDRESS, DeleteRequest, PageRequest, TaskRequest
from latentsync.service.settings import MODEL_PATH
from latentsync.service.tables import Key

__all__ = ["router"]

REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
LIMITED = (HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.INSUFFICIENT_STORAGE)
UNKNOWN = problems(HTTPStatus.NOT_FOUND)

router = APIRouter(prefix="/api/v3", tags=["tasks"], responses=problems(*REFUSED))


@router.post(f"/{MODEL_PATH}", responses=problems(*LIMITED, HTTPStatus.NOT_FOUND))
async def submit_task(
    front: FrontOf,
    key: Beginner,
    asked: TaskRequest,
    webhook: Annotated[
        str | None, Query(max_length=MAX_ADDRESS, description="Is told when the task has ended.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=200, description="The same again: the same task."),
    ] = None,
) -> TaskAnswer:
    """Let the clip speak the sound; ask for the result at `data.urls.get`."""
    task = await run_in_threadpool(front.submit, key, asked, webhook, idempotency_key)
    if asked.enable_sync_mode:
        return TaskAnswer(data=await front.ended(task))
    return TaskAnswer(data=await run_in_threadpool(front.describe, task))


@router.get("/predictions/{task_id}/result", responses=UNKNOWN)
@router.get("/predictions/{task_id}", include_in_schema=False)
def get_task(front: FrontOf, key: Caller, task_id: str) -> TaskAnswer:
    """How far a task is, and its output once it is completed."""
    task = front.service.tasks.get(key.id, task_id)
    if task is None:
        raise _unknown(task_id)
    return TaskAnswer(data=front.describe(task))


@router.post("/predictions/{task_id}/cancel", responses=UNKNOWN)
def cancel_task(front: FrontOf, key: Caller, task_id: str) -> TaskAnswer:
    """Stop a task; one that has ended stays as it is."""
    task = front.service.tasks.cancel(key.id, task_id)
    if task is None:
        raise _unknown(task_id)
    return TaskAnswer(data=front.describe(task))


@router.post("/predictions")
def list_tasks(
    front: FrontOf, key: Caller, wanted: Annotated[PageRequest | None, Body()] = None
) -> TasksAnswer:
    """Your tasks, the newest first."""
    return _page(front, key, wanted or PageRequest.model_validate({}))


@router.get("/predictions", include_in_schema=False)
def list_tasks_by_query(
    front: FrontOf, key: Caller, wanted: Annotated[PageRequest, Query()]
) -> TasksAnswer:
    return _page(front, key, wanted)


def _page(front: Front, key: Key, wanted: PageRequest) -> TasksAnswer:
    found = front.service.tasks.page(
        key.id,
        wanted.page,
        wanted.page_size,
        status=wanted.status,
        model=wanted.model,
        after=_seconds(wanted.created_after),
        before=_seconds(wanted.created_before),
    )
    items = front.describe_all(found.tasks)
    return TasksAnswer(data=PageData(page=wanted.page, total=found.total, items=items))


@router.post("/predictions/delete")
def delete_tasks(front: FrontOf, key: Caller, wanted: DeleteRequest) -> DeletedAnswer:
    """Delete tasks and their outputs; one that is worked on is stopped."""
    count = front.service.tasks.delete(key.id, wanted.ids)
    return DeletedAnswer(data=Deleted(deleted_count=count))


@router.delete("/predictions/{task_id}", responses=UNKNOWN)
def delete_task(front: FrontOf, key: Caller, task_id: str) -> DeletedTaskAnswer:
    """Delete a task and its outputs; one that is worked on is stopped."""
    if not front.service.tasks.delete(key.id, [task_id]):
        raise _unknown(task_id)
    return DeletedTaskAnswer(data=DeletedTask(id=task_id))


@router.get("/webhook/secret")
def get_webhook_secret(front: FrontOf, key: Caller) -> SecretAnswer:
    """What the calls of your webhooks are signed with."""
    return SecretAnswer(data=Secret(secret=front.signer.webhook_secret(key.id)))


@router.post("/{model:path}", include_in_schema=False)
def unknown_model(key: Caller, model: str) -> None:  # noqa: ARG001 - strangers learn nothing
    raise HTTPException(
        HTTPStatus.NOT_FOUND, f"no model {model!r} here; this service has {MODEL_PATH}"
    )


def _seconds(moment: datetime | None) -> float | None:
    return None if moment is None else moment.timestamp()


def _unknown(task_id: str) -> HTTPException:
    # Another key's task is answered like one that doesn't exist.
    return HTTPException(HTTPStatus.NOT_FOUND, f"no task {task_id!r} of this key")
