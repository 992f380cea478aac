"""Fetching weights, against a stand-in for the hub on this machine."""

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from zipfile import ZipFile

import pytest

from latentsync import downloads
from latentsync.downloads import SETS, Download, fetch, fetch_set
from latentsync.errors import OptionError, WeightsError, WeightsMismatch

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Hub(ThreadingHTTPServer):
    """Serves `files` by path, with ranges; breaks a transfer off where `break_at` says, once."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.files, self.break_at, self.asked = {}, {}, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        content = self.server.files.get(self.path)
        asked = self.headers.get("Range")
        self.server.asked.append((self.command, self.path, asked))
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if asked:
            last = len(content) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(content)}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", "c" * 40)
        self.end_headers()
        if not body:
            return
        stop = self.server.break_at.pop(self.path, len(content))
        self.wfile.write(content[start:stop])
        self.close_connection = stop < len(content)

    def log_message(self, *_args):
        pass


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def on_hub(**changes):
    item = Download("place/net.pt", "owner/net", "deep/net.pt", "MIT", len(CONTENT), SHA256)
    return replace(item, **changes)


def start_of(asked):
    return int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0


def in_child(item, folder, **environment):
    """Fetch in a process of its own: the hub's library reads its settings when it is imported."""
    code = (
        "import json, sys; from latentsync.downloads import Download, fetch;"
        "from latentsync.errors import LatentSyncError; from pathlib import Path\n"
        "try: print(fetch(Download(**json.loads(sys.argv[1])), Path(sys.argv[2])))\n"
        "except LatentSyncError as error: print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(asdict(item)), str(folder)],
        env=os.environ | {"HF_HOME": str(folder / "hf"), "HF_HUB_DISABLE_XET": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout.strip()


def test_from_the_hub_at_its_endpoint(hub, tmp_path):
    hub.files["/owner/net/resolve/main/deep/net.pt"] = CONTENT
    said = in_child(on_hub(), tmp_path, HF_ENDPOINT=hub.url)
    assert said == str(tmp_path / "place/net.pt")
    assert (tmp_path / "place/net.pt").read_bytes() == CONTENT


def test_a_broken_transfer_from_the_hub_is_resumed(hub, tmp_path):
    path = "/owner/net/resolve/main/deep/net.pt"
    large = hub.files[path] = CONTENT * 24  # the hub's library writes 10 MB at a time
    hub.break_at[path] = 20_000_000
    item = on_hub(size=len(large), sha256=hashlib.sha256(large).hexdigest())
    for _ in range(2):  # the hub's library may resume by itself, or leave it to the next run
        in_child(item, tmp_path, HF_ENDPOINT=hub.url)
    assert (tmp_path / "place/net.pt").read_bytes() == large
    assert any(start_of(asked) > 0 for command, _, asked in hub.asked if command == "GET")


def test_a_wrong_hash_is_refused_and_nothing_stays(hub, tmp_path):
    hub.files["/owner/net/resolve/main/deep/net.pt"] = CONTENT[:-1] + b"x"
    said = in_child(on_hub(), tmp_path, HF_ENDPOINT=hub.url)
    assert said.startswith("WeightsMismatch place/net.pt from owner/net has sha256")
    assert not (tmp_path / "place/net.pt").exists()
    assert not list((tmp_path / ".incoming").rglob("net.pt"))


def test_a_file_the_hub_does_not_have(hub, tmp_path):
    said = in_child(on_hub(), tmp_path, HF_ENDPOINT=hub.url)
    assert said.startswith("WeightsError place/net.pt can't be fetched from owner/net")
    assert "\n" not in said
    assert "put the file at" in said


@pytest.mark.slow
def test_no_network(tmp_path):
    said = in_child(on_hub(), tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert said.startswith("WeightsError place/net.pt can't be fetched")
    assert "\n" not in said
    assert "check the network" in said


def test_offline_takes_what_the_cache_holds(hub, tmp_path):
    hub.files["/owner/net/resolve/main/deep/net.pt"] = CONTENT
    code = "from huggingface_hub import hf_hub_download; hf_hub_download('owner/net','deep/net.pt')"
    environment = os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}
    subprocess.run(
        [sys.executable, "-c", code], env=environment | {"HF_ENDPOINT": hub.url}, check=True
    )
    hub.asked.clear()
    said = in_child(on_hub(), tmp_path, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    assert said == str(tmp_path / "place/net.pt")
    assert not hub.asked


def zipped(**members):
    out = io.BytesIO()
    with ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"pack/{name}.onnx", content)
    return out.getvalue()


def in_zip(hub, name="net"):
    content = {"net": CONTENT, "other": b"other"}[name]
    sha256 = hashlib.sha256(content).hexdigest()
    return Download(f"{name}.onnx", f"{hub.url}/pack.zip", f"{name}.onnx", "MIT", 10, sha256)


def test_two_files_of_a_zip_cost_one_transfer(hub, tmp_path, monkeypatch):
    hub.files["/pack.zip"] = zipped(net=CONTENT, other=b"other")
    monkeypatch.setitem(SETS, "pack", (in_zip(hub), in_zip(hub, "other")))
    seen = []
    fetch_set("pack", tmp_path, seen.append)
    assert [item.target for item in seen] == ["net.onnx", "other.onnx"]
    assert (tmp_path / "net.onnx").read_bytes() == CONTENT
    assert len(hub.asked) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.onnx", "other.onnx"]


def test_a_broken_transfer_from_elsewhere_is_resumed(hub, tmp_path):
    hub.files["/pack.zip"] = zipped(net=CONTENT)
    hub.break_at["/pack.zip"] = 400_000
    with pytest.raises(WeightsError, match="run it again"):
        fetch(in_zip(hub), tmp_path)
    assert not (tmp_path / "net.onnx").exists()
    fetch(in_zip(hub), tmp_path)
    assert (tmp_path / "net.onnx").read_bytes() == CONTENT
    assert 300_000 < start_of(hub.asked[-1][2]) <= 400_000


def test_no_zip_where_one_should_be(hub, tmp_path):
    hub.files["/pack.zip"] = b"<html>sign in</html>"
    with pytest.raises(WeightsMismatch, match="not the zip"):
        fetch(in_zip(hub), tmp_path)
    hub.files["/pack.zip"] = zipped(net=CONTENT)
    assert fetch(in_zip(hub), tmp_path).read_bytes() == CONTENT  # the page was not kept


def test_no_room_is_said_before_anything_is_fetched(hub, tmp_path):
    with pytest.raises(WeightsError, match=r"needs 1000000\.0 GB.*make room"):
        fetch(on_hub(source=f"{hub.url}/net", file="", size=10**15), tmp_path)
    assert not hub.asked


def test_a_disk_that_fills_up(hub, tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "_from_url", full)
    with pytest.raises(WeightsError, match="the disk is full while fetching"):
        fetch(on_hub(source=f"{hub.url}/net"), tmp_path)


def test_a_mirror_helps_out(hub, tmp_path):
    hub.files["/mirror/net.pt"] = CONTENT
    item = on_hub(mirror=f"{hub.url}/mirror/net.pt")
    assert in_child(item, tmp_path, HF_ENDPOINT=hub.url) == str(tmp_path / "place/net.pt")
    assert (tmp_path / "place/net.pt").read_bytes() == CONTENT


def test_what_is_there_stays(tmp_path):
    (tmp_path / "place").mkdir()
    (tmp_path / "place/net.pt").write_bytes(b"mine")
    assert fetch(on_hub(), tmp_path).read_bytes() == b"mine"


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(OptionError, match=r"'v9'; it must be one of v1\.6, v1\.5, buffalo_l"):
        fetch_set("v9", tmp_path)


def test_the_table_is_sound():
    for item in (item for items in SETS.values() for item in items):
        assert item.licence
        assert not item.target.startswith("/")
        assert item.sha256 is None or len(item.sha256) == 64
    assert {"v1.6", "v1.5", "buffalo_l", "yunet", "train", "eval"} <= set(SETS)
    assert any("non-commercial" in item.licence for item in SETS["v1.6"])
