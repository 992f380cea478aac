"""The image autoencoder. It owns its scaling: what goes in and comes out are pixels and latents."""

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


log = logging.getLogger(__name__)

drop_empty_kernel_cache()  # which the import of diffusers left

# Numbers alive at once for each pixel and each channel of the first width, in the larger half, the
# decoder; counted tensor by tensor, see tests/test_devices.py.
NUMBERS = 6
MAX_BATCH_PIXELS = 2**20  # 16 pictures of 256 x 256 at once, or 4 of 512 x 512
TILE_SIDE = 256  # px, of a picture that has to be cut


class VAE(nn.Module):
    """Stable Diffusion's AutoencoderKL, https://arxiv.org/abs/2112.10752, with scaled latents.

    Pictures pass in slices, so that many need no more memory than a few: no picture's result
    depends on another. Where not even one fits, it is cut into tiles, which changes it a little.
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
        self.net.tile_sample_min_size = TILE_SIDE
        self.net.tile_latent_min_size = TILE_SIDE // config.downsampling

    def encode(self, pixels: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of pictures: the posterior's mean, or a sample of it where noise is given.

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
        """(f, 4, h, w) scaled latents -> (f, 3, 8 h, 8 w) pixels, about [-1, 1], not clamped."""
        if self.config.latents_mean:
            mean, std = self._channels(latents)
            latents = latents * std + mean
        latents = latents / self.config.scaling_factor + self.config.shift_factor
        area = latents[0, 0].numel() * self.config.downsampling**2
        return self._sliced(lambda part: self.net.decode(part).sample, latents, area)

    def _posterior(self, pixels: Tensor) -> Tensor:
        """(f, 8, h, w): mean and standard deviation."""
        posterior = self.net.encode(pixels).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1)

    def _sliced(self, call: Callable[[Tensor], Tensor], pictures: Tensor, area: int) -> Tensor:
        """What `call` makes of all pictures, `area` px each, as many at once as memory allows."""
        if torch.is_grad_enabled():  # training keeps everything that was computed anyway
            return call(pictures)
        at_once = max(1, MAX_BATCH_PIXELS // area)
        free = free_memory(pictures.device)
        if free is not None:
            each = NUMBERS * self.config.block_out_channels[0] * area * pictures.element_size()
            at_once = min(at_once, int(USABLE_SHARE * free) // each)
        if not at_once and not self.net.use_tiling:
            log.warning(
                "%s has too little memory for one picture of %d px in the autoencoder; it is cut "
                "into tiles, whose borders may show",
                pictures.device,
                area,
            )
        self.net.use_tiling = at_once == 0
        return torch.cat([call(part) for part in pictures.split(max(1, at_once))])

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
