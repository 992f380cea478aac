"""Tasks as rows: one lease at a time, one end, whoever dies when."""

import gc
import os
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
from sqlalchemy import Engine, event, select, text, update

from latentsync.errors import InputError, OptionError
from latentsync.service.keys import Keys, RateLimiter
from latentsync.service.settings import ServiceSettings
from latentsync.service.tables import Database, Delivery, Key, Setting, Task
from latentsync.service.tasks import Conflict, Tasks, TooMany
from tests.service_process import postgres

ASKED = {"video": "https://example.org/v", "audio": "https://example.org/a"}
HOOK = "https://example.org/hook"


@pytest.fixture(scope="module")
def server():
    with postgres() as make:
        yield make


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def database(request, tmp_path):
    if request.param == "sqlite":
        opened = Database(f"sqlite:///{tmp_path / 'tasks.db'}")
    else:
        opened = Database(request.getfixturevalue("server")(f"d{secrets.token_hex(8)}"))
    yield opened
    opened.close()


@pytest.fixture
def tasks(database):
    return Tasks(database)


@pytest.fixture
def key(database):
    return Keys(database).create("ann", at_once=50)[0]


def lease(tasks, seconds=30.0, max_lost=3):
    return tasks.lease("worker", seconds, max_lost)


def test_the_one_that_waited_longest_goes_first(tasks, key):
    made = [tasks.create(key, "m", ASKED).id for _ in range(3)]
    assert [lease(tasks).id for _ in made] == made
    assert lease(tasks) is None


def others(database, *names):
    return [Keys(database).create(name, at_once=50)[0] for name in names]


def test_keys_take_turns(tasks, key, database):
    (bob,) = others(database, "bob")
    many = [tasks.create(key, "m", ASKED).id for _ in range(4)]
    few = [tasks.create(bob, "m", ASKED).id for _ in range(2)]
    taken = []
    for _ in range(6):  # one worker
        taken.append(lease(tasks))
        tasks.finish(taken[-1], [], 1, 0)
    assert [one.id for one in taken] == [many[0], few[0], many[1], few[1], many[2], many[3]]


def test_the_key_with_the_fewest_tasks_at_work_goes_first(tasks, key, database):
    bob, eve = others(database, "bob", "eve")
    many = [tasks.create(key, "m", ASKED).id for _ in range(4)]
    held = [lease(tasks) for _ in range(3)]  # nobody else wanted anything
    waiting = [tasks.create(owner, "m", ASKED).id for owner in (bob, bob, eve)]
    assert [lease(tasks).id for _ in range(3)] == [waiting[0], waiting[2], waiting[1]]
    for one in held:
        tasks.finish(one, [], 1, 0)
    assert lease(tasks).id == many[3]


def test_who_waited_is_not_overtaken_by_who_comes_again(tasks, key, database):
    """A key that comes back after each task has no more turns than one that waits."""
    (bob,) = others(database, "bob")
    for _ in range(3):
        tasks.create(bob, "m", ASKED)
    owners = []
    for _ in range(4):
        tasks.create(key, "m", ASKED)
        taken = lease(tasks)
        owners.append(taken.key_id)
        tasks.finish(taken, [], 1, 0)
    assert sorted(owners[:2]) == sorted(owners[2:]) == sorted([key.id, bob.id])


def test_a_dead_workers_task_counts_as_waiting(tasks, key, database):
    (bob,) = others(database, "bob")
    made = tasks.create(key, "m", ASKED).id
    assert lease(tasks, -1).id == made
    tasks.create(bob, "m", ASKED)
    assert {lease(tasks).key_id for _ in range(2)} == {key.id, bob.id}


def test_a_task_that_is_not_due_holds_up_nobody(tasks, key):
    made = [tasks.create(key, "m", ASKED).id for _ in range(2)]
    assert tasks.postpone(lease(tasks), 3600)
    assert lease(tasks).id == made[1]
    assert lease(tasks) is None


def test_text_that_no_database_holds_names_no_task(tasks, key):
    for odd in ("\0", "\ud800", "a" * 31 + "\0"):
        assert tasks.get(key.id, odd) is None
        assert tasks.cancel(key.id, odd) is None
        assert tasks.delete(key.id, [odd]) == 0


def test_one_worker_gets_it(tasks, key):
    made = {tasks.create(key, "m", ASKED).id for _ in range(20)}
    got = []

    def work():
        while leased := lease(tasks):
            got.append(leased.id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == sorted(made)


def test_a_lease_that_ran_out_goes_to_another_and_the_late_result_is_dropped(tasks, key):
    made = tasks.create(key, "m", ASKED)
    late = lease(tasks, -1)
    fresh = lease(tasks)
    assert fresh.id == late.id
    assert not tasks.extend(late, 30)
    assert not tasks.finish(late, ["late"], 1, 0)
    assert not tasks.fail(late, "late")
    assert not tasks.release(late)
    assert tasks.finish(fresh, ["fresh"], 7, 0)
    assert not tasks.finish(fresh, ["again"], 8, 0)
    done = tasks.get(key.id, made.id)
    assert (done.status, done.outputs, done.inference_ms) == ("completed", ["fresh"], 7)


def test_a_heartbeat_keeps_the_lease(tasks, key):
    tasks.create(key, "m", ASKED)
    held = lease(tasks, -1)
    assert tasks.extend(held, 30)
    assert lease(tasks) is None


def test_a_task_that_workers_die_over_is_given_up(tasks, key):
    made = tasks.create(key, "m", ASKED, webhook=HOOK)
    for _ in range(3):
        assert lease(tasks, -1).id == made.id
    assert lease(tasks) is None
    failed = tasks.get(key.id, made.id)
    assert failed.status == "failed"
    assert "3 workers died" in failed.error


def test_giving_back_costs_nothing(tasks, key):
    made = tasks.create(key, "m", ASKED)
    for _ in range(5):
        assert tasks.release(lease(tasks))
    assert lease(tasks).id == made.id


def test_the_same_idempotency_key_makes_one_task(tasks, key, database):
    made = []

    def create():
        made.append(tasks.create(key, "m", ASKED, idempotency_key="once").id)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert len(set(made)) == 1
    with pytest.raises(Conflict, match="another request"):
        tasks.create(key, "m", ASKED | {"seed": 1}, idempotency_key="once")
    other = Keys(database).create("bob")[0]
    assert tasks.create(other, "m", ASKED, idempotency_key="once").id not in made


def test_so_many_at_once(tasks, database):
    key = Keys(database).create("two", at_once=2)[0]
    first, refused = tasks.create(key, "m", ASKED), []

    def create():
        try:
            tasks.create(key, "m", ASKED)
        except TooMany as error:
            refused.append(error)

    threads = [threading.Thread(target=create) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    tasks.cancel(key.id, first.id)
    tasks.create(key, "m", ASKED)


def test_cancelling_takes_it_from_its_worker(tasks, key):
    made = tasks.create(key, "m", ASKED)
    held = lease(tasks)
    assert tasks.cancel(key.id, made.id).status == "cancelled"
    assert not tasks.extend(held, 30)
    assert not tasks.finish(held, ["late"], 1, 0)
    assert lease(tasks) is None
    assert tasks.cancel(key.id, made.id).status == "cancelled"


def test_what_is_completed_is_not_cancelled(tasks, key):
    made = tasks.create(key, "m", ASKED)
    tasks.finish(lease(tasks), [], 1, 0)
    assert tasks.cancel(key.id, made.id).status == "completed"


def test_another_keys_tasks_are_not_there(tasks, key, database):
    made = tasks.create(key, "m", ASKED)
    other = Keys(database).create("bob")[0]
    assert tasks.get(other.id, made.id) is None
    assert tasks.cancel(other.id, made.id) is None
    assert tasks.delete(other.id, [made.id]) == 0
    assert tasks.page(other.id, 1, 10).tasks == []
    assert tasks.get(key.id, made.id).status == "created"


def test_pages(tasks, key):
    made = [tasks.create(key, "m", ASKED).id for _ in range(5)]
    tasks.finish(lease(tasks), [], 1, 0)
    pages = [tasks.page(key.id, number, 2) for number in (1, 2, 3, 4)]
    assert [task.id for page in pages for task in page.tasks] == made[::-1]
    assert {page.total for page in pages} == {5}
    assert tasks.page(key.id, 1, 9, status="completed").tasks[0].id == made[0]
    middle = tasks.get(key.id, made[2]).created_at
    assert tasks.page(key.id, 1, 9, after=middle).total == 3
    assert tasks.page(key.id, 1, 9, before=middle).total == 2
    assert tasks.page(key.id, 1, 9, model="another").total == 0


def test_every_end_has_its_delivery(tasks, key, database):
    made = [tasks.create(key, "m", ASKED, webhook=HOOK).id for _ in range(3)]
    tasks.create(key, "m", ASKED)
    tasks.finish(lease(tasks), [], 1, 0)
    tasks.fail(lease(tasks), "why")
    tasks.cancel(key.id, made[2])
    tasks.finish(lease(tasks), [], 1, 0)  # nobody is to be told of this one
    with database.reading() as session:
        assert sorted(session.scalars(select(Delivery.task_id))) == sorted(made)


def test_what_ended_long_ago_is_forgotten(tasks, key, database):
    made = [tasks.create(key, "m", ASKED, webhook=HOOK).id for _ in range(3)]
    tasks.finish(lease(tasks), [], 1, 0)
    tasks.fail(lease(tasks), "why")
    with database.writing() as session:
        session.execute(update(Task).where(Task.id == made[0]).values(ended_at=100.0))
    assert tasks.forget(101.0) == 1
    assert {task.id for task in tasks.page(key.id, 1, 9).tasks} == set(made[1:])


def test_keys_are_not_stored(database, tmp_path):
    _, shown = Keys(database).create("ann")
    with database.reading() as session:
        key = session.scalars(select(Key)).one()
    assert shown not in str(vars(key))
    database.close()
    assert shown.encode() not in b"".join(
        path.read_bytes() for path in tmp_path.iterdir()
    )  # SQLite


def test_keys_are_found_and_revoked(database):
    keys = Keys(database)
    key, shown = keys.create("ann")
    assert keys.find(shown).id == key.id
    assert keys.all()[0].key.used_at
    assert keys.find(shown[:-1]) is None
    assert keys.find("") is None
    keys.revoke("ann")
    assert keys.find(shown) is None
    with pytest.raises(OptionError, match="no key 'ann'"):
        keys.revoke("ann")
    with pytest.raises(OptionError, match="another name"):
        keys.create("ann")
    with pytest.raises(OptionError, match="limits of 1 or more"):
        keys.create("bob", at_once=0)
    with pytest.raises(OptionError, match="0 bytes; it must have a name, and limits of 1 or more"):
        keys.create("bob", max_bytes=0)


def test_requests_at_once_without_a_key_stand_for_one(database):
    keys, together = Keys(database), threading.Barrier(4)

    def ask(_):
        together.wait()
        return keys.local().id

    with ThreadPoolExecutor(4) as threads:
        assert len(set(threads.map(ask, range(4)))) == 1


def test_a_bucket_fills_again():
    key, buckets = Key(id="a", per_minute=2), RateLimiter()
    assert [buckets.take(key, 100.0) for _ in range(3)] == [0, 0, 30.0]
    assert buckets.take(key, 129.0) == pytest.approx(1.0)
    assert buckets.take(key, 131.0) == 0
    assert buckets.take(Key(id="b", per_minute=2), 131.0) == 0


def test_a_bucket_holds_no_more_than_a_minute_allows():
    key, buckets = Key(id="a", per_minute=2), RateLimiter()
    assert buckets.take(key, 0.0) == 0
    assert [buckets.take(key, 3600.0) for _ in range(3)] == [0, 0, 30.0]


@pytest.mark.parametrize(
    "url",
    ["nonsense", "sqlite:////proc/no/such/tasks.db", "postgresql+psycopg://ann:word@127.0.0.1:1/x"],
)
def test_a_database_that_is_none(url):
    with pytest.raises(InputError, match="it must be sqlite:///FILE or") as caught:
        Database(url)
    assert "word" not in str(caught.value)


def test_a_full_disk_is_named_and_no_other_url_is_asked_for(tmp_path):
    def no_room(connection, _):
        connection.execute("PRAGMA max_page_count = 1")

    event.listen(Engine, "connect", no_room)
    try:
        with pytest.raises(InputError, match=r"tasks\.db: its disk is full .*make room") as caught:
            Database(f"sqlite:///{tmp_path / 'tasks.db'}")
    finally:
        event.remove(Engine, "connect", no_room)
    assert "it must be" not in str(caught.value)
    del caught
    gc.collect()  # Python 3.13 warns of a connection that is left open
    Database(f"sqlite:///{tmp_path / 'tasks.db'}").close()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o000])
def test_sqlite_is_for_its_owners_eyes(tmp_path, umask):
    before = os.umask(umask)
    try:
        data = tmp_path / "data"
        opened = Database(ServiceSettings(data=data).database_url)
        with opened.writing() as session:
            session.add(Setting(name="x", value="y"))
        beside = {path.name: path.stat().st_mode & 0o777 for path in data.iterdir()}
        assert beside == dict.fromkeys(("tasks.db", "tasks.db-wal", "tasks.db-shm"), 0o600)
        assert data.stat().st_mode & 0o777 == 0o700
        opened.close()
        (data / "tasks.db").chmod(0o644)  # as earlier versions left it
        Database(f"sqlite:///{data / 'tasks.db'}").close()
        assert (data / "tasks.db").stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)


def test_tables_of_an_earlier_version_are_brought_up_to_date(database):
    url = database.engine.url.render_as_string(hide_password=False)
    key = Keys(database).create("ann")[0]
    made = Tasks(database).create(key, "m", ASKED, webhook=HOOK)
    with database.writing() as session:
        session.execute(update(Setting).where(Setting.name == "schema").values(value="1"))
        for column in ("keys.max_bytes", "keys.turn_at", "tasks.not_before", "tasks.troubled_at",
                       "deliveries.key_id", "deliveries.host",
                       "deliveries.claimed_until"):  # fmt: skip
            table, name = column.split(".")
            session.execute(text(f"ALTER TABLE {table} DROP COLUMN {name}"))
    database.close()
    with closing(Database(url)) as again:
        tasks = Tasks(again)
        assert tasks.lease("worker", 30.0, 3).id == made.id
        tasks.cancel(key.id, made.id)
        with again.reading() as session:
            assert session.get(Setting, "schema").value == "2"
            assert session.scalars(select(Delivery)).one().host == "example.org"
    Database(url).close()  # and nothing is added twice


def test_another_schema(database):
    with database.writing() as session:
        session.execute(update(Setting).values(value="0"))
    with pytest.raises(InputError, match="tables of schema 0"):
        Database(database.engine.url.render_as_string(hide_password=False))
