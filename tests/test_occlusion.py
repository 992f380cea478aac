"""What stands before a mouth stays on top; what merely isn't face doesn't."""

import cv2
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from latentsync.errors import WeightsMismatch, WeightsMissing
from latentsync.faces import align
from latentsync.faces.occlusion import OnnxOccluder, uncovered
from latentsync.pipeline.lipsync import LipSync
from latentsync.runtime.devices import GPU_PROVIDER
from latentsync.training.synthetic import Identity, Mouth, Pose, draw, landmarks
from latentsync.training.synthetic.geometry import apply, crop_view, project
from latentsync.training.synthetic.skin import face_outline
from tests import onnx_nets
from tests.clips import babble, picture, raw_frames, write_clip, write_sound
from tests.stubs import SIZE, StubDetector, tiny_nets

SIDE = 64  # px, of the nets and most crops here
GREEN = (0, 255, 0)
NOT_GREEN = ((4, -8, 4), 2)  # of R, G, B in [0, 1]: above a half where red and blue make up for it


def write_net(path, nodes, shape, answer, constants):
    """A net from `picture` to `answer`, whose nodes use these constants by name."""
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, answer)],
        [numpy_helper.from_array(np.asarray(v, np.float32), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def channels_last(path, rgb, bias, side=SIDE):
    """One mask, as XSeg's: a weighted sum of the colours of a BGR picture."""
    nodes = [
        helper.make_node("MatMul", ["picture", "weight"], ["sum"]),
        helper.make_node("Add", ["sum", "bias"], ["answer"]),
    ]
    constants = {"weight": np.array(rgb)[::-1, None], "bias": [bias]}
    shape = ("unknown", side, side)
    return write_net(path, nodes, (*shape, 3), (*shape, 1), constants)


def channels_first(path, rows, biases, side=SIDE, batch=1):
    """One layer for each row of weights of R, G, B: one mask, or so many classes."""
    nodes = [helper.make_node("Conv", ["picture", "weight", "bias"], ["answer"])]
    constants = {"weight": np.array(rows)[:, :, None, None], "bias": biases}
    shape = (batch, 3, side, side)
    return write_net(path, nodes, shape, (batch, len(rows), side, side), constants)


def parser(path, rgb, bias, *, as_class, side=SIDE):
    """19 classes: `as_class` where the sum of colours is above the skin's 0; all others far off."""
    rows, biases = np.zeros((19, 3)), np.full(19, -1e6)
    rows[as_class], biases[as_class], biases[1] = rgb, bias, 0
    return channels_first(path, rows, biases, side)


def plain(*colour, side=SIDE):
    """(1, 3, side, side) crop of one colour, 0-255."""
    return (torch.tensor(colour) / 127.5 - 1)[None, :, None, None].expand(1, 3, side, side)


def seen(occluder, *colour):
    return float(occluder.visible(plain(*colour)).mean())


def ellipse(*axes, centre=(0.5, 0.45), side=256):
    drawn = np.zeros((side, side), np.uint8)
    place, size = ([round(side * part) for part in pair] for pair in (centre, axes))
    return cv2.ellipse(drawn, place, size, 0, 0, 360, 1, cv2.FILLED) > 0


FACE = ellipse(0.4, 0.42)  # its chin in row 222 of 256
CHIN = 222


def test_what_is_not_face_is_no_occluder():
    np.testing.assert_array_equal(uncovered(FACE, ~FACE), 1)
    aside = ellipse(0.28, 0.42, centre=(0.6, 0.45))  # turned: room is seen beside the far cheek
    np.testing.assert_array_equal(uncovered(aside, ~aside), 1)


@pytest.mark.parametrize("seed", range(9000, 9010))
def test_nothing_stands_before_drawn_heads(seed):
    rng, who = np.random.default_rng(seed), Identity.from_seed(seed)
    pose = Pose(yaw=rng.uniform(-0.5, 0.5), pitch=rng.uniform(-0.2, 0.2))
    brows_and_nose = landmarks(who, pose, Mouth(), np.eye(2, 3))[[0, 1, 4]]
    view = crop_view(brows_and_nose, 256)
    outline = apply(view, project(who, pose, face_outline(who)))
    face = cv2.fillPoly(np.zeros((256, 256), np.uint8), [outline.round().astype(int)], 1) > 0
    np.testing.assert_array_equal(uncovered(face, ~face), 1)


def test_what_lies_on_the_face_is_one():
    finger = np.zeros_like(FACE)
    finger[150:170, 100:156] = True
    share = uncovered(FACE & ~finger, ~FACE | finger)
    assert share.dtype == np.float32
    assert not share[finger].any()
    assert (share[CHIN + 3 :] == 1).all()
    grown = cv2.dilate(finger.astype(np.uint8), np.ones((21, 21))) > 0
    assert (share[~grown] == 1).all()
    assert 0.2 < share[grown & ~finger].mean() < 0.9  # the soft edge lies around it
    assert np.abs(np.diff(share, axis=0)).max() < 0.4


def test_a_hand_over_the_chin_is_not_cut_off_there():
    hand = np.zeros_like(FACE)
    hand[140:, 90:166] = True
    share = uncovered(FACE & ~hand, ~FACE | hand)
    assert not share[140:, 95:160].any()  # below the chin as well
    assert (share[150:190, 40:70] == 1).all()
    assert (share[CHIN - 20 : CHIN, :40] == 1).all()  # the neck beside it


def test_a_hidden_face_is_left_alone():
    nothing = np.zeros_like(FACE)
    assert not uncovered(nothing, ~nothing).any()
    brow = nothing.copy()
    brow[:90] = FACE[:90]  # the rest under a scarf
    share = uncovered(brow, ~brow)
    assert not share[110:, 40:216].any()
    assert (share[:75][FACE[:75]] == 1).all()


def test_specks_and_dents_are_no_matter():
    specked = FACE.copy()
    for x in (8, 128, 240):
        specked[250:253, x : x + 3] = True  # on the neck
    dented = FACE & ~ellipse(0.05, 0.02, centre=(0.25, 0.84))
    for face in (specked, dented):
        np.testing.assert_array_equal(uncovered(face, ~face), 1)
    two = FACE.copy()
    two[128:140] = False  # a stick across: the chin is part of the face
    assert not uncovered(two, ~two)[130:138, 40:216].any()
    assert (uncovered(two, ~two)[CHIN:, 80:176] == 1).all()


@pytest.mark.parametrize("side", [64, 96, 256, 512])
def test_any_size_of_crop(tmp_path, side):
    occluder = OnnxOccluder(channels_last(tmp_path / "net.onnx", *NOT_GREEN))
    crops = plain(200, 150, 120, side=side).clone()
    crops[..., side // 2 : side * 3 // 4, side // 4 : side // 2] = (
        -1 + 2 * torch.eye(3)[1, :, None, None]
    )
    share = occluder.visible(torch.cat([crops, plain(200, 150, 120, side=side)]))
    assert (share.dtype, share.shape) == (torch.float32, (2, side, side))
    inner = share[0, side * 17 // 32 : side * 23 // 32, side * 9 // 32 : side * 15 // 32]
    assert not inner.any()
    assert share[0, : side * 3 // 8].min() == 1
    assert share[0, :, side * 5 // 8 :].min() == 1
    assert share[1].min() == 1


def test_one_mask_sees_blue_green_red_if_channels_come_last(tmp_path):
    occluder = OnnxOccluder(channels_last(tmp_path / "net.onnx", (1, 0, 0), 0))
    assert occluder.describe() == "net.onnx (one mask at 64x64 on CPUExecutionProvider)"
    assert [seen(occluder, *c) for c in ((129, 0, 0), (126, 0, 0), (0, 0, 255))] == [1, 0, 0]


@pytest.mark.parametrize("side", [SIDE, "side"])
def test_one_mask_sees_red_green_blue_if_they_come_first(tmp_path, side):
    net = channels_first(tmp_path / "net.onnx", [(1, 0, 0)], [0], side, batch="n")
    occluder = OnnxOccluder(net)
    size = 512 if side == "side" else side
    assert f"one mask at {size}x{size}" in occluder.describe()
    assert [seen(occluder, *c) for c in ((129, 0, 0), (126, 0, 0), (0, 0, 255))] == [1, 0, 0]


def test_face_parsing_sees_normalised_colours(tmp_path):
    # red 124 is 0.005 deviations above ImageNet's mean, 130 is 0.11, green 124 is 0.14
    limits = {0: (0, 0.02), 1: (0.13, 0.15), 2: (0.35, 0.37)}
    for channel, (low, high) in limits.items():
        for limit in (low, high):
            net = parser(tmp_path / "net.onnx", np.eye(3)[channel], -limit, as_class=0)
            occluder = OnnxOccluder(net)
            assert "face parsing at 64x64" in occluder.describe()
            assert seen(occluder, 124, 124, 124) == (limit == high)


@pytest.mark.parametrize("label", range(19))
def test_classes_of_face_parsing(tmp_path, label):
    """A finger of each class, before a mouth."""
    occluder = OnnxOccluder(parser(tmp_path / "net.onnx", (-1e3, 1e3, -1e3), 0, as_class=label))
    crop = plain(200, 150, 120).clone()
    crop[..., 32:40, 20:44] = plain(*GREEN)[..., :8, :24]
    share = occluder.visible(crop)[0]
    stays = label in (0, 6, 16, 18)  # background, glasses, cloth, hat
    assert (not share[34:38, 22:42].any()) if stays else share.min() == 1
    assert (share[50:] == 1).all()


def test_the_net_sees_faces_as_they_are(tmp_path, monkeypatch):
    """A crop is a face of 3 to 4, drawn out into a square; nets know faces."""
    occluder = OnnxOccluder(channels_last(tmp_path / "net.onnx", *NOT_GREEN, side=256))
    given = []

    def run(picture):
        given.append(picture)
        return np.ones((1, 256, 256, 1), np.float32)

    monkeypatch.setattr(occluder, "_run", run)
    crop = plain(0, 0, 0, side=256).clone()
    crop[..., 64:192, 64:192] = 1
    occluder.visible(crop)
    white = given[0][0, 0].numpy() > 0.5
    rows, columns = (np.flatnonzero(white.any(axis=axis)) for axis in (1, 0))
    width, height = align.crop_size(256)
    assert (len(columns) / len(rows)) == pytest.approx(width / height, abs=0.02)
    assert columns.mean() == pytest.approx(127.5, abs=1)


def test_nets_of_another_kind_are_refused(tmp_path):
    path = tmp_path / "net.onnx"
    with pytest.raises(WeightsMissing, match=r"net\.onnx is not there; give one that is"):
        OnnxOccluder(path)
    path.write_bytes(b"no net")
    with pytest.raises(WeightsMismatch, match=r"net\.onnx is not an ONNX model .*; give one"):
        OnnxOccluder(path)
    values = {"classes": np.ones((1, 19, 8, 8), np.float32)}  # at a smaller size: other nets' order
    wrong = [
        onnx_nets.landmarks(tmp_path / "marks.onnx", np.zeros((106, 2))),
        onnx_nets.constant_net(tmp_path / "small.onnx", (1, 3, 64, 64), values),
        onnx_nets.constant_net(tmp_path / "oblong.onnx", (1, 3, 48, 64), values),
        channels_first(tmp_path / "two.onnx", np.ones((2, 3)), [0, 0]),
    ]
    for net in wrong:
        with pytest.raises(
            WeightsMismatch, match=r"maps \[.*\] to \[.*\].*\(1, S, S, 3\)"
        ) as caught:
            OnnxOccluder(net)
        assert "\n" not in str(caught.value)
        assert str(net) in str(caught.value)


def test_it_says_where_it_runs(tmp_path):
    import onnxruntime

    there = GPU_PROVIDER in onnxruntime.get_available_providers()
    net = channels_last(tmp_path / "net.onnx", *NOT_GREEN)
    assert (GPU_PROVIDER in OnnxOccluder(net, gpu=True).describe()) == there
    assert "CPUExecutionProvider" in OnnxOccluder(net).describe()


@pytest.fixture(scope="module")
def barred(tmp_path_factory):
    """A bar before a drawn mouth: where it is, its clip, and what runs make of that."""
    folder = tmp_path_factory.mktemp("barred")
    head, points = draw(Identity.from_seed(7003), Pose(y=0.3), Mouth(), SIZE)
    row, column = (int(part) for part in points[9, ::-1])  # between the lips
    frames = [picture(number, *SIZE) for number in range(12)]
    for frame in frames:
        top = SIZE[1] // 4  # above are the numbers
        frame[top:] = head[top:]
        frame[row - 5 : row + 5] = GREEN
    clip = write_clip(folder / "clip.mp4", frames, size=SIZE, crf="0")
    voice = write_sound(folder / "voice.wav", babble(0.4))
    detector = StubDetector()
    detector.points = points[[0, 1, 4]]

    def brightness(occluder):
        lipsync = LipSync(tiny_nets(), detector, occluder)
        lipsync.run(clip, voice, folder / "out.mp4", steps=1, seed=7, crf=0)
        return np.stack([luma for luma, _, _ in raw_frames(folder / "out.mp4")]).astype(int)

    source = np.stack([luma for luma, _, _ in raw_frames(clip)]).astype(int)[:10]
    net = channels_last(folder / "net.onnx", *NOT_GREEN)
    return (row, column), source, brightness(None), brightness(OnnxOccluder(net))


def test_a_run_leaves_a_bar_before_a_drawn_head_alone(barred):
    (row, column), source, without, kept = barred
    bar = np.s_[:, row - 4 : row + 4, column - 12 : column + 12]
    np.testing.assert_array_equal(kept[bar], source[bar])
    assert np.abs(without[bar] - source[bar]).mean() > 5


def test_a_run_draws_the_rest_of_the_face(barred):
    (row, column), source, without, kept = barred
    cheeks = np.s_[:, row - 18 : row - 9, column - 15 : column + 15]
    assert np.abs(kept[cheeks] - without[cheeks]).max() <= 1
    assert np.abs(kept[cheeks] - source[cheeks]).mean() > 1


def test_loading_by_path(tmp_path, monkeypatch):
    from latentsync.diffusion import generator

    monkeypatch.setattr(generator, "load_nets", lambda *_, **__: tiny_nets())
    assert LipSync.load("demo", device="cpu").occluder is None
    net = channels_last(tmp_path / "net.onnx", *NOT_GREEN)
    assert isinstance(LipSync.load("demo", device="cpu", occluder=net).occluder, OnnxOccluder)
    monkeypatch.setattr(generator, "load_nets", None)  # what is missing is said before that
    with pytest.raises(WeightsMissing):
        LipSync.load("demo", device="cpu", occluder=tmp_path / "other.onnx")
