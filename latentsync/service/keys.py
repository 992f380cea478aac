"""API keys, stored as hashes, and their rate limits."""

import hashlib
import secrets
import threading
import time
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import func, select, update

from latentsync.errors import OptionError
from latentsync.service.outages import Outage
from latentsync.service.tables import UNFINISHED, Database, Key, Task

__all__ = ["AT_ONCE", "LOCAL", "PER_MINUTE", "PREFIX", "KeyUse", "Keys", "RateLimiter"]

PREFIX = "ls_"  # of every key
PER_MINUTE = 60
AT_ONCE = 20
USED_AT_SECONDS = 60.0  # precision of `used_at`, so that polling clients don't cause writes
LOCAL = "local"  # the name of the key of all requests, on a service that needs no key


@dataclass(frozen=True)
class KeyUse:
    """A key and its unfinished tasks."""

    key: Key
    unfinished: int


class Keys:
    """The keys of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted: dict[str, float] = {}  # key id -> when writing `used_at` was last tried

    def create(
        self,
        name: str,
        *,
        per_minute: int = PER_MINUTE,
        at_once: int = AT_ONCE,
        max_bytes: int | None = None,
    ) -> tuple[Key, str]:
        """Create a key; returns it and its text, which is not stored.

        Args:
            max_bytes: of its files; default the usual share of the storage.

        Raises:
            OptionError: the name is taken or empty, or a limit is below 1.
        """
        if not name.strip() or min(per_minute, at_once, 1 if max_bytes is None else max_bytes) < 1:
            stored = "the usual" if max_bytes is None else str(max_bytes)
            raise OptionError(
                f"key {name!r} with {per_minute} a minute, {at_once} at once and {stored} bytes; "
                "it must have a name, and limits of 1 or more"
            )
        shown = PREFIX + secrets.token_urlsafe(32)
        key = Key(
            id=secrets.token_hex(8),
            name=name,
            digest=hashlib.sha256(shown.encode()).hexdigest(),
            per_minute=per_minute,
            at_once=at_once,
            max_bytes=max_bytes,
        )
        with self._database.alone() as session:
            if session.scalar(select(Key.id).where(Key.name == name)):
                raise OptionError(f"there is a key {name!r}; give the new one another name")
            session.add(key)
        return key, shown

    def local(self) -> Key:
        """The key of all requests, on a service that needs no key; created if there is none."""
        with self._database.reading() as session:
            key = session.scalar(select(Key).where(Key.name == LOCAL))
        if key:
            return key
        with suppress(OptionError):  # another request has created it meanwhile
            self.create(LOCAL, per_minute=10_000, at_once=10_000)
        return self.local()

    def find(self, shown: str) -> Key | None:
        """The key with this text, unless it is revoked."""
        # By hash, so that the time of a comparison tells nothing about the 256 random bits.
        with self._database.reading() as session:
            key = session.scalar(
                select(Key).where(
                    Key.digest == hashlib.sha256(shown.encode()).hexdigest(),
                    Key.revoked_at.is_(None),
                )
            )
        long_ago = time.time() - USED_AT_SECONDS
        if key and max(key.used_at or 0, self._noted.get(key.id, 0)) < long_ago:
            self._noted[key.id] = time.time()  # also if it can't be written now
            # Tasks can be read while the database is locked for writing.
            with suppress(Outage), self._database.writing() as session:
                session.execute(update(Key).where(Key.id == key.id).values(used_at=time.time()))
        return key

    def all(self) -> list[KeyUse]:
        """All keys by date of creation, with their numbers of unfinished tasks."""
        unfinished = (
            select(func.count())
            .where(Task.key_id == Key.id, Task.status.in_(UNFINISHED))
            .scalar_subquery()
        )
        with self._database.reading() as session:
            rows = session.execute(select(Key, unfinished).order_by(Key.created_at)).all()
        return [KeyUse(key, count) for key, count in rows]

    def revoke(self, name: str) -> None:
        """Revoke a key; its tasks continue, and its files expire as usual.

        Raises:
            OptionError: there is no such key.
        """
        with self._database.writing() as session:
            done = session.execute(
                update(Key)
                .where(Key.name == name, Key.revoked_at.is_(None))
                .values(revoked_at=time.time())
                .returning(Key.id)
            ).all()
        if not done:
            raise OptionError(f"no key {name!r} that isn't revoked; see `latentsync keys list`")


class RateLimiter:
    """A token bucket for each key: a minute's tokens at once, refilled steadily.

    It is kept in the server's memory, so a restart fills it.
    """

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}  # key id -> tokens, when that was
        self._lock = threading.Lock()

    def take(self, key: Key, now: float | None = None) -> float:
        """Take a token; returns 0, or the seconds until there is one."""
        now = time.monotonic() if now is None else now
        per_second = key.per_minute / 60
        with self._lock:
            tokens, then = self._left.get(key.id, (float(key.per_minute), now))
            tokens = min(float(key.per_minute), tokens + (now - then) * per_second)
            taken = tokens >= 1
            self._left[key.id] = (tokens - taken, now)
        return 0.0 if taken else (1 - tokens) / per_second
