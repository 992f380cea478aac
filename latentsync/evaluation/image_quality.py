"""How good the pictures are: closeness to the truth, flicker, and sheets for the eye.

Stacks are uint8 (n, H, W, 3) RGB, one picture a frame; aligned crops, where a mouth is meant.
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
]

Stack = NDArray[np.uint8]
Array = NDArray[np.float64]

# Of an aligned crop: lips, their corners and the chin, from a shut to a wide open mouth. It lies
# inside of what the network draws.
MOUTH = (0.2, 0.5, 0.8, 0.94)  # left, top, right, bottom as shares of the side
STILLEST = 0.25  # share of the drawn area that counts as still
LEAST_STEP = 0.1  # grey levels; what counts as the reference's own flicker if it has less
PEAK = 255.0  # grey levels
SSIM_WINDOW = 7  # px, scikit-image's default
SSIM_CONSTANTS = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2  # the paper's; they keep black finite
SSIM_ROWS = 32  # computed at once: what a processor's cache holds

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
    return pooled_psnr(psnr_curve(pictures, truth, region))


def psnr_curve(pictures: Stack, truth: Stack, region: Box | None = None) -> Array:
    """The same of each picture by itself: (n,) dB, inf where it is equal. Raises as `psnr`."""
    a, b = compared(pictures, truth, region)
    errors = np.array(
        [np.mean(np.square(x.astype(np.float32) - y)) for x, y in zip(a, b, strict=True)],
        np.float64,
    )
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(PEAK**2 / errors))


def pooled_psnr(curve: NDArray[np.floating]) -> float:
    """The ratio of all pictures together, dB: from the mean of their errors, not of their ratios.

    So one broken frame of a hundred counts as it should, and equal ones don't make it infinite.

    Args:
        curve: (n,) by `psnr_curve`, in as many parts as it came in; pictures of one size.

    Raises:
        OptionError: it holds nothing.
    """
    if not len(curve):
        raise OptionError("there is no picture to take the ratio of; give one or more")
    error = float(np.mean(10 ** (-np.asarray(curve, np.float64) / 10)))
    return -10 * math.log10(error) if error else math.inf


def ssim(pictures: Stack, truth: Stack, region: Box | None = None) -> float:
    """Structural similarity of each picture to its truth in `region`, 1 at most; their mean.

    https://doi.org/10.1109/TIP.2003.819861; scikit-image's number, `structural_similarity` with
    channel_axis=2 and data_range=255, in a fifth of its time.

    Raises:
        OptionError: as `psnr`, or the region is smaller than 7 x 7 px.
    """
    return float(ssim_curve(pictures, truth, region).mean())


def ssim_curve(pictures: Stack, truth: Stack, region: Box | None = None) -> Array:
    """The same of each picture, not their mean: (n,). Raises as `ssim`."""
    a, b = compared(pictures, truth, region)
    if min(a.shape[1:3]) < SSIM_WINDOW:
        raise OptionError(
            f"SSIM was asked of {a.shape[2]} x {a.shape[1]} px; it needs {SSIM_WINDOW} x "
            f"{SSIM_WINDOW}: measure larger crops"
        )
    return np.array([_similarity(x, y).mean() for x, y in zip(a, b, strict=True)], np.float64)


def _similarity(picture: Frame, truth: Frame) -> Array:
    """(H - 6, W - 6, 3): at each pixel of the window around it; those at the border have none."""
    edge, (c1, c2) = SSIM_WINDOW // 2, SSIM_CONSTANTS
    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)

    def mean(values: Array) -> Array:
        around = cv2.boxFilter(values, -1, (SSIM_WINDOW, SSIM_WINDOW))
        return np.asarray(around[edge:-edge, edge:-edge])

    strips = []
    for top in range(0, len(picture) - 2 * edge, SSIM_ROWS):
        rows = slice(top, top + SSIM_ROWS + 2 * edge)
        x, y = picture[rows].astype(np.float64), truth[rows].astype(np.float64)
        mx, my = mean(x), mean(y)
        product, squares = mx * my, mx * mx + my * my
        covariance = unbiased * (mean(x * y) - product)
        variances = unbiased * (mean(x * x + y * y) - squares)
        likeness = (2 * product + c1) * (2 * covariance + c2)
        strips.append(likeness / ((squares + c1) * (variances + c2)))
    return np.concatenate(strips)


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
    a, b = compared(crops, reference)
    found = FlickerAccumulator()
    for pair in zip(a, b, strict=True):
        found.add(*pair)
    return found.value


class FlickerAccumulator:
    """`flicker` of crops that stream by; what is held is two crops and two maps of their size."""

    def __init__(self) -> None:
        self._last: tuple[Frame, Frame] | None = None
        self._total: NDArray[np.float32] | None = None  # (2, R, R): steps of crops and reference
        self._steps = 0

    def add(self, crop: Frame, reference: Frame) -> None:
        """The next frame's, (R, R, 3) uint8 each. Raises OptionError for another shape."""
        if crop.shape != reference.shape or crop.ndim != 3 or crop.shape[0] != crop.shape[1]:
            raise OptionError(
                f"got crops of shapes {crop.shape} and {reference.shape}; flicker needs both "
                "(R, R, 3)"
            )
        if self._last:
            pairs = zip(self._last, (crop, reference), strict=True)
            steps = np.stack([_step(before, after) for before, after in pairs])
            self._total = steps if self._total is None else self._total + steps
            self._steps += 1
        self._last = crop, reference

    @property
    def value(self) -> float:
        """Of all frames so far. Raises OptionError of fewer than two."""
        still, own = self.still_and_own()
        assert self._total is not None
        return float(self._total[0][still].mean() / self._steps / own)

    def still_and_own(self) -> tuple[NDArray[np.bool_], float]:
        """Which pixels (R, R) stand still, and the reference's own mean step there."""
        if self._total is None:
            raise OptionError("got one frame or none; flicker needs 2 or more")
        own = self._total[1] / self._steps
        drawn = keep_mask(len(own)) < 0.5
        still = drawn & (own <= np.quantile(own[drawn], STILLEST))
        return still, max(float(own[still].mean()), LEAST_STEP)


def _step(before: Frame, after: Frame) -> NDArray[np.float32]:
    """(h, w) absolute difference of each pixel to itself a frame later, in grey levels."""
    return np.asarray(cv2.absdiff(before, after).mean(axis=2, dtype=np.float32))


def compared(pictures: Stack, truth: Stack, region: Box | None = None) -> tuple[Stack, Stack]:
    """Two stacks of one shape, cut to a region. Raises OptionError as `psnr`."""
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
