"""Drawn people, and scenes of them: lists of frames (height, width, 3) uint8 RGB, 25 a second."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import cv2
import numpy as np

from latentsync.training.synthetic import Identity, Mouth, draw, draw_motion
from latentsync.types import Frame

ANNE, BERT = 9016, 9015  # whom no training run draws
SIDE = 256  # px
SECOND = 25  # frames


@cache
def person(who: int = ANNE, side: int = SIDE) -> tuple[Frame, ...]:
    """A second of somebody who looks at us and chews a little."""
    identity = Identity.from_seed(who)
    identity = replace(identity, beard="none", glasses="none", softness=0.3, grain=1.0)
    poses = draw_motion(np.random.default_rng(who), SECOND, amount=0.3)
    mouths = [Mouth(open=0.3 + 0.3 * np.sin(index / 2)) for index in range(SECOND)]
    return tuple(
        draw(identity, replace(pose, blink=0), mouth, (side, side), zoom=1.15)[0]
        for pose, mouth in zip(poses, mouths, strict=True)
    )


def frames(count: int, who: int = ANNE) -> list[Frame]:
    """So many frames of a person, to and fro."""
    there = person(who)
    whole = [*there, *there[-2:0:-1]]
    return [whole[index % len(whole)] for index in range(count)]


def wall(width: int, height: int) -> Frame:
    """Where nobody is."""
    shade = np.linspace(90, 150, width)[None, :, None] + np.linspace(0, 20, height)[:, None, None]
    return np.broadcast_to(shade, (height, width, 3)).astype(np.uint8)


def side_by_side(count: int) -> list[Frame]:
    """Two people beside each other, the left one nearer."""
    left, right = frames(count), frames(count, BERT)
    small = [cv2.resize(frame, (208, 208), interpolation=cv2.INTER_AREA) for frame in right]
    scenes = []
    for near, far in zip(left, small, strict=True):
        scene = wall(2 * SIDE, SIDE)
        scene[:, :SIDE] = near
        scene[48:, SIDE + 24 : SIDE + 24 + 208] = far
        scenes.append(scene)
    return scenes


def crossing(count: int) -> list[Frame]:
    """Two people change sides; the one walks in front of the other."""
    scenes = []
    for index, pair in enumerate(zip(frames(count, BERT), frames(count), strict=True)):
        way = round(index / (count - 1) * SIDE)
        scene = wall(2 * SIDE, SIDE)
        for frame, at in zip(pair, (SIDE - way, way), strict=True):
            _lay(scene, frame, at)
        scenes.append(scene)
    return scenes


def panned(shifts: Sequence[float]) -> list[Frame]:
    """The camera looks so far (in widths of the picture) past the person, to the wall."""
    wide = [np.concatenate([frame, wall(SIDE, SIDE)], axis=1) for frame in frames(len(shifts))]
    at = [round(shift * SIDE) for shift in shifts]
    return [scene[:, x : x + SIDE] for scene, x in zip(wide, at, strict=True)]


def tiny(count: int) -> list[Frame]:
    """Somebody far away."""
    scenes = []
    for frame in frames(count):
        scene = wall(SIDE, SIDE)
        scene[120:144, 116:140] = cv2.resize(frame, (24, 24), interpolation=cv2.INTER_AREA)
        scenes.append(scene)
    return scenes


def _lay(scene: Frame, frame: Frame, at: int) -> None:
    """A person without most of the room around them, from column `at` on."""
    mask = np.zeros((SIDE, SIDE), np.float32)
    cv2.ellipse(mask, (SIDE // 2, SIDE // 2), (90, 150), 0, 0, 360, 1.0, -1)
    mask = cv2.GaussianBlur(mask, (0, 0), 3)[..., None]
    part = scene[:, at : at + SIDE]
    part[:] = (part * (1 - mask) + frame * mask).astype(np.uint8)
