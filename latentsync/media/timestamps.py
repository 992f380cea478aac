"""Time stamps as FFmpeg's command line reads them, for pictures and sound alike.

    packets ->  Continuity   closes jumps of the file's clock, by one offset for all streams
    frames  ->  best_effort  gives each a time: its pts, its dts where pts are wrong, or the next

The rules and their limits are those of `fftools/ffmpeg_demux.c` (ts_discontinuity_process) and
`libavcodec/decode.c` (guess_correct_pts). A `SeekMap` remembers what reading in order found, so
that a frame has the same time after seeking.
"""

from __future__ import annotations  # PyAV's Packet is generic for type checkers only

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import cast

from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame as RawFrame
from av.video.stream import VideoStream

__all__ = ["Continuity", "SeekMap", "best_effort", "clock_restarts"]

_TS_DISCONT = 0x200  # AVFMT_TS_DISCONT, libavformat/avformat.h
_US_PER_SECOND = 1_000_000  # FFmpeg computes discontinuities in µs
_MAX_STEP_US = 10 * _US_PER_SECOND  # -dts_delta_threshold: a larger step of the clock is a jump,
_MAX_FALL_US = _US_PER_SECOND // 10  # and so is a step back by more than this
_MAX_ERROR_US = 30 * 3600 * _US_PER_SECOND  # -dts_error_threshold, for formats without jumps
_MAX_TIME_US = 2**60  # larger time stamps are damaged; arithmetic with them would overflow


def clock_restarts(container: InputContainer) -> bool:
    """Whether a format's clock may restart within a file, as in MPEG-TS, MPEG-PS and Ogg.

    Then the first and the last time stamp don't tell the file's duration.
    """
    return bool(container.format.flags & _TS_DISCONT)


class SeekMap:
    """What reading one clip's pictures in order found out about its time stamps."""

    def __init__(self) -> None:
        self.by_dts_from: int | None = None  # ticks; from here on pts were seen to fall
        self._read_to = -1  # byte up to which the offsets are known
        self._places: list[int] = []  # byte from which an offset holds, rising
        self._times: list[int] = []  # dts there, with the offset; ticks
        self._offsets: list[int] = []  # µs

    def learn(self, place: int, time: int, offset: int) -> None:
        """Remember the dts in ticks of the packet at byte `place`, with `offset` added."""
        if place <= self._read_to:
            return
        self._read_to = place
        if not self._offsets or offset != self._offsets[-1]:
            self._places.append(place)
            self._times.append(time)
            self._offsets.append(offset)

    def offset_at(self, place: int) -> int | None:
        """Return the offset, in µs, of the packet at a byte; None if it hasn't been read."""
        if place > self._read_to:
            return None
        return self._offsets[max(0, bisect_right(self._places, place) - 1)]

    def offset_before(self, time: int) -> int:
        """Return the offset, in µs, at a time in ticks."""
        before = bisect_right(self._times, time) - 1
        return self._offsets[max(0, before)] if self._offsets else 0


class _StreamClock:
    """The decoding time of one stream, in µs."""

    def __init__(self, stream: Stream) -> None:
        self._unit = (stream.time_base or Fraction(1, 1000)) * _US_PER_SECOND
        self.dts: int | None = None  # of the last packet
        self.due: int | None = None  # of the next one, if nothing is missing
        self._usual: int | None = None  # duration of a packet, where the stream has one
        if isinstance(stream, AudioStream) and stream.codec_context.sample_rate:
            context = stream.codec_context
            self._usual = (context.frame_size or 0) * _US_PER_SECOND // context.sample_rate
        rate = stream.average_rate if isinstance(stream, VideoStream) else None
        self._frame = round(_US_PER_SECOND / rate) if rate else 0

    def us(self, ticks: int) -> int:
        """Convert ticks to µs."""
        return round(ticks * self._unit)

    def ticks(self, us: int) -> int:
        """Convert µs to ticks."""
        return round(us / self._unit)

    def advance(self, packet: Packet[Stream]) -> None:
        """Advance to the end of a packet whose time stamps are correct."""
        if packet.dts is not None:
            self.dts = self.us(packet.dts)
        elif self.dts is None and packet.pts is not None:
            self.dts = self.us(packet.pts)
        else:
            self.dts = self.due
        if self.dts is not None:
            usual = self._frame if self._usual is None else self._usual
            if self._usual is None and packet.duration:
                usual = self.us(packet.duration)
            self.due = self.dts + usual


class Continuity:
    """Makes the time stamps of one open file continuous, as its packets are read in order.

    In a format whose clock may restart (MPEG-TS, MPEG-PS, Ogg), a jump is closed: what follows
    continues where the last packet ended. The pictures and the main sound decide together, and
    every stream gets the same offset, so they stay in sync. In other formats a time stamp more than
    30 hours off is dropped.
    """

    def __init__(
        self,
        container: InputContainer,
        wanted: Stream,
        seek_map: SeekMap | None = None,
        *,
        sought: bool = False,
    ) -> None:
        """Prepare to read `wanted` from the start, or, if `sought`, from a place in the map."""
        self.closes = clock_restarts(container)
        main = (container.streams.best("video"), container.streams.best("audio"))
        deciding = [one for one in main if one is not None] if self.closes else []
        self.streams = list({one.index: one for one in (*deciding, wanted)}.values())
        self._wanted = wanted.index
        self._clocks = {one.index: _StreamClock(one) for one in self.streams}
        self._map = seek_map
        self._by_map = sought  # whether the offset is taken from the map
        self._place = -1  # byte of the last packet of `wanted`
        self._offset = 0  # µs
        self.jumps = 0  # closed so far
        self._last: int | None = None  # dts of the last packet of any stream, µs

    def packets(self, container: InputContainer) -> Iterator[Packet[Stream]]:
        """Read the rest of the wanted stream's packets, then an empty one to flush."""
        for packet in container.demux(self.streams):
            if packet.size:
                self._correct(packet)
            if packet.stream.index == self._wanted:
                yield packet

    def covers(self, packet: Packet[Stream]) -> bool:
        """Whether a packet has the same time stamps as when the file is read in order."""
        if not self.closes:
            return True
        if self._map is None or packet.pos is None:
            return False
        return self._map.offset_at(packet.pos) is not None

    def as_stored(self, ticks: int) -> int:
        """Convert a time of the wanted stream, in ticks, back to the file's own."""
        offset = self._map.offset_before(ticks) if self._map else 0
        return ticks - self._clocks[self._wanted].ticks(offset)

    def _correct(self, packet: Packet[Stream]) -> None:
        """Drop impossible time stamps, and close jumps."""
        clock = self._clocks[packet.stream.index]
        _drop(packet, clock, 0, _MAX_TIME_US)
        if self.closes:
            if packet.stream.index == self._wanted:
                # Of several packets in one unit of the file only the first has a place.
                self._place = self._place + 1 if packet.pos is None else packet.pos
                if self._by_map and self._map is not None:
                    known = self._map.offset_at(self._place)
                    self._by_map = known is not None
                    self._offset = self._offset if known is None else known
            _move(packet, clock.ticks(self._offset))
            if packet.dts is not None:
                if not self._by_map:
                    self._close_jump(packet, clock)
                self._last = clock.us(packet.dts)
                if packet.stream.index == self._wanted and self._map and not self._by_map:
                    self._map.learn(self._place, packet.dts, self._offset)
        elif clock.due is not None:
            _drop(packet, clock, clock.due, _MAX_ERROR_US)
        clock.advance(packet)

    def _close_jump(self, packet: Packet[Stream], clock: _StreamClock) -> None:
        """Change the offset at a jump; a stream's first packet is compared with the others."""
        assert packet.dts is not None
        dts = clock.us(packet.dts)
        due = self._last if clock.due is None else clock.due
        if due is None:
            return
        fell = clock.due is not None and clock.dts is not None and dts + _MAX_FALL_US < clock.dts
        if abs(dts - due) > _MAX_STEP_US or fell:
            self._offset -= dts - due
            self.jumps += 1
            _move(packet, clock.ticks(due - dts))


def _move(packet: Packet[Stream], ticks: int) -> None:
    if ticks:
        packet.pts = None if packet.pts is None else packet.pts + ticks
        packet.dts = None if packet.dts is None else packet.dts + ticks


def _drop(packet: Packet[Stream], clock: _StreamClock, due: int, limit: int) -> None:
    """Drop time stamps that are further than `limit` from `due`, in µs."""
    if packet.pts is not None and abs(clock.us(packet.pts) - due) > limit:
        packet.pts = None
    if packet.dts is not None and abs(clock.us(packet.dts) - due) > limit:
        packet.dts = None


def best_effort(
    frames: Iterable[RawFrame],
    stream: VideoStream,
    seek_map: SeekMap | None = None,
    *,
    by_dts: bool = False,
) -> Iterator[RawFrame]:
    """Give each frame its time as its pts.

    The time is the pts, until pts have fallen more often than dts; from then on the dts, as in AVI
    with B-frames, whose pts are wrong. A frame without either begins where the frame before ends,
    the first at the file's start. `by_dts`: pts have fallen before these frames.
    """
    unit = stream.time_base or Fraction(1, 1000)
    usual = max(1, round(1 / stream.average_rate / unit)) if stream.average_rate else 1
    begins = cast(InputContainer, stream.container).start_time or 0
    due = round(Fraction(begins, _US_PER_SECOND) / unit)
    faults_of_pts, faults_of_dts = int(by_dts), 0
    last_pts = last_dts = None
    for frame in frames:
        pts, dts = frame.pts, frame.dts
        if dts is not None and last_dts is not None:
            faults_of_dts += dts <= last_dts
        if pts is not None and last_pts is not None:
            faults_of_pts += pts <= last_pts
        if pts is not None or dts is not None:
            last_pts = dts if pts is None else pts
            last_dts = pts if dts is None else dts
        falls = faults_of_pts > faults_of_dts
        at = dts if pts is None or falls else pts
        if at is None:
            at = due
        if falls and seek_map is not None and seek_map.by_dts_from is None:
            seek_map.by_dts_from = at
        due = at + (frame.duration or usual)
        frame.pts = at
        yield frame
