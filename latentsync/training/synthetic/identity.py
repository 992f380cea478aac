"""Who is drawn: every trait of a head, its clothes, its light and its room, by chance from a seed.

Lengths are in head units: half the face's width is 1, x runs to the picture's right, y down, the
origin lies between the eyes and the nose. Colours are RGB in 0..255.
"""

from dataclasses import dataclass, replace
from typing import Annotated, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

__all__ = ["BEARDS", "HAIR_STYLES", "LONG_STYLES", "Colour", "Identity"]

Colour = tuple[float, float, float]

HAIR_STYLES = ("bald", "buzz", "short", "side", "quiff", "fringe", "bob", "long", "afro", "bun")
LONG_STYLES = ("fringe", "bob", "long")  # these hang down behind the head too
_PLACE = ("seed", "light", "contrast", "warmth", "exposure", "room", "clutter", "grain", "softness")
BEARDS = ("none", "stubble", "moustache", "goatee", "full")


def _palette(codes: str) -> NDArray[np.float64]:
    return np.array([list(bytes.fromhex(code)) for code in codes.split()], np.float64)


# Measured skin runs along one curve of lightness; undertone moves across it.
_SKIN = _palette("f4d0b8 ecc3a5 e2b593 d6a682 c28d6a a87250 8b5a3e 6e4631 543628 402a21")
_HAIR = _palette("181312 221915 3a261a 5c3c24 805832 ba945c d6b882 803a1e 969492 ceccc8")
_IRIS = _palette("422816 2c1c12 5c3e1e 686232 4a6c4c 48688c 627c96 70767a")


@dataclass(frozen=True)
class Identity:
    """One drawn person in one room; make one with `Identity.from_seed`, vary it with `replace`.

    `Annotated` holds the range of a length that is drawn evenly.
    """

    seed: int  # also seeds texture, strands and room
    # Colours.
    skin: Colour
    lips: Colour
    hair: Colour
    brows: Colour
    iris: Colour
    teeth: Colour
    # The skull.
    top: Annotated[float, (-1.5, -1.36)]  # y of the crown
    temple: Annotated[float, (0.9, 1.0)]  # half width there
    jaw: Annotated[float, (0.68, 0.86)]  # half width at the mouth
    chin: Annotated[float, (1.16, 1.34)]  # y
    chin_width: Annotated[float, (0.2, 0.34)]  # half width just above the chin
    ears: Annotated[float, (0.85, 1.15)]  # size, 1 is common
    # Eyes, brows, nose.
    eye_x: Annotated[float, (0.40, 0.465)]
    eye_y: Annotated[float, (-0.21, -0.14)]
    eye_width: Annotated[float, (0.185, 0.225)]  # half
    eye_height: Annotated[float, (0.072, 0.105)]  # half, wide open
    eye_tilt: Annotated[float, (-0.01, 0.035)]  # outer corner up
    brow_y: Annotated[float, (-0.515, -0.44)]  # of its middle
    brow_thick: Annotated[float, (0.042, 0.085)]
    brow_arch: Annotated[float, (0.02, 0.075)]
    brow_tilt: Annotated[float, (-0.015, 0.02)]
    nose_width: Annotated[float, (0.19, 0.285)]  # half
    nose_y: Annotated[float, (0.24, 0.34)]  # underside
    nose_bridge: Annotated[float, (0.75, 1.25)]  # height, 1 is common
    # The mouth at rest.
    mouth_width: Annotated[float, (0.32, 0.41)]  # half
    mouth_y: Annotated[float, (0.63, 0.71)]
    lip_upper: Annotated[float, (0.055, 0.1)]  # thickness
    lip_lower: Annotated[float, (0.08, 0.135)]
    bow: Annotated[float, (0.005, 0.03)]  # depth of the cupid's bow
    smile: Annotated[float, (-0.01, 0.065)]  # corners up (positive) or down
    reach: Annotated[float, (0.32, 0.44)]  # gap between the lips at open = 1
    # Skin and what grows on it.
    age: Annotated[float, (0.0, 1.0)]  # 0..1, depth of lines
    freckles: float  # 0..1
    blush: float  # 0..1
    shine: float  # 0..1
    hair_style: str
    parting: float  # x of the parting
    beard: str
    beard_density: float  # 0..1
    glasses: str  # "none", "round" or "square"
    # Clothes, light, room, camera.
    collar: str  # "round", "vee", "shirt" or "roll"
    cloth: Colour
    light: float  # -1 from the picture's left .. 1 from its right
    contrast: float  # 0..1, how much darker the far side is
    warmth: float  # -1 cool .. 1 warm
    exposure: float  # gain
    room: tuple[Colour, Colour, Colour]
    clutter: float  # 0..1 how much stands in the room
    grain: float  # standard deviation of the film grain, levels
    softness: float  # camera blur, px at 512 px of height

    @classmethod
    def from_seed(cls, seed: int) -> "Identity":
        """The person of this seed; equal seeds give equal people."""
        rng = np.random.default_rng([seed, 1])
        colours = _colours(rng)
        lengths = {name: float(rng.uniform(*limits)) for name, limits in _LENGTHS.items()}
        return cls(seed=seed, **colours, **lengths, **_surface(rng), **_scene(rng))  # type: ignore[arg-type]

    def in_room_of(self, other: "Identity") -> "Identity":
        """This person in another's room and light, before the same camera."""
        return replace(self, **{name: getattr(other, name) for name in _PLACE})


def _rgb(values: NDArray[np.floating]) -> Colour:
    red, green, blue = np.clip(values, 0, 255).tolist()
    return red, green, blue


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    """All three in 0..1."""
    ramp = np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    return _rgb(255 * value * (1 - saturation + saturation * np.clip(ramp, 0, 1)))


def _colours(rng: np.random.Generator) -> dict[str, object]:
    tone = rng.random() * (len(_SKIN) - 1)
    low = int(tone)
    high = min(low + 1, len(_SKIN) - 1)
    skin = _SKIN[low] + (_SKIN[high] - _SKIN[low]) * (tone - low)
    depth = tone / (len(_SKIN) - 1)  # 0 fair .. 1 dark
    undertone = rng.normal(0, 1, 2) * (1 - 0.4 * depth)
    skin = skin + undertone[0] * np.array([3, -1, -5]) + undertone[1] * np.array([3, 2, 2])
    # Dark skin seldom comes with fair hair.
    fairness = rng.random() ** (0.8 + 2.5 * depth)
    hair = _HAIR[int(fairness * (3 + int(7 * (1 - depth))))]
    hair = hair * rng.uniform(0.85, 1.15) + rng.normal(0, 3, 3)
    brows = np.minimum(hair * 0.62, skin * 0.42)
    red = np.array([rng.uniform(0.84, 0.98), rng.uniform(0.52, 0.66), rng.uniform(0.54, 0.70)])
    lips = skin * red + np.array([rng.uniform(4, 26), 0, rng.uniform(0, 10)]) * (1 - 0.5 * depth)
    eyes = _IRIS[: 2 + int(7 * (1 - depth) ** 0.7)]
    iris = eyes[rng.integers(len(eyes))] * rng.uniform(0.85, 1.2)
    teeth = np.array([244, 238, 224]) * rng.uniform(0.9, 1.02)
    named = {"skin": skin, "hair": hair, "brows": brows, "lips": lips, "iris": iris, "teeth": teeth}
    return {name: _rgb(value) for name, value in named.items()}


_LENGTHS: dict[str, tuple[float, float]] = {
    name: hint.__metadata__[0]
    for name, hint in get_type_hints(Identity, include_extras=True).items()
    if get_origin(hint) is Annotated
}


def _surface(rng: np.random.Generator) -> dict[str, object]:
    style = HAIR_STYLES[rng.integers(len(HAIR_STYLES))]
    long_hair = style in ("fringe", "bob", "long", "bun")
    beard = "none" if long_hair or rng.random() < 0.5 else BEARDS[rng.integers(1, len(BEARDS))]
    return {
        "freckles": float(max(0.0, rng.uniform(-1.2, 0.8))),
        "blush": float(rng.uniform(0.2, 1.0)),
        "shine": float(rng.uniform(0.15, 0.8)),
        "hair_style": style,
        "parting": float(rng.uniform(-0.5, 0.5)),
        "beard": beard,
        "beard_density": float(rng.uniform(0.5, 1.0)),
        "glasses": str(rng.choice(["none"] * 5 + ["round", "square"])),
    }


def _scene(rng: np.random.Generator) -> dict[str, object]:
    hue = rng.random()
    room = tuple(
        _hsv((hue + rng.normal(0, 0.06)) % 1, rng.uniform(0.04, 0.32), rng.uniform(0.25, 0.82))
        for _ in range(3)
    )
    return {
        "collar": str(rng.choice(["round", "vee", "shirt", "roll"])),
        "cloth": _hsv(rng.random(), rng.uniform(0.08, 0.7), rng.uniform(0.2, 0.85)),
        "light": float(rng.uniform(-1, 1)),
        "contrast": float(rng.uniform(0.2, 0.75)),
        "warmth": float(rng.uniform(-0.7, 1.0)),
        "exposure": float(rng.uniform(0.85, 1.07)),
        "room": room,
        "clutter": float(rng.random()),
        "grain": float(rng.uniform(0.4, 2.6)),
        "softness": float(rng.uniform(0.0, 0.8)),
    }
