"""Pictures that look photographed: what each setting does, and what stays the same."""

from dataclasses import replace

import cv2
import numpy as np
import pytest

from latentsync.training.picture_degradation import Degradation, degrade, draw_degradation

CLEAN = Degradation(
    face_px=1000,
    gain=(1.0, 1.0, 1.0),
    gamma=1.0,
    black=0.0,
    saturation=1.0,
    blur_px=0.0,
    noise=0.0,
    quality=100,
    sharpening=0.0,
)


@pytest.fixture
def crops():
    """Smooth colours with an edge, (2, 3, 48, 48, 3)."""
    y, x = np.mgrid[0:48, 0:48] / 48
    picture = np.stack([0.3 + 0.4 * x, 0.5 * np.ones_like(x), 0.2 + 0.3 * y], axis=2)
    picture[20:28, 14:34] *= 0.4
    return np.broadcast_to((picture * 255).astype(np.uint8), (2, 3, 48, 48, 3)).copy()


def shot(crops, seed=0, **changes):
    done = degrade(crops, replace(CLEAN, **changes), np.random.default_rng(seed))
    assert done.shape == crops.shape
    assert done.dtype == np.uint8
    return done.astype(float)


def detail(pictures):
    return np.mean(
        [cv2.Laplacian(one, cv2.CV_64F).var() for one in pictures.reshape(-1, 48, 48, 3)]
    )


def test_a_good_camera_changes_little(crops):
    assert np.abs(shot(crops) - crops).mean() < 4


def test_gain_and_gamma_move_the_levels(crops):
    means = shot(crops, gain=(1.3, 1.0, 0.7)).mean(axis=(0, 1, 2, 3))
    expected = crops.mean(axis=(0, 1, 2, 3)) * (1.3, 1.0, 0.7)
    np.testing.assert_allclose(means, expected, atol=4)
    assert shot(crops, gamma=1.5).mean() < crops.mean() - 15
    assert shot(crops, black=0.1).min() > crops.min() + 10


def test_without_saturation_it_is_grey(crops):
    grey = shot(crops, saturation=0.0)
    assert np.ptp(grey, axis=-1).mean() < 3 < np.ptp(crops, axis=-1).mean()


@pytest.mark.parametrize("change", [{"face_px": 20}, {"blur_px": 2.0}])
def test_detail_is_lost(crops, change):
    assert detail(shot(crops, **change)) < 0.6 * detail(shot(crops))


def test_sharpening_overshoots(crops):
    assert detail(shot(crops, sharpening=1.0)) > 1.3 * detail(shot(crops))


def test_strong_compression_shows(crops):
    assert np.abs(shot(crops, quality=10) - crops).mean() > 1.2 * np.abs(shot(crops) - crops).mean()


def test_noise_differs_between_frames_and_not_between_seeds(crops):
    noisy = shot(crops, noise=0.1)
    np.testing.assert_array_equal(noisy, shot(crops, noise=0.1))
    assert np.abs(noisy[0, 0] - noisy[0, 1]).mean() > 2
    still = shot(crops)
    np.testing.assert_array_equal(still[0, 0], still[1, 2])


def test_cameras_differ_and_are_in_range():
    rng = np.random.default_rng(7)
    cameras = [draw_degradation(rng) for _ in range(300)]
    gains = np.array([one.gain for one in cameras])
    assert 0.05 < np.log(gains[:, 0] / gains[:, 2]).std() < 0.3  # from warm to cold
    assert 0.05 < np.mean([one.face_px < 60 for one in cameras]) < 0.5
    assert all(1 <= one.quality <= 100 and 0 <= one.noise <= 0.05 for one in cameras)
    assert cameras == [draw_degradation(r) for r in [np.random.default_rng(7)] for _ in range(300)]
