"""Two tasks for `loop.fit`: the landmark net and the mouth net, trained on drawn faces.

Pictures are drawn once and augmented at every step: as a camera, a codec or a generator may change
them, and, for landmarks, with a crop that is off its place.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from latentsync.faces.detectors.landmark_net import SIDE, PointNet, Regressor
from latentsync.faces.detectors.landmarks import ANCHORS, COUNT, MIRRORED, cut, upright
from latentsync.training.crops import to_tensor
from latentsync.training.synthetic.geometry import chain
from latentsync.training.synthetic.scenes import Portraits
from latentsync.types import FloatArray, Frame

__all__ = ["MEASURES", "LandmarkTask", "MouthClips", "MouthNetTask", "correlations", "degrade"]

MEASURES = ("opening", "width", "rounding")

Pictures = NDArray[np.uint8]  # (n, side, side, 3)
Array = NDArray[np.float64]
Rng = np.random.Generator

FACELESS_SHARE = 0.3  # of a batch
CLOSE_SHARE = 0.6  # of faces, in crops as they are in the detector's later rounds


@dataclass(frozen=True)
class MouthClips:
    """Aligned crops of many clips and their true mouths."""

    pixels: NDArray[np.uint8]  # (clips, frames, side, side, 3) RGB
    mouths: FloatArray  # (clips, frames, 3): MEASURES, as `synthetic.measure` has them


class LandmarkTask:
    """Trains a PointNet: points of portraits, and no face in faceless pictures."""

    def __init__(self, faces: Portraits, faceless: Pictures, check: Portraits, batch: int) -> None:
        self.net: nn.Module = PointNet(COUNT)
        self.faces, self.faceless, self.check, self.batch = faces, faceless, check, batch
        self.weights = torch.ones(COUNT)
        self.weights[ANCHORS] = 2

    def losses(self, generator: torch.Generator) -> Mapping[str, Tensor]:
        rng = np.random.default_rng(int(torch.randint(1 << 62, (1,), generator=generator)))
        empty = int(FACELESS_SHARE * self.batch)
        faces = [self._face(rng) for _ in range(self.batch - empty)]
        shown = [picture for picture, _ in faces] + [self._no_face(rng) for _ in range(empty)]
        truth = torch.from_numpy(np.stack([points for _, points in faces]))
        points, logits = self.net(to_tensor(np.stack(shown)))
        off = F.smooth_l1_loss(points[: len(faces)], truth, reduction="none", beta=0.02)
        seen = torch.arange(self.batch) < len(faces)
        return {
            "points": 10 * (off.mean(dim=(0, 2)) * self.weights).mean(),
            "face": 0.3 * F.binary_cross_entropy_with_logits(logits, seen.float()),
        }

    def validate(self) -> Mapping[str, float]:
        """Error and bias of the anchors in slightly misplaced crops, by the brows' distance."""
        rng = np.random.default_rng(0)
        samples = [
            _aligned(picture, points, _nearby(rng, close=True))
            for picture, points in zip(self.check.pixels, self.check.points, strict=True)
        ]
        truth = np.stack([points for _, points in samples])
        found, logits = self.net(to_tensor(np.stack([picture for picture, _ in samples])))
        brows_apart = np.linalg.norm(truth[:, 1] - truth[:, 0], axis=1)[:, None, None]
        off = (found.numpy() - truth)[:, ANCHORS] / brows_apart
        return {
            "error": float(np.linalg.norm(off, axis=2).mean()),
            "bias": float(np.abs(off.mean(axis=0)).max()),
            "seen": float((logits > 0).float().mean()),
        }

    def _face(self, rng: Rng) -> tuple[Frame, FloatArray]:
        at = rng.integers(len(self.faces.pixels))
        picture, points = self.faces.pixels[at], self.faces.points[at]
        if rng.random() < 0.3:
            other = self.faceless[rng.integers(len(self.faceless))]
            picture = _on_background(picture, points, other)
        picture, points = _aligned(picture, points, _nearby(rng, close=rng.random() < CLOSE_SHARE))
        picture, points = _bent(rng, picture, points)
        if rng.random() < 0.5:
            picture, points = picture[:, ::-1], points[MIRRORED] * np.array([-1, 1], np.float32)
        if rng.random() < 0.15:
            picture = _covered(rng, picture, self.faceless)
        return degrade(rng, picture, strength=1.0), points

    def _no_face(self, rng: Rng) -> Frame:
        """A part of a faceless picture, or of a portrait cut so that no face is left in it."""
        kind = rng.random()
        if kind < 0.5:
            first, second = self.faceless[rng.integers(len(self.faceless), size=2)]
            share = min(1.0, rng.uniform(0.5, 1.5))  # half of them mixed
            picture = cv2.addWeighted(first, share, second, 1 - share, 0)
            side = len(picture) * rng.uniform(0.3, 1)
            x, y = rng.uniform(side / 2, len(picture) - side / 2, 2)
            crop = np.array([[2 / side, 0, -2 * x / side], [0, 2 / side, -2 * y / side]])
            return degrade(rng, cut(picture, crop), strength=1.0)
        at = rng.integers(len(self.faces.pixels))
        change = _nearby(rng, close=True)
        if kind < 0.75:  # far off to a side, or far too near
            angle = rng.uniform(0, 2 * np.pi)
            change[:, 2] += np.array([np.cos(angle), np.sin(angle)]) * rng.uniform(0.8, 1.2)
            if rng.random() < 0.3:
                change[:] *= rng.uniform(2.2, 3.5)
        picture, _ = _aligned(self.faces.pixels[at], self.faces.points[at], change)
        if kind >= 0.75:  # upside down, or its pieces in another order
            picture = picture[::-1] if rng.random() < 0.3 else _shuffled(rng, picture)
        return degrade(rng, picture, strength=1.0)


class MouthNetTask:
    """Trains a Regressor: opening, width and rounding of the mouth in aligned crops."""

    def __init__(self, clips: MouthClips, check: MouthClips, batch: int) -> None:
        net = Regressor(len(MEASURES))
        self.pixels = clips.pixels.reshape(-1, *clips.pixels.shape[2:])
        self.mouths = torch.from_numpy(clips.mouths.reshape(-1, len(MEASURES)))
        self.spread = self.mouths.std(dim=0)
        net.mean.copy_(self.mouths.mean(dim=0))
        net.std.copy_(self.spread)
        self.net: nn.Module = net
        self.check, self.batch = check, batch

    def losses(self, generator: torch.Generator) -> Mapping[str, Tensor]:
        rng = np.random.default_rng(int(torch.randint(1 << 62, (1,), generator=generator)))
        chosen = rng.integers(len(self.pixels), size=self.batch)
        crops = np.stack([self._crop(rng, self.pixels[i]) for i in chosen])
        measured = self.net(to_tensor(crops))
        off = (measured - self.mouths[chosen]) / self.spread
        return {"measures": F.smooth_l1_loss(off, torch.zeros_like(off), beta=0.3)}

    def validate(self) -> Mapping[str, float]:
        """Correlations with the truth: the mean over clips."""
        found = correlations(self.net, self.check.pixels, self.check.mouths)
        return dict(zip(MEASURES, found.tolist(), strict=True))

    def _crop(self, rng: Rng, pixels: Frame) -> Frame:
        """The crop as a slightly different alignment would have it, at the net's size."""
        side = pixels.shape[0]
        spread = rng.normal(0, 0.02, (2, 3)) + np.eye(2, 3)
        to_edges = np.array([[2 / side, 0, 1 / side - 1], [0, 2 / side, 1 / side - 1]])
        picture = cut(pixels, chain(spread, to_edges))
        picture = picture[:, ::-1] if rng.random() < 0.5 else picture
        return degrade(rng, picture, strength=0.6)


def correlations(net: nn.Module, pixels: Pictures, mouths: FloatArray) -> FloatArray:
    """(3,) correlation of measured and true mouths within a clip, the mean over clips.

    Args:
        pixels: (clips, frames, side, side, 3).
        mouths: (clips, frames, 3).
    """
    clips = []
    for crops, truth in zip(pixels, mouths, strict=True):
        small = [cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for crop in crops]
        with torch.inference_mode():
            measured = net(to_tensor(np.stack(small))).numpy()
        clips.append([np.corrcoef(a, b)[0, 1] for a, b in zip(measured.T, truth.T, strict=True)])
    return np.nanmean(np.array(clips), axis=0).astype(np.float32)


def degrade(rng: Rng, picture: Frame, strength: float) -> Frame:
    """Change a small picture (h, w, 3) as light, lens, camera and codec do."""
    side = picture.shape[0]
    colour = picture.astype(np.float32)
    mixing = np.eye(3) + rng.normal(0, 0.06 * strength, (3, 3))
    if rng.random() < 0.25 * strength:
        mixing = np.tile([0.3, 0.59, 0.11], (3, 1)) * rng.uniform(0.8, 1.2, (3, 1))
    colour = colour @ mixing.T.astype(np.float32)
    if rng.random() < 0.5 * strength:  # light from a side
        y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j].astype(np.float32)
        angle, depth = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.6)
        colour *= (1 + depth * (np.cos(angle) * x + np.sin(angle) * y))[..., None]
    gain, lift = np.exp(rng.normal(0, 0.25 * strength)), rng.normal(0, 18 * strength)
    colour = np.clip((colour - 128) * gain + 128 + lift, 0, 255)
    colour = 255 * (colour / 255) ** np.float32(np.exp(rng.normal(0, 0.25 * strength)))
    if rng.random() < 0.35:
        low = int(side * rng.uniform(0.4, 1))
        small = cv2.resize(colour, (low, low), interpolation=cv2.INTER_AREA)
        back = (cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(2)]
        colour = cv2.resize(small, (side, side), interpolation=back)
    if rng.random() < 0.35:
        blur = rng.uniform(0.3, 1.4, 2)
        colour = cv2.GaussianBlur(colour, (0, 0), sigmaX=blur[0], sigmaY=blur[1])
    if rng.random() < 0.4:
        colour = colour + rng.standard_normal(colour.shape, np.float32) * rng.uniform(0, 14)
    degraded = np.clip(colour + 0.5, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        quality = int(rng.integers(15, 90))
        _, data = cv2.imencode(".jpg", degraded, [cv2.IMWRITE_JPEG_QUALITY, quality])
        degraded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return degraded


def _nearby(rng: Rng, *, close: bool) -> Array:
    """(2, 3) a small error of a crop's place: as the net's own (close), or as a cascade's."""
    if close:
        angle, size, shift = rng.normal(0, 0.04), rng.normal(0, 0.04), rng.normal(0, 0.04, 2)
    else:
        angle, size = rng.uniform(-0.5, 0.5), rng.uniform(-0.25, 0.25)
        shift = rng.uniform(-0.28, 0.28, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.diag(np.exp(rng.normal(0, 0.04, 2)))  # faces differ more than drawn ones do
    return np.column_stack([turn @ stretch * np.exp(size), shift])


def _aligned(picture: Frame, points: FloatArray, change: Array) -> tuple[Frame, FloatArray]:
    """The face upright in a crop, then moved by `change`; the points in the crop's [-1, 1]."""
    crop = chain(change, upright(points))
    return cut(picture, crop), (points @ crop[:, :2].T + crop[:, 2]).astype(np.float32)


def _bent(rng: Rng, picture: Frame, points: FloatArray) -> tuple[Frame, FloatArray]:
    """Picture and points through one smooth small deformation."""
    side = picture.shape[0]
    coarse = rng.normal(0, rng.uniform(0, 0.045), (4, 4, 2)).astype(np.float32)
    bend = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    half = side / 2
    maps = (x + bend[..., 0] * half, y + bend[..., 1] * half)
    moved = cv2.remap(picture, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    goal = points.copy()
    for _ in range(3):  # invert the bend at each point by fixed-point iteration
        at = np.clip(((goal + 1) * half).astype(int), 0, side - 1)
        goal = points - bend[at[:, 1], at[:, 0]]
    return np.asarray(moved, np.uint8), goal


def _on_background(picture: Frame, points: FloatArray, other: Frame) -> Frame:
    """Put the head before another background, which begins softly somewhere in the hair."""
    crop = upright(points)
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    u, v = (x * row[0] + y * row[1] + row[2] for row in crop)
    away = np.sqrt((u / 0.95) ** 2 + ((v - 0.05) / 1.1) ** 2)
    share = np.clip((away - 0.95) * 6, 0, 1)[..., None]
    return (picture + (other - picture.astype(np.float32)) * share).astype(np.uint8)


def _covered(rng: Rng, picture: Frame, others: Pictures) -> Frame:
    """Cover a part of the face with another picture."""
    side = picture.shape[0]
    width, height = rng.integers(side // 8, side // 2, 2)
    left, top = rng.integers(0, side - width), rng.integers(0, side - height)
    covered = picture.copy()
    other = others[rng.integers(len(others))]
    covered[top : top + height, left : left + width] = other[:height, :width]
    return covered


def _shuffled(rng: Rng, picture: Frame) -> Frame:
    """Cut into 3 x 3 tiles and put each in another place."""
    tile = picture.shape[0] // 3
    places = [(i * tile, j * tile) for i in range(3) for j in range(3)]
    order = np.roll(rng.permutation(9), 1)
    shuffled = picture.copy()
    for (a, b), k in zip(places, order, strict=True):
        c, d = places[k]
        shuffled[a : a + tile, b : b + tile] = picture[c : c + tile, d : d + tile]
    return shuffled
