"""Preparation of a whole folder: raw clips in, a training set out."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from latentsync.errors import Cancelled, InputError, OptionError, OutputError
from latentsync.training.clips import SUFFIXES
from latentsync.training.preparation.journal import Counts, Journal
from latentsync.training.preparation.plan import load_tools, resolved, signature
from latentsync.training.preparation.summary import write_summary
from latentsync.training.preparation.work import Source
from latentsync.training.preparation.workers import Finished, run_here, run_in_processes
from latentsync.training.settings import PreparationSettings

__all__ = ["FileCounts", "find_sources", "prepare"]

REPORT_SECONDS = 0.2  # from one report of progress to the next
MIN_WRITE_SECONDS = 5.0  # from one writing of the lists to the next
MIN_WRITE_RATIO = 20  # of that time to how long a writing takes


@dataclass(frozen=True)
class FileCounts:
    """The progress of a run, including files of earlier runs."""

    files: int  # done
    total: int  # files
    clips: int
    seconds: float  # of clips
    rejected: dict[str, int]  # "step: reason" -> how many stretches, or files

    @classmethod
    def of(cls, counts: Counts, total: int) -> "FileCounts":
        rejected = {reason: count for reason, count in counts.rejected.items() if count}
        return cls(
            counts.files, total, counts.clips, counts.seconds, dict(sorted(rejected.items()))
        )


def prepare(
    raw: Path | str,
    output: Path | str,
    settings: PreparationSettings | None = None,
    *,
    workers: int = 1,
    progress: Callable[[FileCounts], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> FileCounts:
    """Choose what can be trained on from a folder of clips; called again, it resumes.

    Finished files stay, whatever ends a run, and are not worked on again unless they or the
    settings change. OUTPUT depends on RAW and the settings only: at the end of a run, clips of
    files that are gone are removed.

    Args:
        raw: searched for videos, with the folders below; links to folders are not followed.
        output: gets clips/, index.jsonl, rejected.jsonl and summary.html.
        settings: default `PreparationSettings()`.
        workers: processes, which don't change the result; 0: work in this process.
        progress: called after each file.
        cancelled: asked many times a second; with 0 workers, between files.

    Raises:
        InputError: no such folder, or no video in it.
        OptionError: a negative number of workers.
        OutputError: the output can't be written, or one of the folders is inside the other.
        WeightsError, BackendUnavailable: a chosen net is missing.
        Cancelled: `cancelled` returned true.
    """
    raw, output = Path(raw), Path(output)
    if workers < 0:
        raise OptionError(f"workers is {workers}; it must be 0 or more")
    _check_apart(raw, output)
    sources = find_sources(raw)
    settings = resolved(settings or PreparationSettings())
    tools = load_tools(settings, output / ".prepare" / "work" / "here")
    with Journal(output, signature(settings, tools)) as journal:

        def check() -> None:
            if cancelled and cancelled():
                done = f"{journal.counts.files} of {len(sources)} files"
                raise Cancelled(f"stopped after {done}; they are kept, the next run goes on there")

        def report() -> None:
            if progress:
                progress(FileCounts.of(journal.counts, len(sources)))

        pending = journal.pending(sources)
        if workers == 0:
            finished = run_here(pending, settings, tools)
        else:
            finished = run_in_processes(pending, settings, journal.work, workers, check)
        report()
        _record(journal, finished, check, report)
        journal.sweep()
        write_summary(output, journal.records(), settings)
        report()
        return FileCounts.of(journal.counts, len(sources))


def _record(
    journal: Journal,
    finished: Finished,
    check: Callable[[], None],
    report: Callable[[], None],
) -> None:
    """Record each finished file; report progress and write the lists from time to time."""
    reported = written = time.monotonic()
    pause = MIN_WRITE_SECONDS
    try:
        with closing(finished):
            for source, outcome, folder in finished:
                journal.add(source, outcome, folder)
                if time.monotonic() - reported > REPORT_SECONDS:
                    report()
                    reported = time.monotonic()
                check()
                if (now := time.monotonic()) - written > pause:
                    journal.write_lists()
                    written = time.monotonic()
                    pause = max(MIN_WRITE_SECONDS, MIN_WRITE_RATIO * (written - now))
    finally:
        journal.write_lists()


def find_sources(raw: Path) -> list[Source]:
    """The videos in a folder and below it, by name.

    Raises:
        InputError: no folder, or no video in it.
    """
    if not raw.is_dir():
        raise InputError(f"{raw} is not a folder; give a folder of videos")
    paths = [path for path in raw.rglob("*") if path.suffix.lower() in SUFFIXES]
    # A link that leads nowhere is a broken file, which is rejected with a line.
    found = [Source.of(p, raw) for p in paths if p.is_file() or (p.is_symlink() and not p.is_dir())]
    if not found:
        raise InputError(
            f"{raw} holds no video ({', '.join(sorted(SUFFIXES))}); give another folder"
        )
    return sorted(found, key=lambda source: source.relative)


def _check_apart(raw: Path, output: Path) -> None:
    one, other = raw.resolve(), output.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise OutputError(
            f"one of the folders {raw} and {output} is inside the other; give an output outside"
        )
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is not a folder; give another name")
