"""The routes of files: a ticket to upload, the upload, and fetching by a signed address."""

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

from latentsync.service.answers import (
    Received,
    ReceivedAnswer,
    Ticket,
    TicketAnswer,
    Upload,
    problems,
)
from latentsync.service.files import FILES, TICKET_SECONDS
from latentsync.service.front import Beginner, Front, FrontOf
from latentsync.service.requests import UploadRequest
from latentsync.service.settings import make_private
from latentsync.service.storage import NotStored
from latentsync.service.tables import File

__all__ = ["router"]

NUMBER = "[0-9]{1,18}"
ONE_RANGE = f" *({NUMBER}-({NUMBER})?|-{NUMBER}) *"
RANGES = re.compile(f" *bytes *={ONE_RANGE}(,{ONE_RANGE})*", re.IGNORECASE)
PAIR = re.compile(f"({NUMBER})-({NUMBER})?")
MAX_SHOWN = 80  # characters of a header in an error
REDIRECT_SECONDS = 300  # that a redirect to the storage holds: it is followed at once

ANY_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
SIGNED = (HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND)

router = APIRouter(tags=["files"])


async def signed(
    request: Request,
    front: FrontOf,
    name: str,
    expires: Annotated[str, Query()],
    signature: Annotated[str, Query()],
) -> str:
    """The name in an address, which the service signed; no thread is taken to find that out."""
    front.signer.check(FILES + name, method=request.method, expires=expires, signature=signature)
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
def create_upload(front: FrontOf, key: Beginner, wanted: UploadRequest) -> TicketAnswer:
    """Where to PUT a file, and the address by which tasks can name it then."""
    files, signer = front.service.files, front.signer
    file = files.reserve_upload(key.id, wanted.filename, wanted.size, wanted.content_type)
    direct = files.storage.upload_url(file.name, size=file.bytes, seconds=TICKET_SECONDS)
    here = signer.sign(FILES + file.name, method="PUT", seconds=TICKET_SECONDS)
    upload = Upload(
        url=direct or front.service.settings.base + here,
        headers={} if direct else {"Content-Type": wanted.content_type},
    )
    return TicketAnswer(data=Ticket(upload=upload, download_url=front.signed(file.name)))


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
async def upload_file(request: Request, front: FrontOf, name: Signed) -> ReceivedAnswer:
    """Upload a file to the address of its ticket."""
    file = await run_in_threadpool(_file, front, name)
    if file.ready:
        raise HTTPException(HTTPStatus.CONFLICT, "this file was uploaded; ask for another ticket")
    if name in front.receiving:  # or one ticket could fill the disk by many connections
        raise HTTPException(HTTPStatus.CONFLICT, "this file is being uploaded by another request")
    front.receiving.add(name)
    try:
        make_private(front.incoming)
        with NamedTemporaryFile(dir=front.incoming) as part:
            path = Path(part.name)
            size = await _receive(request, path, file.bytes)
            await run_in_threadpool(_keep, front, file, path)
    finally:
        front.receiving.discard(name)
    return ReceivedAnswer(data=Received(size=size))


async def _receive(request: Request, path: Path, announced: int) -> int:
    """Write the body to a file as it comes; its size in bytes, which was announced."""
    _check_size(request.headers.get("content-length"), announced)  # before anything is sent
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


def _keep(front: Front, file: File, path: Path) -> None:
    files = front.service.files
    # Noted first: a second upload to this ticket, at the same time, can't replace what a task has.
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
        307: {"description": "Where the file is: a signed address of the storage."},
        416: {"description": "The file has no such range."},
        **problems(*SIGNED),
    },
)
@router.head(FILES + "{name:path}", include_in_schema=False)  # players ask first
def download_file(request: Request, front: FrontOf, name: Signed) -> Response:
    """An output, or an upload, by its signed address."""
    _check_range(request.headers.get("range", "bytes=0-"))
    file, storage = _file(front, name), front.service.files.storage
    shown = Path(name).name
    elsewhere = storage.download_url(
        name, name=shown, seconds=REDIRECT_SECONDS, method=request.method
    )
    if elsewhere:
        return RedirectResponse(elsewhere)
    path = storage.path(name)
    if path is None or not path.is_file():
        raise NotStored(f"{shown} isn't stored yet, or no longer; upload it again")
    # To be saved, whatever a stranger called it: never a page of this address.
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private"}
    return FileResponse(path, media_type=file.content_type, filename=shown, headers=headers)


def _check_range(header: str) -> None:
    """Raise HTTPException for what Starlette would answer in plain text."""
    if RANGES.fullmatch(header):
        pairs = PAIR.findall(header)
        if all(not last or int(first) <= int(last) for first, last in pairs):
            return
    raise HTTPException(
        HTTPStatus.BAD_REQUEST, f"Range is {header[:MAX_SHOWN]!r}; it must be such as bytes=0-1023"
    )


def _file(front: Front, name: str) -> File:
    file = front.service.files.find(name)
    if file is None:
        raise NotStored(f"no file {name!r}; it was deleted, or has expired")
    return file
