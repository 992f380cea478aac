"""`latentsync train unet` and `latentsync train syncnet`, each read from top to bottom.

If `accelerate launch` starts several processes, they share each batch.
"""

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError

from latentsync import faces
from latentsync.diffusion import weights
from latentsync.diffusion.weights import Nets
from latentsync.errors import Cancelled, LatentSyncError, OutputError
from latentsync.evaluation.nets.syncnet import StableSyncNet, SyncNetConfig
from latentsync.runtime import checkpoints
from latentsync.runtime.devices import is_cuda
from latentsync.runtime.files import replacing
from latentsync.runtime.locks import locked_folder
from latentsync.training.batches import Prefetched
from latentsync.training.checkpoint import Facts
from latentsync.training.clip_cache import CachedClip, Preparer
from latentsync.training.clips import ClipFile, find_clips, identify_clips
from latentsync.training.dataset import ClipWindows, fingerprint, prepare, split
from latentsync.training.init_model import init_model, weights_key
from latentsync.training.loop import TrainingTask, create_accelerator, fit
from latentsync.training.pixel_losses import load_pixel_losses
from latentsync.training.plots import draw_curves
from latentsync.training.presets import SyncNetTrainConfig
from latentsync.training.settings import TrainConfig, TrainingSettings, UNetTrainConfig
from latentsync.training.tasks.syncnet import ClipPairs, SyncNetTask
from latentsync.training.tasks.unet import UNetTask
from latentsync.types import ProgressCallback

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["Show", "train_syncnet", "train_unet"]

log = logging.getLogger(__name__)

Cancel = Callable[[], bool]
Show = Callable[[Nets, faces.Detector, Path, Path, Path, Cancel], dict[str, float]]
"""Makes a validation clip and measures it: the nets, the detector, the clips that give the face
and the voice, the mp4 to write, and a function that is true when the run is to stop."""

# By accelerate's names of precisions.
AUTOCAST = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FIGURES = "figures.json"  # of the best validation so far, in the folder of its model
Shared = TypeVar("Shared")


def train_unet(
    run: UNetTrainConfig,
    settings: TrainingSettings,
    *,
    init: str | Path,
    syncnet_file: Path | None = None,
    syncnet_config: SyncNetConfig | None = None,
    show: Show | None = None,
    progress: ProgressCallback | None = None,
    cancel: Cancel | None = None,
) -> Path:
    """Train a U-Net on a folder of clips; called again, it resumes from its last checkpoint.

    Args:
        init: the model to start from: a published one's name, or a folder.
        syncnet_file, syncnet_config: the net of the lip-sync loss, see `load_pixel_losses`.
        show: makes a clip at each validation.

    Returns:
        The folder of the model, which `latentsync.load` takes.

    Raises:
        Cancelled: `cancel` returned true; the next call resumes.
        InputError: there is no clip.
        OutputError: another run fills the folder, or it can't be written.
        TrainingError: too many clips are unusable, a loss is not finite, or a file is damaged.
        WeightsError, OptionError, BackendUnavailable: something the run needs is missing.
    """
    with _open_run(run, settings, progress, cancel) as opened:
        accelerator = opened.accelerator
        torch.manual_seed(run.seed)
        nets = init_model(init, run, settings.weights)
        side = nets.config.resolution
        for net in (nets.unet, nets.vae, nets.speech):
            net.to(accelerator.device)
        losses = load_pixel_losses(
            *(nets.vae, run, settings.weights),
            side=side,
            syncnet_file=syncnet_file,
            syncnet_config=syncnet_config,
            device=accelerator.device,
            dtype=AUTOCAST[accelerator.mixed_precision],
        )
        data = opened.prepare_clips(nets, run.frames)
        windows = ClipWindows(data.train, pixels=side if losses and losses.sees_pixels else None)
        validation = _UNetValidation(nets, data, settings.output, show, cancel or (lambda: False))
        task = UNetTask(
            *(nets.unet, Prefetched(windows), ClipWindows(data.held_out), side, run),
            pixel_losses=losses,
            show=validation if accelerator.is_main_process else None,
            cancel=cancel,
        )
        facts = {"--init": (str(init), weights_key(nets.unet))}
        if losses and losses.syncnet:
            facts["--syncnet"] = ("a SyncNet", weights_key(losses.syncnet))
        opened.fit(task, {**facts, **data.facts})
        if accelerator.is_main_process:
            _write_model(nets, settings.output / "model")
    return settings.output / "model"


def train_syncnet(
    run: SyncNetTrainConfig,
    settings: TrainingSettings,
    *,
    model: str | Path,
    progress: ProgressCallback | None = None,
    cancel: Cancel | None = None,
) -> Path:
    """Train a StableSyncNet on a folder of clips; called again, it resumes.

    Args:
        model: its VAE and detector prepare the clips, at the resolution that the SyncNet sees. A
            U-Net run of the same model and resolution can share the cache.

    Returns:
        The file, which `load_syncnet` takes with `run.net`.

    Raises:
        LatentSyncError: as `train_unet`.
    """
    file, best = (settings.output / f"{name}.safetensors" for name in ("syncnet", "best"))
    with _open_run(run, settings, progress, cancel) as opened:
        device, main = opened.accelerator.device, opened.accelerator.is_main_process
        nets = weights.load_nets(model, folder=settings.weights)
        side = run.net.side * (nets.vae.config.downsampling if run.net.latent else 1)
        nets = replace(nets, config=replace(nets.config, resolution=side))
        for frozen in (nets.vae, nets.speech):
            frozen.to(device)
        torch.manual_seed(run.seed)
        net = StableSyncNet(run.net).to(device)
        data = opened.prepare_clips(nets, run.net.frames)
        pixels = None if run.net.latent else side
        train, held_out = (
            ClipPairs(clips, pixels, frames=run.net.frames) for clips in (data.train, data.held_out)
        )

        def keep(found: Mapping[str, float]) -> None:
            _write_syncnet(net, file)
            figures = best.with_suffix(".json")
            if _is_best(-found["best_accuracy"], figures):
                _write_syncnet(net, best)
                _write_figures(figures, -found["best_accuracy"], found)

        keep_if_main = keep if main else None
        task = SyncNetTask(net, train, held_out, run, keep=keep_if_main, cancel=cancel)
        opened.fit(task, data.facts)
        if main:
            _write_syncnet(net, file)
    return file


# -- What both runs share --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Data:
    """The clips of a run, and what prepared them."""

    preparer: Preparer
    clips: list[CachedClip]
    train: list[CachedClip]
    held_out: list[CachedClip]

    @property
    def facts(self) -> Facts:
        detector = self.preparer.detector.describe()
        return {
            "--data": (f"{len(self.clips)} clips", fingerprint(self.clips)),
            "--held-out": (f"{len(self.held_out)} clips held out", fingerprint(self.held_out)),
            "--detector": (detector, detector),
            "the nets that prepare clips": (
                self.preparer.nets.config.name,
                self.preparer.nets_digest,
            ),
        }


@dataclass(frozen=True)
class _OpenRun:
    """A run whose output folder this process, or the main one, has locked."""

    config: TrainConfig
    settings: TrainingSettings
    paths: list[Path]  # of the clips
    accelerator: "Accelerator"
    progress: ProgressCallback | None
    cancel: Cancel | None

    def prepare_clips(self, nets: Nets, frames: int) -> _Data:
        """Prepare the clips and split them; each process prepares a share.

        The main process then goes over all clips again, finds them prepared, and raises if too many
        are unusable.
        """
        settings, accelerator = self.settings, self.accelerator
        detector = faces.create(
            settings.detector or nets.config.detector,
            root=checkpoints.root(settings.weights) / "auxiliary",
            gpu=is_cuda(accelerator.device),
        )
        preparer = Preparer(nets, detector, settings.cache or settings.output / "cache")
        files: list[ClipFile] = []
        clips: list[CachedClip] = []
        if accelerator.is_main_process:
            where = settings.data, preparer.cache
            files = identify_clips(self.paths, *where, self.progress, self.cancel)
        if accelerator.num_processes > 1:
            files = _from_main(files, accelerator)
            for file in files[accelerator.process_index :: accelerator.num_processes]:
                preparer.clip(file)
            accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            clips = prepare(files, preparer, self.progress, self.cancel, frames=frames)
        clips = _from_main(clips, accelerator)
        train, held_out = split(clips, settings.held_out)
        log.info("%d clips to train on, %d to validate on", len(train), len(held_out))
        return _Data(preparer, clips, train, held_out)

    def fit(self, task: TrainingTask, facts: Facts) -> None:
        fit(
            *(task, self.config, self.settings.output),
            facts=facts,
            progress=self.progress,
            cancel=self.cancel,
            accelerator=self.accelerator,
        )
        if not self.accelerator.is_main_process:
            return
        picture = self.settings.output / "curves.png"
        try:
            draw_curves([self.settings.output / f"{self.config.name}.csv"], picture)
        except OSError as error:  # the model can still be written
            log.warning("%s can't be written (%s)", picture, error)


@contextmanager
def _open_run(
    run: TrainConfig,
    settings: TrainingSettings,
    progress: ProgressCallback | None,
    cancel: Cancel | None,
) -> Iterator[_OpenRun]:
    """Find the clips and lock the output folder, in the main process for all of them.

    Raises:
        OutputError: another run holds the folder; raised in every process.
    """
    paths = find_clips(settings.data)
    accelerator = create_accelerator(run.precision, cpu=settings.cpu)
    with ExitStack() as stack:
        trouble = None
        if accelerator.is_main_process:
            try:
                stack.enter_context(locked_folder(settings.output))
                _recover_models(settings.output)
            except OutputError as error:
                trouble = str(error)
        trouble = _from_main(trouble, accelerator)
        if trouble is not None:
            raise OutputError(trouble)
        yield _OpenRun(run, settings, paths, accelerator, progress, cancel)


def _from_main(value: Shared, accelerator: "Accelerator") -> Shared:
    """Return the main process's value in every process."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    (found,) = broadcast_object_list([value])
    return found


# -- What a run writes -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _UNetValidation:
    """Writes the model at each validation, and a clip of a held-out face and another voice."""

    nets: Nets
    data: _Data
    output: Path
    show: Show | None
    cancel: Cancel

    def __call__(self, found: Mapping[str, float]) -> dict[str, float]:
        _write_model(self.nets, self.output / "model")
        if _is_best(found["noise_right"], self.output / "best" / FIGURES):
            _write_model(self.nets, self.output / "best", found)
        if self.show is None:
            return {}
        face = min(self.data.held_out, key=len)
        voice = min((clip for clip in self.data.clips if clip is not face), key=len, default=face)
        folder = self.output / "validation"
        folder.mkdir(exist_ok=True)
        numbers = [int(path.stem) for path in folder.glob("*.mp4") if path.stem.isdecimal()]
        film = folder / f"{max(numbers, default=0) + 1:04d}.mp4"
        detector = self.data.preparer.detector
        try:
            with torch.autocast("cpu", enabled=False):  # a run's geometry is float32
                return self.show(
                    self.nets, detector, face.file.path, voice.file.path, film, self.cancel
                )
        except Cancelled:
            raise
        except LatentSyncError as error:  # no reason to lose days of training
            log.warning("no figures of a validation clip: %s", error)
            return {}


def _is_best(figure: float, file: Path) -> bool:
    """Whether no earlier figure was lower; true if the file can't be read."""
    try:
        return not json.loads(file.read_text())["lowest"] < figure
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _write_figures(file: Path, lowest: float, found: Mapping[str, float]) -> None:
    with replacing(file) as temporary:
        temporary.write_text(json.dumps({"lowest": lowest, **found}) + "\n")


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Turn a failure to write into an OutputError."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"{path} can't be written ({error}); make room, and start again: the run goes on"
        ) from error


def _write_syncnet(net: StableSyncNet, file: Path) -> None:
    state = {name: value.cpu().contiguous() for name, value in net.state_dict().items()}
    with _written(file):
        checkpoints.write_tensors(state, file)


def _write_model(nets: Nets, folder: Path, found: Mapping[str, float] | None = None) -> None:
    """Write a model to a hidden folder, then rename it over an earlier one.

    Raises:
        OutputError: it can't be written; the earlier one stays.
    """
    new, old = _hidden(folder)
    try:
        with _written(folder):
            shutil.rmtree(new, ignore_errors=True)
            weights.save(nets, new)
            if found is not None:
                _write_figures(new / FIGURES, found["noise_right"], found)
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
    except OutputError:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _hidden(folder: Path) -> tuple[Path, Path]:
    """Where a model is written first, and where the one that it replaces is moved."""
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _recover_models(output: Path) -> None:
    """Put back a model that a killed run was replacing, and remove what the run left."""
    for name in ("model", "best"):
        new, old = _hidden(output / name)
        if old.exists() and not (output / name).exists():
            old.rename(output / name)
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
