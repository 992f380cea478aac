"""Fetching weights, against a stand-in for the hub on this machine."""

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple
from zipfile import ZIP_DEFLATED, ZipFile

import pytest
from huggingface_hub import constants

from latentsync import cli
from latentsync.errors import OptionError, WeightsError, WeightsMismatch
from latentsync.runtime import fetching, locks, transfer
from latentsync.runtime.downloads import SETS, Download
from latentsync.runtime.fetching import fetch, fetch_set
from latentsync.runtime.locks import locked_file
from scripts import download_weights
from tests.hub import hub_server

CONTENT = bytes(range(256)) * 4096  # 1 MiB
SHA256 = hashlib.sha256(CONTENT).hexdigest()
STEP = 1 << 17  # bytes
ON_HUB = "/owner/net/resolve/main/deep/net.pt"


@pytest.fixture
def hub():
    with hub_server() as server:
        yield server


@pytest.fixture(autouse=True)
def settings(hub, tmp_path, monkeypatch):
    """The hub's library in this process: its endpoint is the stand-in, its cache is empty."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    place = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(transfer, "PAUSE_SECONDS", 0)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "weights"


def on_hub(content=CONTENT, **changes):
    sha256 = hashlib.sha256(content).hexdigest()
    item = Download("place/net.pt", "owner/net", "deep/net.pt", "MIT", len(content), sha256)
    return replace(item, **changes)


def elsewhere(hub, **changes):
    return on_hub(source=f"{hub.url}/net.pt", file="", **changes)


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def leave_part(item, folder, content):
    """What a transfer that ended early leaves behind."""
    part = fetching._staging(item, folder)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(content)
    return part


def in_child(item, folder, **environment):
    """Start to fetch in a process of its own, where the hub's library reads the environment."""
    code = (
        "import json, sys; from pathlib import Path\n"
        "from latentsync.errors import LatentSyncError\n"
        "from latentsync.runtime.downloads import Download\n"
        "from latentsync.runtime.fetching import fetch\n"
        "try: print(fetch(Download(**json.loads(sys.argv[1])), Path(sys.argv[2])))\n"
        "except LatentSyncError as error: print(type(error).__name__, error)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(asdict(item)), str(folder)],
        env=os.environ | {"HF_HOME": str(folder.parent / "hf")} | environment,
        stdout=subprocess.PIPE,
        text=True,
    )


def said_by(child):
    with child:
        return child.communicate(timeout=120)[0].strip()


# ---- from the hub --------------------------------------------------------------------------------


def test_from_the_hub_by_way_of_its_cdn(hub, folder, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with hub_server() as cdn:
        cdn.put("/blob", CONTENT)
        # Another host for the client, which must not be told the token.
        elsewhere = cdn.url.replace("127.0.0.1", "localhost")
        hub.put(ON_HUB, CONTENT, redirect=f"{elsewhere}/blob?signature=short-lived")
        assert fetch(on_hub(), folder) == folder / "place/net.pt"
        assert {token for _, _, _, token in cdn.asked} == {None}
    assert (folder / "place/net.pt").read_bytes() == CONTENT
    assert {token for _, _, _, token in hub.asked} == {"Bearer hf_secret"}
    assert files_below(folder) == ["place/net.pt"]


@pytest.mark.slow
def test_the_environment_names_endpoint_and_token(hub, folder):
    hub.put(ON_HUB, CONTENT)
    child = in_child(on_hub(), folder, HF_ENDPOINT=hub.url, HF_TOKEN="hf_mine")  # noqa: S106
    assert said_by(child) == str(folder / "place/net.pt")
    assert {token for _, _, _, token in hub.asked} == {"Bearer hf_mine"}


def test_a_transfer_from_the_hub_that_broke_off_is_resumed_by_the_next_run(
    hub, folder, monkeypatch
):
    monkeypatch.setattr(transfer, "MAX_ATTEMPTS", 0)
    hub.put(ON_HUB, CONTENT, breaks=[3 * STEP, 6 * STEP])
    for _ in range(2):
        with pytest.raises(WeightsError, match=r"IncompleteRead.*run it again"):
            fetch(on_hub(), folder)
        assert not (folder / "place/net.pt").exists()
    fetch(on_hub(), folder)
    assert (folder / "place/net.pt").read_bytes() == CONTENT
    assert hub.gets() == [0, 3 * STEP, 6 * STEP]
    assert files_below(folder) == ["place/net.pt"]


def test_a_run_resumes_by_itself_as_long_as_bytes_come(hub, folder):
    hub.put(ON_HUB, CONTENT, breaks=[STEP * n for n in range(1, 8)])
    fetch(on_hub(), folder)
    assert (folder / "place/net.pt").read_bytes() == CONTENT
    assert hub.gets() == [STEP * n for n in range(8)]


def test_a_run_gives_up_where_none_come(hub, folder):
    served = hub.put(ON_HUB, CONTENT, breaks=[STEP] * 99)
    with pytest.raises(WeightsError, match="run it again"):
        fetch(on_hub(), folder)
    assert hub.gets() == [0] + [STEP] * transfer.MAX_ATTEMPTS
    served.breaks.clear()
    fetch(on_hub(), folder)
    assert hub.gets()[-1] == STEP


def test_busy_servers_are_asked_again(hub, folder):
    hub.put(ON_HUB, CONTENT, statuses=[503, 429, 500])
    assert fetch(on_hub(), folder).read_bytes() == CONTENT


def test_the_pause_that_a_server_asks_for_is_kept_within_reason(hub, folder, monkeypatch):
    slept = []
    monkeypatch.setattr(transfer.time, "sleep", slept.append)
    served = hub.put("/net.pt", CONTENT, statuses=[429], headers={"Retry-After": "7"})
    fetch(elsewhere(hub), folder)
    served.statuses, served.headers = [503], {"Retry-After": "86400"}
    (folder / "place/net.pt").unlink()
    fetch(elsewhere(hub), folder)
    assert slept == [7, transfer.MAX_PAUSE_SECONDS]


def test_a_part_that_is_whole_costs_no_transfer(hub, folder):
    """A server answers 416 to a range from its very end."""
    hub.put(ON_HUB, CONTENT)
    leave_part(on_hub(), folder, CONTENT)
    assert fetch(on_hub(), folder).read_bytes() == CONTENT
    assert not hub.gets()


@pytest.mark.parametrize("left", [CONTENT + b"more", b"x" * len(CONTENT)], ids=["long", "other"])
def test_a_part_of_something_else_is_fetched_anew(hub, folder, left):
    hub.put(ON_HUB, CONTENT)
    leave_part(on_hub(), folder, left)
    if len(left) == len(CONTENT):
        with pytest.raises(WeightsMismatch, match="it was removed; try again"):
            fetch(on_hub(), folder)
    fetch(on_hub(), folder)
    assert (folder / "place/net.pt").read_bytes() == CONTENT


def test_a_server_that_takes_no_notice_of_ranges(hub, folder):
    hub.put(ON_HUB, CONTENT, ranges=False)
    leave_part(on_hub(), folder, CONTENT[:STEP])
    assert fetch(on_hub(), folder).read_bytes() == CONTENT
    assert hub.gets() == [STEP]


def test_a_server_that_compresses_what_should_not_be(hub, folder):
    hub.put(ON_HUB, CONTENT, zipped=True, headers={"X-Linked-Size": str(len(CONTENT))})
    assert fetch(on_hub(), folder).read_bytes() == CONTENT
    (folder / "place/net.pt").unlink()
    leave_part(on_hub(), folder, CONTENT[:2000])
    assert fetch(on_hub(), folder).read_bytes() == CONTENT


def test_a_server_that_does_not_say_how_much_there_is(hub, folder):
    hub.put("/net.pt", CONTENT, sized=False, breaks=[STEP])
    assert fetch(elsewhere(hub), folder).read_bytes() == CONTENT
    assert hub.gets() == [0, STEP]


def test_a_page_in_place_of_the_file_costs_nothing_that_came(hub, folder):
    """As the sign-in pages of hotels and companies do."""
    hub.put("/net.pt", b"<html>sign in</html>", ranges=False)
    part = leave_part(elsewhere(hub), folder, CONTENT[:STEP])
    with pytest.raises(WeightsMismatch, match="has 20 bytes, not 1048576"):
        fetch(elsewhere(hub), folder)
    assert part.read_bytes() == CONTENT[:STEP]


def test_a_stream_without_an_end_is_cut(hub, folder):
    hub.put("/net.pt", CONTENT * 2, sized=False)
    with pytest.raises(WeightsMismatch, match="more than 1048576 bytes"):
        fetch(elsewhere(hub), folder)
    assert not files_below(folder)


def test_a_file_that_was_replaced_is_refused_before_it_is_fetched(hub, folder):
    hub.put(ON_HUB, CONTENT[::-1])
    with pytest.raises(WeightsMismatch, match=r"owner/net now has a deep/net\.pt of 1048576 bytes"):
        fetch(on_hub(), folder)
    assert not hub.gets()
    assert not files_below(folder)


def test_a_wrong_hash_is_refused_and_nothing_stays(hub, folder):
    hub.put(ON_HUB, CONTENT[:-1] + b"x", etag="0" * 40)
    with pytest.raises(WeightsMismatch, match=r"place/net\.pt from owner/net has sha256"):
        fetch(on_hub(), folder)
    assert not files_below(folder)


# ---- what is said --------------------------------------------------------------------------------


def refusal(item, folder):
    """The one line with which it ends."""
    with pytest.raises(WeightsError) as caught:
        fetch(item, folder)
    line = str(caught.value)
    assert "\n" not in line
    return line


GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model owner/net is restricted."}
PRIVATE = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}
TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}


@pytest.mark.parametrize(
    ("status", "headers", "hint"),
    [
        (401, GATED, "Access to model owner/net is restricted."),
        (403, GATED, "Access to model owner/net is restricted."),
        (404, PRIVATE, "private or gated repo"),
        (401, TOKEN, "Invalid credentials in Authorization header"),
        (403, {}, "token"),
    ],
)
def test_a_refusal_keeps_the_hubs_hint_and_names_the_token(hub, folder, status, headers, hint):
    hub.put(ON_HUB, status=status, headers=headers)
    line = refusal(on_hub(), folder)
    assert line.startswith(f"place/net.pt can't be fetched from owner/net ({status} ") or (
        str(status) in line
    )
    assert hint in line
    assert "accept the terms" in line
    assert "$HF_TOKEN or by `hf auth login`" in line
    assert "network" not in line
    assert "Request ID" not in line


def test_a_file_the_hub_does_not_have(folder):
    line = refusal(on_hub(), folder)
    assert line.startswith("place/net.pt can't be fetched from owner/net (404 ")
    assert "Entry Not Found" in line
    assert line.endswith(f"; put the file at {folder / 'place/net.pt'} yourself")


def test_a_refusal_elsewhere(hub, folder):
    line = refusal(elsewhere(hub), folder)
    assert "404" in line
    assert line.endswith(f"; put the file at {folder / 'place/net.pt'} yourself")
    assert len(hub.asked) == 1


def test_no_network(folder, monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    place = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", place)
    for item in (on_hub(), on_hub(source="http://127.0.0.1:9/net.pt", file="")):
        line = refusal(item, folder)
        assert line.startswith("place/net.pt can't be fetched")
        assert "check the network" in line


@pytest.mark.parametrize("name", ["gfpgan", "codeformer"])
def test_without_internet_the_file_its_place_and_the_way_to_it_are_said(folder, monkeypatch, name):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(fetching, "_check_room", lambda *_: None)
    for variable in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    (item,) = SETS[name]
    with pytest.raises(WeightsError) as caught:
        fetch_set(name, folder)
    line = str(caught.value)
    assert line.startswith(f"{item.target} can't be fetched from https://github.com/")
    assert "Connection refused); check the network" in line
    assert "Max retries" not in line
    assert f"run `latentsync download {name}` again" in line
    assert line.endswith(
        f"or fetch {item.source} on another machine and put the file at {folder / item.target}"
    )


def in_the_hubs_cache(tmp_path, content):
    """As huggingface_hub lays it out."""
    repository = tmp_path / "hf/models--owner--net"
    file = repository / "snapshots" / ("c" * 40) / "deep/net.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("c" * 40)


@pytest.mark.parametrize("offline", [False, True])
def test_what_the_hubs_cache_holds_is_not_fetched(hub, folder, tmp_path, monkeypatch, offline):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    in_the_hubs_cache(tmp_path, CONTENT)
    assert fetch(on_hub(), folder).read_bytes() == CONTENT
    assert not hub.asked
    assert files_below(folder) == ["place/net.pt"]


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT[::-1]], ids=["short", "other"])
def test_another_file_in_the_hubs_cache_is_passed_over(hub, folder, tmp_path, content):
    in_the_hubs_cache(tmp_path, content)
    hub.put(ON_HUB, CONTENT)
    assert fetch(on_hub(), folder).read_bytes() == CONTENT


def test_offline_is_said_and_no_mirror_is_asked(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.put("/mirror", CONTENT)
    line = refusal(on_hub(mirror=f"{hub.url}/mirror"), folder)
    assert line == (
        "place/net.pt is not in the hub's cache, and $HF_HUB_OFFLINE forbids to fetch it; unset "
        f"that, or fetch deep/net.pt of https://huggingface.co/owner/net on another machine and "
        f"put the file at {folder / 'place/net.pt'}"
    )
    assert not hub.asked


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_no_room_is_said_before_anything_is_fetched(hub, folder, monkeypatch):
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: Usage(10**9, 10**9, 2_000))
    line = refusal(on_hub(size=75_572_083), folder)
    assert "needs 75.6 MB and 268.4 MB to spare" in line
    assert "has 2.0 kB free; make room" in line
    assert "5.1 GB" in refusal(on_hub(size=5_072_222_488), folder)
    assert "812 bytes" in refusal(on_hub(size=812), folder)
    assert not hub.asked


def test_what_has_come_takes_no_more_room(hub, folder, monkeypatch):
    spare = fetching.SPARE_BYTES + 100_000
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: Usage(10**9, 10**9, spare))
    hub.put(ON_HUB, CONTENT)
    leave_part(on_hub(), folder, CONTENT[:-100_000])
    assert fetch(on_hub(), folder).read_bytes() == CONTENT


def test_a_disk_that_fills_up_keeps_what_came(hub, folder, monkeypatch):
    def full(_url, file, **_):
        file.write(CONTENT[:100])
        raise OSError(errno.ENOSPC, "No space left on device")

    hub.put(ON_HUB, CONTENT)
    monkeypatch.setattr(fetching, "transfer", full)
    assert refusal(on_hub(), folder) == (
        "the disk is full while fetching place/net.pt; make room and run it again"
    )
    monkeypatch.undo()
    assert fetching._staging(on_hub(), folder).read_bytes() == CONTENT[:100]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENAMETOOLONG])
def test_a_folder_that_cannot_be_written(folder, monkeypatch, number):
    def refuse(path, *_args, **_kwargs):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(transfer.os, "open", refuse)
    line = refusal(on_hub(), folder)
    assert line.startswith(str(folder / ".incoming-"))
    assert f"can't be written ({os.strerror(number)})" in line
    assert "--weights or $LATENTSYNC_WEIGHTS" in line
    assert "network" not in line


def test_a_place_that_cannot_be_written_is_said_before_the_transfer(hub, folder, monkeypatch):
    monkeypatch.setattr(fetching.os, "access", lambda path, _: path != folder / "place")
    line = refusal(on_hub(), folder)
    assert line.startswith(f"{folder / 'place'} can't be written (Permission denied)")
    assert not hub.asked


def test_a_folder_in_the_way(hub, folder):
    (folder / "place/net.pt").mkdir(parents=True)
    line = refusal(on_hub(), folder)
    assert line == f"{folder / 'place/net.pt'} is a folder, not the file net.pt; move it away"
    assert not hub.asked


def test_a_file_in_the_way(hub, folder):
    folder.mkdir()
    (folder / "place").touch()
    assert refusal(on_hub(), folder).startswith(f"{folder / 'place'} is a file where ")
    assert not hub.asked


@pytest.mark.parametrize("target", ["place/net.pt", "a/deeper/place/net.pt"])
def test_a_file_in_the_weights_folder_s_place(hub, folder, target):
    folder.touch()
    assert refusal(on_hub(target=target), folder).startswith(f"{folder} is a file where ")
    assert not hub.asked


# ---- from elsewhere ------------------------------------------------------------------------------


def zipped(**members):
    out = io.BytesIO()
    with ZipFile(out, "w", ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"pack/{name}.onnx", content)
    return out.getvalue()


NOISE = b"".join(hashlib.sha256(bytes([i, j])).digest() for i in range(128) for j in range(128))
MEMBERS = {"net": NOISE, "other": b"other"}  # 512 KiB that don't shrink


def in_zip(hub, name="net"):
    content = MEMBERS[name]
    sha256 = hashlib.sha256(content).hexdigest()
    target = f"{name}.onnx"
    return Download(target, f"{hub.url}/pack.zip", target, "MIT", len(content), sha256)


def test_two_files_of_a_zip_cost_one_transfer(hub, folder, monkeypatch):
    hub.put("/pack.zip", zipped(**MEMBERS))
    monkeypatch.setitem(SETS, "pack", (in_zip(hub), in_zip(hub, "other")))
    seen = []
    fetch_set("pack", folder, seen.append)
    assert [item.target for item in seen] == ["net.onnx", "other.onnx"]
    assert (folder / "net.onnx").read_bytes() == NOISE
    assert len(hub.asked) == 1
    assert sorted(p.name for p in folder.iterdir()) == ["net.onnx", "other.onnx"]
    fetch_set("pack", folder, seen.append)
    assert len(seen) == 4
    assert len(hub.asked) == 1


def test_a_broken_transfer_of_a_zip_is_resumed(hub, folder, monkeypatch):
    monkeypatch.setattr(transfer, "MAX_ATTEMPTS", 0)
    hub.put("/pack.zip", zipped(**MEMBERS), breaks=[STEP])
    with pytest.raises(WeightsError, match="run it again"):
        fetch(in_zip(hub), folder)
    assert not (folder / "net.onnx").exists()
    fetch(in_zip(hub), folder)
    assert (folder / "net.onnx").read_bytes() == NOISE
    assert hub.gets() == [0, STEP]


@pytest.mark.parametrize(
    "content",
    [b"<html>sign in</html>", zipped(another=NOISE), zipped(net=NOISE[::-1])],
    ids=["no zip", "no member", "another member"],
)
def test_what_is_not_the_zip_is_removed(hub, folder, content):
    hub.put("/pack.zip", content)
    with pytest.raises(WeightsMismatch, match="it was removed; try again"):
        fetch(in_zip(hub), folder)
    assert not files_below(folder)
    hub.put("/pack.zip", zipped(**MEMBERS))
    assert fetch(in_zip(hub), folder).read_bytes() == NOISE


def test_a_part_of_a_zip_that_is_another_now(hub, folder):
    """The server answers 416 to what lies beyond its end."""
    hub.put("/pack.zip", zipped(**MEMBERS))
    leave_part(in_zip(hub), folder, b"x" * 10**6)
    assert fetch(in_zip(hub), folder).read_bytes() == NOISE
    assert hub.gets() == [10**6, 0]


def test_a_mirror_helps_out_and_goes_on_where_the_first_source_ended(hub, folder):
    hub.put("/mirror/net.pt", CONTENT)
    item = on_hub(mirror=f"{hub.url}/mirror/net.pt")
    leave_part(item, folder, CONTENT[:1000])
    assert fetch(item, folder).read_bytes() == CONTENT
    assert hub.gets() == [1000]


def test_where_no_mirror_helps_the_publishers_answer_is_told(hub, folder, caplog):
    hub.put(ON_HUB, status=401, headers=GATED)
    line = refusal(on_hub(mirror=f"{hub.url}/mirror"), folder)
    assert "owner/net is restricted" in line
    assert any("/mirror failed as well: 404" in message for message in caplog.messages)


# ---- what is there, and who else fetches ---------------------------------------------------------


def test_what_is_there_stays(hub, folder):
    (folder / "place").mkdir(parents=True)
    (folder / "place/net.pt").write_bytes(CONTENT[::-1])  # `verify` is for its hash
    assert fetch(on_hub(), folder).read_bytes() == CONTENT[::-1]
    assert not hub.asked


def test_a_file_of_another_size_is_named_and_left_alone(hub, folder):
    (folder / "place").mkdir(parents=True)
    (folder / "place/net.pt").write_bytes(CONTENT[:1000])
    line = refusal(on_hub(), folder)
    assert line.startswith(
        f"{folder / 'place/net.pt'} has 1000 bytes, but the published file has 1048576; delete it"
    )
    assert (folder / "place/net.pt").read_bytes() == CONTENT[:1000]
    assert not hub.asked


@pytest.mark.parametrize("mask", [0o022, 0o002, 0o077])
def test_files_have_the_mode_that_the_umask_gives(hub, folder, mask):
    hub.put(ON_HUB, CONTENT)
    hub.put("/pack.zip", zipped(**MEMBERS))
    before = os.umask(mask)
    try:
        modes = [fetch(item, folder).stat().st_mode & 0o777 for item in (on_hub(), in_zip(hub))]
    finally:
        os.umask(before)
    assert modes == [0o666 & ~mask] * 2


def test_a_set_leaves_alone_what_other_transfers_left(hub, folder, monkeypatch):
    hub.put(ON_HUB, CONTENT)
    other = on_hub(CONTENT[::-1], target="other.pt")
    part = leave_part(other, folder, CONTENT[:100])
    hub.put("/pack.zip", zipped(**MEMBERS))
    monkeypatch.setitem(SETS, "both", (on_hub(), in_zip(hub)))
    fetch_set("both", folder)
    assert part.read_bytes() == CONTENT[:100]


def test_two_at_once_make_one_transfer(hub, folder):
    """The second waits for the first."""
    served = hub.put("/net.pt", CONTENT, hold=threading.Event())
    threads = [threading.Thread(target=fetch, args=(elsewhere(hub), folder)) for _ in range(2)]
    threads[0].start()
    assert served.held.wait(60)
    threads[1].start()
    while threads[1].is_alive() and not waits_for_lock(fetching._staging(elsewhere(hub), folder)):
        time.sleep(0.01)
    served.hold.set()
    for thread in threads:
        thread.join(60)
    assert (folder / "place/net.pt").read_bytes() == CONTENT
    assert hub.gets() == [0]
    assert files_below(folder) == ["place/net.pt"]


def waits_for_lock(path):
    """Whether somebody waits for a file's lock, as the kernel tells (proc(5), /proc/locks)."""
    inode = f":{path.stat().st_ino} "
    lines = Path("/proc/locks").read_text().splitlines()
    return any("->" in line and inode in line for line in lines)


def test_another_set_goes_on_meanwhile(hub, folder):
    served = hub.put("/net.pt", CONTENT, hold=threading.Event())
    hub.put(ON_HUB, CONTENT[::-1])
    thread = threading.Thread(target=fetch, args=(elsewhere(hub), folder))
    thread.start()
    assert served.held.wait(60)
    other = on_hub(CONTENT[::-1], target="other.pt")
    assert fetch(other, folder).read_bytes() == CONTENT[::-1]
    served.hold.set()
    thread.join(60)
    assert (folder / "place/net.pt").read_bytes() == CONTENT


def test_a_lock_is_taken_again_where_the_file_was_moved_meanwhile(tmp_path):
    path, got = tmp_path / "deep/part", []

    def second():
        with locked_file(path) as file:
            got.append(file.read())

    with locked_file(path) as file:
        file.write(b"whole")
        thread = threading.Thread(target=second)
        thread.start()
        while thread.is_alive() and not waits_for_lock(path):
            time.sleep(0.01)
        path.rename(tmp_path / "moved")
    thread.join(60)
    assert got == [b""]
    assert [p.name for p in tmp_path.iterdir()] == ["moved"]  # no empty file, no empty folder


def test_a_file_system_without_locks_is_said(hub, folder, monkeypatch, caplog):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    hub.put(ON_HUB, CONTENT)
    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    assert fetch(on_hub(), folder).read_bytes() == CONTENT
    assert any("let one process at a time write it" in message for message in caplog.messages)


@pytest.mark.slow
def test_a_killed_download_is_taken_up_by_the_one_that_waits(hub, folder):
    served = hub.put(ON_HUB, CONTENT, hold=threading.Event())
    first = in_child(on_hub(), folder, HF_ENDPOINT=hub.url)
    assert served.held.wait(120)
    part = fetching._staging(on_hub(), folder)
    while part.stat().st_size == 0:  # what the server sent has arrived
        assert first.poll() is None
        time.sleep(0.02)
    second = in_child(on_hub(), folder, HF_ENDPOINT=hub.url)
    while not waits_for_lock(part):
        assert second.poll() is None
        time.sleep(0.02)
    came = part.stat().st_size
    os.kill(first.pid, signal.SIGKILL)
    assert said_by(first) == ""
    served.hold.set()
    assert said_by(second) == str(folder / "place/net.pt")
    assert (folder / "place/net.pt").read_bytes() == CONTENT
    assert hub.gets()[0] == 0
    assert came <= hub.gets()[-1] <= len(CONTENT)
    assert files_below(folder) == ["place/net.pt"]


def test_unknown_names_are_refused(folder):
    with pytest.raises(OptionError, match=r"'v9'; it must be one of v1\.6, v1\.5, buffalo_l"):
        fetch_set("v9", folder)


def test_progress_counts_the_bytes_of_the_file(hub, folder, monkeypatch):
    hub.put(ON_HUB, CONTENT)
    leave_part(on_hub(), folder, CONTENT[:1000])
    monkeypatch.setitem(SETS, "one", (on_hub(),))
    told = []
    fetch_set("one", folder, progress=lambda *one: told.append(one))
    counts = [done for _, done, _ in told]
    assert counts == sorted(counts)
    assert counts[0] == 1000  # before anything comes
    assert told[-1] == (on_hub(), len(CONTENT), len(CONTENT))


def test_the_table_is_sound():
    items = {item.target: item for items in SETS.values() for item in items}
    for item in items.values():
        assert item.licence
        assert not item.target.startswith("/")
        assert item.size > 0
        assert len(bytes.fromhex(item.sha256)) == 32
    assert len({item.sha256 for item in items.values()}) == len(items)
    assert {"v1.6", "v1.5", "buffalo_l", "yunet", "train", "eval"} <= set(SETS)
    assert any("non-commercial" in item.licence for item in SETS["v1.6"])
    assert "OpenRAIL++" in items["v1.6/latentsync_unet.pt"].licence


# ---- the commands --------------------------------------------------------------------------------


@pytest.fixture
def latentsync(monkeypatch, capsys):
    """Runs the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["latentsync", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, *capsys.readouterr()

    return run


def test_the_command_names_each_file_and_its_licence(hub, folder, latentsync, monkeypatch):
    hub.put(ON_HUB, CONTENT)
    monkeypatch.setitem(SETS, "yunet", (on_hub(),))
    for _ in range(2):  # the second time it is there
        code, stdout, stderr = latentsync("download", "yunet", "--weights", folder)
        assert (code, stderr) == (0, "")
        assert stdout == f"{folder / 'place/net.pt'}   licence: MIT\n"
    assert hub.gets() == [0]


def test_the_command_fails_in_one_line(hub, folder, latentsync, monkeypatch):
    hub.put(ON_HUB, status=401, headers=GATED)
    monkeypatch.setitem(SETS, "yunet", (on_hub(),))
    code, stdout, stderr = latentsync("download", "yunet", "--weights", folder)
    assert (code, stdout) == (1, "")
    assert stderr.startswith(
        "latentsync: error: place/net.pt can't be fetched from owner/net (401 "
    )
    assert stderr.count("\n") == 1


def test_the_script_that_bakes_an_image_fails_in_one_line(hub, folder, monkeypatch):
    monkeypatch.setenv("LATENTSYNC_WEIGHTS", str(folder))
    monkeypatch.setitem(SETS, "yunet", (on_hub(),))
    monkeypatch.setattr(sys, "argv", ["download_weights.py", "yunet"])
    with pytest.raises(SystemExit, match=r"^download_weights: place/net\.pt can't be fetched"):
        download_weights.main()
    hub.put(ON_HUB, CONTENT)
    download_weights.main()
    assert (folder / "place/net.pt").read_bytes() == CONTENT
