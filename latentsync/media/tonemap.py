"""Tone mapping of HDR clips to SDR, once, by FFmpeg's binary into a temporary file.

PyAV's build lacks zscale, which inverts the PQ and HLG curves; imageio-ffmpeg's binary has it.
"""

import logging
import shutil
import subprocess
import tempfile
import weakref
from pathlib import Path

import imageio_ffmpeg
from av.video.frame import VideoFrame as RawFrame

from latentsync.errors import HOST, MediaError, with_option
from latentsync.media.container import open_media, quote_path, video_stream
from latentsync.media.formats import OPEN_OPTIONS

__all__ = ["hdr_curve", "tone_map"]

log = logging.getLogger(__name__)

_CURVES = {16: "smpte2084", 18: "arib-std-b67"}  # PQ and HLG, numbered as in ITU-T H.273
_UNSPECIFIED = 2
# HDR reference white in cd/m2, ITU-R BT.2408. It becomes grey level 215, which leaves room for
# highlights.
_WHITE_NITS = 203
# Mobius keeps everything below 0.3 of white, so that skin keeps its brightness.
_FILTERS = (
    "setpts=PTS-STARTPTS,bwdif=mode=send_frame:deint=interlaced,"
    "setparams={tags},"
    f"zscale=transfer=linear:npl={_WHITE_NITS},format=gbrpf32le,"
    "zscale=primaries=bt709,tonemap=mobius:desat=0,"
    "zscale=transfer=bt709:matrix=bt709:range=limited,format=yuv420p"
)
# Lossless, key frames near enough for seeking backwards, no B-frames, times as they are.
_ENCODER_OPTIONS = "-c:v libx264 -qp 0 -preset ultrafast -g 24 -bf 0 -fps_mode passthrough"


def hdr_curve(raw: RawFrame) -> str | None:
    """Return FFmpeg's name of a decoded picture's HDR curve; None for SDR."""
    return _CURVES.get(raw.color_trc)


def tone_map(
    path: Path, raw: RawFrame, *, owner: object, seconds: float | None = None
) -> tuple[Path, "weakref.finalize[..., object]"]:
    """Make a lossless, upright, progressive BT.709 copy of an HDR clip's pictures, at their times.

    Args:
        raw: the clip's first picture.
        owner: the copy's folder is removed with this object, or at the end of the program.
        seconds: length of the copy, from the clip's start; None for all.

    Returns:
        The copy, and a function that removes its folder earlier.

    Raises:
        MediaError: it can't be made, perhaps for lack of space.
    """
    log.info(
        "%s is HDR (%s): tone-mapped to SDR, into a temporary file",
        quote_path(path),
        hdr_curve(raw),
    )
    folder = tempfile.mkdtemp(prefix="latentsync-")
    remove = weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    copy = Path(folder, "sdr.mp4")
    try:
        done = subprocess.run(  # noqa: S603 - no shell, the one path is prefixed and absolute
            _command(path, raw, copy, seconds), capture_output=True, check=False
        )
        said = done.stderr.decode(errors="replace").strip().splitlines()
        if done.returncode != 0 or not copy.exists():
            raise MediaError(
                f"{quote_path(path)} is HDR and can't be tone-mapped"
                f" ({said[-1] if said else done.returncode}): give an SDR clip"
                + with_option(
                    HOST,
                    f", or check the free space in {quote_path(tempfile.gettempdir())} (TMPDIR)",
                )
            )
    except BaseException:
        remove()
        raise
    return copy, remove


def _command(path: Path, raw: RawFrame, copy: Path, seconds: float | None) -> list[str]:
    with open_media(path) as container:
        kind = container.format.name.split(",")[0]
        stream = video_stream(container)
        assert stream is not None  # `raw` came from it
        index = stream.index
    unsaid = {"color_primaries": "bt2020", "colorspace": "bt2020nc", "range": "limited"}
    said = (raw.color_primaries, raw.colorspace, raw.color_range)
    none = (_UNSPECIFIED, _UNSPECIFIED, 0)
    tags = {"color_trc": hdr_curve(raw)} | {
        name: value
        for (name, value), got, nothing in zip(unsaid.items(), said, none, strict=True)
        if got == nothing
    }
    chain = _FILTERS.format(tags=":".join(f"{name}={value}" for name, value in tags.items()))
    guard = [part for name, value in OPEN_OPTIONS.items() for part in (f"-{name}", value)]
    wanted = [] if seconds is None else ["-t", f"{seconds:.3f}"]
    return [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", *guard),
        *("-f", kind, "-i", f"file:{path.absolute()}", "-map", f"0:{index}", *wanted, "-vf", chain),
        *(*_ENCODER_OPTIONS.split(), "-enc_time_base", "demux", f"file:{copy}"),
    ]
