"""Colours of a drawn mouth brought to those of its face; faces that turn away."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from latentsync.faces.colour import match_colour, mouth_ring
from latentsync.faces.head_pose import nose_places, turned_away, yaw
from latentsync.faces.mask import keep_mask, paste_share
from latentsync.training.synthetic import Identity, Mouth, Pose, draw_crop, landmarks
from latentsync.training.synthetic.geometry import scene_view

SIDE = 256  # px
HOLE = torch.from_numpy(1 - keep_mask(SIDE))
RING = torch.from_numpy(mouth_ring(SIDE))
ANCHORS = [0, 1, 4]


def crop(who, mouth, tick=0):
    pixels, _ = draw_crop(who, Pose(yaw=0.1, tick=tick), mouth, SIDE)
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


@pytest.fixture(scope="module", params=[(7003, 0.0), (7003, 0.7), (7011, 0.7)])
def faces(request):
    """A face, and the same with other grain in the hole, and sometimes another mouth."""
    seed, opening = request.param
    who = Identity.from_seed(seed)
    original = crop(who, Mouth())
    drawn = crop(who, Mouth(open=opening), tick=1)
    return original, drawn * HOLE + original * (1 - HOLE)


def levels(values):
    """Mean absolute value in the hole, in grey levels."""
    return float((values.abs() * HOLE).sum() / HOLE.sum() / 3) * 127.5


def step(face, drawn):
    """Of the channel that differs most along the mouth's edge, grey levels."""
    return float(((face - drawn) * RING).sum((1, 2)).abs().max() / RING.sum()) * 127.5


def test_the_ring_lies_in_the_hole_where_the_edge_is_soft():
    share = torch.from_numpy(paste_share(SIDE))
    assert float(RING.max()) > 0.9
    assert not RING[HOLE == 0].any()
    assert not RING[192:].any()  # the chin
    assert RING[share > 0.99].max() < 0.03
    assert 2000 < (RING > 0.1).sum() < 15000
    assert mouth_ring(64).shape == (64, 64)


@pytest.mark.parametrize(
    ("gain", "shift"),
    [(1.0, (8, 0, 0)), (1.0, (6, 6, -6)), (0.92, (0, 0, 0)), (1.1, (-5, 0, 3))],
)
def test_a_cast_is_taken_off(faces, gain, shift):
    original, drawn = faces
    cast = (gain * (drawn + 1) - 1 + torch.tensor(shift)[:, None, None] / 127.5) * HOLE
    cast = cast + original * (1 - HOLE)
    matched = match_colour(cast, original, RING, HOLE)
    assert step(cast, drawn) > 5
    assert step(matched, drawn) < 1
    assert levels(matched - drawn) < 1.5
    torch.testing.assert_close(matched * (1 - HOLE), original * (1 - HOLE))


def test_a_face_that_fits_is_left_alone(faces):
    original, drawn = faces
    assert levels(match_colour(drawn, original, RING, HOLE) - drawn) < 1
    torch.testing.assert_close(match_colour(original, original, RING), original)


def test_outliers_have_no_say(faces):
    original, drawn = faces
    spoilt = drawn.clone()
    spoilt[:, 100:125, 10:40] = 1.0  # a highlight that the frame doesn't have
    assert step(spoilt, drawn) > 3
    assert levels(match_colour(spoilt, original, RING, HOLE) - spoilt) < 1.5


def test_nothing_explodes():
    flat = torch.zeros(3, SIDE, SIDE)
    noise = torch.randn(3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    assert match_colour(flat, noise, RING).abs().max() < 0.3
    assert match_colour(noise, flat, RING).std() > 0.79 * noise.std()
    assert match_colour(noise / 10, noise, RING).std() < 1.26 * noise.std() / 10
    assert match_colour(flat - 1, flat + 1, RING).max() < -0.7
    assert match_colour(noise, flat, torch.zeros(SIDE, SIDE)) is noise


def points(who, pose):
    return landmarks(who, pose, Mouth(), scene_view(512, 512))[ANCHORS]


def test_yaw_is_read_off_three_points():
    rng = np.random.default_rng(4)
    angles = np.arange(-30, 31, 10)
    errors = []
    for seed in range(6000, 6025):
        who = Identity.from_seed(seed)
        pose = Pose(pitch=rng.uniform(-0.15, 0.2), roll=rng.uniform(-0.3, 0.3))
        turned = [points(who, replace(pose, yaw=float(np.radians(a)))) for a in angles]
        errors.append(yaw(nose_places(np.array(turned))) - angles)
    assert np.sqrt(np.mean(np.square(errors))) < 5.5
    assert np.abs(np.mean(errors, axis=0)).max() < 3


def test_yaw_knows_no_place_size_or_lean():
    front = np.array([[0, 0], [40, 0], [20 + 0.376 * 40, 25]])
    lean = np.array([[0.8, 0.6], [-0.6, 0.8]])
    seen = yaw(
        nose_places(
            np.array([front, 3 * front @ lean + 100, front[[1, 0, 2]] * (-1, 1)], np.float32)
        )
    )
    np.testing.assert_allclose(seen, [45, 45, -45], atol=1e-3)
    assert np.isnan(nose_places(np.zeros((2, 3, 2), np.float32))).all()


def test_a_face_beyond_the_limit_is_turned_away_and_no_other():
    angles = np.repeat([0.0, 29.0, -31.0, 45.0, 24.0], 20)
    away = turned_away(angles, 30.0)
    assert away.dtype == bool
    ((first, last),) = [np.flatnonzero(away)[[0, -1]]]
    assert away[first : last + 1].all()
    assert 40 <= first <= 43
    assert 79 <= last <= 82
    np.testing.assert_array_equal(turned_away(-angles, 30.0), away)
    assert not turned_away(np.full(50, 29.9), 30.0).any()


def test_a_face_about_the_limit_is_not_switched_to_and_fro():
    nervous = 30 - 4.0 * np.sin(np.arange(300) / 8)
    assert np.abs(np.diff(turned_away(nervous, 30.0).astype(int))).sum() == 1
    one_bad = np.where(np.arange(60) == 30, 45.0, 26.0)
    assert not turned_away(one_bad, 30.0).any()
    swinging = 30 + 30 * np.sin(np.arange(400) / 2.0)  # faster than anybody can follow
    assert np.diff(np.flatnonzero(np.diff(turned_away(swinging, 30.0).astype(int)))).size == 0


@pytest.mark.parametrize("fps", [12.5, 25, 60])
def test_no_mouth_is_shown_for_a_moment(fps):
    seconds = np.arange(0, 8, 1 / fps)
    for turn, still in ((0.3, 1.0), (1.0, 0.3)):
        angles = np.where(seconds % (turn + still) < turn, 60.0, 0.0)
        away = turned_away(angles, 30.0, fps)
        lengths = np.diff(np.flatnonzero(np.diff(away.astype(int), prepend=2, append=2)))
        assert away.any()
        assert (lengths[1:-1] >= 0.4 * fps - 1).all()  # rounded to whole frames


def test_a_small_limit_lets_a_face_come_back():
    angles = np.repeat([0.0, 20.0, 3.0], 30)
    assert turned_away(angles, 5.0)[45]
    assert not turned_away(angles, 5.0)[-10:].any()


def test_a_turn_ends_at_a_cut():
    angles = np.repeat([0.0, 60.0, 27.0], 20)
    cut = np.isin(np.arange(60), [20, 40])
    np.testing.assert_array_equal(turned_away(angles, 30.0, cut=cut), angles == 60)
    assert len(turned_away(angles[:0], 30.0, cut=cut[:0])) == 0


def test_frames_without_a_face_change_nothing():
    unknown = [np.nan] * 20
    angles = np.array([60.0] * 20 + unknown + [27.0] * 20 + unknown + [10.0] * 20)
    away = turned_away(angles, 30.0)
    assert away[:75].all()
    assert not away[80:].any()
    assert not turned_away(np.full(30, np.nan), 30.0).any()
