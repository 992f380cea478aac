"""Curves of mouth and voice over an output's frames, and a picture of them.

The mouth's curve depends on what is at hand: SyncNet's confidence, if its weights are there; the
mouth's opening, if the faces are drawn, which the mouth net knows; else the change of the mouth
from frame to frame. The last two stand beside the loudness.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from latentsync.errors import InputError, WeightsMissing
from latentsync.evaluation.clips import EvaluatedClip, FramePair, Pair
from latentsync.evaluation.image_quality import mouth_picture
from latentsync.evaluation.lip_correlation import loudness_of
from latentsync.evaluation.metric import Metric, Setup
from latentsync.evaluation.sync_metrics import LipMetrics, SyncLocal
from latentsync.media import AudioReader
from latentsync.options import Options
from latentsync.pipeline.frame_source import FPS
from latentsync.pipeline.lipsync import LipSync
from latentsync.runtime.extras import needs_extra
from latentsync.runtime.progress import RunContext
from latentsync.types import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "Curves", "drawn", "measure"]

MAX_SECONDS = 120.0  # of an output that is measured: finding its face again takes its time
SIZE = (8.0, 2.2)  # inches of a picture, and of each plot in it
# On white and on Gradio's dark grey: text of 4.5:1 or more, curves of 3:1 or more (WCAG 2.2).
LIGHT = {"text": "#1f2937", "mouth": "#1f6fb4", "motion": "#1f6fb4", "loudness": "#b45309"}
DARK = {"text": "#e5e7eb", "mouth": "#60a5fa", "motion": "#60a5fa", "loudness": "#fbbf24"}
LABELS = {"mouth": "opening of the mouth", "motion": "motion of the mouth", "loudness": "loudness"}


@dataclass(frozen=True)
class Curves:
    """What was measured of an output."""

    figures: Mapping[str, float]  # by the names that `latentsync evaluate` has for them
    curves: Mapping[str, NDArray[np.float64]]  # (frames,) each, NaN where there is nothing


class Motion(Metric):
    """How much the picture of the mouth changes from one frame to the next: any face has that."""

    figures = ()
    needs_reference, needs_face = False, True

    def begin(self, clip: EvaluatedClip) -> None:
        super().begin(clip)
        self._before: NDArray[np.float32] | None = None

    def update(self, frames: FramePair) -> None:
        mouth = None
        if frames.affine is not None:
            mouth = mouth_picture(frames.face).astype(np.float32)
            if self._before is not None:
                change = float(np.abs(mouth - self._before).mean())
                self.add_to_curve("motion", frames.index, change)
        self._before = mouth

    def end(self) -> dict[str, float]:
        self.curves["loudness"] = loudness_of(AudioReader(self.clip.pair.output))  # type: ignore[assignment]
        return {}


def measure(
    lipsync: LipSync, result: Result, options: Options, cancelled: Callable[[], bool]
) -> Curves:
    """Measure an output by itself: no reference shows the same frames in every `sync_mode`.

    Raises:
        InputError: it is too long, or the face that spoke may not be the one that is measured.
        LatentSyncError: as a metric raises; `cancelled` said so.
    """
    if result.seconds > MAX_SECONDS:
        raise InputError(f"only outputs of up to {MAX_SECONDS:.0f} s are measured here")
    if options.face != Options.face:
        raise InputError(f"only the {Options.face} face is measured")
    context = RunContext(cancelled=cancelled)
    clip = EvaluatedClip.open(Pair(result.path.name, result.path, None), lipsync.detector, context)
    metrics = _metrics(lipsync)
    for metric in metrics:
        metric.begin(clip)
    for frames in clip.frame_pairs():
        context.check()
        for metric in metrics:
            metric.update(frames)
    figures: dict[str, float] = {}
    curves: dict[str, NDArray[np.float64]] = {}
    for metric in metrics:
        figures |= metric.end()
        curves |= {name: np.asarray(curve, np.float64) for name, curve in metric.curves.items()}
    return Curves(figures, curves)


def _metrics(lipsync: LipSync) -> list[Metric]:
    setup = Setup(lipsync.folder, str(lipsync.device), lipsync.detector)
    drawn_faces = lipsync.nets.config.name == "demo"
    metrics: list[Metric] = [LipMetrics(setup) if drawn_faces else Motion(setup)]
    with suppress(WeightsMissing):
        metrics.append(SyncLocal(setup))
    return metrics


def drawn(found: Curves, colours: Mapping[str, str] = LIGHT) -> "Figure":
    """A picture of the curves, for a page; its ground is transparent.

    Raises:
        BackendUnavailable: matplotlib is not installed.
    """
    with needs_extra("drawing curves", "app"):
        from matplotlib.figure import Figure
    plots = [["mouth", "motion", "loudness"], ["sync_conf_local"]]
    plots = [there for plot in plots if (there := [name for name in plot if name in found.curves])]
    figure = Figure(figsize=(SIZE[0], SIZE[1] * len(plots)), layout="constrained")
    figure.patch.set_alpha(0)
    text = colours["text"]
    for axis, names in zip(figure.subplots(len(plots), squeeze=False)[:, 0], plots, strict=True):
        for name in names:
            curve = found.curves[name]
            seconds = np.arange(len(curve)) / float(FPS)
            level = np.asarray(curve, np.float64)
            if len(names) > 1:  # in standard deviations around 0
                level = (level - np.nanmean(level)) / (np.nanstd(level) or 1.0)
            axis.plot(
                seconds,
                level,
                color=colours.get(name, colours["mouth"]),
                label=LABELS.get(name),
                linewidth=1.6,
            )
        axis.patch.set_alpha(0)
        axis.set_title(_title(names, found.figures), loc="left", fontsize=10, color=text)
        axis.set_xlabel("seconds", fontsize=8, color=text)
        axis.tick_params(labelsize=8, colors=text)
        axis.spines[["top", "right"]].set_visible(False)
        axis.spines[["left", "bottom"]].set_color(text)
        axis.margins(x=0)
        if len(names) > 1:
            axis.set_yticks([])
            axis.legend(
                fontsize=8,
                frameon=False,
                ncols=2,
                loc="lower right",
                bbox_to_anchor=(1, 1),
                labelcolor=text,
            )
    return figure


def _title(names: list[str], figures: Mapping[str, float]) -> str:
    if names == ["sync_conf_local"]:
        return (
            f"SyncNet: confidence {figures['sync_conf_local']:.1f}, "
            f"offset {figures['sync_offset_local']:+.0f} frames"
        )
    if "mouth" in names:
        return (
            f"Measured on drawn faces: correlation "
            f"{figures['lip_loudness']:.2f}, lag {figures['lip_lag']:.0f} frames"
        )
    return "Change of the mouth's picture, and loudness of the voice"
