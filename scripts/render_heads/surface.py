"""Surfaces: Catmull-Clark subdivision as one matrix, and points that follow a mesh."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from .makehuman import Floats, Ints

__all__ = ["Follower", "Roots", "draw_roots", "subdivide"]


def subdivide(vertices: int, quads: Ints, levels: int) -> tuple[sparse.csr_matrix, Ints]:
    """Return S and the new quads: new points = S @ old points.

    The same matrix carries colours and masks over.
    """
    whole = sparse.identity(vertices, format="csr")
    for _ in range(levels):
        step, quads = _subdivide_once(whole.shape[0], quads)
        whole = step @ whole
    return whole.tocsr(), quads


def _subdivide_once(count: int, quads: Ints) -> tuple[sparse.csr_matrix, Ints]:
    faces = len(quads)
    sides = np.sort(np.stack([quads, np.roll(quads, -1, axis=1)], axis=2).reshape(-1, 2), axis=1)
    keys, edge_of_side, uses = np.unique(
        sides[:, 0] * count + sides[:, 1], return_inverse=True, return_counts=True
    )
    edges = np.stack([keys // count, keys % count], axis=1)
    edge_of_side = edge_of_side.reshape(faces, 4)
    each_face = np.repeat(np.arange(faces), 4)
    ones = np.ones(faces * 4)
    face_points = sparse.csr_matrix((ones / 4, (each_face, quads.ravel())), (faces, count))
    middles = sparse.csr_matrix(
        (np.full(len(edges) * 2, 0.5), (np.repeat(np.arange(len(edges)), 2), edges.ravel())),
        (len(edges), count),
    )
    faces_of_edge = sparse.csr_matrix(
        (ones, (edge_of_side.ravel(), each_face)), (len(edges), faces)
    )
    inner = uses == 2
    edge_points = _diagonal(np.where(inner, 0.5, 1.0)) @ middles
    edge_points = edge_points + _diagonal(inner * 0.25) @ (faces_of_edge @ face_points)
    faces_of_vertex = sparse.csr_matrix((ones, (quads.ravel(), each_face)), (count, faces))
    inside = _inner_points(faces_of_vertex @ face_points, faces_of_vertex, middles)
    border = _border_points(count, edges[~inner])
    on_border = np.zeros(count, bool)
    on_border[edges[~inner]] = True
    old_points = _diagonal(~on_border * 1.0) @ inside + _diagonal(on_border * 1.0) @ border
    matrix = sparse.vstack([old_points, edge_points, face_points]).tocsr()
    first_edge, first_face = count, count + len(edges)
    corners = [
        np.stack(
            [
                quads[:, i],
                first_edge + edge_of_side[:, i],
                first_face + np.arange(faces),
                first_edge + edge_of_side[:, i - 1],
            ],
            axis=1,
        )
        for i in range(4)
    ]
    return matrix, np.stack(corners, axis=1).reshape(-1, 4)


def _inner_points(
    face_sums: sparse.csr_matrix, faces_of_vertex: sparse.csr_matrix, middles: sparse.csr_matrix
) -> sparse.csr_matrix:
    """Catmull and Clark's (F + 2 R + (n - 3) P) / n."""
    ends = (middles.T > 0).astype(float)
    edges = np.maximum(np.asarray(ends.sum(axis=1)).ravel(), 1)
    faces = np.maximum(np.asarray(faces_of_vertex.sum(axis=1)).ravel(), 1)
    around = _diagonal(1 / (edges * faces)) @ face_sums + _diagonal(2 / edges**2) @ (ends @ middles)
    return around + _diagonal((edges - 3) / edges)


def _border_points(count: int, edges: Ints) -> sparse.csr_matrix:
    """Three quarters of the vertex, one quarter of its neighbours along the border."""
    neighbours = sparse.csr_matrix(
        (np.ones(len(edges) * 2), (edges.ravel(), edges[:, ::-1].ravel())), (count, count)
    )
    number = np.maximum(np.asarray(neighbours.sum(axis=1)).ravel(), 1)
    return _diagonal(np.full(count, 0.75)) + _diagonal(0.25 / number) @ neighbours


def _diagonal(values: Floats) -> sparse.csr_matrix:
    return sparse.diags(values, format="csr")


class Follower:
    """Points that move with the nearest vertices of a group."""

    def __init__(self, points: Floats, rest: Floats, group: Ints) -> None:
        """Bind (n, 3) points by inverse distance, both in rest coordinates."""
        distance = np.linalg.norm(points[:, None] - rest[group][None], axis=2)
        near = np.argsort(distance, axis=1)[:, :6]
        weights = 1 / (np.take_along_axis(distance, near, axis=1) + 0.02) ** 2
        self.weights = weights / weights.sum(axis=1, keepdims=True)
        self.vertices = group[near]
        self.points, self.rest = points, rest

    def at(self, vertices: Floats) -> Floats:
        """Where the points are when the mesh is at `vertices`."""
        moved = (vertices - self.rest)[self.vertices]
        return np.asarray(self.points + (moved * self.weights[..., None]).sum(axis=1))


@dataclass(frozen=True)
class Roots:
    """Roots of hairs on triangles of the mesh."""

    vertices: Ints  # (n, 3)
    weights: Floats  # (n, 3) barycentric

    def __getitem__(self, chosen: NDArray[np.bool_]) -> "Roots":
        return Roots(self.vertices[chosen], self.weights[chosen])

    def __len__(self) -> int:
        return len(self.vertices)

    def at(self, vertices: Floats) -> Floats:
        return np.asarray((vertices[self.vertices] * self.weights[..., None]).sum(axis=1))

    def normals(self, vertices: Floats) -> Floats:
        a, b, c = (vertices[self.vertices[:, i]] for i in range(3))
        normals = np.cross(b - a, c - a)
        return np.asarray(normals / (np.linalg.norm(normals, axis=1, keepdims=True) + 1e-9))


def draw_roots(
    rng: np.random.Generator, rest: Floats, triangles: Ints, density: Floats, count: int
) -> Roots:
    """Draw `count` roots with a chance proportional to area times density (one a vertex)."""
    a, b, c = (rest[triangles[:, i]] for i in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) * density[triangles].mean(axis=1)
    chosen = triangles[rng.choice(len(triangles), count, p=area / area.sum())]
    u, v = np.sqrt(rng.random(count)), rng.random(count)
    return Roots(chosen, np.stack([1 - u, u * (1 - v), u * v], axis=1))
