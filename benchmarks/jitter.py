"""How steady does the pasted mouth stand on a face whose path is known?

    python benchmarks/jitter.py

Draws heads (so the truth is known), finds them with the built-in detector, and follows the crop's
mouth through the frame: where it is pasted, against where it would be by the true landmarks.

    jitter   change of that error from frame to frame, RMS: what trembles
    error    the error itself without its mean, RMS: what lags or drifts
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentsync import faces
from latentsync.faces import align
from latentsync.faces.detectors.landmarks import ANCHORS
from latentsync.training.synthetic import Identity, Mouth, Pose, draw, draw_motion
from latentsync.types import FaceTrack, FloatArray, Frame

SIZE, ZOOM = (640, 360), 0.8  # px
FRAMES = 100
RESOLUTION = 256  # px of the crop
MOUTH = (0.5, 0.7)  # of the crop's width and height

Paths = dict[str, list[Pose]]


def paths(seed: int) -> Paths:
    """A head that keeps still, one that glides by less than a pixel a frame, and one that lives."""
    times = np.arange(FRAMES) / FRAMES
    still = [Pose(tick=tick) for tick in range(FRAMES)]
    shifts = 0.25 * np.sin(2 * np.pi * times)
    gliding = [
        replace(pose, x=float(x), y=float(x) / 2) for pose, x in zip(still, shifts, strict=True)
    ]
    return {
        "still": still,
        "gliding": gliding,
        "lively": draw_motion(np.random.default_rng(seed), FRAMES, amount=1.0),
    }


def film(who: Identity, poses: list[Pose]) -> Iterator[tuple[Frame, FloatArray]]:
    for i, pose in enumerate(poses):
        mouth = Mouth(open=float(np.sin(i / 3) ** 2))
        frame, marks = draw(who, pose, mouth, SIZE, zoom=ZOOM)
        yield frame, marks[ANCHORS]


def mouth(track: FaceTrack) -> NDArray[np.float64]:
    """(n, 2) frame px where the crop's mouth is pasted."""
    place = np.array(MOUTH) * align.crop_size(RESOLUTION)
    shift = place - track.affine[:, :, 2]
    return np.linalg.solve(track.affine[:, :, :2].astype(np.float64), shift[..., None])[..., 0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--people", type=int, default=4)
    people = parser.parse_args().people
    detector = faces.create("builtin", root=Path("weights"))
    whole = np.ones(FRAMES, bool)
    ways = {
        "whole pixels (published)": (True, 0), "sub-pixel": (False, 0),
        "sub-pixel, smooth 5": (False, 5), "sub-pixel, smooth 9": (False, 9),
        "sub-pixel, smooth 15": (False, 15),
    }  # fmt: skip
    figures: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for person in range(people):
        for path, poses in paths(person).items():
            frames, truth = zip(*film(Identity.from_seed(9000 + person), poses), strict=True)
            goal = mouth(align.face_track(np.array(truth), whole, RESOLUTION))
            brows = np.linalg.norm(truth[0][1] - truth[0][0])
            for rounded in (True, False):
                (seen,) = faces.follow(iter(frames), detector, faces.LARGEST, rounded=rounded)
                for way, (this, smooth) in ways.items():
                    if this != rounded:
                        continue
                    track = align.face_track(seen.points, seen.detected, RESOLUTION, smooth=smooth)
                    error = (mouth(track) - goal)[track.detected]
                    jitter = np.sqrt((np.diff(error, axis=0) ** 2).sum(axis=1).mean())
                    off = np.sqrt(((error - error.mean(axis=0)) ** 2).sum(axis=1).mean())
                    figures.setdefault((way, path), []).append((jitter / brows, off / brows))
    print(f"{people} people, {FRAMES} frames each, brows about {brows:.0f} px apart; % of that\n")
    names = list(paths(0))
    print("| landmarks | " + " | ".join(f"{n}: jitter | {n}: error" for n in names) + " |")
    print("| --- |" + " --- |" * (2 * len(names)))
    for way in ways:
        cells = [100 * np.mean(figures[way, path], axis=0) for path in names]
        print(f"| {way} | " + " | ".join(f"{j:.2f} | {e:.2f}" for j, e in cells) + " |")


if __name__ == "__main__":
    main()
