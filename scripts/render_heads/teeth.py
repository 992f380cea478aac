"""Teeth as rounded boxes along the dental arch, and gums, in rest coordinates."""

from dataclasses import dataclass

import numpy as np

from .makehuman import Floats, Ints

__all__ = ["Jaw", "draw_jaw"]

# dm, from the middle outwards: incisors, canine, premolars, molar; common values of adults.
_WIDTHS = {
    True: (0.086, 0.066, 0.076, 0.07, 0.068, 0.09),
    False: (0.054, 0.06, 0.068, 0.07, 0.07, 0.09),
}
_HEIGHTS = {
    True: (0.102, 0.088, 0.1, 0.085, 0.08, 0.075),
    False: (0.085, 0.086, 0.095, 0.085, 0.08, 0.075),
}
# y of the biting edges. The upper one is 2 to 3 mm below MakeHuman's, whose lip hides all teeth.
_EDGE = {True: 6.572, False: 6.618}
_CANINE = 2


@dataclass(frozen=True)
class Jaw:
    """One row of teeth and its gum: vertices (n, 3) and quads (m, 4)."""

    teeth: Floats
    teeth_quads: Ints
    gum: Floats
    gum_quads: Ints
    from_edge: Floats  # (n,) of each vertex of a tooth, 0 at the biting edge .. 1
    inside: Floats  # (n,) 0 in front .. 1 at the molars


def draw_jaw(rng: np.random.Generator, band: Floats, upper: bool) -> Jaw:
    """Draw a row of twelve teeth along MakeHuman's featureless band, (n, 3)."""
    arch = _arch(band)
    size, crooked = rng.uniform(0.94, 1.04), abs(rng.normal(0, 0.5))
    box, quads = _rounded_box()
    vertices: list[Floats] = []
    faces: list[Ints] = []
    for side in (-1, 1):
        start = 0.0
        for index, width in enumerate(_WIDTHS[upper]):
            middle, start = start + width * size / 2, start + width * size
            if start > arch[0][-1]:
                break
            tooth = _tooth(box, index, upper, size)
            tooth[:, 0] += rng.normal(0, 0.03 * crooked) * (tooth[:, 1] - tooth[:, 1].mean())
            tooth[:, 1] += rng.normal(0, 0.004 * crooked)
            tooth = _placed(tooth, arch, middle)
            tooth[:, 0] *= side
            faces.append((quads if side > 0 else quads[:, ::-1]) + len(box) * len(vertices))
            vertices.append(tooth)
    teeth = np.concatenate(vertices)
    gum, gum_quads = _gum(arch, upper, size)
    edge = teeth[:, 1].min() if upper else teeth[:, 1].max()
    return Jaw(
        teeth=teeth,
        teeth_quads=np.concatenate(faces),
        gum=gum,
        gum_quads=gum_quads,
        from_edge=np.clip(np.abs(teeth[:, 1] - edge) / 0.1, 0, 1),
        inside=np.clip((1.42 - teeth[:, 2]) / 0.45, 0, 1),
    )


Arch = tuple[Floats, Floats, Floats]
"""Half of the dental arch from the middle outwards: length so far, x, z; dm."""


def _arch(band: Floats) -> Arch:
    wide, front, back = np.abs(band[:, 0]).max(), band[:, 2].max(), band[:, 2].min()
    x = wide * np.sin(np.linspace(0, np.pi / 2, 400)) ** 0.95
    z = front - 0.012 - (front - back) * (x / wide) ** 2.4
    length = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(z)))])
    return length, x, z


def _rounded_box(around: int = 14, rows: int = 9, power: float = 0.45) -> tuple[Floats, Ints]:
    """A superellipsoid in [-1, 1]^3."""
    u = np.linspace(-np.pi, np.pi, around, endpoint=False)
    v = np.linspace(-np.pi / 2, np.pi / 2, rows)[:, None]

    def bulge(wave: Floats) -> Floats:
        return np.sign(wave) * np.abs(wave) ** power

    x, y, z = (
        bulge(np.cos(v)) * bulge(np.cos(u)),
        bulge(np.sin(v)),
        bulge(np.cos(v)) * bulge(np.sin(u)),
    )
    points = np.stack(np.broadcast_arrays(x, y, z), axis=-1).reshape(-1, 3)
    return points, _grid(rows, around)


def _grid(rows: int, around: int) -> Ints:
    """Quads of a tube: `rows` rings of `around` points."""
    ring, step = np.arange(rows - 1)[:, None] * around, np.arange(around)
    after = (step + 1) % around
    quads = [ring + step, ring + after, ring + around + after, ring + around + step]
    return np.stack(quads, axis=-1).reshape(-1, 4)


def _tooth(box: Floats, index: int, upper: bool, size: float) -> Floats:
    """One tooth: x along the arch, y up at its place, z outwards."""
    width, height = _WIDTHS[upper][index] * size, _HEIGHTS[upper][index] * size * 1.25
    up = (box[:, 1] + 1) / 2
    from_edge = up if upper else 1 - up
    tooth = box * (width * 0.485, height / 2, 0.034)
    if index == _CANINE:
        tooth[:, 0] *= 0.75 + 0.25 * np.clip(from_edge * 2, 0, 1)
    else:
        tooth[:, 0] *= 0.86 + 0.14 * np.sqrt(np.clip(1 - from_edge, 0, 1))
    tooth[:, 2] *= 0.45 + 0.55 * np.clip(from_edge * 1.6, 0, 1)
    tooth[:, 2] += 0.012 * (from_edge - 0.4) - 0.01
    shorter = 0.012 if upper and index == 1 else 0.0
    tooth[:, 1] += _EDGE[upper] + shorter + height / 2 * (1 if upper else -1)
    return tooth


def _directions(arch: Arch, at: float) -> tuple[Floats, Floats]:
    """Unit vectors along the arch and outwards."""
    length, x, z = arch
    ends = np.array([at - 0.01, at + 0.01])
    along = np.array(
        [np.diff(np.interp(ends, length, x))[0], 0, np.diff(np.interp(ends, length, z))[0]]
    )
    along /= np.linalg.norm(along)
    return along, np.array([-along[2], 0, along[0]])


def _placed(tooth: Floats, arch: Arch, at: float) -> Floats:
    length, x, z = arch
    along, outwards = _directions(arch, at)
    placed = np.outer(tooth[:, 0], along) + np.outer(tooth[:, 2], outwards)
    placed[:, 1] += tooth[:, 1]
    middle = np.array([np.interp(at, length, x), 0, np.interp(at, length, z)])
    return np.asarray(placed + middle)


def _gum(
    arch: Arch, upper: bool, size: float, rings: int = 61, around: int = 12
) -> tuple[Floats, Ints]:
    """A scalloped tube behind the necks of the teeth."""
    length, x, z = arch
    height = 0.1 if upper else 0.075
    up = 1 if upper else -1
    y = _EDGE[upper] + up * ((0.098 if upper else 0.082) * size + height * 0.75)
    angles = np.linspace(0, 2 * np.pi, around, endpoint=False)
    # The lower ridge leans back, or it would poke through the chin.
    lean = np.zeros(around) if upper else 0.06 * np.maximum(0, -np.sin(angles))
    out = np.cos(angles) * 0.042 - 0.014 - lean
    points = []
    for at in np.linspace(-length[-1], length[-1], rings):
        side = -1.0 if at < 0 else 1.0
        _, outwards = _directions(arch, abs(at))
        scallop = 0.012 * np.cos(at / 0.075 * 2 * np.pi)
        ring = np.outer(out, outwards)
        ring += np.array([np.interp(abs(at), length, x), y, np.interp(abs(at), length, z)])
        ring[:, 1] += np.sin(angles) * (height + scallop)
        points.append(ring * (side, 1, 1))
    return np.concatenate(points), _grid(rings, around)
