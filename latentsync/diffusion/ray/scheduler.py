"""Schedules the groups of one face over several replicas: in order, bounded, lost ones again."""

import logging
import time
from collections import deque
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from latentsync.diffusion.generator import CropBatch, Key
from latentsync.errors import BackendUnavailable, LatentSyncError
from latentsync.runtime.progress import RunContext

__all__ = ["QUEUE_DEPTH", "START_SECONDS", "GroupScheduler", "WorkerLost", "WorkerPool"]

log = logging.getLogger(__name__)

QUEUE_DEPTH = 2  # batches sent to a replica: while one is generated, the next is on its way
POLL_SECONDS = 0.1  # between two checks whether the caller wants to stop
MAX_LOSSES = 3  # replicas that may end over one batch before the batch is to blame
RESTART_SECONDS = 1.0  # from a replica's loss to its restart
START_SECONDS = 600.0  # in which one replica must be ready, weights loaded

Future = Any  # hashable


class WorkerLost(Exception):
    """A replica or its results are gone: its process or its machine ended."""


class WorkerPool(Protocol):
    """Numbered replicas of one model."""

    def __len__(self) -> int: ...

    def start(self, replica: int) -> Future:
        """Start a replica, or restart a lost one; its result is a str of device and dtype."""

    def send(self, replica: int, work: CropBatch) -> Future:
        """Queue a batch at a replica; its result is a Tensor."""

    def wait(self, futures: Sequence[Future], seconds: float) -> list[Future]:
        """Wait at most `seconds`; return the futures that are done or failed."""

    def result(self, future: Future) -> Any:  # noqa: ANN401
        """Return a result. Raises WorkerLost, or what the replica raised."""

    def cancel(self, futures: Sequence[Future]) -> None:
        """Drop futures whose results are no longer wanted."""


@dataclass(eq=False)
class _PendingBatch:
    """One batch in the order of the output."""

    key: Any  # the caller's
    work: CropBatch | None
    faces: Tensor | None = None
    losses: int = 0

    @property
    def done(self) -> bool:
        return self.work is None


@dataclass
class _WorkerState:
    """Which replica does what."""

    queue: deque[_PendingBatch] = field(default_factory=deque)  # in the order of the output
    waiting: deque[_PendingBatch] = field(default_factory=deque)  # not sent yet
    in_flight: dict[Future, tuple[int, _PendingBatch]] = field(default_factory=dict)
    starting: dict[Future, int] = field(default_factory=dict)
    restarting: dict[int, float] = field(default_factory=dict)  # replica -> when, monotonic
    ready: set[int] = field(default_factory=set)
    kind: str = ""  # device and dtype of all
    none_since: float = field(default_factory=time.monotonic)  # since when no replica is ready


class GroupScheduler:
    """A `CropGenerator` on a pool; reads at most QUEUE_DEPTH batches a replica ahead.

    A lost replica is restarted; meanwhile the others generate its batches. The run fails only when
    no replica was ready for START_SECONDS.
    """

    def __init__(self, pool: WorkerPool, batch: int, context: RunContext) -> None:
        self._pool, self.batch, self._context = pool, batch, context

    def __call__(
        self, batches: Generator[tuple[Key, CropBatch | None], None, None]
    ) -> Generator[tuple[Key, Tensor | None], None, None]:
        """As `CropGenerator` says.

        Raises:
            BackendUnavailable: no replica came up.
            LatentSyncError: raised by a replica, or one batch ended several replicas.
        """
        state = _WorkerState()
        for replica in range(len(self._pool)):
            state.starting[self._pool.start(replica)] = replica
        with closing(batches):
            try:
                yield from self._in_order(batches, state)
            finally:
                self._pool.cancel([*state.in_flight, *state.starting])

    def _in_order(
        self, batches: Generator[tuple[Key, CropBatch | None], None, None], state: _WorkerState
    ) -> Generator[tuple[Key, Tensor | None], None, None]:
        more = True
        while more or state.queue:
            while state.queue and state.queue[0].done:
                done = state.queue.popleft()
                yield done.key, done.faces
            if more and len(state.queue) < QUEUE_DEPTH * len(self._pool):
                try:
                    pending = _PendingBatch(*next(batches))
                except StopIteration:
                    more = False
                    continue
                state.queue.append(pending)
                if not pending.done:
                    state.waiting.append(pending)
                self._poll(state, 0)
            elif state.queue and not state.queue[0].done:
                with self._context.timed("network"):
                    self._poll(state, POLL_SECONDS)

    def _poll(self, state: _WorkerState, seconds: float) -> None:
        """Send what waits, and collect what is done within `seconds`."""
        self._context.check()
        now = time.monotonic()
        for replica in [one for one, until in state.restarting.items() if until <= now]:
            del state.restarting[replica]
            state.starting[self._pool.start(replica)] = replica
        self._hand_out(state)
        for future in self._pool.wait([*state.in_flight, *state.starting], seconds):
            if future in state.starting:
                self._on_ready(state, future)
            else:
                self._on_result(state, future)
        if not state.ready and now - state.none_since > START_SECONDS:
            raise BackendUnavailable(
                f"none of {len(self._pool)} replicas was there for {START_SECONDS:.0f} s; `ray "
                "status` says what the cluster lacks"
            )
        self._hand_out(state)

    def _hand_out(self, state: _WorkerState) -> None:
        """Send waiting batches to the replicas with the shortest queues."""
        while state.waiting:
            has = dict.fromkeys(sorted(state.ready), 0)
            for replica, _ in state.in_flight.values():
                has[replica] += 1
            free = min(has, key=lambda replica: has[replica], default=None)
            if free is None or has[free] >= QUEUE_DEPTH:
                return
            pending = state.waiting.popleft()
            assert pending.work is not None
            state.in_flight[self._pool.send(free, pending.work)] = free, pending

    def _on_ready(self, state: _WorkerState, future: Future) -> None:
        replica = state.starting.pop(future)
        try:
            kind = self._pool.result(future)
        except WorkerLost:
            state.restarting[replica] = time.monotonic() + RESTART_SECONDS
            return
        state.kind = state.kind or kind
        if kind != state.kind:  # one face would change its look from group to group
            raise LatentSyncError(
                f"one replica is {state.kind}, another {kind}; give --device and --dtype, or "
                "machines of one kind"
            )
        state.ready.add(replica)

    def _on_result(self, state: _WorkerState, future: Future) -> None:
        if future not in state.in_flight:
            return  # its replica was lost a moment ago
        replica, pending = state.in_flight[future]
        try:
            pending.faces = self._pool.result(future)
        except WorkerLost as error:
            self._on_loss(state, replica, error)
        else:
            del state.in_flight[future]
            pending.work = None

    def _on_loss(self, state: _WorkerState, replica: int, error: WorkerLost) -> None:
        """Put a lost replica's batches in front of those not sent yet."""
        had = [future for future, (one, _) in state.in_flight.items() if one == replica]
        lost = [state.in_flight.pop(future)[1] for future in had]
        state.waiting.extendleft(reversed(lost))
        self._pool.cancel(had)
        log.warning("replica %d was lost (%s); others draw what it had", replica, error)
        state.ready.discard(replica)
        state.none_since = time.monotonic()
        state.restarting[replica] = time.monotonic() + RESTART_SECONDS
        drawn = lost[0]  # the batch that it was generating
        drawn.losses += 1
        if drawn.losses >= MAX_LOSSES and drawn.work is not None:
            raise LatentSyncError(
                f"frames {drawn.work.start}-{drawn.work.stop - 1} ended {drawn.losses} replicas, "
                f"one after the other ({error}); see their logs, or use a smaller batch"
            ) from error
