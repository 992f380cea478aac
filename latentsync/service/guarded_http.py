"""HTTP requests to users' URLs, which never reach the service's own network.

A user could name a URL that only this machine reaches: a router, a database, a cloud's metadata. So
each host is looked up once, its addresses are checked, and the connection goes to a checked
address. A name that resolves differently a moment later changes nothing; each redirect is checked
anew; and the resolver interprets every notation of an address as other programs do. Proxies of the
environment are not used, because they would connect to unchecked addresses. All ports are allowed:
users serve files on port 8000, and a public host's ports are not ours.

One deadline holds from the look-up to the last byte; the look-up itself has the resolver's time-out
(`man resolv.conf`: 5 s a try).
"""

import contextlib
import ipaddress
import logging
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

import httpcore
import idna

from latentsync.errors import Cancelled, InputError
from latentsync.service.storage import write_whole

__all__ = [
    "DEFAULT_BOUNDS",
    "WEBHOOK_BOUNDS",
    "Bounds",
    "FetchError",
    "FetchRefused",
    "check_url",
    "fetch",
    "host_of",
    "is_public",
    "post",
    "shown_url",
]

log = logging.getLogger(__name__)

PORTS = {"http": 80, "https": 443}
MAX_URL = 8192  # characters; signed URLs with session tokens have about 2000
SILENCE_SECONDS = 30.0  # of one step
REDIRECTS = (301, 302, 303, 307, 308)
TEMPORARY = (408, 425, 429)  # statuses, and every 5xx

# IANA's registries of special-purpose addresses (RFC 6890 and its successors:
# https://www.iana.org/assignments/iana-ipv4-special-registry, .../iana-ipv6-special-registry).
# Listed here because the meaning of `ipaddress`'s `is_global` changes between Python releases.
SPECIAL_PURPOSE = [
    ipaddress.ip_network(text)
    for text in (
        # this host; private; carriers' NAT, Alibaba's metadata; loopback; link-local, metadata
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        # private; protocols, Oracle's metadata; examples; 6to4 relays; private
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        # benchmarks; examples; examples; multicast; reserved, broadcast
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # a public address, but internal on Azure's machines
        # protocols, Teredo among them; examples; 6to4; examples
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
]
GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all assigned addresses (RFC 4291)
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # IPv4 addresses for hosts without IPv4


class FetchError(InputError):
    """A URL didn't give a file; another try may succeed."""


class FetchRefused(FetchError):
    """A URL or its answer is refused; another try would fail, too."""


@dataclass(frozen=True)
class Bounds:
    """Limits of one request, including its redirects."""

    max_bytes: int = 2 * 2**30
    seconds: float = 600.0
    max_redirects: int = 5
    allow_private: bool = False  # connect to any address


DEFAULT_BOUNDS = Bounds()
WEBHOOK_BOUNDS = Bounds(seconds=20.0)


def fetch(
    url: str,
    target: Path,
    *,
    bounds: Bounds = DEFAULT_BOUNDS,
    cancel: Callable[[], bool] = lambda: False,
) -> int:
    """Download `url` to `target`, whole or not at all; returns the size in bytes.

    Raises:
        FetchRefused: the URL isn't http(s), contains a password, has no public address or too many
            redirects; or the answer is too large, compressed, or a 4xx.
        FetchError: no answer, a broken or a slow one, or a 5xx.
        OutputError: the disk is full, or the folder can't be written.
        Cancelled: `cancel()` returned True; it is called for each piece.
    """
    network = _GuardedNetwork(url, bounds)
    with network.errors(), _answer(network) as answer:
        return write_whole(_content(answer, network, cancel), target)


def post(
    url: str,
    body: bytes,
    *,
    headers: Mapping[str, str] | None = None,
    bounds: Bounds = WEBHOOK_BOUNDS,
) -> int:
    """POST `body` to `url`; returns the status of the answer. Redirects are not followed.

    Raises:
        FetchRefused: the URL isn't http(s), or has no public address.
        FetchError: no answer in time.
    """
    network = _GuardedNetwork(url, bounds)
    with network.errors(), network.ask("POST", url, headers or {}, body) as answer:
        return answer.status


def check_url(url: str, *, allow_private: bool = True) -> None:
    """Raise FetchRefused for a URL that can be refused without using the network.

    Args:
        allow_private: whether its host may be a private address, in any notation, or a name of this
            machine.
    """
    host = _parsed(url).host.decode()
    if not (allow_private or _may_be_public(host)):
        raise FetchRefused(
            f"{shown_url(url)} leads to a private address: give one that the whole internet reaches"
        )


def host_of(url: str) -> str:
    """The host of a URL, in ASCII; "" if `check_url` refuses the URL."""
    try:
        return _parsed(url).host.decode()
    except FetchRefused:
        return ""


def shown_url(url: str) -> str:
    """Format a URL for messages: one line, without password and query, which may be secret."""
    bare = re.split(r"[?#]", re.sub(r"//[^/?#]*@", "//", url.strip()))[0]
    return repr(bare if len(bare) <= 120 else f"{bare[:117]}...")


def is_public(address: str) -> bool:
    """Whether a numeric address, IPv4 or IPv6, is on the public internet.

    IPv6 addresses that embed IPv4 ones aren't, except those of NAT64 (RFC 6052), which hosts
    without IPv4 depend on: there the embedded address counts.
    """
    ip = ipaddress.ip_address(address)
    if ip in NAT64:
        ip = ipaddress.IPv4Address(ip.packed[-4:])
    if any(ip in network for network in SPECIAL_PURPOSE):
        return False
    return ip.version == 4 or ip in GLOBAL_UNICAST


def _parsed(url: str) -> httpcore.URL:
    """Parse a URL, once, so that all later steps use the same interpretation."""
    shown, url = shown_url(url), url.strip()
    if len(url) > MAX_URL or not url.isprintable():
        raise FetchRefused(f"{shown} is no URL: it is too long, or holds control characters")
    try:
        parts = urlsplit(url)
        scheme, port = parts.scheme, parts.port
        host = _host(parts.hostname or "", bracketed="[" in parts.netloc)
    except ValueError as error:
        raise FetchRefused(f"{shown} is no URL ({error}): give http(s)://host/path") from error
    if scheme not in PORTS:
        raise FetchRefused(f"{shown} isn't fetched: give a URL with http:// or https://")
    if "@" in parts.netloc:
        raise FetchRefused(f"{shown} comes with a user name: give a URL without, or a signed one")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return httpcore.URL(
        scheme=scheme.encode(),
        host=host.encode(),
        port=PORTS[scheme] if port is None else port,
        target=quote(target, safe="%/:=&?~+!$,;'@()*[]").encode(),
    )


def _host(host: str, *, bracketed: bool) -> str:
    """A host's name in ASCII, or its address; raises ValueError for anything else."""
    if bracketed and "%" not in host:  # after "%" comes a network interface of this machine
        return str(ipaddress.IPv6Address(host))
    host = host.removesuffix(".")
    if not host.isascii():
        host = idna.encode(host, uts46=True).decode()
    if len(host) > 253 or not re.fullmatch(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", host):
        raise ValueError("its host is neither a name nor an address")
    return host


def _may_be_public(host: str) -> bool:
    """False for a host that is known to be private without a look-up."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, 6.3
        return False
    try:
        found = socket.getaddrinfo(host.encode(), None, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:  # a name
        return True
    return all(is_public(str(address[0])) for *_, address in found)


def _addresses(host: str, port: int, url: str, bounds: Bounds) -> Sequence[tuple[int, Any]]:
    """Look up a host: socket family and socket address of each address that is allowed."""
    try:
        found = socket.getaddrinfo(host.encode(), port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno == socket.EAI_AGAIN:
            raise FetchError(f"{shown_url(url)}: its host can't be looked up now") from error
        found = []
    usable = [
        (family, address)
        for family, _, _, _, address in found
        if bounds.allow_private or is_public(str(address[0]))
    ]
    if not usable:
        # The same message for unknown and private hosts, which tells nothing about our network.
        log.info("%s refused: host %s, %d private addresses", shown_url(url), host, len(found))
        raise FetchRefused(
            f"{shown_url(url)}: its host has no public address; check the name, "
            "or have private ones allowed"
        )
    return usable


class _GuardedNetwork(httpcore.NetworkBackend):
    """The connections of one request: to checked addresses only, with one deadline."""

    def __init__(self, url: str, bounds: Bounds) -> None:
        self.url, self.bounds = url, bounds
        self._ends = time.monotonic() + bounds.seconds

    def patience(self) -> float:
        """Seconds that the next step may take. Raises TimeoutError at the deadline."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, SILENCE_SECONDS)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - `patience` is used instead
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        failure: OSError | None = None
        for family, address in _addresses(host, port, self.url, self.bounds):
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                connection.settimeout(self.patience())
                connection.connect(address)  # numeric: no second look-up
                return _Stream(connection, self.patience)
            except OSError as error:
                connection.close()
                failure = error
        assert failure is not None
        raise failure

    @contextlib.contextmanager
    def ask(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes | None = None
    ) -> Iterator[httpcore.Response]:
        """Send one request; yields its answer, of which only the head is read."""
        place = _parsed(url)
        host = f"[{place.host.decode()}]" if b":" in place.host else place.host.decode()
        if place.port != PORTS[place.scheme.decode()]:
            host += f":{place.port}"
        own = {"Host": host, "User-Agent": "latentsync", "Accept": "*/*", "Connection": "close"}
        with (
            httpcore.ConnectionPool(network_backend=self) as pool,
            pool.stream(
                method, place, headers=[*(own | {**headers}).items()], content=body
            ) as answer,
        ):
            yield answer

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn network errors into FetchError, with one line that repeats nothing of an answer."""
        shown = shown_url(self.url)
        try:
            yield
        except TimeoutError as error:
            over = time.monotonic() >= self._ends
            took = f"took more than {self.bounds.seconds:g} s in all"
            why = took if over else f"said nothing for {SILENCE_SECONDS:g} s"
            raise FetchError(f"{shown} {why}: try again, or from another host") from error
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", None) or error.reason or "no TLS"
            raise FetchError(f"{shown} can't be trusted ({reason}): check its server") from error
        except OSError as error:
            raise FetchError(
                f"{shown} can't be reached ({error.strerror or 'it hung up'}): check its server"
            ) from error
        except httpcore.ProtocolError as error:
            raise FetchError(
                f"{shown} broke off, or doesn't speak HTTP: check its server, and try again"
            ) from error


class _Stream(httpcore.NetworkStream):
    """A connection whose steps share the deadline of the request."""

    def __init__(self, connection: socket.socket, patience: Callable[[], float]) -> None:
        self._connection, self._patience = connection, patience

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        self._connection.settimeout(self._patience())
        return self._connection.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        rest = memoryview(buffer)
        while rest:
            self._connection.settimeout(self._patience())
            rest = rest[self._connection.send(rest) :]

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        try:
            self._connection.settimeout(self._patience())
            secured = ssl_context.wrap_socket(self._connection, server_hostname=server_hostname)
        except OSError:
            self.close()
            raise
        return _Stream(secured, self._patience)

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def _answer(network: _GuardedNetwork) -> Iterator[httpcore.Response]:
    """Send a GET and follow redirects, each of which is checked like the first URL."""
    url = network.url
    for _ in range(network.bounds.max_redirects + 1):
        with network.ask("GET", url, {"Accept-Encoding": "identity"}) as answer:
            location = _header(answer, b"location")
            if answer.status not in REDIRECTS or not location:
                yield answer
                return
        try:
            url = urljoin(url, location)
        except ValueError as error:
            raise FetchRefused(f"{shown_url(network.url)} leads to what is no URL") from error
    raise FetchRefused(
        f"{shown_url(network.url)} leads on more than {network.bounds.max_redirects} times: "
        "give the URL of the file itself"
    )


def _content(
    answer: httpcore.Response, network: _GuardedNetwork, cancel: Callable[[], bool]
) -> Iterator[bytes]:
    """Read an answer in pieces; raises unless it is an acceptable file."""
    shown, status, most = shown_url(network.url), answer.status, network.bounds.max_bytes
    if status != 200:
        kind = FetchError if status >= 500 or status in TEMPORARY else FetchRefused
        raise kind(f"{shown} answered {status} where 200 is a file: check the link, and its end")
    if _header(answer, b"content-encoding").lower() not in ("", "identity"):
        raise FetchRefused(f"{shown} comes compressed: serve the file as it is")
    too_large = FetchRefused(f"{shown} holds more than {most} bytes: cut or compress it")
    length = _header(answer, b"content-length")
    if length.isdecimal() and int(length) > most:
        raise too_large
    have = 0
    with network.errors():  # here, so that none is mistaken for an error of the disk
        for piece in answer.iter_stream():
            have += len(piece)
            if have > most:
                raise too_large
            if cancel():
                raise Cancelled(f"cancelled while {shown} was being fetched")
            yield piece


def _header(answer: httpcore.Response, name: bytes) -> str:
    """The first header of this name, or ""; bytes that aren't UTF-8 are replaced."""
    found = (value for key, value in answer.headers if key.lower() == name)
    return next(found, b"").decode("utf-8", "replace")
