"""Figures of the face: landmarks of the mouth, identity, LPIPS, regions, StableSyncNet."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import euclidean

from latentsync.errors import InputError, OptionError, WeightsMismatch, WeightsMissing
from latentsync.evaluation import face_metrics, image_metrics, sync_metrics
from latentsync.evaluation.metric import Setup
from latentsync.evaluation.nets.syncnet import stacked
from latentsync.faces import Builtin, YuNet, align
from latentsync.faces.detectors.scrfd import LANDMARK_FILE, PACK, SCRFD_FILE, InsightFace
from latentsync.training.synthetic import Identity, Mouth, Pose, draw
from latentsync.types import Box, Face
from tests import onnx_nets

FACE = Face((200.0, 100.0, 360.0, 300.0), 0.9, np.array([[240, 150], [320, 150], [280, 215]], "f4"))


def mouths(seed=0, count=4, points=6):
    return np.random.default_rng(seed).uniform(0, 50, (count, points, 2))


def test_landmark_distance_by_hand():
    truth = np.array([[[0.0, 0], [4, 0], [4, 4], [0, 4]]])
    wider = np.array([[[-1.0, 0], [5, 0], [5, 4], [-1, 4]]])
    assert face_metrics.landmark_distance(wider, truth) == pytest.approx([1])
    assert face_metrics.landmark_distance(truth, truth) == pytest.approx([0])


def test_where_the_mouth_lies_does_not_count():
    a, b = mouths(1), mouths(2)
    moved = a + np.array([[[30.0, -7.0]]])
    found = face_metrics.landmark_distance(a, b)
    centred = [(x[2] - x[2].mean(axis=0)) for x in (a, b)]
    assert found[2] == pytest.approx(np.mean(list(map(euclidean, *centred))))
    assert found.shape == (4,)
    np.testing.assert_allclose(face_metrics.landmark_distance(moved, b), found)
    np.testing.assert_allclose(face_metrics.landmark_distance(3 * a, 3 * b), 3 * found)


def test_landmarks_that_do_not_fit():
    a = mouths()
    for wrong in (a[:2], a[:, :3], a[..., :1], a[0], a[:0]):
        with pytest.raises(OptionError, match="must be \\(n, p, 2\\)"):
            face_metrics.landmark_distance(wrong, a if len(wrong) else wrong)
    with pytest.raises(OptionError, match="not finite"):
        face_metrics.landmark_distance(a * np.nan, a)


def drawn(opening, seed=7, size=(480, 360)):
    """A frame, its twelve landmarks, and the affine that a track would have."""
    frame, marks = draw(Identity.from_seed(seed), Pose(), Mouth(open=opening), size)
    track = align.face_track(marks[[0, 1, 4]][None], np.array([True]), 256)
    return frame, marks, track


def test_a_mouth_is_found_where_the_track_has_the_face():
    detector, found, truth = Builtin(), [], []
    for opening in (0.0, 0.5):
        frame, marks, track = drawn(opening)
        face = align.face_of(track.affine[0], 256)
        found.append(detector.mouth(frame, face))
        truth.append(marks[5:11])
        off = np.linalg.norm(found[-1] - truth[-1], axis=1).mean()
        assert off < 0.03 * (face.box[3] - face.box[1])
    shut, wide = (np.array(each)[:, None] for each in (found, truth))
    # how far the drawn mouth opened, as the landmarks say it
    assert face_metrics.landmark_distance(shut[0], shut[1])[0] == pytest.approx(
        face_metrics.landmark_distance(wide[0], wide[1])[0], rel=0.4
    )


def test_insightface_gives_the_twenty_points_of_the_mouth(tmp_path):
    marks = np.column_stack([np.arange(106), -np.arange(106)]) / 400
    onnx_nets.scrfd(tmp_path / "models" / PACK / SCRFD_FILE, [])
    onnx_nets.landmarks(tmp_path / "models" / PACK / LANDMARK_FILE, marks)
    frame = np.zeros((480, 640, 3), np.uint8)
    frame[..., 0] = 255
    found = InsightFace(tmp_path).mouth(frame, FACE)
    # From the box's middle, in its longer side of 200 px; points 52 to 71 of the 106.
    np.testing.assert_allclose(found, np.array([280, 200]) + 200 * marks[52:72], atol=5e-3)


def test_a_detector_without_a_mouth():
    setup = Setup(Path(), "cpu", YuNet.__new__(YuNet))
    with pytest.raises(OptionError, match="detector yunet has no landmarks of the lips"):
        face_metrics.Lmd(setup)


def test_the_face_of_a_track():
    _, marks, track = drawn(0.3)
    affine = track.affine[0]
    face = align.face_of(affine, 256)
    template = np.array(align.TEMPLATE) * 2.8
    np.testing.assert_allclose(face.points @ affine[:, :2].T + affine[:, 2], template, atol=1e-3)
    left, top, right, bottom = face.box
    assert (right - left) / (bottom - top) == pytest.approx(align.ASPECT)
    assert top < marks[0][1]  # forehead
    assert bottom == pytest.approx(marks[11][1], abs=0.2 * (bottom - top))  # chin
    assert left < marks[[0, 5], 0].min() < marks[[1, 6], 0].max() < right
    twice = align.face_of(
        align.face_track(2 * marks[None, [0, 1, 4]], track.detected, 512).affine[0], 512
    )
    np.testing.assert_allclose(twice.box, 2 * np.array(face.box), rtol=2e-3)
    wide = align.face_of(affine * np.array([2, 1, 1], np.float32), 256)
    np.testing.assert_allclose(wide.box, np.array(face.box) / [2, 1, 2, 1], rtol=1e-4)


# identity


def test_identity_is_the_mean_cosine():
    looks = np.array([[3.0, 0], [1, 1]])
    assert face_metrics.identity_similarity(looks, looks * 2) == pytest.approx(1)
    assert face_metrics.identity_similarity(looks, -looks) == pytest.approx(-1)
    assert face_metrics.identity_similarity(looks, np.array([0.0, 2])) == pytest.approx(
        0.5**0.5 / 2
    )
    for a, b in ((looks[0], looks[0]), (looks, looks[:1]), (looks[:0], looks[:0])):
        with pytest.raises(OptionError, match="wanted \\(n, d\\)"):
            face_metrics.identity_similarity(a, b)
    with pytest.raises(OptionError, match="length 0"):
        face_metrics.identity_similarity(looks * 0, looks)


def face_net(path, side=112):
    """(1, 3, side, side) -> (1, 3): the red at one pupil, green at the other, blue at the nose."""
    from onnx import TensorProto, helper, numpy_helper, save

    kernel = np.zeros((3, 3, side, side), np.float32)
    for i, (x, y) in enumerate([(38, 52), (74, 52), (56, 72)]):
        kernel[i, i, y * side // 112, x * side // 112] = 1
    nodes = [
        helper.make_node("Conv", ["input", "kernel"], ["places"]),
        helper.make_node("Flatten", ["places"], ["look"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "face",
        [value("input", TensorProto.FLOAT, (1, 3, side, side))],
        [value("look", TensorProto.FLOAT, (1, 3))],
        [numpy_helper.from_array(kernel, "kernel")],
    )
    save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=8),
        str(path),
    )
    return path


def test_arcface_sees_pupils_and_nose_in_their_places(tmp_path):
    """In RGB, by (value - 127.5) / 127.5, at 112 px: where ArcFace has been trained to see them."""
    net = face_metrics.ArcFace(face_net(tmp_path / "face.onnx"))
    frame, marks, track = drawn(0.2)
    frame[:] = 127
    for place, colour in ((2, (255, 0, 0)), (3, (0, 255, 0)), (4, (0, 0, 255))):
        x, y = marks[place]
        rows, columns = np.ogrid[:360, :480]
        frame[(rows - y) ** 2 + (columns - x) ** 2 < 10**2] = colour
    face = align.face_of(track.affine[0], 256)
    look = net.embed(frame, face)
    assert look.dtype == np.float32
    np.testing.assert_allclose(look, np.full(3, 3**-0.5), atol=0.03)
    own = Face(face.box, 1.0, marks[[0, 1, 4]])
    np.testing.assert_allclose(net.embed(frame, own), look, atol=0.03)


def test_loading_arcface(tmp_path):
    with pytest.raises(WeightsMissing, match="download eval"):
        face_metrics.ArcFace(tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(WeightsMismatch, match=r"not an ONNX model .*; delete it and run"):
        face_metrics.ArcFace(tmp_path / "broken.onnx")
    with pytest.raises(WeightsMismatch, match="ArcFace takes"):
        face_metrics.ArcFace(face_net(tmp_path / "other.onnx", 64))


# LPIPS


class Apart(torch.nn.Linear):
    """In the net's place: how far apart the means of two pictures are, weighted by height."""

    def forward(self, x, y):
        heights = torch.linspace(0, 1, x.shape[2])[:, None]
        return ((x - y) * heights).mean((1, 2, 3)).abs()


def test_lpips_of_frames():
    lpips, rng = Apart(1, 1), np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, image_metrics.LPIPS_BATCH + 1, 24, 20, 3), np.uint8)
    b[3] = a[3]
    found = image_metrics.lpips_distance(lpips, a, b)
    assert found.shape == (image_metrics.LPIPS_BATCH + 1,)
    assert found[3] == 0
    x, y = (
        torch.from_numpy(s[:2].astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1 for s in (a, b)
    )
    np.testing.assert_allclose(found[:2], lpips(x, y), rtol=1e-4)
    box = Box(2, 4, 20, 24)
    part = image_metrics.lpips_distance(lpips, a[:2], b[:2], box)
    np.testing.assert_allclose(part, lpips(x[..., 4:, 2:], y[..., 4:, 2:]), rtol=1e-4)
    with pytest.raises(OptionError, match="it needs 16 x 16"):
        image_metrics.lpips_distance(lpips, a, b, Box(0, 0, 20, 15))
    with pytest.raises(OptionError, match="can't be compared"):
        image_metrics.lpips_distance(lpips, a, b[1:])


# StableSyncNet


class Ear:
    """A net whose lips and sounds are told by their first number; latents of 4 px."""

    class config:  # noqa: N801 - as on the net
        latent, side, lower_half = True, 4, True

        class visual:  # noqa: N801
            in_channels = 64

    def parameters(self):
        return iter([torch.zeros(1)])

    def __call__(self, shown, mel):
        assert shown.shape[1:] == (64, 2, 4)
        assert mel.shape[1:] == (1, 80, 52)
        angles = torch.stack([shown[:, 0, 0, 0], mel[:, 0, 0, 0]])
        return torch.stack([angles.cos(), angles.sin()], dim=-1).unbind()


def heard(first, second):
    """A batch of one clip: angles of two windows' lips and of their sounds."""
    seen = torch.tensor(first)[None, :, None, None, None, None].expand(1, 2, 4, 16, 4, 4)
    return seen, torch.tensor(second)[None, :, None, None, None].expand(1, 2, 1, 80, 52)


def test_stable_syncnet_hears():
    quarter = np.pi / 2
    right = heard([0.0, quarter], [0.0, quarter])
    assert sync_metrics.syncnet_accuracy(Ear(), [right, right]) == 1
    # swapped: what belongs together is taken for what doesn't
    assert sync_metrics.syncnet_accuracy(Ear(), [heard([0.0, quarter], [quarter, 0.0])]) == 0
    # turned by as much: all cosines lie below 0.5, so half of the pairs are told right
    assert sync_metrics.syncnet_accuracy(Ear(), iter([heard([0.0, 3.0], [1.2, 4.2])])) == 0.5
    with pytest.raises(InputError, match="no window"):
        sync_metrics.syncnet_accuracy(Ear(), [])
    assert stacked(right[0].flatten(0, 1), Ear.config).shape == (2, 64, 2, 4)
