"""Three points -> affine -> face crop -> paste back. Float32 or better, and only near the face.

Everything works on the face's own region of the frame (`face_box`), so its cost follows the size
of the face, not of the frame. Pixel (x, y) means the centre of that pixel.

Template, crop size, smoothing and blending as published:
https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/utils/affine_transform.py
"""

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from latentsync.types import Box, FaceTrack, FloatArray, Frame

__all__ = ["crop_size", "cut_face", "face_box", "face_track", "paste_face", "template"]

# The three points (left brow, right brow, nose base) in a box 75 wide and 100 high, and that box's
# scale at 256 px, https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/utils/affine_transform.py
TEMPLATE = ((17.0, 20.0), (58.0, 20.0), (37.5, 40.0))
BOX_WIDTH, BOX_HEIGHT = 75, 100
SCALE_AT_256 = 2.8
SMOOTHING = 0.2  # weight of the previous frame's bias
PARABOLA = 3  # points that a parabola always meets
FILL = 127.0  # grey level outside the frame
EDGE_DIVISOR = 20  # soft edge = square root of the face's area / 20
MIN_SPREAD = 1e-3  # px; points closer together than this are no face
MARGIN = 2  # px around the face's region: bilinear neighbours and the erosion's window

Array = NDArray[np.float64]
Size = tuple[int, int]
"""Width, height in px."""


def crop_size(resolution: int) -> tuple[int, int]:
    """Width and height in px of the upright crop behind a square: 210 x 280 for 256."""
    scale = resolution / 256 * SCALE_AT_256
    return int(BOX_WIDTH * scale), int(BOX_HEIGHT * scale)


def template(resolution: int) -> Array:
    """(3, 2) float64: where the three points lie in the crop, in its pixels."""
    return np.array(TEMPLATE) * (resolution / 256 * SCALE_AT_256)


def face_track(
    points: FloatArray,
    found: NDArray[np.bool_],
    resolution: int,
    cut: NDArray[np.bool_] | None = None,
    smooth: int = 0,
) -> FaceTrack:
    """The affine of every frame, smoothed along each unbroken run of frames with a face.

    The published smoothing adds the difference of the normalised nose positions to the
    translation, carried from frame to frame with weight 0.2.

    Args:
        points: (n, 3, 2) frame px: left brow, right brow, nose base; anything where not found.
        found: (n,) bool.
        resolution: px, side of the face crop.
        cut: (n,) bool, where a new shot begins: nothing is smoothed across. None: nowhere.
        smooth: frames; the points are also smoothed, without lag, by parabolas through so many
            frames around each one. Up to 3 that changes nothing; 0, the default, as published.
    """
    affine = np.zeros((len(points), 2, 3), dtype=np.float32)
    found = found & (points.std(axis=1).max(axis=1) > MIN_SPREAD)
    first = found & ~np.roll(found, 1)  # of a run
    first[:1] |= found[:1]
    if cut is not None:
        first |= found & cut
    points = _steadied(points, found, first, smooth)
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
    return FaceTrack(affine=affine, found=found)


def _steadied(
    points: FloatArray, found: NDArray[np.bool_], first: NDArray[np.bool_], frames: int
) -> FloatArray:
    """Points with each run's path laid through parabolas (Savitzky and Golay's smoothing).

    A run's ends take their places on the first and last parabola, so a head that moves isn't held
    back there; a run shorter than `frames` lies on one parabola as a whole.
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
    """The least-squares rotation, scale and shift of points onto target (Procrustes), (2, 3).

    Also the difference of the normalised third points, target minus source. In float32, as
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
    """The part of a width x height frame that the crop covers, with margin, on even pixels.

    Even, because a 4:2:0 picture has one colour sample for two pixels; the right and bottom edge
    may be odd only where the frame's own is. Never empty: a crop beyond the frame
    gets two pixels of its nearest edge, and nothing is changed there.
    """
    crop_width, crop_height = crop_size(resolution)
    corners = np.array(
        [[x, y, 1.0] for x in (-1.0, crop_width) for y in (-1.0, crop_height)], dtype=np.float64
    )
    xy = corners @ _inverse(affine).T
    low = (np.floor(xy.min(axis=0)).astype(int) - MARGIN) // 2 * 2
    high = -(-(np.ceil(xy.max(axis=0)).astype(int) + MARGIN + 1) // 2) * 2
    size = np.array([width, height])
    left, top = np.clip(low, 0, (size - 1) // 2 * 2)
    right, bottom = np.minimum(np.maximum(high, (left + 2, top + 2)), size)
    return Box(int(left), int(top), int(right), int(bottom))


def cut_face(
    region: Frame,
    box: Box,
    affine: FloatArray,
    resolution: int,
    frame: Size,
    *,
    truncate: bool = False,
) -> Frame:
    """Cut the face out of its region and bring it to the square the network sees.

    Args:
        region: (box height, box width, 3) uint8, the frame's pixels in `face_box`.
        frame: width and height of the whole frame.
        truncate: cut grey levels down, as published, instead of rounding them.

    Returns:
        (resolution, resolution, 3) uint8; grey 127 where the crop leaves the frame.
    """
    size = crop_size(resolution)
    # A frame of which only the face's region is ever written or read, so the rest costs nothing;
    # the fourth channel says how far a pixel of the crop lies inside the frame.
    canvas = torch.empty(4, frame[1], frame[0])
    part = canvas[:, box.top : box.bottom, box.left : box.right]
    part[:3] = torch.from_numpy(np.ascontiguousarray(region)).permute(2, 0, 1)
    part[3] = 1
    warped = _sample(canvas, _grid(torch.from_numpy(affine), size, frame, Box(0, 0, *size)))
    crop = _to_uint8((warped[:3] + (1 - warped[3:]) * FILL).permute(1, 2, 0), truncate)
    square = (resolution, resolution)
    return np.asarray(cv2.resize(crop, square, interpolation=cv2.INTER_LANCZOS4))


def paste_face(
    region: Frame,
    box: Box,
    face: Tensor,
    affine: FloatArray,
    frame: Size,
    *,
    share: Tensor | None = None,
    truncate: bool = False,
) -> Frame:
    """Lay a generated face over its region of the frame, with a soft edge.

    Args:
        region: (box height, box width, 3) uint8, the frame's pixels in `face_box`.
        face: (3, resolution, resolution) float32, about [-1, 1].
        frame: width and height of the whole frame.
        share: (resolution, resolution) float32 in [0, 1], how much of each pixel of the face is
            laid on; None is all of it, as published.
        truncate: cut grey levels down, as published, instead of rounding them.

    Returns:
        (box height, box width, 3) uint8; outside the soft edge the region's own values.
    """
    width, height = size = crop_size(face.shape[-1])
    layers = face.float() if share is None else torch.cat([face.float(), share[None]])
    crop = F.interpolate(
        layers[None], (height, width), mode="bicubic", antialias=True, align_corners=False
    )[0]
    back = torch.linalg.inv(torch.vstack([torch.from_numpy(affine), torch.tensor([0.0, 0.0, 1.0])]))
    warped = _sample(
        torch.cat([crop, torch.ones_like(crop[:1])]), _grid(back[:2], frame, size, box)
    )
    # Outside the crop the published code fills with 127 in a range of [-1, 1], that is with white.
    inside = warped[-1].contiguous().numpy()
    colour = (warped[:3] + (1 - warped[-1:]) * FILL).mul(0.5).add(0.5).clamp(0, 1).mul(255)
    hard, soft = _edges(inside)
    painted = torch.from_numpy(hard) * colour
    weight = torch.from_numpy(soft)
    if share is not None:
        weight = weight * warped[3].clamp(0, 1)
    original = torch.from_numpy(np.ascontiguousarray(region)).permute(2, 0, 1).float()
    blended = weight * painted + (1 - weight) * original
    return _to_uint8(blended.permute(1, 2, 0), truncate)


def _edges(inside: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The crop's area shrunk by a pixel, and the same with a wide soft edge; (h, w) float32 each.

    OpenCV's borders do what the published code does at the frame's edges: nothing is eroded there,
    and the blur sees a mirror image. At the region's other borders both areas are 0 anyway.
    """
    hard = np.asarray(cv2.erode(inside, np.ones((2, 2), np.float32)), dtype=np.float32)
    edge = int(math.sqrt(float(hard.sum(dtype=np.float64)))) // EDGE_DIVISOR
    if edge == 0:
        return hard, hard
    core = cv2.erode(hard, np.ones((2 * edge, 2 * edge), np.float32))
    sigma = torch.tensor(0.3 * (edge - 1) + 0.8)  # OpenCV's rule for a kernel of 2 * edge + 1
    weights = torch.exp(-torch.arange(-edge, edge + 1).float().square() / (2 * sigma.square()))
    kernel = weights / weights.sum()
    soft = cv2.copyMakeBorder(core, edge, edge, edge, edge, cv2.BORDER_REFLECT_101)
    blurred = F.conv2d(torch.from_numpy(soft)[None, None], kernel[None, None, None, :])
    return hard, F.conv2d(blurred, kernel[None, None, :, None])[0, 0].numpy()


def _inverse(affine: FloatArray) -> Array:
    """(2, 3) float64, crop px -> frame px."""
    matrix = np.vstack([affine.astype(np.float64), [0.0, 0.0, 1.0]])
    return np.linalg.inv(matrix)[:2]


def _grid(affine: Tensor, size: Size, source: Size, box: Box) -> Tensor:
    """(1, box height, box width, 2) float32: where pixels of a picture lie in its source.

    Args:
        affine: (2, 3) float32, px of the source -> px of the picture.
        size, source: width and height of the picture and of its source.
        box: the part of the picture that is wanted.

    For `F.grid_sample` with align_corners: -1 and 1 are the centres of the source's outermost
    pixels. The steps and their rounding are those of kornia 0.8's warp_affine, which the published
    code uses: where grey levels are cut down instead of rounded, the last digit shows.
    """
    square = torch.vstack([affine, torch.tensor([0.0, 0.0, 1.0])])
    back = torch.linalg.inv(_unit(size) @ (square @ torch.linalg.inv(_unit(source))))
    x = torch.linspace(-1, 1, size[0])[box.left : box.right]
    y = torch.linspace(-1, 1, size[1])[box.top : box.bottom, None]
    return torch.stack([x * m[0] + y * m[1] + m[2] for m in back[:2]], dim=-1)[None]


def _unit(size: Size) -> Tensor:
    """(3, 3) float32: pixel centres -> [-1, 1] at the centres of the outermost pixels."""
    width, height = size
    x, y = 2 / max(width - 1, 1), 2 / max(height - 1, 1)
    return torch.tensor([[x, 0, -1], [0, y, -1], [0, 0, 1]], dtype=torch.float32)


def _sample(image: Tensor, grid: Tensor) -> Tensor:
    """Bilinear, (c, h, w) -> (c, grid height, grid width), 0 outside."""
    return F.grid_sample(image[None], grid, "bilinear", "zeros", align_corners=True)[0]


def _to_uint8(values: Tensor, truncate: bool) -> Frame:
    """(h, w, 3) float in [0, 255] -> uint8."""
    return (values if truncate else values.add(0.5)).clamp(0, 255).to(torch.uint8).numpy()
