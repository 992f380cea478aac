"""One face of one run, drawn by several replicas: in order, bounded, and again what was lost."""

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

__all__ = ["QUEUE_DEPTH", "START_SECONDS", "Spread", "WorkerLost", "WorkerPool"]

log = logging.getLogger(__name__)

QUEUE_DEPTH = 2  # works a replica has at once: while it draws one, the next is on its way
POLL_SECONDS = 0.1  # seconds, between two looks whether the caller wants to stop
MAX_LOSSES = 3  # replicas that may end over one work, before it is taken to be what ends them
RESTART_SECONDS = 1.0  # seconds from a replica's loss until it is asked to be ready again
START_SECONDS = 600.0  # in which one replica must be there: starting Python and loading weights

Ticket = Any  # a promise, hashable


class WorkerLost(Exception):
    """A replica, or what it had drawn, is gone: its process or its machine ended."""


class WorkerPool(Protocol):
    """Numbered replicas, as a spread sees them."""

    def __len__(self) -> int: ...

    def start(self, replica: int) -> Ticket:
        """Ask it to be ready, for the first time or after it was lost: str, device and dtype."""

    def send(self, replica: int, work: CropBatch) -> Ticket:
        """Let it draw, after what it was sent before."""

    def wait(self, tickets: Sequence[Ticket], seconds: float) -> list[Ticket]:
        """Those that are fulfilled, or failed, after so long at most."""

    def take(self, ticket: Ticket) -> Any:  # noqa: ANN401
        """What was promised: a Tensor by `send`. Raises Lost, or what was raised there."""

    def forget(self, tickets: Sequence[Ticket]) -> None:
        """These aren't wanted any more."""


@dataclass(eq=False)
class _Place:
    """One batch in the line."""

    key: Any  # the caller's
    work: CropBatch | None
    faces: Tensor | None = None
    losses: int = 0

    @property
    def done(self) -> bool:
        return self.work is None


@dataclass
class _WorkerState:
    """Who does what."""

    line: deque[_Place] = field(default_factory=deque)  # in the order of the output
    waiting: deque[_Place] = field(default_factory=deque)  # for a replica
    out: dict[Ticket, tuple[int, _Place]] = field(default_factory=dict)
    starting: dict[Ticket, int] = field(default_factory=dict)
    resting: dict[int, float] = field(default_factory=dict)  # lost; until when
    ready: set[int] = field(default_factory=set)
    kind: str = ""  # what all of them are
    alone_since: float = field(default_factory=time.monotonic)  # where none is ready


class Spread:
    """A `CropGenerator` by a pool: at most DEPTH batches a replica are read ahead of the first.

    A replica that is lost is asked to be ready again; meanwhile the others draw what it had. The
    run fails only when for START_SECONDS there was none at all.
    """

    def __init__(self, crew: WorkerPool, batch: int, reporter: RunContext) -> None:
        self._crew, self.batch, self._reporter = crew, batch, reporter

    def __call__(
        self, batches: Generator[tuple[Key, CropBatch | None], None, None]
    ) -> Generator[tuple[Key, Tensor | None], None, None]:
        """As `CropGenerator` says.

        Raises:
            BackendUnavailable: no replica came up.
            LatentSyncError: a replica's own, or a work ended several of them.
        """
        state = _WorkerState()
        for replica in range(len(self._crew)):
            state.starting[self._crew.start(replica)] = replica
        with closing(batches):
            try:
                yield from self._in_order(batches, state)
            finally:
                self._crew.forget([*state.out, *state.starting])

    def _in_order(
        self, batches: Generator[tuple[Key, CropBatch | None], None, None], state: _WorkerState
    ) -> Generator[tuple[Key, Tensor | None], None, None]:
        more = True
        while more or state.line:
            while state.line and state.line[0].done:
                done = state.line.popleft()
                yield done.key, done.faces
            if more and len(state.line) < QUEUE_DEPTH * len(self._crew):
                try:
                    place = _Place(*next(batches))
                except StopIteration:
                    more = False
                    continue
                state.line.append(place)
                if not place.done:
                    state.waiting.append(place)
                self._look(state, 0)
            elif state.line and not state.line[0].done:
                with self._reporter.timed("network"):
                    self._look(state, POLL_SECONDS)

    def _look(self, state: _WorkerState, seconds: float) -> None:
        """Hand out what waits, and take in what is done after so long at most."""
        self._reporter.check()
        now = time.monotonic()
        for replica in [one for one, until in state.resting.items() if until <= now]:
            del state.resting[replica]
            state.starting[self._crew.start(replica)] = replica
        self._hand_out(state)
        for ticket in self._crew.wait([*state.out, *state.starting], seconds):
            if ticket in state.starting:
                self._begun(state, ticket)
            else:
                self._drawn(state, ticket)
        if not state.ready and now - state.alone_since > START_SECONDS:
            raise BackendUnavailable(
                f"none of {len(self._crew)} replicas was there for {START_SECONDS:.0f} s; `ray "
                "status` says what the cluster lacks"
            )
        self._hand_out(state)

    def _hand_out(self, state: _WorkerState) -> None:
        """To whom has the least to do, and none more than DEPTH."""
        while state.waiting:
            has = dict.fromkeys(sorted(state.ready), 0)
            for replica, _ in state.out.values():
                has[replica] += 1
            free = min(has, key=lambda replica: has[replica], default=None)
            if free is None or has[free] >= QUEUE_DEPTH:
                return
            place = state.waiting.popleft()
            assert place.work is not None
            state.out[self._crew.send(free, place.work)] = free, place

    def _begun(self, state: _WorkerState, ticket: Ticket) -> None:
        replica = state.starting.pop(ticket)
        try:
            kind = self._crew.take(ticket)
        except WorkerLost:
            state.resting[replica] = time.monotonic() + RESTART_SECONDS
            return
        state.kind = state.kind or kind
        if kind != state.kind:  # one face would change its look from group to group
            raise LatentSyncError(
                f"one replica is {state.kind}, another {kind}; give --device and --dtype, or "
                "machines of one kind"
            )
        state.ready.add(replica)

    def _drawn(self, state: _WorkerState, ticket: Ticket) -> None:
        if ticket not in state.out:
            return  # it went with its replica, just now
        replica, place = state.out[ticket]
        try:
            place.faces = self._crew.take(ticket)
        except WorkerLost as error:
            self._lost(state, replica, error)
        else:
            del state.out[ticket]
            place.work = None

    def _lost(self, state: _WorkerState, replica: int, error: WorkerLost) -> None:
        """All it had goes to others, before what wasn't handed out yet."""
        had = [ticket for ticket, (one, _) in state.out.items() if one == replica]
        places = [state.out.pop(ticket)[1] for ticket in had]
        state.waiting.extendleft(reversed(places))
        self._crew.forget(had)
        log.warning("replica %d was lost (%s); others draw what it had", replica, error)
        state.ready.discard(replica)
        state.alone_since = time.monotonic()
        state.resting[replica] = time.monotonic() + RESTART_SECONDS
        drawn = places[0]  # what it drew when it ended; the others waited
        drawn.losses += 1
        if drawn.losses >= MAX_LOSSES and drawn.work is not None:
            raise LatentSyncError(
                f"frames {drawn.work.start}-{drawn.work.stop - 1} ended {drawn.losses} replicas, "
                f"one after the other ({error}); see their logs, or use a smaller batch"
            ) from error
