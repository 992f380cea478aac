"""Configuration of a model: `ModelConfig`, and its presets.

Presets are Python, each built from the one before it by `replace`; a checkpoint that this project
trains carries its config beside it as JSON (`to_json`, `from_json`).
"""

import json
from dataclasses import asdict, dataclass, field, replace

from latentsync.audio.whisper import WhisperConfig
from latentsync.diffusion.unet import UNetConfig
from latentsync.diffusion.vae import VAEConfig

__all__ = ["PRESETS", "ModelConfig"]


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
