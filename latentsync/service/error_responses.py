"""What clients are answered to a request that fails, in the hosted API's form."""

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from latentsync.errors import (
    BackendUnavailable,
    InputError,
    LatentSyncError,
    OptionError,
    OutputError,
)
from latentsync.options import Options, declared
from latentsync.service.files import ShareFull, StorageFull
from latentsync.service.outages import DiskFull, Outage, is_disk_full
from latentsync.service.requests import DESCRIPTIONS, MAX_WORD, OPTIONS, asker
from latentsync.service.signing import BadSignature
from latentsync.service.storage import NotStored
from latentsync.service.tasks import Conflict, TooMany

__all__ = ["add_error_handlers", "error_response", "problem"]

log = logging.getLogger(__name__)

RETRY_AFTER = {"Retry-After": "5"}  # seconds; a task may have ended by then
STATUSES: tuple[tuple[type[LatentSyncError], HTTPStatus, dict[str, str]], ...] = (
    (TooMany, HTTPStatus.TOO_MANY_REQUESTS, RETRY_AFTER),
    (Conflict, HTTPStatus.CONFLICT, {}),
    (ShareFull, HTTPStatus.INSUFFICIENT_STORAGE, {}),
    (StorageFull, HTTPStatus.INSUFFICIENT_STORAGE, RETRY_AFTER),
    (DiskFull, HTTPStatus.INSUFFICIENT_STORAGE, RETRY_AFTER),
    (Outage, HTTPStatus.SERVICE_UNAVAILABLE, RETRY_AFTER),
    (OutputError, HTTPStatus.SERVICE_UNAVAILABLE, RETRY_AFTER),  # a folder of ours
    (BadSignature, HTTPStatus.FORBIDDEN, {}),
    (NotStored, HTTPStatus.NOT_FOUND, {}),
    (InputError, HTTPStatus.BAD_REQUEST, {}),
    (BackendUnavailable, HTTPStatus.SERVICE_UNAVAILABLE, RETRY_AFTER),
    (LatentSyncError, HTTPStatus.INTERNAL_SERVER_ERROR, {}),
)  # the first that fits

OURS = {  # messages in place of those that may name hosts and folders
    HTTPStatus.SERVICE_UNAVAILABLE: "the service can't do this at the moment; try again later",
    HTTPStatus.INSUFFICIENT_STORAGE: "the service has no room at the moment; try again later",
}

WORDS = {  # in place of pydantic's own
    "missing": "it is missing",
    "extra_forbidden": "this request has no such field",
    "string_pattern_mismatch": "it has another form than wanted",
    "model_attributes_type": "it must be a JSON object, sent with Content-Type: application/json",
}


def problem(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The answer to a request that failed, with a message on one line."""
    line = " ".join(message.split()).encode(errors="replace").decode()  # no lone surrogates
    content = {"code": status, "message": line, "data": {}}
    return JSONResponse(content, status, headers)


def error_response(error: LatentSyncError) -> JSONResponse:
    """The answer for an error of ours."""
    status, headers = next(row[1:] for row in STATUSES if isinstance(error, row[0]))
    if not isinstance(error, InputError) or isinstance(error, OutputError):
        log.warning("answered %d: %s", status, error)
    if status in OURS and not isinstance(error, ShareFull | StorageFull):
        return problem(status, OURS[status], headers)
    return problem(status, error.told(asker()), headers)


def _option_error(found: Mapping[str, Any]) -> OptionError | None:
    """Return what `Options` says of a value that pydantic refuses; None if it is no option's."""
    name = next((part for part in found["loc"] if part != "body"), "")
    value = found["input"]
    short = isinstance(value, str | int | float | None) and len(str(value)) <= MAX_WORD
    if name not in OPTIONS or not short:
        return None
    try:
        declared(Options)[name].check(value)
    except OptionError as error:
        return error
    return None


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error of the app in the hosted API's form.

    The handlers are coroutines because Starlette calls functions in threads, which strangers could
    use up.
    """

    @app.exception_handler(LatentSyncError)
    async def ours(_: Request, error: LatentSyncError) -> JSONResponse:
        return error_response(error)

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        if (of_option := _option_error(first)) is not None:
            return error_response(of_option)
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        said = WORDS.get(first["type"], first["msg"])
        if first["type"] == "json_invalid":
            where, said = "body", f"it isn't JSON, at character {where}: {first['ctx']['error']}"
        elif first["type"] == "value_error":  # raised by one of our validators
            said = str(first["ctx"]["error"])
        if where in DESCRIPTIONS:
            said = f"{said}; {DESCRIPTIONS[where]}"
        return problem(HTTPStatus.BAD_REQUEST, f"{where}: {said}")

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, _error: ClientDisconnect) -> JSONResponse:
        return problem(HTTPStatus.BAD_REQUEST, "the connection ended before the body did")

    @app.exception_handler(OSError)
    async def system(_: Request, error: OSError) -> JSONResponse:
        if is_disk_full(error):
            return error_response(DiskFull(str(error)))
        log.exception("a fault of the service", exc_info=error)
        return await unforeseen(_, error)

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        # The text may hold what is no client's business; it is in the log.
        return problem(500, f"{type(error).__name__}; this is a fault of the service")
