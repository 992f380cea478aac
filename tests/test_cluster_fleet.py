"""Replicas that serve: how many there should be, who comes and leaves, and a machine that dies."""

from itertools import pairwise
from types import SimpleNamespace

import pytest

from latentsync.errors import OptionError
from latentsync.service import fleet as fleets
from latentsync.service.fleet import IDLE_SECONDS, Fleet, serving, wanted
from latentsync.service.outages import Outage
from tests.service import house, joined
from tests.test_cluster import two_nodes


@pytest.mark.parametrize(
    ("waiting", "processing", "replicas", "idle", "expected"),
    [
        (0, 0, 0, 0, 1),  # the least
        (3, 1, 1, 0, 4),  # one a task, at once
        (90, 1, 1, 0, 5),  # the most
        (0, 2, 4, IDLE_SECONDS - 1, 4),  # a pause between two tasks
        (0, 2, 4, IDLE_SECONDS, 2),
        (1, 2, 4, IDLE_SECONDS, 3),
        (0, 0, 4, IDLE_SECONDS, 1),
        (0, 0, 7, 0, 5),
    ],
)
def test_how_many(waiting, processing, replicas, idle, expected):
    number = wanted(
        waiting=waiting,
        processing=processing,
        replicas=replicas,
        least=1,
        most=5,
        idle_seconds=idle,
    )
    assert number == expected


class Call:
    def __init__(self, said, name, answer=None):
        self.remote = lambda: said.append(name) or answer


class Ray:
    """Actors that do nothing, and end when `ended` holds their promise."""

    def __init__(self):
        self.actors, self.ended, self.killed = [], {}, []

    def cluster_resources(self):
        return {"GPU": 2.0}

    def remote(self, _):
        return SimpleNamespace(options=lambda **takes: self._made(takes))

    def _made(self, takes):
        assert takes["num_gpus"] == 1

        def remote(*_):
            said = []
            names = {name: Call(said, name) for name in ("leave", "stop")}
            actor = SimpleNamespace(said=said, **names)
            actor.work = Call(said, "work", actor)
            self.actors.append(actor)
            return actor

        return SimpleNamespace(remote=remote)

    def wait(self, promises, *, timeout, num_returns=1):  # noqa: ARG002
        return [one for one in promises if id(one) in self.ended], []

    def get(self, promise):
        if error := self.ended[id(promise)]:
            raise error

    def kill(self, actor):
        self.killed.append(actor)


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(fleets.time, "monotonic", lambda: now[0])
    return now


def test_replicas_come_and_leave_with_the_queue(clock, tmp_path):
    ray, counts = Ray(), {}
    with house(tmp_path) as home:
        fleet = Fleet(ray, home.service.settings, lambda: counts, least=1, most=3)
        fleet._update()
        assert [one.said for one in ray.actors] == [["work"]]
        counts["created"] = 9
        fleet._update()
        assert len(ray.actors) == 3
        counts |= {"created": 0, "processing": 1}
        clock[0] += IDLE_SECONDS - 1
        fleet._update()
        assert not any("leave" in one.said for one in ray.actors)
        clock[0] += 1
        fleet._update()
        assert [one.said for one in ray.actors] == [["work"], ["work", "leave"], ["work", "leave"]]
        ray.ended = {id(one): None for one in ray.actors[1:]}
        counts["created"] = 1
        fleet._update()
        assert ray.killed == ray.actors[1:3]
        assert len(ray.actors) == 4


def test_one_that_ends_is_followed_after_a_pause_that_grows(clock, tmp_path, caplog):
    ray = Ray()
    with house(tmp_path) as home:
        fleet = Fleet(ray, home.service.settings, dict, least=1, most=3)
        begun = []
        for _ in range(200):
            fleet._update()
            begun += [clock[0]] * (len(ray.actors) - len(begun))
            ray.ended = {id(one): OSError("no weights") for one in ray.actors}
            clock[0] += 1
    gaps = [after - before for before, after in pairwise(begun)]
    assert gaps[:4] == sorted(gaps[:4])
    assert max(gaps) <= 32
    assert gaps[-1] > 25
    assert "no weights" in caplog.text


def test_a_database_that_is_away_is_a_line_in_the_log(tmp_path, monkeypatch, caplog):
    with house(tmp_path) as home:

        def away():
            fleet._stopping.set()
            raise Outage("the database is away")

        fleet = Fleet(Ray(), home.service.settings, away, least=0, most=1)
        monkeypatch.setattr(fleet._stopping, "wait", lambda _: None)
        fleet._keep()
    assert "the fleet is not updated: the database is away" in caplog.text
    assert not any(record.exc_info for record in caplog.records)


def test_what_can_t_be_served(tmp_path):
    with (
        house(tmp_path) as home,
        pytest.raises(OptionError, match="--database and --storage"),
        serving(home.service, address="10.0.0.1:6379"),
    ):
        pass


def load(_):
    return joined


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.filterwarnings("default")  # what Ray itself does is not ours
def test_tasks_are_worked_off_though_a_node_is_killed(tmp_path):
    from latentsync.diffusion.ray.session import cluster
    from tests.service_process import eventually

    with house(tmp_path, lease_seconds=2.0) as home, two_nodes() as (address, kill):
        ann = home.person("ann")
        with cluster(address) as ray:
            counts = home.service.tasks.counts
            most = {"least": 2, "most": 2, "loader": load}
            fleet = Fleet(ray, home.service.settings, counts, **most)
            fleet.start()
            try:
                first = [ann.speaking() for _ in range(5)]
                eventually(lambda: counts().get("completed") == 5, 120)
                kill()
                second = [ann.speaking() for _ in range(5)]
                eventually(lambda: counts().get("completed") == 10, 120)
            finally:
                fleet.stop()
        assert {ann.result(task)["status"] for task in first + second} == {"completed"}
