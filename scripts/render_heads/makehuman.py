"""MakeHuman's mesh hm08 in numpy: vertices, faces, groups, targets, masks.

Units as in the files: decimetres, x to the person's left, y up, z to the front; the middle of the
mouth is near (0, 6.6, 1.5). Rest coordinates are those of the base mesh, before any target.
"""

import gzip
import json
from functools import cached_property, lru_cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["Floats", "Ints", "MakeHuman"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Target = tuple[Ints, Floats]
"""(n,) vertices and (n, 3) how far each of them moves, dm."""


class MakeHuman:
    """The folder of MakeHuman's data; each file is read once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.vertices, self.faces, self.uvs, self.face_groups = _read_mesh(
            folder / "mpfb2/3dobjs/base.obj"
        )
        self.target = lru_cache(maxsize=None)(self._target)

    @cached_property
    def groups(self) -> dict[str, Ints]:
        """Vertices by the name of their group."""
        path = self.folder / "mpfb2/mesh_metadata/basemesh_vertex_groups.json"
        found = {}
        for name, parts in json.loads(path.read_text()).items():
            spans = [part if isinstance(part, list) else (part, part) for part in parts]
            found[name] = np.concatenate([np.arange(a, b + 1) for a, b in spans])
        return found

    def _target(self, name: str) -> Target:
        """Read a target: `folder/name` of mpfb2, or `unit:name` of a face unit."""
        if name.startswith("unit:"):
            path = self.folder / f"faceunits01/targets/faceunits/{name[5:]}.target"
            return _parse_target(path.read_text())
        path = self.folder / f"mpfb2/targets/{name}.target.gz"
        return _parse_target(gzip.decompress(path.read_bytes()).decode())

    def move(self, vertices: Floats, name: str, weight: float) -> None:
        """Add `weight` times a target to the vertices, in place."""
        if abs(weight) > 1e-4:
            moved, offsets = self.target(name)
            vertices[moved] += weight * offsets

    def mask(self, name: str, uvs: Floats) -> Floats:
        """Look up a grey texture (`lips`, `inside-mouth`, ...) at (n, 2) uvs, in 0..1."""
        path = self.folder / f"mpfb2/textures/mpfb_{name}.jpg"
        picture = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if picture is None:
            raise FileNotFoundError(path)
        height, width = picture.shape
        rows = np.clip(((1 - uvs[:, 1]) * height).astype(int), 0, height - 1)
        columns = np.clip((uvs[:, 0] * width).astype(int), 0, width - 1)
        return np.asarray(picture[rows, columns] / 255.0)

    def nearest(self, point: tuple[float, float, float]) -> int:
        """Return the vertex of the body that is nearest to a point in rest coordinates."""
        body = self.vertices[self.groups["body"]]
        return int(self.groups["body"][((body - point) ** 2).sum(axis=1).argmin()])


def _read_mesh(path: Path) -> tuple[Floats, Ints, Floats, NDArray[np.str_]]:
    """Vertices (n, 3), quads (m, 4), one uv of each vertex (n, 2), and the group of each quad.

    A vertex on a seam of the texture keeps the uv of the last quad it appears in.
    """
    vertices, texture, faces, corners, names = [], [], [], [], []
    group = ""
    for line in path.read_text().splitlines():
        kind, *rest = line.split() or [""]
        if kind == "v":
            vertices.append([float(value) for value in rest])
        elif kind == "vt":
            texture.append([float(value) for value in rest[:2]])
        elif kind == "g":
            group = rest[0]
        elif kind == "f":
            pairs = [corner.split("/") for corner in rest]
            faces.append([int(pair[0]) - 1 for pair in pairs])
            corners.append([int(pair[1]) - 1 for pair in pairs])
            names.append(group)
    uvs = np.zeros((len(vertices), 2))
    uvs[np.array(faces).ravel()] = np.array(texture)[np.array(corners).ravel()]
    return np.array(vertices), np.array(faces), uvs, np.array(names)


def _parse_target(text: str) -> Target:
    lines = (line.split() for line in text.splitlines() if not line.startswith("#"))
    rows = [row for row in lines if len(row) == 4]
    offsets = np.array([[float(value) for value in row[1:]] for row in rows]).reshape(-1, 3)
    return np.array([int(row[0]) for row in rows], np.int64), offsets
