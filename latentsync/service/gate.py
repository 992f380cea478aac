"""Who asks, found out before anything of the request's body is read."""

import base64
import binascii
from http import HTTPStatus

from anyio import CapacityLimiter, to_thread
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from latentsync.errors import LatentSyncError
from latentsync.service.answers import problem, refusal
from latentsync.service.front import Front
from latentsync.service.keys import PREFIX
from latentsync.service.tables import Key

__all__ = ["API", "PAGE", "Gate"]

API = "/api/"  # asks for a key by `Authorization: Bearer KEY`
PAGE = "/app"  # where the web page is; a browser asks its user for the key as a password
LOOKUPS = 4  # threads that look keys up: strangers take none of those that answer requests

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


class Gate:
    """ASGI middleware: lets requests to the API and the page through that bring a valid key.

    The key is in `request.state.key` then. All other paths are open to everybody.
    """

    def __init__(self, app: ASGIApp, front: Front) -> None:
        self._app, self._front = app, front
        self._lookups = CapacityLimiter(LOOKUPS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        page = path == PAGE or path.startswith(f"{PAGE}/")
        if scope["type"] == "lifespan" or not (page or path.startswith(API)):
            await self._app(scope, receive, send)
            return
        try:
            key = await self._key(Headers(scope=scope), page)
        except LatentSyncError as error:  # the database can't be asked now
            await refusal(error)(scope, receive, send)
            return
        if key is not None:
            scope.setdefault("state", {})["key"] = key
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await (NO_PASSWORD if page else NO_BEARER)(scope, receive, send)

    async def _key(self, headers: Headers, page: bool) -> Key | None:
        keys = self._front.service.keys
        if not self._front.needs_key:
            return await to_thread.run_sync(keys.local, limiter=self._lookups)
        shown = _given(headers, page)
        if not shown.startswith(PREFIX):
            return None
        return await to_thread.run_sync(keys.find, shown, limiter=self._lookups)


def _given(headers: Headers, page: bool) -> str:
    """The key in the Authorization header; "" where there is none."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and not page:
        return value.strip()
    if scheme.lower() == "basic" and page:
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return ""
