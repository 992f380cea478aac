"""Measure two mouths side by side with MediaPipe FaceMesh; `real_faces.py` runs this program.

    python face_mesh.py WIDTH HEIGHT RESULT.npz < PAIRS

PAIRS are raw RGB frames, WIDTH * HEIGHT * 3 bytes each: an original's, then the generated one, and
so on. RESULT has one row a pair, NaN where no face was found; column 0 is the original:

    opening, width  (n, 2) gap of the inner lips, distance of the mouth's corners, in eye distances
    eyes            (n, 2) distance of the eyes' centres, px
    sharpness       (n, 2) variance of the Laplacian of the mouth's region
    lips, skin      (n, 2, 3) mean CIE Lab of the lips, and of the skin around them

Both pictures of a pair are looked at where the original has its lips. It imports nothing of this
project, so that it runs in an environment of its own (mediapipe 0.10.21 wants numpy 1).
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import mediapipe
import numpy as np

# Numbers of FaceMesh's points, in rings from the mouth's right corner over the upper lip.
OUTER_LIPS = [61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 375, 321, 405, 314, 17, 84, 181, 91]
OUTER_LIPS += [146]
INNER_LIPS = [78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308, 324, 318, 402, 317, 14, 87, 178, 88]
INNER_LIPS += [95]
TOP, BOTTOM, RIGHT, LEFT = 13, 14, 61, 291  # inner lips; outer corners
EYES = [[33, 133], [362, 263]]  # corners of each
POINTS = 468  # without the irises

CONFIDENCE = 0.4  # from which a face counts; FaceMesh's default of 0.5 loses blurred frames
SEARCH_FRAMES = 25  # from one search of the whole frame to the next
MARGIN = 2.2  # side of what is cut out around the face, in sides of its box
CUT_SIDE = 512  # px to which that is scaled: FaceMesh loses small faces
MOUTH_SIZE = (128, 98)  # px of the mouth's region
MOUTH_WIDTH = 1.3  # eye distances that it is wide
SKIN_RING = (2, 9)  # px from the lips, inner and outer edge of the skin that is looked at


class Mesh:
    """FaceMesh on the frames of one clip, in order."""

    def __init__(self) -> None:
        solutions = mediapipe.solutions
        self.search = solutions.face_detection.FaceDetection(
            model_selection=1, min_detection_confidence=CONFIDENCE
        )
        self.mesh = solutions.face_mesh.FaceMesh(
            max_num_faces=1,
            refine_landmarks=True,
            min_detection_confidence=CONFIDENCE,
            min_tracking_confidence=CONFIDENCE,
        )
        self.frames = 0
        self.box: tuple[int, int, int, int] | None = None  # left, top, right, bottom, px

    def points(self, frame: np.ndarray) -> np.ndarray:
        """(468, 2) x, y in px of the next frame; NaN without a face."""
        if self.box is None or self.frames % SEARCH_FRAMES == 0:
            self.box = self._find(frame) or self.box
        self.frames += 1
        height, width = frame.shape[:2]
        left, top, right, bottom = self.box or (0, 0, width, height)
        cut = frame[top:bottom, left:right]
        scale = CUT_SIDE / max(cut.shape[:2])
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        found = self.mesh.process(cv2.resize(cut, None, fx=scale, fy=scale, interpolation=method))
        if not found.multi_face_landmarks:
            return np.full((POINTS, 2), np.nan)
        landmarks = found.multi_face_landmarks[0].landmark[:POINTS]
        shares = np.array([(point.x, point.y) for point in landmarks])
        return shares * (right - left, bottom - top) + (left, top)

    def _find(self, frame: np.ndarray) -> tuple[int, int, int, int] | None:
        """The square around the widest face, as far as it lies in the frame."""
        height, width = frame.shape[:2]
        boxes = [
            one.location_data.relative_bounding_box
            for one in self.search.process(frame).detections or []
        ]
        if not boxes:
            return None
        box = max(boxes, key=lambda box: box.width)
        half = max(box.width * width, box.height * height) * MARGIN / 2
        x, y = (box.xmin + box.width / 2) * width, (box.ymin + box.height / 2) * height
        left, top = max(0, int(x - half)), max(0, int(y - half))
        return left, top, min(width, int(x + half)), min(height, int(y + half))


def eye_centres(points: np.ndarray) -> np.ndarray:
    """(2, 2) px."""
    return points[EYES].mean(axis=1)


def distances(points: np.ndarray) -> tuple[float, float, float]:
    """Opening and width in eye distances, and that distance in px."""
    eyes = np.linalg.norm(np.subtract(*eye_centres(points)))
    opening = np.linalg.norm(points[TOP] - points[BOTTOM])
    width = np.linalg.norm(points[RIGHT] - points[LEFT])
    return opening / eyes, width / eyes, eyes


def looks(frame: np.ndarray, points: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """Sharpness of the mouth's region, and mean Lab of lips and skin, with the lips at `points`."""
    across = np.subtract(*eye_centres(points)[::-1])
    eyes = np.linalg.norm(across)
    right = across / eyes
    scale = MOUTH_SIZE[0] / (MOUTH_WIDTH * eyes)
    turned = scale * np.array([right, [-right[1], right[0]]])
    centre = points[[RIGHT, LEFT]].mean(axis=0)
    affine = np.column_stack([turned, np.array(MOUTH_SIZE) / 2 - turned @ centre])
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    region = cv2.warpAffine(frame, affine, MOUTH_SIZE, flags=method)

    def filled(ring: list[int]) -> np.ndarray:
        corners = points[ring] @ turned.T + affine[:, 2]
        return cv2.fillPoly(np.zeros(region.shape[:2], np.uint8), [corners.astype(np.int32)], 1)

    mouth = filled(OUTER_LIPS)
    near, far = (cv2.dilate(mouth, np.ones((2 * px + 1, 2 * px + 1))) for px in SKIN_RING)
    lab = cv2.cvtColor(region.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    lips, skin = (lab[mask == 1].mean(axis=0) for mask in (mouth - filled(INNER_LIPS), far - near))
    grey = cv2.cvtColor(region, cv2.COLOR_RGB2GRAY).astype(np.float32)
    return float(cv2.Laplacian(grey, cv2.CV_32F).var()), lips, skin


def pairs(width: int, height: int) -> Iterator[np.ndarray]:
    """(2, height, width, 3) uint8 of each pair on standard input."""
    size = 2 * width * height * 3
    while len(data := sys.stdin.buffer.read(size)) == size:
        yield np.frombuffer(data, np.uint8).reshape(2, height, width, 3)


def main() -> None:
    width, height = map(int, sys.argv[1:3])
    meshes = Mesh(), Mesh()
    rows: dict[str, list[object]] = {
        name: [] for name in ("opening", "width", "eyes", "sharpness", "lips", "skin")
    }
    nowhere = np.full(3, np.nan)
    for pair in pairs(width, height):
        points = [mesh.points(frame) for mesh, frame in zip(meshes, pair)]  # noqa: B905 - Python 3.9
        found = np.isfinite(points[0]).all()
        seen = [looks(frame, points[0]) if found else (np.nan, nowhere, nowhere) for frame in pair]
        measured = [*zip(*map(distances, points)), *zip(*seen)]  # noqa: B905 - Python 3.9
        for row, value in zip(rows.values(), measured):  # noqa: B905 - Python 3.9
            row.append(value)
    np.savez(Path(sys.argv[3]), **{name: np.array(row, float) for name, row in rows.items()})


if __name__ == "__main__":
    main()
