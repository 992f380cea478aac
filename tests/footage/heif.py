"""HEIC files as phones write them: HEVC pictures in the boxes of ISO/IEC 23008-12."""

import struct

from tests.clips import write_clip

__all__ = ["hevc", "photo"]


def hevc(path, picture):
    """One picture as HEVC, by way of a clip: its data, and the box that says how to decode it."""
    # Without B-frames, for x265's dts of a single picture with them is by chance.
    quiet = {"codec": "libx265", "crf": "12", "x265-params": "log-level=error:bframes=0"}
    data = write_clip(path, [picture], size=picture.shape[1::-1], **quiet).read_bytes()
    boxes = {}
    for kind in (b"mdat", b"hvcC"):
        at = data.index(kind) - 4
        boxes[kind] = data[at : at + int.from_bytes(data[at : at + 4])]
    path.unlink()
    return boxes[b"mdat"][8:], boxes[b"hvcC"]


def _box(kind, *parts, version=None):
    """A box of an MP4; one with a version has four more bytes for it."""
    content = b"".join(parts)
    content = content if version is None else bytes([version, 0, 0, 0]) + content
    return struct.pack(">I", 8 + len(content)) + kind + content


def photo(pieces, rows, side):
    """One picture of side x side px pieces, as many beside each other as below; or the only one."""
    count = len(pieces)
    grid = struct.pack(">BBBBHH", 0, 0, rows - 1, rows - 1, rows * side, rows * side)
    kinds = [b"hvc1"] * count + [b"grid"] * (count > 1)
    items = [
        _box(b"infe", struct.pack(">HH", number, 0), kind, b"\0", version=2)
        for number, kind in enumerate(kinds, 1)
    ]
    sizes = [_box(b"ispe", struct.pack(">II", s, s), version=0) for s in (side, rows * side)]
    has = [struct.pack(">HBBB", n, 2, 0x81, 2) for n in range(1, count + 1)]
    has += [struct.pack(">HBB", count + 1, 1, 3)] * (count > 1)
    tiles = struct.pack(f">HH{count}H", count + 1, count, *range(1, count + 1))

    def meta(begin):
        places = b""
        for number, (data, _) in enumerate(pieces, 1):
            places += struct.pack(">HHHHII", number, 0, 0, 1, begin, len(data))
            begin += len(data)
        if count > 1:  # in the box `idat`
            places += struct.pack(">HHHHII", count + 1, 1, 0, 1, 0, len(grid))
        return _box(
            b"meta",
            _box(b"hdlr", b"\0\0\0\0pict", bytes(13), version=0),
            _box(b"pitm", struct.pack(">H", len(kinds)), version=0),
            _box(b"iloc", struct.pack(">BBH", 0x44, 0, len(kinds)), places, version=1),
            _box(b"iinf", struct.pack(">H", len(kinds)), *items, version=0),
            _box(b"iref", _box(b"dimg", tiles), version=0) if count > 1 else b"",
            _box(
                b"iprp",
                _box(b"ipco", pieces[0][1], *sizes),
                _box(b"ipma", struct.pack(">I", len(has)), *has, version=0),
            ),
            _box(b"idat", grid),
            version=0,
        )

    brand = _box(b"ftyp", b"heic", bytes(4), b"mif1heic")
    data = _box(b"mdat", *[data for data, _ in pieces])
    return brand + meta(len(brand) + len(meta(0)) + 8) + data
