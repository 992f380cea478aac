"""Restoration of a face, between the network and the paste.

frame -> the face in the net's own layout, with the generated mouth -> net -> enlarged crop
                                                               -> blended over the plain crop
"""

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from latentsync.errors import LatentSyncError
from latentsync.faces import align
from latentsync.faces.mask import paste_share, restored_share
from latentsync.faces.restoration.deflicker import TemporalSmoother
from latentsync.options import Options
from latentsync.types import FloatArray, Frame, Picture

__all__ = ["FaceRestorer", "Restorer", "enlarged"]

TILE, OVERLAP = 320, 32  # px of a tile, and around it
MIN_WEIGHT = 1 / 64  # of the plain crop, where neither crop is pasted


class Restorer(Protocol):
    """A net that makes pictures sharper or larger; see `nets.load_restorer`."""

    name: str
    licence: str
    scale: int  # output side over input side of the net
    side: int | None  # px, of the input; None: any size
    faces: bool  # made for aligned faces

    def restore(self, pictures: Tensor) -> Tensor:
        """Restore uint8 (n, H, W, 3) to uint8 (n, H * scale, W * scale, 3)."""
        ...


class FaceRestorer:
    """Restores one face through one run, as crops of `sr_ratio` times the network's resolution.

    The face is restored from the brows to the chin. Where it is larger in the frame than in the
    net's input, the net would remove detail: there less of it is restored outside the mouth,
    nothing from twice the size on.

    Args:
        resolution: px, side of the crops that the affines are for.
        mouths: whether crops with generated mouths are restored; else the frame's own face is,
            however large it is.
    """

    def __init__(
        self, restorer: Restorer, resolution: int, options: Options, *, mouths: bool = True
    ) -> None:
        self.resolution, self.side = resolution, round(options.sr_ratio * resolution)
        self._restorer, self._mouths = restorer, mouths
        self._face, self._mouth = (
            restored_share(self.side, options.mask_smooth, whole=whole) for whole in (True, False)
        )
        mouth_only = options.paste == "mouth"
        self._drawn = np.zeros_like(self._face)
        if mouths:
            self._drawn = paste_share(self.side) if mouth_only else np.ones_like(self._face)
        over = 255 * (paste_share(resolution) if mouth_only else 1) * align.soft_edge(resolution)
        self._over = over.astype(np.uint8)
        self._smoother = TemporalSmoother(options.sr_stability)

    def __call__(
        self,
        pictures: Sequence[Picture],
        affines: FloatArray,
        drawn: Tensor | None = None,
        *,
        fresh: bool = True,
    ) -> Tensor:
        """Restore the face of each frame, to be pasted with `share`.

        Args:
            pictures: f successive frames.
            affines: (f, 2, 3) float32, frame px -> px of the crop at `resolution`.
            drawn: (f, R, R, 3) uint8, the crops with generated mouths.
            fresh: whether the first frame doesn't follow the last one of the previous call.

        Returns:
            (f, side, side, 3) uint8.

        Raises:
            LatentSyncError: the device has too little memory.
        """
        views = [self._view(affine) for affine in affines]
        squares = [align.square(affine, self.resolution, self.side) for affine in affines]
        inputs, plain = [], []
        for i, picture in enumerate(pictures):
            face = _cut(views[i], picture)
            if drawn is None:
                plain.append(_cut(squares[i], picture))
            else:
                crop, size = drawn[i].numpy(), (self.side, self.side)
                face = self._add_mouth(face, views[i], affines[i], crop)
                large = cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC)
                plain.append(np.asarray(large, np.uint8))
            inputs.append(face)
        restored = np.stack(
            [
                align.warped(face, view.enlarged(*face.shape[1::-1]).onto(square), square.size)
                for face, view, square in zip(self._restore(inputs), views, squares, strict=True)
            ]
        )
        restored = self._smoother(restored, np.stack(plain), fresh=fresh)
        blended = [self._blend(*one) for one in zip(restored, plain, affines, strict=True)]
        return torch.from_numpy(np.stack(blended))

    def share(self, affine: FloatArray) -> Tensor:
        """Return the weight of a frame's crop in the paste; (side, side) float32 in [0, 1]."""
        region = self._region(affine)
        return torch.from_numpy(region + self._drawn - region * self._drawn)

    def _view(self, affine: FloatArray) -> align.CropView:
        """Return the view of a face that the net gets."""
        if self._restorer.side is not None:
            return align.portrait(affine, self.resolution, self._restorer.side)
        return align.upright(affine, self.resolution)

    def _restore(self, faces: list[Frame]) -> Frame:
        try:
            return self._restorer.restore(torch.from_numpy(np.stack(faces))).cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise LatentSyncError(
                f"too little memory to restore {faces[0].shape[1]} x {faces[0].shape[0]} px with "
                f"{self._restorer.name}; free some, use batch 1, or a smaller net"
            ) from error

    def _add_mouth(
        self, face: Frame, view: align.CropView, affine: FloatArray, drawn: Frame
    ) -> Frame:
        """Blend the generated mouth into the net's view of the face."""
        both = np.dstack([drawn, self._over])
        onto = align.square(affine, self.resolution).onto(view)
        laid = align.warped(both, onto, view.size)
        weight = laid[..., 3].astype(np.float32)
        return np.asarray(
            cv2.blendLinear(np.ascontiguousarray(laid[..., :3]), face, weight, 255 - weight)
        )

    def _region(self, affine: FloatArray) -> FloatArray:
        """Return the weight of restored over plain; (side, side) float32 in [0, 1]."""
        if not self._mouths:
            return self._face
        around = float(np.clip(2 * self._view(affine).zoom - 1, 0, 1))
        return np.maximum(self._mouth, around * self._face)

    def _blend(self, restored: Frame, plain: Frame, affine: FloatArray) -> Frame:
        """Blend restored over plain, as one crop that is pasted with `share`."""
        region = self._region(affine)
        below = (1 - region) * np.maximum(self._drawn, MIN_WEIGHT)
        return np.asarray(cv2.blendLinear(restored, plain, region, below), np.uint8)


def _cut(view: align.CropView, picture: Picture) -> Frame:
    box = view.box((picture.width, picture.height))
    return view.cut(picture.rgb(box), box)


def enlarged(picture: Frame, restorer: Restorer) -> Frame:
    """Enlarge (H, W, 3) to (H * scale, W * scale, 3) uint8, by a net that takes any picture.

    Tile by tile, so that memory doesn't grow with the picture. Each tile is made with 32 px around
    it; what lies further away has hardly any influence.
    """
    height, width = picture.shape[:2]
    scale = restorer.scale
    large = np.empty((height * scale, width * scale, 3), np.uint8)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            above, before = max(0, top - OVERLAP), max(0, left - OVERLAP)
            seen = picture[above : top + TILE + OVERLAP, before : left + TILE + OVERLAP]
            drawn = restorer.restore(torch.from_numpy(np.ascontiguousarray(seen))[None])[0]
            part = large[scale * top : scale * (top + TILE), scale * left : scale * (left + TILE)]
            y, x = scale * (top - above), scale * (left - before)
            part[...] = drawn[y : y + part.shape[0], x : x + part.shape[1]].cpu().numpy()
    return large
