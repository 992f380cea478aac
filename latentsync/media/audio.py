"""Sound of any file on one timeline: mono samples for the network, packets for the output."""

import logging
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain, zip_longest
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.filter import Graph
from numpy.typing import NDArray

from latentsync.errors import HOST, MediaError, OutputError, with_option
from latentsync.media.container import Damage, decode, demux, open_media, quote_path, video_stream
from latentsync.media.filters import AudioFormat, audio_graph, pull_frames
from latentsync.media.limits import DEFAULT_LIMITS, Limits
from latentsync.media.timestamps import clock_restarts
from latentsync.media.tracks import (
    AUTO,
    ONLY_TRACK,
    SILENCE_LEVEL,
    AudioTrack,
    choose_track,
    sound_streams,
)
from latentsync.types import FloatArray

__all__ = [
    "AudioReader",
    "Sound",
    "max_drift_seconds",
    "mix",
    "sound_stream",
    "trim",
]

log = logging.getLogger(__name__)

_FULL_SCALE_LEVELS = 2**15  # of 16-bit samples
_SIDES = ("left", "right")
_SPEECH_RATE_HZ = 16_000  # input rate of the speech encoder
_PHASE_SECONDS = 60  # length of the sound by which two channels are compared
# Energy of the mix over that of the louder channel, below which the channels cancel each other out;
# equal channels have 1, a channel beside a silent one 1/4.
_MAX_MIX_SHARE = 0.05
# How far times may be off: those that a recorder took from its computer's clock, and those that
# count samples, as in MPEG-TS.
_JITTER_SECONDS, _JOINT_SECONDS = 0.1, 0.005
_LAYOUTS = {"1 channels": "mono", "2 channels": "stereo"}  # where a file doesn't say


@dataclass(frozen=True)
class Sound:
    """A file's sound stream, and where its timeline begins."""

    path: Path
    codec: str
    sample_rate: int  # Hz
    channels: int
    layout: str
    origin: Fraction  # s in the file's own time, where ours begins
    limits: Limits = DEFAULT_LIMITS
    copied: bool | None = None  # whether an output takes its packets as they are; None: undecided
    track: AudioTrack = ONLY_TRACK

    def __str__(self) -> str:
        return f"{self.track}, {self.codec}, {self.sample_rate} Hz, {self.layout}"

    @classmethod
    def of(
        cls,
        path: Path | str,
        limits: Limits = DEFAULT_LIMITS,
        start: Fraction | None = None,
        track: str | int = AUTO,
    ) -> "Sound":
        """Describe a file's sound; MediaError when it isn't media, or has no sound or too much.

        Args:
            start: s in the file's own time, before which the sound is left out; None: where the
                first picture or sound starts, whichever is earlier.
            track: its number or language, or "auto", see `choose_track`.
        """
        with open_media(path, limits) as container:
            chosen = choose_track(container, Path(path), limits, track)
            stream = sound_stream(container, chosen)
            claimed = None if clock_restarts(container) else stream.duration
            if claimed is not None and stream.time_base is not None:
                limits.check_seconds(quote_path(path), float(claimed * stream.time_base))
            first = next(_decode_stream(container, stream), None)
            if first is None:
                raise MediaError(
                    f"{quote_path(path)} has a sound stream without a single sample:"
                    " give a file with sound in it"
                )
            starts = [_seconds(first)]
            pictures = video_stream(container)
            if pictures is not None and pictures.start_time is not None and pictures.time_base:
                starts.append(pictures.start_time * pictures.time_base)
            return cls(
                path=Path(path),
                codec=stream.codec_context.codec.canonical_name,
                sample_rate=first.sample_rate,
                channels=first.layout.nb_channels,
                layout=_LAYOUTS.get(first.layout.name, first.layout.name),
                origin=min(starts) if start is None else start,
                limits=limits,
                track=chosen,
            )

    def resampled(
        self, rate: int, layout: str, sample_format: str, block: int
    ) -> Generator[AudioFrame, None, None]:
        """Decode from time 0 on, in frames of `block` samples; the last may be shorter.

        A late start and gaps of more than 0.1 s are filled with silence, and what a codec adds in
        front (priming) is dropped. In formats that clips are joined in, smaller gaps are filled
        too, and overlaps are cut off.
        """
        with open_media(self.path, self.limits) as container:
            drift = max_drift_seconds(container)
            convert = _Converter(self, (rate, layout, sample_format), block, drift)
            for frame in chain(self.frames(container), [None]):
                yield from convert(frame)

    def frames(self, container: InputContainer) -> Iterator[AudioFrame]:
        """Decode the file's own format, at times that count samples from time 0."""
        for frame in _decode_stream(container, sound_stream(container, self.track)):
            at = _seconds(frame) - self.origin
            # Checked before a filter sees it, which would fill a gap of any length with silence.
            self.limits.check_seconds(quote_path(self.path), float(at))
            frame.pts = round(at * frame.sample_rate)
            frame.time_base = Fraction(1, frame.sample_rate)
            yield frame

    def is_uniform(self) -> bool:
        """Whether sample rate and layout stay the same; decodes all of the sound."""
        with open_media(self.path, self.limits) as container:
            return len({(one.sample_rate, one.layout.name) for one in self.frames(container)}) <= 1


class _Converter:
    """Converts a sound's frames to one rate, layout and sample format, without gaps.

    Call it with each frame, and with None at the end. `samples` counts what it returned.
    """

    def __init__(self, sound: Sound, wanted: AudioFormat, block: int, drift: float) -> None:
        self._sound, self._wanted, self._block, self._drift = sound, wanted, block, drift
        self._graph: Graph | None = None
        self._given: AudioFormat | None = None
        self.samples = 0

    def __call__(self, frame: AudioFrame | None) -> list[AudioFrame]:
        converted, given = [], None
        if frame is not None:
            given = frame.sample_rate, frame.layout.name, frame.format.name
        if self._graph is not None and given != self._given:
            converted += self._push(self._graph, None)
            self._graph = None
        if given is not None:
            if self._graph is None:
                self._graph, self._given = self._build_graph(given), given
            converted += self._push(self._graph, frame)
        return converted

    def _push(self, graph: Graph, frame: AudioFrame | None) -> list[AudioFrame]:
        graph.push(frame)
        converted = list(pull_frames(graph, AudioFrame))
        self.samples += sum(one.samples for one in converted)
        return converted

    def _build_graph(self, given: AudioFormat) -> Graph:
        rate, layout, kind = self._wanted
        first = round(self.samples * given[0] / rate)  # aresample counts in input samples
        try:
            return audio_graph(
                given,
                ("aresample", f"{rate}:async=1:min_hard_comp={self._drift}:first_pts={first}"),
                (
                    "aformat",
                    f"sample_rates={rate}:channel_layouts={layout}:sample_fmts={kind}",
                ),
                ("asetnsamples", f"n={self._block}:p=0"),
            )
        except av.FFmpegError as error:
            raise MediaError(
                f"{quote_path(self._sound.path)} has sound that can't be converted ({given[0]} Hz,"
                f" {given[1]}: {error.strerror}): give it as mono or stereo, say at 48000 Hz"
            ) from error


@dataclass(frozen=True)
class _Decoded:
    """The samples of a sound, and what decoding it found out."""

    samples: NDArray[np.int16]  # (n,) mono, 16 kHz, mapped from a file without a name
    seconds: Fraction  # counted at the file's own sample rate
    uniform: bool  # whether sample rate and layout stayed the same
    side: int | None  # the channel that is used alone; None: their mix


class AudioReader:
    """The sound of a file (wav, mp3, aac, m4a, flac, ogg, or a video's), whatever its name.

    It is decoded once, when samples are first asked for, into a temporary file without a name
    (32 kB a second), which is gone with the reader or the process. Time 0 is that of `Sound.of`.
    Samples are 16-bit, as of `ffmpeg -i FILE -f s16le -ac 1 -ar 16000`; where two channels cancel
    each other out, they are the louder channel's.

    Raises:
        MediaError: the file is no media, holds no sound, or more than `limits` allows; the last
            also when samples are asked for.
        OutputError: the temporary folder has no room for the samples.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        limits: Limits = DEFAULT_LIMITS,
        start: Fraction | None = None,
        track: str | int = AUTO,
    ) -> None:
        """`start` and `track` as in `Sound.of`."""
        self.path = Path(path)
        self.sound = Sound.of(path, limits, start, track)

    @property
    def samples(self) -> NDArray[np.int16]:
        """(n,) mono, 16 kHz, mapped from disk."""
        return self._decoded.samples

    @property
    def seconds(self) -> Fraction:
        """Exact duration, counted at the file's own sample rate."""
        return self._decoded.seconds

    @property
    def uniform(self) -> bool:
        """Whether sample rate and layout stay the same."""
        return self._decoded.uniform

    @cached_property
    def silent(self) -> bool:
        """Whether no sample is louder than silence."""
        samples = self.samples
        loudest = max(int(samples.max()), -int(samples.min())) if len(samples) else 0
        return loudest <= SILENCE_LEVEL * _FULL_SCALE_LEVELS

    def chunks(self) -> Iterator[FloatArray]:
        """Iterate over the sound by the second: (n,) float32 in [-1, 1), mono, 16 kHz."""
        for start in range(0, len(self.samples), _SPEECH_RATE_HZ):
            second = self.samples[start : start + _SPEECH_RATE_HZ]
            yield second.astype(np.float32) / np.float32(_FULL_SCALE_LEVELS)

    def describe(self) -> str:
        """Name the track, its format, the channel if only one is used, and "silent"."""
        side = self._decoded.side
        alone = "" if side is None else f", only its {_SIDES[side]} channel"
        return f"{self.sound}{alone}{', silent' if self.silent else ''}"

    @cached_property
    def _decoded(self) -> _Decoded:
        try:
            return _decode(self.sound)
        except OSError as error:
            raise OutputError(
                f"the sound of {quote_path(self.path)} can't be unpacked in "
                f"{quote_path(tempfile.gettempdir())} ({error.strerror}): check the free space "
                f"there{with_option(HOST, ' (TMPDIR)')}"
            ) from error


def _decode(sound: Sound) -> _Decoded:
    """Decode a sound once: the mix, and both channels until it is known which of them is used."""
    kinds, phase = set[tuple[int, str]](), _Phase(sound)
    with ExitStack() as stack:
        mixed, *sides = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(3)]
        container = stack.enter_context(open_media(sound.path, sound.limits))
        own, mono, stereo = (
            _Converter(sound, (rate, layout, "s16p"), _SPEECH_RATE_HZ, max_drift_seconds(container))
            for rate, layout in (
                (sound.sample_rate, "mono"),
                (_SPEECH_RATE_HZ, "mono"),
                (_SPEECH_RATE_HZ, "stereo"),
            )
        )
        for frame in chain(sound.frames(container), [None]):
            if frame is not None:
                kinds.add((frame.sample_rate, frame.layout.name))
            own(frame)
            if phase.side is None:
                for block in mono(frame):
                    mixed.write(block.to_ndarray()[0].astype("<i2").tobytes())
            if phase.side is not None or not phase.known:
                for block in stereo(frame):
                    pair = block.to_ndarray()
                    phase.add(pair)
                    for file, row in zip(sides, pair, strict=True):
                        file.write(row.astype("<i2").tobytes())
        phase.decide()
        file = mixed if phase.side is None else sides[phase.side]
        file.flush()
        samples = np.memmap(file, "<i2", "r") if file.tell() else np.zeros(0, np.int16)
    return _Decoded(samples, Fraction(own.samples, sound.sample_rate), len(kinds) <= 1, phase.side)


class _Phase:
    """Finds the louder channel of a stereo sound whose channels cancel out in their mix.

    They do so where one channel is inverted. The first minute that isn't silent decides.
    """

    def __init__(self, sound: Sound) -> None:
        self._path, self._seconds = sound.path, 0
        self._energy, self._mixed = np.zeros(len(_SIDES)), 0.0
        self.known = sound.channels != len(_SIDES)
        self.side: int | None = None  # used alone; None: the mix is used

    def add(self, block: NDArray[np.generic]) -> None:
        """Add the next second, (2, n)."""
        if self.known:
            return
        pair = block.astype(np.float64) / _FULL_SCALE_LEVELS
        self._energy += np.square(pair).sum(axis=1)
        self._mixed += float(np.square(pair.mean(axis=0)).sum())
        self._seconds += bool(np.abs(pair).max(initial=0) > SILENCE_LEVEL)
        if self._seconds >= _PHASE_SECONDS:
            self.decide()

    def decide(self) -> None:
        """Decide by the sound so far."""
        louder = int(self._energy.argmax())
        if not self.known and self._energy[louder] * _MAX_MIX_SHARE > self._mixed:
            self.side = louder
            log.warning(
                "the two channels of %s cancel each other out: the %s one is heard alone",
                *(quote_path(self._path), _SIDES[louder]),
            )
        self.known = True


def max_drift_seconds(container: InputContainer) -> float:
    """Return how far sound may be from its time stamp before it is moved there."""
    return _JOINT_SECONDS if clock_restarts(container) else _JITTER_SECONDS


def sound_stream(container: InputContainer, track: AudioTrack) -> AudioStream:
    """Find the stream of a track."""
    return sound_streams(container)[track.number - 1]


def _decode_stream(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    """Decode frames that hold samples, each with a time; padding behind the last one is cut off."""
    due, held = 0, None
    damage = Damage(container.name.removeprefix("file:"))
    for packet in demux(container, stream, damage):
        frames = decode(packet, AudioFrame)
        if packet.is_corrupt and not frames:
            damage.warn(": what can't be decoded of its sound is left out")
        for frame in frames:
            if frame.samples == 0:
                continue
            if frame.pts is None:
                frame.pts = due
            length = Fraction(frame.samples, frame.sample_rate)
            due = frame.pts + round(length / (frame.time_base or Fraction(1, frame.sample_rate)))
            if held is not None:
                yield held
            held = frame
    if held is not None:
        # An MP4 marks padding by a shorter duration.
        counts_samples = held.time_base == Fraction(1, held.sample_rate)
        padded = counts_samples and held.format.is_planar and 0 < held.duration < held.samples
        yield trim(held, held.duration) if padded else held


def trim(frame: AudioFrame, samples: int) -> AudioFrame:
    """Return the first `samples` of a frame with planar samples."""
    kept: FloatArray = np.ascontiguousarray(frame.to_ndarray()[:, :samples])
    short = AudioFrame.from_ndarray(kept, frame.format.name, frame.layout.name)
    short.sample_rate, short.pts, short.time_base = frame.sample_rate, frame.pts, frame.time_base
    return short


def _seconds(frame: AudioFrame) -> Fraction:
    return (frame.pts or 0) * (frame.time_base or Fraction(1, frame.sample_rate))


_BLOCK_SAMPLES = 4096
_MAX_MIX_RATE_HZ = 48_000
# Below full scale, so that AAC has room to overshoot; `latency` removes the look-ahead's delay.
_LIMITER = "limit=0.95:level=0:latency=1"


def mix(sounds: Sequence[Sound], output: Path) -> None:
    """Write the sum of sounds, which begin together, as FLAC as long as the longest.

    It is stereo unless all are mono. A mono voice is as loud on either side as in its file.

    Raises:
        MediaError: one of them can't be used.
        OutputError: the file can't be written.
    """
    rate = min(_MAX_MIX_RATE_HZ, max(sound.sample_rate for sound in sounds))
    layout = "mono" if all(sound.channels == 1 for sound in sounds) else "stereo"
    graph = audio_graph(
        (rate, layout, "fltp"),
        ("alimiter", _LIMITER),
        ("aformat", "sample_fmts=s32"),
        ("asetnsamples", f"n={_BLOCK_SAMPLES}:p=0"),
    )
    try:
        with av.open(f"file:{output}", "w", format="flac") as container:
            stream: AudioStream = container.add_stream("flac", rate, layout=layout, format="s32")
            for block in chain(_sum_blocks(sounds, rate, layout), [None]):
                graph.push(block)
                for frame in pull_frames(graph, AudioFrame):
                    container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except OSError as error:  # PyAV's errors are OSErrors too where the disk is the reason
        raise OutputError(
            f"the voices can't be summed in {quote_path(output)} ({error.strerror}): "
            f"check the free space there{with_option(HOST, ' (TMPDIR)')}"
        ) from error


def _sum_blocks(sounds: Sequence[Sound], rate: int, layout: str) -> Iterator[AudioFrame]:
    """Add the sounds up in frames of `_BLOCK_SAMPLES`; the last one is shorter."""
    parts = [
        sound.resampled(rate, "mono" if sound.channels == 1 else layout, "fltp", _BLOCK_SAMPLES)
        for sound in sounds
    ]
    at = 0
    for frames in zip_longest(*parts):
        arrays = [np.asarray(frame.to_ndarray(), np.float32) for frame in frames if frame]
        samples = max(array.shape[1] for array in arrays)
        total = np.zeros((1 if layout == "mono" else 2, samples), np.float32)
        for array in arrays:
            total[:, : array.shape[1]] += array
        block = AudioFrame.from_ndarray(total, format="fltp", layout=layout)
        block.sample_rate, block.pts, block.time_base = rate, at, Fraction(1, rate)
        at += samples
        yield block
