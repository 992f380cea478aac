"""Cropping that a container asks for: `clap` of MP4 and MOV, PixelCrop of Matroska.

PyAV doesn't hand these on. The layouts are ISO/IEC 14496-12's and RFC 9559's (Matroska).
"""

import struct
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from av.container import InputContainer
from av.video.frame import VideoFrame as RawFrame
from av.video.stream import VideoStream

from latentsync.media.filters import video_graph
from latentsync.media.preflight import FileElement, walk_boxes

__all__ = ["Crop", "crop_frames", "read_crop"]

_MAX_ELEMENTS = 4096  # read on one level of a file
_MAX_ELEMENT_BYTES = 64  # read of an element
_ENTRY_HEADER_BYTES = 78  # bytes of a VisualSampleEntry before the boxes inside it
_SEGMENT, _TRACKS, _TRACK, _CLUSTER = 0x18538067, 0x1654AE6B, 0xAE, 0x1F43B675
_TRACK_TYPE, _VIDEO = 0x83, 0xE0
_CROPS = (0x54CC, 0x54BB, 0x54DD, 0x54AA)  # PixelCropLeft, Top, Right, Bottom


class Crop(NamedTuple):
    """Columns and rows that are not shown, in px."""

    left: int
    top: int
    right: int
    bottom: int


def read_crop(container: InputContainer, stream: VideoStream) -> Crop | None:
    """Read how the decoded pictures of a stream are cropped; None: not at all."""
    name = container.format.name
    reader = {"mov": _of_mp4, "matroska": _of_matroska}.get(name.split(",")[0])
    if reader is None:
        return None
    number = [one.index for one in container.streams.video].index(stream.index)
    path = Path(container.name.removeprefix("file:"))
    with path.open("rb") as file:
        crops = list(reader(file, path.stat().st_size))
    crop = crops[number] if number < len(crops) else None
    if crop is None or min(crop) < 0 or max(crop) == 0:
        return None
    context = stream.codec_context
    inside = crop.left + crop.right < context.width and crop.top + crop.bottom < context.height
    return crop if inside else None


def crop_frames(raws: Iterable[RawFrame], crop: Crop) -> Iterator[RawFrame]:
    """Crop frames."""
    graph, form = None, None
    for raw in raws:
        if graph is None or form != (raw.width, raw.height, raw.format.name):
            form = raw.width, raw.height, raw.format.name
            width = max(1, raw.width - crop.left - crop.right)
            height = max(1, raw.height - crop.top - crop.bottom)
            area = f"{width}:{height}:{crop.left}:{crop.top}:exact=1"
            graph = video_graph(raw, ("crop", area))
        graph.push(raw)
        made = graph.vpull()
        made.pts, made.dts, made.duration = raw.pts, raw.dts, raw.duration
        yield made


def _find(
    elements: Callable[[BinaryIO, int, int], Iterator[FileElement]],
    file: BinaryIO,
    within: FileElement,
    *path: int | bytes,
) -> Iterator[FileElement]:
    """Find the elements at a path of kinds."""
    for one in islice(elements(file, within.start, within.stop), _MAX_ELEMENTS):
        if one.kind == path[0]:
            if len(path) == 1:
                yield one
            else:
                yield from _find(elements, file, one, *path[1:])


def _read(file: BinaryIO, start: int, stop: int) -> bytes:
    file.seek(start)
    return file.read(max(0, min(stop - start, _MAX_ELEMENT_BYTES)))


# ---- MP4 and MOV ---------------------------------------------------------------------------------


def _of_mp4(file: BinaryIO, size: int) -> Iterator[Crop | None]:
    """Read the crop of each picture track."""
    for track in _find(walk_boxes, file, FileElement(b"", 0, size), b"moov", b"trak"):
        handlers = _find(walk_boxes, file, track, b"mdia", b"hdlr")
        if b"vide" not in [_read(file, one.start, one.stop)[8:12] for one in handlers]:
            continue
        crop = None
        for table in _find(walk_boxes, file, track, b"mdia", b"minf", b"stbl", b"stsd"):
            for entry in islice(walk_boxes(file, table.start + 8, table.stop), 1):
                head = _read(file, entry.start + 24, entry.start + 28).ljust(4, b"\0")
                size_of = struct.unpack(">2H", head)
                inside = FileElement(b"", entry.start + _ENTRY_HEADER_BYTES, entry.stop)
                for clap in _find(walk_boxes, file, inside, b"clap"):
                    crop = _clap(_read(file, clap.start, clap.stop), *size_of)
        yield crop


def _clap(data: bytes, width: int, height: int) -> Crop | None:
    """Read a box of four fractions: the size, and the centre's offset from the picture's centre."""
    if len(data) < 32:
        return None
    numbers = struct.unpack(">8i", data[:32])
    if 0 in numbers[1::2]:
        return None
    wide, high, right, down = (Fraction(n, d) for n, d in zip(*[iter(numbers)] * 2, strict=True))
    left, top = (width - wide) / 2 + right, (height - high) / 2 + down
    return Crop(*map(int, (left, top, width - wide - left, height - high - top)))


# ---- Matroska ------------------------------------------------------------------------------------


def _of_matroska(file: BinaryIO, size: int) -> Iterator[Crop | None]:
    """Read the crop of each picture track."""
    for track in _find(_elements, file, FileElement(0, 0, size), _SEGMENT, _TRACKS, _TRACK):
        kinds = [_read(file, *one[1:]) for one in _find(_elements, file, track, _TRACK_TYPE)]
        if b"\x01" not in kinds:
            continue
        sides = []
        for kind in _CROPS:
            said = _find(_elements, file, track, _VIDEO, kind)
            sides.append(next((int.from_bytes(_read(file, *one[1:])) for one in said), 0))
        yield Crop(*sides)


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[FileElement]:
    """Walk EBML elements: kind and size have 1 to 8 bytes, by the leading zeros of the first."""
    while start < end:
        head = _read(file, start, start + 16)
        width = 9 - head[0].bit_length() if head and head[0] else 16
        if len(head) <= width or not head[width]:
            return
        kind, digits = int.from_bytes(head[:width]), 9 - head[width].bit_length()
        length = int.from_bytes(head[width : width + digits]) & ((1 << 7 * digits) - 1)
        begin = start + width + digits
        unknown = length == (1 << 7 * digits) - 1
        stop = end if unknown else min(end, begin + length)
        if kind == _CLUSTER:  # pictures from here on; their description comes before
            return
        yield FileElement(kind, begin, stop)
        start = stop
