"""Training the U-Net to predict the noise in the latents of talking faces."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from latentsync.diffusion import sampling
from latentsync.diffusion.unet import UNet
from latentsync.errors import Cancelled
from latentsync.faces.mask import keep_mask
from latentsync.training.batches import WHOLE, Batch, BatchPart, Windows
from latentsync.training.pixel_losses import PixelLosses
from latentsync.training.settings import UNetTrainConfig

__all__ = ["UNetTask", "place_weights"]

MAX_VELOCITY_WEIGHT = 10.0  # of 1 / alpha_bar: without it only the noisiest steps would count
# A window's noise is the sum of a shared part and each frame's own: "mixed noise", alpha 1.
MIXED_NOISE = 0.5**0.5
VALIDATION_TIMESTEP = 600  # here the picture's mouth is gone, and only speech tells its shape
VALIDATION_WINDOWS = 48


def place_weights(mask: Tensor, side: int, mask_weight: float) -> Tensor:
    """(side, side) weights of latent cells, larger where the mask hides the mouth; mean 1."""
    step = len(mask) // side
    weight = 1 + mask_weight * (1 - mask[::step, ::step])
    return weight / weight.mean()


@dataclass(frozen=True)
class _Prediction:
    """(b, 4, f, h, w) each."""

    noise: Tensor
    noisy: Tensor
    predicted: Tensor  # noise
    error: Tensor  # squared, weighted by place


class UNetTask:
    """A task of `loop.fit`: the squared error of the predicted noise, weighted as configured.

    Args:
        mask_side: px, side of the crops.
        pixel_losses: computed on the picture that the prediction gives, and added to the error.
        show: called at every validation with its figures; returns more of them.
        cancel: asked often during a validation.
    """

    def __init__(
        self,
        unet: UNet,
        train: Windows,
        held_out: Windows,
        mask_side: int,
        config: UNetTrainConfig,
        *,
        pixel_losses: PixelLosses | None = None,
        show: Callable[[Mapping[str, float]], dict[str, float]] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> None:
        # A sixth faster on a CPU; where only some weights are trained, torch 2.13 crashes with it.
        self.net = unet
        if not config.trainable:
            unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub
        for name, parameter in unet.named_parameters():
            wanted = not config.trainable or any(part in name for part in config.trainable)
            parameter.requires_grad_(wanted)
        unet.enable_gradient_checkpointing(config.gradient_checkpointing)
        self._train, self._held_out, self._config = train, held_out, config
        self._pixel_losses, self._show, self._cancel = pixel_losses, show, cancel
        self._device = unet.conv_in.weight.device
        self._mask = torch.from_numpy(keep_mask(mask_side)).to(self._device)

    def losses(self, generator: torch.Generator, part: BatchPart = WHOLE) -> dict[str, Tensor]:
        """The losses of one part; their mean over all parts is that of the whole batch."""
        count = self._config.batch
        batch = self._train.draw(count, self._config.frames, generator, part).to(self._device)
        timesteps = torch.randint(sampling.TIMESTEPS, (count,), generator=generator)
        silent = torch.rand((count, 1, 1, 1), generator=generator) < self._config.speech_dropout
        timesteps, silent = (x[part.of(count)].to(self._device) for x in (timesteps, silent))
        speech = torch.where(silent, torch.zeros((), device=self._device), batch.speech)
        prediction = self._predict(batch, speech, timesteps, generator, part)
        error = prediction.error.mean((1, 2, 3, 4))
        if self._config.loss_weighting == "velocity":
            error = error * (1 / sampling.alpha_bar(timesteps)).clamp(max=MAX_VELOCITY_WEIGHT)
        losses = {"noise": error.mean()}
        if self._pixel_losses is not None:
            predicted = prediction.predicted.float()
            clean = sampling.predict_x0(prediction.noisy, predicted, timesteps)
            losses |= self._pixel_losses(clean, batch)
        return losses

    part_losses = losses  # for `loop.DivisibleTask`

    def validate(self) -> dict[str, float]:
        """The error at one timestep with the right speech, and with that of another window.

        The gap between the two shows how much the net uses the speech.

        Raises:
            Cancelled: `cancel` returned true.
        """
        frames = self._config.frames
        parts = VALIDATION_WINDOWS // 2 if frames > 1 else 1  # in parts, for less memory
        found = {"noise_right": 0.0, "noise_wrong": 0.0}
        for part in (BatchPart(i, parts) for i in range(parts)):
            generator = torch.Generator().manual_seed(0)
            batch = self._held_out.draw(VALIDATION_WINDOWS, frames, generator, part)
            batch = batch.to(self._device)
            timesteps = torch.full((len(batch.clean),), VALIDATION_TIMESTEP, device=self._device)
            for name, speech in (("right", batch.speech), ("wrong", batch.speech.roll(1, 0))):
                if self._cancel and self._cancel():
                    raise Cancelled("the validation was stopped")
                generator = torch.Generator().manual_seed(1)
                prediction = self._predict(batch, speech, timesteps, generator, part)
                found[f"noise_{name}"] += prediction.error.mean().item() / parts
        return found | (self._show(found) if self._show else {})

    def _predict(
        self,
        batch: Batch,
        speech: Tensor,
        timesteps: Tensor,
        generator: torch.Generator,
        part: BatchPart,
    ) -> _Prediction:
        """Predict the noise of a part of a batch; it is drawn on the CPU for the whole batch."""
        size, *window = batch.clean.shape
        own = torch.randn((size * part.count, *window), generator=generator)
        shared = torch.randn(own[:, :, :1].shape, generator=generator)
        noise = own if self._config.frames == 1 else MIXED_NOISE * (own + shared)
        noise = noise[part.of(len(noise))].to(self._device)
        noisy = sampling.add_noise(batch.clean, noise, timesteps)
        sample = sampling.unet_input(noisy, self._mask, batch.shown)
        predicted = self.net(sample, timesteps, speech)
        weight = place_weights(self._mask, noise.shape[-1], self._config.mask_weight)
        error = (predicted.float() - noise).square() * weight
        return _Prediction(noise, noisy, predicted, error)
