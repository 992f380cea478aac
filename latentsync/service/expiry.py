"""What of the kept files goes: what is too old, then the oldest, until the rest fits."""

import time
from collections.abc import Callable, Iterable

from latentsync.service.storage import Storage, Stored

__all__ = ["expired", "sweep"]


def _never(_key: str) -> bool:
    return False


def expired(
    entries: Iterable[Stored],
    *,
    now: float,
    max_age_seconds: float | None = None,
    max_bytes: int | None = None,
    in_use: Callable[[str], bool] = _never,
) -> list[Stored]:
    """Which of `entries` are to go, oldest first; None bounds nothing.

    What is in use stays, whatever its age, and still counts among the bytes.
    """
    ordered = sorted(entries, key=lambda entry: (entry.modified, entry.key))
    total = sum(entry.size for entry in ordered)
    going = []
    for entry in ordered:
        old = max_age_seconds is not None and now - entry.modified > max_age_seconds
        many = max_bytes is not None and total > max_bytes
        if (old or many) and not in_use(entry.key):
            going.append(entry)
            total -= entry.size
    return going


def sweep(
    storage: Storage,
    *,
    max_age_seconds: float | None = None,
    max_bytes: int | None = None,
    in_use: Callable[[str], bool] = _never,
    now: float | None = None,
) -> list[Stored]:
    """Delete what `expired` names, and return it; raises what the storage raises."""
    going = expired(
        storage.entries(),
        now=time.time() if now is None else now,
        max_age_seconds=max_age_seconds,
        max_bytes=max_bytes,
        in_use=in_use,
    )
    for entry in going:
        storage.delete(entry.key)
    return going
