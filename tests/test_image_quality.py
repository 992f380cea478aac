"""Pictures against the truth, flicker, and sheets."""

import math

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from latentsync.errors import OptionError
from latentsync.evaluation.image_quality import (
    FlickerAccumulator,
    flicker,
    mouth_box,
    mouth_picture,
    pooled_psnr,
    psnr,
    psnr_curve,
    sheet,
    ssim,
    ssim_curve,
)
from latentsync.faces.mask import keep_mask
from latentsync.types import Box

SIDE = 64


def clip(seed=0, frames=12, noise=3.0):
    """Aligned crops that stand still but for grain, and for a mouth that moves."""
    rng = np.random.default_rng(seed)
    base = rng.uniform(60, 200, (SIDE, SIDE, 3))
    stack = base + rng.normal(0, noise, (frames, SIDE, SIDE, 3))
    box = mouth_box(SIDE)
    waves = 40 * np.sin(np.arange(frames))[:, None, None, None]
    stack[:, box.top : box.bottom, box.left : box.right] += waves
    return stack.clip(0, 255).round().astype(np.uint8)


@pytest.mark.parametrize("resolution", [64, 96, 256, 512])
def test_the_mouth_lies_in_what_is_drawn_anew(resolution):
    box = mouth_box(resolution)
    corners = keep_mask(resolution)[box.top : box.bottom, box.left : box.right]
    assert (corners < 0.5).mean() > 0.9
    assert (box.width / resolution, box.height / resolution) == pytest.approx((0.6, 0.44), abs=0.02)


def test_a_mouth_is_shown_in_true_proportions():
    crop = np.zeros((256, 256, 3), np.uint8)
    box = mouth_box(256)
    crop[box.top : box.bottom, box.left : box.right] = 90
    shown = mouth_picture(crop)
    assert (shown == 90).all()
    assert shown.shape[1] / shown.shape[0] == pytest.approx(0.75 * box.width / box.height, abs=0.01)


def test_psnr_is_of_the_region():
    a, b = clip(1), clip(1)
    assert psnr(a, b) == math.inf
    b[:, 0, 0] ^= 255
    assert psnr(a, b, Box(1, 1, SIDE, SIDE)) == math.inf
    c = clip(2)
    assert psnr(a, c) == pytest.approx(peak_signal_noise_ratio(a, c, data_range=255), abs=1e-4)
    region = psnr(a, c, Box(8, 16, 40, 32))
    expected = peak_signal_noise_ratio(a[:, 16:32, 8:40], c[:, 16:32, 8:40], data_range=255)
    assert region == pytest.approx(expected, abs=1e-4)


def test_ssim():
    a, box = clip(1), mouth_box(SIDE)
    assert ssim(a, a, box) == pytest.approx(1)
    near, far = clip(1, noise=12), clip(2)
    assert ssim(a, far, box) < 0.1 < ssim(a, near, box) < 1
    with pytest.raises(OptionError, match="7 x 7"):
        ssim(a, a, Box(0, 0, 6, 20))


def test_flicker():
    source = clip(1)
    assert flicker(source, source) == pytest.approx(1)
    frozen = np.repeat(source[:1], len(source), axis=0)
    assert flicker(frozen, source) == 0
    assert 1.5 < flicker(clip(1, noise=6), source) < 2.5
    mouth = source.copy()
    box = mouth_box(SIDE)
    mouth[::2, box.top : box.bottom, box.left : box.right] = 0
    assert flicker(mouth, source) == pytest.approx(1)  # where it moves in the source is not asked
    kept = keep_mask(SIDE) >= 0.5
    beside = source.copy()
    beside[::2, kept] = 255
    assert flicker(beside, source) == pytest.approx(1)  # nor what the network never draws
    assert flicker(source, frozen) > 10  # the reference has no flicker at all: finite
    assert math.isfinite(flicker(source, frozen))


def test_what_can_not_be_compared():
    a = clip(1)
    for measure in (psnr, ssim, flicker):
        with pytest.raises(OptionError, match="can't be compared"):
            measure(a, a[:-1])
    with pytest.raises(OptionError, match="2 or more"):
        flicker(a[:1], a[:1])
    with pytest.raises(OptionError, match="no pixel"):
        psnr(a, a, Box(SIDE, 0, SIDE + 9, 9))


def test_a_sheet():
    red, wide = np.zeros((40, 40, 3), np.uint8), np.zeros((100, 300, 3), np.uint8)
    red[..., 0], wide[..., 2] = 200, 200
    page = sheet([[red, wide], [wide, wide, red]], ["before", ""], 500)
    assert page.dtype == np.uint8
    assert page.shape[1:] == (500, 3)
    first, second = page[8], page[-12]
    assert (first == [200, 0, 0]).all(1).sum() == pytest.approx((500 - 76) / 4, abs=2)
    assert (first == [0, 0, 200]).all(1).sum() == pytest.approx(3 * (500 - 76) / 4, abs=4)
    assert (second == [200, 0, 0]).all(1).sum() == pytest.approx((500 - 80) / 7, abs=2)
    assert np.flatnonzero((first < 128).any(1))[-1] > 485  # a row reaches the right edge
    left = page[:, :64].reshape(-1, 3)
    assert (left < 128).any()  # a label
    assert np.array_equal(page, sheet([[red, wide], [wide, wide, red]], ["before", ""], 500))


@pytest.mark.parametrize("rows", [[], [[]], [[clip(1)[0]], []]])
def test_a_sheet_of_nothing(rows):
    with pytest.raises(OptionError, match="wanted pictures"):
        sheet(rows, [""] * len(rows))
    with pytest.raises(OptionError, match="label"):
        sheet([[clip(1)[0]]], [])
    with pytest.raises(OptionError, match="too narrow"):
        sheet([[clip(1)[0]] * 30], ["x"], 400)


def test_curves_are_scikit_images():
    a, b = clip(1), clip(2)
    b[3] = a[3]
    found, likeness = psnr_curve(a, b), ssim_curve(a, b)
    assert found[3] == math.inf
    for i in (0, 5):
        assert found[i] == pytest.approx(peak_signal_noise_ratio(b[i], a[i]), abs=1e-4)
        whole = structural_similarity(a[i], b[i], channel_axis=2)
        assert likeness[i] == pytest.approx(whole, abs=1e-9)
    assert ssim(a, b) == pytest.approx(likeness.mean())
    for x, y in ((a[0] // 99, b[0] // 99), (250 + a[0] // 64, 250 + b[0] // 64)):  # dark, bright
        whole = structural_similarity(x, y, channel_axis=2)
        assert ssim_curve(x[None], y[None])[0] == pytest.approx(whole, abs=1e-9)
    region = Box(3, 5, 40, 50)
    assert psnr_curve(a, b, region)[0] == pytest.approx(psnr(a[:1], b[:1], region))


def test_parts_of_a_curve_pool_to_the_whole():
    a, b = clip(1), clip(2)
    b[3] = a[3]
    parts = [psnr_curve(a[:4], b[:4]), psnr_curve(a[4:], b[4:])]
    assert pooled_psnr(np.concatenate(parts)) == pytest.approx(
        peak_signal_noise_ratio(b, a), abs=1e-4
    )
    assert pooled_psnr(np.array([math.inf])) == math.inf
    with pytest.raises(OptionError, match="no picture"):
        pooled_psnr(np.array([]))


def test_flicker_streams():
    a, b = clip(3, noise=6), clip(4)
    found = FlickerAccumulator()
    with pytest.raises(OptionError, match="2 or more"):
        _ = found.value
    for pair in zip(a, b, strict=True):
        found.add(*pair)
    assert found.value == flicker(a, b)
    with pytest.raises(OptionError, match="flicker needs both"):
        found.add(a[0], b[0, :32])
