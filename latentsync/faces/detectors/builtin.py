"""builtin: OpenCV's cascades say where a face may be, the project's own small net where it is."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from latentsync.faces.detectors.base import PUBLISHED, FaceFilter, face
from latentsync.faces.detectors.frame_view import Array, FrameLike, FrameView
from latentsync.faces.detectors.landmarks import ANCHORS, FILE, MOUTH, Landmarks, upright
from latentsync.types import Box, Face

__all__ = ["Builtin"]

SEARCH_SIDE = 480  # px, longest side of the picture that is searched
SEARCH_BORDER = 12  # px added around it, so that a face may reach over the frame's edge
STEP = 1.2  # from one size of window to the next
SMALLEST_WINDOW = 24  # px, width of the smallest acceptable face's square in the searched picture
SQUARE_TO_CROP = (0.565, 0.13)  # half a crop's side, and how far it lies below: in squares
BOX_IN_CROP = np.array([-0.65, -0.96, 0.65, 0.78])  # brows to chin and cheek to cheek
EXTRA_ROUNDS = 2  # looks after the first
LEAP_THRESHOLD = 0.04  # of the brows' distance: a followed face that moved more gets a third look
RETRY_OFFSET = 0.25  # of a face's width: how far beside its last place a second look tries
MIN_RETRY_SCORE = 0.01  # score at the first look below which there is no second
# Second opinion: how many of a cascade's windows agree on a place. The odds of the net's score are
# multiplied by (windows / few) ** 2, at most by MOST_ODDS. On photographs of people whom the net
# finds unlikely (smiles, beards, stage light) its score is 0.15 to 0.5 with 3 to 45 windows; what
# it took for a face on print and walls has 1 or 2, or 6 of the second cascade, which gives more.
# See `benchmarks/photographs.py`.
FEW, FEW_OF_SECOND, MOST_ODDS = 2.3, 5.5, 12.0

Cascade = Any  # cv2.CascadeClassifier, untyped


class Builtin:
    """Haar cascades and a landmark net, on the CPU: upright faces seen about from the front.

    The cascades answer in squares. The net looks into each, says how sure it is of a face, and
    where its landmarks are; by these it looks again, closer. Net and cascade decide together: a
    square in which many of the cascade's windows agree needs less of the net's certainty, one of a
    single window more. Where no square holds a face, the frame is searched once more with its
    shades evened out, then by another cascade.

    Raises as `Landmarks` does.
    """

    name = "builtin"

    def __init__(
        self,
        filters: FaceFilter = PUBLISHED,
        *,
        file: Path = FILE,
        search_side: int = SEARCH_SIDE,
    ) -> None:
        self.filters = filters
        self.search_side = search_side
        self._landmarks = Landmarks(file)
        self._first, self._second = _cascade("frontalface_alt2"), _cascade("frontalface_default")
        self._even = cv2.createCLAHE(clipLimit=4, tileGridSize=(4, 4))

    def describe(self) -> str:
        return (
            f"builtin (OpenCV cascades and a landmark net, upright frontal faces, longest side <= "
            f"{self.search_side} px, on the CPU; {self.filters})"
        )

    def detect(
        self, frame: FrameLike, *, rounded: bool = False, near: Box | None = None
    ) -> list[Face]:
        filters, view = self.filters.lenient() if near else self.filters, FrameView(frame)
        if not filters.fits(view.width, view.height):
            return []
        # Near a face that was there the net needs no cascade to lead it, nor to agree.
        tries = [(_squares_near(near), None)] if near else self._search(view)
        for squares, agreement in tries:
            boxes, scores, points = self._look(view, squares, agreement)
            kept = filters.keep(boxes, scores)
            if kept:
                return [face(boxes[i], scores[i], points[i, ANCHORS], rounded) for i in kept]
        return []

    def follow(
        self, frame: FrameLike, faces: Sequence[Face], *, rounded: bool = False
    ) -> list[Face | None]:
        if not faces:
            return []
        view, before = FrameView(frame), np.stack([one.points for one in faces])
        points, _ = self._landmarks.predict(view, np.stack([_last_crop(one) for one in faces]))
        moved = np.linalg.norm(points[:, ANCHORS] - before, axis=2).max(axis=1)
        leapt = (moved > LEAP_THRESHOLD * np.linalg.norm(before[:, 1] - before[:, 0], axis=1)).any()
        boxes, scores, points = self._closer(view, points, EXTRA_ROUNDS if leapt else 1)
        kept = self.filters.keep(boxes, scores)
        return [
            face(boxes[i], scores[i], points[i, ANCHORS], rounded) if i in kept else None
            for i in range(len(faces))
        ]

    def mouth(self, frame: FrameLike, seen: Face) -> Array:
        """Six points (6, 2) of a face's mouth, in px: corners, then edges of the lips downwards."""
        view = FrameView(frame)
        points, _ = self._landmarks.predict(view, _last_crop(seen)[None])
        _, _, points = self._closer(view, points, EXTRA_ROUNDS)
        return np.asarray(points[0, MOUTH])

    def _search(self, view: FrameView) -> Iterator[tuple[Array, Array]]:
        """Squares (n, 3) that may hold a face, centre x, y and side in px; try by try.

        And how well the cascade's windows agree on each, (n,): 1 says nothing.
        """
        smallest = self.filters.min_width / (2 * SQUARE_TO_CROP[0] * 0.65)
        most = round(SMALLEST_WINDOW / smallest * max(view.width, view.height))
        small = view.small(min(self.search_side, most))
        grey, scale = cv2.cvtColor(small.pixels, cv2.COLOR_RGB2GRAY), 1 / small.step.max()
        padded = cv2.copyMakeBorder(grey, *(SEARCH_BORDER,) * 4, cv2.BORDER_REPLICATE)
        for cascade, even, few in (
            (self._first, False, FEW),
            (self._first, True, FEW),
            (self._second, True, FEW_OF_SECOND),
        ):
            picture = self._even.apply(padded) if even else padded
            least = (int(smallest * scale),) * 2
            found, windows = cascade.detectMultiScale2(picture, STEP, 1, minSize=least)
            rows = np.asarray(found, np.float64).reshape(-1, 4)
            # A window covers pixels x to x + width - 1, and (0, 0) is a pixel's centre.
            squares = np.column_stack([rows[:, :2] + (rows[:, 2:] - 1) / 2, rows[:, 2]])
            if len(squares):
                agreement = np.asarray(windows, np.float64).reshape(-1) / few
                yield (squares - [SEARCH_BORDER, SEARCH_BORDER, 0]) / scale, agreement

    def _look(
        self, view: FrameView, squares: Array, agreement: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Boxes (n, 4), scores (n,) and points (n, 12, 2) of what is in squares, each face once."""
        half, below = SQUARE_TO_CROP
        crops = np.stack([_crop(x, y + below * side, half * side) for x, y, side in squares])
        points, scores = self._landmarks.predict(view, crops)
        likely = scores > MIN_RETRY_SCORE
        if not likely.any():
            return np.zeros((0, 4)), np.zeros(0), points[likely]
        boxes, scores, points = self._closer(view, points[likely], EXTRA_ROUNDS)
        if agreement is not None:
            scores = _agreed(scores, agreement[likely])
        once = _distinct(boxes, scores)
        return boxes[once], scores[once], points[once]

    def _closer(self, view: FrameView, points: Array, rounds: int) -> tuple[Array, Array, Array]:
        """Boxes, scores and points as `_look`'s, each round's crops by the points before."""
        for _ in range(rounds):
            crops = np.stack([upright(p) for p in points])
            points, scores = self._landmarks.predict(view, crops)
        return np.array([_box(crop) for crop in crops]), scores, points


def _agreed(scores: Array, agreement: Array) -> Array:
    """Scores (n,) of the net with the cascade's second opinion."""
    odds = np.minimum(agreement**2, MOST_ODDS)
    return np.asarray(scores * odds / (1 - scores + scores * odds))


def _squares_near(near: Box) -> Array:
    """(n, 3) squares, centre x, y and side, about where `near` is, also a little beside it."""
    half, below = SQUARE_TO_CROP
    side = near.width / (BOX_IN_CROP[2] - BOX_IN_CROP[0]) / half
    # A box's middle lies a little above its crop's, and the square's above both.
    lifted = (BOX_IN_CROP[1] + BOX_IN_CROP[3]) / 2 * half + below
    x, y = (near.left + near.right) / 2, (near.top + near.bottom) / 2 - lifted * side
    beside = RETRY_OFFSET * near.width * np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])
    return np.column_stack([beside + np.array([x, y]), np.full(len(beside), side)])


def _crop(x: float, y: float, half: float) -> Array:
    """Frame px -> [-1, 1] of an upright square around x, y."""
    return np.array([[1 / half, 0, -x / half], [0, 1 / half, -y / half]])


def _box(crop: Array) -> Array:
    """The face's box, left, top, right, bottom in whole frame px, of the crop it stands in."""
    half = 1 / np.sqrt(abs(np.linalg.det(crop[:, :2])))
    centre = np.linalg.solve(crop[:, :2], BOX_IN_CROP.reshape(2, 2).mean(axis=0) - crop[:, 2])
    size = half * (BOX_IN_CROP[2:] - BOX_IN_CROP[:2])
    return np.trunc(np.concatenate([centre - size / 2, centre + size / 2]))


def _last_crop(seen: Face) -> Array:
    """The crop whose `_box` a face has, turned as its brows are."""
    low, high = np.array(seen.box).reshape(2, 2)
    half = (high - low).mean() / (BOX_IN_CROP[2:] - BOX_IN_CROP[:2]).mean()
    x, y = (seen.points[1] - seen.points[0]).astype(np.float64)
    linear = np.array([[x, y], [-y, x]]) / (half * max(1e-6, np.hypot(x, y)))
    shift = BOX_IN_CROP.reshape(2, 2).mean(axis=0) - linear @ (low + high) / 2
    return np.column_stack([linear, shift])


def _distinct(boxes: Array, scores: Array) -> list[int]:
    """Which boxes to keep, so that of those around one face only the surest stays."""
    kept: list[int] = []
    centres, widths = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2] - boxes[:, 0]
    for i in np.argsort(-scores, kind="stable"):
        apart = np.linalg.norm(centres[kept] - centres[i], axis=1)
        if (apart > 0.5 * np.maximum(widths[kept], widths[i])).all():
            kept.append(int(i))
    return sorted(kept)


def _cascade(name: str) -> Cascade:
    folder = Path(cv2.__file__).parent / "data"
    return cv2.CascadeClassifier(str(folder / f"haarcascade_{name}.xml"))
