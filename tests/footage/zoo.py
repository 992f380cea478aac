"""Where clips, voices and outputs come from: each is made once, when it is first asked for."""

import shlex
from pathlib import Path

from latentsync.types import Frame
from tests.clips import ffmpeg, write_clip
from tests.footage import gadgets, pictures, places, stills, voices

MODULES = (pictures, stills, gadgets, voices, places)


class Zoo:
    """A folder that fills with what is asked for: `zoo("rotated:90")` is `rotated(zoo, "90")`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._made: dict[str, Path] = {}

    def __call__(self, wanted: str) -> Path:
        """Its path, relative to the folder."""
        if wanted not in self._made:
            name, _, argument = wanted.partition(":")
            maker = next(vars(module)[name] for module in MODULES if name in vars(module))
            path = maker(self, *[argument] if argument else [])
            self._made[wanted] = path.relative_to(self.folder)
        return self._made[wanted]

    def at(self, name: str) -> Path:
        """Where a maker puts what it makes."""
        return self.folder / name

    def copy(self, wanted: str, name: str) -> Path:
        """The bytes of one under another name."""
        path = self.at(name)
        path.write_bytes((self.folder / self(wanted)).read_bytes())
        return path

    def film(self, name: str, frames: list[Frame], **choices) -> Path:
        """A clip of frames, with `tests.clips.write_clip`'s choices."""
        height, width = frames[0].shape[:2]
        return write_clip(self.at(name), frames, size=(width, height), **{"crf": "18"} | choices)

    def convert(self, name: str, words: str, *inputs: str, before: str = "") -> Path:
        """What FFmpeg's binary makes of some; `before` goes before the first."""
        path = self.at(name)
        given = [part for one in inputs for part in ("-i", f"file:{self.folder / self(one)}")]
        ffmpeg(*before.split(), *given, *shlex.split(words), f"file:{path}")
        return path
