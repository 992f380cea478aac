"""What a run's own report, out.json beside out.mp4, tells about the output."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np

from latentsync.pipeline import timeline
from latentsync.pipeline.report import report_path
from latentsync.types import IntArray, SyncMode

__all__ = ["ReportedRun"]


@dataclass(frozen=True)
class ReportedRun:
    """One run, as far as it matters for judging its output."""

    source: Path  # the clip, also where it is no longer there
    faces: tuple[str, ...] = ()  # whose mouths were drawn, as they were chosen; (): unknown
    seconds: float | None = None  # of the output; None: unknown
    shown: IntArray | None = None  # (frames,) the source frame of each output frame; None: unknown
    untouched: tuple[tuple[int, int], ...] = ()  # output frames [start, stop)
    own_pace: bool = False  # frames are those of the clip's own rate; else 25 a second

    @classmethod
    def of(cls, output: Path) -> "ReportedRun | None":
        """Read the report of an output; None where there is none that names a source.

        A report of an earlier version, or one that somebody changed, may lack the rest.
        """
        try:
            report = json.loads(report_path(output).read_text())
            source = Path(report["source"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        source = source if _is_file(source) else output.parent / source
        try:
            return cls._whole(source, report)
        except (ValueError, KeyError, TypeError):
            return cls(source)

    @classmethod
    def _whole(cls, source: Path, report: Mapping[str, Any]) -> "ReportedRun":
        options = report["options"]
        mode, counts = options["sync_mode"], (int(report["frames"]), int(report["source_frames"]))
        if mode not in get_args(SyncMode) or min(counts) < 1:
            raise ValueError(mode)
        return cls(
            source,
            tuple(map(str, report.get("voices") or [options["face"]])),
            float(report["seconds"]),
            timeline.source_frames(*counts, mode),
            tuple((int(start), int(stop)) for start, stop, _ in report["passed_through"]),
            options["fps"] == "source",
        )

    def drawn(self) -> "np.ndarray[Any, np.dtype[np.bool_]]":
        """(frames,) in which output frames a mouth was drawn."""
        assert self.shown is not None
        drawn = np.ones(len(self.shown), bool)
        for start, stop in self.untouched:
            drawn[start:stop] = False
        return drawn

    def has_source(self) -> bool:
        """Whether the source is still there, and can be reached."""
        return _is_file(self.source)

    def is_source(self, path: Path) -> bool:
        """Whether a file is the run's source, or a copy of it under the same name."""
        if not self.has_source():
            return path.name == self.source.name
        if path.samefile(self.source):
            return True
        alike = path.name == self.source.name
        return alike and path.stat().st_size == self.source.stat().st_size


def _is_file(path: Path) -> bool:
    """As `Path.is_file`; False where it can't be asked: another user's folder, too long a name."""
    try:
        return path.is_file()
    except OSError:
        return False
