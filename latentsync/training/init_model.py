"""The model that a U-Net run starts from."""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch
from torch import nn

from latentsync.diffusion import weights
from latentsync.diffusion.unet import UNet
from latentsync.diffusion.weights import Nets
from latentsync.errors import OptionError
from latentsync.training.settings import UNetTrainConfig

__all__ = ["init_model", "weights_key"]

SAMPLES = 64  # numbers of each tensor: enough to tell nets apart without reading gigabytes
MOTION = ("none", "decoder", "all")  # each has the modules of the one before it


def init_model(
    init: str | Path, config: UNetTrainConfig, weights_folder: Path | str | None = None
) -> Nets:
    """Load the nets of `init` on the CPU in float32, with the motion modules that the run wants.

    Modules that `init` lacks start as the identity; a run without any drops those of `init`.

    Raises:
        WeightsError, OptionError: as `weights.load_nets`.
    """
    try:
        nets = weights.load_nets(init, folder=weights_folder)
    except OptionError as error:  # other commands call it `model`
        raise OptionError(str(error).replace("model is", "init is", 1)) from error
    unet = _with_motion(nets.unet, config)
    before, run = nets.config.name, config.name
    run = "tuned" if run == before else run
    changed = replace(
        nets.config,
        # "v1.6-stage2", also when such a model is trained by stage2 again.
        name=before if before.split("-")[-1] == run else f"{before}-{run}",
        resolution=config.resolution or nets.config.resolution,
        unet=unet.config,
    )
    return replace(nets, config=changed, unet=unet)


def weights_key(net: nn.Module) -> str:
    """Hash some numbers of each tensor of a net."""
    digest = sha256()
    for name, value in net.state_dict().items():
        flat = value.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLES)].float().cpu().numpy()
        digest.update(f"{name} {tuple(value.shape)}".encode() + some.tobytes())
    return digest.hexdigest()[:16]


def _with_motion(unet: UNet, config: UNetTrainConfig) -> UNet:
    """Return the U-Net with other motion modules; new ones are drawn from the run's seed."""
    has = unet.config.motion
    more = MOTION.index(config.motion) > MOTION.index(has)
    wanted = config.motion if more or config.motion == "none" else has
    if wanted == has:
        return unet
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        changed = UNet(replace(unet.config, motion=wanted))
    keys = changed.load_state_dict(unet.state_dict(), strict=False)
    assert all(".motion_modules." in k for k in (*keys.missing_keys, *keys.unexpected_keys))
    return changed.eval()
