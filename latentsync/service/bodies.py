"""A bound on the bodies of HTTP requests, for whatever application is behind it."""

from collections.abc import Callable
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["MAX_BODY_BYTES", "BoundedBody"]

MAX_BODY_BYTES = 256 * 1024  # of a request that is no upload


class BoundedBody:
    """ASGI middleware that refuses bodies over MAX_BODY_BYTES while they arrive."""

    def __init__(self, app: ASGIApp, streamed: Callable[[str], bool]) -> None:
        """`streamed`: whether a path takes uploads, which its handler writes to disk and bounds."""
        self._app, self._streamed = app, streamed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._streamed(scope["path"]):
            await self._app(scope, receive, send)
            return
        size = 0

        async def bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MAX_BODY_BYTES:
                raise HTTPException(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"a body of more than {MAX_BODY_BYTES} bytes",
                )
            return message

        await self._app(scope, bounded, send)
