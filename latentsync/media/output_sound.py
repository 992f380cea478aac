"""The sound of an output: the original's packets, or encoded anew where they don't fit."""

import logging
from dataclasses import replace
from fractions import Fraction
from typing import BinaryIO, Protocol, cast

import av
from av.audio.layout import AudioLayout
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream

from latentsync.errors import MediaError
from latentsync.media.audio import Sound, max_drift_seconds, sound_stream, trim
from latentsync.media.container import demux, open_media, quote_path

__all__ = ["SoundFeed", "decide_copy", "sound_feed"]

log = logging.getLogger(__name__)

_COPIED_CODECS = ("aac", "mp3")
_MP3_IN_MP4_MIN_HZ = 16000  # Hz; MPEG-2.5 layer III is not allowed in mp4
_AAC_CHANNEL_BIT_RATE = 96_000  # bit/s per channel; mono gets as much as stereo
_PREROLL_SECONDS = Fraction(1, 5)  # packets kept before the start, for decoders to settle
_AAC_FRAME_SAMPLES = 1024
_AAC_RATES_HZ = (
    *(8000, 11025, 12000, 16000, 22050, 24000),
    *(32000, 44100, 48000, 64000, 88200, 96000),
)
_AAC_LAYOUTS = ("mono", "stereo", "3.0", "4.0", "5.0", "5.1", "7.1")
_NEAREST_LAYOUTS = {1: "mono", 6: "5.1", 8: "7.1"}  # by channels; else stereo


def decide_copy(sound: Sound, uniform: bool | None = None) -> Sound:
    """Decide whether an output copies a sound's packets or encodes it; returned in `copied`.

    All of it is read, so that nothing in its middle ends a run when most of the work is done: a
    change of its sample rate, clips joined in one file, packets that FFmpeg's muxer refuses.
    `uniform`: what `sound.is_uniform()` says, where that is known.
    """
    if sound.copied is not None:
        return sound
    rare = sound.codec == "mp3" and sound.sample_rate < _MP3_IN_MP4_MIN_HZ
    if sound.codec not in _COPIED_CODECS or rare:
        return replace(sound, copied=False)
    uniform = sound.is_uniform() if uniform is None else uniform
    return replace(sound, copied=uniform and _fits_mp4(sound))


def _fits_mp4(sound: Sound) -> bool:
    """Whether an MP4 takes all packets, and none begins far before the one before it ends."""
    with av.open(cast(BinaryIO, _NullFile()), "w", format="mp4") as output:
        feed = _PacketCopier(output, sound)
        try:
            feed.finish(Fraction(2**62))
        except (av.FFmpegError, MediaError) as error:
            log.debug("the packets of %s don't fit: %s", quote_path(sound.path), error)
            return False
        finally:
            feed.close()
    return not feed.misplaced


class _NullFile:
    """A file that keeps only its size."""

    def __init__(self) -> None:
        self._at = self._size = 0

    def write(self, data: bytes) -> int:
        self._at += len(data)
        self._size = max(self._size, self._at)
        return len(data)

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at


class SoundFeed(Protocol):
    """Writes sound to the output, as far as the pictures have come."""

    def until(self, seconds: Fraction) -> None:
        """Write everything that ends by this time."""

    def finish(self, seconds: Fraction) -> None:
        """Write the rest, cut at this time."""

    def close(self) -> None:
        """Close the input."""


def sound_feed(container: OutputContainer, sound: Sound) -> SoundFeed:
    """Create the feed of an output, which copies packets where they fit, and encodes elsewhere."""
    if decide_copy(sound).copied:
        log.info("sound: %s is copied", sound.codec)
        return _PacketCopier(container, sound)
    return _AacEncoder(container, sound)


class _PacketCopier:
    """Copies the sound's own packets, moved to the output's timeline."""

    def __init__(self, container: OutputContainer, sound: Sound) -> None:
        self._output, self._origin, self._path = container, sound.origin, sound.path
        self._input = open_media(sound.path, sound.limits)
        source = sound_stream(self._input, sound.track)
        self._stream = container.add_stream_from_template(source)
        self._rate, self._samples = sound.sample_rate, source.codec_context.frame_size
        self._due: Fraction | None = None  # s; start of the next packet, if none is missing
        self._packets = demux(self._input, source)
        self._next = next(self._packets, None)
        self._tolerance = max_drift_seconds(self._input)
        self.misplaced = False  # whether a packet has no time, or overlaps the one before

    def close(self) -> None:
        self._input.close()

    def finish(self, seconds: Fraction) -> None:
        self.until(seconds, partly=True)

    def until(self, seconds: Fraction, *, partly: bool = False) -> None:
        while (packet := self._next) is not None:
            self.misplaced |= bool(packet.size) and packet.pts is None
            if packet.size and packet.pts is not None:
                at, length = self._span(packet)
                if at + length > seconds:
                    if not partly or at >= seconds:
                        return
                    length = seconds - at
                if at + length > -_PREROLL_SECONDS:
                    self._due = at + length
                    packet.time_base = Fraction(1, self._rate)
                    packet.pts = packet.dts = round(at * self._rate)
                    packet.duration = round(length * self._rate)
                    packet.stream = self._stream
                    self._hand_over(packet)
            self._next = next(self._packets, None)

    def _span(self, packet: "Packet[Stream]") -> tuple[Fraction, Fraction]:
        """Return start and duration of a packet in the output, in seconds.

        They are exact to the sample, also where the file (Matroska, say) counts in ms.
        """
        unit = packet.time_base
        at = (packet.pts or 0) * unit - self._origin
        if self._due is not None and abs(at - self._due) <= unit:
            at = self._due
        if self._due is not None and self._due - at > self._tolerance:
            self.misplaced = True
        length, whole = (packet.duration or 0) * unit, Fraction(self._samples, self._rate)
        return at, whole if not length or abs(length - whole) <= unit else length

    def _hand_over(self, packet: "Packet[Stream]") -> None:
        try:
            self._output.mux(packet)
        except (av.ArgumentError, av.InvalidDataError) as error:  # no fault of the disk
            raise MediaError(
                f"the sound of {quote_path(self._path)} is damaged ({error.strerror}):"
                " convert it to WAV, or give another"
            ) from error


class _AacEncoder:
    """Encodes the sound to AAC, at its own rate and channels where AAC has them."""

    def __init__(self, container: OutputContainer, sound: Sound) -> None:
        rate = min((r for r in _AAC_RATES_HZ if r >= sound.sample_rate), default=max(_AAC_RATES_HZ))
        layout = sound.layout
        if layout not in _AAC_LAYOUTS:
            layout = _NEAREST_LAYOUTS.get(sound.channels, "stereo")
        self._output = container
        self._stream: AudioStream = container.add_stream(
            "aac",
            rate,
            layout=layout,
            bit_rate=_AAC_CHANNEL_BIT_RATE * max(2, AudioLayout(layout).nb_channels),
        )
        self._rate = rate
        self._frames = sound.resampled(rate, layout, "fltp", _AAC_FRAME_SAMPLES)
        self._next = next(self._frames, None)
        changed = (rate, layout) != (sound.sample_rate, sound.layout)
        log.info(
            "sound: %s %d Hz %s is encoded to AAC%s",
            *(sound.codec, sound.sample_rate, sound.layout),
            f" at {rate} Hz {layout}, the nearest it has" if changed else "",
        )

    def close(self) -> None:
        self._frames.close()

    def until(self, seconds: Fraction) -> None:
        end = round(seconds * self._rate)
        while (frame := self._next) is not None and (frame.pts or 0) + frame.samples <= end:
            self._output.mux(self._stream.encode(frame))
            self._next = next(self._frames, None)

    def finish(self, seconds: Fraction) -> None:
        self.until(seconds)
        left = round(seconds * self._rate) - (self._next.pts or 0) if self._next else 0
        if self._next is not None and left > 0:
            self._output.mux(self._stream.encode(trim(self._next, left)))
        self._output.mux(self._stream.encode(None))
