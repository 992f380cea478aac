"""A group of face crops and the speech at them in, the same crops with a new mouth out.

Free functions in a row, tensors in, tensors out:

    pixels -> encode (masked, reference) -> denoise, from one noise map -> decode, keep the rest

Noise is drawn on the CPU from the seed, so that every device gives the same picture. Settings of
the sampler: https://github.com/bytedance/LatentSync/blob/a229c39/configs/scheduler_config.json;
DDIM, https://arxiv.org/abs/2010.02502; classifier-free guidance, https://arxiv.org/abs/2207.12598.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor

from latentsync.models.unet import UNet
from latentsync.models.vae import VAE

__all__ = [
    "TIMESTEPS",
    "Draw",
    "Latents",
    "Seam",
    "add_noise",
    "alpha_bar",
    "decode",
    "denoise",
    "encode",
    "predict_x0",
    "seeded_draw",
    "unet_input",
]

TIMESTEPS = 1000  # of the noise schedule

Draw = Callable[[tuple[int, ...]], Tensor]
"""Shape -> standard normal float32 on the CPU, a new draw at every call."""


@dataclass(frozen=True)
class Latents:
    """What the network is shown of a group, beside the noise."""

    masked: Tensor  # (f, 4, h, w), of the crops with the mouth masked out
    reference: Tensor  # (f, 4, h, w), of the whole crops


@dataclass
class Seam:
    """Carries what neighbouring groups share from one to the next: a few frames' latents.

    At every step the first frames of a group are blended with the last ones of the group before,
    from mostly the other's to mostly its own.
    """

    shared: int  # frames, the group's first ones
    keep: int  # frames, the group's last ones, for the next group
    steps: list[Tensor]  # (b, 4, frames, h, w) of the group before, after each step

    def blended(self, step: int, x: Tensor) -> Tensor:
        """(b, 4, f, h, w) after a step -> the same, blended; its end is remembered."""
        if self.shared:
            own = torch.arange(1, self.shared + 1).to(x)[:, None, None] / (self.shared + 1)
            first = own * x[:, :, : self.shared] + (1 - own) * self.steps[step]
            x = torch.cat([first, x[:, :, self.shared :]], dim=2)
        if self.keep:
            self.steps[step : step + 1] = [x[:, :, -self.keep :]]
        return x


def seeded_draw(seed: int) -> Draw:
    """Draws from a generator of their own on the CPU."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return lambda shape: torch.randn(shape, generator=generator)


def encode(vae: VAE, pixels: Tensor, mask: Tensor, draw: Draw | None = None) -> Latents:
    """Latents of the crops, masked and whole.

    Args:
        pixels: (f, 3, R, R) in [-1, 1], on the network's device and in its dtype.
        mask: (R, R) in [0, 1], 1 keeps the pixel; a hole becomes 0, mid grey.
        draw: None takes the posterior's mean, which depends on no draw and so on no grouping;
            otherwise two draws a group, masked first, as published.
    """

    def noise() -> Tensor | None:
        return draw((len(pixels), *vae.latent_shape(pixels.shape[-1]))) if draw else None

    masked = vae.encode(pixels * mask, noise())
    return Latents(masked=masked, reference=vae.encode(pixels, noise()))


def unet_input(noisy: Tensor, mask: Tensor, latents: Latents) -> Tensor:
    """The 13 channels: noisy latents 4, mask 1, masked latents 4, reference latents 4.

    Args:
        noisy: (b, 4, f, h, w).
        mask: (R, R), 1 = keep; every (R / h)th pixel is taken.
        latents: of (f, 4, h, w), the same for the whole batch, or of (b, f, 4, h, w).

    Returns:
        (b, 13, f, h, w).
    """
    batch, _, frames, height, width = noisy.shape
    small = F.interpolate(mask[None, None], size=(height, width), mode="nearest")
    small = small[:, :, None].expand(batch, 1, frames, height, width)
    shown = [t.transpose(-4, -3).expand_as(noisy) for t in (latents.masked, latents.reference)]
    return torch.cat([noisy, small, *shown], dim=1)


def denoise(
    unet: UNet,
    noise: Tensor,
    mask: Tensor,
    latents: Latents,
    audio: Tensor,
    *,
    steps: int,
    guidance_scale: float,
    before_step: Callable[[], None] | None = None,
    seam: "Seam | None" = None,
) -> Tensor:
    """DDIM from one noise map shared by all frames.

    Args:
        noise: (4, h, w), standard normal.
        mask: (R, R), 1 = keep.
        audio: (f, tokens, width), speech at each frame.
        steps: 1 to 1000.
        guidance_scale: above 1, the prediction with speech is pushed away from the one without
            (classifier-free guidance), at twice the cost; at most 1, there is no second one.
        before_step: called before each step; what it raises ends the call.
        seam: to the groups before and after, where they share frames.

    Returns:
        (f, 4, h, w) latents, of the noise's dtype.
    """
    scheduler = _scheduler()
    scheduler.set_timesteps(steps)
    frames = len(audio)
    guided = guidance_scale > 1.0
    if guided:
        audio = torch.cat([torch.zeros_like(audio), audio])
    x = noise[None, :, None].expand(1, -1, frames, -1, -1)
    for step, timestep in enumerate(scheduler.timesteps):
        if before_step:
            before_step()
        sample = unet_input(x, mask, latents)
        predicted = unet(sample.repeat(2, 1, 1, 1, 1) if guided else sample, timestep, audio)
        if guided:
            without, with_speech = predicted.chunk(2)
            predicted = without + guidance_scale * (with_speech - without)
        x = scheduler.step(predicted, timestep, x).prev_sample
        if seam:
            x = seam.blended(step, x)
    return x[0].transpose(0, 1)


def decode(vae: VAE, latents: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """(f, 3, R, R) crops: the decoded mouth where the mask is 0, the given pixels where it is 1."""
    return vae.decode(latents) * (1 - mask) + pixels * mask


def alpha_bar(timesteps: Tensor) -> Tensor:
    """(b,) int64 in [0, 1000) -> (b,) float32: the share of the signal's power that is left."""
    bars: Tensor = _scheduler().alphas_cumprod
    return bars.to(timesteps.device)[timesteps]


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """(b, ...) latents and noise of the same shape, (b,) timesteps -> noisy latents."""
    bar = alpha_bar(timesteps).reshape(-1, *[1] * (clean.dim() - 1)).to(clean)
    return bar.sqrt() * clean + (1 - bar).sqrt() * noise


def predict_x0(noisy: Tensor, predicted: Tensor, timesteps: Tensor) -> Tensor:
    """Clean latents in one step from the predicted noise; the inverse of `add_noise`."""
    bar = alpha_bar(timesteps).reshape(-1, *[1] * (noisy.dim() - 1)).to(noisy)
    return (noisy - (1 - bar).sqrt() * predicted) / bar.sqrt()


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        set_alpha_to_one=False,
        clip_sample=False,
        prediction_type="epsilon",
        timestep_spacing="leading",
    )
