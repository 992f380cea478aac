"""Whose face is followed: people painted as coloured boxes, detectors that are told what to see."""

import logging
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from latentsync import faces
from latentsync.errors import NoFaceFound, OptionError
from latentsync.faces import LARGEST, FaceChoice, Gap, PointTrack, align, follow, track_people
from latentsync.faces.tracking.embedding import PatchEmbedding
from latentsync.faces.tracking.linker import MAX_MISSING_FRAMES, TrackAssociator
from latentsync.faces.tracking.tracker import FrameWatcher
from latentsync.media import Colour, VideoFrame
from latentsync.training.synthetic import Identity, Mouth, Pose, draw, draw_motion
from latentsync.types import Box, Face, Frame, Progress
from tests.clips import write_picture

SIZE = (320, 240)  # px
RED, BLUE, GREEN = (200, 60, 50), (50, 60, 200), (60, 160, 60)
Actor = tuple[float, float, float, tuple[int, int, int]]  # middle x, y, width, colour


def face_of(actor: Actor, score: float = 0.9) -> Face:
    x, y, width, _ = actor
    box = (x - width / 2, y - 0.6 * width, x + width / 2, y + 0.6 * width)
    points = np.array([[-0.25, -0.3], [0.25, -0.3], [0, 0]]) * width + [x, y]
    return Face(box, score, points.astype(np.float32))


def paint(actors: list[Actor], background: int = 120) -> Frame:
    """A frame of people: boxes of their colour, with brows and a nose on them."""
    frame = np.full((SIZE[1], SIZE[0], 3), background, np.uint8)
    frame[::8] += 20
    for actor in actors:
        face = face_of(actor)
        left, top, right, bottom = (round(v) for v in face.box)
        cv2.rectangle(frame, (left, top), (right, bottom), actor[3], -1)
        for x, y in face.points:
            cv2.circle(frame, (round(x), round(y)), 3, (20, 20, 20), -1)
    return frame


class Cast:
    """A clip, and a detector that sees the people in it unless told otherwise."""

    name = "cast"

    def __init__(
        self,
        script: list[list[Actor]],
        *,
        hidden: Callable[[int, Actor], bool] = lambda *_: False,
        at_second: Callable[[int], list[Actor]] = lambda _: [],
        backgrounds: list[int] | None = None,
    ) -> None:
        self.script, self.hidden, self.at_second = script, hidden, at_second
        self.backgrounds = backgrounds or [120] * len(script)
        self.index = -1
        self.last: Frame | None = None
        self.searched: list[int] = []  # frames looked at as a whole
        self.seconds: list[tuple[int, Box]] = []  # frames looked at twice, and where

    def describe(self) -> str:
        return "cast (told what to see)"

    def frames(self) -> Iterator[Frame]:
        return map(paint, self.script, self.backgrounds)

    def detect(self, frame: Frame, *, rounded: bool = False, near: Box | None = None) -> list[Face]:
        assert frame.shape == (SIZE[1], SIZE[0], 3)
        if near is not None:
            self.seconds.append((self.index, near))
            return [face_of(actor, 0.3) for actor in self.at_second(self.index)]
        self._turn_to(frame)
        self.searched.append(self.index)
        seen = [a for a in self.script[self.index] if not self.hidden(self.index, a)]
        found = sorted((face_of(actor) for actor in seen), key=lambda face: -face.area)
        if rounded:
            found = [Face(f.box, f.score, np.round(f.points)) for f in found]
        return found

    def follow(
        self, frame: Frame, faces: Sequence[Face], *, rounded: bool = False
    ) -> list[Face | None]:
        """The nearest of the people, but nobody further away than half a face."""
        self._turn_to(frame)
        now = [face_of(a) for a in self.script[self.index] if not self.hidden(self.index, a)]
        found: list[Face | None] = []
        for before in faces:
            far = [float(np.linalg.norm(face.points - before.points, axis=1).max()) for face in now]
            near = now[int(np.argmin(far))] if now and min(far) < 30 else None
            found.append(Face(near.box, 0.9, np.round(near.points)) if rounded and near else near)
        return found

    def _turn_to(self, frame: Frame) -> None:
        """A frame that is followed in vain is searched as well."""
        self.index += frame is not self.last
        self.last = frame

    def track(self, choice: str = "largest", **options) -> PointTrack:
        (track,) = follow(self.frames(), self, FaceChoice.parse(choice), **options)
        return track


def noses(track: PointTrack) -> list[float | None]:
    """x of the nose in each frame, None where nobody is found."""
    return [
        round(float(x), 2) if found else None
        for x, found in zip(track.points[:, 2, 0], track.detected, strict=True)
    ]


def walk(start: float, stop: float, frames: int) -> list[float]:
    return np.linspace(start, stop, frames).round(2).tolist()


# Linking


def test_one_identity_though_another_is_larger_for_a_while() -> None:
    script = [[(90, 120, 60, RED), (230, 120, 70 if 5 <= i < 9 else 50, BLUE)] for i in range(20)]
    assert noses(Cast(script).track()) == [90] * 20
    assert noses(Cast(script).track(published=True)) == [90] * 5 + [230] * 4 + [90] * 11


def test_the_largest_is_who_would_be_published_most_often() -> None:
    """Neither the first frame's largest nor the one with the greatest sum of areas."""
    widths = [110, 95, 80, 68] + [50] * 16
    script: list[list[Actor]] = [[(90, 120, w, RED), (250, 120, 56, BLUE)] for w in widths]
    assert sum(w * w for w in widths) > 20 * 56**2
    assert noses(Cast(script).track()) == [250] * 20


@pytest.mark.parametrize("colour", [BLUE, RED], ids=["unlike", "twins"])
def test_two_who_cross_keep_their_tracks(colour: tuple[int, int, int]) -> None:
    """In the middle only the front one is seen; the other comes out where it was going."""
    ways = list(zip(walk(60, 260, 41), walk(265, 65, 41), strict=True))
    script = [[(a, 120, 60, RED), (b, 124, 66, colour)] for a, b in ways]
    cast = Cast(script, hidden=lambda i, actor: abs(i - 20) < 6 and actor[2] == 60)
    left, right = follow(cast.frames(), cast, FaceChoice.parse("all"))
    assert noses(left) == [b for _, b in ways]
    assert noses(right) == [None if abs(i - 20) < 6 else a for i, (a, _) in enumerate(ways)]
    assert right.gaps == (Gap(15, 26, "only other faces"),)


def test_twins_who_pass_fast_are_told_by_where_they_go() -> None:
    ways = [(46 + 22 * i, 274 - 22 * i) for i in range(11)]
    script: list[list[Actor]] = [[(a, 120, 60, RED), (b, 120, 62, RED)] for a, b in ways]
    assert noses(Cast(script).track()) == [b for _, b in ways]


def test_the_only_face_is_the_same_however_the_camera_jerks() -> None:
    rng = np.random.default_rng(4)
    places = [(160 + x, 120 + y) for x, y in rng.choice([-20, 20], (40, 2)).tolist()]
    script: list[list[Actor]] = [[(x, y, 60, RED)] for x, y in places]
    cast = Cast(script, at_second=lambda i: [(script[i][0][0] + 60, 120, 60, RED)])
    assert noses(cast.track()) == [x for x, _ in places]
    assert cast.seconds == []


@pytest.mark.parametrize("x", [130, 220], ids=["near by", "elsewhere"])
def test_who_leaves_is_not_who_enters(x: float) -> None:
    script: list[list[Actor]] = [[(100, 120, 40, RED)]] * 12 + [[(x, 120, 40, BLUE)]] * 8
    scene = track_people(Cast(script).frames(), Cast(script), [LARGEST])
    assert not scene.shot_start.any()
    assert [len(person) for person in scene.people] == [12, 8]


def test_who_vanishes_is_not_replaced_by_who_stands_there_next() -> None:
    script = [[(100, 120, 60, RED)]] * 12 + [[]] * 3 + [[(112, 120, 60, BLUE)]] * 8
    assert noses(Cast(script).track()) == [100] * 12 + [None] * 11


def test_who_comes_back_is_taken_up_again() -> None:
    """Long after, and elsewhere; who came meanwhile is not taken for them."""
    away = MAX_MISSING_FRAMES + 10
    script: list[list[Actor]] = [[(100, 120, 60, RED)]] * 20 + [[]] * 3
    script += [[(200, 120, 60, BLUE)]] * (away - 3)
    script += [[(230, 110, 66, RED)]] * 4 + [[(230, 110, 66, RED), (60, 110, 60, BLUE)]] * 16
    cast = Cast(script)
    assert noses(cast.track()) == [100] * 20 + [None] * away + [230] * 20
    scene = track_people(cast.frames(), Cast(script), [LARGEST])
    assert [len(person) for person in scene.people] == [40, away - 3 + 16]


# Choosing


def test_sides_and_centre() -> None:
    script: list[list[Actor]] = [
        [(60, 120, 50, RED), (150, 120, 60, GREEN), (260, 120, 54, BLUE)] for _ in range(20)
    ]
    script[7] = [*script[7], (20, 60, 40, (220, 220, 0))]  # something that flickers
    scene = track_people(Cast(script).frames(), Cast(script), [LARGEST])
    at = {w: scene.tracks(FaceChoice.parse(w))[0].points[3, 2, 0] for w in ("left", "right")}
    assert at == {"left": 60, "right": 260}
    assert scene.tracks(FaceChoice.parse("center"))[0].points[3, 2, 0] == 150
    assert scene.tracks(FaceChoice.parse("largest"))[0].points[3, 2, 0] == 150


def test_a_point_at_a_late_time_is_followed_back_to_the_start() -> None:
    ways = list(zip(walk(60, 260, 51), walk(270, 70, 51), strict=True))
    script = [[(a, 80, 50, RED), (b, 170, 70, BLUE)] for a, b in ways]
    late = Cast(script).track(f"250,80@{48 / 25}")
    assert noses(late) == [a for a, _ in ways]
    assert noses(Cast(script).track("64,84")) == [a for a, _ in ways]
    assert noses(Cast(script).track(f"250,80@{48 / 10}", fps=10)) == [a for a, _ in ways]


def test_a_point_beside_all_faces() -> None:
    script: list[list[Actor]] = [[(60, 120, 50, RED), (200, 120, 60, BLUE)]] * 5
    with pytest.raises(OptionError, match=r"no face at 130,20: .*faces are at 200,120 and 60,120"):
        Cast(script).track("130,20")
    with pytest.raises(OptionError, match="in this shot there is none at all"):
        Cast([[]] * 5).track("130,20")
    with pytest.raises(OptionError, match=r"face 60,120@0.2: its time must be below 0.2 s"):
        Cast(script).track("60,120@0.2")
    assert Cast(script).track("75,145").detected.all()


def test_all_of_two_shots() -> None:
    """Who is largest comes first; a flicker is nobody; a shot may hold fewer."""
    one: list[Actor] = [(60, 120, 50, RED), (200, 120, 60, BLUE)]
    script = [[*one, (300, 40, 30, GREEN)] if i == 4 else one for i in range(10)]
    script += [[(100, 120, 60, GREEN)]] * 10
    cast = Cast(script, backgrounds=[120] * 10 + [30] * 10)
    first, second = follow(cast.frames(), cast, FaceChoice.parse("all"))
    assert noses(first) == [200] * 10 + [100] * 10
    assert noses(second) == [60] * 10 + [None] * 10
    assert second.gaps == (Gap(10, 20, "nobody in this shot is meant"),)


def test_a_clip_without_faces() -> None:
    for choice in ("largest", "left", "all"):
        track = Cast([[]] * 6).track(choice)
        assert not track.detected.any()
        assert track.gaps == (Gap(0, 6, "no face in this shot"),)
    assert Cast([]).track().points.shape == (0, 3, 2)


# A picture of the person


def portrait(path: Path, colour: tuple[int, int, int]) -> str:
    return str(write_picture(path, paint([(160, 120, 100, colour)])))


class Seeing(Cast):
    """Is shown a portrait first."""

    shown = False

    def detect(self, frame: Frame, **options) -> list[Face]:
        if self.shown:
            return super().detect(frame, **options)
        self.shown = True
        return [face_of((160, 120, 100, RED))]


def test_the_person_in_a_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    script: list[list[Actor]] = [[(60, 120, 50, RED), (250, 120, 60, BLUE)]] * 6
    script += [[(250, 120, 60, BLUE)]] * 6 + [[(80, 100, 60, BLUE), (250, 100, 50, RED)]] * 6
    backgrounds = [120] * 6 + [30] * 6 + [220] * 6
    with caplog.at_level(logging.INFO):
        red = Seeing(script, backgrounds=backgrounds).track(portrait(tmp_path / "a.png", RED))
    assert noses(red) == [60] * 6 + [None] * 6 + [250] * 6
    assert red.gaps == (Gap(6, 12, "nobody in this shot is like the picture"),)
    assert "compared by lightness and colour" in caplog.text
    blue = Seeing(script, backgrounds=backgrounds).track(portrait(tmp_path / "b.png", BLUE))
    assert noses(blue) == [250] * 12 + [80] * 6


def test_no_face_in_the_picture(tmp_path: Path) -> None:
    picture = write_picture(tmp_path / "empty.png", np.zeros((50, 60, 3), np.uint8))

    class Blind(Cast):
        def detect(self, *_, **__) -> list[Face]:
            return []

    with pytest.raises(NoFaceFound, match=r"reference picture .*empty\.png by cast .*by a point"):
        Blind([[]]).track(str(picture))


class Embedding(Cast):
    """A detector that knows people apart, whatever the shot: by their colour."""

    same, other = 0.9, 0.5

    def embed(self, frame: Frame, face: Face) -> np.ndarray:
        left, top, *_ = (int(v) for v in face.box)
        colour = frame[top + 2, left + 2].astype(np.float32) - 110
        return colour / np.linalg.norm(colour)


def test_with_embeddings_one_person_is_followed_over_cuts() -> None:
    script: list[list[Actor]] = [[(60, 120, 70, RED), (250, 120, 60, BLUE)]] * 8
    script += [[(100, 120, 50, RED), (250, 120, 90, BLUE)]] * 6 + [[(160, 120, 90, BLUE)]] * 6
    backgrounds = [120] * 8 + [30] * 6 + [220] * 6
    known = Embedding(script, backgrounds=backgrounds).track()
    assert noses(known) == [250] * 14 + [160] * 6
    pointed = Embedding(script, backgrounds=backgrounds).track("100,120@0.36")
    assert noses(pointed) == [60] * 8 + [100] * 6 + [None] * 6


def test_the_patch_follows_one_person_over_cuts() -> None:
    """A and B, B alone, B and A, A alone: whoever is meant is followed, and the other one never."""
    script: list[list[Actor]] = [[(60, 120, 70, RED), (250, 120, 74, BLUE)]] * 8
    script += [[(160, 120, 90, BLUE)]] * 8
    script += [[(60, 120, 74, BLUE), (250, 120, 70, RED)]] * 8 + [[(160, 120, 90, RED)]] * 8
    backgrounds = [120] * 8 + [90] * 8 + [130] * 8 + [100] * 8
    red = [60] * 8 + [None] * 8 + [250] * 8 + [160] * 8
    blue = [250] * 8 + [160] * 8 + [60] * 8 + [None] * 8
    for choice, expected in {
        "60,120": red,
        "160,120@1": red,
        "250,120@0.72": red,
        "left": red,
        "right": blue,
        "largest": blue,
        "160,120@0.4": blue,
        "60,120@0.8": blue,
    }.items():
        cast = Cast(script, backgrounds=backgrounds)
        assert noses(cast.track(choice)) == expected, choice
    scene = track_people(cast.frames(), Cast(script, backgrounds=backgrounds), [LARGEST])
    (track,) = scene.tracks(FaceChoice.parse("left"))
    assert [shot.taken for shot in track.shots] == [(1,), (None,), (1,), (0,)]
    assert [shot.start for shot in track.shots] == [0, 8, 16, 24]
    assert track.shots[0].faces == ((250, 120), (60, 120))  # the most prominent first
    assert track.gaps == (Gap(8, 16, "nobody in this shot is meant"),)


@pytest.mark.parametrize("sides", [("left", "right"), ("right", "left"), ("60,120", "250,120")])
def test_who_is_alone_in_a_shot_is_one_speaker_and_not_two(sides: tuple[str, str]) -> None:
    """Two people, then the one, then the other, who is left and right of that shot alike."""
    script: list[list[Actor]] = [[(60, 120, 70, RED), (250, 120, 60, BLUE)]] * 8
    script += [[(160, 120, 90, BLUE)]] * 6 + [[(150, 120, 80, RED)]] * 6
    cast = Cast(script, backgrounds=[120] * 8 + [30] * 6 + [220] * 6)
    choices = [FaceChoice.parse(side) for side in sides]
    found = dict(
        zip(sides, track_people(cast.frames(), cast, choices).speakers(choices), strict=True)
    )
    red, blue = (found[side] for side in (sides if sides[0] != "right" else sides[::-1]))
    assert noses(red) == [60] * 8 + [None] * 6 + [150] * 6
    assert noses(blue) == [250] * 8 + [160] * 6 + [None] * 6
    assert blue.gaps == (Gap(14, 20, "nobody in this shot is meant"),)


def test_two_speakers_who_are_one_person_are_told_to_be() -> None:
    """By whatever is said of them, and in whatever shots."""
    script: list[list[Actor]] = [[(60, 120, 70, RED), (250, 120, 60, BLUE)]] * 8
    script += [[(160, 120, 90, BLUE)]] * 6
    cast = Cast(script, backgrounds=[120] * 8 + [100] * 6)
    choices = [FaceChoice.parse(face) for face in ("right", "160,120@0.4")]
    right, pointed = track_people(cast.frames(), cast, choices).speakers(choices)
    assert noses(right) == noses(pointed) == [250] * 8 + [160] * 6


@pytest.mark.parametrize(
    ("likeness", "taken", "why"),
    [
        (0.95, True, ""),
        (0.8, False, "not sure that this is the chosen person"),
        (0.3, False, "nobody in this shot is meant"),
    ],
)
def test_who_may_be_the_chosen_person_is_left_untouched(
    likeness: float, taken: bool, why: str
) -> None:
    class Likened(Embedding):
        same, other = 0.9, 0.5

        def embed(self, frame: Frame, face: Face) -> np.ndarray:
            green = frame[int(face.box[1]) + 2, int(face.box[0]) + 2, 1] > 120
            share = likeness if green else 1.0
            return np.array([share, np.sqrt(1 - share**2)], np.float32)

    script: list[list[Actor]] = [[(60, 120, 70, RED)]] * 8 + [[(100, 120, 70, GREEN)]] * 8
    track = Likened(script, backgrounds=[120] * 8 + [30] * 8).track("60,120")
    assert noses(track) == [60] * 8 + [100 if taken else None] * 8
    assert track.gaps == (() if taken else (Gap(8, 16, why),))


def test_who_is_like_another_even_more_is_not_taken() -> None:
    """Two who are alike are told apart by whom they are seen beside."""
    angles = {RED: 0.0, BLUE: 0.4, GREEN: 0.25}  # rad; cosines of 0.92 to 0.99 between them

    class Alike(Embedding):
        def embed(self, frame: Frame, face: Face) -> np.ndarray:
            colour = tuple(frame[int(face.box[1]) + 2, int(face.box[0]) + 2].tolist())
            angle = angles[min(angles, key=lambda c: abs(np.subtract(c, colour)).sum())]
            return np.array([np.cos(angle), np.sin(angle)], np.float32)

    script: list[list[Actor]] = [[(60, 120, 70, RED), (250, 120, 60, BLUE)]] * 8
    script += [[(100, 120, 70, GREEN)]] * 8
    backgrounds = [120] * 8 + [30] * 8
    # Green is as like as 0.969 to red and 0.989 to blue.
    assert noses(Alike(script, backgrounds=backgrounds).track("60,120")) == [60] * 8 + [None] * 8
    alone = [[actors[0]] for actors in script]
    assert noses(Alike(alone, backgrounds=backgrounds).track("60,120")) == [60] * 8 + [100] * 8


# Cuts


def test_nothing_crosses_a_cut() -> None:
    """The same place and colour in the next shot, but another person: chosen and filled anew."""
    script: list[list[Actor]] = [[(100, 120, 60, RED)]] * 8 + [[]] * 3 + [[(104, 120, 60, RED)]] * 8
    cast = Cast(script, backgrounds=[120] * 9 + [30] * 10)
    track = cast.track()
    assert np.flatnonzero(track.shot_start).tolist() == [9]
    assert np.flatnonzero(~track.detected).tolist() == [8, 9, 10]
    assert track.gaps == (Gap(8, 9, "no face"), Gap(9, 11, "no face"))
    whole = Cast(script).track()
    assert whole.detected.all()


def test_no_gap_is_filled_across_a_cut_at_which_the_face_returns() -> None:
    """The last frame without it is the old shot's, the first one with it the new one's."""
    script: list[list[Actor]] = [[(100, 120, 60, RED)]] * 8 + [[]] * 3 + [[(104, 120, 60, RED)]] * 8
    track = Cast(script, backgrounds=[120] * 11 + [90] * 8).track()
    assert np.flatnonzero(track.shot_start).tolist() == [11]
    assert np.flatnonzero(~track.detected).tolist() == [8, 9, 10]


# A second look


def test_a_second_look_where_the_face_was_and_only_when_it_is_missing() -> None:
    """Also where the face is going; what is found there counts as found."""
    ways = walk(80, 160, 21)
    script: list[list[Actor]] = [[(x, 120, 60, RED)] for x in ways]
    gone = range(10, 18)
    cast = Cast(
        script,
        hidden=lambda i, _: i in gone,
        at_second=lambda i: [(20, 120, 60, BLUE), *script[i]],
    )
    track = cast.track()
    assert noses(track) == ways
    assert [i for i, _ in cast.seconds] == list(gone)
    for index, near in cast.seconds:
        assert (near.left + near.right) / 2 == pytest.approx(ways[index], abs=4)
        assert near.width == 60


def test_second_looks_end() -> None:
    """After a second's time, at a cut, for what was never more than a flicker, in a crowd."""
    script: list[list[Actor]] = [[(80, 120, 60, RED)]] * 5 + [[]] * (2 * MAX_MISSING_FRAMES)
    cast = Cast(script)
    assert cast.track().detected.sum() == 5
    assert [i for i, _ in cast.seconds] == list(range(5, 5 + MAX_MISSING_FRAMES))
    cast = Cast(script[:20], backgrounds=[120] * 7 + [30] * 13)
    cast.track()
    assert [i for i, _ in cast.seconds] == [5, 6]
    cast = Cast(script[:2] + script[5:20])
    cast.track()
    assert cast.seconds == []
    crowd: list[Actor] = [(40 + 60 * i, 120, 24 + 2 * i, RED) for i in range(5)]
    cast = Cast([crowd[:3]] * 4 + [crowd] * 4 + [[]])
    cast.track()
    assert [near.width for _, near in cast.seconds] == [32, 30]


def test_a_second_look_never_takes_somebody_elses_face() -> None:
    script: list[list[Actor]] = [[(100, 120, 60, RED), (130, 126, 64, BLUE)]] * 12
    hidden = Cast(script, hidden=lambda i, a: i >= 6 and a[3] == RED, at_second=lambda i: script[i])
    assert noses(hidden.track("100,60")) == [100] * 12
    twins: list[list[Actor]] = [[(100, 120, 60, RED), (130, 126, 64, RED)]] * 12
    for gone in (lambda a: a[2] == 60, lambda _: True):  # one is missing, or both
        hidden = Cast(
            twins,
            hidden=lambda i, a, gone=gone: i >= 6 and gone(a),
            at_second=lambda i: twins[i][1:],
        )
        assert noses(hidden.track("100,60")) == [100] * 6 + [None] * 6


# A search in one of so many frames


def test_between_searches_faces_are_followed() -> None:
    ways = walk(60, 260, 40)
    script: list[list[Actor]] = [[(x, 120, 60, RED)] for x in ways]
    every, fourth = Cast(script), Cast(script)
    exact, followed = every.track(), fourth.track(detect_every=4)
    np.testing.assert_array_equal(exact.points, followed.points)
    assert every.searched == list(range(40))
    assert fourth.searched == list(range(0, 40, 4))
    rounded = Cast(script).track(detect_every=4, rounded=True).points
    np.testing.assert_array_equal(rounded, np.round(rounded))


def test_a_cut_is_searched() -> None:
    script: list[list[Actor]] = [[(100, 120, 60, RED)]] * 9 + [[(105, 120, 60, RED)]] * 9
    cast = Cast(script, backgrounds=[120] * 9 + [100] * 9)
    assert noses(cast.track(detect_every=6)) == [100] * 9 + [105] * 9
    assert cast.searched == [0, 6, 9, 15]


def test_who_is_lost_is_searched_for_until_a_second_has_passed() -> None:
    """And found when they are back, though somebody else is there all the time."""
    other = (250, 120, 50, BLUE)
    script: list[list[Actor]] = [[(100, 120, 60, RED), other]] * 9 + [[other]] * 7
    script += [[(104, 120, 60, RED), other]] * 14
    cast = Cast(script)
    assert noses(cast.track(detect_every=10)) == [100] * 9 + [None] * 7 + [104] * 14
    assert cast.searched == [0, *range(9, 17), 26]
    gone = Cast([[(100, 120, 60, RED), other]] * 9 + [[other]] * 60)
    gone.track(detect_every=20)
    assert gone.searched == [0, *range(9, 9 + MAX_MISSING_FRAMES + 1), 9 + MAX_MISSING_FRAMES + 20]


@pytest.mark.parametrize(
    ("now", "searched"),
    [
        ([(104, 120, 60), (196, 120, 60)], []),
        ([(130, 120, 60), (196, 120, 60)], [1]),  # leaps
        ([(104, 120, 80), (196, 120, 60)], [1]),  # grows at once
        ([None, (196, 120, 60)], [1]),  # is lost
    ],
)
def test_what_can_not_be_the_face_it_was_is_searched(now: list, searched: list[int]) -> None:
    script: list[list[Actor]] = [[(100, 120, 60, RED), (200, 120, 60, BLUE)]] * 2
    assert _searched_after(script, now) == searched


def test_faces_that_meet_are_searched() -> None:
    """Where one is behind the other, following would take it for the one in front."""
    script: list[list[Actor]] = [[(100, 120, 60, RED), (135, 120, 60, BLUE)]] * 2
    assert _searched_after(script, [(101, 120, 60), (134, 120, 60)]) == []
    assert _searched_after(script, [(104, 120, 60), (130, 120, 60)]) == [1]


def _searched_after(script: list[list[Actor]], followed: list) -> list[int]:
    """Which frames are searched after the first, where following says so."""
    cast = Cast(script)
    faces = [None if place is None else face_of((*place, RED)) for place in followed]
    cast.follow = lambda *_, **__: faces  # type: ignore[method-assign]
    watch = FrameWatcher(cast, TrackAssociator(PatchEmbedding()), 50, rounded=False)
    for index, frame in enumerate(cast.frames()):
        watch.process(index, frame, cut=None)
    return cast.searched[1:]


def test_who_is_new_is_seen_at_the_next_search() -> None:
    script: list[list[Actor]] = [[(100, 120, 50, RED)]] * 5
    script += [[(100, 120, 50, RED), (250, 120, 60, BLUE)]] * 15
    cast = Cast(script)
    one, other = follow(cast.frames(), cast, FaceChoice.parse("all"), detect_every=4)
    assert noses(one) == [None] * 8 + [250] * 12
    assert noses(other) == [100] * 20
    assert noses(Cast([[]] * 5 + script[5:]).track(detect_every=4)) == [None] * 8 + [250] * 12


def test_drawn_people_are_followed_as_well_as_they_are_searched() -> None:
    who, poses = Identity.from_seed(31), draw_motion(np.random.default_rng(4), 12, amount=1.0)
    drawn = [draw(who, pose, Mouth(), (400, 300), zoom=0.9) for pose in poses]
    frames = [VideoFrame.from_rgb(frame) for frame, _ in drawn]
    truth = np.array([marks[[0, 1, 4]] for _, marks in drawn])
    detector = faces.create("builtin", root=Path("none"))
    errors = []
    for every in (1, 6):
        (track,) = follow(frames, detector, LARGEST, detect_every=every)
        assert track.detected.all()
        errors.append(np.linalg.norm(track.points - truth, axis=2).mean())
    assert errors[1] < errors[0] + 0.01 * np.linalg.norm(truth[0, 1] - truth[0, 0])


# Pixels that are not square


def stored(rgb: Frame, aspect: Fraction) -> VideoFrame:
    size = (round(rgb.shape[1] / aspect), rgb.shape[0])
    narrow = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
    return VideoFrame.from_rgb(narrow, Colour(pixel_aspect=aspect))


@pytest.mark.parametrize("aspect", [Fraction(16, 15), Fraction(4, 3), Fraction(2), Fraction(8, 9)])
def test_the_crop_of_a_face_has_square_pixels(aspect: Fraction) -> None:
    """The same as that of a clip with square pixels, and what is pasted lies at the same place."""
    rgb, _ = draw(Identity.from_seed(31), Pose(x=0.3), Mouth(open=0.5), (640, 360), zoom=0.8)
    detector = faces.create("builtin", root=Path("none"))
    crops, mouths = [], []
    for one in (Fraction(1), aspect):
        frame = stored(rgb, one)
        (track,) = follow([frame], detector, LARGEST)
        wide = track.pixel_aspect
        affine = align.face_track(track.points, track.detected, 256, pixel_aspect=wide).affine[0]
        crop = cv2.warpAffine(frame.rgb(), affine, align.crop_size(256), flags=cv2.INTER_AREA)
        crops.append(crop.astype(int))
        x, y = np.linalg.solve(affine[:, :2], (105, 210) - affine[:, 2])
        mouths.append((x * float(one), y))
    # Of a face whose pixels are taken for square: 8 grey levels at 16:15, 46 at 2:1.
    assert np.abs(crops[0] - crops[1]).mean() < 4.5
    np.testing.assert_allclose(mouths[0], mouths[1], atol=0.7)


def test_places_are_px_of_the_frame_whatever_their_aspect() -> None:
    """A point, a box, and what is said of them; faces themselves have square pixels."""
    script: list[list[Actor]] = [[(60, 120, 50, RED), (260, 120, 56, BLUE)]] * 5
    cast = Cast(script)
    cast.detect = lambda *_, **__: [face_of(actor) for actor in script[0]]  # type: ignore[method-assign]
    frames = [stored(paint(actors), Fraction(4, 3)) for actors in script]
    assert (frames[0].width, frames[0].height) == (240, 240)
    (track,) = follow(frames, cast, FaceChoice.parse("195,120"))
    assert noses(track) == [260] * 5
    assert track.pixel_aspect == pytest.approx(4 / 3)
    with pytest.raises(OptionError, match="faces are at 45,120 and 195,120"):
        follow(frames, cast, FaceChoice.parse("120,20"))
    with pytest.raises(OptionError, match=r"230,10 to 280,60 lies beyond the frame of 240 x 240"):
        follow(frames, cast, FaceChoice.parse("230,10,50,50"))
    scene = drawn_scene(10)
    wide = [stored(frame, Fraction(2)) for frame, _ in scene]
    x, y = scene[0][1]
    (track,) = follow(wide, Cast([]), FaceChoice.parse(f"{x / 2},{y},36,84"))
    truth = np.array([place for _, place in scene])
    expected = np.array([[0.23, 0.18], [0.77, 0.18], [0.5, 0.49]]) * (72, 84)
    np.testing.assert_allclose(track.points, truth[:, None] + expected, atol=1.2)


# Gaps


@pytest.mark.parametrize(("gap", "move", "filled"), [(5, 20, True), (6, 20, False), (4, 60, False)])
def test_short_gaps_between_close_places_are_filled(gap: int, move: int, filled: bool) -> None:
    script: list[list[Actor]] = [[(100, 120, 60, RED)]] * 6 + [[]] * gap
    script += [[(100 + move, 120, 60, RED)]] * 6
    track = Cast(script).track()
    assert track.detected.all() == filled
    if filled:
        there = track.points[6 : 6 + gap, 2, 0]
        np.testing.assert_allclose(there, np.linspace(100, 100 + move, gap + 2)[1:-1], atol=1e-4)
        rounded = Cast(script).track(rounded=True).points
        np.testing.assert_array_equal(rounded, np.round(rounded))
    else:
        assert track.gaps == (Gap(6, 6 + gap, "no face"),)
        assert (track.points[6 : 6 + gap] == 0).all()


def test_reasons() -> None:
    shrinking: list[list[Actor]] = [[(160, 120, w, RED)] for w in walk(60, 40, 20)] + [[]] * 10
    leaving: list[list[Actor]] = [[(x, 120, 60, RED)] for x in walk(160, 34, 20)] + [[]] * 10
    assert Cast(shrinking).track().gaps == (Gap(20, 30, "too small"),)
    assert Cast(leaving).track().gaps == (Gap(20, 30, "at the frame's edge"),)
    assert Cast([[]] * 7 + shrinking[:9]).track().gaps == (Gap(0, 7, "no face"),)


def test_progress_and_memory() -> None:
    heard: list[Progress] = []
    alive: set[int] = set()

    class Counted(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            alive.discard(id(self))

    def frames() -> Iterator[Frame]:
        for frame in cast.frames():
            counted = frame.view(Counted)
            alive.add(id(counted))
            assert len(alive) <= 6
            yield counted
            del counted

    cast = Cast([[(100, 120, 60, RED)]] * 60)
    (track,) = follow(frames(), cast, LARGEST, total=60, progress=heard.append)
    assert track.detected.all()
    assert heard == [Progress("detect", n, 60) for n in range(1, 61)]


# A box


def drawn_scene(frames: int) -> list[tuple[Frame, tuple[float, float]]]:
    """A thing with a pattern that no detector knows, going its way over a room."""
    rng = np.random.default_rng(2)
    room = cv2.GaussianBlur(rng.integers(0, 256, (240, 320, 3), np.uint8), (0, 0), 6)
    room = cv2.normalize(room, None, 0, 255, cv2.NORM_MINMAX)
    thing = cv2.resize(rng.integers(0, 256, (7, 6, 3), np.uint8), (72, 84))
    scene = []
    for i in range(frames):
        x, y = 40 + 3.3 * i, 70 + 1.2 * i
        frame = room.copy()
        shift = np.array([[1, 0, x], [0, 1, y]])
        cv2.warpAffine(thing, shift, SIZE, dst=frame, borderMode=cv2.BORDER_TRANSPARENT)
        scene.append((frame, (x, y)))
    return scene


@pytest.mark.parametrize("start", [0, 15])
def test_a_box_is_followed_forwards_and_back(start: int) -> None:
    scene = drawn_scene(30)
    x, y = scene[start][1]
    choice = FaceChoice.parse(f"{x},{y},72,84@{start / 25}")
    blind = Cast([[]] * 30)
    (track,) = follow((frame for frame, _ in scene), blind, choice)
    assert blind.index == -1  # no detector is asked
    assert track.detected.all()
    truth = np.array([place for _, place in scene])
    expected = np.array([[0.23, 0.18], [0.77, 0.18], [0.5, 0.49]]) * (72, 84)
    np.testing.assert_allclose(track.points, truth[:, None] + expected, atol=0.8)


@pytest.mark.parametrize("fps", [10, 25, 50])
def test_the_time_of_a_place_counts_frames_of_the_clips_own_rate(fps: int) -> None:
    """One second in, at 50 frames a second, is frame 50: for a point and for a box."""
    ways = walk(60, 260, fps + 5)
    script: list[list[Actor]] = [[(x, 120, 24, RED), (320 - x, 40, 24, BLUE)] for x in ways]
    x = ways[fps]
    assert noses(Cast(script).track(f"{x},120@1", fps=fps)) == ways
    with pytest.raises(OptionError, match=f"faces are at .*{x:.0f},120"):
        Cast(script).track(f"{ways[fps // 2]},150@1", fps=fps)
    scene = drawn_scene(fps + 5)
    x, y = scene[fps][1]
    (track,) = follow(
        [f for f, _ in scene], Cast([]), FaceChoice.parse(f"{x},{y},72,84@1"), fps=fps
    )
    expected = np.array([[0.23, 0.18], [0.77, 0.18], [0.5, 0.49]]) * (72, 84) + scene[fps][1]
    np.testing.assert_allclose(track.points[fps], expected, atol=0.8)


def test_a_box_is_dropped_at_a_cut() -> None:
    """What lies at its place in the next shot is not it, however alike they are."""
    scene = [frame for frame, _ in drawn_scene(24)]
    rng = np.random.default_rng(3)
    other = cv2.GaussianBlur(rng.integers(0, 256, (240, 320, 3), np.uint8), (0, 0), 8)
    other = cv2.normalize(other, None, 0, 255, cv2.NORM_MINMAX)
    x, y = (round(v) for v in drawn_scene(12)[11][1])
    thing = scene[11][y : y + 84, x : x + 72].astype(float)
    # The same shades under a checkerboard: alike enough to follow it, too little to find it again.
    rows, columns = np.mgrid[:84, :72] // 4
    board = np.where((rows + columns) % 2, 50.0, -50.0)[..., None]
    other[y : y + 84, x : x + 72] = np.clip(thing + board, 0, 255).astype(np.uint8)
    frames = scene[:12] + [other] * 12
    (track,) = follow(frames, Cast([]), FaceChoice.parse("40,70,72,84"))
    assert np.flatnonzero(track.shot_start).tolist() == [12]
    assert np.flatnonzero(track.detected).tolist() == list(range(12))


def test_a_box_is_lost_and_found_again() -> None:
    scene = [frame for frame, _ in drawn_scene(40)]
    x, y = 40, 70
    scene[12:24] = [frame[::-1, ::-1].copy() for frame in scene[12:24]]  # another shot in between
    (track,) = follow(scene, Cast([]), FaceChoice.parse(f"{x},{y},72,84"))
    assert np.flatnonzero(track.shot_start).tolist() == [12, 24]
    assert np.flatnonzero(~track.detected).tolist() == list(range(12, 24))
    assert track.gaps == (Gap(12, 24, "nothing like the box's content"),)
    (late,) = follow(scene, Cast([]), FaceChoice.parse(f"{x + 3.3 * 26},{y + 1.2 * 26},72,84@1.04"))
    assert [why for *_, why in late.gaps] == ["before the box's time"] * 2
    assert np.flatnonzero(~late.detected).tolist() == list(range(24))
    with pytest.raises(OptionError, match=r"its time must be below 1.6 s"):
        follow(scene, Cast([]), FaceChoice.parse("10,10,50,50@1.6"))


def test_a_box_whose_content_is_hidden() -> None:
    scene = [frame for frame, _ in drawn_scene(40)]
    room = cv2.GaussianBlur(np.median(scene, axis=0).astype(np.uint8), (0, 0), 3)
    scene[12:24] = [room] * 12
    (track,) = follow(scene, Cast([]), FaceChoice.parse("40,70,72,84"))
    assert not track.shot_start.any()
    assert np.flatnonzero(~track.detected).tolist() == list(range(12, 24))


def test_boxes_that_hold_nothing() -> None:
    scene = [frame for frame, _ in drawn_scene(5)]
    with pytest.raises(OptionError, match=r"300,10 to 350,60 lies beyond the frame of 320 x 240"):
        follow(scene, Cast([]), FaceChoice.parse("300,10,50,50"))
    blank = [np.full_like(frame, 90) for frame in scene]
    (track,) = follow(blank, Cast([]), FaceChoice.parse("30,10,50,50"))
    assert not track.detected.any()


# All together, drawn


def test_drawn_people_who_pass_each_other() -> None:
    size = (480, 270)
    one, other = Identity.from_seed(31), Identity.from_seed(44)

    def laid(frame: Frame, who: Identity, x: float, tick: int) -> tuple[Frame, np.ndarray]:
        drawn, marks = draw(who, Pose(x=x, tick=tick), Mouth(), size, zoom=0.9)
        brows = float(np.linalg.norm(marks[1] - marks[0]))
        mask = np.zeros(size[::-1], np.uint8)
        axes = (round(1.3 * brows), round(1.9 * brows))
        cv2.ellipse(mask, marks[4].round().astype(int).tolist(), axes, 0, 0, 360, 1, -1)
        return np.where(mask[..., None] > 0, drawn, frame), marks[[0, 1, 4]]

    frames, truth = [], []
    room = draw(one, Pose(x=-9), Mouth(), size)[0]
    for i, x in enumerate(walk(-2.6, 2.6, 24)):
        frame, behind = laid(room, one, x, i)
        frame, before = laid(frame, other, -x, i)
        frames.append(frame)
        truth.append((behind, before))
    detector = faces.create("builtin", root=Path("none"))
    tracks = follow(frames, detector, FaceChoice.parse("all"))
    assert len(tracks) == 2
    front, back = sorted(tracks, key=lambda track: -track.detected.sum())
    assert front.detected.all()
    assert back.detected.sum() >= 14
    for track, who in ((front, 1), (back, 0)):
        there = np.array([marks[who] for marks in truth])
        assert np.abs(track.points - there)[track.detected].max() < 12


@pytest.mark.parametrize("part", ["chin", "hair"])
def test_a_graphic_over_a_faces_rim_makes_it_nobody_else(part: str) -> None:
    frames = []
    for i in range(36):
        pose = Pose(x=0.02 * np.sin(i / 3), tick=i)
        frame, marks = draw(Identity.from_seed(31), pose, Mouth(), (320, 240))
        brows = float(np.linalg.norm(marks[1] - marks[0]))
        middle = marks[4, 1] + brows * (1.6 if part == "chin" else -1.9)
        if 12 <= i < 24:
            top, bottom = (max(0, round(middle + side * brows)) for side in (-0.45, 0.45))
            frame[top:bottom] = (20, 40, 200)
        frames.append(VideoFrame.from_rgb(frame))
    detector = faces.create("builtin", root=Path("none"))
    (track,) = follow(frames, detector, FaceChoice.parse("left"))
    assert track.detected.all()


def test_looks_tell_people_apart() -> None:
    patch = PatchEmbedding()
    looks = [
        patch.embed(paint([actor]), face_of(actor))
        for actor in ((100, 120, 60, RED), (200, 100, 80, RED), (100, 120, 60, BLUE))
    ]
    assert looks[0] @ looks[1] > PatchEmbedding.same
    assert looks[0] @ looks[2] < PatchEmbedding.other
    assert np.linalg.norm(looks[0]) == pytest.approx(1)
