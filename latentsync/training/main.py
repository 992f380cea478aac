"""`latentsync train unet`, read from top to bottom; the command line only gives the arguments."""

import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from latentsync import faces, weights
from latentsync.config import UNetTrainConfig
from latentsync.errors import LatentSyncError
from latentsync.training.batches import Ahead
from latentsync.training.curves import draw_curves
from latentsync.training.dataset import Clip, ClipWindows, Preparer, find_clips, prepare, split
from latentsync.training.fleet import accelerated
from latentsync.training.loop import fit
from latentsync.training.pixels import load_pixel_losses
from latentsync.training.start import start
from latentsync.training.unet import UNetTask
from latentsync.types import ProgressCallback
from latentsync.weights import Nets

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Show", "train_unet"]

log = logging.getLogger(__name__)

Show = Callable[[Nets, faces.Detector, Path, Path, Path], dict[str, float]]
"""Nets as they are, detector, the clips that give the face and the voice, the mp4 to write ->
figures of it."""


def train_unet(
    run: UNetTrainConfig,
    data: Path,
    output: Path,
    *,
    init: str | Path,
    cache: Path | None = None,
    weights_folder: Path | str | None = None,
    detector: str | None = None,
    cpu: bool = False,
    show: Show | None = None,
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Path:
    """Train a U-Net on a folder of clips; called again, it goes on from its last checkpoint.

    Started in several processes by `accelerate launch`, they share each batch.

    Returns:
        The folder of the model, which `latentsync.load` takes.

    Raises:
        Cancelled: `cancel` said so; the next call goes on from there.
        InputError: there is no clip.
        TrainingError: too many clips can't be used, or a loss is not finite.
        WeightsError, OptionError, BackendUnavailable: something it needs is not there.
    """
    # -- Where, and in which precision -------------------------------------------------------------
    paths = find_clips(data)
    accelerator = accelerated(run.precision, cpu=cpu)
    device = accelerator.device
    main = accelerator.is_main_process
    torch.manual_seed(run.seed)

    # -- The nets: one is trained, the others are frozen -------------------------------------------
    nets = start(init, run, weights_folder)
    side = nets.config.resolution
    for net in (nets.unet, nets.vae, nets.speech):
        net.to(device)
    half = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    judges = load_pixel_losses(
        nets.vae, run, weights_folder, device=device, dtype=half[accelerator.mixed_precision]
    )
    finder = faces.create(
        detector or nets.config.detector,
        root=weights.root(weights_folder) / "auxiliary",
        gpu=device.type not in ("cpu", "mps"),
    )

    # -- The clips ---------------------------------------------------------------------------------
    preparer = Preparer(nets, finder, cache or output / "cache")
    clips = _prepared(paths, preparer, accelerator, progress if main else None, cancel)
    seen, held_out = split(clips)
    log.info("%d clips to train on, %d held out", len(seen), len(held_out))

    # -- The run -----------------------------------------------------------------------------------
    def look() -> dict[str, float]:
        """At a validation: the model as it is, and what it makes of a face and another's voice."""
        _export(nets, output / "model")
        if show is None:
            return {}
        face = min(held_out, key=len)
        voice = min((one for one in clips if one is not face), key=len, default=face)
        folder = output / "validation"
        folder.mkdir(exist_ok=True)
        number = len(list(folder.glob("*.mp4"))) + 1
        try:
            with torch.autocast("cpu", enabled=False):  # the geometry of a run is float32 and there
                return show(nets, finder, face.path, voice.path, folder / f"{number:04d}.mp4")
        except LatentSyncError as error:  # days of training are worth more than a clip
            log.warning("no figures of a validation clip: %s", error)
            return {}

    task = UNetTask(
        nets.unet,
        Ahead(ClipWindows(seen, pixels=side if judges else None)),
        ClipWindows(held_out),
        side,
        run,
        pixel_losses=judges,
        show=look if main else None,
    )
    fit(task, run, output, progress=progress, cancel=cancel, accelerator=accelerator)

    # -- The result --------------------------------------------------------------------------------
    if main:
        _export(nets, output / "model")
        draw_curves([output / f"{run.name}.csv"], output / "curves.png")
    return output / "model"


def _prepared(
    paths: Sequence[Path],
    preparer: Preparer,
    accelerator: "Accelerator",
    progress: ProgressCallback | None,
    cancel: Callable[[], bool] | None,
) -> list[Clip]:
    """Each process prepares its share; then the first one, which finds it all done, judges."""
    if accelerator.num_processes == 1:
        return prepare(paths, preparer, progress, cancel)
    from accelerate.utils import broadcast_object_list

    for path in paths[accelerator.process_index :: accelerator.num_processes]:
        preparer.clip(path)
    accelerator.wait_for_everyone()
    main = accelerator.is_main_process
    clips = [prepare(paths, preparer, progress, cancel) if main else None]
    (found,) = broadcast_object_list(clips)
    assert found is not None
    return found


def _export(nets: Nets, folder: Path) -> None:
    """Put the model in the place of an earlier one, in one move."""
    fresh, old = (folder.with_name(f".{folder.name}.{word}") for word in ("new", "old"))
    shutil.rmtree(fresh, ignore_errors=True)
    weights.save(nets, fresh)
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
