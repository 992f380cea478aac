"""LPIPS: how different two pictures look to a net, where PSNR counts pixels."""

import numpy as np
import torch
from numpy.typing import NDArray

from latentsync.errors import OptionError
from latentsync.evaluation.pictures import compared
from latentsync.models.lpips import LPIPS
from latentsync.types import Box, FloatArray

__all__ = ["lpips_distance"]

LEAST_SIDE = 16  # px; what four poolings leave one pixel of
BATCH = 8  # pictures; VGG16's first layers hold 64 channels at full size


def lpips_distance(
    net: LPIPS,
    pictures: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    region: Box | None = None,
) -> FloatArray:
    """How different each picture is from its truth in `region`: 0 is equal, 1 is as good as all.

    https://arxiv.org/abs/1801.03924 on VGG16, version 0.1. Pictures are looked at in their own
    size, so compare figures of one size only.

    Args:
        net: by `latentsync.weights.load_lpips`.
        pictures, truth: (n, H, W, 3) uint8 RGB.

    Returns:
        (n,), one a frame.

    Raises:
        OptionError: stacks of different shapes, or less than 16 x 16 px of them.
    """
    a, b = compared(pictures, truth, region)
    if min(a.shape[1:3]) < LEAST_SIDE:
        raise OptionError(
            f"LPIPS was asked of {a.shape[2]} x {a.shape[1]} px; it needs {LEAST_SIDE} x "
            f"{LEAST_SIDE}: measure larger crops"
        )
    like = next(net.parameters())
    found = []
    with torch.inference_mode():
        for i in range(0, len(a), BATCH):
            both = np.stack([a[i : i + BATCH], b[i : i + BATCH]]).transpose(0, 1, 4, 2, 3)
            x, y = torch.from_numpy(both).to(like) / 127.5 - 1
            found.append(net(x, y).cpu().numpy())
    return np.concatenate(found)
