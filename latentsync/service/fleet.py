"""A fleet of workers on a Ray cluster, as large as the queue of tasks requires."""

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from latentsync.diffusion.ray.session import cluster, replicas_that_fit
from latentsync.errors import OptionError
from latentsync.service.container import Service
from latentsync.service.outages import Backoff, Outage
from latentsync.service.settings import ServiceSettings
from latentsync.service.worker import Run, Worker, load

__all__ = ["IDLE_SECONDS", "Fleet", "ServingReplica", "serving", "wanted"]

POLL_SECONDS = 1.0  # of the queue
PAUSE_SECONDS = (1.0, 30.0)  # before a replica is replaced, first and longest
HEALTHY_SECONDS = 60.0  # of a replica, after which the pauses start again with the first
STOP_SECONDS = 20.0  # in which a replica must give its task back
IDLE_SECONDS = 300.0  # before a replica leaves; a good part of it is needed to load the model again

log = logging.getLogger(__name__)


class ServingReplica:
    """An actor with a loaded model and a worker of the task API."""

    def __init__(
        self, settings: ServiceSettings, loader: Callable[[ServiceSettings], Run], name: str
    ) -> None:
        self._settings, self._loader, self._name = settings, loader, name
        self._stopping, self._leaving = threading.Event(), threading.Event()

    def work(self) -> None:
        """Run tasks until `leave` or `stop`, which are called in another thread."""
        name = f"{socket.gethostname()}:{self._name}"
        with (
            Service.open(self._settings) as service,
            TemporaryDirectory(prefix="latentsync-") as scratch,
        ):
            run = self._loader(self._settings)
            Worker(service, run, name, Path(scratch), self._stopping, self._leaving).work()

    def leave(self) -> None:
        """End after the current task."""
        self._leaving.set()

    def stop(self) -> None:
        """Give the current task back, and end."""
        self._leaving.set()
        self._stopping.set()


@dataclass(eq=False)
class _Member:
    """One replica: the actor, and the future of its `work`."""

    name: str
    actor: Any
    work: Any
    began: float
    leaving: bool = False


class Fleet:
    """Keeps as many replicas as the queue requires, between `start` and `stop`.

    A task whose replica or machine is gone goes to another when its lease has run out, as with any
    worker of the task API.

    Args:
        counts: returns the number of tasks by status, as `Tasks.counts`.
        least, most: number of replicas.
    """

    def __init__(
        self,
        ray: ModuleType,
        settings: ServiceSettings,
        counts: Callable[[], dict[str, int]],
        *,
        least: int,
        most: int,
        loader: Callable[[ServiceSettings], Run] = load,
    ) -> None:
        takes, _ = replicas_that_fit(ray, settings.device)
        self._actor = ray.remote(ServingReplica).options(
            max_restarts=0, max_concurrency=2, scheduling_strategy="SPREAD", **takes
        )
        self._ray, self._settings, self._counts, self._loader = ray, settings, counts, loader
        self._least, self._most = least, most
        self._members: list[_Member] = []
        self._made = 0
        self._busy_at = self._not_before = time.monotonic()
        self._pauses = Backoff(*PAUSE_SECONDS)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="fleet", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Make the replicas give their tasks back, and end."""
        self._stopping.set()
        self._thread.join()
        for member in self._members:
            member.actor.stop.remote()
        ending = [member.work for member in self._members]
        if ending:
            self._ray.wait(ending, num_returns=len(ending), timeout=STOP_SECONDS)
        for member in self._members:
            self._ray.kill(member.actor)

    def _keep(self) -> None:
        while not self._stopping.is_set():
            try:
                self._update()
            except Outage as outage:
                log.warning("the fleet is not updated: %s", outage)
            except Exception:
                log.exception("the fleet could not be updated")
            self._stopping.wait(POLL_SECONDS)

    def _update(self) -> None:
        """Remove replicas that have ended, and start or dismiss as many as the queue requires."""
        for member in list(self._members):
            if self._ray.wait([member.work], timeout=0)[0]:
                self._ended(member)
        counts, now = self._counts(), time.monotonic()
        waiting, processing = counts.get("created", 0), counts.get("processing", 0)
        here = [member for member in self._members if not member.leaving]
        if waiting + processing >= len(here):
            self._busy_at = now
        number = wanted(
            waiting=waiting,
            processing=processing,
            replicas=len(here),
            least=self._least,
            most=self._most,
            idle_seconds=now - self._busy_at,
        )
        for member in here[number:]:
            log.info("replica %s leaves: %d are enough", member.name, number)
            member.leaving = True
            member.actor.leave.remote()
        while len(here) < number and now >= self._not_before:
            here.append(self._join(now))

    def _join(self, now: float) -> _Member:
        self._made += 1
        name = str(self._made)
        actor = self._actor.remote(self._settings, self._loader, name)
        log.info("replica %s of at most %d begins", name, self._most)
        member = _Member(name, actor, actor.work.remote(), now)
        self._members.append(member)
        return member

    def _ended(self, member: _Member) -> None:
        self._members.remove(member)
        try:
            self._ray.get(member.work)
        except Exception as error:  # noqa: BLE001 - of Ray, of the worker, of what it loaded
            now = time.monotonic()
            if now - member.began > HEALTHY_SECONDS:
                self._pauses.reset()
            pause = self._pauses.pause()
            self._not_before = now + pause
            reason = str(getattr(error, "cause", None) or error).strip().splitlines()
            log.warning(
                "replica %s ended (%s); another in %g s",
                member.name,
                reason[0] if reason else type(error).__name__,
                pause,
            )
        self._ray.kill(member.actor)


@contextmanager
def serving(
    service: Service, *, least: int | None = None, most: int | None = None, address: str | None
) -> Iterator[None]:
    """Run a fleet for the service as long as the `with` block lasts.

    Args:
        least: replicas that stay when there is nothing to do; default 1.
        most: replicas; default one for each GPU, or as `session.replicas_that_fit` counts CPUs.
        address: as in `session.cluster`.

    Raises:
        BackendUnavailable: Ray is not installed, or there is no cluster at the address.
        OptionError: not 0 <= least <= most, or replicas elsewhere that can't reach the tasks.
    """
    settings = service.settings
    if address and not (settings.database and settings.storage):
        raise OptionError(
            "a Ray address without a database and a storage of their own; give --database and "
            "--storage, which all machines of the cluster reach"
        )
    log.setLevel(logging.INFO)
    with cluster(address) as ray:
        lowest = 1 if least is None else least
        highest = max(lowest, replicas_that_fit(ray, settings.device)[1]) if most is None else most
        if not 0 <= lowest <= highest or not highest:
            raise OptionError(f"{lowest} to {highest} replicas; it must be 0 <= least <= most")
        fleet = Fleet(ray, settings, service.tasks.counts, least=lowest, most=highest)
        fleet.start()
        try:
            yield
        finally:
            fleet.stop()


def wanted(
    *, waiting: int, processing: int, replicas: int, least: int, most: int, idle_seconds: float
) -> int:
    """Number of replicas that the queue requires: one for each task, at once.

    There are fewer when some were idle for IDLE_SECONDS.

    Args:
        waiting, processing: tasks; a replica runs one at a time.
        replicas: number now, without those that are leaving.
        least, most: bounds of the answer.
        idle_seconds: for how long there were more replicas than tasks.
    """
    needed = waiting + processing
    if needed < replicas and idle_seconds < IDLE_SECONDS:
        needed = replicas
    return max(least, min(most, needed))
