"""What is nobody's fault who asks: a database or a storage that can't be used for a while."""

import errno

from latentsync.errors import BackendUnavailable

__all__ = ["Backoff", "NoRoom", "Outage", "is_full"]


class Outage(BackendUnavailable):
    """The database or the storage can't be used now, and may be later.

    Its text is for whoever runs the service: it may name a host, a bucket or a folder.
    """


class NoRoom(Outage):
    """The disk of the database or of the storage is full."""


class Backoff:
    """Pauses between tries, in seconds: each twice as long as the one before, up to a longest."""

    def __init__(self, first: float, longest: float) -> None:
        self._first, self._longest = first, longest
        self._next = first

    def pause(self) -> float:
        """The pause before the next try."""
        pause, self._next = self._next, min(2 * self._next, self._longest)
        return pause

    def reset(self) -> None:
        """Begin with the first pause again."""
        self._next = self._first


def is_full(error: BaseException | None) -> bool:
    """Whether an error of the system, or what it was raised from, is a full disk or quota."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__
    return isinstance(error, OSError) and error.errno in (
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
    )
