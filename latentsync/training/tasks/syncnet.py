"""Training StableSyncNet to tell whether lips and sound belong together.

Two windows without a common frame are drawn from a clip. Each is paired with its own sound and with
the other's. So every picture and every sound occurs once in a right and once in a wrong pair, and
only both together tell which. A wrong sound for every second window, as published, teaches the
small preset much more slowly (benchmarks/README.md).
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.errors import Cancelled
from latentsync.evaluation.nets.syncnet import StableSyncNet, accuracies, cosine_loss, stacked
from latentsync.training.batches import WHOLE, BatchPart
from latentsync.training.clip_cache import CachedClip
from latentsync.training.crops import to_tensor
from latentsync.training.dataset import window_and_reference
from latentsync.training.presets import SyncNetTrainConfig

__all__ = ["ClipPairs", "PairWindows", "SyncNetTask", "WindowPairs", "contrast_loss"]

TEMPERATURE = 0.05  # of cosines
VALIDATION_CLIPS = 128  # a multiple of VALIDATION_PARTS; two windows are drawn of each
VALIDATION_PARTS = 16  # for less memory


@dataclass(frozen=True)
class WindowPairs:
    """Two windows of f frames of each of b clips, without a common frame, and their sounds."""

    visual: Tensor  # (b, 2, 3, f, R, R) in [-1, 1], or (b, 2, 4, f, h, w) latents
    mel: Tensor  # (b, 2, 1, 80, 52) beside 16 frames, (b, 2, 1, 80, 80) beside 25


class PairWindows(Protocol):
    """A source of pairs."""

    def draw(self, count: int, generator: torch.Generator, part: BatchPart = WHOLE) -> WindowPairs:
        """Draw pairs of `count` clips; return those of a part of them."""
        ...


@dataclass(frozen=True)
class ClipPairs:
    """Draws pairs from clips.

    Args:
        clips: at least one; each has an equal chance to be drawn.
        pixels: px, side of the crops, decoded when drawn; None: draw the cached latents.
        frames: of a window.
    """

    clips: Sequence[CachedClip]
    pixels: int | None = None
    frames: int = 16

    def draw(self, count: int, generator: torch.Generator, part: BatchPart = WHOLE) -> WindowPairs:
        """See `PairWindows`."""
        mine = part.of(count)
        numbers = torch.randint(len(self.clips), (count,), generator=generator)[mine]
        chances = torch.rand((count, 2), generator=generator)[mine]
        windows = [
            (clip, start)
            for number, both in zip(numbers.tolist(), chances.tolist(), strict=True)
            for clip in [self.clips[number]]
            for start in window_and_reference(len(clip), self.frames, *both)
        ]
        with ThreadPoolExecutor() as pool:  # decoding takes most of a step
            drawn = pool.map(self._window, *zip(*windows, strict=True))
            visual, mel = (torch.stack(each) for each in zip(*drawn, strict=True))
        return WindowPairs(visual.transpose(1, 2).unflatten(0, (-1, 2)), mel.unflatten(0, (-1, 2)))

    def _window(self, clip: CachedClip, start: int) -> tuple[Tensor, Tensor]:
        """(f, c, h, w) and (1, 80, columns)."""
        stop = start + self.frames
        if self.pixels:
            with torch.autocast("cpu", enabled=False):  # the geometry of crops is float32
                visual = to_tensor(clip.crops(start, stop, self.pixels))
        else:
            visual = clip.latents(start, stop).reference
        return visual, clip.mel(start, self.frames)


class SyncNetTask:
    """A task of `loop.fit`: cross-entropy of the cosine, as published, for right and wrong pairs.

    Args:
        keep: called at every validation with its figures, while `net` holds the average.
        cancel: asked often during a validation.
    """

    def __init__(
        self,
        net: StableSyncNet,
        train: PairWindows,
        held_out: PairWindows,
        config: SyncNetTrainConfig,
        *,
        keep: Callable[[Mapping[str, float]], None] | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> None:
        self.net = net
        self._train, self._held_out, self._config, self._keep = train, held_out, config, keep
        self._cancel = cancel
        self._device = next(net.parameters()).device

    def losses(self, generator: torch.Generator, part: BatchPart = WHOLE) -> dict[str, Tensor]:
        """The losses of one part; their mean over all parts is that of the whole batch.

        Except for the contrast, which compares the windows of one part.
        """
        pairs = self._train.draw(self._config.batch, generator, part)
        visual, audio, in_sync = self._embedded(pairs)
        with torch.autocast(self._device.type, enabled=False):
            losses = {"sync": cosine_loss(visual, audio, in_sync).mean()}
            if self._config.contrast_weight:
                found = contrast_loss(visual[in_sync], audio[in_sync])
                losses["contrast"] = self._config.contrast_weight * found
        return losses

    part_losses = losses  # for `loop.DivisibleTask`

    def validate(self) -> dict[str, float]:
        """The share of held-out pairs that the net judges correctly; 0.5 is chance.

        `accuracy` takes a cosine above 0.5 for "in sync", `best_accuracy` a cosine above the
        threshold that suits these pairs best.

        Raises:
            Cancelled: `cancel` returned true.
        """
        cosines, truth = [], []
        for part in (BatchPart(i, VALIDATION_PARTS) for i in range(VALIDATION_PARTS)):
            if self._cancel and self._cancel():
                raise Cancelled("the validation was stopped")
            generator = torch.Generator().manual_seed(0)
            pairs = self._held_out.draw(VALIDATION_CLIPS, generator, part)
            visual, audio, in_sync = self._embedded(pairs)
            cosines.append(F.cosine_similarity(visual.float(), audio.float()).cpu())
            truth.append(in_sync.cpu())
        right, best = accuracies(torch.cat(cosines), torch.cat(truth))
        found = {"accuracy": right, "best_accuracy": best}
        if self._keep:
            self._keep(found)
        return found

    def _embedded(self, pairs: WindowPairs) -> tuple[Tensor, Tensor, Tensor]:
        """Visual and audio (4 b, width), and (4 b,) whether they belong together."""
        shown = stacked(pairs.visual.flatten(0, 1).to(self._device), self.net.config)
        visual, audio = self.net(shown, pairs.mel.flatten(0, 1).to(self._device))
        swapped = audio.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
        in_sync = torch.arange(2 * len(audio), device=self._device) < len(audio)
        return torch.cat([visual, visual]), torch.cat([audio, swapped]), in_sync


def contrast_loss(visual: Tensor, audio: Tensor) -> Tensor:
    """Cross-entropy of each window's sound among all sounds, and of each sound's window.

    As in CLIP, https://arxiv.org/abs/2103.00020, section 2.3, at a fixed temperature.

    Args:
        visual, audio: (n, width), each row of length 1, in the same order.
    """
    similarity = visual.float() @ audio.float().T / TEMPERATURE
    own = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, own) + F.cross_entropy(similarity.T, own)) / 2
