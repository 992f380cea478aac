"""Workers, webhooks and housekeeping, with a runner that takes no time."""

import json
import os
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

import pytest
import torch
from sqlalchemy import select, update

from latentsync import LipSync, devices
from latentsync.errors import BackendUnavailable, Cancelled, NoFaceFound
from latentsync.service.housekeeping import Housekeeping
from latentsync.service.settings import Settings
from latentsync.service.signing import check_webhook
from latentsync.service.storage import LocalStorage
from latentsync.service.tables import Delivery, File, Task
from latentsync.service.webhooks import MAX_TRIES, Webhooks
from latentsync.service.worker import load
from tests.service import ELSEWHERE, SUBMIT, house, joined


@pytest.fixture
def home(tmp_path):
    with house(tmp_path, private_addresses=True, lease_seconds=0.2) as made:
        yield made


@pytest.fixture
def ann(home):
    return home.person("ann")


def stored(home):
    return {entry.key for entry in home.service.files.storage.entries()}


def scratch(home):
    return list((home.service.settings.data / "scratch").iterdir())


def test_nothing_to_do(home):
    assert not home.worker().work_once()


def test_a_bad_clip_fails_one_task_with_its_reason(home, ann):
    def sees_no_face(video, *_):
        raise NoFaceFound(f"no face in {video}; show one")

    task, next_one = ann.speaking(), ann.speaking()
    home.worker(sees_no_face).work_once()
    assert ann.result(task)["status"] == "failed"
    assert ann.result(task)["error"] == "no face in video; show one"  # not where it lay
    home.worker().work_once()
    assert ann.result(next_one)["status"] == "completed"
    assert scratch(home) == []


def test_an_unforeseen_error_fails_the_task_and_ends_the_worker(home, ann):
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access")

    task = ann.speaking()
    with pytest.raises(RuntimeError):
        home.worker(broken).work_once()
    assert "illegal memory access" in ann.result(task)["error"]


def test_a_full_disk_fails_one_task_and_leaves_nothing(home, ann, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    task = ann.speaking()
    before = stored(home)
    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "put", full)
        home.worker().work_once()
    assert "No space left" in ann.result(task)["error"]
    home.service.files.sweep()
    assert stored(home) == before
    again = ann.speaking()
    home.worker().work_once()
    assert ann.result(again)["status"] == "completed"


def test_no_room_for_the_output_fails_the_task(tmp_path):
    with house(tmp_path, max_stored_bytes=12) as small:
        ann = small.person()
        task = ann.speaking()
        small.worker().work_once()
        assert "don't fit" in ann.result(task)["error"]


def test_a_file_at_no_address_fails_the_task(home, ann):
    task = ann.submit(video="http://127.0.0.1:1/face.mp4", audio=ann.upload(b"voice"))
    home.worker().work_once()
    assert ann.result(task)["status"] == "failed"
    assert "127.0.0.1" in ann.result(task)["error"]


def test_a_private_address_fails_the_task(tmp_path, receiver):
    listening = receiver()
    with house(tmp_path) as strict:
        ann = strict.person()
        task = ann.submit(video=listening.url, audio=ann.upload(b"voice"))
        strict.worker().work_once()
        assert "no public address" in ann.result(task)["error"]
    assert listening.got == []


def test_an_upload_that_expired_meanwhile_fails_the_task(home, ann):
    task = ann.speaking()
    with home.service.database.writing() as session:
        session.execute(update(File).values(expires_at=1.0))
    home.service.files.sweep()
    home.worker().work_once()
    assert "upload it again" in ann.result(task)["error"]


def until_stopped(*given):
    cancelled = given[-1]
    while not cancelled():
        time.sleep(0.005)
    raise Cancelled("cancelled")


def test_a_cancelled_run_stops_and_stays_cancelled(home, ann):
    task = ann.speaking()

    def cancelled_by_its_owner(*given):
        ann.post(f"/api/v3/predictions/{task['id']}/cancel")
        until_stopped(*given)

    home.worker(cancelled_by_its_owner).work_once()
    assert ann.result(task)["status"] == "cancelled"
    assert scratch(home) == []


def test_a_result_of_what_was_deleted_is_dropped(home, ann):
    task = ann.speaking()
    before = stored(home)

    def deleted_by_its_owner(*given):
        ann.post("/api/v3/predictions/delete", {"ids": [task["id"]]})
        joined(*given[:4], lambda: False)

    home.worker(deleted_by_its_owner).work_once()
    home.service.files.sweep()
    assert stored(home) == before


def test_a_worker_that_is_told_to_stop_gives_its_task_back(home, ann):
    task, stopping = ann.speaking(), threading.Event()

    def told(*given):
        stopping.set()
        until_stopped(*given)

    home.worker(told, stopping).work()
    assert ann.result(task)["status"] == "created"
    home.worker().work_once()
    assert ann.result(task)["status"] == "completed"


def test_a_long_run_keeps_its_lease(home, ann):
    task = ann.speaking()

    def slow(*given):
        time.sleep(0.5)  # more than two leases
        assert home.lease() is None
        joined(*given)

    home.worker(slow).work_once()
    assert ann.result(task)["status"] == "completed"


def test_a_stale_worker_changes_nothing(home, ann):
    """It was silent for so long that another had finished the task before it spoke again."""
    task = ann.speaking()

    def overtaken(*given):
        with home.service.database.writing() as session:
            session.execute(update(Task).values(lease_until=0.0))
        home.worker().work_once()
        given[2].write_bytes(b"late")

    home.worker(overtaken).work_once()
    assert ann.result(task)["status"] == "completed"
    assert home.client.get(ann.result(task)["outputs"][0]).content == b"face+voice0"
    home.service.files.sweep()
    assert len(stored(home)) == 3


def test_what_a_killed_worker_had_stored_goes_when_another_finished(home, ann, tmp_path):
    task, files = ann.speaking(), home.service.files
    lease = home.lease(-1)
    (tmp_path / "late").write_bytes(b"late")
    late = files.reserve_output(ann.key.id, lease.id, lease.fence, 4)
    files.storage.put(late.name, tmp_path / "late")  # and here it was killed
    home.worker().work_once()
    assert files.sweep() == 1
    assert len(stored(home)) == 3
    assert home.client.get(ann.result(task)["outputs"][0]).content == b"face+voice0"


def test_housekeeping_removes_what_is_old(home, ann):
    kept, old = ann.speaking(), ann.speaking()
    while home.worker().work_once():
        pass
    with home.service.database.writing() as session:
        session.execute(update(Task).where(Task.id == old["id"]).values(ended_at=1.0))
        inputs = (old["input"]["video"], old["input"]["audio"])
        names = [urlsplit(address).path.removeprefix("/files/") for address in inputs]
        session.execute(update(File).where(File.name.in_(names)).values(expires_at=1.0))
    while Housekeeping(home.front)._sweep():
        pass
    assert ann.get(old["urls"]["get"]).status_code == 404
    assert home.client.get(ann.result(kept)["outputs"][0]).status_code == 200
    with home.service.database.reading() as session:
        assert stored(home) == set(session.scalars(select(File.name)))
    assert len(stored(home)) == 3


def test_what_no_row_knows_is_removed(home, ann, tmp_path):
    ann.upload(b"face")
    before, storage = stored(home), home.service.files.storage
    stray = tmp_path / "stray"
    stray.write_bytes(b"late")
    storage.put("somebody/late.mp4", stray)
    assert home.service.files.sweep_unknown() == 0  # it may be about to be known
    path = storage.path("somebody/late.mp4")
    long_ago = time.time() - 7200
    os.utime(path, (long_ago, long_ago))
    assert home.service.files.sweep_unknown() == 1
    assert stored(home) == before


class Receiver(HTTPServer):
    """Takes webhooks, and answers each with the next of `statuses`."""

    def __init__(self, statuses):
        self.statuses, self.got = list(statuses), []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                receiver.got.append(({}, b""))

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                names = {name.lower(): value for name, value in self.headers.items()}
                receiver.got.append((names, body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/hook"


@pytest.fixture
def receiver():
    made = []

    def make(*statuses):
        made.append(Receiver(statuses))
        return made[0]

    yield make
    for one in made:
        one.shutdown()
        one.server_close()


def caller(home, **more):
    front = home.front
    allow = {"allow_private": True} | more
    return Webhooks(home.service.database, front.signer, front.described, **allow)


def hooked(ann, url):
    body = ELSEWHERE | {"video": ann.upload(b"face"), "audio": ann.upload(b"voice")}
    return ann.client.post(SUBMIT, params={"webhook": url}, json=body, headers=ann.headers)


def test_a_webhook_is_signed_and_repeated_until_heard(home, ann, receiver):
    listening = receiver(500, 503, 200)
    task = hooked(ann, listening.url).json()["data"]
    webhooks = caller(home, first_pause=0.0)
    assert not webhooks.deliver_one()  # nothing has ended
    home.worker().work_once()
    while webhooks.deliver_one():
        pass
    assert len(listening.got) == 3
    secret = ann.get("/api/v3/webhook/secret").json()["data"]["secret"]
    for headers, body in listening.got:
        check_webhook(secret, headers, body)
        told = json.loads(body)
        assert (told["id"], told["status"]) == (task["id"], "completed")
        assert told["input"]["video"] == task["input"]["video"]
        assert home.client.get(told["outputs"][0]).content == b"face+voice0"
    assert len({headers["webhook-id"] for headers, _ in listening.got}) == 1
    with home.service.database.reading() as session:
        delivery = session.scalars(select(Delivery)).one()
    assert (delivery.next_at, delivery.error, delivery.tries) == (None, "", 3)
    assert delivery.delivered_at


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_webhook_that_is_sent_elsewhere_is_not_delivered(home, ann, receiver, status):
    listening = receiver(status, 200)
    hooked(ann, listening.url)
    home.worker().work_once()
    webhooks = caller(home, first_pause=0.0)
    assert webhooks.deliver_one()
    with home.service.database.reading() as session:
        delivery = session.scalars(select(Delivery)).one()
    assert (delivery.delivered_at, delivery.error) == (None, f"HTTP {status}")
    assert webhooks.deliver_one()  # again, to the same address
    assert len(listening.got) == 2


def test_a_deaf_receiver_is_given_up(home, ann, receiver):
    listening = receiver(*[500] * 99)
    hooked(ann, listening.url)
    home.worker().work_once()
    webhooks = caller(home, first_pause=0.0)
    while webhooks.deliver_one():
        pass
    assert len(listening.got) == MAX_TRIES


def test_between_tries_it_waits_longer_and_longer(home, ann, receiver):
    hooked(ann, receiver(500, 500).url)
    home.worker().work_once()
    pauses = []
    for _ in range(2):
        assert caller(home).deliver_one()
        with home.service.database.writing() as session:
            delivery = session.scalars(select(Delivery)).one()
            pauses.append(delivery.next_at - time.time())
            delivery.next_at = 0.0
    assert pauses == pytest.approx([10.0, 20.0], abs=5)


def test_a_private_webhook_is_refused(tmp_path, receiver):
    listening = receiver()
    with house(tmp_path) as strict:
        ann = strict.person()
        assert hooked(ann, "ftp://example.org").status_code == 400
        assert hooked(ann, listening.url).status_code == 200  # only who calls it looks it up
        strict.worker().work_once()
        assert caller(strict, allow_private=False).deliver_one()
        with strict.service.database.reading() as session:
            assert session.scalars(select(Delivery)).one().next_at is None
    assert listening.got == []


def test_the_application_keeps_house(home, ann, receiver):
    listening = receiver()
    hooked(ann, listening.url)
    home.worker().work_once()
    with home.client:
        while not listening.got:
            time.sleep(0.01)


@pytest.mark.parametrize(
    ("device", "asked", "compiled"),
    [("cpu", None, False), ("cpu", True, True), ("cuda", None, True), ("cuda", False, False)],
)
def test_kernels_are_made_where_they_are_worth_it(monkeypatch, device, asked, compiled):
    given = []
    monkeypatch.setattr(devices, "choose", lambda *_: (torch.device(device), torch.float32))
    monkeypatch.setattr(LipSync, "load", lambda *_, **facts: given.append(facts["compile"]))
    load(Settings(compile=asked))
    assert given == [compiled]


def test_without_a_compiler_a_gpu_works_unless_kernels_were_asked_for(monkeypatch):
    given = []

    def loaded(*_, compile=False, **__):  # noqa: A002
        given.append(compile)
        if compile:
            raise BackendUnavailable("no compiler")

    monkeypatch.setattr(devices, "choose", lambda *_: (torch.device("cuda"), torch.float32))
    monkeypatch.setattr(LipSync, "load", loaded)
    load(Settings())
    assert given == [True, False]
    with pytest.raises(BackendUnavailable, match="no compiler"):
        load(Settings(compile=True))
