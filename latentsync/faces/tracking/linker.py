"""Linking of the faces of single frames to tracklets, one for each person of a shot.

It works frame by frame and forwards only, and nothing is chosen here, so that a later choice about
any frame also holds for the frames before it.
"""

from array import array
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from latentsync.faces.detectors.base import Array
from latentsync.faces.detectors.frame_view import FrameLike, FrameView
from latentsync.faces.tracking.embedding import COLUMNS, KEPT_ROWS, Embedder, face_patch, normalise
from latentsync.types import Box, Face, FloatArray

__all__ = ["TrackAssociator", "Tracklet", "distance", "is_continued"]

# A face's size is the square root of its area; distances are in sizes, similarities are cosines.
MAX_MOVE = 0.4  # from the predicted place, in the frame after the last detection
MAX_MOVE_PER_FRAME = 0.05  # added for each frame without a detection
MAX_MOVE_LOST = 1.0
MAX_MOVE_ALONE = 1.0  # of the only face of two successive frames: a handheld camera may jerk
MAX_GROWTH = 1.6  # ratio of sizes
MAX_GROWTH_PER_FRAME = 1.2  # ratio of sizes, from one frame to the next
MAX_MISSING_FRAMES = 25  # after which a face's last place counts for nothing
PLACE_ONLY_FRAMES = 2  # without a detection, up to which the place alone may identify a face
MIN_FAMILIAR_FRAMES = 3  # detections after which a missing face is searched for
EMBED_EVERY_FRAMES = 5  # more in long shots
MAX_EMBEDDINGS = 40  # spread over the shot
SAME_PATCH_THRESHOLD = 0.9  # correlation of a face's patch with that of the frame before
# The same of the patch's middle, from brows to lip, which no graphic over chin or hair reaches:
# above 0.98 for one person, below 0.94 for any two of 44 people.
SAME_MIDDLE_THRESHOLD = 0.96
MIDDLE = slice(None), slice(4, 9), slice(3, 9)  # of its planes, rows and columns of cells
UNLIKE_THRESHOLD = 0.6  # similarity to the mean embedding; below, it may be another person's
TURN_THRESHOLD = 0.25  # of the brows' distance: a change of the nose's place that explains that
MIN_UNLIKE_EMBEDDINGS = 3  # in a row, unlike the mean and alike each other: another person
ALIKE_THRESHOLD = 0.8  # similarity of these embeddings to each other
CHANGING_FRAMES = 10  # before the first of them, in which the person is unknown
SIMILARITY_WEIGHT = 1.0  # distance that a similarity of 0 counts as
SPEED_SMOOTHING = 0.5  # weight of the speed so far in the new one
ROW_NUMBERS = 11  # per detection: three points, the box, whether no face was larger


class Tracklet:
    """One face through one shot: its detections and its mean embedding."""

    def __init__(self, shot: int, index: int, embedding: FloatArray) -> None:
        self.shot = shot
        self.embedding = embedding  # mean over the shot, of length 1
        self.last_detection: tuple[Face, FloatArray] | None = None  # with its patch
        self._frames, self._rows = array("q"), array("f")
        self._embeddings = [(index, embedding)]  # with their frames
        self._turn = 0.0  # of the last embedding that was kept, see `_nose_offset`
        self._unlike: list[tuple[int, FloatArray]] = []  # the last ones, if another person's
        self._embed_every, self._embedded_at = EMBED_EVERY_FRAMES, index
        self._box = np.zeros(4)
        self._speed = np.zeros(2)  # px a frame

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def frames(self) -> NDArray[np.int64]:
        """(k,) frames in which it was detected."""
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
        """Number of frames in which no face was larger."""
        return int(self._table[:, 10].sum())

    @property
    def _table(self) -> FloatArray:
        return np.array(self._rows, np.float32).reshape(-1, ROW_NUMBERS)

    @property
    def last(self) -> int:
        """Last frame in which it was detected."""
        return self._frames[-1]

    def expected(self, index: int) -> Array:
        """Predict its box in a later frame, from its speed."""
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
        """Add an embedding to the mean, unless it may be another person's.

        Args:
            turn: of the head, see `_nose_offset`.
            certain: that it is this person, however unlike.
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
        """Whether an embedding is due at a frame."""
        every = EMBED_EVERY_FRAMES if self._unlike else self._embed_every
        return index - self._embedded_at >= every

    def similarity(self, embedding: FloatArray) -> float:
        """Return the cosine of the mean embedding and another one."""
        return float(self.embedding @ embedding)

    def split(self) -> "Tracklet | None":
        """Split off another person who has replaced this one, with the frames since then.

        So ends a dissolve between two faces at one place in the same room. None: nobody has.
        """
        if len(self._unlike) < MIN_UNLIKE_EMBEDDINGS or self.certain_until == np.inf:
            return None
        (start, embedding), *later = self._unlike
        new = Tracklet(self.shot, start, embedding)
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
        """Frame from which it may be another person; infinite: it is one person throughout."""
        unlike = np.array([embedding for _, embedding in self._unlike])
        if len(unlike) < 2 or (unlike @ unlike.T).min() < ALIKE_THRESHOLD:
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
        self.embedding = normalise(np.mean([one for _, one in self._embeddings], axis=0))


class TrackAssociator:
    """Assigns each frame's faces to tracklets; `people` has those of ended shots."""

    def __init__(self, embedder: Embedder) -> None:
        self.people: list[Tracklet] = []
        self._embedder = embedder
        self._in_shot: list[Tracklet] = []
        self._recent: list[Tracklet] = []  # those of the shot seen a moment ago
        self._shot = 0

    def end_shot(self, stop: float = np.inf) -> None:
        """End the shot; the next frame belongs to another one.

        Args:
            stop: the frame from which the shot dissolves into the next; faces there are mixtures.
        """
        for person in self._in_shot:
            person.end(min(stop, person.certain_until))
        self._in_shot = [person for person in self._in_shot if len(person)]
        self.people += self._merge_alike()
        self._shot, self._in_shot, self._recent = self._shot + 1, [], []

    def add(self, index: int, frame: FrameLike, faces: Sequence[Face]) -> None:
        """Assign the faces of a frame, given largest first."""
        features = _FaceFeatures(self._embedder, frame, faces)
        self._recent = [p for p in self._recent if index - p.last <= MAX_MISSING_FRAMES]
        linked = self._match_by_place(index, features) or self._match_single(index, features)
        before = [*self._recent]
        for j, face in enumerate(faces):
            person = linked.get(j) or Tracklet(self._shot, index, features[j])
            if j not in linked:
                self._in_shot.append(person)
                self._recent.append(person)
            covered = j in linked and features.is_covered(person, j)
            person.add(index, face, features.patch(j), largest=j == 0)
            # No embedding is taken while another person is in the way.
            if (covered or person.embedding_due(index)) and not any(
                distance(face, p.expected(index)) < 1 for p in before if p is not person
            ):
                turn = _nose_offset(face)
                person.update_embedding(index, features[j], turn, certain=covered)
                if new := person.split():
                    self._in_shot.append(new)
                    self._recent = [p for p in self._recent if p is not person] + [new]
        self._in_shot = [person for person in self._in_shot if len(person)]

    def missing(self, index: int, frame_size: tuple[int, int]) -> list[tuple[Tracklet, Box]]:
        """Find people who are missing from a frame, and where to search for them.

        Only familiar people, largest first; `frame_size` is width and height in px.
        """
        width, height = frame_size
        found = []
        for person in self._recent:
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
            seen: the faces of this frame that are assigned already.
        """
        free = [f for f in faces if all(distance(f, np.array(s.box)) > MAX_MOVE for s in seen)]
        features = _FaceFeatures(self._embedder, frame, free)
        costs = [self._cost(person, index, features, j, sure=False) for j in range(len(free))]
        if not free or min(costs) == np.inf:
            return None
        best = int(np.argmin(costs))
        person.add(index, free[best], features.patch(best))
        return free[best]

    def _match_by_place(self, index: int, features: "_FaceFeatures") -> dict[int, Tracklet]:
        """Match faces to the people last seen near them: face -> person."""
        people, faces = self._recent, features.faces
        close = np.array(
            [[_is_in_reach(person, index, face) for face in faces] for person in people], bool
        ).reshape(len(people), len(faces))
        # Where only one person is near a face and one face near a person, the place is enough.
        rivals = close.sum(axis=1)[:, None] + close.sum(axis=0)[None] > 2
        costs = np.full(close.shape, np.inf)
        for i, j in np.argwhere(close):
            sure = not rivals[i, j] and index - people[i].last <= PLACE_ONLY_FRAMES
            costs[i, j] = self._cost(people[i], index, features, j, sure=sure)
        return {int(j): people[i] for i, j in _assign(costs)}

    def _match_single(self, index: int, features: "_FaceFeatures") -> dict[int, Tracklet]:
        """Match the only face to the only person of the frame before, though all has jumped."""
        before = [p for p in self._recent if p.last == index - 1]
        if len(features.faces) != 1 or len(before) != 1:
            return {}
        person, place = before[0], before[0].expected(before[0].last)
        near = _is_near(features.faces[0], place, MAX_MOVE_ALONE, MAX_GROWTH_PER_FRAME)
        return {0: person} if near and features.continues(person, 0) else {}

    def _cost(
        self, person: Tracklet, index: int, features: "_FaceFeatures", j: int, *, sure: bool
    ) -> float:
        """Return a face's distance from a person's place and embedding; infinite: another's."""
        face = features.faces[j]
        if not _is_in_reach(person, index, face):
            return np.inf
        beside = distance(face, person.expected(index))
        if sure and features.continues(person, j):
            return beside
        similarity = person.similarity(features[j])
        # A sudden change is another person, after a cut that was not detected. The embedding of a
        # face that is half out of the picture is unreliable.
        other = min(self._embedder.other, UNLIKE_THRESHOLD if features.is_cut_off(j) else 1.0)
        least = self._embedder.same if sure else other
        return beside + SIMILARITY_WEIGHT * (1 - similarity) if similarity >= least else np.inf

    def _merge_alike(self) -> list[Tracklet]:
        """Merge tracklets of the shot with alike embeddings: of people who left and came back."""
        merged: list[Tracklet] = []
        for person in self._in_shot:
            own = person.embedding
            alike = [other for other in merged if other.similarity(own) >= self._embedder.same]
            alike.sort(key=lambda other: -other.similarity(own))
            if not any(other.merge(person) for other in alike):
                merged.append(person)
        return merged


class _FaceFeatures:
    """The embeddings and patches of a frame's faces, each made when it is first needed."""

    def __init__(self, embedder: Embedder, frame: FrameLike, faces: Sequence[Face]) -> None:
        self.faces = faces
        self._embedder, self._frame = embedder, frame
        self._embeddings: dict[int, FloatArray] = {}
        self._patches: dict[int, FloatArray] = {}

    def __getitem__(self, j: int) -> FloatArray:
        """Return a face's embedding."""
        if j not in self._embeddings:
            self._embeddings[j] = self._embedder.embed(self._frame, self.faces[j])
        return self._embeddings[j]

    def is_cut_off(self, j: int) -> bool:
        """Whether a face reaches beyond the frame's edge."""
        left, top, right, bottom = self.faces[j].box
        view = FrameView(self._frame)
        return left < 0 or top < 0 or right > view.width or bottom > view.height

    def patch(self, j: int) -> FloatArray:
        """Return a face's patch without its mean lightness, at length 1."""
        if j not in self._patches:
            self._patches[j] = _patch(self._frame, self.faces[j])
        return self._patches[j]

    def continues(self, person: Tracklet, j: int) -> bool:
        """Whether a face's patch is the person's last one, or their last place still shows it.

        The latter holds where only the landmarks have moved.
        """
        assert person.last_detection
        face, before = person.last_detection
        return _is_same(before, self.patch(j)) or _is_same(before, _patch(self._frame, face))

    def is_covered(self, person: Tracklet, j: int) -> bool:
        """Whether a graphic has appeared over a face, or gone from it, since the frame before."""
        assert person.last_detection
        before, now = person.last_detection[1], self.patch(j)
        return float(before @ now) < SAME_PATCH_THRESHOLD and _is_same_middle(before, now)


def _patch(frame: FrameLike, face: Face) -> FloatArray:
    lightness, *colours = np.split(face_patch(frame, face.points), 3)
    return normalise(np.concatenate([lightness - lightness.mean(), *colours]))


def _is_same(before: FloatArray, now: FloatArray) -> bool:
    return float(before @ now) >= SAME_PATCH_THRESHOLD or _is_same_middle(before, now)


def _is_same_middle(before: FloatArray, now: FloatArray) -> bool:
    shape = (3, KEPT_ROWS, COLUMNS)
    first = normalise(before.reshape(shape)[MIDDLE].ravel())
    second = normalise(now.reshape(shape)[MIDDLE].ravel())
    return float(first @ second) >= SAME_MIDDLE_THRESHOLD


def _assign(costs: Array) -> list[tuple[int, int]]:
    """Pair rows with columns at the least sum of finite costs."""
    finite = np.isfinite(costs)
    if finite.sum(axis=0).max(initial=0) <= 1 and finite.sum(axis=1).max(initial=0) <= 1:
        return [(int(i), int(j)) for i, j in np.argwhere(finite)]
    from scipy.optimize import linear_sum_assignment  # slow to import, and seldom needed

    rows, columns = linear_sum_assignment(np.where(finite, costs, 1e6))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if finite[i, j]]


def _nose_offset(face: Face) -> float:
    """Return how far the nose lies beside the middle of the brows, in their distance."""
    along = face.points[1] - face.points[0]
    beside = face.points[2] - face.points[:2].mean(axis=0)
    return float(beside @ along) / max(1e-6, float(along @ along))


def _is_in_reach(person: Tracklet, index: int, face: Face) -> bool:
    reach = min(MAX_MOVE_LOST, MAX_MOVE + MAX_MOVE_PER_FRAME * (index - person.last - 1))
    return _is_near(face, person.expected(index), reach, MAX_GROWTH)


def is_continued(before: Face, now: Face) -> bool:
    """Whether a face has about the place and size of one in the frame before."""
    return _is_near(now, np.array(before.box), MAX_MOVE, MAX_GROWTH_PER_FRAME)


def _is_near(face: Face, box: Array, reach: float, max_growth: float) -> bool:
    ratio = _size(np.array(face.box)) / _size(box)
    return distance(face, box) <= reach and 1 / max_growth <= ratio <= max_growth


def distance(face: Face, box: Array) -> float:
    """Return the distance of a face's middle from a box's, in their mean size."""
    own = np.array(face.box)
    size = (_size(own) + _size(box)) / 2
    return float(np.linalg.norm(_centre(own) - _centre(box))) / size


def _centre(box: Array) -> Array:
    return (box[:2] + box[2:]) / 2


def _size(box: Array) -> float:
    width, height = box[2:] - box[:2]
    return float(np.sqrt(max(1.0, width) * max(1.0, height)))
