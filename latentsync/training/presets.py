"""Runs of training by name: the published ones, and those of the demo model."""

from dataclasses import dataclass, field, replace

from latentsync.evaluation.nets.syncnet import SYNCNETS, SyncNetConfig, SyncNetTower
from latentsync.training.settings import TrainConfig, UNetTrainConfig

__all__ = ["SYNCNET_RUNS", "UNET_RUNS", "SyncNetTrainConfig"]

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
