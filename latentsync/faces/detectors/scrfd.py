"""insightface: SCRFD boxes and 106 points, as the published pipeline uses them.

The only importer of that library, and only when the detector is made.
"""

import contextlib
import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from latentsync.errors import BackendUnavailable
from latentsync.faces.detectors.base import (
    PUBLISHED,
    FaceFilter,
    make_face,
    require_file,
    weights_mismatch,
)
from latentsync.faces.detectors.frame_view import Array, FrameLike, FrameView
from latentsync.faces.detectors.landmarks import similarity
from latentsync.runtime.devices import GPU_PROVIDER, onnx_providers
from latentsync.types import Box, Face, FloatArray

__all__ = ["LANDMARK_FILE", "SCRFD_FILE", "InsightFace"]

log = logging.getLogger(__name__)

Net = Any  # an insightface model, untyped

PACK = "buffalo_l"
SCRFD_FILE = "det_10g.onnx"
LANDMARK_FILE = "2d106det.onnx"
SCRFD_SIDE = 512  # px, square, as published
LANDMARK_SIDE = 192  # px, square, insightface's crop for the 106 points
LANDMARK_REACH = 1.5  # side of that crop in the frame, in longer sides of the box
MAX_BEND = 0.15  # of the brows' distance: the most that a face's points deform in a frame
# Of the 106 points; https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/utils/util.py
LEFT_BROW = (43, 48, 49, 51, 50)
RIGHT_BROW = (101, 102, 103, 104, 105)
NOSE_BASE = (74, 77, 83, 86)
MOUTH = slice(52, 72)


class InsightFace:
    """SCRFD and 106 landmarks by onnxruntime, with the published sizes.

    Two files are used, root/models/buffalo_l/det_10g.onnx and 2d106det.onnx; the other nets of the
    pack may lie beside them and are not loaded. Raises as `create` does.
    """

    name = "insightface"

    def __init__(self, root: Path, filters: FaceFilter = PUBLISHED, *, gpu: bool = False) -> None:
        self.filters = filters
        # By path: given the pack's name, insightface would download missing files.
        scrfd, landmark = (
            require_file(root / "models" / PACK / file, self.name, PACK)
            for file in (SCRFD_FILE, LANDMARK_FILE)
        )
        self._scrfd = _insightface_net(scrfd, "detection", gpu)
        self._landmark = _insightface_net(landmark, "landmark_2d_106", gpu)
        self._scrfd.prepare(0, input_size=(SCRFD_SIDE, SCRFD_SIDE))
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

    def detect(
        self, frame: FrameLike, *, rounded: bool = False, near: Box | None = None
    ) -> list[Face]:
        filters, view = self.filters.lenient() if near else self.filters, FrameView(frame)
        # insightface itself shrinks a whole array, as published.
        part = view.around(near) if near else view.whole or view.small(SCRFD_SIDE)
        if not filters.fits(*part.size):
            return []
        # insightface expects BGR; published results come from RGB frames, and so do ours.
        rows, _ = self._scrfd.detect(part.pixels, det_thresh=filters.min_score)
        rows[:, :4] = part.out(rows[:, :4].reshape(-1, 2, 2)).reshape(-1, 4)
        boxes, scores = np.trunc(rows[:, :4].astype(np.float64)), rows[:, 4]
        return [
            make_face(boxes[i], scores[i], self._points(view, rows[i, :4], rounded), rounded)
            for i in filters.keep(boxes, scores)
        ]

    def follow(
        self, frame: FrameLike, faces: Sequence[Face], *, rounded: bool = False
    ) -> list[Face | None]:
        """Follow faces by the 106 points alone, found in the face's last box.

        These have no score, so their shape must stay what it was. The box moves with them.
        """
        view = FrameView(frame)
        return [self._follow_one(view, one, rounded) for one in faces]

    def _follow_one(self, view: FrameView, seen: Face, rounded: bool) -> Face | None:
        before = seen.points.astype(np.float64)
        points = self._points(view, np.array(seen.box, np.float32), rounded)
        motion = similarity(before, points)
        bent = np.linalg.norm(before @ motion[:, :2].T + motion[:, 2] - points, axis=1).max()
        if bent > MAX_BEND * np.linalg.norm(points[1] - points[0]):
            return None
        low, high = np.array(seen.box).reshape(2, 2)
        middle = motion[:, :2] @ (low + high) / 2 + motion[:, 2]
        half = (high - low) / 2 * np.sqrt(np.linalg.det(motion[:, :2]))
        box = np.concatenate([middle - half, middle + half])
        if not self.filters.keep(box[None], np.array([seen.score])):
            return None
        return make_face(box, seen.score, points, rounded)

    def mouth(self, frame: FrameLike, seen: Face) -> Array:
        """Locate the 20 points (20, 2) of a face's mouth in its box, in px."""
        return self._marks(FrameView(frame), np.array(seen.box, np.float32))[MOUTH]

    def _points(self, view: FrameView, box: FloatArray, rounded: bool) -> Array:
        """Return the template's three points (3, 2) of the face in a box."""
        marks = self._marks(view, box)
        marks = np.round(marks) if rounded else marks
        groups = (LEFT_BROW, RIGHT_BROW, NOSE_BASE)
        return np.stack([marks[list(group)].mean(axis=0) for group in groups])

    def _marks(self, view: FrameView, box: FloatArray) -> Array:
        """Return the 106 points (106, 2) of the face in a box."""
        from insightface.app.common import Face as Found

        low, high = box.astype(np.float64).reshape(2, 2)
        middle, half = (low + high) / 2, LANDMARK_REACH / 2 * (high - low).max()
        part = view.part(middle - half, middle + half, 2 * half / LANDMARK_SIDE)
        bbox = ((box.reshape(2, 2) - part.corner) / part.step).astype(np.float32).ravel()
        marks = self._landmark.get(part.pixels, Found(bbox=bbox)).astype(np.float64)  # (106, 2)
        return part.out_centred(marks)


def _insightface_net(path: Path, task: str, gpu: bool) -> Net:
    """Load one net of an insightface pack, without its output on stdout."""
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            import onnxruntime
            from insightface.model_zoo import get_model
        except ImportError as error:
            raise BackendUnavailable(
                f"the insightface detector can't be loaded ({error}); it wants insightface 2.1 "
                "and onnx: run `pip install onnx` and `pip install --no-deps insightface==2.1`"
            ) from error
        providers = onnx_providers(onnxruntime.get_available_providers(), gpu=gpu)
        try:
            # One session for all sizes, as in the release that the published pipeline uses.
            net = get_model(str(path), providers=providers, static_shape_sessions=False)
        except Exception as error:  # onnx's and onnxruntime's errors share no other base
            raise weights_mismatch(path, f"an ONNX model ({type(error).__name__})", PACK) from error
    if getattr(net, "taskname", None) != task:
        raise weights_mismatch(path, f"insightface's {task} net", PACK)
    return net
