"""What users' URLs may lead to, against servers on this machine and a telephone book of our own."""

import contextlib
import datetime as dt
import socket
import ssl
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from unittest import mock

import pytest

from latentsync.errors import Cancelled, OutputError
from latentsync.service import guarded_http
from latentsync.service.guarded_http import Bounds, FetchError, FetchRefused, fetch, post

HERE = Bounds(seconds=20, allow_private=True)
PUBLIC = "93.184.216.34"
CONTENT = bytes(range(256)) * 2048  # 512 KiB


class Answer(BaseHTTPRequestHandler):
    """`server.pages` holds, by path, what is done with a handler to answer."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.asked.append((self.path, dict(self.headers)))
        with contextlib.suppress(ConnectionError):
            self.server.pages[self.path.split("?")[0]](self)
        self.close_connection = True

    def do_POST(self):
        self.body = self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_args):
        pass


def says(status=200, body=CONTENT, length=True, **headers):
    def answer(handler):
        handler.send_response(status)
        if length:
            handler.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextlib.contextmanager
def serving(wrap=lambda sock: sock):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    server.socket = wrap(server.socket)
    server.pages, server.asked = {"/clip.mp4": says()}, []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=lambda: server.serve_forever(0.01), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server():
    with serving() as it:
        yield it


class World:
    """Which names there are, which were looked up, and what was connected to."""

    def __init__(self, server):
        self.names, self.looked_up, self.connected = {}, [], []
        self._server = server

    def look_up(self, host, port, **_more):
        self.looked_up.append(host.decode())
        answers = self.names.get(host.decode())
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in found.split()
        ]

    def socket(self, *args):
        connection = socket.socket(*args)
        stand_in = mock.Mock(wraps=connection)
        stand_in.connect = lambda address: self._connect(connection, address)
        return stand_in

    def _connect(self, connection, address):
        self.connected.append(address)
        connection.connect(self._server.server_address)


@pytest.fixture
def world(server, monkeypatch):
    """Every connection ends at `server`, whatever its address, and is written down."""
    it = World(server)
    ours = {"getaddrinfo": it.look_up, "socket": it.socket}
    monkeypatch.setattr(guarded_http, "socket", types.SimpleNamespace(**vars(socket) | ours))
    return it


def left_in(folder):
    return [path.name for path in folder.iterdir()]


# what is fetched


def test_a_file_comes_whole(server, tmp_path):
    target = tmp_path / "clip"
    assert fetch(f"{server.url}/clip.mp4?token=a%20b", target, bounds=HERE) == len(CONTENT)
    assert target.read_bytes() == CONTENT
    assert left_in(tmp_path) == ["clip"]
    path, headers = server.asked[0]
    assert path == "/clip.mp4?token=a%20b"
    assert headers["Accept-Encoding"] == "identity"
    assert headers["Host"] == server.url.removeprefix("http://")


def test_chunks_come_whole(server, tmp_path):
    def chunked(handler):
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")

    server.pages["/chunks"] = chunked
    assert fetch(f"{server.url}/chunks", tmp_path / "clip", bounds=HERE) == 5
    assert (tmp_path / "clip").read_bytes() == b"abcde"


def test_unusual_letters_are_sent_as_browsers_do(server, tmp_path):
    server.pages["/mein%20V%C3%ADdeo.mp4"] = says()
    assert fetch(f" {server.url}/mein Vídeo.mp4#t=3\n", tmp_path / "clip", bounds=HERE)


def test_proxies_of_the_environment_are_not_asked(server, tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetch(f"{server.url}/clip.mp4", tmp_path / "clip", bounds=HERE)


# where it may come from


def test_what_was_checked_is_what_is_connected_to(server, world, tmp_path):
    world.names["media.example"] = [PUBLIC, "127.0.0.1"]  # the second look-up would lead home
    assert fetch("http://Media.example.:8000/clip.mp4", tmp_path / "clip") == len(CONTENT)
    assert world.looked_up == ["media.example"]
    assert world.connected == [(PUBLIC, 8000)]
    assert server.asked[0][1]["Host"] == "media.example:8000"


def test_names_in_other_scripts_are_asked_for_as_registered(world, tmp_path):
    world.names["xn--fa-hia.example"] = [PUBLIC]  # IDNA 2008; the one of 2003 would ask for "fass"
    fetch("http://Faß.example/clip.mp4", tmp_path / "clip")


def test_addresses_of_ipv6_are_named_in_brackets(server, world, tmp_path):
    world.names["2606:4700::1111"] = ["2606:4700::1111"]
    fetch("http://[2606:4700:0::1111]:8000/clip.mp4", tmp_path / "clip")
    assert world.connected == [("2606:4700::1111", 8000)]
    assert server.asked[0][1]["Host"] == "[2606:4700::1111]:8000"


def test_only_the_public_ones_of_many_addresses_are_asked(world, tmp_path):
    world.names["both.example"] = [f"10.0.0.7 {PUBLIC} 127.0.0.1"]
    fetch("http://both.example/clip.mp4", tmp_path / "clip")
    assert world.connected == [(PUBLIC, 80)]


def test_the_next_address_is_asked_when_one_is_dead(world, tmp_path):
    alive = world._connect

    def dead_or_alive(connection, address):
        if address[0] == "93.184.216.1":
            raise ConnectionRefusedError(111, "Connection refused")
        alive(connection, address)

    world._connect = dead_or_alive
    world.names["two.example"] = [f"93.184.216.1 {PUBLIC}"]
    fetch("http://two.example/clip.mp4", tmp_path / "clip")
    assert world.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize("private", ["127.0.0.1", "169.254.169.254", "10.1.2.3", "100.100.100.200"])
def test_private_addresses_are_not_asked(world, tmp_path, private):
    world.names["home.example"] = [private]
    with pytest.raises(FetchRefused, match="no public address") as refused:
        fetch("http://home.example/clip.mp4", tmp_path / "clip")
    assert world.connected == []
    assert private not in str(refused.value)
    assert left_in(tmp_path) == []


def test_outsiders_cannot_tell_a_private_name_from_none(world, tmp_path):
    world.names["db.internal"] = ["10.0.0.5"]
    told = []
    for name in ("db.internal", "no.internal"):
        with pytest.raises(FetchRefused) as refused:
            fetch(f"http://{name}/", tmp_path / "clip")
        told.append(str(refused.value).replace(name, "NAME"))
    assert told[0] == told[1]


def test_private_addresses_are_asked_where_that_is_allowed(world, tmp_path):
    world.names["nas.lan"] = ["192.168.1.20"]
    assert fetch("http://nas.lan/clip.mp4", tmp_path / "clip", bounds=HERE) == len(CONTENT)
    assert world.connected == [("192.168.1.20", 80)]


@pytest.mark.parametrize(
    "location", ["http://127.0.0.1/x", "http://2130706433/x", "//home.example"]
)
def test_redirects_are_checked(server, world, tmp_path, location):
    world.names |= {"media.example": [PUBLIC], "home.example": ["192.168.0.1"]}
    world.names |= {"127.0.0.1": ["127.0.0.1"], "2130706433": ["127.0.0.1"]}
    server.pages["/moved"] = says(302, b"", Location=location)
    with pytest.raises(FetchRefused, match="no public address"):
        fetch("http://media.example/moved", tmp_path / "clip")
    assert world.connected == [(PUBLIC, 80)]


def test_a_name_that_changes_behind_a_redirect_is_checked_again(server, world, tmp_path):
    world.names["media.example"] = [PUBLIC, "127.0.0.1"]
    server.pages["/moved"] = says(307, b"", Location="/clip.mp4")
    with pytest.raises(FetchRefused, match="no public address"):
        fetch("http://media.example/moved", tmp_path / "clip")
    assert world.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://a.example/x", "http://u:p@h/"])
def test_redirects_stay_on_the_web(server, tmp_path, location):
    server.pages["/moved"] = says(301, b"", Location=location)
    with pytest.raises(FetchRefused):
        fetch(f"{server.url}/moved", tmp_path / "clip", bounds=HERE)


def test_redirects_end(server, tmp_path):
    server.pages["/1"] = says(302, b"", Location="/2")
    server.pages["/2"] = says(308, b"", Location="clip.mp4")
    server.pages["/round"] = says(302, b"", Location="/round")
    assert fetch(f"{server.url}/1", tmp_path / "clip", bounds=HERE) == len(CONTENT)
    with pytest.raises(FetchRefused, match="more than 5 times"):
        fetch(f"{server.url}/round", tmp_path / "clip", bounds=HERE)
    assert len(server.asked) == 3 + 6


# what may come


def test_too_much_is_refused_before_it_comes(tmp_path):
    promise = b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n"
    bounds = Bounds(max_bytes=1000, seconds=1, allow_private=True)
    with talking(promise) as place, pytest.raises(FetchRefused, match="more than 1000 bytes"):
        fetch(f"http://{place}/", tmp_path / "clip", bounds=bounds)
    assert left_in(tmp_path) == []


def test_too_much_is_refused_as_it_comes(server, tmp_path):
    server.pages["/no-length"] = says(length=False)
    bounds = Bounds(max_bytes=len(CONTENT) - 1, allow_private=True)
    with pytest.raises(FetchRefused, match="bytes"):
        fetch(f"{server.url}/no-length", tmp_path / "clip", bounds=bounds)
    assert left_in(tmp_path) == []
    bounds = Bounds(max_bytes=len(CONTENT), allow_private=True)
    assert fetch(f"{server.url}/no-length", tmp_path / "clip", bounds=bounds) == len(CONTENT)


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_compressed_answers_are_refused(server, tmp_path, encoding):
    server.pages["/bomb"] = says(Content_Encoding=encoding)
    with pytest.raises(FetchRefused, match="compressed"):
        fetch(f"{server.url}/bomb", tmp_path / "clip", bounds=HERE)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, FetchRefused) for status in (204, 206, 304, 403, 404)),
        *((status, FetchError) for status in (429, 500, 503)),
    ],
)
def test_only_an_answer_of_200_is_a_file(server, tmp_path, status, kind):
    server.pages["/x"] = says(
        status, b"" if status in (204, 304) else b"internal: password=hunter2"
    )
    with pytest.raises(FetchError, match=str(status)) as refused:
        fetch(f"{server.url}/x?token=s3cret", tmp_path / "clip", bounds=HERE)
    assert type(refused.value) is kind
    assert "hunter2" not in str(refused.value)
    assert "s3cret" not in str(refused.value)
    assert left_in(tmp_path) == []


def test_a_broken_transfer_leaves_nothing(server, tmp_path):
    def breaks(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"half")

    server.pages["/broken"] = breaks
    (tmp_path / "clip").write_bytes(b"older")
    with pytest.raises(FetchError, match="broke off"):
        fetch(f"{server.url}/broken", tmp_path / "clip", bounds=HERE)
    assert (tmp_path / "clip").read_bytes() == b"older"
    assert left_in(tmp_path) == ["clip"]


def test_cancelling_leaves_nothing(server, tmp_path):
    with pytest.raises(Cancelled):
        fetch(f"{server.url}/clip.mp4", tmp_path / "clip", bounds=HERE, cancel=lambda: True)
    assert left_in(tmp_path) == []


def test_a_folder_that_is_not_there(server, tmp_path):
    with pytest.raises(OutputError, match="No such file"):
        fetch(f"{server.url}/clip.mp4", tmp_path / "no" / "clip", bounds=HERE)


def test_nobody_there(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(FetchError, match="refused"):
        fetch(f"http://127.0.0.1:{port}/", tmp_path / "clip", bounds=HERE)


# how long it may take


@contextlib.contextmanager
def talking(first, again=b"", read=True):
    """A server that says `first`, and then `again` and again, until nobody listens."""
    ended = threading.Event()

    def talk():
        connection, _ = listener.accept()
        with connection, contextlib.suppress(OSError):
            if read:
                connection.recv(65536)
            connection.sendall(first)
            while not ended.wait(0.01):
                connection.sendall(again)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=talk, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        ended.set()
        thread.join()


@pytest.mark.parametrize(
    ("scheme", "first", "again"),
    [
        ("http", b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        ("http", b"HTTP/1.1 ", b"2"),
        ("http", b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"x"),
        ("http", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        ("http", b"", b""),
        ("https", b"", b""),
    ],
    ids=["headers", "status", "continue", "body", "chunks", "silence", "handshake"],
)
def test_dribbling_ends_at_the_deadline(tmp_path, scheme, first, again):
    seconds = 0.1 if scheme == "http" else 0.5  # reading all certificates comes first
    bounds = Bounds(seconds=seconds, allow_private=True)
    with talking(first, again) as place, pytest.raises(FetchError, match=f"{seconds} s in all"):
        fetch(f"{scheme}://{place}/", tmp_path / "clip", bounds=bounds)
    assert left_in(tmp_path) == []


def test_a_receiver_that_does_not_read_ends_at_the_deadline():
    bounds = Bounds(seconds=0.15, allow_private=True)
    with talking(b"", read=False) as place, pytest.raises(FetchError, match="in all"):
        post(f"http://{place}/", bytes(16 << 20), bounds=bounds)


def test_silence_ends_before_the_deadline(tmp_path, monkeypatch):
    monkeypatch.setattr(guarded_http, "SILENCE_SECONDS", 0.05)
    with talking(b"") as place, pytest.raises(FetchError, match="nothing"):
        fetch(f"http://{place}/", tmp_path / "clip", bounds=HERE)


def test_what_is_no_http_is_not_repeated(tmp_path):
    speaks = pytest.raises(FetchError, match="doesn't speak HTTP")
    with talking(b"SSH-2.0-OpenSSH_9.6 secret\r\n\r\n") as place, speaks as refused:
        fetch(f"http://{place}/", tmp_path / "clip", bounds=HERE)
    assert "SSH" not in str(refused.value)


def test_resolvers_that_fail_are_worth_another_try(monkeypatch, tmp_path):
    failing = mock.Mock(side_effect=socket.gaierror(socket.EAI_AGAIN, "try again"))
    monkeypatch.setattr(guarded_http.socket, "getaddrinfo", failing)
    with pytest.raises(FetchError, match="looked up") as failed:
        fetch("http://a.example/", tmp_path / "clip")
    assert type(failed.value) is FetchError


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Of media.example, signed by itself: the PEM files of it and of its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "media.example")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("media.example")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def secured(certificate, monkeypatch):
    """A server with TLS, its port, and a book in which all names lead to it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    named = []
    context.sni_callback = lambda _socket, name, _context: named.append(name)
    with serving(lambda it: context.wrap_socket(it, server_side=True)) as server:
        server.handle_error = lambda *_: None  # a refused handshake is what some tests want
        server.named = named
        address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", server.server_address)
        monkeypatch.setattr(guarded_http.socket, "getaddrinfo", lambda *_, **__: [address])
        yield server


def test_the_certificate_is_the_names_though_the_address_is_connected_to(
    secured, certificate, monkeypatch, tmp_path
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    fetch("https://media.example/clip.mp4", tmp_path / "clip", bounds=HERE)
    assert (tmp_path / "clip").read_bytes() == CONTENT
    assert secured.named == ["media.example"]
    assert secured.asked[0][1]["Host"] == "media.example"


def test_another_names_certificate_is_refused(secured, certificate, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    with pytest.raises(FetchError, match="Hostname mismatch"):
        fetch("https://other.example/clip.mp4", tmp_path / "clip", bounds=HERE)
    assert secured.asked == []


def test_unknown_certificates_are_refused(secured, tmp_path):
    with pytest.raises(FetchError, match="self-signed"):
        fetch("https://media.example/clip.mp4", tmp_path / "clip", bounds=HERE)
    assert secured.asked == []


# messages


def test_messages_are_posted_once_and_their_status_told(server):
    server.pages |= {"/hook": says(204, b""), "/moved": says(302, b"", Location="/hook")}
    headers = {"Content-Type": "application/json", "webhook-id": "m1"}
    assert post(f"{server.url}/hook", b'{"a":1}', headers=headers, bounds=HERE) == 204
    assert server.asked[0][1]["webhook-id"] == "m1"
    assert server.asked[0][1]["Content-Length"] == "7"
    assert post(f"{server.url}/moved", b"", bounds=HERE) == 302
    assert len(server.asked) == 2


def test_a_receivers_endless_answer_is_not_read():
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"
    with talking(answer, b"x" * 65536) as place:
        assert post(f"http://{place}/", b"{}", bounds=HERE) == 200


def test_endless_headers_are_not_read():
    answer = b"HTTP/1.1 200 OK\r\nX: "
    with talking(answer, b"x" * 65536) as place, pytest.raises(FetchError, match="HTTP"):
        post(f"http://{place}/", b"{}", bounds=HERE)


def test_messages_do_not_go_to_private_addresses(server):
    with pytest.raises(FetchRefused, match="no public address"):
        post(f"{server.url}/hook", b"{}")
    assert server.asked == []
