"""A web server on this machine that answers as the hub and its CDN do, and as broken ones do."""

import gzip
import hashlib
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

__all__ = ["Served", "hub_server"]


@dataclass
class Served:
    """What one address answers with."""

    content: bytes = b""
    ranges: bool = True  # whether it heeds a Range header
    breaks: list[int] = field(default_factory=list)  # bytes after which each next answer breaks off
    statuses: list[int] = field(default_factory=list)  # of the next answers; then 200 or 206
    status: int | None = None  # of all answers, instead of 200 or 206
    headers: dict[str, str] = field(default_factory=dict)
    redirect: str | None = None  # address of the content; this one answers 302
    zipped: bool = False  # whether it compresses whatever is asked for
    sized: bool = True  # whether it says how long the answer is
    etag: str | None = None  # instead of the content's sha256
    hold: threading.Event | None = None  # waited for in the middle of the content
    held: threading.Event = field(default_factory=threading.Event)  # set when that begins


class Hub(ThreadingHTTPServer):
    """Serves `files` by path, and keeps (method, path, Range, Authorization) of each request."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.asked = {}, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def put(self, path, content=b"", **behaviour):
        self.files[path] = Served(content, **behaviour)
        return self.files[path]

    def gets(self):
        """The first byte that each GET asked for."""
        starts = [asked for method, _, asked, _ in self.asked if method == "GET"]
        return [int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0 for asked in starts]


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, *, body):
        path = self.path.split("?")[0]
        asked, token = self.headers.get("Range"), self.headers.get("Authorization")
        if not path.startswith("/api/"):  # what huggingface_hub asks once a process about itself
            self.server.asked.append((self.command, path, asked, token))
        served = self.server.files.get(path)
        if served is None:
            return self.refuse(404, {"X-Error-Code": "EntryNotFound"})
        if served.status or (body and served.statuses):
            return self.refuse(served.status or served.statuses.pop(0), served.headers)
        etag = served.etag or hashlib.sha256(served.content).hexdigest()
        if served.redirect:
            linked = {"X-Linked-Size": str(len(served.content)), "X-Linked-ETag": f'"{etag}"'}
            return self.refuse(
                302, {"Location": served.redirect, "X-Repo-Commit": "c" * 40} | linked
            )
        content = gzip.compress(served.content) if served.zipped else served.content
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked and served.ranges else 0
        if start and start >= len(content):
            return self.refuse(416, {"Content-Range": f"bytes */{len(content)}"})
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": "c" * 40} | served.headers
        if served.zipped:
            headers["Content-Encoding"] = "gzip"
        if served.sized:
            headers["Content-Length"] = str(len(content) - start)
        else:
            headers["Connection"] = "close"
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.begin(206 if start else 200, headers)
        if body:
            self.send(served, content, start)
        return None

    def send(self, served, content, start):
        stop = served.breaks.pop(0) if served.breaks else len(content)
        if served.hold:
            self.wfile.write(content[start : (start + stop) // 2])
            self.wfile.flush()
            served.held.set()
            served.hold.wait(60)
            start = (start + stop) // 2
        self.wfile.write(content[start:stop])
        self.close_connection = stop < len(content) or not served.sized

    def refuse(self, status, headers):
        self.begin(status, {"Content-Length": "0"} | headers)

    def begin(self, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # the client was killed, or had enough
            self.close_connection = True

    def log_message(self, *_args):
        pass


@contextmanager
def hub_server():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        for served in server.files.values():
            if served.hold:
                served.hold.set()
        server.shutdown()
        server.server_close()
        thread.join()
