"""A folder of raw clips in, a folder to train on out: `prepare`."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from latentsync.errors import Cancelled, InputError, OptionError, OutputError
from latentsync.training.preparation.journal import Counts, Journal
from latentsync.training.preparation.settings import PreparationSettings
from latentsync.training.preparation.summary import write_summary
from latentsync.training.preparation.work import Source
from latentsync.training.preparation.workers import Finished, here, in_processes

__all__ = ["SUFFIXES", "FileCounts", "find_sources", "prepare"]

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"}
TELL_EVERY = 0.2  # seconds
WRITE_EVERY = 5.0  # seconds between two writings of the lists
WRITE_SHARE = 20  # so many times as long as the last one took, at least


@dataclass(frozen=True)
class FileCounts:
    """How far a run is, files of earlier runs included."""

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
    """Choose from a folder of clips what can be trained on; called again, it goes on where it was.

    Whatever ends it, finished files stay and are not worked on again, unless they or the settings
    change: OUTPUT follows from RAW and the settings alone, so that clips of files that are gone
    go, too, at the end of a run.

    Args:
        raw: is searched for videos, also below; links to folders are not followed.
        output: gets clips/, index.jsonl, rejected.jsonl and summary.html.
        settings: default `PreparationSettings()`.
        workers: processes, which change nothing in the result; 0: in this one, one by one.
        progress: hears of each file.
        cancelled: asked many times a second, with workers 0 between files.

    Raises:
        InputError: no such folder, or no video in it.
        OptionError: a negative number of workers.
        OutputError: the output can't be written, or lies in `raw`, or the other way round.
        WeightsError, BackendUnavailable: a net that was asked for can't be had.
        Cancelled: `cancelled` said so.
    """
    raw, output = Path(raw), Path(output)
    if workers < 0:
        raise OptionError(f"workers is {workers}; it must be 0 or more")
    _check_apart(raw, output)
    sources = find_sources(raw)
    settings = (settings or PreparationSettings()).settled()
    tools = settings.tools(output / ".prepare" / "work" / "here")
    with Journal(output, settings.signature(tools)) as journal:

        def check() -> None:
            if cancelled and cancelled():
                done = f"{journal.counts.files} of {len(sources)} files"
                raise Cancelled(f"stopped after {done}; they are kept, the next run goes on there")

        def tell() -> None:
            if progress:
                progress(FileCounts.of(journal.counts, len(sources)))

        todo = journal.take(sources)
        if workers == 0:
            finished = here(todo, settings, tools)
        else:
            finished = in_processes(todo, settings, journal.work, workers, check)
        tell()
        _record(journal, finished, check, tell)
        journal.sweep()
        write_summary(output, journal.records(), settings)
        tell()
        return FileCounts.of(journal.counts, len(sources))


def _record(
    journal: Journal,
    finished: Finished,
    check: Callable[[], None],
    tell: Callable[[], None],
) -> None:
    """Keep what becomes of each file, and say so now and then."""
    told = written = time.monotonic()
    pause = WRITE_EVERY
    try:
        with closing(finished):
            for source, outcome, folder in finished:
                journal.add(source, outcome, folder)
                if time.monotonic() - told > TELL_EVERY:
                    tell()
                    told = time.monotonic()
                check()
                if (now := time.monotonic()) - written > pause:
                    journal.write_lists()
                    written = time.monotonic()
                    pause = max(WRITE_EVERY, WRITE_SHARE * (written - now))
    finally:
        journal.write_lists()


def find_sources(raw: Path) -> list[Source]:
    """The videos in a folder and below it, by name.

    Raises:
        InputError: no folder, or no video in it.
    """
    if not raw.is_dir():
        raise InputError(f"{raw} is no folder; give one of clips")
    paths = [path for path in raw.rglob("*") if path.suffix.lower() in SUFFIXES]
    # A link that leads nowhere is a broken file, and gets its line.
    found = [Source.of(p, raw) for p in paths if p.is_file() or (p.is_symlink() and not p.is_dir())]
    if not found:
        raise InputError(f"{raw} holds no video: {', '.join(sorted(SUFFIXES))}; give another")
    return sorted(found, key=lambda source: source.relative)


def _check_apart(raw: Path, output: Path) -> None:
    one, other = raw.resolve(), output.resolve()
    if one == other or one in other.parents or other in one.parents:
        raise OutputError(
            f"output {output} and input {raw} lie in one another; give a folder outside of it"
        )
    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is no folder; give another name")
