"""The light on a face: a panorama of a room, and lamps, by chance."""

from dataclasses import dataclass

import numpy as np

from .makehuman import Floats

__all__ = ["Lamp", "Lighting", "draw_lighting"]

_HEIGHT, _WIDTH = 64, 128  # px of the panorama
_COLOURED = 0.3  # share of people with a coloured lamp


@dataclass(frozen=True)
class Lamp:
    """A round area lamp that shines on the face."""

    direction: Floats  # (3,) unit vector from the face to the lamp, head coordinates
    distance_m: float
    size_m: float
    watts: float
    colour: Floats  # (3,) linear RGB, at most 1


@dataclass(frozen=True)
class Lighting:
    room: Floats  # (64, 128, 3) equirectangular, linear RGB, its first row at the bottom
    strength: float  # of the room's light
    turn: float  # rad, of the room about the head
    lamps: tuple[Lamp, ...]
    tone_curve: str  # Blender's view transform
    exposure: float  # deviation from the common brightness, stops


def draw_lighting(rng: np.random.Generator) -> Lighting:
    lamps = [_draw_lamp(rng, index) for index in range(rng.integers(1, 3))]
    return Lighting(
        room=_draw_room(rng),
        strength=rng.uniform(0.25, 0.7),
        turn=rng.uniform(0, 2 * np.pi),
        lamps=tuple(lamps),
        tone_curve=str(rng.choice(["AgX", "AgX", "Standard", "Filmic"])),
        exposure=rng.normal(0, 0.25),
    )


def _warmth(rng: np.random.Generator) -> Floats:
    """A colour between candle light and a blue sky."""
    return np.array([1.0, rng.uniform(0.75, 1.02), rng.uniform(0.55, 1.2)])


def _draw_lamp(rng: np.random.Generator, index: int) -> Lamp:
    """The first lamp is in front, the second behind or beside."""
    azimuth, elevation = rng.normal(0, 0.9), rng.uniform(0.05, 1.0)
    if index:
        azimuth += np.pi * rng.uniform(0.5, 1.0)
    distance = rng.uniform(0.8, 2.5)
    colour = _warmth(rng)
    if rng.random() < _COLOURED / 2 * (1 + index):
        tint = rng.random(3)
        colour = colour * (1 - rng.uniform(0.3, 0.8) * (1 - tint / tint.max()))
    flat = np.cos(elevation)
    return Lamp(
        direction=np.array([np.sin(azimuth) * flat, np.sin(elevation), np.cos(azimuth) * flat]),
        distance_m=distance,
        size_m=rng.uniform(0.15, 1.2),
        watts=rng.uniform(4, 13) * distance**2 * (0.6 if index else 1.0),
        colour=np.clip(colour / colour.max(), 0, 1),
    )


def _draw_room(rng: np.random.Generator) -> Floats:
    """Walls, soft boxes and windows, and furniture in muted colours, as a panorama."""
    y = np.linspace(0, 1, _HEIGHT, endpoint=False)[:, None]
    x = np.linspace(0, 1, _WIDTH, endpoint=False)[None]
    room = np.ones((_HEIGHT, _WIDTH, 3)) * rng.uniform(0.05, 0.4) * _warmth(rng)
    if rng.random() < 0.8:  # brighter towards the ceiling
        room *= 0.6 + 0.8 * y[..., None]

    def around(across: float) -> Floats:
        return np.minimum(np.abs(x - across), 1 - np.abs(x - across))

    for _ in range(rng.integers(2, 7)):
        across, up = rng.random(), rng.uniform(0.35, 0.95)
        wide, high = rng.uniform(0.02, 0.15), rng.uniform(0.03, 0.2)
        power = 4 if rng.random() < 0.6 else 2  # a sharp edge or a soft one
        light = np.exp(-((around(across) / wide) ** power) - (np.abs(y - up) / high) ** power)
        room += light[..., None] * rng.uniform(0.5, 9.0) * _warmth(rng)
    for _ in range(rng.integers(3, 10)):
        across, up = rng.random(), rng.uniform(0.0, 0.7)
        box = (around(across) < rng.uniform(0.02, 0.12)) & (np.abs(y - up) < rng.uniform(0.03, 0.2))
        colour = rng.random(3)
        colour = 0.6 * colour.mean() + 0.4 * colour  # saturated walls would dye the face
        room[box] = room[box] * 0.2 + colour * rng.uniform(0.05, 0.7)
    return np.asarray(room * rng.uniform(0.7, 1.1) / room.mean())
