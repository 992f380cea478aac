"""What a small file claims, or packs, that costs FFmpeg gigabytes: read before FFmpeg reads it.

For every sample of every track of an MP4 FFmpeg allocates some 30 bytes on opening, and a table may
claim millions of equal samples in twelve bytes (boxes: ISO/IEC 14496-12). Of a PNG it unpacks the
colour profile and all texts, up to a thousand times their size (chunks: ISO/IEC 15948).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

__all__ = ["FileElement", "count_samples", "count_unpacked_bytes", "walk_boxes"]

_OUTER_BOXES = {
    *(b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"),
    *(b"mvex", b"udta", b"edts", b"dinf"),  # no place for tables, but FFmpeg reads them there
}
_MAX_DEPTH = 10  # boxes in boxes; FFmpeg goes no deeper
_HEAD_BYTES = 20  # read of a box's content
_COUNT_OFFSETS = {b"stsz": 8, b"stz2": 8, b"trun": 4}  # where in the content samples are counted
_REFERENCES = {b"url ", b"alis"}  # QuickTime's handlers of where the data lie
_CHUNK_BYTES = 2**16
_UINT = struct.Struct(">I")
_ONE_BY_ONE = _UINT.pack(1) * 2  # one entry for all samples, of a tick each


class FileElement(NamedTuple):
    """An element of a file: its kind, and the bytes [start, stop) of its content."""

    kind: int | bytes
    start: int
    stop: int


def walk_boxes(file: BinaryIO, start: int, end: int) -> Iterator[FileElement]:
    """Walk the boxes of an MP4 or QuickTime file from byte `start` to `end`, one level deep."""
    while end - start >= 8:
        file.seek(start)
        head = file.read(16)
        length, begin = int.from_bytes(head[:4]), 8
        if length == 1:  # too long for 32 bits
            length, begin = int.from_bytes(head[8:]), 16
        stop = end if length == 0 else min(end, start + length)
        if stop < start + begin or len(head) < 8:
            return
        yield FileElement(head[4:8], start + begin, stop)
        start = stop


def count_samples(file: BinaryIO, size: int) -> int:
    """Count the samples that FFmpeg would list for an MP4 or QuickTime file of `size` bytes.

    0 for other files, and for what is too broken to be walked. A PCM track counts as 0, because
    FFmpeg lists its chunks only. Compressed tables, which nobody writes any more, count as 2^32.
    """
    total, track = 0, _Track()
    for kind, head in _walk(file, 0, size):
        if kind == b"cmov":
            return 2**32
        if kind in (b"trak", b"traf"):
            total += track.listed
            track = _Track()
        track.add(kind, head)
    return total + track.listed


@dataclass
class _Track:
    """What the boxes of one track say."""

    samples: int = 0
    sound: bool | None = None  # None: unknown
    one_by_one: bool | None = None

    def add(self, kind: bytes, head: bytes) -> None:
        """Add a box, by its name and first bytes."""
        if kind in _COUNT_OFFSETS:
            self.samples += int.from_bytes(head[_COUNT_OFFSETS[kind] :][:4])
        elif kind == b"hdlr" and head[8:12] not in _REFERENCES:
            self.sound = self.sound is not False and head[8:12] == b"soun"
        elif kind == b"stts":
            plain = head[4:8] + head[12:16] == _ONE_BY_ONE
            self.one_by_one = self.one_by_one is not False and plain

    @property
    def listed(self) -> int:
        """Samples that FFmpeg would list: none of PCM."""
        return 0 if self.sound and self.one_by_one else self.samples


def _walk(file: BinaryIO, start: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Iterate over name and first bytes of every box from `start` to `end`, with those inside."""
    for box in walk_boxes(file, start, end):
        assert isinstance(box.kind, bytes)
        file.seek(box.start)
        yield box.kind, file.read(min(_HEAD_BYTES, box.stop - box.start))
        if box.kind in _OUTER_BOXES and depth < _MAX_DEPTH:
            yield from _walk(file, box.start, box.stop, depth + 1)


def count_unpacked_bytes(file: BinaryIO, at_most: int) -> int:
    """Count the bytes that the profile and the packed texts of a PNG unpack to, up to `at_most`.

    0 for other files.
    """
    file.seek(0)
    total = 0
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return total
    while total < at_most and len(head := file.read(8)) == 8:
        start, length = file.tell(), _UINT.unpack(head[:4])[0]
        if head[4:] in (b"iCCP", b"zTXt"):
            name, end, _ = file.read(min(_CHUNK_BYTES, length)).partition(b"\0")
            file.seek(start + len(name) + 2)  # and a byte for the method
            total += _count_unpacked(file, start + length, at_most - total) if end else at_most
        file.seek(start + length + 4)  # behind the checksum
    return total


def _count_unpacked(file: BinaryIO, end: int, at_most: int) -> int:
    """Count the bytes that the stream from here to `end` unpacks to, up to about `at_most`."""
    packer, total = zlib.decompressobj(), 0
    while total < at_most and (packed := file.read(max(0, min(_CHUNK_BYTES, end - file.tell())))):
        while packed and total < at_most:
            try:
                total += len(packer.decompress(packed, _CHUNK_BYTES))
            except zlib.error:  # nothing behind it is unpacked either
                return total
            packed = packer.unconsumed_tail
    return total
