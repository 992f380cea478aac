"""Drawn heads: `draw` gives a frame of a person, `draw_crop` the aligned crop alone.

A person is painted once (face, back hair, body, room: four textures, cached for the last few
people). A frame bends and turns those paintings, opens the mouth and moves the eyes.
"""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

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

_NAMES = (
    "brow_left brow_right eye_left eye_right nose_base mouth_left mouth_right "
    "lip_upper_outer lip_upper_inner lip_lower_inner lip_lower_outer chin"
)
LANDMARKS = tuple(_NAMES.split())
"""Left and right as in the picture. The nose base is the point of LatentSync's template: the middle
of the tip and the nostrils."""

_HEAD_BOX = (-1.7, -2.1, 1.7, 1.75)
_DENSITIES = (64, 128, 192, 256, 384)  # px a head unit
_CACHED_PEOPLE = 6
_NODE = 6  # px; the face's bend is computed on a grid this coarse
_SMALL = 200  # px; frames up to this size are drawn twice as large, then halved
_WORLD = np.array([[1.0, 0, 0], [0, 1.0, 0]])  # the view whose pixels are head units


def draw(
    who: Identity, pose: Pose, mouth: Mouth, size: tuple[int, int], *, zoom: float = 1.0
) -> tuple[Frame, FloatArray]:
    """A frame (height, width, 3) uint8 RGB and its LANDMARKS (12, 2) in pixels.

    Equal arguments give equal bytes.

    Args:
        size: (width, height).

    Raises:
        OptionError: a side is under 16 px.
    """
    return _photograph(who, pose, mouth, scene_view(*size, zoom), size)


def draw_crop(
    who: Identity, pose: Pose, mouth: Mouth, size: int, affine: Affine | None = None
) -> tuple[Frame, FloatArray]:
    """LatentSync's aligned crop, drawn directly: (size, size, 3) uint8 RGB and its LANDMARKS.

    Args:
        affine: (2, 3) world -> crop pixels, such as a jittered one; None: `crop_affine`.
    """
    view = crop_affine(who, pose, size) if affine is None else affine
    return _photograph(who, pose, mouth, view, (size, size))


def crop_affine(who: Identity, pose: Pose, size: int) -> Affine:
    """World -> pixels of the aligned crop of this head, by its true brows and nose."""
    return crop_view(alignment_points(who, pose), size)


def alignment_points(who: Identity, pose: Pose) -> FloatArray:
    """(3, 2) brows and nose base in the world, which the crop is aligned by."""
    return landmarks(who, pose, Mouth(), _WORLD)[[0, 1, 4]]


def landmarks(who: Identity, pose: Pose, mouth: Mouth, view: Affine) -> FloatArray:
    """(12, 2) float32 x, y of LANDMARKS in the pixels of `view`."""
    shape = lips(who, mouth)
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


def measure(who: Identity, mouth: Mouth) -> tuple[float, float, float]:
    """Opening (gap of the inner lips) and width (corner to corner) in eye distances, and rounding.

    Rounding is 0..1. The eye distance runs from pupil to pupil of a head seen from the front.
    """
    shape = lips(who, mouth)
    return shape.gap / (2 * who.eye_x), shape.half_width / who.eye_x, mouth.round


def _photograph(
    who: Identity, pose: Pose, mouth: Mouth, view: Affine, size: tuple[int, int]
) -> tuple[Frame, FloatArray]:
    """What a camera sees through `view`, with a little blur and grain; and its LANDMARKS."""
    if min(size) < 16:
        raise OptionError(f"got a frame of {size[0]} x {size[1]} px; both sides must be 16 or more")
    frame = _render(who, pose, mouth, view, *size)
    blur = who.softness * _scale(view) / 115
    if blur > 0.2:
        frame = np.asarray(cv2.GaussianBlur(frame, (0, 0), blur), np.uint8)
    rng = np.random.default_rng([who.seed, 6, pose.tick])
    grain = rng.standard_normal(frame.shape[:2], dtype=np.float32) * who.grain
    frame = np.clip(frame + grain[..., None] + 0.5, 0, 255).astype(np.uint8)
    return frame, landmarks(who, pose, mouth, view)


def _scale(affine: Affine) -> float:
    return float(np.sqrt(abs(np.linalg.det(affine[:, :2]))))


def _render(
    who: Identity, pose: Pose, mouth: Mouth, view: Affine, width: int, height: int
) -> Frame:
    """(height, width, 3) RGB of the world seen through `view`, without blur and grain."""
    double = 2 if max(width, height) <= _SMALL else 1
    zoom = np.array([[double, 0, (double - 1) / 2], [0, double, (double - 1) / 2]])
    view = chain(zoom, view)
    size = (width * double, height * double)
    unit = _scale(view) * pose.scale
    density = next((d for d in _DENSITIES if d >= unit * 0.95), _DENSITIES[-1])
    paintings = _paint(who, density)
    canvas = _warp(paintings.room, chain(view, paintings.room_affine), size)
    to_pixels = chain(view, placement(pose))
    if paintings.back is not None:
        turn = np.array([[1, 0, -0.12 * np.sin(pose.yaw)], [0, 1, 0.0]])
        behind = chain(chain(to_pixels, turn), invert(paintings.head.to_pixels))
        _over(canvas, _warp(paintings.back, behind, size))
    # The shoulders follow the head a little.
    share, scale = 0.35, pose.scale
    follow = np.array([[scale, 0, pose.x * share], [0, scale, pose.y * share + (1 - scale) * 1.3]])
    body = chain(chain(view, follow), paintings.body_affine)
    _over(canvas, _warp(paintings.body, body, size))
    layer, place = _head_layer(pose, lips(who, mouth), paintings, to_pixels, size)
    if layer.size:
        _over(canvas[place], layer)
    if double == 2:
        canvas = np.asarray(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA))
    return canvas


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


@lru_cache(maxsize=_CACHED_PEOPLE)
def _paint(who: Identity, density: int) -> _Paintings:
    rng = np.random.default_rng([who.seed, 2])
    head, back = Canvas(_HEAD_BOX, density), Canvas(_HEAD_BOX, density)
    body, room = Canvas(BODY_BOX, density * 0.75), Canvas(ROOM_BOX, 40)
    paint_ears(who, head)
    face = paint_skin(who, head, rng)
    paint_beard(who, head, face, rng)
    paint_brows(who, head, rng)
    paint_hair(who, head, face, rng)
    paint_back_hair(who, back, rng)
    paint_body(who, body)
    for canvas in (head, back, body):
        canvas.colour *= who.exposure
    paint_room(who, room)
    return _Paintings(
        head=head,
        face=head.texture(),
        glasses=paint_glasses(who, head),
        back=back.texture() if back.cover.any() else None,
        body=body.texture(),
        body_affine=invert(body.to_pixels),
        room=np.ascontiguousarray(room.texture()[..., :3]),
        room_affine=invert(room.to_pixels),
    )


def _warp(texture: Frame, affine: Affine, size: tuple[int, int]) -> Frame:
    border = cv2.BORDER_REPLICATE if texture.shape[2] == 3 else cv2.BORDER_CONSTANT
    moved = cv2.warpAffine(texture, affine, size, flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(moved, np.uint8)


def _over(below: Frame, layer: Frame) -> None:
    """Lay premultiplied (h, w, 4) over (h, w, 3 or 4), in place."""
    rest = (255 - layer[..., 3:]).astype(np.uint16)
    below[:] = layer[..., : below.shape[2]] + ((below * rest + 127) // 255).astype(np.uint8)


def _head_layer(
    pose: Pose, shape: PosedMouth, paintings: _Paintings, to_pixels: Affine, size: tuple[int, int]
) -> tuple[Frame, tuple[slice, slice]]:
    """The turned, speaking head as premultiplied RGBA, and the rows and columns it fills."""
    who, head = shape.who, paintings.head
    left, top, right, bottom = _HEAD_BOX
    corners = np.array([(left, top), (right, top), (right, bottom + 0.2), (left, bottom + 0.2)])
    pixels = apply(to_pixels, corners)
    x0, y0 = np.clip(np.floor(pixels.min(axis=0)).astype(int), 0, size)
    x1, y1 = np.clip(np.ceil(pixels.max(axis=0)).astype(int) + 1, 0, size)
    if x1 <= x0 or y1 <= y0:
        return np.zeros((0, 0, 4), np.uint8), (slice(0, 0), slice(0, 0))
    back = invert(to_pixels)
    nodes_x, nodes_y = -(-(x1 - x0) // _NODE), -(-(y1 - y0) // _NODE)
    px, py = np.meshgrid(
        *(start + (np.arange(n) + 0.5) * _NODE - 0.5 for start, n in ((x0, nodes_x), (y0, nodes_y)))
    )
    plane = apply(back, np.stack([px.ravel(), py.ravel()], 1)).astype(np.float32)
    on_face = unproject(who, pose, plane[:, 0], plane[:, 1])
    face, source = (
        cv2.resize(
            np.stack(points, 1).reshape(nodes_y, nodes_x, 2),
            (nodes_x * _NODE, nodes_y * _NODE),
            interpolation=cv2.INTER_LINEAR,
        )[: y1 - y0, : x1 - x0]
        for points in (on_face, shape.source(*on_face))
    )
    # Around the lips the bend has an edge: it is computed for every pixel.
    mouth = _mouth_window(pose, shape, to_pixels, (x0, y0, x1, y1))
    inside = face[mouth]
    source[mouth] = np.stack(shape.source(inside[..., 0], inside[..., 1]), axis=-1)
    texture = paintings.face.copy()
    paint_eyes(who, pose, head, texture)
    if paintings.glasses is not None:
        middle = (who.eye_y - head.top) * head.density
        rows = slice(int(middle - 0.5 * head.density), int(middle + 0.5 * head.density))
        _over(texture[rows], paintings.glasses[rows])
    maps = source * head.to_pixels[0, 0] + head.to_pixels[:, 2]
    layer = cv2.remap(texture, maps.astype(np.float32), None, cv2.INTER_LINEAR)
    colour, cover = interior(shape, inside[..., 0], inside[..., 1], _scale(back))
    lipped = layer[mouth][..., :3]
    layer[*mouth, :3] = np.clip(lipped + (colour - lipped) * cover[..., None] + 0.5, 0, 255)
    return layer, (slice(y0, y1), slice(x0, x1))


def _mouth_window(
    pose: Pose, shape: PosedMouth, to_pixels: Affine, box: tuple[int, int, int, int]
) -> tuple[slice, slice]:
    """Rows and columns, from the box's corner, that hold the whole opening."""
    wide, y = shape.half_width + 0.06, shape.who.mouth_y
    high, low = y - 0.3 * shape.gap - 0.1, y + shape.drop + 0.7 * shape.gap + 0.1
    corners = np.array([(s * wide, v) for s in (-1, 1) for v in (high, low)])
    pixels = apply(to_pixels, project(shape.who, pose, corners))
    x0, y0, x1, y1 = box
    a, b = np.floor(pixels.min(axis=0)).astype(int) - 2, np.ceil(pixels.max(axis=0)).astype(int) + 3
    columns = slice(max(a[0] - x0, 0), max(min(b[0], x1) - x0, 0))
    return slice(max(a[1] - y0, 0), max(min(b[1], y1) - y0, 0)), columns
