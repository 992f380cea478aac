"""Who is rendered: the shape of a head and how it looks, by chance from a generator."""

from dataclasses import dataclass

import numpy as np

from .makehuman import Floats, MakeHuman
from .sliders import SIDED, SPREAD, slider_names

__all__ = ["Look", "Shape", "draw_look", "draw_shape", "linear"]

MAX_SLIDER = 0.75
_TONES = "f3d3c2 e6bb9f d09c76 b57f56 8c5a38 5e3923 3b241a"  # skin, from light to dark
_HAIR = "0c0a09 15100c 24170f 3b2616 5a3a1e 8a6236 b08a55 6b2d14"
_HAIR_DARK = (0.35, 0.3, 0.2, 0.1, 0.03, 0.01, 0.01, 0.0)  # shares among African and Asian people
_HAIR_FAIR = (0.05, 0.1, 0.2, 0.25, 0.15, 0.12, 0.08, 0.05)  # among European people
_LIPSTICKS = "a8434a c0606a 8f2f38 b5202c c77a72 7a2a3a"
_EYESHADOWS = "6b4a3a 4a4a58 7a5a70 3a5a6a 8a6a4a"
_IRISES = "3a2313 2a1a10 4a3018 6b5a2f 5f7a4a 5d83a3 7d96a8 34404a"
_IRIS_SHARES = (0.24, 0.22, 0.16, 0.1, 0.07, 0.1, 0.06, 0.05)
_BEARDS = {"none": 0.3, "stubble": 0.27, "short": 0.2, "full": 0.15, "moustache": 0.08}
_CUTS_OF_MEN = {"bald": 0.12, "buzz": 0.2, "short": 0.43, "medium": 0.2, "long": 0.05}
_CUTS_OF_WOMEN = {"buzz": 0.03, "short": 0.12, "medium": 0.3, "long": 0.55}


@dataclass(frozen=True)
class Shape:
    """The neutral mesh of a person, and what it was made of."""

    vertices: Floats  # (n, 3) dm
    age: float  # 0 young .. 1 old
    female: float  # 0 male .. 1 female
    ancestry: Floats  # (3,) shares: African, Asian, European


@dataclass(frozen=True)
class Look:
    """Colours (linear RGB, (3,)) and amounts (0..1 unless said) of a person's surface."""

    melanin: float
    skin: Floats
    hair: Floats
    brows: Floats
    grey: float  # share of grey strands
    iris: Floats
    lips: Floats
    lip_cover: float
    lip_gloss: float
    eyeshadow: Floats
    eyeshadow_cover: float
    lashes: float  # opacity
    blotches: float
    redness: float
    circles: float  # under the eyes
    freckles: float
    moles: float
    stubble: float
    relief: float
    roughness: float
    oily: float
    scatter: float  # scale of subsurface scattering, m
    teeth: Floats
    beard: str
    cut: str  # of the hair
    receding: bool
    glasses: bool


def linear(code: str) -> Floats:
    """Convert a hex sRGB colour to linear RGB."""
    level = np.array(list(bytes.fromhex(code))) / 255.0
    return np.where(level <= 0.04045, level / 12.92, ((level + 0.055) / 1.055) ** 2.4)


def draw_shape(data: MakeHuman, rng: np.random.Generator) -> Shape:
    """Draw sex, age, build, ancestry and about 90 local sliders."""
    vertices = data.vertices.copy()
    age = float(rng.beta(1.3, 2.2))
    female = float(np.clip(abs((rng.random() < 0.5) - abs(rng.normal(0, 0.12))), 0, 1))
    muscle, weight = rng.uniform(0.2, 0.8), float(np.clip(rng.normal(0.5, 0.2), 0.05, 0.95))
    ancestry = rng.dirichlet([0.5, 0.5, 0.8])
    for sex, of_sex in (("female", female), ("male", 1 - female)):
        for years, of_age in (("young", 1 - age), ("old", age)):
            kind, share = f"{sex}-{years}", of_sex * of_age
            for build, of_build in _thirds(muscle, "muscle").items():
                for mass, of_mass in _thirds(weight, "weight").items():
                    name = f"macrodetails/universal-{kind}-{build}-{mass}"
                    data.move(vertices, name, share * of_build * of_mass)
            for people, part in zip(("african", "asian", "caucasian"), ancestry, strict=True):
                data.move(vertices, f"macrodetails/{people}-{kind}", share * part)
    _move_sliders(data, vertices, rng)
    return Shape(vertices, age, female, ancestry)


def _thirds(amount: float, of: str) -> dict[str, float]:
    """Weights of the three targets of a scale 0..1."""
    return {
        f"min{of}": max(0.0, 1 - 2 * amount),
        f"average{of}": 1 - abs(2 * amount - 1),
        f"max{of}": max(0.0, 2 * amount - 1),
    }


def _move_sliders(data: MakeHuman, vertices: Floats, rng: np.random.Generator) -> None:
    for folder, spread in SPREAD.items():
        for low, high in slider_names(folder):
            amount = float(np.clip(rng.normal(0, spread), -MAX_SLIDER, MAX_SLIDER))
            if not low:
                amount = max(0.0, amount - 0.1)
            name = high if amount >= 0 else low
            if folder in SIDED:  # faces are not quite symmetrical
                for side in "lr":
                    share = abs(amount) * rng.uniform(0.85, 1.15)
                    data.move(vertices, f"{folder}/{side}-{name}", share)
            else:
                data.move(vertices, f"{folder}/{name}", abs(amount))


def draw_look(shape: Shape, rng: np.random.Generator) -> Look:
    """Draw colours, make-up, beard and hair that go with the shape."""
    african, asian, _ = shape.ancestry
    male = shape.female < 0.5
    shares = (rng.uniform(0.55, 1.05), rng.uniform(0.12, 0.5), rng.uniform(0.0, 0.38))
    melanin = float(np.clip(shape.ancestry @ shares, 0, 1))
    tone = _tone(melanin)
    hair, grey = _draw_hair(african + asian, shape.age, rng)
    made_up = not male and rng.random() < 0.55
    lips, cover = tone * (0.82, 0.42, 0.42) * rng.uniform(0.75, 1.05), rng.uniform(0.55, 0.95)
    if made_up:
        lips, cover = linear(rng.choice(_LIPSTICKS.split())), rng.uniform(0.6, 0.95)
    beard = _pick(_BEARDS, rng) if male else "none"
    stubble = {"none": 0.12 * male, "stubble": rng.uniform(0.3, 0.7), "moustache": 0.35}
    white = np.array([0.78, 0.72, 0.6]) * rng.uniform(0.72, 1.05)
    return Look(
        melanin=melanin,
        skin=np.clip(tone * np.exp(rng.normal(0, [0.05, 0.03, 0.06])), 0.01, 0.95),
        hair=hair,
        brows=hair * 0.8,
        grey=grey,
        iris=linear(rng.choice(_IRISES.split(), p=_IRIS_SHARES)),
        lips=lips,
        lip_cover=cover,
        lip_gloss=rng.uniform(0.02, 0.2) + 0.08 * made_up,
        eyeshadow=linear(rng.choice(_EYESHADOWS.split())),
        eyeshadow_cover=rng.uniform(0.0, 0.5) * made_up,
        lashes=rng.uniform(0.35, 0.6) + 0.35 * made_up,
        blotches=rng.uniform(0, 1) * (1 - 0.5 * melanin),
        redness=rng.uniform(0.1, 0.75) * (1 - 0.6 * melanin) + 0.15 * made_up,
        circles=rng.uniform(0.1, 0.6),
        freckles=rng.choice([0.0, 0.0, 0.25, 0.6]) * (melanin < 0.4),
        moles=rng.uniform(0, 0.2),
        stubble=stubble.get(beard, 0.55),
        relief=rng.uniform(0.4, 0.8),
        roughness=rng.uniform(0.4, 0.56),
        oily=rng.uniform(0.0, 0.16),
        scatter=rng.uniform(0.003, 0.006),
        teeth=white * (1, rng.uniform(0.96, 1.02), rng.uniform(0.85, 1.08)),
        beard=beard,
        cut=_pick(_CUTS_OF_MEN if male else _CUTS_OF_WOMEN, rng),
        receding=male and shape.age > 0.45 and rng.random() < 0.6,
        glasses=rng.random() < 0.22,
    )


def _tone(melanin: float) -> Floats:
    tones = np.array([linear(code) for code in _TONES.split()])
    at = melanin * (len(tones) - 1)
    return np.array([np.interp(at, np.arange(len(tones)), column) for column in tones.T])


def _draw_hair(dark: float, age: float, rng: np.random.Generator) -> tuple[Floats, float]:
    """Return the colour of the hair, and its share of grey."""
    dark = np.clip(dark + 0.25, 0, 1)
    shares = np.array(_HAIR_DARK) * dark + np.array(_HAIR_FAIR) * (1 - dark)
    colour = linear(rng.choice(_HAIR.split(), p=shares / shares.sum()))
    return colour, float(np.clip((age - 0.35) * 2.0 + rng.normal(0, 0.2), 0, 1))


def _pick(shares: dict[str, float], rng: np.random.Generator) -> str:
    return str(rng.choice(list(shares), p=list(shares.values())))
