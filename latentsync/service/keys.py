"""Who may use the service: keys, stored as hashes, and what each may begin."""

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

__all__ = ["AT_ONCE", "LOCAL", "PER_MINUTE", "PREFIX", "Buckets", "KeyUse", "Keys"]

PREFIX = "ls_"  # of every key
PER_MINUTE = 60
AT_ONCE = 20
NOTED_EVERY = 60.0  # s: `used_at` is no truer than that, so that polling doesn't write
LOCAL = "local"  # the name of the one who needs no key, on a service that asks for none


@dataclass(frozen=True)
class KeyUse:
    """A key and its unfinished tasks."""

    key: Key
    unfinished: int


class Keys:
    """The keys of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted: dict[str, float] = {}  # key id -> when its use was last noted, or tried to be

    def create(
        self,
        name: str,
        *,
        per_minute: int = PER_MINUTE,
        at_once: int = AT_ONCE,
        max_bytes: int | None = None,
    ) -> tuple[Key, str]:
        """A new key, and its text, which can't be had again.

        Args:
            max_bytes: that its files may have; None: the usual share of the storage.

        Raises:
            OptionError: the name is taken or empty, or a limit is below 1.
        """
        if not name.strip() or min(per_minute, at_once, max_bytes or 1) < 1:
            raise OptionError(
                f"key {name!r} with {per_minute} a minute and {at_once} at once; it must have a "
                "name, and limits of 1 or more"
            )
        shown = PREFIX + secrets.token_urlsafe(32)
        key = Key(
            id=secrets.token_hex(8),
            name=name,
            digest=_digest(shown),
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
        """The one that requests without a key stand for, where a service asks for none."""
        with self._database.reading() as session:
            key = session.scalar(select(Key).where(Key.name == LOCAL))
        if key:
            return key
        with suppress(OptionError):  # another request made it since
            self.create(LOCAL, per_minute=10_000, at_once=10_000)
        return self.local()

    def find(self, shown: str) -> Key | None:
        """The key of this text, unless it is revoked."""
        # By its hash: an index that is compared byte by byte tells nothing of 256 random bits.
        with self._database.reading() as session:
            key = session.scalar(
                select(Key).where(Key.digest == _digest(shown), Key.revoked_at.is_(None))
            )
        long_ago = time.time() - NOTED_EVERY
        if key and max(key.used_at or 0, self._noted.get(key.id, 0)) < long_ago:
            self._noted[key.id] = time.time()  # also where that can't be stored now
            # Who only looks at tasks can do so while the database is locked.
            with suppress(Outage), self._database.writing() as session:
                session.execute(update(Key).where(Key.id == key.id).values(used_at=time.time()))
        return key

    def all(self) -> list[KeyUse]:
        """In the order of their making."""
        unfinished = (
            select(func.count())
            .where(Task.key_id == Key.id, Task.status.in_(UNFINISHED))
            .scalar_subquery()
        )
        with self._database.reading() as session:
            rows = session.execute(select(Key, unfinished).order_by(Key.created_at)).all()
        return [KeyUse(key, count) for key, count in rows]

    def revoke(self, name: str) -> None:
        """From now on it opens nothing; its tasks go on, and its files expire in their time.

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


class Buckets:
    """What each key may still begin: as many as a minute allows at once, refilled steadily.

    Kept by the process that answers, so a restart fills them.
    """

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}  # key id -> tokens, when that was
        self._lock = threading.Lock()

    def take(self, key: Key, now: float | None = None) -> float:
        """Seconds until the key may begin one more; 0 where it may now, and then it has."""
        now = time.monotonic() if now is None else now
        a_second = key.per_minute / 60
        with self._lock:
            tokens, then = self._left.get(key.id, (float(key.per_minute), now))
            tokens = min(float(key.per_minute), tokens + (now - then) * a_second)
            taken = tokens >= 1
            self._left[key.id] = (tokens - taken, now)
        return 0.0 if taken else (1 - tokens) / a_second


def _digest(shown: str) -> str:
    return hashlib.sha256(shown.encode()).hexdigest()
