"""Are people told apart by their looks, and known again?

    python benchmarks/likeness.py [--people 60] [--clips FOLDER]

Draws people that no training has seen in three rooms each, and compares what is kept of a face
(`faces.tracking.embedding.PatchEmbedding`): of one person in one room and in two, and of two people
in one room and in two. With --clips, also filmed people, one in each clip: their first half against
their second one, each against all others, and against themselves in another light, as a program
makes it.
"""

import argparse
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np

from latentsync.faces import Builtin
from latentsync.faces.tracking.embedding import PatchEmbedding, normalise
from latentsync.media import VideoReader
from latentsync.training.synthetic.scenes import draw_looks
from latentsync.types import Face, FloatArray, Frame

SEED = 2
EVERY = 5  # frames of a clip
LIGHTS = 8


def drawn(people: int) -> dict[str, FloatArray]:
    """Likeness of pairs, by what kind of pair it is."""
    cells, rooms = draw_looks(SEED, people)
    looks = normalise(PatchEmbedding().project(cells).mean(axis=2))  # (people, set-ups, n)
    cosines = np.einsum("isd,jtd->isjt", looks, looks)
    same_room = rooms[:, :, None, None] == rooms[None, None]
    person = np.arange(people)
    same_person = np.broadcast_to((person[:, None] == person)[:, None, :, None], cosines.shape)
    setup = np.arange(looks.shape[1])
    once = np.broadcast_to((setup[:, None] < setup)[None, :, None, :], cosines.shape)
    return {
        "one person, one room": cosines[same_person & same_room & once],
        "one person, two rooms": cosines[same_person & ~same_room & once],
        "two people, one room": cosines[~same_person & same_room],
        "two people, two rooms": cosines[~same_person & ~same_room],
    }


def filmed(folder: Path) -> dict[str, FloatArray]:
    patch, detector = PatchEmbedding(), Builtin()
    looks, relit = {}, {}
    for path in sorted(folder.glob("*.mp4")):
        found: list[tuple[Frame, Face]] = []
        for index, frame in enumerate(VideoReader(path).frames()):
            rgb = frame.rgb()
            faces = [] if index % EVERY else detector.detect(rgb)
            found += [(rgb, face) for face in faces[:1]]
        looks[path] = np.stack([patch.embed(*one) for one in found])
        relit[path] = [
            np.stack([patch.embed(in_light(rgb, light), face) for rgb, face in found[::4]])
            for light in range(LIGHTS)
        ]
        print(f"{path.name}: {len(found)} looks")
    mean = {path: normalise(looks[path].mean(axis=0)) for path in looks}
    halves = [(x[: len(x) // 2], x[len(x) // 2 :]) for x in looks.values()]
    apart = [
        mean[a] @ normalise(x.mean(axis=0)) for a in mean for b in mean for x in relit[b] if a != b
    ]
    return {
        "one person, two halves": np.array(
            [normalise(a.mean(axis=0)) @ normalise(b.mean(axis=0)) for a, b in halves]
        ),
        "one person, one look and the mean": np.concatenate([looks[p] @ mean[p] for p in looks]),
        "one person, two looks on end": np.concatenate(
            [(x[1:] * x[:-1]).sum(axis=1) for x in looks.values()]
        ),
        "one person, two lights": np.array(
            [mean[p] @ normalise(x.mean(axis=0)) for p in looks for x in relit[p]]
        ),
        "two people": np.array([mean[a] @ mean[b] for a, b in combinations(mean, 2)]),
        "two people, two lights": np.array(apart),
    }


def in_light(rgb: Frame, number: int) -> Frame:
    """Brighter or darker, warmer or cooler, lit from one side."""
    rng = np.random.default_rng(number)
    linear = (rgb / 255.0) ** 2.2
    warmth, side = rng.uniform(-0.12, 0.12), rng.uniform(-0.35, 0.35)
    across = 1 + side * np.linspace(-1, 1, rgb.shape[1])[None, :, None]
    lit = linear * np.exp(rng.uniform(-0.25, 0.25)) * (1 + warmth, 1, 1 - warmth) * across
    return np.asarray(np.clip(lit, 0, 1) ** (1 / 2.2) * 255, np.uint8)


def table(pairs: dict[str, FloatArray]) -> None:
    same, other = PatchEmbedding.same, PatchEmbedding.other
    print(f"\n| pairs | number | least | 1 % | median | 99 % | most | >= {same} | < {other} |")
    print("| --- |" + " --- |" * 8)
    for name, cosines in pairs.items():
        figures = np.quantile(cosines, (0, 0.01, 0.5, 0.99, 1))
        shares = 100 * np.mean(cosines >= same), 100 * np.mean(cosines < other)
        cells = [f"{value:.2f}" for value in figures] + [f"{share:.2f} %" for share in shares]
        print(f"| {name} | {cosines.size} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--clips", type=Path)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    table(drawn(arguments.people))
    if arguments.clips:
        table(filmed(arguments.clips))


if __name__ == "__main__":
    main()
