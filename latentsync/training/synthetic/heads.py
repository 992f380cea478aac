"""Drawn heads: `draw` gives a frame of a person, `draw_crop` the aligned crop alone.

A person is painted once (face, back hair, body, room: four textures, kept for the last few people);
a frame bends and turns those paintings, opens the mouth and looks out of the eyes.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync.errors import OptionError
from latentsync.training.synthetic.canvas import Canvas
from latentsync.training.synthetic.eyes import paint_eyes, paint_glasses
from latentsync.training.synthetic.geometry import (
    Affine,
    Pose,
    apply,
    chain,
    crop_view,
    invert,
    placement,
    project,
    scene_view,
    unproject,
)
from latentsync.training.synthetic.hair import paint_back_hair, paint_beard, paint_brows, paint_hair
from latentsync.training.synthetic.identity import Identity
from latentsync.training.synthetic.mouth import Mouth, PosedMouth, interior, lips, rest_outline
from latentsync.training.synthetic.room import BODY_BOX, ROOM_BOX, paint_body, paint_room
from latentsync.training.synthetic.skin import paint_ears, paint_skin
from latentsync.types import FloatArray, Frame

__all__ = ["LANDMARKS", "crop_affine", "draw", "draw_crop", "landmarks", "measure"]

LANDMARKS = (
    "brow_left",
    "brow_right",
    "eye_left",
    "eye_right",
    "nose_base",
    "mouth_left",
    "mouth_right",
    "lip_upper_outer",
    "lip_upper_inner",
    "lip_lower_inner",
    "lip_lower_outer",
    "chin",
)
"""Left and right as in the picture. The nose base is the point of LatentSync's template: the middle
of the tip and the nostrils."""

_HEAD_BOX = (-1.7, -2.1, 1.7, 1.75)
_DENSITIES = (64, 128, 192, 256, 384)  # px a head unit
_KEPT = 6  # people whose paintings are kept
_NODE = 6  # the face's bend is worked out on every sixth pixel
_SMALL = 200  # frames up to this many px are drawn twice as large, then halved


@dataclass(frozen=True)
class _Paintings:
    head: Canvas
    face: Frame
    glasses: Frame | None
    back: Frame | None
    body: Frame
    body_affine: Affine  # texture px -> head units
    room: Frame
    room_affine: Affine


@lru_cache(maxsize=_KEPT)
def _paint(identity: Identity, density: int) -> _Paintings:
    rng = np.random.default_rng([identity.seed, 2])
    head = Canvas(_HEAD_BOX, density)
    paint_ears(identity, head)
    face = paint_skin(identity, head, rng)
    paint_beard(identity, head, face, rng)
    paint_brows(identity, head, rng)
    paint_hair(identity, head, face, rng)
    head.colour *= identity.exposure
    back = Canvas(_HEAD_BOX, density)
    paint_back_hair(identity, back, rng)
    back.colour *= identity.exposure
    body = Canvas(BODY_BOX, density * 0.75)
    paint_body(identity, body)
    body.colour *= identity.exposure
    room = Canvas(ROOM_BOX, 40)
    paint_room(identity, room)
    return _Paintings(
        head=head,
        face=head.texture(),
        glasses=paint_glasses(identity, head),
        back=back.texture() if back.cover.any() else None,
        body=body.texture(),
        body_affine=invert(body.to_pixels),
        room=np.ascontiguousarray(room.texture()[..., :3]),
        room_affine=invert(room.to_pixels),
    )


def _warp(texture: Frame, affine: Affine, width: int, height: int) -> Frame:
    border = cv2.BORDER_REPLICATE if texture.shape[2] == 3 else cv2.BORDER_CONSTANT
    moved = cv2.warpAffine(
        texture, affine, (width, height), flags=cv2.INTER_LINEAR, borderMode=border
    )
    return np.asarray(moved, np.uint8)


def _over(canvas: Frame, layer: Frame) -> None:
    """Lay premultiplied (h, w, 4) over (h, w, 3), in place."""
    rest = (255 - layer[..., 3:]).astype(np.uint16)
    canvas[:] = layer[..., :3] + ((canvas * rest + 127) // 255).astype(np.uint8)


def _body_follow(pose: Pose) -> Affine:
    """Body -> world: shoulders follow the head a little."""
    share, scale = 0.35, pose.scale
    return np.array([[scale, 0, pose.x * share], [0, scale, pose.y * share + (1 - scale) * 1.3]])


def _head_layer(
    identity: Identity,
    pose: Pose,
    shape: PosedMouth,
    paintings: _Paintings,
    to_pixels: Affine,
    size: tuple[int, int],
) -> tuple[Frame, slice, slice]:
    """The turned, speaking head as premultiplied RGBA, and the rows and columns it fills."""
    left, top, right, bottom = _HEAD_BOX
    corners = np.array([(left, top), (right, top), (right, bottom + 0.2), (left, bottom + 0.2)])
    pixels = apply(to_pixels, corners)
    x0, y0 = np.clip(np.floor(pixels.min(axis=0)).astype(int), 0, size)
    x1, y1 = np.clip(np.ceil(pixels.max(axis=0)).astype(int) + 1, 0, size)
    rows, columns = slice(y0, y1), slice(x0, x1)
    if x1 <= x0 or y1 <= y0:
        return np.zeros((0, 0, 4), np.uint8), slice(0, 0), slice(0, 0)
    back = invert(to_pixels)
    nodes_x = -(-(x1 - x0) // _NODE)
    nodes_y = -(-(y1 - y0) // _NODE)
    px, py = np.meshgrid(
        x0 + (np.arange(nodes_x) + 0.5) * _NODE - 0.5, y0 + (np.arange(nodes_y) + 0.5) * _NODE - 0.5
    )
    plane = apply(back, np.stack([px.ravel(), py.ravel()], 1)).astype(np.float32)
    face_x, face_y = unproject(identity, pose, plane[:, 0], plane[:, 1])
    face = np.stack([face_x, face_y], 1).reshape(nodes_y, nodes_x, 2)
    source = np.stack(shape.source(face_x, face_y), 1).reshape(nodes_y, nodes_x, 2)
    full = (nodes_x * _NODE, nodes_y * _NODE)
    moved = cv2.resize(face, full, interpolation=cv2.INTER_LINEAR)[: y1 - y0, : x1 - x0]
    where = cv2.resize(source, full, interpolation=cv2.INTER_LINEAR)[: y1 - y0, : x1 - x0]
    # Around the lips the bend has an edge: there every pixel is asked.
    mouth = _mouth_window(identity, pose, shape, to_pixels, (x0, y0, x1, y1))
    inside = moved[mouth]
    where[mouth] = np.stack(shape.source(inside[..., 0], inside[..., 1]), axis=-1)
    texture = paintings.face.copy()
    paint_eyes(identity, pose, paintings.head, texture)
    if paintings.glasses is not None:
        _over_rgba(texture, paintings.glasses, paintings.head, identity)
    to_texture = paintings.head.to_pixels
    maps = where * to_texture[0, 0] + to_texture[:, 2]
    layer = cv2.remap(texture, maps.astype(np.float32), None, cv2.INTER_LINEAR)
    pixel = float(np.sqrt(abs(np.linalg.det(back[:, :2]))))
    colour, cover = interior(shape, inside[..., 0], inside[..., 1], pixel)
    lipped = layer[mouth][..., :3]
    layer[*mouth, :3] = np.clip(lipped + (colour - lipped) * cover[..., None] + 0.5, 0, 255)
    return layer, rows, columns


def _over_rgba(texture: Frame, layer: Frame, canvas: Canvas, identity: Identity) -> None:
    """Glasses over the face's texture, in the rows around the eyes only."""
    middle = (identity.eye_y - canvas.top) * canvas.density
    rows = slice(int(middle - 0.5 * canvas.density), int(middle + 0.5 * canvas.density))
    rest = 255 - layer[rows, :, 3:].astype(np.uint16)
    texture[rows] = layer[rows] + ((texture[rows] * rest + 127) // 255).astype(np.uint8)


def _mouth_window(
    identity: Identity,
    pose: Pose,
    shape: PosedMouth,
    to_pixels: Affine,
    box: tuple[int, int, int, int],
) -> tuple[slice, slice]:
    """Rows and columns, from the box's corner, that hold the whole opening."""
    wide = shape.half_width + 0.06
    y = identity.mouth_y
    high, low = y - 0.3 * shape.gap - 0.1, y + shape.drop + 0.7 * shape.gap + 0.1
    corners = np.array([(s * wide, v) for s in (-1, 1) for v in (high, low)])
    pixels = apply(to_pixels, project(identity, pose, corners))
    x0, y0, x1, y1 = box
    a, b = np.floor(pixels.min(axis=0)).astype(int) - 2, np.ceil(pixels.max(axis=0)).astype(int) + 3
    columns = slice(max(a[0] - x0, 0), max(min(b[0], x1) - x0, 0))
    return slice(max(a[1] - y0, 0), max(min(b[1], y1) - y0, 0)), columns


def _render(
    identity: Identity, pose: Pose, mouth: Mouth, view: Affine, width: int, height: int
) -> Frame:
    """(height, width, 3) RGB of the world seen through `view`, no film grain yet."""
    double = 2 if max(width, height) <= _SMALL else 1
    zoom = np.array([[double, 0, (double - 1) / 2], [0, double, (double - 1) / 2]])
    view = chain(zoom, view)
    size = (width * double, height * double)
    unit = np.sqrt(abs(np.linalg.det(view[:, :2]))) * pose.scale
    density = next((d for d in _DENSITIES if d >= unit * 0.95), _DENSITIES[-1])
    paintings = _paint(identity, density)
    canvas = _warp(paintings.room, chain(view, paintings.room_affine), *size)
    to_pixels = chain(view, placement(pose))
    if paintings.back is not None:
        turn = np.array([[1, 0, -0.12 * np.sin(pose.yaw)], [0, 1, 0.0]])
        behind = chain(chain(to_pixels, turn), invert(paintings.head.to_pixels))
        _over(canvas, _warp(paintings.back, behind, *size))
    body = chain(chain(view, _body_follow(pose)), paintings.body_affine)
    _over(canvas, _warp(paintings.body, body, *size))
    layer, rows, columns = _head_layer(
        identity, pose, lips(identity, mouth), paintings, to_pixels, size
    )
    if layer.size:
        _over(canvas[rows, columns], layer)
    if double == 2:
        canvas = np.asarray(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA))
    return canvas


def _film(identity: Identity, pose: Pose, frame: Frame, unit: float) -> Frame:
    """What a camera adds: a little blur and grain."""
    blur = identity.softness * unit / 115
    if blur > 0.2:
        frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), blur), np.uint8)
    rng = np.random.default_rng([identity.seed, 6, pose.tick])
    grain = rng.standard_normal(frame.shape[:2], dtype=np.float32) * identity.grain
    return np.clip(frame + grain[..., None] + 0.5, 0, 255).astype(np.uint8)


def landmarks(identity: Identity, pose: Pose, mouth: Mouth, view: Affine) -> FloatArray:
    """(12, 2) float32 x, y of LANDMARKS in the pixels of `view`."""
    who, shape = identity, lips(identity, mouth)
    zero = np.zeros(1, np.float32)
    corner = np.float32(shape.half_width)
    corner_y = float(shape.edges(np.array([corner]))[0][0])
    upper, lower = (float(edge[0]) for edge in shape.edges(zero))
    rest_upper, rest_lower = (float(edge[0]) for edge in rest_outline(who, zero))
    points = np.array(
        [
            (-who.eye_x, who.brow_y),
            (who.eye_x, who.brow_y),
            (-who.eye_x, who.eye_y),
            (who.eye_x, who.eye_y),
            (0, who.nose_y - 0.1),
            (-corner, corner_y),
            (corner, corner_y),
            (0, shape.moved(rest_upper, above=True)),
            (0, upper),
            (0, lower),
            (0, shape.moved(rest_lower, above=False)),
            (0, who.chin + shape.drop),
        ]
    )
    return apply(chain(view, placement(pose)), project(who, pose, points)).astype(np.float32)


def measure(identity: Identity, mouth: Mouth) -> tuple[float, float, float]:
    """Opening (gap of the inner lips) and width (corner to corner) in eye distances, and rounding.

    Rounding is 0..1. The eye distance runs from pupil to pupil of a head seen from the front.
    """
    shape = lips(identity, mouth)
    return shape.gap / (2 * identity.eye_x), shape.half_width / identity.eye_x, mouth.round


def crop_affine(identity: Identity, pose: Pose, size: int) -> Affine:
    """World -> pixels of the aligned crop of this head, by its true brows and nose."""
    identity_view = np.array([[1.0, 0, 0], [0, 1.0, 0]])
    anchors = landmarks(identity, pose, Mouth(), identity_view)[[0, 1, 4]]
    return crop_view(anchors, size)


def _check(size: tuple[int, int]) -> None:
    if min(size) < 16:
        raise OptionError(f"got a frame of {size[0]} x {size[1]} px; both sides must be 16 or more")


def draw(
    identity: Identity, pose: Pose, mouth: Mouth, size: tuple[int, int], *, zoom: float = 1.0
) -> tuple[Frame, FloatArray]:
    """A frame (height, width, 3) uint8 RGB and its LANDMARKS (12, 2) in pixels.

    `size` is (width, height). Equal arguments give equal bytes. Raises OptionError for a side
    under 16 px.
    """
    _check(size)
    view = scene_view(*size, zoom)
    frame = _render(identity, pose, mouth, view, *size)
    frame = _film(identity, pose, frame, float(view[0, 0]))
    return frame, landmarks(identity, pose, mouth, view)


def draw_crop(
    identity: Identity,
    pose: Pose,
    mouth: Mouth,
    size: int,
    affine: NDArray[np.float64] | None = None,
) -> tuple[Frame, FloatArray]:
    """LatentSync's aligned crop, drawn directly: (size, size, 3) uint8 RGB and its LANDMARKS.

    `affine` (2, 3), world -> crop pixels, defaults to `crop_affine`; jitter it for training.
    """
    _check((size, size))
    view = crop_affine(identity, pose, size) if affine is None else affine
    frame = _render(identity, pose, mouth, view, size, size)
    unit = float(np.sqrt(abs(np.linalg.det(view[:, :2]))))
    return _film(identity, pose, frame, unit), landmarks(identity, pose, mouth, view)
