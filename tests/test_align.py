"""Affines, crops and pasted frames against the published numbers, and at the frame's edges."""

import cv2
import numpy as np
import pytest
import torch

from latentsync.faces import align, align_published
from latentsync.faces.mask import keep_mask, paste_share
from latentsync.types import Box
from tests.golden.golden_rule import f32, image
from tests.tiny import golden

RESOLUTIONS = [256, 512]


@pytest.fixture(scope="module", params=RESOLUTIONS)
def case(request):
    arrays = golden(f"align_{request.param}")
    height, width = arrays["hw"]
    track = align.face_track(
        arrays["landmarks3"].astype(np.float32), np.ones(5, dtype=bool), request.param
    )
    return request.param, arrays, int(height), int(width), track


def at_most_a_level(ours, expected, share=0.001):
    """At most one grey level off, on at most 0.1 % of the values."""
    difference = np.abs(ours.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= share


def region_of(frame, affine, resolution):
    box = align.face_box(affine, resolution, frame.shape[1], frame.shape[0])
    return frame[box.top : box.bottom, box.left : box.right], box


def cut(frame, affine, resolution, *, published=False):
    region, box = region_of(frame, affine, resolution)
    if published:
        return align_published.cut_face(region, box, affine, resolution, frame.shape[1::-1])
    return align.cut_face(region, box, affine, resolution)


def levels(face):
    """(3, R, R) float32 about [-1, 1] -> (R, R, 3) uint8."""
    return np.rint((face.numpy().transpose(1, 2, 0) * 127.5 + 127.5).clip(0, 255)).astype(np.uint8)


def paste(frame, face, affine, *, published=False, share=None):
    out, size = frame.copy(), frame.shape[1::-1]
    if published:
        region, box = region_of(frame, affine, face.shape[-1])
        laid = align_published.paste_face(region, box, face, affine, size, weight=share)
    else:
        box, rgb, weight = align.warp_to_frame(levels(face), affine, size, weight=share)
        assert box.left % 2 == box.top % 2 == 0
        assert box.right % 2 == 0 or box.right == size[0]
        assert box.bottom % 2 == 0 or box.bottom == size[1]
        part = weight[..., None] / 255
        laid = part * rgb + (1 - part) * frame[box.top : box.bottom, box.left : box.right]
    out[box.top : box.bottom, box.left : box.right] = np.rint(laid)
    return out


def psnr(a, b):
    return 10 * np.log10(255**2 / np.square(a.astype(float) - b).mean())


def test_template_and_size_are_the_published_ones(case):
    resolution, arrays, *_ = case
    np.testing.assert_allclose(align.template(resolution), arrays["face_template"])
    assert align.crop_size(resolution) == tuple(arrays["face_size_wh"])


def test_affines_are_the_published_ones(case):
    resolution, arrays, _, _, track = case
    np.testing.assert_allclose(track.affine, arrays["M_smooth1"], atol=1e-4, rtol=1e-6)
    assert track.detected.all()
    alone = [
        align.face_track(points[None].astype(np.float32), np.ones(1, dtype=bool), resolution)
        for points in arrays["landmarks3"]
    ]
    for i, single in enumerate(alone):
        unsmoothed = arrays["M_smooth0"][i].copy()
        np.testing.assert_allclose(single.affine[0][:, :2], unsmoothed[:, :2], atol=1e-5)
    first = alone[0].affine[0][:, 2] - arrays["p_bias"][0]
    np.testing.assert_allclose(first, arrays["M_smooth0"][0][:, 2], atol=1e-4)


def test_crops_are_the_published_ones(case):
    resolution, arrays, height, width, track = case
    for key in (key for key in arrays if key.startswith("face_") and "every" in key):
        _, index, every = key.split("_")
        step = int(every.removeprefix("every"))
        frame = image(height, width, int(arrays["seed"]), f"frame{index}")
        face = cut(frame, track.affine[int(index)], resolution, published=True)
        at_most_a_level(face[::step, ::step], arrays[key])


def test_restored_frames_are_the_published_ones(case):
    resolution, arrays, height, width, track = case
    frame = image(height, width, int(arrays["seed"]), "frame2")
    face = torch.from_numpy(f32((3, resolution, resolution), int(arrays["seed"]), "gen2", 0.6))
    restored = paste(frame, face, track.affine[2], published=True)
    assert np.abs(restored.astype(int) - frame).mean() > 5  # the face is really there
    at_most_a_level(restored, arrays["restored_2"])


@pytest.mark.parametrize("published", [False, True])
def test_work_is_confined_to_the_face(case, published):
    resolution, _, height, width, track = case
    frame = image(height, width, 1, "any")
    face = torch.zeros(3, resolution, resolution)
    box = align.face_box(track.affine[0], resolution, width, height)
    changed = (paste(frame, face, track.affine[0], published=published) != frame).any(axis=2)
    rows, columns = np.where(changed)
    assert box.top <= rows.min()
    assert rows.max() < box.bottom
    assert box.left <= columns.min()
    assert columns.max() < box.right
    assert box.width * box.height < 0.9 * height * width


CENTRES = {
    "left": (0, 90), "right": (159, 90), "top": (80, 0), "bottom": (80, 179),
    "top left": (0, 0), "top right": (159, 0), "bottom left": (0, 179), "bottom right": (159, 179),
}  # fmt: skip


@pytest.mark.parametrize("where", CENTRES)
@pytest.mark.parametrize("size", [(180, 160), (179, 161)], ids=["even", "odd"])
def test_a_face_across_the_frames_edge_equals_whole_frame_work(where, size):
    """The region's result is the whole frame's, bit for bit but for a rare last level."""
    height, width = size
    x, y = CENTRES[where]
    points = np.array([[[x - 18, y - 12], [x + 20, y - 9], [x, y + 14]]], dtype=np.float32)
    track = align.face_track(points, np.ones(1, dtype=bool), 64)
    frame = image(height, width, 9, where)
    face = torch.from_numpy(f32((3, 64, 64), 9, where, 0.6))
    box = align.face_box(track.affine[0], 64, width, height)
    whole = Box(0, 0, width, height)
    assert box.left % 2 == box.top % 2 == 0
    assert box.right % 2 == 0 or box.right == width
    assert box.bottom % 2 == 0 or box.bottom == height
    assert (box.width, box.height) != (width, height)
    at_most_a_level(
        cut(frame, track.affine[0], 64, published=True),
        align_published.cut_face(frame, whole, track.affine[0], 64, (width, height)),
    )
    ours = paste(frame, face, track.affine[0], published=True)
    at_most_a_level(
        ours, align_published.paste_face(frame, whole, face, track.affine[0], (width, height))
    )
    assert (ours != frame).any()


@pytest.mark.parametrize("where", CENTRES)
@pytest.mark.parametrize("size", [(180, 160), (179, 161)], ids=["even", "odd"])
def test_on_a_smooth_picture_one_resampling_shows_what_the_published_two_do(where, size):
    height, width = size
    x, y = CENTRES[where]
    points = np.array([[[x - 36, y - 24], [x + 40, y - 18], [x, y + 28]]], dtype=np.float32)
    affine = align.face_track(points, np.ones(1, dtype=bool), 128).affine[0]
    yy, xx = np.mgrid[:height, :width]
    frame = np.stack([xx, yy, 0.5 * (xx + yy)], axis=-1).astype(np.uint8)
    ours, published = (cut(frame, affine, 128, published=p).astype(int) for p in (False, True))
    inside = cut(np.full_like(frame, 255), affine, 128, published=True).min(axis=2) > 250
    inside = cv2.erode(inside.astype(np.uint8), np.ones((9, 9)), borderValue=1) > 0  # ringing
    assert inside.mean() > 0.1
    assert np.abs(ours - published)[inside].max() <= 2
    face = torch.from_numpy(np.mgrid[:128, :128, :1][[0, 1, 0], ..., 0] / 64 - 1).float()
    ours, published = (paste(frame, face, affine, published=p) for p in (False, True))
    box, _, weight = align.warp_to_frame(levels(face), affine, (width, height))
    # Not at the soft edge: the published one is narrower the less of the crop is in the frame.
    whole = np.pad(weight == 255, ((box.top, height - box.bottom), (box.left, width - box.right)))
    assert whole.sum() > 1500
    assert np.abs(ours.astype(int) - published)[whole].max() <= 2
    assert np.abs(ours.astype(int) - frame)[whole].mean() > 5


def test_outside_the_frame_the_crop_is_grey():
    points = np.array([[[-40, 20], [-20, 20], [-30, 35]]], dtype=np.float32)
    track = align.face_track(points, np.ones(1, dtype=bool), 64)
    frame = np.full((100, 100, 3), 200, dtype=np.uint8)
    face = cut(frame, track.affine[0], 64)
    assert face.shape == (64, 64, 3)
    assert (face[:, :30] == 127).all()


def test_a_crop_beyond_the_frame_changes_nothing():
    points = np.array([[[900, 900], [920, 900], [910, 915]]], dtype=np.float32)
    track = align.face_track(points, np.ones(1, dtype=bool), 64)
    assert align.face_box(track.affine[0], 64, 100, 99) == Box(98, 98, 100, 99)
    frame = image(99, 100, 3, "any")
    np.testing.assert_array_equal(paste(frame, torch.zeros(3, 64, 64), track.affine[0]), frame)
    assert (cut(frame, track.affine[0], 64) == 127).all()


def test_pasting_a_face_back_unchanged_keeps_more_of_the_frame_than_the_published_way():
    rng = np.random.default_rng(3)
    frame = cv2.GaussianBlur(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8), (0, 0), 1.0)
    points = np.array([[[120, 95], [180, 90], [150, 130]]], dtype=np.float32)
    affine = align.face_track(points, np.ones(1, dtype=bool), 256).affine[0]
    kept = []
    for published in (False, True):
        crop = cut(frame, affine, 256, published=published)
        face = torch.from_numpy(crop).permute(2, 0, 1).contiguous() / 127.5 - 1
        kept.append(psnr(paste(frame, face, affine, published=published), frame))
    assert kept[0] > kept[1] + 0.5
    assert kept[0] > 38


def test_only_the_mouth_is_pasted():
    """With a share, the face lies on the frame where the mask has its hole, and only there."""
    side = 128
    frame = image(240, 320, 8, "share")
    points = np.array([[[130, 95], [190, 90], [160, 125]]], dtype=np.float32)
    affine = align.face_track(points, np.ones(1, dtype=bool), side).affine[0]
    face = torch.ones(3, side, side)
    share = paste_share(side)
    hole = 1 - keep_mask(side)
    assert share[hole > 0.5].min() > 0.2
    assert share[80:100, 50:78].min() > 0.99
    assert share[:40].max() < 0.01
    assert ((share > 0.1) & (share < 0.9)).any()
    (eyes, lips) = (
        cv2.transform(np.float32([[at]]), cv2.invertAffineTransform(affine))[0, 0].round()
        for at in np.float32([[0.3, 0.2], [0.5, 0.7]]) * align.crop_size(side)
    )
    at_eyes, at_lips = ((slice(int(y) - 3, int(y) + 4), int(x)) for x, y in (eyes, lips))
    for published in (False, True):
        whole = paste(frame, face, affine, published=published)
        mouth = paste(frame, face, affine, published=published, share=torch.from_numpy(share))
        assert (whole[at_eyes] >= 254).all()
        np.testing.assert_array_equal(mouth[at_eyes], frame[at_eyes])
        assert (mouth[at_lips] >= 254).all()


def test_only_where_something_is_laid_on_is_worked():
    side, frame = 128, (640, 480)
    points = np.array([[[260, 195], [380, 190], [320, 250]]], dtype=np.float32)
    affine = align.face_track(points, np.ones(1, dtype=bool), side).affine[0]
    face, lips = np.full((side, side, 3), 128, np.uint8), torch.zeros(side, side)
    lips[90:100, 50:70] = 1
    box, rgb, weight = align.warp_to_frame(face, affine, frame, weight=lips)
    assert rgb.shape == (box.height, box.width, 3)
    assert weight.shape == (box.height, box.width)
    whole, _, _ = align.warp_to_frame(face, affine, frame)
    assert box.width * box.height < 0.1 * whole.width * whole.height
    assert weight.max() == 255
    rim = np.concatenate([weight[0], weight[-1], weight[:, 0], weight[:, -1]])
    assert rim.max() == 0
    nothing, _, weight = align.warp_to_frame(face, affine, frame, weight=torch.zeros(side, side))
    assert nothing.width * nothing.height < 200
    assert weight.max() == 0


def test_smoothing_starts_anew_after_a_gap():
    arrays = golden("align_256")
    points = arrays["landmarks3"].astype(np.float32)
    found = np.array([True, True, False, True, True])
    track = align.face_track(points, found, 256)
    fresh = align.face_track(points[3:], found[3:], 256)
    np.testing.assert_array_equal(track.affine[3:], fresh.affine)
    assert not track.detected[2]
    assert (track.affine[2] == 0).all()


def test_smoothing_starts_anew_after_a_cut():
    points = golden("align_256")["landmarks3"].astype(np.float32)
    found, cut = np.ones(5, dtype=bool), np.array([False, False, False, True, False])
    for smooth in (0, 5):
        track = align.face_track(points, found, 256, cut, smooth)
        parts = [align.face_track(points[p], found[p], 256, smooth=smooth) for p in (PAST, NEXT)]
        np.testing.assert_array_equal(track.affine, np.concatenate([p.affine for p in parts]))
        assert (track.affine[3:] != align.face_track(points, found, 256).affine[3:]).any()


PAST, NEXT = slice(0, 3), slice(3, 5)


def nose(track):
    """(found frames, 2) frame px where the template's nose base is pasted."""
    affine = track.affine[track.detected].astype(float)
    return np.linalg.solve(affine[:, :, :2], (align.template(64)[2] - affine[:, :, 2])[..., None])


def test_the_smoother_has_no_lag_and_takes_the_trembling():
    """A head on a parabola stays there, ends included; of noise about it little is left."""
    rng = np.random.default_rng(4)
    t = np.arange(40)[:, None, None]
    still = np.array([[130, 95], [190, 95], [160, 125]])
    path = (still + [3, -2] * t + [0.1, 0.05] * t**2).astype(np.float32)
    noise = rng.normal(0, 0.5, path.shape).astype(np.float32)
    found = np.ones(40, dtype=bool)
    found[17] = False
    for odd in (9, 12):
        kept = align.face_track(path, found, 64, smooth=odd).affine
        np.testing.assert_allclose(kept, align.face_track(path, found, 64).affine, atol=2e-2)
    truth = nose(align.face_track(path, found, 64))
    trembles = [
        np.square(nose(align.face_track(path + noise, found, 64, smooth=n)) - truth).mean()
        for n in (0, 3, 9)
    ]
    assert trembles[1] == trembles[0]
    assert trembles[2] < 0.4 * trembles[0]
    raw, steady = (align.face_track(path + noise, found, 64, smooth=n).affine for n in (0, 9))
    assert (raw != steady).any(axis=(1, 2))[found].all()
    short = np.zeros(40, dtype=bool)
    short[[3, 4, 5, 6, 9]] = True
    assert align.face_track(path + noise, short, 64, smooth=9).detected.sum() == 5


def test_coinciding_points_are_no_face():
    track = align.face_track(np.full((1, 3, 2), 5, np.float32), np.ones(1, dtype=bool), 256)
    assert not track.detected.any()


@pytest.mark.parametrize("resolution", [64, 128, 256, 512])
def test_mask_is_the_published_one(resolution):
    arrays = golden("mask")
    ours = keep_mask(resolution)
    np.testing.assert_array_equal(np.rint(ours * 255), arrays[f"mask_{resolution}_u8"])
    latent = torch.nn.functional.interpolate(
        torch.from_numpy(ours)[None, None], size=resolution // 8
    )
    np.testing.assert_array_equal(
        np.rint(latent[0, 0].numpy() * 255), arrays[f"mask_{resolution}_latent_u8"]
    )
