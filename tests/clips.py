"""Small clips, pictures and sounds that tests make for themselves."""

import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from fractions import Fraction
from itertools import count
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray

from latentsync.media import Sound
from latentsync.types import FloatArray, Frame

BITS = 8  # of its number drawn into each picture, as a row of black and white blocks
CODECS = {
    ".wav": "pcm_s16le",
    ".mp3": "libmp3lame",
    ".flac": "flac",
    ".ogg": "libopus",
    ".caf": "pcm_s16be",
    ".au": "pcm_s16be",
    ".ac3": "ac3",
    ".wv": "wavpack",
    ".tta": "tta",
}


def picture(number: int, width: int = 64, height: int = 48) -> Frame:
    """(height, width, 3) RGB: soft colours that move, and `number` as blocks along the top."""
    y, x = np.mgrid[:height, :width]
    waves = (np.sin((x + 3 * number) / 9), np.cos((y - 2 * number) / 7), np.sin((x + y) / 11))
    rgb = np.stack([128 + 60 * wave for wave in waves], axis=2).astype(np.uint8)
    for bit in range(BITS):
        columns = slice(bit * width // BITS, (bit + 1) * width // BITS)
        rgb[: height // 4, columns] = 235 if number >> bit & 1 else 20
    return rgb


def number_of(rgb: Frame) -> int:
    """The number that `picture` drew, read back even after lossy coding."""
    height, width = rgb.shape[:2]
    row = rgb[height // 8].mean(axis=1)
    centres = [(2 * bit + 1) * width // (2 * BITS) for bit in range(BITS)]
    return sum(int(row[centre] > 128) << bit for bit, centre in enumerate(centres))


def heard(path: Path, rate: int = 16000, start: Fraction | None = None) -> FloatArray:
    """(n,) the sound of a file as mono at `rate` Hz, from time 0 on."""
    blocks = Sound.of(path, start=start).resampled(rate, "mono", "s16p", rate)
    whole = np.concatenate([block.to_ndarray()[0] for block in blocks])
    return whole.astype(np.float32) / 32768


def write_picture(path: Path, rgb: Frame, suffix: str | None = None) -> Path:
    """A still picture under any name; `suffix` tells the format where the name doesn't."""
    ok, data = cv2.imencode(suffix or path.suffix, rgb[..., ::-1])
    assert ok
    path.write_bytes(data.tobytes())
    return path


def write_clip(
    path: Path,
    frames: int | Iterable[Frame] = 50,
    *,
    size: tuple[int, int] = (64, 48),
    fps: Fraction | int = 25,
    times: Sequence[Fraction] | None = None,
    codec: str = "libx264",
    pixel_format: str = "yuv420p",
    container: str | None = None,
    muxer: dict[str, str] | None = None,
    tags: dict[str, int] | None = None,
    sound: FloatArray | None = None,
    sound_rate: int = 48000,
    sound_codec: str = "aac",
    sound_start: Fraction = Fraction(0),
    **options: str,
) -> Path:
    """A clip of numbered pictures (or the given ones), shown at `times` (s) or at `fps`.

    `options` go to the encoder (g, bf, crf, x264opts, ...), `muxer` to the container, `tags` to
    the codec context (color_range=2, ...). `sound` is (n,) or (channels, n), from `sound_start` on.
    """
    shown = iter(frames) if not isinstance(frames, int) else map(picture_of(size), range(frames))
    unit = Fraction(1, 90000)
    with av.open(f"file:{path}", "w", format=container, options=muxer or {}) as output:
        stream = output.add_stream(codec, Fraction(fps), options={"threads": "1", **options})
        stream.width, stream.height, stream.pix_fmt = *size, pixel_format
        stream.codec_context.time_base = unit if times is not None else 1 / Fraction(fps)
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        voice = None
        if sound is not None:
            layout = "stereo" if sound.ndim == 2 else "mono"
            voice = output.add_stream(sound_codec, sound_rate, layout=layout)
        for index, rgb in enumerate(shown):
            frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
            frame.time_base = unit if times is not None else 1 / Fraction(fps)
            frame.pts = index if times is None else round(times[index] / unit)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if voice is not None:
            _encode_sound(output, voice, sound, sound_rate, round(sound_start * sound_rate))
    return path


def picture_of(size: tuple[int, int]):
    """`picture` for clips of one size."""
    return lambda number: picture(number, *size)


def write_sound(
    path: Path, samples: FloatArray, rate: int = 16000, *, codec: str | None = None, **options: str
) -> Path:
    """(n,) or (channels, n) float in [-1, 1] as a sound file of the suffix's kind."""
    with av.open(f"file:{path}", "w", options=options) as output:
        layout = "stereo" if samples.ndim == 2 else "mono"
        stream = output.add_stream(codec or CODECS.get(path.suffix, "aac"), rate, layout=layout)
        _encode_sound(output, stream, samples, rate, 0)
    return path


def _encode_sound(output, stream, samples: FloatArray, rate: int, start: int) -> None:
    planes = np.ascontiguousarray(np.atleast_2d(samples), np.float32)
    for at in range(0, planes.shape[1], 1024):
        block = np.ascontiguousarray(planes[:, at : at + 1024])
        frame = av.AudioFrame.from_ndarray(block, "fltp", stream.codec_context.layout.name)
        frame.sample_rate, frame.pts, frame.time_base = rate, start + at, Fraction(1, rate)
        output.mux(stream.encode(frame))
    output.mux(stream.encode(None))


def babble(seconds: float, rate: int = 16000, seed: int = 0) -> FloatArray:
    """(n,) float32: syllables of noise; no two stretches alike, the same sound at every rate."""
    rng = np.random.default_rng(seed)
    times, base = np.arange(round(seconds * rate)) / rate, 8000
    noise = rng.standard_normal(int(seconds * base) + 2)
    loudness = rng.random(int(seconds * 8) + 2)
    syllables = np.interp(times * 8, np.arange(len(loudness)), loudness)
    wave = 0.2 * syllables * np.interp(times * base, np.arange(len(noise)), noise)
    return wave.clip(-1, 1).astype(np.float32)


def lag(late: NDArray, early: NDArray, rate: int, reach: float = 0.2) -> float:
    """Seconds by which `late` comes after `early`, by cross-correlation within +-`reach` s."""
    n = min(len(late), len(early))
    a, b = (np.fft.rfft(np.asarray(x[:n], np.float64), 2 * n) for x in (late, early))
    correlation = np.fft.irfft(a * b.conj())
    shifts = np.arange(-round(reach * rate), round(reach * rate) + 1)
    return float(shifts[correlation[shifts].argmax()]) / rate


def raw_frames(path: Path) -> Iterator[tuple[NDArray, ...]]:
    """A file's own 4:2:0 planes as PyAV decodes them, with nothing of ours in between."""
    with closing(av.open(f"file:{path}")) as container:
        for frame in container.decode(video=0):
            half = (frame.height + 1) // 2, (frame.width + 1) // 2
            sizes = (frame.height, frame.width), half, half
            yield tuple(
                np.frombuffer(p, np.uint8).reshape(-1, p.line_size)[:rows, :columns].copy()
                for p, (rows, columns) in zip(frame.planes, sizes, strict=True)
            )


def same(planes: Iterable[NDArray], others: Iterable[NDArray]) -> bool:
    """Whether two pictures' planes are equal to the last sample."""
    return all(np.array_equal(a, b) for a, b in zip(planes, others, strict=True))


def fps_filtered(path: Path, fps: int = 25) -> list[int]:
    """Which source frame FFmpeg's own fps filter shows at each index, counted from 0."""
    with closing(av.open(f"file:{path}")) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        source = graph.add_buffer(template=stream, time_base=stream.time_base)
        graph.link_nodes(
            source,
            graph.add("setpts", "PTS-STARTPTS"),
            graph.add("fps", str(fps)),
            graph.add("buffersink"),
        ).configure()
        numbers = []
        for frame in (*container.decode(stream), None):
            graph.push(frame)
            for _ in count():
                try:
                    out = graph.vpull()
                except (av.BlockingIOError, av.EOFError):
                    break
                numbers.append(number_of(out.to_ndarray(format="rgb24")))
    return numbers


def early(path: Path, clip: Path, sound: Path, seconds: float, codec: str = "aac") -> Path:
    """A clip with a sound that begins so long before its pictures."""
    inputs = ("-itsoffset", seconds, "-i", f"file:{clip}", "-i", f"file:{sound}")
    ffmpeg(*inputs, "-map", "0:v", "-map", "1:a", "-c:v", "copy", "-c:a", codec, f"file:{path}")
    return path


def ffmpeg(*arguments: object) -> bytes:
    """What FFmpeg's binary writes to stdout: another reader and writer than ours."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y"]
    return subprocess.run([*command, *map(str, arguments)], capture_output=True, check=True).stdout


def ffmpeg_says(path: Path) -> str:
    """The line in which FFmpeg's binary describes a file's pictures."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-i", f"file:{path}"]
    said = subprocess.run(command, capture_output=True, check=False, text=True).stderr
    return next(line.strip() for line in said.splitlines() if "Video:" in line)


def ffmpeg_times(path: Path) -> list[Fraction]:
    """When FFmpeg's binary shows each frame of a file, in seconds, as the file says."""
    arguments = ("-copyts", "-i", f"file:{path}", "-fps_mode", "passthrough")
    text = ffmpeg(*arguments, "-enc_time_base", "1:90000", "-f", "framecrc", "-").decode()
    rows = [line.split(",") for line in text.splitlines() if line.startswith("0,")]
    return [Fraction(int(row[2]), 90000) for row in rows]
