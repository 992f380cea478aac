"""A process that trains a tiny model, for tests that kill it or start two of it.

python -m tests.training_process DATA INIT CACHE OUTPUT [step after which it kills itself]
"""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch

from latentsync import faces
from latentsync.training.main import train_unet
from latentsync.training.presets import UNET_RUNS
from latentsync.training.settings import TrainingSettings
from latentsync.training.tasks import unet
from latentsync.types import Progress
from tests.stubs import StubDetector

RUN = replace(
    UNET_RUNS["demo"],
    steps=8,
    batch=2,
    log_every=2,
    validate_every=8,
    checkpoint_every=3,
    speech_dropout=0.5,
)


def main() -> None:
    data, init, cache, output = map(Path, sys.argv[1:5])
    last = int(sys.argv[5]) if len(sys.argv) > 5 else None
    faces.create = lambda *_, **__: StubDetector()
    unet.VALIDATION_WINDOWS = 4
    torch.set_num_threads(1)

    def show(progress: Progress) -> None:
        if (progress.stage, progress.done) == (RUN.name, last):
            os.kill(os.getpid(), signal.SIGKILL)

    settings = TrainingSettings(data, output, cache, cpu=True)
    train_unet(RUN, settings, init=init, progress=show)


if __name__ == "__main__":
    main()
