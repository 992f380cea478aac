"""Temporary files of a long-running process, removed when they are no longer needed."""

import os
import resource
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from latentsync.runtime.locks import flock

__all__ = ["Scratch", "temporary_folder"]

PREFIX = "latentsync-worker-"
PATTERN = "tmp*"  # of the names that `tempfile` makes up
SWEEP_SECONDS = 60.0
FILES_PER_RUN = 3  # two inputs and an output


class Scratch:
    """A folder for all temporary files that this process makes from now on.

    Cog downloads inputs by `tempfile` in the process that predicts. If a download fails, `predict`
    isn't called, and the file stays.
    """

    def __init__(self) -> None:
        self.folder, self._locked = _claimed(PREFIX)
        self._inputs: set[Path] = set()
        tempfile.tempdir = str(self.folder)

    def use(self, *inputs: str | Path) -> None:
        """Remove all files but these, which stay until the next call."""
        self._inputs = {Path(one).absolute() for one in inputs}
        self._remove(self._left())

    def sweep_always(self) -> None:
        """Start a thread that sweeps every SWEEP_SECONDS, unless a download is in progress."""

        def sweep() -> None:
            while True:
                time.sleep(SWEEP_SECONDS)
                self.sweep_idle()

        threading.Thread(target=sweep, name="sweep", daemon=True).start()

    def bound(self, most_bytes: int) -> int:
        """Limit the size of each file to `most_bytes`, or a third of the free space; returns it.

        An endless download then ends with "File too large".
        """
        room = shutil.disk_usage(self.folder).free // FILES_PER_RUN
        bound = max(1, min(most_bytes, room))
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (bound, hard))
        return bound

    @contextmanager
    def unbounded(self) -> Iterator[None]:
        """Suspend `bound` for a block without downloads."""
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    def sweep_idle(self) -> None:
        """Remove files unchanged for SWEEP_SECONDS, unless a download is in progress."""
        left = self._left()
        if not _open_files() & left:
            old = time.time() - SWEEP_SECONDS
            self._remove({path for path in left if _changed(path) < old})

    def _left(self) -> set[Path]:
        return set(self.folder.glob(PATTERN)) - self._inputs

    def _remove(self, files: set[Path]) -> None:
        for path in files:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Make a temporary folder, removed at the end.

    Folders with this prefix that killed processes left behind are removed first.
    """
    folder, lock = _claimed(prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _claimed(prefix: str) -> tuple[Path, int]:
    """Make a folder; returns it and the descriptor of its lock, which ends with this process."""
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if (lock := _lock(left)) is not None:  # its process has ended
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        if (lock := _lock(folder)) is not None:
            if folder.exists():
                return folder, lock
            os.close(lock)  # another process has removed it before it was locked


def _lock(folder: Path) -> int | None:
    """Lock a folder; returns its descriptor, or None if it is locked already or gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        if flock(descriptor):
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None


def _open_files() -> set[Path]:
    """The files that this process has open, on Linux."""
    found = set()
    for link in Path("/proc/self/fd").glob("*"):
        try:
            found.add(link.readlink())
        except OSError:
            continue  # closed meanwhile
    return found


def _changed(path: Path) -> float:
    """Time of the last change of a file; infinity if it is gone."""
    try:
        return path.stat().st_mtime
    except OSError:
        return float("inf")
