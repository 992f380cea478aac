"""Train the demo model from scratch, part by part; `make train-demo` runs all parts.

Its speech encoder comes out of train_ear.py, and is not trained further.

Each part writes its result to --out. Called again, a part resumes from the last clip drawn or the
last checkpoint. Seeds are fixed; the figures are in benchmarks/demo_training.md.
`--scale 0.005 --weights out/try` tries all parts in a few minutes, on hardly any data.
"""

import argparse
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
import torch
from scipy.signal import resample_poly

from latentsync.audio.whisper import SpeechEncoder
from latentsync.diffusion import weights
from latentsync.diffusion.config import PRESETS, ModelConfig
from latentsync.diffusion.unet import UNet
from latentsync.diffusion.vae import VAE
from latentsync.training.crops import Pixels
from latentsync.training.demo_windows import (
    PreparedWindows,
    SpeakerWindows,
    encode_latents,
    encode_sound,
)
from latentsync.training.loop import TrainingTask, fit
from latentsync.training.plots import draw_curves
from latentsync.training.settings import TrainConfig, UNetTrainConfig
from latentsync.training.synthetic import (
    Speech,
    draw_take,
)
from latentsync.training.synthetic.clips import draw_crops
from latentsync.training.synthetic.recordings import draw_recording
from latentsync.training.synthetic.speech import TRAINED_LANGUAGES
from latentsync.training.tasks.autoencoder import AutoencoderTask, DecoderTask, latent_statistics
from latentsync.training.tasks.unet import UNetTask
from latentsync.types import FloatArray

log = logging.getLogger("train_demo")

DEMO = PRESETS["demo"]
EAR = Path("out/train-ear")
WEIGHTS = Path(__file__).parent.parent / "weights" / "demo"
FACES_SEED = 1  # all seeds of training are below 100

PEOPLE, HELD_OUT_PEOPLE = 600, 24
CLIP_SECONDS, WINDOWS, WINDOW_FRAMES, JITTER = 8.0, 3, 16, 0.03

AUTOENCODER = TrainConfig("autoencoder", steps=4000, batch=4, learning_rate=1.5e-3)
SPEAK = UNetTrainConfig(  # on single frames of many people: the mouth learns to follow the voice
    "speak",
    steps=10000,
    batch=16,
    learning_rate=1.2e-3,
    frames=1,
    loss_weighting="velocity",
    mask_weight=3.0,
    speech_dropout=0.1,
)
MOVE = replace(  # then on groups of frames: the motion modules learn temporal consistency
    SPEAK, name="move", steps=500, batch=1, learning_rate=5e-4, frames=16, trainable=("motion_",)
)
POLISH = TrainConfig("polish", steps=1300, batch=8, learning_rate=8e-4, ema_decay=0.995)


@dataclass(frozen=True)
class Job:
    """Where the results go, and how much is drawn and trained."""

    out: Path
    ear: Path
    weights: Path
    workers: int
    scale: float

    def count(self, full: int, least: int = 2) -> int:
        return max(least, round(full * self.scale))

    def fit(self, task: TrainingTask, config: TrainConfig) -> None:
        fit(task, replace(config, steps=self.count(config.steps)), self.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/train-demo"))
    parser.add_argument(
        "--ear",
        type=Path,
        default=Path("out/train-ear/speech.pt"),
        help="train_ear.py's results",
    )
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--scale", type=float, default=1.0, help="of data and steps; 1: all")
    parser.add_argument("--parts", nargs="*", default=list(PARTS), choices=list(PARTS))
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, datefmt="%H:%M:%S")
    job = Job(options.out, options.ear, options.weights, options.workers, options.scale)
    for part in options.parts:
        started = time.monotonic()
        PARTS[part](job)
        log.info("%s took %.0f s", part, time.monotonic() - started)


# -- 1. Faces ---------------------------------------------------------------------------


def draw_people(job: Job) -> None:
    """Draw aligned crops of talking heads, in windows as long as the U-Net's groups."""
    count = job.count(PEOPLE) + job.count(HELD_OUT_PEOPLE)
    person = partial(_person, recordings=job.ear / "recordings")
    _draw(person, job.out / "people", count, job.workers)


def _person(index: int, folder: Path, recordings: Path) -> None:
    rng = np.random.default_rng([FACES_SEED, index, 1])
    # Two of three speak what train_ear.py recorded, the third by espeak-ng.
    speech = draw_recording(recordings, rng, CLIP_SECONDS) if index % 3 else None
    take = draw_take(FACES_SEED, index, CLIP_SECONDS, languages=TRAINED_LANGUAGES, speech=speech)
    crops = draw_crops(
        take, rng, windows=WINDOWS, frames=WINDOW_FRAMES, size=DEMO.resolution, jitter=JITTER
    )
    person = SpeakerWindows(crops.pixels, crops.frames, crops.mouths, _wave(take.speech))
    person.save(folder / f"{index:05d}.npz")


def _wave(speech: Speech) -> FloatArray:
    """Resample to 16 kHz, in [-1, 1]."""
    return (resample_poly(speech.wave.astype(np.float32), 320, 441) / 32768).astype(np.float32)


def _draw(make: Callable[..., None], folder: Path, count: int, workers: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    missing = [i for i in range(count) if not (folder / f"{i:05d}.npz").is_file()]
    with ProcessPoolExecutor(workers, get_context("spawn"), _one_thread) as pool:
        for done, _ in enumerate(pool.map(partial(make, folder=folder), missing), 1):
            if done % 100 == 0:
                log.info("%s: %d of %d", folder.name, done, len(missing))


def _one_thread() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)


def people(job: Job) -> tuple[list[SpeakerWindows], list[SpeakerWindows]]:
    """The people to train on, and the held-out ones."""
    paths = sorted((job.out / "people").glob("[0-9]*.npz"))
    found, known = [SpeakerWindows.load(path) for path in paths], job.count(PEOPLE)
    return found[:known], found[known:]


# -- 2. Autoencoder --------------------------------------------------------------------------------


def train_autoencoder(job: Job) -> None:
    shown, held_out = (_crops(part) for part in people(job))
    torch.manual_seed(AUTOENCODER.seed)
    vae = VAE(DEMO.vae)
    job.fit(AutoencoderTask(vae, shown, held_out[::4], AUTOENCODER), AUTOENCODER)
    found = latent_statistics(vae, shown[::29])
    config = replace(DEMO, vae=replace(DEMO.vae, latents_mean=found.mean, latents_std=found.std))
    (job.out / "config.json").write_text(config.to_json())
    torch.save(vae.state_dict(), job.out / "vae.pt")


# -- 3. U-Net --------------------------------------------------------------------------------------


def listen(job: Job) -> None:
    """Compute the speech features of each frame, once for all steps."""
    encoder = _encoder(job)
    torch.save([encode_sound(encoder, part) for part in people(job)], job.out / "heard.pt")


def view(job: Job) -> None:
    """Compute the latents of each frame, once for all steps."""
    vae = _autoencoder(job)
    torch.save([encode_latents(vae, part) for part in people(job)], job.out / "seen.pt")


def train_speaking(job: Job) -> None:
    config, (train, held_out) = _config(job), _prepared(job)
    torch.manual_seed(SPEAK.seed)
    unet = UNet(replace(config.unet, motion="none"))
    job.fit(UNetTask(unet, train, held_out, config.resolution, SPEAK), SPEAK)
    torch.save(unet.state_dict(), job.out / "speak.pt")


def train_moving(job: Job) -> None:
    config, (train, held_out) = _config(job), _prepared(job)
    torch.manual_seed(MOVE.seed)
    unet = UNet(config.unet)
    unet.load_state_dict(
        torch.load(job.out / "speak.pt"), strict=False
    )  # all but the motion modules
    job.fit(UNetTask(unet, train, held_out, config.resolution, MOVE), MOVE)
    torch.save(unet.state_dict(), job.out / "unet.pt")


# -- 4. Decoder ------------------------------------------------------------------------------------


def polish(job: Job) -> None:
    """Train the decoder further, on the final latents."""
    vae = _autoencoder(job)
    shown, held_out = (_crops(part) for part in people(job))
    latents = torch.load(job.out / "seen.pt")[0]["clean"].flatten(0, 1)
    job.fit(DecoderTask(vae, latents, shown, held_out[::4], POLISH), POLISH)
    torch.save(vae.state_dict(), job.out / "polished.pt")


# -- 5. The model ----------------------------------------------------------------------------------


def export(job: Job) -> None:
    config = _config(job)
    unet = UNet(config.unet)
    unet.load_state_dict(torch.load(job.out / "unet.pt"))
    nets = weights.Nets(config, unet, _autoencoder(job, "polished.pt"), _encoder(job))
    weights.save(nets, job.weights)
    runs = [AUTOENCODER, SPEAK, MOVE, POLISH]
    draw_curves([job.out / f"{run.name}.csv" for run in runs], job.out / "curves.png")
    log.info("the model is in %s, its curves in %s", job.weights, job.out / "curves.png")


def _crops(part: Sequence[SpeakerWindows]) -> Pixels:
    return np.concatenate([one.pixels.reshape(-1, *one.pixels.shape[-3:]) for one in part])


def _config(job: Job) -> ModelConfig:
    return ModelConfig.from_json((job.out / "config.json").read_text())


def _encoder(job: Job) -> SpeechEncoder:
    encoder = SpeechEncoder(DEMO.whisper).eval()
    encoder.load_state_dict(torch.load(job.ear / "speech.pt"))
    return encoder


def _autoencoder(job: Job, file: str = "vae.pt") -> VAE:
    vae = VAE(_config(job).vae).eval()
    vae.load_state_dict(torch.load(job.out / file))
    return vae


def _prepared(job: Job) -> list[PreparedWindows]:
    """The windows to train on, and the held-out ones."""
    parts = zip(torch.load(job.out / "seen.pt"), torch.load(job.out / "heard.pt"), strict=True)
    return [PreparedWindows(**seen, **heard) for seen, heard in parts]


PARTS: dict[str, Callable[[Job], None]] = {
    "faces": draw_people,
    "autoencoder": train_autoencoder,
    "listen": listen,
    "view": view,
    "speak": train_speaking,
    "move": train_moving,
    "polish": polish,
    "export": export,
}

if __name__ == "__main__":
    main()
