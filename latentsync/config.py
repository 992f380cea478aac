"""What a model is (`ModelConfig` and its presets) and how nets are trained (`TrainConfig`).

Presets are Python, each built from the one before it by `replace`; a checkpoint that this project
trains carries its config beside it as JSON (`to_json`, `from_json`).
"""

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

__all__ = [
    "PRESETS",
    "SYNCNETS",
    "SYNCNET_RUNS",
    "UNET_RUNS",
    "ModelConfig",
    "SyncNetConfig",
    "SyncNetTower",
    "SyncNetTrainConfig",
    "TrainConfig",
    "UNetConfig",
    "UNetTrainConfig",
    "VAEConfig",
    "WhisperConfig",
]


@dataclass(frozen=True)
class UNetConfig:
    """Size of the U-Net; the defaults are the published stage 2 (SD 1.5's layout, 1.27 G numbers).

    Channels and shapes: https://github.com/bytedance/LatentSync/blob/a229c39/configs/unet/stage2.yaml
    """

    in_channels: int = 13  # noisy 4, mask 1, masked 4, reference 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention_heads: int = 8  # the published config calls this number attention_head_dim
    cross_attention_dim: int = 384  # width of a Whisper-tiny state
    norm_num_groups: int = 32
    motion: Literal["none", "all", "decoder"] = "all"  # where temporal modules stand
    motion_heads: int = 8
    motion_norm_groups: int = 32
    motion_max_frames: int = 24  # length of the temporal position table
    # Not in the published nets: speech is normalised and its tokens are told apart by learned
    # positions, so many of them; 0 leaves both out.
    speech_positions: int = 0


@dataclass(frozen=True)
class VAEConfig:
    """Size of the image autoencoder; the defaults are stabilityai/sd-vae-ft-mse."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215  # Stable Diffusion 1's, fidelity to the published pipeline
    shift_factor: float = 0.0
    mid_attention: bool = True  # attention at the smallest side
    # Not in the published nets: each channel of the latents is brought to mean 0 and deviation 1
    # (then the two factors above are 1 and 0); empty leaves them as they are.
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()

    @property
    def downsampling(self) -> int:
        """Pixels per latent cell along one side."""
        return int(2 ** (len(self.block_out_channels) - 1))


@dataclass(frozen=True)
class WhisperConfig:
    """Size of the speech encoder; the defaults are openai/whisper tiny.

    Only the encoder is used. States = layers + 1 (the embedding, then each block's output).
    """

    n_mels: int = 80
    n_audio_ctx: int = 1500  # tokens in a 30 s window
    n_audio_state: int = 384
    n_audio_head: int = 6
    n_audio_layer: int = 4


@dataclass(frozen=True)
class SyncNetTower:
    """One of the two halves of a SyncNet: a row of residual blocks, down to a side of 1."""

    in_channels: int
    block_out_channels: tuple[int, ...]
    strides: tuple[tuple[int, int], ...]  # of each block: height, width
    attention: tuple[int, ...] = ()  # numbers of the blocks that an attention follows


@dataclass(frozen=True)
class SyncNetConfig:
    """Size of StableSyncNet and what it is shown; the defaults are the published stable_syncnet.pt.

    Four sizes were published, `SYNCNETS`:
    https://github.com/bytedance/LatentSync/tree/a229c39/configs/syncnet
    """

    visual: SyncNetTower = SyncNetTower(
        in_channels=48,  # 16 RGB frames
        block_out_channels=(64, 128, 256, 256, 512, 1024, 2048, 2048),
        strides=((1, 2), *[(2, 2)] * 7),
        attention=(4, 5),
    )
    audio: SyncNetTower = SyncNetTower(
        in_channels=1,
        block_out_channels=(32, 64, 128, 256, 512, 1024, 2048),
        strides=((2, 1), (2, 2), (2, 2), (1, 1), (2, 2), (2, 2), (2, 3)),
        attention=(3, 4),
    )
    frames: int = 16  # of a window, at 25 fps
    side: int = 256  # of the square of which it sees a half or all: px, or cells of latents
    lower_half: bool = True
    latent: bool = False  # it sees the VAE's latents in place of pixels


_PIXEL_ATTN = SyncNetConfig()
SYNCNETS: dict[str, SyncNetConfig] = {
    "pixel_attn": _PIXEL_ATTN,
    "pixel": replace(
        _PIXEL_ATTN,
        visual=replace(_PIXEL_ATTN.visual, attention=()),
        audio=replace(_PIXEL_ATTN.audio, attention=()),
    ),
    "latent": SyncNetConfig(
        visual=SyncNetTower(
            in_channels=64,  # 16 frames of 4
            block_out_channels=(64, 128, 256, 256, 512, 1024),
            strides=((2, 2), (2, 2), (2, 2), (1, 1), (2, 2), (2, 2)),
        ),
        audio=SyncNetTower(
            in_channels=1,
            block_out_channels=(32, 64, 128, 256, 512, 1024),
            strides=((2, 1), *[(2, 2)] * 4, (2, 3)),
        ),
        side=32,
        lower_half=False,
        latent=True,
    ),
    # syncnet_25_pixel.yaml names no attention, which the published code asks for; nothing was
    # published that it trained.
    "25_pixel": SyncNetConfig(
        visual=SyncNetTower(
            in_channels=75,  # 25 RGB frames
            block_out_channels=(128, 128, 256, 256, 512, 512, 1024, 1024),
            strides=((1, 2), *[(2, 2)] * 7),
        ),
        audio=SyncNetTower(
            in_channels=1,  # (80, 80)
            block_out_channels=(64, 128, 256, 256, 512, 1024),
            strides=((2, 2),) * 6,
        ),
        frames=25,
    ),
}


@dataclass(frozen=True)
class ModelConfig:
    """One model: its nets, the side of its face crop, and the face detector it is used with."""

    name: str
    resolution: int  # px, side of the square face crop
    detector: str  # "insightface", "yunet" or "builtin"
    unet: UNetConfig = field(default_factory=UNetConfig)
    vae: VAEConfig = field(default_factory=VAEConfig)
    whisper: WhisperConfig = field(default_factory=WhisperConfig)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "ModelConfig":
        raw = json.loads(text)
        parts = {"unet": UNetConfig, "vae": VAEConfig, "whisper": WhisperConfig}
        for key, part in parts.items():
            values = {k: tuple(v) if isinstance(v, list) else v for k, v in raw[key].items()}
            raw[key] = part(**values)
        return cls(**raw)


_V16 = ModelConfig(name="v1.6", resolution=512, detector="insightface")
_V15 = replace(_V16, name="v1.5", resolution=256)
# The same classes, small enough for the repository and to be trained on two CPU cores.
_DEMO = replace(
    _V15,
    name="demo",
    resolution=96,
    detector="builtin",
    unet=UNetConfig(
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        attention_heads=4,
        norm_num_groups=8,
        cross_attention_dim=128,
        motion="decoder",
        motion_heads=4,
        motion_norm_groups=8,
        speech_positions=40,
    ),
    vae=VAEConfig(
        block_out_channels=(16, 32, 64, 96),
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=1.0,
    ),
    whisper=WhisperConfig(n_audio_state=128, n_audio_head=4, n_audio_layer=3),
)
PRESETS: dict[str, ModelConfig] = {config.name: config for config in (_V16, _V15, _DEMO)}


@dataclass(frozen=True)
class TrainConfig:
    """One run of the training loop; checkpoints and figures carry its name."""

    name: str
    steps: int
    batch: int  # samples a step
    learning_rate: float  # AdamW's, after the warm-up; a cosine takes it down to nothing
    warmup_steps: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.999  # of the average of the weights that is kept
    clip_norm: float = 1.0
    seed: int = 1
    log_every: int = 100  # steps
    validate_every: int = 500
    checkpoint_every: int = 500
    keep_checkpoints: int = 1  # the last so many
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate, after the warm-up
    beta2: float = 0.99  # of AdamW; a shorter memory than 0.999 suits runs of some thousand steps
    precision: Literal["float32", "float16", "bfloat16"] = "float32"  # of the nets' arithmetic
    accumulate: int = 1  # parts in which each process takes its share of a batch, one by one


@dataclass(frozen=True)
class UNetTrainConfig(TrainConfig):
    """A run that trains the U-Net; the defaults are the published choices."""

    frames: int = 16  # of a training window
    trainable: tuple[str, ...] = ()  # parts of the names of what is trained; () is everything
    resolution: int = 0  # px, side of the face crops; 0: that of the model it starts from
    motion: Literal["none", "decoder", "all"] = "all"  # what it has at least; none: has none
    gradient_checkpointing: bool = False  # less memory for more work
    # Weights of the losses on pixels, beside 1 for the noise; each needs a net to be fetched.
    sync_weight: float = 0.0  # StableSyncNet's
    lpips_weight: float = 0.0  # of the lower half
    trepa_weight: float = 0.0
    # Not in the published training:
    loss_weighting: Literal["noise", "velocity"] = "noise"  # velocity: times 1 / alpha_bar
    mask_weight: float = 0.0  # on top of 1, for latent cells under the mask
    speech_dropout: float = 0.0  # share of windows that hear nothing, for guidance


# https://github.com/bytedance/LatentSync/tree/a229c39/configs/unet; steps are a bound there.
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
# Not published: the demo model goes on learning, on a CPU, as scripts/train_demo.py taught it.
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
    """A run that trains StableSyncNet; its batch counts clips, and each gives two windows."""

    net: SyncNetConfig = field(default_factory=SyncNetConfig)
    contrast_weight: float = 0.0  # of a loss that is not published, see training/syncnet.py


# https://github.com/bytedance/LatentSync/tree/a229c39/configs/syncnet; batches there count windows,
# two of a clip here; steps are a bound there. Untried at full size.
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
