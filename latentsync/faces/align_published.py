"""Cutting and pasting as the published code does it, to the last grey level.

`align` does the same in one resampling each way, which keeps more of the picture and takes a tenth
of the time; this reproduces the published numbers. Grey levels are truncated, not rounded.
https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/utils/affine_transform.py
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latentsync.faces.align import EDGE_DIVISOR, FILL, Size, crop_size, face_box
from latentsync.types import Box, FloatArray, Frame, PaintablePicture, Picture

__all__ = ["PublishedResampler", "cut_face", "paste_face"]


@dataclass(frozen=True)
class PublishedResampler:
    """Cuts faces out of frames and pastes them back, as the published code does."""

    side: int  # px, of a crop

    def crop(self, picture: Picture, affine: FloatArray) -> Frame:
        """Cut the crop of a face; (side, side, 3) uint8."""
        size = picture.width, picture.height
        box = face_box(affine, self.side, *size)
        return cut_face(picture.rgb(box), box, affine, self.side, size)

    def paste(
        self, picture: PaintablePicture, face: Tensor, affine: FloatArray, weight: Tensor | None
    ) -> PaintablePicture:
        """Blend a face, (3, side, side) float32 about [-1, 1], into its frame."""
        size = picture.width, picture.height
        box = face_box(affine, self.side, *size)
        region = picture.rgb(box)
        return picture.pasted(box, paste_face(region, box, face, affine, size, weight=weight))


def cut_face(
    region: Frame,
    box: Box,
    affine: FloatArray,
    resolution: int,
    frame: Size,
) -> Frame:
    """Cut a face as `align.cut_face` does, by way of the upright crop.

    Args:
        region: (box height, box width, 3) uint8, the frame's pixels in `align.face_box`.
        frame: width and height of the whole frame.

    Returns:
        (resolution, resolution, 3) uint8; grey 127 where the crop leaves the frame.
    """
    size = crop_size(resolution)
    # Only the face's region of this frame is ever written or read, so the rest costs nothing. The
    # fourth channel is how far a pixel of the crop lies inside the frame.
    canvas = torch.empty(4, frame[1], frame[0])
    part = canvas[:, box.top : box.bottom, box.left : box.right]
    part[:3] = torch.from_numpy(np.ascontiguousarray(region)).permute(2, 0, 1)
    part[3] = 1
    warped = _sample(canvas, _grid(torch.from_numpy(affine), size, frame, Box(0, 0, *size)))
    crop = _to_uint8((warped[:3] + (1 - warped[3:]) * FILL).permute(1, 2, 0))
    square = (resolution, resolution)
    return np.asarray(cv2.resize(crop, square, interpolation=cv2.INTER_LANCZOS4))


def paste_face(
    region: Frame,
    box: Box,
    face: Tensor,
    affine: FloatArray,
    frame: Size,
    *,
    weight: Tensor | None = None,
) -> Frame:
    """Blend a generated face into its region of the frame, with a soft edge.

    Args:
        region: (box height, box width, 3) uint8, the frame's pixels in `align.face_box`.
        face: (3, resolution, resolution) float32, about [-1, 1].
        frame: width and height of the whole frame.
        weight: (resolution, resolution) float32 in [0, 1], of each pixel of the face;
            None: 1, as published.

    Returns:
        (box height, box width, 3) uint8; outside the soft edge the region's own values.
    """
    width, height = size = crop_size(face.shape[-1])
    layers = face.float() if weight is None else torch.cat([face.float(), weight[None]])
    crop = F.interpolate(
        layers[None], (height, width), mode="bicubic", antialias=True, align_corners=False
    )[0]
    back = torch.linalg.inv(torch.vstack([torch.from_numpy(affine), torch.tensor([0.0, 0.0, 1.0])]))
    warped = _sample(
        torch.cat([crop, torch.ones_like(crop[:1])]), _grid(back[:2], frame, size, box)
    )
    # Outside the crop the published code fills with 127 in a range of [-1, 1], that is with white.
    inside = warped[-1].contiguous().numpy()
    colour = (warped[:3] + (1 - warped[-1:]) * FILL).mul(0.5).add(0.5).clamp(0, 1).mul(255)
    hard, soft = _edges(inside)
    painted = torch.from_numpy(hard) * colour
    laid_on = torch.from_numpy(soft)
    if weight is not None:
        laid_on = laid_on * warped[3].clamp(0, 1)
    original = torch.from_numpy(np.ascontiguousarray(region)).permute(2, 0, 1).float()
    blended = laid_on * painted + (1 - laid_on) * original
    return _to_uint8(blended.permute(1, 2, 0))


def _edges(inside: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the crop's area shrunk by a pixel, hard and with a soft edge; (h, w) float32 each.

    OpenCV's borders do what the published code does at the frame's edges: nothing is eroded there,
    and the blur sees a mirror image. At the region's other borders both areas are 0 anyway.
    """
    hard = np.asarray(cv2.erode(inside, np.ones((2, 2), np.float32)), dtype=np.float32)
    edge = int(math.sqrt(float(hard.sum(dtype=np.float64)))) // EDGE_DIVISOR
    if edge == 0:
        return hard, hard
    core = cv2.erode(hard, np.ones((2 * edge, 2 * edge), np.float32))
    sigma = torch.tensor(0.3 * (edge - 1) + 0.8)  # OpenCV's rule for a kernel of 2 * edge + 1
    weights = torch.exp(-torch.arange(-edge, edge + 1).float().square() / (2 * sigma.square()))
    kernel = weights / weights.sum()
    soft = cv2.copyMakeBorder(core, edge, edge, edge, edge, cv2.BORDER_REFLECT_101)
    blurred = F.conv2d(torch.from_numpy(soft)[None, None], kernel[None, None, None, :])
    return hard, F.conv2d(blurred, kernel[None, None, :, None])[0, 0].numpy()


def _grid(affine: Tensor, size: Size, source: Size, box: Box) -> Tensor:
    """Map pixels of a picture to its source; (1, box height, box width, 2) float32.

    Args:
        affine: (2, 3) float32, px of the source -> px of the picture.
        size, source: width and height of the picture and of its source.
        box: the part of the picture to map.

    For `F.grid_sample` with align_corners: -1 and 1 are the centres of the source's outermost
    pixels. The steps and their rounding are those of kornia 0.8's warp_affine, which the published
    code uses: truncated grey levels depend on the last digit.
    """
    square = torch.vstack([affine, torch.tensor([0.0, 0.0, 1.0])])
    back = torch.linalg.inv(_unit(size) @ (square @ torch.linalg.inv(_unit(source))))
    x = torch.linspace(-1, 1, size[0])[box.left : box.right]
    y = torch.linspace(-1, 1, size[1])[box.top : box.bottom, None]
    return torch.stack([x * m[0] + y * m[1] + m[2] for m in back[:2]], dim=-1)[None]


def _unit(size: Size) -> Tensor:
    """Return (3, 3) float32: pixel centres -> [-1, 1] at the centres of the outermost pixels."""
    width, height = size
    x, y = 2 / max(width - 1, 1), 2 / max(height - 1, 1)
    return torch.tensor([[x, 0, -1], [0, y, -1], [0, 0, 1]], dtype=torch.float32)


def _sample(image: Tensor, grid: Tensor) -> Tensor:
    """Sample bilinearly, 0 outside; (c, h, w) -> (c, grid height, grid width)."""
    return F.grid_sample(image[None], grid, "bilinear", "zeros", align_corners=True)[0]


def _to_uint8(values: Tensor) -> Frame:
    """Truncate (h, w, 3) float in [0, 255] to uint8."""
    return values.clamp(0, 255).to(torch.uint8).numpy()
