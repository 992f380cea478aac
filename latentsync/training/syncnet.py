"""Training StableSyncNet to tell whether lips and sound belong together."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.config import SyncNetTrainConfig
from latentsync.models.syncnet import StableSyncNet, cosine_loss, stacked
from latentsync.training.batches import WHOLE, Part
from latentsync.training.crops import pictures
from latentsync.training.dataset import Clip, window_and_reference

__all__ = ["ClipPairs", "PairWindows", "Pairs", "SyncNetTask", "accuracies"]

FRAMES = 16  # of a window
IN_SYNC = 0.5  # the cosine is the chance that both belong together
VALIDATION_WINDOWS, VALIDATION_PARTS = 128, 8  # in parts: memory


@dataclass(frozen=True)
class Pairs:
    """Windows of 16 frames, b of them, and a sound for each."""

    seen: Tensor  # (b, 3, 16, R, R) in [-1, 1], or (b, 4, 16, h, w) latents
    mel: Tensor  # (b, 1, 80, 52)
    in_sync: Tensor  # (b,) bool; else the sound is that of another place in the same clip


class PairWindows(Protocol):
    """What pairs are drawn from."""

    def draw(self, count: int, generator: torch.Generator, part: Part = WHOLE) -> Pairs:
        """A part of `count` pairs by chance, every second one in sync."""
        ...


class ClipPairs:
    """Pairs out of clips; a wrong sound is that of a window that shares no frame with the seen one.

    Args:
        clips: at least one; each has an equal chance to be drawn.
        pixels: px, side of the crops, cut when they are drawn; None: the cached latents are seen.
    """

    def __init__(self, clips: Sequence[Clip], pixels: int | None = None) -> None:
        self._clips, self._pixels = clips, pixels

    def draw(self, count: int, generator: torch.Generator, part: Part = WHOLE) -> Pairs:
        """See `PairWindows`."""
        mine = part.of(count)
        numbers = torch.randint(len(self._clips), (count,), generator=generator)[mine]
        chances = torch.rand((count, 2), generator=generator)[mine]
        in_sync = (torch.arange(count) % 2 == 0)[mine]
        with ThreadPoolExecutor() as pool:  # decoding takes most of a step
            drawn = list(pool.map(self._pair, numbers.tolist(), chances.tolist(), in_sync.tolist()))
        seen, mel = (torch.stack(each) for each in zip(*drawn, strict=True))
        return Pairs(seen.transpose(1, 2), mel, in_sync)

    def _pair(self, number: int, chances: list[float], in_sync: bool) -> tuple[Tensor, Tensor]:
        """(16, c, h, w) and (1, 80, 52)."""
        clip = self._clips[number]
        start, other = window_and_reference(len(clip), FRAMES, *chances)
        stop = start + FRAMES
        if self._pixels:
            with torch.autocast("cpu", enabled=False):  # the geometry of crops is float32
                seen = pictures(clip.crops(start, stop, self._pixels))
        else:
            seen = clip.latents(start, stop).reference
        return seen, clip.mel(start if in_sync else other, FRAMES)


class SyncNetTask:
    """A task of `loop.fit`: cross-entropy of the cosine, as published.

    Args:
        keep: called at every validation, when `net` holds the average.
    """

    def __init__(
        self,
        net: StableSyncNet,
        train: PairWindows,
        held_out: PairWindows,
        config: SyncNetTrainConfig,
        *,
        keep: Callable[[], None] | None = None,
    ) -> None:
        self.net = net
        self._train, self._held_out, self._batch, self._keep = train, held_out, config.batch, keep
        self._device = next(net.parameters()).device

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        return self.part_losses(generator, WHOLE)

    def part_losses(self, generator: torch.Generator, part: Part) -> dict[str, Tensor]:
        """Of one part of the batch; their mean over all parts is that of the whole batch."""
        pairs = self._train.draw(self._batch, generator, part)
        visual, audio = self._embedded(pairs)
        with torch.autocast(self._device.type, enabled=False):
            return {"sync": cosine_loss(visual, audio, pairs.in_sync.to(self._device)).mean()}

    def validate(self) -> dict[str, float]:
        """How often it is right about pairs of which every second one is in sync; 0.5 is chance.

        `accuracy` takes a cosine above 0.5 for "in sync", `best_accuracy` above whatever threshold
        serves these pairs best.
        """
        cosines, in_sync = [], []
        for part in (Part(i, VALIDATION_PARTS) for i in range(VALIDATION_PARTS)):
            generator = torch.Generator().manual_seed(0)
            pairs = self._held_out.draw(VALIDATION_WINDOWS, generator, part)
            visual, audio = self._embedded(pairs)
            cosines.append(F.cosine_similarity(visual.float(), audio.float()).float().cpu())
            in_sync.append(pairs.in_sync)
        if self._keep:
            self._keep()
        right, best = accuracies(torch.cat(cosines), torch.cat(in_sync))
        return {"accuracy": right, "best_accuracy": best}

    def _embedded(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        shown = stacked(pairs.seen.to(self._device), self.net.config)
        visual, audio = self.net(shown, pairs.mel.to(self._device))
        return visual, audio


def accuracies(cosines: Tensor, in_sync: Tensor) -> tuple[float, float]:
    """Share of (n,) pairs that a threshold of 0.5 tells right, and that the best one does."""
    right = ((cosines > IN_SYNC) == in_sync).float().mean().item()
    thresholds = torch.cat([cosines.min()[None] - 1, cosines])
    best = ((cosines > thresholds[:, None]) == in_sync).float().mean(1).max().item()
    return right, best
