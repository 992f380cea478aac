"""Lip-sync confidence on the published crop geometry: S3FD's boxes -> face tracks -> squares.

As https://github.com/joonson/syncnet_python/blob/1fbfc08/run_pipeline.py, with the shorter tracks
of LatentSync's evaluation (https://github.com/bytedance/LatentSync/blob/a229c39/eval). There are
two differences: shots are detected by this project's detector instead of PySceneDetect, and no
frame goes through JPEG and a lossy encode on its way to SyncNet.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from latentsync.errors import NoFaceFound
from latentsync.evaluation.nets.eval_syncnet import EvalSyncNet
from latentsync.evaluation.nets.s3fd import S3FD
from latentsync.evaluation.sync import (
    MEDIAN_FRAMES,
    PADDING,
    SAMPLES_PER_FRAME,
    SyncScore,
    crop_square,
    running_median,
    sync_confidence,
)
from latentsync.faces.tracking.shots import detect_shots
from latentsync.media import VideoFrame, VideoReader
from latentsync.types import FloatArray, Frame

__all__ = ["FaceBoxes", "box_crops", "detect_boxes", "face_tracks", "sync_conf"]

Array = NDArray[np.float64]

SCALE = 0.25  # of the frame, at which faces are detected
MIN_SIDE = 32  # px of the scaled frame; five poolings leave one pixel of it
MIN_SCORE = 0.9
MAX_OVERLAPS = (0.3, 0.1)  # intersection over union of two boxes, in two rounds of suppression
MIN_TRACK_OVERLAP = 0.5  # intersection over union with the last box of a track
MAX_GAP_FRAMES = 25  # in which a track may miss its face
MIN_TRACK_FRAMES = 50  # a track has more
MIN_FACE = 100  # px, mean of the longer side; a face is larger


@dataclass(frozen=True)
class FaceBoxes:
    """One face's box in each frame of a stretch."""

    start: int  # its first frame
    boxes: Array  # (n, 4) left, top, right, bottom in square px, as high as the frame's


def sync_conf(
    net: EvalSyncNet,
    detector: S3FD,
    clip: VideoReader,
    sound: FloatArray,
    *,
    wanted: Callable[[int, Array], bool] = lambda _start, _boxes: True,
    check: Callable[[], None] = lambda: None,
) -> tuple[SyncScore, ...]:
    """Score each face track as the published evaluation does; its figure is their mean.

    The clip is read twice. S3FD is a large net: one second a frame on one CPU core, in full HD.

    Args:
        clip: read at 25 fps.
        sound: (samples,) float32 in [-1, 1) at 16 kHz, beginning with the clip.
        wanted: called with a track's first frame and boxes (n, 4) in shares of the frame's width
            and height; whether the track counts. Default all do, as published.
        check: called for each frame in which faces are detected; raises to cancel.

    Raises:
        NoFaceFound: no face of 100 px is there for more than 50 frames, or none that is wanted.
    """
    found, cuts, size = [], [], np.ones(4)
    for i, (frame, cut) in enumerate(detect_shots(clip.frames())):
        check()
        assert isinstance(frame, VideoFrame)
        found.append(detect_boxes(detector, frame.rgb(), float(frame.pixel_aspect)))
        cuts += [i] if cut else []
        size = np.tile([frame.width * float(frame.pixel_aspect), frame.height], 2)
    tracks = face_tracks(found, cuts)
    if not tracks:
        raise NoFaceFound(
            f"S3FD has no face of {MIN_FACE} px over {MIN_TRACK_FRAMES} frames among the "
            f"{len(found)} of this clip; give a longer or a larger one, or take sync_conf_local"
        )
    tracks = [track for track in tracks if wanted(track.start, track.boxes / size)]
    if not tracks:
        raise NoFaceFound("S3FD follows other faces only; take sync_conf_local")
    scores = []
    for track in tracks:
        start, stop = track.start, track.start + len(track.boxes)
        crops = box_crops(clip.frames(range(start, stop)), track.boxes)
        scores.append(
            sync_confidence(net, crops, sound[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME])
        )
    return tuple(scores)


def detect_boxes(net: S3FD, frame: Frame, pixel_aspect: float = 1.0) -> Array:
    """Detect faces: boxes (k, 4) in square px as high as the frame's, highest score first."""
    wide = SCALE * pixel_aspect
    small = cv2.resize(frame, None, fx=wide, fy=SCALE, interpolation=cv2.INTER_LINEAR)
    if min(small.shape[:2]) < MIN_SIDE:
        return np.empty((0, 4))
    device = next(net.parameters()).device
    with torch.inference_mode():
        picture = torch.from_numpy(small).permute(2, 0, 1)[None].to(device).float()
        scores, boxes = (x[0].double().cpu().numpy() for x in net(picture))
    order = np.argsort(-scores, kind="stable")
    boxes = boxes[order[scores[order] > MIN_SCORE]]
    for overlap in MAX_OVERLAPS:
        kept: list[int] = []  # boxes that overlap no better one
        for i, box in enumerate(boxes):
            if (_overlaps(boxes[kept], box) <= overlap).all():
                kept.append(i)
        boxes = boxes[kept]
    sizes = np.array(frame.shape[1::-1]) * (pixel_aspect, 1) / small.shape[1::-1]
    return np.asarray(boxes * np.tile(sizes, 2))


def _overlaps(boxes: Array, box: Array) -> Array:
    """(n,) intersection over union of boxes (n, 4) and one."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    common = np.maximum(sides, 0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return np.asarray(common / (areas - common))


def face_tracks(found: Sequence[Array], cuts: Sequence[int] = ()) -> list[FaceBoxes]:
    """Track faces, and keep the tracks that are long enough; gaps are interpolated.

    Args:
        found: (k, 4) for each frame, by `detect_boxes`.
        cuts: first frames of new shots; no track crosses them.
    """
    edges = [0, *cuts, len(found)]
    tracks = []
    for first, last in pairwise(edges):
        free = [list(boxes) for boxes in found[first:last]]
        while track := _next_track(free):
            frames = np.array(list(track))
            every = np.arange(frames[0], frames[-1] + 1)
            columns = np.array(list(track.values())).T
            boxes = np.stack([np.interp(every, frames, column) for column in columns], axis=1)
            sides = (boxes[:, 2:] - boxes[:, :2]).mean(axis=0)
            if len(track) > MIN_TRACK_FRAMES and sides.max() > MIN_FACE:
                tracks.append(FaceBoxes(first + int(frames[0]), boxes))
    return tracks


def _next_track(free: list[list[Array]]) -> dict[int, Array]:
    """Remove the first face from `free` in all frames of its track: frame -> box."""
    track: dict[int, Array] = {}
    last = 0
    for i, boxes in enumerate(free):
        if track and i - last > MAX_GAP_FRAMES:
            break
        for j, box in enumerate(boxes):
            if not track or _overlaps(box[None], track[last])[0] > MIN_TRACK_OVERLAP:
                track[i], last = boxes.pop(j), i
                break
    return track


def box_crops(frames: Iterable[VideoFrame], boxes: Array) -> Iterator[Frame]:
    """Crop the square around each frame's face for SyncNet, (224, 224, 3) uint8 RGB.

    The box's longer side is widened by 0.4 of its half on either side, and by twice that below.
    Place and size are smoothed by a median over 13 frames, padded with zeros as published.
    """
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / 2
    rows = running_median(np.column_stack([middles, halves]), MEDIAN_FRAMES, beyond="constant")
    for frame, (x, y, half) in zip(frames, rows.tolist(), strict=False):
        aspect, reach = float(frame.pixel_aspect), (1 + PADDING) * half
        yield crop_square(frame, x / aspect, y + PADDING * half, reach / aspect, reach)
