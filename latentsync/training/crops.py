"""Aligned crops: cut out of a clip, and as tensors."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentsync.faces import align
from latentsync.media import VideoReader
from latentsync.types import FloatArray, Frame

__all__ = ["Pixels", "aligned_crops", "to_tensor"]

Pixels = NDArray[np.uint8]
"""Crops, (n, R, R, 3) RGB."""


def to_tensor(pixels: Pixels) -> Tensor:
    """(..., R, R, 3) uint8 -> (n, 3, R, R) float32 in [-1, 1], channels last in memory."""
    flat = torch.from_numpy(pixels.reshape(-1, *pixels.shape[-3:]))
    return flat.permute(0, 3, 1, 2).float() / 127.5 - 1


def aligned_crops(
    path: Path, numbers: Iterable[int], affines: FloatArray, side: int
) -> Iterator[Frame]:
    """Decode frames of a clip by number and cut out the face, (side, side, 3) each.

    Args:
        affines: (n, 2, 3) frame px -> crop px, one for each of these frames.
    """
    with VideoReader(path) as reader:
        for frame, affine in zip(reader.frames(list(numbers)), affines, strict=True):
            box = align.face_box(affine, side, frame.width, frame.height)
            yield align.cut_face(frame.rgb(box), box, affine, side)
