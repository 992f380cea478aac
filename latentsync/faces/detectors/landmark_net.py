"""Two small nets that measure a face in about 2 ms on a CPU: its landmarks, its mouth.

Both look at 64 x 64 px and share a trunk. `Regressor` answers with numbers; `PointNet` with points,
each the centre of a heat map, which jitters less than a number that is regressed, and with whether
it sees a face at all.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SIDE", "PointNet", "Regressor"]

SIDE = 64  # px of the picture that both nets see
WIDTHS = (24, 48, 96, 128)  # channels at 32, 16, 8 and 4 cells a side
GRID = 16  # cells a side of a heat map
LATERAL = 32  # channels in which PointNet's scales meet


class Regressor(nn.Module):
    """A picture to `outputs` numbers in their own units, whose mean and spread it keeps."""

    mean: Tensor  # (outputs,) of the training data
    std: Tensor

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.head = nn.Linear(WIDTHS[-1] * (SIDE // 16) ** 2, outputs)
        self.register_buffer("mean", torch.zeros(outputs))
        self.register_buffer("std", torch.ones(outputs))

    def forward(self, pictures: Tensor) -> Tensor:
        """Map (n, 3, 64, 64) RGB in [-1, 1] to (n, outputs)."""
        raw: Tensor = self.head(self.trunk(pictures)[-1].flatten(1))
        return raw * self.std + self.mean


class PointNet(nn.Module):
    """A picture to `points` places in it, and whether it shows a face."""

    centres: Tensor  # (GRID,) of the heat maps' cells, -1 and 1 the picture's edges

    def __init__(self, points: int) -> None:
        super().__init__()
        self.trunk = Trunk()
        self.laterals = nn.ModuleList(nn.Conv2d(width, LATERAL, 1) for width in WIDTHS[1:])
        self.mix = _layer(LATERAL, LATERAL)
        self.maps = nn.Conv2d(LATERAL, points, 1)
        self.face = nn.Linear(WIDTHS[-1], 1)
        centres = (torch.arange(GRID) + 0.5) * (2 / GRID) - 1
        self.register_buffer("centres", centres, persistent=False)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Map (n, 3, 64, 64) RGB in [-1, 1] to points (n, points, 2) and a face's logit (n,).

        Points are x, y; -1 and 1 are the picture's edges, and none lies beyond them.
        """
        features = self.trunk(pictures)
        x, *finer = (
            lateral(feature)
            for lateral, feature in zip(reversed(self.laterals), reversed(features), strict=True)
        )
        for feature in finer:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False) + feature
        heat = self.maps(self.mix(x)).flatten(2).softmax(dim=-1).unflatten(2, (GRID, GRID))
        across, down = heat.sum(dim=2) @ self.centres, heat.sum(dim=3) @ self.centres
        face = self.face(features[-1].mean(dim=(2, 3)))[:, 0]
        return torch.stack([across, down], dim=-1), face


class Trunk(nn.Module):
    """(n, 3, 64, 64) -> features of 16, 8 and 4 cells a side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _layer(3, WIDTHS[0], kernel=5, stride=2)
        self.scales = nn.ModuleList(
            nn.Sequential(_layer(before, width, stride=2), _layer(width, width))
            for before, width in pairwise(WIDTHS)
        )

    def forward(self, pictures: Tensor) -> list[Tensor]:
        # Light and contrast say nothing about a face's shape.
        x = self.stem(F.layer_norm(pictures, pictures.shape[1:]))
        features = []
        for scale in self.scales:
            x = scale(x)
            features.append(x)
        return features


def _layer(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.GroupNorm(8, outputs),
        nn.SiLU(inplace=True),
    )
