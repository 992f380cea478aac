"""Runs as processes: what they write and where, and what becomes of it when they are killed."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clips import babble, write_sound

pytestmark = pytest.mark.slow  # each process loads torch

ROOT = Path(__file__).parent.parent
FACE = ROOT / "examples" / "face.mp4"

# Killed from within, at a moment that can be told: once so many groups of frames are drawn.
KILLED = """
import os, signal, sys
from latentsync.diffusion import sampling
from latentsync.cli import main
left, decode = int(sys.argv.pop(1)), sampling.decode
def dying(*args, **options):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return decode(*args, **options)
sampling.decode = dying
main()
"""

# Every file that Python opens for writing, makes, moves or removes.
WATCHED = """
import os, sys
touched = set()
def watch(event, args):
    if event == "open" and isinstance(args[0], (str, bytes)):
        if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            touched.add(os.path.abspath(os.fsdecode(args[0])))
    elif event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.symlink", "os.link"):
        touched.update(os.path.abspath(os.fsdecode(a)) for a in args if isinstance(a, (str, bytes)))
sys.addaudithook(watch)
from latentsync.cli import main
try:
    main()
finally:
    sys.stderr.write("\\n".join(sorted(touched)))
"""


@pytest.fixture
def voice(tmp_path):
    folder = tmp_path / "voice"
    folder.mkdir()
    return write_sound(folder / "voice.wav", babble(1.6))  # 3 groups of frames


@pytest.fixture
def homes(tmp_path):
    """Variables of a process, all of whose usual places are folders of its own, and empty."""
    places = {name: tmp_path / "homes" / name for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for place in places.values():
        place.mkdir(parents=True)
    usual = {name: value for name, value in os.environ.items() if not name.startswith("TORCH")}
    return usual | {name: str(place) for name, place in places.items()}


def python(code, *arguments, cwd, env):
    return subprocess.run(
        [sys.executable, "-B", "-c", code, *map(str, arguments)],
        cwd=cwd,
        env=env | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def files(folder):
    """What is in a folder: each file by its name, and what is in it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def generate(code, *first, voice, out, env):
    options = ("--model", "demo", "--seed", 7, "--steps", 1, "--batch", 1, "--report")
    command = ("generate", FACE, voice, "-o", out, *options)
    return python(code, *first, *command, cwd=out.parent, env=env)


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "output"
    folder.mkdir()
    return folder / "out.mp4"


def test_a_killed_run_leaves_the_old_output_and_the_next_is_as_any(tmp_path, voice, homes, out):
    never = 1000
    assert generate(KILLED, never, voice=voice, out=out, env=homes).returncode == 0
    whole = out.read_bytes()
    out.unlink()
    out.with_suffix(".json").unlink()

    for before in (set(), {"out.mp4"}):
        for name in before:
            out.with_name(name).write_bytes(b"old")
        there = set(files(out.parent))
        done = generate(KILLED, 2, voice=voice, out=out, env=homes)
        assert done.returncode == -signal.SIGKILL
        assert out.read_bytes() == b"old" if before else not out.exists()
        assert set(files(out.parent)) == there
        assert files(tmp_path / "homes") == {}

    done = generate(KILLED, never, voice=voice, out=out, env=homes)
    assert (done.returncode, done.stderr) == (0, "")
    assert out.read_bytes() == whole


def test_a_run_writes_nothing_but_what_it_was_asked_for(tmp_path, voice, homes, out):
    given = files(voice.parent)
    done = generate(WATCHED, voice=voice, out=out, env=homes)
    assert done.returncode == 0, done.stderr
    assert set(files(out.parent)) == {"out.mp4", "out.json"}
    assert files(tmp_path / "homes") == {}  # torch makes a folder in TMPDIR, and leaves it empty
    assert files(voice.parent) == given
    touched = {Path(name) for name in done.stderr.splitlines()}
    temporary = Path(homes["TMPDIR"])
    # A file without a name is opened by its folder's name.
    nameless = {path for path in touched if path.is_relative_to("/proc/self/fd")}
    written = touched - nameless - {out.parent, temporary, Path(os.devnull)}
    assert {path.parent for path in written} == {out.parent, temporary}
