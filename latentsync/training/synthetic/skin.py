"""The face without hair and eyes: a relief lit from the side, its colour, its lines."""

import cv2
import numpy as np

from latentsync.training.synthetic.canvas import Canvas, smooth_loop
from latentsync.training.synthetic.geometry import Affine
from latentsync.training.synthetic.identity import Identity
from latentsync.training.synthetic.mouth import rest_line, rest_outline
from latentsync.types import FloatArray

__all__ = ["face_outline", "light_colour", "paint_ears", "paint_skin"]

_OUTLINE_STEPS = 12


def light_colour(identity: Identity) -> FloatArray:
    """The tint of the light as a gain for each channel."""
    return np.array([1 + 0.05 * identity.warmth, 1.0, 1 - 0.07 * identity.warmth], np.float32)


def face_outline(identity: Identity) -> Affine:
    """(n, 2) points around the face, from the crown clockwise; the chin is in the middle."""
    chin, jaw = identity.chin, identity.jaw
    right = [
        (0.45, identity.top + 0.07),
        (0.8, identity.top + 0.36),
        (identity.temple, -0.6),
        (0.995, -0.15),
        (0.955, 0.28),
        (jaw + 0.02, 0.72),
        ((jaw + identity.chin_width) * 0.56, chin - 0.19),
        (identity.chin_width, chin - 0.035),
    ]
    left = [(-x, y) for x, y in reversed(right)]
    return smooth_loop([(0, identity.top), *right, (0, chin), *left], _OUTLINE_STEPS)


def _relief(identity: Identity, canvas: Canvas, mask: FloatArray) -> FloatArray:
    """Height of the face towards the viewer, in head units."""
    who = identity
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
    philtrum = canvas.blob(0, (who.nose_y + who.mouth_y) / 2, 0.035, 0.1)
    z -= 0.012 * philtrum - 0.008 * canvas.pair(0.06, (who.nose_y + who.mouth_y) / 2, 0.03, 0.1)
    z += 0.03 * canvas.blob(0, who.mouth_y - 0.45 * who.lip_upper, 0.2, 0.035)
    z += 0.042 * canvas.blob(0, who.mouth_y + 0.5 * who.lip_lower, 0.17, 0.045)
    z -= 0.04 * canvas.blob(0, who.mouth_y + who.lip_lower + 0.09, 0.2, 0.05)
    z += 0.05 * canvas.blob(0, who.chin - 0.15, 0.2, 0.1)
    fold = np.array([(width * 1.05, who.nose_y - 0.08), (0.4, 0.5), (0.45, who.mouth_y + 0.02)])
    lines = canvas.line(fold, 0.03, 0.03) + canvas.line(fold * (-1, 1), 0.03, 0.03)
    return z - (0.02 + 0.05 * who.age) * lines


def _light(identity: Identity, canvas: Canvas, z: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Diffuse light as a gain about 1, and gloss in 0..1."""
    dy, dx = np.gradient(canvas.blur(z, 0.012) * canvas.density)
    normal = np.dstack([-dx, -dy, np.ones_like(dx)])
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    side = 0.75 * identity.light
    light = np.array([side, -0.5, 0.85])
    light /= np.linalg.norm(light)
    wrap = 0.3
    key = np.clip((normal @ light + wrap) / (1 + wrap), 0, 1)
    key = key / ((light[2] + wrap) / (1 + wrap))  # 1 on a plane that faces the viewer
    ambient = 1 - 0.45 - 0.35 * identity.contrast
    # A weak light from the other side keeps the shadow's form.
    rim = np.clip(normal @ np.array([-0.9 * np.sign(side + 1e-6), 0.0, 0.25]), 0, 1) ** 2
    diffuse = ambient + (1 - ambient) * key + 0.12 * rim
    half = light + np.array([0.0, 0.0, 1.0])
    gloss = np.clip(normal @ (half / np.linalg.norm(half)), 0, 1) ** 26
    return diffuse.astype(np.float32), gloss.astype(np.float32)


def _complexion(identity: Identity, canvas: Canvas, rng: np.random.Generator) -> None:
    """Colour that is in the skin itself: blood, freckles, mottling."""
    who = identity
    skin = np.array(who.skin, np.float32)
    canvas.colour[:] = skin
    fair = skin.mean() / 255
    blood = skin * (1.03, 0.80, 0.80)
    strength = 0.75 * who.blush * (0.35 + 0.65 * fair)
    canvas.tint(np.clip(canvas.pair(0.58, 0.24, 0.17, 0.13) * strength, 0, 1), blood)
    canvas.tint(canvas.blob(0, who.nose_y - 0.08, 0.13, 0.1) * strength * 0.8, blood)
    canvas.tint(canvas.blob(0, who.chin - 0.1, 0.2, 0.1) * strength * 0.35, blood)
    canvas.tint(
        canvas.pair(who.eye_x, who.eye_y + 0.11, 0.15, 0.04) * 0.35, skin * (0.8, 0.7, 0.74)
    )
    canvas.tint(
        canvas.pair(who.eye_x, who.eye_y - 0.05, 0.17, 0.06) * 0.5, skin * (0.8, 0.68, 0.66)
    )
    canvas.shade(canvas.noise(rng, 0.28), 0.012)
    canvas.shade(canvas.noise(rng, 0.09), 0.011)
    canvas.shade(canvas.noise(rng, 0.022), 0.009)
    if who.freckles > 0.05:
        spots = np.clip(canvas.noise(rng, 0.02) - 1.1, 0, 1)
        zone = canvas.pair(0.45, 0.12, 0.25, 0.16) + canvas.blob(0, 0.05, 0.15, 0.14)
        canvas.tint(np.clip(spots * zone * who.freckles * 1.6, 0, 0.7), skin * (0.72, 0.56, 0.44))


def _lines(identity: Identity, canvas: Canvas) -> None:
    """Folds, deeper with age, and the shadows that make a nose and eyes sit in a face."""
    who = identity
    canvas.shade(canvas.pair(who.eye_x * 0.72, who.eye_y - 0.02, 0.1, 0.09), 0.13)
    canvas.shade(canvas.pair(who.eye_x, who.brow_y + 0.11, 0.19, 0.035), 0.14)
    canvas.shade(canvas.blob(0, who.mouth_y + who.lip_lower + 0.05, 0.16, 0.03), 0.2)
    canvas.shade(
        canvas.pair(
            who.mouth_width + 0.03, rest_line(who, np.array([who.mouth_width]))[0], 0.035, 0.035
        ),
        0.22,
    )
    under = np.array([(-0.85, 0.02), (-0.5, 0.05), (0, 0.085), (0.5, 0.05), (0.85, 0.02)])
    curve = under * (who.nose_width, 1) + (0, who.nose_y - 0.04)
    canvas.shade(canvas.line(curve, 0.03, 0.02), 0.34)
    canvas.shade(canvas.blob(0, who.nose_y + 0.07, who.nose_width * 0.7, 0.04), 0.12)
    for side in (-1, 1):
        x = side * who.nose_width * 0.47
        hole = smooth_loop(
            [
                (x - 0.055, who.nose_y - 0.01),
                (x, who.nose_y - 0.032),
                (x + 0.055, who.nose_y - 0.008),
                (x, who.nose_y + 0.014),
            ]
        )
        canvas.tint(canvas.mask(hole, 0.008) * 0.85, np.array(who.skin) * (0.3, 0.2, 0.2))
        wing = [
            (x + side * 0.6 * who.nose_width, who.nose_y - 0.13),
            (x + side * 0.66 * who.nose_width, who.nose_y - 0.06),
            (x + side * 0.5 * who.nose_width, who.nose_y),
        ]
        canvas.shade(canvas.line(wing, 0.016, 0.012), 0.4)
        if who.age > 0.45:
            depth = (who.age - 0.45) * 0.5
            for angle in (-0.5, 0.0, 0.5):
                x, y = who.eye_x + who.eye_width + 0.05, who.eye_y + 0.1 * angle
                foot = [(side * x, y), (side * (x + 0.11), y + 0.09 * angle)]
                canvas.shade(canvas.line(foot, 0.01, 0.006), depth)
            bag = [
                (side * (who.eye_x + u * who.eye_width), who.eye_y + 0.15 - 0.04 * u * u)
                for u in (-0.8, -0.3, 0.3, 0.8)
            ]
            canvas.shade(canvas.line(bag, 0.014, 0.012), depth)
    if who.age > 0.6:
        along = np.linspace(-0.4, 0.4, 13)
        for y in (-0.66, -0.76, -0.87):
            bend = 0.03 * along**2 + 0.008 * np.sin(7 * along + 40 * y)
            crease = np.stack([along, y + bend], axis=1)
            canvas.shade(canvas.line(crease, 0.014, 0.012), (who.age - 0.6) * 0.4)


def _lips(identity: Identity, canvas: Canvas, rng: np.random.Generator) -> None:
    who = identity
    x = np.linspace(-who.mouth_width, who.mouth_width, 61)
    upper, lower = rest_outline(who, x)
    line = rest_line(who, x)
    top = np.concatenate([np.stack([x, upper], 1), np.stack([x, line + 0.002], 1)[::-1]])
    low = np.concatenate([np.stack([x, lower], 1), np.stack([x, line - 0.002], 1)[::-1]])
    colour = np.array(who.lips)
    whole = np.concatenate([np.stack([x, upper], 1), np.stack([x, lower], 1)[::-1]])
    canvas.tint(canvas.mask(whole, 0.03) * 0.35, colour)
    canvas.tint(canvas.mask(top, 0.009) * 0.95, colour * 0.84)
    canvas.tint(canvas.mask(low, 0.009) * 0.95, colour)
    # Fine upright furrows.
    rows = canvas.noise(rng, 0.02).mean(axis=0, keepdims=True) * 6
    canvas.shade(canvas.mask(whole, 0.01) * rows, 0.05)
    canvas.shade(canvas.line(np.stack([x, line], 1), 0.02, 0.006), 0.55)
    canvas.shade(canvas.blob(0, who.mouth_y + 0.55 * who.lip_lower, 0.12, 0.022), -0.16)


def paint_ears(identity: Identity, canvas: Canvas) -> None:
    """Both ears, behind the face."""
    skin = np.array(identity.skin, np.float32) * light_colour(identity)
    size = identity.ears
    for side in (-1, 1):
        dark = 1 - 0.28 * identity.contrast * max(0.0, -side * identity.light)
        base = [
            (0.93, -0.2),
            (1.06, -0.27),
            (1.16, -0.17),
            (1.14, 0.05),
            (1.06, 0.22),
            (0.94, 0.22),
        ]
        loop = smooth_loop([(side * (1 + (x - 1) * size), y * size) for x, y in base])
        ear = canvas.mask(loop, 0.004)
        canvas.lay(ear, skin * (0.86, 0.78, 0.76) * dark)
        inner = [
            (side * (1 + (x - 1) * size), y * size)
            for x, y in [(1.0, -0.17), (1.09, -0.16), (1.1, 0.0), (1.04, 0.13)]
        ]
        canvas.shade(canvas.line(inner, 0.03, 0.02) * ear, 0.35)
        canvas.shade(canvas.blob(side * 1.02, 0.0, 0.035, 0.1) * ear, 0.35)


def paint_skin(identity: Identity, canvas: Canvas, rng: np.random.Generator) -> FloatArray:
    """The face onto an empty canvas; returns its mask, for the hair to keep to."""
    mask = canvas.mask(face_outline(identity), 0.004)
    behind = canvas.colour.copy()
    _complexion(identity, canvas, rng)
    _lips(identity, canvas, rng)
    _lines(identity, canvas)
    diffuse, gloss = _light(identity, canvas, _relief(identity, canvas, mask))
    # Light that has been through skin comes out red: shadows keep more red than blue.
    for channel, power in enumerate((0.86, 1.08, 1.18)):
        canvas.colour[..., channel] *= diffuse**power
    shine = gloss * (0.04 + 0.16 * identity.shine)
    canvas.colour += (255 * light_colour(identity) - canvas.colour) * shine[..., None]
    canvas.colour *= light_colour(identity)
    canvas.colour[:] = behind + (canvas.colour - behind) * mask[..., None]
    canvas.cover = np.maximum(canvas.cover, mask)
    return mask
