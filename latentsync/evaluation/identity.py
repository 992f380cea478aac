"""Is it still the same person? The cosine of what a face recognition net makes of two faces."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync.errors import OptionError, WeightsMismatch
from latentsync.faces import FrameLike
from latentsync.faces.detectors.frame_view import FrameView
from latentsync.faces.detectors.landmarks import ANCHORS, REFERENCE, similarity
from latentsync.runtime.devices import onnx_session
from latentsync.types import Face, FloatArray

__all__ = ["ARCFACE_FILE", "ArcFace", "identity_similarity"]

ARCFACE_FILE = "auxiliary/models/buffalo_l/w600k_r50.onnx"
"""Its place below the weights folder; of InsightFace's pack buffalo_l, which is for non-commercial
research only."""

SIDE = 112  # px
# Where ArcFace wants pupils and the tip of the nose,
# https://github.com/deepinsight/insightface/blob/f89ecaa/recognition/common/face_align.py
PLACES = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366]])
PUPILS_AND_NOSE = [2, 3, 4]  # of `REFERENCE`


class ArcFace:
    """Face recognition by a net of one's own: any .onnx of (1, 3, 112, 112) -> (1, d).

    https://arxiv.org/abs/1801.07698. It is trained on faces aligned by five points; ours have
    three, which lie where a common face has them then. So the figures are alike, not equal, to
    those of others.

    Args:
        gpu: whether to run on the GPU where onnxruntime can.

    Raises:
        WeightsMissing: no such file.
        WeightsMismatch: no ONNX model, or a net of another form.
        BackendUnavailable: onnxruntime is not installed.
    """

    def __init__(self, path: Path | str, *, gpu: bool = False) -> None:
        path = Path(path)
        self._session = onnx_session(path, gpu=gpu, download="eval")
        puts, gets = self._session.get_inputs(), self._session.get_outputs()
        if len(puts) != 1 or list(puts[0].shape[1:]) != [3, SIDE, SIDE] or len(gets[0].shape) != 2:
            raise WeightsMismatch(
                f"{path} takes {[put.shape for put in puts]} and gives {gets[0].shape}; ArcFace "
                f"takes (1, 3, {SIDE}, {SIDE}) and gives (1, d)"
            )
        self._input = puts[0].name
        onto = similarity(REFERENCE[PUPILS_AND_NOSE], PLACES)
        self._goal = REFERENCE[ANCHORS] @ onto[:, :2].T + onto[:, 2]

    def embed(self, frame: FrameLike, face: Face) -> FloatArray:
        """(d,) float32 of length 1: the cosine of two says how alike their faces are."""
        affine = similarity(face.points.astype(np.float64), self._goal)
        pixels, affine = FrameView(frame).under(affine, (0, 0, SIDE, SIDE), SIDE)
        crop = cv2.warpAffine(pixels, affine, (SIDE, SIDE))
        tensor = (crop.transpose(2, 0, 1)[None].astype(np.float32) - 127.5) / 127.5
        vector = np.asarray(self._session.run(None, {self._input: tensor})[0], np.float32).ravel()
        return np.asarray(vector / max(1e-6, float(np.linalg.norm(vector))), np.float32)


def identity_similarity(looks: NDArray[np.floating], reference: NDArray[np.floating]) -> float:
    """Mean cosine of embeddings to those of the reference: 1 the same, about 0 two people.

    Also called CSIM.

    Args:
        looks: (n, d), one a frame.
        reference: (n, d) of the same frames, or (d,) one for all.

    Raises:
        OptionError: other shapes, or an embedding of length 0.
    """
    a, b = np.asarray(looks, np.float64), np.asarray(reference, np.float64)
    if a.ndim != 2 or not a.size or b.shape not in (a.shape, a.shape[1:]):
        raise OptionError(
            f"embeddings are of shapes {a.shape} and {b.shape}; wanted (n, d) and the same or (d,)"
        )
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=-1)
    if not (lengths > 0).all():
        raise OptionError("an embedding has length 0; leave the frames without a face out")
    return float(((a * b).sum(axis=1) / lengths).mean())
