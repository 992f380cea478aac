"""Hair, brows and beards: a soft mass, then many strokes along the way the hair falls."""

import numpy as np
from numpy.typing import NDArray

from latentsync.training.synthetic.canvas import Canvas, smooth_loop
from latentsync.training.synthetic.identity import LONG_STYLES, Identity
from latentsync.training.synthetic.mouth import rest_outline
from latentsync.types import FloatArray

__all__ = ["paint_back_hair", "paint_beard", "paint_brows", "paint_hair"]

_LOW = {"bob": 0.85, "long": 1.35, "fringe": 0.7}  # y the hair reaches in front


def _scatter(sheet: FloatArray, canvas: Canvas, rng: np.random.Generator, n: int) -> FloatArray:
    """(m, 2) points, m <= n, as dense as `sheet` (0..1) says; the same at every density."""
    right = canvas.left + canvas.width / canvas.density
    bottom = canvas.top + canvas.height / canvas.density
    points = rng.uniform((canvas.left, canvas.top), (right, bottom), (n, 2))
    luck = rng.random(n)
    index = ((points - (canvas.left, canvas.top)) * canvas.density).astype(int)
    column = np.clip(index[:, 0], 0, canvas.width - 1)
    row = np.clip(index[:, 1], 0, canvas.height - 1)
    return np.asarray(points[sheet[row, column] > luck], np.float32)


def _curves(
    starts: FloatArray,
    angle: NDArray[np.floating],
    length: NDArray[np.floating],
    bend: NDArray[np.floating],
) -> NDArray[np.float64]:
    """(n, 5, 2) arcs: from each start along `angle` (0 is right, pi/2 down), turning by `bend`."""
    t = np.linspace(0, 1, 5)[None, :]
    heading = angle[:, None] + bend[:, None] * (t - 0.5)
    step = np.stack([np.cos(heading), np.sin(heading)], axis=2) * (length / 4)[:, None, None]
    path = np.cumsum(step, axis=1) - step[:, :1]
    return np.asarray(starts[:, None, :] + path, np.float64)


def _tones(lines: NDArray[np.float64], identity: Identity, rng: np.random.Generator) -> FloatArray:
    """Brightness of each stroke: locks, the light's side, and a band of gloss over the crown."""
    middle = lines[:, 2]
    locks = np.sin(middle[:, 0] * 17 + np.sin(middle[:, 1] * 5) * 2 + identity.seed % 7) * 0.14
    side = 0.16 * identity.contrast * identity.light * middle[:, 0]
    gloss = (
        0.42
        * identity.shine
        * np.exp(-(((middle[:, 1] + 1.28 - 0.18 * middle[:, 0] ** 2) / 0.14) ** 2))
    )
    return np.asarray(0.95 + locks + side + gloss + rng.normal(0, 0.13, len(lines)), np.float32)


def _shapes(identity: Identity) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The outer edge of the hair and the window it leaves for the face, closed curves."""
    style, top, temple = identity.hair_style, identity.top, identity.temple
    lift = {"buzz": 0.035, "short": 0.13, "side": 0.18, "quiff": 0.26, "bun": 0.09}
    volume = lift.get(style, 0.16)
    wide = {"buzz": 0.02, "short": 0.05, "side": 0.07, "quiff": 0.04, "bun": 0.04}
    sides = wide.get(style, 0.13)
    low = _LOW.get(style, -0.22)
    line = {"fringe": -0.6, "buzz": -0.93, "bun": -0.98, "quiff": -0.98}.get(style, -0.9)
    lean = 0.12 * np.sign(identity.parting) if style in ("side", "quiff") else 0.0
    outer = [
        (-0.44 + lean, top + 0.06 - volume),
        (lean, top - volume),
        (0.44 + lean, top + 0.06 - volume),
        (0.8 + sides * 0.8, top + 0.33 - volume * 0.7),
        (temple + 0.04 + sides, -0.72),
        (1.0 + sides, min(-0.25, low)),
        (0.99 + sides * 0.9, low),
        (0.85, low + 0.02),
        (-0.85, low + 0.02),
        (-0.99 - sides * 0.9, low),
        (-1.0 - sides, min(-0.25, low)),
        (-temple - 0.04 - sides, -0.72),
        (-0.8 - sides * 0.8, top + 0.33 - volume * 0.7),
    ]
    if style == "afro":
        turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        outer = [(1.42 * np.sin(t), -0.78 - 1.12 * np.cos(t)) for t in turn]
    inset = 0.1 if low > 0 else 0.035
    edge = 0.985 - inset
    part = identity.parting * 0.6
    window = [
        (-edge * 0.97, low + 0.3),
        (-edge, -0.15),
        (-edge * 0.95, -0.45),
        (-temple * 0.82, line + 0.22),
        (-0.5, line + 0.05 + (0.1 if part > 0 and style == "side" else 0)),
        (part, line - 0.03),
        (0.5, line + 0.05 + (0.1 if part < 0 and style == "side" else 0)),
        (temple * 0.82, line + 0.22),
        (edge * 0.95, -0.45),
        (edge, -0.15),
        (edge * 0.97, low + 0.3),
        (0.5, 1.6),
        (-0.5, 1.6),
    ]
    return smooth_loop(outer), smooth_loop(window)


def _flow(identity: Identity, points: FloatArray) -> NDArray[np.float64]:
    """Which way the hair lies at each point: away from the parting over the crown, then down."""
    style = identity.hair_style
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    away = np.arctan2(y - (identity.top - 0.25), (x - identity.parting * 0.7) * 1.1)
    if style == "quiff":
        return away + np.pi + 0.5 * np.sign(identity.parting)
    if style == "bun":
        return np.arctan2(identity.top - 0.2 - y, -x)
    down = np.pi / 2 + 0.12 * np.sin(y * 6 + x * 3)
    share = np.clip((y + 1.0) / 0.7, 0, 1) * (np.abs(x) > 0.6)
    return np.asarray(away * (1 - share) + down * share)


def paint_hair(
    identity: Identity, canvas: Canvas, face: FloatArray, rng: np.random.Generator
) -> None:
    """Everything in front of and around the head, above ears and brow."""
    style = identity.hair_style
    if style == "bald":
        return
    outer, window = _shapes(identity)
    colour = np.array(identity.hair, np.float32)
    soft = 0.035 if style in ("buzz", "afro") else 0.012
    mass = np.clip(canvas.mask(outer, soft) - canvas.mask(window, soft), 0, 1)
    mass *= np.clip((_LOW.get(style, 9.0) - canvas.y) / 0.4, 0, 1) ** 0.7  # ends thin out
    if style == "bun":
        knot = canvas.mask(
            smooth_loop(
                [
                    (0.0, identity.top - 0.5),
                    (0.3, identity.top - 0.3),
                    (0.22, identity.top - 0.02),
                    (-0.22, identity.top - 0.02),
                    (-0.3, identity.top - 0.3),
                ]
            ),
            soft,
        )
        mass = np.maximum(mass, knot)
    # The hair's own shadow on the forehead.
    below = np.roll(canvas.blur(mass, 0.04), round(0.05 * canvas.density), axis=0)
    canvas.shade(np.clip(below - mass, 0, 1) * face, 0.35)
    strength = 0.78 if style == "buzz" else 1.0
    canvas.lay(mass * strength, colour * 0.72)
    if style == "buzz":
        grain = canvas.noise(rng, 0.018)
        canvas.shade(mass * grain, 0.1)
        return
    starts = _scatter(np.clip(mass * 1.1, 0, 1), canvas, rng, 8000)
    n = len(starts)
    if style == "afro":
        length, bend = rng.uniform(0.05, 0.12, n), rng.choice([-1, 1], n) * rng.uniform(2.5, 5, n)
        angle = rng.uniform(0, 2 * np.pi, n)
    else:
        reach = {"short": 0.14, "quiff": 0.22, "side": 0.24}.get(style, 0.34)
        length = reach * rng.uniform(0.6, 1.3, n)
        angle = _flow(identity, starts) + rng.normal(0, 0.1, n)
        bend = rng.normal(0, 0.35, n)
    lines = _curves(starts, angle, length, bend)
    keep = _inside(canvas, np.maximum(mass, canvas.blur(mass, 0.02)), lines[:, -1], 0.25)
    lines = lines[keep]
    canvas.strokes(lines, colour, _tones(lines, identity, rng), 0.0085, 0.8)


def _inside(
    canvas: Canvas, sheet: FloatArray, points: NDArray[np.floating], least: float
) -> NDArray[np.bool_]:
    index = ((points - (canvas.left, canvas.top)) * canvas.density).astype(int)
    row = np.clip(index[:, 1], 0, canvas.height - 1)
    column = np.clip(index[:, 0], 0, canvas.width - 1)
    return np.asarray(sheet[row, column] > least)


def paint_back_hair(identity: Identity, canvas: Canvas, rng: np.random.Generator) -> None:
    """What hangs behind neck and shoulders."""
    if identity.hair_style not in LONG_STYLES:
        return
    low = {"bob": 0.95, "fringe": 1.0, "long": 1.75}[identity.hair_style]
    colour = np.array(identity.hair, np.float32)
    loop = smooth_loop(
        [
            (0, identity.top),
            (0.8, identity.top + 0.3),
            (1.08, -0.5),
            (1.14, 0.3),
            (1.16, low - 0.2),
            (0.95, low),
            (0, low + 0.04),
            (-0.95, low),
            (-1.16, low - 0.2),
            (-1.14, 0.3),
            (-1.08, -0.5),
            (-0.8, identity.top + 0.3),
        ]
    )
    mass = canvas.mask(loop, 0.012)
    canvas.lay(mass, colour * 0.45)
    starts = _scatter(mass, canvas, rng, 3000)
    n = len(starts)
    lines = _curves(
        starts,
        np.pi / 2 + rng.normal(0, 0.12, n),
        rng.uniform(0.25, 0.45, n),
        rng.normal(0, 0.3, n),
    )
    lines = lines[_inside(canvas, mass, lines[:, -1], 0.3)]
    canvas.strokes(lines, colour * 0.62, _tones(lines, identity, rng), 0.012, 0.8)


def paint_brows(identity: Identity, canvas: Canvas, rng: np.random.Generator) -> None:
    """Both brows; the curve's middle lies at `brow_y`, and so does the landmark."""
    who = identity
    for side in (-1, 1):
        u = np.linspace(-1, 1, 15)  # inner end .. outer end
        x = who.eye_x + 0.01 + u * who.eye_width * 1.28
        arch = (
            who.brow_arch * (1 - np.where(u < 0.2, 0.75, 1.5) * (u - 0.2) ** 2) + who.brow_tilt * u
        )
        thick = (
            who.brow_thick
            * (1 - 0.55 * np.clip(u, 0, 1) ** 1.5)
            * (0.55 + 0.45 * np.clip((u + 1) / 0.3, 0, 1))
        )
        middle = who.brow_y - arch + arch[len(u) // 2]
        upper = np.stack([side * x, middle - thick / 2], 1)
        lower = np.stack([side * x, middle + thick / 2], 1)
        canvas.tint(canvas.mask(np.concatenate([upper, lower[::-1]]), 0.012) * 0.72, who.brows)
        n = 150
        at = rng.uniform(-1, 1, n)
        across = rng.uniform(-0.5, 0.5, n)
        start_x = side * np.interp(at, u, x)
        start_y = np.interp(at, u, middle) + across * np.interp(at, u, thick)
        lean = np.interp(at, [-1, -0.5, 1], [-0.8, -0.45, 0.12]) + across * 0.6
        angle = np.where(side > 0, lean, np.pi - lean)
        starts = np.stack([start_x, start_y], 1).astype(np.float32)
        lines = _curves(starts, angle, rng.uniform(0.035, 0.075, n), rng.normal(0, 0.3, n))
        canvas.strokes(
            lines, who.brows, rng.uniform(0.85, 1.35, n).astype(np.float32), 0.008, 0.7, solid=False
        )


def _beard_zone(identity: Identity, canvas: Canvas) -> FloatArray:
    """Where this kind of beard grows, 0..1; the lips stay free."""
    who = identity
    wide, y = who.mouth_width + 0.1, who.mouth_y
    half = [
        (0.0, who.nose_y + 0.09),
        (wide * 0.6, y - 0.16),
        (wide, y + 0.02),
        (wide * 0.7, y - 0.02),
    ]
    tache = [*half, (0.0, y - 0.03), *[(-a, b) for a, b in reversed(half[1:])]]
    zone = canvas.mask(smooth_loop(tache), 0.022)
    if who.beard == "goatee":
        chin = canvas.blob(0, who.chin - 0.1, 0.26, 0.24)
        chin = chin + canvas.pair(who.mouth_width + 0.05, y + 0.12, 0.07, 0.16)
        zone = np.maximum(zone, np.clip(chin * 1.2, 0, 1))
    elif who.beard != "moustache":
        side = [(1.1, 1.0), (1.05, -0.1), (0.9, 0.25), (0.6, 0.52), (wide, y - 0.1)]
        cheeks = [(0.0, 1.6), *side, (0.0, y - 0.06), *[(-a, b) for a, b in reversed(side)]]
        zone = np.maximum(zone, canvas.mask(smooth_loop(cheeks), 0.045))
    x = np.linspace(-who.mouth_width, who.mouth_width, 41)
    upper, lower = rest_outline(who, x)
    edge = [np.stack([x, upper - 0.012], 1), np.stack([x, lower + 0.012], 1)[::-1]]
    return np.asarray(zone * (1 - canvas.mask(np.concatenate(edge), 0.012)), np.float32)


def paint_beard(
    identity: Identity, canvas: Canvas, face: FloatArray, rng: np.random.Generator
) -> None:
    """Over the painted face, whose mask is `face`."""
    who = identity
    if who.beard == "none":
        return
    zone = _beard_zone(who, canvas) * face
    skin = np.array(who.skin, np.float32)
    colour = np.minimum(np.array(who.hair, np.float32) * 0.8, skin * 0.62)
    if who.beard == "stubble":
        canvas.tint(zone * 0.42 * who.beard_density, skin * (0.62, 0.62, 0.66))
        starts = _scatter(zone, canvas, rng, 6500)
        n = len(starts)
        angle = np.pi / 2 + rng.normal(0, 0.5, n)
        dots = _curves(starts, angle, np.full(n, 0.018), np.zeros(n))
        tones = rng.uniform(0.7, 1.2, n)
        canvas.strokes(dots, colour * 0.8, tones, 0.007, 0.45 * who.beard_density, solid=False)
        return
    canvas.tint(zone * (0.45 + 0.45 * who.beard_density), colour * 0.8)
    starts = _scatter(zone, canvas, rng, 9000)
    n = len(starts)
    outwards = np.where(starts[:, 1] < who.mouth_y, -0.9 * starts[:, 0], 0)
    angle = np.pi / 2 + outwards + rng.normal(0, 0.3, n)
    lines = _curves(starts, angle, rng.uniform(0.05, 0.1, n), rng.normal(0, 0.6, n))
    tones = 0.8 + rng.normal(0, 0.22, n) + 0.2 * who.light * who.contrast * starts[:, 0]
    keep = _inside(canvas, zone, lines[:, -1], 0.15)
    canvas.strokes(lines[keep], colour * 1.12, tones[keep], 0.009, 0.6, solid=False)
