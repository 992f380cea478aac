"""What a small file claims, or packs, that costs FFmpeg gigabytes: read before FFmpeg reads it.

For every sample of every track of an MP4 FFmpeg keeps some 30 bytes from the moment it is opened,
and a table may say in twelve bytes that so many millions of samples are alike (names and layouts of
the boxes: ISO/IEC 14496-12). Of a PNG it unpacks the colour profile and all texts whole, to a
thousand times what they take (its chunks: ISO/IEC 15948).
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

__all__ = ["count_samples", "count_unpacked_bytes"]

_OUTER_BOXES = {
    *(b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf"),
    *(b"mvex", b"udta", b"edts", b"dinf"),  # where none is at home, but would be taken
}
_MAX_DEPTH = 10  # boxes in boxes; FFmpeg goes no deeper
_HEAD_BYTES = 20  # bytes of a box's content that are looked at
_COUNT_OFFSETS = {b"stsz": 8, b"stz2": 8, b"trun": 4}  # where in the content samples are counted
_REFERENCES = {b"url ", b"alis"}  # QuickTime's handlers of where the data lie
_CHUNK_BYTES = 2**16
_UINT = struct.Struct(">I")
_ONE_BY_ONE = _UINT.pack(1) * 2  # one entry for all samples, of a tick each


def count_samples(file: BinaryIO, size: int) -> int:
    """How many samples FFmpeg would list for the MP4 or QuickTime file of `size` bytes.

    Of PCM it lists chunks only: such tracks count for nothing. So does what is no such file, or
    too broken to be walked. Compressed tables, which nobody writes any more, count as 2^32.
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
    sound: bool | None = None  # None: nothing said
    one_by_one: bool | None = None

    def add(self, kind: bytes, head: bytes) -> None:
        """A box, by its name and first bytes."""
        if kind in _COUNT_OFFSETS:
            self.samples += int.from_bytes(head[_COUNT_OFFSETS[kind] :][:4])
        elif kind == b"hdlr" and head[8:12] not in _REFERENCES:
            self.sound = self.sound is not False and head[8:12] == b"soun"
        elif kind == b"stts":
            plain = head[4:8] + head[12:16] == _ONE_BY_ONE
            self.one_by_one = self.one_by_one is not False and plain

    @property
    def listed(self) -> int:
        """How many samples FFmpeg would list; of PCM none."""
        return 0 if self.sound and self.one_by_one else self.samples


def _walk(file: BinaryIO, start: int, end: int, depth: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Name and first bytes of every box from `start` to `end`, with those inside."""
    while end - start >= 8:
        file.seek(start)
        head = file.read(16 + _HEAD_BYTES)
        length, kind, begin = _UINT.unpack(head[:4])[0], head[4:8], 8
        if length == 1:  # too long for 32 bits
            length, begin = int.from_bytes(head[8:16]), 16
        stop = end if length == 0 else min(end, start + length)
        if stop < start + begin:
            return
        yield kind, head[begin : min(begin + _HEAD_BYTES, stop - start)]
        if kind in _OUTER_BOXES and depth < _MAX_DEPTH:
            yield from _walk(file, start + begin, stop, depth + 1)
        start = stop


def count_unpacked_bytes(file: BinaryIO, at_most: int) -> int:
    """Bytes that the profile and the packed texts of a PNG unpack to; counted to `at_most` or more.

    What is no PNG has none.
    """
    file.seek(0)
    total = 0
    if file.read(8) != b"\x89PNG\r\n\x1a\n":
        return total
    while total < at_most and len(head := file.read(8)) == 8:
        start, length = file.tell(), _UINT.unpack(head[:4])[0]
        if head[4:] in (b"iCCP", b"zTXt"):
            name, end, _ = file.read(min(_CHUNK_BYTES, length)).partition(b"\0")
            file.seek(start + len(name) + 2)  # and a byte for the way of packing
            total += _unpacked(file, start + length, at_most - total) if end else at_most
        file.seek(start + length + 4)  # behind the checksum
    return total


def _unpacked(file: BinaryIO, end: int, at_most: int) -> int:
    """Bytes that what lies from here to `end` unpacks to, at most about so many."""
    packer, total = zlib.decompressobj(), 0
    while total < at_most and (packed := file.read(max(0, min(_CHUNK_BYTES, end - file.tell())))):
        while packed and total < at_most:
            try:
                total += len(packer.decompress(packed, _CHUNK_BYTES))
            except zlib.error:  # nothing behind it is unpacked either
                return total
            packed = packer.unconsumed_tail
    return total
