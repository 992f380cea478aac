"""Pass 1: detect and track the faces that will be lip-synced."""

import logging
from collections.abc import Generator, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, islice
from typing import Any

import numpy as np

from latentsync import faces
from latentsync.errors import NoFaceFound, OptionError, option_name
from latentsync.faces import FaceChoice, align
from latentsync.faces.head_pose import nose_places, turned_away, yaw
from latentsync.options import Options
from latentsync.pipeline.frame_source import FrameSource
from latentsync.runtime.disk_cache import ClipCache
from latentsync.runtime.files import file_digest
from latentsync.runtime.prefetch import prefetch
from latentsync.runtime.progress import RunContext
from latentsync.types import FaceTrack, ShotFaces

__all__ = ["cuts", "faces_at", "faces_found", "find_face_tracks", "lost", "shots"]

log = logging.getLogger(__name__)

SAME_FACE_PX = 0.5  # px; two speakers' faces that lie no further apart are one face
PREFETCH_FRAMES = 8  # decoded before the detector wants them


def find_face_tracks(
    source: FrameSource,
    at_most: int | None,
    detector: faces.Detector,
    choices: Sequence[FaceChoice],
    options: Options,
    *,
    resolution: int,
    context: RunContext,
    cache: ClipCache | None = None,
) -> list[FaceTrack]:
    """Find the chosen faces in the first `at_most` frames.

    Args:
        choices: one, of which several faces may be meant ("all"), or one for each speaker.
        resolution: px, side of the square crop of a face.
        cache: of the clip. Then all of it is looked at, so that a longer voice finds it done.

    Returns:
        At least one track; with several choices one of each, in their order.

    Raises:
        NoFaceFound: in none of the frames, or with on_missing "error" not in all.
        InputError: a choice fits no face, or two mean the same one.
    """

    def find() -> list[FaceTrack]:
        found = _detect(source, None if cache else at_most, detector, choices, options, context)
        if len(choices) > 1:
            _check_apart(found, choices)
        return [_placed(one, options, resolution, float(source.fps)) for one in found]

    facts = {
        "detector": detector.describe(),
        "faces": [(choice, choice.picture and file_digest(choice.picture)) for choice in choices],
        "fps": source.fps,
        "resolution": resolution,
        "options": [getattr(options, name) for name in ("landmarks", "follow", "smooth")],
        "max_yaw": options.max_yaw,
        "detect_every": options.effort.detect_every,
    }
    tracks = cache.tracks(facts, find) if cache else find()
    tracks = tracks if at_most is None else [track.first(at_most) for track in tracks]
    context.step("detect", len(tracks[0]), len(tracks[0]))
    tracks = _existing(tracks, choices, detector, source.fps, options)
    _log(tracks, choices, source.fps)
    for start, stop, reason in lost(tracks, choices):
        said = f"source frames {start}-{stop - 1} ({float(start / source.fps):.2f} s on): {reason}"
        if options.on_missing == "error":
            raise NoFaceFound(
                f"{said}; to let such frames pass through, set {option_name('on_missing')} to keep"
            )
        log.info("%s; they pass through", said)
    return tracks


def _existing(
    tracks: list[FaceTrack],
    choices: Sequence[FaceChoice],
    detector: faces.Detector,
    fps: Fraction,
    options: Options,
) -> list[FaceTrack]:
    """The tracks with a face in them; NoFaceFound if a speaker's, or every one, has none."""
    missing = [i for i, track in enumerate(tracks) if not track.detected.any()]
    if missing and (len(choices) > 1 or len(missing) == len(tracks)):
        first = missing[0]  # of `all` the largest face
        choice = choices[first if len(choices) > 1 else 0]
        turned = _all_turned(tracks[first], choice, options)
        none = faces.no_face(detector, len(tracks[0]), choice, float(fps))
        raise NoFaceFound(turned or none)
    return [track for track in tracks if track.detected.any()]


def lost(
    tracks: Sequence[FaceTrack], choices: Sequence[FaceChoice]
) -> tuple[tuple[int, int, str], ...]:
    """Source frames [start, stop) without a face that is to speak, and why.

    Of `all` faces those without the first; of several speakers those without any, and whose.
    """
    if len(choices) == 1:
        return tracks[0].gaps
    return tuple(
        sorted(
            (start, stop, f"{choice}: {why}")
            for choice, track in zip(choices, tracks, strict=True)
            for start, stop, why in track.gaps
        )
    )


def faces_found(tracks: Sequence[FaceTrack]) -> int:
    """Count the source frames with a face, also those in which it is turned too far."""
    seen = [
        track.detected if track.nose is None else track.detected | np.isfinite(track.nose[:, 0])
        for track in tracks
    ]
    return int(np.any(seen, axis=0).sum())


def _all_turned(track: FaceTrack, choice: FaceChoice, options: Options) -> str:
    """What to say where a face is found, but never without too much turn; else nothing."""
    angles = np.zeros(0) if track.nose is None else np.abs(yaw(track.nose))
    angles = angles[np.isfinite(angles)]
    if options.max_yaw is None or not len(angles):
        return ""
    return (
        f"the face {choice} is found in {len(angles)} of {len(track)} frames, all turned further "
        f"than {option_name('max_yaw')} {options.max_yaw:g} degrees ({angles.min():.0f} to "
        f"{angles.max():.0f}); give a larger {option_name('max_yaw')}, or none, to have the mouth "
        "drawn on turned faces too"
    )


def cuts(tracks: Sequence[FaceTrack]) -> tuple[int, ...]:
    """The source frames at which a new shot begins."""
    cut = tracks[0].shot_start
    return () if cut is None else tuple(np.flatnonzero(cut).tolist())


def shots(tracks: Sequence[FaceTrack]) -> tuple[ShotFaces, ...]:
    """The faces of each shot, and which of them speak; `tracks` are of one clip."""
    together = zip(*(track.shots for track in tracks if track.shots), strict=True)
    return tuple(
        replace(
            of_each[0],
            faces=max((one.faces for one in of_each), key=len),
            taken=tuple(one.taken[0] for one in of_each),
        )
        for of_each in together
    )


def _log(tracks: Sequence[FaceTrack], choices: Sequence[FaceChoice], fps: Fraction) -> None:
    """Log the cuts, how many faces each shot has, and which of them speak."""
    if tracks[0].shot_start is not None:
        times = ", ".join(f"{float(index / fps):.2f}" for index in cuts(tracks))
        log.info("cuts at %s s", times) if times else log.info("no cuts")
    found = shots(tracks)
    for shot in found:
        taken = [_at(shot.faces[one]) for one in shot.taken if one is not None]
        log.info(
            "%.2f-%.2f s: %s; taken: %s",
            *(float(frame / fps) for frame in (shot.start, shot.stop)),
            faces_at(shot.faces),
            " and ".join(taken) or "none",
        )
    sides = [choice for choice in choices if choice.kind in ("left", "right", "center")]
    if found and max(len(shot.faces) for shot in found) == 1:
        places = dict.fromkeys(_at(shot.faces[0]) for shot in found if shot.faces)
        for choice in sides:
            log.warning(
                "face %s: no shot has more than one face that was found, and that is taken: at %s "
                "px",
                choice,
                ", ".join(places),
            )


def faces_at(faces: Sequence[tuple[int, int]]) -> str:
    """How many there are, and where."""
    if not faces:
        return "no face"
    count = "1 face" if len(faces) == 1 else f"{len(faces)} faces"
    return f"{count}, at {' and '.join(map(_at, faces))}"


def _at(place: tuple[int, int]) -> str:
    return f"{place[0]},{place[1]}"


def _detect(
    source: FrameSource,
    at_most: int | None,
    detector: faces.Detector,
    choices: Sequence[FaceChoice],
    options: Options,
    context: RunContext,
) -> list[faces.PointTrack]:
    published = options.follow == "frame"  # whose detector shrinks RGB frames itself
    if published and len(choices) > 1:
        raise OptionError("follow is 'frame', which knows one face; speakers want follow 'person'")

    def read() -> Generator[faces.FrameLike, None, None]:
        for frame in islice(source.frames(), at_most):
            yield frame.rgb() if published else frame

    frames = prefetch(read(), PREFETCH_FRAMES)
    how: dict[str, Any] = {
        "rounded": options.landmarks == "rounded",
        "total": source.expected(at_most),
        "fps": float(source.fps),
        "progress": context,
    }
    if published:
        return faces.follow(frames, detector, choices[0], published=True, **how)
    every = options.effort.detect_every
    scene = faces.track_people(frames, detector, choices, detect_every=every, **how)
    return scene.tracks(choices[0]) if len(choices) == 1 else scene.speakers(choices)


def _check_apart(found: Sequence[faces.PointTrack], choices: Sequence[FaceChoice]) -> None:
    for (one, first), (other, second) in combinations(zip(found, choices, strict=True), 2):
        both = one.detected & other.detected
        if both.any() and np.abs(one.points[both] - other.points[both]).max() < SAME_FACE_PX:
            raise OptionError(
                f"speakers {first} and {second} are the same face; tell them apart by points "
                "x,y@seconds"
            )


def _placed(face: faces.PointTrack, options: Options, resolution: int, fps: float) -> FaceTrack:
    steadied = face.shot_start, options.smooth
    track = align.face_track(
        face.points, face.detected, resolution, *steadied, pixel_aspect=face.pixel_aspect
    )
    nose = np.where(face.detected[:, None], nose_places(face.points), np.nan).astype(np.float32)
    gaps, detected = [(one.start, one.stop, one.reason) for one in face.gaps], track.detected
    if options.max_yaw is not None:
        away = turned_away(yaw(nose), options.max_yaw, fps, face.shot_start)
        turned = faces.runs(detected & away, 0, len(detected))
        gaps += [(a, b, "turned away") for a, b in turned]
        detected = detected & ~away
    return replace(
        track,
        shot_start=face.shot_start,
        gaps=tuple(sorted(gaps)),
        detected=detected,
        nose=nose,
        shots=face.shots,
    )
