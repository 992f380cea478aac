"""`latentsync evaluate` on outputs of runs: it measures what their own report says was made."""

import errno
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from latentsync.errors import OptionError
from latentsync.evaluation import published_sync, runner, sync, sync_metrics
from latentsync.evaluation.clips import find_pairs
from latentsync.evaluation.runner import evaluate
from latentsync.types import Face
from tests.clips import babble, picture, write_clip, write_picture, write_sound
from tests.stubs import SIZE, Brightness, StubDetector, numbered_clip, tiny_lipsync

LOSSLESS = {"crf": "0", "preset": "ultrafast"}
WIDE = (300, 180)  # px
MODES = ("bounce", "pingpong", "loop", "freeze", "remap", "silence", "cut_off")


class Couple(StubDetector):
    """Two faces, the right one the larger; knows their mouths."""

    def detect(self, frame, *, rounded=False, near=None):  # noqa: ARG002
        points = np.float32([[12, 20], [44, 20], [28, 44]])
        return [
            Face((x, 60, x + width, 150), 1.0, points + np.float32([x, 60]))
            for x, width in ((190, 66), (20, 60))
        ]

    def mouth(self, frame, seen):
        values = frame[int(seen.points[2, 1]) :, int(seen.points[2, 0])].ravel()[:12]
        return values.reshape(6, 2).astype(float)


@pytest.fixture
def detector(monkeypatch):
    """What both the runs and the evaluations look with."""
    held = [StubDetector()]
    monkeypatch.setattr(runner.faces, "create", lambda *_, **__: held[0])
    return held


@pytest.fixture
def make(tmp_path, detector):
    """A run with a report; returns its output."""

    def run(source, seconds, **options):
        model = tiny_lipsync()
        model.detector = detector[0]
        voice = write_sound(tmp_path / "voice.wav", babble(seconds))
        out = tmp_path / "out.mp4"
        choices = {"steps": 1, "crf": 0, "preset": "ultrafast", "report": True, "seed": 3}
        model.run(source, options.pop("audio", voice), out, **(choices | options))
        return out

    return run


def measured(output, *names, reference=None, **options):
    (found,) = evaluate(find_pairs([output], reference), names, **options).clips
    assert not found.error
    return found


def untouched(found, curve="psnr_frame"):
    return np.isposinf(np.array(found.curves[curve]))


@pytest.mark.parametrize(
    ("mode", "fps", "pace"),
    [*((mode, 25, "25") for mode in MODES), ("loop", 25, "source")]
    + [(mode, 50, "source") for mode in ("bounce", "remap", "freeze")],
)
def test_each_frame_is_held_against_the_one_it_was_made_of(
    tmp_path, make, detector, mode, fps, pace
):
    detector[0] = StubDetector(lambda number: number < 7)
    source = numbered_clip(tmp_path / "clip.mp4", 20, fps=fps, **LOSSLESS)
    found = measured(make(source, 1.8, sync_mode=mode, fps=pace), "psnr")
    report = json.loads((tmp_path / "out.json").read_text())
    shown = np.zeros(report["frames"], bool)
    for start, stop, _ in report["passed_through"]:
        shown[start:stop] = True
    assert 0 < shown.sum() < len(shown)
    shown = shown[::2] if fps == 50 else shown
    np.testing.assert_array_equal(untouched(found), shown)
    at_face = np.array(found.curves["psnr_face"])
    assert np.isnan(at_face[untouched(found)[: len(at_face)]]).all()
    assert np.isfinite(found.figures["psnr_face"])
    assert sum("left untouched" in note for note in found.notes) == 1


def test_a_photo_of_a_run_is_held_against_every_frame(tmp_path, make):
    photo = write_picture(tmp_path / "photo.png", picture(3, *SIZE))
    found = measured(make(photo, 0.4), "psnr")
    assert (found.frames, found.notes) == (10, [])
    assert np.isfinite(found.figures["psnr_face"])


@pytest.mark.parametrize("face", ["left", "right", "40,90"])
def test_the_face_that_the_report_names_is_measured(tmp_path, make, detector, face):
    detector[0] = Couple()
    source = write_clip(tmp_path / "clip.mp4", [picture(0, *WIDE)] * 8, size=WIDE, **LOSSLESS)
    output = make(source, 0.32, face=face)
    found = measured(output, "psnr")
    assert found.face == face
    assert np.isfinite(found.figures["psnr_face"])
    other = "left" if face == "right" else "right"
    found = measured(output, "psnr", face=other)
    assert (found.face, found.figures["psnr_face"]) == (other, np.inf)
    (tmp_path / "out.json").unlink()
    found = measured(output, "psnr", reference=source)
    assert (found.face, np.isinf(found.figures["psnr_face"])) == ("largest", face != "right")
    assert np.isfinite(measured(output, "psnr", reference=source, face=face).figures["psnr_face"])
    with pytest.raises(OptionError, match="face 'nobody'"):
        measured(output, "psnr", face="nobody")


def test_of_several_speakers_the_first_is_measured_and_that_is_said(tmp_path, make, detector):
    detector[0] = Couple()
    source = write_clip(tmp_path / "clip.mp4", [picture(0, *WIDE)] * 8, size=WIDE, **LOSSLESS)
    sounds = {
        face: write_sound(tmp_path / f"{face}.wav", babble(0.3)) for face in ("left", "right")
    }
    found = measured(make(source, 0, audio=sounds), "psnr")
    assert found.face == "left"
    assert found.notes == [
        "the run generated the mouths of left and right; the figures are those of the face left, "
        "choose another with --face"
    ]
    found = measured(make(source, 0.3, face="all"), "psnr")
    assert found.notes[0].startswith(
        "the run generated the mouths of all; the figures are those of the face largest"
    )


def test_a_report_of_another_output_is_ignored(tmp_path, make, detector):
    detector[0] = Couple()
    source = write_clip(tmp_path / "clip.mp4", [picture(0, *WIDE)] * 20, size=WIDE, **LOSSLESS)
    output = make(source, 0.8, face="left")
    shutil.copy(write_clip(tmp_path / "b.mp4", [picture(0, *WIDE)] * 6, size=WIDE), output)
    found = measured(output, "psnr")
    assert found.face == "largest"
    assert found.notes[0].startswith("its report says 0.80 s, but it lasts 0.24 s")


def test_a_reference_that_is_not_the_source_is_compared_by_time(tmp_path, make):
    source = numbered_clip(tmp_path / "clip.mp4", 6, **LOSSLESS)
    output = make(source, 0.4, sync_mode="loop", silence="keep")
    truth = shutil.copy(output, tmp_path / "truth.mp4")
    found = measured(output, "psnr", reference=truth)
    assert untouched(found).all()
    assert "truth.mp4 is not the source" in found.notes[0]
    moved = tmp_path / "originals" / "clip.mp4"
    moved.parent.mkdir()
    shutil.copy(source, moved)
    assert measured(output, "psnr", reference=moved).notes == []
    source.unlink()
    assert measured(output, "psnr", reference=moved).notes == []


def test_a_picture_that_the_report_names_may_be_gone(tmp_path, make):
    source = numbered_clip(tmp_path / "clip.mp4", 8, **LOSSLESS)
    output = make(source, 0.3)
    report = json.loads((tmp_path / "out.json").read_text())
    for voices, wrong in (({"gone.png": "v.wav"}, "gone.png"), ({"900,900": "v.wav"}, "900,900")):
        (tmp_path / "out.json").write_text(json.dumps(report | {"voices": voices}))
        found = measured(output, "psnr", "flicker")
        assert wrong in found.missing["flicker"]
        assert np.isfinite(found.figures["psnr_frame"])
    for broken in ({"frames": "x"}, {"options": {}}, {"passed_through": [[1]]}, {"frames": 0}):
        (tmp_path / "out.json").write_text(json.dumps(report | broken))
        assert measured(output, "psnr").face == "largest"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        ({"frames": 10**15}, "frames 1000000000000000"),
        ({"source_frames": 10**30}, "source_frames 1000000000000000000000000000000"),
        ({"frames": -3}, "frames -3"),
        ({"seconds": 10**400}, f"seconds 1{39 * '0'}"),
        ({"frames": float("inf")}, "frames inf"),
        ({"passed_through": [[2, 10**20, "no face"]]}, "passed_through 100000000000000000000"),
    ],
)
def test_a_report_with_absurd_numbers_is_named_with_the_number(tmp_path, make, broken, said):
    output = make(numbered_clip(tmp_path / "clip.mp4", 8, **LOSSLESS), 0.3)
    report = json.loads((tmp_path / "out.json").read_text())
    (tmp_path / "out.json").write_text(json.dumps(report | broken))
    found = measured(output, "psnr")
    note = f"its report out.json says {said}, which no clip has: the report is ignored"
    assert found.notes[0] == note
    assert (found.face, np.isfinite(found.figures["psnr_frame"])) == ("largest", True)


@pytest.mark.parametrize("fps", ["25", "source"])
def test_a_source_that_was_cut_since_costs_its_own_row(tmp_path, make, fps):
    source = numbered_clip(tmp_path / "clip.mp4", 20)
    output = make(source, 0.8, fps=fps)
    numbered_clip(source, 8)
    (result,) = evaluate(find_pairs([output]), ["psnr"], device="cpu").clips
    assert "clip.mp4 has fewer frames than when the output was made of it" in result.error


@pytest.mark.parametrize("number", [errno.EACCES, errno.ENAMETOOLONG])
def test_a_source_that_can_t_be_reached_is_as_one_that_is_gone(tmp_path, monkeypatch, number):
    numbered_clip(tmp_path / "out.mp4", 5)
    (tmp_path / "out.json").write_text(json.dumps({"source": "/home/ann/face.mp4"}))
    is_file = Path.is_file

    def asked(path):
        if path.name == "face.mp4":
            raise OSError(number, "no")
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", asked)
    (pair,) = find_pairs([tmp_path / "out.mp4"]).pairs
    assert pair.reference is None
    assert pair.run.is_source(tmp_path / "face.mp4")


def test_a_mouth_is_truth_only_where_both_clips_say_the_same(tmp_path, detector, monkeypatch):
    monkeypatch.setattr(sync_metrics.MouthNet, "load", lambda *_: Brightness())
    detector[0] = Couple()
    frames = [picture(number, *WIDE) for number in range(20)]

    def clip(name, seed=None):
        sound = None if seed is None else babble(0.8, 48000, seed)
        return write_clip(tmp_path / name, frames, size=WIDE, sound=sound, **LOSSLESS)

    output, same, other = clip("output.mp4", 1), clip("same.mp4", 1), clip("other.mp4", 2)
    names = ("lip_correlation", "lmd", "lmd_norm")
    found = measured(output, "lips", "lmd", reference=same)
    assert [found.figures[name] for name in names] == pytest.approx([1, 0, 0])
    for reference, why in (
        (other, "the reference says something else"),
        (clip("mute.mp4"), "the reference has no sound"),
        (None, "needs --reference"),
    ):
        found = measured(output, "lips", "lmd", reference=reference)
        assert all(found.missing[name].startswith(why) for name in names)
    found = measured(tmp_path / "mute.mp4", "lmd", reference=same)
    assert found.missing["lmd"].startswith("the output has no sound")


def test_a_source_that_is_shown_in_another_order_is_no_truth(tmp_path, make, monkeypatch):
    monkeypatch.setattr(sync_metrics.MouthNet, "load", lambda *_: Brightness())
    # The sound goes on when the pictures are over: then they are shown again from the start.
    source = numbered_clip(tmp_path / "clip.mp4", 10, sound=babble(0.8, 48000, 4), **LOSSLESS)
    output = make(source, 0.8, audio=source, sync_mode="loop")
    why = "the reference says something else"
    assert measured(output, "lips").missing["lip_correlation"] == why
    output = make(source, 0.8, audio=source, sync_mode="cut_off")
    assert "lip_correlation" in measured(output, "lips").figures


def test_frames_left_untouched_do_not_count_for_the_face(tmp_path, make):
    source = numbered_clip(tmp_path / "clip.mp4", 20, **LOSSLESS)
    found = measured(make(source, 0.4, lead_in=0.4), "psnr")
    at_face = np.array(found.curves["psnr_face"])
    assert np.flatnonzero(~np.isnan(at_face)).tolist() == list(range(10, 20))
    assert found.notes == [
        "10 of 20 frames were left untouched: they count in the whole frame's figures only"
    ]


def test_sync_on_the_published_geometry_is_the_chosen_face_s(tmp_path, make, detector, monkeypatch):
    detector[0] = Couple()
    frames = [picture(0, *WIDE)] * 8
    source = write_clip(
        tmp_path / "clip.mp4", frames, size=WIDE, sound=babble(0.4, 48000), **LOSSLESS
    )
    output = make(source, 0.32, face="left")
    boxes = np.array([[190, 60, 256, 150], [20, 60, 80, 150]], float)
    seen = []

    def confidence(_net, crops, _sound):
        seen.append(len(list(crops)))
        return sync.SyncScore(float(len(seen)), 1.0, 0)

    monkeypatch.setattr(sync_metrics.loading, "load_net", lambda *_, **__: None)
    monkeypatch.setattr(published_sync, "detect_boxes", lambda *_: boxes)
    monkeypatch.setattr(published_sync, "MIN_TRACK_FRAMES", 3)
    monkeypatch.setattr(published_sync, "MIN_FACE", 10)
    monkeypatch.setattr(published_sync, "sync_confidence", confidence)
    assert measured(output, "sync").figures["sync_conf"] == 1
    assert len(seen) == 1
    (tmp_path / "out.json").unlink()
    assert measured(output, "sync").figures["sync_conf"] == 2.5  # as published: of all faces
