"""Errors in the words of whoever asked: each border has names of its own for options and inputs."""

import ast
import pickle
import re
from dataclasses import fields
from pathlib import Path

import pytest

import latentsync
from latentsync import errors
from latentsync.errors import (
    HOST,
    Asker,
    InputError,
    MediaError,
    OptionError,
    WeightsMissing,
    about,
    in_words_of,
    option_name,
    with_option,
)
from latentsync.media.limits import Limits
from latentsync.options import Options

PACKAGE = Path(latentsync.__file__).parent
STRANGER = Asker({"seed": "Start of the noise"}.get, {"/tmp/x/video": "video"})  # noqa: S108


def test_options_have_the_name_that_the_asker_knows():
    with pytest.raises(OptionError, match=r"^seed is -1; it must be a whole number") as raised:
        Options(seed=-1)
    assert raised.value.told(STRANGER).startswith("Start of the noise is -1; it must be")


def test_what_the_asker_cannot_do_is_left_out():
    with pytest.raises(MediaError, match=r"cut it, or raise max_seconds$") as raised:
        Limits(max_seconds=1).check_seconds("'/tmp/x/video'", 2)
    assert raised.value.told(STRANGER).startswith("video goes on for 2.00 s")
    assert raised.value.told(STRANGER).endswith("cut it")
    inner = with_option("face", f"; or set {option_name('face')}{with_option(HOST, ' (TMPDIR)')}")
    error = InputError(f"no face{inner}")
    assert str(error) == "no face; or set face (TMPDIR)"
    assert error.told(STRANGER) == "no face"
    assert error.told(Asker({"face": "Whose mouth"}.get)) == "no face; or set Whose mouth"


def test_inputs_have_the_name_that_the_asker_knows():
    paths = {"/tmp/x/video": "video", "/tmp/x/video2": "audio"}  # noqa: S108
    asker = Asker({}.get, paths)
    said = "'/tmp/x/video2' and '/tmp/x/video', by /tmp/x/video2"
    assert MediaError(said).told(asker) == "audio and video, by audio"


@pytest.mark.parametrize("path", ["", ".", "a", "/", "file"])
def test_an_input_with_a_short_name_changes_no_words(path):
    error = MediaError(f"{path!r} is a folder: give a file, not /a/folder.")
    assert error.told(Asker({}.get, {path: "video"})) == (
        "video is a folder: give a file, not /a/folder."
    )


def test_who_cannot_mend_the_machine_is_not_told_of_it():
    error = WeightsMissing("/weights/x.pt is missing; run `latentsync download v1.6`")
    assert "the log of this service" in error.told(STRANGER)
    assert error.told(Asker({}.get, at_host=True)) == str(error)


def test_an_error_keeps_its_marks_on_its_way_between_processes():
    error = pickle.loads(pickle.dumps(OptionError(f"{option_name('seed')} is 3")))  # noqa: S301
    assert (str(error), error.told(STRANGER)) == ("seed is 3", "Start of the noise is 3")


def test_errors_can_be_put_into_words_on_their_way():
    with (
        pytest.raises(MediaError, match=r"^video: Start of the noise$") as raised,
        about("video"),
        in_words_of(STRANGER),
    ):
        raise MediaError(option_name("seed"))
    assert raised.value.told(Asker({}.get)) == "video: Start of the noise"
    with pytest.raises(WeightsMissing, match=r"^x$"), about("video"):
        raise WeightsMissing("x")


ROOMS = ("audio", "faces", "media", "options", "pipeline")
BAD_INPUT = {
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, InputError)
}
OPTION_NAMES = "|".join(
    [one.name for one in fields(Options) if "_" in one.name] + ["detector", "TMPDIR", "ffmpeg -"]
)
OF_ONE_BORDER = re.compile(rf"--[a-z]|\b({OPTION_NAMES})\b")


def test_no_message_of_a_run_speaks_of_what_not_everybody_has():
    """Neither flags of the command line nor names of options, but by `option_name`."""
    seen = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.relative_to(PACKAGE).parts[0].removesuffix(".py") not in ROOMS:
            continue
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in BAD_INPUT:
                seen += 1
                for text in _texts(call):
                    assert not OF_ONE_BORDER.search(text), f"{path}:{call.lineno}: {text}"
    assert seen > 50


def _texts(node):
    """The constant parts of a message; what `option_name` and `with_option` hold is no part."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    for child in ast.iter_child_nodes(node):
        marked = isinstance(child, ast.Call) and getattr(child.func, "id", "") in (
            "option_name",
            "with_option",
            "advise_raising",
        )
        if not marked:
            yield from _texts(child)
