"""How nets are trained: `TrainConfig`, the runs by name, and what a run reads and writes."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from latentsync.evaluation.nets.syncnet import SYNCNETS, SyncNetConfig, SyncNetTower

__all__ = [
    "SYNCNET_RUNS",
    "UNET_RUNS",
    "SyncNetTrainConfig",
    "TrainConfig",
    "TrainingSettings",
    "UNetTrainConfig",
]


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
    """One run of the training loop; its name is that of its checkpoint and table."""

    name: str
    steps: int
    batch: int  # samples a step
    learning_rate: float  # of AdamW, after the warm-up
    warmup_steps: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.999  # of the average of the weights
    clip_norm: float = 1.0
    seed: int = 1
    log_every: int = 100  # steps
    validate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 1  # number of last ones
    schedule: Literal["cosine", "constant"] = "cosine"  # cosine: down to zero, after the warm-up
    beta2: float = 0.99  # of AdamW; a shorter memory than 0.999 suits runs of some thousand steps
    precision: Literal["float32", "float16", "bfloat16"] = "float32"  # of the nets' arithmetic
    accumulate: int = 1  # parts of a process's share of a batch, computed one after the other


@dataclass(frozen=True)
class UNetTrainConfig(TrainConfig):
    """A run that trains the U-Net; the defaults are the published choices."""

    frames: int = 16  # of a training window
    trainable: tuple[str, ...] = ()  # parts of the names of trained parameters; (): all
    resolution: int = 0  # px, side of the face crops; 0: that of the model it starts from
    motion: Literal["none", "decoder", "all"] = "all"  # modules it has at least; none: has none
    gradient_checkpointing: bool = False  # less memory for more work
    # Weights of the losses on pixels, beside 1 for the noise; each needs a net to be downloaded.
    sync_weight: float = 0.0  # by StableSyncNet
    lpips_weight: float = 0.0  # on the lower half
    trepa_weight: float = 0.0
    # Not in the published training:
    loss_weighting: Literal["noise", "velocity"] = "noise"  # velocity: times 1 / alpha_bar
    mask_weight: float = 0.0  # on top of 1, for latent cells under the mask
    speech_dropout: float = 0.0  # share of windows without speech, for guidance


# https://github.com/bytedance/LatentSync/tree/a229c39/configs/unet; steps are an upper bound there.
_STAGE1 = UNetTrainConfig(
    name="stage1",
    steps=100_000,
    batch=1,
    learning_rate=1e-5,
    warmup_steps=0,
    seed=1247,
    schedule="constant",
    beta2=0.999,
    precision="float16",
    validate_every=1000,
    checkpoint_every=1000,
    resolution=256,
    motion="none",
    gradient_checkpointing=True,
)
_STAGE2 = replace(
    _STAGE1,
    name="stage2",
    motion="all",
    trainable=("motion_modules.", "attentions."),
    sync_weight=0.05,
    lpips_weight=0.1,
    trepa_weight=10.0,
)
_STAGE2_EFFICIENT = replace(
    _STAGE2,
    name="stage2_efficient",
    motion="decoder",
    trainable=("motion_modules.", "attn2."),
    trepa_weight=0.0,
)
# Not published: trains the demo model further, on a CPU, as scripts/train_demo.py trained it.
_DEMO_RUN = replace(
    _STAGE1,
    name="demo",
    steps=1000,
    learning_rate=1e-4,
    warmup_steps=20,
    precision="float32",
    log_every=20,
    validate_every=200,
    checkpoint_every=100,
    resolution=0,
    motion="decoder",
    gradient_checkpointing=False,
    loss_weighting="velocity",
    mask_weight=3.0,
    speech_dropout=0.1,
)
UNET_RUNS: dict[str, UNetTrainConfig] = {
    run.name: run
    for run in (
        _STAGE1,
        _STAGE2,
        _STAGE2_EFFICIENT,
        replace(_STAGE1, name="stage1_512", resolution=512),
        replace(_STAGE2, name="stage2_512", resolution=512),
        _DEMO_RUN,
    )
}


@dataclass(frozen=True)
class SyncNetTrainConfig(TrainConfig):
    """A run that trains StableSyncNet; its batch counts clips, with two windows each."""

    net: SyncNetConfig = field(default_factory=SyncNetConfig)
    contrast_weight: float = 0.0  # of a loss that is not published, see tasks/syncnet.py


# https://github.com/bytedance/LatentSync/tree/a229c39/configs/syncnet; batches count windows there,
# and clips of two windows here; steps are an upper bound there. Untried at full size.
_PIXEL_RUN = SyncNetTrainConfig(
    name="pixel_attn",
    steps=100_000,
    batch=128,
    learning_rate=1e-5,
    warmup_steps=0,
    seed=42,
    schedule="constant",
    beta2=0.999,
    precision="float16",
    validate_every=1000,
    checkpoint_every=1000,
    net=SYNCNETS["pixel_attn"],
)
# Not published: for the demo model's latents, small enough for a CPU.
_SMALL_RUN = SyncNetTrainConfig(
    name="small",
    steps=1200,
    batch=20,
    learning_rate=1e-3,
    ema_decay=0.99,
    log_every=50,
    validate_every=100,
    checkpoint_every=100,
    contrast_weight=0.5,
    net=SyncNetConfig(
        visual=SyncNetTower(64, (96, 128, 256), ((1, 2), (2, 2), (3, 3))),
        audio=SyncNetTower(1, (32, 64, 128, 256), ((4, 2), (4, 4), (2, 3), (3, 3))),
        side=12,
        lower_half=True,
        latent=True,
    ),
)
SYNCNET_RUNS: dict[str, SyncNetTrainConfig] = {
    run.name: run
    for run in (
        _PIXEL_RUN,
        replace(_PIXEL_RUN, name="pixel", net=SYNCNETS["pixel"]),
        replace(_PIXEL_RUN, name="latent", batch=60, net=SYNCNETS["latent"]),
        replace(_PIXEL_RUN, name="25_pixel", batch=32, net=SYNCNETS["25_pixel"]),
        _SMALL_RUN,
    )
}
