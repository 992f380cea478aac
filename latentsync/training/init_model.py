"""The model that a run of the U-Net starts from."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

from latentsync.diffusion import weights
from latentsync.diffusion.unet import UNet, UNetConfig
from latentsync.diffusion.weights import Nets
from latentsync.training.presets import UNetTrainConfig

__all__ = ["start", "weights_key"]

LOOKED_AT = 64  # numbers of each tensor: enough to tell nets apart without reading gigabytes
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
        name=_name(nets.config.name, config.name),
        resolution=config.resolution or nets.config.resolution,
        unet=unet.config,
    )
    return replace(nets, config=changed, unet=unet)


def _name(before: str, run: str) -> str:
    """What the model is called: "v1.6-stage2", also when it is trained so again."""
    run = "tuned" if run == before else run
    return before if before.split("-")[-1] == run else f"{before}-{run}"


def weights_key(net: nn.Module) -> str:
    """A short name of a net's weights, of some numbers of each."""
    digest = sha256()
    for name, value in net.state_dict().items():
        flat = value.detach().flatten()
        some = flat[:: max(1, len(flat) // LOOKED_AT)].float().cpu().numpy()
        digest.update(f"{name} {tuple(value.shape)}".encode() + some.tobytes())
    return digest.hexdigest()[:16]


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
