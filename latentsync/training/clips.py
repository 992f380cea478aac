"""The clips of a folder: which there are, what is in each by its hash, who is seen in them."""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentsync.errors import Cancelled, InputError
from latentsync.runtime.disk_cache import file_digest
from latentsync.types import Progress, ProgressCallback

__all__ = ["SUFFIXES", "ClipFile", "find_clips", "identified"]

log = logging.getLogger(__name__)

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"}
INDEX = "index.jsonl"  # that `latentsync prepare` writes beside its folder of clips
DIGESTS = "digests.jsonl"
HASHED_AT_ONCE = 64  # files between two looks at whether the run is cancelled
DIGITS = 64  # of a SHA-256


@dataclass(frozen=True, slots=True)
class ClipFile:
    """One clip as it lies on the disk."""

    path: Path
    digest: str  # SHA-256 of its bytes; empty: it can't be read
    people: str  # what its clips have in common: a person, or a folder of the footage
    source: str  # the footage that it was cut from, or the clip itself
    trouble: str = ""  # why it can't be read


def find_clips(folder: Path) -> list[Path]:
    """The clips in a folder and below it, in the order of their names; none that is hidden.

    Raises:
        InputError: no folder, or no clip in it.
    """
    paths = sorted(map(Path, _videos(str(folder))))
    if not paths:
        raise InputError(
            f"{folder} holds no clip; give a folder of clips with sound: "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    return paths


def _videos(folder: str) -> Iterator[str]:
    """Names of videos; what `latentsync prepare` hasn't finished lies in a hidden folder."""
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _videos(entry.path)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and entry.is_file():  # noqa: PTH122
            yield entry.path


def identified(
    paths: Sequence[Path],
    folder: Path,
    cache: Path,
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[ClipFile]:
    """What is in each clip of `folder`, and whom it shows.

    A hash comes from `latentsync prepare`'s index, or from an earlier run, where the file's size
    and time have not changed since; other clips are read, side by side. What is known is kept in
    the cache.

    Raises:
        Cancelled: `cancel` said so; what was hashed is kept.
    """
    index, known = _Index(folder), _Digests(cache)
    facts = {path: _stat(path) for path in paths}
    digests = {}
    unknown = []
    for path, fact in facts.items():
        digest = index.digest(path, fact) or known.digest(path, fact)
        if digest:
            digests[path] = digest
        else:
            unknown.append(path)
    troubles: dict[Path, str] = {}
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(unknown), HASHED_AT_ONCE):
            part = unknown[start : start + HASHED_AT_ONCE]
            for path, (digest, trouble) in zip(part, pool.map(_hashed, part), strict=True):
                digests[path], troubles[path] = digest, trouble
            known.add((path, facts[path], digests[path]) for path in part)
            if progress:
                progress(Progress("hash", start + len(part), len(unknown)))
            if cancel and cancel():
                raise Cancelled(
                    f"stopped after reading {start + len(part)} of {len(unknown)} clips"
                )
    return [
        ClipFile(path, digests[path], *index.origin(path), troubles.get(path, "")) for path in paths
    ]


def _stat(path: Path) -> tuple[int, int]:
    """Bytes, and ns since 1970 of the last change; of a file that is gone (-1, -1)."""
    try:
        facts = path.stat()
    except OSError:
        return -1, -1
    return facts.st_size, facts.st_mtime_ns


def _hashed(path: Path) -> tuple[str, str]:
    """The digest, or why there is none."""
    try:
        return file_digest(path), ""
    except OSError as error:
        return "", f"it can't be read ({error.strerror or error})"


def _records(file: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file of JSON objects; damaged ones are passed over."""
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


class _Index:
    """What `latentsync prepare` says of the clips in a folder that it filled; or nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        places = [folder, folder.parent] if folder.name == "clips" else [folder]
        self._known: dict[str, tuple[int, str, str, str]] = {}  # bytes, digest, identity, source
        self._written = -1  # ns since 1970; a clip that is younger may be another one
        for place in places:
            self._written = _stat(place / INDEX)[1]
            for line in _records(place / INDEX):
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

    def digest(self, path: Path, fact: tuple[int, int]) -> str:
        """Empty where the file isn't as it was written."""
        size, digest, *_ = self._known.get(str(path), (-1, ""))
        return str(digest) if size == fact[0] and fact[1] <= self._written else ""

    def origin(self, path: Path) -> tuple[str, str]:
        """`ClipFile.people` and `.source`."""
        *_, identity, source = self._known.get(str(path), ("", ""))
        source = str(source) or path.relative_to(self._folder).as_posix()
        first, below, _ = source.partition("/")
        return str(identity) or (first if below else source), source


class _Digests:
    """Hashes of files by name, size and time, a line each; lines are only ever added."""

    def __init__(self, cache: Path) -> None:
        self._file = cache / DIGESTS
        self._known: dict[str, tuple[int, int, str]] = {}
        for line in _records(self._file):
            key, digest = line.get("path"), _digest_of(line)
            if isinstance(key, str) and digest:
                self._known[key] = (line.get("bytes", -1), line.get("changed", -1), digest)

    def digest(self, path: Path, fact: tuple[int, int]) -> str:
        """Empty where it isn't known, or the file has changed."""
        *was, digest = self._known.get(os.path.abspath(path), (-1, -1, ""))  # noqa: PTH100
        return str(digest) if tuple(was) == fact else ""

    def add(self, found: Iterable[tuple[Path, tuple[int, int], str]]) -> None:
        """Several processes may do so at once: each writes whole lines."""
        text = "".join(
            json.dumps(
                {"path": os.path.abspath(path), "bytes": size, "changed": changed, "sha256": digest}  # noqa: PTH100
            )
            + "\n"
            for path, (size, changed), digest in found
            if digest
        )
        if not text:
            return
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab", buffering=0) as file:
                file.write(b"\n" + text.encode())  # after a line that was cut
        except OSError as error:
            log.warning("hashes of clips can't be kept (%s); they are made again", error)


def _digest_of(line: Mapping[str, Any]) -> str:
    digest = line.get("sha256")
    return digest if isinstance(digest, str) and len(digest) == DIGITS else ""
