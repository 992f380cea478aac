"""ASGI middleware: authentication before a body is read, and a limit on bodies."""

import base64
import binascii
from collections.abc import Callable
from http import HTTPStatus

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from latentsync.errors import LatentSyncError
from latentsync.service.context import ApiContext
from latentsync.service.error_responses import error_response, problem
from latentsync.service.keys import PREFIX
from latentsync.service.tables import Key

__all__ = ["API", "MAX_BODY_BYTES", "PAGE", "Authentication", "BodyLimit"]

API = "/api/"  # needs a key as `Authorization: Bearer KEY`
PAGE = "/app"  # the web page; a browser asks its user for the key as a password
LOOKUP_THREADS = 4  # that look up keys, so that strangers take none of those that answer requests
MAX_BODY_BYTES = 256 * 1024  # of a request that is no upload

NO_BEARER = problem(
    HTTPStatus.UNAUTHORIZED,
    "no valid key; send the header `Authorization: Bearer KEY`",
    {"WWW-Authenticate": "Bearer"},
)
NO_PASSWORD = problem(
    HTTPStatus.UNAUTHORIZED,
    "no valid key; give one as the password, with any name",
    {"WWW-Authenticate": 'Basic realm="any name, and a key of this service"'},
)


class Authentication:
    """Lets requests to the API and the page pass only with a valid key.

    It puts the key into `request.state.key`. All other paths are open to everybody.
    """

    def __init__(self, app: ASGIApp, context: ApiContext) -> None:
        self._app, self._context = app, context
        self._limiter = CapacityLimiter(LOOKUP_THREADS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        page = path == PAGE or path.startswith(f"{PAGE}/")
        if scope["type"] == "lifespan" or not (page or path.startswith(API)):
            await self._app(scope, receive, send)
            return
        try:
            key = await self._find_key(Headers(scope=scope), page)
        except LatentSyncError as error:  # the database is not available
            await error_response(error)(scope, receive, send)
            return
        if key is not None:
            scope.setdefault("state", {})["key"] = key
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await (NO_PASSWORD if page else NO_BEARER)(scope, receive, send)

    async def _find_key(self, headers: Headers, page: bool) -> Key | None:
        keys = self._context.service.keys
        if not self._context.needs_key:
            return await to_thread.run_sync(keys.local, limiter=self._limiter)
        scheme, _, text = headers.get("authorization", "").partition(" ")
        if scheme.lower() != ("basic" if page else "bearer"):
            return None
        if page:
            try:
                text = base64.b64decode(text, validate=True).decode().partition(":")[2]
            except (binascii.Error, UnicodeDecodeError):
                return None
        text = text if page else text.strip()
        if not text.startswith(PREFIX):
            return None
        return await to_thread.run_sync(keys.find, text, limiter=self._limiter)


class BodyLimit:
    """Refuses bodies of more than MAX_BODY_BYTES while they arrive.

    Args:
        streamed: whether a path takes uploads, whose handler limits them itself.
    """

    def __init__(self, app: ASGIApp, streamed: Callable[[str], bool]) -> None:
        self._app, self._streamed = app, streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._streamed(scope["path"]):
            await self._app(scope, receive, send)
            return
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY_BYTES:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"a body of more than {MAX_BODY_BYTES} bytes",
                )
            return message

        await self._app(scope, limited, send)
