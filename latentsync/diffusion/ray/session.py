"""Ray itself: found, begun on this machine or joined, and left again."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch

from latentsync.errors import BackendUnavailable
from latentsync.runtime.extras import needs_extra

__all__ = ["cluster", "library", "replicas_that_fit"]

KNOCK_SECONDS = 10.0


def library() -> ModuleType:
    """Ray, imported when it is first wanted: it takes seconds.

    Raises:
        BackendUnavailable: it isn't installed.
    """
    # Before it is imported: send nothing home, and don't touch the GPUs of who asks for none.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    with needs_extra("the engine ray", "cluster"):
        import ray
    return ray


@contextmanager
def cluster(address: str | None = None) -> Iterator[ModuleType]:
    """Ray, joined to a cluster; on leaving the `with`, left again, unless it was joined before.

    Args:
        address: HOST:6379 of a cluster's head, or "auto" on one of its machines; None: what
            $RAY_ADDRESS names, or else this machine alone, for as long as it is used.

    Raises:
        BackendUnavailable: Ray isn't installed, or there is no cluster at the address.
    """
    ray = library()
    if ray.is_initialized():
        yield ray
        return
    leaves = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address or os.environ.get("RAY_ADDRESS", ""))
        ray.init(
            address=address,
            namespace="latentsync",
            include_dashboard=None if address or "RAY_ADDRESS" in os.environ else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise BackendUnavailable(
            f"no Ray cluster can be joined at {address or 'this machine'} ({reason}); start one by "
            "`ray start --head`, or leave the address out to use this machine alone"
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, leaves)  # Ray took it
    try:
        yield ray
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would knock for ten minutes and more."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host, int(port)), KNOCK_SECONDS).close()


def replicas_that_fit(ray: ModuleType, device: str | None) -> tuple[dict[str, float], int]:
    """What a replica takes of the cluster, as Ray counts it, and how many of them it has now.

    A GPU each where there are any; else, or on the device "cpu", as many CPU cores as torch uses
    here, if a machine has so many.
    """
    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    if gpus and device != "cpu":
        return {"num_cpus": 1, "num_gpus": 1}, gpus
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    each = max(1, min(torch.get_num_threads(), max(cores, default=1)))
    return {"num_cpus": each, "num_gpus": 0}, max(1, sum(one // each for one in cores))
