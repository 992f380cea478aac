"""The zoo of clips comes out as its table says, and its runner sees when it doesn't."""

import re
from dataclasses import replace

import pytest

from tests.footage.__main__ import trials
from tests.footage.trial import differences, model_loaded_once, run, table
from tests.footage.zoo import MODULES, Zoo

CASES = {case.name: case for case in table()}
CHANGED = {
    "exit": 2,
    "frames": 2,
    "seconds": 0.08,
    "size": "256x254",
    "sound": 0.2,
    "stream": "hevc",
    "unlike": -1.0,
    "message": "face in 0 of 1",
}


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("footage") / "zoo"
    folder.mkdir()
    with model_loaded_once():
        yield Zoo(folder)


@pytest.fixture(scope="module")
def good(zoo):
    """A case with an output, and what came of it."""
    return CASES["one_sample"], run(CASES["one_sample"], zoo)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[] if case.fast else pytest.mark.slow, id=name)
        for name, case in CASES.items()
    ],
)
def test_a_clip_of_the_zoo(zoo, case):
    got = run(case, zoo)
    assert not differences(case, got), got.command


def test_the_table_is_whole():
    assert len(CASES) == len(table()) >= 40
    asked = {
        name.partition(":")[0]
        for case in CASES.values()
        for name in (
            *(case.video, case.voice, case.output or "out", case.looks),
            *in_braces(case.options),
        )
    }
    for module in MODULES:
        makers = {
            name
            for name, value in vars(module).items()
            if getattr(value, "__module__", "") == module.__name__
        }
        assert makers <= asked, "a maker that no case asks for"


def in_braces(options):
    return re.findall(r"\{(.+?)\}", options)


@pytest.mark.parametrize("name", CHANGED)
def test_a_wrong_expectation_is_seen(good, name):
    case, got = good
    assert not differences(case, got)
    wrong = differences(replace(case, **{name: CHANGED[name]}), got)
    assert len(wrong) == 1
    assert name in wrong[0] or name in ("stream", "message")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"changed": ("out/one_sample.mp4", ".hidden.mp4")}, "not the output alone"),
        ({"changed": ()}, "no file"),
        ({"complaints": "Invalid NAL unit"}, "does not decode cleanly"),
        ({"stderr": "Traceback (most recent call last):"}, "fell over"),
        ({"exit": 1, "stderr": "latentsync: error: one\ntwo\n"}, "more than the one line"),
        ({"exit": 1, "changed": ("out/one_sample.mp4",)}, "left out/one_sample.mp4 behind"),
    ],
)
def test_a_wrong_outcome_is_seen(good, change, said):
    case, got = good
    assert any(said in line for line in differences(case, replace(got, **change)))


def test_the_runner_prints_a_line_each_and_says_fail(tmp_path, capsys):
    right = CASES["missing"]
    wrong = replace(right, name="wrong", message="is a fine clip")
    unmade = replace(right, name="unmade", video="no_such_maker")
    assert trials([right, wrong, unmade], tmp_path) == 1
    lines = capsys.readouterr().out.splitlines()
    verdicts = {line.split()[0]: line for line in lines if re.search("PASS|FAIL", line)}
    assert "PASS" in verdicts["missing"]
    assert "exit 2, is a fine clip" in verdicts["wrong"]
    assert "FAIL" in verdicts["wrong"]
    assert "FAIL" in verdicts["unmade"]
    assert any("did not say 'is a fine clip'" in line for line in lines)
    assert "1 of 3 passed" in lines[-2]
    assert lines[-1] == "failed: wrong, unmade"


def test_the_runner_is_content_when_all_is_well(tmp_path, capsys):
    assert trials([CASES["missing"]], tmp_path) == 0
    assert "1 of 1 passed" in capsys.readouterr().out
