"""Preparation in processes: killed at any moment and taken up, by any number of workers."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.clips import babble, write_clip
from tests.preparation_process import DEADLY
from tests.prepared import clip, left_out, lines, pictures, tree

pytestmark = pytest.mark.slow  # each process loads torch

ROOT = Path(__file__).parent.parent


def started(raw, output, *rest):
    command = [sys.executable, "-m", "tests.preparation_process", raw, output, *map(str, rest)]
    return subprocess.Popen(command, cwd=ROOT)


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in "abc":
        clip(folder / f"{name}.mp4", 40)
    (folder / "e.mp4").write_text("no clip")
    return folder


def test_killed_and_taken_up_it_is_the_same(raw, tmp_path):
    whole, output = tmp_path / "whole", tmp_path / "out"
    assert started(raw, whole, 1).wait() == 0
    for moves in (1, 4):  # after a clip, when its affines are due; before a record
        assert started(raw, output, 0, moves).wait() == -signal.SIGKILL
    assert tree(output) != tree(whole)
    assert started(raw, output, 2).wait() == 0
    assert tree(output) == tree(whole)
    assert len(lines(output, "index.jsonl")) == 3


def test_workers_end_with_their_parent(raw, tmp_path):
    output = tmp_path / "out"
    run = started(raw, output, 2)
    while not list(output.glob(".prepare/records/*.json")):
        assert run.poll() is None
        time.sleep(0.02)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    assert len(children) >= 2
    run.kill()
    run.wait()
    while any(_lives(int(child)) for child in children):
        time.sleep(0.05)
    assert started(raw, output, 1).wait() == 0
    assert started(raw, tmp_path / "whole", 0).wait() == 0
    assert tree(output) == tree(tmp_path / "whole")


def _lives(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_file_that_takes_its_process_along_costs_one_line(raw, tmp_path):
    size = (DEADLY, 112)
    write_clip(raw / "b.mp4", pictures(30, size), size=size, sound=babble(1.2, 48000))
    assert started(raw, tmp_path / "out", 1).wait() == 0
    assert len(lines(tmp_path / "out", "index.jsonl")) == 2
    assert left_out(tmp_path / "out")["b.mp4"] == ("decode", "failed")
    (line,) = (one for one in lines(tmp_path / "out", "rejected.jsonl") if one["file"] == "b.mp4")
    assert "ended with signal 9" in line["detail"]
    records = (tmp_path / "out/.prepare/records").iterdir()
    assert "b.mp4" not in {json.loads(path.read_text())["source"] for path in records}
