"""The routes of tasks: submit, look, list, cancel, delete."""

from datetime import datetime
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Body, Header, Query
from fastapi.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from latentsync.service.answers import Answer, Deleted, PageData, TaskData
from latentsync.service.front import Beginner, Caller, Front, FrontOf
from latentsync.service.requests import MAX_ADDRESS, DeleteRequest, PageRequest, TaskRequest
from latentsync.service.settings import MODEL_PATH
from latentsync.service.tables import Key

__all__ = ["router"]

router = APIRouter(prefix="/api/v3", tags=["tasks"])


@router.post(f"/{MODEL_PATH}")
async def submit(
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
) -> Answer[TaskData]:
    """Let the clip speak the sound; ask for the result at `data.urls.get`."""
    task = await run_in_threadpool(front.submit, key, asked, webhook, idempotency_key)
    if asked.enable_sync_mode:
        return Answer(data=await front.ended(task))
    return Answer(data=front.describe(task))


@router.get("/predictions/{task_id}/result")
@router.get("/predictions/{task_id}", include_in_schema=False)
def result(front: FrontOf, key: Caller, task_id: str) -> Answer[TaskData]:
    """How far a task is, and its output once it is completed."""
    task = front.service.tasks.get(key.id, task_id)
    if task is None:
        raise _unknown(task_id)
    return Answer(data=front.describe(task))


@router.post("/predictions/{task_id}/cancel")
def cancel(front: FrontOf, key: Caller, task_id: str) -> Answer[TaskData]:
    """Stop a task; one that has ended stays as it is."""
    task = front.service.tasks.cancel(key.id, task_id)
    if task is None:
        raise _unknown(task_id)
    return Answer(data=front.describe(task))


@router.post("/predictions")
def page(
    front: FrontOf, key: Caller, wanted: Annotated[PageRequest | None, Body()] = None
) -> Answer[PageData]:
    """Your tasks, the newest first."""
    return _page(front, key, wanted or PageRequest.model_validate({}))


@router.get("/predictions", include_in_schema=False)
def page_by_query(
    front: FrontOf, key: Caller, wanted: Annotated[PageRequest, Query()]
) -> Answer[PageData]:
    return _page(front, key, wanted)


def _page(front: Front, key: Key, wanted: PageRequest) -> Answer[PageData]:
    found = front.service.tasks.page(
        key.id,
        wanted.page,
        wanted.page_size,
        status=wanted.status,
        model=wanted.model,
        after=_seconds(wanted.created_after),
        before=_seconds(wanted.created_before),
    )
    items = [front.describe(task) for task in found.tasks]
    return Answer(data=PageData(page=wanted.page, total=found.total, items=items))


@router.post("/predictions/delete")
def delete(front: FrontOf, key: Caller, wanted: DeleteRequest) -> Answer[Deleted]:
    """Delete tasks and their outputs; one that is worked on is stopped."""
    return Answer(data=Deleted(deleted_count=front.service.tasks.delete(key.id, wanted.ids)))


@router.delete("/predictions/{task_id}")
def delete_one(front: FrontOf, key: Caller, task_id: str) -> Answer[dict[str, str]]:
    """Delete a task and its outputs; one that is worked on is stopped."""
    if not front.service.tasks.delete(key.id, [task_id]):
        raise _unknown(task_id)
    return Answer(data={"id": task_id, "status": "deleted"})


@router.get("/webhook/secret")
def webhook_secret(front: FrontOf, key: Caller) -> Answer[dict[str, str]]:
    """What the calls of your webhooks are signed with."""
    return Answer(data={"secret": front.signer.webhook_secret(key.id)})


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
