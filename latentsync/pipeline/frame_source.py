"""At which cadence a clip is read and the output written: 25 frames a second, or the clip's own."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, Literal

import numpy as np

from latentsync.media import VideoReader
from latentsync.types import IntArray, VideoInfo

__all__ = ["FPS", "FrameSource", "converted"]

FPS = Fraction(25)  # the rate the published nets were trained at


@dataclass(frozen=True)
class FrameSource:
    """A clip's frames by number, and when each begins.

    At the clip's own pace, 50 and 60 frames a second are treated as any other: each frame hears
    the sound around its own time, and 16 neighbours make a group.
    """

    read: Callable[[Iterable[int] | None], Iterator[Any]]  # the reader's frames or source_frames
    fps: Fraction  # of the output; a mean where the clip's rate varies
    tick: Fraction  # seconds
    own: IntArray | None  # (all + 1,) ticks, when each begins and the last ends; None: at 25 fps

    @classmethod
    def of(
        cls,
        clip: VideoReader,
        fps: Literal["25", "source"],
        conversion: Literal["exact", "published"] = "exact",
    ) -> "FrameSource":
        """The pace of a clip; a still picture has 25 frames a second always.

        Args:
            conversion: to 25 frames a second: "exact" shows at each time the frame of that time;
                "published" converts as the published code does, by FFmpeg's output option -r.
        """
        if fps == "25" and conversion == "published" and not clip.info.is_image:
            numbers = converted(list(clip.times()), list(clip.durations()), FPS)
            return cls(partial(_numbered, clip, numbers), FPS, 1 / FPS, None)
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


def _numbered(
    clip: VideoReader, numbers: Sequence[int], indices: Iterable[int] | None
) -> Iterator[Any]:
    return clip.source_frames(numbers if indices is None else (numbers[i] for i in indices))


# video_sync_process and adjust_frame_pts_to_encoder_tb in
# https://github.com/FFmpeg/FFmpeg/blob/n7.1/fftools/ffmpeg_filter.c
SLACK_FRAMES = 1.1  # of the output, by which a frame may be early or late
STEPS_PER_FRAME = 1 << 16  # to which its time is rounded
NUDGE_FRAMES = 2**-17  # by which a time between two frames is moved off the exact middle


def converted(times: Sequence[Fraction], durations: Sequence[Fraction], fps: Fraction) -> list[int]:
    """Which source frame FFmpeg's command shows at each index with the output option -r.

    It lets the output run ahead of the source by up to 1.1 frames before it drops one, so that of
    30 frames a second the first 12 are shown, and only then every sixth is dropped.

    Args:
        times: seconds at which each source frame begins, rising from 0.
        durations: of each source frame as the file says, in seconds; 0 where it doesn't.
    """
    numbers: list[int] = []
    for number, (begin, duration) in enumerate(zip(times, durations, strict=True)):
        at = round(begin * fps * STEPS_PER_FRAME) / STEPS_PER_FRAME
        early = at + (0 if at.is_integer() else NUDGE_FRAMES) - len(numbers)
        late = early + float((duration or 1 / fps) * fps)  # what of the frame is still to be shown
        if late < -SLACK_FRAMES:
            continue
        count = round(late) if late > SLACK_FRAMES else 1
        before = round(early - 0.6) if late > SLACK_FRAMES and early > SLACK_FRAMES else 0
        numbers += [max(number - 1, 0)] * min(before, count) + [number] * max(count - before, 0)
    return numbers


def frames_to_look_at(clip: VideoInfo, pace: FrameSource, at_most: int | None) -> int | None:
    """How many frames pass 1 will see; None where only reading to the end will tell."""
    if clip.is_image:
        return 1
    if pace.own is not None:
        return len(pace.own) - 1 if at_most is None else at_most
    enough = at_most is not None and (clip.duration_seconds or 0) * FPS >= at_most
    return at_most if enough else None
