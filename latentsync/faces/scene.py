"""What a look at a clip found, and the track of whoever is chosen of it: choose -> fill."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentsync.errors import OptionError
from latentsync.faces.base import Array, FaceFilter, points_in
from latentsync.faces.choice import FaceChoice
from latentsync.faces.likeness import Embedder, Patch
from latentsync.faces.people import Person
from latentsync.types import FloatArray

__all__ = ["Lost", "Scene", "Track", "runs"]

Flags = NDArray[np.bool_]
Frames = NDArray[np.int64]  # (k,) frame numbers

GAP = 5  # frames without a face that are filled
GAP_REACH = 1.0  # of the distance of the brows: how far a face may move in such a gap
OFTEN = 0.25  # of the frames of who is seen most; who is seen less is not `left`, `right`, `center`
ONE_OF_ALL = 5  # frames in which one of `all` is seen at least
BESIDE = 0.5  # of a face's width and height: how far beside its box a point may lie
EDGE = 0.02  # of the frame: a box that near its edge is leaving
SHRINKING = 1.1  # times the smallest size: below that a face is lost for being small


class Lost(NamedTuple):
    """Frames [start, stop) without the face, and why, in words."""

    start: int
    stop: int
    reason: str


@dataclass(frozen=True)
class Track:
    """One face through a clip."""

    points: FloatArray  # (n, 3, 2) x, y in square px, as in `Face`; zeros where it isn't found
    found: Flags  # (n,)
    interpolated: Flags  # (n,) found only by what is before and after
    cut: Flags  # (n,) a new shot begins here; never at frame 0
    reasons: tuple[Lost, ...]  # of all frames that aren't found, in order
    pixel_aspect: float = 1.0  # the frame's own x is that of the points divided by it


@dataclass(frozen=True)
class Scene:
    """All people of a clip, and all that choosing among them takes; made by `look`."""

    cut: Flags  # (n,)
    size: tuple[int, int]  # square px, width and height of a frame
    pixel_aspect: float  # width / height of the frame's own pixels
    people: Sequence[Person]  # of all shots, in order
    faces: Frames  # (n,) how many were seen in each frame
    fps: float
    rounded: bool  # points on whole pixels
    filters: FaceFilter
    embedder: Embedder
    references: dict[FaceChoice, FloatArray]  # what the people of reference pictures look like
    boxes: dict[FaceChoice, dict[int, Array]]  # frame -> where a followed box is

    def tracks(self, choice: FaceChoice) -> list[Track]:
        """The track of the chosen face, or for `all` one of each; see `follow`."""
        if choice.kind == "box":
            return [self._box_track(choice)]
        if choice.kind != "all":
            return [self._track(self._cast(choice), choice)]
        shots = [
            sorted(filter(self._lasting, people), key=_prominence, reverse=True)
            for people in self._shots()
        ]
        # Nobody is known again after a cut: the second largest of one shot is the next one's.
        most = max(1, *map(len, shots))
        return [
            self._track([shot[i] if i < len(shot) else None for shot in shots], choice)
            for i in range(most)
        ]

    def speakers(self, choices: Sequence[FaceChoice]) -> list[Track]:
        """A track for each of several choices, none of them `all`; nobody speaks for two."""
        casts = {choice: self._cast(choice) for choice in choices if choice.kind != "box"}
        self._part(casts)
        return [
            self._track(casts[choice], choice) if choice in casts else self._box_track(choice)
            for choice in choices
        ]

    # choose

    def _cast(self, choice: FaceChoice) -> list[Person | None]:
        """Who is meant in each shot: one person through all where they are told apart."""
        shots = self._shots()
        cast = [self._pick(choice, shot, people) for shot, people in enumerate(shots)]
        if isinstance(self.embedder, Patch) or choice.kind == "reference" or not any(cast):
            return cast
        same, picked = self.embedder.same, [person for person in cast if person]
        meant = cast[self._shot_of(choice)] if choice.kind == "point" else None
        # Whom the rule picks longest, over all shots.
        meant = meant or max(
            picked, key=lambda p: sum(len(q) for q in picked if q.like(p.look) >= same)
        )
        return [
            meant if meant in people else self._most_like(meant.look, people, same)
            for people in shots
        ]

    def _part(self, casts: dict[FaceChoice, list[Person | None]]) -> None:
        """Leave who is several speakers' in a shot to one: who is there alone is left and right.

        That is whose point it is, or else whose people in the other shots are most like them.
        Whoever would have nobody left means the same person as another, and is left as is.
        """
        shots = list(zip(*casts.values(), strict=True))
        parted = {choice: list(cast) for choice, cast in casts.items()}
        own: dict[FaceChoice, list[Person]] = {
            choice: [p for p, shot in zip(cast, shots, strict=True) if p and shot.count(p) == 1]
            for choice, cast in casts.items()
        }
        for shot, meant in enumerate(shots):
            for person in {p for p in meant if p and meant.count(p) > 1}:
                rivals = [choice for choice, cast in casts.items() if cast[shot] is person]
                rank = {
                    choice: (
                        choice.kind == "point" and shot == self._shot_of(choice),
                        max((p.like(person.look) for p in own[choice]), default=-1.0),
                    )
                    for choice in rivals
                }
                best = sorted(rank.values())[-2:]
                if best[0] == best[1]:
                    continue  # nothing tells them apart
                for choice in rivals:
                    if rank[choice] < best[1]:
                        parted[choice][shot] = None
        casts.update({choice: cast for choice, cast in parted.items() if any(cast)})

    def _pick(self, choice: FaceChoice, shot: int, people: list[Person]) -> Person | None:
        """Who of a shot's people is meant by the choice alone."""
        if choice.kind == "point" and shot == self._shot_of(choice):
            return self._at_point(choice, people)
        if not people:
            return None
        often = [p for p in people if len(p) >= OFTEN * max(map(len, people))]
        match choice.kind:
            case "left":
                return min(often, key=lambda p: _middle(p)[0])
            case "right":
                return max(often, key=lambda p: _middle(p)[0])
            case "center":
                return min(often, key=lambda p: abs(_middle(p)[0] - self.size[0] / 2))
            case "point":
                return min(often, key=lambda p: np.linalg.norm(_middle(p) - self._squared(choice)))
            case "reference":
                look = self.references[choice]
                return self._most_like(look, people, self.embedder.other)
        return max(people, key=_prominence)

    def _at_point(self, choice: FaceChoice, people: list[Person]) -> Person:
        """Who is at the point when the point is meant, or was last, or will be first."""
        index = round(choice.seconds * self.fps)
        point, beside, there = self._squared(choice), [], []
        for person in people:
            box = person.boxes[np.abs(person.frames - index).argmin()].astype(np.float64)
            outside = np.maximum(0, np.maximum(box[:2] - point, point - box[2:]))
            beside.append(float((outside / np.maximum(1, box[2:] - box[:2])).max()))
            middle = (box[:2] + box[2:]) / 2 / (self.pixel_aspect, 1)
            there.append("{:.0f},{:.0f}".format(*middle))
        if not people or min(beside) > BESIDE:
            faces = f"faces are at {' and '.join(there)}" if there else "there is none at all"
            raise OptionError(
                f"no face at {choice}: in this shot {faces}; give a point on a face, or a box "
                "x,y,width,height@seconds around what isn't found"
            )
        return people[int(np.argmin(beside))]

    def _squared(self, choice: FaceChoice) -> Array:
        """The point x, y in square px."""
        return np.array(choice.place) * (self.pixel_aspect, 1)

    def _most_like(self, look: FloatArray, people: list[Person], least: float) -> Person | None:
        best = max(people, key=lambda p: p.like(look), default=None)
        return best if best and best.like(look) >= least else None

    def _shots(self) -> list[list[Person]]:
        """The people of each shot."""
        shots: list[list[Person]] = [[] for _ in self._borders()]
        for person in self.people:
            shots[person.shot].append(person)
        return shots

    def _borders(self) -> list[tuple[int, int]]:
        """The frames [start, stop) of each shot."""
        return list(pairwise([0, *np.flatnonzero(self.cut).tolist(), len(self.cut)]))

    def _shot_of(self, choice: FaceChoice) -> int:
        """The shot in which a place is meant."""
        index, frames = round(choice.seconds * self.fps), len(self.cut)
        if index >= frames:
            raise OptionError(
                f"face {choice}: its time must be below {frames / self.fps:g} s, of which the "
                "clip's frames are used"
            )
        return int(self.cut[: index + 1].sum())

    def _lasting(self, person: Person) -> bool:
        start, stop = self._borders()[person.shot]
        return len(person) >= min(ONE_OF_ALL, stop - start)

    # fill

    def _track(self, cast: Sequence[Person | None], choice: FaceChoice) -> Track:
        seen = [person for person in cast if person]
        frames = np.concatenate([np.zeros(0, np.int64), *(p.frames for p in seen)])
        points = np.concatenate([np.zeros((0, 3, 2), np.float32), *(p.points for p in seen)])
        track = self._filled(frames, points)
        lost = [
            Lost(start, stop, self._why(cast[shot], choice, border, start, stop))
            for shot, border in enumerate(self._borders())
            for start, stop in runs(~track.found, *border)
        ]
        return _explained(track, lost)

    def _box_track(self, choice: FaceChoice) -> Track:
        self._shot_of(choice)
        boxes = self.boxes[choice]
        frames = np.array(sorted(boxes), np.int64)
        points = np.array([points_in(boxes[i]) for i in frames], np.float32).reshape(-1, 3, 2)
        track = self._filled(frames, np.round(points) if self.rounded else points)
        drawn = round(choice.seconds * self.fps)
        lost = [
            Lost(a, b, "before the box's time" if b <= drawn else "nothing like the box's content")
            for border in self._borders()
            for a, b in runs(~track.found, *border)
        ]
        return _explained(track, lost)

    def _filled(self, frames: Frames, points: FloatArray) -> Track:
        """The track with short gaps between close places filled along a straight line."""
        n = len(self.cut)
        everywhere, found, between = np.zeros((n, 3, 2), np.float32), *np.zeros((2, n), bool)
        everywhere[frames], found[frames] = points, True
        for i in np.flatnonzero((np.diff(frames) > 1) & (np.diff(frames) <= GAP + 1)):
            (a, b), (p, q) = frames[i : i + 2], points[i : i + 2]
            moved = np.linalg.norm(p - q, axis=1).mean()
            if self.cut[a + 1 : b + 1].any() or moved > GAP_REACH * np.linalg.norm(p[1] - p[0]):
                continue
            share = np.linspace(0, 1, b - a + 1, dtype=np.float32)[1:-1, None, None]
            filled = p + share * (q - p)
            everywhere[a + 1 : b] = np.round(filled) if self.rounded else filled
            between[a + 1 : b] = True
        return Track(everywhere, found | between, between, self.cut, (), self.pixel_aspect)

    def _why(
        self,
        person: Person | None,
        choice: FaceChoice,
        shot: tuple[int, int],
        start: int,
        stop: int,
    ) -> str:
        """Why frames [start, stop) of a shot are without the person that is meant in it."""
        if person is None and not self.faces[slice(*shot)].any():
            return "no face in this shot"
        if person is None:
            like = " is like the picture" if choice.kind == "reference" else " is meant"
            return f"nobody in this shot{like}"
        box = person.boxes[max(0, int(np.searchsorted(person.frames, start)) - 1)]
        width, height = box[2:] - box[:2]
        edge, smallest = EDGE * np.array(self.size), self.filters.lenient()
        if (box[:2] < edge).any() or (box[2:] > self.size - edge).any():
            return "at the frame's edge"
        if width < SHRINKING * smallest.min_width or height < SHRINKING * smallest.min_height:
            return "too small"
        return "only other faces" if self.faces[start:stop].mean() > OFTEN else "no face"


def _explained(track: Track, lost: list[Lost]) -> Track:
    return replace(track, reasons=tuple(lost))


def runs(flags: Flags, start: int, stop: int) -> list[tuple[int, int]]:
    """The runs [a, b) of True within [start, stop)."""
    edges = np.flatnonzero(np.diff(flags[start:stop], prepend=False, append=False)) + start
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _prominence(person: Person) -> tuple[int, float]:
    """Who would be published: the largest in most frames; of equals, the larger on the whole."""
    sides = person.boxes[:, 2:] - person.boxes[:, :2]
    return person.largest, float(sides.prod(axis=1).sum())


def _middle(person: Person) -> Array:
    """x, y of its place on average."""
    return (person.boxes[:, :2] + person.boxes[:, 2:]).mean(axis=0).astype(np.float64) / 2
