"""How good a face looks: by hyperIQA, and by a stand-in that needs no weights."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from latentsync.evaluation.nets.hyper_iqa import SIDE, HyperIQA
from latentsync.runtime import checkpoints
from latentsync.types import Frame

__all__ = ["hyper_iqa", "load_hyper_iqa", "sharpness"]


def load_hyper_iqa(path: Path, device: torch.device | str = "cpu") -> HyperIQA:
    """Load the published `koniq_pretrained.pkl` in float32, frozen.

    Raises:
        WeightsMissing: there is no such file.
        WeightsMismatch: it holds something else.
    """
    state = checkpoints.read(path, hint="run `latentsync download eval`")
    return checkpoints.filled(HyperIQA, state, path).to(device)


def hyper_iqa(net: HyperIQA, faces: Sequence[Frame]) -> float:
    """Mean score of some faces, 0 (bad) to 100 (excellent).

    The net sees the middle 224 px of a face of 256 px, as published,
    https://github.com/bytedance/LatentSync/blob/a229c39/preprocess/filter_visual_quality.py, and
    four such squares of a face of 512 px, which show the same part of it at its own resolution.
    (hyperIQA's own demo takes random squares of a resized picture.)

    Args:
        faces: (size, size, 3) RGB each, all of one size, at least 224 px.
    """
    # As many squares as fit, side by side around the middle.
    count, rest = divmod(len(faces[0]), SIDE)
    places = [slice(rest // 2 + i * SIDE, rest // 2 + (i + 1) * SIDE) for i in range(count)]
    squares = [face[rows, columns] for face in faces for rows in places for columns in places]
    pictures = torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        return float(net(pictures.to(next(net.parameters()).device)).mean())


def sharpness(face: Frame) -> float:
    """Variance of the Laplacian, in squared grey levels: below about 10 a face is blurred."""
    return float(cv2.Laplacian(cv2.cvtColor(face, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())
