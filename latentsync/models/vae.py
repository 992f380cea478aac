"""The image autoencoder. It owns its scaling: what goes in and comes out are pixels and latents."""

from typing import cast

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from latentsync.config import VAEConfig

__all__ = ["VAE"]


class VAE(nn.Module):
    """Stable Diffusion's AutoencoderKL, https://arxiv.org/abs/2112.10752, with scaled latents."""

    def __init__(self, config: VAEConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VAEConfig()
        blocks = len(config.block_out_channels)
        self.net = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
            scaling_factor=config.scaling_factor,
            mid_block_add_attention=config.mid_attention,
        )

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of pictures: the posterior's mean, or a sample of it where noise is given.

        Args:
            pixels: (f, 3, R, R) in [-1, 1].
            noise: (f, 4, R / 8, R / 8), standard normal.

        Returns:
            (f, 4, R / 8, R / 8), scaled.
        """
        posterior = self.net.encode(pixels).latent_dist
        latents = posterior.mean
        if noise is not None:
            latents = latents + posterior.std * noise.to(latents)
        latents = (latents - self.config.shift_factor) * self.config.scaling_factor
        if self.config.latents_mean:
            mean, std = self._channels(latents)
            latents = (latents - mean) / std
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """(f, 4, h, w) scaled latents -> (f, 3, 8 h, 8 w) pixels, about [-1, 1], not clamped."""
        if self.config.latents_mean:
            mean, std = self._channels(latents)
            latents = latents * std + mean
        latents = latents / self.config.scaling_factor + self.config.shift_factor
        return cast(Tensor, self.net.decode(latents).sample)

    def _channels(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """(4, 1, 1) mean and standard deviation of each channel."""
        values = (self.config.latents_mean, self.config.latents_std)
        mean, std = (torch.tensor(value).to(like)[:, None, None] for value in values)
        return mean, std

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """(channels, height, width) of the latents of a square picture."""
        side = resolution // self.config.downsampling
        return self.config.latent_channels, side, side

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype
