"""What the parts of a running service share."""

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
    """An open database and storage, and what is kept in them."""

    settings: ServiceSettings
    database: Database
    keys: Keys
    tasks: Tasks
    files: Files

    @classmethod
    @contextmanager
    def open(cls, settings: ServiceSettings, *, decides: bool = False) -> Iterator["Service"]:
        """Raises InputError where the database or the storage can't be used.

        Args:
            decides: whether what processes must agree on is what `settings` say, for all that
                share the database from now on; else it is what the database says.
        """
        database = Database(settings.database_url)
        try:
            if decides:
                _decide(database, settings)
            files = Files(database, open_storage(settings.storage_url), settings)
            service = cls(settings, database, Keys(database), Tasks(database), files)
            yield service if decides else service.agreeing()
        finally:
            database.close()

    def agreeing(self) -> "Service":
        """The same, with what the database says by now of what all processes must agree on."""
        with self.database.reading() as session:
            rows = session.query(Setting).where(Setting.name.in_(AGREED)).all()
        said = {row.name: json.loads(row.value) for row in rows}
        settings = replace(self.settings, **said)
        if settings == self.settings:
            return self
        files = Files(self.database, self.files.storage, settings)
        return replace(self, settings=settings, files=files)


def _decide(database: Database, settings: ServiceSettings) -> None:
    """Write what all processes must agree on, and log what was otherwise before."""
    with database.alone() as session:
        for name in AGREED:
            value = json.dumps(getattr(settings, name))
            row = session.get(Setting, name)
            if row is None:
                session.add(Setting(name=name, value=value))
            elif row.value != value:
                log.warning("%s is %s from now on; it was %s", name, value, row.value)
                row.value = value
