"""A folder of raw clips becomes one to train on: what comes through, what doesn't, and why."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latentsync import faces
from latentsync.evaluation.sync import SyncScore, face_crops, mfcc, sync_confidence
from latentsync.faces import align
from latentsync.media import AudioReader, VideoReader, probe
from latentsync.training import dataset
from latentsync.training.clip_cache import Preparer
from latentsync.training.clips import find_clips
from latentsync.training.preparation import PreparationSettings, prepare, runner, steps
from latentsync.training.preparation.clip import clip_name
from latentsync.training.preparation.quality import sharpness
from latentsync.training.preparation.steps import Segments, Shots, Sync
from latentsync.training.preparation.stretch import Rejected, Stretch, Tools
from latentsync.training.preparation.summary import left_after
from latentsync.types import Face, FaceTrack
from tests.clips import babble, lag, write_clip, write_picture
from tests.prepared import EASY, clip, left_out, lines, pictures
from tests.stubs import SIZE, StubDetector, tiny_nets
from tests.training_run import files_of


@pytest.fixture
def stub(monkeypatch):
    detector = StubDetector()
    monkeypatch.setattr(faces, "create", lambda *_, **__: detector)
    return detector


@pytest.fixture(autouse=True)
def no_page(monkeypatch, request):
    """Pictures take longer than all else; one test looks at them."""
    if "page" not in request.node.name:
        monkeypatch.setattr(runner, "write_summary", lambda *_: None)


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


def test_a_clip_is_what_training_reads(raw, tmp_path, stub):
    output = tmp_path / "out"
    source = clip(raw / "a.mp4", 60, babble(1.2, 48000), fps=50)  # 1.2 s at twice the rate
    assert prepare(raw, output, EASY, workers=0).clips == 1
    (line,) = lines(output, "index.jsonl")
    path = output / line["clip"]
    facts = probe(path)
    assert (facts.video.fps, facts.video.frames, line["frames"]) == (25, 30, 30)
    assert (facts.audio.sample_rate, facts.audio.channels) == (16000, 1)
    assert (line["source"], line["start_seconds"], line["stop_seconds"]) == ("a.mp4", 0.0, 1.2)
    assert line["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert line["source_sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    heard, said = (np.concatenate(list(AudioReader(p).chunks())) for p in (path, source))
    assert len(heard) == 30 * 640
    assert lag(heard, said, 16000) == 0
    # The affine beside it cuts the crop that the source's own gives.
    track = align.face_track(stub.points[None], np.array([True]), 256)
    crops = []
    for file, affine in ((source, track.affine[0]), (path, np.load(path.with_suffix(".npy"))[7])):
        frame = next(VideoReader(file).frames([7]))
        box = align.face_box(affine, 256, frame.width, frame.height)
        crops.append(align.cut_face(frame.rgb(box), box, affine, 256).astype(int))
    assert np.abs(crops[0] - crops[1]).mean() < 3
    nets = tiny_nets()
    preparer = Preparer(nets, StubDetector(), tmp_path / "cache")
    found = [preparer.clip(one) for one in files_of(*find_clips(output))]
    assert found == ["too short: 30 frames with a face, not 48"]


def test_large_faces_are_scaled_down_no_further_than_crops_need(raw, tmp_path, stub):
    stub.points = stub.points * 6  # a face of 400 px where crops show 280
    clip(raw / "a.mp4", 25, size=(512, 448))
    prepare(raw, tmp_path / "out", EASY, workers=0)
    (line,) = lines(tmp_path / "out", "index.jsonl")
    scale = line["scale"]
    assert scale < 1
    affine = np.load((tmp_path / "out" / line["clip"]).with_suffix(".npy"))[0]
    across = (
        256 / 210 / np.sqrt(np.linalg.det(affine[:, :2]))
    )  # px of the clip to one of the square
    assert 1 / across == pytest.approx(1, abs=0.51)


def test_the_published_form_holds_the_crops(raw, tmp_path, stub):  # noqa: ARG001
    clip(raw / "a.mp4")
    settings = PreparationSettings(**{**vars(EASY), "form": "aligned"})
    prepare(raw, tmp_path / "out", settings, workers=0)
    (line,) = lines(tmp_path / "out", "index.jsonl")
    assert (line["width"], line["height"]) == (256, 256)
    assert [path.suffix for path in (tmp_path / "out/clips").iterdir()] == [".mp4"]


def test_training_takes_the_folder(raw, tmp_path, stub):  # noqa: ARG001
    clip(raw / "a.mp4", 50)
    prepare(raw, tmp_path / "out", EASY, workers=0)
    preparer = Preparer(tiny_nets(), StubDetector(), tmp_path / "cache")
    (found,) = dataset.prepare(files_of(*find_clips(tmp_path / "out")), preparer)
    assert len(found) == 50


def test_each_broken_file_costs_one_line_and_the_page_shows_it(raw, tmp_path, stub):
    nested = raw / "süb" / "deeper"
    nested.mkdir(parents=True)
    good = clip(raw / "good.mp4")
    (raw / "<b>text.mp4").write_text("no clip")
    (raw / "empty.mov").touch()
    (raw / "notes.txt").write_text("not looked at")
    (raw / "nowhere.mkv").symlink_to("gone")
    (raw / "again.MP4").symlink_to("good.mp4")
    whole = clip(nested / "whole.mp4", 50, muxer={"movflags": "faststart"}).read_bytes()
    (raw / "truncated.mp4").write_bytes(whole[: len(whole) // 2])
    write_picture(raw / "still.mp4", np.zeros((112, 128, 3), np.uint8), ".png")
    write_clip(nested / "mute.mp4", pictures(30), size=SIZE)
    clip(raw / "silent.mp4", sound=np.zeros(48000 * 2, np.float32))
    clip(nested / "short.mp4", 20)
    nasty = clip(nested / "日本 \"<b>&\n'.mp4")
    Path(os.fsdecode(os.fsencode(raw) + b"/\xff.mp4")).write_bytes(b"?")
    output = tmp_path / "out"
    tally = prepare(raw, output, EASY, workers=0)
    assert (tally.files, tally.total) == (13, 13)
    name = nasty.relative_to(raw).as_posix()
    assert {line["source"] for line in lines(output, "index.jsonl")} == {
        "good.mp4", "again.MP4", "süb/deeper/whole.mp4", name
    }  # fmt: skip
    unreadable = ("decode", "can't be read")
    assert left_out(output) == {
        "<b>text.mp4": unreadable,
        "empty.mov": unreadable,
        "nowhere.mkv": unreadable,
        "\udcff.mp4": unreadable,
        "truncated.mp4": ("decode", "damaged or cut short"),
        "still.mp4": ("decode", "a still picture"),
        "süb/deeper/mute.mp4": ("resample", "no sound"),
        "silent.mp4": ("sync", "silence"),
        "süb/deeper/short.mp4": ("segments", "too short"),
    }
    assert str(tmp_path) not in (output / "rejected.jsonl").read_text()
    page = (output / "summary.html").read_text()
    assert "<b>" not in page
    assert "&lt;b&gt;text.mp4" in page
    assert page.count("base64,") == 2
    assert good.is_file()
    assert stub.seen


def test_a_cut_begins_another_clip(raw, tmp_path, stub):  # noqa: ARG001
    one, other = (np.full((112, 128, 3), level, np.uint8) for level in (60, 180))
    write_clip(raw / "a.mp4", [one] * 40 + [other] * 30, size=SIZE, sound=babble(2.8, 48000))
    prepare(raw, tmp_path / "out", EASY, workers=0)
    found = [
        (c["start_seconds"], c["stop_seconds"]) for c in lines(tmp_path / "out", "index.jsonl")
    ]
    assert found == [(0.0, 1.6), (1.6, 2.8)]


def test_sound_that_ends_first_ends_the_clip(raw, tmp_path, stub):  # noqa: ARG001
    clip(raw / "a.mp4", 75, sound=babble(1.6, 48000))
    prepare(raw, tmp_path / "out", EASY, workers=0)
    (line,) = lines(tmp_path / "out", "index.jsonl")
    assert line["frames"] in (40, 41)  # the coder fills its last block up
    assert left_out(tmp_path / "out") == {"a.mp4": ("resample", "pictures without sound")}


class Two(StubDetector):
    def detect(self, frame, *, rounded=False, near=None):
        found = super().detect(frame, rounded=rounded, near=near)
        return [*found, Face((2, 2, 22, 30), 1.0, self.points / 4)]

    def follow(self, frame, faces, *, rounded=False):
        return [*self.detect(frame, rounded=rounded), None][: len(faces)]


@pytest.mark.parametrize(
    ("detector", "reason", "figure"),
    [
        (StubDetector(lambda _: False), "no face", 0),
        (StubDetector(lambda number: number < 20), "face not in all frames", 0.2308),
        (Two(), "several faces", 2),
    ],
)
def test_exactly_one_face(raw, tmp_path, monkeypatch, detector, reason, figure):
    monkeypatch.setattr(faces, "create", lambda *_, **__: detector)
    clip(raw / "a.mp4")
    prepare(raw, tmp_path / "out", EASY, workers=0)
    (line,) = lines(tmp_path / "out", "rejected.jsonl")
    assert (line["step"], line["reason"], line["figure"]) == ("face", reason, figure)


def test_small_and_blurred_faces(raw, tmp_path, stub):  # noqa: ARG001
    clip(raw / "a.mp4")
    for wish, reason in (
        ({"min_face": 100}, "face too small"),
        ({"min_sharpness": 5e3}, "blurred"),
    ):
        prepare(raw, tmp_path / "out", PreparationSettings(**{**vars(EASY), **wish}), workers=0)
        assert left_out(tmp_path / "out")["a.mp4"][1] == reason
        assert list((tmp_path / "out/clips").iterdir()) == []


def test_sharpness_falls_with_blur():
    sharp = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    assert sharpness(sharp) > 1000
    assert sharpness(np.full((64, 64, 3), 90, np.uint8)) == 0


@pytest.mark.parametrize(
    ("frames", "parts", "rest"),
    [
        (124, [], 124),
        (125, [125], 0),
        (250, [250], 0),
        (251, [125, 126], 0),
        (600, [200, 200, 200], 0),
    ],
)
def test_segments(frames, parts, rest):
    found = list(Segments(125, 250)(Stretch(Path("a"), 1000, 1000 + frames), None))
    assert [len(one) for one in found if isinstance(one, Stretch)] == parts
    left = [one for one in found if isinstance(one, Rejected)]
    assert [one.stop - one.start for one in left] == ([rest] if rest else [])
    assert min(one.start for one in found) == 1000
    assert max(one.stop for one in found) == 1000 + frames


def test_segments_that_can_not_be_equal():
    found = list(Segments(200, 250)(Stretch(Path("a"), 0, 390), None))
    assert [(one.start, one.stop) for one in found] == [(0, 250), (250, 390)]
    assert isinstance(found[1], Rejected)


def test_shots():
    found = Shots()(Stretch(Path("a"), 0, 90, cuts=(30, 60)), None)
    assert [(one.start, one.stop) for one in found] == [(0, 30), (30, 60), (60, 90)]


# Sync: pictures whose brightness is the loudness of the sound, and a net that compares the two.

LEVELS = 15.0  # grey levels to one of log amplitude


class Loudness(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.middle, self.anything = middle, nn.Parameter(torch.zeros(1))

    def lip_features(self, pictures):  # (b, 3, 5, 224, 224)
        return (pictures.mean(dim=(1, 3, 4)) - 128) / LEVELS

    def audio_features(self, heard):  # (b, 1, 13, 20)
        return (heard[:, 0, 0].reshape(-1, 5, 4).mean(dim=2) - self.middle) / 2


def spoken(path, frames, ahead):
    """A clip whose sound comes `ahead` frames early, and the net that sees it."""
    times = np.arange(frames + 40)
    rng = np.random.default_rng(5)
    loud = sum(np.sin(times / rng.uniform(1, 4) + rng.uniform(0, 6)) for _ in range(8)) / 4
    noise = rng.standard_normal((len(times), 640)) * 0.02
    sound = (noise * np.exp(loud)[:, None]).astype(np.float32)
    shown = np.full((frames, 112, 128, 3), 90, np.uint8)
    for rgb, value in zip(shown, loud[20:], strict=False):
        rgb[10:106, 20:112] = round(128 + LEVELS * value)
    heard = sound[20 + ahead : 20 + ahead + frames].ravel()
    write_clip(path, shown, size=SIZE, sound=heard, sound_rate=16000, crf="10")
    return Loudness(float(mfcc(sound.ravel())[:, 0].mean()))


@pytest.mark.parametrize("ahead", [0, 4, -3])
def test_sound_is_moved_until_it_fits(raw, tmp_path, stub, monkeypatch, ahead):
    net = spoken(raw / "a.mp4", 60, ahead)
    monkeypatch.setattr("latentsync.training.preparation.plan.load_net", lambda *_, **__: net)
    weights = tmp_path / "auxiliary" / "syncnet_v2.model"
    weights.parent.mkdir()
    weights.touch()
    wish = {"weights": tmp_path, "sync": "auto", "min_confidence": 0.3, "max_seconds": 3}
    settings = PreparationSettings(**{**vars(EASY), **wish})
    prepare(raw, tmp_path / "out", settings, workers=0)
    (line,) = lines(tmp_path / "out", "index.jsonl")
    assert line["sync"]["offset"] == ahead
    assert line["frames"] == 60 - abs(ahead)  # whose sound the source has
    assert line["start_seconds"] == max(0, ahead) / 25
    path = tmp_path / "out" / line["clip"]
    sound = np.concatenate(list(AudioReader(path).chunks()))
    affines = np.load(path.with_suffix(".npy"))
    score = sync_confidence(net, face_crops(VideoReader(path).frames(), affines, 256), sound)
    assert score.offset == 0
    assert stub.seen
    if ahead != 4:
        return
    for wish, reason in (
        ({"max_offset": 2}, "sync offset too large"),
        ({"min_confidence": 50}, "low sync confidence"),
        ({"min_seconds": 2.4}, "too short once in sync"),
    ):
        prepare(raw, tmp_path / "out", PreparationSettings(**{**vars(settings), **wish}), workers=0)
        assert left_out(tmp_path / "out") == {"a.mp4": ("sync", reason)}


def test_without_syncnet_it_is_said_once_and_nothing_is_claimed(raw, tmp_path, stub, caplog):  # noqa: ARG001
    clip(raw / "a.mp4")
    clip(raw / "b.mp4")
    settings = PreparationSettings(**{**vars(EASY), "sync": "auto", "weights": tmp_path})
    prepare(raw, tmp_path / "out", settings, workers=0)
    assert caplog.text.count("lip-sync is not measured") == 1
    assert [line["sync"] for line in lines(tmp_path / "out", "index.jsonl")] == [None, None]


def test_sync_wants_sound(tmp_path):
    np.zeros(640 * 30, np.int16).tofile(tmp_path / "sound.s16")
    step = Sync(False, 256, 3, 6, 25)
    (found,) = step(Stretch(Path("a"), 0, 30), Tools(StubDetector(), None, None, tmp_path))
    assert (found.reason, found.figure) == ("silence", -100.0)


def test_names_never_collide():
    stretches = [Stretch(Path("x"), 0, 9), Stretch(Path("x"), 0, 10)]
    paths = [
        "a.mp4",
        "a.mov",
        "b/a.mp4",
        "b_a.mp4",
        "a_000000-000009.mp4",
        "e\u0301.mp4",
        "☃.mp4",
        "☺.mp4",
        "\xe9.mp4",
    ]
    names = [clip_name(path, stretch) for path in paths for stretch in stretches]
    assert len({name.casefold() for name in names}) == len(names)
    long = clip_name("日" * 80 + ".mp4", stretches[0])
    assert len(long.encode()) < 255
    assert clip_name("..mp4", stretches[0])[0] != "."


def test_the_funnel():
    rejected = [
        {"step": "decode", "start_seconds": 0, "stop_seconds": 2},
        {"step": "face", "start_seconds": 1, "stop_seconds": 5},
    ]
    left = left_after(10, rejected, EASY)
    assert list(left.values()) == [10, 8, 8, 8, 8, 4, 4, 4]


@pytest.mark.parametrize(
    ("offset", "taken"), [(-8, False), (-7, False), (-6, True), (6, True), (7, False), (8, False)]
)
def test_the_sound_may_be_as_late_as_early(tmp_path, monkeypatch, offset, taken):
    monkeypatch.setattr(steps, "sync_confidence", lambda *_: SyncScore(5.0, 8.0, offset))
    (babble(2.4) * 32767).astype(np.int16).tofile(tmp_path / "sound.s16")
    clip(tmp_path / "a.mp4", 60)
    track = FaceTrack(np.zeros((60, 2, 3), np.float32), np.ones(60, bool))
    step = Sync(True, 256, 3, 6, 25)
    stretch = Stretch(tmp_path / "a.mp4", 0, 60, track=track)
    (found,) = step(stretch, Tools(StubDetector(), object(), None, tmp_path))
    if taken:
        assert found.ahead == offset
    else:
        assert (found.reason, found.figure) == ("sync offset too large", offset)
