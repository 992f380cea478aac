"""A clip parted over replicas: by a pool without Ray, and by Ray on a cluster of two nodes."""

import sys
from contextlib import closing, contextmanager
from itertools import cycle

import numpy as np
import pytest
import torch

from latentsync.diffusion import weights
from latentsync.diffusion.generator import CropBatch, Network
from latentsync.diffusion.ray import scheduler
from latentsync.diffusion.ray.scheduler import QUEUE_DEPTH, GroupScheduler, WorkerLost
from latentsync.diffusion.ray.session import library, replicas_that_fit
from latentsync.errors import BackendUnavailable, Cancelled, LatentSyncError
from latentsync.pipeline.lipsync import LipSync
from latentsync.runtime.progress import RunContext
from tests.clips import babble, write_sound
from tests.stubs import StubDetector, numbered_clip, tiny_lipsync, tiny_nets


def work(number):
    return CropBatch(
        crops=torch.full((1, 2, 4, 4, 3), number, dtype=torch.uint8),
        speech=torch.zeros(1, 2, 1, 1),
        source=np.array([number, number]),
        start=2 * number,
        stop=2 * number + 2,
    )


class LocalPool:
    """Replicas in this process. Promises are kept one at a time, the last sent first."""

    def __init__(self, size, draw=lambda work: work.crops, *, ends=(), poison=None, kinds=None):
        self.size, self.draw, self.kinds = size, draw, kinds or ["cpu float32"] * size
        self.ends = list(ends)  # replicas that are lost, at the next look
        self.poison = poison  # the start of a work that ends who draws it
        self.sent, self.lost, self.forgotten, self.futures = [], set(), [], {}

    def __len__(self):
        return self.size

    def _future(self, replica, make):
        self.futures[future := len(self.futures)] = replica, make
        return future

    def start(self, replica):
        return self._future(replica, lambda: self.kinds[replica])

    def send(self, replica, work):
        future = self._future(replica, lambda: self.draw(work))
        self.sent.append((replica, work.start, future))
        return future

    def wait(self, futures, seconds):  # noqa: ARG002
        self.ends += [one for one, start, t in self.sent if start == self.poison and t in futures]
        if self.sent and self.ends:
            replica = self.ends.pop(0)
            gone = {t for t, (one, _) in self.futures.items() if one == replica}
            self.lost |= gone
            return [t for t in futures if t in gone]
        return futures[-1:]

    def result(self, future):
        if future in self.lost:
            raise WorkerLost("its machine was switched off")
        return self.futures[future][1]()

    def cancel(self, futures):
        self.forgotten += futures


@pytest.fixture(autouse=True)
def no_rest(monkeypatch):
    monkeypatch.setattr(scheduler, "RESTART_SECONDS", 0.0)


def keyed(works):
    return ((n, one) for n, one in enumerate(works))


def numbers(drawn):
    """What was drawn, in the order of the keys that came with it."""
    keys, faces = zip(*drawn, strict=True)
    assert list(keys) == list(range(len(keys)))
    return [None if one is None else int(one.flatten()[0]) for one in faces]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_works_come_back_in_order_whoever_is_done_first(size):
    pool = LocalPool(size)
    given = [None if n in (0, 4, 5, 11) else n for n in range(30)]
    works = (None if n is None else work(n) for n in given)
    assert numbers(GroupScheduler(pool, 1, RunContext())(keyed(works))) == given
    assert len({replica for replica, *_ in pool.sent}) > size / 2


def test_so_many_are_read_ahead_and_no_more():
    read = []

    def works():
        for n in range(20):
            read.append(n)
            yield work(n)

    drawn = GroupScheduler(LocalPool(2), 1, RunContext())(keyed(works()))
    most = []
    for done, _ in enumerate(drawn):
        most.append(len(read) - done)
    assert max(most) == 2 * QUEUE_DEPTH


@pytest.mark.parametrize("up", [1, 3])
def test_none_has_more_than_it_can_begin_soon(up):
    pool = LocalPool(3)
    pool.wait = lambda futures, _: [t for t in futures if t < up]  # so many come, and draw nothing
    checks = iter(range(40))

    def stop():
        return next(checks, None) is None

    with pytest.raises(Cancelled), closing(works := keyed(work(n) for n in range(20))):
        list(GroupScheduler(pool, 1, RunContext(cancelled=stop))(works))
    assert sorted(replica for replica, *_ in pool.sent) == sorted([*range(up)] * QUEUE_DEPTH)
    assert {future for *_, future in pool.sent} <= set(pool.forgotten)


def test_what_a_lost_replica_had_is_drawn_by_another(caplog):
    pool = LocalPool(2, ends=[1, 0])
    works = (work(n) for n in range(10))
    assert numbers(GroupScheduler(pool, 1, RunContext())(keyed(works))) == list(range(10))
    starts = [start for _, start, _ in pool.sent]
    assert len(starts) > 10
    assert set(starts) == set(range(0, 20, 2))
    assert "replica 1 was lost (its machine was switched off)" in caplog.text


def test_a_work_that_ends_every_replica_is_told(caplog):
    pool = LocalPool(2, poison=0)
    with pytest.raises(LatentSyncError, match=r"frames 0-1 ended 3 replicas.*switched off"):
        list(GroupScheduler(pool, 1, RunContext())(keyed(work(n) for n in range(3))))
    assert "was lost" in caplog.text


def test_a_replica_s_error_ends_the_run():
    def draw(one):
        if one.start == 8:
            raise LatentSyncError("frames 8-9 came out not finite")
        return one.crops

    closed = []

    def works():
        try:
            yield from map(work, range(20))
        finally:
            closed.append(True)

    drawn = []
    with pytest.raises(LatentSyncError, match="not finite"):
        drawn.extend(GroupScheduler(LocalPool(2, draw), 1, RunContext())(keyed(works())))
    assert len(drawn) <= 4
    assert closed


def test_replicas_must_be_alike():
    pool = LocalPool(2, kinds=["cuda float16", "cpu float32"])
    with pytest.raises(LatentSyncError, match=r"cpu float32.*cuda float16.*--device and --dtype"):
        list(GroupScheduler(pool, 1, RunContext())(keyed(work(n) for n in range(9))))


def test_no_replica_at_all(monkeypatch):
    monkeypatch.setattr(scheduler, "START_SECONDS", 0.0)
    pool = LocalPool(2)
    pool.wait = lambda *_: []
    with pytest.raises(BackendUnavailable, match=r"none of 2 replicas.*ray status"):
        list(GroupScheduler(pool, 1, RunContext())(keyed(work(n) for n in range(9))))


class Engine:
    """Networks of this process, one a replica, the first of which is lost on the way."""

    device, dtype = "2 x cpu by nobody", "float32"

    def __init__(self):
        self.pools = []

    def generator(self, options, times, context):
        networks = cycle([Network(tiny_nets(), options, times) for _ in range(2)])
        pool = LocalPool(2, lambda work: next(networks).generate(work), ends=[0])
        self.pools.append(pool)
        return GroupScheduler(pool, options.batch or 1, context)


@contextmanager
def written(path, lipsync, clip, voice, **options):
    result = lipsync.run(clip, voice, path, seed=5, **options)
    yield result, path.read_bytes()


def test_a_run_is_the_same(tmp_path):
    clip = numbered_clip(tmp_path / "clip.mp4")
    voice = write_sound(tmp_path / "voice.wav", babble(2))
    lipsync = tiny_lipsync(lambda number: number < 12)
    run, options = [lipsync, clip, voice], {"batch": 2, "steps": 1}
    with written(tmp_path / "here.mp4", *run, **options) as (_, here):
        engine = Engine()
        with written(tmp_path / "there.mp4", *run, engine=engine, **options) as (result, there):
            assert there == here
    assert result.passed_through
    assert len(engine.pools[0].sent) > 2
    assert result.device == engine.device
    assert result.timings["network"] > 0


def test_groups_that_depend_on_each_other_stay_here(tmp_path, caplog):
    lipsync = tiny_lipsync()
    engine = Engine()
    clip = numbered_clip(tmp_path / "clip.mp4")
    voice = write_sound(tmp_path / "voice.wav", babble(0.2))
    for options in ({"overlap": 4}, {"vae_posterior": "sample"}):
        caplog.clear()
        lipsync.run(clip, voice, tmp_path / "out.mp4", steps=1, engine=engine, **options)
        assert "generated here" in caplog.text
    assert not engine.pools


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BackendUnavailable, match=r"pip install .*\[cluster\]"):
        library()


class Resources:
    def __init__(self, *nodes, gpus=0.0):
        self.cluster_resources = lambda: {"CPU": float(sum(nodes)), "GPU": gpus}
        self.nodes = lambda: [{"Alive": True, "Resources": {"CPU": float(n)}} for n in nodes]


def test_a_replica_takes_a_gpu_where_there_are_any(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    there = Resources(8, 6, gpus=2.0)
    assert replicas_that_fit(there, None) == ({"num_cpus": 1, "num_gpus": 1}, 2)
    assert replicas_that_fit(there, "cpu") == ({"num_cpus": 4, "num_gpus": 0}, 3)
    assert replicas_that_fit(Resources(2, 2), None) == ({"num_cpus": 2, "num_gpus": 0}, 2)


@contextmanager
def two_nodes():
    """Its address, and what kills its second node."""
    library()
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        second = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        cluster.wait_for_nodes()
        yield cluster.address, lambda: cluster.remove_node(second, allow_graceful=False)
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")  # what Ray itself does is not ours
def test_a_node_is_killed_while_its_replica_draws(tmp_path, caplog, monkeypatch):
    from latentsync.diffusion.ray.engine import replicas

    monkeypatch.setattr(scheduler, "RESTART_SECONDS", 1.0)
    weights.save(tiny_nets(), tmp_path / "tiny")
    clip = numbered_clip(tmp_path / "clip.mp4")
    voice = write_sound(tmp_path / "voice.wav", babble(40))
    nets = LipSync.load(tmp_path / "tiny", device="cpu", detector="builtin").nets
    lipsync = LipSync(nets, StubDetector())
    lipsync.run(clip, voice, tmp_path / "here.mp4", seed=5, steps=4)
    with two_nodes() as (address, kill):
        at_work = {"number": 2, "address": address, "device": "cpu"}
        with replicas(tmp_path / "tiny", **at_work) as engine:
            killed = []

            def progress(step):
                if step.stage == "generate" and step.done > 300 and not killed:
                    killed.append(kill())

            path = tmp_path / "there.mp4"
            how = {"seed": 5, "steps": 4, "progress": progress, "engine": engine}
            result = lipsync.run(clip, voice, path, **how)
    assert killed
    assert "was lost" in caplog.text
    assert result.device == "2 x cpu by ray"
    assert path.read_bytes() == (tmp_path / "here.mp4").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("default")
def test_what_a_replica_can_t_load_is_one_line(tmp_path):
    from latentsync.diffusion.ray.engine import replicas

    with (
        pytest.raises(LatentSyncError, match=r"v1\.6.*has no .*latentsync download"),
        replicas("v1.6", number=1, weights=tmp_path, device="cpu"),
    ):
        pass
