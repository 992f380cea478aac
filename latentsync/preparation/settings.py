"""What is asked of a clip: one frozen set of choices, the steps that follow, and their tools."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from latentsync import devices, faces, weights
from latentsync.cache import file_digest
from latentsync.errors import OptionError
from latentsync.evaluation.sync import load_eval_syncnet
from latentsync.preparation.clip import Form, Write
from latentsync.preparation.steps import (
    Decode,
    OneFace,
    Quality,
    Resample,
    Segments,
    Shots,
    Sync,
)
from latentsync.preparation.stretch import FPS, Named, Step, Tools

__all__ = ["Settings", "SyncBy"]

log = logging.getLogger(__name__)

SyncBy = Literal["auto", "syncnet", "none"]
SIZES = (256, 512)
MAX_SHIFT = 15  # frames that SyncNet's curve reaches
SYNCNET = "auxiliary/syncnet_v2.model"


@dataclass(frozen=True)
class Settings:
    """Everything but the sources that the output depends on.

    Raises:
        OptionError: a value out of its range.
    """

    size: int = 256  # px, side of the crop that the clips are for: 256 or 512
    form: Form = "around"  # see clip.py
    min_seconds: float = 5.0
    max_seconds: float = 10.0
    detector: str = "insightface"  # see `faces.create`
    detect_every: int = 4  # frames, see `faces.look`
    min_face: int | None = None  # px of the source that a crop shows, in height; None: size / 2
    sync: SyncBy = "auto"  # "auto": by SyncNet where its file is there
    min_confidence: float = 3.0
    max_offset: int = 6  # frames
    min_sharpness: float = 10.0  # see `steps.Quality`
    weights: Path | None = None  # folder; None: $LATENTSYNC_WEIGHTS, then weights/
    device: str | None = None  # of SyncNet and the detector; None: what there is

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("size", self.size, SIZES),
            ("form", self.form, get_args(Form)),
            ("sync", self.sync, get_args(SyncBy)),
        ):
            if value not in allowed:
                raise OptionError(f"{name} is {value!r}; it must be {_either(allowed)}")
        if not 1 <= self.min_seconds <= self.max_seconds <= 3600:
            got = f"min_seconds is {self.min_seconds:g}, max_seconds {self.max_seconds:g}"
            raise OptionError(f"{got}; they must be 1-3600, the first no larger than the second")
        for name, number, lowest, highest in (
            ("min_face", self.min_face_px, 1, 8192),
            ("detect_every", self.detect_every, 1, 50),
            ("min_confidence", self.min_confidence, 0, 100),
            ("max_offset", self.max_offset, 0, MAX_SHIFT),
            ("min_sharpness", self.min_sharpness, 0, 1e6),
        ):
            if not lowest <= number <= highest:
                raise OptionError(f"{name} is {number:g}; it must be {lowest}-{highest:g}")

    @property
    def min_face_px(self) -> int:
        return self.size // 2 if self.min_face is None else self.min_face

    @property
    def syncnet(self) -> Path | None:
        """The file of the net that measures lip-sync, where it is to be measured."""
        path = weights.root(self.weights) / SYNCNET
        wanted = self.sync == "syncnet" or (self.sync == "auto" and path.is_file())
        return path if wanted else None

    def steps(self) -> list[Step]:
        """In their order; `Write` comes after them."""
        shortest, longest = (round(s * FPS) for s in (self.min_seconds, self.max_seconds))
        measured = self.syncnet is not None
        return [
            Decode(),
            Resample(),
            Shots(),
            Segments(shortest, longest),
            OneFace(self.size, self.min_face_px, self.detect_every),
            Sync(measured, self.size, self.min_confidence, self.max_offset, shortest),
            Quality(self.size, self.min_sharpness),
        ]

    def write(self) -> Write:
        return Write(self.size, self.form)

    def tools(self, folder: Path) -> Tools:
        """What a process works with, loaded.

        Raises:
            WeightsError, OptionError, BackendUnavailable: it can't be had.
        """
        device, _ = devices.choose(self.device)
        detector = faces.create(
            self.detector,
            root=weights.root(self.weights) / "auxiliary",
            gpu=device.type not in ("cpu", "mps"),
        )
        net = None if self.syncnet is None else load_eval_syncnet(self.syncnet, device)
        return Tools(detector, net, folder)

    def signature(self, tools: Tools) -> str:
        """All that the clips of a file follow from beside the file, as JSON."""
        steps: list[Named] = [*self.steps(), self.write()]
        said = [[step.name, step.version, vars(step)] for step in steps]
        net = self.syncnet and file_digest(self.syncnet)
        return json.dumps([said, tools.detector.describe(), net])


def _either(allowed: tuple[object, ...]) -> str:
    return " or ".join(str(one) for one in allowed)
