"""Sound of any file on one timeline: mono samples for the network, packets for the output."""

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import zip_longest
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.filter import Graph

from latentsync.errors import HOST, MediaError, OutputError, with_option
from latentsync.media.container import (
    Damage,
    decode,
    demux,
    open_media,
    quote_path,
    video_stream,
)
from latentsync.media.limits import DEFAULT_LIMITS, Limits
from latentsync.media.timestamps import clock_restarts
from latentsync.media.tracks import AUTO, ONLY, SILENT, AudioTrack, sound_streams, taken
from latentsync.types import FloatArray

__all__ = ["AudioReader", "Sound", "mix", "pulled", "sound_stream", "tolerance", "trimmed"]

logger = logging.getLogger(__name__)

_FULL_SCALE = 32768  # of 16-bit samples
_SIDES = ("left", "right")
_PHASE_RATE = 16000  # Hz, of the comparison of two channels
_PHASE_SECONDS = 60  # of sound that are compared
_CANCELLED = 0.05  # of the louder channel's energy; equal channels keep 1, one alone 1/4
_JITTER = 0.1  # s by which times may be off that a recorder took from its computer's clock
_JOINED = 0.005  # s; times that count samples, as those of MPEG-TS
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
    track: AudioTrack = ONLY

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
        """Look at a file; MediaError when it isn't media, has no sound in it, or too much.

        `start`: s in the file's own time, before which its sound is left out; None: where its first
        picture or sound starts. `track`: which of several, as `taken` has it.
        """
        chosen = taken(Path(path), limits, track)
        with open_media(path, limits) as container:
            stream = sound_stream(container, chosen)
            claimed = None if clock_restarts(container) else stream.duration
            if claimed is not None and stream.time_base is not None:
                limits.check_seconds(quote_path(path), float(claimed * stream.time_base))
            first = next(_decoded(container, stream), None)
            if first is None:
                raise MediaError(
                    f"{quote_path(path)} has a sound stream without a single sample:"
                    " give a file with sound in it"
                )
            pictures = video_stream(container)
            starts = [_seconds(first)]
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
        self,
        rate: int,
        layout: str,
        sample_format: str,
        block: int,
        kinds: set[tuple[int, str]] | None = None,
    ) -> Generator[AudioFrame, None, None]:
        """The sound from time 0 on, in frames of `block` samples (the last one may be shorter).

        Sound that starts late is preceded by silence, gaps of more than 0.1 s are filled with it,
        and what a codec adds in front (priming) is dropped, as the decoder says. Where clips may be
        joined in a file, smaller gaps are filled too, and what overlaps is cut off.
        `kinds` collects the sample rates and layouts that the file has.
        """
        graph, spec, done = None, None, 0
        with open_media(self.path, self.limits) as container:
            within = tolerance(container)
            stream = sound_stream(container, self.track)
            for frame in _decoded(container, stream):
                # Before the graph sees it, which would fill a gap of any length with silence.
                self.limits.check_seconds(
                    quote_path(self.path), float(_seconds(frame) - self.origin)
                )
                now = frame.sample_rate, frame.layout.name, frame.format.name
                if graph is None or now != spec:
                    for out in _drained(graph):
                        done += out.samples
                        yield out
                    spec = now
                    if kinds is not None:
                        kinds.add(now[:2])
                    graph = self._graph(now, (rate, layout, sample_format), block, done, within)
                frame.pts = round((_seconds(frame) - self.origin) * frame.sample_rate)
                frame.time_base = Fraction(1, frame.sample_rate)
                graph.push(frame)
                for out in pulled(graph):
                    done += out.samples
                    yield out
            yield from _drained(graph)

    def is_uniform(self) -> bool:
        """Whether sample rate and layout stay the same; all of the sound is decoded for it."""
        kinds = set()
        with open_media(self.path, self.limits) as container:
            for frame in _decoded(container, sound_stream(container, self.track)):
                self.limits.check_seconds(
                    quote_path(self.path), float(_seconds(frame) - self.origin)
                )
                kinds.add((frame.sample_rate, frame.layout.name))
        return len(kinds) <= 1

    def _graph(
        self,
        given: tuple[int, str, str],
        wanted: tuple[int, str, str],
        block: int,
        start: int,
        tolerance: float,
    ) -> Graph:
        try:
            return _graph(given, wanted, block, start, tolerance)
        except av.FFmpegError as error:
            raise MediaError(
                f"{quote_path(self.path)} has sound that can't be converted ({given[0]} Hz, "
                f"{given[1]}:"
                f" {error.strerror}): give it as mono or stereo, at 48000 Hz for example"
            ) from error


class AudioReader:
    """The sound of a file (wav, mp3, aac, m4a, flac, ogg, or a video's), told by its content.

    Nothing stays open between calls and the waveform is never held. Raises MediaError when the
    file is no media, holds no sound, or more than `limits` allows (that also while reading).
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
        self._counts: dict[int, int] = {}
        self.uniform: bool | None = None  # `Sound.is_uniform`, known once all was read
        self.silent: bool | None = None  # from start to end, known once all was read

    @property
    def codec(self) -> str:
        return self.sound.codec

    @property
    def sample_rate(self) -> int:
        """Of the file, in Hz."""
        return self.sound.sample_rate

    @property
    def channels(self) -> int:
        """Of the file."""
        return self.sound.channels

    def described(self) -> str:
        """The track, its format, the channel that is heard if not the mix, and "silent"."""
        side = "" if self._channel is None else f", only its {_SIDES[self._channel]} channel"
        return f"{self.sound}{side}{', silent' if self.silent else ''}"

    @cached_property
    def _channel(self) -> int | None:
        """The louder channel of a stereo sound whose channels cancel out in their mix; else None.

        That is so where one of them is wired the wrong way round. Looked at is its first minute.
        """
        if self.sound.channels != len(_SIDES):
            return None
        energy, mixed, seconds = np.zeros(2), 0.0, 0
        for frame in self.sound.resampled(_PHASE_RATE, "stereo", "fltp", _PHASE_RATE):
            pair = np.asarray(frame.to_ndarray(), np.float64)
            energy += np.square(pair).sum(axis=1)
            mixed += float(np.square(pair.mean(axis=0)).sum())
            seconds += bool(np.abs(pair).max(initial=0) > SILENT)
            if seconds >= _PHASE_SECONDS:
                break
        louder = int(energy.argmax())
        if not energy[louder] or mixed / energy[louder] > _CANCELLED:
            return None
        logger.warning(
            "the two channels of %s cancel each other out: the %s one is heard alone",
            *(quote_path(self.path), _SIDES[louder]),
        )
        return louder

    def chunks(self, rate: int = 16000) -> Iterator[FloatArray]:
        """Mono sound at `rate` Hz as (n,) float32 in [-1, 1), a second at a time.

        Time 0 is the sound's own, see `Sound.of`. The values are 16-bit steps, as of
        `ffmpeg -i FILE -f s16le -ac 1 -ar RATE`; of two channels that cancel each other out they
        are the louder one's. Each call starts anew.
        """
        count, layout, row = 0, "mono", 0
        if self._channel is not None:
            layout, row = "stereo", self._channel
        kinds, silent = set[tuple[int, str]](), True
        for frame in self.sound.resampled(rate, layout, "s16p", rate, kinds):
            count += frame.samples
            chunk = frame.to_ndarray()[row].astype(np.float32) / _FULL_SCALE
            silent = silent and not (np.abs(chunk) > SILENT).any()
            yield chunk
        self._counts[rate], self.uniform, self.silent = count, len(kinds) <= 1, silent

    def sample_count(self, rate: int = 16000) -> int:
        """How many samples `chunks(rate)` gives: counted by decoding once, then remembered."""
        if rate not in self._counts:
            for _ in self.chunks(rate):
                pass
        return self._counts[rate]


def tolerance(container: InputContainer) -> float:
    """Seconds by which sound may be off from where its time says before it is moved there."""
    return _JOINED if clock_restarts(container) else _JITTER


def sound_stream(container: InputContainer, track: AudioTrack) -> AudioStream:
    """The stream of a track, in its file opened again."""
    return sound_streams(container)[track.number - 1]


def _decoded(container: InputContainer, stream: AudioStream) -> Iterator[AudioFrame]:
    """Frames with sound in them, each with a time; padding behind the last one is cut off."""
    due, held = 0, None
    damage = Damage(container.name.removeprefix("file:"))
    for packet in demux(container, stream, damage):
        frames = decode(packet, AudioFrame)
        if packet.is_corrupt and not frames:
            damage.tell(": what can't be decoded of its sound is left out")
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
        yield _unpadded(held)


def _unpadded(last: AudioFrame) -> AudioFrame:
    """The last frame without the padding that an mp4 tells by a shorter duration."""
    in_samples = last.time_base == Fraction(1, last.sample_rate)
    if not (in_samples and last.format.is_planar and 0 < last.duration < last.samples):
        return last
    return trimmed(last, last.duration)


def trimmed(frame: AudioFrame, samples: int) -> AudioFrame:
    """The first `samples` of a frame with planar samples."""
    kept: FloatArray = np.ascontiguousarray(frame.to_ndarray()[:, :samples])
    short = AudioFrame.from_ndarray(kept, frame.format.name, frame.layout.name)
    short.sample_rate, short.pts, short.time_base = frame.sample_rate, frame.pts, frame.time_base
    return short


def _seconds(frame: AudioFrame) -> Fraction:
    return (frame.pts or 0) * (frame.time_base or Fraction(1, frame.sample_rate))


def _graph(
    given: tuple[int, str, str],
    wanted: tuple[int, str, str],
    block: int,
    start: int,
    tolerance: float,
) -> Graph:
    """A chain from one (rate, layout, sample format) to another; its first sample is `start`.

    Sound that is further than `tolerance` seconds from where its time says is moved there.
    """
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=given[0], layout=given[1], format=given[2], time_base=Fraction(1, given[0])
    )
    rate, layout, sample_format = wanted
    first = round(start * given[0] / rate)  # aresample counts in the samples that it is given
    nodes = [
        graph.add("aresample", f"{rate}:async=1:min_hard_comp={tolerance}:first_pts={first}"),
        graph.add(
            "aformat",
            f"sample_rates={rate}:channel_layouts={layout}:sample_fmts={sample_format}",
        ),
        graph.add("asetnsamples", f"n={block}:p=0"),
        graph.add("abuffersink"),
    ]
    graph.link_nodes(source, *nodes).configure()
    return graph


def pulled(graph: Graph) -> Iterator[AudioFrame]:
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        if isinstance(frame, AudioFrame):
            yield frame


def _drained(graph: Graph | None) -> Iterable[AudioFrame]:
    if graph is None:
        return
    graph.push(None)
    yield from pulled(graph)


_BLOCK = 4096  # samples
_FASTEST = 48_000  # Hz
# It looks ahead and takes its delay back; of full scale, so that AAC has room to overshoot.
_LIMITER = "limit=0.95:level=0:latency=1"


def mix(sounds: Sequence[Sound], output: Path) -> None:
    """Write the sum of sounds, which begin together, as FLAC as long as the longest.

    In stereo, unless all are mono. A mono voice is as loud on either side as in its file.

    Raises:
        MediaError: one of them can't be used.
        OutputError: the file can't be written.
    """
    rate = min(_FASTEST, max(sound.sample_rate for sound in sounds))
    layout = "mono" if all(sound.channels == 1 for sound in sounds) else "stereo"
    graph = _limiter(rate, layout)
    try:
        with av.open(f"file:{output}", "w", format="flac") as container:
            stream: AudioStream = container.add_stream("flac", rate, layout=layout, format="s32")
            for block in _summed(sounds, rate, layout):
                graph.push(block)
                for frame in pulled(graph):
                    container.mux(stream.encode(frame))
            graph.push(None)
            for frame in pulled(graph):
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    except OSError as error:  # PyAV's own are OSErrors where the disk is the reason
        raise OutputError(
            f"the voices can't be summed in {quote_path(output)} ({error.strerror}): "
            f"check the free space there{with_option(HOST, ' (TMPDIR)')}"
        ) from error


def _summed(sounds: Sequence[Sound], rate: int, layout: str) -> Iterator[AudioFrame]:
    """Frames of `_BLOCK` samples, the last one shorter."""
    layouts = ["mono" if sound.channels == 1 else layout for sound in sounds]
    parts = [
        sound.resampled(rate, own, "fltp", _BLOCK)
        for sound, own in zip(sounds, layouts, strict=True)
    ]
    channels = 1 if layout == "mono" else 2
    at = 0
    for frames in zip_longest(*parts):
        arrays = [np.asarray(frame.to_ndarray(), np.float32) for frame in frames if frame]
        total = np.zeros((channels, max(array.shape[1] for array in arrays)), np.float32)
        for array in arrays:
            total[:, : array.shape[1]] += array
        block = AudioFrame.from_ndarray(total, format="fltp", layout=layout)
        block.sample_rate, block.pts, block.time_base = rate, at, Fraction(1, rate)
        at += block.samples
        yield block


def _limiter(rate: int, layout: str) -> Graph:
    graph = Graph()
    graph.link_nodes(
        graph.add_abuffer(
            sample_rate=rate, layout=layout, format="fltp", time_base=Fraction(1, rate)
        ),
        graph.add("alimiter", _LIMITER),
        graph.add("aformat", "sample_fmts=s32"),
        graph.add("asetnsamples", f"n={_BLOCK}:p=0"),
        graph.add("abuffersink"),
    ).configure()
    return graph
