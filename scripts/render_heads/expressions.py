"""The mesh of one moment: face units (ARKit's names) from a mouth track and an expression."""

from dataclasses import dataclass

import numpy as np

from .makehuman import Floats, MakeHuman

__all__ = ["Expression", "Speaker", "draw_speaker", "face_units", "posed"]


@dataclass(frozen=True)
class Speaker:
    """How much a person moves each part of the mouth; 1 is common."""

    jaw: float
    upper: float  # lip
    lower: float
    lips: float  # to the sides and forwards
    smile: float  # at rest, as a weight of the face unit
    press: float  # of shut lips, likewise


@dataclass(frozen=True)
class Expression:
    """What the face does beside speaking."""

    blink: float = 0.0  # 0 open .. 1 shut
    gaze_x: float = 0.0  # -1..1, positive to the picture's right
    gaze_y: float = 0.0  # positive up
    smile: float = 0.0  # -1 corners down .. 1 up
    brows: float = 0.0  # -1 frown .. 1 raised
    squint: float = 0.0  # 0..1


def draw_speaker(rng: np.random.Generator) -> Speaker:
    return Speaker(
        jaw=rng.uniform(0.7, 1.15),
        upper=rng.uniform(0.3, 1.5),
        lower=rng.uniform(0.4, 1.4),
        lips=rng.uniform(0.7, 1.2),
        smile=rng.uniform(0.0, 0.18),
        press=rng.uniform(0.1, 0.5),
    )


def face_units(track: Floats, speaker: Speaker, expression: Expression) -> dict[str, float]:
    """Weight each face unit.

    The weights were found by eye, and checked against MediaPipe FaceMesh: fully open is 0.40
    distances of the eyes, a spread "ee" 0.18, a round "oo" 0.25.

    Args:
        track: (5,) open, wide, round, bite, tongue, as `latentsync.training.synthetic.TRACKS`.
    """
    opened, wide, rounded, bite, _ = (float(value) for value in track)
    spread, narrow = max(wide, 0.0), max(-wide, 0.0)
    shut = max(0.0, 1 - opened / 0.12) * (1 - bite)
    smile = speaker.smile + 0.5 * max(expression.smile, 0.0) * (1 - 0.7 * rounded)
    pucker = 0.75 * rounded * (1 - 0.5 * opened) + 0.35 * narrow
    single = {
        "jawOpen": speaker.jaw * 0.62 * opened + 0.05 * bite,
        "mouthFunnel": speaker.lips * rounded * (0.35 + 0.5 * opened),
        "mouthPucker": speaker.lips * pucker,
        "mouthRollLower": 0.75 * bite,
        "mouthRollUpper": 0.2 * speaker.press * shut,
        "browInnerUp": 0.8 * max(expression.brows, 0.0),
    }
    paired = {
        "mouthUpperUp": speaker.upper * (0.6 * opened + 0.4 * spread) + 0.35 * bite,
        "mouthLowerDown": speaker.lower * (0.45 * opened + 0.25 * spread) * (1 - bite),
        "mouthStretch": 0.55 * speaker.lips * spread,
        "mouthSmile": smile + 0.18 * speaker.lips * spread,
        "mouthFrown": 0.5 * max(-expression.smile, 0.0),
        "mouthDimple": 0.15 * spread,
        "mouthPress": speaker.press * shut,
        "cheekSquint": 0.6 * max(expression.smile, 0.0),
        "eyeBlink": expression.blink,
        "eyeSquint": expression.squint,
        "eyeLookUp": max(expression.gaze_y, 0.0),
        "eyeLookDown": max(-expression.gaze_y, 0.0),
        "browOuterUp": 0.6 * max(expression.brows, 0.0),
        "browDown": 0.8 * max(-expression.brows, 0.0),
    }
    both = {name + side: weight for name, weight in paired.items() for side in ("Left", "Right")}
    return {**single, **both}


def posed(data: MakeHuman, neutral: Floats, units: dict[str, float], tongue: float) -> Floats:
    """Move the neutral mesh by face units; `tongue` (0..1) lifts the tip of the tongue."""
    vertices = neutral.copy()
    for name, weight in units.items():
        data.move(vertices, f"unit:{name}", weight)
    if tongue > 0:  # its tip goes up behind the upper teeth, and a little forwards
        part = data.groups["helper-tongue"]
        depth = vertices[part, 2]
        middle = np.quantile(depth, 0.45)
        front = np.clip((depth - middle) / (depth.max() - middle + 1e-6), 0, 1)
        vertices[part, 1] += tongue * 0.09 * front
        vertices[part, 2] += tongue * 0.05 * front
    return vertices
