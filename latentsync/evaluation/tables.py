"""An evaluation as text, JSON and CSV. Equal inputs give equal files: no times, no dates."""

import csv
import io
import json
import math
import textwrap
from typing import Any

from latentsync.evaluation.mouth_net import CROP
from latentsync.evaluation.runner import ClipResult, Evaluation, Mean

__all__ = ["as_csv", "as_json", "as_text", "shown"]

BEFORE_FIGURES = ("clip", "reference", "frames")
AFTER_FIGURES = ("notes", "error")


def shown(value: float | None) -> str:
    """A figure for people: four digits, "inf" where two pictures are equal."""
    if value is None:
        return ""
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"


def as_text(found: Evaluation) -> str:
    """One line a figure: mean, interval, clips; or why there is none."""
    width = max(len(one.name) for one in found.figures)
    lines = [f"{'metric':<{width}}  {'mean':>8}  {'95 %':<17}  {'of':<11}  better"]
    said = ""
    for one in found.figures:
        mean = found.means.get(one.name)
        if mean is None:
            why = textwrap.shorten(found.missing[one.name], 160, placeholder=" ...")
            lines.append(f"{one.name:<{width}}  {'-':>8}  {'as above' if why == said else why}")
            said = why
            continue
        values = f"{shown(mean.mean):>8}  {interval(mean):<17}  {counted(mean):<11}"
        lines.append(f"{one.name:<{width}}  {values}  {one.better:<6} {one.unit}".rstrip())
    for clip in found.clips:
        lines += [f"{clip.pair.name}: {line}" for line in _said(clip)]
    lines += [f"{name}: no reference of this name" for name in found.pairs.unmatched_outputs]
    lines += [f"{name}: no output of this name" for name in found.pairs.unmatched_references]
    return "\n".join(" ".join(line.splitlines()) for line in lines)


def interval(mean: Mean) -> str:
    return "" if mean.low is None else f"{shown(mean.low)} .. {shown(mean.high)}"


def counted(mean: Mean) -> str:
    if mean.whole_set:
        return f"{mean.count} samples"
    return f"{mean.count} clip{'s' * (mean.count > 1)}"


def _said(clip: ClipResult) -> list[str]:
    return [clip.error] if clip.error else clip.notes


def as_json(found: Evaluation) -> str:
    """Everything but the curves. A PSNR of equal pictures is the string "inf"."""
    means = {
        one.name: {
            "unit": one.unit,
            "better": one.better,
            "what": one.what,
            **_mean(found.means.get(one.name), found.missing.get(one.name)),
        }
        for one in found.figures
    }
    document = {
        "metrics": means,
        "clips": [_clip(clip) for clip in found.clips],
        "outputs_without_reference": list(found.pairs.unmatched_outputs),
        "references_without_output": list(found.pairs.unmatched_references),
        "detector": found.detector,
        "face_px": CROP,
        "fps": 25,
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _mean(mean: Mean | None, missing: str | None) -> dict[str, Any]:
    if mean is None:
        return {"mean": None, "missing": missing}
    return {
        "mean": _number(mean.mean),
        "interval_95": None if mean.low is None else [_number(mean.low), _number(mean.high or 0.0)],
        "samples" if mean.whole_set else "clips": mean.count,
    }


def _clip(clip: ClipResult) -> dict[str, Any]:
    return {
        "clip": clip.pair.name,
        "reference": clip.pair.reference and clip.pair.reference.name,
        "face": clip.face or None,
        "frames": clip.frames,
        "figures": {name: _number(value) for name, value in sorted(clip.figures.items())},
        "missing": dict(sorted(clip.missing.items())),
        "worst_frames": list(clip.worst),
        "notes": clip.notes,
        "error": clip.error or None,
    }


def _number(value: float) -> float | str | None:
    """As JSON has it, which knows no infinity: "inf", "-inf"; nothing for what is no number."""
    if math.isfinite(value):
        return value
    return None if math.isnan(value) else str(value)


def as_csv(found: Evaluation) -> str:
    """A row a clip, a column a figure; empty where there is none."""
    names = [one.name for one in found.figures]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*BEFORE_FIGURES, *names, *AFTER_FIGURES])
    for clip in found.clips:
        reference = clip.pair.reference.name if clip.pair.reference else ""
        values = [repr(clip.figures[name]) if name in clip.figures else "" for name in names]
        said = "; ".join(clip.notes), clip.error
        table.writerow([clip.pair.name, reference, clip.frames, *values, *said])
    return text.getvalue()
