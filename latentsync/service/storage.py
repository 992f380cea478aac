"""Where files of tasks are kept: a folder, or a bucket of S3 or of whatever speaks like it.

A key is a name that we choose, "tasks/8c1f/output.mp4"; `check_key` says what one may look like,
and none of those leads out of the folder.
"""

import contextlib
import errno
import os
import re
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, quote, urlsplit

from latentsync.errors import InputError, OptionError, OutputError
from latentsync.service.outages import NoRoom, Outage, is_full

__all__ = [
    "LocalStorage",
    "NotStored",
    "S3Storage",
    "Storage",
    "Stored",
    "check_key",
    "is_key",
    "open_storage",
    "write_whole",
]

_PIECE = 1 << 20  # bytes held in memory at a time
_PART_BYTES = 16 << 20  # of a large file on its way to S3, which takes at most 10,000 of them
_PARTS_AT_A_TIME = 4
_LEFT_BEHIND_SECONDS = 24 * 3600.0  # no file takes so long to come: its writer was killed
_KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
_MAX_KEY = 200  # characters; file systems take 255, and S3 1024 with the prefix


class NotStored(InputError):
    """Nothing is kept under this key, or not any more."""


@dataclass(frozen=True)
class Stored:
    """One file that is kept."""

    key: str
    size: int  # bytes
    modified: float  # s since the epoch


class Storage(Protocol):
    """Files by key. Methods that name a key raise InputError for one that can't be a key."""

    def put(self, key: str, path: Path) -> None:
        """Keep a copy of the file at `path`, in place of what `key` held; whole or not at all.

        Raises NoRoom when the disk is full, Outage when the store can't be asked (as every method
        does).
        """

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Bytes [start, stop) in pieces of at most 1 MiB, fewer where the file ends earlier.

        Raises NotStored, at the first piece.
        """
        ...

    def size(self, key: str) -> int:
        """How many bytes `key` holds; raises NotStored."""
        ...

    def delete(self, key: str) -> None:
        """Forget `key`, if it is there."""

    def entries(self) -> Iterator[Stored]:
        """All that is kept, in no order."""
        ...

    def path(self, key: str) -> Path | None:
        """The kept file itself, not to be written to; None where there is none on this machine.

        Raises NotStored.
        """
        ...

    def upload_url(self, key: str, *, size: int, seconds: int) -> str | None:
        """Where `size` bytes may be PUT within `seconds`; None where the caller has to take them.

        The sender's Content-Length must be `size`: the signature holds for no other.
        """
        ...

    def download_url(self, key: str, *, name: str, seconds: int, method: str = "GET") -> str | None:
        """Where the file can be had as `name` for `seconds`; None where the caller serves it.

        The signature holds for this method, GET or HEAD, alone.
        """
        ...

    def get(self, key: str, target: Path) -> None:
        """Copy what is kept to the file `target`, whole or not at all.

        Raises NotStored; OutputError.
        """
        write_whole(self.read(key), target)


def open_storage(where: str | Path) -> Storage:
    """Open a folder, which is made, or `s3://bucket/prefix?endpoint=https://...&region=...`.

    Credentials for S3 come from where boto3 looks ($AWS_ACCESS_KEY_ID, ~/.aws, the machine's role).

    Raises:
        OptionError: a URL that isn't understood.
        OutputError: the folder can't be made.
    """
    if "://" not in str(where):
        return LocalStorage(Path(where))
    try:
        parts = urlsplit(str(where))
        query = parse_qs(parts.query, strict_parsing=True) if parts.query else {}
    except ValueError:
        parts, query = urlsplit(""), {}
    if parts.scheme != "s3" or not parts.netloc or set(query) - {"endpoint", "region"}:
        raise OptionError(
            f"no storage at {str(where)!r}: give a folder, or "
            "s3://bucket/prefix?endpoint=https://...&region=..., of which prefix and query may lack"
        )
    return S3Storage(
        parts.netloc,
        parts.path.strip("/"),
        **{name: values[-1] for name, values in query.items()},
    )


def check_key(key: str) -> None:
    """Raise InputError unless `key` can be one.

    That is 1 to 200 characters of A-Z a-z 0-9 _ . - in parts joined by "/", of which none is empty
    or begins with a dot.
    """
    if not is_key(key):
        shown = repr(key if len(key) <= 80 else f"{key[:77]}...")
        raise InputError(
            f"no file can be called {shown}: at most {_MAX_KEY} letters, digits and _ . - in parts "
            "joined by /, none of which begins with a dot"
        )


def is_key(key: str) -> bool:
    """Whether `check_key` accepts `key`."""
    return len(key) <= _MAX_KEY and _KEY.fullmatch(key) is not None


def write_whole(pieces: Iterable[bytes], target: Path) -> int:
    """Write `pieces` beside `target` and move the file there; returns its bytes.

    Whatever goes wrong, also in `pieces`, leaves `target` as it was and nothing beside it.
    Raises OutputError when the file can't be written; what else `pieces` raises passes through.
    """
    part = target.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            size = file.tell()
        part.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        advice = "make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "see to the folder"
        raise OutputError(f"{str(target)!r} can't be written ({reason}): {advice}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return size


class LocalStorage(Storage):
    """A folder, of which each file is one key, with "," for its "/".

    Without folders inside there are none to make, to race for and to clear away. Files whose names
    begin with a dot are on their way, or somebody else's: no key leads to them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in folder.glob(".*.part"):
                with contextlib.suppress(FileNotFoundError):
                    if part.stat().st_mtime < time.time() - _LEFT_BEHIND_SECONDS:
                        part.unlink()
        except OSError as error:
            raise OutputError(
                f"no files can be kept in {str(folder)!r} ({error.strerror}): name another folder"
            ) from error

    def _file(self, key: str) -> Path:
        check_key(key)
        return self.folder / key.replace("/", ",")

    def put(self, key: str, path: Path) -> None:
        target = self._file(key)
        with path.open("rb") as file, self._asked():
            write_whole(iter(lambda: file.read(_PIECE), b""), target)

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        left = (self.size(key) if stop is None else stop) - start
        with self._asked():
            file = self.path(key).open("rb")
        with file:
            file.seek(start)
            while left > 0:
                with self._asked():
                    piece = file.read(min(_PIECE, left))
                if not piece:
                    return
                left -= len(piece)
                yield piece

    def size(self, key: str) -> int:
        with self._asked():
            return self.path(key).stat().st_size

    def delete(self, key: str) -> None:
        with self._asked():
            self._file(key).unlink(missing_ok=True)

    def entries(self) -> Iterator[Stored]:
        with self._asked(), os.scandir(self.folder) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # deleted since
                    if not file.name.startswith(".") and file.is_file(follow_symlinks=False):
                        facts = file.stat()
                        yield Stored(file.name.replace(",", "/"), facts.st_size, facts.st_mtime)

    def path(self, key: str) -> Path:
        file = self._file(key)
        if not file.is_file():
            if not self.folder.is_dir():
                raise Outage(f"the folder {str(self.folder)!r} is gone: mount it, or make it anew")
            raise _not_stored(key)
        return file

    @contextlib.contextmanager
    def _asked(self) -> Iterator[None]:
        """What goes wrong with the folder is no fault of who asks for a file."""
        try:
            yield
        except (OSError, OutputError) as error:
            kind = NoRoom if is_full(error) else Outage
            raise kind(f"the folder {str(self.folder)!r} did not do as asked: {error}") from error

    def upload_url(self, key: str, *, size: int, seconds: int) -> None:  # noqa: ARG002
        check_key(key)

    def download_url(
        self,
        key: str,
        *,
        name: str,  # noqa: ARG002
        seconds: int,  # noqa: ARG002
        method: str = "GET",  # noqa: ARG002
    ) -> None:
        check_key(key)


class S3Storage(Storage):
    """A bucket, or what lies under `prefix` in it.

    Large files go and come in parts. A part that a killed writer left behind shows up nowhere here:
    have the bucket's own rules abort incomplete uploads after a day.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
    ) -> None:
        import boto3  # half a second, for those who use it
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        self.bucket, self.prefix = bucket, f"{prefix}/" if prefix else ""
        self._parts = TransferConfig(
            multipart_threshold=_PART_BYTES,
            multipart_chunksize=_PART_BYTES,
            max_concurrency=_PARTS_AT_A_TIME,
        )
        with self._asked():
            self._client: Any = boto3.Session().client(
                "s3",
                endpoint_url=endpoint,
                region_name=region,
                config=Config(
                    signature_version="s3v4",
                    connect_timeout=10,
                    read_timeout=60,
                    retries={"mode": "standard", "max_attempts": 3},
                    # Stores that only speak like S3 have no host name for each bucket, and not all
                    # know the checksums that boto3 adds on its own.
                    s3={"addressing_style": "path" if endpoint else "auto"},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )

    def put(self, key: str, path: Path) -> None:
        with self._asked(key) as place:
            self._client.upload_file(str(path), **place, Config=self._parts)

    def read(self, key: str, *, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        stop = self.size(key) if stop is None else min(stop, self.size(key))
        if start >= stop:
            return
        with self._asked(key) as place:
            answer = self._client.get_object(**place, Range=f"bytes={start}-{stop - 1}")
            with contextlib.closing(answer["Body"]) as body:
                yield from body.iter_chunks(_PIECE)

    def size(self, key: str) -> int:
        with self._asked(key) as place:
            return int(self._client.head_object(**place)["ContentLength"])

    def delete(self, key: str) -> None:
        with self._asked(key) as place:
            self._client.delete_object(**place)

    def entries(self) -> Iterator[Stored]:
        with self._asked():
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=self.prefix
            )
            for page in pages:
                for item in page.get("Contents", ()):
                    key = item["Key"].removeprefix(self.prefix)
                    yield Stored(key, item["Size"], item["LastModified"].timestamp())

    def path(self, key: str) -> None:
        self.size(key)

    def upload_url(self, key: str, *, size: int, seconds: int) -> str:
        return self._signed("put_object", key, seconds, ContentLength=size)

    def download_url(self, key: str, *, name: str, seconds: int, method: str = "GET") -> str:
        shown = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
        action = f"{method.lower()}_object"
        return self._signed(action, key, seconds, ResponseContentDisposition=shown)

    def _signed(self, action: str, key: str, seconds: int, **more: str | int) -> str:
        with self._asked(key) as place:
            url: str = self._client.generate_presigned_url(
                action, Params={**place, **more}, ExpiresIn=seconds
            )
        return url

    @contextlib.contextmanager
    def _asked(self, key: str | None = None) -> Iterator[dict[str, str]]:
        """Where `key` lies, in boto3's words; what goes wrong in asking becomes one line."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        if key is not None:
            check_key(key)
        try:
            yield {"Bucket": self.bucket, "Key": f"{self.prefix}{key}"}
        except (Boto3Error, BotoCoreError, ClientError) as error:
            code = getattr(error, "response", {}).get("Error", {}).get("Code")
            if key is not None and code in ("404", "NoSuchKey"):
                raise _not_stored(key) from error
            raise Outage(
                f"the store s3://{self.bucket} did not do as asked ({code or _line(error)}): check "
                "its endpoint, its region and the credentials"
            ) from error


def _not_stored(key: str) -> NotStored:
    return NotStored(f"nothing is kept as {key!r}, or not any more: upload it, or make it again")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
