"""Training the U-Net to predict the noise in the latents of talking faces."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from latentsync import diffusion
from latentsync.config import UNetTrainConfig
from latentsync.mask import keep_mask
from latentsync.models.unet import UNet
from latentsync.models.vae import VAE
from latentsync.speech import SpeechEncoder, SpeechFeatures
from latentsync.training.crops import Person, pictures

__all__ = ["Prepared", "UNetTask", "hear", "look"]

FPS = Fraction(25)
VELOCITY_CAP = 10.0  # of 1 / alpha_bar: without it the noisiest steps would be all that counts
SHARED = 0.5**0.5  # of the noise of a window, the rest is each frame's own: "mixed noise", alpha 1
VALIDATION_TIMESTEP = 600  # here the picture's mouth is gone, and speech has to tell it
VALIDATION_WINDOWS = 48


@dataclass(frozen=True)
class Prepared:
    """What the frozen nets make of the people, computed once; float16, w windows of f frames."""

    clean: Tensor  # (w, f, 4, h, w) latents of the crops
    masked: Tensor  # (w, f, 4, h, w), of the crops with the mouth masked out
    speech: Tensor  # (w, f, tokens, width)
    person: Tensor  # (w,) whose window it is; windows of one person follow each other


def look(vae: VAE, people: Sequence[Person]) -> dict[str, Tensor]:
    """`Prepared.clean`, `.masked` and `.person` by name."""
    mask = torch.from_numpy(keep_mask(people[0].pixels.shape[-2]))
    clean, masked, person = [], [], []
    for number, one in enumerate(people):
        with torch.inference_mode():
            latents = diffusion.encode(vae, pictures(one.pixels), mask)
        clean.append(latents.reference.unflatten(0, one.frames.shape).half())
        masked.append(latents.masked.unflatten(0, one.frames.shape).half())
        person += [number] * len(one.frames)
    return {
        "clean": torch.cat(clean),
        "masked": torch.cat(masked),
        "person": torch.tensor(person),
    }


def hear(encoder: SpeechEncoder, people: Sequence[Person]) -> dict[str, Tensor]:
    """`Prepared.speech` by name: what is heard at each frame of each window."""
    speech = []
    for one in people:
        last = int(one.frames.max()) + 1
        features = SpeechFeatures(encoder, one, frames=last, fps=FPS)[0:last]
        speech.append(features[torch.from_numpy(one.frames)].half())
    return {"speech": torch.cat(speech)}


@dataclass(frozen=True)
class _Batch:
    clean: Tensor  # (b, 4, f, h, w)
    shown: diffusion.Latents  # of (b, f, 4, h, w)
    speech: Tensor  # (b, f, tokens, width)


class UNetTask:
    """A task of `loop.fit`: the squared error of the predicted noise, weighted as configured."""

    def __init__(
        self,
        unet: UNet,
        train: Prepared,
        held_out: Prepared,
        mask_side: int,
        config: UNetTrainConfig,
    ) -> None:
        # A sixth faster on a CPU; where only some weights are trained, torch 2.13 crashes with it.
        self.net = unet
        if not config.trainable:
            unet.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # the stub
        for name, parameter in unet.named_parameters():
            wanted = not config.trainable or any(part in name for part in config.trainable)
            parameter.requires_grad_(wanted)
        self._train, self._held_out, self._config = train, held_out, config
        self._mask = torch.from_numpy(keep_mask(mask_side))
        side = train.clean.shape[-1]
        hole = 1 - self._mask[:: mask_side // side, :: mask_side // side]
        weight = 1 + config.mask_weight * hole
        self._weight = weight / weight.mean()

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        batch = self._draw(self._train, self._config.batch, generator)
        count = len(batch.clean)
        timesteps = torch.randint(diffusion.TIMESTEPS, (count,), generator=generator)
        silent = torch.rand((count, 1, 1, 1), generator=generator) < self._config.speech_dropout
        speech = torch.where(silent, torch.zeros(()), batch.speech)
        error = self._error(batch, speech, timesteps, generator).mean((1, 2, 3, 4))
        if self._config.loss_weighting == "velocity":
            error = error * (1 / diffusion.alpha_bar(timesteps)).clamp(max=VELOCITY_CAP)
        return {"noise": error.mean()}

    def validate(self) -> dict[str, float]:
        """Error at one timestep with the right speech, and with that of another window.

        The gap between the two is how much the net listens.
        """
        generator = torch.Generator().manual_seed(0)
        batch = self._draw(self._held_out, VALIDATION_WINDOWS, generator)
        timesteps = torch.full((VALIDATION_WINDOWS,), VALIDATION_TIMESTEP)
        found = {}
        for name, speech in (("right", batch.speech), ("wrong", batch.speech.roll(1, 0))):
            again = torch.Generator().manual_seed(1)
            found[f"noise_{name}"] = float(self._error(batch, speech, timesteps, again).mean())
        return found

    def _error(
        self, batch: _Batch, speech: Tensor, timesteps: Tensor, generator: torch.Generator
    ) -> Tensor:
        """(b, 4, f, h, w) squared error of the noise, weighted by place."""
        own = torch.randn(batch.clean.shape, generator=generator)
        shared = torch.randn(own[:, :, :1].shape, generator=generator)
        noise = own if self._config.frames == 1 else SHARED * (own + shared)
        noisy = diffusion.add_noise(batch.clean, noise, timesteps)
        sample = diffusion.unet_input(noisy, self._mask, batch.shown)
        predicted = self.net(sample, timesteps, speech)
        error: Tensor = (predicted - noise).square() * self._weight
        return error

    def _draw(self, data: Prepared, count: int, generator: torch.Generator) -> _Batch:
        """Windows by chance, each with a reference out of another window of the same person."""
        whole, frames = data.clean.shape[1], self._config.frames

        def chance(high: int) -> Tensor:
            return torch.randint(high, (count,), generator=generator)

        window = chance(len(data.person))
        first = chance(whole - frames + 1)
        people = data.person
        starts = torch.searchsorted(people, people[window])
        stops = torch.searchsorted(people, people[window], right=True)
        others = (stops - starts - 1).clamp(min=1)
        step = 1 + (torch.rand(count, generator=generator) * others).long()
        other = starts + (window - starts + step) % (stops - starts)
        at = first[:, None] + torch.arange(frames)
        elsewhere = chance(whole - frames + 1)[:, None] + torch.arange(frames)
        return _Batch(
            clean=data.clean[window[:, None], at].float().transpose(1, 2),
            shown=diffusion.Latents(
                masked=data.masked[window[:, None], at].float(),
                reference=data.clean[other[:, None], elsewhere].float(),
            ),
            speech=data.speech[window[:, None], at].float(),
        )
