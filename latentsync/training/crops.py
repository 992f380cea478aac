"""Crops for training: windows of consecutive frames of many people, and what belongs to them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentsync.types import FloatArray, IntArray

__all__ = ["Pixels", "SpeakerWindows", "pictures"]

Pixels = NDArray[np.uint8]
"""Crops, (n, R, R, 3) RGB."""


@dataclass(frozen=True)
class SpeakerWindows:
    """Windows of one clip of one person, and its sound."""

    pixels: NDArray[np.uint8]  # (windows, frames, R, R, 3) RGB
    frames: IntArray  # (windows, frames), their numbers in the clip, 25 a second
    mouths: FloatArray  # (windows, frames, 3): opening, width, rounding
    wave: FloatArray  # (samples,) mono in [-1, 1] at 16 kHz

    def save(self, path: Path) -> None:
        """Write atomically, as .npz; the wave in 16 bits."""
        temporary = path.with_name(f".{path.name}")
        with temporary.open("wb") as file:
            np.savez(
                file,
                pixels=self.pixels,
                frames=self.frames,
                mouths=self.mouths,
                wave=np.round(self.wave * 32767).astype(np.int16),
            )
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "SpeakerWindows":
        with np.load(path) as file:
            wave = file["wave"].astype(np.float32) / 32767
            return cls(file["pixels"], file["frames"], file["mouths"], wave)

    def chunks(self) -> Iterator[FloatArray]:
        """The sound as `SpeechFeatures` reads it."""
        yield self.wave


def pictures(pixels: Pixels) -> Tensor:
    """(..., R, R, 3) uint8 -> (n, 3, R, R) float32 in [-1, 1]."""
    flat = torch.from_numpy(pixels.reshape(-1, *pixels.shape[-3:]))
    return flat.permute(0, 3, 1, 2).float() / 127.5 - 1
