"""What does finding the face cost, and what is lost by looking at less?

    python benchmarks/detection.py parts
    python benchmarks/detection.py every

parts   a drawn head, enlarged to common frame sizes, as whole RGB frames and as pictures of which
        only parts are made: time a frame, the most memory of a process that looks through them,
        and how far apart the landmarks of both are
every   heads that keep still, glide, live, leave the frame and come back, or are cut from one
        person to the next, the whole frame searched in one of so many: time, the share of the
        frames with a face in which it is found, and jitter and error as in jitter.py

The built-in detector, on the CPU; `parts` reads the memory as Linux counts it.
"""

import argparse
import re
import tempfile
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import cv2
import jitter
import numpy as np
from numpy.typing import NDArray

from latentsync import faces
from latentsync.faces import LARGEST, Builtin, align
from latentsync.media import Colour, VideoFrame
from latentsync.training.synthetic import Identity, Pose, draw_motion
from latentsync.types import Face

SIZES = {"720p": 720, "1080p": 1080, "4K": 2160}
DRAWN = (1280, 720)  # px
EVERY = (1, 2, 4, 8)
FRAMES = jitter.FRAMES
AWAY = (35, 65)  # frames between which a head is beyond the frame's edge


def enlarged(height: int, count: int = 12) -> list[VideoFrame]:
    poses = draw_motion(np.random.default_rng(3), count, amount=1.0)
    scale = height / DRAWN[1]
    jitter.SIZE = DRAWN
    drawn = [frame for frame, _ in jitter.film(Identity.from_seed(9001), poses)]
    sized = [cv2.resize(f, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) for f in drawn]
    return [VideoFrame.from_rgb(frame) for frame in sized]


def peak_mib(planes: Path, whole: bool) -> float:
    """The most memory of a process of its own that follows the face through stored frames."""
    with np.load(planes) as stored:
        count = len(stored.files) // 3
        loaded = (
            VideoFrame((*(stored[f"{i}_{p}"] for p in range(3)),), Colour()) for i in range(count)
        )
        frames = (frame.rgb() for frame in loaded) if whole else loaded
        faces.follow(frames, Builtin(), LARGEST)
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


def peaks_mib(frames: list[VideoFrame]) -> list[float]:
    """Of whole frames, and of parts."""
    with tempfile.TemporaryDirectory() as folder:
        planes = Path(folder, "planes.npz")
        named = {
            f"{i}_{p}": plane for i, f in enumerate(frames) for p, plane in enumerate(f.planes())
        }
        np.savez(planes, **named)
        with get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            return pool.starmap(peak_mib, [(planes, True), (planes, False)], chunksize=1)


def parts() -> None:
    print("| frame | whole, ms | parts, ms | whole, MiB | parts, MiB | apart, % of the brows |")
    print("| --- |" + " --- |" * 5)
    detector = Builtin()
    for name, height in SIZES.items():
        frames = enlarged(height)
        times: dict[bool, list[float]] = {True: [], False: []}
        seen: dict[bool, list[Face]] = {True: [], False: []}
        for frame in frames:  # both ways in turn, so that what else runs here slows both
            for whole in times:
                begin = time.perf_counter()
                seen[whole] += detector.detect(frame.rgb() if whole else frame)
                times[whole].append(time.perf_counter() - begin)
        points, others = (np.array([face.points for face in one]) for one in seen.values())
        brows = np.linalg.norm(points[:, 1] - points[:, 0], axis=1)[:, None, None]
        apart = 100 * np.abs((points - others) / brows)
        cells = [f"{1000 * np.median(one):.0f}" for one in times.values()]
        cells += [f"{mib:.0f}" for mib in peaks_mib(frames)]
        print(f"| {name} | {' | '.join(cells)} | {apart.mean():.2f}, at most {apart.max():.2f} |")


Shot = tuple[list[VideoFrame], NDArray[np.float64], NDArray[np.bool_], float]
"""Frames, where the crop's mouth belongs in each, whether the head is in it, px between brows."""


def shot(person: int, poses: list[Pose], there: NDArray[np.bool_]) -> Shot:
    drawn = list(jitter.film(Identity.from_seed(9000 + person), poses))
    points = np.array([marks for _, marks in drawn], np.float32)
    track = align.face_track(points, np.ones(len(points), bool), jitter.RESOLUTION)
    brows = float(np.linalg.norm(points[0, 1] - points[0, 0]))
    return [VideoFrame.from_rgb(frame) for frame, _ in drawn], jitter.mouth(track), there, brows


def shots(person: int) -> dict[str, Shot]:
    paths, whole = jitter.paths(person), np.ones(FRAMES, bool)
    made = {name: shot(person, poses, whole) for name, poses in paths.items()}
    # Out to the right in ten frames, as long away as between, and back.
    way = np.interp(np.arange(FRAMES), (AWAY[0] - 10, AWAY[0], AWAY[1], AWAY[1] + 10), (0, 1, 1, 0))
    poses = [replace(pose, x=pose.x + 4 * w) for pose, w in zip(paths["lively"], way, strict=True)]
    made["leaving"] = shot(person, poses, way < 0.3)
    half, other = made["lively"], shot(person + 100, paths["lively"][::-1], whole)
    keep = FRAMES // 2 + 1  # no multiple of EVERY
    frames, goals = (
        half[0][:keep] + other[0][keep:],
        np.concatenate([half[1][:keep], other[1][keep:]]),
    )
    made["cut"] = frames, goals, whole, half[3]
    return made


def every(people: int) -> None:
    detector = Builtin()
    rows: dict[tuple[str, int], list[tuple[float, ...]]] = {}
    for person in range(people):
        for name, (frames, goals, there, brows) in shots(person).items():
            for n in EVERY:
                begin = time.process_time()
                (seen,) = faces.follow(frames, detector, LARGEST, detect_every=n)
                spent = time.process_time() - begin
                track = align.face_track(
                    seen.points, seen.detected, jitter.RESOLUTION, seen.shot_start
                )
                both = track.detected & there
                error = (jitter.mouth(track) - goals)[both]
                steps = np.diff(error, axis=0)[np.diff(np.flatnonzero(both)) == 1]
                trembles = np.sqrt((steps**2).sum(axis=1).mean()) / brows
                off = np.sqrt(((error - error.mean(axis=0)) ** 2).sum(axis=1).mean()) / brows
                figures = (1000 * spent / FRAMES, 100 * both.sum() / there.sum())
                rows.setdefault((name, n), []).append((*figures, 100 * trembles, 100 * off))
    print("| head | " + " | ".join(f"{n}: ms | found | jitter | error" for n in EVERY) + " |")
    print("| --- |" + " --- |" * (4 * len(EVERY)))
    for name in dict.fromkeys(name for name, _ in rows):
        means = [np.mean(rows[name, n], axis=0) for n in EVERY]
        cells = [f"{m:.0f} | {found:.0f} % | {j:.2f} | {e:.2f}" for m, found, j, e in means]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("question", choices=["parts", "every"])
    parser.add_argument("--people", type=int, default=4)
    arguments = parser.parse_args()
    if arguments.question == "parts":
        parts()
    else:
        every(arguments.people)


if __name__ == "__main__":
    main()
