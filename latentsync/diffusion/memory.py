"""How much memory the U-Net takes, and how many groups fit."""

import torch
from torch import Tensor

from latentsync.diffusion.unet import UNetConfig
from latentsync.runtime.devices import USABLE_SHARE, Call

__all__ = ["groups_that_fit", "unet_call", "unet_work"]

# Numbers alive at once in a forward pass, for each latent pixel of each frame and each channel of
# the first width; counted tensor by tensor, see tests/test_devices.py.
UNET_NUMBERS = 26
FRAMES, TOKENS = 16, 50  # of a group; of speech at each frame


def unet_work(config: UNetConfig, side: int, dtype: torch.dtype, frames: int = FRAMES) -> int:
    """Bytes that a forward pass of one group holds beside the weights.

    Args:
        side: of the latents, px.
        frames: of the group.
    """
    numbers = UNET_NUMBERS * config.block_out_channels[0]
    return numbers * dtype.itemsize * frames * side**2


def groups_that_fit(
    config: UNetConfig, side: int, dtype: torch.dtype, free: int | None, *, guided: bool = False
) -> int:
    """How many groups of 16 frames go through the U-Net at once in so many free bytes.

    Work grows with the number of groups, and guidance doubles it. USABLE_SHARE of the free bytes
    may be used. If `free` is unknown, or no group would fit, the answer is 1.
    """
    each = unet_work(config, side, dtype) * (2 if guided else 1)
    return max(1, int(USABLE_SHARE * free) // each) if free is not None else 1


def unet_call(config: UNetConfig, side: int, like: Tensor, rows: int = 1) -> Call:
    """What denoising gives to the U-Net, all zeros: latents, the timestep, speech.

    Args:
        side: of the latents, px.
        like: of the net's device and dtype.
        rows: groups, twice as many with guidance.
    """
    sample = like.new_zeros(rows, config.in_channels, FRAMES, side, side)
    speech = like.new_zeros(rows, FRAMES, TOKENS, config.cross_attention_dim)
    return sample, torch.zeros((), dtype=torch.int64, device=like.device), speech
