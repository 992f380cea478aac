"""A group of face crops and the speech at them in, the same crops with a new mouth out.

Free functions in a row, tensors in, tensors out:

    pixels -> encode (masked, reference) -> denoise, from one noise map -> decode, keep the rest

The caller draws the noise by `seeded_draw`, on the CPU, so that every device gives the same
picture. Settings of the sampler: https://github.com/bytedance/LatentSync/blob/a229c39/configs/scheduler_config.json;
DDIM, https://arxiv.org/abs/2010.02502; DPM-Solver++, https://arxiv.org/abs/2211.01095;
classifier-free guidance, https://arxiv.org/abs/2207.12598.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.diffusion.unet import FeatureCache, UNet
from latentsync.diffusion.vae import VAE
from latentsync.options import Effort

__all__ = [
    "TIMESTEPS",
    "Draw",
    "GroupOverlap",
    "Latents",
    "StepHook",
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
FIRST_BETA, LAST_BETA = 0.00085, 0.012  # noise added by its first and last one
DPM_START = 951  # the first of the published 20 timesteps
# Between even steps (1) and quadratic ones (2), https://arxiv.org/abs/2010.02502, appendix D.2:
# of 10, 8 or 6 of the demo model's, either of those end further from the full run.
DPM_POWER = 1.5

Draw = Callable[[tuple[int, ...]], Tensor]
"""Shape -> standard normal float32 on the CPU, a new draw at every call."""
StepHook = Callable[[int, Tensor], Tensor]
"""The number of a step and (g, 4, f, h, w) after it -> what the next step gets."""


@dataclass(frozen=True)
class Latents:
    """What the network is shown of a group, or of several alike, beside the noise."""

    masked: Tensor  # (f, 4, h, w) or (g, f, 4, h, w), of the crops with the mouth masked out
    reference: Tensor  # of the same shape, of the whole crops


class GroupOverlap:
    """The latents of the frames that a group shares with the next, after each step.

    At every step the first frames of a group are blended with the last ones of the group before,
    from mostly the other's to mostly its own.
    """

    def __init__(self) -> None:
        self._last: dict[int, Tensor] = {}  # step -> (1, 4, frames, h, w)

    def between(self, shared: int, kept: int) -> StepHook | None:
        """Blend a group's first `shared` frames, and hold its last `kept` ones; None: neither."""
        if not (shared or kept):
            return None

        def blend(step: int, x: Tensor) -> Tensor:
            assert len(x) == 1, "groups that overlap are sampled one by one"
            if shared:
                count = torch.arange(1, shared + 1, dtype=x.dtype, device=x.device)
                own = count[:, None, None] / (shared + 1)
                first = own * x[:, :, :shared] + (1 - own) * self._last[step]
                x = torch.cat([first, x[:, :, shared:]], dim=2)
            if kept:
                self._last[step] = x[:, :, -kept:]
            return x

        return blend


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
    effort: Effort,
    *,
    guidance_scale: float,
    before_step: Callable[[], None] | None = None,
    after_step: StepHook | None = None,
) -> Tensor:
    """From one noise map, shared by all frames, to latents that speak.

    Groups side by side come out as one by one, but for float noise. Nothing in the loop waits for
    the device.

    Args:
        noise: (4, h, w), standard normal.
        mask: (R, R), 1 = keep.
        audio: (f, tokens, width), speech at each frame; or (g, f, tokens, width) of g groups.
        effort: of which sampler how many steps; which of them run all layers, and which are guided.
        guidance_scale: above 1, the prediction with speech is pushed away from the one without
            (classifier-free guidance), at twice the cost; at most 1, there is no second one.
        before_step: called before each step; what it raises ends the call.
        after_step: changes the latents after each step; None: nothing does.

    Returns:
        (f, 4, h, w), or (g, f, 4, h, w), latents, of the noise's dtype.
    """
    speech = audio if audio.dim() == 4 else audio[None]
    groups, frames = speech.shape[:2]
    steps = _steps(effort)
    timesteps = torch.tensor([step.timestep for step in steps], device=noise.device)
    guided = _guided_steps(effort, guidance_scale)
    with_silence = torch.cat([torch.zeros_like(speech), speech])
    x = noise[None, :, None].expand(groups, -1, frames, -1, -1)
    shown = unet_input(x, mask, latents)[:, x.shape[1] :]  # the same at every step
    cache = FeatureCache() if effort.cache_interval > 1 else None
    clean = x
    for k, step in enumerate(steps):
        if before_step:
            before_step()
        sample, heard = torch.cat([x, shown], dim=1), speech
        if guided[k]:
            sample, heard = sample.repeat(2, 1, 1, 1, 1), with_silence
        if cache:
            cache.prepare(len(sample) * frames, full=k % effort.cache_interval == 0)
        predicted = unet(sample, timesteps[k], heard, cache)
        if guided[k]:
            without, with_speech = predicted.chunk(2)
            predicted = without + guidance_scale * (with_speech - without)
        x, clean = step.step(x, predicted, clean)
        if after_step:
            x = after_step(k, x)
    denoised = x.transpose(1, 2)
    return denoised if audio.dim() == 4 else denoised[0]


def decode(vae: VAE, latents: Tensor, pixels: Tensor, mask: Tensor) -> Tensor:
    """(f, 3, R, R) crops: the decoded mouth where the mask is 0, the given pixels where it is 1."""
    return vae.decode(latents) * (1 - mask) + pixels * mask


def alpha_bar(timesteps: Tensor) -> Tensor:
    """(b,) int64 in [0, 1000) -> (b,) float32: the share of the signal's power that is left."""
    return _alpha_bars().to(timesteps.device)[timesteps]


def add_noise(clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """(b, ...) latents and noise of the same shape, (b,) timesteps -> noisy latents."""
    bar = alpha_bar(timesteps).reshape(-1, *[1] * (clean.dim() - 1)).to(clean)
    return bar.sqrt() * clean + (1 - bar).sqrt() * noise


def predict_x0(noisy: Tensor, predicted: Tensor, timesteps: Tensor) -> Tensor:
    """Clean latents in one step from the predicted noise; the inverse of `add_noise`."""
    bar = alpha_bar(timesteps).reshape(-1, *[1] * (noisy.dim() - 1)).to(noisy)
    return (noisy - (1 - bar).sqrt() * predicted) / bar.sqrt()


def _guided_steps(effort: Effort, guidance_scale: float) -> list[bool]:
    """Whether each step is guided: step k of n is from guidance_start <= k / n < guidance_stop."""
    shares = [step / effort.steps for step in range(effort.steps)]
    return [
        guidance_scale > 1.0 and effort.guidance_start <= share < effort.guidance_stop
        for share in shares
    ]


@dataclass(frozen=True)
class _SamplerStep:
    """One step of a sampler, from more noise to less; plain numbers, so nothing is waited for."""

    timestep: int
    alpha: float  # how much of the picture is in the sample before the step
    next_alpha: float  # and after it
    sigma: float  # how much of the noise
    next_sigma: float
    # Second-order coefficient: extrapolates the x0 prediction from the last two steps; 0: none.
    slope: float

    def step(self, x: Tensor, predicted: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        """The sample after the step, and the picture it was headed for, which is next's `before`.

        With `slope` 0 this is a DDIM step. Second-order DPM-Solver++ takes the same step towards
        the x0 prediction extrapolated half a step ahead.
        """
        clean = (x - self.sigma * predicted) / self.alpha
        if not self.slope:
            return self.next_alpha * clean + self.next_sigma * predicted, clean
        change = self.slope * (clean - before)
        noise = predicted - self.alpha / self.sigma * change
        return self.next_alpha * (clean + change) + self.next_sigma * noise, clean


def _steps(effort: Effort) -> list[_SamplerStep]:
    """The sampler's steps, each from its timestep to the next one's; the last ends at timestep 0.

    DDIM's are the published ones, 951, 901, ..., 1 of 20. DPM-Solver++'s begin with the same noise
    and grow shorter towards the end, where most is decided; its first and last are of first order.
    """
    count = effort.steps
    if effort.sampler == "ddim":
        times = [TIMESTEPS // count * k + 1 for k in reversed(range(count))]
    else:
        times = [round(DPM_START * (k / count) ** DPM_POWER) for k in range(count, 0, -1)]
    bars = _alpha_bars()[[*times, 0]]
    alphas, sigmas = bars.sqrt().tolist(), (1 - bars).sqrt().tolist()
    lengths = (bars / (1 - bars)).log().diff().tolist()
    slopes = [0.0] * count
    if effort.sampler == "dpm++":
        slopes[1:-1] = [0.5 * here / last for last, here in pairwise(lengths[:-1])]
    ends = zip(times, pairwise(alphas), pairwise(sigmas), slopes, strict=True)
    return [_SamplerStep(time, *a, *s, slope) for time, a, s, slope in ends]


def _alpha_bars() -> Tensor:
    """(1000,) float32: the share of the signal's power left at each timestep."""
    betas = torch.linspace(FIRST_BETA**0.5, LAST_BETA**0.5, TIMESTEPS) ** 2
    return torch.cumprod(1 - betas, dim=0)
