"""Mouth tracks against each other: what the correlation tells, and what it is not fooled by."""

import numpy as np
import pytest

from latentsync.errors import OptionError
from latentsync.evaluation.lip_correlation import (
    LipSummary,
    amplitude_ratio,
    lip_correlation,
    pooled_correlation,
    summarise,
    wrong_pairs,
    wrong_voice_correlation,
)


def speech(seed, frames=100):
    """A mouth's opening: smooth, at least 0, no two alike."""
    raw = np.random.default_rng(seed).random(frames + 4)
    return np.convolve(raw, np.ones(5) / 5, mode="valid")


def test_it_is_the_correlation():
    a, b = speech(1), speech(1) + 0.5 * speech(2)
    found = lip_correlation(a, b)
    assert found.at_zero == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert lip_correlation(-a, b, max_lag=0).best == pytest.approx(-found.at_zero)


@pytest.mark.parametrize("late", [-5, -1, 0, 1, 4])
def test_a_late_mouth_has_a_positive_lag(late):
    whole = speech(3, 120)
    truth, measured = whole[10:110], whole[10 - late : 110 - late]  # measured[t] = truth[t - late]
    found = lip_correlation(measured, truth)
    assert found.best_lag == late
    assert found.best == pytest.approx(1)
    assert found.at_zero == pytest.approx(np.corrcoef(measured, truth)[0, 1])


def test_of_equal_lags_the_smallest():
    wave = np.sin(np.arange(40) * np.pi / 2)  # a period of 4 frames
    assert lip_correlation(wave, wave).best_lag == 0
    assert lip_correlation(wave[3:], wave[:-3]).best_lag == 1  # as good: -3, 5
    assert lip_correlation(np.array([1.0, 2, 0]), np.array([2.0, 0, 1])).best_lag == 0  # too short


@pytest.mark.parametrize("value", [0, 0.1, 1e6])
def test_a_constant_mouth_has_none(value):
    still = np.full(50, value, np.float32)
    assert lip_correlation(still, speech(1, 50)).at_zero == 0
    assert lip_correlation(speech(1, 50), still).best == 0
    assert pooled_correlation([still], [speech(1, 50)]) == 0
    assert amplitude_ratio(still, speech(1, 50)) == pytest.approx(0, abs=1e-9)
    assert amplitude_ratio(speech(1, 50), still) == 0


def test_pooling_does_not_normalise_the_clips():
    quiet, loud = speech(1), 1 + 3 * speech(2)
    assert pooled_correlation([quiet, loud], [quiet, loud]) == pytest.approx(1)
    alike = [(t - t.mean()) / t.std() for t in (quiet, loud)]  # each is perfect by itself
    assert lip_correlation(alike[1], loud).at_zero == pytest.approx(1)
    assert pooled_correlation(alike, [quiet, loud]) < 0.6
    assert pooled_correlation([], []) == 0


def test_the_amplitude_is_no_slope():
    truth = speech(1)
    assert amplitude_ratio(0.4 * truth + 3, truth) == pytest.approx(0.4)
    assert amplitude_ratio(truth[::-1], truth) == pytest.approx(1)  # ample, at the wrong moments


def test_wrong_pairs_are_wrong_and_the_same_each_time():
    pairs = wrong_pairs(20, 40, seed=3)
    assert len(set(pairs)) == len(pairs) == 40
    assert all(i != j and min(i, j) >= 0 and max(i, j) < 20 for i, j in pairs)
    assert pairs == wrong_pairs(20, 40, seed=3) != wrong_pairs(20, 40, seed=4)
    assert wrong_pairs(3) == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert wrong_pairs(1) == wrong_pairs(0) == []


def test_a_wrong_voice_gives_nothing_unless_all_mouths_do_the_same():
    truth = [speech(i, 90 + i) for i in range(12)]  # of different lengths
    assert abs(wrong_voice_correlation(truth, truth)) < 0.15
    one_for_all = [speech(0, 102)[: len(t)] for t in truth]
    assert wrong_voice_correlation(one_for_all, one_for_all) == pytest.approx(1)
    assert wrong_voice_correlation(truth[:1], truth[:1]) == 0


def test_silence_before_all_voices_is_no_likeness():
    truth = [np.concatenate([np.zeros(15), speech(i, 40)]) for i in range(12)]
    assert abs(wrong_voice_correlation(truth, truth)) < 0.1
    assert wrong_voice_correlation(truth, truth, skip=0) > 0.4
    short = [t[10:22] for t in truth]  # half of each is left
    assert wrong_voice_correlation(short, short) == wrong_voice_correlation(short, short, skip=6)


def test_the_summary():
    truth = [speech(i) for i in range(6)]
    measured = [0.5 * t + 0.2 for t in truth]
    measured[2] = 0.5 * speech(99)
    found = summarise(measured, truth)
    single = [np.corrcoef(a, b)[0, 1] for a, b in zip(measured, truth, strict=True)]
    assert found.mean == pytest.approx(np.mean(single))
    assert found.worst == pytest.approx(min(single)) == pytest.approx(single[2])
    assert found.amplitude == pytest.approx(0.5, abs=0.05)
    assert found.pooled == pooled_correlation(measured, truth)
    assert found.wrong == wrong_voice_correlation(measured, truth)
    assert summarise([], []) == LipSummary(0, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("measured", "truth", "message"),
    [
        (np.zeros(4), np.zeros(5), "cut the longer"),
        (np.zeros(0), np.zeros(0), "cut the longer"),
        (np.zeros((4, 3)), np.zeros((4, 3)), "one value"),
        (np.array([0, np.nan]), np.zeros(2), "not finite"),
    ],
)
def test_what_is_no_track(measured, truth, message):
    for ask in (lip_correlation, amplitude_ratio, lambda a, b: pooled_correlation([a], [b])):
        with pytest.raises(OptionError, match=message):
            ask(measured, truth)
