"""Fetches weight files; interrupted transfers are resumed.

A file is staged in a folder of the user account below the weights folder. A transfer that ended
early is resumed there by the same or a later process, and only a whole file with the right hash
moves to its place.
"""

import errno
import hashlib
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from io import BufferedRandom
from pathlib import Path
from zipfile import BadZipFile, ZipFile, is_zipfile

from latentsync.errors import OptionError, WeightsError, WeightsMismatch
from latentsync.runtime.downloads import SETS, Download
from latentsync.runtime.locks import locked_file
from latentsync.runtime.transfer import TIMEOUT_SECONDS, ByteProgress, reason, transfer

__all__ = ["fetch", "fetch_set", "is_whole"]

log = logging.getLogger(__name__)

COPY_BYTES = 1 << 20
SPARE_BYTES = 1 << 28  # left free on the disk
SHA256_DIGITS = 64  # the hub's ETag of a large file is its sha256
DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
NOT_WRITABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG, errno.EIO}
IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST}


def fetch_set(
    name: str,
    folder: Path,
    report: Callable[[Download], None] | None = None,
    progress: Callable[[Download, int, int | None], None] | None = None,
) -> None:
    """Fetch the missing files of a set.

    Args:
        report: called with each file when it is complete.
        progress: called with a file, the bytes of it (or of its zip) so far, and its size.

    Raises:
        OptionError: there is no such set.
        WeightsError, WeightsMismatch: as `fetch`.
    """
    if name not in SETS:
        raise OptionError(f"nothing is called {name!r}; it must be one of {', '.join(SETS)}")
    for item in SETS[name]:
        fetch(item, folder, partial(progress, item) if progress else None)
        if report:
            report(item)
    for zipped in {_staging(item, folder) for item in SETS[name] if item.is_zipped}:
        if zipped.is_file():
            with suppress(OSError), locked_file(zipped) as file:
                file.truncate(0)


def fetch(item: Download, folder: Path, progress: ByteProgress | None = None) -> Path:
    """Fetch one file if it is missing; returns its place.

    A file of the hub comes from the hub's cache on this machine or from $HF_ENDPOINT, with
    $HF_TOKEN or the token of `hf auth login`; not from the network if $HF_HUB_OFFLINE is set.

    Raises:
        WeightsError: no network, no such file or no space; a partial file is kept for next time.
        WeightsMismatch: the fetched file, or the existing one, is another one.
    """
    target = folder / item.target
    staging = _staging(item, folder)
    try:
        if is_whole(item, target):
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, "", str(target.parent))
        with locked_file(staging) as file:
            if not is_whole(item, target):  # another process may have fetched it meanwhile
                log.info(
                    "fetching %s from %s (licence: %s)", item.target, item.source, item.licence
                )
                have = os.fstat(file.fileno()).st_size
                _check_room(item, folder, have)
                if progress:
                    progress(have, None if item.is_zipped else item.size)
                _fill(item, file, progress)
                if item.is_zipped:
                    _unpack(item, file, staging, target)
                else:
                    staging.replace(target)
    except WeightsError:
        raise
    except Exception as error:
        # The hub's library and requests raise many kinds of errors; all mean that it failed.
        raise WeightsError(_explain(item, target, error)) from error
    return target


def is_whole(item: Download, path: Path) -> bool:
    """Whether a file exists with the right size; `verify` computes its hash.

    Raises:
        WeightsMismatch: something else is in its place.
    """
    if path.is_dir():
        raise WeightsMismatch(f"{path} is a folder, not the file {path.name}; move it away")
    if not path.is_file():
        return False
    size = path.stat().st_size
    if size != item.size:
        raise WeightsMismatch(
            f"{path} has {size} bytes, but the published file has {item.size}; delete it (or move "
            "it away, if it is your own) and run the download again"
        )
    return True


def _staging(item: Download, folder: Path) -> Path:
    """The staging file of a content, shared by the processes of a user account.

    Accounts don't share it, because one can't write what another left behind.
    """
    key = hashlib.sha256(item.source.encode()).hexdigest() if item.is_zipped else item.sha256
    name = item.source.rpartition("/")[2] if item.is_zipped else item.target.rpartition("/")[2]
    return folder / f".incoming-{os.getuid()}" / f"{name}.{key[:16]}.part"


def _fill(item: Download, file: BufferedRandom, progress: ByteProgress | None) -> None:
    """Write the content into `file` from the first source that has it; zips are checked later."""
    if item.is_zipped:
        if not is_zipfile(file):  # a zip ends with its list of members, so a partial one is none
            transfer(item.source, file, progress=progress)
        return
    if item.on_hub and _from_cache(item, file):
        return
    try:
        if item.on_hub:
            _from_hub(item, file, progress)
        else:
            transfer(item.source, file, size=item.size, progress=progress)
        _check_hash(item, file, item.source)
    except Exception as error:
        if item.mirror is None or _is_of_this_machine(error):
            raise
        log.warning("%s; trying %s", _explain(item, Path(item.target), error), item.mirror)
        try:
            transfer(item.mirror, file, size=item.size, progress=progress)
            _check_hash(item, file, item.mirror)
        except Exception as second:
            if _is_of_this_machine(second):
                raise
            log.warning("%s failed as well: %s", item.mirror, reason(second))
            raise error from None  # the publisher's answer is the more useful one


def _from_cache(item: Download, file: BufferedRandom) -> bool:
    """Copy the file from the hub's cache on this machine, if it is there."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(item.source, item.file)
    if not isinstance(cached, str) or Path(cached).stat().st_size != item.size:
        return False
    file.seek(0)
    with Path(cached).open("rb") as source:
        shutil.copyfileobj(source, file, COPY_BYTES)
    try:
        _check_hash(item, file, cached)
    except WeightsMismatch as error:
        log.warning("%s", error)
        return False
    return True


def _from_hub(item: Download, file: BufferedRandom, progress: ByteProgress | None) -> None:
    """Fetch from the hub, after checking that its file is the one in the table.

    huggingface_hub (as of 2.4) deletes partial downloads, so only its address, headers and errors
    are used.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    url = hf_hub_url(item.source, item.file)
    found = get_hf_file_metadata(url, timeout=TIMEOUT_SECONDS, retry_on_errors=True)
    etag = found.etag or ""
    replaced = len(etag) == SHA256_DIGITS and etag != item.sha256
    if replaced or found.size not in (None, item.size):
        raise WeightsMismatch(
            f"{item.source} now has a {item.file} of {found.size} bytes with ETag {etag[:12]}, "
            f"not the one of {item.size} bytes with sha256 {item.sha256[:12]}...; take a newer "
            "version of latentsync, or fetch the file's earlier revision yourself"
        )
    # Each attempt asks the hub for the file's address again, because addresses expire.
    transfer(url, file, size=item.size, headers=build_hf_headers(), progress=progress)


def _unpack(item: Download, zipped: BufferedRandom, staging: Path, target: Path) -> None:
    """Extract one member of a zip to its place."""
    member = staging.with_name(f"{target.name}.{item.sha256[:16]}.part")
    try:
        with ZipFile(zipped) as archive, locked_file(member) as out:
            names = [name for name in archive.namelist() if Path(name).name == item.file]
            if not names:
                raise BadZipFile(f"no {item.file} in it")
            out.truncate(0)
            with archive.open(names[0]) as content:
                shutil.copyfileobj(content, out, COPY_BYTES)
            _check_hash(item, out, item.source)
            member.replace(target)
    except (BadZipFile, zlib.error) as error:
        zipped.truncate(0)
        raise WeightsMismatch(
            f"{item.source} is not the zip it should be ({error}); it was removed; try again"
        ) from error
    except WeightsMismatch:
        zipped.truncate(0)
        raise


def _check_hash(item: Download, file: BufferedRandom, source: str) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != item.sha256:
        file.truncate(0)
        raise WeightsMismatch(
            f"{item.target} from {source} has sha256 {found[:12]}..., not the published "
            f"{item.sha256[:12]}...; it was removed; try again, or fetch it from another mirror"
        )


def _check_room(item: Download, folder: Path, have: int) -> None:
    free = shutil.disk_usage(folder).free
    needed = item.size - (0 if item.is_zipped else have)
    if free < needed + SPARE_BYTES:
        raise WeightsError(
            f"{item.target} needs {_amount(needed)} and {_amount(SPARE_BYTES)} to spare, but "
            f"{folder} has {_amount(free)} free; make room, or name another folder with --weights "
            "or $LATENTSYNC_WEIGHTS"
        )


def _amount(count: int) -> str:
    """Format a number of bytes, in the largest decimal unit that it fills."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _is_of_this_machine(error: Exception) -> bool:
    """Whether the cause is this machine, so that no other source would help."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    number = error.errno if isinstance(error, OSError) else None
    return (
        isinstance(error, OfflineModeIsEnabled) or number in DISK_FULL | NOT_WRITABLE | IN_THE_WAY
    )


def _explain(item: Download, target: Path, error: Exception) -> str:
    """One line: which file failed, why, and what to do."""
    from huggingface_hub.errors import OfflineModeIsEnabled, RepositoryNotFoundError

    number = error.errno if isinstance(error, OSError) else None
    name = getattr(error, "filename2", None) or getattr(error, "filename", None) or target
    if number in DISK_FULL:
        return f"the disk is full while fetching {item.target}; make room and run it again"
    if number in IN_THE_WAY:
        # The error names the folder that could not be made; the file may lie above it.
        name = next(path for path in (Path(name), *Path(name).parents) if os.path.lexists(path))
        return f"{name} is a file where {target} needs a folder; move it away"
    if number in NOT_WRITABLE or name != target:  # errors of the network name no file
        return (
            f"{name} can't be written ({os.strerror(number or 0)}); let this account write "
            "there, or name another folder with --weights or $LATENTSYNC_WEIGHTS"
        )
    url = f"https://huggingface.co/{item.source}" if item.on_hub else item.source
    what = f"{item.file} of {url}" if item.file else url
    by_hand = f"fetch {what} on another machine and put the file at {target}"
    if isinstance(error, OfflineModeIsEnabled):
        return (
            f"{item.target} is not in the hub's cache, and $HF_HUB_OFFLINE forbids to fetch it; "
            f"unset that, or {by_hand}"
        )
    if isinstance(error, WeightsError):
        return str(error)
    said = f"{item.target} can't be fetched from {item.source} ({reason(error)})"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if item.on_hub and (status in (401, 403) or isinstance(error, RepositoryNotFoundError)):
        return (
            f"{said}; accept the terms on the repository's page if it has any, and give a token "
            f"that may read it in $HF_TOKEN or by `hf auth login`; or put the file at {target} "
            "yourself"
        )
    if status in (401, 403, 404, 410):
        return f"{said}; put the file at {target} yourself"
    named = next((name for name, items in SETS.items() if item in items), None)
    again = f"run `latentsync download {named}` again" if named else "run it again"
    return f"{said}; check the network and {again}, or {by_hand}"
