"""Which file formats are read, and how the others are recognised and named."""

from av.container import InputContainer

__all__ = ["OPEN_OPTIONS", "READ_FORMATS", "is_image", "name_of", "unread_format"]

_PICTURES = ("bmp_pipe", "jpeg_pipe", "png_pipe", "webp_pipe")
_PICTURE_BRANDS = ("avif", "heic", "heix", "mif1")  # an MP4 that is one picture: AVIF, HEIC
_CONTAINERS = (
    *("mov", "matroska", "webm", "avi", "flv", "mpegts", "mpeg", "asf", "ogg"),
    *("mxf", "dv", "yuv4mpegpipe", "gif", "apng"),
    *("wav", "w64", "aiff", "caf", "au", "voc", "mp3", "aac", "flac", "wv", "tta", "amr"),
    *("ac3", "eac3", "dts", "dtshd"),
    *_PICTURES,
)
# Only both lists together keep playlists and concat lists from opening further files.
OPEN_OPTIONS = {"format_whitelist": ",".join(_CONTAINERS), "protocol_whitelist": "file"}
READ_FORMATS = (
    "mp4, mov, mkv, webm, avi, ts, mpg, wmv, flv, ogg, mxf, dv, y4m, gif; jpg, png, bmp, webp, "
    "avif; wav, aiff, caf, au, mp3, aac, ac3, dts, flac, amr, wv, tta"
)

# First bytes of files that people give by mistake, or that other programs read.
_UNREAD_SIGNATURES = {
    b"#EXTM3U": "a playlist (M3U8)",
    b"%PDF-": "a PDF",
    b"PK\x03\x04": "a ZIP archive or an office document",
    b"\x1f\x8b": "a gzip archive",
    b"II*\0": "a TIFF picture",
    b"MM\0*": "a TIFF picture",
    b"8BPS": "a Photoshop picture",
    b"\0\0\0\x0cJXL ": "a JPEG XL picture",
    b"\xff\x0a": "a JPEG XL picture",
    b"\0\0\0\x0cjP  ": "a JPEG 2000 picture",
    b"<svg": "an SVG picture",
    b"MThd": "MIDI, which holds notes and no sound",
    b".RMF": "RealMedia",
    b"MAC ": "Monkey's Audio (APE)",
    b"MPCK": "Musepack",
    b"MP+": "Musepack",
    b"DSD ": "DSD",
    b"FRM8": "DSD",
    b"nut/multimedia container": "NUT",
    b"DKIF": "IVF",
    b"\0\0\0\x01": "a bare H.264 or HEVC stream without times",
}
# By the name of FFmpeg's demuxer, and for demuxers of several formats by the file's brand.
_NAMES = {
    "mov": "mp4",
    "matroska": "mkv",
    "mpegts": "ts",
    "mpeg": "mpg",
    "asf": "wmv",
    "yuv4mpegpipe": "y4m",
}
_BRANDS = {"qt": "mov", "M4A": "m4a", "M4B": "m4a", "M4V": "m4v", "avif": "avif"}
_BRANDS |= dict.fromkeys(("heic", "heix", "mif1"), "heic")


def is_image(container: InputContainer) -> bool:
    """Whether the file is a still picture."""
    brand = container.metadata.get("major_brand")
    return container.format.name in _PICTURES or brand in _PICTURE_BRANDS


def name_of(container: InputContainer, head: bytes) -> str:
    """Return the format's usual name, such as "mp4"; `head` is the file's first bytes."""
    kind = container.format.name.split(",")[0]
    if kind == "mov":
        brand = container.metadata.get("major_brand", "qt").strip()  # old QuickTime has none
        return "3gp" if brand.startswith(("3gp", "3g2")) else _BRANDS.get(brand, "mp4")
    if kind == "matroska" and b"webm" in head:
        return "webm"
    return _NAMES.get(kind, kind.removesuffix("_pipe"))


def unread_format(head: bytes) -> str | None:
    """Name a format that isn't read, by a file's first bytes; None: unknown."""
    named = (name for start, name in _UNREAD_SIGNATURES.items() if head.startswith(start))
    return next(named, None)
