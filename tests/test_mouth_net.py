"""The mouth net: loading it, what it is given, and where in a clip it looks."""

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentsync.errors import NoFaceFound, OptionError, WeightsMismatch, WeightsMissing
from latentsync.evaluation import mouth_net
from latentsync.evaluation.mouth_net import (
    CROP,
    FILE,
    MouthNet,
    aligned_crops,
    find_track,
    mouth_track,
)
from latentsync.faces import create
from latentsync.faces.detectors.landmark_net import Regressor
from latentsync.training.synthetic import Identity, Mouth, Pose, draw
from latentsync.types import Face, FaceTrack
from tests.clips import write_clip

SIZE = (160, 128)  # width, height
POINTS = np.array([[60, 40], [100, 40], [80, 60]], np.float32)


class Detector:
    """Points that wander to the right by a pixel a frame; no face in the frames of `missing`."""

    name = "stub"

    def __init__(self, missing=()):
        self.missing, self.seen = missing, 0

    def describe(self):
        return "a stub"

    def detect(self, frame, *, rounded=False, near=None):  # noqa: ARG002
        number, self.seen = self.seen, self.seen + 1
        if number in self.missing:
            return []
        return [Face((40, 20, 120, 120), 1.0, POINTS + np.float32([number, 0]))]


class Redness:
    """A net that reads how red a picture is, and remembers what it was shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, pictures):
        self.shown.append(pictures)
        return pictures[:, 0].mean(dim=(1, 2))[:, None].repeat(1, 3)


@pytest.fixture
def clip(tmp_path):
    """Vertical stripes that stand still while each frame is a little redder."""
    frames = []
    for i in range(10):
        frame = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
        frame[:, ::8] = 60
        frame[..., 0] = 20 * i
        frames.append(frame)
    return write_clip(tmp_path / "clip.mp4", frames, size=SIZE, crf="10")


def saved(folder, net):
    (folder / FILE).parent.mkdir(exist_ok=True)
    save_file(net.state_dict(), folder / FILE)
    return folder


def test_it_loads_what_training_saved(tmp_path):
    torch.manual_seed(1)
    net = Regressor(3)
    net.mean += torch.tensor([0.1, 0.8, 0.2])
    net.std *= 0.05
    loaded = MouthNet.load(saved(tmp_path, net))
    crops = np.random.default_rng(1).integers(0, 256, (40, 64, 64, 3), np.uint8)
    pictures = torch.from_numpy(crops).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = net.eval()(pictures).numpy()
    found = loaded.measure(crops)  # 40: more than one batch
    assert (found.shape, found.dtype) == ((40, 3), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert loaded.measure(crops[:0]).shape == (0, 3)
    assert loaded.name == "demo/ruler.safetensors"
    half = saved(tmp_path, net.half())
    np.testing.assert_allclose(MouthNet.load(half).measure(crops), expected, atol=1e-3)


def test_without_a_mouth_net(tmp_path, monkeypatch):
    with pytest.raises(WeightsMissing, match="restore it"):
        MouthNet.load(tmp_path)
    monkeypatch.setenv("LATENTSYNC_WEIGHTS", str(tmp_path))
    with pytest.raises(WeightsMissing, match=str(tmp_path)):
        MouthNet.load()
    saved(tmp_path, Regressor(2))
    with pytest.raises(WeightsMismatch, match="no mouth net of 3") as caught:
        MouthNet.load()
    assert "\n" not in str(caught.value)
    (tmp_path / FILE).write_bytes(b"nothing")
    with pytest.raises(WeightsMismatch):
        MouthNet.load()


def test_crops_of_any_side():
    net = MouthNet(Redness(), "stub")
    fine = np.random.default_rng(2).integers(0, 256, (2, 256, 256, 3), np.uint8)
    net.measure(fine)
    small = np.stack([cv2.resize(c, (64, 64), interpolation=cv2.INTER_AREA) for c in fine])
    shown = net.net.shown[0].permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose((shown + 1) * 127.5, small, atol=0.01)
    for wrong in (fine[0], fine[:, :100], fine[..., :1]):
        with pytest.raises(OptionError, match="takes"):
            net.measure(wrong)


def test_a_track_is_of_crops_of_its_size(clip):
    track = find_track(clip, Detector(missing=(2,)))
    assert len(track) == 10
    assert track.detected.tolist() == [True] * 2 + [False] + [True] * 7
    nose = track.affine[0] @ [80, 60, 1]
    assert nose == pytest.approx([0.5 * 0.82 * CROP, 0.4 * 1.09 * CROP], abs=6)  # of the upright
    assert len(find_track(clip, Detector(), at_most=4)) == 4
    with pytest.raises(NoFaceFound, match="a stub"):
        find_track(clip, Detector(missing=range(10)))


def test_the_crop_of_wide_pixels_is_that_of_square_ones(tmp_path):
    rgb, _ = draw(Identity.from_seed(31), Pose(), Mouth(open=0.5), (480, 360), zoom=0.8)
    detector = create("builtin", root=tmp_path)
    crops = []
    for width, aspect in ((480, "1/1"), (240, "2/1")):
        still = cv2.resize(rgb, (width, 360), interpolation=cv2.INTER_AREA)
        path, size = tmp_path / f"{width}.mp4", (width, 360)
        write_clip(path, [still] * 2, size=size, crf="10", x264opts=f"sar={aspect}")
        crops.append(next(aligned_crops(path, find_track(path, detector))).astype(int))
    # Of a face whose pixels are taken for square: 43 grey levels.
    assert np.abs(crops[0] - crops[1]).mean() < 6


def test_the_place_is_the_tracks(clip, monkeypatch):
    places = []
    cut = mouth_net.align.cut_face

    def spy(region, box, affine, *rest):
        places.append(float(-affine[0, 2] / affine[0, 0]))
        return cut(region, box, affine, *rest)

    monkeypatch.setattr(mouth_net.align, "cut_face", spy)
    track = find_track(clip, Detector(missing=(2, 3, 9)))
    crops = list(aligned_crops(clip, track))
    assert [c.shape for c in crops] == [(CROP, CROP, 3)] * 10
    steps = np.diff(places)
    assert steps[[1, 8]] == pytest.approx([0, 0], abs=1e-4)  # 2 looks where 1 does, 9 where 8
    assert steps[2] == pytest.approx(3, abs=0.5)  # and 3 where 4 does
    places.clear()
    short = FaceTrack(track.affine[4:8], track.detected[4:8])
    list(aligned_crops(clip, short))  # the clip is longer: to and fro
    assert np.diff(places).round().tolist() == [1, 1, 1, -1, -1, -1, 1, 1, 1]


def test_a_clip_is_measured_frame_by_frame(clip):
    net = MouthNet(Redness(), "stub")
    detector = Detector()
    found = mouth_track(clip, net, detector)
    assert found.shape == (10, 3)
    assert detector.seen == 10
    red = (found[:, 0] + 1) * 127.5
    assert np.corrcoef(red, np.arange(10))[0, 1] > 0.99
    track = find_track(clip, Detector())
    again = mouth_track(clip, net, detector, track=track)
    assert detector.seen == 10  # nobody looked for the face again
    np.testing.assert_array_equal(found, again)
