"""The people of a clip, and the track of the one that is chosen: choose -> fill gaps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from latentsync.errors import OptionError
from latentsync.faces.detectors.base import Array, FaceFilter, place_points
from latentsync.faces.tracking.choice import FaceChoice
from latentsync.faces.tracking.embedding import Embedder
from latentsync.faces.tracking.linker import Tracklet
from latentsync.faces.tracking.recognition import ShotPerson, recognise
from latentsync.types import FloatArray, ShotFaces

__all__ = ["Gap", "PointTrack", "TrackSelection", "runs"]

Flags = NDArray[np.bool_]
Frames = NDArray[np.int64]  # (k,) frame numbers

MAX_GAP_FRAMES = 5  # of a gap that is filled
MAX_GAP_MOVE = 1.0  # of the distance of the brows: how far a face may move in such a gap
MIN_PRESENCE = 0.25  # frames over those of the most frequent person, for left, right, center
MIN_FRAMES_OF_ALL = 5  # in which a face of `all` is seen
MAX_POINT_OUTSIDE = 0.5  # of a face's width and height: how far beside its box a point may lie
EDGE_SHARE = 0.02  # of the frame: a box as near to its edge is leaving
SHRINK_RATIO = 1.1  # times the smallest size: below, a face is lost because it is small
DISSOLVE = "one shot goes over into the next"


class Gap(NamedTuple):
    """Frames [start, stop) without the face, and why, in words."""

    start: int
    stop: int
    reason: str


@dataclass(frozen=True)
class PointTrack:
    """One face through a clip."""

    points: FloatArray  # (n, 3, 2) x, y in square px, as in `Face`; zeros where it isn't found
    detected: Flags  # (n,) also where it was interpolated
    shot_start: Flags  # (n,); never at frame 0
    gaps: tuple[Gap, ...]  # all frames that aren't detected, in order
    pixel_aspect: float = 1.0  # the frame's own x is that of the points divided by it
    shots: tuple[ShotFaces, ...] = ()  # the people of each shot, and which one is followed


@dataclass(frozen=True)
class TrackSelection:
    """All people of a clip, and what choosing among them needs; made by `track_people`."""

    shot_start: Flags  # (n,)
    mixed: Flags  # (n,) in a dissolve
    size: tuple[int, int]  # square px, width and height of a frame
    pixel_aspect: float  # width / height of the frame's own pixels
    people: Sequence[Tracklet]  # of all shots, in order
    faces: Frames  # (n,) how many were seen in each frame
    fps: float
    rounded: bool  # points on whole pixels
    filters: FaceFilter
    embedder: Embedder
    references: dict[FaceChoice, FloatArray]  # embeddings of the people of reference pictures
    boxes: dict[FaceChoice, dict[int, Array]]  # frame -> where a followed box is

    def tracks(self, choice: FaceChoice) -> list[PointTrack]:
        """Return the track of the chosen face, or for `all` one of each; see `follow`."""
        if choice.kind != "all":
            return self.speakers([choice])
        # Nobody is recognised after a cut: track 2 is the second largest face of every shot.
        shots = self._lasting_people()
        most = max(1, *map(len, shots))
        return [
            self._track([ShotPerson(shot[i] if i < len(shot) else None) for shot in shots], choice)
            for i in range(most)
        ]

    def speakers(self, choices: Sequence[FaceChoice]) -> list[PointTrack]:
        """Return a track for each of several choices, none of them `all`."""
        meant = {choice: self._find_meant(choice) for choice in choices if choice.kind != "box"}
        return [
            self._track(self._find_in_shots(choice, meant), choice)
            if choice in meant
            else self._box_track(choice)
            for choice in choices
        ]

    # choose

    def _find_meant(self, choice: FaceChoice) -> Tracklet | None:
        """Find the person that a choice means; None for a reference picture.

        For a point, in the point's shot. For a rule, the person whom it picks in most frames of all
        shots; left, right and centre consider shots of two or more people, where there are any.
        """
        if choice.kind == "reference":
            return None
        shots = self._people_by_shot()
        if choice.kind == "point":
            return self._find_at_point(choice, shots[self._find_shot(choice)])
        lasting = self._lasting_people()
        if choice.kind != "largest" and max(map(len, lasting)) > 1:
            shots = [people for people, some in zip(shots, lasting, strict=True) if len(some) > 1]
        picked = [self._pick_by_rule(choice, people) for people in shots if people]
        same = self.embedder.same
        return max(
            picked,
            key=lambda p: sum(
                len(q) for q in picked if q is p or q.similarity(p.embedding) >= same
            ),
            default=None,
        )

    def _find_in_shots(
        self, choice: FaceChoice, meant: Mapping[FaceChoice, Tracklet | None]
    ) -> list[ShotPerson]:
        """Find the chosen person in each shot; `meant` also has the other speakers' people."""
        person = meant[choice]
        if choice.kind == "reference":
            own = self.references[choice]
        elif person:
            own = person.embedding
        else:
            return [ShotPerson(None) for _ in self._shot_bounds()]
        others = [
            other.embedding
            for other in meant.values()
            if other and other.similarity(own) < self.embedder.same
        ]
        chosen = {person.shot: person} if person else {}
        return recognise(self._people_by_shot(), [own], chosen, others, self.embedder)

    def _pick_by_rule(self, choice: FaceChoice, people: list[Tracklet]) -> Tracklet:
        """Pick one of a shot's people by a rule."""
        often = [p for p in people if len(p) >= MIN_PRESENCE * max(map(len, people))]
        match choice.kind:
            case "left":
                return min(often, key=lambda p: _mean_position(p)[0])
            case "right":
                return max(often, key=lambda p: _mean_position(p)[0])
            case "center":
                return min(often, key=lambda p: abs(_mean_position(p)[0] - self.size[0] / 2))
        return max(people, key=_rank)

    def _find_at_point(self, choice: FaceChoice, people: list[Tracklet]) -> Tracklet:
        """Find who is at the point at its time, or was last, or will be first."""
        index = round(choice.seconds * self.fps)
        point = np.array(choice.place) * (self.pixel_aspect, 1)  # square px
        beside, there, away = [], [], []
        for person in people:
            frames = np.abs(person.frames - index)
            away.append(int(frames.min()))
            box = person.boxes[frames.argmin()].astype(np.float64)
            outside = np.maximum(0, np.maximum(box[:2] - point, point - box[2:]))
            beside.append(float((outside / np.maximum(1, box[2:] - box[:2])).max()))
            middle = (box[:2] + box[2:]) / 2 / (self.pixel_aspect, 1)
            there.append("{:.0f},{:.0f}".format(*middle))
        if not people or min(beside) > MAX_POINT_OUTSIDE:
            faces = f"faces are at {' and '.join(there)}" if there else "there is none at all"
            raise OptionError(
                f"no face at {choice}: in this shot {faces}; give a point on a face, or a box "
                "x,y,width,height@seconds around what isn't found"
            )
        # Of two who were at the point, the one who was seen nearer to its time.
        far = [outside > MAX_POINT_OUTSIDE for outside in beside]
        return people[min(range(len(people)), key=lambda i: (far[i], away[i], beside[i]))]

    def _people_by_shot(self) -> list[list[Tracklet]]:
        """Group the people by shot."""
        shots: list[list[Tracklet]] = [[] for _ in self._shot_bounds()]
        for person in self.people:
            shots[person.shot].append(person)
        return shots

    def _shot_bounds(self) -> list[tuple[int, int]]:
        """Return the frames [start, stop) of each shot."""
        return list(pairwise([0, *np.flatnonzero(self.shot_start).tolist(), len(self.shot_start)]))

    def _find_shot(self, choice: FaceChoice) -> int:
        """Find the shot of a place's time."""
        index, frames = round(choice.seconds * self.fps), len(self.shot_start)
        if index >= frames:
            raise OptionError(
                f"face {choice}: its time must be below {frames / self.fps:g} s, of which the "
                "clip's frames are used"
            )
        return int(self.shot_start[: index + 1].sum())

    def _lasting_people(self) -> list[list[Tracklet]]:
        """Group by shot those seen in more than a few of its frames, the most prominent first."""
        lasting = []
        for people, (start, stop) in zip(self._people_by_shot(), self._shot_bounds(), strict=True):
            often = [p for p in people if len(p) >= min(MIN_FRAMES_OF_ALL, stop - start)]
            lasting.append(sorted(often, key=_rank, reverse=True))
        return lasting

    # fill

    def _track(self, cast: Sequence[ShotPerson], choice: FaceChoice) -> PointTrack:
        seen = [one.person for one in cast if one.person]
        frames = np.concatenate([np.zeros(0, np.int64), *(p.frames for p in seen)])
        points = np.concatenate([np.zeros((0, 3, 2), np.float32), *(p.points for p in seen)])
        track = self._fill_gaps(frames, points)
        gaps = [
            Gap(a, b, self._explain_gap(cast[shot], choice, bounds, a, b))
            for shot, bounds in enumerate(self._shot_bounds())
            for a, b in self._find_gaps(track, bounds)
        ]
        return replace(track, gaps=tuple(gaps), shots=self._list_shot_faces(cast))

    def _find_gaps(self, track: PointTrack, shot: tuple[int, int]) -> list[tuple[int, int]]:
        """Find where the face is missing in a shot; a dissolve at its end is a gap of its own."""
        missing = ~track.detected
        return sorted(runs(missing & ~self.mixed, *shot) + runs(missing & self.mixed, *shot))

    def _list_shot_faces(self, cast: Sequence[ShotPerson]) -> tuple[ShotFaces, ...]:
        """List the mean positions, in px of the frame, of each shot's people."""
        shots = []
        for one, people, bounds in zip(
            cast, self._lasting_people(), self._shot_bounds(), strict=True
        ):
            if one.person and one.person not in people:
                people = [*people, one.person]
            faces = [_mean_position(person) / (self.pixel_aspect, 1) for person in people]
            places = tuple((round(x), round(y)) for x, y in faces)
            chosen = people.index(one.person) if one.person else None
            shots.append(ShotFaces(*bounds, places, (chosen,)))
        return tuple(shots)

    def _box_track(self, choice: FaceChoice) -> PointTrack:
        self._find_shot(choice)
        boxes = self.boxes[choice]
        frames = np.array(sorted(boxes), np.int64)
        points = np.array([place_points(boxes[i]) for i in frames], np.float32).reshape(-1, 3, 2)
        track = self._fill_gaps(frames, np.round(points) if self.rounded else points)
        drawn = round(choice.seconds * self.fps)
        lost = []
        for border in self._shot_bounds():
            for a, b in self._find_gaps(track, border):
                why = "before the box's time" if b <= drawn else "nothing like the box's content"
                lost.append(Gap(a, b, DISSOLVE if self.mixed[a] else why))
        return replace(track, gaps=tuple(lost))

    def _fill_gaps(self, frames: Frames, points: FloatArray) -> PointTrack:
        """Make a track, with short gaps between near places filled along a straight line."""
        n = len(self.shot_start)
        everywhere, found = np.zeros((n, 3, 2), np.float32), np.zeros(n, bool)
        everywhere[frames], found[frames] = points, True
        for i in np.flatnonzero((np.diff(frames) > 1) & (np.diff(frames) <= MAX_GAP_FRAMES + 1)):
            (a, b), (p, q) = frames[i : i + 2], points[i : i + 2]
            moved, brows = np.linalg.norm(p - q, axis=1).mean(), np.linalg.norm(p[1] - p[0])
            if self.shot_start[a + 1 : b + 1].any() or moved > MAX_GAP_MOVE * brows:
                continue
            share = np.linspace(0, 1, b - a + 1, dtype=np.float32)[1:-1, None, None]
            filled = p + share * (q - p)
            everywhere[a + 1 : b] = np.round(filled) if self.rounded else filled
            found[a + 1 : b] = True
        return PointTrack(everywhere, found, self.shot_start, (), self.pixel_aspect)

    def _explain_gap(
        self,
        found: ShotPerson,
        choice: FaceChoice,
        shot: tuple[int, int],
        start: int,
        stop: int,
    ) -> str:
        """Say why frames [start, stop) of a shot are without the chosen person."""
        person = found.person
        if self.mixed[start]:
            return DISSOLVE
        if person is None and not self.faces[slice(*shot)].any():
            return "no face in this shot"
        if person is None and found.doubt:
            return "not sure that this is the chosen person"
        if person is None:
            like = " is like the picture" if choice.kind == "reference" else " is meant"
            return f"nobody in this shot{like}"
        box = person.boxes[max(0, int(np.searchsorted(person.frames, start)) - 1)]
        width, height = box[2:] - box[:2]
        edge, smallest = EDGE_SHARE * np.array(self.size), self.filters.lenient()
        if (box[:2] < edge).any() or (box[2:] > self.size - edge).any():
            return "at the frame's edge"
        if width < SHRINK_RATIO * smallest.min_width or height < SHRINK_RATIO * smallest.min_height:
            return "too small"
        return "only other faces" if self.faces[start:stop].mean() > MIN_PRESENCE else "no face"


def runs(flags: Flags, start: int = 0, stop: int | None = None) -> list[tuple[int, int]]:
    """Find the runs [a, b) of True within [start, stop)."""
    edges = np.flatnonzero(np.diff(flags[start:stop], prepend=False, append=False)) + start
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _rank(person: Tracklet) -> tuple[int, float]:
    """Rank as the published code would: largest in most frames, ties by total area."""
    sides = person.boxes[:, 2:] - person.boxes[:, :2]
    return person.largest, float(sides.prod(axis=1).sum())


def _mean_position(person: Tracklet) -> Array:
    """Return x, y of the mean position."""
    return (person.boxes[:, :2] + person.boxes[:, 2:]).mean(axis=0).astype(np.float64) / 2
