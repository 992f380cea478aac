"""Three points -> affine -> face crop -> paste back. Float32 or better, and only near the face.

All functions work on the face's own region of the frame (`face_box`), so their cost follows the
size of the face, not of the frame. Pixel (x, y) means the centre of that pixel. Pixels are
resampled once on each way: the square crop is cut straight out of the frame, where the published
code makes an upright crop first, which loses detail (`align_published` does that too).

Template, crop size and smoothing as published:
https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/utils/affine_transform.py
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentsync.types import Box, Face, FaceTrack, FloatArray, Frame, PaintablePicture, Picture

__all__ = [
    "BOX_CENTRE",
    "HALF_BOX",
    "CropView",
    "FaceResampler",
    "crop_size",
    "cut_face",
    "face_box",
    "face_of",
    "face_track",
    "portrait",
    "soft_edge",
    "square",
    "template",
    "upright",
    "warp_to_frame",
    "warped",
]

# The three points (left brow, right brow, nose base) in a box 75 wide and 100 high, and the box's
# scale at 256 px.
TEMPLATE = ((17.0, 20.0), (58.0, 20.0), (37.5, 40.0))
BOX_WIDTH, BOX_HEIGHT = 75, 100
SCALE_AT_256 = 2.8
SMOOTHING = 0.2  # weight of the previous frame's bias
PARABOLA = 3  # points that determine a parabola
FILL = 127.0  # grey level outside the frame
EDGE_DIVISOR = 20  # soft edge = square root of the face's area / 20
MIN_SPREAD = 1e-3  # px; points closer together than this are no face
MARGIN = 2  # px around the face's region: bilinear neighbours and the erosion's window
# Left, top and side of the square around a face in FFHQ's layout, in units of the template: eyes,
# nose and mouth corners of 80 drawn heads, fitted to the five points of restoration nets,
# https://github.com/xinntao/facexlib/blob/3c06885/facexlib/utils/face_restoration_helper.py
PORTRAIT = (-30.3, -35.1, 135.5)
# In units of the template: where face detectors have their boxes on average, from the upper
# forehead to the chin. Half of the longer side, which is the height.
HALF_BOX = 42.0
BOX_CENTRE = (38.0, 38.0)
ASPECT = 0.75  # width / height

Array = NDArray[np.float64]
Levels = NDArray[np.uint8]
Size = tuple[int, int]
"""Width, height in px."""


@dataclass(frozen=True)
class CropView:
    """A picture of a face, as a part of a frame."""

    matrix: Array  # (3, 3) frame px -> px of the picture
    size: Size

    @property
    def zoom(self) -> float:
        """Px of the picture for one of the frame."""
        return _zoom(self.matrix)

    def enlarged(self, width: int, height: int) -> "CropView":
        """Return the same view at another size."""
        grown = _stretch(width / self.size[0], height / self.size[1])
        return CropView(grown @ self.matrix, (width, height))

    def box(self, frame: Size) -> Box:
        """Return the part of a frame that it shows, see `face_box`."""
        return _box(self.matrix, (-1, -1, *self.size), frame)

    def cut(self, region: Frame, box: Box) -> Frame:
        """Cut it from a frame's pixels in `box`; (height, width, 3) uint8, edges repeated."""
        return warped(region, self.matrix @ _shift(box), self.size)

    def onto(self, other: "CropView") -> Array:
        """Return (3, 3) float64: px of this -> px of the other."""
        return np.asarray(other.matrix @ np.linalg.inv(self.matrix), np.float64)


@dataclass(frozen=True)
class FaceResampler:
    """Cuts faces out of frames and pastes them back, in one resampling each way."""

    side: int  # px, of a crop

    def crop(self, picture: Picture, affine: FloatArray) -> Frame:
        """Cut the crop of a face; (side, side, 3) uint8."""
        box = face_box(affine, self.side, picture.width, picture.height)
        return cut_face(picture.rgb(box), box, affine, self.side)

    def paste(
        self, picture: PaintablePicture, face: Tensor, affine: FloatArray, weight: Tensor | None
    ) -> PaintablePicture:
        """Blend a face, (s, s, 3) uint8, into its frame by an (s, s) weight; None: 1."""
        size = picture.width, picture.height
        laid = warp_to_frame(face.numpy(), affine, size, weight=weight, resolution=self.side)
        return picture.pasted(*laid)


def square(affine: FloatArray, resolution: int, side: int | None = None) -> CropView:
    """Return the network's crop, stretched to a square; `side` px instead of `resolution`."""
    crop = upright(affine, resolution).enlarged(resolution, resolution)
    return crop if side is None else crop.enlarged(side, side)


def upright(affine: FloatArray, resolution: int) -> CropView:
    """Return the crop with the face's own proportions, 3 wide and 4 high."""
    return CropView(np.vstack([affine, [0, 0, 1]]), crop_size(resolution))


def portrait(affine: FloatArray, resolution: int, side: int) -> CropView:
    """Return the face with hair and chin, `side` px, in FFHQ's layout, as restoration nets do."""
    left, top, width = (part * resolution / 256 * SCALE_AT_256 for part in PORTRAIT)
    scale = side / width
    place = np.array([[scale, 0, -scale * left], [0, scale, -scale * top], [0, 0, 1]])
    return CropView(place @ np.vstack([affine, [0, 0, 1]]), (side, side))


def warped(picture: Frame, matrix: Array, size: Size) -> Frame:
    """Warp a picture, (h, w, c) uint8, by `matrix` (3, 3), its px -> px of the result of `size`.

    Cubic; averaged first where it becomes much smaller, else lines would flicker. Edges are
    repeated beyond the picture.
    """
    picture, back = _averaged(picture, _zoom(matrix))
    shown = cv2.warpAffine(
        picture,
        (matrix @ back)[:2],
        size,
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return np.asarray(shown, np.uint8)


def crop_size(resolution: int) -> tuple[int, int]:
    """Return width and height in px of the upright crop behind a square: 210 x 280 for 256."""
    scale = resolution / 256 * SCALE_AT_256
    return int(BOX_WIDTH * scale), int(BOX_HEIGHT * scale)


def template(resolution: int) -> Array:
    """Return the places of the three points in the crop, in its px; (3, 2) float64."""
    return np.array(TEMPLATE) * (resolution / 256 * SCALE_AT_256)


def face_track(
    points: FloatArray,
    found: NDArray[np.bool_],
    resolution: int,
    shot_start: NDArray[np.bool_] | None = None,
    smooth: int = 0,
    *,
    pixel_aspect: float = 1.0,
) -> FaceTrack:
    """Compute the affine of every frame, smoothed along each unbroken run of frames with a face.

    The published smoothing adds the difference of the normalised nose positions to the
    translation, carried from frame to frame with weight 0.2.

    Args:
        points: (n, 3, 2) square px: left brow, right brow, nose base; anything where not found.
        found: (n,) bool.
        resolution: px, side of the face crop.
        shot_start: (n,) bool; nothing is smoothed across. None: one shot.
        smooth: frames; the points are also smoothed, without lag, by parabolas through so many
            frames around each one. Up to 3 that changes nothing; 0, the default, as published.
        pixel_aspect: width / height of the frame's own px, which the affines are for.
    """
    affine = np.zeros((len(points), 2, 3), dtype=np.float32)
    found = found & (points.std(axis=1).max(axis=1) > MIN_SPREAD)
    first = found & ~np.roll(found, 1)  # of a run
    first[:1] |= found[:1]
    if shot_start is not None:
        first |= found & shot_start
    points = _smooth_points(points, found, first, smooth)
    target = torch.from_numpy(template(resolution).astype(np.float32))
    carried: Tensor | None = None
    for i in np.flatnonzero(found):
        if first[i]:
            carried = None
        matrix, bias = _similarity(torch.from_numpy(points[i]), target)
        if carried is not None:
            bias = SMOOTHING * carried + (1 - SMOOTHING) * bias
        carried = bias
        matrix[:, 2] += bias
        affine[i] = matrix.numpy()
    return FaceTrack(affine=affine * np.array([pixel_aspect, 1, 1], np.float32), detected=found)


def _smooth_points(
    points: FloatArray, found: NDArray[np.bool_], first: NDArray[np.bool_], frames: int
) -> FloatArray:
    """Smooth the points of each run by parabolas (Savitzky and Golay).

    A run's ends lie on its first and last parabola, so that a moving head doesn't lag there; a run
    shorter than `frames` lies on one parabola as a whole.
    """
    if frames <= PARABOLA:
        return points
    points = points.copy()
    for run in np.split(np.flatnonzero(found), np.flatnonzero(first[found]))[1:]:
        window = min(frames // 2 * 2 + 1, len(run))
        if window <= PARABOLA:
            continue
        times = np.vander(np.linspace(-1, 1, window), PARABOLA)
        onto = times @ np.linalg.pinv(times)  # (window, window): values -> values on the parabola
        path = points[run].reshape(len(run), -1).astype(np.float64)
        middle = window // 2
        steady = np.concatenate(
            [
                onto[:middle] @ path[:window],
                np.lib.stride_tricks.sliding_window_view(path, window, axis=0) @ onto[middle],
                onto[middle + 1 :] @ path[-window:],
            ]
        )
        points[run] = steady.reshape(-1, 3, 2)
    return points


def _similarity(points: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Fit the least-squares rotation, scale and shift of points onto target (Procrustes), (2, 3).

    Also returns the difference of the normalised third points, target minus source. In float32, as
    published: a matrix that differs in its last digit changes grey levels.
    """
    centre, target_centre = points.mean(dim=0), target.mean(dim=0)
    p, q = points - centre, target - target_centre
    spread, target_spread = p.std(), q.std()  # of all six numbers, unbiased
    p, q = p / spread, q / target_spread
    u, _, vt = torch.linalg.svd(p.T @ q)
    if torch.linalg.det(vt.T @ u.T) < 0:  # a mirror image: turn the weaker axis
        vt[-1] *= -1
    rotation = vt.T @ u.T
    scale = target_spread / spread
    shift = target_centre - scale * (rotation @ centre)
    return torch.column_stack([scale * rotation, shift]), q[2] - p[2]


def face_box(affine: FloatArray, resolution: int, width: int, height: int) -> Box:
    """Return the part of a width x height frame that the crop covers, with margin, on even pixels.

    Even, because a 4:2:0 picture has one colour sample for two pixels; only the frame's own right
    and bottom edge may be odd. Never empty: a crop beyond the frame gets two pixels of its nearest
    edge, and nothing is changed there.
    """
    return upright(affine, resolution).box((width, height))


def _box(matrix: Array, rect: tuple[int, int, int, int], frame: Size) -> Box:
    """Return `face_box` of a rectangle of any picture; `matrix` (3, 3) frame px -> its px."""
    corners = [[x, y] for x in rect[::2] for y in rect[1::2]]
    back = cv2.invertAffineTransform(matrix[:2].astype(np.float64))
    spans = []
    for (to_x, to_y, shift), size in zip(back.tolist(), frame, strict=True):
        places = [to_x * x + to_y * y + shift for x, y in corners]
        low = (math.floor(min(places)) - MARGIN) // 2 * 2
        high = -(-(math.ceil(max(places)) + MARGIN + 1) // 2) * 2
        low = min(max(low, 0), (size - 1) // 2 * 2)
        spans.append((low, min(max(high, low + 2), size)))
    (left, right), (top, bottom) = spans
    return Box(left, top, right, bottom)


def cut_face(region: Frame, box: Box, affine: FloatArray, resolution: int) -> Frame:
    """Cut the face out of its region, as the square that the network sees.

    Args:
        region: (box height, box width, 3) uint8, the frame's pixels in `box`.
        box: `face_box` of that affine.

    Returns:
        (resolution, resolution, 3) uint8; grey 127 where the crop leaves the frame.
    """
    matrix = square(affine, resolution).matrix @ _shift(box)
    size = (resolution, resolution)
    crop = cv2.warpAffine(region, matrix[:2], size, borderValue=(FILL, FILL, FILL))
    return np.asarray(crop, np.uint8)


def warp_to_frame(
    face: Frame,
    affine: FloatArray,
    frame: Size,
    *,
    weight: Tensor | None = None,
    resolution: int | None = None,
) -> tuple[Box, Frame, Levels]:
    """Warp a generated face back to its place in the frame, with a soft edge.

    Args:
        face: (side, side, 3) uint8.
        frame: width and height of the whole frame.
        weight: (side, side) float32 in [0, 1], of each pixel of the face; None: 1, as
            published.
        resolution: px, side of the crop that the affine is for; None: the face's own.

    Returns:
        The arguments of `media.VideoFrame.pasted`: a box of the frame on even pixels (see
        `face_box`), outside which nothing changes; the face there, (box height, box width, 3)
        uint8; its weight, (box height, box width) uint8, in 1/255.
    """
    side = len(face)
    given = 1.0 if weight is None else weight.numpy()
    levels = cv2.multiply(soft_edge(side), given, scale=255, dtype=cv2.CV_8U)
    onto = square(affine, resolution or side, side).matrix
    left, top, width, height = cv2.boundingRect(levels)
    box = _box(onto, (left - 1, top - 1, left + width, top + height), frame)
    # One warp for colours and weight; four channels also go through OpenCV faster than three.
    both = cv2.insertChannel(levels, cv2.cvtColor(face, cv2.COLOR_RGB2RGBA), 3)
    both, back = _averaged(both, 1 / _zoom(onto))
    laid = cv2.warpAffine(
        both,
        (np.linalg.inv(back) @ onto @ _shift(box))[:2],
        (box.width, box.height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
    )
    colours = np.asarray(cv2.cvtColor(laid, cv2.COLOR_RGBA2RGB), np.uint8)
    return box, colours, np.asarray(cv2.extractChannel(laid, 3), np.uint8)


@lru_cache(maxsize=8)
def soft_edge(resolution: int) -> FloatArray:
    """Return (resolution, resolution) float32 in [0, 1]: 1 within the crop, 0 at its rim."""
    width, height = crop_size(resolution)
    edge = math.isqrt(width * height) // EDGE_DIVISOR
    inner = np.zeros((height, width), np.float32)
    inner[edge : height - edge, edge : width - edge] = 1
    soft = cv2.GaussianBlur(inner, (2 * edge + 1, 2 * edge + 1), 0)
    return np.asarray(cv2.resize(soft, (resolution, resolution)), np.float32)


def _stretch(x: float, y: float) -> Array:
    """Return a scaling, (3, 3) float64, that maps pixel borders, not centres, to each other."""
    return np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])


def _zoom(matrix: Array) -> float:
    """Return the mean scale over all directions."""
    return math.sqrt(abs(np.linalg.det(matrix[:2, :2])))


def _averaged(picture: Frame, zoom: float) -> tuple[Frame, Array]:
    """Average pixels that a warp of this zoom would skip.

    Also returns (3, 3) float64, px of the result -> px of the picture.
    """
    skip = max(1, int(1 / zoom))
    height, width = picture.shape[:2]
    small = max(1, round(width / skip)), max(1, round(height / skip))
    if skip > 1:
        picture = np.asarray(cv2.resize(picture, small, interpolation=cv2.INTER_AREA), np.uint8)
        return picture, _stretch(width / small[0], height / small[1])
    return picture, np.eye(3)


def _shift(box: Box) -> Array:
    """Return (3, 3) float64: px of the box -> frame px."""
    return np.array([[1.0, 0, box.left], [0, 1, box.top], [0, 0, 1]])


def face_of(affine: FloatArray, resolution: int) -> Face:
    """Reconstruct, roughly, the face that an affine was made of, for a detector's other nets.

    Its points are the template's three, its box is the average one of detectors.

    Args:
        affine: (2, 3) frame px, square or not -> crop px of `resolution`.
    """
    unit = crop_size(resolution)[1] / BOX_HEIGHT  # px of the crop in one of template
    matrix = affine.astype(np.float64)
    places = np.array([*TEMPLATE, BOX_CENTRE]) * unit
    *points, centre = np.linalg.solve(matrix[:, :2], (places - matrix[:, 2]).T).T
    half = HALF_BOX * unit / np.linalg.norm(matrix[:, :2], axis=0) * np.array([ASPECT, 1])
    left, top, right, bottom = map(float, np.concatenate([centre - half, centre + half]))
    return Face((left, top, right, bottom), 1.0, np.array(points, np.float32))
