"""The web page on the task API: for whoever has a key."""

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
            with httpx.Client(base_url=server.url, auth=("ann", key)) as ann:
                assert "components" in ann.get("/app/config").json()
                assert ann.post("/app/gradio_api/upload", files=files).status_code == 200
                keys.revoke("ann")
                assert ann.get("/app/config").status_code == 401
            assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    finally:
        assert server.stop() == 0
