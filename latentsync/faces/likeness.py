"""How alike two faces are: what tells people apart where their places don't."""

from typing import Protocol, runtime_checkable

import cv2
import numpy as np

from latentsync.align import BOX_HEIGHT, BOX_WIDTH, TEMPLATE
from latentsync.faces.landmarks import similarity
from latentsync.faces.view import Shown, View
from latentsync.types import Face, FloatArray

__all__ = ["Embedder", "Patch"]

WIDTH, HEIGHT = 6, 8  # cells of the patch
OVERSAMPLE = 4  # px a cell's side, averaged
WIDER = 1.4  # times the template's box, so that hair and neck are in it
SKIN = (142, 145)  # a, b of common skin in OpenCV's Lab, about which colours are told apart
COLOUR = 8.0  # levels of a or b that weigh as much as a standard deviation of lightness


@runtime_checkable
class Embedder(Protocol):
    """What turns a face into a vector of length 1; the cosine of two says how alike they are.

    A detector that has these three is asked; for the others there is `Patch`.
    """

    same: float  # a cosine from which on two are one person, wherever they are
    other: float  # a cosine below which they are two, even at the same place

    def embed(self, frame: Shown, face: Face) -> FloatArray: ...


class Patch:
    """Lightness and colour of 6 x 8 cells of the aligned face, with hair and neck.

    It tells apart who is in one shot, where hair and light stay. Of drawn people everybody who came
    back reached `same` by their mean looks, and 2 % of the pairs of different people did. In
    another light it says little.
    """

    same, other = 0.85, 0.6

    def embed(self, frame: Shown, face: Face) -> FloatArray:
        size = np.array([WIDTH, HEIGHT]) * OVERSAMPLE
        share = np.array(TEMPLATE) / (BOX_WIDTH, BOX_HEIGHT)
        affine = similarity(face.points.astype(np.float64), ((share - 0.5) / WIDER + 0.5) * size)
        width, height = map(int, size)
        pixels, affine = View(frame).under(affine, (0, 0, width, height), width)
        crop = cv2.warpAffine(pixels, affine, (width, height), borderMode=cv2.BORDER_REPLICATE)
        cells = cv2.resize(crop, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        lab = cv2.cvtColor(cells, cv2.COLOR_RGB2LAB).astype(np.float32)
        light = (lab[..., 0] - lab[..., 0].mean()) / max(1, lab[..., 0].std())
        vector = np.concatenate([light.ravel(), ((lab[..., 1:] - SKIN) / COLOUR).ravel()])
        return (vector / max(1e-6, np.linalg.norm(vector))).astype(np.float32)
