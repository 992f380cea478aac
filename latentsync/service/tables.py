"""The service's tables, and opening their database: SQLite, or PostgreSQL by its URL.

Times are seconds since 1970. Machines that share a database must keep theirs by NTP; if they
don't, a task may be run twice, but still only one result counts (`Task.fence`).
"""

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    URL,
    BigInteger,
    Engine,
    ForeignKey,
    Index,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    make_url,
    text,
)
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    InterfaceError,
    InternalError,
    OperationalError,
    TimeoutError,  # noqa: A004 - SQLAlchemy's, of its pool
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker
from sqlalchemy.schema import CreateColumn

from latentsync.errors import InputError
from latentsync.service.outages import DiskFull, Outage

__all__ = ["ENDED", "UNFINISHED", "Base", "Database", "Delivery", "File", "Key", "Setting", "Task"]

SCHEMA = "2"  # of the tables below
OLDER_SCHEMAS = ("1",)  # they lack columns of SCHEMA, which are added
# SQLite's codes of a full disk, https://www.sqlite.org/rescode.html, and PostgreSQL's
DISK_FULL_CODES = ("SQLITE_FULL", "SQLITE_IOERR_SHMSIZE", "53100")
LOCK = 5_140_911  # any number: PostgreSQL's lock of `alone`
BUSY_SECONDS = 5  # to wait for a connection or a lock, before the client is told to retry
CONNECTIONS = 40  # as many as threads that answer requests (anyio's default)
UNFINISHED = ("created", "processing")
ENDED = ("completed", "failed", "cancelled")


class Base(DeclarativeBase):
    """Base of all tables."""


class Setting(Base):
    """What all processes on this database agree on: its schema, and shared settings."""

    __tablename__ = "settings"
    name: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str]


class Key(Base):
    """A client's key; its text is shown once and never stored."""

    __tablename__ = "keys"
    id: Mapped[str] = mapped_column(primary_key=True)  # also the folder of its files
    name: Mapped[str] = mapped_column(unique=True)
    digest: Mapped[str] = mapped_column(unique=True)  # SHA-256 of the key, which is 256 random bits
    per_minute: Mapped[int]  # limit of tasks and uploads
    at_once: Mapped[int]  # limit of unfinished tasks
    max_bytes: Mapped[int | None] = mapped_column(BigInteger)  # of its files; None: the usual share
    turn_at: Mapped[float | None]  # when a worker last took one of its tasks
    created_at: Mapped[float] = mapped_column(default=time.time)
    used_at: Mapped[float | None]
    revoked_at: Mapped[float | None]


class Task(Base):
    """One lip-sync task."""

    __tablename__ = "tasks"
    __table_args__ = (
        UniqueConstraint("key_id", "idempotency_key"),
        Index("tasks_waiting", "status", "created_at"),
        Index("tasks_of_key", "key_id", "created_at"),
    )
    id: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(ForeignKey(Key.id))
    idempotency_key: Mapped[str | None]
    model: Mapped[str]  # as in the request's path
    input: Mapped[dict[str, Any]] = mapped_column(JSON)  # of the request
    stored: Mapped[dict[str, str]] = mapped_column(JSON)  # video, audio: names in the storage
    webhook: Mapped[str | None]
    status: Mapped[str] = mapped_column(default="created")
    error: Mapped[str] = mapped_column(default="")
    outputs: Mapped[list[str]] = mapped_column(JSON, default=list)  # names in the storage
    inference_ms: Mapped[int] = mapped_column(default=0)
    created_at: Mapped[float] = mapped_column(default=time.time)
    ended_at: Mapped[float | None]
    worker: Mapped[str | None]  # that has it, or had it last
    lease_until: Mapped[float | None]  # then it goes to another worker
    fence: Mapped[int] = mapped_column(default=0)  # number of leases; only the last may finish it
    lost: Mapped[int] = mapped_column(default=0)  # leases whose worker died
    not_before: Mapped[float | None]  # earliest time of the next lease
    troubled_at: Mapped[float | None]  # when an outage first stopped it


class File(Base):
    """A file in the storage; the row is written before its first byte and removed after it."""

    __tablename__ = "files"
    name: Mapped[str] = mapped_column(primary_key=True)  # in the storage: key id/id/file name
    key_id: Mapped[str] = mapped_column(ForeignKey(Key.id))
    task_id: Mapped[str | None] = mapped_column(index=True)  # of an output; None: an upload
    bytes: Mapped[int] = mapped_column(BigInteger)  # its size, or the size reserved for it
    content_type: Mapped[str]
    ready: Mapped[bool] = mapped_column(default=False)  # whether it is complete
    expires_at: Mapped[float] = mapped_column(index=True)


class Delivery(Base):
    """A webhook to call until it answers or is given up."""

    __tablename__ = "deliveries"
    id: Mapped[str] = mapped_column(primary_key=True, default=lambda: secrets.token_hex(16))
    task_id: Mapped[str] = mapped_column(ForeignKey(Task.id, ondelete="CASCADE"), index=True)
    tries: Mapped[int] = mapped_column(default=0)
    next_at: Mapped[float | None] = mapped_column(index=True)  # None: delivered, or given up
    delivered_at: Mapped[float | None]
    error: Mapped[str] = mapped_column(default="")  # of the last try
    key_id: Mapped[str | None]  # of the task
    host: Mapped[str | None]  # of the webhook
    claimed_until: Mapped[float | None]  # by the caller that is trying it


class Database:
    """An open database; `reading()` and `writing()` are transactions, which may raise Outage.

    Raises:
        InputError: the URL is invalid, the database doesn't answer, or its disk is full.
    """

    def __init__(self, url: str) -> None:
        shown = url.split("@")[-1]  # without a password
        try:
            place = make_url(url)
            opened = _sqlite if place.get_backend_name() == "sqlite" else _postgresql
            self.engine = opened(place, pool_size=CONNECTIONS, pool_timeout=BUSY_SECONDS)
            reads = self.engine.execution_options(reads=True)
            self._reading = sessionmaker(reads, expire_on_commit=False).begin
            self._writing = sessionmaker(self.engine, expire_on_commit=False).begin
            with _outages():
                schema = self._prepare()
        except (ArgumentError, DBAPIError, ImportError, Outage) as error:
            if hasattr(self, "engine"):
                self.close()
            reason = _reason(error.__cause__ if isinstance(error, Outage) else error)
            wrong = (
                f"{reason}; it must be sqlite:///FILE or "
                "postgresql+psycopg://USER:PASSWORD@HOST/NAME"
            )
            if isinstance(error, DiskFull):
                wrong = f"its disk is full ({reason}); make room, and start again"
            raise InputError(f"database {shown}: {wrong}") from error
        if schema != SCHEMA:
            self.close()
            raise InputError(
                f"database {shown} has tables of schema {schema}, this program knows {SCHEMA}; "
                "give another database, or use the program that made it"
            )

    def _prepare(self) -> str:
        """Create the tables, or update older ones; returns their schema."""
        if inspect(self.engine).has_table(Setting.__tablename__):
            with self.reading() as session:  # most times there is nothing to write
                made = session.get(Setting, "schema")
            if made and made.value not in OLDER_SCHEMAS:
                return made.value
        with self.alone() as session:
            Base.metadata.create_all(session.connection())
            made = session.get(Setting, "schema") or Setting(name="schema", value=SCHEMA)
            if made.value in OLDER_SCHEMAS:
                _add_columns(session)
                made.value = SCHEMA
            session.add(made)
            return made.value

    @contextmanager
    def reading(self) -> Iterator[Session]:
        """A read-only transaction."""
        with _outages(), self._reading() as session:
            yield session

    @contextmanager
    def writing(self) -> Iterator[Session]:
        """A transaction that may write."""
        with _outages(), self._writing() as session:
            yield session

    @contextmanager
    def alone(self) -> Iterator[Session]:
        """A transaction that excludes all others of its kind, in all processes."""
        with self.writing() as session:
            if self.engine.dialect.name == "postgresql":
                session.execute(text(f"SELECT pg_advisory_xact_lock({LOCK})"))
            yield session

    def close(self) -> None:
        self.engine.dispose()


@contextmanager
def _outages() -> Iterator[None]:
    """Turn errors of the database, as opposed to those of a statement, into Outage.

    PostgreSQL raises InternalError if it is read-only, as after a failover.
    """
    try:
        yield
    except (InterfaceError, InternalError, OperationalError, TimeoutError) as error:
        said = getattr(error, "orig", None)
        code = getattr(said, "sqlite_errorname", getattr(said, "sqlstate", None))
        kind = DiskFull if code in DISK_FULL_CODES else Outage
        raise kind(f"the database does not do as asked: {_reason(error)}") from error


def _reason(error: BaseException | None) -> str:
    """The first line of the driver's message."""
    return (str(getattr(error, "orig", error)).strip() or type(error).__name__).splitlines()[0]


def _add_columns(session: Session) -> None:
    """Add the columns that tables of an older schema lack; all are nullable."""
    connection = session.connection()
    for table in Base.metadata.sorted_tables:
        there = {column["name"] for column in inspect(connection).get_columns(table.name)}
        for column in table.columns:
            if column.name not in there:
                made = CreateColumn(column).compile(connection)
                session.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {made}"))


def _keep_private(file: str | None) -> None:
    """Make SQLite's files readable by their owner only; they hold addresses of people's faces."""
    if not file or file.startswith((":memory:", "file:")):
        return
    try:
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
        for path in map(Path, (file, f"{file}-wal", f"{file}-shm")):
            with suppress(FileNotFoundError, PermissionError):  # another user's
                path.chmod(0o600)
    except OSError:
        return  # SQLite reports the error itself


def _sqlite(place: URL, **pool: int) -> Engine:
    _keep_private(place.database)
    engine = create_engine(place, connect_args={"timeout": BUSY_SECONDS}, **pool)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:  # noqa: ANN401 - sqlite3's, or another
        connection.isolation_level = None  # else the driver itself begins transactions, too late
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:  # noqa: ANN401 - as above
        # A writing transaction must lock at once: one that reads first and writes later fails
        # without waiting if another has written meanwhile.
        reads = connection.get_execution_options().get("reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _postgresql(place: URL, **pool: int) -> Engine:
    """Bound the time that anything waits for a server that is gone or locked."""
    limits = {"connect_timeout": BUSY_SECONDS}
    # For a server that vanished: keepalives after 10 s of silence, and data sent must be
    # acknowledged within 15 s.
    limits |= {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
    limits |= {"tcp_user_timeout": 15_000}
    limits = {name: value for name, value in limits.items() if name not in place.query}
    engine = create_engine(place, connect_args=limits, pool_pre_ping=True, **pool)

    @event.listens_for(engine, "connect")
    def bound(connection: Any, _record: object) -> None:  # noqa: ANN401 - psycopg's, or another
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = '{BUSY_SECONDS}s'")
            cursor.execute("SET statement_timeout = '30s'")
            cursor.execute("SET idle_in_transaction_session_timeout = '60s'")
        connection.commit()

    return engine
