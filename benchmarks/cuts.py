"""Are cuts found, and is nothing else taken for one?

    python benchmarks/cuts.py

Draws a film of which every cut is known: a cut every second between people, rooms and framings;
then what is no cut: lively heads, flashes, fast pans, somebody close passing by; and dissolves,
where a shot begins as soon as the one before is gone.
Compares the own detector with those of scenedetect-headless (extra `[prepare]`), if there.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from latentsync.faces.tracking.shots import detect_shots
from latentsync.media import VideoFrame, VideoReader, VideoWriter
from latentsync.training.synthetic import Identity, Mouth, draw, draw_motion
from latentsync.types import Frame

SIZE = (480, 270)  # px
SECOND = 25  # frames
DISSOLVE = 12  # frames
WIDE = 3  # the picture that is panned over: times the frame's width

Shot = list[Frame]


def person(seed: int, frames: int = SECOND, *, zoom: float = 0.8, room: int | None = None) -> Shot:
    """A talking head that moves; in the room of another, where one is named."""
    who, rng = Identity.from_seed(seed), np.random.default_rng(seed)
    if room is not None:
        who = replace(who, seed=room)
    poses = draw_motion(rng, frames, amount=1.5)
    return [draw(who, p, Mouth(open=float(rng.random())), SIZE, zoom=zoom)[0] for p in poses]


def flashes(shot: Shot) -> Shot:
    """One frame, two, and three with a flash on them."""
    lit = {5, 10, 11, 16, 17, 18}
    brighter = [f.astype(float) * 0.5 + 127 for f in shot]
    return [
        b.astype(np.uint8) if i in lit else f
        for i, (f, b) in enumerate(zip(shot, brighter, strict=True))
    ]


def pan(seed: int, frames: int) -> Shot:
    """Over several people side by side, there and back in two seconds' time or less."""
    wide = np.hstack([person(seed + i, 1)[0] for i in range(WIDE)])
    path = (1 - np.cos(np.linspace(0, 2 * np.pi, frames))) / 2 * (WIDE - 1) * SIZE[0]
    return [np.ascontiguousarray(wide[:, x : x + SIZE[0]]) for x in path.astype(int)]


def passing(shot: Shot) -> Shot:
    """Somebody walks by close to the camera, filling half of the picture, in half a second."""
    width = SIZE[0] // 2
    passed = [f.copy() for f in shot]
    for i, x in enumerate(np.linspace(-width, SIZE[0], SECOND // 2).astype(int), start=5):
        passed[i][:, max(0, x) : max(0, x + width)] = (35, 30, 40)
    return passed


def dissolve(a: Shot, b: Shot) -> list[Shot]:
    """Two shots, the first of which becomes the second on its last frames."""
    share = np.linspace(0, 1, DISSOLVE + 2)[1:-1]
    mixed = [(1 - s) * x + s * y for s, x, y in zip(share, a[-DISSOLVE:], b, strict=False)]
    return [a[:-DISSOLVE] + [m.astype(np.uint8) for m in mixed], b[DISSOLVE:]]


def film() -> dict[str, list[Shot]]:
    """Chapters of shots; between two shots of any chapter there is a cut."""
    return {
        "other people and rooms": [person(s) for s in range(300, 312)],
        "other people, same room": [person(s, room=320) for s in range(320, 328)],
        "same person, closer": [person(330, zoom=z) for z in (0.6, 1.0, 0.6, 1.2, 0.7)],
        "flashes": [flashes(person(s)) for s in range(340, 343)],
        "fast pans": [pan(s, n) for s, n in ((350, 50), (353, 30), (356, 20))],
        "somebody passing": [passing(person(s)) for s in range(360, 363)],
        "lively heads": [person(s, 3 * SECOND) for s in range(370, 373)],
        "dissolves": [
            shot
            for s in (380, 382, 384)
            for shot in dissolve(person(s, 2 * SECOND), person(s + 1, 2 * SECOND))
        ],
    }


def own(path: Path) -> list[int]:
    return [i for i, (_, cut) in enumerate(detect_shots(VideoReader(path).frames())) if cut]


def decoding(path: Path) -> None:
    for _frame in VideoReader(path).frames():
        pass


def scenedetect(name: str) -> Callable[[Path], list[int]]:
    def found(path: Path) -> list[int]:
        import scenedetect

        detector = getattr(scenedetect, name)(min_scene_len=10)
        return [start.frame_num for start, _ in scenedetect.detect(str(path), detector)][1:]

    return found


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    chapters = film()
    shots = [shot for chapter in chapters.values() for shot in chapter]
    starts = np.cumsum([0, *map(len, shots)])
    truth = starts[1:-1]
    finders: dict[str, Callable[[Path], list[int]]] = {"own": own}
    for name in ("ContentDetector", "AdaptiveDetector", "HistogramDetector", "HashDetector"):
        finders[name] = scenedetect(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "film.mp4")
        with VideoWriter(path, audio=None, crf=23) as video:
            for shot in shots:
                for frame in shot:
                    video.write(VideoFrame.from_rgb(frame))
        print(f"{starts[-1]} frames of {SIZE[0]} x {SIZE[1]} px, {len(truth)} cuts\n")
        begin = time.perf_counter()
        decoding(path)
        alone = time.perf_counter() - begin
        print(f"decoding alone: {alone / starts[-1] * 1000:.2f} ms a frame")
        for name, find in finders.items():
            begin = time.perf_counter()
            try:
                found = find(path)
            except ImportError:
                print("scenedetect-headless is not installed")
                break
            seconds = time.perf_counter() - begin
            report(name, found, truth.tolist(), chapters)
            print(f"    {seconds / starts[-1] * 1000:.2f} ms a frame, decoding included")


def report(name: str, found: list[int], truth: list[int], chapters: dict[str, list[Shot]]) -> None:
    missed = sorted(set(truth) - set(found))
    extra = sorted(set(found) - set(truth))
    print(f"{name}: found {len(truth) - len(missed)} of {len(truth)}, {len(extra)} where none is")
    start = 0
    for chapter, shots in chapters.items():
        stop = start + sum(map(len, shots))
        counts = [sum(start <= i < stop for i in frames) for frames in (missed, extra)]
        if any(counts):
            print(f"    {chapter}: {counts[0]} missed, {counts[1]} extra")
        start = stop


if __name__ == "__main__":
    main()
