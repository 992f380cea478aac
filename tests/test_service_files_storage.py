"""Where files are kept: the same promises by a folder and by a stand-in for S3."""

import contextlib
import errno
import hashlib
import hmac
import os
import resource
import time
import tracemalloc
import urllib.parse
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentsync.errors import BackendUnavailable, InputError, OptionError, OutputError
from latentsync.service.outages import DiskFull
from latentsync.service.storage import (
    LocalStorage,
    NotStored,
    S3Storage,
    Stored,
    check_key,
    open_storage,
    write_whole,
)

CONTENT = bytes(range(256)) * 9000  # 2.3 MB: more than one piece
KEY = "tasks/8c1f/output.mp4"


@pytest.fixture(scope="module")
def endpoint():
    from moto.server import ThreadedMotoServer

    variables = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    variables |= {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        bucket = open_storage(f"s3://clips/?endpoint=http://{host}:{port}&region=us-east-1")
        bucket._client.create_bucket(Bucket="clips")
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint, request):
    return open_storage(
        f"s3://clips/{request.node.name.split('[')[0]}/a?endpoint={endpoint}&region=us-east-1"
    )


@pytest.fixture(params=["folder", pytest.param("s3", marks=pytest.mark.slow)])
def storage(request, tmp_path):
    if request.param == "s3":
        return request.getfixturevalue("bucket")
    return open_storage(tmp_path / "kept")


@pytest.fixture
def clip(tmp_path):
    path = tmp_path / "clip"
    path.write_bytes(CONTENT)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def kept(storage, key):
    return b"".join(storage.read(key))


def test_what_is_put_is_kept(storage, clip, tmp_path):
    before = time.time()
    storage.put(KEY, clip)
    assert clip.read_bytes() == CONTENT
    assert kept(storage, KEY) == CONTENT
    assert storage.size(KEY) == len(CONTENT)
    (entry,) = storage.entries()
    assert (entry.key, entry.size) == (KEY, len(CONTENT))
    assert before - 2 < entry.modified < time.time() + 2
    write_whole(storage.read(KEY), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == CONTENT


def test_a_file_is_read_in_pieces(storage, clip):
    storage.put(KEY, clip)
    assert all(0 < len(piece) <= 1 << 20 for piece in storage.read(KEY))


def test_what_is_put_again_is_replaced(storage, clip, tmp_path):
    storage.put(KEY, clip)
    (tmp_path / "new").write_bytes(b"")
    storage.put(KEY, tmp_path / "new")
    assert kept(storage, KEY) == b""
    assert [entry.size for entry in storage.entries()] == [storage.size(KEY)] == [0]


def test_all_entries_are_told(storage, clip, tmp_path):
    (tmp_path / "small").write_bytes(b"abc")
    storage.put(KEY, clip)
    storage.put("tasks/8c1f", tmp_path / "small")  # as good a key, beside the other
    assert sum(entry.size for entry in storage.entries()) == len(CONTENT) + 3
    storage.delete(KEY)
    storage.delete(KEY)
    assert [entry.key for entry in storage.entries()] == ["tasks/8c1f"]


def test_what_is_not_there(storage, tmp_path):
    for ask in (
        lambda: storage.size(KEY),
        lambda: storage.path(KEY),
        lambda: kept(storage, KEY),
        lambda: write_whole(storage.read(KEY), tmp_path / "back"),
    ):
        with pytest.raises(NotStored, match=KEY):
            ask()
    assert not (tmp_path / "back").exists()


def test_keys_lead_nowhere_else(storage, clip):
    too_long = "k" * 201
    for key in (
        "../clip",
        "/etc/passwd",
        "a/../../clip",
        "",
        ".hidden",
        "a//b",
        "a\\b",
        "a,b",
        too_long,
    ):
        for ask in (
            lambda key=key: storage.put(key, clip),
            lambda key=key: storage.size(key),
            lambda key=key: kept(storage, key),
            lambda key=key: storage.delete(key),
            lambda key=key: storage.path(key),
            lambda key=key: storage.upload_url(key, size=1, seconds=60),
            lambda key=key: storage.download_url(key, name="x", seconds=60),
        ):
            with pytest.raises(InputError, match="can be called"):
                ask()
    assert clip.read_bytes() == CONTENT
    assert list(storage.entries()) == []


# a folder


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text("ab./\\,-_~\x00%é", max_size=8) | st.text(max_size=230), max_size=8))
def test_any_key_is_refused_or_a_file_of_its_own(tmp_path_factory, keys):
    folder = tmp_path_factory.getbasetemp() / "keys"
    storage = LocalStorage(folder)
    good = set()
    for key in keys:
        with contextlib.suppress(InputError):
            check_key(key)
            good.add(key)
    files = {storage._file(key) for key in good}
    assert len(files) == len(good)
    for file in files:
        assert file.parent == folder
        assert not file.name.startswith(".")
        assert len(os.fsencode(file.name)) <= 255
        assert Path(os.path.normpath(file)) == file


def test_a_folder_serves_its_files_itself(tmp_path, clip):
    storage = open_storage(str(tmp_path / "new" / "kept"))
    storage.put(KEY, clip)
    assert storage.path(KEY).read_bytes() == CONTENT
    assert storage.upload_url(KEY, size=1, seconds=60) is None
    assert storage.download_url(KEY, name="clip.mp4", seconds=60) is None
    assert (tmp_path / "new" / "kept").stat().st_mode & 0o077 == 0


def test_strangers_files_are_no_entries(tmp_path, clip):
    storage = open_storage(tmp_path / "kept")
    (tmp_path / "kept" / ".lock").touch()
    (tmp_path / "kept" / "folder").mkdir()
    (tmp_path / "kept" / "link").symlink_to(clip)
    assert list(storage.entries()) == []
    with pytest.raises(NotStored):
        storage.size("folder")


def test_what_killed_writers_left_is_cleared_away(tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    for name, age in ((".old.part", 90_000), (".new.part", 60), ("mine.part", 90_000)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age,) * 2)
    open_storage(folder)
    assert names(folder) == [".new.part", "mine.part"]


@contextlib.contextmanager
def room_for(size):
    """No file of this process may grow beyond `size` bytes, as on a disk that is nearly full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_that_has_no_room_leaves_nothing(tmp_path, clip):
    storage = open_storage(tmp_path / "kept")
    (tmp_path / "small").write_bytes(b"older")
    storage.put(KEY, tmp_path / "small")
    with room_for(1_500_000), pytest.raises(DiskFull, match="File too large"):
        storage.put(KEY, clip)
    assert kept(storage, KEY) == b"older"
    assert len(names(tmp_path / "kept")) == 1


def test_a_full_disk_is_called_so(tmp_path):
    def pieces():
        yield b"abc"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OutputError, match=r"No space left on device\); make room"):
        write_whole(pieces(), tmp_path / "clip")
    assert names(tmp_path) == []


def test_files_do_not_pass_through_memory(tmp_path):
    storage = open_storage(tmp_path / "kept")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(64 << 20)
    tracemalloc.start()
    storage.put(KEY, tmp_path / "large")
    assert sum(map(len, storage.read(KEY))) == 64 << 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_where_no_folder_can_be(clip):
    with pytest.raises(OutputError, match="another folder"):
        open_storage(clip / "kept")


@pytest.mark.parametrize(
    "where", ["http://a/b", "s3://", "s3:///x", "s3://b/p?bucket=x", "s3://b?endpoint", "s3://[b"]
)
def test_urls_that_are_no_storage(where):
    with pytest.raises(OptionError, match="s3://bucket/prefix"):
        open_storage(where)


# S3


@pytest.mark.slow
def test_large_files_go_in_parts(bucket, tmp_path):
    (tmp_path / "large").write_bytes(CONTENT * 3)
    bucket._parts.multipart_threshold = bucket._parts.multipart_chunksize = 5 << 20
    bucket.put(KEY, tmp_path / "large")
    head = bucket._client.head_object(Bucket="clips", Key=f"{bucket.prefix}{KEY}")
    assert head["ETag"].endswith('-2"')
    assert kept(bucket, KEY) == CONTENT * 3
    assert bucket.path(KEY) is None


@pytest.mark.slow
def test_buckets_are_shared_by_prefix(bucket, endpoint, clip):
    other = S3Storage("clips", f"{bucket.prefix}b", endpoint=endpoint, region="us-east-1")
    other.put(KEY, clip)
    bucket.put(KEY, clip)
    bucket.delete(KEY)
    assert [entry.key for entry in bucket.entries()] == [f"b/{KEY}"]
    assert [entry.key for entry in other.entries()] == [KEY]


def signature(method, url):
    """Of an address, by Amazon's documents (AWS Signature Version 4: query parameters)."""
    parts = urllib.parse.urlsplit(url)
    query = "&".join(sorted(p for p in parts.query.split("&") if "X-Amz-Signature=" not in p))
    asked = dict(urllib.parse.parse_qsl(parts.query))
    lines = (method, parts.path, query, f"host:{parts.netloc}", "", "host", "UNSIGNED-PAYLOAD")
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    scope = asked["X-Amz-Credential"].split("/", 1)[1]
    key = b"AWS4secret"
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = f"AWS4-HMAC-SHA256\n{asked['X-Amz-Date']}\n{scope}\n{digest}"
    return hmac.digest(key, text.encode(), "sha256").hex()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_an_address_is_signed_for_how_it_is_asked(monkeypatch, method):
    pytest.importorskip("boto3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "who")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    bucket = open_storage("s3://clips?endpoint=https://s3.example.org&region=us-east-1")
    url = bucket.download_url(KEY, name="clip.mp4", seconds=60, method=method)
    assert url.endswith(f"X-Amz-Signature={signature(method, url)}")


@pytest.mark.slow
def test_signed_urls(bucket):
    upload = bucket.upload_url(KEY, size=3, seconds=60)
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(upload).query)
    assert query["X-Amz-Expires"] == ["60"]
    assert query["X-Amz-SignedHeaders"] == ["content-length;host"]
    assert httpx.put(upload, content=b"abc").status_code == 200
    answer = httpx.get(bucket.download_url(KEY, name='mein "Vídeo".mp4', seconds=60))
    assert answer.content == b"abc"
    wanted = "attachment; filename*=UTF-8''mein%20%22V%C3%ADdeo%22.mp4"
    assert answer.headers["Content-Disposition"] == wanted


@pytest.mark.slow
def test_many_entries(bucket, monkeypatch, tmp_path):
    (tmp_path / "small").write_bytes(b"abc")
    for number in range(3):
        bucket.put(f"k{number}", tmp_path / "small")
    whole = bucket._client.get_paginator("list_objects_v2")
    pages = whole.paginate(Bucket="clips", Prefix=bucket.prefix, PaginationConfig={"PageSize": 2})
    monkeypatch.setattr(type(whole), "paginate", lambda *_, **__: pages)
    assert [entry.key for entry in bucket.entries()] == ["k0", "k1", "k2"]
    assert sum(entry.size for entry in bucket.entries()) == 9


@pytest.mark.slow
def test_stores_that_refuse(endpoint, clip):
    for ask in (
        lambda it: it.put(KEY, clip),
        lambda it: kept(it, KEY),
        lambda it: list(it.entries()),
        lambda it: it.delete(KEY),
    ):
        with pytest.raises((BackendUnavailable, NotStored)) as refused:
            ask(S3Storage("nobodys", endpoint=endpoint, region="us-east-1"))
        assert len(str(refused.value).splitlines()) == 1


@pytest.mark.slow
def test_stores_that_are_not_there(endpoint, clip, monkeypatch):  # the keys of `endpoint`
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    gone = S3Storage("clips", endpoint="http://127.0.0.1:1", region="us-east-1")
    with pytest.raises(BackendUnavailable, match="endpoint"):
        gone.put(KEY, clip)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(BackendUnavailable, match="credentials"):
        S3Storage("clips", endpoint=endpoint, region="us-east-1").size(KEY)


def test_an_entry_says_what_it_is():
    assert Stored("a", 1, 2.0) == Stored(key="a", size=1, modified=2.0)
