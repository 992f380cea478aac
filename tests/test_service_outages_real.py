"""PostgreSQL and an S3 store that stop and come back, under load: every task completes, once."""

import os
import secrets
import threading
import time
from collections import Counter
from contextlib import contextmanager

import httpx
import pytest
from sqlalchemy import select, text

from latentsync.errors import Cancelled
from latentsync.service import tasks, worker
from latentsync.service.background_jobs import BackgroundJobs
from latentsync.service.tables import Delivery, Task
from tests.service import ELSEWHERE, SUBMIT, house, joined
from tests.service_process import eventually, postgres

pytestmark = pytest.mark.slow

LEASE_SECONDS = 1.0
AWAY_SECONDS = 4.0  # four leases
TASKS, WORKERS = 12, 3


@pytest.fixture(scope="module")
def server():
    with postgres() as running:
        yield running


class Store:
    """An S3 store, which forgets nothing while it is stopped."""

    port = 0

    def start(self):
        from moto.server import ThreadedMotoServer  # only `make test-all` installs it

        self._server = ThreadedMotoServer("127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def stop(self):
        self._server.stop()


@pytest.fixture(scope="module")
def store():
    running = Store()
    running.start()
    yield running
    running.stop()


@pytest.fixture
def home(tmp_path, server, store, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(worker, "PAUSE_SECONDS", (0.1, 0.5))
    monkeypatch.setattr(tasks, "PAUSE_SECONDS", (0.1, 0.5))
    monkeypatch.setattr("latentsync.service.background_jobs.MAX_PAUSE_SECONDS", 0.5)
    name = f"o{secrets.token_hex(8)}"
    where = f"s3://{name}?endpoint=http://127.0.0.1:{store.port}&region=us-east-1"
    with house(
        tmp_path,
        database=server(name),
        storage=where,
        lease_seconds=LEASE_SECONDS,
        private_addresses=True,
    ) as made:
        made.service.files.storage._client.create_bucket(Bucket=name)
        yield made


def uploaded(ann):
    """Inputs, put where the ticket says: into the store itself."""
    found = {}
    for what, content in (("video", b"face"), ("audio", b"voice")):
        ticket = ann.post("/api/v3/media/uploads", {"size": len(content)}).json()["data"]
        assert httpx.put(ticket["upload"]["url"], content=content).status_code == 200
        found[what] = ticket["download_url"]
    return found


@contextmanager
def working(home, runs):
    """Workers at their work; each run takes a quarter of a second, and is counted."""
    stopping = threading.Event()

    def run(*given):
        runs.append(given[3].seed)
        for _ in range(5):
            time.sleep(0.05)
            if given[4]():
                raise Cancelled("taken away")
        joined(*given[:4], lambda: False)

    workers = [home.worker(run, stopping) for _ in range(WORKERS)]
    threads = [threading.Thread(target=one.work) for one in workers]
    keeper = BackgroundJobs(home.context)
    keeper.start()
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        stopping.set()
        for thread in threads:
            thread.join()
        keeper.stop()


def all_complete_once(home, ann, made):
    assert [ann.result(task)["error"] for task in made] == [""] * TASKS
    with home.service.database.reading() as session:
        rows = session.scalars(select(Task)).all()
        told = Counter(session.scalars(select(Delivery.task_id)))
    assert {row.status for row in rows} == {"completed"}
    assert {len(row.outputs) for row in rows} == {1}
    assert told == dict.fromkeys((row.id for row in rows), 1)
    while home.service.files.sweep():
        pass
    assert len(list(home.service.files.storage.entries())) == 2 + TASKS


def settled(home):
    """Whether every task has ended."""
    counts = home.service.tasks.counts()
    return not {"created", "processing"} & set(counts)


def load(ann):
    inputs = uploaded(ann)
    answers = [
        ann.post(f"{SUBMIT}?webhook=http://127.0.0.1:1/", inputs | {"seed": number + 1})
        for number in range(TASKS)
    ]
    return [answer.json()["data"] for answer in answers]


def test_the_database_stops_under_load(home, server):
    ann, runs = home.person(), []
    made = load(ann)
    with working(home, runs) as threads:
        eventually(lambda: len(runs) >= 4)
        server.stop()
        refused = ann.get("/api/v3/predictions")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        assert "postgres" not in refused.text
        time.sleep(AWAY_SECONDS)
        assert all(thread.is_alive() for thread in threads)
        server.start()
        eventually(lambda: settled(home), 60)
    all_complete_once(home, ann, made)


def test_the_tables_are_locked_under_load(home):
    ann, runs = home.person(), []
    made = load(ann)
    with working(home, runs):
        eventually(lambda: len(runs) >= 4)
        with home.service.database.engine.begin() as other:
            other.execute(text("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"))
            time.sleep(AWAY_SECONDS)
        eventually(lambda: settled(home), 60)
    all_complete_once(home, ann, made)


def only_read(home, word):
    """Let the database only read ("on") or write again ("off"), as by a change of servers."""
    engine = home.service.database.engine
    with engine.connect() as other:
        other.execute(text("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE"))
        other.commit()
        setting = f"ALTER DATABASE {engine.url.database} SET default_transaction_read_only"
        other.execute(text(f"{setting} = {word}"))
        other.execute(text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        ))  # fmt: skip
        other.commit()
        now = "ONLY" if word == "on" else "WRITE"  # this connection goes on
        other.execute(text(f"SET SESSION CHARACTERISTICS AS TRANSACTION READ {now}"))
        other.commit()


def test_the_database_only_reads_under_load(home):
    ann, runs = home.person(), []
    made = load(ann)
    with working(home, runs) as threads:
        eventually(lambda: len(runs) >= 4)
        only_read(home, "on")
        assert ann.post(SUBMIT, ELSEWHERE).status_code == 503
        time.sleep(AWAY_SECONDS)
        assert all(thread.is_alive() for thread in threads)
        only_read(home, "off")
        eventually(lambda: settled(home), 60)
    all_complete_once(home, ann, made)


def test_the_store_stops_under_load(home, store):
    ann, runs = home.person(), []
    made = load(ann)
    with working(home, runs) as threads:
        eventually(lambda: len(runs) >= 4)
        store.stop()
        time.sleep(AWAY_SECONDS)
        assert all(thread.is_alive() for thread in threads)
        counts = home.service.tasks.counts()
        assert set(counts) <= {"created", "processing", "completed"}
        store.start()
        eventually(lambda: settled(home), 60)
    all_complete_once(home, ann, made)
