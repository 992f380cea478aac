"""A canvas over a part of the head's plane: numpy arrays, painted with soft brushes."""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentsync.training.synthetic.geometry import Affine
from latentsync.types import FloatArray, Frame

__all__ = ["Canvas", "mirrored", "smooth_loop", "soft_edge"]

_SHIFT = 4  # polygon corners are given to OpenCV in 1/16 px
_FAINT = 1 / 512  # coverage that changes no level
_TONES = 9  # strokes are drawn in this many batches


def smooth_loop(points: ArrayLike, steps: int = 12) -> NDArray[np.float64]:
    """A closed Catmull-Rom curve through (n, 2) points, `steps` points for each given one."""
    p1 = np.asarray(points, np.float64)
    p0, p2, p3 = np.roll(p1, 1, 0), np.roll(p1, -1, 0), np.roll(p1, -2, 0)
    t = (np.arange(steps) / steps)[None, :, None]
    a, b, c, d = (p[:, None] for p in (p0, p1, p2, p3))
    curve = (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    return (0.5 * curve).reshape(-1, 2)


def mirrored(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same points on the other side of the face, in reverse order."""
    return [(-x, y) for x, y in reversed(list(points))]


def soft_edge(distance: NDArray[np.floating], width: float) -> FloatArray:
    """Coverage of what lies at a positive distance from an edge, the edge `width` wide."""
    return np.clip(distance / width + 0.5, 0, 1).astype(np.float32)


def _extent(sheet: NDArray[np.floating]) -> tuple[slice, slice]:
    """Rows and columns outside of which a sheet changes nothing: most spots are small."""
    used = np.abs(sheet) > _FAINT
    rows, columns = np.flatnonzero(used.any(axis=1)), np.flatnonzero(used.any(axis=0))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


class Canvas:
    """Colour (H, W, 3) in 0..255 and coverage (H, W) in 0..1, both float32, `density` px a unit."""

    def __init__(self, box: tuple[float, float, float, float], density: float) -> None:
        """Make an empty canvas; `box` is left, top, right, bottom in head units."""
        self.left, self.top, right, bottom = box
        self.density = density
        self.width = round((right - self.left) * density)
        self.height = round((bottom - self.top) * density)
        self.x = (self.left + (np.arange(self.width, dtype=np.float32) + 0.5) / density)[None, :]
        self.y = (self.top + (np.arange(self.height, dtype=np.float32) + 0.5) / density)[:, None]
        self.colour = np.zeros((self.height, self.width, 3), np.float32)
        self.cover = np.zeros((self.height, self.width), np.float32)

    @property
    def to_pixels(self) -> Affine:
        """Head units -> pixel indices (the middle of the first pixel is 0)."""
        d = self.density
        return np.array([[d, 0, -self.left * d - 0.5], [0, d, -self.top * d - 0.5]])

    def _fixed(self, points: ArrayLike) -> NDArray[np.int32]:
        corners = (np.asarray(points, np.float64) - (self.left, self.top)) * self.density - 0.5
        return np.asarray(np.round(corners * (1 << _SHIFT)), np.int32)

    def mask(self, points: ArrayLike, blur: float = 0.0) -> FloatArray:
        """Coverage of a polygon, its edge softened by `blur` units."""
        sheet = np.zeros((self.height, self.width), np.uint8)
        cv2.fillPoly(sheet, [self._fixed(points)], 255, cv2.LINE_AA, _SHIFT)
        return self.blur(sheet.astype(np.float32) / 255, blur)

    def line(self, points: ArrayLike, width: float, blur: float = 0.0) -> FloatArray:
        """Coverage of an open line, `width` units thick."""
        sheet = np.zeros((self.height, self.width), np.uint8)
        pixels = width * self.density
        fixed = [self._fixed(points)]
        cv2.polylines(sheet, fixed, False, 255, max(1, round(pixels)), cv2.LINE_AA, _SHIFT)
        # A line thinner than a pixel is a fainter one.
        return self.blur(sheet.astype(np.float32) / 255 * min(1.0, pixels), blur)

    def blur(self, sheet: NDArray[np.floating], units: float) -> FloatArray:
        if units * self.density < 0.3:
            return np.asarray(sheet, np.float32)
        return np.asarray(cv2.GaussianBlur(sheet, (0, 0), units * self.density), np.float32)

    def blob(self, x: float, y: float, width: float, height: float) -> FloatArray:
        """A soft spot, 1 in its middle; width and height are standard deviations."""
        row = np.exp(-0.5 * ((self.x - x) / width) ** 2)
        column = np.exp(-0.5 * ((self.y - y) / height) ** 2)
        return np.asarray(column * row, np.float32)

    def pair(self, x: float, y: float, width: float, height: float) -> FloatArray:
        """Two soft spots, left and right."""
        return self.blob(-x, y, width, height) + self.blob(x, y, width, height)

    def noise(self, rng: np.random.Generator, units: float) -> FloatArray:
        """Smooth noise of unit variance whose grain is `units` wide, alike at every density."""
        rows = max(4, round(self.height / self.density / units))
        columns = max(4, round(self.width / self.density / units))
        coarse = rng.standard_normal((rows, columns), dtype=np.float32)
        size = (self.width, self.height)
        return np.asarray(cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC), np.float32)

    def tint(self, sheet: NDArray[np.floating], colour: ArrayLike) -> None:
        """Lay a colour over the canvas with the coverage `sheet`."""
        at = _extent(sheet)
        part = self.colour[at]
        part += (np.asarray(colour, np.float32) - part) * sheet[at][..., None]

    def lay(self, sheet: NDArray[np.floating], colour: ArrayLike) -> None:
        """Tint and cover: where nothing is yet, the colour comes in full, its edge soft."""
        share = np.where(sheet > self.cover, 1, sheet)
        self.colour += (np.asarray(colour, np.float32) - self.colour) * share[..., None]
        self.cover = np.maximum(self.cover, sheet).astype(np.float32)

    def shade(self, sheet: NDArray[np.floating], amount: float) -> None:
        """Darken by `amount` (0..1) where `sheet` is 1; a negative amount lightens."""
        at = _extent(sheet)
        self.colour[at] *= (1 - amount * sheet[at])[..., None]

    def strokes(
        self,
        lines: NDArray[np.floating],
        colour: ArrayLike,
        tones: NDArray[np.floating],
        width: float,
        strength: float = 1.0,
        solid: bool = True,
    ) -> None:
        """Paint (n, k, 2) short lines, each in `colour` times its tone.

        Args:
            strength: opacity of a stroke.
            solid: add the strokes to the coverage.
        """
        if not len(lines):
            return
        fixed = self._fixed(lines.reshape(-1, 2)).reshape(lines.shape)
        pixels = width * self.density
        thick = max(1, int(0.75 * pixels))
        strength *= min(1.0, 0.25 + 0.75 * pixels)
        paint = np.clip(self.colour, 0, 255).astype(np.uint8)
        cover = np.zeros((self.height, self.width), np.uint8)
        edges = np.quantile(tones, np.linspace(0, 1, _TONES + 1))
        batch = np.clip(np.searchsorted(edges, tones) - 1, 0, _TONES - 1)
        for index in range(_TONES):
            chosen = np.flatnonzero(batch == index)
            if not len(chosen):
                continue
            shade = np.clip(np.asarray(colour) * float(tones[chosen].mean()), 0, 255)
            group: Sequence[NDArray[np.int32]] = list(fixed[chosen])
            cv2.polylines(paint, group, False, shade.tolist(), thick, cv2.LINE_AA, _SHIFT)
            cv2.polylines(cover, group, False, 255, thick, cv2.LINE_AA, _SHIFT)
        share = cover.astype(np.float32) * (strength / 255)
        self.colour += (paint - self.colour) * share[..., None]
        if solid:
            self.cover = np.maximum(self.cover, share)

    def texture(self) -> Frame:
        """(H, W, 4) uint8, colour multiplied by coverage, then coverage."""
        cover = np.clip(self.cover, 0, 1)
        colour = np.clip(self.colour, 0, 255) * cover[..., None]
        return np.round(np.dstack([colour, cover * 255])).astype(np.uint8)
