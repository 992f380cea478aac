"""Windows of drawn people, held in memory: what scripts/train_demo.py trains on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentsync.audio.whisper import SpeechEncoder, encode_speech
from latentsync.diffusion import sampling
from latentsync.diffusion.vae import VAE
from latentsync.faces.mask import keep_mask
from latentsync.runtime.files import replacing
from latentsync.training.batches import WHOLE, Batch, BatchPart
from latentsync.training.clip_cache import FPS
from latentsync.training.crops import to_tensor
from latentsync.types import FloatArray, IntArray

__all__ = ["PreparedWindows", "SpeakerWindows", "encode_latents", "encode_sound"]


@dataclass(frozen=True)
class SpeakerWindows:
    """Windows of one clip of one person, and its sound."""

    pixels: NDArray[np.uint8]  # (windows, frames, R, R, 3) RGB
    frames: IntArray  # (windows, frames), their numbers in the clip, 25 a second
    mouths: FloatArray  # (windows, frames, 3): opening, width, rounding
    wave: FloatArray  # (samples,) mono in [-1, 1] at 16 kHz

    def save(self, path: Path) -> None:
        """Write atomically, as .npz; the wave in 16 bits."""
        wave = np.round(self.wave * 32767).astype(np.int16)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, pixels=self.pixels, frames=self.frames, mouths=self.mouths, wave=wave)

    @classmethod
    def load(cls, path: Path) -> "SpeakerWindows":
        with np.load(path) as file:
            wave = file["wave"].astype(np.float32) / 32767
            return cls(file["pixels"], file["frames"], file["mouths"], wave)

    def chunks(self) -> Iterator[FloatArray]:
        """The sound as `encode_speech` reads it."""
        yield self.wave


@dataclass(frozen=True)
class PreparedWindows:
    """What the frozen nets compute of the people, once; float16, w windows of f frames."""

    clean: Tensor  # (w, f, 4, h, w) latents of the crops
    masked: Tensor  # (w, f, 4, h, w), of the crops with the mouth masked out
    speech: Tensor  # (w, f, tokens, width)
    person: Tensor  # (w,) whose window it is; windows of one person follow each other

    def draw(
        self, count: int, frames: int, generator: torch.Generator, part: BatchPart = WHOLE
    ) -> Batch:
        """Draw windows, each with a reference from another window of the same person."""
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


def encode_latents(vae: VAE, people: Sequence[SpeakerWindows]) -> dict[str, Tensor]:
    """Compute `PreparedWindows.clean`, `.masked` and `.person`, by name."""
    mask = torch.from_numpy(keep_mask(people[0].pixels.shape[-2]))
    clean, masked, person = [], [], []
    for number, one in enumerate(people):
        with torch.inference_mode():
            latents = sampling.encode(vae, to_tensor(one.pixels), mask)
        clean.append(latents.reference.unflatten(0, one.frames.shape).half())
        masked.append(latents.masked.unflatten(0, one.frames.shape).half())
        person += [number] * len(one.frames)
    return {
        "clean": torch.cat(clean),
        "masked": torch.cat(masked),
        "person": torch.tensor(person),
    }


def encode_sound(encoder: SpeechEncoder, people: Sequence[SpeakerWindows]) -> dict[str, Tensor]:
    """Compute `PreparedWindows.speech`, by name: the features of each frame of each window."""
    speech = []
    for one in people:
        last = int(one.frames.max()) + 1
        features = encode_speech(encoder, one, frames=last, fps=FPS)[0:last]
        speech.append(features[torch.from_numpy(one.frames)].half())
    return {"speech": torch.cat(speech)}
