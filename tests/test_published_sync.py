"""The published crop geometry: S3FD against its origin, boxes, tracks and squares."""

import hashlib
from fractions import Fraction
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from latentsync.errors import NoFaceFound, WeightsMismatch, WeightsMissing
from latentsync.evaluation import published_sync
from latentsync.evaluation.nets.loading import load_net
from latentsync.evaluation.nets.s3fd import S3FD, Norm
from latentsync.evaluation.sync import GREY, SyncScore
from latentsync.media import Colour, VideoFrame
from tests.golden.golden_rule import fill, unit
from tests.tiny import golden

FACTORS = {"vgg": 1.4, "L2Norm3_3": 10, "L2Norm4_3": 8, "L2Norm5_3": 5}


@pytest.fixture(scope="module")
def stored():
    return golden("s3fd")


@pytest.fixture(scope="module")
def net(stored):
    """By the golden rule, scaled so that no layer is silent and no box without bounds."""
    with torch.device("meta"):
        net = S3FD()
    rule = fill({k: tuple(v.shape) for k, v in net.state_dict().items()}, int(stored["seed"]))
    state = {}
    for key, value in rule.items():
        part, number = key.split(".")[:2]
        factor = FACTORS.get(part, 1) if value.ndim == 4 or "Norm" in part else 1
        far = part in ("loc", "conf") and int(number) > 2
        state[key] = torch.from_numpy(value) * (0.1 if far else factor)
    net.load_state_dict(state, assign=True)
    return net


def test_s3fds_keys_are_the_published_ones(stored):
    with torch.device("meta"):
        ours = S3FD().state_dict()
    lines = "\n".join(sorted(f"{key} {list(value.shape)}" for key, value in ours.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == str(stored["keys_sha256"])


@pytest.mark.slow
def test_s3fds_numbers_are_the_published_ones(net, stored):
    pictures = unit(tuple(stored["shape"]), int(stored["seed"]), "pictures")
    pictures = torch.from_numpy((pictures / 3**0.5 * 127.5 + 127.5).astype(np.float32))
    with torch.inference_mode():
        scores, boxes = net(pictures)
    np.testing.assert_allclose(scores[:, stored["pick"]], stored["scores"], atol=1e-5)
    np.testing.assert_allclose(boxes[:, stored["pick"]], stored["boxes"], atol=1e-2)


@pytest.fixture
def bare():
    """S3FD at full size whose weights are 0: what it says follows from its last biases alone."""
    with torch.device("meta"):
        net = S3FD()
    shapes = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    state = {key: torch.zeros(1).expand(shape) for key, shape in shapes.items()}
    for scale in range(6):
        nothing = [-9.0, 1.0, 0.5] if scale == 0 else [1.0]
        state[f"conf.{scale}.bias"] = torch.tensor([*nothing, 1.0 + scale])
        state[f"loc.{scale}.bias"] = torch.tensor([1.0, -2.0, 0.5, -1.0])
    net.load_state_dict(state, assign=True)
    return net


def test_s3fd_has_a_box_at_each_place_of_six_scales(bare):
    """By the formulas of the paper: places every 4 to 128 px, squares of 16 to 512 px there."""
    shown = []
    bare.vgg[0].register_forward_pre_hook(lambda _, arguments: shown.append(arguments[0]))
    picture = torch.rand(1, 3, 100, 72, generator=torch.Generator().manual_seed(1)) * 255
    with torch.inference_mode():
        scores, boxes = bare(picture)
    torch.testing.assert_close(
        shown[0][0, :, 7, 5], picture[0, :, 7, 5] - torch.tensor([123.0, 117.0, 104.0])
    )
    # Pooling rounds down but for the third, which rounds up; what follows halves, rounding up.
    grids = [(25, 18), (13, 9), (6, 4), (3, 2), (2, 1), (1, 1)]
    expected_scores, expected_boxes = [], []
    for scale, (rows, columns) in enumerate(grids):
        step, side = 4 * 2**scale, 16 * 2**scale
        for row in range(rows):
            for column in range(columns):
                x = (column + 0.5) * step + 0.1 * side
                y = (row + 0.5) * step - 0.2 * side
                half_width, half_height = side / 2 * np.exp(0.1), side / 2 * np.exp(-0.2)
                expected_boxes.append(
                    (x - half_width, y - half_height, x + half_width, y + half_height)
                )
                expected_scores.append(1 / (1 + np.exp(-scale)))
    np.testing.assert_allclose(scores[0], expected_scores, atol=1e-6)
    np.testing.assert_allclose(boxes[0], expected_boxes, rtol=1e-5, atol=1e-3)


def test_features_of_a_place_are_brought_to_one_length():
    norm = Norm(2)
    norm.weight.data = torch.tensor([10.0, 1.0])
    features = torch.tensor([[3.0, 0.0], [4.0, 0.0]])[None, :, None]  # two places
    found = norm(features)
    torch.testing.assert_close(found, torch.tensor([[6.0, 0.0], [0.8, 0.0]])[None, :, None])


def test_loading_s3fd(tmp_path):
    file = tmp_path / "sfd_face.pth"
    with pytest.raises(WeightsMissing, match="download eval"):
        load_net(S3FD, file)
    with torch.device("meta"):
        ours = S3FD().state_dict()
    torch.save({key: torch.zeros(1).expand(value.shape) for key, value in ours.items()}, file)
    assert not load_net(S3FD, file).training
    torch.save({"conv1_1.weight": torch.zeros(64, 3, 3, 3)}, file)  # the other project's names
    with pytest.raises(WeightsMismatch, match="does not fit a S3FD"):
        load_net(S3FD, file)


class Boxes:
    """A net that says these boxes, (score, left, top, right, bottom) in px of what it is shown."""

    def __init__(self, rows):
        self.rows, self.shown = torch.tensor(rows, dtype=torch.float32), []

    def parameters(self):
        return iter([torch.zeros(1)])

    def __call__(self, picture):
        self.shown.append(picture)
        return self.rows[None, :, 0], self.rows[None, :, 1:]


def test_the_surest_of_boxes_that_overlap():
    rows = [
        (0.95, 2, 2, 12, 12),  # lies 0.68 in the next
        (0.99, 1, 1, 11, 11),
        (0.97, 20, 0, 30, 10),
        (0.96, 28, 0, 38, 10),  # a ninth of both is common: more than a tenth
        (0.93, 31, 0, 41, 10),  # lies in the one before, and goes with it, as published
        (0.90, 60, 60, 70, 70),  # not sure enough
    ]
    net = Boxes(rows)
    frame = np.zeros((301, 400, 3), np.uint8)
    frame[..., 0] = 200
    found = published_sync.detect_boxes(net, frame)
    (shown,) = net.shown
    assert shown.shape == (1, 3, 75, 100)
    assert shown[0, :, 0, 0].tolist() == [200, 0, 0]
    wanted = np.array([rows[1][1:], rows[2][1:]]) * [4, 301 / 75, 4, 301 / 75]
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    again = published_sync.detect_boxes(
        net, np.ascontiguousarray(frame[:, ::2]), 2.0
    )  # wide pixels
    assert net.shown[1].shape == shown.shape
    np.testing.assert_array_equal(again, found)
    assert published_sync.detect_boxes(net, np.zeros((100, 400, 3), np.uint8)).shape == (0, 4)


def still(left, count, size=120.0):
    return [np.array([[left, 10.0, left + size, 10 + size]]) for _ in range(count)]


def test_tracks_go_over_gaps_and_not_over_cuts():
    there, gone = still(0, 40), [np.empty((0, 4))] * 25
    moved = still(20, 40)
    found = [*there, *gone[:24], *moved]
    (track,) = published_sync.face_tracks(found)
    assert (track.start, track.boxes.shape) == (0, (104, 4))
    np.testing.assert_allclose(track.boxes[40:64, 0], 20 * np.arange(1, 25) / 25)
    assert published_sync.face_tracks([*there, *gone, *moved]) == []  # 26 frames on it is another
    assert published_sync.face_tracks(found, cuts=[50]) == []
    assert published_sync.face_tracks([*there, *still(60, 40)]) == []  # overlaps a third only
    (late,) = published_sync.face_tracks([*there, *still(0, 51)], cuts=[40])
    assert (late.start, len(late.boxes)) == (40, 51)


def test_short_and_small_tracks_are_left_out():
    assert published_sync.face_tracks(still(0, 50)) == []
    assert len(published_sync.face_tracks(still(0, 51))) == 1
    assert published_sync.face_tracks(still(0, 60, size=100.0)) == []
    assert published_sync.face_tracks([]) == []


def test_two_faces_are_two_tracks():
    found = [np.concatenate(both) for both in zip(still(0, 60), still(300, 60), strict=True)]
    found[7] = found[7][::-1]  # once the other one is surer
    left, right = published_sync.face_tracks(found)
    assert (left.boxes[:, 0] == 0).all()
    assert (right.boxes[:, 0] == 300).all()


def test_the_square_reaches_below_the_chin():
    frame = np.full((200, 240, 3), 60, np.uint8)
    # half the longer side is 50: 70 to either side of 110, 50 above 90 and 90 below it
    frame[40:180, 40:180] = 220
    boxes = np.tile([70.0, 40, 150, 140], (13, 1))
    crops = list(published_sync.box_crops([VideoFrame.from_rgb(frame)] * 13, boxes))
    assert crops[6].shape == (224, 224, 3)
    assert crops[6][4:-4, 4:-4].min() > 200
    wide = VideoFrame.from_rgb(
        np.ascontiguousarray(frame[:, ::2]), Colour(pixel_aspect=Fraction(2))
    )
    *_, narrow = islice(published_sync.box_crops([wide] * 13, boxes), 7)
    assert np.abs(narrow.astype(int) - crops[6]).mean() < 3
    boxes[6] += 500  # one frame's slip is none
    again = list(published_sync.box_crops([VideoFrame.from_rgb(frame)] * 13, boxes))
    np.testing.assert_array_equal(again[6], crops[6])
    moving = np.array([70.0, 40, 150, 140]) - 4 * np.arange(13)[:, None] * [1, 0, 1, 0]
    first, *_ = published_sync.box_crops([VideoFrame.from_rgb(frame)] * 13, moving)
    there = published_sync.box_crops([VideoFrame.from_rgb(frame)] * 13, np.tile(moving[6], (13, 1)))
    np.testing.assert_array_equal(first, list(there)[6])  # zeros lie before it, as published
    outside = np.tile([1000.0, 0, 1100, 100], (13, 1))
    far = list(published_sync.box_crops([VideoFrame.from_rgb(frame)] * 13, outside))
    assert (far[6] == GREY).all()


def test_each_track_is_asked_with_its_own_sound(monkeypatch):
    frames = [VideoFrame.from_rgb(np.full((160, 160, 3), i, np.uint8)) for i in range(70)]
    clip = SimpleNamespace(frames=lambda numbers=range(70): (frames[i] for i in numbers))
    boxes = [np.empty((0, 4))] * 5 + still(0, 60) + [np.empty((0, 4))] * 5
    monkeypatch.setattr(
        published_sync, "detect_boxes", lambda _, frame, __: boxes[frame[0, 0, 0] - 0]
    )
    asked = []

    def score(_, crops, sound):
        asked.append((len(list(crops)), sound[0], len(sound)))
        return SyncScore(5.0, 8.0, 0)

    monkeypatch.setattr(published_sync, "sync_confidence", score)
    sound, checked = np.arange(70 * 640, dtype=np.float32), []
    found = published_sync.sync_conf(None, None, clip, sound, check=lambda: checked.append(1))
    assert (found, len(checked)) == ((SyncScore(5.0, 8.0, 0),), 70)
    assert asked == [(60, 5 * 640, 60 * 640)]
    boxes[:] = [np.empty((0, 4))] * 70
    with pytest.raises(NoFaceFound, match="among the 70"):
        published_sync.sync_conf(None, None, clip, sound)
