"""The settings of preparation, and the steps and tools that follow from them."""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from latentsync import faces
from latentsync.errors import OptionError
from latentsync.evaluation.nets.eval_syncnet import EvalSyncNet
from latentsync.evaluation.nets.loading import load_net
from latentsync.runtime import checkpoints, devices
from latentsync.runtime.files import file_digest
from latentsync.training.preparation.clip import Form, Write
from latentsync.training.preparation.quality import load_hyper_iqa
from latentsync.training.preparation.steps import (
    Decode,
    OneFace,
    Quality,
    Resample,
    Segments,
    Sharpness,
    Shots,
    Sync,
)
from latentsync.training.preparation.stretch import FPS, Step, Tools, Versioned

__all__ = ["PreparationSettings", "QualityBy", "SyncBy"]

log = logging.getLogger(__name__)

SyncBy = Literal["auto", "syncnet", "none"]
QualityBy = Literal["auto", "hyperiqa", "laplacian"]
SIZES = (256, 512)
MAX_SHIFT_FRAMES = 15  # the reach of SyncNet's curve
SYNCNET, HYPER_IQA = "auxiliary/syncnet_v2.model", "auxiliary/koniq_pretrained.pkl"


@dataclass(frozen=True)
class PreparationSettings:
    """Everything that the output depends on, but the sources.

    Raises:
        OptionError: a value out of its range.
    """

    size: int = 256  # px, side of the crops that the clips are for: 256 or 512
    form: Form = "around"  # see clip.py
    min_seconds: float = 5.0
    max_seconds: float = 10.0
    detector: str = "insightface"  # see `faces.create`
    detect_every: int = 4  # frames, see `faces.track_people`
    min_face: int | None = None  # px of the source in a crop's height; None: size / 2
    sync: SyncBy = "auto"  # "auto": by SyncNet if its file is there
    min_confidence: float = 3.0
    max_offset: int = 6  # frames
    quality: QualityBy = "auto"  # "auto": by hyperIQA if its file is there
    min_quality: float = 40.0  # 0-100, of hyperIQA; as published
    min_sharpness: float = 10.0  # without hyperIQA, see `steps.Sharpness`
    weights: Path | None = None  # folder; None: $LATENTSYNC_WEIGHTS, then weights/
    device: str | None = None  # of the nets and the detector; None: a GPU if there is one

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("size", self.size, SIZES),
            ("form", self.form, get_args(Form)),
            ("sync", self.sync, get_args(SyncBy)),
            ("quality", self.quality, get_args(QualityBy)),
        ):
            if value not in allowed:
                wanted = " or ".join(map(str, allowed))
                raise OptionError(f"{name} is {value!r}; it must be {wanted}")
        if not 1 <= self.min_seconds <= self.max_seconds <= 3600:
            got = f"min_seconds is {self.min_seconds:g}, max_seconds {self.max_seconds:g}"
            raise OptionError(f"{got}; they must be 1-3600, the first no larger than the second")
        for name, number, lowest, highest in (
            ("min_face", self.min_face_px, 1, 8192),
            ("detect_every", self.detect_every, 1, 50),
            ("min_confidence", self.min_confidence, 0, 100),
            ("max_offset", self.max_offset, 0, MAX_SHIFT_FRAMES),
            ("min_quality", self.min_quality, 0, 100),
            ("min_sharpness", self.min_sharpness, 0, 1e6),
        ):
            if not lowest <= number <= highest:
                raise OptionError(f"{name} is {number:g}; it must be {lowest}-{highest:g}")

    @property
    def min_face_px(self) -> int:
        return self.size // 2 if self.min_face is None else self.min_face

    @property
    def syncnet(self) -> Path | None:
        """The file of SyncNet; None if lip-sync is not measured."""
        path = checkpoints.root(self.weights) / SYNCNET
        wanted = self.sync == "syncnet" or (self.sync == "auto" and path.is_file())
        return path if wanted else None

    @property
    def hyper_iqa(self) -> Path | None:
        """The file of hyperIQA; None if quality is measured without it."""
        path = checkpoints.root(self.weights) / HYPER_IQA
        wanted = self.quality == "hyperiqa" or (self.quality == "auto" and path.is_file())
        return path if wanted else None

    def resolved(self) -> "PreparationSettings":
        """Replace "auto" by what it means now, and log what can't be measured.

        Files that are added or removed later then change nothing.
        """
        missing = "%s is not among the weights: %s; run `latentsync download eval`"
        if self.sync == "auto" and self.syncnet is None:
            log.warning(missing, SYNCNET, "lip-sync is not measured")
        if self.quality == "auto" and self.hyper_iqa is None:
            instead = "quality is measured by the variance of the Laplacian, not by hyperIQA"
            log.warning(missing, HYPER_IQA, instead)
        return replace(
            self,
            sync="syncnet" if self.syncnet else "none",
            quality="hyperiqa" if self.hyper_iqa else "laplacian",
        )

    def steps(self) -> list[Step]:
        """The steps in their order; `Write` comes after them."""
        shortest, longest = (round(s * FPS) for s in (self.min_seconds, self.max_seconds))
        measured = self.syncnet is not None
        return [
            Decode(),
            Resample(),
            Shots(),
            Segments(shortest, longest),
            OneFace(self.size, self.min_face_px, self.detect_every),
            Sync(measured, self.size, self.min_confidence, self.max_offset, shortest),
            Quality(self.size, self.min_quality)
            if self.hyper_iqa
            else Sharpness(self.size, self.min_sharpness),
        ]

    def write(self) -> Write:
        return Write(self.size, self.form)

    def tools(self, folder: Path) -> Tools:
        """Load the detector and the nets that a process works with.

        Raises:
            WeightsError, OptionError, BackendUnavailable: something is missing.
        """
        device, _ = devices.choose(self.device)
        detector = faces.create(
            self.detector,
            root=checkpoints.root(self.weights) / "auxiliary",
            gpu=devices.is_cuda(device),
        )
        syncnet = load_net(EvalSyncNet, self.syncnet, device=device) if self.syncnet else None
        hyper_iqa = load_hyper_iqa(self.hyper_iqa, device) if self.hyper_iqa else None
        return Tools(detector, syncnet, hyper_iqa, folder)

    def signature(self, tools: Tools) -> str:
        """Everything that the clips of a file depend on beside the file, as JSON."""
        steps: list[Versioned] = [*self.steps(), self.write()]
        said = [[step.name, step.version, vars(step)] for step in steps]
        nets = [path and file_digest(path) for path in (self.syncnet, self.hyper_iqa)]
        return json.dumps([said, tools.detector.describe(), *nets])
