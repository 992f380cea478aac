"""The face without hair and eyes: a relief lit from the side, its colour, its lines."""

import cv2
import numpy as np

from latentsync.training.synthetic.canvas import Canvas, mirrored, smooth_loop
from latentsync.training.synthetic.geometry import Affine
from latentsync.training.synthetic.identity import Identity
from latentsync.training.synthetic.mouth import rest_line, rest_outline
from latentsync.types import FloatArray

__all__ = ["face_outline", "light_colour", "paint_ears", "paint_skin"]

_EAR = ((0.93, -0.2), (1.06, -0.27), (1.16, -0.17), (1.14, 0.05), (1.06, 0.22), (0.94, 0.22))
_INNER_EAR = ((1.0, -0.17), (1.09, -0.16), (1.1, 0.0), (1.04, 0.13))


def light_colour(who: Identity) -> FloatArray:
    """The tint of the light as a gain for each channel."""
    return np.array([1 + 0.05 * who.warmth, 1.0, 1 - 0.07 * who.warmth], np.float32)


def face_outline(who: Identity) -> Affine:
    """(n, 2) points around the face, from the crown clockwise; the chin is in the middle."""
    right = [
        (0.45, who.top + 0.07),
        (0.8, who.top + 0.36),
        (who.temple, -0.6),
        (0.995, -0.15),
        (0.955, 0.28),
        (who.jaw + 0.02, 0.72),
        ((who.jaw + who.chin_width) * 0.56, who.chin - 0.19),
        (who.chin_width, who.chin - 0.035),
    ]
    return smooth_loop([(0, who.top), *right, (0, who.chin), *mirrored(right)])


def paint_skin(who: Identity, canvas: Canvas, rng: np.random.Generator) -> FloatArray:
    """Paint the face onto an empty canvas; return its mask, for the hair to keep to."""
    mask = canvas.mask(face_outline(who), 0.004)
    behind = canvas.colour.copy()
    _complexion(who, canvas, rng)
    _lips(who, canvas, rng)
    _lines(who, canvas)
    diffuse, gloss = _light(who, canvas, _relief(who, canvas, mask))
    # Light that has been through skin comes out red: shadows keep more red than blue.
    for channel, power in enumerate((0.86, 1.08, 1.18)):
        canvas.colour[..., channel] *= diffuse**power
    shine = gloss * (0.04 + 0.16 * who.shine)
    canvas.colour += (255 * light_colour(who) - canvas.colour) * shine[..., None]
    canvas.colour *= light_colour(who)
    canvas.colour[:] = behind + (canvas.colour - behind) * mask[..., None]
    canvas.cover = np.maximum(canvas.cover, mask)
    return mask


def paint_ears(who: Identity, canvas: Canvas) -> None:
    """Paint both ears, which the face then covers in part."""
    skin = np.array(who.skin, np.float32) * light_colour(who)
    for side in (-1, 1):
        outer, inner = (
            [(side * (1 + (x - 1) * who.ears), y * who.ears) for x, y in line]
            for line in (_EAR, _INNER_EAR)
        )
        ear = canvas.mask(smooth_loop(outer), 0.004)
        dark = 1 - 0.28 * who.contrast * max(0.0, -side * who.light)
        canvas.lay(ear, skin * (0.86, 0.78, 0.76) * dark)
        canvas.shade(canvas.line(inner, 0.03, 0.02) * ear, 0.35)
        canvas.shade(canvas.blob(side * 1.02, 0.0, 0.035, 0.1) * ear, 0.35)


def _relief(who: Identity, canvas: Canvas, mask: FloatArray) -> FloatArray:
    """Height of the face towards the viewer, in head units."""
    inside = (mask > 0.5).astype(np.uint8)
    rim = cv2.distanceTransform(inside, cv2.DIST_L2, 5).astype(np.float32) / canvas.density
    inflated = np.sqrt(np.clip(1 - (1 - np.minimum(rim / 0.6, 1)) ** 2, 0, 1))
    dome = np.sqrt(np.clip(1 - (canvas.x / 1.12) ** 2 - ((canvas.y + 0.1) / 1.75) ** 2, 0.03, 1))
    z = 0.45 * canvas.blur(inflated, 0.05) + 0.5 * dome
    z = z + 0.05 * canvas.pair(0.3, who.brow_y + 0.06, 0.22, 0.06)
    z -= 0.085 * canvas.pair(who.eye_x, who.eye_y, 0.17, 0.1)
    z += 0.05 * canvas.pair(who.eye_x, who.eye_y + 0.01, 0.13, 0.075)
    z += 0.05 * canvas.pair(0.56, 0.2, 0.2, 0.16)
    tip, width = who.nose_y - 0.09, who.nose_width
    ridge = canvas.blob(0, 0, 0.075, 9.0)
    rise = np.clip((canvas.y + 0.42) / (tip + 0.42), 0, 1) ** 1.3
    end = 1 / (1 + np.exp((canvas.y - tip - 0.06) / 0.026))
    z += 0.2 * who.nose_bridge * ridge * rise * end
    z += 0.11 * canvas.blob(0, tip, 0.085, 0.075)
    z += 0.075 * canvas.pair(width * 0.68, who.nose_y - 0.055, 0.06, 0.055)
    z += 0.05 * canvas.blob(0, who.mouth_y - 0.02, 0.26, 0.2)
    philtrum = (who.nose_y + who.mouth_y) / 2
    groove, ridges = canvas.blob(0, philtrum, 0.035, 0.1), canvas.pair(0.06, philtrum, 0.03, 0.1)
    z -= 0.012 * groove - 0.008 * ridges
    z += 0.03 * canvas.blob(0, who.mouth_y - 0.45 * who.lip_upper, 0.2, 0.035)
    z += 0.042 * canvas.blob(0, who.mouth_y + 0.5 * who.lip_lower, 0.17, 0.045)
    z -= 0.04 * canvas.blob(0, who.mouth_y + who.lip_lower + 0.09, 0.2, 0.05)
    z += 0.05 * canvas.blob(0, who.chin - 0.15, 0.2, 0.1)
    fold = np.array([(width * 1.05, who.nose_y - 0.08), (0.4, 0.5), (0.45, who.mouth_y + 0.02)])
    lines = canvas.line(fold, 0.03, 0.03) + canvas.line(fold * (-1, 1), 0.03, 0.03)
    return z - (0.02 + 0.05 * who.age) * lines


def _light(who: Identity, canvas: Canvas, z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Diffuse light as a gain about 1, and gloss in 0..1."""
    dy, dx = np.gradient(canvas.blur(z, 0.012) * canvas.density)
    normal = np.dstack([-dx, -dy, np.ones_like(dx)])
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    side = 0.75 * who.light
    light = np.array([side, -0.5, 0.85])
    light /= np.linalg.norm(light)
    wrap = 0.3
    key = np.clip((normal @ light + wrap) / (1 + wrap), 0, 1)
    key = key / ((light[2] + wrap) / (1 + wrap))  # 1 on a plane that faces the viewer
    ambient = 1 - 0.45 - 0.35 * who.contrast
    # A weak light from the other side keeps the shadow's form.
    rim = np.clip(normal @ np.array([-0.9 * np.sign(side + 1e-6), 0.0, 0.25]), 0, 1) ** 2
    diffuse = ambient + (1 - ambient) * key + 0.12 * rim
    half = light + np.array([0.0, 0.0, 1.0])
    gloss = np.clip(normal @ (half / np.linalg.norm(half)), 0, 1) ** 26
    return diffuse.astype(np.float32), gloss.astype(np.float32)


def _complexion(who: Identity, canvas: Canvas, rng: np.random.Generator) -> None:
    """Colour that is in the skin itself: blood, freckles, mottling."""
    skin = np.array(who.skin, np.float32)
    canvas.colour[:] = skin
    fair = skin.mean() / 255
    blood = skin * (1.03, 0.80, 0.80)
    strength = 0.75 * who.blush * (0.35 + 0.65 * fair)
    canvas.tint(np.clip(canvas.pair(0.58, 0.24, 0.17, 0.13) * strength, 0, 1), blood)
    canvas.tint(canvas.blob(0, who.nose_y - 0.08, 0.13, 0.1) * strength * 0.8, blood)
    canvas.tint(canvas.blob(0, who.chin - 0.1, 0.2, 0.1) * strength * 0.35, blood)
    under, over = skin * (0.8, 0.7, 0.74), skin * (0.8, 0.68, 0.66)
    canvas.tint(canvas.pair(who.eye_x, who.eye_y + 0.11, 0.15, 0.04) * 0.35, under)
    canvas.tint(canvas.pair(who.eye_x, who.eye_y - 0.05, 0.17, 0.06) * 0.5, over)
    for grain, amount in ((0.28, 0.012), (0.09, 0.011), (0.022, 0.009)):
        canvas.shade(canvas.noise(rng, grain), amount)
    if who.freckles > 0.05:
        spots = np.clip(canvas.noise(rng, 0.02) - 1.1, 0, 1)
        zone = canvas.pair(0.45, 0.12, 0.25, 0.16) + canvas.blob(0, 0.05, 0.15, 0.14)
        canvas.tint(np.clip(spots * zone * who.freckles * 1.6, 0, 0.7), skin * (0.72, 0.56, 0.44))


def _lines(who: Identity, canvas: Canvas) -> None:
    """Folds, deeper with age, and the shadows that make a nose and eyes sit in a face."""
    canvas.shade(canvas.pair(who.eye_x * 0.72, who.eye_y - 0.02, 0.1, 0.09), 0.13)
    canvas.shade(canvas.pair(who.eye_x, who.brow_y + 0.11, 0.19, 0.035), 0.14)
    canvas.shade(canvas.blob(0, who.mouth_y + who.lip_lower + 0.05, 0.16, 0.03), 0.2)
    corner_y = rest_line(who, np.array([who.mouth_width]))[0]
    canvas.shade(canvas.pair(who.mouth_width + 0.03, corner_y, 0.035, 0.035), 0.22)
    under = np.array([(-0.85, 0.02), (-0.5, 0.05), (0, 0.085), (0.5, 0.05), (0.85, 0.02)])
    curve = under * (who.nose_width, 1) + (0, who.nose_y - 0.04)
    canvas.shade(canvas.line(curve, 0.03, 0.02), 0.34)
    canvas.shade(canvas.blob(0, who.nose_y + 0.07, who.nose_width * 0.7, 0.04), 0.12)
    for side in (-1, 1):
        _nostril(who, canvas, side)
        if who.age > 0.45:
            _lines_at_eye(who, canvas, side, depth=(who.age - 0.45) * 0.5)
    if who.age > 0.6:
        along = np.linspace(-0.4, 0.4, 13)
        for y in (-0.66, -0.76, -0.87):
            bend = 0.03 * along**2 + 0.008 * np.sin(7 * along + 40 * y)
            crease = np.stack([along, y + bend], axis=1)
            canvas.shade(canvas.line(crease, 0.014, 0.012), (who.age - 0.6) * 0.4)


def _nostril(who: Identity, canvas: Canvas, side: int) -> None:
    x, y = side * who.nose_width * 0.47, who.nose_y
    hole = smooth_loop(
        [(x - 0.055, y - 0.01), (x, y - 0.032), (x + 0.055, y - 0.008), (x, y + 0.014)]
    )
    canvas.tint(canvas.mask(hole, 0.008) * 0.85, np.array(who.skin) * (0.3, 0.2, 0.2))
    wing = [(0.6, y - 0.13), (0.66, y - 0.06), (0.5, y)]
    wing = [(x + side * share * who.nose_width, wing_y) for share, wing_y in wing]
    canvas.shade(canvas.line(wing, 0.016, 0.012), 0.4)


def _lines_at_eye(who: Identity, canvas: Canvas, side: int, depth: float) -> None:
    """Crow's feet, and the bag under the eye."""
    for angle in (-0.5, 0.0, 0.5):
        x, y = who.eye_x + who.eye_width + 0.05, who.eye_y + 0.1 * angle
        foot = [(side * x, y), (side * (x + 0.11), y + 0.09 * angle)]
        canvas.shade(canvas.line(foot, 0.01, 0.006), depth)
    bag = [
        (side * (who.eye_x + u * who.eye_width), who.eye_y + 0.15 - 0.04 * u * u)
        for u in (-0.8, -0.3, 0.3, 0.8)
    ]
    canvas.shade(canvas.line(bag, 0.014, 0.012), depth)


def _lips(who: Identity, canvas: Canvas, rng: np.random.Generator) -> None:
    x = np.linspace(-who.mouth_width, who.mouth_width, 61)
    upper, lower = rest_outline(who, x)
    line = rest_line(who, x)

    def between(edge: FloatArray, other: FloatArray) -> FloatArray:
        return np.concatenate([np.stack([x, edge], 1), np.stack([x, other], 1)[::-1]])

    colour, whole = np.array(who.lips), between(upper, lower)
    canvas.tint(canvas.mask(whole, 0.03) * 0.35, colour)
    canvas.tint(canvas.mask(between(upper, line + 0.002), 0.009) * 0.95, colour * 0.84)
    canvas.tint(canvas.mask(between(lower, line - 0.002), 0.009) * 0.95, colour)
    furrows = canvas.noise(rng, 0.02).mean(axis=0, keepdims=True) * 6  # fine and upright
    canvas.shade(canvas.mask(whole, 0.01) * furrows, 0.05)
    canvas.shade(canvas.line(np.stack([x, line], 1), 0.02, 0.006), 0.55)
    canvas.shade(canvas.blob(0, who.mouth_y + 0.55 * who.lip_lower, 0.12, 0.022), -0.16)
