"""Faces of single frames linked into people: who of this frame is who of the frames before.

Frame by frame and forwards only; nothing is chosen here, so a choice made later about any frame
holds for the frames before it too. A person lives within one shot.
"""

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latentsync.faces.detectors.base import Array
from latentsync.faces.detectors.frame_view import FrameLike, FrameView
from latentsync.faces.tracking.embedding import COLUMNS, KEPT_ROWS, Embedder, alike, cells
from latentsync.types import Box, Face, FloatArray

__all__ = ["TrackAssociator", "Tracklet", "apart", "stayed"]

# Sizes are the square root of a face's area; distances are counted in them.
MAX_MOVE = 0.4  # how far a face may be from where it was expected a frame after it was seen
MAX_MOVE_PER_FRAME = 0.05  # for each frame more without it
MAX_MOVE_LOST = 1.0
MAX_MOVE_ALONE = 1.0  # of the only face of two frames on end: a camera in the hand may jerk
MAX_GROWTH = 1.6  # times its size
MAX_GROWTH_PER_FRAME = 1.2  # times its size, from one frame to the next
MAX_MISSING_FRAMES = 25  # after which its place says nothing
PLACE_ONLY_FRAMES = 2  # without it, up to which its place alone may do
MIN_FAMILIAR_FRAMES = 3  # after which a missing face is looked for again
EMBED_EVERY_FRAMES = 5  # more in long shots
MAX_EMBEDDINGS = 40  # spread over the shot
SAME_PATCH_THRESHOLD = 0.9  # correlation of a face's picture with that of the frame before
# The same of its middle, from brows to lip, which a graphic over chin or hair leaves as it is:
# that of one person is above 0.98, and that of any two of 44 people below 0.94.
SAME_MIDDLE_THRESHOLD = 0.96
MIDDLE = slice(None), slice(4, 9), slice(3, 9)  # of its planes, rows and columns of cells
UNLIKE_THRESHOLD = 0.6  # similarity to all embeddings before, below which it may be another's
TURN_THRESHOLD = 0.25  # of the brows' distance: a nose further aside than before explains that
MIN_UNLIKE_EMBEDDINGS = 3  # in a row, unlike all before and alike each other: somebody else
ALIKE_THRESHOLD = 0.8  # similarity of these embeddings to each other
CHANGING_FRAMES = 10  # before the first of them, in which nobody knows whose face it is
SIMILARITY_WEIGHT = 1.0  # sizes that a similarity of 0 counts as
SPEED_SMOOTHING = 0.5  # weight of the speed so far in the new one
ROW_NUMBERS = 11  # per sighting: three points, the box, whether no face was larger


class Tracklet:
    """One face through one shot: where it was seen, and what it looks like."""

    def __init__(self, shot: int, index: int, look: FloatArray) -> None:
        self.shot = shot
        self.look = look  # mean of its embeddings, of length 1
        self.latest: tuple[Face, FloatArray] | None = None  # its last face, and that one's picture
        self._frames, self._rows = array("q"), array("f")
        self._looks = [(index, look)]  # frame and embedding
        self._turn = 0.0  # see `_turn`, of the last look that was kept
        self._unlike: list[tuple[int, FloatArray]] = []  # the last looks, if they are another's
        self._look_every, self._looked = EMBED_EVERY_FRAMES, index
        self._box = np.zeros(4)
        self._speed = np.zeros(2)  # px a frame

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def frames(self) -> NDArray[np.int64]:
        """(k,) the frames in which it was seen."""
        return np.array(self._frames, np.int64)

    @property
    def points(self) -> FloatArray:
        """(k, 3, 2) px."""
        return self._table[:, :6].reshape(-1, 3, 2)

    @property
    def boxes(self) -> FloatArray:
        """(k, 4) left, top, right, bottom in px."""
        return self._table[:, 6:10]

    @property
    def largest(self) -> int:
        """Frames in which no face was larger."""
        return int(self._table[:, 10].sum())

    @property
    def _table(self) -> FloatArray:
        return np.array(self._rows, np.float32).reshape(-1, ROW_NUMBERS)

    @property
    def last(self) -> int:
        """The last frame in which it was seen."""
        return self._frames[-1]

    def expected(self, index: int) -> Array:
        """Its box in a later frame, if it moves on as it did."""
        return self._box + np.tile(self._speed * min(index - self.last, MAX_MISSING_FRAMES // 2), 2)

    def see(self, index: int, face: Face, picture: FloatArray, *, largest: bool = False) -> None:
        box = np.array(face.box)
        if self._frames:
            moved = (_centre(box) - _centre(self._box)) / (index - self.last)
            self._speed = SPEED_SMOOTHING * self._speed + (1 - SPEED_SMOOTHING) * moved
        self._box, self.latest = box, (face, picture)
        self._frames.append(index)
        self._rows.extend([*face.points.ravel().tolist(), *face.box, float(largest)])

    def remember(self, index: int, look: FloatArray, turn: float, *, certain: bool = False) -> None:
        """Add what it looks like now to what it looks like on average, unless that is unlike.

        Args:
            certain: it is this person, whatever it looks like.
        """
        self._looked = index
        if not certain and self.like(look) < UNLIKE_THRESHOLD:
            if abs(turn - self._turn) < TURN_THRESHOLD:
                self._unlike = [*self._unlike, (index, look)][-MIN_UNLIKE_EMBEDDINGS:]
            return
        self._unlike, self._turn = [], turn
        self._looks.append((index, look))
        if len(self._looks) > MAX_EMBEDDINGS:
            self._looks = self._looks[::2]
            self._look_every *= 2
        self._average()

    def looks_old(self, index: int) -> bool:
        return index - self._looked >= (EMBED_EVERY_FRAMES if self._unlike else self._look_every)

    def like(self, look: FloatArray) -> float:
        """Cosine of what it looks like and `look`."""
        return float(self.look @ look)

    def parted(self) -> "Tracklet | None":
        """Who has taken its place, if somebody has: their frames are no longer this person's.

        So ends a dissolve between two faces at one place, where the room is the same.
        """
        if len(self._unlike) < MIN_UNLIKE_EMBEDDINGS or self.known_until == np.inf:
            return None
        (start, look), *later = self._unlike
        new = Tracklet(self.shot, start, look)
        at = int(np.searchsorted(self.frames, start))
        new._frames, new._rows = self._frames[at:], self._rows[at * ROW_NUMBERS :]
        new._looks += later
        new._average()
        new._looked, new._turn = self._looked, self._turn
        new._box, new._speed, new.latest = self._box, self._speed, self.latest
        self.end(self.known_until)
        return new

    @property
    def known_until(self) -> float:
        """The frame from which on it may be somebody else; infinite: it never is."""
        looks = np.array([look for _, look in self._unlike])
        if len(looks) < 2 or (looks @ looks.T).min() < ALIKE_THRESHOLD:
            return np.inf
        return self._unlike[0][0] - CHANGING_FRAMES

    def end(self, stop: float) -> None:
        """Forget what was seen from frame `stop` on."""
        keep = int(np.searchsorted(self.frames, stop))
        self._frames, self._rows = self._frames[:keep], self._rows[: keep * ROW_NUMBERS]
        self._unlike = []
        if before := [one for one in self._looks if one[0] < stop]:
            self._looks = before
            self._average()

    def take(self, other: "Tracklet") -> bool:
        """Merge another tracklet into this one; False if both occur in the same frame."""
        if set(self._frames) & set(other._frames):
            return False
        order = np.argsort(np.concatenate([self.frames, other.frames]), kind="stable")
        rows = np.concatenate([self._table, other._table])[order]
        self._frames = array("q", sorted([*self._frames, *other._frames]))
        self._rows = array("f", rows.ravel().tolist())
        self._looks += other._looks
        self._average()
        return True

    def _average(self) -> None:
        self.look = alike(np.mean([look for _, look in self._looks], axis=0))


class TrackAssociator:
    """Takes each frame's faces in turn; the people are in `people`."""

    def __init__(self, embedder: Embedder) -> None:
        self.people: list[Tracklet] = []
        self._embedder = embedder
        self._here: list[Tracklet] = []  # of this shot
        self._lately: list[Tracklet] = []  # those of them who were seen a moment ago
        self._shot = 0

    def end_shot(self, stop: float = np.inf) -> None:
        """The next frame is another shot's, or there is none.

        From frame `stop` on this shot is dissolved into the next one: what is seen there is no face
        of one person.
        """
        for person in self._here:
            person.end(min(stop, person.known_until))
        self._here = [person for person in self._here if len(person)]
        self.people += self._joined()
        self._shot, self._here, self._lately = self._shot + 1, [], []

    def add(self, index: int, frame: FrameLike, faces: Sequence[Face]) -> None:
        """The faces of a frame, largest first."""
        looks = _Looks(self._embedder, frame, faces)
        self._lately = [p for p in self._lately if index - p.last <= MAX_MISSING_FRAMES]
        linked = self._by_place(index, faces, looks) or self._jerked(index, faces, looks)
        lately = [*self._lately]
        for j, face in enumerate(faces):
            person = linked.get(j) or Tracklet(self._shot, index, looks[j])
            if j not in linked:
                self._here.append(person)
                self._lately.append(person)
            covered = j in linked and looks.covered(person, j)
            person.see(index, face, looks.picture(j), largest=j == 0)
            # What a person looks like is learnt while nobody else is in the way.
            if (covered or person.looks_old(index)) and not any(
                apart(face, p.expected(index)) < 1 for p in lately if p is not person
            ):
                person.remember(index, looks[j], _turn(face), certain=covered)
                if new := person.parted():
                    self._here.append(new)
                    self._lately = [p for p in self._lately if p is not person] + [new]
        self._here = [person for person in self._here if len(person)]

    def missing(self, index: int, frame_size: tuple[int, int]) -> list[tuple[Tracklet, Box]]:
        """Who isn't in this frame but was in many up to a moment ago, and where to look again.

        The largest first; `frame_size` is width and height, px.
        """
        width, height = frame_size
        found = []
        for person in self._lately:
            if len(person) >= MIN_FAMILIAR_FRAMES and person.last < index:
                box = person.expected(index)
                x, y = _centre(box)
                if 0 <= x < width and 0 <= y < height:
                    inside = np.clip(box, 0, (width, height) * 2).round().astype(int)
                    found.append((person, Box(*inside.tolist())))
        return sorted(found, key=lambda one: -one[1].width * one[1].height)

    def add_second(
        self,
        index: int,
        frame: FrameLike,
        person: Tracklet,
        faces: Sequence[Face],
        seen: Sequence[Face],
    ) -> Face | None:
        """The one of the faces found near a missing person's place that is theirs, if any.

        `seen` are the faces of this frame that are others' already.
        """
        free = [f for f in faces if all(apart(f, np.array(s.box)) > MAX_MOVE for s in seen)]
        looks = _Looks(self._embedder, frame, free)
        costs = [self._cost(person, index, free[j], looks, j, sure=False) for j in range(len(free))]
        if not free or min(costs) == np.inf:
            return None
        best = int(np.argmin(costs))
        face = free[best]
        person.see(index, face, looks.picture(best))
        return face

    def _by_place(self, index: int, faces: Sequence[Face], looks: "_Looks") -> dict[int, Tracklet]:
        """Which faces are people who were about there a moment ago: face -> person."""
        lately = self._lately
        close = np.array(
            [[_within_reach(p, index, face) for face in faces] for p in lately], bool
        ).reshape(len(lately), len(faces))
        # Where there is one person for a face and one face for a person, the place will do.
        rivals = close.sum(axis=1)[:, None] + close.sum(axis=0)[None] > 2
        costs = np.full(close.shape, np.inf)
        for i, j in np.argwhere(close):
            sure = not rivals[i, j] and index - lately[i].last <= PLACE_ONLY_FRAMES
            costs[i, j] = self._cost(lately[i], index, faces[j], looks, j, sure=sure)
        return {int(j): lately[i] for i, j in _cheapest(costs)}

    def _jerked(self, index: int, faces: Sequence[Face], looks: "_Looks") -> dict[int, Tracklet]:
        """The only face, if it is the only one of the frame before though all has jumped."""
        before = [p for p in self._lately if p.last == index - 1]
        if len(faces) != 1 or len(before) != 1:
            return {}
        person, place = before[0], before[0].expected(before[0].last)
        near = _near(faces[0], place, MAX_MOVE_ALONE, MAX_GROWTH_PER_FRAME)
        return {0: person} if near and looks.continues(person, 0) else {}

    def _cost(
        self, person: Tracklet, index: int, face: Face, looks: "_Looks", j: int, *, sure: bool
    ) -> float:
        """How little a face is where, and as, a person should be; infinite: it is another's."""
        if not _within_reach(person, index, face):
            return np.inf
        beside = apart(face, person.expected(index))
        if sure and looks.continues(person, j):
            return beside
        like = person.like(looks[j])
        # Who was just there and looks otherwise at once is another, after a cut that nobody saw.
        # Of a face that is half out of the picture looks say little.
        other = min(self._embedder.other, UNLIKE_THRESHOLD if looks.cut_off(j) else 1.0)
        least = self._embedder.same if sure else other
        return beside + SIMILARITY_WEIGHT * (1 - like) if like >= least else np.inf

    def _joined(self) -> list[Tracklet]:
        """The shot's people; who left and came back is one, told by looks: see `Tracklet.take`."""
        joined: list[Tracklet] = []
        for person in self._here:
            look = person.look
            alike = [other for other in joined if other.like(look) >= self._embedder.same]
            for other in sorted(alike, key=lambda other: -other.like(look)):
                if other.take(person):
                    break
            else:
                joined.append(person)
        return joined


class _Looks:
    """The embeddings of a frame's faces, each made when it is first asked for."""

    def __init__(self, embedder: Embedder, frame: FrameLike, faces: Sequence[Face]) -> None:
        self._embedder, self._frame, self._faces = embedder, frame, faces
        self._made: dict[int, FloatArray] = {}
        self._pictures: dict[int, FloatArray] = {}

    def __getitem__(self, j: int) -> FloatArray:
        if j not in self._made:
            self._made[j] = self._embedder.embed(self._frame, self._faces[j])
        return self._made[j]

    def cut_off(self, j: int) -> bool:
        """Whether a face reaches beyond the frame's edge."""
        left, top, right, bottom = self._faces[j].box
        view = FrameView(self._frame)
        return left < 0 or top < 0 or right > view.width or bottom > view.height

    def picture(self, j: int) -> FloatArray:
        """The face's cells without what is the same in all of them, at length 1."""
        if j not in self._pictures:
            self._pictures[j] = _picture(self._frame, self._faces[j])
        return self._pictures[j]

    def continues(self, person: Tracklet, j: int) -> bool:
        """Whether a face's picture is what a person's was, or what is at their place is.

        The latter holds where only the landmarks have moved.
        """
        assert person.latest
        face, before = person.latest
        return any(
            float(before @ now) >= SAME_PATCH_THRESHOLD or _same_middle(before, now)
            for now in (self.picture(j), _picture(self._frame, face))
        )

    def covered(self, person: Tracklet, j: int) -> bool:
        """Whether a graphic has come over a face, or gone from it, since the frame before."""
        assert person.latest
        before, now = person.latest[1], self.picture(j)
        return float(before @ now) < SAME_PATCH_THRESHOLD and _same_middle(before, now)


def _picture(frame: FrameLike, face: Face) -> FloatArray:
    lightness, *colours = np.split(cells(frame, face.points), 3)
    return alike(np.concatenate([lightness - lightness.mean(), *colours]))


def _same_middle(before: FloatArray, now: FloatArray) -> bool:
    middles = [one.reshape(3, KEPT_ROWS, COLUMNS)[MIDDLE] for one in (before, now)]
    first, second = (alike(one.ravel()) for one in middles)
    return float(first @ second) >= SAME_MIDDLE_THRESHOLD


def _cheapest(costs: Array) -> list[tuple[int, int]]:
    """Rows paired with columns so that the sum of their finite costs is least."""
    finite = np.isfinite(costs)
    if finite.sum(axis=0).max(initial=0) <= 1 and finite.sum(axis=1).max(initial=0) <= 1:
        return [(int(i), int(j)) for i, j in np.argwhere(finite)]
    from scipy.optimize import linear_sum_assignment  # slow to import, and seldom needed

    rows, columns = linear_sum_assignment(np.where(finite, costs, 1e6))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if finite[i, j]]


def _turn(face: Face) -> float:
    """How far the nose lies beside the middle of the brows, in their distance."""
    along = face.points[1] - face.points[0]
    beside = face.points[2] - face.points[:2].mean(axis=0)
    return float(beside @ along) / max(1e-6, float(along @ along))


def _within_reach(person: Tracklet, index: int, face: Face) -> bool:
    reach = min(MAX_MOVE_LOST, MAX_MOVE + MAX_MOVE_PER_FRAME * (index - person.last - 1))
    return _near(face, person.expected(index), reach, MAX_GROWTH)


def stayed(before: Face, now: Face) -> bool:
    """Whether a face is about where, and as large as, one was a frame ago."""
    return _near(now, np.array(before.box), MAX_MOVE, MAX_GROWTH_PER_FRAME)


def _near(face: Face, box: Array, reach: float, grows: float) -> bool:
    """Whether a face is no further than `reach` from a box, and as large but for `grows` times."""
    ratio = _size(np.array(face.box)) / _size(box)
    return apart(face, box) <= reach and 1 / grows <= ratio <= grows


def apart(face: Face, box: Array) -> float:
    """How far a face's middle is from a box's, in mean sizes of both."""
    own = np.array(face.box)
    size = (_size(own) + _size(box)) / 2
    return float(np.linalg.norm(_centre(own) - _centre(box))) / size


def _centre(box: Array) -> Array:
    return (box[:2] + box[2:]) / 2


def _size(box: Array) -> float:
    width, height = box[2:] - box[:2]
    return float(np.sqrt(max(1.0, width) * max(1.0, height)))
