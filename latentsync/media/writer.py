"""The one encode: pictures by x264, the original sound beside them, moved into place at the end."""

import logging
import os
import uuid
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import av
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.video.stream import VideoStream

from latentsync.errors import OutputError
from latentsync.media.container import demux, open_media, shown
from latentsync.media.frame import PIXEL_FORMAT, Colour, VideoFrame, as_raw
from latentsync.media.sound import Sound, sound_stream, trimmed

__all__ = ["VideoWriter", "check_output"]

logger = logging.getLogger(__name__)

_COPIED = ("aac", "mp3")
_MP3_IN_MP4_MIN_RATE = 16000  # Hz; MPEG-2.5 layer III is not allowed in mp4
_AAC_BIT_RATE = 192_000  # bit / s
_AAC_FRAME = 1024  # samples
_AAC_RATES = (
    8000,
    11025,
    12000,
    16000,
    22050,
    24000,
    32000,
    44100,
    48000,
    64000,
    88200,
    96000,
)  # Hz
_AAC_LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "7.1")


def check_output(path: Path | str, inputs: Iterable[Path | str] = ()) -> None:
    """Raise OutputError when `path` can't be written, or is one of `inputs` by whatever name."""
    path = Path(path)
    try:
        directory, exists = path.resolve().parent, path.exists()
        same = exists and any(Path(p).exists() and path.samefile(p) for p in inputs)
    except (OSError, ValueError) as error:  # a name too long, for instance
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(f"{shown(path)} can't be a file ({reason}): give another name") from error
    if not directory.is_dir():
        raise OutputError(f"no directory {shown(directory)} for the output: create it first")
    if exists and not path.is_file():
        raise OutputError(f"{shown(path)} is no file that can be replaced: give a file name")
    if same:
        raise OutputError(f"the output {shown(path)} is an input too: give another name")
    writable = os.access(directory, os.W_OK | os.X_OK) and (not exists or os.access(path, os.W_OK))
    if not writable:
        raise OutputError(f"{shown(path)} may not be written: choose a place with write permission")


class VideoWriter:
    """Write an mp4 once: H.264 with the frames' own colour tags, and the original sound.

    Use it in a `with` block. Frames go to a hidden file beside the output, which takes the
    output's place when the block ends well and is removed when it doesn't. AAC and MP3 sound is
    copied packet by packet, any other is encoded to AAC; it ends with the last frame.
    Raises OutputError when the output can't be written.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        audio: Path | str | None = None,
        fps: Fraction = Fraction(25),
        crf: int = 17,
        preset: str = "medium",
        comment: str | None = None,
    ) -> None:
        """`audio` is any file with sound in it; `crf` 0 is lossless; `comment` goes to the tags."""
        self.path = Path(path)
        self.frames = 0  # written so far
        check_output(self.path, [] if audio is None else [audio])
        self._target = self.path.resolve()
        self._temporary = self._target.with_name(f".{uuid.uuid4().hex}.mp4")
        self._audio = None if audio is None else Sound.of(audio)
        self._fps, self._comment = fps, comment
        self._options = {"crf": str(crf), "preset": preset}
        self._container: OutputContainer | None = None
        self._video: VideoStream | None = None
        self._sound: _Feed | None = None

    def __enter__(self) -> Self:
        try:
            self._temporary.touch(exist_ok=False)
        except OSError as error:
            raise self._refused(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        except (av.FFmpegError, OSError) as failure:
            raise self._refused(failure) from failure
        finally:
            self._close()
            self._temporary.unlink(missing_ok=True)

    def write(self, frame: VideoFrame) -> None:
        """Add the next frame; all have the size and colour of the first."""
        try:
            if self._video is None:
                self._start(frame)
            self._encode(frame)
            if self._sound is not None:
                self._sound.until(self.frames / self._fps)
        except (av.FFmpegError, OSError) as error:
            raise self._refused(error) from error

    def _start(self, first: VideoFrame) -> None:
        self._container = av.open(
            f"file:{self._temporary}", "w", format="mp4", options={"movflags": "+faststart"}
        )
        if self._comment is not None:
            self._container.metadata["comment"] = self._comment
        width, height = (size + size % 2 for size in (first.width, first.height))
        if (width, height) != (first.width, first.height):
            logger.info(
                "H.264 wants even sizes: %d x %d becomes %d x %d, an edge row or column repeated",
                *(first.width, first.height, width, height),
            )
        self._video = self._container.add_stream("libx264", self._fps, self._options)
        context = self._video.codec_context
        context.width, context.height, context.pix_fmt = width, height, PIXEL_FORMAT
        context.time_base = 1 / self._fps
        _tag(self._video, first.colour)
        if self._audio is not None:
            self._sound = _feed(self._container, self._audio)

    def _encode(self, frame: VideoFrame) -> None:
        if self._container is None or self._video is None:
            raise RuntimeError("write() belongs into a `with` block")
        raw = as_raw(frame.planes())
        raw.pts, raw.time_base = self.frames, 1 / self._fps
        self._container.mux(self._video.encode(raw))
        self.frames += 1

    def _finish(self) -> None:
        if self._container is None or self._video is None:
            raise RuntimeError(f"not one frame was written to {shown(self.path)}")
        if self._sound is not None:
            self._sound.finish(self.frames / self._fps)
        self._container.mux(self._video.encode(None))
        self._container.close()
        self._container = None
        self._temporary.replace(self._target)

    def _close(self) -> None:
        if self._sound is not None:
            self._sound.close()
        if self._container is not None:
            try:
                self._container.close()
            except (av.FFmpegError, OSError) as error:
                logger.debug("the unfinished output could not be closed: %s", error)
            self._container = None

    def _refused(self, error: Exception) -> OutputError:
        reason = getattr(error, "strerror", None) or str(error)
        return OutputError(
            f"{shown(self.path)} can't be written ({reason}):"
            " check the disk's free space and permissions"
        )


def _tag(stream: VideoStream, colour: Colour) -> None:
    context = stream.codec_context
    context.colorspace, context.color_range = colour.matrix, colour.range
    context.color_primaries, context.color_trc = colour.primaries, colour.transfer
    context.sample_aspect_ratio = colour.pixel_aspect


class _Feed(Protocol):
    """Sound on its way to the output, as far as the pictures have come."""

    def until(self, seconds: Fraction) -> None: ...
    def finish(self, seconds: Fraction) -> None: ...
    def close(self) -> None: ...


def _feed(container: OutputContainer, sound: Sound) -> "_Feed":
    rare = sound.codec == "mp3" and sound.sample_rate < _MP3_IN_MP4_MIN_RATE
    if sound.codec in _COPIED and not rare:
        return _Copied(container, sound)
    return _Encoded(container, sound)


class _Copied:
    """The sound's own packets, moved to the output's timeline."""

    def __init__(self, container: OutputContainer, sound: Sound) -> None:
        self._output, self._origin = container, sound.origin
        self._input = open_media(sound.path)
        source = sound_stream(self._input, sound.path)
        self._stream = container.add_stream_from_template(source)
        self._packets = demux(self._input, source)
        self._next = next(self._packets, None)
        logger.info("sound: %s is copied", sound.codec)

    def until(self, seconds: Fraction) -> None:
        """Hand over every packet that ends by then."""
        self._mux(seconds, partly=False)

    def finish(self, seconds: Fraction) -> None:
        """Hand over the rest up to there, the last packet's duration cut to it."""
        self._mux(seconds, partly=True)

    def close(self) -> None:
        self._input.close()

    def _mux(self, seconds: Fraction, *, partly: bool) -> None:
        while (packet := self._next) is not None:
            if packet.size and packet.pts is not None:
                unit = packet.time_base
                origin, end = round(self._origin / unit), round((self._origin + seconds) / unit)
                length = packet.duration or 0
                if packet.pts + length > end:
                    if not partly or packet.pts >= end:
                        return
                    packet.duration = end - packet.pts
                packet.pts -= origin
                packet.dts = packet.pts
                packet.stream = self._stream
                self._output.mux(packet)
            self._next = next(self._packets, None)


class _Encoded:
    """The sound decoded, and encoded to AAC at its own rate and channels where AAC has them."""

    def __init__(self, container: OutputContainer, sound: Sound) -> None:
        rate = min((r for r in _AAC_RATES if r >= sound.sample_rate), default=max(_AAC_RATES))
        layout = sound.layout if sound.layout in _AAC_LAYOUTS else _nearest_layout(sound.channels)
        self._output = container
        self._stream: AudioStream = container.add_stream(
            "aac", rate, layout=layout, bit_rate=_AAC_BIT_RATE
        )
        self._rate = rate
        self._frames = sound.resampled(rate, layout, "fltp", _AAC_FRAME)
        self._next = next(self._frames, None)
        changed = (rate, layout) != (sound.sample_rate, sound.layout)
        logger.info(
            "sound: %s %d Hz %s is encoded to AAC%s",
            *(sound.codec, sound.sample_rate, sound.layout),
            f" at {rate} Hz {layout}, the nearest it has" if changed else "",
        )

    def until(self, seconds: Fraction) -> None:
        """Hand over every block that ends by then."""
        self._encode(round(seconds * self._rate))

    def finish(self, seconds: Fraction) -> None:
        """Hand over the rest up to there, to the sample."""
        end = round(seconds * self._rate)
        self._encode(end)
        if self._next is not None and (left := end - (self._next.pts or 0)) > 0:
            self._output.mux(self._stream.encode(trimmed(self._next, left)))
        self._output.mux(self._stream.encode(None))

    def close(self) -> None:
        self._frames.close()

    def _encode(self, end: int) -> None:
        while (frame := self._next) is not None and (frame.pts or 0) + frame.samples <= end:
            self._output.mux(self._stream.encode(frame))
            self._next = next(self._frames, None)


def _nearest_layout(channels: int) -> str:
    return {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}.get(channels, "stereo")
