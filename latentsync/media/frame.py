"""One picture: its YUV planes as they were decoded, RGB of any region, a region pasted in."""

import math
import threading
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import cast

import cv2
import numpy as np
from av.video.frame import VideoFrame as RawFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from latentsync.media.filters import video_graph
from latentsync.types import Box, Frame

__all__ = [
    "PIXEL_FORMAT",
    "Colour",
    "Orientation",
    "VideoFrame",
    "even_box",
    "from_raw",
    "has_alpha",
    "scale",
    "to_raw",
]

PIXEL_FORMAT = "yuv420p"
Plane = NDArray[np.uint8]
"""(H, W) or, for chroma, (ceil(H / 2), ceil(W / 2)) uint8."""
Planes = tuple[Plane, Plane, Plane]

# Without these flags swscale changes 92 % of the luma samples by a level on the way and back.
_SWSCALE_FLAGS = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
    | Interpolation.BITEXACT
)
# swscale's tables are made anew for every converter, which takes as long as a fifth of a face.
_converters = threading.local()
# Chroma is interpolated over 4 luma pixels each way; with this margin (even) a region converts to
# the same values as inside the whole picture.
_MARGIN_PX = 8
_UNSPECIFIED = 2  # "unspecified" in ITU-T H.273, for matrix, primaries and transfer
_MATRICES = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
# Side data that PyAV 18 must not see: it frees the name of a PNG's colour profile, which the frame
# frees too, and it lists nothing at all beside a kind that it doesn't know, such as EXIF.
_UNREADABLE_SIDE_DATA = ("ICC_PROFILE", *range(28, 36))
_HD_HEIGHT_PX = 720  # px; from here on untagged video is BT.709, below BT.601


@dataclass(frozen=True)
class Orientation:
    """How to turn a decoded picture upright: swap its axes first, then mirror."""

    swap: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def of(cls, raw: RawFrame) -> "Orientation":
        """Read a frame's display matrix; x' = a x + c y, y' = b x + d y."""
        drop = [("sidedata", f"mode=delete:type={kind}") for kind in _UNREADABLE_SIDE_DATA]
        graph = video_graph(raw, *drop)
        graph.vpush(raw)
        matrix: object = graph.vpull().side_data.get("DISPLAYMATRIX")
        if matrix is None:
            return cls()
        a, b, _, c, d = np.frombuffer(cast(bytes, matrix), np.int32)[:5].tolist()
        if abs(b) > abs(a):
            return cls(True, c < 0, b < 0)
        return cls(False, a < 0, d < 0)

    @property
    def degrees(self) -> int:
        """Clockwise rotation, without the mirroring: 0, 90, 180 or 270."""
        if self.swap:
            return 90 if self.mirror_x else 270
        return 180 if self.mirror_x and self.mirror_y else 0


@dataclass(frozen=True)
class Colour:
    """A clip's colour tags, numbered as in ITU-T H.273."""

    matrix: int = _UNSPECIFIED
    primaries: int = _UNSPECIFIED
    transfer: int = _UNSPECIFIED
    range: int = 0  # 0 unknown (read as limited), 1 limited 16..235, 2 full 0..255
    pixel_aspect: Fraction = Fraction(1)  # width / height of one pixel

    @classmethod
    def of(cls, raw: RawFrame, height: int, pixel_aspect: Fraction) -> "Colour":
        """Read the tags of a decoded picture that is `height` px high when upright.

        RGB gets the usual matrix for its height, in limited range, and so does what is tagged as
        RGB and isn't, such as the grey of a PNG.
        """
        usual = _usual_matrix(height)
        if _is_rgb(raw):
            return cls(usual, raw.color_primaries, raw.color_trc, 1, pixel_aspect)
        full = raw.format.name.startswith("yuvj") or (_is_grey(raw) and raw.color_range == 0)
        levels = int(ColorRange.JPEG) if full else raw.color_range
        matrix = raw.colorspace or usual
        return cls(matrix, raw.color_primaries, raw.color_trc, levels, pixel_aspect)

    def space(self, height: int) -> Colorspace:
        """Return the matrix to convert with, for a picture `height` px high."""
        untagged = Colorspace.ITU709 if height >= _HD_HEIGHT_PX else Colorspace.ITU601
        return _MATRICES.get(self.matrix, untagged)

    def resolved(self, height: int) -> "Colour":
        """Fill in the matrix where none is tagged, for a picture `height` px high."""
        return self if self.matrix != _UNSPECIFIED else replace(self, matrix=_usual_matrix(height))

    @property
    def levels(self) -> ColorRange:
        """Range to convert with."""
        return ColorRange.JPEG if self.range == ColorRange.JPEG else ColorRange.MPEG


def _usual_matrix(height: int) -> int:
    """Choose BT.709 or BT.601, as players do for untagged video."""
    return 1 if height >= _HD_HEIGHT_PX else 6


class VideoFrame:
    """An immutable picture of 8-bit YUV 4:2:0 planes."""

    __slots__ = ("_planes", "_raw", "colour", "height", "width")

    def __init__(self, planes: Planes, colour: Colour, raw: RawFrame | None = None) -> None:
        """Take over (H, W), (ceil(H / 2), ceil(W / 2)) twice; uint8 arrays, made read-only.

        Args:
            raw: PyAV's picture, of even size, if the planes are views of one.
        """
        self.height, self.width = planes[0].shape
        half = ((self.height + 1) // 2, (self.width + 1) // 2)
        if not planes[1].shape == planes[2].shape == half:
            raise ValueError(f"chroma of {planes[1].shape}, {planes[2].shape} where {half} is due")
        for plane in planes:
            plane.flags.writeable = False
        self._planes, self._raw = planes, raw
        self.colour = colour

    @classmethod
    def from_rgb(cls, rgb: Frame, colour: Colour | None = None) -> "VideoFrame":
        """Convert (H, W, 3) uint8 RGB."""
        colour = colour or Colour()
        return cls(_to_yuv(rgb, colour, rgb.shape[0]), colour)

    def __repr__(self) -> str:
        return f"<VideoFrame {self.width} x {self.height}>"

    @property
    def nbytes(self) -> int:
        """Bytes held by the planes."""
        return sum(plane.nbytes for plane in self._planes)

    @property
    def pixel_aspect(self) -> Fraction:
        """Width / height of one pixel."""
        return self.colour.pixel_aspect

    def planes(self) -> Planes:
        """Return the luma and the two chroma planes, read-only."""
        return self._planes

    def raw(self) -> RawFrame:
        """Return PyAV's form of the picture, its size made even; don't change its samples."""
        return self._raw or to_raw(self._planes)

    def rgb(self, box: Box | None = None) -> Frame:
        """Convert the picture, or a region, to (h, w, 3) uint8 RGB; the cost follows the region.

        A region has the same values as in the whole picture. Its edges are even or the picture's
        own (see `even_box`), else ValueError.
        """
        box = box or Box(0, 0, self.width, self.height)
        self._check(box)
        around = Box(
            max(box.left - _MARGIN_PX, 0),
            max(box.top - _MARGIN_PX, 0),
            min(box.right + _MARGIN_PX, self.width),
            min(box.bottom + _MARGIN_PX, self.height),
        )
        left, top = box.left - around.left, box.top - around.top
        part = Box(left, top, left + box.width, top + box.height)
        return self._to_rgb(to_raw(_crop(self._planes, around)), part)

    def thumbnail(self, max_side: int) -> Frame:
        """Scale the picture down to at most `max_side` px a side; (h, w, 3) uint8 RGB.

        Costs a small part of what `rgb` of a large picture does. A place x in it is x * self.width
        / w in the picture, to within a pixel. A picture that is small enough is only converted.
        """
        longest = max(self.width, self.height)
        if longest <= max_side:
            return self.rgb()
        width = max(1, round(self.width * max_side / longest))
        height = max(1, round(self.height * max_side / longest))
        half = (width + 1) // 2, (height + 1) // 2
        luma, first, second = self._planes
        # The planes first, then the colours: swscale takes three times as long for both at once.
        small = _shrink(luma, (width, height)), _shrink(first, half), _shrink(second, half)
        return self._to_rgb(to_raw(small), Box(0, 0, width, height))

    def _to_rgb(self, raw: RawFrame, part: Box) -> Frame:
        # swscale has vector code for planar RGB; packed RGB takes it five times as long.
        levels = self.colour.levels, ColorRange.JPEG
        planar = _convert(raw, "gbrp", self.colour.space(self.height), *levels)
        rows, columns = slice(part.top, part.bottom), slice(part.left, part.right)
        green, blue, red = (
            _plane(planar, i, raw.height, raw.width)[rows, columns] for i in (0, 1, 2)
        )
        return np.asarray(cv2.merge([red, green, blue]), np.uint8)

    def pasted(self, box: Box, rgb: Frame, weight: Plane | None = None) -> "VideoFrame":
        """Return a copy with `rgb`, (h, w, 3) uint8, blended into `box`.

        Args:
            weight: (h, w) uint8, the weight of `rgb` in 1/255; None: 255 wherever it differs from
                `self.rgb(box)`.

        Samples of weight 0 (chroma: all their 2 x 2 pixels) and all outside the box keep the
        decoded values exactly.
        """
        self._check(box)
        if rgb.shape != (box.height, box.width, 3) or rgb.dtype != np.uint8:
            raise ValueError(f"{rgb.dtype} {rgb.shape} does not fill {box} with uint8 RGB")
        if weight is None:
            weight = 255 * (self.rgb(box) != rgb).any(axis=2).astype(np.uint8)
            halved = 255 * (_halve(weight) > 0).astype(np.uint8)
        else:
            halved = _halve(weight)
        fresh = _to_yuv(rgb, self.colour, self.height)
        raw = None if self.width % 2 or self.height % 2 else to_raw(self._planes)
        copies = planes_of(raw) if raw else [plane.copy() for plane in self._planes]
        planes = (copies[0], copies[1], copies[2])
        for old, new, share in zip(
            _crop(planes, box), fresh, (weight, halved, halved), strict=True
        ):
            # Add a step from old to new, so that no value changes where there is no step.
            step = cv2.subtract(new, old, dtype=cv2.CV_16S)
            step = cv2.multiply(step, share, scale=1 / 255, dtype=cv2.CV_16S)
            old[...] = cv2.add(old, step, dtype=cv2.CV_8U)
        return VideoFrame(planes, self.colour, raw)

    def _check(self, box: Box) -> None:
        aligned = (
            box.left % 2 == box.top % 2 == 0
            and (box.right % 2 == 0 or box.right == self.width)
            and (box.bottom % 2 == 0 or box.bottom == self.height)
        )
        inside = 0 <= box.left < box.right <= self.width
        if not (aligned and inside and 0 <= box.top < box.bottom <= self.height):
            raise ValueError(f"{box} is not an even-aligned region of {self!r}")


def even_box(rect: tuple[float, float, float, float], *, width: int, height: int) -> Box | None:
    """Return the smallest region with even edges around `rect` (left, top, right, bottom; px).

    It ends at the picture's edge, which may be odd. None when `rect` lies outside the picture.
    """
    left, top = max(0, math.floor(rect[0] / 2) * 2), max(0, math.floor(rect[1] / 2) * 2)
    right = min(width, math.ceil(rect[2] / 2) * 2)
    bottom = min(height, math.ceil(rect[3] / 2) * 2)
    if left >= right or top >= bottom:
        return None
    return Box(left, top, right, bottom)


def from_raw(
    raw: RawFrame,
    size: tuple[int, int],
    orientation: Orientation,
    colour: Colour,
    own: Colour | None = None,
) -> VideoFrame:
    """Convert a decoded picture of any format to an upright VideoFrame of `size` (width, height).

    8-bit 4:2:0 keeps its samples. `own`: the picture's colour, where it isn't `colour`.
    """
    width, height = size[::-1] if orientation.swap else size
    if _is_grey(raw):
        grey = raw.reformat(width=width, height=height, format="gray", interpolation=_SWSCALE_FLAGS)
        luma = _plane(grey, 0, height, width)
        chroma = np.full(((height + 1) // 2, (width + 1) // 2), 128, np.uint8)
        planes = luma, chroma, chroma.copy()
    elif _is_rgb(raw):
        rgb = raw.reformat(width=width, height=height, format="rgb24", interpolation=_SWSCALE_FLAGS)
        pixels = _plane(rgb, 0, height, 3 * width).reshape(height, width, 3)
        planes = _to_yuv(pixels, colour, size[1])
    else:
        planes = planes_of(scale(raw, (width, height), colour, size[1], own))
    if orientation != Orientation():
        luma, first, second = planes
        planes = _turn(luma, orientation), _turn(first, orientation), _turn(second, orientation)
    return VideoFrame(planes, colour)


def has_alpha(pixel_format: str) -> bool:
    """Whether a pixel format has an alpha channel; palettes, which may hold one, don't count."""
    return pixel_format.startswith(("yuva", "ya", "gbrap", "rgba", "bgra", "argb", "abgr"))


def scale(
    raw: RawFrame, size: tuple[int, int], colour: Colour, height: int, own: Colour | None = None
) -> RawFrame:
    """Convert a picture, `height` px high when upright, to 4:2:0 of (width, height) and `colour`.

    `own`: the picture's colour, where it isn't `colour`.
    """
    own = own or colour
    unchanged = raw.format.name in (PIXEL_FORMAT, "yuvj420p") and own == colour
    if unchanged and (raw.width, raw.height) == size:
        return raw
    return raw.reformat(
        width=size[0],
        height=size[1],
        format=PIXEL_FORMAT,
        interpolation=_SWSCALE_FLAGS,
        src_colorspace=own.space(height),
        dst_colorspace=colour.space(height),
        src_color_range=own.levels,
        dst_color_range=colour.levels,
        threads=1,
    )


def _shrink(plane: Plane, size: tuple[int, int]) -> Plane:
    """Scale a plane down to (width, height)."""
    # OpenCV is fast at halving and slow at large or uneven steps: full HD to an eighth takes 0.2 ms
    # instead of 3. Only while the size is far off, because the rest is averaged again.
    while min(plane.shape[1] / size[0], plane.shape[0] / size[1]) >= 6 and not (
        plane.shape[0] % 2 or plane.shape[1] % 2
    ):
        half = plane.shape[1] // 2, plane.shape[0] // 2
        plane = np.asarray(cv2.resize(plane, half, interpolation=cv2.INTER_AREA), np.uint8)
    return np.asarray(cv2.resize(plane, size, interpolation=cv2.INTER_AREA), np.uint8)


def _turn(plane: Plane, orientation: Orientation) -> Plane:
    """Turn a plane upright."""
    plane = plane.T if orientation.swap else plane
    plane = plane[:, ::-1] if orientation.mirror_x else plane
    return np.ascontiguousarray(plane[::-1] if orientation.mirror_y else plane)


def _is_rgb(raw: RawFrame) -> bool:
    """Whether the samples are full-range RGB, a palette, or black and white."""
    return raw.format.is_rgb or raw.format.has_palette or raw.format.name.startswith("mono")


def _is_grey(raw: RawFrame) -> bool:
    """Whether there is only luma, perhaps with alpha; swscale would misread its range."""
    return raw.format.name.startswith(("gray", "ya"))


def planes_of(raw: RawFrame) -> Planes:
    """Return views of a 4:2:0 picture's three planes, without the padding."""
    half = ((raw.height + 1) // 2, (raw.width + 1) // 2)
    return (_plane(raw, 0, raw.height, raw.width), _plane(raw, 1, *half), _plane(raw, 2, *half))


def to_raw(planes: Planes) -> RawFrame:
    """Copy planes to a new PyAV picture, its size made even by repeating an edge.

    At an odd size swscale would stretch the chroma, and H.264 has no odd sizes.
    """
    raw = RawFrame(2 * planes[1].shape[1], 2 * planes[1].shape[0], PIXEL_FORMAT)
    luma, *chroma = planes_of(raw)
    rows, columns = planes[0].shape
    luma[:rows, :columns] = planes[0]
    luma[:rows, columns:] = planes[0][:, -1:]
    luma[rows:] = luma[rows - 1]
    chroma[0][...], chroma[1][...] = planes[1:]
    return raw


def _to_yuv(rgb: Frame, colour: Colour, height: int) -> Planes:
    """Convert (h, w, 3) RGB, part of a picture `height` px high, to planes."""
    rows, columns = rgb.shape[:2]
    even = cv2.copyMakeBorder(rgb, 0, rows % 2, 0, columns % 2, cv2.BORDER_REPLICATE)
    raw = RawFrame(even.shape[1], even.shape[0], "rgb24")
    _plane(raw, 0, even.shape[0], 3 * even.shape[1])[...] = even.reshape(even.shape[0], -1)
    levels = ColorRange.JPEG, colour.levels
    converted = _convert(raw, PIXEL_FORMAT, colour.space(height), *levels)
    luma, *chroma = planes_of(converted)
    return luma[:rows, :columns], chroma[0], chroma[1]


def _convert(
    raw: RawFrame, pixel_format: str, space: Colorspace, source: ColorRange, target: ColorRange
) -> RawFrame:
    """Convert a picture to another format and range, in the same matrix."""
    if not hasattr(_converters, pixel_format):
        setattr(_converters, pixel_format, VideoReformatter())
    converter: VideoReformatter = getattr(_converters, pixel_format)
    return converter.reformat(
        raw,
        format=pixel_format,
        interpolation=_SWSCALE_FLAGS,
        src_colorspace=space,
        dst_colorspace=space,
        src_color_range=source,
        dst_color_range=target,
        threads=1,
    )


def _plane(raw: RawFrame, index: int, rows: int, row_bytes: int) -> Plane:
    plane = raw.planes[index]
    samples = np.frombuffer(cast(bytes, plane), np.uint8)  # a buffer, though its stub hides it
    return samples.reshape(-1, plane.line_size)[:rows, :row_bytes]


def _crop(planes: Planes, box: Box) -> Planes:
    """Return views of a region of each plane; chroma rounds outwards at an odd edge."""
    rows = slice(box.top // 2, (box.bottom + 1) // 2)
    columns = slice(box.left // 2, (box.right + 1) // 2)
    luma, first, second = planes
    luma = luma[box.top : box.bottom, box.left : box.right]
    return luma, first[rows, columns], second[rows, columns]


def _halve(weight: Plane) -> Plane:
    """Average each 2 x 2 block: (h, w) -> (ceil(h / 2), ceil(w / 2))."""
    rows, columns = weight.shape
    even = cv2.copyMakeBorder(weight, 0, rows % 2, 0, columns % 2, cv2.BORDER_REPLICATE)
    half = even.shape[1] // 2, even.shape[0] // 2
    return np.asarray(cv2.resize(even, half, interpolation=cv2.INTER_AREA), np.uint8)
