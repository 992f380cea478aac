"""What the parts of a running service share."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from latentsync.service.files import Files
from latentsync.service.keys import Keys
from latentsync.service.settings import Settings
from latentsync.service.storage import open_storage
from latentsync.service.tables import Database
from latentsync.service.tasks import Tasks

__all__ = ["Service"]


@dataclass(frozen=True)
class Service:
    """An open database and storage, and what is kept in them."""

    settings: Settings
    database: Database
    keys: Keys
    tasks: Tasks
    files: Files

    @classmethod
    @contextmanager
    def open(cls, settings: Settings) -> Iterator["Service"]:
        """Raises InputError where the database or the storage can't be used."""
        database = Database(settings.database_url)
        try:
            files = Files(database, open_storage(settings.storage_url), settings)
            yield cls(settings, database, Keys(database), Tasks(database), files)
        finally:
            database.close()
