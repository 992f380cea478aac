"""Pictures that nets are trained on: heads in all poses, scenes without one, people in rooms."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync.faces.tracking.embedding import CELLS, face_patch
from latentsync.training.synthetic.canvas import Canvas
from latentsync.training.synthetic.geometry import Pose, chain, invert, scene_view
from latentsync.training.synthetic.heads import LANDMARKS, draw
from latentsync.training.synthetic.identity import Identity
from latentsync.training.synthetic.motion import draw_motion
from latentsync.training.synthetic.mouth import Mouth
from latentsync.training.synthetic.room import BODY_BOX, ROOM_BOX, paint_body, paint_room
from latentsync.types import FloatArray, Frame, IntArray

__all__ = [
    "Portraits",
    "draw_faceless",
    "draw_looks",
    "draw_mouth",
    "draw_portraits",
    "draw_pose",
]

_SPREAD = {"yaw": (0.2, 0.45), "pitch": (0.1, 0.3), "roll": (0.07, 0.2)}  # sd and bound, rad
_DENSITY = 24  # px a head unit in scenes without a face: their things are blurred anyway
_LOOK_SIZE = (320, 180)  # px
_MISPLACED = 0.012  # of the brows' distance, standard deviation: how far off a landmark is
_LOOK_FRAMES = 12  # frames between two looks of one set-up
_ROOMS = 24  # in which all people of a seed are


@dataclass(frozen=True)
class Portraits:
    """Square frames with a head in the middle, half a face 0.225 of the side wide."""

    pixels: NDArray[np.uint8]  # (n, side, side, 3) RGB
    points: FloatArray  # (n, 12, 2) px of LANDMARKS


def draw_pose(rng: np.random.Generator) -> Pose:
    """Any way to hold a head before a camera, the eyes in any state."""
    turn = {k: float(np.clip(rng.normal(0, s), -m, m)) for k, (s, m) in _SPREAD.items()}
    blink = float(rng.random() < 0.3) * rng.random()
    x, y = rng.uniform(-0.8, 0.8, 2).tolist()
    return Pose(**turn, blink=blink, gaze_x=x, gaze_y=y, tick=int(rng.integers(1 << 30)))


def draw_mouth(rng: np.random.Generator) -> Mouth:
    """Any mouth, more often little open than wide."""
    lips = rng.random()
    return Mouth(
        open=float(rng.random() ** 1.5) * (rng.random() < 0.85),
        wide=float(rng.uniform(-0.6, 1)),
        round=float(rng.random()) * (lips < 0.3),
        bite=float(rng.random()) * (lips > 0.9),
        tongue=float(rng.random()) * (rng.random() < 0.3),
    )


def draw_portraits(seed: int, people: int, frames: int, side: int = 144) -> Portraits:
    """`frames` pictures of each of `people` people, person by person.

    People of different seeds differ, and none of them is in a clip of `draw_take`.
    """
    count = people * frames
    pixels = np.empty((count, side, side, 3), np.uint8)
    points = np.empty((count, len(LANDMARKS), 2), np.float32)
    for person in range(people):
        rng = np.random.default_rng([seed, person, 7])
        who = Identity.from_seed(int(rng.integers(1 << 40, 1 << 41)))
        who = _varied(rng, who) if rng.random() < 0.6 else who
        for at in range(person * frames, (person + 1) * frames):
            pixels[at], points[at] = draw(who, draw_pose(rng), draw_mouth(rng), (side, side))
    return Portraits(pixels, points)


def _varied(rng: np.random.Generator, who: Identity) -> Identity:
    """The person with brows from none to bushy, and proportions that are rarer in drawn people."""
    fair = rng.uniform(0, 0.8)
    brows = np.array(who.brows) + (np.array(who.skin) - who.brows) * fair
    return replace(
        who,
        brows=tuple(brows.tolist()),
        brow_thick=who.brow_thick * rng.uniform(0.35, 1.2),
        brow_y=who.brow_y + rng.uniform(-0.07, 0.05),
        brow_arch=who.brow_arch * rng.uniform(0.3, 1.8),
        eye_height=who.eye_height * rng.uniform(0.7, 1.3),
        eye_width=who.eye_width * rng.uniform(0.85, 1.1),
        nose_y=who.nose_y + rng.uniform(-0.06, 0.04),
        mouth_width=who.mouth_width * rng.uniform(0.8, 1.25),
        lip_upper=who.lip_upper * rng.uniform(0.4, 1.2),
        lip_lower=who.lip_lower * rng.uniform(0.5, 1.2),
    )


def draw_looks(
    seed: int, people: int, rooms: int = 3, setups: int = 2, looks: int = 3
) -> tuple[FloatArray, IntArray]:
    """Draw what `faces.tracking.embedding` is fitted to and measured on: people in several rooms.

    Each person is in `rooms` rooms and lights, and is filmed in each from `setups` distances and at
    as many places, by cameras that all people of a seed share. No person is in a clip of
    `draw_take`.

    Returns:
        Cells (people, rooms * setups, looks, CELLS), and the room of each set-up (people, ...).
    """
    made = np.zeros((people, rooms * setups, looks, CELLS), np.float32)
    where = np.zeros((people, rooms * setups), np.int64)
    places = [Identity.from_seed((1 << 42) + seed * _ROOMS + room) for room in range(_ROOMS)]
    for person in range(people):
        rng = np.random.default_rng([seed, person, 12])
        who = Identity.from_seed(int(rng.integers(1 << 43, 1 << 44)))
        where[person] = np.repeat(rng.choice(_ROOMS, rooms, replace=False), setups)
        for setup, room in enumerate(where[person]):
            there = who.in_room_of(places[room])
            zoom, x = float(rng.uniform(0.6, 1.3)), float(rng.uniform(-1.5, 1.5))
            poses = draw_motion(rng, _LOOK_FRAMES * looks, amount=float(rng.uniform(0.4, 1.3)))
            for look, pose in enumerate(poses[::_LOOK_FRAMES]):
                moved = replace(pose, x=pose.x + x)
                frame, marks = draw(there, moved, draw_mouth(rng), _LOOK_SIZE, zoom=zoom)
                points = marks[[0, 1, 4]]
                error = _MISPLACED * np.linalg.norm(points[1] - points[0])
                off = rng.normal(0, error, (3, 2)).astype(np.float32)
                made[person, setup, look] = face_patch(frame, points + off)
    return made, where


def draw_faceless(rng: np.random.Generator, width: int, height: int) -> Frame:
    """(height, width, 3) RGB of something without a face: a room, noise, patterns, shapes, text."""
    kinds = (_room, _room, _noise, _pattern, _shapes, _shapes, _text)
    picture = kinds[rng.integers(len(kinds))](rng, width, height)
    grain = rng.standard_normal((height, width, 1), dtype=np.float32) * rng.uniform(0, 5)
    return np.clip(picture + grain, 0, 255).astype(np.uint8)


def _room(rng: np.random.Generator, width: int, height: int) -> FloatArray:
    """A room, in half the cases with clothed shoulders and a neck that ends in nothing."""
    who = Identity.from_seed(int(rng.integers(1 << 40)))
    view = scene_view(width, height, float(rng.uniform(0.5, 1.6)))
    picture = np.zeros((height, width, 3), np.float32)
    for box, paint in ((ROOM_BOX, paint_room), (BODY_BOX, paint_body))[: rng.integers(1, 3)]:
        canvas = Canvas(box, _DENSITY)
        paint(who, canvas)
        affine = chain(view, invert(canvas.to_pixels))
        beyond = cv2.BORDER_REPLICATE if box is ROOM_BOX else cv2.BORDER_CONSTANT
        colour, cover = (
            cv2.warpAffine(
                sheet, affine, (width, height), flags=cv2.INTER_LINEAR, borderMode=border
            )
            for sheet, border in ((canvas.colour, cv2.BORDER_REPLICATE), (canvas.cover, beyond))
        )
        picture += (colour - picture) * cover[..., None]
    return picture


def _noise(rng: np.random.Generator, width: int, height: int) -> FloatArray:
    """Coloured noise of several grains at once."""
    picture = np.full((height, width, 3), rng.uniform(60, 190, 3), np.float32)
    for rows in (3, 6, 12, 25, 50):
        coarse = rng.standard_normal((rows, max(2, rows * width // height), 3), np.float32)
        wide = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        grey = rng.random()
        wide = wide + (wide.mean(axis=2, keepdims=True) - wide) * grey
        picture += wide * rng.uniform(0, 35)
    return picture


def _pattern(rng: np.random.Generator, width: int, height: int) -> FloatArray:
    """Stripes, or two of them crossed, hard or soft."""
    y, x = np.mgrid[:height, :width].astype(np.float32) / height
    total = np.ones((height, width), np.float32)
    for _ in range(rng.integers(1, 3)):
        angle, rate = rng.uniform(0, np.pi), rng.uniform(10, 120)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * rate)
        total *= np.clip(wave * rng.uniform(0.7, 8), -1, 1).astype(np.float32)
    dark, light = rng.uniform(0, 255, (2, 3))
    return (dark + (light - dark) * (total[..., None] / 2 + 0.5)).astype(np.float32)


def _shapes(rng: np.random.Generator, width: int, height: int) -> FloatArray:
    """Ellipses and boxes of any colour, also of skin's, with spots that may lie like eyes."""
    picture = np.full((height, width, 3), rng.uniform(0, 255, 3), np.float32)
    skin = np.array(Identity.from_seed(int(rng.integers(1 << 40))).skin)
    for _ in range(rng.integers(3, 25)):
        colour = skin * rng.uniform(0.5, 1.1) if rng.random() < 0.4 else rng.uniform(0, 255, 3)
        middle = rng.integers(0, (width, height))
        axes = (rng.uniform(0.02, 0.3, 2) * height).astype(int)
        turn = float(rng.uniform(0, 180))
        if rng.random() < 0.6:
            cv2.ellipse(picture, middle.tolist(), axes.tolist(), turn, 0, 360, colour.tolist(), -1)
        else:
            corners = (middle - axes).tolist(), (middle + axes).tolist()
            cv2.rectangle(picture, *corners, colour.tolist(), -1)
        for _ in range(rng.integers(0, 4)):
            spot = middle + (rng.uniform(-0.6, 0.6, 2) * axes).astype(int)
            radius = max(1, int(axes.min() * rng.uniform(0.05, 0.3)))
            dark = (colour * rng.uniform(0.2, 1.3)).tolist()
            cv2.circle(picture, spot.tolist(), radius, dark, -1, cv2.LINE_AA)
    blur = rng.uniform(0.3, 0.012 * height + 0.4)
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), blur), np.float32)


def _text(rng: np.random.Generator, width: int, height: int) -> FloatArray:
    paper, ink = rng.uniform(0, 255, (2, 3))
    picture = np.full((height, width, 3), paper, np.float32)
    step = int(height * rng.uniform(0.05, 0.25)) + 4
    for row in range(step, height + step, step):
        line = "".join(chr(c) for c in rng.integers(33, 126, 60))
        font, size = int(rng.integers(8)), step / 32
        thick = max(1, step // 14)
        cv2.putText(picture, line, (2, row), font, size, ink.tolist(), thick, cv2.LINE_AA)
    return picture
