"""How much memory does x264 take for large pictures, by how far it looks ahead?

    python benchmarks/encoder_memory.py

A drawn head in noise, enlarged, 75 frames through `VideoWriter` at its defaults, each in a process
of its own: looking as far ahead as the preset says, and as far as `media/encoders.py` lets it.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from latentsync.media import VideoFrame, VideoReader, VideoWriter, encoders

SIZES = {"1080p": (1920, 1080), "1440p": (2560, 1440), "4K": (3840, 2160)}
FRAMES = 75
FACE = Path(__file__).parents[1] / "examples" / "face.mp4"


def encode(name: str, how: str) -> None:
    """One clip, in this process; prints the process's peak in MiB, the bytes, and the PSNR."""
    if how == "preset":
        encoders._X264_MIN_LOOKAHEAD_FRAMES = 60
    size, rng = SIZES[name], np.random.default_rng(0)
    noise = rng.integers(-6, 7, (size[1] + 64, size[0] + 64, 1), np.int16)
    faces = [frame.rgb() for frame in VideoReader(FACE).frames(range(FRAMES))]

    def picture(number: int) -> np.ndarray:
        x, y = (number * step % 64 for step in (7, 11))
        large = cv2.resize(faces[number], size, interpolation=cv2.INTER_LINEAR)
        grain = noise[y : y + size[1], x : x + size[0]]
        return np.clip(large + grain, 0, 255).astype(np.uint8)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "out.mp4")
        with VideoWriter(path) as writer:
            for number in range(FRAMES):
                writer.write(VideoFrame.from_rgb(picture(number)))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        written = path.stat().st_size
        pairs = zip(VideoReader(path).frames(), map(picture, range(FRAMES)), strict=True)
        errors = [
            np.square(frame.rgb().astype(np.float32) - truth).mean() for frame, truth in pairs
        ]
    print(f"{peak:.0f} {written} {10 * np.log10(255**2 / np.mean(errors)):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        encode(*asked.one)
        return
    print("size   preset's, MiB   ours, MiB   bytes, ours / preset's   PSNR, ours - preset's, dB")
    for name in SIZES:
        rows = []
        for how in ("preset", "ours"):
            call = [sys.executable, __file__, "--one", name, how]
            done = subprocess.run(call, check=True, capture_output=True, text=True)
            rows.append([float(value) for value in done.stdout.split()])
        (before, large, good), (after, small, near) = rows
        print(f"{name:6} {before:8.0f} {after:14.0f} {small / large:15.3f} {near - good:18.2f}")


if __name__ == "__main__":
    main()
