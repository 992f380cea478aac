"""Runs all metrics over all clips: files are streamed, and a bad clip costs only its own row.

load      every metric once; one that can't be loaded says why, and stops no other
measure   clip by clip: find the face, then feed both files frame by frame to all metrics
sum up    mean and 95 % interval over the clips; figures of the whole set (FID, FVD)
"""

import math
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from scipy.special import stdtrit

from latentsync import faces
from latentsync.errors import Cancelled, LatentSyncError, OptionError
from latentsync.evaluation import face_metrics, image_metrics, sync_metrics
from latentsync.evaluation.clips import NEEDS_REFERENCE, EvaluatedClip, FramePair, Pair, PairedFiles
from latentsync.evaluation.image_quality import sheet, true_proportions
from latentsync.evaluation.metric import Figure, Metric, Setup
from latentsync.faces import FaceChoice
from latentsync.runtime import devices
from latentsync.runtime.checkpoints import root
from latentsync.runtime.progress import RunContext
from latentsync.types import Frame, ProgressCallback

__all__ = ["METRICS", "ClipResult", "Evaluation", "Mean", "evaluate", "mean_of", "names_of"]

METRICS: dict[str, type[Metric]] = {
    "psnr": image_metrics.Psnr,
    "ssim": image_metrics.Ssim,
    "lpips": image_metrics.Lpips,
    "fid": image_metrics.Fid,
    "fvd": image_metrics.Fvd,
    "fvd_videomae": image_metrics.FvdVideoMae,
    "lmd": face_metrics.Lmd,
    "identity": face_metrics.IdentitySimilarity,
    "flicker": image_metrics.Flicker,
    "sync": sync_metrics.SyncConfidence,
    "sync_local": sync_metrics.SyncLocal,
    "stable": sync_metrics.SyncNetAccuracy,
    "lips": sync_metrics.LipMetrics,
}
"""By the names that `--metrics` takes, in the order in which they are reported."""

WORST_FRAMES = 5  # shown of a clip
MIN_WORST_GAP_FRAMES = 12  # from one of them to the next, about half a second
SHEET_WIDTH = 1100  # px
DIFFERENCE_GAIN = 4  # by which a difference is multiplied in a sheet
CONFIDENCE_LEVEL = 0.95  # of the interval


@dataclass(frozen=True)
class Mean:
    """A figure over all clips, or of the whole set."""

    mean: float
    low: float | None  # 95 % interval by Student's t; None for one clip, or a set's figure
    high: float | None
    count: int  # clips; for a set's figure the frames or windows
    whole_set: bool = False


@dataclass
class ClipResult:
    """The results for one clip."""

    pair: Pair
    frames: int = 0  # compared
    face: str = ""  # whose was measured, as in `Options.face`
    figures: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # figure -> why there is none
    notes: list[str] = field(default_factory=list)
    error: str = ""  # why there is no result at all
    curves: dict[str, "array[float]"] = field(default_factory=dict)  # a value a frame, or NaN
    worst: tuple[int, ...] = ()  # frames
    sheet: bytes = b""  # JPEG of them: original, output, difference


@dataclass(frozen=True)
class Evaluation:
    """The results for all clips."""

    figures: tuple[Figure, ...]  # asked for, in the order of METRICS
    clips: tuple[ClipResult, ...]
    means: dict[str, Mean]
    missing: dict[str, str]  # figure -> why no clip has one
    pairs: PairedFiles
    detector: str  # description


def names_of(text: Iterable[str]) -> tuple[str, ...]:
    """Parse names of metrics from lists with commas: each once, in the order of METRICS.

    "sync" stands for "sync_local" too.

    Raises:
        OptionError: a name is unknown, or there is none.
    """
    asked = [name.strip().lower() for part in text for name in part.split(",") if name.strip()]
    wrong = [name for name in asked if name not in METRICS]
    if wrong or not asked:
        raise OptionError(
            f"metric {', '.join(map(repr, wrong)) or 'missing'}; they are {', '.join(METRICS)}"
        )
    if "sync" in asked:
        asked.append("sync_local")
    return tuple(name for name in METRICS if name in asked)


def evaluate(
    pairs: PairedFiles,
    metrics: Sequence[str],
    *,
    weights: Path | str | None = None,
    device: str | None = None,
    detector: str = "builtin",
    face: str | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> Evaluation:
    """Measure all pairs.

    Args:
        metrics: by `names_of`.
        weights: folder; default $LATENTSYNC_WEIGHTS, then `weights/` of the checkout.
        device: default the best there is.
        detector: name of the face detector.
        face: whose is measured, as in `Options.face`. Default the one that an output's report
            names, without a report the largest.

    Raises:
        LatentSyncError: `face` has no meaning, or the detector or device is not available. Errors
            of one clip or one metric are in the result.
    """
    if face is not None:
        FaceChoice.parse(face)
    chosen, _ = devices.choose(device)
    folder = root(weights)
    finder = faces.create(detector, root=folder / "auxiliary", gpu=devices.is_cuda(chosen))
    context = RunContext(progress, cancelled)
    setup = Setup(folder, str(chosen), finder)
    loaded: list[Metric] = []
    missing: dict[str, str] = {}  # figure -> why
    for name in metrics:
        try:
            loaded.append(METRICS[name](setup))
        except LatentSyncError as error:
            missing |= {figure.name: str(error) for figure in METRICS[name].figures}
    results = []
    for number, pair in enumerate(pairs.pairs):
        context.step("evaluate", number, len(pairs.pairs))
        results.append(_measured(pair, loaded, finder, context, missing, face))
    context.step("evaluate", len(pairs.pairs), len(pairs.pairs))
    figures = tuple(figure for name in metrics for figure in METRICS[name].figures)
    means = _means(figures, loaded, results, missing)
    return Evaluation(figures, tuple(results), means, missing, pairs, finder.describe())


def mean_of(values: Sequence[float]) -> Mean | None:
    """Mean and 95 % interval by Student's t; None of nothing."""
    if not values:
        return None
    mean, count = float(np.mean(values)), len(values)
    if count < 2 or not math.isfinite(mean):
        return Mean(mean, None, None, count)
    quantile = stdtrit(count - 1, (1 + CONFIDENCE_LEVEL) / 2)
    half = float(quantile * np.std(values, ddof=1) / count**0.5)
    return Mean(mean, mean - half, mean + half, count)


def _means(
    figures: Iterable[Figure],
    metrics: Iterable[Metric],
    results: Sequence[ClipResult],
    missing: dict[str, str],
) -> dict[str, Mean]:
    """Means by figure; the reasons of those that there are none of go into `missing`."""
    means: dict[str, Mean] = {}
    for metric in metrics:
        try:
            for name, (value, count) in metric.total().items():
                means[name] = Mean(value, None, None, count, whole_set=True)
        except LatentSyncError as error:
            missing |= {figure.name: str(error) for figure in metric.figures}
    for name in (figure.name for figure in figures):
        if mean := mean_of([r.figures[name] for r in results if name in r.figures]):
            means[name] = mean
        elif name not in means and name not in missing:
            reasons = [result.missing.get(name) or result.error for result in results]
            missing[name] = next(filter(None, reasons), "not measured")
    return means


def _measured(
    pair: Pair,
    metrics: Sequence[Metric],
    detector: faces.Detector,
    context: RunContext,
    missing: Mapping[str, str],
    face: str | None,
) -> ClipResult:
    """Measure one pair; any error but cancelling is in the result."""
    result = ClipResult(pair, missing=dict(missing))
    try:
        clip = EvaluatedClip.open(pair, detector, context, face)
        _run_metrics(clip, metrics, result)
        result.worst = _worst(result.curves)
        if result.worst and clip.reference:
            result.sheet = _sheet(clip.frame_pairs_at(result.worst))
    except Cancelled:
        raise
    except LatentSyncError as error:
        return ClipResult(pair, error=str(error))
    result.frames, result.notes, result.face = clip.frames, clip.notes, str(clip.face)
    return result


def _run_metrics(clip: EvaluatedClip, metrics: Sequence[Metric], result: ClipResult) -> None:
    """Stream a clip past all metrics; one that fails is left out, and the result says why."""

    def succeeds(metric: Metric, step: Callable[..., object], *args: object) -> bool:
        try:
            step(*args)
        except LatentSyncError as error:
            result.missing |= {figure.name: str(error) for figure in metric.figures}
            return False
        return True

    active = []
    for metric in metrics:
        if metric.needs_reference and not clip.reference:
            result.missing |= {figure.name: NEEDS_REFERENCE for figure in metric.figures}
        elif succeeds(metric, metric.begin, clip):
            active.append(metric)
    for frames in clip.frame_pairs():
        active = [metric for metric in active if succeeds(metric, metric.update, frames)]
    for metric in active:
        succeeds(metric, _finish, metric, result, clip.no_face or "not measured")


def _finish(metric: Metric, result: ClipResult, why_not: str) -> None:
    """Collect a metric's figures and curves; `why_not` is the reason of those it lacks."""
    result.figures |= metric.end()
    result.curves |= metric.curves
    for figure in metric.figures:
        if figure.name not in result.figures and not metric.whole_set:
            result.missing[figure.name] = metric.absent.get(figure.name, why_not)


def _worst(curves: Mapping[str, "array[float]"]) -> tuple[int, ...]:
    """The frames that look worst, in rising order, none close to another."""
    for name, sign in (("lpips_face", -1), ("psnr_face", 1), ("psnr_frame", 1)):
        if name in curves:
            values = sign * np.array(curves[name])
            break
    else:
        return ()
    chosen: list[int] = []
    for index in np.argsort(values, kind="stable"):
        far = all(abs(index - other) >= MIN_WORST_GAP_FRAMES for other in chosen)
        if far and math.isfinite(values[index]) and len(chosen) < WORST_FRAMES:
            chosen.append(int(index))
    return tuple(sorted(chosen))


def _sheet(pairs: Iterable[FramePair]) -> bytes:
    """JPEG of originals, outputs and differences; of faces, or whole frames without a face.

    A single image doesn't fill the width, so that no sheet is taller than it is wide.
    """
    rows: tuple[list[Frame], ...] = ([], [], [])
    for frames in pairs:
        if frames.affine is None:
            before, after = frames.whole_reference, frames.whole
        else:
            before, after = map(true_proportions, (frames.face_reference, frames.face))
        difference = cv2.convertScaleAbs(cv2.absdiff(before, after), alpha=DIFFERENCE_GAIN)
        for row, image in zip(rows, (before, after, difference), strict=True):
            row.append(np.asarray(image, np.uint8))
    width = max(SHEET_WIDTH * len(rows[0]) // WORST_FRAMES, SHEET_WIDTH // 2)
    drawn = sheet(rows, ["original", "output", f"diff x{DIFFERENCE_GAIN}"], width)
    _, data = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    return bytes(data)
