"""Connections whose client doesn't go on are ended; those that go on are not."""

import asyncio
import contextlib
import resource
import socket
import threading
import time

import pytest
import uvicorn

from latentsync.service import connections
from latentsync.service.connections import Connection, connections_allowed

HEAD = b"POST /%s HTTP/1.1\r\nHost: x\r\n"


class App:
    """Answers with the body's size; under /wait when `go_on` is set, under /much without end."""

    def __init__(self):
        self.go_on, self.gone = threading.Event(), threading.Event()
        self.begun = threading.Semaphore(0)

    async def __call__(self, scope, receive, send):
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone.set()
                return
            size += len(message["body"])
            more = message["more_body"]
        self.begun.release()
        while scope["path"] == "/wait" and not self.go_on.is_set():
            await asyncio.sleep(0.01)
        body = b"%d bytes" % size
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while scope["path"] == "/much" and not (await self.left(receive)):
            await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
        await send({"type": "http.response.body", "body": body})

    async def left(self, receive):
        with contextlib.suppress(TimeoutError):
            message = await asyncio.wait_for(receive(), 0.001)
            self.gone.set()
            return message["type"] == "http.disconnect"


@pytest.fixture
def app():
    return App()


@pytest.fixture
def dial(app, monkeypatch):
    """Connects to a server whose clients have a fifth of a second for everything."""
    for name in ("HEAD_SECONDS", "GRACE_SECONDS", "STALL_SECONDS"):
        monkeypatch.setattr(connections, name, 0.2)
    monkeypatch.setattr(connections, "POLL_SECONDS", 0.02)
    config = uvicorn.Config(
        app,
        port=0,
        http=Connection,
        ws="none",
        lifespan="off",
        log_config=None,
        limit_concurrency=4,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.005)
    address = server.servers[0].sockets[0].getsockname()
    made = []

    def connect():
        made.append(socket.create_connection(address, 10))
        return made[-1]

    yield connect
    app.go_on.set()
    for one in made:
        one.close()
    server.should_exit = True
    thread.join()


def ended(connection):
    """Whether the server ends it; fails where it doesn't in ten seconds."""
    with contextlib.suppress(ConnectionResetError):
        while connection.recv(1 << 16):
            pass
    return True


def dripped(connection, pieces=b"x" * 1000):
    """Send a byte every hundredth of a second until the server ends the connection."""
    for piece in pieces:
        try:
            connection.sendall(bytes([piece]))
        except OSError:
            return True
        time.sleep(0.01)
    return False


def answer(connection):
    text = b""
    while b" bytes" not in text:
        text += connection.recv(1000)
    return text


def test_a_silent_connection_is_ended(dial):
    assert ended(dial())


def test_a_head_that_does_not_end_is_ended(dial):
    slow = dial()
    slow.sendall(HEAD % b"x")
    assert ended(slow)
    slow = dial()
    slow.sendall(HEAD % b"x" + b"X-Long: ")
    assert dripped(slow)


def test_a_second_head_that_does_not_end_is_ended(dial):
    slow = dial()
    slow.sendall(HEAD % b"x" + b"Content-Length: 0\r\n\r\n")
    assert b"200 OK" in answer(slow)
    assert dripped(slow, HEAD % b"x" + b"y" * 1000)


def test_a_body_below_the_least_rate_is_ended(dial, app):
    slow = dial()
    slow.sendall(HEAD % b"x" + b"Content-Length: 1000\r\n\r\n")
    assert dripped(slow)
    assert app.gone.wait(10)


def test_a_body_that_is_fast_enough_is_taken(dial, monkeypatch):
    monkeypatch.setattr(connections, "MIN_BYTES_PER_SECOND", 1)
    steady = dial()
    steady.sendall(HEAD % b"x" + b"Content-Length: 5000\r\n\r\n")
    for _ in range(50):
        steady.sendall(b"x" * 100)
        time.sleep(0.01)
    assert b"5000 bytes" in answer(steady)


def test_who_waits_for_an_answer_is_not_ended(dial, app):
    patient = dial()
    patient.sendall(HEAD % b"wait" + b"Content-Length: 1\r\n\r\nx")
    time.sleep(0.5)
    app.go_on.set()
    assert b"1 bytes" in answer(patient)


def test_who_reads_nothing_is_ended(dial, app):
    deaf = dial()
    deaf.sendall(HEAD % b"much" + b"Content-Length: 0\r\n\r\n")
    assert app.gone.wait(10)


def test_of_too_many_connections_the_longest_idle_one_is_ended(dial, app, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 60.0)
    busy = [dial() for _ in range(2)]
    for one in busy:
        one.sendall(HEAD % b"wait" + b"Content-Length: 1\r\n\r\nx")
        assert app.begun.acquire(timeout=10)
    idle, later = dial(), dial()
    assert ended(idle)  # four are one too many
    later.sendall(HEAD % b"wait" + b"Content-Length: 1\r\n\r\nx")
    assert app.begun.acquire(timeout=10)
    refused = dial()
    refused.sendall(HEAD % b"x" + b"Content-Length: 0\r\n\r\n")
    assert b" 503 " in refused.recv(1000)
    app.go_on.set()
    assert all(b"1 bytes" in answer(one) for one in (*busy, later))


def test_connections_leave_files_for_the_rest(monkeypatch):
    given = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: given.append(limits))
    for limits, files, most in (
        ((1024, 1024), [(1024, 1024)], 412),
        ((1024, 4096), [(2200, 4096)], 1000),
        ((1024, resource.RLIM_INFINITY), [(2200, resource.RLIM_INFINITY)], 1000),
        ((5000, 5000), [], 1000),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), [], 1000),
    ):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        given.clear()
        assert (connections_allowed(), given) == (most, files)
