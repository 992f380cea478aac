"""LPIPS: perceptual distance of two images, by features of VGG16; a training loss, too.

"The unreasonable effectiveness of deep features", https://arxiv.org/abs/1801.03924, version 0.1 as
in https://github.com/richzhang/PerceptualSimilarity/blob/082bb24/lpips/lpips.py. Attribute names
are the keys of torchvision's VGG16 (`features`, its classifier left out) and of the linear layers'
file in the lpips package (`lin0` to `lin4`).
"""

import torch
from torch import Tensor, nn

__all__ = ["LPIPS"]

# VGG16, https://arxiv.org/abs/1409.1556: widths of its 3x3 convolutions, a pooling between groups
GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
# From [-1, 1] to the mean and deviation that VGG16 was trained with
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPS = 1e-10  # added to the length of a feature


class LPIPS(nn.Module):
    """Frozen: gradients reach the pictures only."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        self.taps: list[int] = []  # layers whose outputs are compared: the end of each group
        before = 3
        for i, widths in enumerate(GROUPS):
            layers += [nn.MaxPool2d(2)] if i else []
            for width in widths:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
                before = width
            self.taps.append(len(layers) - 1)
            self.add_module(f"lin{i}", Linear(before))
        self.features = nn.Sequential(*layers)
        self.requires_grad_(False)

    def forward(self, picture: Tensor, target: Tensor) -> Tensor:
        """Distances, 0 for equal pictures.

        Args:
            picture, target: (n, 3, h, w) RGB in [-1, 1], sides of at least 16 px.

        Returns:
            (n,)
        """
        shift, scale = (picture.new_tensor(c)[:, None, None] for c in (SHIFT, SCALE))
        a, b = (picture - shift) / scale, (target - shift) / scale
        distance = picture.new_zeros(len(picture))
        for i, layer in enumerate(self.features):
            a, b = layer(a), layer(b)
            if i in self.taps:
                linear = getattr(self, f"lin{self.taps.index(i)}")
                x, y = _normalized(a), _normalized(b)
                distance = distance + linear((x - y).square()).mean((1, 2, 3))
        return distance


class Linear(nn.Module):
    """A weight for each channel, (n, c, h, w) -> (n, 1, h, w)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The identity stands for a dropout, for the numbering of the keys.
        self.model = nn.Sequential(nn.Identity(), nn.Conv2d(width, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


def _normalized(features: Tensor) -> Tensor:
    """Bring each position's vector to length 1."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + EPS)
