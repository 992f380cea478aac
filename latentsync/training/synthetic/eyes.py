"""Eyes that look and blink, and glasses: painted anew on each frame's copy of the face."""

import numpy as np
from numpy.typing import NDArray

from latentsync.training.synthetic.canvas import Canvas, smooth_loop, soft_edge
from latentsync.training.synthetic.geometry import Pose
from latentsync.training.synthetic.identity import LONG_STYLES, Identity
from latentsync.types import FloatArray, Frame

__all__ = ["paint_eyes", "paint_glasses"]

_MARGIN = 0.1  # around an eye, head units
_FRAMES = ((28, 26, 28), (70, 44, 26), (120, 100, 70), (52, 58, 70))  # colours of glasses


def paint_eyes(who: Identity, pose: Pose, canvas: Canvas, texture: Frame) -> None:
    """Paint both eyes onto `texture`, (H, W, 4) uint8 of `canvas`, in place."""
    patches = [_patch(canvas, who, side) for side in (-1, 1)]
    side = np.array([-1, 1], np.float32)[:, None, None]
    x = np.stack([canvas.x[:, columns] for _, columns in patches]) - side * who.eye_x
    y = canvas.y[patches[0][0]][None] - who.eye_y + np.zeros_like(x)
    colour = np.stack([texture[*patch, :3] for patch in patches]).astype(np.float32)
    _paint_pair(who, pose, x, y, side, 1 / canvas.density, colour)
    for patch, painted in zip(patches, np.clip(colour + 0.5, 0, 255), strict=True):
        texture[*patch, :3] = painted


def paint_glasses(who: Identity, canvas: Canvas) -> Frame | None:
    """(H, W, 4) uint8 frames and the gleam of the lenses, or None for who wears none."""
    if who.glasses == "none":
        return None
    rng = np.random.default_rng([who.seed, 5])
    dark = np.array(_FRAMES[rng.integers(4)])
    bottom = canvas.top + canvas.height / canvas.density
    sheet = Canvas((canvas.left, canvas.top, -canvas.left, bottom), canvas.density)
    square = who.glasses == "square"
    (wide, high), power = ((0.3, 0.21), 0.5) if square else ((0.275, 0.25), 1.0)
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    ring = np.stack([np.sign(c) * np.abs(c) ** power for c in (np.cos(t), np.sin(t))], 1)
    ring *= (wide, high)
    width = float(rng.uniform(0.022, 0.042))
    temple = 0.86 if who.hair_style in LONG_STYLES else 1.0  # where arms meet hair or ears
    middle, y = who.eye_x + 0.02, who.eye_y + 0.03
    for x in (-middle, middle):
        ramp = np.clip((canvas.x - x) * 1.2 - (canvas.y - y) * 1.2 - 0.12, 0, 0.16)
        gleam = sheet.mask(ring + np.array([x, y])) * ramp
        sheet.colour += (255 - sheet.colour) * (gleam > 0)[..., None]
        sheet.cover = np.maximum(sheet.cover, gleam)
    for side, x in ((-1, -middle), (1, middle)):
        rim = sheet.line(np.concatenate([ring, ring[:2]]) + np.array([x, y]), width)
        arm = sheet.line([(x + side * wide * 0.97, y - 0.06), (side * temple, y - 0.09)], width)
        sheet.lay(np.maximum(rim, arm), dark)
    gap = middle - wide
    arch = smooth_loop([(-gap, y - 0.03), (0, y - 0.075), (gap, y - 0.03), (0, y - 0.074)])[:24]
    sheet.lay(sheet.line(arch, width), dark)
    return sheet.texture()


def _patch(canvas: Canvas, who: Identity, side: int) -> tuple[slice, slice]:
    """Rows and columns of the canvas around one eye; both have the same shape."""
    x, y = side * who.eye_x, who.eye_y
    wide, high = who.eye_width + _MARGIN, who.eye_height + _MARGIN
    d = canvas.density
    row, column = round((y - high - canvas.top) * d), round((x - wide - canvas.left) * d)
    return slice(row, row + round(2 * high * d)), slice(column, column + round(2 * wide * d))


def _paint_pair(
    who: Identity,
    pose: Pose,
    x: FloatArray,
    y: FloatArray,
    side: FloatArray,
    pixel: float,
    colour: FloatArray,
) -> None:
    """Paint onto `colour` (2, h, w, 3); x and y are from each eye's middle, `side` -1 and 1."""
    skin = np.array(who.skin, np.float32)

    def lay(sheet: NDArray[np.floating], paint: NDArray[np.floating]) -> None:
        colour[:] += (paint.astype(np.float32) - colour) * sheet[..., None].astype(np.float32)

    u = x / who.eye_width * side  # -1 at the nose .. 1 at the temple
    y = y + who.eye_tilt * u
    inside = np.minimum(np.abs(u), 1)
    high = who.eye_height
    low_lid = 0.62 * high * (1 - np.minimum(np.abs(u - 0.12) / 1.12, 1) ** 2.4)
    top_open = -high * (1 - inside**2.2) ** 0.85 * (1 + 0.1 * u)
    top_lid = top_open + (low_lid * 0.85 - top_open) * pose.blink
    edge = pixel * 1.5
    within = np.clip((1 - inside) / 0.06, 0, 1)
    above_floor = soft_edge(low_lid - y, edge) * (inside < 1)
    if pose.blink > 0:
        # The lid that comes down is skin, a little darker and pinker than the cheek.
        fold = skin * (0.84, 0.74, 0.72) * (1 - 0.1 * who.contrast)
        lay(soft_edge(y - top_open, edge) * above_floor * min(1.0, pose.blink * 3), fold)
    ball = _eyeball(who, pose, x, y, pixel)
    ball *= (1 - 0.5 * np.exp(-(((y - top_lid) / (0.32 * high)) ** 2)))[..., None]
    lay(soft_edge(y - top_lid, edge) * above_floor, ball * min(who.exposure + 0.03, 1))
    corner = np.exp(-(((u + 0.97) / 0.07) ** 2) - (y / 0.02) ** 2) * (1 - pose.blink)
    lay(0.5 * corner, np.array([176.0, 96.0, 92.0]) * (skin.mean() / 255 + 0.35))
    lay(0.6 * np.exp(-(((y - low_lid) / 0.011) ** 2)) * within, skin * (0.5, 0.36, 0.36))
    lash = soft_edge(0.014 + 0.012 * np.clip(u + 0.3, 0, 1) - np.abs(y - top_lid + 0.004), edge)
    lay(0.92 * lash * within, np.minimum(np.array(who.brows) * 0.4, 34))
    crease = np.exp(-(((y - top_open + 0.04) / 0.012) ** 2)) * np.clip((1 - inside) / 0.25, 0, 1)
    colour *= (1 - 0.38 * (1 - 0.6 * pose.blink) * crease)[..., None]


def _eyeball(who: Identity, pose: Pose, x: FloatArray, y: FloatArray, pixel: float) -> FloatArray:
    """White, iris, pupil and the light's reflection; x and y from the eye's middle."""
    radius = who.eye_height * 1.12 + 0.012
    gaze_x = x - pose.gaze_x * who.eye_width * 0.42
    gaze_y = y + 0.012 - pose.gaze_y * who.eye_height * 0.4
    aside = np.abs(x) / who.eye_width
    white = np.array([238.0, 234.0, 230.0]) * (1 - 0.35 * aside**2.5)[..., None]
    white[..., 1:] *= (1 - 0.09 * aside**2)[..., None]
    distance = np.hypot(gaze_x, gaze_y)
    angle = np.arctan2(gaze_y, gaze_x)
    fibres = 1 + 0.12 * np.sin(angle * 23) * np.cos(angle * 7) * (distance / radius)
    glow = 0.8 + 0.55 * np.clip(gaze_y / radius, -0.5, 1)  # light gathers opposite its source
    ring = 1 - 0.6 * soft_edge(distance - radius * 0.82, radius * 0.28)
    iris = np.array(who.iris) * (fibres * glow * ring)[..., None]
    colour = white + (iris - white) * soft_edge(radius - distance, pixel * 1.3)[..., None]
    pupil = soft_edge(radius * 0.44 - distance, pixel * 1.3)[..., None]
    colour += (np.array([10.0, 8.0, 9.0]) - colour) * pupil
    spot = np.hypot(gaze_x - 0.3 * radius * np.sign(who.light + 1e-6), gaze_y + 0.38 * radius)
    colour += (255 - colour) * (0.9 * soft_edge(radius * 0.2 - spot, max(pixel, 0.012)))[..., None]
    return np.asarray(colour, np.float32)
