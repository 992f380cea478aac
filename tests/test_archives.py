"""Zips from outside: what is taken, what is passed over, what is refused and how that is said."""

import stat
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

import pytest

from latentsync.errors import InputError, WeightsError
from latentsync.runtime import archives
from latentsync.runtime.archives import fetch_model, pack, unpack

CLIPS, WANTED = {".mp4", ".mov"}, "a zip of clips"


def write_zip(path, *entries, content=b"film" * 100):
    with ZipFile(path, "w", ZIP_DEFLATED) as zipped:
        for entry in entries:
            zipped.writestr(entry, content)
    return path


def link(name):
    entry = ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


def files_below(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_clips_are_taken_wherever_they_lie_and_nothing_else(tmp_path):
    archive = write_zip(
        tmp_path / "me", "1.mp4", "me/", "me/my clip é.mp4", "me/deep/2.MOV", "me/notes.txt",
        "__MACOSX/me/._1.mp4", "__MACOSX/5.mp4", "me/._2.mp4", ".trash/3.mp4",
        "me/.hidden.mp4", link(".old/4.mp4"),
    )  # fmt: skip
    found = unpack(archive, tmp_path / "out", CLIPS, WANTED)
    assert {str(path.relative_to(tmp_path / "out")) for path in found} == files_below(
        tmp_path / "out"
    )
    assert files_below(tmp_path / "out") == {"1.mp4", "me/my clip é.mp4", "me/deep/2.MOV"}
    assert found == sorted(found)
    assert {path.read_bytes() for path in found} == {b"film" * 100}


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "none of its 0 entries ends in .mov, .mp4"),
        (["a.txt", "b.jpg", ".c.mp4"], "none of its 3 entries ends in .mov, .mp4"),
        (["1.mp4", "../evil.mp4"], "its entry '../evil.mp4' lies outside of it"),
        (["1.mp4", "me/../../evil.mp4"], "its entry 'me/../../evil.mp4' lies outside of it"),
        (["1.mp4", "/root/evil.mp4"], "its entry '/root/evil.mp4' lies outside of it"),
        (["1.mp4", link("me/evil.mp4")], "its entry 'me/evil.mp4' is a link"),
        (["1.mp4", link("evil")], "its entry 'evil' is a link"),
        (["1.mp4", "1.mp4/2.mp4"], "Not a directory"),
        ([f"{'x' * 300}.mp4"], "File name too long"),
        ([f"{i}.mp4" for i in range(4)], "it unpacks to 4 files of 0.0 GB, but at most 3 of"),
    ],
)
def test_what_is_refused_is_said_in_one_line(tmp_path, monkeypatch, entries, said):
    monkeypatch.setattr(archives, "MAX_FILES", 3)
    archive = write_zip(tmp_path / "in.zip", *entries)
    folder = tmp_path / "a/b/c"
    with pytest.raises(InputError) as caught:
        unpack(archive, folder, CLIPS, WANTED)
    line = str(caught.value)
    assert line.startswith(f"'{archive}' can't be unpacked ({said}")
    assert line.endswith("; give a zip of clips")
    assert "\n" not in line
    assert not {name for name in files_below(tmp_path) if "evil" in name}


def test_what_is_no_zip(tmp_path):
    for file, said in (("absent", "No such file"), ("", "Is a directory"), ("text", "not a zip")):
        (tmp_path / "text").write_text("no zip")
        with pytest.raises(InputError, match=rf"can't be unpacked \(.*{said}.*give a zip of clips"):
            unpack(tmp_path / file, tmp_path / "out", CLIPS, WANTED)


def test_damaged_and_locked_zips(tmp_path):
    whole = write_zip(tmp_path / "in.zip", "1.mp4").read_bytes()
    payload = len("1.mp4") + 30
    damaged = whole[:payload] + b"\xff" * 4 + whole[payload + 4 :]
    locked = whole.replace(b"PK\3\4\x14\0\0\0", b"PK\3\4\x14\0\1\0")
    locked = locked.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0")
    for content, said in ((damaged, "invalid"), (locked, "password required"), (whole[:60], "zip")):
        (tmp_path / "bad.zip").write_bytes(content)
        with pytest.raises(InputError, match=rf"can't be unpacked \(.*{said}.*give a zip of clips"):
            unpack(tmp_path / "bad.zip", tmp_path / "out", CLIPS, WANTED)


def test_no_more_is_unpacked_than_was_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    bomb = write_zip(tmp_path / "bomb.zip", "1.mp4", content=b"\0" * 100_000)
    with pytest.raises(InputError, match="it unpacks to 1 files of"):
        unpack(bomb, tmp_path / "out", CLIPS, WANTED)
    assert not files_below(tmp_path / "out")
    liar = bomb.read_bytes().replace(struct.pack("<L", 100_000), struct.pack("<L", 10))
    bomb.write_bytes(liar)
    with pytest.raises(InputError, match="can't be unpacked"):
        unpack(bomb, tmp_path / "out", CLIPS, WANTED)
    assert (tmp_path / "out/1.mp4").stat().st_size <= 10


@pytest.fixture
def site(tmp_path):
    """A web server of a folder: the folder, and its address."""

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    folder = tmp_path / "site"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_packed_model_is_found_again(folders, site, tmp_path):
    folder, url = site
    pack(folders.model, folder / "mine.zip")
    write_zip(folder / "again.zip", *(f"mine/{p.name}" for p in folders.model.iterdir()))
    wanted = {path.name: path.read_bytes() for path in folders.model.iterdir()}
    for i, source in enumerate((folder / "mine.zip", f"{url}/mine.zip?signature={'x' * 500}")):
        place = tmp_path / str(i)
        place.mkdir()
        found = fetch_model(str(source), place)
        assert {path.name: path.read_bytes() for path in found.iterdir()} == wanted
    assert fetch_model(str(folders.model), tmp_path) == folders.model
    nested = fetch_model(str(folder / "again.zip"), tmp_path / "nested")
    assert {path.name for path in nested.iterdir()} == set(wanted)


def test_what_is_no_model(site, tmp_path):
    folder, url = site
    write_zip(folder / "clips.zip", "1.mp4")
    write_zip(folder / "two.zip", "a/config.json", "b/config.json")
    for source, kind, said in (
        (folder / "absent.zip", InputError, "can't be unpacked (No such file or directory)"),
        (folder / "clips.zip", InputError, "none of its 1 entries ends in .json, .safetensors"),
        (folder / "two.zip", InputError, "two.zip' holds 2 config.json; give the zip of a model"),
        (f"{url}/absent.zip", WeightsError, "absent.zip' can't be fetched (404 Client Error"),
        ("s3://bucket/mine.zip", WeightsError, "'s3://bucket/mine.zip' can't be fetched ("),
        ("http://[", WeightsError, "'http://[' can't be fetched ("),
    ):
        with pytest.raises(kind) as caught:
            fetch_model(str(source), tmp_path)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "config.json and .safetensors files" in str(caught.value)
