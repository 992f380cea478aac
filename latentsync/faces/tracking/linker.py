"""Links the faces of single frames into tracklets, one for each person of a shot.

Frame by frame and forwards only. Nothing is chosen here, so a choice about any frame, made later,
also holds for the frames before it.
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
    """One face through one shot: where it was detected, and its embedding."""

    def __init__(self, shot: int, index: int, embedding: FloatArray) -> None:
        self.shot = shot
        self.embedding = embedding  # mean over the shot, of length 1
        self.last_detection: tuple[Face, FloatArray] | None = None  # with its patch
        self._frames, self._rows = array("q"), array("f")
        self._embeddings = [(index, embedding)]  # with their frames
        self._turn = 0.0  # of the last embedding that was kept, see `_turn`
        self._unlike: list[tuple[int, FloatArray]] = []  # the last ones, if they are another's
        self._embed_every, self._embedded_at = EMBED_EVERY_FRAMES, index
        self._box = np.zeros(4)
        self._speed = np.zeros(2)  # px a frame

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def frames(self) -> NDArray[np.int64]:
        """(k,) the frames in which it was detected."""
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
        """The last frame in which it was detected."""
        return self._frames[-1]

    def expected(self, index: int) -> Array:
        """Predict its box in a later frame, at the speed it had."""
        return self._box + np.tile(self._speed * min(index - self.last, MAX_MISSING_FRAMES // 2), 2)

    def add(self, index: int, face: Face, patch: FloatArray, *, largest: bool = False) -> None:
        """Add the detection of a frame."""
        box = np.array(face.box)
        if self._frames:
            moved = (_centre(box) - _centre(self._box)) / (index - self.last)
            self._speed = SPEED_SMOOTHING * self._speed + (1 - SPEED_SMOOTHING) * moved
        self._box, self.last_detection = box, (face, patch)
        self._frames.append(index)
        self._rows.extend([*face.points.ravel().tolist(), *face.box, float(largest)])

    def update_embedding(
        self, index: int, embedding: FloatArray, turn: float, *, certain: bool = False
    ) -> None:
        """Add an embedding to the mean, unless it may be somebody else's.

        Args:
            turn: of the head, see `_turn`.
            certain: it is this person, however unlike.
        """
        self._embedded_at = index
        if not certain and self.similarity(embedding) < UNLIKE_THRESHOLD:
            if abs(turn - self._turn) < TURN_THRESHOLD:
                self._unlike = [*self._unlike, (index, embedding)][-MIN_UNLIKE_EMBEDDINGS:]
            return
        self._unlike, self._turn = [], turn
        self._embeddings.append((index, embedding))
        if len(self._embeddings) > MAX_EMBEDDINGS:
            self._embeddings = self._embeddings[::2]
            self._embed_every *= 2
        self._average()

    def embedding_due(self, index: int) -> bool:
        """Whether the next embedding is due at a frame."""
        every = EMBED_EVERY_FRAMES if self._unlike else self._embed_every
        return index - self._embedded_at >= every

    def similarity(self, embedding: FloatArray) -> float:
        """Cosine of the mean embedding and another one."""
        return float(self.embedding @ embedding)

    def split(self) -> "Tracklet | None":
        """Split off whoever has taken this person's place, with the frames since then.

        A dissolve between two faces at one place, in the same room, ends so. None: nobody has.
        """
        if len(self._unlike) < MIN_UNLIKE_EMBEDDINGS or self.certain_until == np.inf:
            return None
        (start, look), *later = self._unlike
        new = Tracklet(self.shot, start, look)
        at = int(np.searchsorted(self.frames, start))
        new._frames, new._rows = self._frames[at:], self._rows[at * ROW_NUMBERS :]
        new._embeddings += later
        new._average()
        new._embedded_at, new._turn = self._embedded_at, self._turn
        new._box, new._speed, new.last_detection = self._box, self._speed, self.last_detection
        self.end(self.certain_until)
        return new

    @property
    def certain_until(self) -> float:
        """The frame from which it may be somebody else; infinite: it is this person throughout."""
        looks = np.array([look for _, look in self._unlike])
        if len(looks) < 2 or (looks @ looks.T).min() < ALIKE_THRESHOLD:
            return np.inf
        return self._unlike[0][0] - CHANGING_FRAMES

    def end(self, stop: float) -> None:
        """Drop the detections from frame `stop` on."""
        keep = int(np.searchsorted(self.frames, stop))
        self._frames, self._rows = self._frames[:keep], self._rows[: keep * ROW_NUMBERS]
        self._unlike = []
        if before := [one for one in self._embeddings if one[0] < stop]:
            self._embeddings = before
            self._average()

    def merge(self, other: "Tracklet") -> bool:
        """Merge another tracklet into this one; False if both occur in the same frame."""
        if set(self._frames) & set(other._frames):
            return False
        order = np.argsort(np.concatenate([self.frames, other.frames]), kind="stable")
        rows = np.concatenate([self._table, other._table])[order]
        self._frames = array("q", sorted([*self._frames, *other._frames]))
        self._rows = array("f", rows.ravel().tolist())
        self._embeddings += other._embeddings
        self._average()
        return True

    def _average(self) -> None:
        self.embedding = alike(np.mean([look for _, look in self._embeddings], axis=0))


class TrackAssociator:
    """Assigns each frame's faces to tracklets; those of ended shots are in `people`."""

    def __init__(self, embedder: Embedder) -> None:
        self.people: list[Tracklet] = []
        self._embedder = embedder
        self._here: list[Tracklet] = []  # of this shot
        self._lately: list[Tracklet] = []  # those of them who were seen a moment ago
        self._shot = 0

    def end_shot(self, stop: float = np.inf) -> None:
        """End the shot; the next frame belongs to another one.

        Args:
            stop: the frame from which the shot dissolves into the next; faces there are mixtures.
        """
        for person in self._here:
            person.end(min(stop, person.certain_until))
        self._here = [person for person in self._here if len(person)]
        self.people += self._joined()
        self._shot, self._here, self._lately = self._shot + 1, [], []

    def add(self, index: int, frame: FrameLike, faces: Sequence[Face]) -> None:
        """Assign the faces of a frame, given largest first."""
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
            person.add(index, face, looks.picture(j), largest=j == 0)
            # No embedding is taken while somebody else is in the way.
            if (covered or person.embedding_due(index)) and not any(
                apart(face, p.expected(index)) < 1 for p in lately if p is not person
            ):
                person.update_embedding(index, looks[j], _turn(face), certain=covered)
                if new := person.split():
                    self._here.append(new)
                    self._lately = [p for p in self._lately if p is not person] + [new]
        self._here = [person for person in self._here if len(person)]

    def missing(self, index: int, frame_size: tuple[int, int]) -> list[tuple[Tracklet, Box]]:
        """Find who was in many frames but isn't in this one, and where to search again.

        Largest first; `frame_size` is width and height in px.
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
        """Assign one of the faces found near a missing person's place to that person, if any fits.

        Args:
            seen: the faces of this frame that are others' already.
        """
        free = [f for f in faces if all(apart(f, np.array(s.box)) > MAX_MOVE for s in seen)]
        looks = _Looks(self._embedder, frame, free)
        costs = [self._cost(person, index, free[j], looks, j, sure=False) for j in range(len(free))]
        if not free or min(costs) == np.inf:
            return None
        best = int(np.argmin(costs))
        face = free[best]
        person.add(index, face, looks.picture(best))
        return face

    def _by_place(self, index: int, faces: Sequence[Face], looks: "_Looks") -> dict[int, Tracklet]:
        """Match faces to the people last seen near them: face -> person."""
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
        """Match the only face to the only person of the frame before, though all has jumped."""
        before = [p for p in self._lately if p.last == index - 1]
        if len(faces) != 1 or len(before) != 1:
            return {}
        person, place = before[0], before[0].expected(before[0].last)
        near = _near(faces[0], place, MAX_MOVE_ALONE, MAX_GROWTH_PER_FRAME)
        return {0: person} if near and looks.continues(person, 0) else {}

    def _cost(
        self, person: Tracklet, index: int, face: Face, looks: "_Looks", j: int, *, sure: bool
    ) -> float:
        """Distance of a face from a person's place and embedding; infinite: it is another's."""
        if not _within_reach(person, index, face):
            return np.inf
        beside = apart(face, person.expected(index))
        if sure and looks.continues(person, j):
            return beside
        like = person.similarity(looks[j])
        # A sudden change of looks is another person, after a cut that was not detected. The
        # embedding of a face that is half out of the picture says little.
        other = min(self._embedder.other, UNLIKE_THRESHOLD if looks.cut_off(j) else 1.0)
        least = self._embedder.same if sure else other
        return beside + SIMILARITY_WEIGHT * (1 - like) if like >= least else np.inf

    def _joined(self) -> list[Tracklet]:
        """Merge tracklets of a shot whose embeddings are alike: of whoever left and came back."""
        joined: list[Tracklet] = []
        for person in self._here:
            look = person.embedding
            alike = [other for other in joined if other.similarity(look) >= self._embedder.same]
            for other in sorted(alike, key=lambda other: -other.similarity(look)):
                if other.merge(person):
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
        assert person.last_detection
        face, before = person.last_detection
        return any(
            float(before @ now) >= SAME_PATCH_THRESHOLD or _same_middle(before, now)
            for now in (self.picture(j), _picture(self._frame, face))
        )

    def covered(self, person: Tracklet, j: int) -> bool:
        """Whether a graphic has come over a face, or gone from it, since the frame before."""
        assert person.last_detection
        before, now = person.last_detection[1], self.picture(j)
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
