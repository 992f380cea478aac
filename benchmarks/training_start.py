"""How long does training take to start on many clips, in how much memory?

    python benchmarks/training_start.py --clips 100000

Clips as `latentsync prepare` leaves them, with their index, and a cache that knows them all: files
of holes in a temporary folder, whose sizes are real and whose bytes are never read (reading one
would give another hash, and the clip would have to be prepared). Timed is what a start does before
it loads nets: find the clips, tell what is in each, look at the cache, hold some out. In a process
of its own for each size of clip, so that memory can be compared.
"""

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

from latentsync.training.clip_cache import Preparer
from latentsync.training.clips import ClipFile, find_clips, identify_clips
from latentsync.training.dataset import prepare, split

FILES = {"clean": 1024, "masked": 1024, "speech": 512, "mel": 256, "affine": 64}  # bytes, of holes
FRAMES = 175  # 7 s


class Known(Preparer):
    """A preparer whose nets are not there; all it does is to look into its cache."""

    settings = "benchmark"


def preparer(folder: Path) -> Preparer:
    return Known(SimpleNamespace(), SimpleNamespace(), folder / "cache")  # type: ignore[arg-type]


def hole(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def make(folder: Path, clips: int, size: int) -> None:
    maker = preparer(folder)
    (folder / "data" / "clips").mkdir(parents=True)
    facts = {"unusable": "", "first": 0, "frames": FRAMES, "tokens": 2 * FRAMES, "first_token": 0}
    text = json.dumps({**facts, "files": {f"{name}.npy": size for name, size in FILES.items()}})
    with (folder / "data" / "index.jsonl").open("w") as index:
        for number in range(clips):
            name = f"clips/clip_{number:06d}.000000-000175.mp4"
            digest = hashlib.sha256(name.encode()).hexdigest()
            hole(folder / "data" / name, size)
            source = f"person_{number // 40:05d}/{number // 4}.mp4"
            line = {"clip": name, "source": source, "bytes": size, "sha256": digest}
            index.write(json.dumps({**line, "frames": FRAMES, "face_px": 181.5}) + "\n")
            known = maker.folder(ClipFile(Path(name), digest, "", ""))
            known.mkdir(parents=True)
            for part, length in FILES.items():
                hole(known / f"{part}.npy", length)
            (known / "facts.json").write_text(text)
    os.utime(folder / "data" / "index.jsonl")


def start(folder: Path) -> None:
    """One line of JSON: seconds of each part, and how much memory they took."""

    def memory() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    before, seconds, now = memory(), {}, time.perf_counter()
    begun = time.process_time()

    def took(part: str) -> None:
        nonlocal now
        seconds[part] = round(time.perf_counter() - now, 2)
        now = time.perf_counter()

    paths = find_clips(folder / "data")
    took("find")
    files = identify_clips(paths, folder / "data", folder / "cache")
    took("identify")
    clips = prepare(files, preparer(folder))
    took("cache")
    shown, held = split(clips)
    took("split")
    assert len(clips) == len(paths)
    assert {clip.file.people for clip in shown}.isdisjoint(clip.file.people for clip in held)
    seconds["CPU"] = round(time.process_time() - begun, 2)
    print(json.dumps({**seconds, "MiB": round(memory() - before), "held out": len(held)}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1 << 20, 1 << 30], help="bytes")
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        start(options.start)
        return
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as place:
            make(Path(place), options.clips, size)
            for _ in range(2):
                command = [sys.executable, __file__, "--start", place]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                print(f"{options.clips} clips of {size / 2**20:g} MiB: {done.stdout}", end="")


if __name__ == "__main__":
    main()
