"""What do media and geometry cost when the network costs nothing?

    python benchmarks/media.py --sizes 720p 1080p 4K --preset medium --plot benchmarks/media.png

For each size a clip is drawn: a still, grainy room in which a head moves, as large as a crop of
512 px wants it. Then, in turns, so that a shared machine slows all alike:

bare     decode and encode, the frames untouched: this project's reader and writer
whole    decode, cut out the face, the identity for a network, paste, encode: `LipSync.generate`
ffmpeg   the same transcode by FFmpeg's own program (the one that imageio-ffmpeg brings)

all at one preset and crf. The ratios are of frames per second and of processor time, the median
over the turns; where other work shares the cores, the latter says more. Beside that, what
the geometry costs one core for each frame, colours included: cutting is YUV -> RGB -> crop, pasting
is face -> frame -> YUV, and "as published" the same by `Options(resampling="published")`.
"""

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import cv2
import imageio_ffmpeg
import numpy as np
import torch
from torch import Tensor

from latentsync import LipSync
from latentsync.audio.whisper import SpeechEncoder, WhisperConfig
from latentsync.diffusion.config import PRESETS, ModelConfig
from latentsync.diffusion.generator import Network
from latentsync.diffusion.unet import UNet, UNetConfig
from latentsync.diffusion.vae import VAE, VAEConfig
from latentsync.diffusion.weights import Nets
from latentsync.faces import align, align_published
from latentsync.faces.mask import paste_share
from latentsync.media import VideoFrame, VideoReader, VideoWriter
from latentsync.options import Options, Preset
from latentsync.pipeline import timeline
from latentsync.pipeline.compositor import SpeakingFace
from latentsync.pipeline.frame_source import FrameSource
from latentsync.types import Face, FaceTrack, FloatArray, Frame

SIZES = {"720p": (1280, 720), "1080p": (1920, 1080), "4K": (3840, 2160)}
FRAMES = {"720p": 200, "1080p": 100, "4K": 50}
RESOLUTION = PRESETS["v1.6"].resolution
SWAY, GRAIN = 12, 2.5  # px to each side; grey levels, deviation


def points(index: int, size: tuple[int, int]) -> FloatArray:
    """(3, 2) frame px: the head's three points, for a crop that is neither enlarged nor reduced."""
    shape = align.template(RESOLUTION) - np.divide(align.crop_size(RESOLUTION), 2)
    return (shape + np.divide(size, 2) + [SWAY * np.sin(index / 7), 0]).astype(np.float32)


def texture(size: tuple[int, int], rng: np.random.Generator) -> FloatArray:
    """(h, w, 3) float32 in [0, 255]: detail of every size, as a picture has it."""
    octaves = [
        2.0**k * cv2.resize(rng.normal(size=(size[1] >> k, size[0] >> k, 3)), size)
        for k in range(1, 7)
    ]
    return np.clip(128 + np.sum(octaves, axis=0), 0, 255).astype(np.float32)


def pictures(size: tuple[int, int], frames: int) -> Iterator[Frame]:
    rng = np.random.default_rng(0)
    room, skin = texture(size, rng), texture(align.crop_size(RESOLUTION), rng)
    height, width = skin.shape[:2]
    head = np.zeros((height, width, 1), np.uint8)
    cv2.ellipse(head, (width // 2, height // 2), (width // 2, height // 2), 0, 0, 360, 1, -1)
    grain = [rng.normal(0, GRAIN, room.shape).astype(np.float32) for _ in range(4)]
    for index in range(frames):
        picture = room + grain[index % len(grain)]
        left, top = points(index, size)[0].round().astype(int) - align.template(RESOLUTION)[
            0
        ].astype(int)
        part = picture[top : top + height, left : left + width]
        np.copyto(part, skin + np.roll(grain[0], index, 0)[:height, :width], where=head > 0)
        yield np.clip(picture, 0, 255).astype(np.uint8)


def draw(path: Path, size: tuple[int, int], frames: int, preset: Preset = "veryfast") -> Path:
    with VideoWriter(path, preset=preset) as writer:
        for picture in pictures(size, frames):
            writer.write(VideoFrame.from_rgb(picture))
    return path


class Seen:
    """A detector that knows where the head is."""

    name = "seen"

    def __init__(self, size: tuple[int, int]) -> None:
        self._size, self._index = size, 0

    def describe(self) -> str:
        return self.name

    def detect(self, *_: object, **__: object) -> list[Face]:
        self._index += 1
        at = points(self._index - 1, self._size)
        left, top, right, bottom = (*at.min(axis=0), *at.max(axis=0))
        return [Face((left, top, right, bottom), 1.0, at)]


def without_network(size: tuple[int, int]) -> LipSync:
    """A model whose network is the identity; in this process no other draws either."""
    config = ModelConfig(
        name="identity",
        resolution=RESOLUTION,
        detector="seen",
        unet=UNetConfig(
            block_out_channels=(32, 32),
            layers_per_block=1,
            attention_heads=2,
            cross_attention_dim=32,
            norm_num_groups=8,
            motion_heads=2,
        ),
        vae=VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4),
        whisper=WhisperConfig(n_audio_state=32, n_audio_head=2, n_audio_layer=1),
    )
    Network.generate = lambda _, work: work.crops
    nets = Nets(config, UNet(config.unet), VAE(config.vae), SpeechEncoder(config.whisper))
    return LipSync(nets, Seen(size))


class Silence:
    """Speech features that cost nothing."""

    def __getitem__(self, frames: slice) -> Tensor:
        return torch.zeros(frames.stop - frames.start, 1, 1)


def track_of(size: tuple[int, int], frames: int) -> FaceTrack:
    all_points = np.stack([points(index, size) for index in range(frames)])
    return align.face_track(all_points, np.ones(frames, bool), RESOLUTION)


def bare(clip: Path, output: Path, options: Options) -> None:
    with VideoWriter(output, crf=options.crf, preset=options.preset) as writer:
        for frame in VideoReader(clip).frames():
            writer.write(frame)


def whole(model: LipSync, track: FaceTrack, clip: Path, output: Path, options: Options) -> None:
    plan = timeline.segments(np.arange(len(track)), track.detected)
    role: Any = SpeakingFace(track, plan, Silence())
    with VideoWriter(output, crf=options.crf, preset=options.preset) as writer:
        for frame in model.generate(FrameSource.of(VideoReader(clip)), [role], options):
            writer.write(frame)


def ffmpeg(clip: Path, output: Path, options: Options) -> None:
    call = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-i", str(clip), "-an"]
    call += ["-c:v", "libx264", "-preset", options.preset, "-crf", str(options.crf), str(output)]
    subprocess.run(call, check=True)


def geometry(size: tuple[int, int]) -> Iterator[tuple[str, Callable[[], object]]]:
    """What is done to one frame, by name."""
    frame = VideoFrame.from_rgb(next(pictures(size, 1)))
    affine = track_of(size, 1).affine[0]
    box = align.face_box(affine, RESOLUTION, *size)
    region = frame.rgb(box)
    crop = align.cut_face(region, box, affine, RESOLUTION)
    face = torch.from_numpy(crop).permute(2, 0, 1).float() / 127.5 - 1
    share = torch.from_numpy(paste_share(RESOLUTION))
    yield "cut", lambda: align.cut_face(frame.rgb(box), box, affine, RESOLUTION)
    yield "paste", lambda: frame.pasted(*align.warp_to_frame(crop, affine, size, weight=share))
    old_cut, old_paste = align_published.cut_face, align_published.paste_face
    yield "cut as published", lambda: old_cut(frame.rgb(box), box, affine, RESOLUTION, size)
    yield (
        "paste as published",
        lambda: frame.pasted(box, old_paste(frame.rgb(box), box, face, affine, size)),
    )


def cost(work: Callable[[], object], times: int = 20) -> tuple[float, float]:
    """Least wall time and median processor time, in ms."""
    walls, cores = [], []
    for _ in range(times):
        wall, core = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cores.append(time.process_time() - core)
    return 1000 * min(walls), 1000 * median(cores)


def taken(work: Callable[..., object], *arguments: object) -> tuple[float, float]:
    """Wall and processor time, in s."""
    wall, core = time.perf_counter(), time.process_time()
    work(*arguments)
    return time.perf_counter() - wall, time.process_time() - core


class Speeds(NamedTuple):
    """Frames a second of the three ways, and a line of the table."""

    fps: tuple[float, float, float]
    line: str


def compare(name: str, folder: Path, options: Options, turns: int) -> Speeds:
    size, frames, output = SIZES[name], FRAMES[name], folder / "out.mp4"
    clip = draw(folder / f"{name}.mp4", size, frames)
    model, track = without_network(size), track_of(size, frames)
    bare(clip, output, options)  # to warm up
    times = np.array(
        [
            (
                taken(bare, clip, output, options),
                taken(whole, model, track, clip, output, options),
                taken(ffmpeg, clip, output, options),
            )
            for _ in range(turns)
        ]
    )
    fps = frames / np.median(times[:, :, 0], axis=0)
    cores = 1000 * np.median(times[:, :2, 1], axis=0) / frames
    walls, work = times[:, 0] / times[:, 1], cores[0] / cores[1]
    ratio, low, high = (f(walls[:, 0]) for f in (np.median, np.min, np.max))
    return Speeds(
        tuple(fps),
        f"{name:6} {fps[0]:7.1f} {fps[1]:7.1f} {fps[2]:7.1f} {ratio:8.2f} ({low:.2f} - {high:.2f})"
        f" {cores[0]:12.1f} {cores[1]:7.1f} {work:7.2f}",
    )


def draw_bars(speeds: dict[str, Speeds], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.2))
    ways = ("bare decode + encode", "with cut and paste", "FFmpeg's own program")
    for place, way in enumerate(ways):
        x = [index + 0.27 * (place - 1) for index in range(len(speeds))]
        bars = axes.bar(x, [speed.fps[place] for speed in speeds.values()], width=0.25, label=way)
        axes.bar_label(bars, fmt="%.0f", fontsize="small")
    axes.set_xticks(range(len(speeds)), list(speeds))
    axes.set_ylabel("frames a second")
    axes.margins(y=0.12)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--preset", default=Options.preset)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--plot", type=Path, help="a PNG of the frames a second")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # what is left of the network is too small for more
    options = replace(Options(seed=1), preset=asked.preset)
    print(f"{asked.preset}, crf {options.crf}; frames a second, then processor time, ms a frame")
    print("          bare   whole  ffmpeg    ratio                     bare   whole   ratio")
    with tempfile.TemporaryDirectory(prefix="latentsync-media-") as folder:
        speeds = {}
        for name in asked.sizes:
            speeds[name] = compare(name, Path(folder), options, asked.turns)
            print(speeds[name].line, flush=True)
    if asked.plot:
        draw_bars(speeds, asked.plot)
    cv2.setNumThreads(1)
    print("\nms a frame on one core: least wall time (median processor time)")
    for name in asked.sizes:
        costs = {what: cost(work) for what, work in geometry(SIZES[name])}
        told = (f"{what} {wall:.1f} ({core:.1f})" for what, (wall, core) in costs.items())
        print(f"{name:6} {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
