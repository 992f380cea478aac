"""Face detectors behind one Protocol: a frame in, three points a face out.

Three of them, named by `ModelConfig.detector`; `create` makes one:

    insightface   SCRFD boxes and 106 points, what the published pipeline uses; its model pack is
                  for non-commercial research
    yunet         YuNet by OpenCV: five points, permissive licence
    builtin       OpenCV's cascades and a landmark net of this project: nothing to download;
                  upright faces seen about from the front

A detector looks at each frame by itself and keeps nothing from one to the next. `track` runs one
over a clip.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentsync.errors import OptionError
from latentsync.faces.base import PUBLISHED, Detector, FaceFilter
from latentsync.faces.builtin import Builtin
from latentsync.faces.scrfd import InsightFace
from latentsync.faces.yunet import YuNet
from latentsync.types import FloatArray, Frame, Progress, ProgressCallback

__all__ = [
    "PUBLISHED",
    "Builtin",
    "Detector",
    "FaceFilter",
    "InsightFace",
    "Points",
    "YuNet",
    "create",
    "track",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Points:
    """The largest face of every frame of a clip."""

    points: FloatArray  # (n, 3, 2) x, y in frame px, as in `Face`; zeros where no face was found
    found: NDArray[np.bool_]  # (n,)


def create(
    name: str, *, root: Path, filters: FaceFilter = PUBLISHED, gpu: bool = False
) -> Detector:
    """The detector of that name, loaded.

    Args:
        name: "insightface", "yunet" or "builtin".
        root: Folder of the detectors' model files; nothing is ever downloaded into it here.
            builtin wants none of them: its net is part of the repository.
        filters: Which faces are acceptable.
        gpu: Whether to run on the GPU where the detector can; what came of it is in `describe()`.

    Raises:
        OptionError: no detector has that name.
        WeightsMissing: a model file is not there.
        WeightsMismatch: a model file holds something else.
        BackendUnavailable: insightface is not installed.
    """
    loaders: dict[str, Callable[[], Detector]] = {
        InsightFace.name: lambda: InsightFace(root, filters, gpu=gpu),
        YuNet.name: lambda: YuNet(root, filters),
        Builtin.name: lambda: Builtin(filters),
    }
    if name not in loaders:
        raise OptionError(f"face detector {name!r}; it must be one of {', '.join(loaders)}")
    detector = loaders[name]()
    log.info("face detector: %s", detector.describe())
    return detector


def track(
    frames: Iterable[Frame],
    detector: Detector,
    *,
    rounded: bool = False,
    total: int | None = None,
    progress: ProgressCallback | None = None,
) -> Points:
    """The largest face of every frame, each frame by itself (published).

    `frames` stream by and are not kept. `progress` hears of stage "detect" after each one, out of
    `total`, and may raise to stop. Nothing is smoothed: on drawn heads held still
    builtin jitters by 0.2 % of the eye distance, less than smoothing takes from heads that move.
    """
    nothing = np.full((3, 2), np.nan, np.float32)

    def largest() -> Iterator[FloatArray]:
        for done, frame in enumerate(frames, start=1):
            faces = detector.detect(frame, rounded=rounded)
            yield faces[0].points if faces else nothing
            if progress:
                progress(Progress("detect", done, total))

    points: FloatArray = np.fromiter(largest(), dtype=np.dtype((np.float32, (3, 2))))
    found: NDArray[np.bool_] = ~np.isnan(points[:, 0, 0])
    points[~found] = 0
    return Points(points=points, found=found)
