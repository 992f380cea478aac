"""The interface of a metric: loaded once, then given every frame of each clip.

Missing weights are noticed on loading. For each clip the runner calls `begin`, `update` for every
frame, and `end`.
"""

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from latentsync.errors import InputError
from latentsync.evaluation.clips import EvaluatedClip, FramePair
from latentsync.faces import Detector

__all__ = ["Figure", "Metric", "Setup"]


@dataclass(frozen=True)
class Setup:
    """What metrics are loaded with."""

    weights: Path  # folder
    device: str
    detector: Detector


@dataclass(frozen=True)
class Figure:
    """One number that a metric gives."""

    name: str
    unit: str
    better: Literal["higher", "lower", ""]
    what: str  # description, for people


class Metric:
    """A loaded metric: figures of each clip by name, and curves over the clip's frames."""

    figures: ClassVar[tuple[Figure, ...]]
    needs_reference: ClassVar[bool] = True
    needs_face: ClassVar[bool] = False
    whole_set: ClassVar[bool] = False  # one number for all clips, none for each

    def __init__(self, setup: Setup) -> None:
        """Load it. Raises WeightsError or BackendUnavailable if something it needs is missing."""
        self.setup = setup

    def begin(self, clip: EvaluatedClip) -> None:
        """Start the next clip. Raises InputError if it lacks a face and one is needed."""
        if self.needs_face and clip.track is None:
            raise InputError(clip.no_face)
        self.clip = clip
        self.curves: dict[str, array[float]] = {}  # one value a frame, NaN where there is none
        self.absent: dict[str, str] = {}  # figure -> why this clip has none, where that is known

    def update(self, frames: FramePair) -> None:
        """Process the next frame."""

    def end(self) -> dict[str, float]:
        """Return the clip's figures, without those that can't be measured."""
        return {}

    def total(self) -> dict[str, tuple[float, int]]:
        """Return the figures of all clips so far and their numbers of samples, if `whole_set`."""
        return {}

    def add_to_curve(self, name: str, index: int, value: float) -> None:
        """Append frame `index`'s value to a curve; frames left out before it become NaN."""
        curve = self.curves.setdefault(name, array("d"))
        curve.extend([np.nan] * (index - len(curve)))
        curve.append(value)
