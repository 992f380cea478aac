"""Files that appear whole or not at all, and folders that one process fills at a time."""

import errno
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

__all__ = ["locked", "private_folder", "replacing"]

log = logging.getLogger(__name__)

PART = ".part"  # ends the name of what is being written
LOCK = ".lock"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # flock(2): the file system has none
MOST_SHOWN = 200  # characters of a command


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
    """Make `folder` and hold it for this process; a lock ends with its process, whatever ends that.

    Args:
        name: of the file in it that is locked, and removed at the end.

    Raises:
        OutputError: it can't be made, or another process holds it; the message says which.
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
            file.unlink(missing_ok=True)  # while it is held, so nobody waits at a removed file
        os.close(descriptor)


def _hold(file: Path, folder: Path) -> int:
    """The descriptor of a locked file."""
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
        os.close(descriptor)  # the one who held it has removed it in the meantime


def _flock(descriptor: int, *, wait: bool = False) -> None:
    """Lock a file, where there are such locks.

    Raises:
        BlockingIOError: another process has, and `wait` is false.
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
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:MOST_SHOWN]
    return f"process {os.getpid()} on {socket.gethostname()}, since {started}: {command}"


@contextmanager
def private_folder(parent: Path, name: str | None = None) -> Iterator[Path]:
    """A new folder below `parent` for this process alone, removed with all in it at the end.

    Those that killed processes left there are removed first: a folder's lock tells whether its
    process lives, on whatever machine.
    """
    parent.mkdir(parents=True, exist_ok=True)
    guard = os.open(parent / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _flock(guard, wait=True)  # so nobody sweeps a folder that has no lock yet
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
    """Remove a folder whose process has ended."""
    if sys.platform == "win32":
        return
    try:  # one without a lock is a process's that was killed while it made or removed it
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        return  # it lives, or nobody can tell
    finally:
        os.close(descriptor)
