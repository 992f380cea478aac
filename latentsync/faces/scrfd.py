"""insightface: SCRFD boxes and 106 points, as the published pipeline uses them.

The only importer of that library, and only when the detector is made.
"""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from latentsync.errors import BackendUnavailable
from latentsync.faces.base import PUBLISHED, Array, FaceFilter, around, existing, face, mismatch
from latentsync.types import Box, Face, FloatArray, Frame

__all__ = ["GPU_PROVIDER", "LANDMARK_FILE", "SCRFD_FILE", "InsightFace"]

log = logging.getLogger(__name__)

Net = Any  # an insightface model, untyped

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
            existing(root / "models" / PACK / file, self.name, PACK)
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

    def detect(self, frame: Frame, *, rounded: bool = False, near: Box | None = None) -> list[Face]:
        filters = self.filters.lenient() if near else self.filters
        part, corner = around(frame, near) if near else (frame, np.zeros(2))
        if not filters.fits(part):
            return []
        # insightface expects BGR; published results come from RGB frames, and so do ours.
        rows, _ = self._scrfd.detect(part, det_thresh=filters.min_score)
        rows[:, :4] += np.tile(corner, 2)
        boxes, scores = np.trunc(rows[:, :4].astype(np.float64)), rows[:, 4]
        return [
            face(boxes[i], scores[i], self._points(frame, rows[i], rounded), rounded)
            for i in filters.keep(boxes, scores)
        ]

    def _points(self, frame: Frame, row: FloatArray, rounded: bool) -> Array:
        from insightface.app.common import Face as Found

        marks = self._landmark.get(frame, Found(bbox=row[:4])).astype(np.float64)  # (106, 2)
        marks = np.round(marks) if rounded else marks
        groups = (LEFT_BROW, RIGHT_BROW, NOSE_BASE)
        return np.stack([marks[list(group)].mean(axis=0) for group in groups])


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
            raise mismatch(path, f"an ONNX model ({type(error).__name__})", PACK) from error
    if getattr(net, "taskname", None) != task:
        raise mismatch(path, f"insightface's {task} net", PACK)
    return net
