"""Lip-sync confidence: the published net, the sound's features, the arithmetic, the whole."""

import json
from dataclasses import dataclass

import cv2
import numpy as np
import pytest
import torch
from python_speech_features import mfcc as published_mfcc
from scipy.signal import medfilt

from latentsync.cli.verify import verify
from latentsync.errors import InputError, WeightsMismatch, WeightsMissing
from latentsync.evaluation import sync
from latentsync.evaluation.nets.eval_syncnet import EvalSyncNet
from latentsync.evaluation.nets.loading import load_net
from latentsync.faces import align
from latentsync.media import VideoFrame
from latentsync.runtime.checkpoints import root
from latentsync.types import FaceTrack
from tests.tiny import GOLDEN, filled, golden, tensor


@pytest.fixture(scope="module")
def stored():
    return golden("syncnet")


@pytest.fixture(scope="module")
def net(stored):
    return filled(EvalSyncNet(), int(stored["evalS/seed"]))


def noise(samples, seed=1):
    return np.random.default_rng(seed).uniform(-0.3, 0.3, samples).astype(np.float32)


def test_the_published_keys_and_shapes():
    published = json.loads((GOLDEN / "eval_syncnet_state_dict.json").read_text())
    ours = EvalSyncNet()
    assert {k: list(v.shape) for k, v in ours.state_dict().items()} == published["state"]
    assert sum(p.numel() for p in ours.parameters()) == published["parameters"]


def test_the_published_features_and_distances(net, stored):
    lips = tensor((3, 3, 5, 224, 224), int(stored["evalS/seed"]), "S/lip")
    with torch.inference_mode():
        lip, voice = net(lips, torch.from_numpy(stored["evalS/aud"]))
    np.testing.assert_allclose(lip, stored["evalS/lip_feat"], atol=1e-4)
    np.testing.assert_allclose(voice, stored["evalS/aud_feat"], atol=1e-4)
    curve = sync.distance_curve([(lip, voice)], shift=2)
    np.testing.assert_allclose(curve, stored["evalS/pdist_vshift2"], atol=1e-4)


@pytest.mark.parametrize("samples", [1, 399, 400, 401, 560, 561, 16000, 700_000])
def test_mfcc_are_the_published_ones(samples):
    sound = noise(samples)
    sound[samples // 2 : samples // 2 + 4000] = 0  # silence has a logarithm too
    levels = np.round(sound.astype(np.float64) * 32768).astype(np.int16)
    np.testing.assert_allclose(sync.mfcc(sound), published_mfcc(levels, 16000), atol=1e-8)


@pytest.mark.parametrize("shift", [0, 3, -7, 15, -15])
def test_a_shifted_sound_is_found(shift):
    lips = torch.randn(120, 64, generator=torch.manual_seed(3))
    # roll by -shift: the sound that belongs to frame i comes `shift` frames before it
    found = sync.score(sync.distance_curve([(lips, lips.roll(-shift, 0))]).mean(dim=1))
    assert found.offset == shift
    assert found.confidence > 5
    assert found.distance < 2


def test_a_curve_is_read_as_published():
    curve = torch.tensor([9.0, 7.0, 8.0, 20.0, 8.5, 8.2, 8.1])
    found = sync.score(curve)
    assert found.offset == 2  # 3 - 1: the sound that fits comes two frames before the picture
    assert found.distance == 7
    assert found.confidence == pytest.approx(1.2)  # median 8.2


def test_another_sound_has_no_confidence():
    lips, voice = torch.randn(2, 400, 64, generator=torch.manual_seed(4)).unbind()
    shifts = sync.distance_curve([(lips, voice)])
    found = sync.score(shifts.mean(dim=1))
    assert shifts.shape == (31, 400)
    parts = zip(lips.split(7), voice.split(7), strict=True)
    assert torch.equal(sync.distance_curve(parts), shifts)
    assert found.confidence < 0.6
    assert found.distance > 10


def test_a_curve_in_time():
    """The first half's sound runs 3 frames ahead, the second's fits; in its middle nothing does."""
    lips = torch.randn(200, 64, generator=torch.manual_seed(5))
    voice = torch.cat([lips[:100].roll(-3, 0), lips[100:]])
    voice[140:160] = torch.randn(20, 64, generator=torch.manual_seed(6))
    distances = sync.distance_curve([(lips, voice)])
    found = sync.sync_curve(distances)
    assert found.confidence.shape == found.offset.shape == (200,)
    assert (found.offset[15:85] == 3).all()
    assert (found.offset[115:] == 0).mean() > 0.9
    whole = sync.score(distances.mean(dim=1))
    own = distances.mean(dim=1).median() - distances[15 - whole.offset]
    # as published, but for the ends, beyond which zeros lie there
    np.testing.assert_allclose(found.confidence[4:-4], medfilt(own.numpy(), 9)[4:-4], atol=1e-5)
    ends = sync.running_median(own.numpy(), 9, beyond="constant")
    np.testing.assert_array_equal(ends, medfilt(own.numpy(), 9))
    fits = slice(15, 85) if whole.offset == 3 else slice(170, 195)
    assert found.confidence[fits].min() > found.confidence[142:158].max() + 2


def test_the_score_is_the_mean_of_the_distances():
    told, crops = Told([]), np.random.default_rng(0).integers(0, 9, (20, 8, 8, 3), np.uint8)
    distances = sync.sync_distances(told, crops, noise(20 * 640))
    assert distances.shape == (31, 15)
    assert sync.sync_confidence(told, crops, noise(20 * 640)) == sync.score(distances.mean(dim=1))


@dataclass
class Told:
    """A net whose features say what it was given."""

    seen: list

    def parameters(self):
        return iter([torch.zeros(1)])

    def lip_features(self, lips):
        assert lips.dtype == torch.float32
        self.seen.append(lips)
        return lips[:, 0, 0, 0, :1].repeat(1, 2)

    def audio_features(self, voice):
        self.seen.append(voice)
        return torch.zeros(len(voice), 2)


def test_windows_lie_beside_their_sound():
    crops = np.zeros((30, 8, 8, 3), np.uint8)
    crops[..., 0] = np.arange(30)[:, None, None]  # red
    crops[..., 2] = 200  # blue
    sound, told = noise(20 * 640 + 639), Told([])
    sync.sync_confidence(told, iter(crops), sound)
    lips, voice = torch.cat(told.seen[::2]), torch.cat(told.seen[1::2])
    assert lips.shape == (15, 3, 5, 8, 8)  # 20 frames have sound; the last 5 start no window
    assert voice.shape == (15, 1, 13, 20)
    assert (lips[:, 0] == 200).all()  # BGR
    wanted = np.arange(15)[:, None] + np.arange(5)
    np.testing.assert_array_equal(lips[:, 2, :, 0, 0], wanted)
    steps = sync.mfcc(sound)
    np.testing.assert_allclose(voice[7, 0], steps[28:48].T, atol=1e-4)


@pytest.mark.parametrize(("frames", "samples"), [(5, 9999), (9, 6 * 640 - 1), (0, 9999), (9, 0)])
def test_too_little_is_refused(frames, samples):
    with pytest.raises(InputError, match="less than 6 frames"):
        sync.sync_confidence(Told([]), np.zeros((frames, 8, 8, 3), np.uint8), noise(samples))


def test_six_frames_are_enough():
    sync.sync_confidence(Told([]), np.zeros((6, 8, 8, 3), np.uint8), noise(6 * 640))


def test_the_longest_run():
    assert sync.longest_run(np.array([1, 0, 1, 1, 0, 1, 1], bool)) == (2, 4)
    assert sync.longest_run(np.ones(3, bool)) == (0, 3)
    assert sync.longest_run(np.zeros(3, bool)) == (0, 0)


def face_at(x, y, size):
    """The affine of a face whose template is `size` px of the frame a unit, its corner at x, y."""
    points = np.array(align.TEMPLATE) * size + (x, y)
    return align.face_track(points[None].astype(np.float32), np.ones(1, bool), 256).affine


def crop_of(picture, affine):
    (crop,) = sync.face_crops([VideoFrame.from_rgb(picture)], affine, 256)
    return crop


def test_the_crop_is_centred_upright_and_the_whole_square():
    picture = np.full((400, 400, 3), 60, np.uint8)
    # units of the template: the square reaches 1.4 * 42 sideways, 42 up, 1.8 * 42 down
    left, top, side = 181 - 59, 163 - 42, 118
    picture[top : top + side // 2, left : left + side // 2] = 220
    affine = face_at(181 - 38, 163 - 38, 1)
    crop = crop_of(picture, affine)
    assert crop.shape == (224, 224, 3)
    assert crop.dtype == np.uint8
    bright = crop[..., 1] > 140
    assert abs(bright[:60].mean() - 0.5) < 0.02
    assert abs(bright[:, :60].mean() - 0.5) < 0.02
    turned = affine.copy()
    angle = np.array([[0.8, -0.6], [0.6, 0.8]])
    centre = affine[0] @ np.array([181.0, 163.0, 1.0])
    turned[0] = np.column_stack([angle @ affine[0, :, :2], [0, 0]])
    turned[0, :, 2] = centre - turned[0, :, :2] @ [181.0, 163.0]
    difference = np.abs(crop.astype(int) - crop_of(picture, turned)).mean()
    assert difference < 1  # a tilted head stays tilted


def test_wide_pixels_are_cut_as_square_ones():
    noisy = np.random.default_rng(5).integers(0, 255, (400, 400, 3), np.uint8)
    picture = cv2.GaussianBlur(noisy, (0, 0), 4)
    narrow = cv2.resize(picture, (200, 400), interpolation=cv2.INTER_AREA)
    points = np.array(align.TEMPLATE) @ [[0.8, 0.6], [-0.6, 0.8]] + (181, 163)  # a tilted head
    shown = []
    for frame, aspect in ((picture, 1.0), (narrow, 2.0)):
        track = align.face_track(
            points[None].astype(np.float32), np.ones(1, bool), 256, pixel_aspect=aspect
        )
        shown.append(crop_of(frame, track.affine).astype(int))
    assert np.abs(shown[0] - shown[1]).mean() < 2


def test_beyond_the_frame_all_is_grey():
    picture = np.full((101, 103, 3), 250, np.uint8)  # odd sizes
    crop = crop_of(picture, face_at(0, 0, 1.0))
    # the square reaches from -20.8 to 96.8 across, from -4 to 113.6 down
    assert (crop[:, :38] == 110).all()
    assert (crop[:6] == 110).all()
    assert (crop[-22:] == 110).all()
    inside = crop[10:198, 42:]
    assert inside.min() > 240
    assert (crop_of(picture, face_at(900, 900, 1.0)) == 110).all()


def test_one_stray_frame_does_not_move_the_crop():
    picture = np.random.default_rng(5).integers(0, 255, (300, 300, 3), np.uint8)
    affine = np.repeat(face_at(110, 110, 1.0), 20, axis=0)
    affine[9] = face_at(130, 105, 1.3)[0]
    crops = list(sync.face_crops([VideoFrame.from_rgb(picture)] * 20, affine, 256))
    np.testing.assert_array_equal(crops[9], crops[8])


def test_the_longest_run_gets_its_own_sound(monkeypatch):
    class Clip:
        def frames(self, indices):
            return (VideoFrame.from_rgb(np.full((64, 64, 3), i, np.uint8)) for i in indices)

    given = []
    monkeypatch.setattr(sync, "sync_confidence", lambda *a: given.extend(a[1:]))
    found = np.ones(20, bool)
    found[3] = False
    track = FaceTrack(np.repeat(face_at(10, 10, 0.4), 20, axis=0), found)
    sync.sync_conf_local(None, Clip(), track, 256, np.arange(20 * 640, dtype=np.float32))
    crops, sound = given
    assert [int(crop[100, 100, 0]) for crop in crops] == pytest.approx(range(4, 20), abs=1)
    assert (sound[0], len(sound)) == (4 * 640, 16 * 640)


def test_loading_is_strict(tmp_path, net):
    with pytest.raises(WeightsMissing, match="download eval"):
        load_net(EvalSyncNet, tmp_path / "none.model")
    file = tmp_path / "syncnet_v2.model"
    torch.save(net.state_dict(), file)
    same = load_net(EvalSyncNet, file)
    assert not same.training
    assert torch.equal(same.netfclip[3].weight, net.netfclip[3].weight)
    state = dict(net.state_dict())
    old = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, file)  # as files from before torch 0.4.1 are
    assert torch.equal(load_net(EvalSyncNet, file).netfclip[3].weight, net.netfclip[3].weight)
    for broken in ({**state, "more": torch.zeros(1)}, {"a": 1}, [1, 2], {}):
        torch.save(broken, file)
        with pytest.raises(WeightsMismatch, match="syncnet_v2") as caught:
            load_net(EvalSyncNet, file)
        assert "\n" not in str(caught.value)
    file.write_bytes(b"nothing")
    with pytest.raises(WeightsMismatch):
        load_net(EvalSyncNet, file)


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "auxiliary").mkdir()
    (tmp_path / "demo").symlink_to(root() / "demo")
    return tmp_path


def looked_up(weights, seconds):
    checks = verify("demo", weights=weights, device="cpu", detector="builtin", steps=4,
                    seconds=seconds)  # fmt: skip
    return next(check for check in checks if check.what == "sync confidence (local crop)")


@pytest.mark.slow
def test_verify_measures_it(weights, net):
    file = weights / "auxiliary/syncnet_v2.model"
    assert looked_up(weights, 0.2).found == (
        "not measured: auxiliary/syncnet_v2.model is not there; latentsync download eval"
    )
    torch.save(net.state_dict(), file)
    check = looked_up(weights, 1.2)
    assert " at offset " in check.found, check.found
    confidence, offset = check.found.split(" at offset ")
    assert check.good is None
    assert 0 <= float(confidence) < 1000
    assert -15 <= int(offset) <= 15
    assert looked_up(weights, 0.1).found.startswith("not measured: lip-sync can't be measured")
    file.write_bytes(b"nothing")
    assert looked_up(weights, 0.2).good is False
