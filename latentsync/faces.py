"""Face detectors behind one Protocol: a frame in, three points a face out.

Three of them, named by `ModelConfig.detector`; `create` makes one:

    insightface   SCRFD boxes and 106 points, what the published pipeline uses; its model pack is
                  for non-commercial research
    yunet         YuNet by OpenCV: five points, permissive licence
    builtin       the cascades inside OpenCV: nothing to download; upright, frontal faces

A detector looks at each frame by itself and keeps nothing from one to the next. `track` runs one
over a clip.
"""

import contextlib
import io
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync.errors import BackendUnavailable, OptionError, WeightsMismatch, WeightsMissing
from latentsync.types import Face, FloatArray, Frame, Progress, ProgressCallback

__all__ = [
    "PUBLISHED",
    "Builtin",
    "Detector",
    "FaceFilter",
    "InsightFace",
    "Points",
    "YuNet",
    "create",
    "track",
]

log = logging.getLogger(__name__)

Array = NDArray[np.float64]
Grey = NDArray[np.uint8]  # (h, w)
Cascade = Any  # cv2.CascadeClassifier, untyped
Net = Any  # an insightface model, untyped

# Where the template's points lie for a face seen from the front, in eye distances from the eyes:
# taken from the mean of the 68-point annotation scheme.
BROW_ABOVE_EYE = 0.28
NOSE_BELOW_EYES = 0.66

PACK = "buffalo_l"
SCRFD_FILE = "det_10g.onnx"
LANDMARK_FILE = "2d106det.onnx"
SCRFD_SIDE = 512  # px, square, as published
# Of the 106 points; https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/utils/util.py
LEFT_BROW = (43, 48, 49, 51, 50)
RIGHT_BROW = (101, 102, 103, 104, 105)
NOSE_BASE = (74, 77, 83, 86)
GPU_PROVIDER = "CUDAExecutionProvider"
CPU_PROVIDER = "CPUExecutionProvider"

YUNET_FILE = "face_detection_yunet_2023mar.onnx"
YUNET_SIDE = 640  # px, longest side of the picture that it searches
YUNET_OVERLAP = 0.3  # boxes that overlap more than this are one face (OpenCV's default)

# The rest is about the builtin detector. Its cascades answer in squares; lengths and places are in
# such a square's sides, measured on real faces.
SEARCH_SIDE = 480  # px, longest side of the picture that is searched
SEARCH_BORDER = 12  # px added around it, so that a face may reach over the frame's edge
SMALLEST_WINDOW = 24  # px, width of the smallest acceptable face's square in the searched picture
FACE_PATCH = 128  # px, side of the close-up in which a face is looked at again
WINDOWS_AT_HALF = 8  # accepted windows that make a score of 0.5; a clear face has about 100
EYE_PATCH = 192  # px, side of the close-up in which the eyes are looked for
EYE_ROWS = (31, 119)  # px of that close-up
EYE_COLUMNS = ((15, 100), (92, 177))  # px, one eye each
EYE_SIDES = (26, 69)  # px, smallest and largest window
EYE_DROP = 0.03  # how far a pupil lies below the middle of the eye cascades' windows
EYES_IN_SQUARE = np.array([[-0.195, -0.11], [0.195, -0.11]])  # from its centre
FACE_IN_SQUARE = np.array([-0.36, -0.42, 0.36, 0.55])  # left, top, right, bottom from its centre


@dataclass(frozen=True)
class FaceFilter:
    """Which faces are acceptable; the defaults are the published ones.

    Raises:
        OptionError: a bound out of its range.
    """

    min_width: int = 50  # px of the frame
    min_height: int = 80  # px of the frame
    min_aspect: float = 0.2  # width / height
    max_aspect: float = 1.5  # width / height
    min_score: float = 0.5  # 0..1, each detector's own scale

    def __post_init__(self) -> None:
        sizes = min(self.min_width, self.min_height) >= 1
        aspects = 0 <= self.min_aspect <= self.max_aspect
        if not (sizes and aspects and 0 <= self.min_score <= 1):
            wanted = "sizes from 1 px, width/height a range from 0 up, score 0-1"
            raise OptionError(f"the face filter is ({self}); it must be ({wanted})")

    def __str__(self) -> str:
        return (
            f"face >= {self.min_width}x{self.min_height} px, "
            f"width/height {self.min_aspect:g}-{self.max_aspect:g}, score >= {self.min_score:g}"
        )

    def keep(self, boxes: Array, scores: Array) -> list[int]:
        """Which boxes, (n, 4) left, top, right, bottom in whole px, to keep: largest first."""
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        aspect = width / np.maximum(height, 1)
        good = (width >= self.min_width) & (height >= self.min_height)
        good &= (aspect >= self.min_aspect) & (aspect <= self.max_aspect)
        good &= scores >= self.min_score
        # A stable sort: of two equal faces the one found first wins, as published.
        order = np.argsort(-width * height, kind="stable")
        return [int(i) for i in order if good[i]]

    def fits(self, frame: Frame) -> bool:
        """Whether the frame can hold an acceptable face (and is no line of pixels)."""
        height, width = frame.shape[:2]
        line = max(height, width) > 100 * min(height, width)
        return height >= self.min_height and width >= self.min_width and not line


PUBLISHED = FaceFilter()


class Detector(Protocol):
    """Finds faces in one frame. Not for two threads at once."""

    name: str

    def describe(self) -> str:
        """One line for a log or an error: thresholds, sizes, and the device really in use."""
        ...

    def detect(self, frame: Frame, *, rounded: bool = False) -> list[Face]:
        """The acceptable faces of a frame, largest first; an empty list where there is none.

        Boxes are whole pixels. Points are sub-pixel, (0, 0) the centre of the frame's first pixel;
        `rounded` puts them on whole pixels as published (half to even; insightface's 106 points
        are rounded first).
        """
        ...


@dataclass(frozen=True)
class Points:
    """The largest face of every frame of a clip."""

    points: FloatArray  # (n, 3, 2) x, y in frame px, as in `Face`; zeros where no face was found
    found: NDArray[np.bool_]  # (n,)


def create(
    name: str, *, root: Path, filters: FaceFilter = PUBLISHED, gpu: bool = False
) -> Detector:
    """The detector of that name, loaded.

    Args:
        name: "insightface", "yunet" or "builtin".
        root: Folder of the detectors' model files; nothing is ever downloaded into it here.
        filters: Which faces are acceptable.
        gpu: Whether to run on the GPU where the detector can; what came of it is in `describe()`.

    Raises:
        OptionError: no detector has that name.
        WeightsMissing: a model file is not there.
        WeightsMismatch: a model file holds something else.
        BackendUnavailable: insightface is not installed.
    """
    loaders: dict[str, Callable[[], Detector]] = {
        InsightFace.name: lambda: InsightFace(root, filters, gpu=gpu),
        YuNet.name: lambda: YuNet(root, filters),
        Builtin.name: lambda: Builtin(filters),
    }
    if name not in loaders:
        raise OptionError(f"face detector {name!r}; it must be one of {', '.join(loaders)}")
    detector = loaders[name]()
    log.info("face detector: %s", detector.describe())
    return detector


def track(
    frames: Iterable[Frame],
    detector: Detector,
    *,
    rounded: bool = False,
    total: int | None = None,
    progress: ProgressCallback | None = None,
) -> Points:
    """The largest face of every frame, each frame by itself (published).

    `frames` stream by and are not kept. `progress` hears of stage "detect" after each one, out of
    `total`, and may raise to stop. Nothing is smoothed: on real footage two ways to measure an eye
    (builtin's) agree to about 1 % of the eye distance, and smoothing one in time brings it no
    nearer to the other.
    """
    nothing = np.full((3, 2), np.nan, np.float32)

    def largest() -> Iterator[FloatArray]:
        for done, frame in enumerate(frames, start=1):
            faces = detector.detect(frame, rounded=rounded)
            yield faces[0].points if faces else nothing
            if progress:
                progress(Progress("detect", done, total))

    points: FloatArray = np.fromiter(largest(), dtype=np.dtype((np.float32, (3, 2))))
    found: NDArray[np.bool_] = ~np.isnan(points[:, 0, 0])
    points[~found] = 0
    return Points(points=points, found=found)


class InsightFace:
    """SCRFD and its 106 points by onnxruntime, with the published sizes.

    Two files are used, root/models/buffalo_l/det_10g.onnx and 2d106det.onnx; the other nets of the
    pack may lie beside them and are not loaded. Raises as `create` does.
    """

    name = "insightface"

    def __init__(self, root: Path, filters: FaceFilter = PUBLISHED, *, gpu: bool = False) -> None:
        self.filters = filters
        # The files by path: given the pack's name, insightface would fetch what isn't there.
        scrfd, landmark = (
            _existing(root / "models" / PACK / file, self.name, PACK)
            for file in (SCRFD_FILE, LANDMARK_FILE)
        )
        self._scrfd = _insightface_net(scrfd, "detection", gpu)
        self._landmark = _insightface_net(landmark, "landmark_2d_106", gpu)
        self._scrfd.prepare(0, input_size=(SCRFD_SIDE, SCRFD_SIDE), det_thresh=filters.min_score)
        nets = (self._scrfd, self._landmark)
        self._providers = [net.session.get_providers()[0] for net in nets]
        if gpu and self._providers != [GPU_PROVIDER] * len(nets):
            log.warning(
                "insightface was asked to run on the GPU but runs on %s; "
                "install onnxruntime-gpu in place of onnxruntime",
                " + ".join(self._providers),
            )

    def describe(self) -> str:
        providers = " + ".join(dict.fromkeys(self._providers))
        return f"insightface ({PACK} at {SCRFD_SIDE}x{SCRFD_SIDE} on {providers}; {self.filters})"

    def detect(self, frame: Frame, *, rounded: bool = False) -> list[Face]:
        if not self.filters.fits(frame):
            return []
        # insightface expects BGR; published results come from RGB frames, and so do ours.
        rows, _ = self._scrfd.detect(frame)
        boxes, scores = np.trunc(rows[:, :4].astype(np.float64)), rows[:, 4]
        return [
            _face(boxes[i], scores[i], self._points(frame, rows[i], rounded), rounded)
            for i in self.filters.keep(boxes, scores)
        ]

    def _points(self, frame: Frame, row: FloatArray, rounded: bool) -> Array:
        from insightface.app.common import Face as Found

        marks = self._landmark.get(frame, Found(bbox=row[:4])).astype(np.float64)  # (106, 2)
        marks = np.round(marks) if rounded else marks
        groups = (LEFT_BROW, RIGHT_BROW, NOSE_BASE)
        return np.stack([marks[list(group)].mean(axis=0) for group in groups])


class YuNet:
    """YuNet's eyes by `cv2.FaceDetectorYN`, on the CPU; brows and nose base follow from the eyes.

    Raises as `create` does.
    """

    name = "yunet"

    def __init__(
        self, root: Path, filters: FaceFilter = PUBLISHED, *, search_side: int = YUNET_SIDE
    ) -> None:
        self.filters = filters
        self.search_side = search_side
        path = _existing(root / YUNET_FILE, self.name, self.name)
        try:
            self._net = cv2.FaceDetectorYN.create(
                str(path), "", (search_side, search_side), filters.min_score, YUNET_OVERLAP
            )
        except cv2.error as error:
            raise _mismatch(path, "a YuNet model", self.name) from error

    def describe(self) -> str:
        return f"yunet (longest side <= {self.search_side} px, on the CPU; {self.filters})"

    def detect(self, frame: Frame, *, rounded: bool = False) -> list[Face]:
        if not self.filters.fits(frame):
            return []
        small, scale = _shrunk(frame, self.search_side)
        self._net.setInputSize((small.shape[1], small.shape[0]))
        _, rows = self._net.detect(cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
        return [] if rows is None else self._faces(rows, scale, rounded)

    def _faces(self, rows: FloatArray, scale: float, rounded: bool) -> list[Face]:
        """Rows (n, 15): left, top, width, height, two eyes, nose tip, two mouth corners, score."""
        rows64 = rows.astype(np.float64)
        corner, size, scores = rows64[:, :2], rows64[:, 2:4], rows64[:, 14]
        boxes = np.trunc(np.hstack([corner, corner + size]) / scale)
        eyes = rows64[:, 4:8].reshape(-1, 2, 2) / scale
        return [
            _face(boxes[i], scores[i], _points_from_eyes(eyes[i]), rounded)
            for i in self.filters.keep(boxes, scores)
        ]


class Builtin:
    """Haar cascades inside OpenCV, on the CPU: upright faces seen from the front.

    The face cascade searches the shrunk frame; in a close-up of what it finds, every window that it
    accepts is counted and averaged, which gives a steady box and a score (chance accepts few).
    The windows that two eye cascades accept in there give each eye. On real footage both eyes come
    out in 99 % of the frames, to about 1 % of their distance; by the cascades' own grouped answers
    both come out in 85 %. Where they don't, the eyes follow from the box.
    """

    name = "builtin"

    def __init__(self, filters: FaceFilter = PUBLISHED, *, search_side: int = SEARCH_SIDE) -> None:
        self.filters = filters
        self.search_side = search_side
        self._face_cascade = _cascade("frontalface_alt2")
        self._eye_cascades = [_cascade("lefteye_2splits"), _cascade("righteye_2splits")]

    def describe(self) -> str:
        return (
            f"builtin (OpenCV cascades, upright frontal faces, longest side <= "
            f"{self.search_side} px, on the CPU; {self.filters})"
        )

    def detect(self, frame: Frame, *, rounded: bool = False) -> list[Face]:
        if not self.filters.fits(frame):
            return []
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        looks = [self._look(grey, square) for square in self._search(grey)]
        if not looks:
            return []
        boxes, scores, eyes = map(np.array, zip(*looks, strict=True))
        return [
            _face(boxes[i], scores[i], _points_from_eyes(eyes[i]), rounded)
            for i in self.filters.keep(boxes, scores)
        ]

    def _search(self, grey: Grey) -> Array:
        """Squares (n, 3) that may hold a face: centre x, y and side in frame px."""
        smallest = self.filters.min_width / (FACE_IN_SQUARE[2] - FACE_IN_SQUARE[0])
        small, scale = _shrunk(grey, self.search_side, most=SMALLEST_WINDOW / smallest)
        padded = cv2.copyMakeBorder(small, *(SEARCH_BORDER,) * 4, cv2.BORDER_REPLICATE)
        found = _windows(self._face_cascade, padded, 1.2, 1, smallest * scale)
        return (found - [SEARCH_BORDER, SEARCH_BORDER, 0]) / scale

    def _look(self, grey: Grey, square: Array) -> tuple[Array, float, Array]:
        """Box (4,), score 0..1 and eyes (2, 2) of the face in a square."""
        square, windows = self._refine(grey, square)
        eyes, seen = self._eyes(grey, square)
        # Where the eyes aren't seen it takes four times the windows to be as sure of a face.
        evidence = windows if seen else windows / 4
        # The filters were made for boxes that end at cheeks and chin, so they judge such a box.
        box = np.trunc(square[[0, 1, 0, 1]] + FACE_IN_SQUARE * square[2])
        return box, evidence / (evidence + WINDOWS_AT_HALF), eyes

    def _refine(self, grey: Grey, square: Array) -> tuple[Array, int]:
        """The square by the mean of all windows accepted around it, and their number."""
        patch, corner, scale = _close_up(grey, square, 1.6, FACE_PATCH)
        side = square[2] * scale
        found = _windows(self._face_cascade, patch, 1.05, 0, 0.7 * side, 1.35 * side)
        if not len(found):
            return square, 0
        refined = found.mean(axis=0) / scale
        refined[:2] += corner
        return refined, len(found)

    def _eyes(self, grey: Grey, square: Array) -> tuple[Array, bool]:
        """The pupils (2, 2) in frame px, and whether they were seen, not set by the square."""
        patch, corner, scale = _close_up(grey, square, 1.0, EYE_PATCH)
        top, bottom = EYE_ROWS
        eyes = np.full((2, 2), np.nan)
        for i, (left, right) in enumerate(EYE_COLUMNS):
            half = np.ascontiguousarray(patch[top:bottom, left:right])
            seen = [_windows(cascade, half, 1.05, 0, *EYE_SIDES) for cascade in self._eye_cascades]
            # Each of the two is off a little, to its own side: the mean of both is not.
            centres = [np.median(windows[:, :2], axis=0) for windows in seen if len(windows)]
            if centres:
                eyes[i] = (np.mean(centres, axis=0) + np.array([left, top])) / scale + corner
        eyes[:, 1] += EYE_DROP * square[2]
        expected = square[:2] + EYES_IN_SQUARE * square[2]
        plausible = _plausible(eyes, expected)
        return (eyes if plausible else expected), plausible


def _existing(path: Path, detector: str, download: str) -> Path:
    if path.is_file():
        return path
    wanted = f"the {detector} detector wants it: run `latentsync download {download}`"
    raise WeightsMissing(f"{path} is not there; {wanted}")


def _mismatch(path: Path, wanted: str, download: str) -> WeightsMismatch:
    fix = f"delete it and run `latentsync download {download}`"
    return WeightsMismatch(f"{path} is not {wanted}; {fix}")


def _insightface_net(path: Path, task: str, gpu: bool) -> Net:
    """One net of an insightface pack, its chatter on stdout kept off."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            import onnxruntime
            from insightface.model_zoo import get_model
        except ImportError as error:
            raise BackendUnavailable(
                f"the insightface detector can't be loaded ({error}); it wants insightface 2.1 "
                "and onnx: run `pip install onnx` and `pip install --no-deps insightface==2.1`"
            ) from error
        usable = gpu and GPU_PROVIDER in onnxruntime.get_available_providers()
        providers = [GPU_PROVIDER, CPU_PROVIDER] if usable else [CPU_PROVIDER]
        try:
            # One session for all sizes, as in the release that the published pipeline uses.
            net = get_model(str(path), providers=providers, static_shape_sessions=False)
        except Exception as error:  # onnx's and onnxruntime's errors share no other base
            raise _mismatch(path, f"an ONNX model ({type(error).__name__})", PACK) from error
    if getattr(net, "taskname", None) != task:
        raise _mismatch(path, f"insightface's {task} net", PACK)
    return net


def _face(box: Array, score: float, points: Array, rounded: bool) -> Face:
    left, top, right, bottom = map(float, box)
    points = np.round(points) if rounded else points
    return Face((left, top, right, bottom), float(score), points.astype(np.float32))


def _points_from_eyes(eyes: Array) -> Array:
    """The template's points (3, 2) by the mean shape, laid along the line through two eyes."""
    x, y = eyes[1] - eyes[0]
    down = np.array([-y, x])  # a quarter turn clockwise in the picture
    brows = eyes - BROW_ABOVE_EYE * down
    return np.vstack([brows, eyes.mean(axis=0) + NOSE_BELOW_EYES * down])


def _shrunk(picture: Any, side: int, most: float = 1.0) -> tuple[Any, float]:  # noqa: ANN401
    """The picture by a scale of at most 1 and `most` that makes its longest side `side` or less."""
    scale = min(1.0, most, side / max(picture.shape[:2]))
    if scale == 1:
        return picture, scale
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), scale


def _cascade(name: str) -> Cascade:
    folder = Path(cv2.__file__).parent / "data"
    return cv2.CascadeClassifier(str(folder / f"haarcascade_{name}.xml"))


def _windows(
    cascade: Cascade, picture: Grey, step: float, neighbours: int, least: float, most: float = 0
) -> Array:
    """The square windows (n, 3) that a cascade accepts: centre x, y and side, px of the picture.

    Their sides grow by `step` from `least` to `most` (0: the picture's). With `neighbours` they are
    grouped, and groups with fewer windows dropped; with 0 each is given.
    """
    found = cascade.detectMultiScale(
        picture, step, neighbours, minSize=(int(least),) * 2, maxSize=(int(most),) * 2
    )
    rows = np.asarray(found, np.float64).reshape(-1, 4)
    # A window covers pixels x to x + width - 1, and (0, 0) is a pixel's centre.
    return np.column_stack([rows[:, :2] + (rows[:, 2:] - 1) / 2, rows[:, 2]])


def _close_up(grey: Grey, square: Array, margin: float, out: int) -> tuple[Grey, Array, float]:
    """`margin` times the square at `out` px, edges repeated beyond the frame.

    Returns the patch (out, out), and the corner and scale of: frame px = patch px / scale + corner.
    """
    side = math.ceil(square[2] * margin)
    left, top = (math.floor(centre - side / 2) for centre in square[:2])
    below, right = top + side - grey.shape[0], left + side - grey.shape[1]
    patch = grey[max(top, 0) : top + side, max(left, 0) : left + side]
    beyond = (max(-top, 0), max(below, 0), max(-left, 0), max(right, 0))
    patch = cv2.copyMakeBorder(patch, *beyond, cv2.BORDER_REPLICATE)
    method = cv2.INTER_AREA if side > out else cv2.INTER_LINEAR
    scale = out / side
    # Points are pixel centres; corners meet half a pixel before them, in either picture.
    corner = np.array([left, top]) + (0.5 / scale - 0.5)
    return cv2.resize(patch, (out, out), interpolation=method), corner, scale


def _plausible(eyes: Array, expected: Array) -> bool:
    """Whether a pair (2, 2) can be one face's, given where the mean face has them; not with NaN."""
    unit = np.linalg.norm(expected[1] - expected[0])
    off = np.linalg.norm(eyes - expected, axis=1)
    ratio = np.linalg.norm(eyes[1] - eyes[0]) / unit
    return bool(0.75 < ratio < 1.35 and (off < 0.3 * unit).all())
