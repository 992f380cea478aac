"""Occlusion: a hand or a microphone in front of the mouth stays on top, by a user's own net.

No such net is part of this project; `OnnxOccluder` loads a file. It has one of two common forms,
which is recognised by the net's output for a black picture of S x S px:

    one mask        (1, S, S, 3) -> (1, S, S, 1)   BGR in [0, 1], XSeg's convention
                    (1, 3, S, S) -> (1, 1, S, S)   RGB in [0, 1]
                    1 where the face is visible, 0 where it is covered or there is none
    face parsing    (1, 3, S, S) -> (1, 19, S, S)  RGB by ImageNet's mean and deviation -> logits,
                    BiSeNet's order of CelebAMask-HQ's classes; further outputs don't matter

For both a neck is no face, just as a hand. `uncovered` tells them apart.
"""

from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from latentsync.errors import WeightsMismatch
from latentsync.faces.align import crop_size
from latentsync.runtime.devices import onnx_session
from latentsync.types import FloatArray

__all__ = ["Occluder", "OnnxOccluder", "uncovered"]

Mask = NDArray[np.bool_]

FREE_SIDE = 512  # px, for nets that take any size; face parsing is trained on it
VISIBLE_THRESHOLD = 0.5  # of a mask: above is the face
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of R, G, B
CLASSES = 19
# https://github.com/zllrunning/face-parsing.PyTorch: skin, brows, eyes, nose, mouth, lips. And what
# may cover a face: anything unknown, glasses, cloth, a hat. Hair (a beard may be labelled so), ears
# and neck are neither.
FACE = (1, 2, 3, 4, 5, 10, 11, 12, 13)
FRONT = (0, 6, 16, 18)

# Of the crop's side. With these values nothing covers any of 300 drawn heads, turned by up to 29
# degrees and nodding by up to 11.
MOUTH = (0.5, 0.57, 0.16, 0.14)  # its usual place: x, y and half axes of an ellipse
MIN_SPOT = 0.03  # smaller spots are no face
HULL_MARGIN = 0.06  # by which a jaw may lie inside its hull
EDGE = 0.012  # distance at which the soft edge begins; it ends at three times that
SPREAD = 1.1  # beyond the hull: path over the straight way out, that is up to 25 degrees aside


class Occluder(Protocol):
    """Finds the visible part of a face; may be used by several threads at once."""

    def describe(self) -> str:
        """Describe it in one line for logs: the net, and the device in use."""
        ...

    def visible(self, crops: Tensor) -> Tensor:
        """Return (f, R, R) float32 in [0, 1]: 0 where something covers the face, else 1.

        Args:
            crops: (f, 3, R, R) float32 in [-1, 1] on the CPU, faces as `align.cut_face` cuts them.
        """
        ...


class OnnxOccluder:
    """A segmentation net by onnxruntime, of a form described above.

    Args:
        path: an .onnx file.
        gpu: whether to run on the GPU if onnxruntime can; `describe()` has the device in use.

    Raises:
        WeightsMissing: the file is not there.
        WeightsMismatch: it is no ONNX model, or a net of another form.
        BackendUnavailable: onnxruntime is not installed.
    """

    def __init__(self, path: Path | str, *, gpu: bool = False) -> None:
        self._path = Path(path)
        self._session = onnx_session(self._path, gpu=gpu)
        put = self._session.get_inputs()[0]
        self._input, self._channels_last = put.name, put.shape[3:] == [3]
        sides = put.shape[1:3] if self._channels_last else put.shape[2:4]
        self._side = next((side for side in sides if isinstance(side, int)), FREE_SIDE)
        self._parses = self._is_parser(put.shape)

    def describe(self) -> str:
        form = "face parsing" if self._parses else "one mask"
        provider = self._session.get_providers()[0]
        return f"{self._path.name} ({form} at {self._side}x{self._side} on {provider})"

    def visible(self, crops: Tensor) -> Tensor:
        size = crops.shape[-2:]
        return torch.stack([torch.from_numpy(uncovered(*self._segment(c, size))) for c in crops])

    def _segment(self, crop: Tensor, size: torch.Size) -> tuple[Mask, Mask]:
        """Segment a (3, R, R) crop into (R, R) masks of its visible face and what may cover it."""
        width, height = crop_size(self._side)  # of the face in its own proportions
        width = self._side * width // height
        left = (self._side - width) // 2
        upright = F.interpolate(crop[None], (self._side, width), mode="bilinear", antialias=True)
        padding = (left, self._side - width - left, 0, 0)
        answer = self._run(F.pad(upright, padding, mode="replicate") / 2 + 0.5)
        if self._parses:
            labels = answer[0].argmax(axis=0)
            layers = np.stack([np.isin(labels, FACE), np.isin(labels, FRONT)]).astype(np.float32)
        else:
            mask = answer.reshape(self._side, self._side)
            layers = np.stack([mask, 1 - mask])
        own = torch.from_numpy(layers)[None, :, :, left : left + width]
        face, front = F.interpolate(own, size, mode="bilinear")[0].numpy() > VISIBLE_THRESHOLD
        return face, front

    def _run(self, picture: Tensor) -> FloatArray:
        """Return the net's first output for (1, 3, S, S) float32 RGB in [0, 1]."""
        if self._channels_last:
            picture = picture.flip(1).permute(0, 2, 3, 1)
        elif self._parses:
            mean, deviation = (torch.tensor(each)[:, None, None] for each in (MEAN, DEVIATION))
            picture = (picture - mean) / deviation
        return self._session.run(None, {self._input: picture.contiguous().numpy()})[0]

    def _is_parser(self, shape: list[int | str | None]) -> bool:
        """Find out whether the net parses faces; WeightsMismatch if it is of neither form."""
        square = (self._side, self._side)
        black = (1, *square, 3) if self._channels_last else (1, 3, *square)
        one = (1, *square, 1) if self._channels_last else (1, 1, *square)
        forms = {one: False} if self._channels_last else {one: False, (1, CLASSES, *square): True}
        try:
            answers = self._session.run(None, {self._input: np.zeros(black, np.float32)})
            parses = forms[np.asarray(answers[0], np.float32).shape]
        except Exception as error:  # onnxruntime's errors share no other base
            outputs = [put.shape for put in self._session.get_outputs()]
            raise WeightsMismatch(
                f"{self._path} maps {shape} to {outputs}, and no known occluder does: that maps "
                "(1, S, S, 3) to (1, S, S, 1), or (1, 3, S, S) to (1, 1, S, S) or (1, 19, S, S), "
                "all float32; choose another file"
            ) from error
        return parses


def uncovered(face: Mask, front: Mask) -> FloatArray:
    """Compute the weight of a generated face from the visible part of the frame's own face.

    The face is assumed to fill the convex hull of its visible part and the mouth's usual place.
    Only what lies in the hull can cover it: below the chin there is no face either, but a generated
    mouth may open that far. The cover is continued outwards, so that a hand isn't cut off at the
    chin that it hides.

    Args:
        face: (R, R), where a face is visible.
        front: (R, R), what may cover one, or be the neck.

    Returns:
        (R, R) float32: 0 on what covers the face, 1 elsewhere, with a soft edge around the cover.
    """
    side = len(face)
    inside = _hull(face)
    covered = inside & front
    covered |= ~inside & (_distance(covered) <= SPREAD * _distance(inside))
    return np.clip((_distance(covered) / (EDGE * side) - 1) / 2, 0, 1)


def _hull(face: Mask) -> Mask:
    """Shrink the hull of a face's visible part and of the mouth's usual place; (R, R)."""
    side = len(face)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (round(MIN_SPOT * side) // 2 * 2 + 1,) * 2)
    seen = cv2.morphologyEx(face.astype(np.uint8), cv2.MORPH_OPEN, disc)
    x, y, across, down = (round(part * side) for part in MOUTH)
    cv2.ellipse(seen, (x, y), (across, down), 0, 0, 360, 1, cv2.FILLED)
    hull = cv2.fillConvexPoly(np.zeros_like(seen), cv2.convexHull(cv2.findNonZero(seen)), 1)
    return _distance(hull == 0) > HULL_MARGIN * side


def _distance(mask: Mask) -> FloatArray:
    """Return (R, R) float32 px from each pixel to the mask, huge if that is empty."""
    rest = (~mask).astype(np.uint8)
    return np.asarray(cv2.distanceTransform(rest, cv2.DIST_L2, cv2.DIST_MASK_PRECISE))
