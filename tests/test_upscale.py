"""Super-resolution in a run and by itself, with nets that only mark what they were given."""

import json
import sys
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from latentsync.cli import upscale as cli_upscale
from latentsync.errors import LatentSyncError, MediaError, OptionError, WeightsMissing
from latentsync.faces import align
from latentsync.faces.mask import keep_mask, restored_share
from latentsync.faces.restoration import nets, restoration
from latentsync.faces.restoration.restoration import OVERLAP, TILE, FaceRestorer, enlarged
from latentsync.media import VideoFrame, VideoReader, probe
from latentsync.options import Options
from latentsync.pipeline import lipsync as pipeline
from latentsync.pipeline.upscale import upscale_clip
from latentsync.training.synthetic import Identity, Mouth, Pose, landmarks
from latentsync.types import Box
from tests.clips import (
    babble,
    early,
    heard,
    lag,
    number_of,
    picture,
    raw_frames,
    same,
    write_clip,
    write_sound,
)
from tests.stubs import StubDetector, numbered_clip, tiny_lipsync
from tests.test_following import LEFT, RIGHT, WIDE, Scripted

EXAMPLES = Path(__file__).parent.parent / "examples"
SIDE = 64  # px, of crops
POINTS = np.array([[[90, 100], [150, 100], [120, 130]]], np.float32)  # in a picture of 240 px
GREEN = 60  # levels that the marking net adds


class Stub:
    """A net that enlarges, and adds so much green."""

    licence = "free to all"

    def __init__(self, green=GREEN, *, scale=1, side=None, name="stub"):
        self.green, self.scale, self.side, self.name = green, scale, side, name
        self.faces = side is not None
        self.given = []  # shapes

    def restore(self, pictures):
        self.given.append(tuple(pictures.shape))
        size = (pictures.shape[2] * self.scale, pictures.shape[1] * self.scale)
        large = [cv2.resize(one, size, interpolation=cv2.INTER_CUBIC) for one in pictures.numpy()]
        marked = np.stack(large).astype(int) + np.array([0, self.green, 0])
        return torch.from_numpy(marked.clip(0, 255).astype(np.uint8))


@pytest.fixture
def net(monkeypatch):
    """The net that every run gets, and what it was asked for by."""
    stub = Stub(scale=2)
    stub.asked = []

    def load(name, *, folder, device, weight):
        stub.asked.append((name, folder, device, weight))
        return stub

    monkeypatch.setattr(pipeline, "load_restorer", load)
    monkeypatch.setattr(nets, "load_restorer", load)
    return stub


@pytest.fixture
def voice(tmp_path):
    return write_sound(tmp_path / "voice.wav", babble(0.4))


def affine(zoom=1.0):
    """Of the face at POINTS in a frame of that zoom."""
    return align.face_track(POINTS * zoom, np.ones(1, bool), SIDE).affine[0]


def soft(side):
    """A picture without detail, so that resampling hardly changes it."""
    return cv2.GaussianBlur(picture(0, side, side), (0, 0), side / 40)


def pasted(frame, restorer, at, *, drawn=None, **options):
    chosen = Options(sr_stability=0, **options)
    upscaler = FaceRestorer(restorer, SIDE, chosen, mouths=drawn is not None)
    drawn = None if drawn is None else torch.from_numpy(drawn)[None]
    (crop,) = upscaler([frame], at[None], drawn)
    size = frame.width, frame.height
    share = upscaler.share(at)
    laid = align.warp_to_frame(crop.numpy(), at, size, weight=share, resolution=SIDE)
    return frame.pasted(*laid), laid


def run(lipsync, clip, voice, out, **options):
    options = {"steps": 1, "seed": 7, "crf": 0, "sr_stability": 0} | options
    return lipsync.run(clip, voice, out, **options)


def test_without_it_nothing_is_loaded(net, tmp_path, voice):
    run(tiny_lipsync(), numbered_clip(tmp_path / "clip.mp4"), voice, tmp_path / "out.mp4")
    assert not net.asked


def test_frames_without_a_face_stay_and_faces_are_restored(net, tmp_path, voice):
    clip, out, plain = (tmp_path / f"{name}.mp4" for name in ("clip", "out", "plain"))
    numbered_clip(clip, 10)
    result = run(tiny_lipsync(lambda n: n >= 4), clip, voice, out, superres="stub", fade=0)
    assert "restore" in result.timings
    run(tiny_lipsync(lambda n: n >= 4), clip, voice, plain, fade=0)
    frames = zip(raw_frames(clip), raw_frames(out), raw_frames(plain), strict=True)
    for number, (source, restored, spoken) in enumerate(frames):
        assert same(source, restored) == (number < 4)
        assert same(spoken, restored) == (number < 4)
    assert sum(shape[0] for shape in net.given) == 6


def test_the_net_is_loaded_once_and_before_the_clip_is_searched(net, tmp_path, voice, monkeypatch):
    clip, out = numbered_clip(tmp_path / "clip.mp4"), tmp_path / "out.mp4"
    lipsync = tiny_lipsync()
    for name in ("GFPGAN", "gfpgan"):
        run(lipsync, clip, voice, out, superres=name)
    assert net.asked == [("gfpgan", lipsync.folder, lipsync.device, 0.5)]
    run(lipsync, clip, voice, out, superres="codeformer", sr_weight=0.9)
    assert net.asked[1:] == [("codeformer", lipsync.folder, lipsync.device, 0.9)]

    def missing(*_, **__):
        raise WeightsMissing("not there")

    monkeypatch.setattr(pipeline, "load_restorer", missing)
    lipsync = tiny_lipsync()
    with pytest.raises(WeightsMissing):
        run(lipsync, clip, voice, out, superres="gfpgan")
    assert not lipsync.detector.seen


@pytest.mark.parametrize("ratio", [1, 1.5, 4])
@pytest.mark.usefixtures("net")
def test_the_ratio_is_of_the_crop_that_is_pasted(tmp_path, voice, monkeypatch, ratio):
    sides = set()
    paste = align.warp_to_frame

    def spy(face, *args, **options):
        sides.add((*face.shape, options["resolution"]))
        return paste(face, *args, **options)

    monkeypatch.setattr(align, "warp_to_frame", spy)
    clip, out = numbered_clip(tmp_path / "clip.mp4"), tmp_path / "out.mp4"
    run(tiny_lipsync(), clip, voice, out, superres="stub", sr_ratio=ratio, crf=30)
    assert sides == {(ratio * SIDE, ratio * SIDE, 3, SIDE)}


@pytest.mark.usefixtures("net")
def test_each_frame_is_restored_once_in_its_place(tmp_path, monkeypatch):
    """Over several groups and a stretch without a face."""
    seen = []
    call = FaceRestorer.__call__

    def spy(self, pictures, affines, drawn=None, *, fresh=True):
        numbers = [number_of(one.rgb()) for one in pictures]
        assert len(numbers) == len(affines) == len(drawn)
        seen.append((fresh, numbers))
        return call(self, pictures, affines, drawn, fresh=fresh)

    monkeypatch.setattr(FaceRestorer, "__call__", spy)
    clip, out = numbered_clip(tmp_path / "clip.mp4", 40), tmp_path / "out.mp4"
    voice = write_sound(tmp_path / "voice.wav", babble(1.6))
    result = run(
        tiny_lipsync(lambda n: not 18 <= n < 24), clip, voice, out, superres="stub", batch=2
    )
    (gap,) = result.passed_through
    assert gap[0] == 18
    assert [n for _, numbers in seen for n in numbers] == [*range(18), *range(gap[1], 40)]
    assert {numbers[0] for fresh, numbers in seen if fresh} >= {0, gap[1]}
    assert [number_of(frame.rgb()) for frame in VideoReader(out).frames()] == list(range(40))


def test_frames_that_groups_share_are_restored_once(net, tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", [picture(0, 128, 112)] * 24, size=(128, 112))
    voice = write_sound(tmp_path / "voice.wav", babble(0.96))
    run(tiny_lipsync(), clip, voice, tmp_path / "out.mp4", superres="stub", overlap=4)
    assert [shape[0] for shape in net.given] == [10, 14]


@pytest.mark.usefixtures("net")
def test_a_new_shot_is_fresh(tmp_path, monkeypatch):
    seen = []

    class Spy(StubSteady):
        def __call__(self, restored, plain, *, fresh):
            seen.append((len(restored), fresh))
            return super().__call__(restored, plain, fresh=fresh)

    monkeypatch.setattr(restoration, "TemporalSmoother", Spy)
    one, other = picture(0, 128, 112), 255 - picture(0, 128, 112)
    lipsync, voice = tiny_lipsync(), write_sound(tmp_path / "voice.wav", babble(0.8))
    for shots, fresh in (([one] * 20, False), ([one] * 10 + [other] * 10, True)):
        clip = write_clip(tmp_path / "clip.mp4", shots, size=(128, 112))
        run(lipsync, clip, voice, tmp_path / "out.mp4", superres="stub", sr_stability=0.5)
        assert seen == [(10, True), (10, fresh)]
        seen.clear()


class StubSteady:
    def __init__(self, stability):
        assert stability in (0, 0.5)

    def __call__(self, restored, plain, *, fresh):  # noqa: ARG002
        assert restored.shape == plain.shape
        assert restored.dtype == plain.dtype == np.uint8
        return restored


@pytest.mark.parametrize("restorer", [Stub(0), Stub(0, scale=4), Stub(0, side=128)])
@pytest.mark.parametrize("ratio", [1, 2, 3.5])
def test_a_net_that_changes_nothing_moves_nothing(restorer, ratio):
    rgb = soft(240)
    frame = VideoFrame.from_rgb(rgb)
    after, _ = pasted(frame, restorer, affine(), sr_ratio=ratio)
    assert np.abs(after.rgb().astype(int) - frame.rgb()).max() <= 4
    drawn = align.square(affine(), SIDE).cut(rgb, Box(0, 0, 240, 240))
    after, _ = pasted(frame, restorer, affine(), drawn=drawn, sr_ratio=ratio)
    assert np.abs(after.rgb().astype(int) - frame.rgb()).max() <= 4


@pytest.mark.parametrize("smooth", [0, 0.5, 1])
def test_beyond_the_face_no_sample_changes(smooth):
    frame = VideoFrame.from_rgb(picture(3, 240, 240))
    after, (box, _, weight) = pasted(frame, Stub(side=128), affine(), mask_smooth=smooth)
    touched = np.zeros((240, 240), bool)
    touched[box.top : box.bottom, box.left : box.right] = weight > 0
    luma, now = frame.planes()[0], after.planes()[0]
    assert (now != luma)[touched].mean() > 0.8
    np.testing.assert_array_equal(now[~touched], luma[~touched])
    ellipse = np.zeros((240, 240), np.uint8)  # a face with room: brow to chin, cheek to cheek
    cv2.ellipse(ellipse, (120, 140), (66, 82), 0, 0, 360, 1, cv2.FILLED)
    assert not touched[ellipse == 0].any()


def test_the_mouth_of_the_network_is_what_the_net_restores():
    frame = VideoFrame.from_rgb(np.full((240, 240, 3), 100, np.uint8))
    drawn = np.full((SIDE, SIDE, 3), 180, np.uint8)
    after, _ = pasted(frame, Stub(side=256), affine(), drawn=drawn)
    mouth, eyes = (after.rgb()[y, 116:125].mean(axis=0) for y in (165, 105))
    np.testing.assert_allclose(mouth, (180, 180 + GREEN, 180), atol=3)
    np.testing.assert_allclose(eyes, (100, 100 + GREEN, 100), atol=3)


@pytest.mark.parametrize(("width", "around"), [(10, 1), (28.7, 1), (38.3, 0.5), (80, 0)])
def test_of_a_face_larger_than_the_net_sees_only_the_mouth_is_restored(width, around):
    """The frame shows its eyes better than they would come back: brows 28.7 px apart are equal."""
    at = affine(width / 60)
    upscaler = FaceRestorer(Stub(), SIDE, Options(sr_stability=0))
    eyes, mouth = (int(y * upscaler.side) for y in (0.3, 0.65))
    middle = upscaler.side // 2
    share = upscaler.share(at)
    assert share[mouth, middle] == 1
    assert share[eyes, middle] == pytest.approx(around, abs=0.03)
    alone = FaceRestorer(Stub(), SIDE, Options(sr_stability=0), mouths=False)
    assert alone.share(at)[eyes, middle] == 1


@pytest.mark.parametrize("whole", [True, False])
def test_softness(whole):
    shares = [restored_share(256, soft, whole=whole) for soft in (0, 0.25, 0.5, 1)]
    for sharper, softer in pairwise(shares):
        assert (softer <= sharper).all()
        assert (softer < sharper).mean() > 0.02
    assert set(np.unique(shares[0])) == {0, 1}
    hole = keep_mask(256) == 0
    assert (shares[0][hole] == 1).all()
    for share in shares:
        assert share.min() == 0
        assert share[155:180, 90:166].min() > 0.97  # the lips
        assert (share[50, 50:206].min() > 0.15) == whole  # the brows
        assert (share[~hole].max() == 0) != whole


def test_small_faces_do_not_alias():
    """A face of 9 px from a crop of 256: of stripes a pixel wide only their mean is left."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[::2] = 255
    at = align.face_track(POINTS / 8, np.ones(1, bool), SIDE).affine[0]
    _, rgb, weight = align.warp_to_frame(stripes, at, (60, 60), resolution=SIDE)
    assert np.abs(rgb[weight == 255].astype(int) - 127).max() <= 8
    large = np.tile(stripes, (4, 4, 1))
    view = align.portrait(affine(8.0), SIDE, 128)
    box = view.box((1024, 1024))
    seen = view.cut(large[box.top : box.bottom, box.left : box.right], box)
    assert np.abs(seen.astype(int) - 127).max() <= 8


def test_ffhq_s_layout():
    """Eyes and mouth of a drawn head, where nets for portraits of 512 px expect them."""
    view = np.array([[70.0, 0, 160], [0, 70, 140]])  # head units -> px
    wanted = [(193, 240), (319, 240), (201, 371), (313, 371)]
    for seed in range(3):
        points = landmarks(Identity.from_seed(seed), Pose(roll=0.2 * seed), Mouth(), view)
        track = align.face_track(points[None, [0, 1, 4]], np.ones(1, bool), 256)
        matrix = align.portrait(track.affine[0], 256, 512).matrix
        placed = points[[2, 3, 5, 6]] @ matrix[:2, :2].T + matrix[:2, 2]
        assert np.abs(placed - wanted).max() < 26  # a twentieth of the side


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("size", [(40, 30), (TILE, TILE + 1), (2 * TILE + 50, TILE - 3)])
def test_in_pieces_as_in_one(scale, size):
    """Of a net that sees no further than the overlap."""
    kernel = np.random.default_rng(1).random((2 * OVERLAP - 1, 3)).astype(np.float32)
    kernel /= kernel.sum()

    class Blur(Stub):
        def restore(self, pictures):
            self.given.append(tuple(pictures.shape))
            blurred = [
                cv2.sepFilter2D(one, -1, kernel[:, 0], kernel[:, 1], borderType=cv2.BORDER_CONSTANT)
                for one in pictures.numpy()
            ]
            return torch.from_numpy(np.stack(blurred).repeat(self.scale, 1).repeat(self.scale, 2))

    net = Blur(scale=scale)
    rgb = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    whole = net.restore(torch.from_numpy(rgb)[None])[0].numpy()
    net.given.clear()
    np.testing.assert_array_equal(enlarged(rgb, net), whole)
    assert max(max(shape[1:3]) for shape in net.given) <= TILE + 2 * OVERLAP


def test_too_little_memory_is_one_line():
    class Full(Stub):
        def restore(self, _pictures):
            raise torch.OutOfMemoryError

    frame = VideoFrame.from_rgb(soft(240))
    with pytest.raises(LatentSyncError, match="too little memory to restore 128 x 128 px"):
        pasted(frame, Full(side=128), affine())


def test_the_published_grey_levels_know_no_restoration():
    with pytest.raises(OptionError, match="superres is 'gfpgan' and resampling 'published'"):
        Options.published(superres="gfpgan")
    assert Options.published(superres="NONE").restorer is None


def upscaled(*words):
    app = typer.Typer()
    app.command()(cli_upscale.upscale)
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def test_upscale_restores_a_clip_s_faces(net, tmp_path):
    """With its sound, its length and its times; beside the face no sample changes."""
    clip, out = EXAMPLES / "face.mp4", tmp_path / "out.mp4"
    short = cut_short(clip, tmp_path / "short.mp4")
    words = (short, "-o", out, "--detector", "builtin", "--superres", "GFPGAN", "--crf", 0)
    net.scale = 1
    done = upscaled(*words, "--sr-stability", 0, "--sr-ratio", 1, "--json")
    assert done.exit_code == 0, done.output
    said = json.loads(done.output)
    assert (said["frames"], said["faces_found"], said["licence"]) == (4, 4, net.licence)
    assert net.asked[0][0] == "gfpgan"
    assert net.given == [(4, *align.crop_size(512)[::-1], 3)]
    assert list(VideoReader(out).times()) == list(VideoReader(short).times())
    assert probe(out).audio == probe(short).audio
    for before, after in zip(raw_frames(short), raw_frames(out), strict=True):
        changed = before[0] != after[0]
        assert 0.05 < changed.mean() < 0.3
        assert not changed[:, :80].any()
        assert not changed[430:].any()


def cut_short(clip, path):
    """Four of its frames, unevenly, with sound."""
    frames = [frame.rgb() for frame, _ in zip(VideoReader(clip).frames(), range(4), strict=False)]
    times = [Fraction(number, 30) for number in (0, 1, 3, 4)]
    return write_clip(path, frames, size=(512, 512), times=times, sound=babble(0.17, 48000))


def test_upscale_keeps_the_sound_s_place_beside_the_pictures(tmp_path):
    wave = babble(0.8, 48000)
    clip = numbered_clip(tmp_path / "clip.mp4", 10)
    path = early(tmp_path / "early.mp4", clip, write_sound(tmp_path / "a.wav", wave, 48000), 0.3)
    out = tmp_path / "out.mp4"
    upscale_clip(path, out, Stub(scale=2), None, preset="ultrafast")
    sound = heard(out, 48000)
    assert lag(sound, wave[14400:], 48000) == 0


def test_upscale_leaves_what_holds_no_face(tmp_path):
    clip, out = numbered_clip(tmp_path / "clip.mp4", 10), tmp_path / "out.mp4"
    detector = StubDetector(lambda n: n < 6)
    result = upscale_clip(
        clip, out, Stub(side=128), detector, face="all", crf=0, fade=0, sr_stability=0
    )
    assert (result.frames, result.faces_found) == (10, 6)
    for number, (before, after) in enumerate(zip(raw_frames(clip), raw_frames(out), strict=True)):
        assert same(before, after) == (number >= 6)


def test_upscale_enlarges_whole_frames(net, tmp_path):
    clip, out = numbered_clip(tmp_path / "clip.mp4", 5), tmp_path / "out.mp4"
    net.green = 0
    done = upscaled(clip, "-o", out, "--superres", "net.pth", "--whole-frame", "--crf", 0)
    assert done.exit_code == 0, done.output
    assert "5 frames" in done.output
    assert "256x224" in done.output
    pairs = zip(VideoReader(clip).frames(), VideoReader(out).frames(), strict=True)
    for number, (before, after) in enumerate(pairs):
        assert number_of(after.rgb()) == number
        wanted = cv2.resize(before.rgb(), (256, 224), interpolation=cv2.INTER_CUBIC)
        assert np.abs(after.rgb().astype(int) - wanted).mean() < 2


def test_whole_frames_want_a_net_for_any_picture(tmp_path):
    clip, out = numbered_clip(tmp_path / "clip.mp4", 5), tmp_path / "out.mp4"
    with pytest.raises(OptionError, match=r"--whole-frame wants a net .*--superres"):
        upscaled(clip, "-o", out, "--whole-frame")
    for net in (Stub(side=512), Stub(scale=1)):
        with pytest.raises(OptionError, match="stub enlarges no whole frames"):
            upscale_clip(clip, out, net, None)
    with pytest.raises(MediaError, match=r"photo\.png is a picture; this takes a clip"):
        upscale_clip(EXAMPLES / "photo.png", out, Stub(scale=2), None)
    assert not out.exists()
    with pytest.raises(OptionError, match="superres is 'none'"):
        upscaled(clip, "-o", out, "--superres", "none")


class Inverting(Stub):
    """A net whose detail differs from shot to shot as much as the pictures do."""

    def restore(self, pictures):
        return 255 - pictures


@pytest.fixture
def small_crops(monkeypatch):
    monkeypatch.setattr(sys.modules[upscale_clip.__module__], "RESOLUTION", SIDE)


@pytest.mark.usefixtures("small_crops")
def test_upscale_carries_no_detail_across_a_cut(tmp_path):
    """Two shots that adjoin, a face in each of their frames: each comes out as by itself."""
    shots = [[soft_shot(seed, i) for i in range(4)] for seed in (1, 2)]
    alone = []
    for number, pictures in enumerate(shots):
        clip = write_clip(tmp_path / f"{number}.mp4", pictures, size=WIDE, crf="0")
        alone += steadied(clip, tmp_path / f"out{number}.mp4")
    clip = write_clip(tmp_path / "both.mp4", shots[0] + shots[1], size=WIDE, crf="0")
    both = steadied(clip, tmp_path / "out.mp4")
    assert len(both) == 8
    assert all(same(*pair) for pair in zip(both, alone, strict=True))


def soft_shot(seed, frame):
    """Of one shot; shots differ little where the face is, and much around it."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 255, (6, 10, 3), np.uint8)
    rgb = cv2.resize(coarse, WIDE, interpolation=cv2.INTER_NEAREST)
    left, top = LEFT
    face = np.full((100, 80, 3), 120 + seed, np.uint8)
    face[..., 2] += frame % 2
    rgb[top - 10 : top + 90, left - 10 : left + 70] = face
    return rgb


def steadied(clip, out):
    detector = Scripted(lambda _: [LEFT])
    upscale_clip(clip, out, Inverting(side=128), detector, crf=0, fade=0, sr_stability=1)
    return list(raw_frames(out))


@pytest.mark.usefixtures("small_crops")
def test_upscale_restores_all_faces_unless_one_is_asked_for(tmp_path):
    clip = write_clip(tmp_path / "clip.mp4", [soft_shot(1, 0)] * 3, size=WIDE, crf="0")
    out = tmp_path / "out.mp4"
    for options, expected in (({}, [True, True]), ({"face": "left"}, [True, False])):
        given = {} if not options else {"options": Options(**options)}
        upscale_clip(clip, out, Stub(side=128), Scripted(lambda _: [LEFT, RIGHT]), **given)
        before, after = (next(iter(raw_frames(path)))[1].astype(int) for path in (clip, out))
        half = before.shape[1] // 2
        moved = np.abs(after - before)
        assert [bool(part.max() > 10) for part in (moved[:, :half], moved[:, half:])] == expected
