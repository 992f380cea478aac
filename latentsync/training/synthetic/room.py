"""What is around the head: neck, shoulders and clothes, and a room out of focus."""

import numpy as np

from latentsync.training.synthetic.canvas import Canvas, mirrored, smooth_loop
from latentsync.training.synthetic.identity import Identity
from latentsync.training.synthetic.skin import light_colour
from latentsync.types import FloatArray

__all__ = ["BODY_BOX", "ROOM_BOX", "paint_body", "paint_room"]

BODY_BOX = (-2.7, 0.2, 2.7, 4.2)  # left, top, right, bottom in head units
ROOM_BOX = (-6.5, -4.0, 6.5, 5.0)
_SHOULDER = ((-0.42, 1.55), (-0.76, 1.68), (-1.3, 1.85), (-1.78, 2.12), (-2.02, 2.7), (-2.2, 4.6))
_DIP = {"round": 1.74, "vee": 2.05, "shirt": 1.95, "roll": 1.72}  # y of the collar's lowest point


def paint_body(who: Identity, canvas: Canvas) -> None:
    """Paint neck and clothed shoulders."""
    skin = np.array(who.skin, np.float32) * light_colour(who)
    width = 0.38 + 0.35 * (who.jaw - 0.68)
    right = [(width, 0.5), (width + 0.02, 1.4), (width + 0.22, 1.72), (0.9, 2.3)]
    neck = canvas.mask(smooth_loop([(-width, 0.5), *right, *mirrored(right[1:])]), 0.008)
    canvas.lay(neck, skin * (0.93, 0.87, 0.85))
    far = np.clip(canvas.x * -np.sign(who.light + 1e-6) * 1.4 + 0.2, 0, 1)
    canvas.shade(far * neck, 0.3 * who.contrast + 0.08)
    canvas.shade(canvas.blob(0, who.chin - 0.02, 0.75, 0.17) * neck, 0.5)
    sinews = [canvas.line([(s * 0.3, 1.2), (s * 0.08, 1.72)], 0.05, 0.05) for s in (-1, 1)]
    canvas.shade((sinews[0] + sinews[1]) * neck, 0.14)
    canvas.shade(canvas.pair(0.28, 1.86, 0.2, 0.03) * neck, 0.16)
    _paint_clothes(who, canvas)


def _paint_clothes(who: Identity, canvas: Canvas) -> None:
    rng = np.random.default_rng([who.seed, 3])
    dip = _DIP[who.collar]
    throat = [(0.36, 1.66), (0, dip), (-0.36, 1.66)]
    if who.collar in ("round", "roll"):
        throat = [(0.5, 1.5), (0.3, dip - 0.06), (0, dip), (-0.3, dip - 0.06), (-0.5, 1.5)]
    bare = canvas.mask([*throat, (-0.5, 0.9), (0.5, 0.9)], 0.006)
    mask = canvas.mask(smooth_loop([*_SHOULDER, *mirrored(_SHOULDER)]), 0.006) * (1 - bare)
    cloth = np.array(who.cloth, np.float32) * light_colour(who)
    canvas.shade(np.clip(canvas.blur(mask, 0.05) - mask, 0, 1) * 1.5, 0.45)  # on the neck
    canvas.lay(mask, cloth)
    side = np.clip(0.5 - canvas.x * who.light * 0.25, 0, 1)
    canvas.shade(mask * side, 0.35 * who.contrast + 0.1)
    canvas.shade(mask * np.clip((canvas.y - 1.9) * 0.22, 0, 0.4), 1.0)
    for _ in range(16):
        x, y = rng.uniform(-1.7, 1.7), rng.uniform(1.9, 3.0)
        fold = np.array([(0, 0), (0.25 * x + rng.normal(0, 0.1), 0.4), (0.2 * x, 0.9)])
        line = canvas.line(fold + np.array([x, y]), 0.07, 0.06)
        canvas.shade(line * mask, rng.uniform(-0.12, 0.2))
    canvas.shade(canvas.noise(rng, 0.02) * mask, 0.018)
    if who.collar == "shirt":
        _paint_shirt_collar(canvas, cloth, mask, dip)
    elif who.collar == "roll":
        _paint_roll_collar(canvas, cloth)
    else:
        canvas.tint(canvas.line(throat[::-1], 0.05, 0.006) * mask, cloth * 0.86)


def _paint_shirt_collar(canvas: Canvas, cloth: FloatArray, mask: FloatArray, dip: float) -> None:
    for s in (-1, 1):
        flap = canvas.mask([(s * 0.4, 1.52), (s * 0.62, 1.66), (s * 0.42, 2.2), (0, dip)], 0.006)
        canvas.shade(canvas.blur(flap, 0.04) * mask, 0.25)
        canvas.lay(flap, np.minimum(cloth * 1.1 + 6, 255))
    canvas.tint(canvas.line([(0, dip + 0.1), (0, 4.2)], 0.02, 0.008) * 0.7, cloth * 0.72)


def _paint_roll_collar(canvas: Canvas, cloth: FloatArray) -> None:
    right = [(0.5, 1.34), (0.56, 1.6), (0.6, 1.74)]
    tube = smooth_loop([(-0.5, 1.34), (0, 1.5), *right, (0, 1.92), *mirrored(right[1:])])
    piece = canvas.mask(tube, 0.008)
    canvas.lay(piece, cloth * 0.96)
    canvas.shade(piece * np.abs(canvas.x / 0.6) ** 2, 0.35)
    canvas.shade(piece * (0.5 + 0.5 * np.cos(canvas.x * 80)), 0.07)
    canvas.shade(canvas.line([(-0.5, 1.37), (0, 1.53), (0.5, 1.37)], 0.05, 0.03) * piece, -0.12)
    canvas.shade(canvas.line([(-0.6, 1.76), (0, 1.94), (0.6, 1.76)], 0.05, 0.03), 0.25)


def paint_room(who: Identity, canvas: Canvas) -> None:
    """Fill the canvas with a wall, light on it, and blurred things before it."""
    rng = np.random.default_rng([who.seed, 4])
    first, second, third = (np.array(colour, np.float32) for colour in who.room)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.clip(0.5 + (canvas.x * np.cos(angle) + canvas.y * np.sin(angle)) / 8, 0, 1)
    canvas.colour[:] = first + (second - first) * ramp[..., None]
    canvas.cover[:] = 1
    for _ in range(int(who.clutter * 16)):
        x, y = rng.uniform(-6, 6), rng.uniform(-3.5, 4)
        w, h = rng.uniform(0.2, 1.6), rng.uniform(0.3, 2.4)
        colour = (first, second, third)[rng.integers(3)] * rng.uniform(0.5, 1.4)
        if rng.random() < 0.55:
            shape = [(x - w, y - h), (x + w, y - h), (x + w, y + h), (x - w, y + h)]
        else:
            shape = smooth_loop([(x - w, y), (x, y - w), (x + w, y), (x, y + w)]).tolist()
        canvas.tint(canvas.mask(shape, rng.uniform(0.1, 0.3)) * rng.uniform(0.25, 0.8), colour)
    canvas.shade(canvas.blob(who.light * 3, -1.5, 2.6, 2.2), -0.28)
    canvas.shade(canvas.noise(rng, 1.2), 0.04)
    radius = np.hypot(canvas.x / 6, canvas.y / 4.2)
    canvas.shade(np.clip(radius - 0.35, 0, 1), 0.35)
    canvas.colour *= light_colour(who)
