"""The Frechet distance against scipy's square root and by hand, and moments of a stream."""

import functools
import operator

import numpy as np
import pytest
from scipy.linalg import sqrtm

from latentsync.errors import OptionError
from latentsync.evaluation.frechet import Moments, frechet_distance


def features(seed, count, width, mean=0.0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + mean


def as_published(a, b):
    """As FID's first implementation has it."""
    one, two = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = sqrtm(one @ two)
    return np.square(a.mean(0) - b.mean(0)).sum() + np.trace(one + two - 2 * root.real)


@pytest.mark.parametrize(("counts", "width"), [((200, 300), 12), ((50, 40), 32), ((500, 3), 2)])
def test_against_scipy(counts, width):
    a, b = features(1, counts[0], width), features(2, counts[1], width, mean=1)
    found = frechet_distance(Moments.of(a), Moments.of(b))
    assert found == pytest.approx(as_published(a, b), rel=1e-7)


def test_two_lonely_gaussians_by_hand():
    """Where covariances are diagonal it is the distance of means and of deviations."""
    means, deviations = np.array([[0.0, 1, 2], [3, 1, -2]]), np.array([[1.0, 2, 0], [0.5, 2, 4]])
    a, b = (
        Moments(11, mean, np.diag(10 * deviation**2))
        for mean, deviation in zip(means, deviations, strict=True)
    )
    assert frechet_distance(a, b) == pytest.approx(9 + 16 + 0.25 + 16, rel=1e-12)


def test_few_samples_of_a_wide_net():
    """Fewer than the width, so that no covariance can be inverted: by a closed form of its own."""
    a, b = features(3, 9, 300), features(4, 7, 300)
    roots = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    nuclear = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(np.square(root).sum() for root in roots)
    wanted = np.square(a.mean(0) - b.mean(0)).sum() + spread - 2 * nuclear
    assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(Moments.of(a), Moments.of(a)) == pytest.approx(0, abs=1e-8 * spread)


def test_still_sets():
    still = Moments.of(np.ones((4, 5)))
    assert frechet_distance(still, still) == 0
    assert frechet_distance(still, Moments.of(np.full((4, 5), 3.0))) == pytest.approx(20)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_a_stream_adds_up(offset):
    whole = features(5, 101, 6, mean=offset)
    parts = [Moments.of(part) for part in np.split(whole, [1, 2, 40])]
    total = functools.reduce(operator.add, parts, Moments.none(6))
    assert total.count == 101
    np.testing.assert_allclose(total.mean, whole.mean(axis=0), rtol=1e-12, atol=1e-12)
    # At an offset of 1e6 sums of squares would be off by 1e-4 already.
    np.testing.assert_allclose(total.covariance, np.cov(whole, rowvar=False), rtol=1e-6, atol=1e-8)
    twice = Moments.none(6) + total
    np.testing.assert_array_equal(twice.scatter, total.scatter)


def test_nonsense_is_refused():
    for wrong in (np.zeros(3), np.zeros((0, 3)), np.zeros((3, 0)), [[np.nan, 1.0]]):
        with pytest.raises(OptionError, match="wanted \\(1 or more, width\\)"):
            Moments.of(wrong)
    one = Moments.of([[1.0, 2.0]])
    with pytest.raises(OptionError, match="1 features have no covariance"):
        frechet_distance(one, one)
    for act in (operator.add, frechet_distance):
        with pytest.raises(OptionError, match="widths 2 and 3"):
            act(one, Moments.none(3))
