"""LMD: how far the lips of an output lie from those of the truth.

The landmarks are those of whichever detector has some of the mouth: builtin 6, insightface 20, the
paper's 20 by dlib. Compare figures of one detector only.
"""

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from latentsync.errors import OptionError
from latentsync.faces import FrameLike
from latentsync.types import Face

__all__ = ["MouthFinder", "landmark_distance", "mouth_finder"]

Array = NDArray[np.float64]
Points = NDArray[np.floating]


@runtime_checkable
class MouthFinder(Protocol):
    """A detector that also knows landmarks of the mouth."""

    def mouth(self, frame: FrameLike, seen: Face) -> Array:
        """(p, 2) x, y in px of the frame, of a face that it saw or that `region.face_of` gave."""
        ...


def mouth_finder(detector: object) -> MouthFinder:
    """The detector, if it has landmarks of the mouth. Raises OptionError where it has none."""
    if not isinstance(detector, MouthFinder):
        name = getattr(detector, "name", type(detector).__name__)
        raise OptionError(
            f"the detector {name} has no landmarks of the lips; take insightface or builtin"
        )
    return detector


def landmark_distance(mouths: Points, truth: Points) -> Array:
    """Mean Euclidean distance of a mouth's landmarks to the truth's, in px: 0 is equal.

    "Lip movements generation at a glance", https://arxiv.org/abs/1803.10404: the means of each
    frame's lips are laid on each other first, so that where the face lies doesn't count.

    Args:
        mouths, truth: (n, p, 2) x, y, in the same order.

    Returns:
        (n,), one a frame; the paper's figure is their mean.

    Raises:
        OptionError: other shapes, or a place that is not finite.
    """
    a, b = np.asarray(mouths, np.float64), np.asarray(truth, np.float64)
    if a.shape != b.shape or a.ndim != 3 or a.shape[2] != 2 or not a.size:
        raise OptionError(
            f"landmarks are of shapes {a.shape} and {b.shape}; both must be (n, p, 2), of one "
            "detector"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise OptionError("a landmark's place is not finite; leave those frames out")
    apart = (a - a.mean(axis=1, keepdims=True)) - (b - b.mean(axis=1, keepdims=True))
    return np.asarray(np.linalg.norm(apart, axis=2).mean(axis=1))
