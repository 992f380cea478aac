"""What is known of each file, kept so that a run that was ended anyhow goes on where it was.

    OUTPUT/clips/            the clips
    OUTPUT/index.jsonl       a line a clip
    OUTPUT/rejected.jsonl    a line a stretch, or file, that was left out
    OUTPUT/summary.html
    OUTPUT/.prepare/         one record a file, written when its clips are in their place

The lists are put together from the records, sorted, so they are the same for any number of workers
and any number of interruptions. Everything takes its place by a rename. What a finished file costs
does not grow with the number of files: counts are kept up to date, and the lists are written the
more seldom the longer that takes.

A clip is whole if it is as large as its record says and no younger than it, as make(1) has it; a
younger one, such as a copy, is held against its hash.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from latentsync.errors import OutputError
from latentsync.runtime.disk_cache import file_digest
from latentsync.runtime.files import locked, replacing
from latentsync.training.preparation.clip import CLIPS
from latentsync.training.preparation.work import Line, Outcome, Source

__all__ = ["Counts", "Journal", "Record", "write_file"]

Record = dict[str, Any]
SOURCE = {"source": str, "size": int, "changed": int, "digest": str, "signature": str}
CLIP = {"clip": str, "sha256": str}
FACTS = ("bytes", "sha256")  # of a clip in its line; with "affines_" before, of its affines


@dataclass
class Counts:
    """Of the files that are done."""

    files: int = 0
    clips: int = 0
    seconds: float = 0.0  # of clips
    rejected: Counter[str] = field(default_factory=Counter)  # "step: reason" -> how many

    def add(self, record: Record, times: int = 1) -> None:
        """Count a file, or with -1 no longer."""
        self.files += times
        self.clips += times * len(record["clips"])
        for line in record["clips"]:
            self.seconds += times * (line["stop_seconds"] - line["start_seconds"])
        for line in record["rejected"]:
            self.rejected[f"{line['step']}: {line['reason']}"] += times


class Journal:
    """The output folder of a run; one run at a time. Use it in a `with` block.

    Args:
        output: made if it isn't there.
        signature: what the clips follow from beside the files, see `Settings.signature`.

    Raises:
        OutputError: the folder can't be used: it holds other things, or another run is at it.
    """

    def __init__(self, output: Path, signature: str) -> None:
        self.output, self.clips = output, output / CLIPS
        self._hidden = output / ".prepare"
        self._records_folder, self.work = self._hidden / "records", self._hidden / "work"
        self._signature = hashlib.sha256(signature.encode()).hexdigest()
        self._records: dict[str, Record] = {}  # of all settings
        self._done: dict[str, Record] = {}  # of these, and whole
        self._held = ExitStack()
        self.counts = Counts()

    def __enter__(self) -> Self:
        try:
            self._open()
        except OSError as error:
            self._held.close()
            raise OutputError(
                f"{self.output} can't be written ({error}); choose another folder"
            ) from error
        return self

    def _open(self) -> None:
        if self.output.exists() and not self._hidden.is_dir() and any(self.output.iterdir()):
            raise OutputError(
                f"{self.output} holds other files; give a new folder, or one that an earlier "
                "`latentsync prepare` filled"
            )
        self._held.enter_context(locked(self.output, f"{self._hidden.name}/lock"))
        self._records_folder.mkdir(exist_ok=True)
        self.clips.mkdir(exist_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)  # a killed run's
        self.work.mkdir()
        with ThreadPoolExecutor() as pool:
            records = pool.map(_read, self._records_folder.glob("*.json"))
            self._records = {one["source"]: one for one in records if one is not None}

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self._held.close()

    def take(self, sources: Sequence[Source]) -> list[Source]:
        """The files still to be worked on; records of files that are gone are forgotten.

        Raises:
            OutputError: not one of the files that were worked on is among them.
        """
        names = {source.relative for source in sources}
        gone = self._records.keys() - names
        if gone and len(gone) == len(self._records):
            raise OutputError(
                f"{self.output} was filled from other files, such as {min(gone)!r}, which would "
                "be thrown away; give another folder for these"
            )
        for name in gone:
            del self._records[name]
            self._path(name).unlink(missing_ok=True)
        with ThreadPoolExecutor() as pool:
            known = list(pool.map(self._knows, sources))
        for source, knows in zip(sources, known, strict=True):
            if knows:
                self._count(self._records[source.relative])
        return [source for source, knows in zip(sources, known, strict=True) if not knows]

    def _knows(self, source: Source) -> bool:
        """Whether the file was worked on as it is now, with the same settings, and what came of it
        is whole."""
        record = self._records.get(source.relative)
        if record is None or record["signature"] != self._signature or not self._whole(record):
            return False
        if [record["size"], record["changed"]] == [source.size, source.changed]:
            return True
        try:
            same = record["size"] == source.size and record["digest"] == file_digest(source.path)
        except OSError:
            return False
        if same:  # a copy
            self._keep({**record, "changed": source.changed})
        return same

    def _whole(self, record: Record) -> bool:
        """Whether each clip of a file is as it was written."""
        path = self._path(record["source"])
        try:
            written = path.stat().st_mtime_ns
            checks = [_check(self.output / line["clip"], line, written) for line in record["clips"]]
        except OSError:
            return False  # somebody took one away
        if not all(check.whole for check in checks):
            return False
        if any(check.facts for check in checks):  # a record from before these were noted
            lines = [
                {**line, **check.facts} for line, check in zip(record["clips"], checks, strict=True)
            ]
            self._keep({**record, "clips": lines})
        elif any(check.younger for check in checks):  # so they are not read each time
            os.utime(path)
        return True

    def _count(self, record: Record) -> None:
        """Let a file be done; a record of it from before no longer counts."""
        if (before := self._done.get(record["source"])) is not None:
            self.counts.add(before, -1)
        self._done[record["source"]] = record
        self.counts.add(record)

    def add(self, source: Source, outcome: Outcome, folder: Path) -> None:
        """Move a file's clips from `folder` to their place, then note that it is done.

        Raises:
            OutputError: they can't be moved.
        """
        record = {
            "source": source.relative,
            "size": source.size,
            "changed": source.changed,
            "digest": outcome.digest,
            "signature": self._signature,
            "seconds": outcome.seconds,
            "clips": outcome.clips,
            "rejected": outcome.rejected,
        }
        if not outcome.final:
            self._count(record)
            return
        try:
            # First: the clips of other settings may have the same names.
            self._path(source.relative).unlink(missing_ok=True)
            for line in outcome.clips:
                clip = folder / Path(line["clip"]).name
                for path in (clip, clip.with_suffix(".npy")):
                    if path.is_file():
                        path.replace(self.clips / path.name)
            self._keep(record)
        except OSError as error:
            raise OutputError(
                f"{self.output} can't be written ({error.strerror or error}); make room, and start "
                "again: the run goes on"
            ) from error
        self._count(record)

    def records(self) -> list[Record]:
        """Of all files that these settings were used on so far, by name."""
        return [self._done[name] for name in sorted(self._done)]

    def write_lists(self) -> None:
        """index.jsonl and rejected.jsonl, of what is known by now."""
        records = self.records()
        _write_lines(self.output / "index.jsonl", (r for one in records for r in one["clips"]))
        rejected = (r for one in records for r in one["rejected"])
        _write_lines(self.output / "rejected.jsonl", rejected)

    def sweep(self) -> None:
        """Remove clips of other settings and of files that are gone; folders stay."""
        clips = [self.output / line["clip"] for one in self.records() for line in one["clips"]]
        known = {path.name for clip in clips for path in (clip, clip.with_suffix(".npy"))}
        for path in self.clips.iterdir():
            if path.name not in known and (path.is_symlink() or not path.is_dir()):
                path.unlink()

    def _keep(self, record: Record) -> None:
        self._records[record["source"]] = record
        write_file(self._path(record["source"]), json.dumps(record).encode())

    def _path(self, relative: str) -> Path:
        """Of a file's record; its own name may hold anything, and be too long."""
        name = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()
        return self._records_folder / f"{name[:32]}.json"


def write_file(path: Path, content: bytes) -> None:
    """In one move.

    Raises:
        OutputError: it can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _write_lines(path: Path, lines: Iterable[Line]) -> None:
    # ASCII: names of files may be no text at all.
    write_file(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def _read(path: Path) -> Record | None:
    """A record; None where it is damaged: the machine went down before it was on the disk, say."""
    try:
        record = json.loads(path.read_bytes())
        sound = _has(record, SOURCE) and isinstance(record["seconds"], int | float)
        lines = [*record["clips"], *record["rejected"]]
        sound &= all(_has(line, CLIP) for line in record["clips"])
        Counts().add(record)  # all that is counted is there
        return record if sound and all(isinstance(line, dict) for line in lines) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _has(record: Mapping[str, Any], kinds: Mapping[str, type]) -> bool:
    return all(isinstance(record[name], kind) for name, kind in kinds.items())


@dataclass
class _IntegrityCheck:
    """What a clip's files were found to be."""

    whole: bool = True
    younger: bool = False  # than their record
    facts: dict[str, Any] = field(default_factory=dict)  # that the record lacks


def _check(clip: Path, line: Line, written: int) -> _IntegrityCheck:
    """Hold a clip and its affines against the record.

    Raises:
        OSError: one is not there.
    """
    check = _IntegrityCheck()
    for path, before in ((clip, ""), (clip.with_suffix(".npy"), "affines_")):
        size, digest = (line.get(f"{before}{name}") for name in FACTS)
        if before and digest is None and ("box" not in line or not path.is_file()):
            check.whole &= "box" not in line  # the form "around" has affines
            continue
        facts = path.stat()
        if size is not None and facts.st_size != size:
            return _IntegrityCheck(whole=False)
        if size is not None and facts.st_mtime_ns <= written:
            continue
        found = file_digest(path)
        if digest is not None and digest != found:
            return _IntegrityCheck(whole=False)
        check.younger |= size is not None
        if size is None:
            check.facts |= {f"{before}bytes": facts.st_size, f"{before}sha256": found}
    return check
