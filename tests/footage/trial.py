"""One line of the table: the command is run in this process, and FFmpeg's binary measures."""

import functools
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import imageio_ffmpeg
import numpy as np

from latentsync import cli
from latentsync.pipeline.lipsync import LipSync
from tests.clips import ffmpeg
from tests.footage.zoo import Zoo

TABLE = Path(__file__).with_name("table.jsonl")
SAME_SECONDS = 0.002  # of pictures; sound ends within a packet of AAC or MP3
SAME_SOUND = 0.07  # s
ABOVE_THE_MOUTH = "scale=32:32:flags=area,crop=32:12:0:0,format=rgb24"
FRAMES = "-map 0:v -map 0:a? -fps_mode passthrough -enc_time_base demux -f framecrc -"
BASICS = "generate --model demo --device cpu --steps 1 --seed 1 --preset ultrafast"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A line of the table."""

    name: str
    video: str = "plain"
    voice: str = "speech"  # "" is none: the clip's own
    options: str = ""
    output: str = ""  # "" is a new file
    exit: int = 0
    frames: int = 0  # of the output; of none where `exit` is not 0
    seconds: float = 0.0
    size: str = ""
    sound: float = 0.0  # s, where it ends
    stream: str = ""  # part of what FFmpeg says of its pictures
    looks: str = "photo:png"  # as its first frame must, above the mouth; "" as the clip's own does,
    unlike: float = 4.0  # but for so many grey levels
    message: str = ""  # part of what is printed
    why: str = ""
    fast: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of a case."""

    command: str  # to be run in the zoo's folder
    took: float  # s
    exit: int
    stdout: str
    stderr: str
    changed: tuple[str, ...]  # files that are new, gone or others than before
    frames: int = 0
    seconds: float = 0.0
    size: str = ""
    sound: float = 0.0
    stream: str = ""
    unlike: float = 0.0  # grey levels, from what it must look like
    complaints: str = ""  # of the decoder that reads the output


def table() -> list[Case]:
    """All cases, in order."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    return [Case(**json.loads(line)) for line in lines if line]


def run(case: Case, zoo: Zoo) -> Outcome:
    """Make what the case asks for, run the command, and measure its output."""
    video, output = zoo(case.video), zoo(case.output or f"out:{case.name}")
    voice = [zoo(case.voice)] if case.voice else []
    named = re.sub(r"\{(.+?)\}", lambda found: str(zoo(found[1])), case.options)
    options = [*BASICS.split(), *shlex.split(named), "--output", str(output)]
    command = ["latentsync", *options, "--", str(video), *map(str, voice)]
    before = _contents(zoo.folder)
    started = time.perf_counter()
    with chdir(zoo.folder), _captured(zoo.folder.parent) as said:
        code = _exit_code(command)
    took = time.perf_counter() - started
    after = _contents(zoo.folder)
    changed = sorted(path for path, _ in before ^ after)
    measured = {}
    if code == 0:
        like = zoo.folder / (zoo(case.looks) if case.looks else video)
        measured = _measure(zoo.folder / output) | {"unlike": _apart(like, zoo.folder / output)}
    return Outcome(
        shlex.join(command), took, code, *said, tuple(dict.fromkeys(changed)), **measured
    )


def differences(case: Case, got: Outcome) -> list[str]:
    """What is not as the table says; nothing when all is well."""
    said = got.stdout + got.stderr
    wrong = []
    if got.exit != case.exit:
        wrong.append(f"exit {got.exit}, not {case.exit}: {said.strip()}")
    if case.message not in said:
        wrong.append(f"did not say {case.message!r}: {said.strip()}")
    if "Traceback" in said or "this is a bug" in said:
        wrong.append(f"fell over: {said.strip()}")
    if got.exit != 0:
        if not re.fullmatch("latentsync: error: .*\n", said):
            wrong.append(f"said more than the one line of an error: {said.strip()}")
        return wrong + [f"left {path} behind" for path in got.changed]
    if len(got.changed) != 1:
        wrong.append(f"changed {', '.join(got.changed) or 'no file'}, not the output alone")
    if got.complaints:
        wrong.append(f"the output does not decode cleanly: {got.complaints}")
    wrong += [
        f"{name} {getattr(got, name)}, not {getattr(case, name)}"
        for name in ("frames", "size")
        if getattr(got, name) != getattr(case, name)
    ]
    for name, slack in (("seconds", SAME_SECONDS), ("sound", SAME_SOUND)):
        if abs(getattr(got, name) - getattr(case, name)) > slack:
            wrong.append(f"{name} {getattr(got, name):.3f}, not {getattr(case, name):.3f}")
    if got.unlike > case.unlike:
        wrong.append(f"looks {got.unlike:.1f} grey levels unlike {case.looks or 'the clip'}")
    if case.stream not in got.stream:
        wrong.append(f"FFmpeg does not say {case.stream!r} of it: {got.stream}")
    return wrong


def brief(told: Case | Outcome) -> str:
    """What is expected, or what came, in a few words."""
    if told.exit:
        message = told.message if isinstance(told, Case) else told.stdout + told.stderr
        return f"exit {told.exit}, {message.removeprefix('latentsync: error: ').strip()}"
    return f"{told.frames} frames, {told.seconds:.3f} s, {told.size}, sound to {told.sound:.2f} s"


@contextmanager
def model_loaded_once() -> Iterator[None]:
    """The command line loads a model for each run; here the same choices give the same one."""
    with patch.object(LipSync, "load", functools.cache(LipSync.load)):
        yield


def _exit_code(command: list[str]) -> int:
    try:
        with patch.object(sys, "argv", command):
            cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("the command line always exits")


@contextmanager
def _captured(folder: Path) -> Iterator[list[str]]:
    """All that is written to stdout and stderr, by C libraries too; temporary files in `folder`."""
    said: list[str] = []
    handlers = list(logging.root.handlers)
    saved = [os.dup(descriptor) for descriptor in (1, 2)]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder) as out,
        tempfile.TemporaryFile("w+", encoding="utf-8", dir=folder) as err,
    ):
        try:
            for descriptor, file in ((1, out), (2, err)):
                os.dup2(file.fileno(), descriptor)
            logging.root.handlers = []  # as at a command's start
            with patch.object(sys, "stdout", out), patch.object(sys, "stderr", err):
                yield said
        finally:
            for descriptor, old in enumerate(saved, 1):
                os.dup2(old, descriptor)
                os.close(old)
            logging.root.handlers = handlers
            for file in (out, err):
                file.flush()
                file.seek(0)
                said.append(file.read())


def _contents(folder: Path) -> set[tuple[str, tuple[int, int]]]:
    """All files with what tells whether they were written; hidden ones too."""
    found = (path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    facts = ((path, path.lstat()) for path in found)
    return {(str(path.relative_to(folder)), (s.st_size, s.st_mtime_ns)) for path, s in facts}


def _measure(path: Path) -> dict[str, object]:
    """What another decoder than ours finds in a file: all of it is decoded."""
    exe = imageio_ffmpeg.get_ffmpeg_exe()
    read = [exe, "-hide_banner", "-v", "warning", "-nostdin", "-i", f"file:{path}"]
    done = subprocess.run([*read, *FRAMES.split()], capture_output=True, check=False, text=True)
    unit = {
        int(i): int(n) / int(d) for i, n, d in re.findall(r"#tb (\d): (\d+)/(\d+)", done.stdout)
    }
    rows = [
        [int(x) for x in line.split(",")[:4]] for line in done.stdout.splitlines() if line[0] != "#"
    ]
    shown = [row for row in rows if row[0] == 0]
    ends = [max([(r[2] + r[3]) * unit[i] for r in rows if r[0] == i], default=0.0) for i in (0, 1)]
    said = subprocess.run([*read[:2], *read[4:]], capture_output=True, check=False, text=True)
    size = re.search(r"#dimensions 0: (\S+)", done.stdout)
    stream = re.search(r"Video: (.*)", said.stderr)
    return {
        "frames": len(shown),
        "seconds": round(ends[0], 3),
        "size": size[1] if size else "none",
        "sound": round(ends[1], 3),
        "stream": stream[1] if stream else "none",
        "complaints": " ".join(done.stderr.split()),
    }


def _apart(*paths: Path) -> float:
    """Grey levels between the first frames of two files, above the mouth, as FFmpeg shows them."""
    shown = (
        ffmpeg("-i", f"file:{path}", "-frames:v", 1, "-vf", ABOVE_THE_MOUTH, "-f", "rawvideo", "-")
        for path in paths
    )
    one, other = (np.frombuffer(pixels, np.uint8).astype(float) for pixels in shown)
    return round(float(np.abs(one - other).mean()), 2)
