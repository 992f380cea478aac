"""builtin: OpenCV's cascades propose faces, and the project's own small net locates them."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from latentsync.faces.detectors.base import PUBLISHED, FaceFilter, make_face
from latentsync.faces.detectors.frame_view import Array, FrameLike, FrameView
from latentsync.faces.detectors.landmarks import ANCHORS, FILE, MOUTH, Landmarks, upright
from latentsync.types import Box, Face

__all__ = ["Builtin"]

SEARCH_SIDE = 480  # px, longest side of the picture that is searched
SEARCH_BORDER = 12  # px added around it, for faces that reach over the frame's edge
SCALE_STEP = 1.2  # from one window size to the next
MIN_WINDOW_PX = 24  # px, width of the smallest acceptable face's square in the searched picture
SQUARE_TO_CROP = (0.565, 0.13)  # half a crop's side, and its offset downwards, in squares
BOX_IN_CROP = np.array([-0.65, -0.96, 0.65, 0.78])  # brows to chin and cheek to cheek
EXTRA_ROUNDS = 2  # of the net, after the first
LEAP_THRESHOLD = 0.04  # of the brows' distance: a followed face that moved more gets a third round
RETRY_OFFSET = 0.25  # of a face's width: offsets from its last place that are tried too
MIN_RETRY_SCORE = 0.01  # of the first round; below, there is no second
# Second opinion: the number of a cascade's windows at one place. The odds of the net's score are
# multiplied by (windows / few) ** 2, at most by MOST_ODDS. On photographs where the net is unsure
# (smiles, beards, stage light) its score is 0.15 to 0.5 with 3 to 45 windows; false faces on print
# and walls have 1 or 2, or 6 of the second cascade, which finds more. See
# `benchmarks/photographs.py`.
FEW, FEW_OF_SECOND, MOST_ODDS = 2.3, 5.5, 12.0

Cascade = Any  # cv2.CascadeClassifier, untyped


class Builtin:
    """Haar cascades and a landmark net, on the CPU: upright, roughly frontal faces.

    The cascades propose squares. For each the net returns a score and landmarks, which place the
    crop of the next round. Net and cascade decide together: the more of the cascade's windows
    agree, the lower a score is enough. If no square holds a face, the frame is searched again with
    equalised contrast, then by another cascade.

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
        folder = Path(cv2.__file__).parent / "data"
        self._first, self._second = (
            cv2.CascadeClassifier(f"{folder}/haarcascade_frontalface_{name}.xml")
            for name in ("alt2", "default")
        )
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
        # Near the last place of a face the net needs no cascade.
        proposals = [(_squares_near(near), None)] if near else self._propose(view)
        for squares, agreement in proposals:
            boxes, scores, points = self._measure(view, squares, agreement)
            kept = filters.keep(boxes, scores)
            if kept:
                return [make_face(boxes[i], scores[i], points[i, ANCHORS], rounded) for i in kept]
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
        boxes, scores, points = self._refine(view, points, EXTRA_ROUNDS if leapt else 1)
        kept = self.filters.keep(boxes, scores)
        return [
            make_face(boxes[i], scores[i], points[i, ANCHORS], rounded) if i in kept else None
            for i in range(len(faces))
        ]

    def mouth(self, frame: FrameLike, seen: Face) -> Array:
        """Locate six points (6, 2) of a face's mouth, in px: corners, then lip edges downwards."""
        view = FrameView(frame)
        points, _ = self._landmarks.predict(view, _last_crop(seen)[None])
        _, _, points = self._refine(view, points, EXTRA_ROUNDS)
        return np.asarray(points[0, MOUTH])

    def _propose(self, view: FrameView) -> Iterator[tuple[Array, Array]]:
        """Propose squares (n, 3) that may hold a face: centre x, y and side in px; by search.

        Also returns how well the cascade's windows agree on each, (n,): 1 is neutral.
        """
        smallest = self.filters.min_width / (2 * SQUARE_TO_CROP[0] * 0.65)
        most = round(MIN_WINDOW_PX / smallest * max(view.width, view.height))
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
            found, windows = cascade.detectMultiScale2(picture, SCALE_STEP, 1, minSize=least)
            rows = np.asarray(found, np.float64).reshape(-1, 4)
            # A window covers pixels x to x + width - 1, and (0, 0) is a pixel's centre.
            squares = np.column_stack([rows[:, :2] + (rows[:, 2:] - 1) / 2, rows[:, 2]])
            if len(squares):
                agreement = np.asarray(windows, np.float64).reshape(-1) / few
                yield (squares - [SEARCH_BORDER, SEARCH_BORDER, 0]) / scale, agreement

    def _measure(
        self, view: FrameView, squares: Array, agreement: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Return boxes (n, 4), scores (n,) and points (n, 12, 2) in squares, each face once."""
        half, below = SQUARE_TO_CROP
        crops = np.stack([_crop(x, y + below * side, half * side) for x, y, side in squares])
        points, scores = self._landmarks.predict(view, crops)
        likely = scores > MIN_RETRY_SCORE
        if not likely.any():
            return np.zeros((0, 4)), np.zeros(0), points[likely]
        boxes, scores, points = self._refine(view, points[likely], EXTRA_ROUNDS)
        if agreement is not None:
            odds = np.minimum(agreement[likely] ** 2, MOST_ODDS)
            scores = np.asarray(scores * odds / (1 - scores + scores * odds))
        once = _remove_duplicates(boxes, scores)
        return boxes[once], scores[once], points[once]

    def _refine(self, view: FrameView, points: Array, rounds: int) -> tuple[Array, Array, Array]:
        """Measure faces again, as `_measure` does, each round's crops by the points before."""
        for _ in range(rounds):
            crops = np.stack([upright(p) for p in points])
            points, scores = self._landmarks.predict(view, crops)
        return np.array([_box(crop) for crop in crops]), scores, points


def _squares_near(near: Box) -> Array:
    """Return squares (n, 3), centre x, y and side, at a face's last place and beside it."""
    half, below = SQUARE_TO_CROP
    side = near.width / (BOX_IN_CROP[2] - BOX_IN_CROP[0]) / half
    # A box's middle lies a little above its crop's, and a square's above both.
    lifted = (BOX_IN_CROP[1] + BOX_IN_CROP[3]) / 2 * half + below
    x, y = (near.left + near.right) / 2, (near.top + near.bottom) / 2 - lifted * side
    beside = RETRY_OFFSET * near.width * np.array([(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)])
    return np.column_stack([beside + np.array([x, y]), np.full(len(beside), side)])


def _crop(x: float, y: float, half: float) -> Array:
    """Return the affine frame px -> [-1, 1] of an upright square around x, y."""
    return np.array([[1 / half, 0, -x / half], [0, 1 / half, -y / half]])


def _box(crop: Array) -> Array:
    """Return a face's box, left, top, right, bottom in whole frame px, by its crop."""
    half = 1 / np.sqrt(abs(np.linalg.det(crop[:, :2])))
    centre = np.linalg.solve(crop[:, :2], BOX_IN_CROP.reshape(2, 2).mean(axis=0) - crop[:, 2])
    size = half * (BOX_IN_CROP[2:] - BOX_IN_CROP[:2])
    return np.trunc(np.concatenate([centre - size / 2, centre + size / 2]))


def _last_crop(seen: Face) -> Array:
    """Return the crop whose `_box` a face has, turned like its brows."""
    low, high = np.array(seen.box).reshape(2, 2)
    half = (high - low).mean() / (BOX_IN_CROP[2:] - BOX_IN_CROP[:2]).mean()
    x, y = (seen.points[1] - seen.points[0]).astype(np.float64)
    linear = np.array([[x, y], [-y, x]]) / (half * max(1e-6, np.hypot(x, y)))
    shift = BOX_IN_CROP.reshape(2, 2).mean(axis=0) - linear @ (low + high) / 2
    return np.column_stack([linear, shift])


def _remove_duplicates(boxes: Array, scores: Array) -> list[int]:
    """Select the surest of the boxes around each face."""
    kept: list[int] = []
    centres, widths = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2] - boxes[:, 0]
    for i in np.argsort(-scores, kind="stable"):
        apart = np.linalg.norm(centres[kept] - centres[i], axis=1)
        if (apart > 0.5 * np.maximum(widths[kept], widths[i])).all():
            kept.append(int(i))
    return sorted(kept)
