"""Image quality against a reference (PSNR, SSIM), flicker, and contact sheets for the eye.

Stacks are uint8 (n, H, W, 3) RGB, one image a frame; aligned crops where a mouth is meant.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync.errors import OptionError
from latentsync.faces import align
from latentsync.faces.mask import keep_mask
from latentsync.types import Box, Frame

__all__ = [
    "FlickerAccumulator",
    "compared",
    "flicker",
    "mouth_box",
    "mouth_picture",
    "pooled_psnr",
    "psnr",
    "psnr_curve",
    "sheet",
    "ssim",
    "ssim_curve",
    "true_proportions",
]

Stack = NDArray[np.uint8]
Array = NDArray[np.float64]

# Of an aligned crop: lips, their corners and the chin, from a shut to a wide open mouth. It lies
# inside the area that the network generates.
MOUTH = (0.2, 0.5, 0.8, 0.94)  # left, top, right, bottom as shares of the side
STILL_SHARE = 0.25  # of the generated area, that which moves least
MIN_STEP = 0.1  # grey levels; the reference's own flicker if it has less
PEAK = 255.0  # grey levels
SSIM_WINDOW = 7  # px, scikit-image's default
SSIM_CONSTANTS = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2  # the paper's; they keep black finite
SSIM_ROWS = 32  # computed at once: what a processor's cache holds

LABEL_WIDTH = 64  # px
GAP = 4  # px between images
MIN_COLUMN = 16  # px
PAPER, INK = 255, (40, 40, 40)


def mouth_box(resolution: int) -> Box:
    """The mouth's region in an aligned crop of `resolution` px."""
    return Box(*(round(share * resolution) for share in MOUTH))


def mouth_picture(crop: Frame) -> Frame:
    """The mouth of an aligned crop in its true proportions, (h, w, 3) uint8."""
    box = mouth_box(crop.shape[0])
    return true_proportions(crop[box.top : box.bottom, box.left : box.right])


def true_proportions(crop: Frame) -> Frame:
    """Undo the squeezing of an upright box of the face into a square crop, or into a part of it."""
    size = (round(crop.shape[1] * align.BOX_WIDTH / align.BOX_HEIGHT), crop.shape[0])
    return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), np.uint8)


def psnr(images: Stack, references: Stack, region: Box | None = None) -> float:
    """Peak signal-to-noise ratio of the whole stack in dB; inf for equal stacks.

    Raises:
        OptionError: the stacks differ in shape, or the region holds no pixel of them.
    """
    return pooled_psnr(psnr_curve(images, references, region))


def psnr_curve(images: Stack, references: Stack, region: Box | None = None) -> Array:
    """Peak signal-to-noise ratio of each image: (n,) dB, inf for equal ones. Raises as `psnr`."""
    a, b = compared(images, references, region)
    errors = [np.mean(np.square(x.astype(np.float32) - y)) for x, y in zip(a, b, strict=True)]
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(PEAK**2 / np.array(errors, np.float64)))


def pooled_psnr(curve: NDArray[np.floating]) -> float:
    """Peak signal-to-noise ratio of all images together in dB, from the mean of their errors.

    So one broken frame of a hundred counts as it should, and equal ones don't make it infinite.

    Args:
        curve: (n,) by `psnr_curve`, of images of one size.

    Raises:
        OptionError: the curve is empty.
    """
    if not len(curve):
        raise OptionError("there is no picture to take the ratio of; give one or more")
    error = float(np.mean(10 ** (-np.asarray(curve, np.float64) / 10)))
    return -10 * math.log10(error) if error else math.inf


def ssim(images: Stack, references: Stack, region: Box | None = None) -> float:
    """Mean structural similarity of images to their references, at most 1.

    https://doi.org/10.1109/TIP.2003.819861; equal to scikit-image's `structural_similarity` with
    channel_axis=2 and data_range=255, in a fifth of its time.

    Raises:
        OptionError: as `psnr`, or the region is smaller than 7 x 7 px.
    """
    return float(ssim_curve(images, references, region).mean())


def ssim_curve(images: Stack, references: Stack, region: Box | None = None) -> Array:
    """Structural similarity of each image: (n,). Raises as `ssim`."""
    a, b = compared(images, references, region)
    if min(a.shape[1:3]) < SSIM_WINDOW:
        raise OptionError(
            f"SSIM got {a.shape[2]} x {a.shape[1]} px; it needs {SSIM_WINDOW} x "
            f"{SSIM_WINDOW}: measure larger crops"
        )
    return np.array([_ssim_map(x, y).mean() for x, y in zip(a, b, strict=True)], np.float64)


def _ssim_map(image: Frame, reference: Frame) -> Array:
    """(H - 6, W - 6, 3): of the window around each pixel, if that lies inside the image."""
    edge, (c1, c2) = SSIM_WINDOW // 2, SSIM_CONSTANTS
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)

    def mean(values: Array) -> Array:
        around = cv2.boxFilter(values, -1, (SSIM_WINDOW, SSIM_WINDOW))
        return np.asarray(around[edge:-edge, edge:-edge])

    strips = []
    for top in range(0, len(image) - 2 * edge, SSIM_ROWS):
        rows = slice(top, top + SSIM_ROWS + 2 * edge)
        x, y = image[rows].astype(np.float64), reference[rows].astype(np.float64)
        mx, my = mean(x), mean(y)
        product, squares = mx * my, mx * mx + my * my
        covariance = unbiased * (mean(x * y) - product)
        variances = unbiased * (mean(x * x + y * y) - squares)
        likeness = (2 * product + c1) * (2 * covariance + c2)
        strips.append(likeness / ((squares + c1) * (variances + c2)))
    return np.concatenate(strips)


def flicker(crops: Stack, reference: Stack) -> float:
    """Measure how much the still part of a face trembles: 1 is as the reference, 0 is frozen.

    It is the mean absolute difference from frame to frame in the still part of the generated area,
    divided by the reference's own there. Still is the quarter of that area that moves least in the
    reference over the whole clip, mostly cheeks. It is a quarter and not a threshold because film
    grain differs from camera to camera.

    Args:
        crops, reference: (n, R, R, 3) aligned crops, both cut at the same places; the reference is
            the true clip, or the source.

    Raises:
        OptionError: the stacks differ in shape, are not square, or hold a single frame.
    """
    accumulator = FlickerAccumulator()
    for pair in zip(*compared(crops, reference), strict=True):
        accumulator.add(*pair)
    return accumulator.value


class FlickerAccumulator:
    """Computes `flicker` of streamed crops; it holds two crops and two maps of their size."""

    def __init__(self) -> None:
        self._last: tuple[Frame, Frame] | None = None
        self._total: NDArray[np.float32] | None = None  # (2, R, R): steps of crops and reference
        self._steps = 0

    def add(self, crop: Frame, reference: Frame) -> None:
        """Add the next frame's crops, (R, R, 3) uint8. Raises OptionError for another shape."""
        if crop.shape != reference.shape or crop.ndim != 3 or crop.shape[0] != crop.shape[1]:
            raise OptionError(
                f"got crops of shapes {crop.shape} and {reference.shape}; flicker needs both "
                "(R, R, 3)"
            )
        if self._last:
            pairs = zip(self._last, (crop, reference), strict=True)
            steps = np.stack([cv2.absdiff(*pair).mean(axis=2, dtype=np.float32) for pair in pairs])
            self._total = steps if self._total is None else self._total + steps
            self._steps += 1
        self._last = crop, reference

    @property
    def value(self) -> float:
        """The flicker of all frames so far. Raises OptionError of fewer than two."""
        if self._total is None:
            raise OptionError("got one frame or none; flicker needs 2 or more")
        own = self._total[1] / self._steps
        generated = keep_mask(len(own)) < 0.5
        still = generated & (own <= np.quantile(own[generated], STILL_SHARE))
        own_step = max(float(own[still].mean()), MIN_STEP)
        return float(self._total[0][still].mean() / self._steps / own_step)


def compared(images: Stack, references: Stack, region: Box | None = None) -> tuple[Stack, Stack]:
    """Check that two stacks have one shape, and crop both to a region. Raises as `psnr`."""
    if images.shape != references.shape or images.ndim != 4 or not images.size:
        raise OptionError(
            f"stacks of shapes {images.shape} and {references.shape} can't be compared; both must "
            "be (n, H, W, 3)"
        )
    if region is None:
        return images, references
    rows, columns = slice(region.top, region.bottom), slice(region.left, region.right)
    a, b = images[:, rows, columns], references[:, rows, columns]
    if not a.size:
        raise OptionError(f"{region} holds no pixel of pictures of shape {images.shape[1:]}")
    return a, b


def sheet(rows: Sequence[Sequence[Frame]], labels: Sequence[str], width: int = 1600) -> Frame:
    """Draw a contact sheet: rows of images of any sizes, each with a small label on its left.

    The images of a row get the height at which the row fills the width.

    Args:
        rows: images, each (H, W, 3) uint8; no row is empty.
        labels: one for each row; "" for none.
        width: px, of the sheet.

    Raises:
        OptionError: a row is empty, labels are too few or too many, or the width is too small.
    """
    if len(labels) != len(rows) or not rows or not all(rows):
        raise OptionError(
            f"got {len(rows)} rows, {sum(not row for row in rows)} of them empty, and "
            f"{len(labels)} labels; wanted pictures in each row and a label for it"
        )
    columns = max(map(len, rows))
    if width - LABEL_WIDTH - GAP * (columns + 1) < MIN_COLUMN * columns:
        raise OptionError(f"a sheet {width} px wide is too narrow for {columns} columns")
    strips = [_strip(row, label, width) for row, label in zip(rows, labels, strict=True)]
    return np.vstack([np.full((GAP, width, 3), PAPER, np.uint8), *strips])


def _strip(row: Sequence[Frame], label: str, width: int) -> Frame:
    aspects = [image.shape[1] / image.shape[0] for image in row]
    height = int((width - LABEL_WIDTH - GAP * (len(row) + 1)) / sum(aspects))
    strip = np.full((height + GAP, width, 3), PAPER, np.uint8)
    place = (GAP, height // 2)
    cv2.putText(strip, label, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, INK, 1, cv2.LINE_AA)
    left = LABEL_WIDTH
    for image, aspect in zip(row, aspects, strict=True):
        size = (max(1, int(height * aspect)), height)
        method = cv2.INTER_AREA if height < image.shape[0] else cv2.INTER_CUBIC
        strip[:height, left : left + size[0]] = cv2.resize(image, size, interpolation=method)
        left += size[0] + GAP
    return strip
