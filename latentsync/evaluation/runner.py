"""All metrics over all clips: each file is read as a stream, and a bad one costs its own row.

load      every metric once; what can't be loaded says why, and stops no other
measure   clip by clip: find the face, then both files frame by frame past all metrics
sum up    mean and 95 % interval over the clips; the set's own figures (FID, FVD)
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
from latentsync.evaluation.clips import EvaluatedClip, FramePair, Pair, PairedFiles
from latentsync.evaluation.image_metrics import METRICS
from latentsync.evaluation.image_quality import sheet
from latentsync.evaluation.metric import NEEDS_REFERENCE, Figure, Metric, Setup
from latentsync.faces import FaceChoice, align
from latentsync.runtime import devices
from latentsync.runtime.checkpoints import root
from latentsync.runtime.progress import RunContext
from latentsync.types import Frame, ProgressCallback

__all__ = ["ClipResult", "Evaluation", "Mean", "evaluate", "mean_of", "names_of"]

WORST = 5  # frames of a clip that are shown
APART = 12  # frames from one of them to the next, about half a second
SHEET_WIDTH = 1100  # px
LOUDER = 4  # times; how a difference is shown
LEVEL = 0.95  # of the confidence interval


@dataclass(frozen=True)
class Mean:
    """A figure over all clips, or of the whole set."""

    mean: float
    low: float | None  # 95 % interval by Student's t; None for one clip, or a set's figure
    high: float | None
    count: int  # clips; of a set's figure the frames or windows that it is made of
    whole_set: bool = False


@dataclass
class ClipResult:
    """What was found of one clip."""

    pair: Pair
    frames: int = 0  # compared
    face: str = ""  # whose was measured, as in `Options.face`
    figures: dict[str, float] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # figure -> why there is none
    notes: list[str] = field(default_factory=list)
    error: str = ""  # why there is nothing at all
    curves: dict[str, "array[float]"] = field(default_factory=dict)  # a value a frame, or NaN
    worst: tuple[int, ...] = ()  # frames
    sheet: bytes = b""  # JPEG of them: original, output, difference


@dataclass(frozen=True)
class Evaluation:
    """What was found of all clips."""

    figures: tuple[Figure, ...]  # asked for, in their order
    clips: tuple[ClipResult, ...]
    means: dict[str, Mean]
    missing: dict[str, str]  # figure -> why no clip has one
    pairs: PairedFiles
    detector: str  # described


def names_of(text: Iterable[str]) -> tuple[str, ...]:
    """Metrics by name, from lists with commas, each once, in the order of METRICS.

    "sync" stands for "sync_local" too.

    Raises:
        OptionError: an unknown name; or none.
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
        detector: that finds the face, by name.
        face: whose is measured, as in `Options.face`. None: of each output the one that its report
            names, without a report the largest.

    Raises:
        LatentSyncError: `face` means none, the detector or device can't be had. What is wrong with
            one clip or one metric is in the result.
    """
    if face is not None:
        FaceChoice.parse(face)
    chosen, _ = devices.choose(device)
    folder = root(weights)
    finder = faces.create(detector, root=folder / "auxiliary", gpu=devices.is_cuda(chosen))
    reporter = RunContext(progress, cancelled)
    loaded, missing = _loaded(metrics, Setup(folder, str(chosen), finder))
    results = []
    for number, pair in enumerate(pairs.pairs):
        reporter.step("evaluate", number, len(pairs.pairs))
        results.append(_measured(pair, loaded, finder, reporter, missing, face))
    reporter.step("evaluate", len(pairs.pairs), len(pairs.pairs))
    figures = tuple(one for name in metrics for one in METRICS[name].figures)
    means = {
        one.name: found
        for one in figures
        if (found := mean_of([r.figures[one.name] for r in results if one.name in r.figures]))
    }
    for metric in loaded:
        _sum_up(metric, means, missing)
    for one in figures:
        if one.name not in means and one.name not in missing:
            reasons = [r.missing.get(one.name) or r.error for r in results]
            missing[one.name] = next(filter(None, reasons), "not measured")
    return Evaluation(figures, tuple(results), means, missing, pairs, finder.describe())


def mean_of(values: Sequence[float]) -> Mean | None:
    """Mean and 95 % interval by Student's t; None of nothing."""
    if not values:
        return None
    mean, count = float(np.mean(values)), len(values)
    if count < 2 or not math.isfinite(mean):
        return Mean(mean, None, None, count)
    half = float(stdtrit(count - 1, (1 + LEVEL) / 2) * np.std(values, ddof=1) / count**0.5)
    return Mean(mean, mean - half, mean + half, count)


def _loaded(names: Sequence[str], setup: Setup) -> tuple[list[Metric], dict[str, str]]:
    """The metrics that can be had, and for the figures of the others why not."""
    loaded: list[Metric] = []
    missing: dict[str, str] = {}
    for name in names:
        try:
            loaded.append(METRICS[name](setup))
        except LatentSyncError as error:
            missing |= {one.name: str(error) for one in METRICS[name].figures}
    return loaded, missing


def _sum_up(metric: Metric, means: dict[str, Mean], missing: dict[str, str]) -> None:
    try:
        for name, (value, count) in metric.total().items():
            means[name] = Mean(value, None, None, count, whole_set=True)
    except LatentSyncError as error:
        missing |= {one.name: str(error) for one in metric.figures}


def _measured(
    pair: Pair,
    metrics: Sequence[Metric],
    detector: faces.Detector,
    reporter: RunContext,
    missing: Mapping[str, str],
    face: str | None,
) -> ClipResult:
    result = ClipResult(pair, missing=dict(missing))
    try:
        clip = EvaluatedClip.open(pair, detector, reporter, face)
        _see(clip, metrics, result)
        result.worst = _worst(result.curves)
        if result.worst and clip.reference:
            result.sheet = _sheet(clip.moments_at(result.worst))
    except Cancelled:
        raise
    except LatentSyncError as error:
        return ClipResult(pair, error=str(error))
    result.frames, result.notes, result.face = clip.frames, clip.notes, str(clip.face)
    return result


def _see(clip: EvaluatedClip, metrics: Sequence[Metric], result: ClipResult) -> None:
    """Let a clip pass all metrics, once."""
    usable = [one for one in metrics if clip.reference or not one.needs_reference]
    for metric in metrics:
        if metric not in usable:
            result.missing |= {one.name: NEEDS_REFERENCE for one in metric.figures}
    seeing = [one for one in usable if _asked(one, result, one.begin, clip)]
    for moment in clip.moments():
        seeing = [one for one in seeing if _asked(one, result, one.update, moment)]
    for metric in seeing:
        _asked(metric, result, _finish, metric, result, clip.no_face or "not measured")


def _finish(metric: Metric, result: ClipResult, why_not: str) -> None:
    """Take a metric's figures and curves; those that it has not are missing for that reason."""
    result.figures |= metric.end()
    result.curves |= metric.curves
    for one in metric.figures:
        if one.name not in result.figures and not metric.whole_set:
            result.missing[one.name] = metric.absent.get(one.name, why_not)


def _asked(
    metric: Metric, result: ClipResult, question: Callable[..., object], *about: object
) -> bool:
    """Whether a metric could answer; if not, the result says why it has none of its figures."""
    try:
        question(*about)
    except LatentSyncError as error:
        result.missing |= {one.name: str(error) for one in metric.figures}
        return False
    return True


def _worst(curves: Mapping[str, "array[float]"]) -> tuple[int, ...]:
    """Frames that look worst, in rising order, none close to another."""
    for name, sign in (("lpips_face", -1), ("psnr_face", 1), ("psnr_frame", 1)):
        if name in curves:
            values = sign * np.array(curves[name])
            break
    else:
        return ()
    chosen: list[int] = []
    for index in np.argsort(values, kind="stable"):
        far = all(abs(index - other) >= APART for other in chosen)
        if far and math.isfinite(values[index]) and len(chosen) < WORST:
            chosen.append(int(index))
    return tuple(sorted(chosen))


def _sheet(moments: Iterable[FramePair]) -> bytes:
    """JPEG: originals, outputs, and where they differ; faces, or whole frames where there is none.

    A single picture doesn't fill the width, so that no sheet is taller than it is wide.
    """
    rows: tuple[list[Frame], ...] = ([], [], [])
    for moment in moments:
        if moment.affine is None:
            before, after = moment.whole_reference, moment.whole
        else:
            before, after = (_upright(one) for one in (moment.face_reference, moment.face))
        apart = cv2.convertScaleAbs(cv2.absdiff(before, after), alpha=LOUDER)
        for row, picture in zip(rows, (before, after, np.asarray(apart, np.uint8)), strict=True):
            row.append(picture)
    width = SHEET_WIDTH * len(rows[0]) // WORST
    drawn = sheet(rows, ["original", "output", f"apart x{LOUDER}"], max(width, SHEET_WIDTH // 2))
    _, data = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
    return bytes(data)


def _upright(crop: Frame) -> Frame:
    """An aligned crop in its true proportions: it is squeezed into a square."""
    size = (round(crop.shape[0] * align.BOX_WIDTH / align.BOX_HEIGHT), crop.shape[0])
    return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), np.uint8)
