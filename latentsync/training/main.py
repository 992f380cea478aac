"""`latentsync train`, each net read from top to bottom; the command line only gives arguments."""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError

from latentsync import faces
from latentsync.diffusion import weights
from latentsync.diffusion.weights import Nets
from latentsync.errors import Cancelled, LatentSyncError, OutputError
from latentsync.evaluation.nets.syncnet import StableSyncNet, SyncNetConfig
from latentsync.runtime import checkpoints
from latentsync.runtime.devices import is_cuda
from latentsync.runtime.files import locked, replacing
from latentsync.training.batches import Prefetched
from latentsync.training.checkpoint import Facts
from latentsync.training.clip_cache import CachedClip, Preparer, swept
from latentsync.training.clips import ClipFile, find_clips, identified
from latentsync.training.dataset import ClipWindows, fingerprint, prepare, split
from latentsync.training.distributed import accelerated
from latentsync.training.init_model import start, weights_key
from latentsync.training.loop import fit
from latentsync.training.pixel_losses import PixelLosses, load_pixel_losses
from latentsync.training.plots import draw_curves
from latentsync.training.presets import SyncNetTrainConfig, UNetTrainConfig
from latentsync.training.tasks.syncnet import ClipPairs, SyncNetTask
from latentsync.training.tasks.unet import UNetTask
from latentsync.types import ProgressCallback

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Show", "train_syncnet", "train_unet"]

log = logging.getLogger(__name__)

Cancel = Callable[[], bool]
Show = Callable[[Nets, faces.Detector, Path, Path, Path, Cancel], dict[str, float]]
"""Nets as they are, detector, the clips that give the face and the voice, the mp4 to write, and
what tells to stop -> figures of it."""

HALF = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # by accelerate's names
FIGURES = "figures.json"  # of the best validation so far, beside what was kept of it
Shared = TypeVar("Shared")


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
    held_out: int | None = None,
    cpu: bool = False,
    show: Show | None = None,
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Path:
    """Train a U-Net on a folder of clips; called again, it goes on from its last checkpoint.

    Started in several processes by `accelerate launch`, they share each batch.

    Args:
        syncnet_file: of the loss on lip-sync, and what is in it: see `load_pixel_losses`.
        held_out: how many clips are only validated on, see `split`; 0: all are trained on.

    Returns:
        The folder of the model, which `latentsync.load` takes.

    Raises:
        Cancelled: `cancel` said so; the next call goes on from there.
        InputError: there is no clip.
        OutputError: another run fills the folder, or it can't be written.
        TrainingError: too many clips can't be used, a loss is not finite, or a file of the run is
            damaged.
        WeightsError, OptionError, BackendUnavailable: something it needs is not there.
    """
    paths = find_clips(data)
    accelerator = accelerated(run.precision, cpu=cpu)
    device, main = accelerator.device, accelerator.is_main_process
    torch.manual_seed(run.seed)
    with _held(output, accelerator):
        # -- The nets: one is trained, the others are frozen ---------------------------------------
        nets = start(init, run, weights_folder)
        side = nets.config.resolution
        for net in (nets.unet, nets.vae, nets.speech):
            net.to(device)
        sync: dict[str, Any] = {"syncnet_file": syncnet_file, "syncnet_config": syncnet_config}
        place = {"device": device, "dtype": HALF[accelerator.mixed_precision]}
        judges = load_pixel_losses(nets.vae, run, weights_folder, side=side, **sync, **place)

        # -- The clips -----------------------------------------------------------------------------
        preparer = _preparer(nets, detector, weights_folder, device, cache or output / "cache")
        clips = _prepared(paths, data, preparer, accelerator, run.frames, progress, cancel)
        seen, held = split(clips, held_out)
        log.info("%d clips to train on, %d to validate on", len(seen), len(held))

        # -- The run, and the result ---------------------------------------------------------------
        windows = ClipWindows(seen, pixels=side if judges and judges.sees_pixels else None)
        keep = _Keeper(nets, preparer.detector, clips, held, output, show, cancel or _never)
        task = UNetTask(
            *(nets.unet, Prefetched(windows), ClipWindows(held), side, run),
            pixel_losses=judges,
            show=keep if main else None,
            cancel=cancel,
        )
        facts = {"--init": (str(init), weights_key(nets.unet)), **_judged_by(judges)}
        facts |= _facts(clips, held, preparer)
        ways = {"progress": progress, "cancel": cancel, "accelerator": accelerator}
        fit(task, run, output, facts=facts, **ways)
        if main:
            _export(nets, output / "model")
            _draw(output, run.name)
    return output / "model"


@dataclass(frozen=True)
class _Keeper:
    """At a validation: writes the model as it is, and what it makes of a face and a voice."""

    nets: Nets
    detector: faces.Detector
    clips: Sequence[CachedClip]
    held: Sequence[CachedClip]
    output: Path
    show: Show | None
    cancel: Cancel

    def __call__(self, found: Mapping[str, float]) -> dict[str, float]:
        _export(self.nets, self.output / "model")
        if _is_best(found["noise_right"], self.output / "best" / FIGURES):
            _export(self.nets, self.output / "best", found)
        if self.show is None:
            return {}
        face = min(self.held, key=len)
        voice = min((one for one in self.clips if one is not face), key=len, default=face)
        film = _next_film(self.output / "validation")
        try:
            with torch.autocast("cpu", enabled=False):  # a run's geometry is float32, and so there
                return self.show(self.nets, self.detector, face.path, voice.path, film, self.cancel)
        except Cancelled:
            raise
        except LatentSyncError as error:  # days of training are worth more than a clip
            log.warning("no figures of a validation clip: %s", error)
            return {}


def train_syncnet(
    run: SyncNetTrainConfig,
    data: Path,
    output: Path,
    *,
    model: str | Path,
    cache: Path | None = None,
    weights_folder: Path | str | None = None,
    detector: str | None = None,
    held_out: int | None = None,
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
    with _held(output, accelerator):
        # -- The clips -----------------------------------------------------------------------------
        preparer = _preparer(nets, detector, weights_folder, device, cache or output / "cache")
        clips = _prepared(paths, data, preparer, accelerator, run.net.frames, progress, cancel)
        parts = split(clips, held_out)
        pixels = None if run.net.latent else side
        seen, held = (ClipPairs(part, pixels, frames=run.net.frames) for part in parts)
        log.info("%d clips to train on, %d to validate on", *map(len, parts))

        # -- The run, and the result ---------------------------------------------------------------
        file, best = output / "syncnet.safetensors", output / "best.safetensors"

        def keep(found: Mapping[str, float]) -> None:
            _write_syncnet(net, file)
            figures = best.with_suffix(".json")
            if _is_best(-found["best_accuracy"], figures):
                _write_syncnet(net, best)
                _write_figures(figures, -found["best_accuracy"], found)

        task = SyncNetTask(net, seen, held, run, keep=keep if main else None, cancel=cancel)
        fit(
            task,
            run,
            output,
            facts=_facts(clips, parts[1], preparer),
            progress=progress,
            cancel=cancel,
            accelerator=accelerator,
        )
        if main:
            _write_syncnet(net, file)
            _draw(output, run.name)
    return file


@contextmanager
def _held(output: Path, accelerator: "Accelerator") -> Iterator[None]:
    """Hold the folder by the main process, for all of them.

    Raises:
        OutputError: another run holds it; so in every process.
    """
    with ExitStack() as stack:
        trouble = None
        if accelerator.is_main_process:
            try:
                stack.enter_context(locked(output))
                _healed(output)
            except OutputError as error:
                trouble = str(error)
        trouble = _shared(trouble, accelerator)
        if trouble is not None:
            raise OutputError(trouble)
        yield


def _shared(value: Shared, accelerator: "Accelerator") -> Shared:
    """The main process's, in each."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    (found,) = broadcast_object_list([value])
    return found


def _preparer(
    nets: Nets,
    detector: str | None,
    weights_folder: Path | str | None,
    device: torch.device,
    cache: Path,
) -> Preparer:
    finder = faces.create(
        detector or nets.config.detector,
        root=checkpoints.root(weights_folder) / "auxiliary",
        gpu=is_cuda(device),
    )
    return Preparer(nets, finder, cache)


def _prepared(
    paths: Sequence[Path],
    data: Path,
    preparer: Preparer,
    accelerator: "Accelerator",
    frames: int,
    progress: ProgressCallback | None,
    cancel: Callable[[], bool] | None,
) -> list[CachedClip]:
    """Each process prepares its share; then the first one, which finds it all done, judges."""
    main = accelerator.is_main_process
    files: list[ClipFile] = []
    if main:
        swept(preparer.cache)
        files = identified(paths, data, preparer.cache, progress, cancel)
    if accelerator.num_processes == 1:
        return prepare(files, preparer, progress, cancel, frames=frames)
    files = _shared(files, accelerator)
    for file in files[accelerator.process_index :: accelerator.num_processes]:
        preparer.clip(file)
    accelerator.wait_for_everyone()
    clips = prepare(files, preparer, progress, cancel, frames=frames) if main else []
    return _shared(clips, accelerator)


def _facts(
    clips: Sequence[CachedClip], held: Sequence[CachedClip], preparer: Preparer
) -> dict[str, tuple[str, str]]:
    """What a run goes on with only; see `checkpoint.Facts`."""
    return {
        "--data": (f"{len(clips)} clips", fingerprint(clips)),
        "--held-out": (f"{len(held)} clips held out", fingerprint(held)),
        "--detector": (preparer.detector.describe(), preparer.detector.describe()),
        "the nets that prepare clips": (preparer.nets.config.name, preparer.nets_digest),
    }


def _judged_by(judges: PixelLosses | None) -> Facts:
    if judges is None or judges.syncnet is None:
        return {}
    return {"--syncnet": ("a SyncNet", weights_key(judges.syncnet))}


def _next_film(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    numbers = [int(path.stem) for path in folder.glob("*.mp4") if path.stem.isdecimal()]
    return folder / f"{max(numbers, default=0) + 1:04d}.mp4"


def _never() -> bool:
    return False


def _is_best(figure: float, file: Path) -> bool:
    """Whether no figure so far was lower; where that can't be read, this one is."""
    try:
        return not json.loads(file.read_text())["lowest"] < figure
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _write_figures(file: Path, lowest: float, found: Mapping[str, float]) -> None:
    with replacing(file) as temporary:
        temporary.write_text(json.dumps({"lowest": lowest, **found}) + "\n")


def _write_syncnet(net: StableSyncNet, file: Path) -> None:
    state = {name: value.cpu().contiguous() for name, value in net.state_dict().items()}
    try:
        checkpoints.write_tensors(state, file)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{file} can't be written ({error}); make room, and start again: the run goes on"
        ) from error


def _draw(output: Path, name: str) -> None:
    try:
        draw_curves([output / f"{name}.csv"], output / "curves.png")
    except OSError as error:  # the model is there
        log.warning("%s can't be written (%s)", output / "curves.png", error)


def _places(folder: Path) -> tuple[Path, Path]:
    """Where a model is written first, and where the earlier one waits until it is in its place."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _export(nets: Nets, folder: Path, found: Mapping[str, float] | None = None) -> None:
    """Put the model in the place of an earlier one.

    Raises:
        OutputError: it can't be written; the earlier one stays.
    """
    fresh, old = _places(folder)
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        weights.save(nets, fresh)
        if found is not None:
            _write_figures(fresh / FIGURES, found["noise_right"], found)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise OutputError(
            f"{folder} can't be written ({error}); make room, and start again: the run goes on"
        ) from error


def _healed(output: Path) -> None:
    """Put back a model that was being replaced when a run was killed, and remove what it left."""
    for name in ("model", "best"):
        fresh, old = _places(output / name)
        if old.exists() and not (output / name).exists():
            old.rename(output / name)
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
