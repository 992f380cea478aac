"""Image autoencoder (VAE), between pixels in [-1, 1] and scaled latents."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from latentsync.runtime.devices import USABLE_SHARE, drop_empty_kernel_cache, free_memory

__all__ = ["VAE", "VAEConfig"]


@dataclass(frozen=True)
class VAEConfig:
    """Size of the image autoencoder; the defaults are stabilityai/sd-vae-ft-mse."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215  # Stable Diffusion 1's
    shift_factor: float = 0.0
    mid_attention: bool = True  # attention at the smallest side
    # Not in the published nets: mean and deviation of each channel, by which the latents are
    # normalised (with factors of 1 and 0 above); (): they are not.
    latents_mean: tuple[float, ...] = ()
    latents_std: tuple[float, ...] = ()

    @property
    def downsampling(self) -> int:
        """Pixels per latent cell along one side."""
        return int(2 ** (len(self.block_out_channels) - 1))


log = logging.getLogger(__name__)

drop_empty_kernel_cache()  # which the import of diffusers left

# Values in memory at once in the decoder, the larger half, per pixel and channel of the first
# width; counted tensor by tensor, see tests/test_devices.py.
VALUES_PER_PIXEL = 6
MAX_BATCH_PIXELS = 2**20  # 16 pictures of 256 x 256 at once, or 4 of 512 x 512
TILE_SIDE_PX = 256  # where memory is too small for a whole picture


class VAE(nn.Module):
    """Stable Diffusion's AutoencoderKL, https://arxiv.org/abs/2112.10752, with scaled latents.

    Pictures are computed in slices, so that many need no more memory than a few; each result is
    independent of the other pictures. A picture that doesn't fit into memory is computed in tiles,
    which changes its result a little.
    """

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
        self.net.tile_sample_min_size = TILE_SIDE_PX
        self.net.tile_latent_min_size = TILE_SIDE_PX // config.downsampling

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Encode pictures to latents: the posterior's mean, or, with noise, a sample of it.

        Args:
            pixels: (f, 3, R, R) in [-1, 1].
            noise: (f, 4, R / 8, R / 8), standard normal.

        Returns:
            (f, 4, R / 8, R / 8), scaled.
        """
        mean, std = self._sliced(self._posterior, pixels, pixels[0, 0].numel()).chunk(2, dim=1)
        latents = mean if noise is None else mean + std * noise.to(mean)
        latents = (latents - self.config.shift_factor) * self.config.scaling_factor
        if self.config.latents_mean:
            mean, std = self._channels(latents)
            latents = (latents - mean) / std
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Decode (f, 4, h, w) scaled latents to (f, 3, 8 h, 8 w) pixels in about [-1, 1]."""
        if self.config.latents_mean:
            mean, std = self._channels(latents)
            latents = latents * std + mean
        latents = latents / self.config.scaling_factor + self.config.shift_factor
        area = latents[0, 0].numel() * self.config.downsampling**2
        return self._sliced(lambda part: self.net.decode(part).sample, latents, area)

    def _posterior(self, pixels: Tensor) -> Tensor:
        """Return (f, 8, h, w): the posterior's mean, then its standard deviation."""
        posterior = self.net.encode(pixels).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1)

    def _sliced(self, call: Callable[[Tensor], Tensor], pictures: Tensor, area: int) -> Tensor:
        """Call `call` on pictures of `area` px, as many at once as memory allows."""
        if torch.is_grad_enabled():  # in training slices save nothing: every activation is kept
            return call(pictures)
        at_once = max(1, MAX_BATCH_PIXELS // area)
        free = free_memory(pictures.device)
        if free is not None:
            each = (
                VALUES_PER_PIXEL
                * self.config.block_out_channels[0]
                * area
                * pictures.element_size()
            )
            at_once = min(at_once, int(USABLE_SHARE * free) // each)
        if not at_once and not self.net.use_tiling:
            log.warning(
                "%s has too little memory for one picture of %d px in the autoencoder; it is "
                "computed in tiles, whose borders may show",
                pictures.device,
                area,
            )
        self.net.use_tiling = at_once == 0
        return torch.cat([call(part) for part in pictures.split(max(1, at_once))])

    def _channels(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return (4, 1, 1) mean and standard deviation of each channel."""
        values = (self.config.latents_mean, self.config.latents_std)
        mean, std = (torch.tensor(value).to(like)[:, None, None] for value in values)
        return mean, std

    def latent_shape(self, resolution: int) -> tuple[int, int, int]:
        """Return (channels, height, width) of the latents of a square picture."""
        side = resolution // self.config.downsampling
        return self.config.latent_channels, side, side

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype
