"""Brows, beards and hair as strands: (n, k, 3) points in dm, from roots on the mesh."""

from dataclasses import dataclass

import numpy as np

from .makehuman import Floats, Ints, MakeHuman
from .people import Look, Shape
from .skin import Masks
from .surface import Roots, draw_roots

__all__ = ["BROW_X", "BROW_Y", "Strands", "draw_beard", "draw_brows", "draw_scalp"]

# The line of the brows in rest coordinates, y at x.
BROW_X, BROW_Y = (0.10, 0.2, 0.36, 0.52), (7.415, 7.455, 7.485, 7.42)
_BEARD_LENGTH_DM = {"short": 0.05, "full": 0.14, "moustache": 0.07}
_BEARD_STRANDS = {"short": 6000, "full": 9000, "moustache": 1500}
_LENGTH_DM = {"buzz": 0.05, "short": 0.3, "medium": 0.75, "long": 2.6}
_STRANDS = {"buzz": 12000, "short": 11000, "medium": 9000, "long": 8000}
_SKULL = np.array([0.78, 1.0, 1.0])  # dm, half axes of the ellipsoid that long hair slides over
# The hair line, y at z: at the nape, behind and before the ear, the temple, the forehead.
_LINE_Z = (-0.9, 0.05, 0.3, 0.52, 0.7, 0.95, 1.25, 1.6)
_LINE_Y = (6.7, 6.7, 7.0, 7.1, 7.25, 7.62, 7.86, 7.9)


@dataclass(frozen=True)
class Strands:
    roots: Roots
    points: Floats  # (n, k, 3) dm, on the neutral face
    radius_m: float
    tip: float  # radius at the tip, as a share


def _straight(
    rng: np.random.Generator,
    start: Floats,
    direction: Floats,
    length: Floats,
    points: int,
    curl: float = 0.0,
    droop: float = 0.0,
) -> Floats:
    direction = direction / (np.linalg.norm(direction, axis=1, keepdims=True) + 1e-9)
    t = np.linspace(0, 1, points)[None, :, None]
    strands = start[:, None] + direction[:, None] * t * length[:, None, None]
    strands[:, :, 1] -= droop * t[..., 0] ** 2 * length[:, None]
    if curl:
        strands += curl * rng.normal(0, 1, strands.shape) * t * length[:, None, None]
    return np.asarray(strands)


def draw_brows(
    rng: np.random.Generator,
    data: MakeHuman,
    shape: Shape,
    triangles: Ints,
    candidates: int = 20000,
) -> Strands:
    """Scatter hairs along the line of the brows, and keep those that are near it."""
    rest = data.vertices
    x = np.abs(rest[:, 0])
    near = np.abs(rest[:, 1] - np.interp(x, BROW_X, BROW_Y)) < 0.22
    area = (x > 0.02) & (x < 0.7) & (rest[:, 2] > 0.9) & near
    roots = draw_roots(rng, rest, triangles, area.astype(float), candidates)
    place = roots.at(rest)
    x = np.abs(place[:, 0])
    groomed = 0.75 if shape.female > 0.5 and rng.random() < 0.5 else 1.0
    thick = np.interp(x, (0.08, 0.14, 0.36, 0.54), (0.022, 0.05, 0.04, 0.012))
    thick *= groomed * rng.uniform(0.75, 1.25)
    across = (place[:, 1] - np.interp(x, BROW_X, BROW_Y)) / thick
    density = np.exp(-1.1 * across**2)
    density /= (1 + np.exp(-(x - 0.1) / 0.012)) * (1 + np.exp((x - 0.52) / 0.02))
    roots = roots[rng.random(candidates) < density * rng.uniform(0.6, 1.1)]
    start, normals, place = roots.at(shape.vertices), roots.normals(shape.vertices), roots.at(rest)
    x = np.abs(place[:, 0])
    outwards = np.sign(place[:, 0]) * np.interp(x, (0.1, 0.2, 0.5), (0.35, 0.9, 1.0))
    upwards = np.interp(x, (0.1, 0.25, 0.5), (0.9, 0.35, -0.15))
    direction = np.stack([outwards, upwards, np.zeros(len(x))], axis=1)
    direction += 0.35 * normals + rng.normal(0, 0.18, normals.shape)
    length = rng.uniform(0.05, 0.09, len(x))
    points = _straight(rng, start + 0.004 * normals, direction, length, 4)
    return Strands(roots, points, rng.uniform(8e-5, 1.4e-4), tip=0.3)


def draw_beard(
    rng: np.random.Generator,
    data: MakeHuman,
    shape: Shape,
    triangles: Ints,
    masks: Masks,
    kind: str,
) -> Strands:
    count = _BEARD_STRANDS[kind]
    density = masks.moustache if kind == "moustache" else masks.beard
    roots = draw_roots(rng, data.vertices, triangles, density**1.5, count)
    normals = roots.normals(shape.vertices)
    direction = 0.55 * normals + (0, -0.9, 0.1) + rng.normal(0, 0.25, normals.shape)
    length = _BEARD_LENGTH_DM[kind] * rng.uniform(0.5, 1.2, count)
    points = _straight(rng, roots.at(shape.vertices), direction, length, 4, curl=0.08)
    return Strands(roots, points, rng.uniform(6e-5, 9e-5), tip=0.3)


def draw_scalp(
    rng: np.random.Generator,
    data: MakeHuman,
    shape: Shape,
    triangles: Ints,
    ears: Floats,
    look: Look,
) -> Strands:
    """Draw the hair of the head; `ears` is a mask, one a vertex."""
    rest, cut = data.vertices, look.cut
    y, count = rest[:, 1], _STRANDS[cut]
    line = np.interp(rest[:, 2], _LINE_Z, _LINE_Y) + rng.normal(0, 0.05)
    density = np.clip((y - line) / 0.06, 0, 1) * (ears < 0.2) * (y > 6.6)
    if look.receding:
        above = np.clip((8.25 - 0.5 * shape.age - y) / 0.1, 0, 1)
        density = density * above + 0.02 * density
    roots = draw_roots(rng, rest, triangles, density, count)
    length = _LENGTH_DM[cut] * rng.uniform(0.75, 1.25) * rng.uniform(0.75, 1.1, count)
    if cut in ("buzz", "short"):
        points = _standing(rng, shape, roots, length)
    else:
        points = _hanging(rng, data, shape, roots, length)
    return Strands(
        roots, points, rng.uniform(1.1e-4, 1.8e-4) * (1.4 if cut == "long" else 1), tip=0.4
    )


def _standing(rng: np.random.Generator, shape: Shape, roots: Roots, length: Floats) -> Floats:
    normals = roots.normals(shape.vertices)
    top = np.clip(normals[:, 1:2], 0, 1)
    combed = np.array([rng.normal(0, 0.4), 0, rng.uniform(-0.6, 0.5)])
    direction = (
        normals * rng.uniform(0.6, 1.0) + combed * top + np.array([0, -0.5, -0.2]) * (1 - top)
    )
    direction += rng.normal(0, 0.22, normals.shape)
    curl = rng.choice([0.0, 0.1, 0.25])
    return _straight(rng, roots.at(shape.vertices), direction, length, 5, curl=curl, droop=0.25)


def _hanging(
    rng: np.random.Generator, data: MakeHuman, shape: Shape, roots: Roots, length: Floats
) -> Floats:
    """Strands that slide down an ellipsoid around the head, keep off the face, then hang."""
    count, steps = len(roots), 9
    start, normals = roots.at(shape.vertices), roots.normals(shape.vertices)
    centre = shape.vertices[data.groups["joint-head"]].mean(axis=0) + np.array([0, 0.35, 0.1])
    parting = rng.normal(0.1, 0.12) * rng.choice([-1, 1])
    side = np.sign(start[:, 0] - parting) * 0.8 * (roots.at(data.vertices)[:, 1] > 7.4)
    velocity = normals * 0.6 + rng.normal(0, 0.1, normals.shape)
    velocity += np.stack([side, np.zeros(count), np.full(count, -rng.uniform(0.1, 0.9))], axis=1)
    least = np.linalg.norm((start - centre) / _SKULL, axis=1) + 0.05
    wave, phase = rng.uniform(0, 0.03) * rng.choice([0, 1]), rng.uniform(0, 0.9, count)
    strands = [start]
    step = (length / (steps - 1))[:, None]
    for index in range(1, steps):
        velocity /= np.linalg.norm(velocity, axis=1, keepdims=True)
        at = strands[-1] + velocity * step
        from_centre = (at - centre) / _SKULL
        radius = np.linalg.norm(from_centre, axis=1)
        least_here = least + 0.03 * rng.random(count)
        pushed = (radius < least_here) & (at[:, 1] > 6.2)
        outside = centre + from_centre * (least_here / radius)[:, None] * _SKULL
        at = np.where(pushed[:, None], outside, at)
        _keep_off_face(at, parting)
        velocity = at - strands[-1] + (0, -0.55, 0) * step
        at[:, 0] += wave * np.sin(index * 1.5 + phase)
        strands.append(at)
    return np.stack(strands, axis=1)


def _keep_off_face(points: Floats, parting: float) -> None:
    """Move strands that hang before the face to its sides, in place."""
    x, y, z = points.T
    before = (z > 0.75) & (np.abs(x) < 0.72) & (y < 7.75)
    edge = np.where(x >= parting, 0.72, -0.72)
    points[before, 0] = (edge + 0.1 * (x - edge))[before]
    points[before, 2] = np.minimum(z, 1.0)[before]
