"""Downloads of single files, resumed after an interruption."""

import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from io import BufferedRandom

import requests

from latentsync.errors import WeightsMismatch

__all__ = ["reason", "transfer"]

log = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 14  # requests drops the last, partial one when a transfer breaks off
TIMEOUT_SECONDS = 30  # without data
MAX_ATTEMPTS = 5  # in a row that add nothing to the file
PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 60.0  # before the second attempt, doubled each time
TRANSIENT = {408, 429, 500, 502, 503, 504}  # HTTP status codes worth another attempt

ByteProgress = Callable[[int, int | None], None]
"""Called with the number of bytes so far, and of the whole file if that is known."""


def transfer(
    url: str,
    file: BufferedRandom,
    *,
    size: int | None = None,
    headers: Mapping[str, str] | None = None,
    progress: ByteProgress | None = None,
) -> None:
    """Append to `file` what it lacks of the content of `url`, and retry after interruptions.

    Args:
        size: of the content, in bytes; default what the server says.
        headers: for each request, but not for another host after a redirect.

    Raises:
        OSError: the transfer failed (requests' errors are OSErrors). The file keeps what it has.
        WeightsMismatch: the content has another size.
    """
    fruitless = 0
    while True:
        before = file.seek(0, os.SEEK_END)
        try:
            _attempt(url, file, size, headers or {}, progress)
            return
        except OSError as error:
            if not _is_transient(error):
                raise
            fruitless = fruitless + 1 if file.seek(0, os.SEEK_END) <= before else 0
            if fruitless >= MAX_ATTEMPTS:
                raise
            pause = _pause(error, fruitless)
            log.warning("%s: %s; trying again in %.0f s", url.split("?")[0], reason(error), pause)
            time.sleep(pause)


class _Interrupted(OSError):
    """The transfer ended early, or can't be resumed where the file ends."""


def _attempt(
    url: str,
    file: BufferedRandom,
    size: int | None,
    headers: Mapping[str, str],
    progress: ByteProgress | None,
) -> None:
    have = file.seek(0, os.SEEK_END)
    if have == size:
        return
    if size is not None and have > size:
        have = file.truncate(0)
    # Byte ranges of a compressed answer count compressed bytes (RFC 9110, 14.1.2).
    asked = {"Accept-Encoding": "identity", **headers}
    if have:
        asked["Range"] = f"bytes={have}-"
    with requests.get(url, headers=asked, stream=True, timeout=TIMEOUT_SECONDS) as answer:
        if answer.status_code == requests.codes.requested_range_not_satisfiable:
            if size is None and _total(answer) == have:
                return
            file.truncate(0)
            raise _Interrupted(f"the server does not go on from byte {have}")
        answer.raise_for_status()
        start = _start(answer)
        total = _total(answer)
        if None not in (size, total) and total != size:
            raise WeightsMismatch(f"{url.split('?')[0]} has {total} bytes, not {size}")
        if start > have or (start and _is_encoded(answer)):
            file.truncate(0)
            raise _Interrupted(f"the server answers from byte {start}, not from {have}")
        whole = total if size is None else size
        file.seek(start)
        file.truncate()
        for chunk in answer.iter_content(CHUNK_BYTES):
            if whole is not None and file.tell() + len(chunk) > whole:
                file.truncate(0)
                raise WeightsMismatch(f"{url.split('?')[0]} has more than {whole} bytes")
            file.write(chunk)
            if progress:
                progress(file.tell(), whole)
    if whole is not None and file.tell() < whole:
        raise _Interrupted(f"the transfer broke off at {file.tell()} of {whole} bytes")


def _is_encoded(answer: requests.Response) -> bool:
    return answer.headers.get("Content-Encoding", "identity") != "identity"


def _start(answer: requests.Response) -> int:
    """The first byte of an answer: 0 if the server ignored the range."""
    if answer.status_code != requests.codes.partial_content:
        return 0
    first = answer.headers.get("Content-Range", "").removeprefix("bytes ").split("-")[0]
    if not first.isdigit():
        raise OSError("the server answers with a part of the file without saying which")
    return int(first)


def _total(answer: requests.Response) -> int | None:
    """The size of the whole content in bytes, if the server says it."""
    if _is_encoded(answer):
        return None
    if answer.status_code == requests.codes.ok:
        told = answer.headers.get("Content-Length", "")
    else:
        told = answer.headers.get("Content-Range", "").rpartition("/")[2]
    return int(told) if told.isdigit() else None


def _is_transient(error: OSError) -> bool:
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return error.response.status_code in TRANSIENT
    broken = requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError
    return isinstance(error, (_Interrupted, *broken))


def _pause(error: OSError, fruitless: int) -> float:
    """Seconds before the next attempt: by the server's Retry-After, or growing."""
    response = getattr(error, "response", None)
    told = response.headers.get("Retry-After", "") if response is not None else ""
    pause = float(told) if told.isdigit() else PAUSE_SECONDS * 2 ** max(fruitless - 1, 0)
    return min(pause, MAX_PAUSE_SECONDS)


def reason(error: BaseException) -> str:
    """The innermost reason of a network error, on one line; requests wraps it several times."""
    inner: BaseException | None = error
    while inner is not None:
        error = inner
        wrapped = (getattr(error, "reason", None), *reversed(error.args))
        inner = next((one for one in wrapped if isinstance(one, BaseException)), None)
    text = " ".join(str(error).split()) or repr(error)
    # urllib3 puts the connection first, the hub its request number last.
    text = re.sub(r"^<?HTTPS?Connection(Pool)?\([^)]*\)>?: ", "", text)
    return re.sub(r" ?\(Request ID: [^)]*\)", "", text)[:400]
