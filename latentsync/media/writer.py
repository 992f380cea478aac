"""The one encode: pictures and sound into a file that is moved into place at the end."""

import logging
import os
import shutil
import stat
import uuid
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
from av.codec.context import Flags
from av.container import OutputContainer
from av.video.stream import VideoStream

from latentsync.errors import OutputError
from latentsync.media.audio import Sound
from latentsync.media.container import quote_path, refused_address, same_file
from latentsync.media.encoders import check_codec, encoder_of, output_size
from latentsync.media.frame import PIXEL_FORMAT, VideoFrame, scale
from latentsync.media.limits import DEFAULT_LIMITS, Limits
from latentsync.media.output_sound import SoundFeed, decide_copy, sound_feed
from latentsync.media.tracks import quicktime_code
from latentsync.options import Preset

__all__ = ["VideoWriter", "check_output"]

log = logging.getLogger(__name__)

# Suffix -> FFmpeg's format.
_FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", "": "mp4"}
# Of so few frames x265 takes the dts from uninitialised memory, and the muxer may refuse them
# (github.com/Multicorewareinc/x265/issues/781). So few are never reordered.
_X265_DELAY_FRAMES = 2


def check_output(
    path: Path | str,
    inputs: Iterable[Path | str] = (),
    suffixes: Container[str] = _FORMATS,
) -> None:
    """Raise OutputError when `path` can't be written, or is one of `inputs` by whatever name.

    A directory, a device, a pipe, a symbolic link and another suffix than `suffixes` are refused;
    a directory in the path may be a link.
    """
    if refused := refused_address(path):
        raise OutputError(refused)
    path = Path(path)
    try:
        directory, exists = path.parent.resolve(), path.exists()
        same = exists and any(same_file(path, one) for one in inputs)
        try:
            link = stat.S_ISLNK(path.lstat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            link = False
    except (OSError, RuntimeError, ValueError) as error:  # too long, a folder that leads to itself
        reason = getattr(error, "strerror", None) or str(error)
        raise OutputError(
            f"{quote_path(path)} can't be a file ({reason}): give another name"
        ) from error
    if not directory.is_dir():
        raise OutputError(f"no directory {quote_path(directory)} for the output: create it first")
    if exists and not path.is_file():
        what = "a directory" if path.is_dir() else "a device or a pipe"
        raise OutputError(f"{quote_path(path)} is {what}, no file to replace: give a file name")
    if same:
        raise OutputError(f"the output {quote_path(path)} is an input too: give another name")
    if link:  # which would write, or replace, a file that the caller did not name
        raise OutputError(f"{quote_path(path)} is a symbolic link: give the name of a file")
    if path.suffix.lower() not in suffixes:
        raise OutputError(
            f"{quote_path(path)} is no name for an MP4 or a QuickTime file, which are all that is"
            f" written: give {quote_path(path.stem + '.mp4')}, or a name that ends in .m4v or .mov"
        )
    writable = os.access(directory, os.W_OK | os.X_OK) and (not exists or os.access(path, os.W_OK))
    if not writable:
        raise OutputError(
            f"{quote_path(path)} may not be written: choose a place with write permission"
        )


class _Draft:
    """A file in the folder of `target` that is written to `path`, then kept or dropped.

    On Linux it has no name (open(2), O_TMPFILE) and is gone with its process. On other systems, and
    on file systems that can't do so or can't name it later, it is a hidden file beside the target.
    So the folder needs room for one copy of the file, never two. Each call may raise OSError.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._hidden = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
        self._descriptor: int | None = None

    def create(self) -> None:
        """Create the empty file."""
        try:
            trial = os.open(self._target.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
            try:  # whether a nameless file can get a name here
                self._name(trial)
                self._hidden.unlink()
            finally:
                os.close(trial)
            self._descriptor = os.open(self._target.parent, os.O_TMPFILE | os.O_RDWR, 0o666)
        except (AttributeError, OSError) as error:  # another system, another file system
            log.debug("%s gets a hidden file first: %s", self._target, error)
            self._hidden.touch(exist_ok=False)

    def _name(self, descriptor: int) -> None:
        # With `src_dir_fd` Python follows the link that /proc's entry is.
        os.link(f"/proc/self/fd/{descriptor}", self._hidden, src_dir_fd=descriptor)

    @property
    def path(self) -> Path:
        """Where to write, and to read again, until the file is kept or dropped."""
        if self._descriptor is None:
            return self._hidden
        return Path(f"/proc/self/fd/{self._descriptor}")

    def keep(self) -> None:
        """Replace the target by the file, in one step."""
        if self._descriptor is not None:
            try:
                self._name(self._descriptor)
            except OSError as error:  # the finished file isn't lost
                log.debug("%s is copied into a hidden file: %s", self._target, error)
                shutil.copyfile(self.path, self._hidden)
        self._hidden.replace(self._target)

    def drop(self) -> None:
        """Remove the file; after `keep`, nothing happens."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._hidden.unlink(missing_ok=True)


class VideoWriter:
    """Writes an mp4, or a mov by that name: H.264 or HEVC, and the original sound.

    Use it in a `with` block. Frames go to a file without a name, which takes the output's place
    when the block ends well and is gone when it doesn't. AAC and MP3 sound is copied packet by
    packet, any other is encoded to AAC; it ends with the last frame. Colour tags are the frames'
    own. Raises OutputError when the output can't be written, from the first frame on also when the
    codec can't hold its size.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        audio: Path | str | Sound | None = None,
        audio_at: Fraction = Fraction(0),
        fps: Fraction = Fraction(25),
        codec: str = "h264",
        crf: int = 17,
        preset: Preset = "medium",
        max_side: int | None = None,
        time_base: Fraction = Fraction(1, 90000),
        comment: str | None = None,
        tags: Mapping[str, str] | None = None,
        limits: Limits = DEFAULT_LIMITS,
    ) -> None:
        """Check what can be checked before a frame is there.

        Args:
            audio: any file with sound in it, at most as long as `limits` says, or its Sound.
            audio_at: s of pictures before the sound begins.
            fps: frames per second; where frames bring their own times, about how many.
            codec: one of CODECS.
            crf: 0 (lossless; H.264 then needs a High 4:4:4 player) to 51.
            preset: x264's name for the encoder's effort, for every codec.
            max_side: px; pictures with a longer side are scaled down to it. None: as they are.
            time_base: s; frames' own times are rounded to it.
            comment: goes to the file's tags.
            tags: other tags, by FFmpeg's names; see `read_tags`.

        Raises:
            OptionError: an unknown codec. BackendUnavailable: one that can't be opened here.
        """
        check_codec(codec)
        self.path = Path(path)
        self.frames = 0  # written so far
        if audio is not None and not isinstance(audio, Sound):
            audio = Sound.of(audio, limits)
        check_output(self.path, [] if audio is None else [audio.path])
        self._draft = _Draft(self.path.parent.resolve() / self.path.name)
        audio = audio and decide_copy(audio)
        self._audio = audio and replace(audio, origin=audio.origin - audio_at)
        self._fps, self._unit = fps, time_base
        self._tags = {**(tags or {}), **({} if comment is None else {"comment": comment})}
        self._encoder, self._crf, self._preset = encoder_of(codec), crf, preset
        self._max_side = max_side
        self._timed = False  # whether frames have their own times
        self._held: tuple[VideoFrame, int] | None = None  # the last frame and its time, in units
        self._until: int | None = None  # when the last frame ends, in units, where that is given
        self._step = 1  # units between the last two frames
        self._container: OutputContainer | None = None
        self._video: VideoStream | None = None
        self._sound: SoundFeed | None = None

    def __enter__(self) -> Self:
        try:
            self._draft.create()
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
            self._draft.drop()

    def write(
        self, frame: VideoFrame, time: Fraction | None = None, until: Fraction | None = None
    ) -> None:
        """Add the next frame, of the size and colour of the first.

        Either every frame has a `time`, in seconds from 0 and rising by a `time_base` at least, or
        none has, else ValueError; without times frames are 1 / fps apart. The last frame lasts as
        long as the one before, or to `until`.
        """
        try:
            if self._container is None:
                self._timed = time is not None
                self._start(frame)
            due = self._due(time)
            self._encode_held(due)
            self._held = frame, due
            self._until = None if until is None else round(until / self._unit)
            self.frames += 1
            if self._sound is not None:
                self._sound.until(due * self._unit)
        except (av.FFmpegError, OSError) as error:
            raise self._refused(error) from error

    def _start(self, first: VideoFrame) -> None:
        had = first.width, first.height
        size = output_size(*had, codec=self._encoder.codec, max_side=self._max_side)
        options = self._encoder.options(self._crf, self._preset, size)
        if max(size) < max(had):
            log.info("%d x %d is scaled down to %d x %d", *had, *size)
        elif size != had:
            log.info(
                "codecs want even sizes: %d x %d becomes %d x %d, an edge row or column repeated",
                *(*had, *size),
            )
        self._container = av.open(
            f"file:{self._draft.path}",
            "w",
            format=_FORMATS[self.path.suffix.lower()],
            options={"movflags": "+faststart"},
        )
        self._container.metadata.update(self._tags)
        self._unit = self._unit if self._timed else 1 / self._fps
        self._step = max(1, round(1 / self._fps / self._unit))
        video = self._container.add_stream(self._encoder.library, self._fps, options)
        assert isinstance(video, VideoStream)
        context = video.codec_context
        (context.width, context.height), context.pix_fmt = size, PIXEL_FORMAT
        context.time_base, context.codec_tag = self._unit, self._encoder.tag
        context.flags |= Flags.frame_duration
        context.colorspace, context.color_range = first.colour.matrix, first.colour.range
        context.color_primaries, context.color_trc = first.colour.primaries, first.colour.transfer
        context.sample_aspect_ratio = first.colour.pixel_aspect
        self._video = video
        if self._audio is not None:
            self._sound = sound_feed(self._container, self._audio)
            language = self._audio.track.language
            if self._container.format.name == "mov":
                language = quicktime_code(language)
            if language:
                self._container.streams.audio[0].metadata["language"] = language

    def _due(self, time: Fraction | None) -> int:
        """Return the next frame's time, in units."""
        if (time is not None) != self._timed:
            raise ValueError("either every frame has a time or none has")
        due = self.frames if time is None else round(time / self._unit)
        if self._held is not None and due <= self._held[1]:
            raise ValueError(
                f"a frame at {time} s after one at {self._held[1] * self._unit} s: times must rise"
            )
        return due

    def _encode_held(self, until: int) -> None:
        """Encode the last frame, now that its duration is known."""
        if self._held is None or self._video is None or self._container is None:
            return
        frame, due = self._held
        size = self._video.codec_context.width, self._video.codec_context.height
        raw = scale(frame.raw(), size, frame.colour, frame.height)
        raw.pts, raw.time_base, self._step = due, self._unit, until - due
        raw.duration = self._step
        self._container.mux(self._video.encode(raw))

    def _finish(self) -> None:
        if self._container is None or self._video is None or self._held is None:
            raise RuntimeError(f"not one frame was written to {quote_path(self.path)}")
        end = self._held[1] + self._step
        if self._until is not None:
            end = max(self._until, self._held[1] + 1)
        self._encode_held(end)
        if self._sound is not None:
            self._sound.finish(end * self._unit)
        packets = self._video.encode(None)
        if self.frames <= _X265_DELAY_FRAMES:
            for packet in packets:
                packet.dts = packet.pts
        self._container.mux(packets)
        self._container.close()
        self._container = None
        self._draft.keep()

    def _close(self) -> None:
        if self._sound is not None:
            self._sound.close()
        if self._container is not None:
            try:
                self._container.close()
            except (av.FFmpegError, OSError) as error:
                log.debug("the abandoned output did not close: %s", error)
            self._container = None

    def _refused(self, error: Exception) -> OutputError:
        """Make the error of a failed write."""
        reason = getattr(error, "strerror", None) or str(error)
        return OutputError(
            f"{quote_path(self.path)} can't be written ({reason}):"
            " check the disk's free space and permissions"
        )
