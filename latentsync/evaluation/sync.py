"""Lip-sync confidence (SyncNet): does the mouth fit the sound, and by how many frames is it off?

Each window of 5 frames at 25 fps gives a feature, and so do the 20 MFCC steps beside it. Their mean
distance as a function of a shift of the sound by up to 15 frames is a curve: its minimum is the
distance (LSE-D), its median minus its minimum the confidence (LSE-C), the minimum's place the
offset.

Arithmetic as published, https://github.com/joonson/syncnet_python/blob/1fbfc08/SyncNetInstance.py,
which https://github.com/bytedance/LatentSync/blob/a229c39/eval/syncnet/syncnet_eval.py follows:
frames enter as OpenCV reads them, BGR as floats of 0..255; sound enters as 16-bit integers.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
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
from latentsync.types import FaceTrack, FloatArray, Frame, IntArray

__all__ = [
    "SyncCurve",
    "SyncScore",
    "crop_square",
    "distance_curve",
    "face_crops",
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
SAMPLES_PER_FRAME = SAMPLE_RATE // FPS
WINDOW = 5  # frames of a lip feature
STEPS_PER_FRAME = 4  # MFCC steps of 10 ms
MAX_SHIFT = 15  # frames, in either direction
BATCH = 8  # windows
CONFIDENCE_WINDOW = 9  # frames of the median, as published
OFFSET_WINDOW = FPS  # frames of the mean: 1 s

# MFCC with the defaults of `python_speech_features.mfcc`.
STEP_SAMPLES = SAMPLE_RATE // 100  # 10 ms
LENGTH_SAMPLES = SAMPLE_RATE // 40  # 25 ms
FFT_SAMPLES = 512
FILTERS, COEFFICIENTS = 26, 13
PREEMPHASIS = 0.97
LIFTER = 22
BLOCK_STEPS = 4096  # computed at once

# The crop shows about the same as the published one: there a box from the upper forehead to the
# chin, of half side s, is widened by 0.4 s on either side and by 0.8 s below,
# https://github.com/joonson/syncnet_python/blob/1fbfc08/run_pipeline.py
SIDE = 224  # px
PADDING = 0.4
GREY = 110  # outside the frame
MEDIAN_FRAMES = 13  # frames over which place and size are smoothed


@dataclass(frozen=True)
class SyncScore:
    """How well one face fits its sound."""

    confidence: float  # LSE-C: the higher, the better in sync; 0 is chance
    distance: float  # LSE-D: the lower, the better
    offset: int  # frames by which the sound runs ahead of the picture


@dataclass(frozen=True)
class SyncCurve:
    """The score over time, at each window of 5 frames; see `sync_curve`."""

    confidence: FloatArray  # (n,)
    offset: IntArray  # (n,) frames by which the sound runs ahead of the picture


def sync_confidence(net: EvalSyncNet, crops: Iterable[Frame], sound: FloatArray) -> SyncScore:
    """Score how well a mouth fits a sound; arguments as `sync_distances`."""
    return score(sync_distances(net, crops, sound).mean(dim=1))


def sync_distances(net: EvalSyncNet, crops: Iterable[Frame], sound: FloatArray) -> Tensor:
    """Measure the distance of a mouth from a sound, at each window and shift.

    Crops are streamed: only a window's 31 distances are held, and a second's features. Of n frames
    with sound, n - 5 windows are used, as in the published evaluation.

    Args:
        crops: each (224, 224, 3) uint8 RGB, at 25 fps.
        sound: (samples,) float32 in [-1, 1) at 16 kHz, beginning with the first crop.

    Returns:
        (31, n - 5), see `distance_curve`; `score` takes the mean over time, `sync_curve` all of it.

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
    """Lip and audio features, (b, d) each, of b windows at a time; none for the last 5 frames."""
    steps = torch.from_numpy(mfcc(sound).T.astype(np.float32))
    device = next(net.parameters()).device
    length = STEPS_PER_FRAME * WINDOW
    frames = islice(crops, len(sound) // SAMPLES_PER_FRAME)
    held = list(islice(frames, WINDOW))
    start = 0
    while more := list(islice(frames, BATCH)):
        held += more
        windows = np.stack([np.stack(held[i : i + WINDOW]) for i in range(len(more))])
        images = torch.from_numpy(windows).permute(0, 4, 1, 2, 3).to(device).float()
        starts = range(start, start + STEPS_PER_FRAME * len(more), STEPS_PER_FRAME)
        beside = torch.stack([steps[None, :, i : i + length] for i in starts])
        with torch.inference_mode():
            lips = net.lip_features(images.flip(1)).cpu()
            voice = net.audio_features(beside.to(device)).cpu()
        yield lips, voice
        held, start = held[len(more) :], starts.stop


def distance_curve(features: Iterable[tuple[Tensor, Tensor]], shift: int = MAX_SHIFT) -> Tensor:
    """Compute the distances of every lip feature to the audio features around it.

    Args:
        features: (lips, voice), (b, d) each, in any number of parts. Zeros are put before and after
            the voice, as published; in clips of a few seconds they decide the outer shifts.

    Returns:
        (2 * shift + 1, n): at [j, i] from lip feature i to audio feature i + j - shift.
    """
    blocks = [torch.empty(2 * shift + 1, 0)]
    lips = voice = torch.empty(0)  # lips whose later voice is yet to come; voice from before them

    def compare(count: int) -> None:
        rows = [
            F.pairwise_distance(lips[:count], voice[j : j + count]) for j in range(2 * shift + 1)
        ]
        blocks.append(torch.stack(rows))

    for new_lips, new_voice in features:
        if not len(voice):
            lips, voice = new_lips[:0], new_voice.new_zeros(shift, new_voice.shape[1])
        lips, voice = torch.cat([lips, new_lips]), torch.cat([voice, new_voice])
        if (ready := len(lips) - shift) > 0:
            compare(ready)
            lips, voice = lips[ready:], voice[ready:]
    if len(lips):
        voice = F.pad(voice, (0, 0, 0, shift))
        compare(len(lips))
    return torch.cat(blocks, dim=1)


def score(curve: Tensor) -> SyncScore:
    """Score the mean distances (2 * shift + 1,), the earliest sound first."""
    lowest, place = curve.min(dim=0)
    return SyncScore(
        confidence=float(curve.median() - lowest),
        distance=float(lowest),
        offset=len(curve) // 2 - int(place),
    )


def sync_curve(distances: Tensor) -> SyncCurve:
    """Score mouth and sound over time, for plots; the clip's own figures are those of `score`.

    Confidence is as published: the clip's median minus the distance of each frame at the clip's own
    offset, then a running median over 9 frames, as in
    https://github.com/joonson/syncnet_python/blob/1fbfc08/SyncNetInstance.py. The offset is that of
    the lowest mean distance of the 25 frames around, so it is less certain than the clip's, and
    meaningless where the confidence is low.

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
    """Medians over an odd number of rows (n, ...), padded by the end rows, or by zeros."""
    beside = [(window // 2, window // 2)] + [(0, 0)] * (values.ndim - 1)
    padded = np.pad(values, beside, mode=beyond)
    views = np.lib.stride_tricks.sliding_window_view(padded, window, axis=0)
    return np.asarray(np.median(views, axis=-1))


def mfcc(sound: FloatArray) -> Array:
    """Compute mel-frequency cepstral coefficients of 16 kHz sound, 100 a second.

    Args:
        sound: (samples,) float32 in [-1, 1); scaled to 16-bit integers, because the first
            coefficient is the logarithm of the energy, which depends on the scale.

    Returns:
        (steps, 13) float64; steps = 1 + ceil((samples - 400) / 160), at least 1.
    """
    steps = 1 + max(0, math.ceil((len(sound) - LENGTH_SAMPLES) / STEP_SAMPLES))
    blocks = range(0, steps, BLOCK_STEPS)
    return np.concatenate([_cepstra(sound, i, min(BLOCK_STEPS, steps - i)) for i in blocks])


def _cepstra(sound: FloatArray, first: int, count: int) -> Array:
    """(count, 13) of the steps from `first` on; zeros follow the end of the sound."""
    start, length = first * STEP_SAMPLES, (count - 1) * STEP_SAMPLES + LENGTH_SAMPLES
    levels = np.round(sound[max(0, start - 1) : start + length].astype(np.float64) * 32768)
    emphasized = np.zeros(length)
    here = levels[min(1, start) :]
    emphasized[: len(here)] = here
    emphasized[len(here) - len(levels) + 1 : len(here)] -= PREEMPHASIS * levels[:-1]
    pieces = np.lib.stride_tricks.sliding_window_view(emphasized, LENGTH_SAMPLES)[::STEP_SAMPLES]
    power = np.abs(np.fft.rfft(pieces, FFT_SAMPLES)) ** 2 / FFT_SAMPLES
    bands, energy = power @ _mel_filters().T, power.sum(axis=1)
    for values in (bands, energy):
        values[values == 0] = np.finfo(np.float64).eps
    n, k = np.arange(FILTERS), np.arange(COEFFICIENTS)[:, None]
    cosines = np.sqrt(2 / FILTERS) * np.cos(np.pi / FILTERS * (n + 0.5) * k)
    lift = 1 + LIFTER / 2 * np.sin(np.pi * np.arange(COEFFICIENTS) / LIFTER)
    cepstra = np.log(bands) @ cosines.T * lift
    cepstra[:, 0] = np.log(energy)
    return cepstra


def _mel_filters() -> Array:
    """(26, 257): triangles between 28 whole bins, evenly spaced in mel from 0 to 8 kHz."""
    top = 2595 * np.log10(1 + SAMPLE_RATE / 2 / 700)
    hertz = 700 * (10 ** (np.linspace(0, top, FILTERS + 2) / 2595) - 1)
    bins = np.floor((FFT_SAMPLES + 1) * hertz / SAMPLE_RATE)[:, None]
    low, peak, high = bins[:-2], bins[1:-1], bins[2:]
    x = np.arange(FFT_SAMPLES // 2 + 1)
    return np.clip(np.minimum((x - low) / (peak - low), (high - x) / (high - peak)), 0, None)


def sync_conf_local(
    net: EvalSyncNet, clip: VideoReader, track: FaceTrack, resolution: int, sound: FloatArray
) -> SyncScore:
    """Score the longest run of frames with a face, cropped by our own track.

    It is not the published figure, because the crops differ (see `face_crops`): compare it only
    with itself.

    Args:
        track: of this clip, made for crops of `resolution` px.
        sound: (samples,) float32 in [-1, 1) at 16 kHz, beginning with the clip.

    Raises:
        InputError: the run is shorter than 6 frames.
    """
    start, stop = longest_run(track.detected)
    frames = clip.frames(range(start, stop))
    crops = face_crops(frames, track.affine[start:stop], resolution)
    return sync_confidence(net, crops, sound[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME])


def longest_run(found: NDArray[np.bool_]) -> tuple[int, int]:
    """Find the first of the longest runs [start, stop) of True in (n,); (0, 0) if there is none."""
    edges = np.flatnonzero(np.diff(found.astype(np.int8), prepend=0, append=0))
    starts, stops = edges[::2], edges[1::2]
    if not len(starts):
        return 0, 0
    longest = int(np.argmax(stops - starts))
    return int(starts[longest]), int(stops[longest])


def face_crops(
    frames: Iterable[VideoFrame], affine: FloatArray, resolution: int
) -> Iterator[Frame]:
    """Crop the square around each frame's face, (224, 224, 3) uint8 RGB.

    As in the published evaluation the square is upright, reaches from the forehead to below the
    chin, is smoothed by a median over 13 frames, resized bilinearly, and grey 110 beyond the frame.
    There the square comes from the box of the S3FD detector, here from brows and nose and a mean
    face. So it is some pixels larger or smaller, follows an open jaw less, and was not encoded
    twice more.

    Args:
        affine: (n, 2, 3) frame px -> crop px of `resolution`, one for each frame.
    """
    for frame, square in zip(frames, _squares(affine, resolution).tolist(), strict=False):
        yield crop_square(frame, *square)


def _squares(affine: FloatArray, resolution: int) -> Array:
    """(n, 4) px of the frame: centre x, y and half sides x, y, smoothed."""
    unit = align.crop_size(resolution)[1] / align.BOX_HEIGHT  # px of the crop per template unit
    matrices = affine.astype(np.float64)
    turn, move = matrices[:, :, :2], matrices[:, :, 2]
    centre = np.linalg.solve(turn, (np.array(BOX_CENTRE) * unit - move)[..., None])[..., 0]
    half_box = HALF_BOX * unit / np.linalg.norm(turn, axis=1)
    centre[:, 1] += PADDING * half_box[:, 1]  # twice the padding is added, below
    rows = np.column_stack([centre, (1 + PADDING) * half_box])
    return running_median(rows, MEDIAN_FRAMES)


def crop_square(frame: VideoFrame, x: float, y: float, half_x: float, half_y: float) -> Frame:
    """Crop an upright square by its centre and half sides, (224, 224, 3) uint8 RGB.

    The half sides differ if the frame's pixels aren't square. Edges are rounded down to whole
    pixels, as published. Only the part inside the frame is converted; grey 110 beyond.
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
