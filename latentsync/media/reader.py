"""Frames of a clip or a still picture, upright: at a constant rate, or each source frame once."""

import logging
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple, Self

import av
from av.video.frame import VideoFrame as RawFrame

from latentsync.errors import MediaError
from latentsync.media.container import Damage, frame_rate, open_media, quote_path
from latentsync.media.decoder import (
    Decoder,
    FrameClock,
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
    """A video stream's facts and its first picture."""

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


class VideoReader:
    """A clip as upright 8-bit 4:2:0 frames at a constant rate; a still picture is one held frame.

    The content decides on the format, never the name. Index n of the constant-rate clip is the
    last source frame whose time, counted from the first frame and rounded to 1 / fps, is not after
    n, as in FFmpeg's `fps` filter, in whatever order frames are read.

    Interlaced frames are deinterlaced, one for one. Alpha is dropped, as players and FFmpeg do. HDR
    (PQ, HLG) is tone-mapped to SDR once, at the start, into a temporary file that is removed by
    `close` or with the reader. No file stays open between calls.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        fps: Fraction = Fraction(25),
        limits: Limits = DEFAULT_LIMITS,
        used_seconds: float | None = None,
    ) -> None:
        """Check the file; MediaError when it can't be used or is more than `limits` allows.

        `used_seconds`: no frame after this time will be asked for, which shortens the tone mapping
        of an HDR clip and changes nothing else; None where it isn't known.
        """
        self.path = self._source = Path(path)
        self._fps, self._limits = fps, limits
        self._remove: Callable[[], object] | None = None
        self._damage, self._seek_map = Damage(self.path), SeekMap()
        info = _probe(self.path, limits)
        self.info = VideoInfo(
            path=self.path,
            width=info.size[0],
            height=info.size[1],
            fps=fps,
            source_fps=None if info.still else info.rate,
            duration_seconds=None if info.still else info.seconds,
            codec=info.codec,
            pixel_format=info.raw.format.name,
            is_image=info.still,
        )
        self.pixel_aspect = info.pixel_aspect  # width / height of one pixel, upright
        if info.raw.interlaced_frame:
            log.info("%s is interlaced: deinterlaced, one frame for each", quote_path(self.path))
        if has_alpha(info.raw.format.name):
            log.info("%s has an alpha channel, which is dropped", quote_path(self.path))
        if hdr_curve(info.raw):
            self._source, self._remove = tone_map(
                self.path, info.raw, owner=self, seconds=used_seconds
            )
            info = _probe(self._source, limits)
        self.time_base = info.unit  # s; `times` are whole multiples of it
        self._origin = ticks(info.raw)
        self._orientation = info.orientation
        self._colour = Colour.of(info.raw, info.size[1], info.pixel_aspect)
        self._times: array[int] | None = None
        self._lengths: array[int] = array("q", [0])
        self._format = frame_format(info.raw)
        self._other_formats = set[tuple[int, int, str]]()  # that were logged
        self._counts = [FrameCounts()]
        self._frames_seen = 0  # by `frames` in order
        self._still = self._to_frame(info.raw) if self.info.is_image else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the temporary file, if there is one; the reader gives no frames after that."""
        if self._remove:
            self._remove()

    def frames(self, indices: Iterable[int] | None = None) -> Iterator[VideoFrame]:
        """Iterate over every frame, or those at `indices`, in that order; 0 is the first.

        Ascending indices stream. Descending ones are decoded by seeking, in short runs of bounded
        size. An index outside the clip is an IndexError.
        """
        if self._still is not None:
            still = self._still
            yield from [still] if indices is None else (still for _ in indices)
            return
        with closing(self._decoder()) as decoder:
            clock = decoder.clock(self._fps)
            if indices is not None:
                yield from self._pick(decoder, clock, indices, self._frames_seen)
                return
            stop = 0
            self._count(decoder.counts)
            for start, stop, raw in decoder.spans(clock):
                self._frames_seen = max(self._frames_seen, stop)
                frame = self._to_frame(raw)
                yield from (frame for _ in range(start, stop))
            self._check_not_empty(stop)
            decoder.check_end(float(stop / self._fps))

    def source_frames(self, numbers: Iterable[int] | None = None) -> Iterator[VideoFrame]:
        """Iterate over each frame of the file once, or those at `numbers`, in that order.

        `times` has the time of each. Of several frames at the same time the last one counts. With
        `numbers` the clip's times are read first, once.
        """
        if self._still is not None:
            yield from self.frames(numbers)
            return
        times = None if numbers is None else self._all_ticks()
        with closing(self._decoder()) as decoder:
            if numbers is not None and times is not None:
                clock = decoder.clock(self._fps, times)
                yield from self._pick(decoder, clock, numbers, len(times))
            else:
                self._count(decoder.counts)
                yield from (self._to_frame(raw) for _, raw in decoder.timed())

    def times(self) -> Iterator[Fraction]:
        """Iterate over the times of `source_frames`: exact seconds from the first frame, rising.

        Edit lists are applied. The clip is decoded for it, once; 16 bytes a frame are remembered.
        """
        return ((at - self._origin) * self.time_base for at in self._all_ticks())

    def durations(self) -> Iterator[Fraction]:
        """Iterate over the durations of `source_frames` in seconds, as the file has them; 0: none.

        Not always the time to the next frame: with reordered frames and a varying rate, an MP4 has
        the time between packets.
        """
        self._all_ticks()
        return (length * self.time_base for length in self._lengths)

    def _all_ticks(self) -> "array[int]":
        if self._still is not None:
            return array("q", [self._origin])
        if self._times is None:
            with closing(self._decoder()) as decoder:
                self._count(decoder.counts)
                times, lengths = array("q"), array("q")
                for at, raw in decoder.timed():
                    times.append(at)
                    lengths.append(raw.duration or 0)
            self._times, self._lengths = times, lengths
        self._check_not_empty(len(self._times))
        return self._times

    @property
    def counts(self) -> FrameCounts:
        """What became of the frames, in the longest pass through the clip so far."""
        return max(self._counts, key=lambda counts: counts.decoded)

    def _count(self, counts: FrameCounts) -> None:
        self._counts = [self.counts, counts]

    def _check_not_empty(self, frames: int) -> None:
        """Raise MediaError if no frame came; a damaged clip may lose all when decoded again."""
        if frames == 0:
            raise MediaError(
                f"{quote_path(self.path)} is damaged, no frame of it can be decoded:"
                " give a clip that a player shows"
            )

    def _decoder(self) -> Decoder:
        return Decoder(self._source, self._origin, self._limits, self._damage, self._seek_map)

    def _pick(
        self, decoder: Decoder, clock: FrameClock, indices: Iterable[int], seen: int
    ) -> Iterator[VideoFrame]:
        room = max(_KEPT_FRAMES, _KEPT_BYTES // (self.info.width * self.info.height * 3 // 2))
        kept: deque[tuple[int, int, VideoFrame]] = deque(maxlen=room)  # start, stop
        spans = decoder.spans(clock)
        for index in indices:
            if index < 0:
                raise IndexError(f"frames count from 0, not {index}")
            first, last = (kept[0][0], kept[-1][1]) if kept else (0, 0)
            if index < first or index > last + _SEEK_FRAMES:
                kept.clear()
                spans = decoder.spans_from(clock, index - room + 1 if index < first else index)
            while not kept or kept[-1][1] <= index:
                span = next(spans, None)
                if span is None:
                    spans = self._reread(decoder, clock, index, seen)
                    span = next(spans, None)
                if span is None:
                    raise IndexError(f"no frame {index} in {quote_path(self.path)}")
                kept.append((span.start, span.stop, self._to_frame(span.raw)))
            yield next(frame for start, _, frame in reversed(kept) if start <= index)

    def _reread(
        self, decoder: Decoder, clock: FrameClock, index: int, seen: int
    ) -> Iterator[FrameSpan]:
        """Decode from the start to `index`; the last frame is held if more were `seen` before.

        With damaged clips, multi-threaded decoding recovers a varying set of frames.
        """
        last = None
        for last in decoder.spans_from(clock, 0):
            if last.stop > index:
                yield last
        if last is not None and last.stop <= index < seen:
            yield FrameSpan(last.start, seen, last.raw)

    def _to_frame(self, raw: RawFrame) -> VideoFrame:
        size = self.info.width, self.info.height
        own = None
        if (form := frame_format(raw)) != self._format:
            own = Colour.of(raw, form[0] if self._orientation.swap else form[1], self.pixel_aspect)
            if form not in self._other_formats:
                # Broadcasts and joined clips do so; FFmpeg's command line scales them too.
                self._other_formats.add(form)
                log.warning(
                    "%s changes on the way from %d x %d (%s) to %d x %d (%s):"
                    " brought to the first size and colours",
                    *(quote_path(self.path), *self._format, *form),
                )
        try:
            return from_raw(raw, size, self._orientation, self._colour, own)
        except av.FFmpegError as error:
            raise MediaError(
                f"{quote_path(self.path)} has pictures that can't be converted ({raw.format.name}:"
                f" {error.strerror}): give it as yuv420p"
            ) from error


def first_frame_time(path: Path | str, limits: Limits = DEFAULT_LIMITS) -> Fraction:
    """Return when a clip's first picture is shown, in seconds of the file's own time."""
    info = _probe(Path(path), limits)
    return ticks(info.raw) * info.unit


def _probe(path: Path, limits: Limits) -> _StreamInfo:
    with open_media(path, limits) as container:
        stream = picture_stream(container, path)
        codec, still = stream.codec_context.codec.canonical_name, is_image(container)
        seconds = None if container.duration is None else container.duration / 1e6
        if seconds is not None and not still and not clock_restarts(container):
            limits.check_seconds(quote_path(path), seconds)
        quiet = Damage(path, logging.DEBUG)  # a later read logs it as a warning
        raw = next(decode_stream(container, stream, quiet), None)
        if raw is None:
            raise MediaError(
                f"{quote_path(path)} ({codec}) holds no frame that can be decoded, or only larger"
                f" ones than {limits.max_pixels} px: give a clip that a player shows"
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
