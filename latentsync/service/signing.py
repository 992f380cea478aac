"""Links that work for a while without a key, and messages that show who sent them.

A link carries when it ends and an HMAC-SHA256 over method, path, owner and that time. Nothing is
kept about it: whoever holds the secret can check it, another process or machine just as well.

Messages are signed as https://www.standardwebhooks.com has it, for which there are libraries. A
receiver without one checks them so, `secret` being "whsec_..." and `body` the bytes as they came:

    stamp = headers["webhook-timestamp"]
    signed = f"{headers['webhook-id']}.{stamp}.".encode() + body
    key = base64.b64decode(secret.removeprefix("whsec_"))
    wanted = "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    genuine = any(hmac.compare_digest(wanted, s) for s in headers["webhook-signature"].split())
    fresh = abs(time.time() - int(stamp)) < 300

Whoever also remembers the ids of the last five minutes takes no message twice.
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

_SECRET_BYTES = 32  # as long as what SHA-256 gives: longer ones add nothing (RFC 2104, 3)
VARIABLE = "LATENTSYNC_SECRET"
_MAX_SECONDS = 7 * 24 * 3600  # of a link; as S3 has it
_TOLERANCE_SECONDS = 300  # between two clocks, for a message


class BadSignature(InputError):
    """A link or a message that was not made by us, was changed, or is past its time."""


@dataclass(frozen=True)
class Signer:
    """Signs with the first of its secrets and accepts links made with any.

    To change the secret, put the new one first, and drop the old one when its links have ended.
    """

    secrets: tuple[bytes, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if not self.secrets or min(map(len, self.secrets)) < _SECRET_BYTES:
            raise OptionError(
                f"secrets of at least {_SECRET_BYTES} characters are needed: "
                "make one with `openssl rand -hex 32`"
            )

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """With the secrets in $LATENTSYNC_SECRET, split at commas, else the one kept in `folder`.

        That one is made by whoever comes first, for its owner's eyes only.
        Raises OptionError for a secret too short, OutputError when the file can't be made or read.
        """
        given = os.environ.get(VARIABLE, "")
        texts = [text.strip() for text in given.split(",")] if given else [_kept(folder / "secret")]
        return cls(tuple(text.encode() for text in texts))

    def sign(
        self,
        path: str,
        *,
        method: str = "GET",
        owner: str = "",
        seconds: int,
        now: float | None = None,
    ) -> str:
        """`path`, quoted for a URL, with a query that lets `method` through for `seconds`.

        Args:
            path: as a server sees it: decoded, without a query, beginning with one "/".
            owner: whoever the file belongs to. It is not in the link: who checks the link knows it.
            seconds: 1 to a week.

        Raises:
            OptionError: `seconds` or `path` is none of these.
        """
        if not 1 <= seconds <= _MAX_SECONDS or not re.match("/(?!/)", path):  # "//x" is a host
            raise OptionError(
                f"no link to {path!r} for {seconds} s: give a path that begins with one / and 1 to "
                f"{_MAX_SECONDS} s"
            )
        expires = str(int(_now(now)) + seconds)
        signature = _link(self.secrets[0], method, path, owner, expires)
        return f"{quote(path)}?{urlencode({'expires': expires, 'signature': signature})}"

    def check(
        self,
        path: str,
        *,
        method: str = "GET",
        owner: str = "",
        expires: str,
        signature: str,
        now: float | None = None,
    ) -> None:
        """Raise BadSignature unless `sign` made this link, for this method, and it still holds.

        A link to GET is good for HEAD, which players ask first. Anything else in the query is
        neither signed nor looked at.
        """
        genuine = [
            hmac.compare_digest(
                _link(secret, method, path, owner, expires).encode(),
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
        """What `owner` checks our messages with: "whsec_..."; made of our secret, kept nowhere."""
        return _webhook_secret(self.secrets[0], owner)

    def webhook_headers(
        self, owner: str, *, message_id: str, body: bytes, now: float | None = None
    ) -> dict[str, str]:
        """The three headers to send with `body` to `owner`; one signature for each secret.

        `message_id` is the same when a message is sent again; it holds no dot.
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
    """ "v1," and the HMAC-SHA256, in base64, of id, time (s since the epoch) and body with dots."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(key, signed, "sha256")).decode()


def check_webhook(
    secret: str, headers: Mapping[str, str], body: bytes, *, now: float | None = None
) -> None:
    """For receivers in Python: raise BadSignature unless the message is genuine and fresh.

    Args:
        secret: "whsec_...".
        headers: of the request, by names in small letters.
        body: as it came, before anything parses it.
    """
    stamp = headers.get("webhook-timestamp", "")
    if not re.fullmatch(r"[0-9]{1,12}", stamp) or abs(_now(now) - int(stamp)) > _TOLERANCE_SECONDS:
        raise BadSignature(
            f"the message is not from the last {_TOLERANCE_SECONDS} s: check this machine's clock"
        )
    wanted = webhook_signature(
        secret, message_id=headers.get("webhook-id", ""), timestamp=int(stamp), body=body
    )
    given = headers.get("webhook-signature", "").split()
    if not any(hmac.compare_digest(wanted.encode(), each.encode()) for each in given):
        raise BadSignature("the message isn't signed with this secret: check which one is in use")


def _now(now: float | None) -> float:
    return time.time() if now is None else now


def _link(secret: bytes, method: str, path: str, owner: str, expires: str) -> str:
    """In hexadecimal, over all that a link is for; JSON keeps one from running into the next."""
    method = "GET" if method.upper() == "HEAD" else method.upper()
    signed = json.dumps(["link", method, path, owner, expires]).encode()
    return hmac.digest(secret, signed, "sha256").hex()


def _webhook_secret(secret: bytes, owner: str) -> str:
    key = hmac.digest(secret, json.dumps(["webhook", owner]).encode(), "sha256")
    return "whsec_" + base64.b64encode(key).decode()


def _kept(file: Path) -> str:
    """The secret in `file`, which is made unless it is there: whole, and by one process only."""
    part = file.with_name(f".{uuid.uuid4().hex}.part")
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            with open(part, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as new:
                new.write(random.token_hex(_SECRET_BYTES))
            with contextlib.suppress(FileExistsError):  # who came first has made it
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
