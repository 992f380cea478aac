"""A file from a user's URL, a message to a user's URL: never into the network that we stand in.

Whoever may name a URL that this machine asks could have it ask what only this machine reaches: the
router, a database, a cloud's metadata. So each name is looked up once, what it leads to is checked,
and that very address is connected to: a name that leads elsewhere a moment later gains nothing, nor
does a redirect, which begins anew, nor any way of writing an address, which the look-up reads as
every program does. Proxies of the environment are not used: they would connect to what nobody
checked. Any port may be asked: users serve files on 8000, and no port of a public host is ours.

Everything between the look-up and the last byte ends at one deadline; the look-up itself has the
resolver's (`man resolv.conf`: 5 s a try).
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

_PORTS = {"http": 80, "https": 443}
_MAX_URL = 8192  # characters; signed URLs with session tokens have some 2000
_SILENCE_SECONDS = 30.0  # how long any one step may take
_REDIRECTS = (301, 302, 303, 307, 308)
_WORTH_A_RETRY = (408, 425, 429)  # and every 5xx

# What is set apart by IANA's registries of special-purpose addresses (RFC 6890 and its successors:
# https://www.iana.org/assignments/iana-ipv4-special-registry, .../iana-ipv6-special-registry).
# Written out, because what `ipaddress` calls global changes between releases of Python.
_SET_APART = [
    ipaddress.ip_network(text)
    for text in (
        # this host; private; carriers' NAT, Alibaba's metadata; loopback; link-local, metadata
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"),
        # private; protocols, Oracle's metadata; examples; 6to4 relays; private
        *("172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16"),
        # benchmarks; examples; examples; multicast; reserved, broadcast
        *("198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4"),
        "168.63.129.16/32",  # public by its number, but Azure's own inside each of its machines
        # protocols, Teredo among them; examples; 6to4; examples
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),
    )
]
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # all that IANA gives out (RFC 4291)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # an IPv4 address as hosts without IPv4 see it


class FetchError(InputError):
    """A URL didn't give what it should; another try may."""


class FetchRefused(FetchError):
    """A URL that isn't asked, or whose answer isn't taken; another try would end the same."""


@dataclass(frozen=True)
class Bounds:
    """Of one exchange with a URL, its redirects included."""

    max_bytes: int = 2 * 2**30
    seconds: float = 600.0
    max_redirects: int = 5
    allow_private: bool = False  # connect to any address; for one's own network, and for tests


DEFAULT_BOUNDS = Bounds()
WEBHOOK_BOUNDS = Bounds(seconds=20.0)


def fetch(
    url: str,
    target: Path,
    *,
    bounds: Bounds = DEFAULT_BOUNDS,
    cancel: Callable[[], bool] = lambda: False,
) -> int:
    """Write what a GET of `url` answers to `target`, whole or not at all; returns its bytes.

    Raises:
        FetchRefused: the URL isn't http(s), holds a password, leads to an address that is not
            public or to too many redirects; the answer is too large, compressed, or a 4xx.
        FetchError: no answer, a broken or a slow one, or a 5xx.
        OutputError: the disk is full, or the folder can't be written.
        Cancelled: `cancel()` said so; it is asked at each piece that comes.
    """
    network = _GuardedNetwork(url, bounds)
    with network.errors(), _answer(network) as answer:
        _check_answer(answer, url, bounds)
        return write_whole(_pieces(answer, network, cancel), target)


def post(
    url: str,
    body: bytes,
    *,
    headers: Mapping[str, str] | None = None,
    bounds: Bounds = WEBHOOK_BOUNDS,
) -> int:
    """POST `body` to `url`; returns the status of the answer, whatever it is, and drops the rest.

    Redirects are not followed: a message is for whoever was named.

    Raises:
        FetchRefused: the URL isn't http(s), or leads to an address that is not public.
        FetchError: no answer in time.
    """
    network = _GuardedNetwork(url, bounds)
    with network.errors(), network.ask("POST", url, headers or {}, body) as answer:
        return answer.status


def check_url(url: str, *, allow_private: bool = True) -> None:
    """Raise FetchRefused for what no network is needed to refuse: when a URL is handed in.

    Args:
        allow_private: whether its host may be an address that isn't public, in any way of writing
            one, or a name of this very machine.
    """
    host = _parsed(url).host.decode()
    if not (allow_private or _may_be_public(host)):
        raise FetchRefused(
            f"{shown_url(url)} leads to a private address: give one that the whole internet reaches"
        )


def host_of(url: str) -> str:
    """The host of a URL, in ASCII; "" where `check_url` would refuse it."""
    try:
        return _parsed(url).host.decode()
    except FetchRefused:
        return ""


def shown_url(url: str) -> str:
    """A URL as messages show it: one line, without what may be secret (password and query)."""
    bare = re.split(r"[?#]", re.sub(r"//[^/?#]*@", "//", url.strip()))[0]
    return repr(bare if len(bare) <= 120 else f"{bare[:117]}...")


def is_public(address: str) -> bool:
    """Whether an address in numbers, of IPv4 or IPv6, belongs to the open internet.

    IPv6 addresses that stand for IPv4 ones aren't, but for those of NAT64 (RFC 6052), which are
    all that hosts without IPv4 ever see: there the inner address counts.
    """
    ip = ipaddress.ip_address(address)
    if ip in _NAT64:
        ip = ipaddress.IPv4Address(ip.packed[-4:])
    if any(ip in network for network in _SET_APART):
        return False
    return ip.version == 4 or ip in _GLOBAL_UNICAST


def _parsed(url: str) -> httpcore.URL:
    """Take a URL apart, once: nothing after this reads it in another way."""
    shown, url = shown_url(url), url.strip()
    if len(url) > _MAX_URL or not url.isprintable():
        raise FetchRefused(f"{shown} is no URL: it is too long, or holds control characters")
    try:
        parts = urlsplit(url)
        scheme, port = parts.scheme, parts.port
        host = _host(parts.hostname or "", bracketed="[" in parts.netloc)
    except ValueError as error:
        raise FetchRefused(f"{shown} is no URL ({error}): give http(s)://host/path") from error
    if scheme not in _PORTS:
        raise FetchRefused(f"{shown} isn't fetched: give a URL with http:// or https://")
    if "@" in parts.netloc:
        raise FetchRefused(f"{shown} comes with a user name: give a URL without, or a signed one")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return httpcore.URL(
        scheme=scheme.encode(),
        host=host.encode(),
        port=_PORTS[scheme] if port is None else port,
        target=quote(target, safe="%/:=&?~+!$,;'@()*[]").encode(),
    )


def _host(host: str, *, bracketed: bool) -> str:
    """A host's name in ASCII, or its address; raises ValueError for what is neither."""
    if bracketed and "%" not in host:  # what comes after % would be one of our network cards
        return str(ipaddress.IPv6Address(host))
    host = host.removesuffix(".")
    if not host.isascii():
        host = idna.encode(host, uts46=True).decode()
    if len(host) > 253 or not re.fullmatch(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*", host):
        raise ValueError("its host is neither a name nor an address")
    return host


def _may_be_public(host: str) -> bool:
    """False for what is known to be private without a look-up."""
    if host == "localhost" or host.endswith(".localhost"):  # RFC 6761, 6.3
        return False
    try:
        found = socket.getaddrinfo(host.encode(), None, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:  # a name
        return True
    return all(is_public(str(address[0])) for *_, address in found)


def _addresses(host: str, port: int, url: str, bounds: Bounds) -> Sequence[tuple[int, Any]]:
    """Socket family and socket address of each place that `host` leads to and that we may ask."""
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
        # One message for both: an outsider shall not learn which names our own network has.
        log.info("%s refused: host %s, %d private addresses", shown_url(url), host, len(found))
        raise FetchRefused(
            f"{shown_url(url)}: its host has no public address; check the name, "
            "or have private ones allowed"
        )
    return usable


class _GuardedNetwork(httpcore.NetworkBackend):
    """Connections of one exchange: to checked addresses only, and all with one deadline."""

    def __init__(self, url: str, bounds: Bounds) -> None:
        self.url, self.bounds = url, bounds
        self._ends = time.monotonic() + bounds.seconds

    def patience(self) -> float:
        """Return how many seconds the next step may take; raises TimeoutError at the deadline."""
        left = self._ends - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return min(left, _SILENCE_SECONDS)

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002  # `patience` knows better
        local_address: str | None = None,  # noqa: ARG002
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,  # noqa: ARG002
    ) -> httpcore.NetworkStream:
        failure: OSError | None = None
        for family, address in _addresses(host, port, self.url, self.bounds):
            connection = socket.socket(family, socket.SOCK_STREAM)
            try:
                connection.settimeout(self.patience())
                connection.connect(address)  # what was checked, in numbers: no second look-up
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
        """One request and its answer, of which nothing but the head is read yet."""
        place = _parsed(url)
        host = f"[{place.host.decode()}]" if b":" in place.host else place.host.decode()
        if place.port != _PORTS[place.scheme.decode()]:
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
        """Turn what a network does into one line, in which nothing of an answer is repeated."""
        shown = shown_url(self.url)
        try:
            yield
        except TimeoutError as error:
            over = time.monotonic() >= self._ends
            took = f"took more than {self.bounds.seconds:g} s in all"
            why = took if over else f"said nothing for {_SILENCE_SECONDS:g} s"
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
    """A connection whose every step is given what is left of the time for all."""

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
    """The answer to a GET, behind its redirects, each of which is checked like the first URL."""
    url = network.url
    for _ in range(network.bounds.max_redirects + 1):
        with network.ask("GET", url, {"Accept-Encoding": "identity"}) as answer:
            location = _header(answer, b"location")
            if answer.status not in _REDIRECTS or not location:
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


def _check_answer(answer: httpcore.Response, url: str, bounds: Bounds) -> None:
    """Raise unless the head of `answer` promises a file that we take."""
    shown, status = shown_url(url), answer.status
    if status != 200:
        again = status >= 500 or status in _WORTH_A_RETRY
        kind = FetchError if again else FetchRefused
        raise kind(f"{shown} answered {status} where 200 is a file: check the link, and its end")
    if _header(answer, b"content-encoding").lower() not in ("", "identity"):
        raise FetchRefused(f"{shown} comes compressed: serve the file as it is")
    length = _header(answer, b"content-length")
    if length.isdecimal() and int(length) > bounds.max_bytes:
        raise FetchRefused(_too_large(url, bounds))


def _pieces(
    answer: httpcore.Response, network: _GuardedNetwork, cancel: Callable[[], bool]
) -> Iterator[bytes]:
    have = 0
    with network.errors():  # here, so that none of them passes for an error of the disk
        for piece in answer.iter_stream():
            have += len(piece)
            if have > network.bounds.max_bytes:
                raise FetchRefused(_too_large(network.url, network.bounds))
            if cancel():
                raise Cancelled(f"cancelled while {shown_url(network.url)} was being fetched")
            yield piece


def _too_large(url: str, bounds: Bounds) -> str:
    return f"{shown_url(url)} holds more than {bounds.max_bytes} bytes: cut or compress it"


def _header(answer: httpcore.Response, name: bytes) -> str:
    """The first header called so, or nothing; bytes that aren't UTF-8 make no valid URL later."""
    found = (value for key, value in answer.headers if key.lower() == name)
    return next(found, b"").decode("utf-8", "replace")
