"""The routes of files: tickets for uploads, uploads, and downloads by signed addresses."""

import re
from http import HTTPStatus
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, RedirectResponse
from starlette.exceptions import HTTPException

from latentsync.service.context import ApiContext, Context, RateLimitedKey
from latentsync.service.files import FILES, TICKET_SECONDS
from latentsync.service.requests import UploadRequest
from latentsync.service.schemas import (
    Received,
    ReceivedAnswer,
    Ticket,
    TicketAnswer,
    Upload,
    problems,
)
from latentsync.service.settings import make_private
from latentsync.service.storage import NotStored
from latentsync.service.tables import File

__all__ = ["router"]

NUMBER = "[0-9]{1,18}"
ONE_RANGE = f" *({NUMBER}-({NUMBER})?|-{NUMBER}) *"
RANGES = re.compile(f" *bytes *={ONE_RANGE}(,{ONE_RANGE})*", re.IGNORECASE)
PAIR = re.compile(f"({NUMBER})-({NUMBER})?")
MAX_SHOWN = 80  # characters of a header in an error
REDIRECT_SECONDS = 300  # validity of a redirect to the storage, which is followed at once

ANY_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
SIGNED = (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)

router = APIRouter(tags=["files"])


async def signed(
    request: Request,
    context: Context,
    name: str,
    expires: Annotated[str, Query()],
    signature: Annotated[str, Query()],
) -> str:
    """The file's name, from an address that the service signed. It needs no thread."""
    context.signer.check(FILES + name, method=request.method, expires=expires, signature=signature)
    return name


Signed = Annotated[str, Depends(signed)]


@router.post(
    "/api/v3/media/uploads",
    responses=problems(
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.TOO_MANY_REQUESTS,
        HTTPStatus.INSUFFICIENT_STORAGE,
    ),
)
def create_upload(context: Context, key: RateLimitedKey, wanted: UploadRequest) -> TicketAnswer:
    """Get an address to PUT a file to, and the file's address for tasks."""
    files, signer = context.service.files, context.signer
    file = files.reserve_upload(key.id, wanted.filename, wanted.size, wanted.content_type)
    direct = files.storage.upload_url(file.name, size=file.bytes, seconds=TICKET_SECONDS)
    here = signer.sign(FILES + file.name, method="PUT", seconds=TICKET_SECONDS)
    upload = Upload(
        url=direct or context.service.settings.base + here,
        headers={} if direct else {"Content-Type": wanted.content_type},
    )
    return TicketAnswer(data=Ticket(upload=upload, download_url=context.signed(file.name)))


@router.put(
    FILES + "{name:path}",
    responses=problems(
        *SIGNED,
        HTTPStatus.CONFLICT,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.INSUFFICIENT_STORAGE,
    ),
    openapi_extra={"requestBody": {"required": True, "content": ANY_BYTES}},
)
async def upload_file(request: Request, context: Context, name: Signed) -> ReceivedAnswer:
    """Upload a file to the address of its ticket."""
    file = await run_in_threadpool(_file, context, name)
    if file.ready:
        raise HTTPException(HTTPStatus.CONFLICT, "this file was uploaded; ask for another ticket")
    if name in context.receiving:  # else one ticket could fill the disk over many connections
        raise HTTPException(HTTPStatus.CONFLICT, "this file is being uploaded by another request")
    context.receiving.add(name)
    try:
        make_private(context.incoming)
        with NamedTemporaryFile(dir=context.incoming) as part:
            path = Path(part.name)
            size = await _receive(request, path, file.bytes)
            await run_in_threadpool(_keep, context, file, path)
    finally:
        context.receiving.discard(name)
    return ReceivedAnswer(data=Received(size=size))


async def _receive(request: Request, path: Path, announced: int) -> int:
    """Stream the body to a file; returns its size in bytes, which must be the announced one."""
    _check_size(request.headers.get("content-length"), announced)  # before the body is sent
    size = 0
    async with await anyio.open_file(path, "wb") as target:
        async for piece in request.stream():
            size += len(piece)
            if size > announced:
                _check_size(size, announced)
            await target.write(piece)
    _check_size(size, announced)
    return size


def _check_size(size: int | str | None, announced: int) -> None:
    if size is None or int(size) == announced:
        return
    status = HTTPStatus.BAD_REQUEST
    if int(size) > announced:
        status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    raise HTTPException(
        status, f"the body has {size} bytes, {announced} bytes were announced; PUT the whole file"
    )


def _keep(context: ApiContext, file: File, path: Path) -> None:
    files = context.service.files
    # Marked first, so that a second upload at the same time can't replace a task's input.
    if not files.received(file.name, file.bytes):
        raise HTTPException(HTTPStatus.CONFLICT, "this file was uploaded; ask for another ticket")
    try:
        files.storage.put(file.name, path)
    except BaseException:
        files.not_received(file)
        raise


@router.get(
    FILES + "{name:path}",
    response_class=Response,
    responses={
        200: {"description": "The file.", "content": ANY_BYTES},
        206: {"description": "The part that the Range header names.", "content": ANY_BYTES},
        307: {"description": "A signed address of the file in the storage."},
        416: {"description": "The file has no such range."},
        **problems(*SIGNED),
    },
)
@router.head(FILES + "{name:path}", include_in_schema=False)  # players ask first
def download_file(request: Request, context: Context, name: Signed) -> Response:
    """Download an output or an upload by its signed address."""
    _check_range(request.headers.get("range", "bytes=0-"))
    file, storage = _file(context, name), context.service.files.storage
    shown = Path(name).name
    if url := storage.download_url(
        name, name=shown, seconds=REDIRECT_SECONDS, method=request.method
    ):
        return RedirectResponse(url)
    path = storage.path(name)
    if path is None or not path.is_file():
        raise NotStored(f"{shown} isn't stored yet, or no longer; upload it again")
    # Always saved, never shown as a page of this origin, whatever the upload's type.
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private"}
    return FileResponse(path, media_type=file.content_type, filename=shown, headers=headers)


def _check_range(header: str) -> None:
    """Raise HTTPException for ranges that Starlette would answer in plain text."""
    if RANGES.fullmatch(header):
        pairs = PAIR.findall(header)
        if all(not last or int(first) <= int(last) for first, last in pairs):
            return
    raise HTTPException(
        HTTPStatus.BAD_REQUEST, f"Range is {header[:MAX_SHOWN]!r}; it must be such as bytes=0-1023"
    )


def _file(context: ApiContext, name: str) -> File:
    file = context.service.files.find(name)
    if file is None:
        raise NotStored(f"no file {name!r}; it was deleted, or has expired")
    return file
