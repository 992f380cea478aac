"""What the settings of preparation ask for: steps, nets and a signature."""

import json
import logging
from dataclasses import replace
from pathlib import Path

from latentsync import faces
from latentsync.evaluation.nets.eval_syncnet import EvalSyncNet
from latentsync.evaluation.nets.loading import load_net
from latentsync.runtime import checkpoints, devices
from latentsync.runtime.files import file_digest
from latentsync.training.preparation.clip import Write
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
from latentsync.training.settings import PreparationSettings

__all__ = ["hyper_iqa_file", "load_tools", "make_steps", "make_write", "resolved", "signature"]

log = logging.getLogger(__name__)

SYNCNET, HYPER_IQA = "auxiliary/syncnet_v2.model", "auxiliary/koniq_pretrained.pkl"


def syncnet_file(settings: PreparationSettings) -> Path | None:
    """Return the file of SyncNet; None if lip-sync is not measured."""
    path = checkpoints.root(settings.weights) / SYNCNET
    wanted = settings.sync == "syncnet" or (settings.sync == "auto" and path.is_file())
    return path if wanted else None


def hyper_iqa_file(settings: PreparationSettings) -> Path | None:
    """Return the file of hyperIQA; None if quality is measured without it."""
    path = checkpoints.root(settings.weights) / HYPER_IQA
    wanted = settings.quality == "hyperiqa" or (settings.quality == "auto" and path.is_file())
    return path if wanted else None


def resolved(settings: PreparationSettings) -> PreparationSettings:
    """Replace "auto" by what it means now, and log what can't be measured.

    Files that are added or removed later then change nothing.
    """
    missing = "%s is not among the weights: %s; run `latentsync download eval`"
    syncnet, hyper_iqa = syncnet_file(settings), hyper_iqa_file(settings)
    if settings.sync == "auto" and syncnet is None:
        log.warning(missing, SYNCNET, "lip-sync is not measured")
    if settings.quality == "auto" and hyper_iqa is None:
        instead = "quality is measured by the variance of the Laplacian, not by hyperIQA"
        log.warning(missing, HYPER_IQA, instead)
    return replace(
        settings,
        sync="syncnet" if syncnet else "none",
        quality="hyperiqa" if hyper_iqa else "laplacian",
    )


def make_steps(settings: PreparationSettings) -> list[Step]:
    """List the steps in their order; `make_write` comes after them."""
    size = settings.size
    shortest, longest = (round(s * FPS) for s in (settings.min_seconds, settings.max_seconds))
    measured = syncnet_file(settings) is not None
    return [
        Decode(),
        Resample(),
        Shots(),
        Segments(shortest, longest),
        OneFace(size, settings.min_face_px, settings.detect_every),
        Sync(measured, size, settings.min_confidence, settings.max_offset, shortest),
        Quality(size, settings.min_quality)
        if hyper_iqa_file(settings)
        else Sharpness(size, settings.min_sharpness),
    ]


def make_write(settings: PreparationSettings) -> Write:
    """Return the last step, which writes the clips."""
    return Write(settings.size, settings.form)


def load_tools(settings: PreparationSettings, folder: Path) -> Tools:
    """Load the detector and the nets that a process works with.

    Raises:
        WeightsError, OptionError, BackendUnavailable: something is missing.
    """
    device, _ = devices.choose(settings.device)
    detector = faces.create(
        settings.detector,
        root=checkpoints.root(settings.weights) / "auxiliary",
        gpu=devices.is_cuda(device),
    )
    syncnet, hyper_iqa = syncnet_file(settings), hyper_iqa_file(settings)
    return Tools(
        detector,
        load_net(EvalSyncNet, syncnet, device=device) if syncnet else None,
        load_hyper_iqa(hyper_iqa, device) if hyper_iqa else None,
        folder,
    )


def signature(settings: PreparationSettings, tools: Tools) -> str:
    """Return, as JSON, everything that the clips of a file depend on beside the file."""
    every: list[Versioned] = [*make_steps(settings), make_write(settings)]
    described = [[step.name, step.version, vars(step)] for step in every]
    nets = (syncnet_file(settings), hyper_iqa_file(settings))
    return json.dumps(
        [described, tools.detector.describe(), *(path and file_digest(path) for path in nets)]
    )
