"""`latentsync evaluate`: what is compared with what, what comes out, what one bad clip costs."""

import csv
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from latentsync.cli.evaluate import evaluate as command
from latentsync.errors import Cancelled, MediaError, OptionError, OutputError
from latentsync.evaluation import clips, image_metrics, report, runner, sync, sync_metrics
from latentsync.evaluation.clips import EvaluatedClip, Pair, find_pairs
from latentsync.evaluation.frechet import Moments
from latentsync.evaluation.metric import Setup
from latentsync.evaluation.mouth_net import CROP
from latentsync.evaluation.report import as_html, write_report
from latentsync.evaluation.runner import evaluate, mean_of, names_of
from latentsync.evaluation.tables import as_csv, as_json, as_text
from latentsync.media import AudioReader
from latentsync.runtime.progress import RunContext
from tests.clips import babble, picture, write_clip, write_picture, write_sound
from tests.stubs import SIZE, Brightness, StubDetector, numbered_clip

EXAMPLES = Path(__file__).parent.parent / "examples"
FRAMES = 32
SOUND = babble(FRAMES / 25, 48000)
LOSSLESS = {"crf": "0", "preset": "ultrafast"}


@pytest.fixture(autouse=True)
def detector(monkeypatch):
    """A face at one place in every frame; `faces` says in which."""
    stub = StubDetector()
    monkeypatch.setattr(runner.faces, "create", lambda *_, **__: stub)
    return stub


@pytest.fixture
def bright(monkeypatch):
    monkeypatch.setattr(sync_metrics.MouthNet, "load", lambda *_: Brightness())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return numbered_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", 6)


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    return speaking_clip(tmp_path_factory.mktemp("spoken") / "spoken.mp4")


def pictures(count=6):
    return [picture(number, *SIZE) for number in range(count)]


def speaking_clip(path, sound=SOUND, late=0):
    """Pictures as bright as the sound is loud, `late` frames after it."""
    levels = sync_metrics.SAMPLES_PER_FRAME * 3  # at 48 kHz
    loud = np.sqrt((SOUND[: FRAMES * levels].reshape(FRAMES, levels) ** 2).mean(axis=1))
    shade = np.roll(40 + 30 * np.log10(np.maximum(loud, 1e-3) / 1e-3), late)
    frames = [np.full((SIZE[1], SIZE[0], 3), value, np.uint8) for value in shade.astype(int)]
    return write_clip(path, frames, size=SIZE, sound=sound, **LOSSLESS)


def measured(output, reference, *names, **options):
    return evaluate(find_pairs([output], reference), names, **options)


def strictly(text):
    """JSON as others read it: without NaN and Infinity."""
    return json.loads(text, parse_constant=lambda token: pytest.fail(token))


def test_equal_clips_are_equal(clip, tmp_path):
    found = measured(clip, clip, "psnr", "ssim", "flicker")
    write_report(found, tmp_path / "report")
    (only,) = found.clips
    assert only.figures["psnr_frame"] == only.figures["psnr_face"] == np.inf
    assert only.figures["ssim_frame"] == only.figures["ssim_face"] == 1
    assert only.figures["flicker"] == pytest.approx(1)
    assert (only.frames, only.notes, only.worst) == (6, [], ())
    document = strictly(as_json(found))
    assert document["metrics"]["psnr_face"]["mean"] == "inf"
    assert document["metrics"]["ssim_face"]["interval_95"] is None


def test_a_broken_frame_is_the_worst_and_only_of_its_region(tmp_path):
    frames = pictures()
    frames[4][-8:] = 255 - frames[4][-8:]  # below the face's crop
    reference = write_clip(tmp_path / "reference.mp4", pictures(), size=SIZE, **LOSSLESS)
    output = write_clip(tmp_path / "output.mp4", frames, size=SIZE, **LOSSLESS)
    (only,) = measured(output, reference, "psnr").clips
    assert np.flatnonzero(np.isfinite(only.curves["psnr_frame"])).tolist() == [4]
    assert np.isfinite(only.figures["psnr_frame"])
    frames[4][40:60, 52:80] = 0
    write_clip(output, frames, size=SIZE, **LOSSLESS)
    (only,) = measured(output, reference, "psnr").clips
    assert only.worst == (4,)
    assert only.figures["psnr_face"] < only.figures["psnr_frame"] < 40
    assert only.sheet[:2] == b"\xff\xd8"


def test_the_worst_frames_are_not_neighbours():
    curve = np.full(60, 40.0)
    curve[[3, 20, 21, 22, 50]] = 30, 21, 20, 22, np.inf
    found = runner._worst({"psnr_face": curve, "psnr_frame": curve[::-1]})
    assert found == (3, 21, 33, 45, 57)
    assert runner._worst({"lpips_face": curve[:30], "psnr_face": curve[:30]})[0] == 0


def test_what_can_not_lie_beside_each_other_is_said(clip, tmp_path):
    shorter = write_clip(tmp_path / "short.mp4", pictures(4), size=SIZE, **LOSSLESS)
    found = measured(clip, shorter, "psnr").clips[0]
    assert (found.frames, found.notes) == (
        4,
        ["the reference ends after 4 frames, the output goes on"],
    )
    found = measured(shorter, clip, "psnr").clips[0]
    assert found.notes == ["the output ends after 4 frames, the reference goes on"]
    small = [frame[::2, ::2] for frame in pictures()]
    small = write_clip(tmp_path / "small.mp4", small, size=(SIZE[0] // 2, SIZE[1] // 2))
    found = measured(small, clip, "psnr", "ssim").clips[0]
    assert found.notes == ["64x56 px was scaled to the reference's 128x112"]
    assert 15 < found.figures["psnr_frame"] < 40
    assert found.figures["ssim_face"] > 0.5


def test_a_photo_is_the_reference_of_every_frame(tmp_path):
    photo = write_picture(tmp_path / "photo.png", picture(3, *SIZE))
    output = write_clip(tmp_path / "out.mp4", [picture(3, *SIZE)] * 8, size=SIZE, crf="1")
    found = measured(output, photo, "psnr").clips[0]
    assert (found.frames, found.notes) == (8, [])
    assert len(found.curves["psnr_face"]) == 8
    assert found.figures["psnr_frame"] > 35


@pytest.mark.usefixtures("bright")
def test_a_late_mouth_is_found_by_its_sound(spoken, tmp_path):
    in_time = measured(spoken, spoken, "lips").clips[0].figures
    assert in_time["lip_correlation"] == pytest.approx(1)
    assert (in_time["lip_loudness"] > 0.9, in_time["lip_lag"]) == (True, 0)
    late = measured(speaking_clip(tmp_path / "late.mp4", late=3), spoken, "lips").clips[0]
    assert (late.figures["lip_lag"], late.figures["lip_correlation"] < 0.9) == (3, True)
    other = speaking_clip(tmp_path / "other.mp4", babble(FRAMES / 25, 48000, seed=5))
    found = measured(other, spoken, "lips").clips[0]
    assert found.missing["lip_correlation"] == "the reference says something else"
    assert found.figures["lip_loudness"] < 0.6


def test_frames_without_a_face_are_filled_for_the_mouth():
    curve = sync_metrics._interpolated(np.array([1, np.nan, 3, 4, np.nan]))
    assert curve.tolist() == [1, 2, 3, 4, 4]


def test_missing_weights_stop_no_other_metric(clip, tmp_path):
    found = measured(clip, clip, *runner.METRICS, weights=tmp_path / "nothing")
    assert "ssim_face" in found.means
    for name in ("lpips_face", "fid_frame", "fvd_face", "identity", "sync_conf", "lip_lag"):
        assert str(tmp_path / "nothing") in found.missing[name]
        assert f"\n{name} " in as_text(found)
    assert "landmarks" in found.missing["lmd"]  # the stub has none
    text = as_html(found)
    assert "<dt>sync_conf, sync_dist, sync_offset, sync_conf_local," in text
    assert text.count("syncnet_v2.model") == 1
    assert "<td>fid_face" not in text
    assert set(found.missing) | set(found.means) == {one.name for one in found.figures}


@pytest.mark.usefixtures("bright")
def test_without_a_reference(spoken):
    found = measured(spoken, None, "psnr", "fid", "lips")
    assert found.missing["psnr_frame"] == found.clips[0].missing["psnr_face"] == "needs --reference"
    assert found.means["lip_loudness"].mean > 0.9
    assert found.missing["lip_correlation"] == "needs --reference"
    assert not found.clips[0].sheet


@pytest.mark.usefixtures("bright")
def test_no_sound_and_no_face_cost_what_needs_them(detector, clip):
    assert "has no sound" in measured(clip, clip, "lips").missing["lip_loudness"]
    detector.faces = lambda _: False
    found = measured(clip, clip, "psnr", "flicker", "lips")
    assert found.means["psnr_frame"].mean == np.inf
    for name in ("psnr_face", "flicker", "lip_lag"):
        assert "no face in the 6 frames" in found.missing[name]


def test_frames_without_a_face_are_left_out_of_its_region(detector, tmp_path):
    clip = numbered_clip(tmp_path / "clip.mp4", FRAMES)
    detector.faces = lambda number: number >= 16  # too long a gap to be filled
    curves = measured(clip, clip, "psnr").clips[0].curves
    assert np.isnan(curves["psnr_face"]).tolist() == [True] * 16 + [False] * 16
    assert not np.isnan(curves["psnr_frame"]).any()


def test_a_clip_that_can_not_be_read_costs_its_own_row(clip, tmp_path):
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    for name in ("a.mp4", "c.mp4"):
        (outputs / name).write_bytes(clip.read_bytes())
    (outputs / "b.mp4").write_bytes(clip.read_bytes()[:900])
    found = measured(outputs, clip, "psnr", "ssim")
    assert [bool(one.error) for one in found.clips] == [False, True, False]
    assert found.means["ssim_face"].count == 2
    assert str(outputs / "b.mp4") in as_text(found)
    rows = list(csv.DictReader(as_csv(found).splitlines()))
    assert [row["clip"] for row in rows] == ["a.mp4", "b.mp4", "c.mp4"]
    assert [float(row["psnr_face"] or "nan") for row in rows] == pytest.approx(
        [np.inf, np.nan, np.inf], nan_ok=True
    )
    assert rows[1]["error"] == found.clips[1].error


class Means(image_metrics._Frechet):
    """In Inception's place: mean colours."""

    name, width, batch = "fid", 3, 4
    figures = image_metrics.Fid.figures

    def load(self, setup):  # noqa: ARG002
        return lambda stack: stack.mean(axis=(1, 2), dtype=np.float32)


def test_a_figure_of_the_whole_set(monkeypatch, clip, tmp_path):
    monkeypatch.setitem(runner.METRICS, "fid", Means)
    other = write_clip(tmp_path / "other.mp4", [0 * one for one in pictures()], size=SIZE)
    pairs = clips.PairedFiles((Pair("one", clip, clip), Pair("two", clip, clip)))
    same = evaluate(pairs, ["fid"]).means["fid_frame"]
    assert (same.mean, same.count, same.low) == (pytest.approx(0, abs=1e-6), 12, None)
    pairs = clips.PairedFiles((Pair("one", clip, clip), Pair("two", other, clip)))
    found = evaluate(pairs, ["fid"])
    assert found.means["fid_face"].mean > 100
    assert "12 samples" in as_text(found)
    assert strictly(as_json(found))["metrics"]["fid_face"]["samples"] == 12
    assert found.clips[0].missing == {}


@pytest.mark.parametrize("kind", [image_metrics.Fvd, image_metrics.FvdVideoMae])
def test_windows_of_fvd_are_unbroken(kind):
    metric = object.__new__(kind)
    metric.moments = {region: [Moments.none(1)] * 2 for region in image_metrics.REGIONS}
    seen = []
    metric.features = lambda stack: seen.append(stack[0, :, 0, 0, 0].tolist()) or np.zeros((1, 1))
    metric.begin(None)
    for index in [*range(20), *range(22, 40)]:
        image = np.full((1, 1, 3), index)
        frames = SimpleNamespace(index=index, whole=image, whole_reference=image, affine=None)
        metric.update(frames)
    assert seen[::2] == [list(range(16)), list(range(22, 38))]
    metric.begin(None)
    assert metric.end() == {}


def opened(path, detector):
    clip = EvaluatedClip.open(Pair(path.name, path, None), detector, RunContext())
    for _ in clip.frame_pairs():
        pass
    return clip


def test_sync_looks_at_the_stretch_with_a_face_and_its_sound(monkeypatch, detector, tmp_path):
    path = numbered_clip(tmp_path / "clip.mp4", FRAMES, sound=SOUND)
    detector.faces = lambda number: number >= 16  # too long a gap to be filled
    seen = {}

    def distances(_, crops, sound):
        seen.update(crops=np.stack(list(crops)), sound=sound)
        return torch.rand(31, 11, generator=torch.Generator().manual_seed(1))

    monkeypatch.setattr(sync_metrics.loading, "load_net", lambda *_, **__: None)
    monkeypatch.setattr(sync, "sync_distances", distances)
    metric = sync_metrics.SyncLocal(Setup(tmp_path, "cpu", detector))
    metric.begin(opened(path, detector))
    assert set(metric.end()) == {"sync_conf_local", "sync_dist_local", "sync_offset_local"}
    assert seen["crops"].shape == (16, 224, 224, 3)
    wave = np.concatenate(list(AudioReader(path).chunks()))
    start = 16 * sync_metrics.SAMPLES_PER_FRAME
    np.testing.assert_array_equal(seen["sound"], wave[start : start + len(seen["sound"])])
    assert len(seen["sound"]) == pytest.approx(16 * sync_metrics.SAMPLES_PER_FRAME, abs=1024)
    curve = np.array(metric.curves["sync_conf_local"])
    assert np.isnan(curve[:16]).all()
    assert np.isfinite(curve[16:]).all()
    assert len(metric.curves["sync_offset_local"]) == len(curve)
    assert len(curve) == 27


def test_sync_on_the_published_geometry_is_the_mean_of_its_tracks(monkeypatch, detector, tmp_path):
    clip = opened(numbered_clip(tmp_path / "clip.mp4", 6, sound=SOUND), detector)
    given = []

    def scores(*about, wanted, check):
        check()
        assert wanted(0, np.zeros((3, 4)))
        given.extend(about)
        return sync.SyncScore(8.0, 6.0, 1), sync.SyncScore(4.0, 9.0, -4)

    monkeypatch.setattr(sync_metrics.loading, "load_net", lambda _, path, **__: path)
    monkeypatch.setattr(sync_metrics.published_sync, "sync_conf", scores)
    metric = sync_metrics.SyncConfidence(Setup(tmp_path, "cpu", detector))
    metric.begin(clip)
    assert metric.end() == {"sync_conf": 6, "sync_dist": 7.5, "sync_offset": -1.5}
    net, boxes, shown, sound = given
    assert (net.name, boxes.name) == ("syncnet_v2.model", "sfd_face.pth")
    assert shown is clip.output
    assert len(sound) == pytest.approx(len(SOUND) / 3, abs=1024)
    clip.context = RunContext(cancelled=lambda: True)
    for act in (
        metric.end,
        lambda: next(clip.frame_pairs()),
        lambda: next(clip.frame_pairs_at([1])),
    ):
        with pytest.raises(Cancelled):
            act()


def test_stable_syncnet_is_asked_about_two_stretches(monkeypatch, detector, tmp_path):
    path = numbered_clip(tmp_path / "clip.mp4", 75, sound=babble(3, 48000))
    seen = []

    def accuracy(_, windows):
        seen.extend(windows)
        return 0.75

    monkeypatch.setattr(sync_metrics.loading, "load_syncnet", lambda *_, **__: None)
    monkeypatch.setattr(sync_metrics, "syncnet_accuracy", accuracy)
    metric = sync_metrics.SyncNetAccuracy(Setup(tmp_path, "cpu", detector))
    metric.begin(opened(path, detector))
    assert metric.end() == {"stable_accuracy": 0.75}
    assert len(seen) == 2  # of 75 frames, 11 are left over
    for pictures_, heard in seen:
        assert pictures_.shape == (1, 2, 3, 16, CROP, CROP)
        assert heard.shape == (1, 2, 1, 80, 52)
        assert -1 <= pictures_.min() < pictures_.max() <= 1
    assert not torch.equal(seen[0][1], seen[1][1])


def test_the_interval_is_student_s():
    found = mean_of([1.0, 2.0, 3.0])
    assert (found.mean, found.count) == (2, 3)
    assert found.high - 2 == 2 - found.low == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert mean_of([5.0]) == runner.Mean(5.0, None, None, 1)
    assert mean_of([5.0, np.inf]).low is None
    assert mean_of([]) is None


def test_pairs_go_by_their_relative_names(tmp_path):
    outputs, originals = tmp_path / "outputs", tmp_path / "originals"
    for path in (
        *(outputs / name for name in ("a.mp4", "deep/a.mp4", "b.mkv", "notes.txt")),
        *(originals / name for name in ("a.mov", "deep/a.mp4", "c.mp4")),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    found = find_pairs([outputs], originals)
    assert {one.name: one.reference for one in found.pairs} == {
        "a.mp4": originals / "a.mov",
        "deep/a.mp4": originals / "deep/a.mp4",
        "b.mkv": None,
    }
    assert found.unmatched_outputs == ("b.mkv",)
    assert found.unmatched_references == ("c.mp4",)
    several = find_pairs([outputs / "a.mp4", outputs / "b.mkv"], originals / "c.mp4")
    assert [one.reference for one in several.pairs] == [originals / "c.mp4"] * 2
    (tmp_path / "empty").mkdir()
    for wrong in (tmp_path / "empty", tmp_path / "nowhere"):
        with pytest.raises(OptionError, match=wrong.name):
            find_pairs([wrong])
    with pytest.raises(OptionError, match="nowhere"):
        find_pairs([outputs], tmp_path / "nowhere")


def test_a_runs_own_report_names_the_reference(tmp_path):
    output, source = tmp_path / "out.mp4", tmp_path / "face.mp4"
    output.touch(), source.touch()
    assert find_pairs([output]).pairs[0].reference is None
    for text in ("{", "[]", '{"source": 3}', '{"source": "gone.mp4"}'):
        output.with_suffix(".json").write_text(text)
        assert find_pairs([output]).pairs[0].reference is None
    for named in ("face.mp4", str(source)):
        output.with_suffix(".json").write_text(json.dumps({"source": named}))
        assert find_pairs([output]).pairs[0].reference == source


def test_metrics_by_name():
    assert names_of(["ssim,psnr", " LIPS"]) == ("psnr", "ssim", "lips")
    assert names_of(["sync"]) == ("sync", "sync_local")
    assert names_of(["sync_local"]) == ("sync_local",)
    for wrong in (["psnr,sharpness"], [""], [","]):
        with pytest.raises(OptionError, match="psnr, ssim, lpips, fid, fvd"):
            names_of(wrong)


@pytest.mark.usefixtures("bright")
def test_the_page_escapes_names_and_needs_no_other_file(spoken, tmp_path):
    name = "<script>alert(1)<&.mp4"
    found = measured(speaking_clip(tmp_path / name, late=2), spoken, "psnr", "lips")
    text = as_html(found)
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)&lt;&amp;.mp4" in text
    assert text.count("<svg") == 2  # PSNR, and mouth and loudness
    assert "data:image/jpeg;base64,/9j/" in text
    assert "http" not in text
    assert "src=" not in text.replace('src="data:', "")


def test_a_plot_has_a_line_for_each_unbroken_run():
    plot = report._plot("t", [("one", np.array([1, 2, np.nan, np.inf, 4, 5.0]))])
    assert [len(run.split()) for run in plot.lines[0].runs] == [2, 2]
    assert (plot.low, plot.high, plot.lines[0].runs[0].split()[0]) == ("1", "5", "52.0,144.0")
    x, y = report._thinned(np.arange(3000.0))
    assert (len(x), x[1], y[0]) == (600, 5, 2)
    assert report._plot("t", [("none", np.array([np.nan]))]) is None
    assert report._plot("t", [("flat", np.array([2.0, 2.0]))]).lines


def test_the_report_is_whole_or_not_there(monkeypatch, clip, tmp_path):
    found = measured(clip, clip, "psnr")
    folder = tmp_path / "new" / "report"
    assert [path.name for path in write_report(found, folder)] == [
        "metrics.json", "metrics.csv", "report.html"
    ]  # fmt: skip
    before = (folder / "report.html").read_bytes()

    def failing(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OutputError, match="No space"):
        write_report(found, folder)
    assert (folder / "report.html").read_bytes() == before
    assert len(list(folder.iterdir())) == 3
    with pytest.raises(OutputError):
        write_report(found, clip)


@pytest.fixture
def run():
    app = typer.Typer()
    app.command()(command)

    def go(*words):
        result = CliRunner().invoke(app, [str(word) for word in words])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.stdout

    return go


def test_the_command(run, clip, tmp_path):
    said = run(clip, "--reference", clip, "--metrics", "psnr,flicker", "-o", tmp_path / "report")
    assert "psnr_face" in said
    assert said.endswith(f"{tmp_path / 'report' / 'report.html'}\n")
    text = (tmp_path / "report" / "metrics.json").read_text()
    assert run(clip, "-r", clip, "--metrics", "psnr,flicker", "--json") == text
    assert strictly(text)["metrics"]["psnr_face"]["mean"] == "inf"


def test_as_the_fork_spells_it(monkeypatch, run, clip):
    asked, words = [], ("--video_path", clip, "--reference", clip)
    found = measured(clip, clip, "psnr")
    monkeypatch.setattr(runner, "evaluate", lambda *about, **_: asked.append(about) or found)
    run(clip, "-r", clip, "--metrics", "psnr,flicker,identity")
    run(*words, "--metric", "psnr", "flicker", "identity")
    run("--metric", "psnr", "flicker", "identity", *words)
    assert asked == 3 * [(find_pairs([clip], clip), ("psnr", "identity", "flicker"))]


def test_one_table_fast(run, clip):
    said = run("--fast", clip, "-r", clip)
    assert [line.split()[0] for line in said.splitlines()] == [
        *("metric", "psnr_frame", "psnr_face", "ssim_frame", "ssim_face"),
        *("sync_conf_local", "sync_dist_local", "sync_offset_local"),
        *("lip_correlation", "lip_loudness", "lip_lag", "leak", "closure"),
    ]
    with pytest.raises(OptionError, match="2 clips"):
        run("--fast", clip, clip)


def test_what_the_command_refuses(run, clip, tmp_path):
    with pytest.raises(OptionError, match="OUTPUTS"):
        run("--metrics", "psnr")
    with pytest.raises(OptionError, match=r"'best'.*psnr, ssim"):
        run(clip, "--metrics", "best")
    sound = write_sound(tmp_path / "voice.mp4", babble(0.2))
    with pytest.raises(MediaError, match="none of 1 clips"):
        run(sound, "--metrics", "lips")


@pytest.mark.slow
def test_a_drawn_face_with_nothing_downloaded(monkeypatch, run):
    monkeypatch.undo()  # the real detector and mouth net
    face = EXAMPLES / "face.mp4"
    document = strictly(run(face, "-r", face, "--metrics", "psnr,lips,lmd", "--json"))
    means = {name: one["mean"] for name, one in document["metrics"].items()}
    assert (means["psnr_face"], means["lmd"], means["lip_correlation"]) == ("inf", 0, 1)
    assert means["lip_loudness"] > 0.4
    assert abs(means["lip_lag"]) <= 1
