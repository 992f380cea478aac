"""Does a run's memory grow with its length?

    python benchmarks/memory.py            # 10 s, 60 s, 10 min
    python benchmarks/memory.py --long     # and an hour

Whole runs of `LipSync.run` on 1280 x 720 px, each in a process of its own, the network replaced by
the identity on crops of 512 px and the detector by one that knows the place; x264's ultrafast. The
clip is 10 s long and repeated, without being encoded again, to the length that is asked for, so it
is read as a long one is. Peak memory is the kernel's own count for the process (VmHWM).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import wave
from pathlib import Path

import imageio_ffmpeg
import matplotlib.pyplot as plt
import numpy as np
import torch
from media import SIZES, draw, without_network

LENGTHS, LONG = (10, 60, 600), 3600  # s
SIZE, FPS = SIZES["720p"], 25
SAMPLE_RATE = 16_000  # Hz


def looped(clip: Path, seconds: int) -> Path:
    """The clip again and again, its packets as they are."""
    path = clip.with_name(f"{seconds}.mp4")
    call = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-stream_loop", "-1", "-i", str(clip)]
    subprocess.run([*call, "-t", str(seconds), "-c", "copy", str(path)], check=True)
    return path


def voice(path: Path, seconds: int) -> Path:
    """Noise that swells and fades, written second by second."""
    rng = np.random.default_rng(0)
    swell = np.sin(np.linspace(0, np.pi, SAMPLE_RATE)) * 8000
    with wave.open(str(path), "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(SAMPLE_RATE)
        for _ in range(seconds):
            sound.writeframes((swell * rng.uniform(-1, 1, SAMPLE_RATE)).astype("<i2").tobytes())
    return path


def run(clip: str, sound: str, output: str) -> None:
    """One run, in this process, and what it took, as JSON."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    result = without_network(SIZE).run(clip, sound, output, preset="ultrafast")
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if "VmHWM" in line)
    seconds = time.perf_counter() - started
    print(json.dumps({"frames": result.frames, "mib": peak / 1024, "seconds": seconds}))


def measured(length: int, base: Path) -> dict[str, float]:
    clip, sound = looped(base, length), voice(base.with_name("voice.wav"), length)
    output = base.with_name("out.mp4")
    call = [sys.executable, __file__, "--one", str(clip), str(sound), str(output)]
    done = subprocess.run(call, check=True, stdout=subprocess.PIPE, text=True)
    clip.unlink()
    answer: dict[str, float] = json.loads(done.stdout)
    assert answer["frames"] == length * FPS
    return answer


def picture(lengths: list[int], peaks: list[float], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 3.2))
    axes.plot(lengths, peaks, "o-", label="this project, network replaced by identity")
    axes.plot([60, 180], [8.1 * 1024, 20 * 1024], "x--", label="published code (180 s: more)")
    axes.set(xscale="log", ylim=(0, None), xlabel="length of the clip, s", ylabel="peak, MiB")
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.legend(loc="center right")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--long", action="store_true", help="an hour as well")
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS, help="s")
    parser.add_argument("--plot", type=Path, help="a PNG of it")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        run(*asked.one)
        return
    lengths = [*asked.lengths, *([LONG] if asked.long else [])]
    peaks = []
    print("  length   frames   peak MiB   seconds")
    with tempfile.TemporaryDirectory(prefix="latentsync-memory-") as folder:
        base = draw(Path(folder) / "base.mp4", SIZE, 10 * FPS, "ultrafast")
        for length in lengths:
            one = measured(length, base)
            peaks.append(one["mib"])
            line = f"{length:6} s {one['frames']:8.0f} {one['mib']:10.0f} {one['seconds']:9.0f}"
            print(line, flush=True)
    if asked.plot:
        picture(lengths, peaks, asked.plot)


if __name__ == "__main__":
    main()
