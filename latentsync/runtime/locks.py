"""Locks of files and folders by flock(2), which end with the process that holds them."""

import errno
import fcntl
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

from latentsync.errors import OutputError

__all__ = ["LOCK", "flock", "locked_file", "locked_folder"]

log = logging.getLogger(__name__)

LOCK = ".lock"  # name of a folder's lock file
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}  # of file systems without flock(2)
MAX_COMMAND = 200  # characters shown of a command


def flock(descriptor: int, *, wait: bool = False) -> bool:
    """Lock an open file; returns False if its file system has no locks.

    Raises:
        BlockingIOError: another process has locked it, and `wait` is false.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return False
    return True


@contextmanager
def locked_file(path: Path) -> Iterator[BufferedRandom]:
    """Open a file for reading and writing; other processes that do so wait.

    The block may move the file away. If it is empty afterwards, it is removed, and its folder too
    if that is empty.

    Raises:
        OSError: the file can't be made or written.
    """

    def wait(_descriptor: int) -> None:
        log.warning("another process is writing %s; waiting for it", path.name)

    with os.fdopen(_open_locked(path, wait), "r+b") as file:
        try:
            yield file
        finally:
            file.flush()
            if _is_open_at(file.fileno(), path) and os.fstat(file.fileno()).st_size == 0:
                path.unlink()
                with suppress(OSError):  # not empty
                    path.parent.rmdir()


@contextmanager
def locked_folder(folder: Path, name: str = LOCK) -> Iterator[None]:
    """Make `folder` and lock it for this process.

    Args:
        name: of the lock file in it, which is removed at the end.

    Raises:
        OutputError: the folder can't be made, or another process holds it; the message says which.
    """

    def refuse(descriptor: int) -> None:
        holder = os.pread(descriptor, 1000, 0).decode("utf-8", "replace").strip()
        raise OutputError(
            f"{folder} is being filled by {holder or 'another process'}; wait for it, "
            "end it, or give another folder"
        )

    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:MAX_COMMAND]
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    process = f"process {os.getpid()} on {socket.gethostname()}, since {started}: {command}\n"
    try:
        descriptor = _open_locked(folder / name, refuse)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, process.encode("utf-8", "surrogateescape"), 0)
    except OSError as error:
        raise OutputError(
            f"{folder} can't be written ({error.strerror or error}); make room, or give another "
            "folder"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):  # removed while locked, so that no process waits for a removed file
            (folder / name).unlink(missing_ok=True)
        os.close(descriptor)


def _open_locked(path: Path, busy: Callable[[int], None]) -> int:
    """Make a file if it is missing, and lock it; returns its descriptor.

    Args:
        busy: called with the descriptor if another process holds the file; it raises, or this
            function waits.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # another process has just removed the empty folder
            continue
        try:
            try:
                has_locks = flock(descriptor)
            except BlockingIOError:
                busy(descriptor)
                has_locks = flock(descriptor, wait=True)
            if not has_locks:
                log.warning("%s can't be locked: let one process at a time write it", path)
            if _is_open_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its last holder has moved or removed it meanwhile


def _is_open_at(descriptor: int, path: Path) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), path.stat())
    return False
