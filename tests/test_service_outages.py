"""The storage or the database is away for a while: nothing is lost, nothing fails, none twice."""

import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import InternalError, OperationalError

from latentsync.service import app, container, outages, tables, tasks, worker
from latentsync.service.background_jobs import BackgroundJobs
from latentsync.service.outages import Backoff, DiskFull, Outage
from latentsync.service.storage import LocalStorage
from latentsync.service.tables import Delivery, File, Task
from latentsync.service.worker import GIVEN_UP
from tests.service import ELSEWHERE, SUBMIT, house, joined
from tests.test_service_worker import hooked, run_out, stored, until_stopped

HOOK = "https://example.org/hook"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(tables, "BUSY_SECONDS", 0.02)
    monkeypatch.setattr(worker, "PAUSE_SECONDS", (0.01, 0.05))
    monkeypatch.setattr(worker, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(tasks, "PAUSE_SECONDS", (0.0, 0.0))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(
        worker, "BEATS_PER_LEASE", 600
    )  # in a lease, which no slow machine lets run out
    with house(tmp_path, private_addresses=True) as made:
        yield made


@pytest.fixture
def hasty(home, monkeypatch):
    """The same, with leases of a fifth of a second."""
    monkeypatch.setattr(worker, "BEATS_PER_LEASE", 4)
    settings = replace(home.service.settings, lease_seconds=0.2)
    container._write_agreed(home.service.database, settings)
    return home


@pytest.fixture
def ann(home):
    return home.person("ann")


class Away:
    """The folder of the storage, moved elsewhere and back."""

    def __init__(self, home):
        self.here = home.service.settings.data / "files"
        self.there = self.here.with_name("unmounted")

    def go(self):
        self.here.rename(self.there)

    def come_back(self):
        self.there.rename(self.here)


@contextmanager
def locked(home):
    """Another program has the lock of the database's writers."""
    file = home.service.settings.data / "tasks.db"
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other
        if other.in_transaction:
            other.rollback()


def row(home):
    with home.service.database.reading() as session:
        return session.scalars(select(Task)).one()


def deliveries(home):
    with home.service.database.reading() as session:
        return session.scalars(select(Delivery)).all()


def completed_once(home, ann, task):
    """Whether it is, with its one output."""
    home.service.files.sweep()
    done = ann.result(task)
    assert (done["status"], done["error"], len(done["outputs"])) == ("completed", "", 1)
    assert home.client.get(done["outputs"][0]).content == b"face+voice0"
    assert len(stored(home)) == 3
    assert row(home).lost == 0
    return True


def test_a_storage_that_is_away_fails_no_task(home, ann):
    task = hooked(ann, HOOK).json()["data"]
    away = Away(home)
    away.go()
    for _ in range(5):
        assert home.worker().work_once()
        seen = ann.result(task)
        assert (seen["status"], seen["error"], seen["outputs"]) == ("created", "", [])
    assert deliveries(home) == []
    away.come_back()
    home.worker().work_once()
    assert completed_once(home, ann, task)
    assert len(deliveries(home)) == 1


def test_a_storage_that_lost_its_content_fails_no_task(home, ann):
    """An empty mount point, or another bucket of the same name."""
    task = ann.speaking()
    away = Away(home)
    away.go()
    away.here.mkdir()
    home.worker().work_once()
    assert ann.result(task)["status"] == "created"
    away.here.rmdir()
    away.come_back()
    home.worker().work_once()
    assert completed_once(home, ann, task)


def test_what_was_made_waits_for_the_storage(home, ann):
    task, away, runs = ann.speaking(), Away(home), []

    def run(*given):
        joined(*given)
        runs.append(1)
        away.go()
        threading.Timer(0.3, away.come_back).start()

    home.worker(run).work_once()
    assert completed_once(home, ann, task)
    assert len(runs) == 1


def test_what_was_made_is_given_up_where_the_storage_stays_away(home, ann, monkeypatch):
    monkeypatch.setattr(worker, "STORE_SECONDS", 0.0)
    task, away = ann.speaking(), Away(home)

    def run(*given):
        joined(*given)
        away.go()

    home.worker(run).work_once()
    assert ann.result(task)["status"] == "created"
    away.come_back()
    home.worker().work_once()
    assert completed_once(home, ann, task)


def test_a_task_that_is_cancelled_while_its_output_waits_is_cancelled(home, ann):
    task, away = ann.speaking(), Away(home)

    def run(*given):
        joined(*given)
        away.go()
        home.service.tasks.cancel(ann.key.id, task["id"])

    home.worker(run).work_once()
    assert ann.result(task)["status"] == "cancelled"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(122, "Quota")])
def test_a_full_disk_of_the_worker_fails_no_task(home, ann, error):
    def full(*_):
        raise error

    task = ann.speaking()
    home.worker(full).work_once()
    assert (ann.result(task)["status"], ann.result(task)["error"]) == ("created", "")
    home.worker().work_once()
    assert completed_once(home, ann, task)


def test_a_worker_without_the_database_for_a_lease_stops_and_the_task_begins_anew(hasty, ann):
    task, stopped = ann.speaking(), []
    with locked(hasty) as lock:

        def run(*given):
            lock.execute("BEGIN IMMEDIATE")
            until_stopped(*given[:-1], lambda: given[-1]() and (stopped.append(1) or True))

        lock.rollback()
        threading.Timer(0.7, lambda: lock.rollback()).start()
        hasty.worker(run).work_once()
    assert stopped
    assert ann.result(task)["status"] == "created"
    hasty.worker().work_once()
    assert completed_once(hasty, ann, task)


def test_what_was_made_waits_for_the_database(hasty, ann):
    task, runs = ann.speaking(), []
    with locked(hasty) as lock:
        lock.rollback()

        def run(*given):
            joined(*given[:4], lambda: False)
            runs.append(1)
            lock.execute("BEGIN IMMEDIATE")
            threading.Timer(0.5, lock.rollback).start()  # more than two leases

        hasty.worker(run).work_once()
    assert completed_once(hasty, ann, task)
    assert len(runs) == 1


def test_a_worker_outlives_outages_of_the_database(home, ann):
    stopping, made = threading.Event(), []

    def run(*given):
        made.append(given[0].read_bytes())
        joined(*given)

    task, one = ann.speaking(), home.worker(run, stopping)
    with locked(home):
        thread = threading.Thread(target=one.work)
        thread.start()
        time.sleep(0.3)
        assert thread.is_alive()
        assert made == []
    while ann.result(task)["status"] != "completed":
        time.sleep(0.01)
    stopping.set()
    thread.join()
    assert completed_once(home, ann, task)


def test_whose_lease_ran_out_in_an_outage_is_not_taken_for_dead(home, ann):
    task = ann.speaking()

    def silent(*given):
        run_out(home)
        while (taken := home.lease()) is None:
            run_out(home)  # a heartbeat came between
        assert taken.lost == 1
        until_stopped(*given)

    home.worker(silent).work_once()
    assert ann.result(task)["status"] == "processing"
    assert row(home).lost == 0


def test_a_stop_does_not_wait_for_the_database(home, ann):
    ann.speaking()
    stopping = threading.Event()
    with locked(home) as lock:
        lock.rollback()

        def run(*given):
            lock.execute("BEGIN IMMEDIATE")
            stopping.set()
            until_stopped(*given)

        home.worker(run, stopping).work()
    assert row(home).status == "processing"  # until its lease runs out


def test_trouble_has_an_end(home, ann):
    task = hooked(ann, HOOK).json()["data"]
    Away(home).go()
    home.worker().work_once()
    began = row(home).troubled_at
    home.worker().work_once()
    assert row(home).troubled_at == began
    with home.service.database.writing() as session:
        session.execute(update(Task).values(troubled_at=began - 24 * 3600))
    home.worker().work_once()
    assert (ann.result(task)["status"], ann.result(task)["error"]) == ("failed", GIVEN_UP)
    assert len(deliveries(home)) == 1


def test_pauses_grow_with_the_trouble(home, ann, monkeypatch):
    monkeypatch.setattr(tasks, "PAUSE_SECONDS", (2.0, 60.0))
    ann.submit()
    clock, pauses = SimpleNamespace(now=time.time()), []
    monkeypatch.setattr("time.time", lambda: clock.now)
    for _ in range(8):
        lease = home.lease()
        assert home.service.tasks.postpone(lease, 1e6)
        assert home.lease() is None
        pauses.append(round(row(home).not_before - clock.now, 3))
        clock.now = row(home).not_before
    assert pauses == [2, 2, 4, 8, 16, 32, 60, 60]


def test_an_address_that_does_not_answer_is_asked_again_for_a_while(home, ann):
    task = ann.submit(video="http://127.0.0.1:1/face.mp4", audio=ann.upload(b"voice"))
    home.worker().work_once()
    assert ann.result(task)["status"] == "created"
    with home.service.database.writing() as session:
        session.execute(update(Task).values(troubled_at=time.time() - 301))
    home.worker().work_once()
    assert ann.result(task)["status"] == "failed"
    assert "'http://127.0.0.1:1/face.mp4' can't be reached" in ann.result(task)["error"]


def test_pauses_double_up_to_the_longest():
    pauses = Backoff(1.0, 5.0)
    assert [pauses.pause() for _ in range(5)] == [1, 2, 4, 5, 5]
    pauses.reset()
    assert pauses.pause() == 1


# What clients are told.


def told(answer, status):
    """The message; it has no word of what is ours."""
    assert answer.status_code == status, answer.text
    assert 0 < int(answer.headers["retry-after"]) <= 60
    for ours in ("tmp", "files", "database", "sqlite", "lock", "s3"):
        assert ours not in answer.text.lower()
    return answer.json()["message"]


def test_a_locked_database_is_answered_503(home, ann):
    task = ann.submit()
    with locked(home):
        for path, body in (
            (SUBMIT, ELSEWHERE),
            ("/api/v3/media/uploads", {"size": 4}),
            (f"/api/v3/predictions/{task['id']}/cancel", None),
            ("/api/v3/predictions/delete", {"ids": [task["id"]]}),
        ):
            assert "try again" in told(ann.post(path, body), 503)
        with home.service.database.reading() as session:  # a key that wasn't used for long
            assert session.get(Task, task["id"])
        assert ann.result(task)["status"] == "created"  # readers need no lock
        assert home.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    ("error", "code", "kind"),
    [
        (InternalError, "25006", Outage),  # PostgreSQL's of a database that only reads
        (InternalError, "25P03", Outage),  # of a transaction in which nothing was said for long
        (OperationalError, "53100", DiskFull),  # of a full disk
        (OperationalError, "57P03", Outage),  # of a server that is starting up
    ],
)
def test_what_a_server_says_of_itself_is_an_outage(error, code, kind):
    said = Exception("not now")
    said.sqlstate = code
    with pytest.raises(Outage, match="not now") as told, tables._outages():
        raise error("UPDATE tasks", {}, said)
    assert type(told.value) is kind


def test_a_key_is_good_while_the_database_is_locked(home, ann, monkeypatch):
    clock, tries, writing = [time.time()], [], home.service.database.writing
    monkeypatch.setattr("time.time", lambda: clock[0])
    monkeypatch.setattr(home.service.database, "writing", lambda: tries.append(1) or writing())
    with locked(home):
        for _ in range(3):
            assert ann.get("/api/v3/predictions").status_code == 200
    assert len(tries) == 1  # each waits for the lock
    clock[0] += 61
    assert ann.get("/api/v3/predictions").status_code == 200
    assert home.service.keys.all()[0].key.used_at == clock[0]


def test_an_upload_that_could_not_be_stored_can_be_sent_again(home, ann):
    ticket = ann.post("/api/v3/media/uploads", {"size": 4}).json()["data"]
    away = Away(home)
    away.go()
    assert "try again" in told(home.client.request(**ticket["upload"], content=b"face"), 503)
    told(home.client.get(ticket["download_url"]), 503)
    away.come_back()
    assert home.client.request(**ticket["upload"], content=b"face").status_code == 200
    assert home.client.get(ticket["download_url"]).content == b"face"


def full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "where", ["put", "database", "latentsync.service.file_routes.NamedTemporaryFile"]
)
def test_an_upload_to_a_full_disk_is_answered_507(home, ann, monkeypatch, where):
    ticket = ann.post("/api/v3/media/uploads", {"size": 4}).json()["data"]
    with monkeypatch.context() as patch:
        if where == "put":
            patch.setattr("latentsync.service.storage.write_whole", full)
        elif where == "database":
            database = home.service.database
            with database.writing() as session:
                pages = session.connection().exec_driver_sql("PRAGMA page_count").scalar()

            def no_more(connection, *_):
                connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")

            from sqlalchemy import event

            event.listen(database.engine, "begin", no_more)
            ticket_text = {"size": 4, "content_type": "a/" + "b" * 150}
            answers = (ann.post("/api/v3/media/uploads", ticket_text) for _ in range(500))
            assert "no room" in told(next(a for a in answers if a.status_code != 200), 507)
            event.remove(database.engine, "begin", no_more)
            return
        else:
            patch.setattr(where, full)
        assert "no room" in told(home.client.request(**ticket["upload"], content=b"face"), 507)
    assert home.client.request(**ticket["upload"], content=b"face").status_code == 200


def test_health_tells_of_a_database_that_does_not_answer(home, monkeypatch):
    monkeypatch.setattr(app, "HEALTH_SECONDS", 0.05)
    waiting = threading.Event()
    monkeypatch.setattr(home.service.tasks, "counts", lambda: waiting.wait(10) and {})
    with home.client:  # one event loop, as a server has
        for _ in range(3):  # the second and third find the one thread taken
            told(home.client.get("/health"), 503)
        waiting.set()


def test_a_fault_of_the_system_is_ours(home, ann, monkeypatch):
    def broken(*_, **__):
        raise OSError(5, "Input/output error on /srv/secret")

    monkeypatch.setattr("latentsync.service.file_routes.make_private", broken)
    ticket = ann.post("/api/v3/media/uploads", {"size": 4}).json()["data"]
    answer = home.client.request(**ticket["upload"], content=b"face")
    assert answer.status_code == 500
    assert "secret" not in answer.text


# Housekeeping and what expires.


def test_housekeeping_waits_for_the_database_with_one_line_a_try(home, monkeypatch, caplog):
    tries = []

    def job():
        tries.append(1)
        if len(tries) == 4:
            keeper._stopping.set()
        raise Outage("the database is away")

    keeper = BackgroundJobs(home.context)
    pauses = []
    monkeypatch.setattr(keeper._stopping, "wait", pauses.append)
    keeper._repeat(job, 0.5)
    assert pauses == [0.5, 1.0, 2.0, 4.0]
    assert [record.message for record in caplog.records] == [
        "background jobs are waiting: the database is away"
    ] * 4
    assert not any(record.exc_info for record in caplog.records)


def test_no_upload_expires_that_a_task_waits_for(home, ann):
    task = ann.speaking()
    ended = ann.speaking()
    home.service.tasks.cancel(ann.key.id, ended["id"])
    with home.service.database.writing() as session:
        session.execute(update(File).values(expires_at=time.time() - 5))
    keeper = BackgroundJobs(home.context)
    while keeper._sweep():
        pass
    assert len(stored(home)) == 2
    home.worker().work_once()
    assert ann.result(task)["status"] == "completed"


def test_what_its_owner_deleted_is_kept_for_no_task(home, ann):
    first = ann.speaking()
    home.worker().work_once()
    ann.submit(video=ann.result(first)["outputs"][0], audio=ann.upload(b"more"))
    home.service.tasks.delete(ann.key.id, [first["id"]])
    before = len(stored(home))
    BackgroundJobs(home.context)._sweep()
    assert len(stored(home)) == before - 1


def test_a_full_folder_is_told_from_one_that_is_away(tmp_path, monkeypatch):
    storage = LocalStorage(tmp_path / "kept")
    (tmp_path / "clip").write_bytes(b"face")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(DiskFull, match="make room"):
            storage.put("clip", tmp_path / "clip")
    (tmp_path / "kept").rmdir()
    for ask in (
        lambda: storage.put("clip", tmp_path / "clip"),
        lambda: list(storage.read("clip")),
        lambda: storage.size("clip"),
        lambda: list(storage.entries()),
    ):
        with pytest.raises(Outage) as caught:
            ask()
        assert type(caught.value) is Outage
    assert not outages.is_disk_full(caught.value)
