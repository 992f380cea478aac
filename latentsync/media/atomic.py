"""A file that has no name until it is whole, so that a killed run leaves nothing behind."""

import logging
import os
import shutil
import uuid
from pathlib import Path

__all__ = ["Draft"]

log = logging.getLogger(__name__)


class Draft:
    """Room for a file in the folder of `target`, to be written to `path`, then kept or dropped.

    On Linux it has no name (open(2), O_TMPFILE) and is gone with its process, whatever ends that;
    elsewhere, and on file systems that can't do so or can't name such a file later, it is a hidden
    file beside the target. So the folder needs room for the file once, never twice. Each call may
    raise OSError.
    """

    def __init__(self, target: Path) -> None:
        self._target = target
        self._hidden = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
        self._descriptor: int | None = None

    def create(self) -> None:
        """Make it, empty."""
        try:
            self._check_links()
            self._descriptor = self._nameless()
        except (AttributeError, OSError) as error:  # another system, another file system
            log.debug("%s gets a hidden file first: %s", self._target, error)
            self._hidden.touch(exist_ok=False)

    def _nameless(self) -> int:
        return os.open(self._target.parent, os.O_TMPFILE | os.O_RDWR, 0o666)

    def _check_links(self) -> None:
        """Raise OSError where a nameless file can't get a name, tried on an empty one."""
        descriptor = self._nameless()
        try:
            self._name(descriptor)
            self._hidden.unlink()
        finally:
            os.close(descriptor)

    def _name(self, descriptor: int) -> None:
        # With `src_dir_fd` Python follows the link that /proc's entry is.
        os.link(f"/proc/self/fd/{descriptor}", self._hidden, src_dir_fd=descriptor)

    @property
    def path(self) -> Path:
        """Where to write, and to read again, until it is kept or dropped."""
        if self._descriptor is None:
            return self._hidden
        return Path(f"/proc/self/fd/{self._descriptor}")

    def keep(self) -> None:
        """Let it take the target's place, in one step."""
        if self._descriptor is not None:
            try:
                self._name(self._descriptor)
            except OSError as error:  # nothing that was made is lost
                log.debug("%s is copied into a hidden file: %s", self._target, error)
                shutil.copyfile(self.path, self._hidden)
        self._hidden.replace(self._target)

    def drop(self) -> None:
        """Leave no trace; after `keep`, nothing happens."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        self._hidden.unlink(missing_ok=True)
