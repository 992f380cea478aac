"""The batches of the U-Net's training, and which part of one a process takes."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from typing import Protocol

import torch
from torch import Tensor

from latentsync.diffusion.sampling import Latents

__all__ = ["WHOLE", "Batch", "BatchPart", "Prefetched", "Windows"]


@dataclass(frozen=True)
class BatchPart:
    """One of `count` equal parts of a batch."""

    index: int
    count: int

    def of(self, samples: int) -> slice:
        """The place of this part in a batch of so many samples, a multiple of `count`."""
        size = samples // self.count
        return slice(self.index * size, (self.index + 1) * size)


WHOLE = BatchPart(0, 1)


@dataclass(frozen=True)
class Batch:
    """Windows of f frames, b of them."""

    clean: Tensor  # (b, 4, f, h, w) latents
    shown: Latents  # of (b, f, 4, h, w); the reference is another window of the same person
    speech: Tensor  # (b, f, tokens, width)
    pixels: Tensor | None = None  # (b, 3, f, R, R) in [-1, 1], for losses on pixels
    mel: Tensor | None = None  # (b, 1, 80, 52), for the loss on lip-sync

    def to(self, device: torch.device) -> "Batch":
        moved = {
            field.name: value.to(device)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        shown = Latents(self.shown.masked.to(device), self.shown.reference.to(device))
        return replace(self, shown=shown, **moved)


class Windows(Protocol):
    """A source of windows: `PreparedWindows` in memory, `ClipWindows` on disk."""

    def draw(
        self, count: int, frames: int, generator: torch.Generator, part: BatchPart = WHOLE
    ) -> Batch:
        """Draw `count` windows and return a part; the generator advances as for all of them."""
        ...


class Prefetched:
    """Draws the windows of the next step while a step is computed.

    A draw depends on its generator's seed only, which grows by one a step; it must be the first
    use of the generator.
    """

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self._thread = ThreadPoolExecutor(1)
        self._drawn: dict[tuple[int, BatchPart], Future[tuple[Batch, Tensor]]] = {}

    def draw(
        self, count: int, frames: int, generator: torch.Generator, part: BatchPart = WHOLE
    ) -> Batch:
        def drawn(seed: int) -> tuple[Batch, Tensor]:
            own = torch.Generator().manual_seed(seed)
            return self._windows.draw(count, frames, own, part), own.get_state()

        seed = generator.initial_seed()
        ready = self._drawn.pop((seed, part), None)
        batch, state = ready.result() if ready else drawn(seed)
        generator.set_state(state)
        self._drawn[seed + 1, part] = self._thread.submit(drawn, seed + 1)
        return batch
