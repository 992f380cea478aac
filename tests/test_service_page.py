"""The web page on the task API: for whoever has a key."""

import socket
from contextlib import closing

import httpx
import pytest

from latentsync.service.keys import Keys
from latentsync.service.tables import Database
from tests.service_process import Server

pytestmark = pytest.mark.slow  # importing Gradio takes seconds


def test_a_key_is_the_password(tmp_path):
    server = Server(tmp_path, "--workers", "0", "--page")
    try:
        with closing(Database(f"sqlite:///{server.data / 'tasks.db'}")) as database:
            keys = Keys(database)
            _, key = keys.create("ann", per_minute=10, at_once=1)
            asked = httpx.get(f"{server.url}/app/config")
            assert asked.status_code == 401
            assert asked.headers["www-authenticate"].startswith("Basic")
            upload = f"{server.url}/app/gradio_api/upload"
            files = {"files": ("face.mp4", b"face" * 100_000, "video/mp4")}
            assert httpx.post(upload, files=files).status_code == 401
            assert _answer_before_the_body(server, "/app/gradio_api/queue/join") == b"401"
            with httpx.Client(base_url=server.url, auth=("ann", key)) as ann:
                assert "components" in ann.get("/app/config").json()
                assert ann.post("/app/gradio_api/upload", files=files).status_code == 200
                joined = ann.post("/app/gradio_api/queue/join", content=b" " * 2**20)
                assert joined.status_code == 413
                keys.revoke("ann")
                assert ann.get("/app/config").status_code == 401
            assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    finally:
        assert server.stop() == 0


def _answer_before_the_body(server, path):
    """The status of a request that announces 600 MB and sends none of them."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as client:
        client.sendall(
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            "Content-Length: 600000000\r\n\r\n".encode()
        )
        return client.recv(100).split()[1]
