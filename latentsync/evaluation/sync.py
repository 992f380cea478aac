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

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from latentsync import align
from latentsync.errors import InputError, WeightsMismatch, WeightsMissing
from latentsync.media import VideoFrame, VideoReader, even_box
from latentsync.models.eval_syncnet import EvalSyncNet
from latentsync.types import FaceTrack, FloatArray, Frame

__all__ = [
    "SyncScore",
    "distance_curve",
    "face_crops",
    "load_eval_syncnet",
    "longest_run",
    "mfcc",
    "score",
    "sync_conf_local",
    "sync_confidence",
]

Array = NDArray[np.float64]

SAMPLE_RATE = 16000  # Hz
FPS = 25
SAMPLES = SAMPLE_RATE // FPS  # a frame
WINDOW = 5  # frames seen at once
STEPS_A_FRAME = 4  # MFCC steps of 10 ms
SHIFT = 15  # frames, either way
BATCH = 8  # windows

# MFCC as `python_speech_features.mfcc` has them by default.
STEP = SAMPLE_RATE // 100  # samples, 10 ms
LENGTH = SAMPLE_RATE // 40  # samples, 25 ms
FFT = 512
FILTERS, COEFFICIENTS = 26, 13
PREEMPHASIS = 0.97
LIFTER = 22
BLOCK = 4096  # steps computed at once

# The crop, in units of `align.TEMPLATE`, so that it shows about what the published one does: there
# a box from the upper forehead to the chin, of half side s, gets 0.4 s at either side and 0.8 s
# below, https://github.com/joonson/syncnet_python/blob/1fbfc08/run_pipeline.py
SIDE = 224  # px
HALF_BOX = 42.0  # s; this and the centre are where face detectors have their boxes on average
BOX_CENTRE = (38.0, 38.0)
PADDING = 0.4
GREY = 110  # outside the frame
MEDIAN = 13  # frames over which place and size are smoothed


@dataclass(frozen=True)
class SyncScore:
    """What one face says about its sound."""

    confidence: float  # LSE-C: the higher, the better in sync; 0 is chance
    distance: float  # LSE-D: the lower, the better
    offset: int  # frames by which the sound runs ahead of the picture


def load_eval_syncnet(path: Path, device: torch.device | str = "cpu") -> EvalSyncNet:
    """The published `syncnet_v2.model`, a bare state dict, strictly; float32, in eval mode.

    Raises:
        WeightsMissing: no such file.
        WeightsMismatch: something else is in it.
    """
    if not path.is_file():
        raise WeightsMissing(f"{path} is not there; run `latentsync download eval`")
    net = EvalSyncNet()
    try:
        net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True), strict=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle raises whatever it stumbles over
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [
            "it is empty"
        ]
        reason = lines[min(1, len(lines) - 1)][:200]
        raise WeightsMismatch(
            f"{path} is not the published evaluation SyncNet ({reason}); delete it and run "
            "`latentsync download eval`"
        ) from error
    return net.to(device).eval().requires_grad_(False)


def sync_confidence(net: EvalSyncNet, crops: Iterable[Frame], sound: FloatArray) -> SyncScore:
    """How well a mouth fits a sound; frames stream by, only one batch of windows is held.

    Of n frames that have sound, the published evaluation looks at n - 5 windows; so does this.

    Args:
        crops: each (224, 224, 3) uint8 RGB, at 25 fps; an array (n, 224, 224, 3) does as well.
        sound: (samples,) float32 in [-1, 1) at 16 kHz, beginning with the first crop.

    Raises:
        InputError: fewer than 6 frames with sound.
    """
    steps = torch.from_numpy(mfcc(sound).T.astype(np.float32))
    device = next(net.parameters()).device
    lips: list[Tensor] = []
    voice: list[Tensor] = []
    done = 0
    with torch.inference_mode():
        windows = _windows(islice(crops, len(sound) // SAMPLES))
        while batch := list(islice(windows, BATCH)):
            pictures = torch.from_numpy(np.stack(batch)).permute(0, 4, 1, 2, 3)
            starts = [STEPS_A_FRAME * (done + i) for i in range(len(batch))]
            beside = torch.stack([steps[None, :, s : s + STEPS_A_FRAME * WINDOW] for s in starts])
            lips.append(net.lip_features(pictures.to(device).float().flip(1)).cpu())
            voice.append(net.audio_features(beside.to(device)).cpu())
            done += len(batch)
    if not lips:
        raise InputError(
            f"lip-sync can't be measured on less than {WINDOW + 1} frames with a face and sound "
            f"({(WINDOW + 1) / FPS} s); give a longer clip"
        )
    return score(distance_curve(torch.cat(lips), torch.cat(voice)).mean(dim=1))


def _windows(crops: Iterable[Frame]) -> Iterator[NDArray[np.uint8]]:
    """(5, h, w, 3) from every frame on but the last 5."""
    held: deque[Frame] = deque(maxlen=WINDOW)
    for crop in crops:
        if len(held) == WINDOW:
            yield np.stack(held)
        held.append(crop)


def distance_curve(lips: Tensor, voice: Tensor, shift: int = SHIFT) -> Tensor:
    """Distances of every lip feature to the audio features around it.

    Args:
        lips, voice: (n, d) features; before and after the sound lie zeros, as published, so in
            clips of a few seconds the outer shifts are compared to silence.

    Returns:
        (2 * shift + 1, n): at [j, i] from lip feature i to audio feature i + j - shift.
    """
    padded = F.pad(voice, (0, 0, shift, shift))
    count = len(lips)
    rows = [F.pairwise_distance(lips, padded[j : j + count]) for j in range(2 * shift + 1)]
    return torch.stack(rows)


def score(curve: Tensor) -> SyncScore:
    """Read the mean distances (2 * shift + 1,), the earliest sound first."""
    lowest, place = curve.min(dim=0)
    return SyncScore(
        confidence=float(curve.median() - lowest),
        distance=float(lowest),
        offset=len(curve) // 2 - int(place),
    )


def mfcc(sound: FloatArray) -> Array:
    """Mel-frequency cepstral coefficients of 16 kHz sound, 100 a second.

    Args:
        sound: (samples,) float32 in [-1, 1); taken as 16-bit integers, for the first coefficient
            is the logarithm of the energy and knows how loud it is.

    Returns:
        (steps, 13) float64; steps = 1 + ceil((samples - 400) / 160), at least 1.
    """
    levels = np.round(sound.astype(np.float64) * 32768)
    steps = 1 + max(0, math.ceil((len(levels) - LENGTH) / STEP))
    sharp = np.zeros((steps - 1) * STEP + LENGTH)
    sharp[: len(levels)] = levels
    sharp[1 : len(levels)] -= PREEMPHASIS * levels[:-1]
    pieces = np.lib.stride_tricks.sliding_window_view(sharp, LENGTH)[::STEP]
    blocks = [pieces[i : i + BLOCK] for i in range(0, steps, BLOCK)]
    return np.concatenate([_cepstra(block) for block in blocks])


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
    for frame, (x, y, half) in zip(frames, _squares(affine, resolution), strict=False):
        yield _square(frame, float(x), float(y), float(half))


def _squares(affine: FloatArray, resolution: int) -> Array:
    """(n, 3) px of the frame: centre x, y and half side, smoothed."""
    unit = align.crop_size(resolution)[1] / align.BOX_HEIGHT  # px of the crop in one of template
    matrices = affine.astype(np.float64)
    turn, move = matrices[:, :, :2], matrices[:, :, 2]
    centre = np.linalg.solve(turn, (np.array(BOX_CENTRE) * unit - move)[..., None])[..., 0]
    half_box = HALF_BOX * unit / np.sqrt(np.linalg.det(turn))
    centre[:, 1] += PADDING * half_box  # twice the padding is added, below
    rows = np.column_stack([centre, (1 + PADDING) * half_box])
    padded = np.pad(rows, ((MEDIAN // 2, MEDIAN // 2), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, MEDIAN, axis=0)
    return np.asarray(np.median(windows, axis=-1))


def _square(frame: VideoFrame, x: float, y: float, half: float) -> Frame:
    """One upright square of a frame; only its part inside the frame is converted."""
    left, top, side = math.floor(x - half), math.floor(y - half), max(1, round(2 * half))
    box = even_box((left, top, left + side, top + side), width=frame.width, height=frame.height)
    if box is None:
        return np.full((SIDE, SIDE, 3), GREY, np.uint8)
    inside = frame.rgb(box)[max(0, top - box.top) :, max(0, left - box.left) :]
    inside = inside[: top + side - max(top, box.top), : left + side - max(left, box.left)]
    above, before = max(0, box.top - top), max(0, box.left - left)
    below, behind = side - above - inside.shape[0], side - before - inside.shape[1]
    whole = cv2.copyMakeBorder(
        inside, above, below, before, behind, cv2.BORDER_CONSTANT, value=(GREY,) * 3
    )
    return np.asarray(cv2.resize(whole, (SIDE, SIDE)), dtype=np.uint8)
