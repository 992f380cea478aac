"""Choice of a face: the value of the option `face`."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from latentsync.errors import OptionError, option_name
from latentsync.options import FACES, FaceName

__all__ = ["LARGEST", "FaceChoice"]

NAMES: tuple[FaceName, ...] = get_args(FaceName)


@dataclass(frozen=True)
class FaceChoice:
    """Which face is followed. `parse` reads it from a text, `str` gives that text again."""

    kind: FaceName | Literal["point", "box", "reference"]
    place: tuple[float, ...] = ()  # px: x, y of a point; left, top, width, height of a box
    seconds: float = 0.0  # time in the clip of the point or the box
    picture: Path | None = None  # of the person

    @classmethod
    def parse(cls, text: str) -> "FaceChoice":
        """Read a choice: "largest", "120,80@2.5", "120,80,90,110", "ann.jpg", ...

        Raises:
            OptionError: it is none, or the picture isn't there.
        """
        for name in NAMES:
            if text == name:
                return cls(name)
        place, at, time = text.partition("@")
        numbers = [_number(part) for part in place.split(",")]
        if len(numbers) > 1 and None not in numbers:
            return cls._placed(text, [n for n in numbers if n is not None], time if at else "0")
        if not os.path.isfile(text):  # noqa: PTH113 - Path's raises where a name is too long
            raise OptionError(
                f"{option_name('face')} {text!r}; it must be {FACES}, or the file of a picture of "
                "the person"
            )
        return cls("reference", picture=Path(text))

    @classmethod
    def _placed(cls, text: str, numbers: list[float], time: str) -> "FaceChoice":
        seconds = _number(time)
        if len(numbers) not in (2, 4) or min(numbers) < 0 or seconds is None or seconds < 0:
            raise OptionError(
                f"{option_name('face')} {text!r}; a place must be x,y or x,y,width,height in px "
                "from the frame's upper left corner, and a time @seconds from the clip's start"
            )
        if len(numbers) == 4 and min(numbers[2:]) < 8:
            raise OptionError(
                f"{option_name('face')} {text!r}; a box must be 8 px wide and high, or more"
            )
        return cls("point" if len(numbers) == 2 else "box", tuple(numbers), seconds)

    def __str__(self) -> str:
        if self.picture:
            return str(self.picture)
        if not self.place:
            return self.kind
        time = f"@{self.seconds:g}" if self.seconds else ""
        return ",".join(f"{number:g}" for number in self.place) + time


LARGEST = FaceChoice("largest")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
