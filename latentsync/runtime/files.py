"""Atomic files, hashes of files, and folders of one process."""

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from latentsync.errors import OutputError
from latentsync.runtime.locks import LOCK, flock

__all__ = ["file_digest", "private_folder", "replacing"]

PART = ".part"  # suffix of a temporary file


@contextmanager
def replacing(path: Path, *, unique: bool = False) -> Iterator[Path]:
    """Yield the path of a hidden temporary file, which replaces `path` if the block succeeds.

    It is synced first, so that a crash of the machine leaves either the old file or the new one.
    If the block fails, the temporary file is removed.

    Args:
        unique: allow several processes to write `path` at once. Otherwise only one may, and a file
            left behind by a killed process is overwritten next time.

    Raises:
        OutputError: the file can't be written, for example because the disk is full.
    """
    temporary = path.with_name(f".{path.name}{f'.{uuid.uuid4().hex}' if unique else ''}{PART}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} can't be written ({error.strerror or error}); make room, or mend the folder, "
            "and start again"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def private_folder(parent: Path, name: str | None = None) -> Iterator[Path]:
    """Make a folder below `parent` for this process, removed with its contents at the end.

    Folders left behind by killed processes are removed first; a folder's lock tells whether its
    process is alive, on any machine.
    """
    parent.mkdir(parents=True, exist_ok=True)
    guard = os.open(parent / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        flock(guard, wait=True)  # so that no process sweeps a folder without a lock yet
        for left in parent.iterdir():
            if left.is_dir():
                _sweep(left)
        folder = parent / (name or uuid.uuid4().hex)
        folder.mkdir()
        own = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        flock(own)
    finally:
        os.close(guard)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(own)


def _sweep(folder: Path) -> None:
    """Remove a folder if its process has ended."""
    try:  # a folder has no lock if its process was killed while making or removing it
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return
    try:
        if flock(descriptor):
            shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # it is alive, or that is unknown
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
