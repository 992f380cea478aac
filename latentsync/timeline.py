"""Which source frame plays when, and in which group: integers only."""

from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from latentsync.types import IntArray, Segment

__all__ = ["GROUP", "passed_through", "segments", "source_frames"]

GROUP = 16  # frames the network sees together, as published


def source_frames(
    output: int, available: int, turn: Literal["bounce", "pingpong"] = "bounce"
) -> IntArray:
    """(output,) the source frame shown at each output frame, played to and fro as long as needed.

    "bounce" turns without showing the turning frame twice (0 1 2 1 0 1); "pingpong", as published,
    shows it twice (0 1 2 2 1 0 0 1).
    """
    assert available > 0
    there = np.arange(available, dtype=np.int64)
    back = there[::-1] if turn == "pingpong" else there[-2:0:-1]
    return np.resize(np.concatenate([there, back]), output)


def segments(
    source: IntArray,
    found: NDArray[np.bool_],
    grouping: Literal["even", "short_tail"] = "even",
) -> list[Segment]:
    """Cut the output into groups of at most 16 frames; none bridges a frame without a face.

    Args:
        source: (n,) source frame of each output frame.
        found: (source frames,) whether there is a face.
        grouping: "even" splits a run into groups of nearly equal length (17: 9 + 8), because the
            frames of a group share statistics; "short_tail", as published, cuts off 16 at a time.
    """
    faces = found[source]
    borders = [0, *(np.flatnonzero(np.diff(faces)) + 1).tolist(), len(source)]
    cut: list[Segment] = []
    for start, stop in pairwise(borders):
        edges = _edges(start, stop, grouping)
        cut += [Segment(a, b, source[a:b], not faces[start]) for a, b in pairwise(edges)]
    return cut


def passed_through(cut: list[Segment]) -> tuple[tuple[int, int], ...]:
    """The ranges of output frames without a face, [start, stop), neighbours joined."""
    ranges: list[tuple[int, int]] = []
    for segment in cut:
        if not segment.passthrough:
            continue
        if ranges and ranges[-1][1] == segment.start:
            ranges[-1] = (ranges[-1][0], segment.stop)
        else:
            ranges.append((segment.start, segment.stop))
    return tuple(ranges)


def _edges(start: int, stop: int, grouping: Literal["even", "short_tail"]) -> list[int]:
    if grouping == "short_tail":
        return [*range(start, stop, GROUP), stop]
    groups = -(-(stop - start) // GROUP)
    return [start + (stop - start) * i // groups for i in range(groups + 1)]
