"""What a person says and does: what `takes` draws, and `worker` renders. An .npz between them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .makehuman import Floats, Ints

__all__ = ["Plan", "write_arrays"]


@dataclass(frozen=True)
class Plan:
    """Moments in w windows of f frames each, the camera, and the voice."""

    frames: Ints  # (w, f) numbers in the take, 25 a second
    tracks: Floats  # (w, f, 5) the mouth, columns of `latentsync.training.synthetic.TRACKS`
    head: Floats  # (w, f, 5) fields of neck.HeadPose
    face: Floats  # (w, f, 6) fields of expressions.Expression
    jitter: Floats  # (w, f, 3, 2) error of the crop's anchors, in distances of the brows
    zoom: Floats  # (w, f) size of the face in a scene, 1 is common
    view: Floats  # (3,) camera of crops: distance in dm, yaw and pitch in rad
    size: Ints  # (2,) width and height of a scene, px; of a crop: its side, and 0
    wave: NDArray[np.int16]  # (samples,) 16 kHz

    def save(self, path: Path) -> None:
        write_arrays(path, vars(self))

    @classmethod
    def load(cls, path: Path) -> "Plan":
        with np.load(path) as file:
            return cls(**file)


def write_arrays(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write an .npz that is whole or not there.

    A killed run leaves `.<name>`, which the next one writes over.
    """
    temporary = path.with_name(f".{path.name}")
    with temporary.open("wb") as file:
        np.savez(file, **arrays)
    temporary.replace(path)
