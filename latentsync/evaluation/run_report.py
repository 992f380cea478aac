"""What a run's own report, out.json beside out.mp4, says about the output."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from latentsync.pipeline import timeline
from latentsync.pipeline.report import report_path
from latentsync.types import IntArray, SyncMode

__all__ = ["ReportedRun"]

MAX_FRAMES = 10_000_000  # 46 hours at 60 fps; no clip has more


@dataclass(frozen=True)
class ReportedRun:
    """The facts about one run that matter for judging its output."""

    source: Path  # the clip, also if it is no longer there
    faces: tuple[str, ...] = ()  # whose mouths were generated, as they were chosen; (): unknown
    seconds: float | None = None  # of the output; None: unknown
    source_frames: IntArray | None = None  # (frames,) of each output frame; None: unknown
    untouched: tuple[tuple[int, int], ...] = ()  # output frames [start, stop)
    own_pace: bool = False  # frames are those of the clip's own rate; else 25 a second
    problem: str = ""  # why nothing but the source was taken from the report

    @classmethod
    def of(cls, output: Path) -> "ReportedRun | None":
        """Read the report of an output; None if there is none that names a source.

        The report of an earlier version, or one that somebody edited, may lack the rest.
        """
        path = report_path(output)
        try:
            report = json.loads(path.read_text())
            source = Path(report["source"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        source = source if _is_file(source) else output.parent / source
        try:
            return cls._parse(source, report)
        except OverflowError as error:
            return cls(source, problem=f"{path.name} says {error}, which no clip has")
        except (ValueError, KeyError, TypeError):
            return cls(source)

    @classmethod
    def _parse(cls, source: Path, report: Mapping[str, Any]) -> "ReportedRun":
        options = report["options"]
        mode = options["sync_mode"]
        frames = int(_plausible("frames", report["frames"]))
        source_frames = int(_plausible("source_frames", report["source_frames"]))
        if mode not in get_args(SyncMode) or min(frames, source_frames) < 1:
            raise ValueError(mode)
        return cls(
            source,
            tuple(map(str, report.get("voices") or [options["face"]])),
            float(_plausible("seconds", report["seconds"])),
            timeline.source_frames(frames, source_frames, mode),
            tuple(
                (
                    int(_plausible("passed_through", start)),
                    int(_plausible("passed_through", stop)),
                )
                for start, stop, _ in report["passed_through"]
            ),
            options["fps"] == "source",
        )

    def generated(self) -> NDArray[np.bool_]:
        """(frames,) in which output frames a mouth was generated."""
        assert self.source_frames is not None
        generated = np.ones(len(self.source_frames), bool)
        for start, stop in self.untouched:
            generated[start:stop] = False
        return generated

    def has_source(self) -> bool:
        """Whether the source is still there and can be reached."""
        return _is_file(self.source)

    def is_source(self, path: Path) -> bool:
        """Whether a file is the run's source, or a copy of it under the same name."""
        if not self.has_source():
            return path.name == self.source.name
        same_name = path.name == self.source.name
        return path.samefile(self.source) or (
            same_name and path.stat().st_size == self.source.stat().st_size
        )


def _plausible(name: str, value: float) -> float:
    """A number of a report. Raises OverflowError, naming it, if no clip has so many frames."""
    if not 0 <= value <= MAX_FRAMES:
        raise OverflowError(f"{name} {str(value)[:40]}")
    return value


def _is_file(path: Path) -> bool:
    """As `Path.is_file`; False if the system refuses: another user's folder, too long a name."""
    try:
        return path.is_file()
    except OSError:
        return False
