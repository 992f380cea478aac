"""Frames of a clip or of a still picture, upright: at a constant rate, or each one once."""

import logging
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Self

import av
from av.video.frame import VideoFrame as RawFrame

from latentsync.errors import MediaError
from latentsync.media.container import Damage, frame_rate, open_media, quote_path
from latentsync.media.decoder import (
    Clock,
    Decoder,
    EachFrame,
    FrameCounts,
    FrameSpan,
    decode_stream,
    frame_format,
    picture_stream,
    ticks,
)
from latentsync.media.formats import is_image
from latentsync.media.frame import Colour, Orientation, VideoFrame, from_raw, has_alpha
from latentsync.media.limits import DEFAULT_LIMITS, Limits, advise_raising
from latentsync.media.timestamps import SeekMap, clock_restarts
from latentsync.media.tonemap import hdr_curve, tone_map
from latentsync.types import VideoInfo

__all__ = ["VideoReader", "first_frame_time"]

log = logging.getLogger(__name__)

_KEPT_BYTES = 48 * 2**20  # of YUV, kept so that a clip can be played backwards in short runs
_KEPT_FRAMES = 16  # at least, however large they are
_SEEK_FRAMES = 250  # a jump ahead by more than this seeks, where a shorter one decodes through


class _StreamInfo(NamedTuple):
    """What one glance at a file tells: its stream's facts and its first picture."""

    raw: RawFrame
    still: bool
    codec: str
    rate: Fraction | None  # mean, as the file claims
    seconds: float | None  # as the file claims
    unit: Fraction  # s per tick
    orientation: Orientation
    pixel_aspect: Fraction  # upright

    @property
    def size(self) -> tuple[int, int]:
        """Upright (width, height)."""
        size = self.raw.width, self.raw.height
        return size[::-1] if self.orientation.swap else size

    @property
    def colour(self) -> Colour:
        return Colour.of(self.raw, self.size[1], self.pixel_aspect)


class VideoReader:
    """A clip as upright 8-bit 4:2:0 frames at a constant rate; a still picture is one held frame.

    The file is told by its content, never by its suffix. Index n of the constant-rate clip shows
    the last source frame whose time, counted from the first frame and rounded to 1 / fps, is not
    after n, as FFmpeg's `fps` filter has it; it is the same frame however it was reached.

    Interlaced frames are deinterlaced, one frame for each. Alpha is dropped, as players and FFmpeg
    do: what the file keeps beneath shows. HDR (PQ, HLG) is tone-mapped to SDR once, at the start,
    into a temporary file that goes with the reader, at `close` at the latest or where a `with`
    block ends. Nothing else stays open between calls.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        fps: Fraction = Fraction(25),
        limits: Limits = DEFAULT_LIMITS,
        used_seconds: float | None = None,
    ) -> None:
        """Look at the file; MediaError when it can't be used or is more than `limits` allows.

        `used_seconds`: that nothing after it will be asked for, which shortens an HDR clip's tone
        mapping and changes nothing else; None where it isn't known.
        """
        self.path = self._source = Path(path)
        self._fps, self._limits = fps, limits
        self._remove: Callable[[], object] = _nothing
        self._damage, self._seek_map = Damage(self.path), SeekMap()
        look = _probe(self.path, limits)
        self.info = self._describe(look)
        self.pixel_aspect = look.pixel_aspect  # width / height of one pixel, upright
        self._log_changes(look)
        if hdr_curve(look.raw):
            self._source, self._remove = tone_map(
                self.path, look.raw, owner=self, seconds=used_seconds
            )
            look = _probe(self._source, limits)
        self.time_base = look.unit  # s; the times of `times` are whole multiples of it
        self._origin = ticks(look.raw)
        self._orientation, self._colour = look.orientation, look.colour
        self._times: array[int] | None = None
        self._lengths: array[int] = array("q", [0])
        self._form = frame_format(look.raw)
        self._changes = set[tuple[int, int, str]]()  # that were told of
        self._tallies = [FrameCounts()]
        self._seen = 0  # frames of `frames()` that there were
        self._still = self._upright(look.raw) if self.info.is_image else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was written for this reader alone; it gives no frames after that."""
        self._remove()

    def frames(self, indices: Iterable[int] | None = None) -> Iterator[VideoFrame]:
        """Every frame in order, or those at `indices`, in that order; 0 is the first.

        Ascending indices stream; descending ones are decoded by seeking in short runs, of which
        a fixed number of bytes is kept. An index outside the clip is an IndexError.
        """
        if self._still is not None:
            still = self._still
            yield from [still] if indices is None else (still for _ in indices)
            return
        with self._decoder() as decoder:
            clock = decoder.constant_rate(self._fps)
            if indices is not None:
                yield from self._picked(decoder, clock, indices, self._seen)
                return
            stop = 0
            self._count(decoder.tally)
            for start, stop, raw in decoder.spans(clock):
                self._seen = max(self._seen, stop)
                frame = self._upright(raw)
                yield from (frame for _ in range(start, stop))
            self._check_some(stop)
            decoder.check_end(float(stop / self._fps))

    def source_frames(self, numbers: Iterable[int] | None = None) -> Iterator[VideoFrame]:
        """Every frame of the file once, whatever its rate, or those of `numbers`, in that order.

        `times` tells when each is shown. Otherwise as `frames`; of several frames at the same
        time the last counts. With `numbers` the clip's times are read first, once.
        """
        if self._still is not None:
            yield from self.frames(numbers)
            return
        clock = None if numbers is None else EachFrame(self._all_ticks())
        with self._decoder() as decoder:
            if numbers is not None and clock is not None:
                yield from self._picked(decoder, clock, numbers, len(self._all_ticks()))
            else:
                self._count(decoder.tally)
                yield from (self._upright(raw) for _, raw in decoder.timed())

    def times(self) -> Iterator[Fraction]:
        """When each of `source_frames` is shown: exact seconds from the first frame, rising.

        Edit lists are applied. The clip is decoded for it, once; 16 bytes a frame are remembered.
        """
        return ((at - self._origin) * self.time_base for at in self._all_ticks())

    def durations(self) -> Iterator[Fraction]:
        """How long each of `source_frames` is shown as the file says, in seconds; 0: unsaid.

        Not always the time to the next one: with reordered frames and a varying rate, an MP4 has
        the time between packets.
        """
        self._all_ticks()
        return (length * self.time_base for length in self._lengths)

    def _all_ticks(self) -> "array[int]":
        if self._still is not None:
            return array("q", [self._origin])
        if self._times is None:
            with self._decoder() as decoder:
                self._count(decoder.tally)
                times, lengths = array("q"), array("q")
                for at, raw in decoder.timed():
                    times.append(at)
                    lengths.append(raw.duration or 0)
            self._times, self._lengths = times, lengths
        self._check_some(len(self._times))
        return self._times

    @property
    def tally(self) -> FrameCounts:
        """What became of the frames decoded, in the longest reading in order so far."""
        return max(self._tallies, key=lambda tally: tally.decoded)

    def _count(self, tally: FrameCounts) -> None:
        self._tallies = [self.tally, tally]

    def _check_some(self, frames: int) -> None:
        """Of a damaged clip not even the frame of the first glance may be rescued."""
        if frames == 0:
            raise MediaError(
                f"{quote_path(self.path)} is damaged, no frame of it can be decoded:"
                " give a clip that a player shows"
            )

    def _decoder(self) -> Decoder:
        return Decoder(self._source, self._origin, self._limits, self._damage, self._seek_map)

    def _picked(
        self, decoder: Decoder, clock: Clock, indices: Iterable[int], seen: int
    ) -> Iterator[VideoFrame]:
        room = max(_KEPT_FRAMES, _KEPT_BYTES // (self.info.width * self.info.height * 3 // 2))
        kept: deque[tuple[int, int, VideoFrame]] = deque(maxlen=room)  # start, stop
        spans = decoder.spans(clock)
        for index in indices:
            if index < 0:
                raise IndexError(f"frames count from 0, not {index}")
            first = kept[0][0] if kept else 0
            last = kept[-1][1] if kept else 0
            if index < first or index > last + _SEEK_FRAMES:
                kept.clear()
                spans = decoder.spans_from(clock, index - room + 1 if index < first else index)
            while not kept or kept[-1][1] <= index:
                span = next(spans, None)
                if span is None:
                    spans = self._again(decoder, clock, index, seen)
                    span = next(spans, None)
                if span is None:
                    raise IndexError(f"no frame {index} in {quote_path(self.path)}")
                kept.append((span.start, span.stop, self._upright(span.raw)))
            yield next(frame for start, _, frame in reversed(kept) if start <= index)

    def _again(self, decoder: Decoder, clock: Clock, index: int, seen: int) -> Iterator[FrameSpan]:
        """Spans from `index` on, read from the start; the last stays if there were more before.

        With damaged clips, multi-threaded decoding recovers a varying set of frames.
        """
        last = None
        for last in decoder.spans_from(clock, 0):
            if last.stop > index:
                yield last
        if last is not None and last.stop <= index < seen:
            yield FrameSpan(last.start, seen, last.raw)

    def _upright(self, raw: RawFrame) -> VideoFrame:
        size = self.info.width, self.info.height
        own = None
        if (form := frame_format(raw)) != self._form:
            self._tell_of_change(form)
            own = Colour.of(raw, form[0] if self._orientation.swap else form[1], self.pixel_aspect)
        try:
            return from_raw(raw, size, self._orientation, self._colour, own)
        except av.FFmpegError as error:
            raise MediaError(
                f"{quote_path(self.path)} has pictures that can't be converted ({raw.format.name}:"
                f" {error.strerror}): give it as yuv420p"
            ) from error

    def _tell_of_change(self, form: tuple[int, int, str]) -> None:
        """Broadcasts and joined clips change on the way; FFmpeg's command line scales them too."""
        if form not in self._changes:
            self._changes.add(form)
            log.warning(
                "%s changes on the way from %d x %d (%s) to %d x %d (%s):"
                " brought to the first size and colours",
                *(quote_path(self.path), *self._form, *form),
            )

    def _describe(self, look: _StreamInfo) -> VideoInfo:
        return VideoInfo(
            path=self.path,
            width=look.size[0],
            height=look.size[1],
            fps=self._fps,
            source_fps=None if look.still else look.rate,
            duration_seconds=None if look.still else look.seconds,
            codec=look.codec,
            pixel_format=look.raw.format.name,
            is_image=look.still,
        )

    def _log_changes(self, look: _StreamInfo) -> None:
        name = quote_path(self.path)
        if look.raw.interlaced_frame:
            log.info("%s is interlaced: deinterlaced, one frame for each", name)
        if has_alpha(look.raw.format.name):
            log.info("%s has an alpha channel, which is dropped", name)


def first_frame_time(path: Path | str, limits: Limits = DEFAULT_LIMITS) -> Fraction:
    """When a clip's first picture is shown, in seconds of the file's own time."""
    look = _probe(Path(path), limits)
    return ticks(look.raw) * look.unit


def _probe(path: Path, limits: Limits) -> _StreamInfo:
    with open_media(path, limits) as container:
        stream = picture_stream(container, path)
        codec, still = stream.codec_context.codec.canonical_name, is_image(container)
        seconds = None if container.duration is None else container.duration / 1e6
        if seconds is not None and not still and not clock_restarts(container):
            limits.check_seconds(quote_path(path), seconds)
        unsaid = Damage(path, logging.DEBUG)  # whoever reads on tells
        raw = next(decode_stream(container, stream, unsaid), None)
        if raw is None:
            raise MediaError(
                f"{quote_path(path)} ({codec}) holds no frame that can be decoded, "
                "or only larger ones"
                f" than {limits.max_pixels} px: give a clip that a player shows"
                f"{advise_raising('max_pixels')}"
            )
        orientation = Orientation.of(raw)
        aspect = stream.sample_aspect_ratio or Fraction(1)
        return _StreamInfo(
            raw=raw,
            still=still,
            codec=codec,
            rate=frame_rate(stream),
            seconds=seconds,
            unit=stream.time_base or Fraction(1, 1000),
            orientation=orientation,
            pixel_aspect=1 / aspect if orientation.swap else aspect,
        )


def _nothing() -> None:
    """What a reader has to remove that wrote nothing."""
