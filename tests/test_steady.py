"""Restored crops that flicker are held still, and what moves is neither smeared nor late."""

import cv2
import numpy as np
import pytest

from latentsync.evaluation import image_quality
from latentsync.faces.restoration.deflicker import TemporalSmoother

SIDE, FRAMES = 96, 12


def face(shift=0.0, side=SIDE):
    """Blobs that keep their places, moved aside by so many px."""
    rng = np.random.default_rng(5)
    picture = cv2.GaussianBlur(rng.normal(0, 1, (side, side, 3)).astype(np.float32), (0, 0), 4)
    picture = np.clip(128 + 40 * picture / picture.std(), 0, 255)
    move = np.array([[1, 0, shift], [0, 1, 0]], np.float32)
    moved = cv2.warpAffine(
        picture, move, (side, side), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    return np.clip(moved, 0, 255).astype(np.uint8)


def noisy(stack, levels, seed):
    grain = np.random.default_rng(seed).normal(0, levels, stack.shape)
    return np.clip(stack + grain + 0.5, 0, 255).astype(np.uint8)


def steady(stability, restored, plain):
    return TemporalSmoother(stability)(restored, plain, fresh=True)


def apart(a, b):
    return float(np.abs(a.astype(np.float32) - b).mean())


@pytest.fixture(scope="module")
def still():
    truth = np.stack([face()] * FRAMES)
    return (
        truth,
        noisy(truth, 0.5, 0),
        noisy(truth, 6, 1),
    )  # restoration flickers more than the clip


def test_no_stability_changes_nothing(still):
    _, plain, restored = still
    assert steady(0, restored, plain) is restored


def test_more_stability_flickers_less(still):
    truth, plain, restored = still
    found = [
        image_quality.flicker(steady(share, restored, plain)[4:], plain[4:])
        for share in (0, 0.25, 0.5, 0.75, 1)
    ]
    assert found == sorted(found, reverse=True)
    assert found[-1] < found[0] / 5
    assert apart(steady(1, restored, plain)[-1], truth[-1]) < apart(restored[-1], truth[-1]) / 2


def test_what_appears_is_there_at_once(still):
    """A mouth that opens between two frames: all of it is the new picture's."""
    _, plain, restored = (stack.copy() for stack in still)
    opened = np.s_[6:, 40:60, 30:66]
    plain[opened], restored[opened] = 30, 20
    made = steady(1, restored, plain)
    assert apart(made[opened], restored[opened]) < 0.5
    assert apart(made[6, :20], restored[6, :20]) > 2  # elsewhere it stays as steady as before


def test_detail_moves_with_the_face():
    """Half a pixel a frame: steadied in place, it would be smeared over six."""
    truth = np.stack([face(0.5 * i) for i in range(FRAMES)])
    made = steady(1, noisy(truth, 6, 1), noisy(truth, 1, 0))
    assert apart(made[-1], truth[-1]) < 3.7  # unsteadied it is 4.8


def test_a_slow_change_is_followed():
    """By a level a frame, which between neighbours is no change at all."""
    lights = 60 + np.arange(60)
    plain = np.broadcast_to(lights[:, None, None, None], (60, SIDE, SIDE, 3)).astype(np.uint8)
    restored = 2 * plain - 60  # detail that grows with it
    made = steady(1, restored, plain)
    assert np.abs(made[-1].astype(int) - restored[-1]).max() <= 3


def test_groups_are_one_stream(still):
    _, plain, restored = still
    whole, parts = TemporalSmoother(0.7), TemporalSmoother(0.7)
    expected = whole(restored, plain, fresh=True)
    made = [parts(restored[i : i + 5], plain[i : i + 5], fresh=i == 0) for i in (0, 5, 10)]
    assert np.array_equal(np.concatenate(made), expected)


def test_a_fresh_start_forgets(still):
    _, plain, restored = still
    used = TemporalSmoother(1)
    used(restored[:6], plain[:6], fresh=True)
    again = used(restored[6:], plain[6:], fresh=True)
    assert np.array_equal(again, steady(1, restored[6:], plain[6:]))
    assert np.array_equal(again[0], restored[6])
