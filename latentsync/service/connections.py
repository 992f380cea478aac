"""uvicorn's HTTP/1.1 connections, with time-outs and a limit on their number.

uvicorn closes a connection that is idle after a response, by `timeout_keep_alive`. But it waits
forever for a request's head, for a body and for a client that doesn't read, and it accepts
connections until the process has no file descriptor left. ASGI middleware can't prevent that,
because it is called when a head is complete. So this is a protocol class for uvicorn's option
`http`.
"""

import asyncio
import resource
from weakref import WeakKeyDictionary

from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

__all__ = ["Connection", "connections_allowed"]

POLL_SECONDS = 1.0  # of a connection
HEAD_SECONDS = 20.0  # for a request's head, after connecting or after the last response
GRACE_SECONDS = 20.0  # for a body, in addition to its bytes; as in Apache's mod_reqtimeout
MIN_BYTES_PER_SECOND = 4096  # of a body on average; a poor mobile connection has twice as much
STALL_SECONDS = 60.0  # in which a client must read something; as in nginx's send_timeout
MAX_CONNECTIONS = 1000
FILES_PER_CONNECTION = 2  # its socket, and the file it uploads or downloads
OTHER_FILES = 200  # of the database, the storage, libraries

# For each server, its connections without a request in progress, idle for longest first.
IDLE: WeakKeyDictionary[ServerState, dict["Connection", None]] = WeakKeyDictionary()


class Connection(H11Protocol):
    """A connection that is closed if its client keeps it waiting."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._idle = IDLE.setdefault(self.server_state, {})
        self._watched: RequestResponseCycle | None = None
        self._body_bytes = self._unsent_bytes = 0
        self._body_seconds = self._stalled_seconds = 0.0
        self._timer = self.loop.call_later(POLL_SECONDS, self._check)
        self._make_room()
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._idle.pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._body_bytes += len(data)
        super().data_received(data)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._idle.pop(self, None)

    def on_response_complete(self) -> None:
        self._wait_for_head()
        super().on_response_complete()

    def _wait_for_head(self) -> None:
        """Note that no request is in progress."""
        self._waiting_since = self.loop.time()
        self._idle[self] = None

    def _make_room(self) -> None:
        """At the limit `limit_concurrency`, close the connection that was idle for longest.

        If all have requests in progress, uvicorn answers the new one with 503.
        """
        limit = self.limit_concurrency
        if limit is not None and len(self.connections) >= limit and self._idle:
            longest = next(iter(self._idle))
            self._idle.pop(longest)
            longest.transport.abort()

    def _check(self) -> None:
        if self._overdue():
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(POLL_SECONDS, self._check)

    def _overdue(self) -> bool:
        """Whether the client has exceeded the time for its part."""
        if self.cycle is not self._watched:
            self._watched = self.cycle
            self._body_bytes, self._body_seconds = 0, 0.0
        unsent = self.transport.get_write_buffer_size()
        if unsent and unsent == self._unsent_bytes:
            self._stalled_seconds += POLL_SECONDS
        else:
            self._unsent_bytes, self._stalled_seconds = unsent, 0.0
        if self._stalled_seconds > STALL_SECONDS:
            return True
        if self.cycle is None or self.cycle.response_complete:
            return self.loop.time() - self._waiting_since > HEAD_SECONDS
        if self.cycle.more_body and not (
            self.flow.read_paused or self.cycle.waiting_for_100_continue
        ):
            self._body_seconds += POLL_SECONDS
        return self._body_seconds > GRACE_SECONDS + self._body_bytes / MIN_BYTES_PER_SECOND


def connections_allowed() -> int:
    """Raise the limit of open files; returns the number of connections that it allows.

    This is MAX_CONNECTIONS or less, for uvicorn's option `limit_concurrency`.
    """
    wanted = FILES_PER_CONNECTION * MAX_CONNECTIONS + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return MAX_CONNECTIONS
    files = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(10, (files - OTHER_FILES) // FILES_PER_CONNECTION)
