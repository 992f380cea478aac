"""What can be chosen on the page -> Options; nothing in it names a file of this machine."""

from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from latentsync.errors import OptionError
from latentsync.faces import FaceChoice
from latentsync.options import Options

__all__ = ["choices", "options_of"]


def choices(name: str) -> list[str]:
    """The values that a field of Options may have, in their order."""
    return list(get_args(get_type_hints(Options)[name]))


def options_of(values: Mapping[str, Any], *, max_seconds: float) -> Options:
    """The options that the page's values stand for: by the names of their fields.

    Empty fields keep their defaults, and 0 steps are as many as `speed` takes. Numbers from a
    browser may be whole where a fraction is wanted, and the other way round.

    Raises:
        OptionError: a value is out of its range, or `face` would be looked up as a file.
    """
    given = {name: value for name, value in values.items() if value not in (None, "")}
    for name in given.keys() & {"guidance_scale", "mask_smooth", "sr_ratio", "sr_weight"}:
        given[name] = float(given[name])
    for name in given.keys() & {"seed", "steps", "crf"}:
        given[name] = int(given[name])
    given["steps"] = given.get("steps") or None
    _refuse_files(str(given.get("face", Options.face)))
    return Options(**given, max_seconds=max_seconds)


def _refuse_files(face: str) -> None:
    """Or visitors could learn which files there are."""
    wanted = "choose from the list, or give a point x,y or a box x,y,width,height in px"
    try:
        choice = FaceChoice.parse(face)
    except OptionError as error:
        raise OptionError(f"face {face[:80]!r}; {wanted}") from error
    if choice.picture:
        raise OptionError(f"face {face[:80]!r}; {wanted}")
