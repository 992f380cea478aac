"""Face embeddings, which tell people apart where their places don't."""

from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import cv2
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from latentsync.errors import WeightsMismatch, WeightsMissing
from latentsync.faces.align import BOX_HEIGHT, BOX_WIDTH, TEMPLATE
from latentsync.faces.detectors.frame_view import Array, FrameLike, FrameView
from latentsync.faces.detectors.landmarks import similarity
from latentsync.types import Face, FloatArray

__all__ = ["CELLS", "FILE", "Embedder", "PatchEmbedding", "face_patch", "normalise"]

COLUMNS, ROWS = 12, 15  # cells around the face
KEPT_ROWS = 12  # without those below the chin, where a lower third may be
CELLS = 3 * COLUMNS * KEPT_ROWS  # numbers in a patch: lightness, then a and b of each cell
WIDTH_RATIO = 1.6  # of the patch to the template's box, to include hair
CELL_PX = 4  # averaged for a cell's side, at least
MAX_OVERSAMPLE = 8  # a patch is cut at up to this many times that, then averaged
SKIN = (142, 145)  # a, b of common skin in OpenCV's Lab
LIGHTNESS, COLOUR = 25.5, 8.0  # levels of L, and of a and b, per unit of the patch

FILE = Path(__file__).resolve().parents[3] / "weights" / "demo" / "likeness.safetensors"


@runtime_checkable
class Embedder(Protocol):
    """Embeds a face as a vector of length 1; the cosine of two is their similarity.

    A detector with these members is used; for the others there is `PatchEmbedding`.
    """

    same: float  # cosine from which two are one person, wherever they are
    other: float  # cosine below which they are two people, even at one place

    def embed(self, frame: FrameLike, face: Face) -> FloatArray: ...


class PatchEmbedding:
    """Lightness and colour of 12 x 12 cells of the aligned face, with hair, projected.

    The projection keeps what differs between people and drops what varies for one person: light,
    pose, expression and background. It was fitted to drawn people by scripts/train_likeness.py;
    benchmarks/likeness.py measures how well it tells people apart.

    Raises, when it is first used:
        WeightsMissing: no such file.
        WeightsMismatch: the file holds something else.
    """

    same, other = 0.94, 0.82

    def __init__(self, file: Path = FILE) -> None:
        self._file = file

    def embed(self, frame: FrameLike, face: Face) -> FloatArray:
        return self.project(face_patch(frame, face.points))

    def project(self, patches: FloatArray) -> FloatArray:
        """Project patches (..., CELLS) to vectors of length 1."""
        mean, axes = self._projection
        return normalise((patches - mean) @ axes)

    @cached_property
    def _projection(self) -> tuple[FloatArray, FloatArray]:
        """Load the mean patch (CELLS,) and the axes (CELLS, n)."""
        remedy = "restore it, or make it anew with scripts/train_likeness.py"
        if not self._file.is_file():
            raise WeightsMissing(f"{self._file} is missing; it is part of the repository: {remedy}")
        try:
            arrays = load_file(self._file)
            mean, axes = (arrays[name].astype(np.float32) for name in ("mean", "axes"))
            if mean.shape != (CELLS,) or axes.shape[0] != CELLS:
                raise SafetensorError(f"shapes {mean.shape} and {axes.shape}")
        except (SafetensorError, KeyError) as error:
            raise WeightsMismatch(
                f"{self._file} does not hold the projection of faces; {remedy}"
            ) from error
        return mean, axes


def face_patch(frame: FrameLike, points: FloatArray) -> FloatArray:
    """Return the patch (CELLS,) around a face with these points (3, 2)."""
    size = np.array([COLUMNS, ROWS]) * CELL_PX
    share = np.array(TEMPLATE) / (BOX_WIDTH, BOX_HEIGHT)
    affine = similarity(points.astype(np.float64), ((share - 0.5) / WIDTH_RATIO + 0.5) * size)
    shrink = 1 / np.sqrt(max(1e-6, abs(np.linalg.det(affine[:, :2]))))  # px of the frame for one
    factor = int(np.clip(np.ceil(shrink), 1, MAX_OVERSAMPLE))
    width, height = (size * factor).tolist()
    pixels, affine = FrameView(frame).under(affine * factor, (0, 0, width, height), width)
    large = cv2.warpAffine(pixels, affine, (width, height), borderMode=cv2.BORDER_REPLICATE)
    small = cv2.resize(large, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA)[:KEPT_ROWS]
    lab = cv2.cvtColor(small, cv2.COLOR_RGB2LAB).astype(np.float32)
    colour = (lab[..., 1:] - np.array(SKIN, np.float32)) / COLOUR
    return np.concatenate([(lab[..., 0] / LIGHTNESS).ravel(), colour.ravel()])


def normalise(vectors: FloatArray | Array) -> FloatArray:
    """Scale vectors (..., n) to length 1."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / np.maximum(1e-6, length), np.float32)
