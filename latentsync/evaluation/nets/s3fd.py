"""S3FD, the face detector of published lip-sync figures: VGG16 with boxes at six scales.

https://arxiv.org/abs/1708.05237. Attribute names are the keys of the published `sfd_face.pth`;
layers as in https://github.com/joonson/syncnet_python/blob/1fbfc08/detectors/s3fd/nets.py, boxes as
in box_utils.py there. (`s3fd-619a316812.pth` is the same net trained by another project, with other
names.)
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["S3FD"]

# Widths of the 3x3 convolutions, a pooling after each group; the third rounds its size up.
GROUPS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
STRIDES = (4, 8, 16, 32, 64, 128)  # px of the image between two anchors, at each scale
ANCHORS = (16, 32, 64, 128, 256, 512)  # px, side of an anchor
WIDTHS = (256, 512, 512, 1024, 512, 256)
SHIFT, GROWTH = 0.1, 0.2  # unit of the net's output: sides of the anchor, and their logarithm
MEAN = (123.0, 117.0, 104.0)  # R, G, B


class S3FD(nn.Module):
    """Frozen, in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before, self.taps = 3, []  # last layers of the groups whose features are used
        for i, widths in enumerate(GROUPS):
            for width in widths:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
                before = width
            self.taps += [len(layers) - 1] if i >= 2 else []
            layers.append(nn.MaxPool2d(2, ceil_mode=i == 2))
        layers += [nn.Conv2d(512, 1024, 3, padding=6, dilation=6), nn.ReLU(inplace=True)]
        layers += [nn.Conv2d(1024, 1024, 1), nn.ReLU(inplace=True)]
        self.taps.append(len(layers) - 1)
        self.vgg = nn.ModuleList(layers)
        self.L2Norm3_3, self.L2Norm4_3, self.L2Norm5_3 = Norm(256), Norm(512), Norm(512)
        self.extras = nn.ModuleList(
            [
                nn.Conv2d(1024, 256, 1),
                nn.Conv2d(256, 512, 3, stride=2, padding=1),
                nn.Conv2d(512, 128, 1),
                nn.Conv2d(128, 256, 3, stride=2, padding=1),
            ]
        )
        self.loc = nn.ModuleList(nn.Conv2d(width, 4, 3, padding=1) for width in WIDTHS)
        self.conf = nn.ModuleList(
            nn.Conv2d(width, 2 if i else 4, 3, padding=1) for i, width in enumerate(WIDTHS)
        )
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the box of every anchor, from small to large.

        Args:
            pictures: (n, 3, h, w) RGB, 0..255.

        Returns:
            Scores (n, p) in 0..1, and boxes (n, p, 4): left, top, right, bottom in px.
        """
        scores, boxes = [], []
        for i, x in enumerate(self._scales(pictures - pictures.new_tensor(MEAN)[:, None, None])):
            # The smallest scale has three scores of "no face", because most anchors hold none.
            *nothing, face = self.conf[i](x).unbind(1)
            scores.append(torch.sigmoid(face - torch.stack(nothing).amax(0)).flatten(1))
            boxes.append(_boxes(self.loc[i](x), STRIDES[i], ANCHORS[i]))
        return torch.cat(scores, 1), torch.cat(boxes, 1)

    def _scales(self, x: Tensor) -> list[Tensor]:
        found = []
        for i, layer in enumerate(self.vgg):
            x = layer(x)
            if i in self.taps:
                found.append(x)
        norms = (self.L2Norm3_3, self.L2Norm4_3, self.L2Norm5_3)
        found[:3] = [norm(each) for norm, each in zip(norms, found, strict=False)]
        for i, layer in enumerate(self.extras):
            x = F.relu(layer(x))
            found += [x] if i % 2 else []
        return found


class Norm(nn.Module):
    """L2 norm over the channels, with a weight for each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10
        return self.weight[:, None, None] * x / length


def _boxes(moved: Tensor, step: int, side: int) -> Tensor:
    """Decode shifts and growths of anchors (n, 4, h, w) to boxes (n, h w, 4)."""
    rows, columns = (torch.arange(size).to(moved) for size in moved.shape[2:])
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    places = torch.stack([x, y]) * step + step / 2
    centres = places + SHIFT * side * moved[:, :2]
    halves = side / 2 * torch.exp(GROWTH * moved[:, 2:])
    return torch.cat([centres - halves, centres + halves], 1).flatten(2).transpose(1, 2)
