"""What a metric of `latentsync evaluate` is: loaded once, then shown every frame of each clip.

Weights that are missing are noticed as it is loaded; of each clip it is told `begin`, `update` of
every frame, `end`. Only what has to be summed up is kept.
"""

from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from latentsync.errors import InputError
from latentsync.evaluation.clips import EvaluatedClip, FramePair
from latentsync.faces import Detector

__all__ = ["NEEDS_REFERENCE", "Figure", "Metric", "Setup"]

NEEDS_REFERENCE = "needs --reference"


@dataclass(frozen=True)
class Setup:
    """What metrics are loaded with."""

    weights: Path
    device: str
    detector: Detector


@dataclass(frozen=True)
class Figure:
    """One number that a metric gives."""

    name: str
    unit: str
    better: Literal["higher", "lower", ""]
    what: str  # for people


class Metric:
    """One metric, loaded; its figures of a clip by name, and its curves over the clip's frames."""

    figures: ClassVar[tuple[Figure, ...]]
    needs_reference: ClassVar[bool] = True
    needs_face: ClassVar[bool] = False
    whole_set: ClassVar[bool] = False  # one number for all clips, none for each

    def __init__(self, setup: Setup) -> None:
        """Load it. Raises WeightsError or BackendUnavailable where something it needs is absent."""
        self.setup = setup

    def begin(self, clip: EvaluatedClip) -> None:
        """Look at the next clip. Raises InputError where it lacks a face that is needed."""
        if self.needs_face and clip.track is None:
            raise InputError(clip.no_face)
        self.clip = clip
        self.curves: dict[str, array[float]] = {}  # one value a frame, NaN where there is none
        self.absent: dict[str, str] = {}  # figure -> why this clip has none, where it is known

    def update(self, moment: FramePair) -> None:
        """See the next frame."""

    def end(self) -> dict[str, float]:
        """The clip's figures; one that can't be had is left out, or all by an error."""
        return {}

    def total(self) -> dict[str, tuple[float, int]]:
        """Figures of all clips seen, where `whole_set`, and of how many things each is made."""
        return {}

    def on_curve(self, name: str, index: int, value: float) -> None:
        curve = self.curves.setdefault(name, array("d"))
        curve.extend([np.nan] * (index - len(curve)))
        curve.append(value)
