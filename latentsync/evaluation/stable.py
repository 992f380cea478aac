"""How often StableSyncNet, which supervises training, can tell whether lips and sound fit."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.errors import InputError
from latentsync.evaluation.nets.syncnet import StableSyncNet, accuracies, stacked

__all__ = ["StableAccuracy", "stable_syncnet_accuracy"]


@dataclass(frozen=True)
class StableAccuracy:
    """Over pairs of which half are in sync; 0.5 is chance."""

    accuracy: float  # a cosine above 0.5 is taken for "in sync", as the net is trained
    best_accuracy: float  # above whatever threshold serves these pairs best
    in_sync: float  # mean cosine of lips with their own sound
    out_of_sync: float  # and with another stretch's of the same clip
    pairs: int


def stable_syncnet_accuracy(
    net: StableSyncNet, windows: Iterable[tuple[Tensor, Tensor]]
) -> StableAccuracy:
    """What the net says of a set: https://arxiv.org/abs/2412.09262.

    Of each clip two stretches without a common frame are seen, each with its own sound and with
    that of the other, as in training: so nothing but lips and sound together can tell which fit.

    Args:
        windows: batches, streaming by, of (seen, mel): seen (b, 2, 3, 16, R, R) in [-1, 1], or
            (b, 2, 4, 16, h, w) latents; mel (b, 2, 1, 80, 52) as `nets.syncnet_mel.sync_window`.

    Raises:
        InputError: there is no window.
    """
    own: list[Tensor] = []
    other: list[Tensor] = []
    like = next(net.parameters())
    with torch.inference_mode():
        for seen, mel in windows:
            shown = stacked(seen.flatten(0, 1).to(like), net.config)
            visual, audio = (x.float() for x in net(shown, mel.flatten(0, 1).to(like)))
            swapped = audio.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
            own.append(F.cosine_similarity(visual, audio).cpu())
            other.append(F.cosine_similarity(visual, swapped).cpu())
    if not own:
        raise InputError("there is no window to ask StableSyncNet about; give a clip of 32 frames")
    right, wrong = torch.cat(own), torch.cat(other)
    fits = torch.arange(2 * len(right)) < len(right)
    accuracy, best = accuracies(torch.cat([right, wrong]), fits)
    return StableAccuracy(accuracy, best, right.mean().item(), wrong.mean().item(), len(fits))
