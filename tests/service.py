"""A task API for tests: in this process, with a runner that takes no time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from fastapi.testclient import TestClient

from latentsync.options import Options
from latentsync.service.app import create_app
from latentsync.service.container import Service
from latentsync.service.context import ApiContext
from latentsync.service.settings import MODEL_PATH, ServiceSettings
from latentsync.service.tables import Key, Task
from latentsync.service.worker import Run, Worker
from tests.documented import DocumentedClient

BASE = "http://testserver"
SUBMIT = f"/api/v3/{MODEL_PATH}"
ELSEWHERE = {"video": "https://example.org/face.mp4", "audio": "https://example.org/voice.wav"}


def joined(
    video: Path, audio: Path, output: Path, options: Options, cancelled: Callable[[], bool]
) -> None:
    """A runner whose output tells what it was given."""
    assert not cancelled()
    output.write_bytes(video.read_bytes() + b"+" + audio.read_bytes() + b"%d" % options.seed)


@dataclass
class Person:
    """Somebody with a key."""

    client: TestClient
    headers: dict[str, str]
    key: Key

    def post(self, path: str, json: object = None, **headers: str) -> Any:
        return self.client.post(path, json=json, headers=self.headers | headers)

    def get(self, path: str) -> Any:
        return self.client.get(path, headers=self.headers)

    def upload(self, content: bytes, name: str = "face.mp4") -> str:
        """As the client does it; the address by which a task names it."""
        asked = {"filename": name, "size": len(content)}
        ticket = self.post("/api/v3/media/uploads", asked).json()["data"]
        way = ticket["upload"]
        put = self.client.request(
            way["method"], way["url"], headers=way["headers"], content=content
        )
        assert put.status_code == 200, put.text
        return ticket["download_url"]

    def submit(self, **changes: object) -> dict[str, Any]:
        answer = self.post(SUBMIT, ELSEWHERE | changes)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def speaking(self, **changes: object) -> dict[str, Any]:
        """A task whose inputs were uploaded."""
        return self.submit(video=self.upload(b"face"), audio=self.upload(b"voice"), **changes)

    def result(self, task: dict[str, Any]) -> dict[str, Any]:
        return self.get(f"/api/v3/predictions/{task['id']}/result").json()["data"]


@dataclass
class House:
    """A service and its application."""

    service: Service
    client: TestClient

    @property
    def context(self) -> ApiContext:
        return self.client.app.state.context

    def person(self, name: str = "ann", **limits: int) -> Person:
        """Somebody with a new key, who may do much unless `limits` say otherwise."""
        most = {"per_minute": 1000, "at_once": 100, "max_bytes": 1 << 60}
        key, shown = self.service.keys.create(name, **most | limits)
        return Person(self.client, {"Authorization": f"Bearer {shown}"}, key)

    def worker(self, run: Run = joined, stopping: Event | None = None) -> Worker:
        scratch = self.service.settings.data / "scratch"
        scratch.mkdir(exist_ok=True)
        return Worker(self.service, run, "here", scratch, stopping or Event())

    def lease(self, seconds: float = 30.0) -> Task | None:
        return self.service.tasks.lease("here", seconds, self.service.settings.max_lost)


@contextmanager
def house(data: Path, *, needs_key: bool = True, **settings: Any) -> Iterator[House]:
    with Service.open(
        ServiceSettings(data=data, public_url=BASE, **settings), decides=True
    ) as service:
        app = create_app(service, needs_key=needs_key)
        client = DocumentedClient(app, base_url=BASE, raise_server_exceptions=False)
        yield House(service, client)
