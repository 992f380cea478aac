"""Settings of training and of preparing its data; imports no net, for the command line."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from latentsync.errors import OptionError, option_name
from latentsync.options import GENERAL, UNBOUNDED, Option, declared

__all__ = [
    "MAX_SHIFT_FRAMES",
    "Form",
    "PreparationSettings",
    "TrainConfig",
    "TrainingSettings",
    "UNetTrainConfig",
]

_OPTION = partial(Option, GENERAL)
_COUNT = partial(_OPTION, within=(1, UNBOUNDED))
_WEIGHT = partial(_OPTION, within=(0, UNBOUNDED))

Form = Literal["around", "aligned"]  # see preparation/clip.py
MAX_SHIFT_FRAMES = 15  # the reach of SyncNet's curve


@dataclass(frozen=True)
class TrainingSettings:
    """What a run reads and writes, and where; `TrainConfig` holds how it learns."""

    data: Path  # folder of clips with sound and a face each
    output: Path  # folder to fill
    cache: Path | None = None  # folder of prepared clips; None: output / "cache"
    weights: Path | str | None = None  # folder; None: $LATENTSYNC_WEIGHTS, then weights/
    detector: str | None = None  # see `faces.create`; None: the model's
    held_out: int | None = None  # clips that are only validated on, see `split`; 0: none
    cpu: bool = False  # use no GPU


@dataclass(frozen=True)
class TrainConfig:
    """One run of the training loop; its name is that of its checkpoint and table.

    Raises:
        OptionError: a value out of its range.
    """

    # fmt: off
    name: str
    steps: Annotated[int, _COUNT("Training steps.")]
    batch: Annotated[int, _COUNT(
        "Windows in a step, on all devices; for a SyncNet, clips of two windows each.")]
    learning_rate: Annotated[float, _WEIGHT("Learning rate of AdamW, after the warm-up.")]
    warmup_steps: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.999  # of the average of the weights
    clip_norm: float = 1.0
    seed: Annotated[int, _WEIGHT("Seed of everything random.")] = 1
    log_every: Annotated[int, _COUNT("Steps from one line of figures to the next.")] = 100
    validate_every: Annotated[int, _COUNT(
        "Steps from one validation to the next, a multiple of --log-every.")] = 500
    checkpoint_every: Annotated[int, _COUNT("Steps from one checkpoint to the next.")] = 500
    keep_checkpoints: Annotated[int, _COUNT("Checkpoints to keep, the last ones.")] = 1
    schedule: Literal["cosine", "constant"] = "cosine"  # cosine: down to zero, after the warm-up
    beta2: float = 0.99  # of AdamW; a shorter memory than 0.999 suits runs of some thousand steps
    precision: Annotated[Literal["float32", "float16", "bfloat16"], _OPTION(
        "Precision of the nets' arithmetic.")] = "float32"
    accumulate: Annotated[int, _COUNT(
        "Parts in which each device computes its share of the batch.")] = 1
    # fmt: on

    def __post_init__(self) -> None:
        cls: type = type(self)  # else mypy takes it for unhashable, as instances may be
        for name, option in declared(cls).items():
            option.check(getattr(self, name))


@dataclass(frozen=True)
class UNetTrainConfig(TrainConfig):
    """A run that trains the U-Net; the defaults are the published choices."""

    frames: int = 16  # of a training window
    trainable: tuple[str, ...] = ()  # parts of the names of trained parameters; (): all
    resolution: int = 0  # px, side of the face crops; 0: that of the model it starts from
    motion: Literal["none", "decoder", "all"] = "all"  # modules it has at least; none: has none
    gradient_checkpointing: bool = False  # less memory for more work
    # Weights of the losses on pixels, beside 1 for the noise; each needs a net to be downloaded.
    sync_weight: Annotated[float, _WEIGHT("Weight of the SyncNet loss.")] = 0.0
    lpips_weight: Annotated[float, _WEIGHT("Weight of the LPIPS loss, on the lower half.")] = 0.0
    trepa_weight: Annotated[float, _WEIGHT("Weight of the TREPA loss.")] = 0.0
    # Not in the published training:
    loss_weighting: Literal["noise", "velocity"] = "noise"  # velocity: times 1 / alpha_bar
    mask_weight: float = 0.0  # on top of 1, for latent cells under the mask
    speech_dropout: Annotated[
        float,
        _OPTION("Share of windows without speech, for guidance; published: 0.", within=(0, 1)),
    ] = 0.0


@dataclass(frozen=True)
class PreparationSettings:
    """Everything that the prepared clips depend on, but the sources.

    Raises:
        OptionError: a value out of its range.
    """

    # fmt: off
    size: Annotated[Literal[256, 512], _OPTION(
        "Side of the face crops that the clips are for, in px.")] = 256
    form: Annotated[Form, _OPTION(
        "Form of the clips: the frame around the face, or affine crops as published (aligned)."
    )] = "around"
    min_seconds: Annotated[float, _OPTION("Shortest clip in seconds.", within=(1, 3600))] = 5.0
    max_seconds: Annotated[float, _OPTION("Longest clip in seconds.", within=(1, 3600))] = 10.0
    detector: Annotated[str, _OPTION(
        "Face detector: insightface, yunet, builtin, or the .xml of an OpenCV cascade."
    )] = "insightface"
    detect_every: Annotated[int, _OPTION(
        "Frames from one face detection to the next.", within=(1, 50))] = 4
    min_face: Annotated[int | None, _OPTION(
        "Smallest face, in px of the source from brows to chin.", within=(1, 8192),
        unset="SIZE / 2")] = None
    sync: Annotated[Literal["auto", "syncnet", "none"], _OPTION(
        "Measure of lip-sync. auto: syncnet if its weights are there.")] = "auto"
    min_confidence: Annotated[float, _OPTION(
        "Lowest confidence of SyncNet.", within=(0, 100))] = 3.0
    max_offset: Annotated[int, _OPTION(
        "Frames of 1/25 s by which the sound may be moved.", within=(0, MAX_SHIFT_FRAMES))] = 6
    quality: Annotated[Literal["auto", "hyperiqa", "laplacian"], _OPTION(
        "Measure of quality. auto: hyperiqa if its weights are there.")] = "auto"
    min_quality: Annotated[float, _OPTION(
        "Lowest score of hyperIQA.", within=(0, 100))] = 40.0  # as published
    min_sharpness: Annotated[float, _OPTION(
        "Lowest variance of the face's Laplacian, where hyperIQA is not used.",
        within=(0, 10**6))] = 10.0
    # fmt: on
    weights: Path | None = None  # folder; None: $LATENTSYNC_WEIGHTS, then weights/
    device: str | None = None  # of the nets and the detector; None: a GPU if there is one

    def __post_init__(self) -> None:
        for name, option in declared(PreparationSettings).items():
            option.check(getattr(self, name))
        if self.min_seconds > self.max_seconds:
            raise OptionError(
                f"{option_name('min_seconds')} is {self.min_seconds:g}; it must be no larger than "
                f"{option_name('max_seconds')}, {self.max_seconds:g}"
            )

    @property
    def min_face_px(self) -> int:
        return self.size // 2 if self.min_face is None else self.min_face
