"""FFmpeg filter graphs of one source, one chain of filters and one sink."""

from collections.abc import Iterator
from fractions import Fraction
from typing import TypeVar

import av
from av.audio.frame import AudioFrame
from av.filter import Graph
from av.video.frame import VideoFrame as RawFrame

__all__ = ["AudioFormat", "Filter", "audio_graph", "pull_frames", "video_graph"]

AudioFormat = tuple[int, str, str]
"""Sample rate in Hz, layout, sample format; FFmpeg's names."""
Filter = tuple[str, str]
"""FFmpeg's name of a filter, and its arguments."""
F = TypeVar("F", RawFrame, AudioFrame)


def video_graph(raw: RawFrame, *filters: Filter) -> Graph:
    """Build a chain for pictures of the size and format of `raw`."""
    graph = Graph()
    source = graph.add_buffer(
        width=raw.width,
        height=raw.height,
        format=raw.format,
        time_base=raw.time_base or Fraction(1, 1000),
    )
    nodes = [graph.add(*one) for one in (*filters, ("buffersink", ""))]
    graph.link_nodes(source, *nodes).configure()
    return graph


def audio_graph(given: AudioFormat, *filters: Filter) -> Graph:
    """Build a chain for sound of a format, whose times count samples."""
    rate, layout, sample_format = given
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=rate, layout=layout, format=sample_format, time_base=Fraction(1, rate)
    )
    nodes = [graph.add(*one) for one in (*filters, ("abuffersink", ""))]
    graph.link_nodes(source, *nodes).configure()
    return graph


def pull_frames(graph: Graph, kind: type[F]) -> Iterator[F]:
    """Take the frames that are ready at the sink."""
    while True:
        try:
            frame = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        assert isinstance(frame, kind)
        yield frame
