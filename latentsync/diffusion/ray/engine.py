"""Replicas of a model as Ray actors, and the engine that parts a run's groups among them."""

import logging
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor

from latentsync.diffusion.generator import CropBatch, Network, ready_nets
from latentsync.diffusion.ray.scheduler import START_SECONDS, GroupScheduler, WorkerLost
from latentsync.diffusion.ray.session import cluster, replicas_that_fit
from latentsync.diffusion.weights import Nets
from latentsync.errors import BackendUnavailable, LatentSyncError, OptionError
from latentsync.options import Options
from latentsync.runtime.progress import RunContext
from latentsync.types import IntArray

__all__ = ["RayEngine", "Replica", "replicas"]

RUNS_KEPT = 4  # a run's faces that one replica draws in turn, with what it keeps of each

log = logging.getLogger(__name__)


class Replica:
    """One model, in a process of its own on some machine; `load` is as in `ready_nets`.

    `threads` are torch's on the CPU: on their number the last bits of a result depend.
    """

    def __init__(self, model: str, load: dict[str, Any], threads: int) -> None:
        self._model, self._load, self._threads = model, load, threads
        self._nets: Nets | None = None
        self._networks: OrderedDict[str, Network] = OrderedDict()

    def ready(self) -> str:
        """Load the model, if it isn't yet; where it lies, and in which precision."""
        if self._nets is None:
            torch.set_num_threads(self._threads)
            self._nets = ready_nets(self._model, **self._load)
        weight = self._nets.unet.conv_in.weight
        return f"{weight.device.type} {str(weight.dtype).removeprefix('torch.')}"

    def draw(self, run: str, of: tuple[Options, IntArray], work: CropBatch) -> Tensor:
        """Generate one batch of a run; `of` are the options and use counts for `Network`."""
        self.ready()
        assert self._nets is not None
        if run not in self._networks:
            self._networks[run] = Network(self._nets, *of)
        self._networks.move_to_end(run)
        while len(self._networks) > RUNS_KEPT:
            self._networks.popitem(last=False)
        return self._networks[run].generate(work)


class RayEngine:
    """An `Engine`: actors of one model on a cluster, which any number of runs may share."""

    def __init__(self, ray: ModuleType, actors: Sequence[Any], kind: str) -> None:
        self._ray, self._actors = ray, actors
        device, self.dtype = kind.split()
        self.device = f"{len(actors)} x {device} by ray"

    def generator(self, options: Options, uses: IntArray, context: RunContext) -> GroupScheduler:
        """Of one face of one run; a group at once unless `options.batch` says more.

        So few, because each replica's share of the frames waits in this process.
        """
        pool = RayPool(self._ray, self._actors, (options, uses))
        return GroupScheduler(pool, options.batch or 1, context)


class RayPool:
    """The actors, as a `GroupScheduler` sees them. Its futures are Ray's references."""

    def __init__(
        self, ray: ModuleType, actors: Sequence[Any], of: tuple[Options, IntArray]
    ) -> None:
        self._ray, self._actors = ray, actors
        self._run, self._of = uuid4().hex, ray.put(of)

    def __len__(self) -> int:
        return len(self._actors)

    def start(self, replica: int) -> Any:  # noqa: ANN401 - here and below, as in LocalPool
        return self._actors[replica].ready.remote()

    def send(self, replica: int, work: CropBatch) -> Any:  # noqa: ANN401
        return self._actors[replica].draw.remote(self._run, self._of, work)

    def wait(self, futures: Sequence[Any], seconds: float) -> list[Any]:
        if not futures:
            return []
        first, rest = self._ray.wait(list(futures), timeout=seconds)
        others, _ = self._ray.wait(rest, num_returns=len(rest), timeout=0) if rest else ([], [])
        return [*first, *others]

    def result(self, future: Any) -> Any:  # noqa: ANN401
        return _result(self._ray, future)

    def cancel(self, futures: Sequence[Any]) -> None:
        for future in futures:
            self._ray.cancel(future)


@contextmanager
def replicas(
    model: str | Path = "v1.6",
    *,
    number: int | None = None,
    address: str | None = None,
    **load: Any,  # noqa: ANN401
) -> Iterator[RayEngine]:
    """An engine for `LipSync.run`; its replicas end with the `with`.

    Each machine of the cluster needs this library, and the weights at the same place. The result is
    the same as without it for the same seed and `batch`: bit by bit on CPUs of one kind, since
    torch uses as many threads there as here. GPUs of different kinds differ in the last bits.

    Args:
        model: as in `LipSync.load`; so are `load`: weights, device, dtype, attention, offload and
            compile. "cuda:1" is "cuda" here, for a replica sees its own GPU only.
        number: of replicas; more than fit now wait for machines to come. None: one a GPU, or where
            there are none, as many as have the cores for torch's threads.
        address: of the cluster, as in `session.cluster`.

    Raises:
        BackendUnavailable: no Ray, no cluster, or no room for a replica in it.
        OptionError, WeightsError: as in `LipSync.load`, of the first replica.
    """
    if number is not None and number < 1:
        raise OptionError(f"replicas is {number}; it must be 1 or more")
    if load.get("device"):
        load["device"] = load["device"].split(":")[0]
    if load.get("weights"):
        load["weights"] = str(Path(load["weights"]).resolve())
    name = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
    with cluster(address) as ray:
        takes, fitting = replicas_that_fit(ray, load.get("device"))
        actor = ray.remote(Replica).options(max_restarts=-1, scheduling_strategy="SPREAD", **takes)
        actors = [
            actor.remote(name, load, torch.get_num_threads()) for _ in range(number or fitting)
        ]
        try:
            kind = _first_ready(ray, [one.ready.remote() for one in actors])
            log.info("%d replicas of %s, the first one %s", len(actors), model, kind)
            yield RayEngine(ray, actors, kind)
        finally:
            for one in actors:
                ray.kill(one)


def _first_ready(ray: ModuleType, futures: list[Any]) -> str:
    """What the first replica that is ready says of itself."""
    done, _ = ray.wait(futures, timeout=START_SECONDS)
    if not done:
        raise BackendUnavailable(
            f"none of {len(futures)} replicas was there after {START_SECONDS:.0f} s; `ray status` "
            "says what the cluster lacks"
        )
    return str(_result(ray, done[0]))


def _result(ray: ModuleType, future: Any) -> Any:  # noqa: ANN401
    """What an actor answered; what went wrong is Lost, or a LatentSyncError of one line."""
    errors = ray.exceptions
    try:
        return ray.get(future)
    except (errors.RayActorError, errors.ObjectLostError, errors.NodeDiedError) as error:
        raise WorkerLost(str(error).splitlines()[0]) from error
    except errors.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, LatentSyncError):
            raise cause from None
        line = (str(cause).strip() or "no message").splitlines()[0]
        raise LatentSyncError(f"a replica failed: {type(cause).__name__}: {line}") from error
