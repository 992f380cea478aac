"""Opening, reading and describing media files from outside, by their content alone."""

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
    "decode",
    "demux",
    "frame_rate",
    "open_media",
    "probe",
    "quote_path",
    "refused_address",
    "same_file",
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
    """A file whose name FFmpeg doesn't see, so that only its content decides on the format."""

    def __init__(self, file: BinaryIO) -> None:
        self.read, self.tell, self._seek = file.read, file.tell, file.seek

    def seek(self, offset: int, whence: int) -> int:
        """Seek; -1 for an impossible place, to which a damaged file may point."""
        try:
            return self._seek(offset, whence)
        except OSError:
            return -1


def quote_path(path: Path | str) -> str:
    """Quote a path for messages, in one line, whatever characters it holds."""
    return repr(str(path))


def same_file(path: Path | str, other: Path | str) -> bool:
    """Return whether both are one file, by whatever names; False if either can't be reached."""
    try:
        return Path(path).samefile(other)
    except (OSError, ValueError):  # opening it will tell what is wrong
        return False


def refused_address(path: Path | str) -> str | None:
    """Return why a URL can't be used; None where `path` is no URL.

    The slash that a `Path` drops is put back.
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
    """Open a media file by its content; everything from outside comes in here.

    The name is only ever a local file's name, never a pattern, a URL or a protocol.
    Raises MediaError when the file is not there, is none of the containers we read, or holds more
    bytes or larger frames than `limits` allows, or is a photograph in tiles.
    """
    if refused := refused_address(path):
        raise MediaError(refused)
    path = Path(path)
    name, head = quote_path(path), b""
    # FFmpeg decodes a frame or two to describe a file, so those are bounded too. It counts the
    # margins that some decoders put around a frame.
    bound = {"max_pixels": str(2 * limits.max_pixels + 2**16)}
    options = {**OPEN_OPTIONS, **bound}
    try:
        if not path.is_file():
            what = "is not a file" if path.exists() else "does not exist"
            raise MediaError(f"{name} {what}: give a video, picture or sound file")
        limits.check_bytes(name, size := path.stat().st_size)
        if not size:
            raise MediaError(f"{name} is empty, of 0 bytes: write or copy it again")
        with path.open("rb") as file:
            limits.check_samples(name, count_samples(file, size), size)
            limits.check_notes(name, count_unpacked_bytes(file, MAX_NOTES_BYTES))
            file.seek(0)
            head = file.read(_HEAD_BYTES)
            flags = head[_WEBP_FLAGS_OFFSET:][:1]
            # FFmpeg's own decoder reads still WebP only.
            if head[8:16] == b"WEBPVP8X" and flags and flags[0] & 0x02:
                raise MediaError(
                    f"{name} is a moving WebP, which can't be read: convert it to GIF or mp4"
                )
            file.seek(0)
            by_content = av.open(_Nameless(file), "r", options=options, metadata_errors="replace")
            kind = by_content.format.name.split(",")[0]
            by_content.close()
        url = f"file:{path.absolute()}"
        container = av.open(url, "r", format=kind, options=options, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise MediaError(f"{name} {_explain(head, error)}") from error
    if any(one.disposition & Disposition.dependent for one in container.streams.video):
        container.close()
        raise MediaError(
            f"{name} is a photograph in tiles (HEIC, as phones take them), which can't be read:"
            " save it as JPEG or PNG"
        )
    stream = video_stream(container)
    if stream is not None:
        limits.check_pixels(name, stream.codec_context.width, stream.codec_context.height)
        stream.codec_context.options = bound
        # Without it libavcodec crops too little off the left, to keep rows aligned.
        stream.codec_context.flags |= CodecFlags.unaligned
    # PyAV lets FFmpeg guess missing pts, wrongly for H.264 with B-frames in AVI.
    container.flags &= ~_GENPTS
    return container


def _explain(head: bytes, error: Exception) -> str:
    """Say why a file isn't read, and what is."""
    if name := unread_format(head):
        return f"is {name}, which is not among the formats read: {READ_FORMATS}"
    if isinstance(error, av.ArgumentError):  # FFmpeg knows it, but it is not on our list
        return f"can't be read as media: its format is not among those read: {READ_FORMATS}"
    reason = getattr(error, "strerror", None) or str(error)
    damaged = f"can't be read as media ({reason}): it is damaged, or of none of the formats read"
    return f"{damaged}: {READ_FORMATS}"


def video_stream(container: InputContainer) -> VideoStream | None:
    """Return the main picture stream; a cover picture inside a sound file is none."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        return None
    return None if stream.disposition & Disposition.attached_pic else stream


class Damage:
    """Logs what is wrong with a file, each thing once, however often the file is read."""

    def __init__(self, path: Path | str, level: int = logging.WARNING) -> None:
        self._name, self._level = quote_path(path), level
        self._logged: set[str] = set()

    def warn(self, what: str, *values: object) -> None:
        """Log "NAME is damaged" and `what`, at a debug level from the second time on."""
        level = logging.DEBUG if what in self._logged else self._level
        self._logged.add(what)
        log.log(level, "%s is damaged" + what, self._name, *values)


def demux(
    container: InputContainer,
    stream: Stream,
    damage: Damage | None = None,
    continuity: Continuity | None = None,
) -> Iterator[Packet[Stream]]:
    """Read a stream's packets, then an empty one to flush; damage is logged and ends nothing.

    Their time stamps are made continuous, by `continuity` where the file was sought.

    A last picture that isn't whole is left out, because a decoder that works on several at once
    would drop those that it still holds. Of sound every sample counts.
    """
    damage = damage or Damage(container.name.removeprefix("file:"))
    continuity = continuity or Continuity(container, stream)
    held, jumps, doubt = None, 0, 0  # doubt: packets after which a corrupt one is logged
    try:
        for packet in continuity.packets(container):
            corrupt = packet.is_corrupt and stream.type == "video"
            # Where pieces are joined, a packet is marked as corrupt too. There a key frame comes
            # next, or the clock jumps; FFmpeg's parser may mark it a packet late.
            joint = packet.size and (packet.is_keyframe or continuity.jumps > jumps)
            jumps = continuity.jumps
            if doubt and joint:
                doubt = 0
            elif doubt:
                doubt = doubt - 1 if packet.size else 0
                if not doubt:
                    damage.warn(_PARTLY_USED)
            if corrupt:
                doubt = 2
            if held is not None and packet.size:
                yield held
            held = packet if corrupt else None
            if held is None:
                yield packet
    except av.FFmpegError as error:
        damage.warn(" (%s): what comes before is used", error.strerror)
        flush: Packet[Stream] = Packet()
        flush.stream = stream
        yield flush


def decode(packet: Packet[Stream], kind: type[F], damage: Damage | None = None) -> list[F]:
    """Decode a packet to its good frames; none for a damaged packet. `damage` logs the others."""
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
    """Facts of a picture stream, in the file's own terms."""

    codec: str
    width: int  # px, before rotation
    height: int  # px, before rotation
    fps: Fraction | None  # mean, as the file claims; None for a picture
    frames: int  # counted
    pixel_format: str
    rotation: int  # degrees clockwise by which players turn it


@dataclass(frozen=True)
class AudioFacts:
    """Facts of a sound stream."""

    codec: str
    sample_rate: int  # Hz
    channels: int


@dataclass(frozen=True)
class MediaFacts:
    """Facts of a file; `video` or `audio` is None where it has no such stream."""

    path: Path
    container: str
    duration_seconds: float | None
    video: VideoFacts | None
    audio: AudioFacts | None
    comment: str | None


def probe(path: Path | str) -> MediaFacts:
    """Describe any media file; frames are counted by reading its packets.

    Raises MediaError when it is not media or holds neither pictures nor sound.
    """
    with open_media(path) as container:
        video, sound, audio = video_stream(container), container.streams.best("audio"), None
        if isinstance(sound, AudioStream) and (context := sound.codec_context) is not None:
            codec = context.codec.canonical_name
            audio = AudioFacts(codec, context.sample_rate, context.channels)
        if video is None and audio is None:
            raise MediaError(f"{quote_path(path)} holds neither pictures nor sound")
        with Path(path).open("rb") as file:
            container_name = name_of(container, file.read(_HEAD_BYTES))
        return MediaFacts(
            path=Path(path),
            container=container_name,
            duration_seconds=None if container.duration is None else container.duration / 1e6,
            video=None if video is None else _video_facts(container, video),
            audio=audio,
            comment=container.metadata.get("comment"),
        )


def frame_rate(stream: VideoStream) -> Fraction | None:
    """Return the mean frame rate that the file claims; for bare DV that is FFmpeg's guess."""
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
