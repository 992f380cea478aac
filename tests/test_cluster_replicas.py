"""Replicas as actors, by a stand-in for Ray in this process; with Ray itself: test_cluster."""

import signal
import socket
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from latentsync.diffusion import weights
from latentsync.diffusion.generator import CropBatch, Network, ready_nets
from latentsync.diffusion.ray import engine as module
from latentsync.diffusion.ray import session
from latentsync.diffusion.ray.engine import RUNS_KEPT, Replica, replicas
from latentsync.diffusion.ray.scheduler import WorkerLost
from latentsync.diffusion.ray.session import cluster, library, replicas_that_fit
from latentsync.errors import BackendUnavailable, LatentSyncError, OptionError, WeightsMissing
from latentsync.options import Options
from tests.clips import babble, raw_frames, same, write_sound
from tests.stubs import numbered_clip, tiny_lipsync, tiny_nets


class Actor:
    """One object, whose methods are called at once and answer with futures."""

    def __init__(self, ray, made):
        self.ray, self.made = ray, made

    def __getattr__(self, name):
        return SimpleNamespace(remote=lambda *given: self.ray.called(self, name, given))


class ActorClass:
    def __init__(self, ray, kind, options=None):
        self.ray, self.kind, self.asked = ray, kind, options

    def options(self, **options):
        return ActorClass(self.ray, self.kind, options)

    def remote(self, *given):
        self.ray.made.append((given, self.asked))
        self.ray.actors.append(Actor(self.ray, self.kind(*given)))
        return self.ray.actors[-1]


class Errors:
    class RayActorError(Exception):
        pass

    class ObjectLostError(Exception):
        pass

    class NodeDiedError(Exception):
        pass

    class RayTaskError(Exception):
        def __init__(self, cause):
            self.cause = cause


class FakeRay(ModuleType):
    """What of Ray is used here; futures are numbers."""

    exceptions = Errors

    def __init__(self):
        super().__init__("ray")
        self.running, self.there = False, {"CPU": 4}
        self.machines = [{"Alive": True, "Resources": {"CPU": 4}}]
        self.begun, self.made, self.actors, self.killed, self.cancelled = [], [], [], [], []
        self.values, self.late, self.fails = {}, set(), None

    def is_initialized(self):
        return self.running

    def init(self, **options):
        self.begun.append(options)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does
        if self.fails:
            raise self.fails
        self.running = True

    def shutdown(self):
        self.running = False

    def cluster_resources(self):
        return self.there

    def nodes(self):
        return self.machines

    def remote(self, kind):
        return ActorClass(self, kind)

    def put(self, value):
        return SimpleNamespace(value=value)

    def called(self, actor, name, given):
        given = [one.value if isinstance(one, SimpleNamespace) else one for one in given]
        future = len(self.values)
        try:
            self.values[future] = getattr(actor.made, name)(*given)
        except Exception as error:  # noqa: BLE001 - as it is, to be told by `get`
            self.values[future] = Errors.RayTaskError(error)
        return future

    def wait(self, futures, *, num_returns=1, timeout=None):
        assert timeout is not None
        done = [future for future in futures if future not in self.late][:num_returns]
        return done, [future for future in futures if future not in done]

    def get(self, future):
        value = self.values[future]
        if isinstance(value, Exception):
            raise value
        return value

    def kill(self, actor):
        self.killed.append(actor)

    def cancel(self, future):
        self.cancelled.append(future)


@pytest.fixture
def ray(monkeypatch):
    """The stand-in, under Ray's name; the handler of SIGTERM is put back."""
    fake, handler = FakeRay(), signal.getsignal(signal.SIGTERM)
    monkeypatch.setitem(sys.modules, "ray", fake)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield fake
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def model(tmp_path):
    weights.save(tiny_nets(), tmp_path / "model")
    return tmp_path / "model"


# ---- Ray itself ----------------------------------------------------------------------------------


def test_a_cluster_is_joined_and_left(ray, monkeypatch):
    handler = signal.getsignal(signal.SIGTERM)
    with cluster() as found:
        assert found is ray
        assert ray.is_initialized()
        assert signal.getsignal(signal.SIGTERM) is handler  # Ray's own is not kept
    assert not ray.is_initialized()
    (asked,) = ray.begun
    assert (asked["address"], asked["namespace"]) == (None, "latentsync")
    assert asked["include_dashboard"] is False  # of a cluster that is begun here
    assert asked["log_to_driver"] is False
    assert library() is ray
    assert session.os.environ["RAY_USAGE_STATS_ENABLED"] == "0"

    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ZeroDivisionError), cluster():
            raise ZeroDivisionError
    assert not ray.is_initialized()  # left however the block ends
    assert ray.begun[-1]["include_dashboard"] is None


def test_one_that_was_joined_before_stays(ray):
    ray.running = True
    with cluster("10.0.0.1:6379"):
        pass
    assert ray.is_initialized()
    assert not ray.begun


def test_where_nobody_listens_it_is_said_before_ray_tries(ray):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    said = rf"joined at 127\.0\.0\.1:{port} \(.*refused"
    with pytest.raises(BackendUnavailable, match=said), cluster(f"127.0.0.1:{port}"):
        pass
    assert not ray.begun


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RuntimeError("version mismatch\nmore"), r"at this machine \(version mismatch\); start"),
        (ValueError(), r"at this machine \(ValueError\); start one by `ray start --head`"),
    ],
)
def test_what_ray_refuses_is_one_line(ray, error, said):
    ray.fails = error
    with pytest.raises(BackendUnavailable, match=said) as caught, cluster():
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("resources", "machines", "device", "takes", "number"),
    [
        ({"GPU": 3.0, "CPU": 9}, [9], None, {"num_cpus": 1, "num_gpus": 1}, 3),
        ({"GPU": 3.0, "CPU": 9}, [9], "cpu", {"num_cpus": 2, "num_gpus": 0}, 4),
        ({"CPU": 8}, [5, 3], None, {"num_cpus": 2, "num_gpus": 0}, 3),
        ({"CPU": 1}, [1], None, {"num_cpus": 1, "num_gpus": 0}, 1),
        ({}, [], None, {"num_cpus": 1, "num_gpus": 0}, 1),
    ],
)
def test_replicas_take_what_there_is(ray, monkeypatch, resources, machines, device, takes, number):
    monkeypatch.setattr(session.torch, "get_num_threads", lambda: 2)
    ray.there = resources
    ray.machines = [{"Alive": True, "Resources": {"CPU": n}} for n in machines]
    ray.machines.append({"Alive": False, "Resources": {"CPU": 64}})
    assert replicas_that_fit(ray, device) == (takes, number)


# ---- replicas ------------------------------------------------------------------------------------


def test_a_run_by_replicas_is_the_same(ray, model, tmp_path):
    lipsync = tiny_lipsync()
    lipsync.nets = ready_nets(model, device="cpu", dtype="float32")
    clip = numbered_clip(tmp_path / "clip.mp4", 20)
    voice = write_sound(tmp_path / "voice.wav", babble(1.6))
    options = {"steps": 1, "seed": 3, "crf": 0}
    here = lipsync.run(clip, voice, tmp_path / "here.mp4", **options)
    with replicas(model, number=2, device="cpu", dtype="float32") as engine:
        there = lipsync.run(clip, voice, tmp_path / "there.mp4", engine=engine, **options)
        assert not ray.killed
    films = (raw_frames(tmp_path / f"{name}.mp4") for name in ("here", "there"))
    pairs = list(zip(*films, strict=True))
    assert len(pairs) == here.frames == there.frames == 40
    assert all(same(*pair) for pair in pairs)
    assert (there.device, there.dtype) == ("2 x cpu by ray", "float32")
    assert ray.killed == ray.actors
    assert len(ray.actors) == 2
    drawn = [len(actor.made._networks) for actor in ray.actors]
    assert drawn == [1, 1]  # both had a part


def test_how_replicas_are_asked_for(ray, model, monkeypatch):
    ray.there = {"GPU": 2}
    monkeypatch.setattr(Replica, "ready", lambda _: "cuda float16")
    monkeypatch.chdir(model.parent)
    with replicas("model", device="cuda:1", weights="w", attention="native") as engine:
        assert (engine.device, engine.dtype) == ("2 x cuda by ray", "float16")
    # Paths hold on other machines, too; a replica sees one GPU, whose number is 0.
    load = {"device": "cuda", "weights": str(model.parent / "w"), "attention": "native"}
    options = {"num_cpus": 1, "num_gpus": 1, "max_restarts": -1, "scheduling_strategy": "SPREAD"}
    assert ray.made == [((str(model), load, torch.get_num_threads()), options)] * 2
    with replicas("v1.6", number=3):
        pass
    assert [given[0] for given, _ in ray.made[2:]] == ["v1.6"] * 3


def test_replicas_end_with_the_block_however_it_ends(ray, model):
    with pytest.raises(ZeroDivisionError), replicas(model, number=2, device="cpu"):
        raise ZeroDivisionError
    assert ray.killed == ray.actors
    assert not ray.is_initialized()


def test_what_a_replica_cannot_load_is_told_as_it_is(ray, tmp_path):
    said = r"`latentsync download v1\.6`"
    with pytest.raises(WeightsMissing, match=said), replicas("v1.6", number=1, weights=tmp_path):
        pass
    assert ray.killed == ray.actors
    said = "replicas is 0; it must be 1 or more"
    with pytest.raises(OptionError, match=said), replicas("v1.6", number=0):
        pass


def test_none_that_is_ready_in_time(ray, model):
    ray.late = {0, 1}
    said = r"none of 2 replicas was there after \d+ s"
    with pytest.raises(BackendUnavailable, match=said), replicas(model, number=2, device="cpu"):
        pass
    assert ray.killed == ray.actors


@pytest.mark.parametrize(
    ("raised", "kind", "said"),
    [
        (Errors.RayActorError("it died\nmore"), WorkerLost, "^it died$"),
        (Errors.ObjectLostError("gone"), WorkerLost, "gone"),
        (Errors.NodeDiedError("node"), WorkerLost, "node"),
        (Errors.RayTaskError(LatentSyncError("too little memory")), LatentSyncError, "^too little"),
        (
            Errors.RayTaskError(ValueError("shape\nmore")),
            LatentSyncError,
            "^a replica failed: ValueError: shape$",
        ),
        (Errors.RayTaskError(KeyError()), LatentSyncError, "failed: KeyError: no message$"),
    ],
)
def test_what_went_wrong_there_is_one_line_here(ray, raised, kind, said):
    ray.values[0] = raised
    with pytest.raises(kind, match=said):
        module._result(ray, 0)


def test_a_crew_gives_all_that_is_done_and_forgets_what_is_not_wanted(ray):
    pool = module.RayPool(ray, [Actor(ray, None)] * 3, (Options(), np.ones(1, int)))
    assert len(pool) == 3
    assert pool.wait([], 5) == []
    ray.late = {8}
    assert pool.wait([7, 8, 9], 5) == [7, 9]
    pool.cancel([8])
    assert ray.cancelled == [8]


def test_a_replica_keeps_what_it_knows_of_a_few_runs(monkeypatch):
    monkeypatch.setattr(
        module, "ready_nets", lambda model, **load: made.append((model, load)) or nets
    )
    monkeypatch.setattr(Network, "generate", lambda network, _work: id(network))
    nets, made = tiny_nets(), []
    replica = Replica("tiny", {"device": "cpu"}, torch.get_num_threads())
    of = (Options(steps=1, seed=1), np.ones(4, int))
    work = CropBatch(torch.zeros(1), torch.zeros(1), np.zeros(1, int), 0, 1)
    first = replica.draw("run 0", of, work)
    assert replica.draw("run 0", of, work) == first
    for number in range(1, RUNS_KEPT):
        replica.draw(f"run {number}", of, work)
    assert replica.draw("run 0", of, work) == first  # used again, so it stays
    replica.draw("one more", of, work)
    assert list(replica._networks) == [
        *(f"run {n}" for n in range(2, RUNS_KEPT)),
        "run 0",
        "one more",
    ]
    assert made == [("tiny", {"device": "cpu"})]
    assert replica.ready() == "cpu float32"
