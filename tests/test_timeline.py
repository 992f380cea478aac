"""Which frame plays when, and in which group."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentsync.timeline import GROUP, passed_through, segments, source_frames


@pytest.mark.parametrize(
    ("output", "available", "turn", "expected"),
    [
        (3, 5, "bounce", [0, 1, 2]),
        (9, 4, "bounce", [0, 1, 2, 3, 2, 1, 0, 1, 2]),
        (9, 3, "pingpong", [0, 1, 2, 2, 1, 0, 0, 1, 2]),
        (4, 1, "bounce", [0, 0, 0, 0]),
        (4, 1, "pingpong", [0, 0, 0, 0]),
        (5, 2, "bounce", [0, 1, 0, 1, 0]),
        (5, 2, "pingpong", [0, 1, 1, 0, 0]),
    ],
)
def test_source_frames(output, available, turn, expected):
    assert source_frames(output, available, turn).tolist() == expected


@given(st.integers(1, 300), st.integers(1, 60))
def test_a_bounce_moves_one_frame_at_a_time(output, available):
    source = source_frames(output, available)
    assert len(source) == output
    assert source.min() >= 0
    assert source.max() < available
    if available > 1:
        assert (np.abs(np.diff(source)) == 1).all()


@pytest.mark.parametrize(
    ("frames", "grouping", "expected"),
    [
        (17, "even", [8, 9]),
        (17, "short_tail", [16, 1]),
        (16, "even", [16]),
        (33, "even", [11, 11, 11]),
        (33, "short_tail", [16, 16, 1]),
        (1, "even", [1]),
    ],
)
def test_a_run_is_split(frames, grouping, expected):
    cut = segments(np.arange(frames), np.ones(frames, dtype=bool), grouping)
    assert sorted(map(len, cut)) == sorted(expected)


@given(st.lists(st.booleans(), min_size=1, max_size=120), st.integers(1, 200))
def test_groups_cover_everything_once_and_never_bridge_a_gap(found, output):
    found = np.array(found)
    source = source_frames(output, len(found))
    cut = segments(source, found)
    assert [s.start for s in cut[1:]] == [s.stop for s in cut[:-1]]
    assert (cut[0].start, cut[-1].stop) == (0, output)
    for segment in cut:
        assert 1 <= len(segment) <= GROUP
        np.testing.assert_array_equal(segment.source, source[segment.start : segment.stop])
        assert (found[segment.source] != segment.passthrough).all()
    outside = {i for start, stop in passed_through(cut) for i in range(start, stop)}
    assert outside == set(np.flatnonzero(~found[source]))


def test_even_groups_differ_by_one_at_most():
    for frames in range(1, 200):
        lengths = [len(s) for s in segments(np.arange(frames), np.ones(frames, dtype=bool))]
        assert max(lengths) - min(lengths) <= 1


def test_ranges_are_joined():
    found = np.array([True] * 3 + [False] * 40 + [True] * 2 + [False])
    cut = segments(np.arange(46), found)
    assert passed_through(cut) == ((3, 43), (45, 46))
