"""Tiny nets of the real classes, and the golden numbers they are held against (see golden/)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latentsync.diffusion.unet import UNetConfig
from latentsync.diffusion.vae import VAEConfig
from tests.golden.golden_rule import f32, fill

GOLDEN = Path(__file__).parent / "golden"


def golden(name: str) -> dict[str, Any]:
    """The arrays of golden/<name>.npz."""
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def unet_config(published: str) -> UNetConfig:
    """Our config for the published constructor arguments, given as JSON."""
    raw = json.loads(published)
    motion = "none"
    if raw["use_motion_module"]:
        motion = "decoder" if raw["motion_module_decoder_only"] else "all"
    return UNetConfig(
        in_channels=raw["in_channels"],
        out_channels=raw["out_channels"],
        block_out_channels=tuple(raw["block_out_channels"]),
        layers_per_block=raw["layers_per_block"],
        attention_heads=raw["attention_head_dim"],
        cross_attention_dim=raw["cross_attention_dim"],
        norm_num_groups=raw["norm_num_groups"],
        motion=motion,
        motion_heads=raw["motion_module_kwargs"]["num_attention_heads"],
    )


def vae_config(published: str) -> VAEConfig:
    raw = json.loads(published)
    return VAEConfig(
        block_out_channels=tuple(raw["block_out_channels"]),
        layers_per_block=raw["layers_per_block"],
        latent_channels=raw["latent_channels"],
        norm_num_groups=raw["norm_num_groups"],
    )


def filled(module: nn.Module, seed: int) -> nn.Module:
    """The module with every weight from the golden rule."""
    shapes = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    weights = {key: torch.from_numpy(value) for key, value in fill(shapes, seed).items()}
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.endswith((".pe", "positional_embedding")) for key in missing)
    return module.eval()


def tensor(shape: tuple[int, ...], seed: int, tag: str, scale: float = 1.0) -> Tensor:
    return torch.from_numpy(f32(shape, seed, tag, scale))
