"""The encoders of an output, and their options for quality, speed and size."""

from dataclasses import dataclass
from fractions import Fraction
from typing import get_args

import av
import cv2
from av.video.codeccontext import VideoCodecContext

from latentsync.errors import (
    BackendUnavailable,
    OptionError,
    OutputError,
    option_name,
    with_option,
)
from latentsync.options import MIN_SIDE, Codec, Preset

__all__ = [
    "CODECS",
    "PRESETS",
    "Encoder",
    "check_codec",
    "encoder_of",
    "output_size",
]

CODECS: tuple[Codec, ...] = get_args(Codec)
PRESETS: tuple[Preset, ...] = get_args(Preset)

# Level 6.2 of ITU-T H.264 (table A-1: 139 264 macroblocks) and of H.265 (table A.8).
_MAX_PIXELS = 139_264 * 16 * 16
_NVENC_PRESETS = dict(zip(PRESETS, (1, 1, 2, 3, 3, 4, 5, 6, 7, 7), strict=True))  # p1 .. p7
# x264's `rc-lookahead` by preset, as x264 sets it; x264 holds all of these frames. For pictures
# larger than full HD, as many as take the same memory (benchmarks/encoder_memory.py).
_X264_LOOKAHEAD_FRAMES = dict(zip(PRESETS, (0, 0, 10, 20, 30, 40, 50, 60, 60, 60), strict=True))
_X264_MIN_LOOKAHEAD_FRAMES = 10
_FULL_HD_PIXELS = 1920 * 1088
# With AVX-512, x264 (core 165) makes up to 8 different files of the same pictures, up to at
# least 480 x 270 px; without its macroblock tree, or with AVX2, it makes one, and AVX2 is no slower
# (60 frames of 720p: 1.8 s for 2.0 s). The names are those of x264's common/cpu.c.
_X264_REPEATABLE = "asm=MMX2,SSE2Fast,SSE3,SSSE3,SSE4.2,AVX,FMA3,BMI2,AVX2"
_CV2_AVX512 = 256  # CV_CPU_AVX512_SKX in OpenCV's core/cvdef.h: F, CD, BW, DQ and VL, as x264 wants
_X265_SMALL_SIDE_PX = 64  # below this side x265's default coding units don't fit
_X265_MIN_SIDE_PX = 16  # below this side not even its smallest coding units fit


@dataclass(frozen=True)
class Encoder:
    """One encoder of FFmpeg, and the sizes that it takes."""

    codec: Codec
    library: str  # FFmpeg's name for it
    tag: str  # in the mp4; Apple's players want hvc1 for HEVC
    max_side: int  # px
    max_pixels: int = _MAX_PIXELS
    min_side: int = 2  # px

    def options(self, crf: int, preset: Preset, size: tuple[int, int]) -> dict[str, str]:
        """Return FFmpeg's options; `crf` is 0 (lossless with every encoder) to 51, `size` in px."""
        if self.library == "libx264":
            usual = _X264_LOOKAHEAD_FRAMES[preset]
            affordable = usual * _FULL_HD_PIXELS // (size[0] * size[1])
            ahead = min(usual, max(_X264_MIN_LOOKAHEAD_FRAMES, affordable))
            options = {"crf": str(crf), "preset": preset, "rc-lookahead": str(ahead)}
            if cv2.checkHardwareSupport(_CV2_AVX512):
                options["x264-params"] = _X264_REPEATABLE
            return options
        if self.library == "libx265":
            own = ["log-level=error"]  # else it writes to stderr, past every logger
            own += ["lossless=1"] if crf == 0 else []
            own += ["ctu=16"] if min(size) < _X265_SMALL_SIDE_PX else []
            return {"crf": str(crf), "preset": preset, "x265-params": ":".join(own)}
        speed = {"preset": f"p{_NVENC_PRESETS[preset]}"}
        if crf == 0:
            return {**speed, "tune": "lossless"}
        return {**speed, "rc": "vbr", "cq": str(crf), "b": "0"}


_ENCODERS: dict[str, Encoder] = {
    encoder.codec: encoder
    for encoder in (
        Encoder("h264", "libx264", "avc1", 16384),
        Encoder("hevc", "libx265", "hvc1", 16384, min_side=_X265_MIN_SIDE_PX),
        Encoder("h264_nvenc", "h264_nvenc", "avc1", 4096),
        Encoder("hevc_nvenc", "hevc_nvenc", "hvc1", 8192),
    )
}


def encoder_of(codec: str) -> Encoder:
    """Return the encoder of that name; OptionError when there is none."""
    if codec not in _ENCODERS:
        raise OptionError(f"codec {codec!r} is unknown: choose one of {', '.join(CODECS)}")
    return _ENCODERS[codec]


def check_codec(codec: str) -> None:
    """Raise OptionError for an unknown codec, BackendUnavailable for one that won't open here."""
    encoder = encoder_of(codec)
    if encoder.library.startswith("lib"):
        return  # inside PyAV, everywhere
    try:
        context = av.codec.CodecContext.create(encoder.library, "w")
        assert isinstance(context, VideoCodecContext)
        context.width = context.height = 256
        context.pix_fmt, context.time_base = "yuv420p", Fraction(1, 25)
        context.open()
    except (av.FFmpegError, ValueError) as error:  # ValueError: not in this build
        reason = getattr(error, "strerror", None) or str(error)
        raise BackendUnavailable(
            f"codec {codec} can't be opened here ({reason}): it wants an NVIDIA GPU with NVENC"
            f" and its driver; ask for {codec.removesuffix('_nvenc')}"
        ) from error


def output_size(
    width: int, height: int, *, codec: str = "h264", max_side: int | None = None
) -> tuple[int, int]:
    """Compute the (width, height) of an output: even, its longest side within `max_side`.

    Raises OptionError for a `max_side` below 16, OutputError when the codec can't hold the size.
    """
    encoder = encoder_of(codec)
    if max_side is not None and max_side < MIN_SIDE:
        raise OptionError(
            f"{option_name('max_side')} {max_side} is too small: give {MIN_SIDE} px or more"
        )
    longest = max(width, height)
    if max_side is not None and longest > max_side:
        size = tuple(max(2, side * max_side // longest // 2 * 2) for side in (width, height))
    else:
        size = (width + width % 2, height + height % 2)
    if max(size) > encoder.max_side or size[0] * size[1] > encoder.max_pixels:
        fits = min(
            encoder.max_side, int((encoder.max_pixels * longest / min(width, height)) ** 0.5)
        )
        raise OutputError(
            f"{codec} can't hold {size[0]} x {size[1]} px: its pictures have at most"
            f" {encoder.max_pixels} px and sides of {encoder.max_side} px;"
            " give smaller pictures"
            + with_option("max_side", f", or set {option_name('max_side')} to {fits} or less")
        )
    if min(size) < encoder.min_side:
        raise OutputError(
            f"{codec} can't hold {size[0]} x {size[1]} px: its pictures have sides of"
            f" {encoder.min_side} px or more; give larger pictures"
            + with_option("max_side", f", or a larger {option_name('max_side')}")
            + with_option("codec", f", or ask for {option_name('codec')} h264")
        )
    return size[0], size[1]
