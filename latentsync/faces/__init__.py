"""Face detectors behind one Protocol, and whose face is followed through a clip.

A detector takes a frame and gives three points a face. Three of them, named by
`ModelConfig.detector`, and one by path; `create` makes one:

    insightface   SCRFD boxes and 106 points, what the published pipeline uses; its model pack is
                  for non-commercial research
    yunet         YuNet by OpenCV: five points, permissive licence
    builtin       OpenCV's cascades and a landmark net of this project: nothing to download;
                  upright faces seen about from the front
    <file>.xml    an OpenCV cascade of one's own, for drawn faces say

It looks at each frame by itself and keeps nothing from one to the next. A frame is an array, or a
picture of which only what is looked at is made: see view.py. `follow` runs a detector over a clip
and gives the track of the face that a `FaceChoice` means: see tracker.py.
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
    """The detector of that name, loaded.

    Args:
        name: "insightface", "yunet", "builtin", or the path of an OpenCV cascade (.xml).
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
    """The largest face of every frame, each frame by itself: `follow` as published."""
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
