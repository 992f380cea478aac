"""Dataclasses and types that modules share: frozen, with shape, dtype and unit by each field."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Box",
    "Face",
    "FaceTrack",
    "FloatArray",
    "Frame",
    "IntArray",
    "PaintablePicture",
    "Picture",
    "Progress",
    "ProgressCallback",
    "Result",
    "Segment",
    "ShotFaces",
    "SyncMode",
    "VideoInfo",
]

Frame = NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""
FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
SyncMode = Literal["bounce", "pingpong", "loop", "freeze", "cut_off", "silence", "remap"]
"""What becomes of a clip that is not as long as the voice; see `timeline.lay_out`."""


@dataclass(frozen=True)
class Box:
    """A rectangle of whole pixels in a frame: columns [left, right), rows [top, bottom)."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def height(self) -> int:
        return self.bottom - self.top


class Picture(Protocol):
    """A frame that is looked at in parts, at a cost that follows the part: `media.VideoFrame`."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def pixel_aspect(self) -> Fraction:
        """Width / height of one pixel."""
        ...

    def rgb(self, box: Box | None = None) -> Frame:
        """A region whose edges are even, or the frame's own; all of it by default."""
        ...

    def thumbnail(self, max_side: int) -> Frame:
        """All of it, scaled down until no side is over `max_side` px."""
        ...


class PaintablePicture(Picture, Protocol):
    """A frame that can be looked at and painted on: `media.VideoFrame`."""

    def pasted(self, box: Box, rgb: Frame, weight: Frame | None = None) -> "PaintablePicture":
        """The frame with `rgb` laid over `box`, by (h, w) weights in 1/255; None: all of it."""
        ...


@dataclass(frozen=True)
class VideoInfo:
    """What a clip is, as it will be read: upright, at `fps`."""

    path: Path
    width: int  # px, after rotation
    height: int  # px, after rotation
    fps: Fraction  # frames per second handed out by the reader (25), not the file's own
    source_fps: Fraction | None  # what the file claims; None for a still image
    duration_seconds: float | None  # what the file claims; None when it doesn't say
    codec: str
    pixel_format: str  # the file's own, "yuv420p10le" for instance
    is_image: bool


@dataclass(frozen=True)
class Face:
    """One face in one frame, in frame pixels."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    score: float  # 0..1
    points: FloatArray  # (3, 2) x, y: the brow at the picture's left, the other one, nose base

    @property
    def area(self) -> float:
        left, top, right, bottom = self.box
        return max(0.0, right - left) * max(0.0, bottom - top)


@dataclass(frozen=True)
class ShotFaces:
    """The faces of one shot of the source, and which of them speak."""

    start: int  # first source frame
    stop: int  # one past the last
    faces: tuple[tuple[int, int], ...]  # mean x, y of each centre, px of the frame
    taken: tuple[int | None, ...]  # index into `faces` of each speaker; None: not in this shot


@dataclass(frozen=True)
class FaceTrack:
    """Where one face is in every source frame; 34 bytes a frame, so an hour is 3 MB."""

    affine: FloatArray  # (n, 2, 3) frame px -> crop px; zeros where no face was found
    detected: NDArray[np.bool_]  # (n,) whether a mouth can be drawn; not on a face turned away
    shot_start: NDArray[np.bool_] | None = None  # (n,); None: shots were not detected
    gaps: tuple[tuple[int, int, str], ...] = ()  # frames [start, stop) without it, and why
    nose: FloatArray | None = None  # (n, 2) as `head_pose.nose_places`, NaN without a face
    shots: tuple[ShotFaces, ...] = ()  # of all frames; none where no detector looked

    def __len__(self) -> int:
        return len(self.detected)

    def first(self, frames: int) -> "FaceTrack":
        """Of the clip's first so many frames."""
        gaps = ((start, min(stop, frames), why) for start, stop, why in self.gaps)
        return FaceTrack(
            affine=self.affine[:frames],
            detected=self.detected[:frames],
            shot_start=None if self.shot_start is None else self.shot_start[:frames],
            gaps=tuple(gap for gap in gaps if gap[0] < frames),
            nose=None if self.nose is None else self.nose[:frames],
            shots=tuple(
                replace(shot, stop=min(shot.stop, frames))
                for shot in self.shots
                if shot.start < frames
            ),
        )


@dataclass(frozen=True)
class Segment:
    """Output frames handled together: one group of the network, or frames passed through."""

    start: int  # first output frame
    stop: int  # one past the last
    source: IntArray  # (stop - start,) the source frame shown at each
    passthrough: bool  # True: nobody speaks here, the frames go to the output untouched
    strength: FloatArray  # (stop - start,) 0..1, how much of the drawn mouth is laid on
    shared: int = 0  # of its first frames, how many the group before it generates as well
    kept: int = 0  # of its last frames, how many the group after it generates as well, and gives

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def own(self) -> slice:
        """The frames that no other group gives."""
        return slice(0, len(self) - self.kept)


@dataclass(frozen=True)
class Progress:
    """Progress of one stage; `total` is None while it is unknown."""

    stage: str  # "detect", "generate", "finish"; "draw"; in training the run's name
    done: int  # frames
    total: int | None  # frames


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class Result:
    """What one run did."""

    path: Path
    source: Path  # the clip or the picture, absolute
    frames: int  # in the output
    fps: float  # frames per second
    seconds: float  # of the output
    width: int  # px
    height: int  # px
    faces_found: int  # source frames with a face
    source_frames: int  # source frames searched for faces
    passed_through: tuple[tuple[int, int, str], ...]  # output frames [start, stop) untouched, why
    lost: tuple[tuple[int, int, str], ...]  # source frames [start, stop) without a face, and why
    model: str
    detector: str
    device: str
    dtype: str
    seed: int  # the seed that was used, never 0
    cuts: tuple[int, ...] = ()  # source frames at which a new shot begins
    shots: tuple[ShotFaces, ...] = ()  # the faces of each; none where no detector looked
    options: dict[str, Any] = field(default_factory=dict)  # every option of the run, by name
    voices: dict[str, str] = field(default_factory=dict)  # path of the voice, by face as chosen
    # Frames in pass 1: decoded, shown, and behind (timed no later than the frame before them).
    # All 0 where a cache knew the faces.
    decoding: dict[str, int] = field(default_factory=dict)
    sound_tracks: dict[str, str] = field(default_factory=dict)  # track of its file, by face
    left_out: tuple[str, ...] = ()  # parts of the inputs that the output lacks
    peak_memory: dict[str, int] = field(default_factory=dict)  # bytes, by "process" and "gpu"
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage
