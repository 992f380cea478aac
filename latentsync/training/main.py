"""`latentsync train`, each net read from top to bottom; the command line only gives arguments."""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from latentsync import faces, weights
from latentsync.config import SyncNetConfig, SyncNetTrainConfig, UNetTrainConfig
from latentsync.devices import is_cuda
from latentsync.errors import LatentSyncError
from latentsync.models.syncnet import StableSyncNet
from latentsync.training.batches import Ahead
from latentsync.training.curves import draw_curves
from latentsync.training.dataset import (
    Clip,
    ClipWindows,
    Preparer,
    find_clips,
    fingerprint,
    prepare,
    split,
)
from latentsync.training.fleet import accelerated
from latentsync.training.loop import fit
from latentsync.training.pixels import load_pixel_losses
from latentsync.training.start import start
from latentsync.training.syncnet import ClipPairs, SyncNetTask
from latentsync.training.unet import UNetTask
from latentsync.types import ProgressCallback
from latentsync.weights import Nets

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Show", "train_syncnet", "train_unet"]

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
    syncnet_file: Path | None = None,
    syncnet_config: SyncNetConfig | None = None,
    cache: Path | None = None,
    weights_folder: Path | str | None = None,
    detector: str | None = None,
    hold_out: bool = True,
    cpu: bool = False,
    show: Show | None = None,
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Path:
    """Train a U-Net on a folder of clips; called again, it goes on from its last checkpoint.

    Started in several processes by `accelerate launch`, they share each batch.

    Args:
        syncnet_file: of the loss on lip-sync, and what is in it: see `load_pixel_losses`.
        hold_out: whether some clips are only validated on; otherwise that is done on a known one.

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
        nets.vae,
        run,
        weights_folder,
        side=side,
        syncnet_file=syncnet_file,
        syncnet_config=syncnet_config,
        device=device,
        dtype=half[accelerator.mixed_precision],
    )

    # -- The clips ---------------------------------------------------------------------------------
    preparer = _preparer(nets, detector, weights_folder, device, cache or output / "cache")
    clips = _prepared(paths, preparer, accelerator, progress, cancel)
    seen, held_out = split(clips) if hold_out else (clips, clips[:1])
    log.info("%d clips to train on, %d to validate on", len(seen), len(held_out))

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
                film = folder / f"{number:04d}.mp4"
                return show(nets, preparer.detector, face.path, voice.path, film)
        except LatentSyncError as error:  # days of training are worth more than a clip
            log.warning("no figures of a validation clip: %s", error)
            return {}

    shown = side if judges and judges.sees_pixels else None
    task = UNetTask(
        nets.unet,
        Ahead(ClipWindows(seen, pixels=shown)),
        ClipWindows(held_out),
        side,
        run,
        pixel_losses=judges,
        show=look if main else None,
    )
    fit(
        task,
        run,
        output,
        data=fingerprint(clips),
        progress=progress,
        cancel=cancel,
        accelerator=accelerator,
    )

    # -- The result --------------------------------------------------------------------------------
    if main:
        _export(nets, output / "model")
        draw_curves([output / f"{run.name}.csv"], output / "curves.png")
    return output / "model"


def train_syncnet(
    run: SyncNetTrainConfig,
    data: Path,
    output: Path,
    *,
    model: str | Path,
    cache: Path | None = None,
    weights_folder: Path | str | None = None,
    detector: str | None = None,
    cpu: bool = False,
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Path:
    """Train a StableSyncNet on a folder of clips; called again, it goes on where it was.

    Args:
        model: whose VAE and detector prepare the clips, at the side that the SyncNet sees; a U-Net
            run of that model and side can use the same cache.

    Returns:
        The file, which `weights.load_syncnet` takes with `run.net`.

    Raises:
        LatentSyncError: one of those of `train_unet`.
    """
    # -- The nets: the model's only prepare the clips ----------------------------------------------
    paths = find_clips(data)
    accelerator = accelerated(run.precision, cpu=cpu)
    device = accelerator.device
    main = accelerator.is_main_process
    nets = weights.load_nets(model, folder=weights_folder)
    side = run.net.side * (nets.vae.config.downsampling if run.net.latent else 1)
    nets = replace(nets, config=replace(nets.config, resolution=side))
    for frozen in (nets.vae, nets.speech):
        frozen.to(device)
    torch.manual_seed(run.seed)
    net = StableSyncNet(run.net).to(device)

    # -- The clips ---------------------------------------------------------------------------------
    preparer = _preparer(nets, detector, weights_folder, device, cache or output / "cache")
    clips = _prepared(paths, preparer, accelerator, progress, cancel)
    seen, held_out = (
        ClipPairs(part, pixels=None if run.net.latent else side) for part in split(clips)
    )

    # -- The run, and the result -------------------------------------------------------------------
    file = output / "syncnet.safetensors"

    def keep() -> None:
        weights.write_tensors({k: v.cpu().contiguous() for k, v in net.state_dict().items()}, file)

    task = SyncNetTask(net, seen, held_out, run, keep=keep if main else None)
    fit(
        task,
        run,
        output,
        data=fingerprint(clips),
        progress=progress,
        cancel=cancel,
        accelerator=accelerator,
    )
    if main:
        keep()
        draw_curves([output / f"{run.name}.csv"], output / "curves.png")
    return file


def _preparer(
    nets: Nets,
    detector: str | None,
    weights_folder: Path | str | None,
    device: torch.device,
    cache: Path,
) -> Preparer:
    finder = faces.create(
        detector or nets.config.detector,
        root=weights.root(weights_folder) / "auxiliary",
        gpu=is_cuda(device),
    )
    return Preparer(nets, finder, cache)


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
