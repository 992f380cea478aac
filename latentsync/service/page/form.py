"""Values chosen on the page -> Options; none of them names a file of this machine."""

from collections.abc import Mapping
from typing import Any

from latentsync.errors import OptionError, option_name
from latentsync.faces import FaceChoice
from latentsync.options import Options, declared

__all__ = ["labelled", "options_of"]

# What the values of an option are called; the others speak for themselves.
LABELS = {
    "sync_mode": {
        "bounce": "Play the clip to and fro (bounce)",
        "pingpong": "The same, as the published code does it (pingpong)",
        "loop": "Play the clip again from its start (loop)",
        "freeze": "Hold the last picture (freeze)",
        "cut_off": "End with the clip (cut_off)",
        "silence": "Play to and fro; after a shorter voice, show the rest of the clip (silence)",
        "remap": "Slow the clip down, or speed it up (remap)",
    },
    "fps": {"25": "25 a second", "source": "As many as the clip has"},
    "speed": {
        "exact": "Best (exact)",
        "fast": "About twice as fast (fast)",
        "preview": "For a first look (preview)",
    },
    "on_missing": {"keep": "Leave them as they are", "error": "Stop with an error"},
    "silence": {
        "generate": "Draw it like the rest",
        "keep": "Keep the mouth of the clip",
        "close": "Close it",
    },
    "face": {
        "largest": "The largest face",
        "left": "The face at the left",
        "right": "The face at the right",
        "center": "The face in the middle",
        "all": "All faces",
    },
    "superres": {
        "none": "No",
        "gfpgan": "GFPGAN",
        "codeformer": "CodeFormer (not for commercial use)",
    },
}


def labelled(name: str) -> list[tuple[str, str]]:
    """List the values of an option on the page, each after its label."""
    return [(label, value) for value, label in LABELS[name].items()]


def options_of(values: Mapping[str, Any], *, max_seconds: float) -> Options:
    """Make options of the page's values, which have the names of the fields.

    Empty fields keep their defaults, and 0 steps are as many as `speed` takes. Numbers from a
    browser may be whole where a fraction is wanted, and the other way round.

    Raises:
        OptionError: a value is out of its range, or `face` would be looked up as a file.
    """
    given = {name: value for name, value in values.items() if value not in (None, "")}
    for name, value in given.items():
        kind = declared(Options)[name].types[0]
        if kind in (int, float):
            given[name] = kind(value)
    given["steps"] = given.get("steps") or None
    _refuse_files(str(given.get("face", Options.face)))
    return Options(**given, max_seconds=max_seconds)


def _refuse_files(face: str) -> None:
    """Raise OptionError for a file's name, or visitors could learn which files there are."""
    wanted = "choose from the list, or give a point x,y or a box x,y,width,height in px"
    try:
        choice = FaceChoice.parse(face)
    except OptionError as error:
        raise OptionError(f"{option_name('face')} {face[:80]!r}; {wanted}") from error
    if choice.picture:
        raise OptionError(f"{option_name('face')} {face[:80]!r}; {wanted}")
