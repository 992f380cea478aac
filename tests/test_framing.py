"""Rendered crops cut as detectors cut them."""

import numpy as np
import pytest

from latentsync.training.framing import BUILTIN_ZOOM, CENTRE, draw_zoom, zoomed


def spots(side, points):
    """A white 3 x 3 spot around each point, (2, side, side, 3) alike."""
    picture = np.zeros((side, side, 3), np.uint8)
    for column, row in points:
        picture[row - 1 : row + 2, column - 1 : column + 2] = 255
    return np.stack([picture, picture])


def centroid(picture):
    y, x = np.nonzero(picture[..., 0] > 60)
    weight = picture[y, x, 0].astype(float)
    return np.array([x @ weight, y @ weight]) / weight.sum()


@pytest.mark.parametrize("zoom", [1.0, BUILTIN_ZOOM, 1.4])
@pytest.mark.parametrize("point", [(40, 60), (60, 30)])
def test_points_stay_on_the_picture(zoom, point):
    points = np.tile(np.array(point, np.float32), (2, 1, 1))
    pixels, moved = zoomed(spots(96, [point]), points, zoom)
    assert pixels.shape == (2, 96, 96, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_allclose(centroid(pixels[1]), moved[1, 0], atol=0.25)
    fixed = np.array(CENTRE) * 96 - 0.5
    np.testing.assert_allclose(moved[0, 0] - fixed, zoom * (np.array(point) - fixed), rtol=1e-4)


def test_a_zoom_of_one_changes_nothing():
    crops = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    pixels, points = zoomed(crops, np.ones((3, 12, 2), np.float32), 1.0)
    np.testing.assert_array_equal(pixels, crops)
    np.testing.assert_allclose(points, 1)


def test_zooms_surround_the_builtin_detectors():
    rng = np.random.default_rng(1)
    zooms = [draw_zoom(rng) for _ in range(50)]
    assert 1 <= min(zooms) < BUILTIN_ZOOM < max(zooms) <= 1.25
