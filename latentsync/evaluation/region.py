"""Where a track has its face in a frame, for what needs a box."""

import numpy as np

from latentsync import align
from latentsync.types import Face, FloatArray

__all__ = ["BOX_CENTRE", "HALF_BOX", "face_of"]

# In units of `align.TEMPLATE`: where face detectors have their boxes on average, from the upper
# forehead to the chin. Half of the longer side, which is the height.
HALF_BOX = 42.0
BOX_CENTRE = (38.0, 38.0)
ASPECT = 0.75  # width / height


def face_of(affine: FloatArray, resolution: int) -> Face:
    """The face that an affine was made of, about: what a detector's other nets can be asked with.

    Its points are the template's three, its box is where detectors have theirs on average.

    Args:
        affine: (2, 3) frame px, which may be wide ones -> crop px of `resolution`.
    """
    unit = align.crop_size(resolution)[1] / align.BOX_HEIGHT  # px of the crop in one of template
    matrix = affine.astype(np.float64)
    places = np.array([*align.TEMPLATE, BOX_CENTRE]) * unit
    *points, centre = np.linalg.solve(matrix[:, :2], (places - matrix[:, 2]).T).T
    half = HALF_BOX * unit / np.linalg.norm(matrix[:, :2], axis=0) * np.array([ASPECT, 1])
    left, top, right, bottom = map(float, np.concatenate([centre - half, centre + half]))
    return Face((left, top, right, bottom), 1.0, np.array(points, np.float32))
