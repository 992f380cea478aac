"""Where a turned face ends in its crop, so that no mouth is pasted on hair or wall beside it."""

import numpy as np

from latentsync.faces import align
from latentsync.types import FloatArray

__all__ = ["outline_edge", "outline_share"]

# x of a face's edge on the averted side, in units of `align.TEMPLATE`, by the nose's place: a aside
# of the brows' middle and d below it. Factors of 1, u, u u, a, a u, a a, d, d u, d a, d d, where u
# is (y - 60) / 30. Fitted to drawn heads that are turned by up to 40 degrees and to heads of
# MakeHuman's mesh (CC0) turned by up to 60; off by 3.6 RMS: `benchmarks/paste.py --fit`.
EDGE = (114.2, -9.2, -6.7, -33.5, 8.1, 8.3, -77.0, -4.1, 15.8, 18.2)
FIRST_ROW, LAST_ROW = 30.0, 80.0  # of the template; beyond, the edge goes straight down
# Units by which the edge is laid further out: the fit's error; more on faces turned far, on which
# the mouth's corner is near the edge.
MARGIN, MARGIN_GROWTH, MARGIN_FROM, MAX_MARGIN = 4.0, 8.0, 0.25, 7.0
SOFT = 6.0  # units over which the paste goes
# Distances of the brows aside: from 5 degrees of turn on the edge is heeded, from 15 on fully. A
# face seen from the front keeps all of its paste.
FRONTAL, TURNED = 0.035, 0.1


def outline_edge(aside: float, below: float, rows: FloatArray) -> FloatArray:
    """Where a face that is turned to the right ends, (n,) x at the rows' y (n,), in TEMPLATE units.

    Args:
        aside, below: the nose base's place from the brows' middle, in distances of the brows.
    """
    u = (np.clip(rows, FIRST_ROW, LAST_ROW) - 60) / 30
    a, d = abs(aside), below
    one = np.ones_like(u)
    terms = (one, u, u * u, a * one, a * u, a * a * one, d * one, d * u, d * a * one, d * d * one)
    return np.asarray(np.array(EDGE) @ np.stack(terms), np.float32)


def outline_share(aside: float, below: float, resolution: int) -> FloatArray | None:
    """(resolution, resolution) float32 in [0, 1]: 0 beyond the face's edge on the averted side.

    None where all of it is 1: on a face seen from the front, or one of unknown turn.
    """
    if not abs(aside) > FRONTAL or not np.isfinite(below):
        return None
    y, x = (
        ((np.arange(resolution) + 0.5) / resolution * size).astype(np.float32)
        for size in (align.BOX_HEIGHT, align.BOX_WIDTH)
    )
    margin = MARGIN + MARGIN_GROWTH * max(0.0, abs(aside) - MARGIN_FROM)
    edge = outline_edge(aside, below, y) + np.float32(min(margin, MAX_MARGIN))
    away = (x[None, :] - edge[:, None]).astype(np.float32)
    beyond = _eased(away / np.float32(SOFT) + np.float32(0.5))
    heeded = np.float32((abs(aside) - FRONTAL) / (TURNED - FRONTAL))
    share = 1 - beyond * _eased(np.full(1, heeded))
    return np.ascontiguousarray(share if aside > 0 else share[:, ::-1], np.float32)


def _eased(share: FloatArray) -> FloatArray:
    """From 0 at 0 to 1 at 1, without a kink at either end."""
    t = np.clip(share, 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)
