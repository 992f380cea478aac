"""How good the pictures are: closeness to the truth, flicker, and sheets for the eye.

Stacks are uint8 (n, H, W, 3) RGB, one picture a frame; aligned crops, where a mouth is meant.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.metrics import structural_similarity

from latentsync import align
from latentsync.errors import OptionError
from latentsync.mask import keep_mask
from latentsync.types import Box, Frame

__all__ = ["flicker", "mouth_box", "mouth_picture", "psnr", "sheet", "ssim"]

Stack = NDArray[np.uint8]

# Of an aligned crop: lips, their corners and the chin, from a shut to a wide open mouth. It lies
# inside of what the network draws.
MOUTH = (0.2, 0.5, 0.8, 0.94)  # left, top, right, bottom as shares of the side
STILLEST = 0.25  # share of the drawn area that counts as still
LEAST_STEP = 0.1  # grey levels; what counts as the reference's own flicker if it has less
SSIM_WINDOW = 7  # px, scikit-image's default

LABEL_WIDTH = 64  # px
GAP = 4  # px between pictures
PAPER, INK = 255, (40, 40, 40)


def mouth_box(resolution: int) -> Box:
    """The mouth's region in an aligned crop of `resolution` px."""
    return Box(*(round(share * resolution) for share in MOUTH))


def mouth_picture(crop: Frame) -> Frame:
    """The mouth of an aligned crop, for the eye: in its true proportions, (h, w, 3) uint8.

    Crops are an upright box of the face, squeezed into a square.
    """
    box = mouth_box(crop.shape[0])
    mouth = crop[box.top : box.bottom, box.left : box.right]
    size = (round(box.width * align.BOX_WIDTH / align.BOX_HEIGHT), box.height)
    return np.asarray(cv2.resize(mouth, size, interpolation=cv2.INTER_AREA), np.uint8)


def psnr(pictures: Stack, truth: Stack, region: Box | None = None) -> float:
    """Peak signal-to-noise ratio in dB of the stack as one, in `region`; inf where it is equal.

    Raises:
        OptionError: the stacks are of different shapes, or the region holds no pixel of them.
    """
    a, b = _cut(pictures, truth, region)
    error = float(np.mean((a.astype(np.float32) - b.astype(np.float32)) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(pictures: Stack, truth: Stack, region: Box | None = None) -> float:
    """Structural similarity of each picture to its truth in `region`, 1 at most; their mean.

    Raises:
        OptionError: as `psnr`, or the region is smaller than 7 x 7 px.
    """
    a, b = _cut(pictures, truth, region)
    if min(a.shape[1:3]) < SSIM_WINDOW:
        raise OptionError(
            f"SSIM was asked of {a.shape[2]} x {a.shape[1]} px; it needs {SSIM_WINDOW} x "
            f"{SSIM_WINDOW}: measure larger crops"
        )
    found = [
        structural_similarity(x, y, channel_axis=2, data_range=255)
        for x, y in zip(a, b, strict=True)
    ]
    return float(np.mean(found))


def flicker(crops: Stack, reference: Stack) -> float:
    """How much what should stand still trembles: 1 is as much as in the reference, 0 is frozen.

    The mean absolute step from frame to frame, in the still part of what the network draws, over
    the reference's own step there. Still is the quarter of that area which moves least in the
    reference, over the whole clip: cheeks mostly. A quarter, not a threshold, for film grain
    differs from camera to camera.

    Args:
        crops, reference: (n, R, R, 3) aligned crops, both cut at the same places; the reference is
            the true clip, or the source.

    Raises:
        OptionError: the stacks are of different shapes, are not square, or hold one frame only.
    """
    a, b = _cut(crops, reference, None)
    if len(a) < 2 or a.shape[1] != a.shape[2]:
        raise OptionError(f"got crops of shape {a.shape}; flicker needs (2 or more, R, R, 3)")
    drawn = keep_mask(a.shape[1]) < 0.5
    steps, own = (_mean_step(stack)[drawn] for stack in (a, b))
    still = own <= np.quantile(own, STILLEST)
    return float(steps[still].mean() / max(own[still].mean(), LEAST_STEP))


def _mean_step(stack: Stack) -> NDArray[np.float32]:
    """(h, w) mean absolute difference of each pixel to itself a frame later, in grey levels."""
    total = np.zeros(stack.shape[1:3], np.float32)
    for before, after in pairwise(stack):
        total += cv2.absdiff(before, after).mean(axis=2, dtype=np.float32)
    return total / np.float32(len(stack) - 1)


def _cut(pictures: Stack, truth: Stack, region: Box | None) -> tuple[Stack, Stack]:
    if pictures.shape != truth.shape or pictures.ndim != 4 or not pictures.size:
        raise OptionError(
            f"stacks of shapes {pictures.shape} and {truth.shape} can't be compared; both must be "
            "(n, H, W, 3)"
        )
    if region is None:
        return pictures, truth
    rows, columns = slice(region.top, region.bottom), slice(region.left, region.right)
    a, b = pictures[:, rows, columns], truth[:, rows, columns]
    if not a.size:
        raise OptionError(f"{region} holds no pixel of pictures of shape {pictures.shape[1:]}")
    return a, b


def sheet(rows: Sequence[Sequence[Frame]], labels: Sequence[str], width: int = 1600) -> Frame:
    """A contact sheet `width` px wide: rows of pictures of any sizes, a small label left of each.

    The pictures of a row get one height, at which the row fills the width.

    Args:
        rows: pictures, each (H, W, 3) uint8; no row is empty.
        labels: one for each row; "" begins the row without any.

    Raises:
        OptionError: a row is empty, labels are too few or too many, or the width is too small.
    """
    if len(labels) != len(rows) or not rows or not all(rows):
        raise OptionError(
            f"got {len(rows)} rows, {sum(not row for row in rows)} of them empty, and "
            f"{len(labels)} labels; wanted pictures in each row and a label for it"
        )
    room = width - LABEL_WIDTH - GAP * (max(map(len, rows)) + 1)
    if room < 16 * max(map(len, rows)):
        raise OptionError(
            f"a sheet {width} px wide is too narrow for {max(map(len, rows))} columns"
        )
    strips = [_strip(row, label, width) for row, label in zip(rows, labels, strict=True)]
    return np.vstack([np.full((GAP, width, 3), PAPER, np.uint8), *strips])


def _strip(row: Sequence[Frame], label: str, width: int) -> Frame:
    shares = [picture.shape[1] / picture.shape[0] for picture in row]
    height = int((width - LABEL_WIDTH - GAP * (len(row) + 1)) / sum(shares))
    strip = np.full((height + GAP, width, 3), PAPER, np.uint8)
    place = (GAP, height // 2)
    cv2.putText(strip, label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
    left = LABEL_WIDTH
    for picture, share in zip(row, shares, strict=True):
        size = (max(1, int(height * share)), height)
        method = cv2.INTER_AREA if height < picture.shape[0] else cv2.INTER_CUBIC
        strip[:height, left : left + size[0]] = cv2.resize(picture, size, interpolation=method)
        left += size[0] + GAP
    return strip
