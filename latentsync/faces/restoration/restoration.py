"""Super-resolution of a face, between the network and the paste.

frame -> the face as the net knows faces, the drawn mouth in it -> net -> the crop, enlarged
                                                                   -> over the plain crop
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

TILE, OVERLAP = 320, 32  # px that a piece of a frame gives, and that it sees beyond them
MIN_WEIGHT = 1 / 64  # of the plain crop, where neither is laid on and only rounding shows it


class Restorer(Protocol):
    """A net that draws pictures anew, sharper or larger; see `restorers.load_restorer`."""

    name: str
    licence: str
    scale: int  # output side over input side of the net
    side: int | None  # px, the input's side where it is fixed; None: any size
    faces: bool  # made for aligned faces

    def restore(self, pictures: Tensor) -> Tensor:
        """Uint8 (n, H, W, 3) -> uint8 (n, H * scale, W * scale, 3)."""
        ...


class FaceRestorer:
    """Restores one face through one run, as crops of `sr_ratio` times the network's resolution.

    What is restored is the face from the brows to the chin. Where the frame shows it larger than
    the net sees it, the net would take detail away: there less of it is restored outside the mouth,
    nothing from twice the size on.

    Args:
        resolution: px, side of the crops that the affines are for.
        mouths: whether there will be crops with a mouth drawn by the network; else the frame's own
            face is restored, however large it is.
    """

    def __init__(
        self, restorer: Restorer, resolution: int, options: Options, *, mouths: bool = True
    ) -> None:
        self.resolution, self.side = resolution, round(options.sr_ratio * resolution)
        self._restorer, self._mouths = restorer, mouths
        self._face, self._mouth = (
            restored_share(self.side, options.mask_smooth, whole=whole) for whole in (True, False)
        )
        laid = paste_share if options.paste == "mouth" else _all
        self._drawn = laid(self.side) if mouths else np.zeros_like(self._face)
        over = 255 * laid(resolution) * align.soft_edge(resolution)
        self._over = over.astype(np.uint8)
        self._steady = TemporalSmoother(options.sr_stability)

    def __call__(
        self,
        pictures: Sequence[Picture],
        affines: FloatArray,
        drawn: Tensor | None = None,
        *,
        fresh: bool = True,
    ) -> Tensor:
        """The face of each frame, to be pasted with `share`.

        Args:
            pictures: f frames that follow each other.
            affines: (f, 2, 3) float32, frame px -> px of the crop at `resolution`.
            drawn: (f, R, R, 3) uint8, the crops with their new mouths.
            fresh: whether the first frame doesn't follow the last one of the call before.

        Returns:
            (f, side, side, 3) uint8.

        Raises:
            LatentSyncError: the device has too little memory.
        """
        views = [self._view(affine) for affine in affines]
        seen = [_shown(*one) for one in zip(views, pictures, strict=True)]
        squares = [align.square(affine, self.resolution, self.side) for affine in affines]
        if drawn is None:
            plain = [_shown(*one) for one in zip(squares, pictures, strict=True)]
        else:
            seen = [
                self._with_mouth(*one)
                for one in zip(seen, views, affines, drawn.numpy(), strict=True)
            ]
            plain = [_resized(crop, self.side) for crop in drawn.numpy()]
        restored = np.stack(
            [
                align.warped(face, view.enlarged(*face.shape[1::-1]).onto(square), square.size)
                for face, view, square in zip(self._restored(seen), views, squares, strict=True)
            ]
        )
        restored = self._steady(restored, np.stack(plain), fresh=fresh)
        return torch.from_numpy(
            np.stack([self._blended(*one) for one in zip(restored, plain, affines, strict=True)])
        )

    def share(self, affine: FloatArray) -> Tensor:
        """(side, side) float32 in [0, 1]: how much of a frame's crop is laid on it."""
        region = self._region(affine)
        return torch.from_numpy(region + self._drawn - region * self._drawn)

    def _view(self, affine: FloatArray) -> align.CropView:
        """What the net sees."""
        if self._restorer.side is not None:
            return align.portrait(affine, self.resolution, self._restorer.side)
        return align.upright(affine, self.resolution)

    def _restored(self, seen: list[Frame]) -> Frame:
        try:
            return self._restorer.restore(torch.from_numpy(np.stack(seen))).cpu().numpy()
        except torch.OutOfMemoryError as error:
            raise LatentSyncError(
                f"too little memory to restore {seen[0].shape[1]} x {seen[0].shape[0]} px with "
                f"{self._restorer.name}; free some, use batch 1, or a smaller net"
            ) from error

    def _with_mouth(
        self, seen: Frame, view: align.CropView, affine: FloatArray, drawn: Frame
    ) -> Frame:
        """The net's picture with the drawn mouth in it."""
        both = np.dstack([drawn, self._over])
        onto = align.square(affine, self.resolution).onto(view)
        laid = align.warped(both, onto, view.size)
        weight = laid[..., 3].astype(np.float32)
        return np.asarray(
            cv2.blendLinear(np.ascontiguousarray(laid[..., :3]), seen, weight, 255 - weight)
        )

    def _region(self, affine: FloatArray) -> FloatArray:
        """(side, side) float32 in [0, 1]: how much of the restored face counts."""
        if not self._mouths:
            return self._face
        around = float(np.clip(2 * self._view(affine).zoom - 1, 0, 1))
        return np.maximum(self._mouth, around * self._face)

    def _blended(self, restored: Frame, plain: Frame, affine: FloatArray) -> Frame:
        """Restored over plain over frame, as one crop that with `share` looks like these three."""
        region = self._region(affine)
        below = (1 - region) * np.maximum(self._drawn, MIN_WEIGHT)
        return np.asarray(cv2.blendLinear(restored, plain, region, below), np.uint8)


def _shown(view: align.CropView, picture: Picture) -> Frame:
    box = view.box((picture.width, picture.height))
    return view.cut(picture.rgb(box), box)


def _resized(crop: Frame, side: int) -> Frame:
    return np.asarray(cv2.resize(crop, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def _all(side: int) -> FloatArray:
    return np.ones((side, side), np.float32)


def enlarged(picture: Frame, restorer: Restorer) -> Frame:
    """(H, W, 3) uint8 -> (H * scale, W * scale, 3) uint8, by a net that takes any picture.

    Piece by piece, so that memory doesn't grow with the picture. Each piece is made with 32 px
    around it: what a net draws there depends on no more than that, but for faint traces.
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
