"""The nouns of preparation: stretches of a source, and why some are left out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from latentsync.evaluation.nets.eval_syncnet import EvalSyncNet
from latentsync.evaluation.nets.hyper_iqa import HyperIQA
from latentsync.faces import Detector
from latentsync.types import FaceTrack

__all__ = ["FPS", "SAMPLES", "SAMPLE_RATE", "Named", "Rejected", "Step", "Stretch", "Tools"]

FPS = 25  # frames a second, of all clips
SAMPLE_RATE = 16_000  # Hz
SAMPLES = SAMPLE_RATE // FPS  # a frame


@dataclass(frozen=True)
class Stretch:
    """Frames [start, stop) of a source read at 25 fps, and what steps found out about them."""

    path: Path
    start: int = 0
    stop: int = 0
    cuts: tuple[int, ...] = ()  # frames with which a new shot begins
    track: FaceTrack | None = None  # of these frames, for crops of the size that was asked for
    ahead: int = 0  # frames by which the source's sound runs ahead of its pictures
    figures: Mapping[str, Any] = field(default_factory=dict)  # for the index

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def seconds(self) -> float:
        return len(self) / FPS


@dataclass(frozen=True)
class Rejected:
    """Frames [start, stop) that a step left out; of a file that can't be read there are none."""

    reason: str  # a few words, the same for all that are left out for it
    figure: float | None = None  # what was measured
    start: int = 0
    stop: int = 0
    detail: str = ""  # what an error said


@dataclass(frozen=True)
class Tools:
    """What a process needs for its work beside the parameters of the steps."""

    detector: Detector
    syncnet: EvalSyncNet | None  # None: lip-sync is not measured
    hyper_iqa: HyperIQA | None  # None: quality is measured without a net
    folder: Path  # for what is made on the way; of one process, emptied after each file

    def sound(self) -> NDArray[np.int16]:
        """(samples,) of the file at hand, mapped: mono, 16 kHz; `Resample` writes it."""
        return np.memmap(self.folder / "sound.s16", np.int16, "r")


class Named(Protocol):
    """A frozen dataclass, whose fields are the parameters of what it does."""

    name: ClassVar[str]
    version: ClassVar[int]  # raised whenever it does it otherwise


class Step(Named, Protocol):
    """One step of the choice."""

    def __call__(self, stretch: Stretch, tools: Tools) -> Iterator[Stretch | Rejected]:
        """What becomes of a stretch: other ones, shorter or with more known, and what is left out.

        Raises:
            InputError: the file can't be used.
        """
        ...
