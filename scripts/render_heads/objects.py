"""Blender objects made of arrays. Blender's axes: metres, z up, the face looks to -y."""

import bpy
import numpy as np
from numpy.typing import ArrayLike

from .glasses import Glasses
from .hair import Strands
from .makehuman import Floats
from .materials import frame_material, lens_material

__all__ = [
    "add_attribute",
    "add_eye",
    "add_glasses",
    "add_mesh",
    "add_strands",
    "move_mesh",
    "move_strands",
    "normals_of",
    "to_blender",
]

_METRES = 0.1  # of a decimetre
# Parts of an eyeball, whose rings are dense about the pupil.
_EYE_AROUND, _EYE_FRONT, _EYE_BACK = 64, 30, 18


def to_blender(points: ArrayLike) -> Floats:
    """Convert (..., 3) dm, y up, to metres, z up."""
    x, y, z = np.moveaxis(np.asarray(points, np.float64), -1, 0)
    return np.stack([x, -z, y], axis=-1) * _METRES


def _link(name: str, data: bpy.types.ID) -> bpy.types.Object:
    found = bpy.data.objects.new(name, data)
    bpy.context.scene.collection.objects.link(found)
    return found


def add_mesh(
    name: str,
    points: Floats,
    faces: ArrayLike,
    material: bpy.types.Material,
    uvs: Floats | None = None,
) -> bpy.types.Object:
    """Add a smooth mesh of (n, 3) points, dm; `uvs` is one a corner."""
    mesh = bpy.data.meshes.new(name)
    quads = np.asarray(faces).tolist()
    mesh.from_pydata(to_blender(points).tolist(), [], quads)
    if uvs is not None:
        layer = mesh.uv_layers.new(name="UVMap")
        layer.data.foreach_set("uv", uvs.astype(np.float32).ravel())
    mesh.polygons.foreach_set("use_smooth", np.ones(len(quads), bool))
    mesh.update()
    mesh.materials.append(material)
    return _link(name, mesh)


def add_attribute(item: bpy.types.Object, name: str, values: Floats) -> None:
    """Give each vertex a number, or with (n, 3) a vector."""
    kind, field = ("FLOAT_VECTOR", "vector") if values.ndim == 2 else ("FLOAT", "value")
    attribute = item.data.attributes.new(name, kind, "POINT")
    attribute.data.foreach_set(field, values.astype(np.float32).ravel())


def move_mesh(item: bpy.types.Object, points: Floats) -> None:
    """Set (n, 3) points, dm."""
    item.data.vertices.foreach_set("co", to_blender(points).astype(np.float32).ravel())
    item.data.update()


def normals_of(item: bpy.types.Object) -> Floats:
    """(n, 3) unit normals, in the axes of MakeHuman."""
    found = np.zeros(len(item.data.vertices) * 3, np.float32)
    item.data.vertices.foreach_get("normal", found)
    x, y, z = found.reshape(-1, 3).T.astype(np.float64)
    return np.stack([x, z, -y], axis=1)


def add_strands(name: str, strands: Strands, material: bpy.types.Material) -> bpy.types.Object:
    count, points, _ = strands.points.shape
    curves = bpy.data.hair_curves.new(name)
    curves.add_curves([points] * count)
    radius = np.linspace(1, strands.tip, points) * strands.radius_m
    attribute = curves.attributes.get("radius") or curves.attributes.new("radius", "FLOAT", "POINT")
    attribute.data.foreach_set("value", np.tile(radius, count).astype(np.float32))
    curves.materials.append(material)
    item = _link(name, curves)
    move_strands(item, strands.points)
    return item


def move_strands(item: bpy.types.Object, points: Floats) -> None:
    """Set (n, k, 3) points, dm."""
    item.data.position_data.foreach_set("vector", to_blender(points).astype(np.float32).ravel())
    item.data.update_tag()


def add_eye(material: bpy.types.Material, centre: Floats, radius: float) -> bpy.types.Object:
    """Add an eyeball with a bulging cornea; its pupil is at +z until it is turned."""
    turn = np.linspace(0, 2 * np.pi, _EYE_AROUND, endpoint=False)
    front = np.linspace(0, 0.75, _EYE_FRONT, endpoint=False)
    theta = np.repeat(np.concatenate([front, np.linspace(0.75, np.pi, _EYE_BACK)]), _EYE_AROUND)
    angle = np.tile(turn, _EYE_FRONT + _EYE_BACK)
    sphere = [np.sin(theta) * np.cos(angle), np.sin(theta) * np.sin(angle), np.cos(theta)]
    points = np.stack(sphere, axis=1)
    points *= (1 + 0.085 * np.exp(-0.5 * (theta / 0.3) ** 4))[:, None]
    ring = np.arange(_EYE_FRONT + _EYE_BACK - 1)[:, None] * _EYE_AROUND
    step = np.arange(_EYE_AROUND)
    after = (step + 1) % _EYE_AROUND
    corners = [ring + step, ring + _EYE_AROUND + step, ring + _EYE_AROUND + after, ring + after]
    item = add_mesh("eye", points, np.stack(corners, axis=-1).reshape(-1, 4), material)
    item.data.vertices.foreach_set("co", points.astype(np.float32).ravel())
    item.data.update()
    for name, values in (("theta", theta), ("angle", angle), ("rest", points)):
        add_attribute(item, name, values)
    item.location = to_blender(centre)
    item.scale = (radius * _METRES,) * 3
    return item


def add_glasses(glasses: Glasses) -> None:
    curve = bpy.data.curves.new("frame", "CURVE")
    curve.dimensions, curve.bevel_depth, curve.bevel_resolution = "3D", glasses.wire_m, 2
    lines = [(rim, True) for rim in glasses.rims] + [(bar, False) for bar in glasses.bars]
    for line, closed in lines:
        spline = curve.splines.new("POLY")
        spline.points.add(len(line) - 1)
        places = np.column_stack([to_blender(line), np.ones(len(line))])
        spline.points.foreach_set("co", places.astype(np.float32).ravel())
        spline.use_cyclic_u = closed
    curve.materials.append(frame_material(glasses.colour))
    _link("frame", curve)
    lens = lens_material()
    for rim in glasses.rims:
        add_mesh("lens", rim, [list(range(len(rim)))], lens)
