"""The routes of tasks: submit, get, list, cancel, delete."""

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Header, Query
from fastapi.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from latentsync.service.context import ApiContext, CallerKey, Context, RateLimitedKey
from latentsync.service.requests import MAX_ADDRESS, DeleteRequest, PageRequest, TaskRequest
from latentsync.service.schemas import (
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
from latentsync.service.settings import MODEL_PATH
from latentsync.service.tables import Key

__all__ = ["router"]

REFUSED = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
LIMITED = (HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.INSUFFICIENT_STORAGE)
UNKNOWN = problems(HTTPStatus.NOT_FOUND)

router = APIRouter(prefix="/api/v3", tags=["tasks"], responses=problems(*REFUSED))


@router.post(f"/{MODEL_PATH}", responses=problems(*LIMITED, HTTPStatus.NOT_FOUND))
async def submit_task(
    context: Context,
    key: RateLimitedKey,
    asked: TaskRequest,
    webhook: Annotated[
        str | None, Query(max_length=MAX_ADDRESS, description="Called when the task has ended.")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        Header(min_length=1, max_length=200, description="Used again, it finds the same task."),
    ] = None,
) -> TaskAnswer:
    """Submit a clip and a voice; the result is at `data.urls.get`."""
    task = await run_in_threadpool(context.submit, key, asked, webhook, idempotency_key)
    if asked.enable_sync_mode:
        return TaskAnswer(data=await context.wait_for_end(task))
    return TaskAnswer(data=await run_in_threadpool(context.describe, task))


@router.get("/predictions/{task_id}/result", responses=UNKNOWN)
@router.get("/predictions/{task_id}", include_in_schema=False)
def get_task(context: Context, key: CallerKey, task_id: str) -> TaskAnswer:
    """Status of a task, and its outputs once it is completed."""
    task = context.service.tasks.get(key.id, task_id)
    if task is None:
        raise _unknown(task_id)
    return TaskAnswer(data=context.describe(task))


@router.post("/predictions/{task_id}/cancel", responses=UNKNOWN)
def cancel_task(context: Context, key: CallerKey, task_id: str) -> TaskAnswer:
    """Cancel a task; one that has ended stays as it is."""
    task = context.service.tasks.cancel(key.id, task_id)
    if task is None:
        raise _unknown(task_id)
    return TaskAnswer(data=context.describe(task))


@router.post("/predictions")
def list_tasks(
    context: Context, key: CallerKey, wanted: Annotated[PageRequest | None, Body()] = None
) -> TasksAnswer:
    """List your tasks, newest first."""
    return _page(context, key, wanted or PageRequest.model_validate({}))


@router.get("/predictions", include_in_schema=False)
def list_tasks_by_query(
    context: Context, key: CallerKey, wanted: Annotated[PageRequest, Query()]
) -> TasksAnswer:
    return _page(context, key, wanted)


def _page(context: ApiContext, key: Key, wanted: PageRequest) -> TasksAnswer:
    after, before = wanted.created_after, wanted.created_before
    found = context.service.tasks.page(
        key.id,
        wanted.page,
        wanted.page_size,
        status=wanted.status,
        model=wanted.model,
        after=after.timestamp() if after else None,
        before=before.timestamp() if before else None,
    )
    items = context.describe_all(found.tasks)
    return TasksAnswer(data=PageData(page=wanted.page, total=found.total, items=items))


@router.post("/predictions/delete")
def delete_tasks(context: Context, key: CallerKey, wanted: DeleteRequest) -> DeletedAnswer:
    """Delete tasks and their outputs; tasks in progress are stopped."""
    count = context.service.tasks.delete(key.id, wanted.ids)
    return DeletedAnswer(data=Deleted(deleted_count=count))


@router.delete("/predictions/{task_id}", responses=UNKNOWN)
def delete_task(context: Context, key: CallerKey, task_id: str) -> DeletedTaskAnswer:
    """Delete a task and its outputs; a task in progress is stopped."""
    if not context.service.tasks.delete(key.id, [task_id]):
        raise _unknown(task_id)
    return DeletedTaskAnswer(data=DeletedTask(id=task_id))


@router.get("/webhook/secret")
def get_webhook_secret(context: Context, key: CallerKey) -> SecretAnswer:
    """The secret that your webhook calls are signed with."""
    return SecretAnswer(data=Secret(secret=context.signer.webhook_secret(key.id)))


@router.post("/{model:path}", include_in_schema=False)
def unknown_model(key: CallerKey, model: str) -> None:  # noqa: ARG001 - needs a key
    raise HTTPException(
        HTTPStatus.NOT_FOUND, f"no model {model!r} here; this service has {MODEL_PATH}"
    )


def _unknown(task_id: str) -> HTTPException:
    # The same answer for another key's task and for one that doesn't exist.
    return HTTPException(HTTPStatus.NOT_FOUND, f"no task {task_id!r} of this key")
