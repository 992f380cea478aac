"""A clip's frames by number, and when each is shown: at 25 frames a second, or its own times."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from latentsync.media import VideoFrame, VideoReader
from latentsync.types import IntArray, VideoInfo

__all__ = ["FPS", "FrameSource", "converted"]

FPS = Fraction(25)  # the rate the published nets were trained at


@dataclass(frozen=True)
class FrameSource:
    """A clip's frames by number, and when each is shown.

    At the clip's own times, 50 and 60 frames a second are treated as any other rate: each frame
    hears the sound around its own time, and 16 neighbours make a group.
    """

    reader: VideoReader
    fps: Fraction = FPS  # a mean where the clip's rate varies
    time_base: Fraction = 1 / FPS  # seconds
    # (all + 1,) when each frame begins and the last ends, in units of `time_base`; None: frame n
    # begins at n, and only reading to the end tells how many there are.
    pts: IntArray | None = None
    numbers: Sequence[int] | None = None  # the file's frame that each of ours shows; None: computed

    @classmethod
    def of(
        cls,
        reader: VideoReader,
        fps: Literal["25", "source"] = "25",
        conversion: Literal["exact", "published"] = "exact",
    ) -> "FrameSource":
        """Choose a clip's frames; a still picture has 25 frames a second always.

        Args:
            conversion: to 25 frames a second: "exact" shows at each time the frame of that time;
                "published" converts as the published code does, by FFmpeg's output option -r.
        """
        if reader.info.is_image or (fps, conversion) == ("25", "exact"):
            return cls(reader)
        if fps == "25":
            numbers = converted(list(reader.times()), list(reader.durations()), FPS)
            return cls(reader, numbers=numbers)
        unit = reader.time_base
        begins = np.array([int(at / unit) for at in reader.times()], dtype=np.int64)
        claimed = round(1 / (reader.info.source_fps or FPS) / unit)
        last = begins[-1] - begins[-2] if len(begins) > 1 else claimed
        pts = np.append(begins, begins[-1] + max(1, last))
        mean = len(begins) / (int(pts[-1]) * unit)
        return cls(reader, mean.limit_denominator(1001), unit, pts)

    @property
    def info(self) -> VideoInfo:
        return self.reader.info

    def frames(self, numbers: Iterable[int] | None = None) -> Iterator[VideoFrame]:
        """Read every frame in order, or those of `numbers`, in that order."""
        if self.numbers is not None:
            every = self.numbers
            chosen = every if numbers is None else (every[number] for number in numbers)
            return self.reader.source_frames(chosen)
        read = self.reader.frames if self.pts is None else self.reader.source_frames
        return read(numbers)

    def frames_in(self, seconds: Fraction | None) -> int | None:
        """Count the frames that begin before so many seconds; None: all there are."""
        if seconds is None:
            return None
        end = math.ceil(seconds / self.time_base)
        return end if self.pts is None else int(np.searchsorted(self.pts[:-1], end))

    def expected(self, at_most: int | None) -> int | None:
        """How many frames reading the first `at_most` will give; None where nobody knows yet."""
        if self.info.is_image:
            return 1
        if self.pts is not None:
            return len(self.pts) - 1 if at_most is None else at_most
        enough = at_most is not None and (self.info.duration_seconds or 0) * FPS >= at_most
        return at_most if enough else None

    def begins(self, frames: int) -> IntArray:
        """(frames + 1,) when each of the first ones begins and the last one ends."""
        return np.arange(frames + 1, dtype=np.int64) if self.pts is None else self.pts[: frames + 1]


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
