"""At which cadence a clip is read and the output written: 25 frames a second, or the clip's own."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from latentsync.media import VideoReader
from latentsync.types import IntArray

__all__ = ["FPS", "Pace"]

FPS = Fraction(25)  # the rate the published nets were trained at


@dataclass(frozen=True)
class Pace:
    """A clip's frames by number, and when each begins.

    At the clip's own pace, 50 and 60 frames a second are treated as any other: each frame hears
    the sound around its own time, and 16 neighbours make a group.
    """

    read: Callable[[Iterable[int] | None], Iterator[Any]]  # the reader's frames or source_frames
    fps: Fraction  # of the output; a mean where the clip's rate varies
    tick: Fraction  # seconds
    own: IntArray | None  # (all + 1,) ticks, when each begins and the last ends; None: at 25 fps

    @classmethod
    def of(cls, clip: VideoReader, fps: Literal["25", "source"]) -> "Pace":
        """A still picture has 25 frames a second always."""
        if fps == "25" or clip.info.is_image:
            return cls(clip.frames, FPS, 1 / FPS, None)
        tick = clip.time_base
        begins = np.array([int(at / tick) for at in clip.times()], dtype=np.int64)
        claimed = round(1 / (clip.info.source_fps or FPS) / tick)
        last = begins[-1] - begins[-2] if len(begins) > 1 else claimed
        own = np.append(begins, begins[-1] + max(1, last))
        mean = len(begins) / (int(own[-1]) * tick)
        return cls(clip.source_frames, mean.limit_denominator(1001), tick, own)

    def frames(self, numbers: Iterable[int] | None = None) -> Iterator[Any]:
        """Every frame in order, or those of `numbers`, in that order."""
        return self.read(numbers)

    def frames_in(self, seconds: Fraction | None) -> int | None:
        """How many frames begin before so many seconds; None: all there are."""
        if seconds is None:
            return None
        ticks = math.ceil(seconds / self.tick)
        return ticks if self.own is None else int(np.searchsorted(self.own[:-1], ticks))

    def begins(self, frames: int) -> IntArray:
        """(frames + 1,) ticks: when each of the first ones begins and the last one ends."""
        return np.arange(frames + 1, dtype=np.int64) if self.own is None else self.own[: frames + 1]
