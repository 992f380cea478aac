"""Atomic files, hashes of files, and folders that belong to one process at a time."""

import errno
import hashlib
import logging
import os
import shutil
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from latentsync.errors import OutputError

if sys.platform != "win32":
    import fcntl

__all__ = ["file_digest", "locked", "private_folder", "replacing"]

log = logging.getLogger(__name__)

PART = ".part"  # suffix of a temporary file
LOCK = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of file systems without flock(2)
MAX_COMMAND = 200  # characters shown of a command


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
def locked(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Make `folder` and lock it for this process; the lock ends with the process in any case.

    Args:
        name: of the lock file in it, which is removed at the end.

    Raises:
        OutputError: the folder can't be made, or another process holds it; the message says which.
    """
    file = folder / name
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _hold(file, folder)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{_this_process()}\n".encode("utf-8", "surrogateescape"), 0)
    except OSError as error:
        raise OutputError(
            f"{folder} can't be written ({error.strerror or error}); make room, or give another "
            "folder"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            file.unlink(
                missing_ok=True
            )  # while locked, so that no process waits for a removed file
        os.close(descriptor)


def _hold(file: Path, folder: Path) -> int:
    """Lock a file; returns its descriptor."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _flock(descriptor)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 1000, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise OutputError(
                f"{folder} is being filled by {holder or 'another process'}; wait for it, "
                "end it, or give another folder"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        with suppress(OSError):
            if os.stat(file).st_ino == os.fstat(descriptor).st_ino:  # noqa: PTH116 - as fstat
                return descriptor
        os.close(descriptor)  # its last holder has removed it meanwhile


def _flock(descriptor: int, *, wait: bool = False) -> None:
    """Lock a file, if the file system supports it.

    Raises:
        BlockingIOError: another process has locked it, and `wait` is false.
    """
    if sys.platform == "win32":
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        log.debug("this file system has no locks: %s", error)


def _this_process() -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:MAX_COMMAND]
    return f"process {os.getpid()} on {socket.gethostname()}, since {started}: {command}"


@contextmanager
def private_folder(parent: Path, name: str | None = None) -> Iterator[Path]:
    """Make a folder below `parent` for this process, removed with its contents at the end.

    Folders left behind by killed processes are removed first; a folder's lock tells whether its
    process is alive, on any machine.
    """
    parent.mkdir(parents=True, exist_ok=True)
    guard = os.open(parent / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _flock(guard, wait=True)  # so that no process sweeps a folder without a lock yet
        for left in parent.iterdir():
            if left.is_dir():
                _sweep(left)
        folder = parent / (name or uuid.uuid4().hex)
        folder.mkdir()
        own = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        _flock(own)
    finally:
        os.close(guard)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(own)


def _sweep(folder: Path) -> None:
    """Remove a folder if its process has ended."""
    if sys.platform == "win32":
        return
    try:  # a folder has no lock if its process was killed while making or removing it
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # it is alive, or that is unknown
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
