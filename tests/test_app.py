"""The web page without its Gradio: what is told of a run while it lasts, and what can be chosen."""

import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from latentsync.cli_app import app
from latentsync.errors import BackendUnavailable, Cancelled, InputError, MediaError, OptionError
from latentsync.options import SPEEDS, Options
from latentsync.page import run
from latentsync.page.form import choices, options_of
from latentsync.page.measure import Curves, drawn, measure
from latentsync.page.run import Desk, speak
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
    monkeypatch.setattr(run, "LOOK_EVERY", 0.005)
    monkeypatch.setattr(run, "measure", lambda *_: NOTHING)
    yield StubLipSync()
    assert not any(folder.iterdir())


@pytest.fixture
def desk(stub):
    desk = Desk(lambda: stub)
    yield desk
    desk.close()


def test_a_run_is_told_until_its_curves_are_there(desk, stub):
    told = []
    with closing(speak(desk, Path("slow.mp4"), VOICE, Options(seed=3))) as steps:
        for now in steps:
            told.append(now)
            if now.face is not None:
                stub.released.set()
            if now.result:
                assert now.result.path.read_bytes() == stub.output
    stages = [now.progress.stage for now in told]
    assert "generate" in stages
    assert stages[-1] == "measure"
    assert stages == sorted(stages, key=["wait", "load", "read", "generate", "measure"].index)
    assert told[-1].face.shape == (*FACE_SIZE, 3)
    assert told[-1].curves is NOTHING
    assert told[-1].result.seed == 3


def test_a_run_without_curves_says_why(desk, monkeypatch):
    def no_face(*_):
        raise InputError("no face")

    monkeypatch.setattr(run, "measure", no_face)
    *_, last = speak(desk, Path("ann.mp4"), VOICE, Options())
    assert last.result
    assert (last.curves, last.unmeasured) == (None, "no face")


def test_a_run_that_nobody_watches_is_given_up(desk, stub):
    steps = speak(desk, Path("slow.mp4"), VOICE, Options())
    next(now for now in steps if now.face is not None)
    steps.close()
    *_, last = speak(desk, Path("next.mp4"), VOICE, Options())  # when the first one has ended
    assert stub.ended == ["cancelled", "done"]
    assert last.result


def test_a_run_that_waits_can_be_given_up(desk, stub):
    first, second = (speak(desk, Path("slow.mp4"), VOICE, Options()) for _ in range(2))
    next(now for now in first if now.face is not None)
    assert next(second).progress.stage == "wait"
    second.close()
    stub.released.set()
    assert list(first)[-1].result
    assert stub.ended == ["done"]


def test_a_page_that_is_closed_ends_its_run(desk, stub):
    steps = speak(desk, Path("slow.mp4"), VOICE, Options())
    next(now for now in steps if now.face is not None)
    desk.close()
    with pytest.raises(Cancelled):
        list(steps)
    assert stub.ended == ["cancelled"]


@pytest.mark.parametrize(("name", "error"), [("broken.mp4", MediaError), ("bug.mp4", RuntimeError)])
def test_errors_come_through_and_the_desk_stays_open(desk, name, error):
    with pytest.raises(error):
        list(speak(desk, Path(name), VOICE, Options()))
    assert list(speak(desk, Path("ann.mp4"), VOICE, Options()))[-1].result


def test_the_model_is_loaded_once_by_the_first_run(stub):
    loaded = []
    desk = Desk(lambda: loaded.append(1) or stub)
    with closing(desk):
        assert not loaded
        for _ in range(2):
            assert list(speak(desk, Path("ann.mp4"), VOICE, Options()))[-1].result
    assert loaded == [1]


def test_choices_are_those_of_the_options():
    assert choices("speed") == list(SPEEDS)
    assert choices("fps") == ["25", "source"]
    for name in ("sync_mode", "on_missing", "silence"):
        assert all(Options(**{name: choice}) for choice in choices(name))


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
    (only,) = drawn(Curves({}, {"motion": wave, "loudness": wave})).axes
    assert "Change of the mouth" in only.get_title(loc="left")


def test_without_gradio_the_command_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "latentsync.page.blocks", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    command = typer.Typer()
    command.command()(app)
    done = CliRunner().invoke(command, ["--model", "demo"])
    assert isinstance(done.exception, BackendUnavailable)
    assert "needs gradio; install it by pip install 'latentsync[app]'" in str(done.exception)
