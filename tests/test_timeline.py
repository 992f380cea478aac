"""Which frame plays when and for how long, who speaks, and in which group."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentsync.pipeline.timeline import (
    GROUP_FRAMES,
    AudioSpan,
    Timeline,
    lay_out,
    new_shots,
    passed_through,
    reasons,
    segments,
    source_frames,
)

TICK = Fraction(1, 25)
MODES = ("bounce", "pingpong", "loop", "freeze", "cut_off", "silence", "remap")


@pytest.mark.parametrize(
    ("output", "available", "mode", "expected"),
    [
        (3, 5, "bounce", [0, 1, 2]),
        (9, 4, "bounce", [0, 1, 2, 3, 2, 1, 0, 1, 2]),
        (9, 3, "pingpong", [0, 1, 2, 2, 1, 0, 0, 1, 2]),
        (4, 1, "bounce", [0, 0, 0, 0]),
        (4, 1, "pingpong", [0, 0, 0, 0]),
        (5, 2, "bounce", [0, 1, 0, 1, 0]),
        (5, 2, "pingpong", [0, 1, 1, 0, 0]),
        (5, 2, "loop", [0, 1, 0, 1, 0]),
        (7, 3, "loop", [0, 1, 2, 0, 1, 2, 0]),
        (5, 3, "freeze", [0, 1, 2, 2, 2]),
        (2, 3, "freeze", [0, 1]),
        (6, 3, "remap", [0, 0, 1, 1, 2, 2]),
        (3, 6, "remap", [0, 2, 4]),
    ],
)
def test_source_frames(output, available, mode, expected):
    assert source_frames(output, available, mode).tolist() == expected


@given(st.integers(1, 300), st.integers(1, 60))
def test_a_bounce_moves_one_frame_at_a_time(output, available):
    source = source_frames(output, available)
    assert len(source) == output
    assert source.min() >= 0
    assert source.max() < available
    if available > 1:
        assert (np.abs(np.diff(source)) == 1).all()


@pytest.mark.parametrize(
    ("mode", "longer", "shorter"),  # frames of a clip of 4 beside a voice of 6 and of 2
    [
        ("bounce", [0, 1, 2, 3, 2, 1], [0, 1]),
        ("pingpong", [0, 1, 2, 3, 3, 2], [0, 1]),
        ("loop", [0, 1, 2, 3, 0, 1], [0, 1]),
        ("freeze", [0, 1, 2, 3, 3, 3], [0, 1]),
        ("cut_off", [0, 1, 2, 3], [0, 1]),
        ("silence", [0, 1, 2, 3, 2, 1], [0, 1, 2, 3]),
        ("remap", [0, 0, 1, 2, 2, 3], [0, 2]),
    ],
)
def test_modes(mode, longer, shorter):
    begins = np.arange(5)
    laid = lay_out(begins, TICK, AudioSpan(6 * TICK), mode)
    assert laid.source.tolist() == longer
    assert laid.speaks.all()
    laid = lay_out(begins, TICK, AudioSpan(2 * TICK), mode)
    assert laid.source.tolist() == shorter
    assert laid.speaks.tolist() == [True, True, False, False][: len(shorter)]


def test_before_and_after_the_voice_nobody_speaks():
    laid = lay_out(np.arange(9), TICK, AudioSpan(3 * TICK, 2 * TICK, Fraction(1, 50)))
    assert laid.source.tolist() == [0, 1, 2, 3, 4, 5]  # half a frame is shown whole
    assert laid.speaks.tolist() == [False, False, True, True, True, False]
    assert laid.seconds == 6 * TICK


@given(
    st.lists(st.integers(300, 9000), min_size=1, max_size=20),
    st.fractions(Fraction(1, 1000), 5, max_denominator=1000),
    st.fractions(0, 2, max_denominator=1000),
    st.fractions(0, 2, max_denominator=1000),
    st.sampled_from(MODES),
)
def test_any_cadence_lasts_as_long_as_it_should(lasts, voice, lead_in, lead_out, mode):
    tick = Fraction(1, 90_000)
    begins = np.concatenate([[0], np.cumsum(lasts)])
    clip, whole = int(begins[-1]) * tick, lead_in + voice + lead_out
    expected = {"cut_off": min(clip, whole), "silence": max(clip, whole)}.get(mode, whole)

    laid = lay_out(begins, tick, AudioSpan(voice, lead_in, lead_out), mode)

    shown = np.diff(laid.begins)
    assert len(laid.source) == len(shown) == len(laid.speaks)
    assert 0 <= laid.seconds - expected < int(shown[-1]) * laid.time_base
    if mode != "remap":
        np.testing.assert_array_equal(shown, np.diff(begins)[laid.source])  # the clip's own cadence
    at = [int(ticks) * laid.time_base for ticks in laid.begins[:-1]]
    beside = [lead_in - laid.time_base < t < lead_in + voice + laid.time_base for t in at]
    inside = [lead_in <= t < lead_in + voice for t in at]
    assert all(i <= s <= b for i, s, b in zip(inside, laid.speaks, beside, strict=True))


def test_only_what_is_shown_is_looked_at():
    voice = AudioSpan(Fraction(3), Fraction(1), Fraction(1, 2))
    assert voice.clip_needed("bounce") == Fraction(9, 2)
    assert voice.clip_needed("remap") is None
    assert voice.clip_needed("silence") is None


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


@given(st.lists(st.booleans(), min_size=1, max_size=120), st.integers(1, 200), st.data())
def test_groups_cover_everything_once_and_never_bridge_a_gap(found, output, data):
    found = np.array(found)
    source = source_frames(output, len(found))
    speaks = found[source]
    shots = np.array(data.draw(st.lists(st.booleans(), min_size=output, max_size=output)))
    groups = segments(source, speaks, shot_start=shots)
    assert [s.start for s in groups[1:]] == [s.stop for s in groups[:-1]]
    assert (groups[0].start, groups[-1].stop) == (0, output)
    for segment in groups:
        assert 1 <= len(segment) <= GROUP_FRAMES
        np.testing.assert_array_equal(segment.source, source[segment.start : segment.stop])
        assert (speaks[segment.start : segment.stop] != segment.passthrough).all()
        assert not shots[segment.start + 1 : segment.stop].any()
    outside = {
        i for start, stop, _ in passed_through([groups], "x" * output) for i in range(start, stop)
    }
    assert outside == set(np.flatnonzero(~speaks))


@given(st.integers(1, 100), st.integers(1, 12))
def test_groups_of_one_run_share_frames(frames, overlap):
    groups = segments(np.arange(frames), np.ones(frames, bool), overlap=overlap)
    assert (groups[0].start, groups[-1].stop) == (0, frames)
    assert all(len(group) <= GROUP_FRAMES for group in groups)
    assert all(len(group) > group.shared for group in groups)
    assert groups[0].shared == 0
    for a, b in pairwise(groups):
        assert a.stop - b.start == a.kept == b.shared == overlap
    assert len(groups) == max(1, -(-(frames - overlap) // (GROUP_FRAMES - overlap)))


def test_runs_share_nothing_with_each_other():
    speaks = np.array([True] * 20 + [False] * 20 + [True] * 20)
    groups = segments(np.arange(60), speaks, overlap=4)
    assert [(g.start, g.stop, g.shared) for g in groups] == [
        *((0, 12, 0), (8, 20, 4)),
        *((20, 30, 0), (30, 40, 0)),
        *((40, 52, 0), (48, 60, 4)),
    ]


def test_even_groups_differ_by_one_at_most():
    for frames in range(1, 200):
        lengths = [len(s) for s in segments(np.arange(frames), np.ones(frames, dtype=bool))]
        assert max(lengths) - min(lengths) <= 1


def test_ranges_are_joined():
    speaks = np.array([True] * 3 + [False] * 40 + [True] * 2 + [False])
    one = segments(np.arange(46), speaks)
    why = "a" * 20 + "b" * 26
    assert passed_through([one], why) == ((3, 20, "a"), (20, 43, "b"), (45, 46, "b"))
    another = segments(np.arange(46), np.arange(46) == 10)
    assert [one[:2] for one in passed_through([one, another], "a" * 46)] == [
        *((3, 10), (11, 43), (45, 46))
    ]


def test_it_is_told_why_frames_are_left_untouched():
    source = np.array([0, 1, 2, 3, 2, 1, 0])
    speaks = np.array([False, True, True, True, True, True, False])
    shown = Timeline(source, np.arange(8), Fraction(1, 25), speaks)
    lost = [(0, 2, "left: no face"), (1, 3, "right: too small")]
    assert reasons(shown, lost) == [
        "before the voice",
        "left: no face; right: too small",
        "right: too small",
        "nobody speaks",
        "right: too small",
        "left: no face; right: too small",
        "after the voice",
    ]
    mute = Timeline(source, np.arange(8), Fraction(1, 25), np.zeros(7, bool))
    assert set(reasons(mute, lost)) == {"after the voice"}


def test_shots_begin_whichever_way_the_clip_plays():
    cut = np.array([False, False, True, False])
    assert np.flatnonzero(new_shots(np.array([0, 1, 2, 3, 2, 1, 0]), cut)).tolist() == [2, 5]
    assert np.flatnonzero(new_shots(np.array([1, 2, 3, 0, 1]), cut)).tolist() == [1, 3]
    assert not new_shots(np.array([0, 0, 2, 4]), np.zeros(5, bool)).any()  # sped up


def test_the_mouth_comes_and_goes_beside_untouched_frames():
    speaks = np.array([True] * 6 + [False] * 2 + [True] * 2 + [False])
    strength = [s for group in segments(np.arange(11), speaks, fade=3) for s in group.strength]
    assert strength == [1, 1, 1, 0.75, 0.5, 0.25, 0, 0, 0.25, 0.25, 0]
    assert {s for group in segments(np.arange(11), speaks) for s in group.strength[:6]} <= {0, 1}
    whole = segments(np.arange(5), np.ones(5, dtype=bool), fade=3)
    assert whole[0].strength.tolist() == [1] * 5  # the clip's ends are no edges


def test_the_mouth_comes_and_goes_at_once_beside_a_cut():
    speaks = np.array([True] * 6 + [False] * 4 + [True] * 5)
    cut = np.isin(np.arange(15), [6, 10])
    plan = segments(np.arange(15), speaks, fade=3, shot_start=cut)
    assert [s for group in plan for s in group.strength] == speaks.tolist()
    elsewhere = segments(np.arange(15), speaks, fade=3, shot_start=np.arange(15) == 6)
    assert [s for group in elsewhere for s in group.strength][-5:] == [0.25, 0.5, 0.75, 1, 1]


def test_a_frame_of_which_nearly_nothing_is_drawn_counts_as_untouched():
    speaks = np.array([True] * 40 + [False] * 3 + [True] * 40)
    plan = segments(np.arange(83), speaks, fade=25)
    strength = np.concatenate([group.strength for group in plan])
    assert np.flatnonzero(strength == 0).tolist() == [39, 40, 41, 42, 43]
    assert strength[strength > 0].min() > 0.05
    why = ["a"] * 40 + ["turned away"] * 3 + ["b"] * 40
    assert passed_through([plan], why) == ((39, 44, "turned away"),)
