"""Decoding of one clip from any position: which frame is shown when."""

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
from itertools import chain
from pathlib import Path
from typing import NamedTuple

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
from latentsync.media.filters import pull_frames, video_graph
from latentsync.media.limits import Limits
from latentsync.media.timestamps import Continuity, SeekMap, best_effort, clock_restarts

__all__ = ["Decoder", "FrameClock", "FrameCounts", "FrameSpan"]
__all__ += ["decode_stream", "deinterlace", "frame_format", "picture_stream", "ticks"]

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
    shown: int = 0  # at the requested rate
    behind: int = 0  # frames that are not later than the frame before

    def add(self, *, shown: bool, rising: bool = True) -> bool:
        """Count a frame and return `shown`; `rising`: the next frame is later."""
        self.decoded += 1
        self.shown += shown
        self.behind += not rising
        return shown


class FrameClock:
    """Maps times, in the stream's ticks, to frame indices and back.

    Index n is n / fps after the first frame, times rounded to it half up. Or, given the rising
    `times` of all frames, the n-th source frame.
    """

    def __init__(
        self,
        origin: int,
        frames_per_tick: Fraction,
        default_step: int,
        times: array[int] | None = None,
    ) -> None:
        self._origin, self._frames_per_tick, self._times = origin, frames_per_tick, times
        self._default_step = default_step  # indices of a frame without a duration

    def index(self, at: int) -> int:
        """Return the index that a time falls on."""
        if self._times is not None:
            return bisect_right(self._times, at) - 1
        return math.floor((at - self._origin) * self._frames_per_tick + Fraction(1, 2))

    def ticks(self, index: int) -> int:
        """Return a time at or before which an index begins."""
        if self._times is not None:
            return self._times[min(index, len(self._times) - 1)]
        return self._origin + int(index / self._frames_per_tick)

    def end(self, index: int, raw: RawFrame) -> int:
        """Return the index after a frame that is shown from `index` on, by its duration."""
        if self._times is not None:
            return index + 1
        if not raw.duration:
            return index + self._default_step
        return self.index(ticks(raw) + raw.duration)


class Decoder:
    """Frames of a clip as decoded, deinterlaced; `origin` is the first frame's time in ticks.

    `damage` logs what is wrong with the clip; `seek_map` is shared by all decoders of the clip.
    Raises MediaError, also while reading, when the clip holds more than `limits` allows.
    """

    def __init__(
        self, path: Path, origin: int, limits: Limits, damage: Damage, seek_map: SeekMap
    ) -> None:
        self._path, self._origin, self._limits, self._damage = path, origin, limits, damage
        self._map = seek_map
        self.counts = FrameCounts()
        self._open()

    def _open(self) -> None:
        self._container = open_media(self._path, self._limits)
        self._stream = picture_stream(self._container, self._path)
        # Frame threads are faster, but then it is chance whether a frame is marked as damaged, and
        # recorded broadcasts often are damaged.
        broadcast = self._container.format.name in _BROADCAST_FORMATS
        self._stream.thread_type = "SLICE" if broadcast else "AUTO"
        self.unit = self._stream.time_base or Fraction(1, 1000)  # s per tick
        self._continuity = Continuity(self._container, self._stream, self._map)
        self._crop = read_crop(self._container, self._stream)

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def clock(self, fps: Fraction, times: array[int] | None = None) -> FrameClock:
        """Make the clock of a constant rate, or, given all times, of the source frames."""
        step = round(fps / (frame_rate(self._stream) or fps))
        return FrameClock(self._origin, self.unit * fps, step, times)

    def timed(self) -> Iterator[tuple[int, RawFrame]]:
        """Decode every source frame with its time in ticks, rising.

        Of several frames at the same time the last one is kept.
        """
        held: tuple[int, RawFrame] | None = None
        for raw in self._frames():
            at = ticks(raw)
            if held is not None:
                if self.counts.add(shown=at > held[0], rising=at > held[0]):
                    yield held
                at = max(at, held[0])
            held = at, raw
        if held is not None:
            self.counts.add(shown=True)
            yield held

    def spans(self, clock: FrameClock) -> Iterator[FrameSpan]:
        """Decode all spans from the start."""
        return self._spans(clock, self._frames())

    def _spans(self, clock: FrameClock, frames: Iterator[RawFrame]) -> Iterator[FrameSpan]:
        start, held, end = 0, None, 0
        for raw in frames:
            at = clock.index(ticks(raw))
            if held is not None:
                if self.counts.add(shown=at > start, rising=ticks(raw) > ticks(held)):
                    yield FrameSpan(start, at, held)
                at = max(at, start)
            start, held, end = at, raw, clock.end(at, raw)
        if held is not None and self.counts.add(shown=end > start or start == 0):
            yield FrameSpan(start, max(end, start + 1), held)

    def spans_from(self, clock: FrameClock, index: int) -> Iterator[FrameSpan]:
        """Decode spans from the one that shows `index` on, the same as `spans` gives."""
        index = max(index, 0)
        frames = self._frames_from(clock, index)
        if frames is None:
            self._container.close()
            self._open()
            frames = self._frames()
        return (span for span in self._spans(clock, frames) if span.stop > index)

    def check_end(self, seconds: float) -> None:
        """Warn if the file claims to last a second or more longer than `seconds`."""
        claimed = self._stream.duration
        if clock_restarts(self._container):
            return
        if claimed is not None:
            whole = float(claimed * self.unit)
        elif match := re.fullmatch(
            r"(\d+):(\d+):([\d.]+)", self._stream.metadata.get("DURATION", "")
        ):
            # Matroska's, which FFmpeg counts from the start of the file, not of the stream.
            end = int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
            whole = end - float(self._origin * self.unit)
        else:
            return
        if whole > seconds + 1:
            log.warning(
                "%s claims %.1f s of pictures but holds %.1f s: it may be damaged or cut short",
                *(quote_path(self._path), whole, seconds),
            )

    def _frames(self) -> Iterator[RawFrame]:
        """Decode from the current position on, deinterlaced."""
        packets = demux(self._container, self._stream, self._damage, self._continuity)
        return deinterlace(self._timed(packets, self._damage))

    def _timed(
        self,
        packets: Iterable[Packet[Stream]],
        damage: Damage | None = None,
        *,
        by_dts: bool = False,
    ) -> Iterator[RawFrame]:
        """Decode packets to frames with times, none later than the limit."""
        decoded = _decode_packets(packets, damage, self._crop)
        for raw in best_effort(decoded, self._stream, self._map, by_dts=by_dts):
            seconds = float((ticks(raw) + raw.duration - self._origin) * self.unit)
            self._limits.check_seconds(quote_path(self._path), seconds)
            yield raw

    def _frames_from(self, clock: FrameClock, index: int) -> Iterator[RawFrame] | None:
        """Seek, and decode from a frame on that is shown at or before `index`.

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
            packets = demux(self._container, self._stream, self._damage, self._continuity)
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


def _frames_after_key(timed: Iterator[RawFrame], start: int | None) -> Iterator[RawFrame]:
    """Pass on the frames from a key frame on that decode as if read from the file's start.

    `start` is its pts; None where its time is known only after decoding.
    """
    # Leading pictures of an open GOP refer to frames that were not decoded, and a stream with
    # gradual refresh has no whole picture at its "key frame". Neither is damage, so none is logged.
    key = None
    for count, raw in enumerate(timed):
        leading = not raw.key_frame and count < _MAX_LEADING_FRAMES
        if not (leading if start is None else ticks(raw) < start):
            key = raw
            break
    if key is None or not key.key_frame or (start is not None and ticks(key) != start):
        return
    frames = deinterlace(chain([key], timed))
    if _is_interlaced(key):  # deinterlacing it takes the frame before it
        next(frames, None)
    yield from frames


def decode_stream(
    container: InputContainer, stream: VideoStream, damage: Damage
) -> Iterator[RawFrame]:
    """Decode a stream's good frames as they are in the file, each with its time as its pts."""
    packets = demux(container, stream, damage)
    crop = read_crop(container, stream)
    return best_effort(_decode_packets(packets, damage, crop), stream)


def _decode_packets(
    packets: Iterable[Packet[Stream]], damage: Damage | None, crop: Crop | None
) -> Iterator[RawFrame]:
    raws = (raw for packet in packets for raw in decode(packet, RawFrame, damage))
    return raws if crop is None else crop_frames(raws, crop)


def deinterlace(raws: Iterable[RawFrame]) -> Iterator[RawFrame]:
    """Pass frames on, those marked as interlaced deinterlaced, one for one, at their times.

    FFmpeg's bwdif uses the frames before and after and no others, so a frame's result doesn't
    depend on where reading began, as long as the frame before it, of any kind, went in too.
    """
    graph: Graph | None = None
    waiting: deque[RawFrame | None] = deque()  # frames in the graph; None: its output is dropped
    last, form = None, None
    for raw in raws:
        if graph is not None and form != frame_format(raw):
            yield from _push(graph, waiting, None)
            graph, last = None, None
        if graph is None and _is_interlaced(raw):
            graph, form = video_graph(raw, ("bwdif", "mode=send_frame")), frame_format(raw)
            if last is not None and frame_format(last) == form:
                waiting.append(None)
                graph.push(last)
        last = raw
        if graph is None:
            yield raw
        else:
            waiting.append(raw)
            yield from _push(graph, waiting, raw)
    if graph is not None:
        yield from _push(graph, waiting, None)


def _push(
    graph: Graph, waiting: deque[RawFrame | None], raw: RawFrame | None
) -> Iterator[RawFrame]:
    """Push a frame into a deinterlacer, None at the end, and take those that are ready."""
    graph.push(raw)
    for made in pull_frames(graph, RawFrame):
        source = waiting.popleft()
        if source is not None:
            made.pts, made.dts, made.duration = source.pts, source.dts, source.duration
            yield made if _is_interlaced(source) else source


def _is_interlaced(raw: RawFrame) -> bool:
    """Whether a frame is marked as interlaced, at a size that bwdif takes."""
    return bool(raw.interlaced_frame) and min(raw.width, raw.height) >= _MIN_DEINTERLACED_PX


def frame_format(raw: RawFrame) -> tuple[int, int, str]:
    """Return width, height and pixel format."""
    return raw.width, raw.height, raw.format.name


def picture_stream(container: InputContainer, path: Path) -> VideoStream:
    """Return the stream with the pictures; MediaError when there is none."""
    stream = video_stream(container)
    if stream is None:
        raise MediaError(f"{quote_path(path)} holds no pictures: give a video or a still picture")
    return stream


def ticks(raw: RawFrame) -> int:
    """Return a frame's time in its stream's unit, after `best_effort`."""
    assert raw.pts is not None
    return raw.pts
