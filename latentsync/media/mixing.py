"""Several voices as one sound: summed, and kept within full scale by a limiter."""

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import zip_longest
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.filter import Graph

from latentsync.errors import HOST, OutputError, with_option
from latentsync.media.container import shown
from latentsync.media.sound import Sound, pulled

__all__ = ["mix"]

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
            f"the voices can't be summed in {shown(output)} ({error.strerror}): "
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
