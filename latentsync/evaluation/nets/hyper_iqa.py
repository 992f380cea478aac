"""hyperIQA: no-reference image quality, as people judge it.

"Blindly Assess Image Quality in the Wild Guided by a Self-Adaptive Hyper Network", Su et al., CVPR
2020. The last features of a ResNet-50 give the weights of a small net, different for each image,
which scores features of all four stages. Attribute names are the keys of the published
`koniq_pretrained.pkl`; layers as in
https://github.com/SSL92/hyperIQA/blob/8be5a29/models.py
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SIDE", "HyperIQA"]

SIDE = 224  # px, of its input
# ImageNet's, with which ResNet-50 was trained: R, G, B of 0..1
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCKS = (3, 4, 6, 3)  # of ResNet-50's stages
GROWTH = 4  # of channels, within a block
POOL = 7  # px of a stage's features that are averaged; the last stage has 7 x 7
LOCAL = 16  # features from each of the first three stages
SCORED = 224  # features from all four stages: the small net's input
HYPER = 112  # channels from which the small net's weights are made
LAYERS = (112, 56, 28, 14)  # widths of the small net's layers; the last, of width 1, is the score


class HyperIQA(nn.Module):
    """Frozen, in eval mode. `width` is ResNet-50's narrowest; 64 as published."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.res = Backbone(width)
        self.conv1 = nn.Sequential(
            nn.Conv2d(32 * width, 16 * width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(16 * width, 8 * width, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(8 * width, HYPER, 1),
            nn.ReLU(inplace=True),
        )
        for i, (before, after) in enumerate(pairwise((SCORED, *LAYERS)), start=1):
            self.add_module(
                f"fc{i}w_conv", nn.Conv2d(HYPER, before * after // POOL**2, 3, padding=1)
            )
            self.add_module(f"fc{i}b_fc", nn.Linear(HYPER, after))
        self.fc5w_fc = nn.Linear(HYPER, LAYERS[-1])
        self.fc5b_fc = nn.Linear(HYPER, 1)
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> Tensor:
        """(n, 3, 224, 224) RGB in [0, 1] -> (n,), about 0 (bad) to 100 (excellent)."""
        mean, deviation = (pictures.new_tensor(c)[:, None, None] for c in (MEAN, DEVIATION))
        features, x = self.res((pictures - mean) / deviation)
        hyper = self.conv1(features)
        pooled = hyper.mean((2, 3))
        for i, width in enumerate(LAYERS, start=1):  # each image has its own weights
            weight = self.get_submodule(f"fc{i}w_conv")(hyper).reshape(len(x), width, -1)
            bias = self.get_submodule(f"fc{i}b_fc")(pooled)
            x = (torch.einsum("nba,na->nb", weight, x) + bias).sigmoid()
        weight, bias = self.fc5w_fc(pooled)[:, None], self.fc5b_fc(pooled)
        return (torch.einsum("nba,na->nb", weight, x) + bias)[:, 0]


class Backbone(nn.Module):
    """ResNet-50 without its classifier, with features of each stage for the score."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, BLOCKS[0], stride=1)
        self.layer2 = _stage(4 * width, 2 * width, BLOCKS[1], stride=2)
        self.layer3 = _stage(8 * width, 4 * width, BLOCKS[2], stride=2)
        self.layer4 = _stage(16 * width, 8 * width, BLOCKS[3], stride=2)
        self.lda1_pool, self.lda1_fc = _pool(4 * width, 16), nn.Linear(16 * 8**2, LOCAL)
        self.lda2_pool, self.lda2_fc = _pool(8 * width, 32), nn.Linear(32 * 4**2, LOCAL)
        self.lda3_pool, self.lda3_fc = _pool(16 * width, 64), nn.Linear(64 * 2**2, LOCAL)
        self.lda4_fc = nn.Linear(32 * width, SCORED - 3 * LOCAL)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 3, 224, 224) -> features (n, 32 width, 7, 7), and (n, 224) to score."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, stride=2, padding=1)
        x = self.layer1(x)
        local = [self.lda1_fc(self.lda1_pool(x).flatten(1))]
        x = self.layer2(x)
        local.append(self.lda2_fc(self.lda2_pool(x).flatten(1)))
        x = self.layer3(x)
        local.append(self.lda3_fc(self.lda3_pool(x).flatten(1)))
        x = self.layer4(x)
        local.append(self.lda4_fc(F.avg_pool2d(x, POOL).flatten(1)))
        return x, torch.cat(local, dim=1)


def _pool(before: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, channels, 1, bias=False), nn.AvgPool2d(POOL))


def _stage(before: int, width: int, blocks: int, *, stride: int) -> nn.Sequential:
    first = Bottleneck(before, width, stride=stride)
    return nn.Sequential(first, *(Bottleneck(GROWTH * width, width) for _ in range(1, blocks)))


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3, 1x1; a stage's first has a convolution in its shortcut."""

    def __init__(self, before: int, width: int, *, stride: int = 1) -> None:
        super().__init__()
        after = GROWTH * width
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample = nn.Sequential()
        if before != after:
            self.downsample.append(nn.Conv2d(before, after, 1, stride=stride, bias=False))
            self.downsample.append(nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.downsample(x))
