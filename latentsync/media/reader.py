"""Frames of a clip or of a still picture, upright, at a constant rate."""

from __future__ import annotations  # PyAV's Packet is generic for type checkers only

import logging
import math
import re
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from functools import partial
from itertools import chain, dropwhile
from pathlib import Path
from typing import NamedTuple, Self

import av
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame as RawFrame
from av.video.stream import VideoStream

from latentsync.errors import MediaError
from latentsync.media.container import (
    decode,
    demux,
    is_image,
    open_media,
    shown,
    video_stream,
)
from latentsync.media.frame import Colour, Orientation, VideoFrame, from_raw
from latentsync.types import VideoInfo

__all__ = ["VideoReader"]

logger = logging.getLogger(__name__)

_KEPT_BYTES = 48 * 2**20  # of YUV, kept so that a clip can be played backwards in short runs
_KEPT_FRAMES = 16  # at least, however large they are
_SEEK_FRAMES = 250  # a jump ahead by more than this seeks, where a shorter one decodes through
_SEEK_BACK_SECONDS = (0, 1, 4, 16, 64)  # tried in turn until a key frame before the target is met


class _Span(NamedTuple):
    """A source frame and the indices [start, stop) of the constant-rate clip that show it."""

    start: int
    stop: int
    raw: RawFrame


class _Kept(NamedTuple):
    start: int
    stop: int
    frame: VideoFrame


class VideoReader:
    """A clip as upright 8-bit 4:2:0 frames at a constant rate; a still picture is one held frame.

    The file is told by its content, never by its suffix. Index n of the constant-rate clip shows
    the last source frame whose time, counted from the first frame and rounded to 1 / fps, is not
    after n, as FFmpeg's `fps` filter has it; it is the same frame however it was reached.
    Nothing stays open between calls. Raises MediaError when no frame can be decoded.
    """

    def __init__(self, path: Path | str, *, fps: Fraction = Fraction(25)) -> None:
        self.path = Path(path)
        self._fps = fps
        with open_media(self.path) as container:
            stream = _picture_stream(container, self.path)
            raw = next(_Decoder.frames_of(demux(container, stream)), None)
            if raw is None:
                raise MediaError(
                    f"{shown(self.path)} ({stream.codec_context.codec.canonical_name}) holds no"
                    " frame that can be decoded: give a clip that a player shows"
                )
            self._origin = _ticks(raw) or 0
            self._orientation = Orientation.of(raw)
            self.info = self._describe(container, stream, raw)
            aspect = stream.sample_aspect_ratio or Fraction(1)
        aspect = 1 / aspect if self._orientation.swap else aspect
        self._colour = Colour.of(raw, self.info.height, aspect)
        self._still = self._upright(raw) if self.info.is_image else None

    def _describe(
        self, container: av.container.InputContainer, stream: VideoStream, raw: RawFrame
    ) -> VideoInfo:
        still = is_image(container)
        duration = container.duration
        width, height = raw.width, raw.height
        if self._orientation.swap:
            width, height = height, width
        return VideoInfo(
            path=self.path,
            width=width,
            height=height,
            fps=self._fps,
            source_fps=None if still else stream.average_rate,
            duration_seconds=None if still or duration is None else duration / 1e6,
            codec=stream.codec_context.codec.canonical_name,
            pixel_format=raw.format.name,
            is_image=still,
        )

    def frames(self, indices: Iterable[int] | None = None) -> Iterator[VideoFrame]:
        """Every frame in order, or those at `indices`, in that order; 0 is the first.

        Ascending indices stream; descending ones are decoded by seeking in short runs, of which
        a fixed number of bytes is kept. An index outside the clip is an IndexError.
        """
        if self._still is not None:
            still = self._still
            yield from [still] if indices is None else (still for _ in indices)
        elif indices is None:
            with _Decoder(self.path, self._fps, self._origin) as decoder:
                stop = 0
                for start, stop, raw in decoder.spans():
                    frame = self._upright(raw)
                    yield from (frame for _ in range(start, stop))
                decoder.check_end(stop)
        else:
            yield from self._picked(indices)

    def _picked(self, indices: Iterable[int]) -> Iterator[VideoFrame]:
        room = max(_KEPT_FRAMES, _KEPT_BYTES // (self.info.width * self.info.height * 3 // 2))
        kept: deque[_Kept] = deque(maxlen=room)
        with _Decoder(self.path, self._fps, self._origin) as decoder:
            spans = decoder.spans()
            for index in indices:
                if index < 0:
                    raise IndexError(f"frames count from 0, not {index}")
                first = kept[0].start if kept else 0
                last = kept[-1].stop if kept else 0
                if index < first or index > last + _SEEK_FRAMES:
                    kept.clear()
                    spans = decoder.spans_from(index - room + 1 if index < first else index)
                while not kept or kept[-1].stop <= index:
                    span = next(spans, None)
                    if span is None:
                        raise IndexError(f"no frame {index} in {shown(self.path)}")
                    kept.append(_Kept(span.start, span.stop, self._upright(span.raw)))
                yield next(k.frame for k in reversed(kept) if k.start <= index)

    def _upright(self, raw: RawFrame) -> VideoFrame:
        size = self.info.width, self.info.height
        return from_raw(raw, size, self._orientation, self._colour)


class _Decoder:
    """One open clip, read forward from a place of one's choice."""

    def __init__(self, path: Path, fps: Fraction, origin: int) -> None:
        self._path, self._fps, self._origin = path, fps, origin
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _open(self) -> None:
        self._container = open_media(self._path)
        self._stream = _picture_stream(self._container, self._path)
        self._stream.thread_type = "AUTO"
        self._step = (self._stream.time_base or Fraction(1, 1000)) * self._fps  # frames per tick

    def spans(self) -> Iterator[_Span]:
        """All spans from the start."""
        return self._spans(self.frames_of(demux(self._container, self._stream)))

    def check_end(self, stop: int) -> None:
        """Log it when the file claims to go on for a second or more after index `stop`."""
        claimed, unit = self._stream.duration, self._stream.time_base
        if claimed is not None and unit is not None:
            seconds = float(claimed * unit)
        elif match := re.fullmatch(
            r"(\d+):(\d+):([\d.]+)", self._stream.metadata.get("DURATION", "")
        ):
            seconds = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])  # Matroska
        else:
            return
        if seconds > float(stop / self._fps) + 1:
            logger.warning(
                "%s claims %.1f s of pictures but holds %.1f s: it may be damaged or cut short",
                *(shown(self._path), seconds, float(stop / self._fps)),
            )

    def spans_from(self, index: int) -> Iterator[_Span]:
        """Spans from the one that shows `index` on, the very ones that `spans` would give."""
        index = max(index, 0)
        frames = self._frames_from(index)
        if frames is None:
            self._container.close()
            self._open()
            frames = self.frames_of(demux(self._container, self._stream))
        return (span for span in self._spans(frames) if span.stop > index)

    def _frames_from(self, index: int) -> Iterator[RawFrame] | None:
        """Frames from a key frame on that is shown at or before `index`.

        None where the file has to be read from its start.
        """
        target = self._origin + int(index / self._step)
        for seconds in _SEEK_BACK_SECONDS:
            offset = target - int(seconds * self._fps / self._step)
            if offset <= self._origin:
                return None
            try:
                self._container.seek(offset, stream=self._stream)
            except av.FFmpegError:
                return None
            packets = demux(self._container, self._stream)
            key = next(packets)
            start = key.pts if key.pts is not None else key.dts
            if not key.is_keyframe or start is None or self._index(start) > index:
                continue
            # Pictures shown before the key frame lean on others that were not decoded (open GOP);
            # a stream that refreshes bit by bit has no whole picture at its "key frame" at all.
            frames = dropwhile(partial(_before, start), self.frames_of(chain([key], packets)))
            first = next(frames, None)
            if first is not None and first.key_frame and _ticks(first) == start:
                return chain([first], frames)
        return None

    @staticmethod
    def frames_of(packets: Iterable[Packet[Stream]]) -> Iterator[RawFrame]:
        for packet in packets:
            yield from decode(packet, RawFrame)

    def _index(self, ticks: int) -> int:
        """The index at which a time falls, rounded half up."""
        return math.floor((ticks - self._origin) * self._step + Fraction(1, 2))

    def _spans(self, frames: Iterator[RawFrame]) -> Iterator[_Span]:
        shown_from, held, end = 0, None, 0
        for raw in frames:
            ticks = _ticks(raw)
            at = end if ticks is None else self._index(ticks)
            if held is not None and at > shown_from:
                yield _Span(shown_from, at, held)
            shown_from = at if held is None else max(at, shown_from)
            held = raw
            end = self._end(raw, shown_from)
        if held is not None and (end > shown_from or shown_from == 0):
            yield _Span(shown_from, max(end, shown_from + 1), held)

    def _end(self, raw: RawFrame, at: int) -> int:
        """The index at which a frame's own time is over."""
        ticks = _ticks(raw)
        if raw.duration and ticks is not None:
            return self._index(ticks + raw.duration)
        rate = self._stream.average_rate or self._fps
        return at + round(self._fps / rate)


def _picture_stream(container: av.container.InputContainer, path: Path) -> VideoStream:
    stream = video_stream(container)
    if stream is None:
        raise MediaError(f"{shown(path)} holds no pictures: give a video or a still picture")
    return stream


def _ticks(raw: RawFrame) -> int | None:
    """A frame's time in its stream's unit; files without presentation times have decoding ones."""
    return raw.pts if raw.pts is not None else raw.dts


def _before(start: int, raw: RawFrame) -> bool:
    ticks = _ticks(raw)
    return ticks is not None and ticks < start
