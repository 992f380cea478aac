"""Files that appear whole, and folders that one process fills at a time."""

import os
import subprocess
import sys

import pytest

from latentsync.errors import OutputError
from latentsync.runtime.files import private_folder, replacing
from latentsync.runtime.locks import LOCK, locked_folder

HOLDING = """
import sys, time
from pathlib import Path
from latentsync.runtime.locks import locked_folder
with locked_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a folder."""
    command = [sys.executable, "-c", HOLDING, tmp_path / "out"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def half_written(file, error):
    with replacing(file) as temporary:
        temporary.write_text("half")
        raise error


def hold(folder):
    with locked_folder(folder):
        pass


def test_a_file_takes_its_place_whole(tmp_path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with replacing(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    with pytest.raises(KeyboardInterrupt):
        half_written(file, KeyboardInterrupt())
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "new")]


def test_a_file_that_can_t_be_written_is_one_line(tmp_path):
    with pytest.raises(OutputError, match=r"a\.txt can't be written \(No space left on device\)"):
        half_written(tmp_path / "a.txt", OSError(28, "No space left on device"))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="can't be written"), replacing(tmp_path / "no" / "a"):
        pass


def test_a_second_process_is_told_who_holds_a_folder(tmp_path, holder):
    with pytest.raises(OutputError, match=rf"out is being filled by process {holder.pid} on .*-c"):
        hold(tmp_path / "out")
    holder.kill()
    holder.wait()
    assert (tmp_path / "out" / LOCK).exists()
    with locked_folder(tmp_path / "out"):
        assert f"process {os.getpid()} " in (tmp_path / "out" / LOCK).read_text()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_process_holds_a_folder_once(tmp_path):
    with locked_folder(tmp_path), pytest.raises(OutputError, match=f"process {os.getpid()} on"):
        hold(tmp_path)
    with locked_folder(tmp_path), locked_folder(tmp_path / "inner"):
        pass


def test_a_folder_that_can_t_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="can't be written"):
        hold(tmp_path / "file" / "out")


def test_a_private_folder_is_removed_with_all_in_it(tmp_path):
    with private_folder(tmp_path / "work") as one, private_folder(tmp_path / "work") as other:
        assert one != other
        (one / "deep").mkdir()
        (one / "deep" / "file").touch()
        assert other.is_dir()
    assert list((tmp_path / "work").glob("*/")) == []
