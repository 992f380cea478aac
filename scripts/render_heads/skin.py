"""Skin painted once a person, as one colour, roughness and height for each vertex.

A shader without noise textures renders 2.2 times as fast as one with them. All masks live in rest
coordinates, so they fit everybody and don't swim when the face moves.
"""

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from .makehuman import Floats, Ints
from .people import Look

__all__ = ["Masks", "PaintedSkin", "noise", "paint_skin", "skin_masks"]

_INSIDE_MOUTH = (0.25, 0.05, 0.045)
_DEEP = (0.7, 0.6, 0.56)  # darker patches, as a share of the skin's colour


@dataclass(frozen=True)
class Masks:
    """Where on the skin something is, (n,) each, 0..1."""

    red: Floats  # cheeks, nose, chin, ears
    dark: Floats  # around the eyes
    lids: Floats  # upper lids, where eyeshadow goes
    beard: Floats
    moustache: Floats
    lips: Floats
    inside: Floats  # of the mouth
    forehead: Floats
    front: Floats  # where freckles are
    corners: Floats  # of the eyes, where crow's feet are
    shiny: Floats


@dataclass(frozen=True)
class PaintedSkin:
    colour: Floats  # (n, 3) linear RGB
    roughness: Floats  # (n,)
    height: Floats  # (n,) dm, along the normal


def skin_masks(rest: Floats, lips: Floats, inside: Floats, bare: Floats) -> Masks:
    """Compute the masks at points in rest coordinates.

    Args:
        lips: texture mask at the points.
        inside: likewise, of the mouth's inside.
        bare: 0 on lips, ears and lids, where no beard grows.
    """
    sides = np.column_stack([np.abs(rest[:, 0]), rest[:, 1:]])

    def spot(
        *parts: tuple[float, tuple[float, float, float], tuple[float, float, float]],
    ) -> Floats:
        blobs = [
            weight * np.exp(-0.5 * (((sides - centre) / radius) ** 2).sum(axis=1))
            for weight, centre, radius in parts
        ]
        return np.clip(np.sum(blobs, axis=0), 0, 1)

    moustache = np.clip(
        1.3
        * spot(
            (1.2, (0.0, 6.735, 1.55), (0.19, 0.045, 0.2)),
            (0.7, (0.26, 6.67, 1.45), (0.05, 0.07, 0.15)),
        ),
        0,
        1,
    )
    return Masks(
        red=(1 - lips)
        * spot(
            (0.9, (0.36, 6.95, 1.35), (0.16, 0.16, 0.3)),
            (0.8, (0, 6.92, 1.66), (0.12, 0.09, 0.1)),
            (0.5, (0, 6.38, 1.5), (0.15, 0.08, 0.2)),
            (0.35, (0.17, 6.86, 1.5), (0.07, 0.08, 0.1)),
            (0.6, (0.75, 7.05, 0.3), (0.12, 0.3, 0.3)),
        ),
        dark=spot(
            (0.9, (0.28, 7.16, 1.4), (0.13, 0.05, 0.15)),
            (0.6, (0.17, 7.26, 1.4), (0.05, 0.08, 0.1)),
            (0.35, (0.3, 7.37, 1.4), (0.14, 0.05, 0.1)),
        ),
        lids=spot((1, (0.31, 7.335, 1.38), (0.12, 0.035, 0.15))),
        beard=np.clip(_jaw(sides) + moustache, 0, 1) * bare * (inside < 0.3),
        moustache=moustache * bare * (inside < 0.3),
        lips=lips,
        inside=inside,
        forehead=spot((1, (0, 7.68, 1.4), (0.5, 0.11, 0.5))),
        front=spot((1, (0.15, 7.05, 1.5), (0.4, 0.35, 0.5))),
        corners=spot((1, (0.56, 7.27, 1.15), (0.08, 0.1, 0.2))),
        shiny=spot(
            (1, (0, 7.7, 1.45), (0.3, 0.15, 0.3)),
            (1, (0, 7.0, 1.66), (0.1, 0.2, 0.15)),
            (0.7, (0.36, 7.05, 1.35), (0.12, 0.1, 0.2)),
        ),
    )


def _jaw(sides: Floats) -> Floats:
    """Where a full beard grows, without the moustache."""
    x, y, z = sides.T
    below_cheek = _sigmoid((6.62 + 0.55 * np.clip(x - 0.25, 0, 1) - y) / 0.03)
    sideburn = _sigmoid((x - 0.52) / 0.03) * (y < 7.1) * (z > 0.25)
    above_neck = _sigmoid((y - 6.02 - 0.25 * np.clip(1.0 - z, 0, 1)) / 0.04)
    return np.maximum(below_cheek, sideburn) * above_neck * (z > 0.2)


def _sigmoid(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))


def noise(
    points: Floats, scale: float, octaves: int = 4, gain: float = 0.55, seed: int = 0
) -> Floats:
    """Smooth value noise at (n, 3) points, (n,) in about -1..1."""
    total, power, amplitude = np.zeros(len(points)), 0.0, 1.0
    for octave in range(octaves):
        at = points * scale * 2**octave + 17.3 * octave
        cell = np.floor(at).astype(np.int64)
        part = at - cell
        part = part * part * (3 - 2 * part)
        value = np.zeros(len(points))
        for corner in np.ndindex(2, 2, 2):
            weight = np.where(np.array(corner) == 1, part, 1 - part).prod(axis=1)
            value += weight * _hash(cell + corner, seed + octave)
        total += amplitude * (value * 2 - 1)
        power += amplitude * amplitude
        amplitude *= gain
    return total / np.sqrt(power) * 1.6


def _hash(cells: Ints, seed: int) -> Floats:
    """A number in 0..1 for each (n, 3) cell of a grid."""
    x = cells[:, 0] * 73856093 ^ cells[:, 1] * 19349663 ^ cells[:, 2] * 83492791
    x = (x ^ (seed * 2654435761)) & 0xFFFFFFFF
    for _ in range(2):
        x = ((x >> 16) ^ x) * 0x45D9F3B & 0xFFFFFFFF
    return (((x >> 16) ^ x) & 0xFFFF) / 65535.0


def _step(x: Floats, low: float, high: float) -> Floats:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _mixed(colours: Floats, other: object, share: Floats) -> Floats:
    share = np.clip(share, 0, 1)[:, None]
    return np.asarray(colours * (1 - share) + np.asarray(other) * share)


def paint_skin(
    rng: np.random.Generator, rest: Floats, masks: Masks, look: Look, age: float
) -> PaintedSkin:
    """Paint the skin at points in rest coordinates."""
    seed = int(rng.integers(1 << 20))
    colour = _mottle(rest, masks, look, age, seed)
    colour = _spots(rng, rest, masks, look, colour)
    shadow = look.skin * 0.26 * 0.7 + 0.3 * look.hair
    strands = np.clip(masks.beard * (0.62 + 0.4 * noise(rest, 70, 2, 0.8, seed + 59)), 0, 1)
    colour = _mixed(colour, shadow, strands * look.stubble)
    colour = _mixed(colour, look.eyeshadow, masks.lids * look.eyeshadow_cover)
    creases = noise(rest * (3.2, 0.5, 0.5), 14, 3, 0.7, seed + 69)
    tone = np.exp(0.16 * creases + 0.1 * noise(rest, 12, 3, 0.6, seed + 79))
    colour = _mixed(colour, look.lips * tone[:, None], masks.lips * look.lip_cover)
    colour = _mixed(colour, _INSIDE_MOUTH, masks.inside)
    forehead, corners = _wrinkles(rest, masks, seed)
    old = float(np.clip(age * 1.4 - 0.25, 0, 1))
    colour *= np.exp(np.clip(0.12 * old * (forehead + 0.7 * corners), -0.3, 0.1))[:, None]
    height = look.relief * 0.0022 * noise(rest, 34, 3, 0.9, seed + 109)
    height += look.relief * 0.004 * (0.4 + age) * noise(rest, 8, 4, 0.6, seed + 119)
    height += old * (0.005 * forehead + 0.003 * corners) + 0.0035 * masks.lips * creases
    roughness = look.roughness + 0.07 * noise(rest, 20, 3, 0.7, seed + 129)
    roughness -= look.oily * masks.shiny + look.lip_gloss * np.maximum(masks.lips, masks.inside)
    return PaintedSkin(
        np.clip(colour, 0.003, 0.95), np.clip(roughness, 0.15, 0.8), height * (1 - masks.inside)
    )


def _mottle(rest: Floats, masks: Masks, look: Look, age: float, seed: int) -> Floats:
    """Pale, red and dark patches at four scales."""
    red = look.skin * (1.04, 0.62, 0.58)
    pale = np.clip(look.skin * (1.08, 1.1, 1.06), 0, 0.93)
    deep = look.skin * _DEEP
    colour = np.tile(look.skin, (len(rest), 1))
    colour = _mixed(colour, pale, 0.6 * _step(noise(rest, 3.5, 4, 0.6, seed), -0.1, 1.2))
    patches = _step(noise(rest, 6, 5, 0.7, seed + 9), 0.0, 1.3)
    colour = _mixed(colour, red, (0.25 + 0.45 * look.blotches) * patches)
    colour = _mixed(colour, deep, 0.32 * _step(noise(rest, 16, 4, 0.8, seed + 19), 0.0, 1.4))
    fine = noise(rest, 42, 3, 0.9, seed + 29)
    colour = colour * np.exp(0.085 * fine * (1 + 0.5 * age))[:, None]
    flush = masks.red * look.redness * (0.75 + 0.35 * noise(rest, 9, 3, 0.6, seed + 39))
    colour = _mixed(colour, red, flush)
    colour = _mixed(colour, deep * (0.92, 0.88, 1.0), masks.dark * look.circles)
    if age > 0.35:
        aged = _step(noise(rest, 11, 2, 0.5, seed + 49), 0.9, 1.4)
        colour = _mixed(colour, deep, 0.5 * (age - 0.3) * aged)
    return colour


def _spots(
    rng: np.random.Generator,
    rest: Floats,
    masks: Masks,
    look: Look,
    colour: Floats,
) -> Floats:
    """Add freckles and moles."""
    deep = look.skin * _DEEP

    def distances(count: int, low: float, high: float) -> Floats:
        """To the nearest of `count` spots, in radii of it."""
        chosen = rng.choice(len(rest), count)
        radius = rng.uniform(low, high, count)
        distance, nearest = cKDTree(rest[chosen]).query(rest)
        return np.asarray(distance / radius[nearest])

    freckles = int(700 * look.freckles)
    if freckles:
        share = np.exp(-0.5 * distances(freckles, 0.006, 0.014) ** 2) * masks.front
        colour = _mixed(colour, deep * 0.8, rng.uniform(0.3, 0.6) * share)
    moles = rng.poisson(30 * look.moles)
    if moles:
        colour = _mixed(
            colour, deep * 0.5, 0.85 * np.exp(-0.5 * distances(moles, 0.008, 0.02) ** 4)
        )
    return colour


def _wrinkles(rest: Floats, masks: Masks, seed: int) -> tuple[Floats, Floats]:
    """Lines of the forehead, and crow's feet, -1..1."""
    wave = rest[:, 1] + 0.035 * noise(rest * (0.5, 1, 1), 3, 2, 0.5, seed + 89)
    forehead = np.sin(wave * 2 * np.pi / 0.085) * masks.forehead
    angle = np.arctan2(rest[:, 1] - 7.27, np.abs(rest[:, 0]) - 0.42)
    corners = np.sin(angle * 14 + noise(rest, 5, 2, 0.5, seed + 99)) * masks.corners
    return forehead, corners
