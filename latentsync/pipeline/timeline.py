"""Which source frame plays when, for how long, who speaks, and in which group: whole numbers only.

the clip's frames + the voice's length -> lay_out -> Timeline -> segments -> groups of 16
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from latentsync.types import IntArray, Segment, SyncMode

__all__ = [
    "GROUP_FRAMES",
    "AudioSpan",
    "Timeline",
    "fading",
    "lay_out",
    "new_shots",
    "passed_through",
    "reasons",
    "segments",
    "source_frames",
]

GROUP_FRAMES = 16  # frames the network sees together, as published
MIN_STRENGTH = 0.05  # of a drawn mouth; with less, which nobody sees, the frame is left untouched


@dataclass(frozen=True)
class AudioSpan:
    """Duration of the voice, and the silent lead-in and lead-out around it."""

    seconds: Fraction
    lead_in: Fraction = Fraction(0)  # seconds of frames before it begins
    lead_out: Fraction = Fraction(0)  # seconds of frames when it has ended

    @property
    def end(self) -> Fraction:
        """Seconds."""
        return self.lead_in + self.seconds

    @property
    def whole(self) -> Fraction:
        """Seconds, lead-in and lead-out included."""
        return self.end + self.lead_out

    def clip_needed(self, mode: SyncMode) -> Fraction | None:
        """How many seconds of a clip may play beside it; None: all there are."""
        return None if mode in ("silence", "remap") else self.whole


@dataclass(frozen=True)
class Timeline:
    """What the output shows when."""

    source: IntArray  # (n,) the source frame shown at each output frame
    begins: IntArray  # (n + 1,) when each output frame begins, and the last one ends
    time_base: Fraction  # seconds, the unit of `begins`
    speaks: NDArray[np.bool_]  # (n,) whether the voice sounds when an output frame begins

    @property
    def seconds(self) -> Fraction:
        return int(self.begins[-1]) * self.time_base

    def spans(self) -> Iterator[tuple[Fraction, Fraction]]:
        """When each output frame begins and ends, in seconds."""
        return pairwise(int(at) * self.time_base for at in self.begins)


def source_frames(output: int, available: int, mode: SyncMode = "bounce") -> IntArray:
    """(output,) the source frame shown at each output frame.

    "bounce" plays to and fro without showing the turning frame twice (0 1 2 1 0 1), and so do
    "cut_off" and "silence" as long as they are asked; "pingpong", as published, shows it twice
    (0 1 2 2 1 0 0 1); "loop" starts again (0 1 2 0 1); "freeze" stays (0 1 2 2 2); "remap" spreads
    the clip over the output (0 0 1 1 2 2, or 0 2 4).
    """
    assert available > 0
    if mode == "freeze":
        return np.minimum(np.arange(output, dtype=np.int64), available - 1)
    if mode == "remap":
        return np.arange(output, dtype=np.int64) * available // output
    return np.resize(_cycle(available, mode), output)


def lay_out(
    begins: IntArray, time_base: Fraction, span: AudioSpan, mode: SyncMode = "bounce"
) -> Timeline:
    """Lay the clip out beside the voice.

        mode       voice longer than the clip     voice shorter
        bounce     to and fro                     the clip is cut
        pingpong   the same, the turning frame
                   twice (as published)           the clip is cut
        loop       again from the start           the clip is cut
        freeze     the last frame stays           the clip is cut
        cut_off    ends with the clip             the clip is cut
        silence    to and fro                     the whole clip, its own mouth after the voice
        remap      the clip is slowed down        the clip is sped up

    Each frame plays as long as it does in the clip; remap's frames, the clip's mean. The output
    ends with the frame that is shown when the voice and the time around it are over.

    Args:
        begins: (frames + 1,) when each frame of the clip begins and the last one ends.
        time_base: seconds, the unit of `begins`.
    """
    frames, lasts = len(begins) - 1, np.diff(begins)
    clip = int(begins[-1] - begins[0])
    if mode == "remap":
        time_base, lasts = time_base * clip / frames, np.ones_like(lasts)
        source = source_frames(math.ceil(span.whole / time_base), frames, mode)
    else:
        wanted = math.ceil(span.whole / time_base)  # units
        if mode == "cut_off":
            wanted = min(wanted, clip)
        elif mode == "silence":
            wanted = max(wanted, clip)
        source = _lasting(wanted, lasts, mode)
    shown = np.concatenate([[0], np.cumsum(lasts[source])]).astype(np.int64)
    begins = shown[:-1]
    first, end = math.ceil(span.lead_in / time_base), math.ceil(span.end / time_base)
    speaks = (begins >= first) & (begins < end)
    return Timeline(source, shown, time_base, speaks)


def _cycle(available: int, mode: SyncMode) -> IntArray:
    """List the source frames of one cycle, after which the clip repeats."""
    there = np.arange(available, dtype=np.int64)
    back = {"loop": there[:0], "pingpong": there[::-1]}.get(mode, there[-2:0:-1])
    return np.concatenate([there, back])


def _lasting(units: int, lasts: IntArray, mode: SyncMode) -> IntArray:
    """The fewest source frames that, one after the other, last so many units."""
    if mode == "freeze":
        more = max(0, units - int(lasts.sum()))
        source = source_frames(len(lasts) + -(-more // int(lasts[-1])), len(lasts), mode)
    else:
        once = _cycle(len(lasts), mode)
        source = np.tile(once, -(-units // int(lasts[once].sum())))
    return source[: int(np.searchsorted(np.cumsum(lasts[source]), units)) + 1]


def segments(
    source: IntArray,
    speaks: NDArray[np.bool_],
    grouping: Literal["even", "short_tail"] = "even",
    *,
    shot_start: NDArray[np.bool_] | None = None,
    fade: int = 0,
    overlap: int = 0,
) -> list[Segment]:
    """Cut the output into groups of at most 16 frames; none bridges a frame that doesn't speak.

    Args:
        source: (n,) source frame of each output frame.
        speaks: (n,) whether the mouth is drawn there.
        grouping: "even" splits a run into groups of nearly equal length (17: 9 + 8), because the
            frames of a group share statistics; "short_tail", as published, cuts off 16 at a time.
        shot_start: (n,) whether a new shot begins at an output frame; no group bridges that either.
        fade: frames over which the drawn mouth comes and goes beside frames of the same shot that
            don't speak.
        overlap: frames that neighbours of one run share, at most 15; the groups are even ones then.
    """
    starts = np.diff(speaks) if shot_start is None else np.diff(speaks) | shot_start[1:]
    borders = [0, *(np.flatnonzero(starts) + 1).tolist(), len(source)]
    strength = fading(speaks, fade, shot_start)
    strength[strength < MIN_STRENGTH] = 0
    groups: list[Segment] = []
    for start, stop in pairwise(borders):
        share = overlap if speaks[start] else 0
        for a, b in _groups(start, stop, grouping, share):
            shared, kept = (share if a > start else 0), (share if b < stop else 0)
            groups.append(
                Segment(a, b, source[a:b], not speaks[start], strength[a:b], shared, kept)
            )
    return groups


def new_shots(source: IntArray, shot_start: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(n,) whether an output frame belongs to another shot than the one before it.

    Args:
        source: (n,) source frame of each output frame; a step back by more than one is a jump.
        shot_start: (source frames,) whether a shot begins.
    """
    shot = np.cumsum(shot_start)[source]
    jump = (np.diff(shot) != 0) | (np.diff(source) < -1)
    return np.concatenate([[False], jump])


def reasons(shown: Timeline, lost: Sequence[tuple[int, int, str]]) -> list[str]:
    """(n,) for each output frame why it is left untouched, if it is.

    Args:
        lost: source frames [start, stop) without a face that is to speak, and why; of several
            faces there may be several reasons for a frame.
    """
    faces: dict[int, list[str]] = {}
    for start, stop, reason in lost:
        for frame in range(start, stop):
            faces.setdefault(frame, []).append(reason)
    why = ["; ".join(faces.get(frame, ["nobody speaks"])) for frame in shown.source.tolist()]
    spoken = np.flatnonzero(shown.speaks)
    first, end = (int(spoken[0]), int(spoken[-1]) + 1) if len(spoken) else (0, 0)
    before, after = ["before the voice"] * first, ["after the voice"] * (len(why) - end)
    return before + why[first:end] + after


def passed_through(
    plans: list[list[Segment]], why: Sequence[str]
) -> tuple[tuple[int, int, str], ...]:
    """Find the ranges of output frames that no plan touches, [start, stop), and `why` of each.

    A frame at the end of a fade, of whose drawn mouth nothing is laid on, takes the reason of the
    frame beside it.
    """
    silent, untouched = np.ones((2, len(why)), dtype=bool)
    for segment in (segment for plan in plans for segment in plan if not segment.passthrough):
        silent[segment.start : segment.stop] = False
        untouched[segment.start : segment.stop] &= segment.strength == 0
    reason_at: list[str | None] = [None] * len(why)
    for i in np.flatnonzero(untouched).tolist():
        beside = i if silent[i] else i - 1 if i and silent[i - 1] else i + 1
        reason_at[i] = why[min(beside, len(why) - 1)]
    ranges, start = [], 0
    for reason, frames in groupby(reason_at):
        stop = start + len(list(frames))
        if reason is not None:
            ranges.append((start, stop, reason))
        start = stop
    return tuple(ranges)


def fading(
    speaks: NDArray[np.bool_], fade: int, shot_start: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """(n,) 0 where nobody speaks, 1 where somebody does, less within `fade` frames of a border.

    The clip's own ends are no borders, nor are frames where `shot_start` is true: there one picture
    follows another at once, and so does one mouth.
    """
    if shot_start is not None:
        shots = np.split(speaks, np.flatnonzero(shot_start[1:]) + 1)
        return np.concatenate([fading(shot, fade) for shot in shots])
    away = np.full(len(speaks), fade + 1, dtype=np.int64)  # frames to the next untouched one
    silent = np.flatnonzero(~speaks)
    if len(silent):
        at = np.arange(len(speaks))
        after = np.searchsorted(silent, at)
        right = silent[np.minimum(after, len(silent) - 1)]
        left = silent[np.maximum(after - 1, 0)]
        away = np.minimum(np.abs(right - at), np.abs(at - left))
    return np.minimum(away / (fade + 1), 1).astype(np.float32)


def _groups(
    start: int, stop: int, grouping: Literal["even", "short_tail"], overlap: int
) -> list[tuple[int, int]]:
    """[start, stop) of each group of a run."""
    if grouping == "short_tail" and not overlap:
        edges = [*range(start, stop, GROUP_FRAMES), stop]
    else:
        alone = stop - start - overlap  # frames that only one group would have, were it not shared
        groups = max(1, -(-alone // (GROUP_FRAMES - overlap)))
        edges = [start + alone * i // groups for i in range(groups)] + [stop - overlap]
    return [(a, b + overlap) for a, b in pairwise(edges)]
