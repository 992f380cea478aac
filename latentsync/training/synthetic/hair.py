"""Hair, brows and beards: a soft mass, then many strokes along the way the hair falls."""

import numpy as np
from numpy.typing import NDArray

from latentsync.training.synthetic.canvas import Canvas, mirrored, smooth_loop
from latentsync.training.synthetic.identity import LONG_STYLES, Identity
from latentsync.training.synthetic.mouth import rest_outline
from latentsync.types import FloatArray

__all__ = ["paint_back_hair", "paint_beard", "paint_brows", "paint_hair"]

Points = NDArray[np.float64]

# By style, in head units.
_VOLUME = {
    "buzz": 0.035,
    "short": 0.13,
    "side": 0.18,
    "quiff": 0.26,
    "bun": 0.09,
}  # above the skull
_SIDES = {"buzz": 0.02, "short": 0.05, "side": 0.07, "quiff": 0.04, "bun": 0.04}  # beside the skull
_HAIRLINE = {"fringe": -0.6, "buzz": -0.93, "bun": -0.98, "quiff": -0.98}  # y
_LOW = {"bob": 0.85, "long": 1.35, "fringe": 0.7}  # y the hair reaches in front
_LOW_BEHIND = {"bob": 0.95, "fringe": 1.0, "long": 1.75}
_LENGTH = {"short": 0.14, "quiff": 0.22, "side": 0.24}  # of a stroke


def paint_hair(who: Identity, canvas: Canvas, face: FloatArray, rng: np.random.Generator) -> None:
    """Paint everything in front of and around the head, above ears and brow."""
    style = who.hair_style
    if style == "bald":
        return
    outer, window = _shapes(who)
    colour = np.array(who.hair, np.float32)
    soft = 0.035 if style in ("buzz", "afro") else 0.012
    mass = np.clip(canvas.mask(outer, soft) - canvas.mask(window, soft), 0, 1)
    mass *= np.clip((_LOW.get(style, 9.0) - canvas.y) / 0.4, 0, 1) ** 0.7  # ends thin out
    if style == "bun":
        right = [(0.3, who.top - 0.3), (0.22, who.top - 0.02)]
        knot = smooth_loop([(0.0, who.top - 0.5), *right, *mirrored(right)])
        mass = np.maximum(mass, canvas.mask(knot, soft))
    # The hair's own shadow on the forehead.
    below = np.roll(canvas.blur(mass, 0.04), round(0.05 * canvas.density), axis=0)
    canvas.shade(np.clip(below - mass, 0, 1) * face, 0.35)
    canvas.lay(mass * (0.78 if style == "buzz" else 1.0), colour * 0.72)
    if style == "buzz":
        canvas.shade(mass * canvas.noise(rng, 0.018), 0.1)
        return
    starts = _scatter(np.clip(mass * 1.1, 0, 1), canvas, rng, 8000)
    n = len(starts)
    if style == "afro":
        length, bend = rng.uniform(0.05, 0.12, n), rng.choice([-1, 1], n) * rng.uniform(2.5, 5, n)
        angle = rng.uniform(0, 2 * np.pi, n)
    else:
        length = _LENGTH.get(style, 0.34) * rng.uniform(0.6, 1.3, n)
        angle = _flow(who, starts) + rng.normal(0, 0.1, n)
        bend = rng.normal(0, 0.35, n)
    lines = _curves(starts, angle, length, bend)
    around = np.maximum(mass, canvas.blur(mass, 0.02))
    lines = lines[_at(around, canvas, lines[:, -1]) > 0.25]
    canvas.strokes(lines, colour, _tones(lines, who, rng), 0.0085, 0.8)


def paint_back_hair(who: Identity, canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint what hangs behind neck and shoulders."""
    if who.hair_style not in LONG_STYLES:
        return
    low = _LOW_BEHIND[who.hair_style]
    colour = np.array(who.hair, np.float32)
    right = [(0.8, who.top + 0.3), (1.08, -0.5), (1.14, 0.3), (1.16, low - 0.2), (0.95, low)]
    loop = smooth_loop([(0, who.top), *right, (0, low + 0.04), *mirrored(right)])
    mass = canvas.mask(loop, 0.012)
    canvas.lay(mass, colour * 0.45)
    starts = _scatter(mass, canvas, rng, 3000)
    n = len(starts)
    angle, length = np.pi / 2 + rng.normal(0, 0.12, n), rng.uniform(0.25, 0.45, n)
    lines = _curves(starts, angle, length, rng.normal(0, 0.3, n))
    lines = lines[_at(mass, canvas, lines[:, -1]) > 0.3]
    canvas.strokes(lines, colour * 0.62, _tones(lines, who, rng), 0.012, 0.8)


def paint_brows(who: Identity, canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint both brows; the curve's middle lies at `brow_y`, and so does the landmark."""
    u = np.linspace(-1, 1, 15)  # inner end .. outer end
    x = who.eye_x + 0.01 + u * who.eye_width * 1.28
    arch = who.brow_arch * (1 - np.where(u < 0.2, 0.75, 1.5) * (u - 0.2) ** 2) + who.brow_tilt * u
    middle = who.brow_y - arch + arch[len(u) // 2]
    thinner_outside = 1 - 0.55 * np.clip(u, 0, 1) ** 1.5
    thinner_inside = 0.55 + 0.45 * np.clip((u + 1) / 0.3, 0, 1)
    thick = who.brow_thick * thinner_outside * thinner_inside
    n = 150
    for side in (-1, 1):
        upper = np.stack([side * x, middle - thick / 2], 1)
        lower = np.stack([side * x, middle + thick / 2], 1)
        canvas.tint(canvas.mask(np.concatenate([upper, lower[::-1]]), 0.012) * 0.72, who.brows)
        along, across = rng.uniform(-1, 1, n), rng.uniform(-0.5, 0.5, n)
        start_y = np.interp(along, u, middle) + across * np.interp(along, u, thick)
        starts = np.stack([side * np.interp(along, u, x), start_y], 1).astype(np.float32)
        lean = np.interp(along, [-1, -0.5, 1], [-0.8, -0.45, 0.12]) + across * 0.6
        angle = np.where(side > 0, lean, np.pi - lean)
        lines = _curves(starts, angle, rng.uniform(0.035, 0.075, n), rng.normal(0, 0.3, n))
        tones = rng.uniform(0.85, 1.35, n).astype(np.float32)
        canvas.strokes(lines, who.brows, tones, 0.008, 0.7, solid=False)


def paint_beard(who: Identity, canvas: Canvas, face: FloatArray, rng: np.random.Generator) -> None:
    """Paint over the painted face, whose mask is `face`."""
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
    keep = _at(zone, canvas, lines[:, -1]) > 0.15
    canvas.strokes(lines[keep], colour * 1.12, tones[keep], 0.009, 0.6, solid=False)


def _beard_zone(who: Identity, canvas: Canvas) -> FloatArray:
    """Coverage of the skin on which this kind of beard grows; the lips stay free."""
    wide, y = who.mouth_width + 0.1, who.mouth_y
    right = [(wide * 0.6, y - 0.16), (wide, y + 0.02), (wide * 0.7, y - 0.02)]
    moustache = [(0.0, who.nose_y + 0.09), *right, (0.0, y - 0.03), *mirrored(right)]
    zone = canvas.mask(smooth_loop(moustache), 0.022)
    if who.beard == "goatee":
        chin = canvas.blob(0, who.chin - 0.1, 0.26, 0.24)
        chin = chin + canvas.pair(who.mouth_width + 0.05, y + 0.12, 0.07, 0.16)
        zone = np.maximum(zone, np.clip(chin * 1.2, 0, 1))
    elif who.beard != "moustache":
        right = [(1.1, 1.0), (1.05, -0.1), (0.9, 0.25), (0.6, 0.52), (wide, y - 0.1)]
        cheeks = [(0.0, 1.6), *right, (0.0, y - 0.06), *mirrored(right)]
        zone = np.maximum(zone, canvas.mask(smooth_loop(cheeks), 0.045))
    x = np.linspace(-who.mouth_width, who.mouth_width, 41)
    upper, lower = rest_outline(who, x)
    edge = [np.stack([x, upper - 0.012], 1), np.stack([x, lower + 0.012], 1)[::-1]]
    return np.asarray(zone * (1 - canvas.mask(np.concatenate(edge), 0.012)), np.float32)


def _shapes(who: Identity) -> tuple[Points, Points]:
    """The outer edge of the hair and the window it leaves for the face, closed curves."""
    style, top, temple = who.hair_style, who.top, who.temple
    volume, sides = _VOLUME.get(style, 0.16), _SIDES.get(style, 0.13)
    low, line = _LOW.get(style, -0.22), _HAIRLINE.get(style, -0.9)
    lean = 0.12 * np.sign(who.parting) if style in ("side", "quiff") else 0.0
    crown = [(x + lean, top + y - volume) for x, y in ((-0.44, 0.06), (0, 0), (0.44, 0.06))]
    right = [
        (0.8 + sides * 0.8, top + 0.33 - volume * 0.7),
        (temple + 0.04 + sides, -0.72),
        (1.0 + sides, min(-0.25, low)),
        (0.99 + sides * 0.9, low),
        (0.85, low + 0.02),
    ]
    outer = [*crown, *right, *mirrored(right)]
    if style == "afro":
        turn = np.linspace(0, 2 * np.pi, 14, endpoint=False)
        outer = [(1.42 * np.sin(t), -0.78 - 1.12 * np.cos(t)) for t in turn]
    edge = 0.985 - (0.1 if low > 0 else 0.035)
    part = who.parting * 0.6
    # With a side parting, the hair hangs lower on the wider side.
    left_dip, right_dip = (0.1 if on and style == "side" else 0 for on in (part > 0, part < 0))
    right = [
        (temple * 0.82, line + 0.22),
        (edge * 0.95, -0.45),
        (edge, -0.15),
        (edge * 0.97, low + 0.3),
    ]
    hairline = [(-0.5, line + 0.05 + left_dip), (part, line - 0.03), (0.5, line + 0.05 + right_dip)]
    window = [*mirrored(right), *hairline, *right, (0.5, 1.6), (-0.5, 1.6)]
    return smooth_loop(outer), smooth_loop(window)


def _flow(who: Identity, points: FloatArray) -> Points:
    """The angle at which the hair lies: away from the parting over the crown, then down."""
    x, y = points[:, 0].astype(np.float64), points[:, 1].astype(np.float64)
    away = np.arctan2(y - (who.top - 0.25), (x - who.parting * 0.7) * 1.1)
    if who.hair_style == "quiff":
        return away + np.pi + 0.5 * np.sign(who.parting)
    if who.hair_style == "bun":
        return np.arctan2(who.top - 0.2 - y, -x)
    down = np.pi / 2 + 0.12 * np.sin(y * 6 + x * 3)
    share = np.clip((y + 1.0) / 0.7, 0, 1) * (np.abs(x) > 0.6)
    return np.asarray(away * (1 - share) + down * share)


def _scatter(sheet: FloatArray, canvas: Canvas, rng: np.random.Generator, n: int) -> FloatArray:
    """(m, 2) points, m <= n, as dense as `sheet` (0..1) says; the same at every density."""
    right = canvas.left + canvas.width / canvas.density
    bottom = canvas.top + canvas.height / canvas.density
    points = rng.uniform((canvas.left, canvas.top), (right, bottom), (n, 2))
    chance = rng.random(n)
    return np.asarray(points[_at(sheet, canvas, points) > chance], np.float32)


def _at(sheet: FloatArray, canvas: Canvas, points: NDArray[np.floating]) -> FloatArray:
    """The sheet's value at each point."""
    index = ((points - (canvas.left, canvas.top)) * canvas.density).astype(int)
    column = np.clip(index[:, 0], 0, canvas.width - 1)
    row = np.clip(index[:, 1], 0, canvas.height - 1)
    return sheet[row, column]


def _curves(
    starts: FloatArray,
    angle: NDArray[np.floating],
    length: NDArray[np.floating],
    bend: NDArray[np.floating],
) -> Points:
    """(n, 5, 2) arcs: from each start along `angle` (0 is right, pi/2 down), turning by `bend`."""
    t = np.linspace(0, 1, 5)[None, :]
    heading = angle[:, None] + bend[:, None] * (t - 0.5)
    step = np.stack([np.cos(heading), np.sin(heading)], axis=2) * (length / 4)[:, None, None]
    path = np.cumsum(step, axis=1) - step[:, :1]
    return np.asarray(starts[:, None, :] + path, np.float64)


def _tones(lines: Points, who: Identity, rng: np.random.Generator) -> FloatArray:
    """Brightness of each stroke: locks, the light's side, and a band of gloss over the crown."""
    x, y = lines[:, 2].T
    locks = np.sin(x * 17 + np.sin(y * 5) * 2 + who.seed % 7) * 0.14
    side = 0.16 * who.contrast * who.light * x
    gloss = 0.42 * who.shine * np.exp(-(((y + 1.28 - 0.18 * x**2) / 0.14) ** 2))
    return np.asarray(0.95 + locks + side + gloss + rng.normal(0, 0.13, len(lines)), np.float32)
