"""The model that a run of the U-Net starts from."""

from dataclasses import replace
from pathlib import Path

import torch

from latentsync import weights
from latentsync.config import UNetConfig, UNetTrainConfig
from latentsync.models.unet import UNet
from latentsync.weights import Nets

__all__ = ["start"]

MOTION = ("none", "decoder", "all")  # each has the modules of the one before it


def start(
    init: str | Path, config: UNetTrainConfig, weights_folder: Path | str | None = None
) -> Nets:
    """The nets of `init`, on the CPU in float32, with the motion modules that the run wants.

    Modules that `init` lacks start as the identity; a run without any drops those of `init`.

    Raises:
        WeightsError, OptionError: as `weights.load_nets`.
    """
    nets = weights.load_nets(init, folder=weights_folder)
    unet = with_motion(nets.unet, config)
    changed = replace(
        nets.config,
        name=f"{nets.config.name}-{config.name}",
        resolution=config.resolution or nets.config.resolution,
        unet=unet.config,
    )
    return replace(nets, config=changed, unet=unet)


def with_motion(unet: UNet, config: UNetTrainConfig) -> UNet:
    """The same U-Net with other motion modules; the new ones are drawn from the run's seed."""
    has = unet.config.motion
    more = MOTION.index(config.motion) > MOTION.index(has)
    wanted = config.motion if more or config.motion == "none" else has
    if wanted == has:
        return unet
    changed: UNetConfig = replace(unet.config, motion=wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        fresh = UNet(changed)
    keys = fresh.load_state_dict(unet.state_dict(), strict=False)
    assert all(".motion_modules." in k for k in (*keys.missing_keys, *keys.unexpected_keys))
    return fresh.eval()
