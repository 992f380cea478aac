"""Signed links, which work without a key until they expire, and signed webhook messages.

A link contains its expiry and an HMAC-SHA256 over method, path and expiry. Nothing is stored: any
process or machine with the secret can check it.

Messages are signed as in https://www.standardwebhooks.com, which has libraries. A receiver without
one checks them as follows, where `secret` is "whsec_..." and `body` the bytes as received:

    stamp = headers["webhook-timestamp"]
    signed = f"{headers['webhook-id']}.{stamp}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    wanted = "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    genuine = any(hmac.compare_digest(wanted, s) for s in headers["webhook-signature"].split())
    fresh = abs(time.time() - int(stamp)) < 300

A receiver that also remembers the ids of the last five minutes processes no message twice.
"""

import base64
import contextlib
import hmac
import json
import os
import re
import secrets as random
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self
from urllib.parse import quote, urlencode

from latentsync.errors import InputError, OptionError, OutputError

__all__ = ["VARIABLE", "BadSignature", "Signer", "check_webhook", "webhook_signature"]

SECRET_BYTES = 32  # the length of a SHA-256 digest: longer ones add nothing (RFC 2104, 3)
VARIABLE = "LATENTSYNC_SECRET"
MAX_LINK_SECONDS = 7 * 24 * 3600  # as for S3
MAX_AGE_SECONDS = 300  # of a message, by the receiver's clock


class BadSignature(InputError):
    """A link or a message that was not signed by us, was changed, or has expired."""


@dataclass(frozen=True)
class Signer:
    """Signs with the first of its secrets, and accepts links signed with any of them.

    To change the secret, put the new one first, and drop the old one when its links have expired.
    """

    secrets: tuple[bytes, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.secrets or min(map(len, self.secrets)) < SECRET_BYTES:
            raise OptionError(
                f"secrets of at least {SECRET_BYTES} characters are needed: "
                "make one with `openssl rand -hex 32`"
            )

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Use the secrets in $LATENTSYNC_SECRET, separated by commas, or else the one in `folder`.

        That one is created if it is missing, readable by its owner only.
        Raises OptionError for a short secret, OutputError if the file can't be written or read.
        """
        given = os.environ.get(VARIABLE, "")
        texts = (
            [text.strip() for text in given.split(",")]
            if given
            else [_stored_secret(folder / "secret")]
        )
        return cls(tuple(text.encode() for text in texts))

    def sign(
        self, path: str, *, method: str = "GET", seconds: int, now: float | None = None
    ) -> str:
        """Sign a path for a method: returns it quoted, with a query, valid for `seconds`.

        Args:
            path: decoded, without a query, beginning with one "/".
            seconds: 1 to a week.

        Raises:
            OptionError: `seconds` or `path` is invalid.
        """
        if not 1 <= seconds <= MAX_LINK_SECONDS or not re.match("/(?!/)", path):  # "//x" is a host
            raise OptionError(
                f"no link to {path!r} for {seconds} s: give a path that begins with one / and 1 to "
                f"{MAX_LINK_SECONDS} s"
            )
        expires = str(int(_now(now)) + seconds)
        signature = _link(self.secrets[0], method, path, expires)
        return f"{quote(path)}?{urlencode({'expires': expires, 'signature': signature})}"

    def check(
        self,
        path: str,
        *,
        method: str = "GET",
        expires: str,
        signature: str,
        now: float | None = None,
    ) -> None:
        """Raise BadSignature unless the link was signed for this method and has not expired.

        A link for GET is valid for HEAD, which players request first. The rest of the query is not
        signed.
        """
        genuine = [
            hmac.compare_digest(
                _link(secret, method, path, expires).encode(),
                signature.encode(errors="replace"),
            )
            for secret in self.secrets
        ]
        if not any(genuine):
            raise BadSignature(
                f"this link isn't signed for {method} of this path: copy it whole, or ask for a new"
            )
        if int(expires) <= _now(now):
            ended = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(int(expires)))
            raise BadSignature(f"this link ended at {ended}: ask for a new one")

    def webhook_secret(self, owner: str) -> str:
        """The secret by which `owner` checks our messages, "whsec_..."; derived, not stored."""
        return _webhook_secret(self.secrets[0], owner)

    def webhook_headers(
        self, owner: str, *, message_id: str, body: bytes, now: float | None = None
    ) -> dict[str, str]:
        """The three headers of a message to `owner`, with one signature for each secret.

        `message_id` stays the same when a message is sent again; it contains no dot.
        """
        timestamp = int(_now(now))
        signatures = [
            webhook_signature(
                _webhook_secret(secret, owner),
                message_id=message_id,
                timestamp=timestamp,
                body=body,
            )
            for secret in self.secrets
        ]
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(signatures),
        }


def webhook_signature(secret: str, *, message_id: str, timestamp: int, body: bytes) -> str:
    """Sign a message: "v1," and the HMAC-SHA256, in base64, of "ID.TIMESTAMP.BODY"."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def check_webhook(
    secret: str, headers: Mapping[str, str], body: bytes, *, now: float | None = None
) -> None:
    """Raise BadSignature unless a message is genuine and recent; for receivers in Python.

    Args:
        secret: "whsec_...".
        headers: of the request, by lower-case names.
        body: as received, before it is parsed.
    """
    stamp = headers.get("webhook-timestamp", "")
    if not re.fullmatch(r"[0-9]{1,12}", stamp) or abs(_now(now) - int(stamp)) > MAX_AGE_SECONDS:
        raise BadSignature(
            f"the message is not from the last {MAX_AGE_SECONDS} s: check this machine's clock"
        )
    wanted = webhook_signature(
        secret, message_id=headers.get("webhook-id", ""), timestamp=int(stamp), body=body
    )
    given = headers.get("webhook-signature", "").split()
    if not any(hmac.compare_digest(wanted.encode(), each.encode()) for each in given):
        raise BadSignature("the message isn't signed with this secret: check which one is in use")


def _now(now: float | None) -> float:
    return time.time() if now is None else now


def _link(secret: bytes, method: str, path: str, expires: str) -> str:
    """The signature of a link, in hexadecimal; JSON separates the parts."""
    method = "GET" if method.upper() == "HEAD" else method.upper()
    signed = json.dumps(["link", method, path, "", expires]).encode()  # "" keeps older links valid
    return hmac.digest(secret, signed, "sha256").hex()


def _webhook_secret(secret: bytes, owner: str) -> str:
    key = hmac.digest(secret, json.dumps(["webhook", owner]).encode(), "sha256")
    return "whsec_" + base64.b64encode(key).decode()


def _stored_secret(file: Path) -> str:
    """Read the secret in a file, which is created if missing: whole, and by one process only."""
    part = file.with_name(f".{uuid.uuid4().hex}.part")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            with open(part, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as new:
                new.write(random.token_hex(SECRET_BYTES))
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.link(part, file)
        return file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(
            f"no secret can be kept in {str(file)!r} ({error}): name a folder that may be written,"
            f" or give a secret in ${VARIABLE}"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
