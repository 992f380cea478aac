"""Storage of the service's files: a folder, or a bucket of S3 or of a compatible store.

A key is a name that we choose, "tasks/8c1f/output.mp4". `check_key` defines valid ones, none of
which leads out of the folder.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from latentsync.errors import InputError, OptionError, OutputError
from latentsync.runtime.files import replacing
from latentsync.service.outages import DiskFull, Outage, is_disk_full

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

PIECE_BYTES = 1 << 20  # held in memory at a time
PART_BYTES = 16 << 20  # of a large file on its way to S3, which takes at most 10,000 of them
MAX_CONCURRENT_PARTS = 4
STALE_SECONDS = 24 * 3600.0  # of a partial file, whose writer must have been killed
KEY = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*")
MAX_KEY = 200  # characters; file systems take 255, and S3 1024 with the prefix


class NotStored(InputError):
    """There is nothing stored under a key, or no longer."""


@dataclass(frozen=True)
class Stored:
    """A stored file."""

    key: str
    size: int  # bytes
    modified: float  # s since the epoch


def open_storage(where: str | Path) -> "Storage":
    """Open a folder, which is made, or `s3://bucket/prefix?endpoint=https://...&region=...`.

    boto3 finds the credentials for S3 ($AWS_ACCESS_KEY_ID, ~/.aws, the machine's role).

    Raises:
        OptionError: an invalid URL.
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
    """Raise InputError for an invalid key.

    A key has 1 to 200 characters of A-Z a-z 0-9 _ . - in parts joined by "/". No part is empty or
    begins with a dot.
    """
    if not is_key(key):
        shown = repr(key if len(key) <= 80 else f"{key[:77]}...")
        raise InputError(
            f"no file can be called {shown}: at most {MAX_KEY} letters, digits and _ . - in parts "
            "joined by /, none of which begins with a dot"
        )


def is_key(key: str) -> bool:
    """Whether a key is valid, see `check_key`."""
    return len(key) <= MAX_KEY and KEY.fullmatch(key) is not None


def write_whole(pieces: Iterable[bytes], target: Path) -> int:
    """Write `pieces` to `target`, whole or not at all; returns the size in bytes.

    Raises OutputError if the file can't be written; errors of `pieces` pass through.
    """
    with replacing(target, unique=True) as part, part.open("xb") as file:
        for piece in pieces:
            file.write(piece)
        return file.tell()


class LocalStorage:
    """A folder with one file for each key, named with "," for "/".

    So it has no subfolders to make and to remove. Files whose names begin with a dot are partial,
    or somebody else's; they have no key.

    Methods raise InputError for an invalid key, and Outage if the folder can't be used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for part in folder.glob(".*.part"):
                with contextlib.suppress(FileNotFoundError):
                    if part.stat().st_mtime < time.time() - STALE_SECONDS:
                        part.unlink()
        except OSError as error:
            raise OutputError(
                f"no files can be kept in {str(folder)!r} ({error.strerror}): name another folder"
            ) from error

    def _file(self, key: str) -> Path:
        check_key(key)
        return self.folder / key.replace("/", ",")

    def put(self, key: str, path: Path) -> None:
        """Store a copy of the file at `path`, whole or not at all. Raises DiskFull."""
        target = self._file(key)
        with path.open("rb") as file, self._outages():
            write_whole(iter(lambda: file.read(PIECE_BYTES), b""), target)

    def read(self, key: str) -> Iterator[bytes]:
        """Read a file in pieces of at most 1 MiB. Raises NotStored at the first piece."""
        with self._outages():
            file = self.path(key).open("rb")
        with file:
            while True:
                with self._outages():
                    piece = file.read(PIECE_BYTES)
                if not piece:
                    return
                yield piece

    def size(self, key: str) -> int:
        """Size of a file in bytes. Raises NotStored."""
        with self._outages():
            return self.path(key).stat().st_size

    def delete(self, key: str) -> None:
        """Delete a file if it exists."""
        with self._outages():
            self._file(key).unlink(missing_ok=True)

    def entries(self) -> Iterator[Stored]:
        """List all files, in no order."""
        with self._outages(), os.scandir(self.folder) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
                    if not file.name.startswith(".") and file.is_file(follow_symlinks=False):
                        facts = file.stat()
                        yield Stored(file.name.replace(",", "/"), facts.st_size, facts.st_mtime)

    def path(self, key: str) -> Path:
        """Path of a stored file, for reading only; None: it is elsewhere. Raises NotStored."""
        file = self._file(key)
        if not file.is_file():
            if not self.folder.is_dir():
                raise Outage(f"the folder {str(self.folder)!r} is gone: mount it, or make it anew")
            raise _not_stored(key)
        return file

    @contextlib.contextmanager
    def _outages(self) -> Iterator[None]:
        """Turn errors of the folder into Outage."""
        try:
            yield
        except (OSError, OutputError) as error:
            kind = DiskFull if is_disk_full(error) else Outage
            raise kind(f"the folder {str(self.folder)!r} did not do as asked: {error}") from error

    def upload_url(self, key: str, *, size: int, seconds: int) -> None:  # noqa: ARG002
        """Address for a PUT of exactly `size` bytes; None: the service receives uploads itself."""
        check_key(key)

    def download_url(
        self,
        key: str,
        *,
        name: str,  # noqa: ARG002
        seconds: int,  # noqa: ARG002
        method: str = "GET",  # noqa: ARG002
    ) -> None:
        """Address for a GET (or HEAD) of a file as `name`; None: the service serves it itself."""
        check_key(key)


class S3Storage:
    """A bucket, or the part of it under `prefix`.

    Large files are uploaded in parts. Parts left behind by a killed writer are not listed here: let
    the bucket's lifecycle rules abort incomplete uploads after a day.

    Methods are those of `LocalStorage`.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str = "",
        *,
        endpoint: str | None = None,
        region: str | None = None,
    ) -> None:
        import boto3  # takes half a second
        from boto3.s3.transfer import TransferConfig
        from botocore.config import Config

        self.bucket, self.prefix = bucket, f"{prefix}/" if prefix else ""
        self._parts = TransferConfig(
            multipart_threshold=PART_BYTES,
            multipart_chunksize=PART_BYTES,
            max_concurrency=MAX_CONCURRENT_PARTS,
        )
        with self._outages():
            self._client: Any = boto3.Session().client(
                "s3",
                endpoint_url=endpoint,
                region_name=region,
                config=Config(
                    signature_version="s3v4",
                    connect_timeout=10,
                    read_timeout=60,
                    retries={"mode": "standard", "max_attempts": 3},
                    # Compatible stores have no host name for each bucket, and some don't know the
                    # checksums that boto3 adds by default.
                    s3={"addressing_style": "path" if endpoint else "auto"},
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                ),
            )

    def put(self, key: str, path: Path) -> None:
        with self._outages(key) as place:
            self._client.upload_file(str(path), **place, Config=self._parts)

    def read(self, key: str) -> Iterator[bytes]:
        with (
            self._outages(key) as place,
            contextlib.closing(self._client.get_object(**place)["Body"]) as body,
        ):
            yield from body.iter_chunks(PIECE_BYTES)

    def size(self, key: str) -> int:
        with self._outages(key) as place:
            return int(self._client.head_object(**place)["ContentLength"])

    def delete(self, key: str) -> None:
        with self._outages(key) as place:
            self._client.delete_object(**place)

    def entries(self) -> Iterator[Stored]:
        with self._outages():
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
        with self._outages(key) as place:
            url: str = self._client.generate_presigned_url(
                action, Params={**place, **more}, ExpiresIn=seconds
            )
        return url

    @contextlib.contextmanager
    def _outages(self, key: str | None = None) -> Iterator[dict[str, str]]:
        """Give boto3's arguments for a key, and turn its errors into Outage or NotStored."""
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
            reason = code or " ".join(str(error).split())[:200] or type(error).__name__
            raise Outage(
                f"the store s3://{self.bucket} did not do as asked ({reason}): check its endpoint, "
                "its region and the credentials"
            ) from error


Storage = LocalStorage | S3Storage


def _not_stored(key: str) -> NotStored:
    return NotStored(f"nothing is kept as {key!r}, or not any more: upload it, or make it again")
