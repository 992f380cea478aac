"""Outages: a database or a storage that can't be used for a while."""

import errno

from latentsync.errors import BackendUnavailable

__all__ = ["Backoff", "DiskFull", "Outage", "is_disk_full"]


class Outage(BackendUnavailable):
    """The database or the storage can't be used now, but perhaps later.

    Its text is for the host of the service: it may name a host, a bucket or a folder.
    """


class DiskFull(Outage):
    """The disk of the database or of the storage is full."""


class Backoff:
    """Exponential backoff: pauses in seconds, each twice as long as the last, up to a maximum."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._next = first

    def pause(self) -> float:
        """Return the pause before the next try."""
        pause, self._next = self._next, min(2 * self._next, self._longest)
        return pause

    def reset(self) -> None:
        """Start with the first pause again."""
        self._next = self._first


def is_disk_full(error: BaseException | None) -> bool:
    """Whether a system error, or the cause of an error, is a full disk or quota."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    )
