"""`latentsync prepare`: every option reaches the run, and what came of it is one line."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from latentsync.cli.prepare import prepare
from latentsync.errors import OptionError
from latentsync.training import preparation
from latentsync.training.preparation import FileCounts, PreparationSettings

app = typer.Typer()
app.command()(prepare)


@pytest.fixture
def asked(monkeypatch):
    calls = []

    def run(raw, output, settings, *, workers, progress):
        tally = FileCounts(3, 3, 2, 90.0, {"face: no face": 1})
        progress(tally)
        calls.append((raw, output, settings, workers))
        return tally

    monkeypatch.setattr(preparation, "prepare", run)
    return calls


def test_defaults(asked):
    result = CliRunner().invoke(app, ["raw", "-o", "out"])
    assert asked == [(Path("raw"), Path("out"), PreparationSettings(), 1)]
    assert result.output == "2 clips, 1.5 min; face: no face 1, of 3 files, in out\n"


def test_options(asked):
    words = (
        "raw -o out --workers 3 --size 512 --form aligned --min-seconds 4 --max-seconds 8 "
        "--detector builtin --min-face 90 --sync none --min-confidence 2 --max-offset 9 "
        "--quality laplacian --min-quality 50 --min-sharpness 3 --weights w --device cpu"
    )
    assert CliRunner().invoke(app, words.split()).exit_code == 0
    settings = PreparationSettings(
        size=512, form="aligned", min_seconds=4, max_seconds=8, detector="builtin", min_face=90,
        sync="none", min_confidence=2, max_offset=9, quality="laplacian", min_quality=50,
        min_sharpness=3, weights=Path("w"), device="cpu",
    )  # fmt: skip
    assert asked == [(Path("raw"), Path("out"), settings, 3)]


def test_bad_options(asked):
    result = CliRunner().invoke(app, ["raw", "-o", "out", "--size", "300"])
    assert isinstance(result.exception, OptionError)
    assert CliRunner().invoke(app, ["raw", "-o", "out", "--workers", "0"]).exit_code == 2
    assert asked == []
