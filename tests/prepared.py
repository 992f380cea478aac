"""What tests of preparation share: clips that a stub sees a face in, and what came of them."""

import hashlib
import json
from functools import cache

import numpy as np

from latentsync.training.preparation import PreparationSettings
from tests.clips import babble, picture, write_clip
from tests.stubs import SIZE

EASY = PreparationSettings(
    min_seconds=1,
    max_seconds=2,
    min_face=40,
    sync="none",
    quality="laplacian",
    min_sharpness=0,
    detector="builtin",
)


@cache
def _picture(number, size):
    """Numbered, but not in black and white: that would be a cut."""
    rgb = picture(number, *size)
    rgb[: size[1] // 4] = np.where(rgb[: size[1] // 4] > 128, 138, 118)
    return rgb


def pictures(frames, size=SIZE):
    return [_picture(number, size) for number in range(frames)]


def clip(path, frames=26, sound=None, size=SIZE, **options):
    heard = babble(frames / 25, 48000) if sound is None else sound
    shown = pictures(frames, size)
    return write_clip(path, shown, size=size, sound=heard, preset="ultrafast", **options)


def lines(output, name):
    return [json.loads(line) for line in (output / name).read_text().splitlines()]


def left_out(output):
    return {
        line["file"]: (line["step"], line["reason"]) for line in lines(output, "rejected.jsonl")
    }


def tree(folder, hidden=True):
    files = [path for path in folder.rglob("*") if path.is_file()]
    names = {path: path.relative_to(folder).as_posix() for path in files}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path, name in names.items()
        if hidden or not name.startswith(".")
    }
