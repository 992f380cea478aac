"""Tracking of faces through a clip: detect -> link -> choose -> fill gaps.

    detect    every frame once, as it streams by: its faces, and whether a new shot begins
    link      each face to its person, frame by frame (linker.py)
    choose    one of each shot's people (selection.py, recognition.py)
    fill      short gaps, and explain the others (selection.py)

Detecting and linking don't depend on the choice, so a choice about a late frame holds for the early
ones, and `TrackSelection.tracks` may be asked for several choices after one pass.
"""

import logging
from array import array
from collections.abc import Iterable, Sequence
from itertools import combinations

import numpy as np

from latentsync.errors import NoFaceFound, option_name, with_option
from latentsync.faces.detectors.base import PUBLISHED, Detector
from latentsync.faces.detectors.frame_view import FrameLike, FrameView
from latentsync.faces.tracking.box_tracker import TemplateTracker
from latentsync.faces.tracking.choice import FaceChoice
from latentsync.faces.tracking.embedding import Embedder, PatchEmbedding
from latentsync.faces.tracking.linker import TrackAssociator, Tracklet, distance, is_continued
from latentsync.faces.tracking.selection import Gap, PointTrack, TrackSelection, runs
from latentsync.faces.tracking.shots import Cut, detect_shots
from latentsync.media import VideoReader
from latentsync.types import Face, FloatArray, Progress, ProgressCallback

__all__ = ["FrameWatcher", "follow", "no_face", "track_people"]

log = logging.getLogger(__name__)


def follow(
    frames: Iterable[FrameLike],
    detector: Detector,
    choice: FaceChoice,
    *,
    rounded: bool = False,
    published: bool = False,
    total: int | None = None,
    fps: float = 25,
    detect_every: int = 1,
    progress: ProgressCallback | None = None,
) -> list[PointTrack]:
    """Track the chosen face of a clip, or for `all` every face, the largest first.

    Args:
        frames: an iterable, of which a few are held at a time. Of pictures only the parts that are
            searched are converted; arrays are searched whole, as published, and have square pixels.
        rounded: landmarks on whole pixels.
        published: the largest face of every frame by itself, whatever `choice` says: no cuts, no
            second search, no gaps filled.
        total: number of frames, for `progress`, where that is known.
        fps: frames a second, for the time in `choice`.
        detect_every: one in this many frames is searched whole, see `FrameWatcher`.
        progress: called with stage "detect" after each frame; may raise to stop.

    Returns:
        At least one track, whose `found` may be False throughout.

    Raises:
        OptionError: the time lies beyond the end, the box beyond the frame, or there is no face
            at the point.
        NoFaceFound: there is none in the reference picture.
        MediaError: that isn't readable.
    """
    if published:
        return [_track_largest(frames, detector, rounded, total, progress)]
    scene = track_people(
        frames,
        detector,
        [choice],
        rounded=rounded,
        total=total,
        fps=fps,
        detect_every=detect_every,
        progress=progress,
    )
    return scene.tracks(choice)


def track_people(
    frames: Iterable[FrameLike],
    detector: Detector,
    choices: Sequence[FaceChoice],
    *,
    rounded: bool = False,
    total: int | None = None,
    fps: float = 25,
    detect_every: int = 1,
    progress: ProgressCallback | None = None,
) -> TrackSelection:
    """Detect and link the faces of a clip in one pass; arguments and errors as in `follow`.

    The detector is used only if a choice needs it: boxes are followed without.
    """
    embedder = detector if isinstance(detector, Embedder) else PatchEmbedding()
    references = {
        choice: _embed_reference(choice, detector, embedder) for choice in choices if choice.picture
    }
    boxes = {
        choice: TemplateTracker(choice.place, round(choice.seconds * fps), fps)
        for choice in choices
        if choice.kind == "box"
    }
    watch = FrameWatcher(detector, TrackAssociator(embedder), detect_every, rounded=rounded)
    detecting = any(choice.kind != "box" for choice in choices)
    cuts: list[Cut | None] = []
    faces_seen: list[int] = []
    view = FrameView(np.zeros((0, 0, 3), np.uint8))
    for index, (frame, cut) in enumerate(detect_shots(frames)):
        if detecting:
            faces_seen.append(watch.process(index, frame, cut=cut))
        for follower in boxes.values():
            follower.process(index, frame, cut=cut)
        cuts.append(cut)
        view = FrameView(frame)
        if progress:
            progress(Progress("detect", index + 1, total))
    mixed = np.zeros(len(cuts), bool)
    for index, one in enumerate(cuts):
        mixed[index - one.dissolve if one else index : index] = True
    return TrackSelection(
        shot_start=np.array([one is not None for one in cuts], bool),
        mixed=mixed,
        size=(view.width, view.height),
        pixel_aspect=view.aspect,
        people=watch.people(),
        faces=np.array(faces_seen or [0] * len(cuts), np.int64),
        fps=fps,
        rounded=rounded,
        filters=getattr(detector, "filters", PUBLISHED),
        embedder=embedder,
        references=references,
        boxes={choice: follower.boxes for choice, follower in boxes.items()},
    )


def _embed_reference(choice: FaceChoice, detector: Detector, embedder: Embedder) -> FloatArray:
    """Compute the embedding of the person in a reference picture."""
    assert choice.picture
    picture = next(iter(VideoReader(choice.picture).frames([0])))
    faces = detector.detect(picture)
    if not faces:
        raise NoFaceFound(
            f"no face in the reference picture {choice.picture} by {detector.describe()}; give "
            "one in which the face is larger or more frontal, or choose the face by a point x,y"
        )
    if isinstance(embedder, PatchEmbedding):
        log.info(
            "%s is compared by lightness and colour of the aligned face, as %s knows no people "
            "apart: take a picture from the clip itself, or choose by a point",
            choice.picture,
            detector.name,
        )
    return embedder.embed(picture, faces[0])


def _track_largest(
    frames: Iterable[FrameLike],
    detector: Detector,
    rounded: bool,
    total: int | None,
    progress: ProgressCallback | None,
) -> PointTrack:
    """Track the largest face of every frame, each frame by itself."""
    nothing, aspect = np.full((3, 2), np.nan, np.float32), 1.0
    rows = array("f")
    for done, frame in enumerate(frames, start=1):
        aspect = FrameView(frame).aspect
        faces = detector.detect(frame, rounded=rounded)
        rows.extend((faces[0].points if faces else nothing).ravel().tolist())
        if progress:
            progress(Progress("detect", done, total))
    points = np.array(rows, np.float32).reshape(-1, 3, 2)
    found = ~np.isnan(points[:, 0, 0])
    points[~found] = 0
    gaps = tuple(Gap(start, stop, "no face") for start, stop in runs(~found, 0, len(found)))
    return PointTrack(points, found, np.zeros_like(found), gaps, aspect)


def no_face(detector: Detector, frames: int, choice: FaceChoice, fps: float = 25) -> str:
    """Explain, in one line, that none of `frames` frames holds the chosen face."""
    looked = f"the {frames} frames looked at (0-{frames / fps:.2f} s of the clip)"
    if choice.kind == "box":
        return f"the content of the box {choice} is not found in {looked}; draw another box"
    if choice.kind == "reference":
        return (
            f"nobody like {choice} in {looked}; choose the face by a point: "
            f"{option_name('face')} x,y@seconds"
        )
    return (
        f"no face in {looked}{with_option('detector', f' by {detector.describe()}')}; give a clip "
        "with a larger or more frontal face"
        + with_option("detector", f", choose another {option_name('detector')}")
        + with_option(
            "face",
            ", or, for a drawn face say, tell where it is: "
            f"{option_name('face')} x,y,width,height@seconds",
        )
    )


MAX_REDETECTIONS = 2  # per frame, so that a crowd that leaves costs no more than that
CLOSE_DISTANCE = 0.5  # of their size: closer than this, two followed faces may be one


class FrameWatcher:
    """Runs the detector frame by frame and feeds the associator.

    Where a known face is lost, the detector searches again at higher resolution. The whole frame is
    searched in one of `every` frames, at a cut, where a followed face is uncertain, and while a
    face is missing. In other frames the faces of the frame before are followed, so a new face is
    detected up to `every` - 1 frames late.
    """

    def __init__(
        self, detector: Detector, linker: TrackAssociator, every: int, *, rounded: bool
    ) -> None:
        self._detector, self._linker, self._every = detector, linker, every
        self._rounded = rounded
        self._last: list[Face] = []
        self._next_search = 0

    def process(self, index: int, frame: FrameLike, *, cut: Cut | None) -> int:
        """Process the next frame, with `cut` if a new shot begins; return its number of faces."""
        if cut:
            self._linker.end_shot(index - cut.dissolve)
        seen = None if cut or index >= self._next_search else self._follow_last(frame)
        if seen is None:
            seen = self._detector.detect(frame, rounded=self._rounded)
            self._next_search = index + self._every
        self._linker.add(index, frame, seen)
        view = FrameView(frame)
        missing = self._linker.missing(index, (view.width, view.height))
        for person, near in missing[:MAX_REDETECTIONS]:
            again = self._detector.detect(frame, rounded=self._rounded, near=near)
            face = self._linker.add_second(index, frame, person, again, seen)
            seen = [*seen, face] if face else seen
        if any(person.last < index for person, _ in missing):
            self._next_search = index + 1
        self._last = seen
        return len(seen)

    def people(self) -> list[Tracklet]:
        """End the last shot, and return the people of all shots."""
        self._linker.end_shot()
        return self._linker.people

    def _follow_last(self, frame: FrameLike) -> list[Face] | None:
        """Follow the last frame's faces, largest first; None where a search is due."""
        now = self._detector.follow(frame, self._last, rounded=self._rounded)
        pairs = zip(self._last, now, strict=True)
        faces = [face for before, face in pairs if face and is_continued(before, face)]
        close = any(
            distance(one, np.array(other.box)) < CLOSE_DISTANCE
            for one, other in combinations(faces, 2)
        )
        if close or len(faces) < len(self._last):
            return None
        return sorted(faces, key=lambda face: -face.area)
