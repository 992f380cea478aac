"""Worker processes: started anew when they die, ended when they must; here they take no time."""

import logging
import os
import signal
import threading
import time
from types import SimpleNamespace
from typing import ClassVar

import pytest

from latentsync.errors import BackendUnavailable
from latentsync.service import supervisor
from latentsync.service.settings import ServiceSettings
from latentsync.service.supervisor import Supervisor


class Process:
    """Stands in for a spawned one; `lives` says whether it goes on until it is ended."""

    made: ClassVar[list["Process"]]
    lives = False
    deaf = False  # to SIGTERM

    def __init__(self, target, args, daemon):
        assert (target, daemon) == (supervisor._work, True)
        self.slot, self.scratch = args[2], args[3]
        self.ended, self.told = threading.Event(), []
        self.exitcode = -11
        self.made.append(self)

    def start(self):
        assert list(self.scratch.iterdir()) == []
        (self.scratch / "half a clip").touch()
        if not self.lives:
            self.ended.set()

    def is_alive(self):
        return not self.ended.is_set()

    def join(self, seconds=None):
        self.ended.wait(seconds if seconds is None else min(seconds, 0.01))

    def terminate(self):
        self.told.append("terminate")
        if not self.deaf:
            self.ended.set()

    def kill(self):
        self.told.append("kill")
        self.ended.set()


@pytest.fixture
def spawned(monkeypatch):
    """The class of the processes that a supervisor makes."""

    class Spawned(Process):
        made: ClassVar[list[Process]] = []

    def context(how):
        assert how == "spawn"
        return SimpleNamespace(Process=Spawned)

    monkeypatch.setattr(supervisor.multiprocessing, "get_context", context)
    return Spawned


@pytest.fixture
def scratch(tmp_path):
    return tmp_path / "data" / "work"


def supervised(scratch, slots=1):
    return Supervisor(ServiceSettings(), slots, scratch, loader=lambda _: None)


def pauses_of(one, monkeypatch, number):
    """The pauses before so many processes, after which `one` stops."""
    pauses = []

    def wait(seconds):
        pauses.append(seconds)
        if len(pauses) == number:
            one._stopping.set()

    monkeypatch.setattr(one._stopping, "wait", wait)
    one._keep(0)
    return pauses


def test_who_dies_is_followed_after_longer_and_longer_pauses(spawned, scratch, monkeypatch, caplog):
    assert pauses_of(supervised(scratch), monkeypatch, 7) == [1, 2, 4, 8, 16, 30, 30]
    assert len(spawned.made) == 7
    assert "worker 0 ended (-11); another in 30 s" in caplog.text
    assert list(scratch.iterdir()) == []  # nothing is left of them


def test_who_lived_for_long_is_followed_soon(spawned, scratch, monkeypatch):
    monkeypatch.setattr(supervisor, "HEALTHY_SECONDS", -1.0)
    assert pauses_of(supervised(scratch), monkeypatch, 3) == [1, 1, 1]
    assert len(spawned.made) == 3


def test_a_stop_ends_every_worker(spawned, scratch):
    spawned.lives = True
    one = supervised(scratch, slots=2)
    one.start()
    while len(spawned.made) < 2:
        time.sleep(0.001)
    threading.Timer(0.05, one.stop).start()
    one.wait()
    one.stop()
    assert sorted(process.slot for process in spawned.made) == [0, 1]
    assert [process.told for process in spawned.made] == [["terminate"]] * 2
    assert not list(scratch.glob("*/"))


def test_supervisors_share_a_folder(spawned, scratch):
    """A second `serve` on the same data takes no clip away from the first one's workers."""
    spawned.lives = True
    one, other = supervised(scratch), supervised(scratch)
    one.start()
    while not spawned.made:
        time.sleep(0.001)
    kept = spawned.made[0].scratch
    other.start()
    other.stop()
    assert kept.is_dir()
    one.stop()
    assert not kept.exists()


def test_who_does_not_let_go_of_a_task_is_killed(spawned, scratch):
    spawned.lives = spawned.deaf = True
    one = supervised(scratch)
    one.start()
    while not spawned.made:
        time.sleep(0.001)
    one.stop()
    assert [process.told for process in spawned.made] == [["terminate", "kill"]]


def test_what_a_killed_supervisor_left_goes_at_the_next_start(spawned, scratch):
    spawned.lives = True
    (scratch / "7").mkdir(parents=True)
    (scratch / "7" / "half a clip").touch()
    scratch.parent.chmod(0o755)
    one = supervised(scratch)
    one.start()
    try:
        assert not (scratch / "7").exists()
        assert scratch.stat().st_mode & 0o777 == 0o700  # clips of people lie there
    finally:
        one.stop()


@pytest.fixture
def parent(monkeypatch):
    """The process that a worker belongs to, until `ended` is set."""
    ended = threading.Event()
    monkeypatch.setattr(
        supervisor.multiprocessing, "parent_process", lambda: SimpleNamespace(join=ended.wait)
    )
    yield ended
    ended.set()


@pytest.fixture
def signals(monkeypatch):
    """What a worker does on each signal."""
    found = {}
    monkeypatch.setattr(supervisor.signal, "signal", found.__setitem__)
    return found


@pytest.fixture(autouse=True)
def level():
    """Restores the log level that a worker sets in its process."""
    logger = logging.getLogger("latentsync.service")
    before = logger.level
    yield
    logger.setLevel(before)


class Works:
    """Stands in for a worker: works until it is to stop."""

    def __init__(self, service, run, name, scratch, stopping):
        self.given = (service.settings, run, name, scratch)
        self.stopping = stopping
        type(self).last = self

    def work(self):
        type(self).began.set()
        assert self.stopping.wait(10)


@pytest.fixture
def works(monkeypatch):
    class Now(Works):
        began = threading.Event()

    monkeypatch.setattr(supervisor, "Worker", Now)
    return Now


def begun(settings, works, scratch, loader=lambda _: "run"):
    thread = threading.Thread(
        target=supervisor._work, args=(settings, loader, 0, scratch, logging.INFO)
    )
    thread.start()
    assert works.began.wait(10)
    return thread


def test_a_worker_stops_on_a_signal(works, parent, signals, tmp_path):
    settings = ServiceSettings(data=tmp_path)
    thread = begun(settings, works, tmp_path)
    assert set(signals) == {signal.SIGTERM, signal.SIGINT}
    signals[signal.SIGTERM](signal.SIGTERM, None)
    thread.join()
    found, run, name, scratch = works.last.given
    assert (found, run, scratch) == (settings, "run", tmp_path)
    assert name.endswith(f":{os.getpid()}")
    assert not parent.is_set()


def test_a_worker_stops_when_its_supervisor_is_gone(works, parent, signals, tmp_path):
    thread = begun(ServiceSettings(data=tmp_path), works, tmp_path)
    parent.set()
    thread.join()
    assert signals


def test_a_worker_that_can_not_begin_says_why_in_a_line(parent, signals, tmp_path, caplog):
    def nothing_there(_):
        raise BackendUnavailable("no model here; download it")

    with pytest.raises(SystemExit) as ended:
        supervisor._work(ServiceSettings(data=tmp_path), nothing_there, 3, tmp_path, logging.INFO)
    assert ended.value.code == 1
    assert "worker 3 can't work: no model here; download it" in caplog.text
    assert not any(record.exc_info for record in caplog.records)
    assert signals
    assert not parent.is_set()
