"""The web page without its Gradio: what is told of a run while it lasts, and what can be chosen."""

import asyncio
import re
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from latentsync.cli.app import app
from latentsync.errors import BackendUnavailable, Cancelled, InputError, MediaError, OptionError
from latentsync.options import RESTORERS, SPEEDS, FaceName, Options, declared
from latentsync.pipeline.lipsync import LipSync
from latentsync.runtime.extras import install_command
from latentsync.service.page import run
from latentsync.service.page.form import labelled, options_of
from latentsync.service.page.measure import DARK, LIGHT, Curves, drawn, measure
from latentsync.service.page.run import Desk, Given
from latentsync.types import Progress
from tests.clips import babble, write_sound
from tests.page_stub import FACE_SIZE, StubLipSync, result_of
from tests.stubs import numbered_clip, tiny_lipsync

VOICE = Path("ben.wav")
NOTHING = Curves({}, {})


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """A model; in the temporary folder nothing stays of its runs."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setattr(run, "LOOK_SECONDS", 0.005)
    monkeypatch.setattr(run, "measure", lambda *_: NOTHING)
    yield StubLipSync()
    assert not any(folder.iterdir())


@pytest.fixture
def desk(stub):
    desk = Desk(lambda: stub)
    yield desk
    desk.close()


def begun(desk, face, **options):
    given = Given(Path(face), VOICE)
    return desk.begin(f"{face} {len(desk._runs)}", given, Options(**options))


def watched(run, until=lambda _: False):
    """All that is shown of a run, to its end or until something is seen."""

    async def watching():
        told = []
        async for now in run.watched():
            told.append(now)
            if until(now):
                break
        return told

    return asyncio.run(watching())


def drawing(now):
    return now.face is not None


def test_a_run_is_told_until_its_curves_are_there(desk, stub):
    slow = begun(desk, "slow.mp4", seed=3)
    told = watched(slow, until=drawing)
    stub.released.set()
    told += watched(slow)
    stages = [now.progress.stage for now in told]
    assert "generate" in stages
    assert stages[-1] == "measure"
    assert stages == sorted(stages, key=["wait", "load", "read", "generate", "measure"].index)
    last = told[-1]
    assert last.face.shape == (*FACE_SIZE, 3)
    assert last.curves is NOTHING
    assert last.result.seed == 3
    assert last.result.path.read_bytes() == stub.output


def test_a_run_without_curves_says_why(desk, monkeypatch):
    def no_face(*_):
        raise InputError("no face")

    monkeypatch.setattr(run, "measure", no_face)
    last = watched(begun(desk, "ann.mp4"))[-1]
    assert last.result
    assert (last.curves, str(last.unmeasured)) == (None, "no face")


def test_a_run_that_nobody_watches_is_given_up(desk, stub, monkeypatch):
    slow = begun(desk, "slow.mp4")
    watched(slow, until=drawing)
    monkeypatch.setattr(run, "UNWATCHED_SECONDS", 0.05)
    following = begun(desk, "next.mp4")
    while not slow.now.ended:
        following.seen()
    assert watched(following)[-1].result
    assert stub.ended == ["cancelled", "done"]
    assert isinstance(slow.now.error, Cancelled)


def test_a_page_that_is_loaded_anew_finds_its_run(desk, stub):
    name = "0" * 32
    desk.begin(name, Given(Path("slow.mp4"), VOICE, (3, "exact")), Options())
    watched(desk.find(name), until=drawing)
    assert desk.find(name).given == Given(Path("slow.mp4"), VOICE, (3, "exact"))
    stub.released.set()
    assert watched(desk.find(name))[-1].result
    assert watched(desk.find(name))[-1].result  # and again, when it has ended
    assert desk.find("1" * 32) is None
    with pytest.raises(InputError, match="begun before"):
        desk.begin(name, Given(Path("ann.mp4"), VOICE), Options())


def test_an_output_is_deleted_when_it_was_kept_long_enough(desk, monkeypatch):
    first = begun(desk, "ann.mp4")
    output = watched(first)[-1].result.path
    monkeypatch.setattr(run, "KEEP_SECONDS", -1.0)
    begun(desk, "ben.mp4")
    assert not output.exists()
    assert desk.find("ann.mp4 0") is None


def test_outputs_of_a_page_that_was_killed_are_deleted_by_the_next(desk, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed = tmp_path / "latentsync-page-killed"
    killed.mkdir()
    (killed / "ann-speaking.mp4").touch()
    first = watched(begun(desk, "ann.mp4"))[-1].result.path
    assert not killed.exists()
    second = watched(begun(desk, "bob.mp4"))[-1].result.path
    assert first.exists()
    assert second.exists()


def test_what_is_cancelled_is_told_as_cancelled_at_once_and_for_good(desk, stub):
    slow = begun(desk, "slow.mp4")
    watched(slow, until=drawing)
    slow.cancel()
    (now,) = watched(slow)
    assert isinstance(now.error, Cancelled)
    while not slow.now.ended:
        assert isinstance(slow.seen().error, Cancelled)
    assert isinstance(watched(slow)[-1].error, Cancelled)
    assert stub.ended == ["cancelled"]


def test_a_run_that_waits_is_told_how_many_come_before_it(desk, stub):
    first, second, third = (begun(desk, "slow.mp4") for _ in range(3))
    watched(first, until=drawing)
    assert second.seen().progress == Progress("wait", 1, None)
    assert third.seen().progress == Progress("wait", 2, None)
    second.cancel()
    assert third.seen().progress == Progress("wait", 1, None)
    stub.released.set()
    assert watched(first)[-1].result
    assert watched(third)[-1].result
    assert stub.ended == ["done", "done"]


def test_not_everybody_can_wait(desk, stub, monkeypatch):
    monkeypatch.setattr(run, "MAX_WAITING", 1)
    first = begun(desk, "slow.mp4")
    waiting = begun(desk, "slow.mp4")
    with pytest.raises(InputError, match="1 runs wait here already"):
        begun(desk, "slow.mp4")
    waiting.cancel()
    assert begun(desk, "slow.mp4")
    stub.released.set()
    assert watched(first)[-1].result


def test_a_page_that_is_closed_ends_its_run(desk, stub):
    slow = begun(desk, "slow.mp4")
    watched(slow, until=drawing)
    desk.close()
    assert isinstance(slow.now.error, Cancelled)
    assert stub.ended == ["cancelled"]


@pytest.mark.parametrize(("name", "error"), [("broken.mp4", MediaError), ("bug.mp4", RuntimeError)])
def test_errors_come_through_and_the_desk_stays_open(desk, name, error):
    assert isinstance(watched(begun(desk, name))[-1].error, error)
    assert watched(begun(desk, "ann.mp4"))[-1].result


def test_the_model_is_loaded_once_by_the_first_run(stub):
    loaded = []
    desk = Desk(lambda: loaded.append(1) or stub)
    with closing(desk):
        assert not loaded
        for _ in range(2):
            assert watched(begun(desk, "ann.mp4"))[-1].result
    assert loaded == [1]


def test_choices_are_those_of_the_options():
    known = declared(Options)
    assert known["speed"].choices == tuple(SPEEDS)
    for name in ("speed", "fps", "sync_mode", "on_missing", "silence"):
        assert tuple(value for _, value in labelled(name)) == known[name].choices
    assert [value for _, value in labelled("face")] == list(get_args(FaceName))
    assert [value for _, value in labelled("superres")] == ["none", *RESTORERS]


def test_what_is_chosen_becomes_options():
    given = {"guidance_scale": 2, "seed": 5.0, "steps": 0, "crf": 20.0, "face": "120,80@2"}
    assert options_of(given, max_seconds=60.0) == Options(
        guidance_scale=2.0, seed=5, steps=None, crf=20, face="120,80@2", max_seconds=60.0
    )
    assert options_of({"steps": 4, "seed": None, "face": ""}, max_seconds=60.0) == Options(
        steps=4, max_seconds=60.0
    )


def test_a_face_is_no_way_to_look_for_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # names so short that the message holds them whole
    Path("ann.png").touch()
    said = []
    for name in ("ann.png", "ben.png"):
        with pytest.raises(OptionError, match=name) as error:
            options_of({"face": name}, max_seconds=60.0)
        said.append(str(error.value).replace(name, ""))
    assert said[0] == said[1]


def test_an_option_out_of_its_range_is_an_error():
    with pytest.raises(OptionError, match="guidance_scale is 11"):
        options_of({"guidance_scale": 11}, max_seconds=60.0)


@pytest.fixture
def spoken(tmp_path):
    voice = write_sound(tmp_path / "voice.wav", babble(0.64))
    lipsync = tiny_lipsync()
    lipsync.folder = tmp_path  # without weights
    output = tmp_path / "out.mp4"
    return lipsync, lipsync.run(numbered_clip(tmp_path / "a.mp4", 16), voice, output, steps=1)


def test_of_any_face_the_motion_of_the_mouth_is_measured(spoken):
    found = measure(*spoken, Options(), lambda: False)
    assert set(found.curves) == {"motion", "loudness"}
    assert [len(curve) for curve in found.curves.values()] == [16, 16]
    assert np.isnan(found.curves["motion"][0])
    assert found.curves["motion"][1:].min() > 0


def test_what_would_mislead_or_take_long_is_not_measured(spoken):
    lipsync, result = spoken
    with pytest.raises(InputError, match="largest face"):
        measure(lipsync, result, Options(face="left"), lambda: False)
    with pytest.raises(InputError, match="up to 120 s"):
        measure(lipsync, result_of(result.path, seconds=121.0), Options(), lambda: False)
    with pytest.raises(Cancelled):
        measure(lipsync, result, Options(), lambda: True)


def test_a_picture_says_what_it_shows():
    wave = np.sin(np.arange(50.0))
    figures = {
        "lip_loudness": 0.61,
        "lip_lag": 1.0,
        "sync_conf_local": 7.12,
        "sync_offset_local": -1.0,
    }
    both = Curves(figures, {"mouth": wave, "loudness": wave, "sync_conf_local": wave})
    upper, lower = drawn(both).axes
    assert "drawn faces: correlation 0.61, lag 1 frames" in upper.get_title(loc="left")
    assert [text.get_text() for text in upper.get_legend().get_texts()] == [
        "opening of the mouth", "loudness",
    ]  # fmt: skip
    assert "SyncNet: confidence 7.1, offset -1 frames" in lower.get_title(loc="left")
    for colours in (LIGHT, DARK):
        figure = drawn(both, colours)
        assert figure.patch.get_alpha() == 0  # the page's own ground shows through
        titles = {axis.title.get_color() for axis in figure.axes}
        assert titles | {axis._left_title.get_color() for axis in figure.axes} >= {colours["text"]}
    (only,) = drawn(Curves({}, {"motion": wave, "loudness": wave})).axes
    assert "Change of the mouth" in only.get_title(loc="left")


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "latentsync.service.page.blocks", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    # Others may use its port. The module has the command's name, so it is not an attribute.
    monkeypatch.setattr(sys.modules["latentsync.cli.app"], "check_port", lambda *_: None)
    command = typer.Typer()
    command.command()(app)
    done = CliRunner().invoke(command, ["--model", "demo"])
    assert isinstance(done.exception, BackendUnavailable)
    assert f"needs gradio; install it by {install_command('app')}" in str(done.exception)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--max-upload", "-1"], "max_upload_bytes is -1; it must be more than 0"),
        (["--max-seconds", "nan"], "max_seconds is nan; it must be more than 0"),
        (["--host", "no.such.invalid"], "can't listen on no.such.invalid, port"),
    ],
)
def test_what_can_not_be_is_refused_before_a_model_is_loaded(monkeypatch, given, said):
    monkeypatch.setattr(LipSync, "load", lambda *_, **__: pytest.fail("loaded"))
    command = typer.Typer()
    command.command()(app)
    with pytest.raises(OptionError, match=re.escape(said)):
        CliRunner().invoke(command, given, catch_exceptions=False)
