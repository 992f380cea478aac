"""The types of preparation: stretches of a source, rejections, steps and their tools."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from latentsync.evaluation.nets.eval_syncnet import EvalSyncNet
from latentsync.evaluation.nets.hyper_iqa import HyperIQA
from latentsync.faces import Detector
from latentsync.training.crops import aligned_crops
from latentsync.types import FaceTrack, FloatArray, Frame

__all__ = [
    "FPS",
    "SAMPLES_PER_FRAME",
    "SAMPLE_RATE",
    "Rejected",
    "Step",
    "Stretch",
    "Tools",
    "Versioned",
    "scales",
]

FPS = 25  # of all clips
SAMPLE_RATE = 16_000  # Hz
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS


@dataclass(frozen=True)
class Stretch:
    """Frames [start, stop) of a source read at 25 fps, and the findings of the steps."""

    path: Path
    start: int = 0
    stop: int = 0
    cuts: tuple[int, ...] = ()  # first frames of shots
    track: FaceTrack | None = None  # of these frames, for crops of the chosen size
    ahead: int = 0  # frames by which the source's sound is ahead of its pictures
    figures: Mapping[str, Any] = field(default_factory=dict)  # for the index

    def __len__(self) -> int:
        return self.stop - self.start

    def crops(self, size: int, places: Sequence[int] | None = None) -> Iterator[Frame]:
        """The aligned face of each frame, (size, size, 3), or of those at `places`."""
        assert self.track is not None
        chosen = list(range(len(self)) if places is None else places)
        numbers = [self.start + place for place in chosen]
        return aligned_crops(self.path, numbers, self.track.affine[chosen], size)


@dataclass(frozen=True)
class Rejected:
    """Frames [start, stop) that a step left out; none of a file that can't be read."""

    reason: str  # a few words, always the same ones for a cause
    figure: float | None = None  # the measured value
    start: int = 0
    stop: int = 0
    detail: str = ""  # the message of an error


@dataclass(frozen=True)
class Tools:
    """What a process needs beside the parameters of the steps."""

    detector: Detector
    syncnet: EvalSyncNet | None  # None: lip-sync is not measured
    hyper_iqa: HyperIQA | None  # None: quality is measured without a net
    folder: Path  # for temporary files of this process; emptied after each source

    def sound(self) -> NDArray[np.int16]:
        """(samples,) of the current source, mapped: mono, 16 kHz; `Resample` writes it."""
        return np.memmap(self.folder / "sound.s16", np.int16, "r")


class Versioned(Protocol):
    """A frozen dataclass whose fields are parameters of the result."""

    name: ClassVar[str]
    version: ClassVar[int]  # raised whenever the result changes


class Step(Versioned, Protocol):
    """One step of the preparation."""

    def __call__(self, stretch: Stretch, tools: Tools) -> Iterator[Stretch | Rejected]:
        """Turn a stretch into others, shorter or with more findings, and into rejections.

        Raises:
            InputError: the file can't be used.
        """
        ...


def scales(affine: FloatArray) -> FloatArray:
    """(n,) px of the upright crop for each px of the frame's height; pixels may not be square."""
    return np.asarray(np.linalg.norm(affine[:, :, 1], axis=1), np.float32)
