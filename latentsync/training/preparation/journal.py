"""Records of the finished files, from which a run resumes however it was ended.

    OUTPUT/clips/            the clips
    OUTPUT/index.jsonl       a line a clip
    OUTPUT/rejected.jsonl    a line a stretch, or file, that was left out
    OUTPUT/summary.html
    OUTPUT/.prepare/         one record a file, written when its clips are in their place

The lists are compiled from the records, sorted, so they don't depend on the number of workers or
interruptions. Every file is put in its place by a rename. The cost of a finished file does not grow
with their number: counts are updated one by one, and the lists are written less often the longer
that takes.

A clip is whole if it has the size in its record and is no younger than the record, as make(1) does
it; a younger one, such as a copy, is compared by its hash.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from latentsync.errors import OutputError
from latentsync.runtime.files import file_digest, replacing
from latentsync.runtime.locks import locked_folder
from latentsync.training.preparation.clip import CLIPS
from latentsync.training.preparation.work import Outcome, Source

__all__ = ["Counts", "Journal", "Record", "write_file"]

Record = dict[str, Any]
RECORD_TYPES = {"source": str, "size": int, "changed": int, "digest": str, "signature": str}
CLIP_TYPES = {"clip": str, "bytes": int, "sha256": str}


@dataclass
class Counts:
    """Counts over the finished files."""

    files: int = 0
    clips: int = 0
    seconds: float = 0.0  # of clips
    rejected: Counter[str] = field(default_factory=Counter)  # "step: reason" -> how many

    def add(self, record: Record, times: int = 1) -> None:
        """Count a file; with -1, uncount it."""
        self.files += times
        self.clips += times * len(record["clips"])
        for line in record["clips"]:
            self.seconds += times * (line["stop_seconds"] - line["start_seconds"])
        for line in record["rejected"]:
            self.rejected[f"{line['step']}: {line['reason']}"] += times


class Journal:
    """The output folder of a run, locked for it. Use it in a `with` block.

    Args:
        output: created if it is missing.
        signature: what the clips depend on beside the files, see `plan.signature`.

    Raises:
        OutputError: the folder can't be used: it holds other things, or another run fills it.
    """

    def __init__(self, output: Path, signature: str) -> None:
        self.output, self.clips = output, output / CLIPS
        self._hidden = output / ".prepare"
        self._records_folder, self.work = self._hidden / "records", self._hidden / "work"
        self._signature = hashlib.sha256(signature.encode()).hexdigest()
        self._records: dict[str, Record] = {}  # of any settings
        self._done: dict[str, Record] = {}  # of these settings, with all clips whole
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
        except OutputError:
            self._held.close()
            raise
        return self

    def _open(self) -> None:
        if self.output.exists() and not self._hidden.is_dir() and any(self.output.iterdir()):
            raise OutputError(
                f"{self.output} holds other files; give a new folder, or one that an earlier "
                "`latentsync prepare` filled"
            )
        self._held.enter_context(locked_folder(self.output, f"{self._hidden.name}/lock"))
        self._records_folder.mkdir(exist_ok=True)
        self.clips.mkdir(exist_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)  # left by a killed run
        self.work.mkdir()
        with ThreadPoolExecutor() as pool:
            records = pool.map(_read, self._records_folder.glob("*.json"))
            self._records = {record["source"]: record for record in records if record is not None}

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        self._held.close()

    def pending(self, sources: Sequence[Source]) -> list[Source]:
        """The files still to be worked on; forgets records of files that are gone.

        Raises:
            OutputError: none of the recorded files is among them.
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
            done = list(pool.map(self._is_done, sources))
        for source, is_done in zip(sources, done, strict=True):
            if is_done:
                self._count(self._records[source.relative])
        return [source for source, is_done in zip(sources, done, strict=True) if not is_done]

    def _is_done(self, source: Source) -> bool:
        """Whether the file, as it is now, was finished with these settings, its clips whole."""
        record = self._records.get(source.relative)
        if record is None or record["signature"] != self._signature or not self._is_whole(record):
            return False
        if [record["size"], record["changed"]] == [source.size, source.changed]:
            return True
        try:
            same = record["size"] == source.size and record["digest"] == file_digest(source.path)
        except OSError:
            return False
        if same:  # a copy
            self._write({**record, "changed": source.changed})
        return same

    def _is_whole(self, record: Record) -> bool:
        """Whether each clip of a file, and its affines, are as they were written."""
        path = self._path(record["source"])
        younger = False
        try:
            written = path.stat().st_mtime_ns
            for line in record["clips"]:
                files = {"": self.output / line["clip"]}
                if "box" in line:  # the form "around" has affines
                    files["affines_"] = files[""].with_suffix(".npy")
                for prefix, file in files.items():
                    facts = file.stat()
                    if facts.st_size != line[f"{prefix}bytes"]:
                        return False
                    if facts.st_mtime_ns > written:
                        if file_digest(file) != line[f"{prefix}sha256"]:
                            return False
                        younger = True
        except (OSError, KeyError):  # a file was removed, or the record doesn't have it
            return False
        if younger:  # so that they are not hashed again next time
            os.utime(path)
        return True

    def _count(self, record: Record) -> None:
        """Mark a file as done; its record replaces an earlier one."""
        if (before := self._done.get(record["source"])) is not None:
            self.counts.add(before, -1)
        self._done[record["source"]] = record
        self.counts.add(record)

    def add(self, source: Source, outcome: Outcome, folder: Path) -> None:
        """Move a file's clips from `folder` to their place, then record that it is done.

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
        if outcome.final:
            try:
                # First, because clips of other settings may have the same names.
                self._path(source.relative).unlink(missing_ok=True)
                for line in outcome.clips:
                    clip = folder / Path(line["clip"]).name
                    for path in (clip, clip.with_suffix(".npy")):
                        if path.is_file():
                            path.replace(self.clips / path.name)
                self._write(record)
            except OSError as error:
                raise OutputError(
                    f"{self.output} can't be written ({error.strerror or error}); make room, and "
                    "start again: the run goes on"
                ) from error
        self._count(record)

    def records(self) -> list[Record]:
        """The records of all files that are done with these settings, by name."""
        return [self._done[name] for name in sorted(self._done)]

    def write_lists(self) -> None:
        """Write index.jsonl and rejected.jsonl."""
        records = self.records()
        for name, kind in (("index", "clips"), ("rejected", "rejected")):
            lines = [json.dumps(line) + "\n" for record in records for line in record[kind]]
            # ASCII, because names of files may not be valid text.
            write_file(self.output / f"{name}.jsonl", "".join(lines).encode())

    def sweep(self) -> None:
        """Remove clips of other settings and of files that are gone; folders stay."""
        clips = [self.output / line["clip"] for one in self.records() for line in one["clips"]]
        known = {path.name for clip in clips for path in (clip, clip.with_suffix(".npy"))}
        for path in self.clips.iterdir():
            if path.name not in known and (path.is_symlink() or not path.is_dir()):
                path.unlink()

    def _write(self, record: Record) -> None:
        self._records[record["source"]] = record
        write_file(self._path(record["source"]), json.dumps(record).encode())

    def _path(self, relative: str) -> Path:
        """The path of a file's record; hashed, as the file's name may be too long for it."""
        name = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()
        return self._records_folder / f"{name[:32]}.json"


def write_file(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        OutputError: it can't be written.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _read(path: Path) -> Record | None:
    """Read a record; None if it is damaged, as after the machine went down.

    Raises:
        OutputError: there is a folder in its place.
    """
    if path.is_dir():
        raise OutputError(f"{path} is a folder, in the place of a record; remove it")
    try:
        record = json.loads(path.read_bytes())
        sound = _has(record, RECORD_TYPES) and isinstance(record["seconds"], int | float)
        lines = [*record["clips"], *record["rejected"]]
        sound &= all(_has(line, CLIP_TYPES) for line in record["clips"])
        Counts().add(record)  # raises if anything that is counted is missing
        return record if sound and all(isinstance(line, dict) for line in lines) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _has(record: Mapping[str, Any], types: Mapping[str, type]) -> bool:
    return all(isinstance(record[name], kind) for name, kind in types.items())
