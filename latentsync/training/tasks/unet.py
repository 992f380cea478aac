"""Training the U-Net to predict the noise in the latents of talking faces."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from latentsync.audio.whisper import SpeechEncoder, encode_speech
from latentsync.diffusion import sampling
from latentsync.diffusion.unet import UNet
from latentsync.diffusion.vae import VAE
from latentsync.errors import Cancelled
from latentsync.faces.mask import keep_mask
from latentsync.training.batches import WHOLE, Batch, BatchPart, Windows
from latentsync.training.crops import SpeakerWindows, pictures
from latentsync.training.pixel_losses import PixelLosses
from latentsync.training.presets import UNetTrainConfig

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

    @property
    def latent_side(self) -> int:
        return self.clean.shape[-1]

    def draw(
        self, count: int, frames: int, generator: torch.Generator, part: BatchPart = WHOLE
    ) -> Batch:
        """Windows by chance, each with a reference out of another window of the same person."""
        whole, mine = self.clean.shape[1], part.of(count)

        def chance(high: int) -> Tensor:
            return torch.randint(high, (count,), generator=generator)

        window = chance(len(self.person))
        first = chance(whole - frames + 1)
        people = self.person
        starts = torch.searchsorted(people, people[window])
        stops = torch.searchsorted(people, people[window], right=True)
        others = (stops - starts - 1).clamp(min=1)
        step = 1 + (torch.rand(count, generator=generator) * others).long()
        other = (starts + (window - starts + step) % (stops - starts))[mine, None]
        elsewhere = (chance(whole - frames + 1)[:, None] + torch.arange(frames))[mine]
        at, window = (first[:, None] + torch.arange(frames))[mine], window[mine, None]
        return Batch(
            clean=self.clean[window, at].float().transpose(1, 2),
            shown=sampling.Latents(
                masked=self.masked[window, at].float(),
                reference=self.clean[other, elsewhere].float(),
            ),
            speech=self.speech[window, at].float(),
        )


def look(vae: VAE, people: Sequence[SpeakerWindows]) -> dict[str, Tensor]:
    """`Prepared.clean`, `.masked` and `.person` by name."""
    mask = torch.from_numpy(keep_mask(people[0].pixels.shape[-2]))
    clean, masked, person = [], [], []
    for number, one in enumerate(people):
        with torch.inference_mode():
            latents = sampling.encode(vae, pictures(one.pixels), mask)
        clean.append(latents.reference.unflatten(0, one.frames.shape).half())
        masked.append(latents.masked.unflatten(0, one.frames.shape).half())
        person += [number] * len(one.frames)
    return {
        "clean": torch.cat(clean),
        "masked": torch.cat(masked),
        "person": torch.tensor(person),
    }


def hear(encoder: SpeechEncoder, people: Sequence[SpeakerWindows]) -> dict[str, Tensor]:
    """`Prepared.speech` by name: what is heard at each frame of each window."""
    speech = []
    for one in people:
        last = int(one.frames.max()) + 1
        features = encode_speech(encoder, one, frames=last, fps=FPS)[0:last]
        speech.append(features[torch.from_numpy(one.frames)].half())
    return {"speech": torch.cat(speech)}


@dataclass(frozen=True)
class _Guess:
    noise: Tensor  # all of (b, 4, f, h, w)
    noisy: Tensor
    predicted: Tensor


class UNetTask:
    """A task of `loop.fit`: the squared error of the predicted noise, weighted as configured.

    Args:
        mask_side: px, side of the crops.
        pixel_losses: on the picture that the prediction gives, added to that error.
        show: asked for more figures at every validation, of the net as it is; given those found.
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
        step = mask_side // train.latent_side
        weight = 1 + config.mask_weight * (1 - self._mask[::step, ::step])
        self._weight = weight / weight.mean()

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        return self.part_losses(generator, WHOLE)

    def part_losses(self, generator: torch.Generator, part: BatchPart) -> dict[str, Tensor]:
        """Of one part of the batch; their mean over all parts is that of the whole batch."""
        count = self._config.batch
        batch = self._draw(self._train, count, generator, part)
        timesteps = torch.randint(sampling.TIMESTEPS, (count,), generator=generator)
        silent = torch.rand((count, 1, 1, 1), generator=generator) < self._config.speech_dropout
        timesteps, silent = (x[part.of(count)].to(self._device) for x in (timesteps, silent))
        speech = torch.where(silent, torch.zeros((), device=self._device), batch.speech)
        guess = self._guess(batch, speech, timesteps, generator, part)
        error = self._error(guess).mean((1, 2, 3, 4))
        if self._config.loss_weighting == "velocity":
            error = error * (1 / sampling.alpha_bar(timesteps)).clamp(max=VELOCITY_CAP)
        losses = {"noise": error.mean()}
        if self._pixel_losses is not None:
            clean = sampling.predict_x0(guess.noisy, guess.predicted.float(), timesteps)
            losses |= self._pixel_losses(clean, batch)
        return losses

    def validate(self) -> dict[str, float]:
        """Error at one timestep with the right speech, and with that of another window.

        The gap between the two is how much the net listens.

        Raises:
            Cancelled: `cancel` said so.
        """
        parts = VALIDATION_WINDOWS // 2 if self._config.frames > 1 else 1  # memory
        found = {"noise_right": 0.0, "noise_wrong": 0.0}
        for part in (BatchPart(i, parts) for i in range(parts)):
            generator = torch.Generator().manual_seed(0)
            batch = self._draw(self._held_out, VALIDATION_WINDOWS, generator, part)
            timesteps = torch.full((len(batch.clean),), VALIDATION_TIMESTEP, device=self._device)
            for name, speech in (("right", batch.speech), ("wrong", batch.speech.roll(1, 0))):
                if self._cancel and self._cancel():
                    raise Cancelled("the validation was stopped")
                again = torch.Generator().manual_seed(1)
                error = self._error(self._guess(batch, speech, timesteps, again, part))
                found[f"noise_{name}"] += error.mean().item() / parts
        return found | (self._show(found) if self._show else {})

    def _draw(
        self, data: Windows, count: int, generator: torch.Generator, part: BatchPart = WHOLE
    ) -> Batch:
        return data.draw(count, self._config.frames, generator, part).to(self._device)

    def _guess(
        self,
        batch: Batch,
        speech: Tensor,
        timesteps: Tensor,
        generator: torch.Generator,
        part: BatchPart,
    ) -> _Guess:
        """What the net makes of a part of a batch; noise is drawn on the CPU for all of it."""
        size, *window = batch.clean.shape
        own = torch.randn((size * part.count, *window), generator=generator)
        shared = torch.randn(own[:, :, :1].shape, generator=generator)
        noise = own if self._config.frames == 1 else SHARED * (own + shared)
        noise = noise[part.of(len(noise))].to(self._device)
        noisy = sampling.add_noise(batch.clean, noise, timesteps)
        sample = sampling.unet_input(noisy, self._mask, batch.shown)
        return _Guess(noise, noisy, self.net(sample, timesteps, speech))

    def _error(self, guess: _Guess) -> Tensor:
        """(b, 4, f, h, w) squared error of the noise, weighted by place."""
        error: Tensor = (guess.predicted.float() - guess.noise).square() * self._weight
        return error
