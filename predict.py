"""Cog's door to latentsync: one request in, one `LipSync.run`, one file out.

Cog reads this file as text to make the request's schema: bounds, defaults and descriptions are
single literals. Served are the model $LATENTSYNC_MODEL (default v1.6) and the weights in
$LATENTSYNC_WEIGHTS (default weights/), or what train.py answered, when $COG_WEIGHTS names it.
$LATENTSYNC_COMPILE=1 makes kernels during setup, for a server that stays up. No file may have more
than $LATENTSYNC_MAX_FILE bytes (default 64 GiB), or a third of the disk that was free at the start.
"""
# ruff: noqa: B008 - Cog declares inputs by calls in the signature

import inspect
import logging
import os
import shutil
import sys
import tempfile
import uuid
from functools import partial
from pathlib import Path as LocalPath

from cog import BasePredictor, Input, Path

from latentsync import LipSync, Options, Progress
from latentsync.errors import Asker, WeightsMissing, in_words_of
from latentsync.runtime.archives import fetch_model
from latentsync.runtime.checkpoints import download
from latentsync.runtime.downloads import SETS
from latentsync.runtime.progress import interruptible
from latentsync.runtime.scratch import Scratch

log = logging.getLogger("latentsync.predict")


class Predictor(BasePredictor):  # type: ignore[misc]  # cog comes without types
    """One loaded model, one prediction at a time."""

    def setup(self, weights: Path | str | None = None) -> None:
        """Load everything once; published weights that are not there yet are fetched first.

        `weights`, Cog's $COG_WEIGHTS: a trained model's zip, its folder, or the zip's address.
        """
        logging.basicConfig(format="%(message)s", stream=sys.stderr)
        logging.getLogger("latentsync").setLevel(logging.INFO)
        self.folder: LocalPath | None = None
        self.load(weights)
        self.scratch = Scratch()  # what is made for good lies elsewhere by now
        self.scratch.bound(int(os.environ.get("LATENTSYNC_MAX_FILE") or Options.max_bytes))
        self.scratch.sweep_always()

    def load(self, weights: Path | str | None) -> None:
        """Load the model, trained or published."""
        if weights:
            with tempfile.TemporaryDirectory(prefix="latentsync-") as folder:
                self.lipsync = LipSync.load(fetch_model(str(weights), LocalPath(folder)))
            return
        model = os.environ.get("LATENTSYNC_MODEL", "v1.6")
        compiled = os.environ.get("LATENTSYNC_COMPILE") == "1"
        try:
            self.lipsync = LipSync.load(model, compile=compiled)
        except WeightsMissing:
            if model not in SETS:
                raise
            download(model)
            self.lipsync = LipSync.load(model, compile=compiled)

    def predict(
        self,
        video: Path = Input(description="The face: a clip or a picture.", accept="video/*,image/*"),
        audio: Path = Input(
            description="The voice: a sound file, or a clip whose sound is taken.",
            accept="audio/*,video/*",
        ),
        guidance_scale: float = Input(
            description="How much the voice counts; above 1 a step takes about twice as long.",
            ge=0,
            le=10,
            default=1,
        ),
        seed: int = Input(
            description="Equal seeds give equal results; 0 draws one, shown in the log.",
            ge=0,
            default=0,
        ),
        inference_steps: int = Input(
            description="Denoising steps; 0: as many as speed takes, 20 when exact.",
            ge=0,
            le=50,
            default=0,
        ),
        sync_mode: str = Input(
            description="What to do where the clip is shorter or longer than the voice.",
            choices=["bounce", "pingpong", "loop", "freeze", "cut_off", "silence", "remap"],
            default="bounce",
        ),
        fps: str = Input(
            description="Frame rate: 25, or every frame of the clip at its own time (source).",
            choices=["25", "source"],
            default="25",
        ),
        audio_track: str = Input(
            description="Sound track, where a file has several: auto, its number, or a language.",
            default="auto",
        ),
        face: str = Input(
            description="largest, left, right, center, all, or a place x,y@seconds in px.",
            default="largest",
        ),
        on_missing: str = Input(
            description="Frames without the face: keep them as they are, or fail.",
            choices=["keep", "error"],
            default="keep",
        ),
        speed: str = Input(
            description="Preset for speed: exact, or fewer operations at some cost of quality.",
            choices=["exact", "fast", "preview"],
            default="exact",
        ),
        superres: str = Input(
            description="Restore the face as well; CodeFormer is not for commercial use.",
            choices=["none", "gfpgan", "codeformer"],
            default="none",
        ),
        mask_smooth: float = Input(
            description="Softness of the transition from a restored face to the face around it.",
            ge=0,
            le=1,
            default=0.5,
        ),
        sr_ratio: float = Input(
            description="Resolution of a restored face, as a multiple of the model's.",
            ge=1,
            le=4,
            default=2,
        ),
        sr_weight: float = Input(
            description="CodeFormer's fidelity: 0 cleanest, 1 nearest to the clip.",
            ge=0,
            le=1,
            default=0.5,
        ),
    ) -> Path:
        """Make the face speak the voice."""
        self.forget()  # the answer before this one; by now Cog has sent it
        self.scratch.use(video, audio)
        self.folder = LocalPath(tempfile.mkdtemp(prefix="latentsync-"))
        output = self.folder / f"{uuid.uuid4().hex}.mp4"  # a store tells uploads apart by this name
        paths = ((video, "video"), (audio, "audio"), (output, "the output"))
        named = {str(LocalPath(path)): name for path, name in paths}  # "" is shown as "."
        named |= {str(path): name for path, name in paths}
        try:
            if superres != "none":
                download(superres)  # what is there stays
            run = partial(
                self.lipsync.run,
                str(video),  # a path that is no upload arrives as a str; run checks it
                str(audio),
                output,
                guidance_scale=float(guidance_scale),  # JSON's 2 arrives as int, its 5.0 as float
                seed=int(seed),
                steps=int(inference_steps) or None,
                sync_mode=sync_mode,
                fps=fps,
                audio_track=audio_track,
                face=face,
                on_missing=on_missing,
                speed=speed,
                superres=superres,
                mask_smooth=float(mask_smooth),
                sr_ratio=float(sr_ratio),
                sr_weight=float(sr_weight),
                progress=Tenths(),
            )
            with in_words_of(Asker(_input, named)):
                result = interruptible(lambda cancelled: run(cancelled=cancelled))
        except BaseException as error:  # a cancellation is no Exception
            self.forget()
            log.info("stopped: %s", type(error).__name__, exc_info=isinstance(error, Exception))
            raise
        self.record_metric("frames", result.frames)
        self.record_metric("faces", result.faces_found)
        self.record_metric("seed", result.seed)
        for stage, spent in result.timings.items():
            self.record_metric(f"timing.{stage}", round(spent, 3))
        return Path(result.path)

    def forget(self) -> None:
        """Delete the last prediction's file; Cog leaves it to us."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = None


class Tenths:
    """Progress for the log: each stage's start and every tenth of it."""

    def __init__(self) -> None:
        self._last: tuple[str, int] | None = None

    def __call__(self, progress: Progress) -> None:
        tenth = 10 * progress.done // progress.total if progress.total else 0
        if (progress.stage, tenth) != self._last:
            self._last = (progress.stage, tenth)
            log.info("%s: %d of %s", progress.stage, progress.done, progress.total or "?")


def _input(option: str) -> str | None:
    """What an option is called here; None: it isn't an input."""
    name = "inference_steps" if option == "steps" else option
    return name if name in inspect.signature(Predictor.predict).parameters else None
