"""Lip-sync confidence: does the mouth fit the sound, and if not, by how many frames is it off?

Every window of 5 frames at 25 fps becomes a feature, and so do the 20 MFCC steps beside it. Their
mean distance, with the sound shifted by up to 15 frames either way, is a curve: its lowest value
is the distance (LSE-D), its median less that value the confidence (LSE-C), its place the offset.

Arithmetic as published, https://github.com/joonson/syncnet_python/blob/1fbfc08/SyncNetInstance.py,
which https://github.com/bytedance/LatentSync/blob/a229c39/eval/syncnet/syncnet_eval.py follows:
pictures go in as OpenCV reads them, BGR as floats of 0..255; sound goes in as 16-bit integers.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter1d
from torch import Tensor

from latentsync.errors import InputError
from latentsync.evaluation.nets.eval_syncnet import EvalSyncNet
from latentsync.faces import align
from latentsync.faces.align import BOX_CENTRE, HALF_BOX
from latentsync.media import VideoFrame, VideoReader, even_box
from latentsync.runtime import checkpoints
from latentsync.types import FaceTrack, FloatArray, Frame, IntArray

__all__ = [
    "SyncCurve",
    "SyncScore",
    "cut_square",
    "distance_curve",
    "face_crops",
    "load_eval_syncnet",
    "longest_run",
    "mfcc",
    "running_median",
    "score",
    "sync_conf_local",
    "sync_confidence",
    "sync_curve",
    "sync_distances",
]

Array = NDArray[np.float64]

SAMPLE_RATE = 16000  # Hz
FPS = 25
SAMPLES = SAMPLE_RATE // FPS  # a frame
WINDOW = 5  # frames seen at once
STEPS_A_FRAME = 4  # MFCC steps of 10 ms
SHIFT = 15  # frames, either way
BATCH = 8  # windows
CONFIDENCE_WINDOW = 9  # frames of the median, as published
OFFSET_WINDOW = FPS  # frames of the mean: 1 s

# MFCC as `python_speech_features.mfcc` has them by default.
STEP = SAMPLE_RATE // 100  # samples, 10 ms
LENGTH = SAMPLE_RATE // 40  # samples, 25 ms
FFT = 512
FILTERS, COEFFICIENTS = 26, 13
PREEMPHASIS = 0.97
LIFTER = 22
BLOCK = 4096  # steps computed at once

# The crop shows about what the published one does: there a box from the upper forehead to the chin,
# of half side s, gets 0.4 s at either side and 0.8 s below, https://github.com/joonson/syncnet_python/blob/1fbfc08/run_pipeline.py
SIDE = 224  # px
PADDING = 0.4
GREY = 110  # outside the frame
MEDIAN = 13  # frames over which place and size are smoothed


@dataclass(frozen=True)
class SyncScore:
    """What one face says about its sound."""

    confidence: float  # LSE-C: the higher, the better in sync; 0 is chance
    distance: float  # LSE-D: the lower, the better
    offset: int  # frames by which the sound runs ahead of the picture


@dataclass(frozen=True)
class SyncCurve:
    """The same in time, at each window of 5 frames; see `sync_curve`."""

    confidence: FloatArray  # (n,)
    offset: IntArray  # (n,) frames by which the sound runs ahead of the picture


def load_eval_syncnet(path: Path, device: torch.device | str = "cpu") -> EvalSyncNet:
    """The published `syncnet_v2.model`, a bare state dict, strictly; float32, in eval mode.

    Raises:
        WeightsMissing: no such file.
        WeightsMismatch: something else is in it.
    """
    state = checkpoints.read(path, hint="run `latentsync download eval`")
    return checkpoints.filled(EvalSyncNet, state, path).to(device).eval().requires_grad_(False)


def sync_confidence(net: EvalSyncNet, crops: Iterable[Frame], sound: FloatArray) -> SyncScore:
    """How well a mouth fits a sound: `sync_distances`, read as one."""
    return score(sync_distances(net, crops, sound).mean(dim=1))


def sync_distances(net: EvalSyncNet, crops: Iterable[Frame], sound: FloatArray) -> Tensor:
    """How far a mouth is from a sound, at each window and shift.

    Crops stream by; what is held of a window are its 31 distances, and a second's features.

    Of n frames that have sound, the published evaluation looks at n - 5 windows; so does this.

    Args:
        crops: each (224, 224, 3) uint8 RGB, at 25 fps; an array (n, 224, 224, 3) does as well.
        sound: (samples,) float32 in [-1, 1) at 16 kHz, beginning with the first crop.

    Returns:
        (31, n - 5), as `distance_curve` has it: its mean over time is what `score` reads, and
        `sync_curve` reads it in time.

    Raises:
        InputError: fewer than 6 frames with sound.
    """
    distances = distance_curve(_features(net, crops, sound))
    if not distances.shape[1]:
        raise InputError(
            f"lip-sync can't be measured on less than {WINDOW + 1} frames with a face and sound "
            f"({(WINDOW + 1) / FPS} s); give a longer clip"
        )
    return distances


def _features(
    net: EvalSyncNet, crops: Iterable[Frame], sound: FloatArray
) -> Iterator[tuple[Tensor, Tensor]]:
    """Of lips and voice, (b, d) each, of b windows at a time."""
    steps = torch.from_numpy(mfcc(sound).T.astype(np.float32))
    device = next(net.parameters()).device
    windows, done = _windows(islice(crops, len(sound) // SAMPLES)), 0
    while batch := list(islice(windows, BATCH)):
        pictures = torch.from_numpy(np.stack(batch)).permute(0, 4, 1, 2, 3)
        starts = [STEPS_A_FRAME * (done + i) for i in range(len(batch))]
        beside = torch.stack([steps[None, :, s : s + STEPS_A_FRAME * WINDOW] for s in starts])
        with torch.inference_mode():
            lips = net.lip_features(pictures.to(device).float().flip(1)).cpu()
            voice = net.audio_features(beside.to(device)).cpu()
        yield lips, voice
        done += len(batch)


def _windows(crops: Iterable[Frame]) -> Iterator[NDArray[np.uint8]]:
    """(5, h, w, 3) from every frame on but the last 5."""
    held: deque[Frame] = deque(maxlen=WINDOW)
    for crop in crops:
        if len(held) == WINDOW:
            yield np.stack(held)
        held.append(crop)


def distance_curve(features: Iterable[tuple[Tensor, Tensor]], shift: int = SHIFT) -> Tensor:
    """Distances of every lip feature to the audio features around it.

    Args:
        features: (lips, voice), (b, d) each, in any number of parts; before and after the sound lie
            zeros, as published, so in clips of a few seconds the outer shifts are compared to
            silence.

    Returns:
        (2 * shift + 1, n): at [j, i] from lip feature i to audio feature i + j - shift.
    """
    blocks = [torch.empty(2 * shift + 1, 0)]
    lips = voice = torch.empty(0)  # lips that wait for the voice after them; voice from before them

    def compare(count: int) -> None:
        rows = [
            F.pairwise_distance(lips[:count], voice[j : j + count]) for j in range(2 * shift + 1)
        ]
        blocks.append(torch.stack(rows))

    for seen, heard in features:
        if not len(voice):
            lips, voice = seen[:0], heard.new_zeros(shift, heard.shape[1])
        lips, voice = torch.cat([lips, seen]), torch.cat([voice, heard])
        if (ready := len(lips) - shift) > 0:
            compare(ready)
            lips, voice = lips[ready:], voice[ready:]
    if len(lips):
        voice = F.pad(voice, (0, 0, 0, shift))
        compare(len(lips))
    return torch.cat(blocks, dim=1)


def score(curve: Tensor) -> SyncScore:
    """Read the mean distances (2 * shift + 1,), the earliest sound first."""
    lowest, place = curve.min(dim=0)
    return SyncScore(
        confidence=float(curve.median() - lowest),
        distance=float(lowest),
        offset=len(curve) // 2 - int(place),
    )


def sync_curve(distances: Tensor) -> SyncCurve:
    """How well mouth and sound fit over time, for the eye; the clip's own figures are `score`'s.

    Confidence is as published: the clip's median less the distance of each frame at the clip's own
    offset, by a median over 9 frames, as in
    https://github.com/joonson/syncnet_python/blob/1fbfc08/SyncNetInstance.py. The offset is where
    the mean distance of the 25 frames around is lowest; of so little it is less sure than the
    clip's, and means nothing where the confidence is low.

    Args:
        distances: (2 * shift + 1, n) by `sync_distances`.
    """
    curve = distances.mean(dim=1)
    own = (curve.median() - distances[curve.argmin()]).numpy()
    around = uniform_filter1d(distances.numpy(), OFFSET_WINDOW, axis=1, mode="nearest")
    return SyncCurve(
        confidence=running_median(own, CONFIDENCE_WINDOW).astype(np.float32),
        offset=(len(curve) // 2 - around.argmin(axis=0)).astype(np.int64),
    )


def running_median(
    values: NDArray[np.floating], window: int, beyond: Literal["edge", "constant"] = "edge"
) -> Array:
    """Medians over an odd number of rows (n, ...); beyond the ends lie these again, or zeros."""
    beside = [(window // 2, window // 2)] + [(0, 0)] * (values.ndim - 1)
    padded = np.pad(values, beside, mode=beyond)
    views = np.lib.stride_tricks.sliding_window_view(padded, window, axis=0)
    return np.asarray(np.median(views, axis=-1))


def mfcc(sound: FloatArray) -> Array:
    """Mel-frequency cepstral coefficients of 16 kHz sound, 100 a second.

    Args:
        sound: (samples,) float32 in [-1, 1); taken as 16-bit integers, for the first coefficient
            is the logarithm of the energy and knows how loud it is.

    Returns:
        (steps, 13) float64; steps = 1 + ceil((samples - 400) / 160), at least 1.
    """
    steps = 1 + max(0, math.ceil((len(sound) - LENGTH) / STEP))
    blocks = [_pieces(sound, i, min(BLOCK, steps - i)) for i in range(0, steps, BLOCK)]
    return np.concatenate([_cepstra(block) for block in blocks])


def _pieces(sound: FloatArray, first: int, count: int) -> Array:
    """(count, 400) pre-emphasized samples of the steps from `first` on, zeros after the end."""
    start, length = first * STEP, (count - 1) * STEP + LENGTH
    levels = np.round(sound[max(0, start - 1) : start + length].astype(np.float64) * 32768)
    sharp = np.zeros(length)
    here = levels[min(1, start) :]
    sharp[: len(here)] = here
    sharp[len(here) - len(levels) + 1 : len(here)] -= PREEMPHASIS * levels[:-1]
    return np.lib.stride_tricks.sliding_window_view(sharp, LENGTH)[::STEP]


def _cepstra(pieces: Array) -> Array:
    """(n, 400) samples -> (n, 13)."""
    power = np.abs(np.fft.rfft(pieces, FFT)) ** 2 / FFT
    bands = np.log(_not_zero(power @ _mel_filters().T))
    n, k = np.arange(FILTERS), np.arange(COEFFICIENTS)[:, None]
    cosines = np.sqrt(2 / FILTERS) * np.cos(np.pi / FILTERS * (n + 0.5) * k)
    lift = 1 + LIFTER / 2 * np.sin(np.pi * np.arange(COEFFICIENTS) / LIFTER)
    cepstra = bands @ cosines.T * lift
    cepstra[:, 0] = np.log(_not_zero(power.sum(axis=1)))
    return cepstra


def _not_zero(values: Array) -> Array:
    return np.where(values == 0, np.finfo(np.float64).eps, values)


def _mel_filters() -> Array:
    """(26, 257): triangles between 28 whole bins, evenly spaced in mel from 0 to 8 kHz."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, FILTERS + 2) / 2595) - 1)
    bins = np.floor((FFT + 1) * hertz / SAMPLE_RATE)[:, None]
    low, peak, high = bins[:-2], bins[1:-1], bins[2:]
    x = np.arange(FFT // 2 + 1)
    return np.clip(np.minimum((x - low) / (peak - low), (high - x) / (high - peak)), 0, None)


def sync_conf_local(
    net: EvalSyncNet, clip: VideoReader, track: FaceTrack, resolution: int, sound: FloatArray
) -> SyncScore:
    """Lip-sync confidence of the longest stretch of a clip with a face, cropped by our own track.

    Not the published figure, though of its kind; compare it only with itself. See `face_crops`.

    Args:
        track: of this very clip, made for crops of `resolution` px.
        sound: (samples,) float32 in [-1, 1) at 16 kHz, beginning with the clip.

    Raises:
        InputError: the stretch is shorter than 6 frames.
    """
    start, stop = longest_run(track.found)
    frames = clip.frames(range(start, stop))
    crops = face_crops(frames, track.affine[start:stop], resolution)
    return sync_confidence(net, crops, sound[start * SAMPLES : stop * SAMPLES])


def longest_run(found: NDArray[np.bool_]) -> tuple[int, int]:
    """The first of the longest stretches [start, stop) of True in (n,); (0, 0) without any."""
    edges = np.flatnonzero(np.diff(found.astype(np.int8), prepend=0, append=0))
    starts, stops = edges[::2], edges[1::2]
    if not len(starts):
        return 0, 0
    longest = int(np.argmax(stops - starts))
    return int(starts[longest]), int(stops[longest])


def face_crops(
    frames: Iterable[VideoFrame], affine: FloatArray, resolution: int
) -> Iterator[Frame]:
    """The square around mouth and face of each frame, (224, 224, 3) uint8 RGB.

    As in the published evaluation the square is upright, reaches from the forehead to below the
    chin, is smoothed by a median over 13 frames, resized bilinearly, and grey 110 beyond the frame.
    It differs in where the square comes from: there from the box of the S3FD detector, here from
    brows and nose, by a mean face. So it is some pixels larger or smaller, follows an open jaw
    less, and has not gone through two more lossy encodes.

    Args:
        affine: (n, 2, 3) frame px -> crop px of `resolution`, one for each frame.
    """
    for frame, square in zip(frames, _squares(affine, resolution).tolist(), strict=False):
        yield cut_square(frame, *square)


def _squares(affine: FloatArray, resolution: int) -> Array:
    """(n, 4) px of the frame, wide ones or not: centre x, y and half sides x, y, smoothed."""
    unit = align.crop_size(resolution)[1] / align.BOX_HEIGHT  # px of the crop in one of template
    matrices = affine.astype(np.float64)
    turn, move = matrices[:, :, :2], matrices[:, :, 2]
    centre = np.linalg.solve(turn, (np.array(BOX_CENTRE) * unit - move)[..., None])[..., 0]
    half_box = HALF_BOX * unit / np.linalg.norm(turn, axis=1)
    centre[:, 1] += PADDING * half_box[:, 1]  # twice the padding is added, below
    rows = np.column_stack([centre, (1 + PADDING) * half_box])
    return running_median(rows, MEDIAN)


def cut_square(frame: VideoFrame, x: float, y: float, half_x: float, half_y: float) -> Frame:
    """An upright square of a frame by its centre and half sides, (224, 224, 3) uint8 RGB.

    The sides differ where the frame's pixels aren't square. Its edges lie on the whole pixels
    below, as published. Only what lies inside of the frame is converted; grey 110 beyond.
    """
    edges = x - half_x, y - half_y, x + half_x, y + half_y
    left, top, right, bottom = map(math.floor, edges)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    box = even_box((left, top, right, bottom), width=frame.width, height=frame.height)
    if box is None:
        return np.full((SIDE, SIDE, 3), GREY, np.uint8)
    inside = frame.rgb(box)[max(0, top - box.top) :, max(0, left - box.left) :]
    inside = inside[: bottom - max(top, box.top), : right - max(left, box.left)]
    above, before = max(0, box.top - top), max(0, box.left - left)
    below = bottom - top - above - inside.shape[0]
    behind = right - left - before - inside.shape[1]
    whole = cv2.copyMakeBorder(
        inside, above, below, before, behind, cv2.BORDER_CONSTANT, value=(GREY,) * 3
    )
    return np.asarray(cv2.resize(whole, (SIDE, SIDE)), dtype=np.uint8)
