"""The service container: database, storage, and the collections in them."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from latentsync.service.files import Files
from latentsync.service.keys import Keys
from latentsync.service.settings import AGREED, ServiceSettings
from latentsync.service.storage import open_storage
from latentsync.service.tables import Database, Setting
from latentsync.service.tasks import Tasks

__all__ = ["Service"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """An open database and storage, with their keys, tasks and files."""

    settings: ServiceSettings
    database: Database
    keys: Keys
    tasks: Tasks
    files: Files

    @classmethod
    @contextmanager
    def open(cls, settings: ServiceSettings, *, decides: bool = False) -> Iterator["Service"]:
        """Open a service; raises InputError if the database or the storage can't be used.

        Args:
            decides: whether the shared settings (`AGREED`) are written to the database, for all
                processes; else they are read from it.
        """
        database = Database(settings.database_url)
        try:
            if decides:
                _write_agreed(database, settings)
            files = Files(database, open_storage(settings.storage_url), settings)
            service = cls(settings, database, Keys(database), Tasks(database), files)
            yield service if decides else service.refreshed()
        finally:
            database.close()

    def refreshed(self) -> "Service":
        """The service with the shared settings that are in the database now."""
        with self.database.reading() as session:
            rows = session.query(Setting).where(Setting.name.in_(AGREED)).all()
        agreed = {row.name: json.loads(row.value) for row in rows}
        settings = replace(self.settings, **agreed)
        if settings == self.settings:
            return self
        files = Files(self.database, self.files.storage, settings)
        return replace(self, settings=settings, files=files)


def _write_agreed(database: Database, settings: ServiceSettings) -> None:
    """Write the shared settings to the database, and log those that change."""
    with database.alone() as session:
        for name in AGREED:
            value = json.dumps(getattr(settings, name))
            row = session.get(Setting, name)
            if row is None:
                session.add(Setting(name=name, value=value))
            elif row.value != value:
                log.warning("%s is %s from now on; it was %s", name, value, row.value)
                row.value = value
