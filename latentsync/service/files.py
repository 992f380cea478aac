"""Stored files: each has a row first, so that limits hold and none is forgotten."""

import re
import secrets
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from latentsync.errors import InputError, OutputError
from latentsync.service.keys import LOCAL
from latentsync.service.settings import HOUR, ServiceSettings
from latentsync.service.storage import NotStored, Storage, is_key
from latentsync.service.tables import UNFINISHED, Database, File, Key, Task
from latentsync.service.tasks import TooMany

__all__ = ["FILES", "TICKET_SECONDS", "Files", "ShareFull", "StorageFull"]

FILES = "/files/"  # path under which files are uploaded and downloaded
MAX_NAME = 80  # characters of an upload's own name
TICKET_SECONDS = 3600  # in which an upload must begin
SWEEP_FILES = 500  # at once
INPUTS_PER_TASK = 2


class StorageFull(OutputError):
    """The storage has no room for another file, of any key."""


class ShareFull(OutputError):
    """A key has used up its share of the storage."""


class Files:
    """The files of a database and its storage."""

    def __init__(self, database: Database, storage: Storage, settings: ServiceSettings) -> None:
        self._database, self.storage, self._settings = database, storage, settings

    def reserve_upload(self, key_id: str, given: str, size: int, content_type: str) -> File:
        """Reserve room for an upload of so many bytes, with the name that its owner gave.

        Raises:
            InputError: the upload is empty or too large.
            TooMany: the key has too many tickets without an upload.
            ShareFull, StorageFull
        """
        most = self._settings.max_upload_bytes
        if not 0 < size <= most:
            raise InputError(f"an upload of {size} bytes; it must have from 1 to {most}")
        plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", Path(given).name).lstrip(".")[-MAX_NAME:]
        name = f"{key_id}/{secrets.token_hex(16)}/{plain.lstrip('.') or 'upload'}"
        return self._reserve(File(
            name=name, key_id=key_id, bytes=size, content_type=content_type,
            expires_at=time.time() + TICKET_SECONDS,
        ))  # fmt: skip

    def reserve_output(self, lease: Task, size: int) -> File:
        """Reserve room for the output of a lease, before its size is known.

        Raises:
            ShareFull, StorageFull
        """
        name = f"{lease.key_id}/{lease.id}/{lease.fence}.mp4"
        return self._reserve(File(
            name=name, key_id=lease.key_id, task_id=lease.id, bytes=size,
            content_type="video/mp4", expires_at=self.keep_until(),
        ))  # fmt: skip

    def settle(self, name: str, size: int) -> None:
        """Note the size of an output, which is kept even if it exceeds the key's share."""
        with self._database.writing() as session:
            session.execute(update(File).where(File.name == name).values(bytes=size))

    def _reserve(self, file: File) -> File:
        with self._database.alone() as session:
            key = session.get_one(Key, file.key_id)
            if file.task_id is None:
                _check_tickets(session, key)
            share = self._settings.max_stored_bytes if key.name == LOCAL else key.max_bytes
            share = self._settings.usual_share if share is None else share
            kept = select(func.coalesce(func.sum(File.bytes), 0))
            mine = session.scalar(kept.where(File.key_id == key.id)) or 0
            if mine + file.bytes > share:
                raise ShareFull(
                    f"the files of this key have {mine} of {share} bytes, {file.bytes} more don't "
                    "fit; delete tasks that are no longer needed, or wait until files expire"
                )
            if (session.scalar(kept) or 0) + file.bytes > self._settings.max_stored_bytes:
                raise StorageFull(f"the service has no room for {file.bytes} bytes; try later")
            session.add(file)
        return file

    def find(self, name: str) -> File | None:
        """Find a file, unless it has expired."""
        if not is_key(name):  # databases refuse some other text
            return None
        with self._database.reading() as session:
            return session.scalar(
                select(File).where(File.name == name, File.expires_at > time.time())
            )

    def received(self, name: str, size: int) -> bool:
        """Note that an upload is stored, with its size; False if that was noted before."""
        until = time.time() + self._settings.upload_hours * HOUR
        with self._database.writing() as session:
            noted = session.execute(
                update(File)
                .where(File.name == name, File.ready.is_(False))
                .values(ready=True, bytes=size, expires_at=until)
                .returning(File.name)
            )
            return noted.first() is not None

    def not_received(self, file: File) -> None:
        """Make a ticket valid again, because its upload could not be stored."""
        with self._database.writing() as session:
            before = {"ready": False, "bytes": file.bytes, "expires_at": file.expires_at}
            session.execute(update(File).where(File.name == file.name).values(**before))

    def drop(self, names: list[str]) -> None:
        """Let files expire at once."""
        with self._database.writing() as session:
            session.execute(update(File).where(File.name.in_(names)).values(expires_at=0.0))

    def own(self, key_id: str, url: str) -> str | None:
        """Find the name of the key's file at an address of this service; None for another address.

        The file is kept for at least `upload_hours` from now on.

        Raises:
            InputError: the key has no such file, or it is not uploaded yet.
        """
        if not url.startswith(self._settings.base + FILES):
            return None
        path = urlsplit(url).path
        name = unquote(path[path.index(FILES) + len(FILES) :])
        file = self.find(name)
        # The same answer for another key's file and for none, so that names can't be guessed.
        if file is None or file.key_id != key_id:
            raise InputError(f"no file {name!r} of this key; it may have expired: upload it again")
        if not file.ready:
            self._check_direct_upload(file)
        until = time.time() + self._settings.upload_hours * HOUR
        with self._database.writing() as session:
            kept = update(File).where(File.name == name, File.expires_at.between(1, until))
            session.execute(kept.values(expires_at=until))
        return name

    def _check_direct_upload(self, file: File) -> None:
        """Note an upload that went directly to the storage."""
        try:
            size = self.storage.size(file.name)
        except NotStored as error:
            raise InputError(f"nothing was uploaded to {file.name!r} yet; PUT it first") from error
        if size != file.bytes:
            self.drop([file.name])
            raise InputError(f"{size} bytes were uploaded, {file.bytes} announced; begin again")
        self.received(file.name, size)

    def keep_until(self) -> float:
        return time.time() + self._settings.keep_hours * HOUR

    def keep_inputs(self) -> None:
        """Extend the life of uploads that unfinished tasks will read."""
        with self._database.reading() as session:
            waiting = session.scalars(select(Task.stored).where(Task.status.in_(UNFINISHED))).all()
        names = sorted({name for stored in waiting for name in stored.values()})
        soon = time.time() + HOUR
        for start in range(0, len(names), SWEEP_FILES):
            some = File.name.in_(names[start : start + SWEEP_FILES])
            old = (some, File.expires_at.between(1, soon))  # 0: it was deleted
            with self._database.reading() as session:
                if session.scalar(select(File.name).where(*old).limit(1)) is None:
                    continue
            with self._database.writing() as session:
                session.execute(update(File).where(*old).values(expires_at=soon + HOUR))

    def sweep(self) -> int:
        """Remove up to SWEEP_FILES expired files; returns their number."""
        with self._database.reading() as session:
            old = select(File.name).where(File.expires_at <= time.time()).limit(SWEEP_FILES)
            names = session.scalars(old).all()
        for name in names:
            self.storage.delete(name)
        # Rows go last, so that a file is swept again if the process dies in between.
        with self._database.writing() as session:
            session.execute(delete(File).where(File.name.in_(names)))
        return len(names)

    def sweep_unknown(self) -> int:
        """Remove files without a row, which workers stored after they lost their lease."""

        def known(name: str) -> bool:
            with self._database.reading() as session:
                return session.get(File, name) is not None

        old = time.time() - HOUR
        gone = [e.key for e in self.storage.entries() if e.modified < old and not known(e.key)]
        for name in gone:
            self.storage.delete(name)
        return len(gone)


def _check_tickets(session: Session, key: Key) -> None:
    """Raise TooMany if the key has as many tickets as its tasks can have inputs."""
    most = INPUTS_PER_TASK * key.at_once
    open_ones = (File.task_id.is_(None), File.ready.is_(False), File.expires_at > time.time())
    count = session.scalar(select(func.count()).where(File.key_id == key.id, *open_ones)) or 0
    if count >= most:
        raise TooMany(
            f"{count} tickets without an upload; this key may have {most}: upload to one of them, "
            "or wait until they expire"
        )
