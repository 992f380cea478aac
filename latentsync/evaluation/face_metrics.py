"""The face metrics: landmark distance (LMD) and identity (CSIM)."""

from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from latentsync.errors import InputError, OptionError, WeightsMismatch
from latentsync.evaluation.clips import EvaluatedClip, FramePair
from latentsync.evaluation.metric import Figure, Metric, Setup
from latentsync.evaluation.mouth_net import CROP
from latentsync.faces import FrameLike
from latentsync.faces.align import face_of
from latentsync.faces.detectors.frame_view import FrameView
from latentsync.faces.detectors.landmarks import ANCHORS, REFERENCE, similarity
from latentsync.runtime.devices import is_cuda, onnx_session
from latentsync.types import Face, FloatArray

__all__ = ["ArcFace", "IdentitySimilarity", "Lmd", "identity_similarity", "landmark_distance"]

Points = NDArray[np.floating]

ARCFACE_FILE = "auxiliary/models/buffalo_l/w600k_r50.onnx"
"""Its place below the weights folder. It is part of InsightFace's pack buffalo_l, which is for
non-commercial research only."""

ARCFACE_SIDE = 112  # px
# Where ArcFace wants pupils and the tip of the nose,
# https://github.com/deepinsight/insightface/blob/f89ecaa/recognition/common/face_align.py
ARCFACE_POINTS = np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366]])
PUPILS_AND_NOSE = [2, 3, 4]  # of `REFERENCE`


class _FaceMetric(Metric):
    """A net's values of the face in both files: a curve of each, and its mean."""

    needs_face = True

    def compare(self, frames: FramePair, face: Face) -> dict[str, float]:
        """Return a frame's values by figure; the face is at the same place in both."""
        raise NotImplementedError

    def update(self, frames: FramePair) -> None:
        if frames.affine is not None:
            for name, value in self.compare(frames, face_of(frames.affine, CROP)).items():
                self.add_to_curve(name, frames.index, value)

    def end(self) -> dict[str, float]:
        return {name: float(np.nanmean(curve)) for name, curve in self.curves.items()}


@runtime_checkable
class MouthDetector(Protocol):
    """A detector that also knows landmarks of the mouth."""

    def mouth(self, frame: FrameLike, seen: Face) -> NDArray[np.float64]:
        """(p, 2) x, y in px of the frame, of a detected face or one by `align.face_of`."""
        ...


class Lmd(_FaceMetric):
    """Distance of the lips' landmarks, of any detector that has some: builtin 6, insightface 20.

    The paper's are 20, by dlib. Compare only figures of one detector.
    """

    figures = (
        Figure("lmd", "px", "lower", "lips' landmarks to the reference's, of one sound"),
        Figure("lmd_norm", "", "lower", "the same, in sizes of the face"),
    )

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        if not isinstance(setup.detector, MouthDetector):
            raise OptionError(
                f"the detector {setup.detector.name} has no landmarks of the lips; take "
                "insightface or builtin"
            )
        self.detector = setup.detector

    def begin(self, clip: EvaluatedClip) -> None:
        super().begin(clip)
        if clip.no_truth:
            raise InputError(clip.no_truth)

    def compare(self, frames: FramePair, face: Face) -> dict[str, float]:
        both = frames.whole, frames.whole_reference
        mouths = [self.detector.mouth(frame, face)[None] for frame in both]
        distance = float(landmark_distance(*mouths)[0])
        _, top, _, bottom = face.box
        return {"lmd": distance, "lmd_norm": distance / (bottom - top)}


class IdentitySimilarity(_FaceMetric):
    figures = (Figure("identity", "", "higher", "ArcFace's cosine to the reference's face"),)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.net = ArcFace(setup.weights / ARCFACE_FILE, gpu=is_cuda(torch.device(setup.device)))

    def compare(self, frames: FramePair, face: Face) -> dict[str, float]:
        both = frames.whole, frames.whole_reference
        embedding, reference = (self.net.embed(frame, face)[None] for frame in both)
        return {"identity": identity_similarity(embedding, reference)}


def landmark_distance(mouths: Points, references: Points) -> NDArray[np.float64]:
    """Measure the mean Euclidean distance of a mouth's landmarks to the reference's, in px.

    "Lip movements generation at a glance", https://arxiv.org/abs/1803.10404: each frame's lips are
    centred on their mean first, so that the face's place doesn't count.

    Args:
        mouths, references: (n, p, 2) x, y, in the same order.

    Returns:
        (n,), one for each frame; the paper's figure is their mean.

    Raises:
        OptionError: other shapes, or a coordinate that is not finite.
    """
    a, b = np.asarray(mouths, np.float64), np.asarray(references, np.float64)
    if a.shape != b.shape or a.ndim != 3 or a.shape[2] != 2 or not a.size:
        raise OptionError(
            f"landmarks are of shapes {a.shape} and {b.shape}; both must be (n, p, 2), of one "
            "detector"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise OptionError("a landmark's place is not finite; leave those frames out")
    apart = (a - a.mean(axis=1, keepdims=True)) - (b - b.mean(axis=1, keepdims=True))
    return np.asarray(np.linalg.norm(apart, axis=2).mean(axis=1))


class ArcFace:
    """Face recognition, https://arxiv.org/abs/1801.07698: any .onnx of (1, 3, 112, 112) -> (1, d).

    The net was trained on faces aligned by five points. Here they are aligned by three, placed
    where an average face has them then, so figures are similar to others', not equal.

    Args:
        gpu: whether to run on the GPU where onnxruntime can.

    Raises:
        WeightsMissing: there is no such file.
        WeightsMismatch: the file is no ONNX model, or a net with other inputs or outputs.
        BackendUnavailable: onnxruntime is not installed.
    """

    def __init__(self, path: Path | str, *, gpu: bool = False) -> None:
        path = Path(path)
        self._session = onnx_session(path, gpu=gpu, download="eval")
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        wanted = [3, ARCFACE_SIDE, ARCFACE_SIDE]
        if len(inputs) != 1 or list(inputs[0].shape[1:]) != wanted or len(outputs[0].shape) != 2:
            raise WeightsMismatch(
                f"{path} takes {[one.shape for one in inputs]} and gives {outputs[0].shape}; "
                f"ArcFace takes (1, 3, {ARCFACE_SIDE}, {ARCFACE_SIDE}) and gives (1, d)"
            )
        self._input = inputs[0].name
        onto = similarity(REFERENCE[PUPILS_AND_NOSE], ARCFACE_POINTS)
        self._anchors = REFERENCE[ANCHORS] @ onto[:, :2].T + onto[:, 2]

    def embed(self, frame: FrameLike, face: Face) -> FloatArray:
        """Embed a face, (d,) float32 of length 1: the cosine of two says how similar they are."""
        side = ARCFACE_SIDE
        affine = similarity(face.points.astype(np.float64), self._anchors)
        pixels, affine = FrameView(frame).under(affine, (0, 0, side, side), side)
        crop = cv2.warpAffine(pixels, affine, (side, side))
        tensor = (crop.transpose(2, 0, 1)[None].astype(np.float32) - 127.5) / 127.5
        vector = np.asarray(self._session.run(None, {self._input: tensor})[0], np.float32).ravel()
        return np.asarray(vector / max(1e-6, float(np.linalg.norm(vector))), np.float32)


def identity_similarity(embeddings: Points, references: Points) -> float:
    """Mean cosine of embeddings to the references': 1 the same person, about 0 two people.

    Also called CSIM.

    Args:
        embeddings: (n, d), one for each frame.
        references: (n, d) of the same frames, or (d,) one for all.

    Raises:
        OptionError: other shapes, or an embedding of length 0.
    """
    a, b = np.asarray(embeddings, np.float64), np.asarray(references, np.float64)
    if a.ndim != 2 or not a.size or b.shape not in (a.shape, a.shape[1:]):
        raise OptionError(
            f"embeddings are of shapes {a.shape} and {b.shape}; wanted (n, d) and the same or (d,)"
        )
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=-1)
    if not (lengths > 0).all():
        raise OptionError("an embedding has length 0; leave the frames without a face out")
    return float(((a * b).sum(axis=1) / lengths).mean())
