"""One open clip, read forward from a place of one's choice: which picture is shown when."""

from __future__ import annotations  # PyAV's Packet is generic for type checkers only

import logging
import math
import re
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import NamedTuple, Protocol, Self

import av
from av.container import InputContainer
from av.filter import Graph
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame as RawFrame
from av.video.stream import VideoStream

from latentsync.errors import MediaError
from latentsync.media.container import (
    Damage,
    decode,
    demux,
    frame_rate,
    open_media,
    quote_path,
    video_stream,
)
from latentsync.media.crop import Crop, crop_frames, read_crop
from latentsync.media.limits import Limits
from latentsync.media.timestamps import Continuity, SeekMap, best_effort, clock_restarts

__all__ = [
    "Clock",
    "ConstantRate",
    "Decoder",
    "EachFrame",
    "FrameCounts",
    "FrameSpan",
    "decode_stream",
    "frame_format",
    "picture_stream",
    "progressive",
    "ticks",
]

log = logging.getLogger(__name__)

_BROADCAST_FORMATS = ("mpegts", "mpeg")
_MIN_DEINTERLACED_PX = 16  # bwdif refuses planes of fewer than 4 rows; chroma may have a quarter
_MAX_LEADING_FRAMES = 32  # frames shown before a key frame that refer to frames before it
_SEEK_BACK_SECONDS = (0, 1, 4, 16, 64)  # tried in turn, until a key frame before the target is met


class FrameSpan(NamedTuple):
    """A source frame and the indices [start, stop) that show it."""

    start: int
    stop: int
    raw: RawFrame


@dataclass
class FrameCounts:
    """What became of the frames decoded so far."""

    decoded: int = 0
    shown: int = 0  # at the rate that was asked for
    behind: int = 0  # whose time is not after that of the frame before

    def add(self, *, shown: bool, rising: bool = True) -> bool:
        """Count a frame, shown or replaced by the next one, `rising` if that is later; `shown`."""
        self.decoded += 1
        self.shown += shown
        self.behind += not rising
        return shown


class Clock(Protocol):
    """What an index means: which one a time (in the stream's ticks) falls on, and back."""

    def index(self, at: int) -> int: ...

    def ticks(self, index: int) -> int:
        """A time at or before which `index` begins."""

    def after(self, index: int, end: int | None) -> int:
        """The index after a frame shown from `index` on, whose own time is over at `end`."""


class ConstantRate:
    """Index n is n / fps after the first frame; times are rounded to it half up."""

    def __init__(self, origin: int, unit: Fraction, fps: Fraction, source_fps: Fraction) -> None:
        self._origin, self._step = origin, unit * fps  # frames per tick
        self._usual = round(fps / source_fps)  # indices of a frame that doesn't say how long it is

    def index(self, at: int) -> int:
        return math.floor((at - self._origin) * self._step + Fraction(1, 2))

    def ticks(self, index: int) -> int:
        return self._origin + int(index / self._step)

    def after(self, index: int, end: int | None) -> int:
        return index + self._usual if end is None else self.index(end)


class EachFrame:
    """Index n is the n-th source frame; `times` are those of all frames, in ticks, rising."""

    def __init__(self, times: array[int]) -> None:
        self._times = times

    def index(self, at: int) -> int:
        return bisect_right(self._times, at) - 1

    def ticks(self, index: int) -> int:
        return self._times[min(index, len(self._times) - 1)]

    def after(self, index: int, end: int | None) -> int:  # noqa: ARG002 - a Clock
        return index + 1


class Decoder:
    """Frames of a clip as decoded, made progressive; `origin` is the first one's time in ticks.

    `damage` tells what is wrong with the clip, `seek_map` is the clip's, for all its decoders.
    Raises MediaError, also while reading, when the clip holds more than `limits` allows.
    """

    def __init__(
        self, path: Path, origin: int, limits: Limits, damage: Damage, seek_map: SeekMap
    ) -> None:
        self._path, self._origin, self._limits, self._damage = path, origin, limits, damage
        self._map = seek_map
        self.tally = FrameCounts()
        self._open()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._container.close()

    def _open(self) -> None:
        self._container = open_media(self._path, self._limits)
        self._stream = picture_stream(self._container, self._path)
        # Decoding several frames at once is faster, but it is chance then whether a picture is told
        # to be damaged; recorded broadcasts often are.
        broadcast = self._container.format.name in _BROADCAST_FORMATS
        self._stream.thread_type = "SLICE" if broadcast else "AUTO"
        self.unit = self._stream.time_base or Fraction(1, 1000)  # s per tick
        self._continuity = Continuity(self._container, self._stream, self._map)
        self._crop = read_crop(self._container, self._stream)

    def constant_rate(self, fps: Fraction) -> ConstantRate:
        return ConstantRate(self._origin, self.unit, fps, frame_rate(self._stream) or fps)

    def timed(self) -> Iterator[tuple[int, RawFrame]]:
        """Every source frame with its time in ticks, rising; of frames of one time the last."""
        held: tuple[int, RawFrame] | None = None
        for raw in self._frames(self._packets()):
            at = ticks(raw)
            if held is not None:
                if self.tally.add(shown=at > held[0], rising=at > held[0]):
                    yield held
                at = max(at, held[0])
            held = at, raw
        if held is not None:
            self.tally.add(shown=True)
            yield held

    def spans(self, clock: Clock) -> Iterator[FrameSpan]:
        """All spans from the start."""
        return self._spans(clock, self._frames(self._packets()))

    def spans_from(self, clock: Clock, index: int) -> Iterator[FrameSpan]:
        """Spans from the one that shows `index` on, the very ones that `spans` would give."""
        index = max(index, 0)
        frames = self._frames_from(clock, index)
        if frames is None:
            self._container.close()
            self._open()
            frames = self._frames(self._packets())
        return (span for span in self._spans(clock, frames) if span.stop > index)

    def check_end(self, seconds: float) -> None:
        """Log it when the file claims to go on for a second or more after `seconds`."""
        claimed = self._stream.duration
        if clock_restarts(self._container):
            return
        if claimed is not None:
            whole = float(claimed * self.unit)
        elif match := re.fullmatch(
            r"(\d+):(\d+):([\d.]+)", self._stream.metadata.get("DURATION", "")
        ):
            # Matroska's, which as FFmpeg writes it counts from the file's start, not the stream's.
            end = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
            whole = end - float(self._origin * self.unit)
        else:
            return
        if whole > seconds + 1:
            log.warning(
                "%s claims %.1f s of pictures but holds %.1f s: it may be damaged or cut short",
                *(quote_path(self._path), whole, seconds),
            )

    def _packets(self) -> Iterator[Packet[Stream]]:
        return demux(self._container, self._stream, self._damage, self._continuity)

    def _frames(self, packets: Iterable[Packet[Stream]]) -> Iterator[RawFrame]:
        return progressive(self._timed(packets, self._damage))

    def _timed(
        self,
        packets: Iterable[Packet[Stream]],
        damage: Damage | None = None,
        *,
        by_dts: bool = False,
    ) -> Iterator[RawFrame]:
        """The frames of packets, each with its time; none is further away than is allowed."""
        decoded = _decoded(packets, damage, self._crop)
        for raw in best_effort(decoded, self._stream, self._map, by_dts=by_dts):
            seconds = float((ticks(raw) + raw.duration - self._origin) * self.unit)
            self._limits.check_seconds(quote_path(self._path), seconds)
            yield raw

    def _frames_from(self, clock: Clock, index: int) -> Iterator[RawFrame] | None:
        """Frames from one on that is shown at or before `index`.

        None where the file has to be read from its start.
        """
        target, by_dts_from = clock.ticks(index), self._map.by_dts_from
        for seconds in _SEEK_BACK_SECONDS:
            offset = target - int(seconds / self.unit)
            if offset <= self._origin:
                return None
            try:
                self._container.seek(self._continuity.as_stored(offset), stream=self._stream)
            except av.FFmpegError:
                return None
            self._continuity = Continuity(self._container, self._stream, self._map, sought=True)
            packets = self._packets()
            # MPEG-TS and MPEG-PS are sought by time alone, which is seldom a key frame's.
            key = next(packet for packet in packets if packet.is_keyframe or not packet.size)
            start = key.pts if key.pts is not None else key.dts
            if start is None or clock.index(start) > index or not self._continuity.covers(key):
                continue
            by_dts = by_dts_from is not None and start >= by_dts_from
            timed = self._timed(chain([key], packets), by_dts=by_dts)
            frames = _frames_after_key(timed, None if by_dts else key.pts)
            first = next(frames, None)
            if first is not None and clock.index(ticks(first)) <= index:
                return chain([first], frames)
        return None

    def _spans(self, clock: Clock, frames: Iterator[RawFrame]) -> Iterator[FrameSpan]:
        shown_from, held, end = 0, None, 0
        for raw in frames:
            at = clock.index(ticks(raw))
            if held is not None:
                if self.tally.add(shown=at > shown_from, rising=ticks(raw) > ticks(held)):
                    yield FrameSpan(shown_from, at, held)
                at = max(at, shown_from)
            shown_from, held = at, raw
            end = clock.after(shown_from, _end(raw))
        if held is not None and self.tally.add(shown=end > shown_from or shown_from == 0):
            yield FrameSpan(shown_from, max(end, shown_from + 1), held)


def _frames_after_key(timed: Iterator[RawFrame], start: int | None) -> Iterator[RawFrame]:
    """The frames from a key frame on that look as if read from the file's start.

    `start` is its pts; None where only what the decoder makes of it tells its time.
    """
    # Pictures shown before the key frame lean on others that were not decoded (open GOP);
    # a stream that refreshes bit by bit has no whole picture at its "key frame" at all.
    # Neither is damage, so it isn't told.
    if start is None:
        leading = islice(timed, _MAX_LEADING_FRAMES)
        raws = chain(dropwhile(lambda raw: not raw.key_frame, leading), timed)
    else:
        raws = chain(dropwhile(partial(_before, start), timed))
    key = next(raws, None)
    if key is None or not key.key_frame or (start is not None and ticks(key) != start):
        return
    lacks_its_past = _is_interlaced(key)
    frames = progressive(chain([key], raws))
    if lacks_its_past:
        next(frames, None)
    yield from frames


def decode_stream(
    container: InputContainer, stream: VideoStream, damage: Damage
) -> Iterator[RawFrame]:
    """A stream's good frames, as they are in the file, each with its time as its pts."""
    packets = demux(container, stream, damage)
    return best_effort(_decoded(packets, damage, read_crop(container, stream)), stream)


def _decoded(
    packets: Iterable[Packet[Stream]], damage: Damage | None, crop: Crop | None
) -> Iterator[RawFrame]:
    raws = (raw for packet in packets for raw in decode(packet, RawFrame, damage))
    return raws if crop is None else crop_frames(raws, crop)


def progressive(raws: Iterable[RawFrame]) -> Iterator[RawFrame]:
    """The same frames; those flagged as interlaced are made whole, one for one, at their times.

    FFmpeg's bwdif looks one frame back and one ahead and nowhere else, so a frame comes out the
    same wherever reading began, if only the one before it went in too, whatever kind it is.
    """
    graph: Graph | None = None
    waiting: deque[RawFrame | None] = deque()  # frames in the graph; None for one not wanted back
    last, form = None, None
    for raw in raws:
        if graph is not None and form != frame_format(raw):
            yield from _deinterlace(graph, waiting, None)
            graph, last = None, None
        if graph is None and _is_interlaced(raw):
            graph, form = _bwdif(raw), frame_format(raw)
            if last is not None and frame_format(last) == form:
                waiting.append(None)
                graph.push(last)
        last = raw
        if graph is None:
            yield raw
        else:
            waiting.append(raw)
            yield from _deinterlace(graph, waiting, raw)
    if graph is not None:
        yield from _deinterlace(graph, waiting, None)


def _deinterlace(
    graph: Graph, waiting: deque[RawFrame | None], pushed: RawFrame | None
) -> Iterator[RawFrame]:
    graph.push(pushed)
    while True:
        try:
            made = graph.vpull()
        except (av.BlockingIOError, av.EOFError):
            return
        source = waiting.popleft()
        if source is None:
            continue
        made.pts, made.dts, made.duration = source.pts, source.dts, source.duration
        yield made if _is_interlaced(source) else source


def _is_interlaced(raw: RawFrame) -> bool:
    """Whether two fields make up the picture, at a size that bwdif takes."""
    return bool(raw.interlaced_frame) and min(raw.width, raw.height) >= _MIN_DEINTERLACED_PX


def _bwdif(raw: RawFrame) -> Graph:
    graph = Graph()
    graph.link_nodes(
        graph.add_buffer(
            width=raw.width,
            height=raw.height,
            format=raw.format,
            time_base=raw.time_base or Fraction(1, 1000),
        ),
        graph.add("bwdif", "mode=send_frame"),
        graph.add("buffersink"),
    ).configure()
    return graph


def frame_format(raw: RawFrame) -> tuple[int, int, str]:
    return raw.width, raw.height, raw.format.name


def picture_stream(container: InputContainer, path: Path) -> VideoStream:
    """The stream with the pictures; MediaError when there is none."""
    stream = video_stream(container)
    if stream is None:
        raise MediaError(f"{quote_path(path)} holds no pictures: give a video or a still picture")
    return stream


def ticks(raw: RawFrame) -> int:
    """A frame's time in its stream's unit, after `best_effort`."""
    assert raw.pts is not None
    return raw.pts


def _end(raw: RawFrame) -> int | None:
    """When a frame's own time is over, in its stream's unit, where the file says."""
    return ticks(raw) + raw.duration if raw.duration else None


def _before(start: int, raw: RawFrame) -> bool:
    return ticks(raw) < start
