"""What is known of each file, kept so that a run that was ended anyhow goes on where it was.

    OUTPUT/clips/            the clips
    OUTPUT/index.jsonl       a line a clip
    OUTPUT/rejected.jsonl    a line a stretch, or file, that was left out
    OUTPUT/summary.html
    OUTPUT/.prepare/         one record a file, written when its clips are in their place

The lists are put together from the records, sorted, so they are the same for any number of workers
and any number of interruptions. Everything takes its place by a rename.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from latentsync.cache import file_digest
from latentsync.errors import OutputError
from latentsync.preparation.clip import CLIPS
from latentsync.preparation.work import Line, Outcome, Source

__all__ = ["Journal", "Record", "write_file"]

Record = dict[str, Any]


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
        self._records: dict[str, Record] = {}
        self._passing: dict[str, Record] = {}  # of this run only
        self._lock = -1

    def __enter__(self) -> Self:
        try:
            self._open()
        except OSError as error:
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
        self._records_folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._hidden / "lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"another run is filling {self.output}; wait for it, or give another folder"
            ) from error
        self.clips.mkdir(exist_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)  # a killed run's
        self.work.mkdir()
        for path in self._records_folder.glob("*.json"):
            try:
                record = json.loads(path.read_text())
            except ValueError:  # the machine went down before it was on the disk
                continue
            self._records[record["source"]] = record

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        os.close(self._lock)

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
        return [source for source in sources if not self._knows(source)]

    def _knows(self, source: Source) -> bool:
        """Whether the file was worked on as it is now, with the same settings."""
        record = self._records.get(source.relative)
        if record is None or record["signature"] != self._signature:
            return False
        if not all((self.output / line["clip"]).is_file() for line in record["clips"]):
            return False  # somebody took one away
        if [record["size"], record["changed"]] == [source.size, source.changed]:
            return True
        try:
            same = record["size"] == source.size and record["digest"] == file_digest(source.path)
        except OSError:
            return False
        if same:  # a copy
            self._keep({**record, "changed": source.changed})
        return same

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
            self._passing[source.relative] = record
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
            raise OutputError(f"{self.output} can't be written ({error})") from error

    def records(self) -> list[Record]:
        """Of all files that these settings were used on so far, by name."""
        known = {
            name: record
            for name, record in self._records.items()
            if record["signature"] == self._signature
        }
        together = {**known, **self._passing}
        return [together[name] for name in sorted(together)]

    def write_lists(self) -> None:
        """index.jsonl and rejected.jsonl, of what is known by now."""
        records = self.records()
        _write_lines(self.output / "index.jsonl", (r for one in records for r in one["clips"]))
        rejected = (r for one in records for r in one["rejected"])
        _write_lines(self.output / "rejected.jsonl", rejected)

    def sweep(self) -> None:
        """Remove clips of other settings, and of files that are gone; after the last file."""
        clips = [self.output / line["clip"] for one in self.records() for line in one["clips"]]
        known = {path.name for clip in clips for path in (clip, clip.with_suffix(".npy"))}
        for path in self.clips.iterdir():
            if path.name not in known:
                path.unlink()

    def _keep(self, record: Record) -> None:
        self._records[record["source"]] = record
        write_file(self._path(record["source"]), json.dumps(record).encode())

    def _path(self, relative: str) -> Path:
        """Of a file's record; its own name may hold anything, and be too long."""
        name = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()
        return self._records_folder / f"{name[:32]}.json"


def write_file(path: Path, content: bytes) -> None:
    """In one move."""
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_bytes(content)
    temporary.replace(path)


def _write_lines(path: Path, lines: Iterable[Line]) -> None:
    # ASCII: names of files may be no text at all.
    write_file(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
