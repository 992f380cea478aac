"""The task API as people run it: processes that die, the hosted API's client, PostgreSQL."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from subprocess import run

import httpx
import pytest
from sqlalchemy import select

from latentsync.media import probe
from latentsync.service.keys import Keys
from latentsync.service.settings import MODEL_PATH
from latentsync.service.tables import Database, Task
from tests.service_process import (
    COMMAND,
    DEMO,
    PHOTO,
    Process,
    Server,
    alive,
    eventually,
    postgres,
    voice,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc"),
]

QUICK = {"steps": 1, "seed": 7}


@pytest.fixture
def running(tmp_path):
    """Starts processes; none of them outlives its test."""
    made = []

    def start(kind, *given, **more):
        made.append(kind(tmp_path, *given, **more))
        return made[-1]

    yield start
    for one in made:
        if one.process.poll() is None:
            one.stop()


def key(database):
    with_limits = Keys(database).create("ann", per_minute=1000, at_once=100)
    return with_limits[1]


@pytest.fixture
def database(tmp_path):
    (tmp_path / "data").mkdir()
    opened = Database(f"sqlite:///{tmp_path / 'data/tasks.db'}")
    yield opened
    opened.close()


def client(server, shown):
    from wavespeed import Client  # only `make test-all` installs it

    return Client(api_key=shown, base_url=server.url)


def submit(server, shown, inputs, **more):
    url = f"{server.url}/api/v3/{MODEL_PATH}"
    headers = {"Authorization": f"Bearer {shown}"} | more.pop("headers", {})
    answer = httpx.post(url, json=inputs | more, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["data"]["id"]


def uploaded(client, tmp_path, seconds=0.4):
    sound = voice(tmp_path / f"{seconds}.wav", seconds)
    return {"video": client.upload(str(PHOTO)), "audio": client.upload(str(sound))}


def rows(database):
    with database.reading() as session:
        return session.scalars(select(Task).order_by(Task.created_at)).all()


def worked_on(database):
    """The process that has the first task."""
    task = rows(database)[0]
    return int(task.worker.rsplit(":")[-1]) if task.status == "processing" else None


def writes(pid, folder):
    """Whether the process has an output open there, which has no name until it is whole."""
    opened = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            opened.append(descriptor.readlink())
    inputs = {"video", "audio"}
    return any(path.is_relative_to(folder) and path.name not in inputs for path in opened)


def completed(client, task):
    return client.get_result(task)["data"]["status"] == "completed"


def test_the_published_client_unmodified(running, tmp_path):
    server = running(Server)
    made = run(
        [*COMMAND, "keys", "create", "ann", "--data", str(server.data)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "latentsync keys create NAME" in server.log.read_text()
    ann = client(server, made.stdout.strip())
    inputs = uploaded(ann, tmp_path)

    output = ann.run(MODEL_PATH, inputs | QUICK, poll_interval=0.1, timeout=240)["outputs"][0]
    path = tmp_path / "output.mp4"
    path.write_bytes(httpx.get(output).content)
    facts = probe(path)
    assert facts.video
    assert facts.audio

    at_once = ann.run_no_throw(MODEL_PATH, inputs | QUICK, enable_sync_mode=True)
    assert at_once["status"] == "completed"
    assert ann.get_result(at_once["task_id"])["data"]["outputs"]

    with pytest.raises(RuntimeError, match=r"HTTP 400.*guidance_scale is 99"):
        ann.run(MODEL_PATH, inputs | {"guidance_scale": 99})
    bad = inputs | {"video": inputs["audio"]}
    with pytest.raises(RuntimeError, match=r"Prediction failed \(task_id: .*picture"):
        ann.run(MODEL_PATH, bad, poll_interval=0.1, timeout=240)
    with pytest.raises(RuntimeError, match="HTTP 401"):
        client(server, "ls_wrong").run(MODEL_PATH, inputs)
    with pytest.raises(RuntimeError, match="HTTP 404"):
        ann.get_result("0" * 32)
    assert server.stop() == 0


def test_a_worker_killed_in_mid_run(running, tmp_path, database):
    shown = key(database)
    server = running(Server)
    ann = client(server, shown)
    inputs = uploaded(ann, tmp_path, 1.2)
    task = submit(server, shown, inputs, steps=8, seed=7)
    victim = eventually(lambda: worked_on(database))
    eventually(lambda: writes(victim, server.data / "work"))
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: completed(ann, task))
    done = rows(database)[0]
    assert (done.fence, done.lost, len(done.outputs)) == (2, 1, 1)
    assert int(done.worker.rsplit(":")[-1]) != victim
    eventually(lambda: len(list((server.data / "files").rglob("*.mp4"))) == 1)
    assert len(list((server.data / "work").glob("*/*/*"))) == 0  # nor is anything else left of it


def test_a_killed_server_loses_nothing(running, tmp_path, database):
    shown = key(database)
    server = running(Server)
    inputs = uploaded(client(server, shown), tmp_path)
    once = {"headers": {"Idempotency-Key": "once"}}
    first = submit(server, shown, inputs, **QUICK, **once)
    tasks = [first, *(submit(server, shown, inputs, steps=1, seed=n + 1) for n in range(3))]
    victim = eventually(lambda: worked_on(database))
    server.stop(signal.SIGKILL)
    eventually(lambda: not alive(victim))  # its worker doesn't go on alone
    again = running(Server, port=server.port)
    assert submit(again, shown, inputs, **QUICK, **once) == first
    ann = client(again, shown)
    for task in tasks:
        eventually(lambda task=task: completed(ann, task))
    assert len(rows(database)) == len(tasks)


def test_a_stopped_server_gives_its_task_back(running, tmp_path, database):
    shown = key(database)
    server = running(Server)
    submit(server, shown, uploaded(client(server, shown), tmp_path, 4.0), steps=50)
    worker = eventually(lambda: worked_on(database))
    assert server.stop() == 0
    assert not alive(worker)
    assert (rows(database)[0].status, rows(database)[0].lost) == ("created", 0)


def test_postgresql_with_workers_elsewhere(running, tmp_path):
    with postgres() as make:
        url = make("served")
        database = Database(url)
        try:
            shown = key(database)
            server = running(Server, "--database", url, "--workers", "0")
            ann = client(server, shown)
            inputs = uploaded(ann, tmp_path)
            tasks = [submit(server, shown, inputs, steps=1, seed=n + 1) for n in range(4)]
            shared = ("--database", url, "--storage", str(server.data / "files"))
            worker = running(Process, "work", *shared, "--workers", "2", *DEMO)
            os.kill(eventually(lambda: worked_on(database)), signal.SIGKILL)
            for task in tasks:
                eventually(lambda task=task: completed(ann, task))
            assert worker.stop() == 0
            assert server.stop() == 0
        finally:
            database.close()
