"""The clips of a folder: their paths, the hashes of their bytes, and whom they show."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentsync.errors import Cancelled, InputError
from latentsync.runtime.files import file_digest
from latentsync.types import Progress, ProgressCallback

__all__ = ["SUFFIXES", "ClipFile", "find_clips", "identify_clips"]

log = logging.getLogger(__name__)

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"}
INDEX = "index.jsonl"  # that `latentsync prepare` writes beside its folder of clips
DIGESTS = "digests.jsonl"
HASH_BATCH = 64  # files between two checks of whether the run is cancelled
SHA256_DIGITS = 64

FileFacts = tuple[int, int]
"""Bytes, and ns since 1970 of the last change; of a file that is gone (-1, -1)."""


@dataclass(frozen=True, slots=True)
class ClipFile:
    """One clip on the disk."""

    path: Path
    digest: str  # SHA-256 of its bytes; empty: it can't be read
    people: str  # equal for clips of one person, or of one folder of footage
    source: str  # the footage that it was cut from, or the clip itself
    trouble: str = ""  # why it can't be read


def find_clips(folder: Path) -> list[Path]:
    """The clips in a folder and below it, sorted by name; hidden ones are skipped.

    Raises:
        InputError: no folder, or no clip in it.
    """
    paths: list[Path] = []
    for root, folders, names in os.walk(folder):
        # What `latentsync prepare` hasn't finished lies in a hidden folder.
        folders[:] = [name for name in folders if not name.startswith(".")]
        videos = (Path(root, name) for name in names if not name.startswith("."))
        paths += (path for path in videos if path.suffix.lower() in SUFFIXES and path.is_file())
    if not paths:
        raise InputError(
            f"{folder} holds no clip; give a folder of clips with sound: "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    return sorted(paths)


def identify_clips(
    paths: Sequence[Path],
    folder: Path,
    cache: Path,
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[ClipFile]:
    """Find out what is in each clip of `folder`, and whom it shows.

    A hash comes from `latentsync prepare`'s index, or from an earlier run, if the file's size and
    time have not changed since. Other clips are read, several at a time. Hashes are kept in the
    cache.

    Raises:
        Cancelled: `cancel` returned true; the hashes so far are kept.
    """
    index, known = _Index(folder), _read_digests(cache / DIGESTS)
    facts = {path: _stat(path) for path in paths}
    digests = {
        path: index.digest(path, fact) or known.get((os.path.abspath(path), *fact), "")  # noqa: PTH100
        for path, fact in facts.items()
    }
    unknown = [path for path in paths if not digests[path]]
    troubles: dict[Path, str] = {}
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(unknown), HASH_BATCH):
            part = unknown[start : start + HASH_BATCH]
            for path, (digest, trouble) in zip(part, pool.map(_hash, part), strict=True):
                digests[path], troubles[path] = digest, trouble
            found = [(path, facts[path], digests[path]) for path in part]
            _append_digests(cache / DIGESTS, found)
            done = start + len(part)
            if progress:
                progress(Progress("hash", done, len(unknown)))
            if cancel and cancel():
                raise Cancelled(f"stopped after reading {done} of {len(unknown)} clips")
    return [
        ClipFile(path, digests[path], *index.origin(path), troubles.get(path, "")) for path in paths
    ]


def _stat(path: Path) -> FileFacts:
    try:
        facts = path.stat()
    except OSError:
        return -1, -1
    return facts.st_size, facts.st_mtime_ns


def _hash(path: Path) -> tuple[str, str]:
    """The digest, or the reason why there is none."""
    try:
        return file_digest(path), ""
    except OSError as error:
        return "", f"it can't be read ({error.strerror or error})"


class _Index:
    """What `latentsync prepare` recorded of the clips in a folder that it filled, if it did."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        places = [folder, folder.parent] if folder.name == "clips" else [folder]
        self._known: dict[str, tuple[int, str, str, str]] = {}  # bytes, digest, identity, source
        self._written = -1  # ns since 1970; a clip that is younger may be another one
        for place in places:
            self._written = _stat(place / INDEX)[1]
            for line in _read_lines(place / INDEX):
                name, size = line.get("clip"), line.get("bytes")
                if isinstance(name, str):
                    self._known[str(place / name)] = (
                        size if isinstance(size, int) else -1,
                        _digest_of(line),
                        str(line.get("identity") or ""),
                        str(line.get("source") or ""),
                    )
            if self._known:
                return

    def digest(self, path: Path, fact: FileFacts) -> str:
        """Empty if the file isn't as it was written."""
        size, digest, *_ = self._known.get(str(path), (-1, ""))
        return str(digest) if size == fact[0] and fact[1] <= self._written else ""

    def origin(self, path: Path) -> tuple[str, str]:
        """`ClipFile.people` and `.source`."""
        *_, identity, source = self._known.get(str(path), ("", ""))
        source = str(source) or path.relative_to(self._folder).as_posix()
        first, below, _ = source.partition("/")
        return str(identity) or (first if below else source), source


def _read_digests(file: Path) -> dict[tuple[str, int, int], str]:
    """Read the hashes that earlier runs kept, by absolute path, bytes and time of change."""
    known = {}
    for line in _read_lines(file):
        path, size, changed = (line.get(name) for name in ("path", "bytes", "changed"))
        if isinstance(path, str) and isinstance(size, int) and isinstance(changed, int):
            known[path, size, changed] = _digest_of(line)
    return known


def _append_digests(file: Path, found: Iterable[tuple[Path, FileFacts, str]]) -> None:
    """Keep hashes; several processes may do so at once, each in whole lines."""
    lines = [
        {"path": os.path.abspath(path), "bytes": size, "changed": changed, "sha256": digest}  # noqa: PTH100
        for path, (size, changed), digest in found
        if digest
    ]
    if not lines:
        return
    text = "".join(json.dumps(line) + "\n" for line in lines)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("ab", buffering=0) as opened:
            opened.write(b"\n" + text.encode())  # after a line that was cut
    except OSError as error:
        log.warning("hashes of clips can't be kept (%s); they are made again", error)


def _read_lines(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON objects; damaged ones are skipped."""
    try:
        with file.open("rb") as lines:
            for line in lines:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record
    except OSError:
        return


def _digest_of(line: Mapping[str, Any]) -> str:
    digest = line.get("sha256")
    return digest if isinstance(digest, str) and len(digest) == SHA256_DIGITS else ""
