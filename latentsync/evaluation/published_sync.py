"""Lip-sync confidence on the published crop geometry: S3FD's boxes -> face tracks -> squares.

As https://github.com/joonson/syncnet_python/blob/1fbfc08/run_pipeline.py, with the shorter tracks
that LatentSync's evaluation takes (https://github.com/bytedance/LatentSync/blob/a229c39/eval).
Two things differ: cuts are this project's (there PySceneDetect's), and no frame goes through JPEG
and a lossy encode on its way to SyncNet.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from latentsync.errors import NoFaceFound
from latentsync.evaluation.nets.eval_syncnet import EvalSyncNet
from latentsync.evaluation.nets.s3fd import S3FD
from latentsync.evaluation.sync import (
    MEDIAN,
    PADDING,
    SAMPLES,
    SyncScore,
    cut_square,
    running_median,
    sync_confidence,
)
from latentsync.faces.tracking.shots import detect_shots
from latentsync.media import VideoFrame, VideoReader
from latentsync.runtime import checkpoints
from latentsync.types import FloatArray, Frame

__all__ = ["FaceBoxes", "box_crops", "detect_boxes", "face_tracks", "load_s3fd", "sync_conf"]

Array = NDArray[np.float64]

SCALE = 0.25  # of the frame, in which faces are sought
LEAST_SIDE = 32  # px of that; of less nothing is left after five poolings
SURE = 0.9  # score
OVERLAPS = (0.3, 0.1)  # intersection over union from which on two boxes are one, first and again
SAME = 0.5  # intersection over union with the last box of a track
GAP = 25  # frames that a track may miss its face
LEAST_FRAMES = 50  # a track has more
LEAST_FACE = 100  # px, mean of the longer side


@dataclass(frozen=True)
class FaceBoxes:
    """One face's box in each frame of a stretch."""

    start: int  # its first frame
    boxes: Array  # (n, 4) left, top, right, bottom in square px, as high as the frame's


def load_s3fd(path: Path, device: torch.device | str = "cpu") -> S3FD:
    """The published `sfd_face.pth`, strictly; float32, frozen.

    Raises:
        WeightsMissing: no such file.
        WeightsMismatch: something else is in it.
    """
    state = checkpoints.read(path, hint="run `latentsync download eval`")
    return checkpoints.filled(S3FD, state, path).to(device)


def sync_conf(
    net: EvalSyncNet,
    detector: S3FD,
    clip: VideoReader,
    sound: FloatArray,
    *,
    wanted: Callable[[int, Array], bool] = lambda _start, _boxes: True,
    check: Callable[[], None] = lambda: None,
) -> tuple[SyncScore, ...]:
    """What the published evaluation says of each face track; its figure is their mean.

    Frames stream by twice. S3FD is a large net: a second a frame on one core of a CPU, in full HD.

    Args:
        clip: read at 25 fps.
        sound: (samples,) float32 in [-1, 1) at 16 kHz, beginning with the clip.
        wanted: of a track's first frame and its boxes (n, 4), in shares of the frame's width and
            height, says whether the track counts. Default all do, as published.
        check: called at each frame in which faces are sought; raises what is to stop it.

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
            f"S3FD has no face of {LEAST_FACE} px over {LEAST_FRAMES} frames among the "
            f"{len(found)} of this clip; give a longer or a larger one, or take sync_conf_local"
        )
    tracks = [track for track in tracks if wanted(track.start, track.boxes / size)]
    if not tracks:
        raise NoFaceFound("S3FD follows other faces only; take sync_conf_local")
    scores = []
    for track in tracks:
        start, stop = track.start, track.start + len(track.boxes)
        crops = box_crops(clip.frames(range(start, stop)), track.boxes)
        scores.append(sync_confidence(net, crops, sound[start * SAMPLES : stop * SAMPLES]))
    return tuple(scores)


def detect_boxes(net: S3FD, frame: Frame, pixel_aspect: float = 1.0) -> Array:
    """Boxes (k, 4) of the faces in a frame, in square px as high as its own, the surest first."""
    wide = SCALE * pixel_aspect
    small = cv2.resize(frame, None, fx=wide, fy=SCALE, interpolation=cv2.INTER_LINEAR)
    if min(small.shape[:2]) < LEAST_SIDE:
        return np.empty((0, 4))
    device = next(net.parameters()).device
    with torch.inference_mode():
        picture = torch.from_numpy(small).permute(2, 0, 1)[None].to(device).float()
        scores, boxes = (x[0].double().cpu().numpy() for x in net(picture))
    order = np.argsort(-scores, kind="stable")
    boxes = boxes[order[scores[order] > SURE]]
    for overlap in OVERLAPS:
        boxes = _distinct(boxes, overlap)
    sizes = np.array(frame.shape[1::-1]) * (pixel_aspect, 1) / small.shape[1::-1]
    return np.asarray(boxes * np.tile(sizes, 2))


def _distinct(boxes: Array, overlap: float) -> Array:
    """Of boxes that overlap more than that only the first."""
    kept: list[int] = []
    for i, box in enumerate(boxes):
        if (_overlaps(boxes[kept], box) <= overlap).all():
            kept.append(i)
    return boxes[kept]


def _overlaps(boxes: Array, box: Array) -> Array:
    """(n,) intersection over union of boxes (n, 4) and one."""
    sides = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2])
    common = np.maximum(sides, 0).prod(axis=1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1) + (box[2:] - box[:2]).prod()
    return np.asarray(common / (areas - common))


def face_tracks(found: Sequence[Array], cuts: Sequence[int] = ()) -> list[FaceBoxes]:
    """The faces of a clip that are there long enough; where one was missed, boxes in between.

    Args:
        found: (k, 4) for each frame, by `detect_boxes`.
        cuts: first frames of new shots; no track goes across.
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
            if len(track) > LEAST_FRAMES and sides.max() > LEAST_FACE:
                tracks.append(FaceBoxes(first + int(frames[0]), boxes))
    return tracks


def _next_track(free: list[list[Array]]) -> dict[int, Array]:
    """Frame -> box of the first face that no track has yet, followed; it is taken out."""
    track: dict[int, Array] = {}
    last = 0
    for i, boxes in enumerate(free):
        if track and i - last > GAP:
            break
        for j, box in enumerate(boxes):
            if not track or _overlaps(box[None], track[last])[0] > SAME:
                track[i], last = boxes.pop(j), i
                break
    return track


def box_crops(frames: Iterable[VideoFrame], boxes: Array) -> Iterator[Frame]:
    """The square around each frame's face as SyncNet is asked, (224, 224, 3) uint8 RGB.

    0.4 of half the box's longer side are added at either side and twice that below; place and size
    are a median over 13 frames, with zeros beyond the ends as published.
    """
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    halves = (boxes[:, 2:] - boxes[:, :2]).max(axis=1) / 2
    rows = running_median(np.column_stack([middles, halves]), MEDIAN, beyond="constant")
    for frame, (x, y, half) in zip(frames, rows.tolist(), strict=False):
        aspect, reach = float(frame.pixel_aspect), (1 + PADDING) * half
        yield cut_square(frame, x / aspect, y + PADDING * half, reach / aspect, reach)
