"""Face detectors behind one Protocol, and tracking of faces through a clip.

A detector finds three points per face in a frame. `create` makes one by name
(`ModelConfig.detector`) or by path:

    insightface   SCRFD boxes and 106 points, what the published pipeline uses; its model pack is
                  for non-commercial research
    yunet         YuNet by OpenCV: five points, permissive licence
    builtin       OpenCV's cascades and a landmark net of this project: nothing to download;
                  upright, roughly frontal faces
    <file>.xml    a user's OpenCV cascade, for drawn faces say

A detector keeps no state between frames. A frame is an array, or a picture of which only the needed
parts are converted: see detectors/frame_view.py. `follow` runs a detector over a clip and tracks
the face that a `FaceChoice` means: see tracking/tracker.py.
"""

import logging
from collections.abc import Callable, Iterable
from pathlib import Path

from latentsync.errors import OptionError, option_name
from latentsync.faces.detectors.base import PUBLISHED, Detector, FaceFilter
from latentsync.faces.detectors.builtin import Builtin
from latentsync.faces.detectors.cascade import CascadeFile
from latentsync.faces.detectors.frame_view import FrameLike
from latentsync.faces.detectors.scrfd import InsightFace
from latentsync.faces.detectors.yunet import YuNet
from latentsync.faces.tracking.choice import LARGEST, FaceChoice
from latentsync.faces.tracking.selection import Gap, PointTrack, TrackSelection, runs
from latentsync.faces.tracking.tracker import follow, no_face, track_people
from latentsync.types import ProgressCallback

__all__ = [
    "LARGEST",
    "PUBLISHED",
    "Builtin",
    "CascadeFile",
    "Detector",
    "FaceChoice",
    "FaceFilter",
    "FrameLike",
    "Gap",
    "InsightFace",
    "PointTrack",
    "TrackSelection",
    "YuNet",
    "create",
    "follow",
    "no_face",
    "runs",
    "track",
    "track_people",
]

log = logging.getLogger(__name__)


def create(
    name: str, *, root: Path, filters: FaceFilter = PUBLISHED, gpu: bool = False
) -> Detector:
    """Load the detector of that name.

    Args:
        name: "insightface", "yunet", "builtin", or the path of an OpenCV cascade (.xml).
        root: Folder of the detectors' model files; nothing is downloaded into it here. builtin
            needs none: its net is part of the repository.
        filters: Which faces are acceptable.
        gpu: Whether to run on the GPU if the detector can; `describe()` has the device in use.

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
    if name.endswith(".xml"):
        loaders[name] = lambda: CascadeFile(Path(name), filters)
    if name not in loaders:
        raise OptionError(
            f"{option_name('detector')} {name!r}; it must be one of {', '.join(loaders)}, or the "
            "path of an OpenCV cascade (.xml)"
        )
    detector = loaders[name]()
    log.info("face detector: %s", detector.describe())
    return detector


def track(
    frames: Iterable[FrameLike],
    detector: Detector,
    *,
    rounded: bool = False,
    total: int | None = None,
    progress: ProgressCallback | None = None,
) -> PointTrack:
    """Track the largest face of every frame, each frame by itself: `follow` as published."""
    (found,) = follow(
        frames,
        detector,
        LARGEST,
        rounded=rounded,
        published=True,
        total=total,
        progress=progress,
    )
    return found
