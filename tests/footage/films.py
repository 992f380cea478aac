"""Films of several drawn people, cut, dissolved and covered by graphics, and who is where in each.

A film is a list of shots; a shot is who stands where in it, in which room and how near. Every frame
knows the box of each face that is seen in it, so that it can be told whose mouth was redrawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise

import cv2
import numpy as np

from latentsync.training.synthetic import Identity, Mouth, draw, draw_motion
from latentsync.training.synthetic.geometry import scene_view
from latentsync.types import Box, Frame

WIDTH, HEIGHT = 480, 270  # px
APART = 1.25  # head units between the middle of the picture and each of two people
SHOWN = 0.5  # share of a picture in a dissolve from which on its faces count as seen
NOTES = ((0, 218, WIDTH, 46), (20, 40, 150))  # a lower third: left, top, width, height; colour


@dataclass(frozen=True)
class Place:
    """Somebody in a shot."""

    who: str  # one of PEOPLE
    x: float = 0.0  # head units right of the middle
    comes: int = 0  # the first frame in which they are seen
    goes: int = 1 << 30  # the first one in which they are not


@dataclass(frozen=True)
class Shot:
    """One set-up of the camera."""

    places: tuple[Place, ...]
    frames: int = 25
    room: int = 7  # seed
    zoom: float = 0.8
    dissolve: int = 0  # frames in which it goes over into the next one
    graphic: tuple[int, int] = (0, 0)  # frames [from, to) with a lower third
    jump: int = 0  # which take of the same set-up: another moment


@dataclass(frozen=True)
class Film:
    """Frames, and in each of them where whose face is seen."""

    frames: list[Frame] = field(repr=False)
    faces: list[dict[str, Box]] = field(repr=False)
    cuts: list[int]


# Whom no training draws; people of all looks, some of them a little alike.
PEOPLE = {"ann": 9016, "ben": 9015, "cat": 9021, "dan": 9034}


def pair(left: str, right: str, **more) -> Shot:
    return Shot((Place(left, -APART), Place(right, APART)), **more)


def alone(who: str, **more) -> Shot:
    return Shot((Place(who),), **{"zoom": 1.0} | more)


def film(shots: Sequence[Shot]) -> Film:
    """All shots one after the other."""
    frames: list[Frame] = []
    faces: list[dict[str, Box]] = []
    cuts: list[int] = []
    before = 0  # frames that the last shot shares with this one
    for shot in shots:
        shown, seen = _shot(shot)
        for i in range(before):
            share = (i + 1) / (before + 1)
            at = len(frames) - before + i
            frames[at] = cv2.addWeighted(shown[i], share, frames[at], 1 - share, 0)
            faces[at] = seen[i] if share >= SHOWN else faces[at]
        if frames:
            cuts.append(len(frames))
        frames += shown[before:]
        faces += seen[before:]
        before = shot.dissolve
    return Film(frames, faces, cuts)


@cache
def _shot(shot: Shot) -> tuple[list[Frame], list[dict[str, Box]]]:
    """Each person is drawn alone in the room, and gets the columns that are nearest."""
    room = Identity.from_seed(shot.room)
    unit = scene_view(WIDTH, HEIGHT, shot.zoom)[0, 0]  # px of a head unit
    order = sorted(shot.places, key=lambda place: place.x)
    middles = [round(WIDTH / 2 + place.x * unit) for place in order]
    edges = [0, *((a + b) // 2 for a, b in pairwise(middles)), WIDTH]
    frames = [np.zeros((HEIGHT, WIDTH, 3), np.uint8) for _ in range(shot.frames)]
    faces: list[dict[str, Box]] = [{} for _ in frames]
    for place, (left, right) in zip(order, pairwise(edges), strict=True):
        who = Identity.from_seed(PEOPLE[place.who])
        who = replace(who, glasses="none").in_room_of(room)
        rng = np.random.default_rng([PEOPLE[place.who], shot.room, shot.jump])
        poses = draw_motion(rng, shot.frames, amount=0.4)
        aside = round(place.x * unit)  # px
        for i, (frame, pose) in enumerate(zip(frames, poses, strict=True)):
            there = place.comes <= i < place.goes
            pose = replace(pose, x=pose.x if there else 99, blink=0)
            mouth = Mouth(open=0.3 + 0.3 * np.sin(i / 2))
            drawn, marks = draw(who, pose, mouth, (WIDTH + 2 * abs(aside), HEIGHT), zoom=shot.zoom)
            from_ = abs(aside) - aside
            frame[:, left:right] = drawn[:, from_ + left : from_ + right]
            if there:
                faces[i][place.who] = _box(marks - (from_, 0))
    for frame in frames[slice(*shot.graphic)]:
        (x, y, width, height), colour = NOTES
        frame[y : y + height, x : x + width] = colour
        text = (frame, "Ann Onymous, expert", (x + 20, y + 32), 0, 0.9, (240, 240, 240), 2)
        cv2.putText(*text, cv2.LINE_AA)
    return frames, faces


def _box(points: np.ndarray) -> Box:
    """From the brows to below the chin, cheek to cheek."""
    brows, chin = points[:2], points[11]
    half = 0.95 * (brows[1, 0] - brows[0, 0])
    x = brows[:, 0].mean()
    low, high = np.array([x - half, brows[:, 1].min()]), np.array([x + half, chin[1]])
    edges = np.clip(np.concatenate([low, high]).round(), 0, (WIDTH, HEIGHT) * 2)
    return Box(*edges.astype(int).tolist())


SIDES = pair("ann", "ben"), alone("ben"), pair("ben", "ann"), alone("ann")
FILMS: dict[str, tuple[Shot, ...]] = {
    # One second each: both, the other one, both with sides changed, the one.
    "sides": SIDES,
    "three": (
        Shot((Place("ann", -2.4), Place("ben"), Place("cat", 2.4)), zoom=0.6),
        alone("cat"),
        Shot((Place("cat", -2.4), Place("ann"), Place("ben", 2.4)), zoom=0.6),
        pair("ben", "cat"),
        alone("ann", room=11),
    ),
    "four": (
        Shot(tuple(Place(who, x) for who, x in zip(PEOPLE, (-3, -1, 1, 3), strict=True)), zoom=0.6),
        alone("dan"),
        alone("ann"),
        pair("dan", "cat"),
    ),
    "leaving": (
        Shot((Place("ann", -APART, goes=20), Place("ben", APART)), frames=40),
        Shot((Place("ann", -APART, comes=15), Place("ben", APART, goes=30)), frames=45),
        Shot((Place("ben", -APART, goes=12), Place("ann", APART, comes=24)), frames=45),
    ),
    "lower thirds": (
        pair("ann", "ben", graphic=(8, 20)),
        alone("ben", zoom=0.8, graphic=(10, 25)),
        alone("ann", zoom=0.8, graphic=(0, 25)),
        pair("ben", "ann", graphic=(5, 15)),
    ),
    "jump cuts": tuple(
        replace(alone(who), jump=jump, zoom=zoom, frames=15)
        for jump, (who, zoom) in enumerate(
            [("ann", 0.9), ("ann", 1.15), ("ben", 1.0), ("ann", 0.9), ("ben", 0.9), ("ben", 1.2)]
        )
    ),
    "dissolves": (
        alone("ann", dissolve=12, frames=37),
        alone("ben", dissolve=12, frames=37),
        pair("ann", "ben", dissolve=8, frames=37, room=11),
        alone("ben", dissolve=20, frames=45),
        alone("ann", frames=37),
    ),
    "rooms": (
        pair("ann", "ben"),
        alone("ben", room=11),
        alone("ann", room=13),
        pair("ben", "ann", room=17),
    ),
    "strangers": (pair("ann", "ben"), alone("cat"), alone("dan"), pair("cat", "dan"), alone("ann")),
}
