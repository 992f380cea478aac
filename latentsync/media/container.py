"""Opening and describing media files that come from outside, whatever their names say."""

from __future__ import annotations  # PyAV's Packet is generic for type checkers only

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO, TypeVar

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.codec.context import Flags as CodecFlags
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition, Stream
from av.video.frame import VideoFrame as RawFrame
from av.video.stream import VideoStream

from latentsync.errors import MediaError
from latentsync.media.formats import OPEN_OPTIONS, READ_FORMATS, is_image, name_of, unread_format
from latentsync.media.frame import Orientation
from latentsync.media.limits import DEFAULT_LIMITS, MAX_NOTES_BYTES, Limits
from latentsync.media.preflight import count_samples, count_unpacked_bytes
from latentsync.media.timestamps import Continuity

__all__ = [
    "AudioFacts",
    "Damage",
    "MediaFacts",
    "VideoFacts",
    "audio_stream",
    "decode",
    "demux",
    "frame_rate",
    "open_media",
    "probe",
    "quote_path",
    "refused_address",
    "video_stream",
]

log = logging.getLogger(__name__)
F = TypeVar("F", RawFrame, AudioFrame)

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # more than one letter: C:/ is a drive
_HEAD_BYTES = 64  # first bytes of a file, by which its format is named
_GENPTS = 0x1  # AVFMT_FLAG_GENPTS, libavformat/avformat.h
_WEBP_FLAGS_OFFSET = 20  # https://developers.google.com/speed/webp/docs/riff_container
_PARTLY_USED = " or cut short: its good frames are used"


class _Nameless:
    """A file of which FFmpeg sees the content only: the name can't sway what it is taken for."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int) -> int:
        """A damaged file points to places that no file has: FFmpeg is told so by -1."""
        try:
            return self._seek(offset, whence)
        except OSError:
            return -1


def quote_path(path: Path | str) -> str:
    """A path as messages show it: quoted, in one line, whatever characters it holds."""
    return repr(str(path))


def refused_address(path: Path | str) -> str | None:
    """Why a URL can't be used, with the URL as it was given; None where `path` is no URL.

    A `Path` has lost one of the slashes, which is put back.
    """
    text = str(path)
    if not _ADDRESS.match(text) or Path(path).exists():
        return None
    address = text if "://" in text else text.replace(":/", "://", 1)
    return (
        f"{quote_path(address)} is an address, and only files of this machine are read and written:"
        " give a file's name"
    )


def open_media(path: Path | str, limits: Limits = DEFAULT_LIMITS) -> InputContainer:
    """Open a media file by its content; the one way in for everything from outside.

    The name is only ever a local file's name, never a pattern, a URL or a protocol.
    Raises MediaError when the file is not there, is none of the containers we read, or holds more
    bytes or larger frames than `limits` allows, or is a photograph in tiles.
    """
    if refused := refused_address(path):
        raise MediaError(refused)
    path = Path(path)
    head = b""
    # FFmpeg decodes a frame or two to see what is in a file: those are bounded too. It counts the
    # margins that some decoders put around a frame.
    bound = {"max_pixels": str(2 * limits.max_pixels + 2**16)}
    options = {**OPEN_OPTIONS, **bound}
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise MediaError(f"{quote_path(path)} {what}: give a video, picture or sound file")
        limits.check_bytes(quote_path(path), size := path.stat().st_size)
        if not size:
            raise MediaError(f"{quote_path(path)} is empty, of 0 bytes: write or copy it again")
        with path.open("rb") as file:
            limits.check_samples(quote_path(path), count_samples(file, size), size)
            limits.check_notes(quote_path(path), count_unpacked_bytes(file, MAX_NOTES_BYTES))
            file.seek(0)
            if _is_moving_webp(head := file.read(_HEAD_BYTES)):
                raise MediaError(
                    f"{quote_path(path)} is a moving WebP, which can't be read: "
                    "convert it to GIF or mp4"
                )
            file.seek(0)
            seen = av.open(_Nameless(file), "r", options=options, metadata_errors="replace")
            kind = seen.format.name.split(",")[0]
            seen.close()
        container = av.open(
            f"file:{path.absolute()}",
            "r",
            format=kind,
            options=options,
            metadata_errors="replace",
        )
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{quote_path(path)} {_not_read(head, error)}") from error
    if any(one.disposition & Disposition.dependent for one in container.streams.video):
        container.close()
        raise MediaError(
            f"{quote_path(path)} is a photograph in tiles (HEIC, as phones take them), "
            "which can't be"
            " read: save it as JPEG or PNG"
        )
    stream = video_stream(container)
    if stream is not None:
        limits.check_pixels(
            quote_path(path), stream.codec_context.width, stream.codec_context.height
        )
        stream.codec_context.options = bound
        # Else libavcodec cuts less off the left than the stream says, to keep rows aligned.
        stream.codec_context.flags |= CodecFlags.unaligned
    # PyAV lets FFmpeg guess missing pts, wrongly for H.264 with B-frames in AVI: they are no times.
    container.flags &= ~_GENPTS
    return container


def _not_read(head: bytes, error: Exception) -> str:
    """Why a file isn't read, and what is."""
    if name := unread_format(head):
        return f"is {name}, which is not among the formats read: {READ_FORMATS}"
    if isinstance(error, av.ArgumentError):  # FFmpeg knows it, but it is not on our list
        return f"can't be read as media: its format is not among those read: {READ_FORMATS}"
    reason = getattr(error, "strerror", None) or str(error)
    damaged = f"can't be read as media ({reason}): it is damaged, or of none of the formats read"
    return f"{damaged}: {READ_FORMATS}"


def _is_moving_webp(head: bytes) -> bool:
    """FFmpeg's own decoder knows still ones only, and finds no picture in these."""
    flags = head[_WEBP_FLAGS_OFFSET:][:1] or b"\0"
    return head[8:16] == b"WEBPVP8X" and bool(flags[0] & 0x02)


def video_stream(container: InputContainer) -> VideoStream | None:
    """The main picture stream; a cover picture inside a sound file is none."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        return None
    return None if stream.disposition & Disposition.attached_pic else stream


def audio_stream(container: InputContainer) -> AudioStream | None:
    """The main sound stream; which one is heard, `choose_track` decides."""
    stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        return None
    return stream


class Damage:
    """Tells in the log what is wrong with a file: each thing once, however often it is read."""

    def __init__(self, path: Path | str, level: int = logging.WARNING) -> None:
        self._name, self._level = quote_path(path), level
        self._logged: set[str] = set()

    def warn(self, what: str, *values: object) -> None:
        level = logging.DEBUG if what in self._logged else self._level
        self._logged.add(what)
        log.log(level, "%s is damaged" + what, self._name, *values)


class _Doubt:
    """Tells of damage where a packet is said to be corrupt; where pieces are joined one is, too.

    There a key frame comes next, or the clock jumps: at most a packet later, for FFmpeg's parser is
    a packet late to say it.
    """

    def __init__(self, continuity: Continuity, damage: Damage) -> None:
        self._continuity, self._damage = continuity, damage
        self._waits = 0  # packets until it is told
        self._jumps = 0

    def check(self, packet: Packet[Stream]) -> None:
        """The next packet of a stream; the last is empty."""
        jumped = self._continuity.jumps > self._jumps
        self._jumps = self._continuity.jumps
        if self._waits and packet.size and (packet.is_keyframe or jumped):
            self._waits = 0
        if self._waits:
            self._waits -= 1
            if not (self._waits and packet.size):
                self._waits = 0
                self._damage.warn(_PARTLY_USED)
        if packet.is_corrupt:
            self._waits = 2


def demux(
    container: InputContainer,
    stream: Stream,
    damage: Damage | None = None,
    continuity: Continuity | None = None,
) -> Iterator[Packet[Stream]]:
    """The stream's packets, then an empty one to flush; damage ends nothing, and is told.

    Their time stamps are made continuous, by `continuity` where the file is read from a place on.

    A last picture that isn't whole is left out: a decoder that works on several at once would give
    up those it still holds. Of sound every sample counts.
    """
    damage = damage or Damage(container.name.removeprefix("file:"))
    continuity = continuity or Continuity(container, stream)
    held, doubt = None, _Doubt(continuity, damage)
    try:
        for packet in continuity.packets(container):
            if stream.type == "video":
                doubt.check(packet)
            if held is not None and packet.size:
                yield held
            held = packet if packet.is_corrupt and stream.type == "video" else None
            if held is None:
                yield packet
    except av.FFmpegError as error:
        damage.warn(" (%s): what comes before is used", error.strerror)
        flush: Packet[Stream] = Packet()
        flush.stream = stream
        yield flush


def decode(packet: Packet[Stream], kind: type[F], damage: Damage | None = None) -> list[F]:
    """The good frames a packet gives; a damaged packet gives none. `damage` tells of the others."""
    try:
        frames = packet.decode()
    except av.FFmpegError as error:
        log.debug("a damaged packet at pts %s was skipped: %s", packet.pts, error.strerror)
        given, good = None, []
    else:
        given = [frame for frame in frames if isinstance(frame, kind)]
        good = [frame for frame in given if not frame.is_corrupt]
    if damage and good != given:
        damage.warn(_PARTLY_USED)
    return good


@dataclass(frozen=True)
class VideoFacts:
    """What a file's picture stream is, in the file's own terms."""

    codec: str
    width: int  # px, before rotation
    height: int  # px, before rotation
    fps: Fraction | None  # mean, as the file claims; None for a picture
    frames: int  # counted
    pixel_format: str
    rotation: int  # degrees clockwise that a player turns it by


@dataclass(frozen=True)
class AudioFacts:
    """What a file's sound stream is."""

    codec: str
    sample_rate: int  # Hz
    channels: int


@dataclass(frozen=True)
class MediaFacts:
    """What a file is; `video` or `audio` is None where it has no such stream."""

    path: Path
    container: str
    duration_seconds: float | None
    video: VideoFacts | None
    audio: AudioFacts | None
    comment: str | None


def probe(path: Path | str) -> MediaFacts:
    """Describe any media file; frames are counted by walking its packets, nothing is guessed.

    Raises MediaError when it is not media or holds neither pictures nor sound.
    """
    with open_media(path) as container:
        video, audio = video_stream(container), audio_stream(container)
        if video is None and audio is None:
            raise MediaError(f"{quote_path(path)} holds neither pictures nor sound")
        duration = container.duration
        return MediaFacts(
            path=Path(path),
            container=name_of(container, _head(path)),
            duration_seconds=None if duration is None else duration / 1e6,
            video=None if video is None else _video_facts(container, video),
            audio=None if audio is None else _audio_facts(audio),
            comment=container.metadata.get("comment"),
        )


def _head(path: Path | str) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(_HEAD_BYTES)


def frame_rate(stream: VideoStream) -> Fraction | None:
    """Mean frames a second, as the file claims; FFmpeg says the clock's rate of bare DV."""
    clock = stream.time_base and 1 / stream.time_base
    return stream.guessed_rate if stream.average_rate == clock else stream.average_rate


def _video_facts(container: InputContainer, stream: VideoStream) -> VideoFacts:
    frames, orientation = 0, None
    for packet in demux(container, stream):
        frames += packet.size > 0 and not packet.is_discard
        if orientation is None and (decoded := decode(packet, RawFrame)):
            orientation = Orientation.of(decoded[0])
    context = stream.codec_context
    return VideoFacts(
        codec=context.codec.canonical_name,
        width=context.width,
        height=context.height,
        fps=None if is_image(container) else frame_rate(stream),
        frames=frames,
        pixel_format=context.pix_fmt or "unknown",
        rotation=0 if orientation is None else orientation.degrees,
    )


def _audio_facts(stream: AudioStream) -> AudioFacts:
    context = stream.codec_context
    return AudioFacts(context.codec.canonical_name, context.sample_rate, context.channels)
