"""Cog's door to training: one speaker's clips in, one `train_unet`, one zip of weights out.

What is served (see predict.py) learns from the clips; predict.py serves the zip by
`setup(weights)`. Cog reads this file as text, too: inputs are declared by single literals.
"""
# ruff: noqa: B008 - Cog declares inputs by calls in the signature

import logging
import os
import secrets
import shutil
import sys
import tempfile
import uuid
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path as LocalPath

from cog import Input, Path, current_scope

from latentsync.errors import WeightsMissing
from latentsync.options import MAX_SEED, Options
from latentsync.runtime.archives import pack, unpack
from latentsync.runtime.checkpoints import download
from latentsync.runtime.downloads import SETS
from latentsync.runtime.progress import interruptible
from latentsync.runtime.scratch import Scratch
from latentsync.training.clips import SUFFIXES
from latentsync.training.main import train_unet
from latentsync.training.presets import UNET_RUNS
from latentsync.training.settings import TrainingSettings, UNetTrainConfig
from predict import Tenths

log = logging.getLogger("latentsync.train")

CLIPS = "a zip of clips with sound, of one speaker's face, 2 s or longer each"
answers: list[LocalPath] = []  # the folder of the last one, if there was one
scratches: list[Scratch] = []  # of this process, once `setup` has run


def train(
    clips: Path = Input(
        description="A zip of clips with sound, of one speaker's face, 2 s or longer each."
    ),
    steps: int = Input(description="Each sees 16 frames of a clip.", ge=1, le=100000, default=500),
    learning_rate: float = Input(
        description="0 is what suits the model: 0.00001, demo's 0.0001.", ge=0, le=0.01, default=0
    ),
    seed: int = Input(description="0 draws one, shown in the log.", ge=0, le=4294967295, default=0),
) -> Path:
    """Tune the served model to a speaker.

    The answer is the file itself, not an object that holds it: of such an object Cog 0.23.1 uploads
    no file, and keeps its text several times in memory.
    """
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("latentsync").setLevel(logging.INFO)
    _forget()  # the answer before this one; by now Cog has sent it
    model = os.environ.get("LATENTSYNC_MODEL", "v1.6")
    run = _run(model, int(steps), float(learning_rate), int(seed))
    log.info("%s, from %s: %d steps, seed %d", run.name, model, run.steps, run.seed)
    try:
        with ExitStack() as opened:
            for scratch in scratches:
                scratch.use(clips)
                opened.enter_context(scratch.unbounded())  # a cache may be larger than the clips
            folder = opened.enter_context(tempfile.TemporaryDirectory(prefix="latentsync-"))
            tuned = _tuned(model, run, LocalPath(str(clips)), LocalPath(folder))
            answers.append(LocalPath(tempfile.mkdtemp(prefix="latentsync-")))
            weights = answers[-1] / f"{uuid.uuid4().hex}.zip"  # its name in a store of uploads
            pack(tuned, weights)
    except BaseException as error:  # a cancellation is no Exception
        _forget()
        log.info("stopped: %s", type(error).__name__, exc_info=isinstance(error, Exception))
        raise
    current_scope().record_metric("seed", run.seed)
    return Path(weights)


def setup() -> None:
    """Keep temporary files in a folder of this process; remove those that ended ones left.

    Cog downloads clips in this process and leaves them where that fails: `train` isn't called then.
    """
    scratch = Scratch()
    scratch.bound(int(os.environ.get("LATENTSYNC_MAX_FILE") or Options.max_bytes))
    scratch.sweep_always()
    scratches.append(scratch)


train.setup = setup  # type: ignore[attr-defined]  # Cog 0.23.1 calls it before the first download


def _run(model: str, steps: int, learning_rate: float, seed: int) -> UNetTrainConfig:
    """The run that suits a model; what judges pictures of stage 2 knows no drawn faces."""
    config = LocalPath(model) / "config.json"
    drawn = model == "demo" or (config.is_file() and '"builtin"' in config.read_text())
    preset = UNET_RUNS["demo" if drawn else "stage2_efficient"]
    return replace(
        preset,
        steps=steps,
        learning_rate=learning_rate or preset.learning_rate,
        seed=seed or 1 + secrets.randbelow(MAX_SEED),
        resolution=0,  # the model's own
        log_every=min(preset.log_every, max(1, steps // 20)),
        validate_every=steps,
        checkpoint_every=steps,
    )


def _tuned(model: str, run: UNetTrainConfig, clips: LocalPath, work: LocalPath) -> LocalPath:
    """The folder of the model that was tuned to the clips; all is kept in `work`."""
    data = work / "clips"
    unpack(clips, data, SUFFIXES, CLIPS)

    def tune() -> LocalPath:
        return interruptible(
            lambda asked: train_unet(
                run,
                # A speaker's few clips are all trained on.
                TrainingSettings(data, work / "run", held_out=0),
                init=model,
                progress=Tenths(),
                cancel=asked,
            )
        )

    try:
        return tune()
    except WeightsMissing:
        if run.name == "demo":  # of it, nothing is published
            raise
    for name in (model, "train"):
        if name in SETS:
            download(name)
    return tune()


def _forget() -> None:
    """Delete what was answered; Cog leaves it to us."""
    while answers:
        shutil.rmtree(answers.pop(), ignore_errors=True)
