"""Workers, webhooks and housekeeping, with a runner that takes no time."""

import json
import os
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import urlsplit

import pytest
import torch
from sqlalchemy import select, update

from latentsync import LipSync
from latentsync.errors import (
    BackendUnavailable,
    Cancelled,
    MediaError,
    NoFaceFound,
    with_option,
)
from latentsync.runtime import devices
from latentsync.service import worker
from latentsync.service.background_jobs import BackgroundJobs
from latentsync.service.guarded_http import FetchRefused
from latentsync.service.settings import ServiceSettings
from latentsync.service.signing import check_webhook
from latentsync.service.tables import Delivery, File, Task
from latentsync.service.webhooks import MAX_TRIES, Webhooks
from latentsync.service.worker import load
from tests.service import ELSEWHERE, SUBMIT, house, joined


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(
        worker, "BEATS_PER_LEASE", 600
    )  # in a lease, which no slow machine lets run out
    with house(tmp_path, private_addresses=True) as made:
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


def test_an_unforeseen_error_ends_the_worker_and_the_third_one_the_task(home, ann):
    def broken(*_):
        raise RuntimeError("CUDA error: an illegal memory access")

    task = ann.speaking()
    for _ in range(2):
        with pytest.raises(RuntimeError):
            home.worker(broken).work_once()
        assert (ann.result(task)["status"], ann.result(task)["error"]) == ("created", "")
    with pytest.raises(RuntimeError):
        home.worker(broken).work_once()
    assert ann.result(task)["status"] == "failed"
    assert ann.result(task)["error"] == "3 tries ended by RuntimeError; is the clip too large?"


@pytest.mark.parametrize("error", [MemoryError(), OSError(5, "Input/output error")])
def test_too_little_memory_or_a_broken_disk_is_tried_again(home, ann, error):
    def broken(*_):
        raise error

    task = ann.speaking()
    for status in ("created", "created", "failed"):
        home.worker(broken).work_once()
        assert ann.result(task)["status"] == status
    assert ann.result(task)["error"].startswith(f"3 tries ended by {type(error).__name__}")


def test_room_for_the_output_is_found_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr("latentsync.service.tasks.PAUSE_SECONDS", (0.0, 0.0))
    runs = []

    def run(*given):
        runs.append(1)
        given[2].write_bytes(b"x" * 50)  # much more than its inputs

    with house(tmp_path, max_stored_bytes=34) as small:
        ann = small.person()
        other = ann.upload(b"0123456789" * 2, "other")
        task = ann.speaking()  # 5 bytes are left
        small.worker(run).work_once()
        assert (ann.result(task)["status"], runs) == ("created", [])
        name = urlsplit(other).path.removeprefix("/files/")
        small.service.files.drop([name])
        small.service.files.sweep()
        small.worker(run).work_once()
        done = ann.result(task)
        assert (done["status"], runs) == ("completed", [1])
        assert len(small.client.get(done["outputs"][0]).content) == 50  # no longer to be lost
        assert ann.post("/api/v3/media/uploads", {"size": 1}).status_code == 507


def test_no_room_in_the_keys_share_fails_its_task_before_the_run(home):
    bob, runs = home.person("bob", max_bytes=17), []
    task = bob.speaking()
    home.worker(lambda *_: runs.append(1)).work_once()
    assert runs == []
    assert bob.result(task)["status"] == "failed"
    assert "have 9 of 17 bytes, 9 more don't fit" in bob.result(task)["error"]


def leading_to(address):
    """A look-up in which each name leads there."""
    real = socket.getaddrinfo

    def look_up(host, *given, **more):
        if more.get("flags", 0) & socket.AI_NUMERICHOST:
            return real(host, *given, **more)
        return real(address, *given, **more)

    return look_up


def test_a_private_address_fails_the_task(tmp_path, receiver, monkeypatch):
    listening = receiver()
    monkeypatch.setattr("socket.getaddrinfo", leading_to("127.0.0.1"))
    url = listening.url.replace("127.0.0.1", "inside.example.org")
    with house(tmp_path) as strict:
        ann = strict.person()
        task = ann.submit(video=url, audio=ann.upload(b"voice"))
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

    def until():
        with home.service.database.reading() as session:
            return session.scalars(select(Task)).one().lease_until

    def slow(*given):
        ends = [until()]
        while len(ends) < 3:
            time.sleep(0.01)
            ends += [until()] if until() > ends[-1] else []
        joined(*given)

    home.worker(slow).work_once()
    assert ann.result(task)["status"] == "completed"


def run_out(home):
    """Let the lease of every task run out now."""
    with home.service.database.writing() as session:
        session.execute(update(Task).values(lease_until=0.0))


def test_a_stale_worker_changes_nothing(home, ann):
    """It was silent for so long that another had finished the task before it spoke again."""
    task = ann.speaking()

    def overtaken(*given):
        run_out(home)
        while not home.worker().work_once():
            run_out(home)  # a heartbeat came between
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
    late = files.reserve_output(lease, 4)
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
    while BackgroundJobs(home.context)._sweep():
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


def deliver_one(webhooks):
    """Whether a delivery was due; it was tried."""
    claimed = webhooks.claim()
    if claimed is not None:
        webhooks.deliver(*claimed)
    return claimed is not None


def caller(home, **more):
    context = home.context
    allow = {"allow_private": True} | more
    return Webhooks(home.service.database, context.signer, context.webhook_body, **allow)


def hooked(ann, url):
    body = ELSEWHERE | {"video": ann.upload(b"face"), "audio": ann.upload(b"voice")}
    return ann.client.post(SUBMIT, params={"webhook": url}, json=body, headers=ann.headers)


def test_a_webhook_is_signed_and_repeated_until_heard(home, ann, receiver):
    listening = receiver(500, 503, 200)
    task = hooked(ann, listening.url).json()["data"]
    webhooks = caller(home, first_pause=0.0)
    assert not deliver_one(webhooks)  # nothing has ended
    home.worker().work_once()
    while deliver_one(webhooks):
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
    assert deliver_one(webhooks)
    with home.service.database.reading() as session:
        delivery = session.scalars(select(Delivery)).one()
    assert (delivery.delivered_at, delivery.error) == (None, f"HTTP {status}")
    assert deliver_one(webhooks)  # again, to the same address
    assert len(listening.got) == 2


def test_a_deaf_receiver_is_given_up(home, ann, receiver):
    listening = receiver(*[500] * 99)
    hooked(ann, listening.url)
    home.worker().work_once()
    webhooks = caller(home, first_pause=0.0)
    while deliver_one(webhooks):
        pass
    assert len(listening.got) == MAX_TRIES


def test_between_tries_it_waits_longer_and_longer(home, ann, receiver):
    hooked(ann, receiver(500, 500).url)
    home.worker().work_once()
    pauses = []
    for _ in range(2):
        assert deliver_one(caller(home))
        with home.service.database.writing() as session:
            delivery = session.scalars(select(Delivery)).one()
            pauses.append(delivery.next_at - time.time())
            delivery.next_at = 0.0
    assert pauses == pytest.approx([10.0, 20.0], abs=5)


PRIVATE = [
    *("127.0.0.1", "localhost", "a.localhost", "10.1.2.3", "169.254.169.254", "[::1]", "[::]"),
    *("127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "[::ffff:10.0.0.1]", "[fd00::1]"),
    *("127.0.0.1.", "LOCALHOST", "\uff11\uff12\uff17.0.0.1"),
]


@pytest.mark.parametrize("host", PRIVATE)
def test_a_private_address_is_refused_when_it_is_handed_in(tmp_path, host):
    url = f"http://{host}/x"
    with house(tmp_path) as strict:
        ann = strict.person()
        assert hooked(ann, "ftp://example.org").status_code == 400
        for answer in (
            hooked(ann, url),
            ann.post(SUBMIT, ELSEWHERE | {"video": url}),
            ann.post(SUBMIT, ELSEWHERE | {"audio": url}),
        ):
            assert answer.status_code == 400
            assert "private address" in answer.json()["message"]
        assert ann.get("/api/v3/predictions").json()["data"]["total"] == 0


def test_a_name_that_leads_to_a_private_address_is_not_called(tmp_path, receiver, monkeypatch):
    listening = receiver()
    monkeypatch.setattr("socket.getaddrinfo", leading_to("127.0.0.1"))
    with house(tmp_path) as strict:
        ann = strict.person()
        url = listening.url.replace("127.0.0.1", "inside.example.org")
        task = hooked(ann, url).json()["data"]  # only who calls it looks it up
        assert task["webhook"] == {"status": "waiting", "tries": 0, "error": ""}
        strict.worker().work_once()
        assert deliver_one(caller(strict, allow_private=False))
        fared = ann.result(task)["webhook"]
        assert (fared["status"], fared["tries"]) == ("failed", 1)
        assert "no public address" in fared["error"]
    assert listening.got == []


def test_a_task_tells_how_its_webhook_fared(home, ann, receiver):
    task = hooked(ann, receiver(500, 200).url).json()["data"]
    assert ann.submit()["webhook"] is None
    seen = [ann.result(task)["webhook"]]
    home.worker().work_once()
    seen.append(ann.result(task)["webhook"])
    for _ in range(2):
        assert deliver_one(caller(home, first_pause=0.0))
        seen.append(ann.result(task)["webhook"])
    assert [(one["status"], one["tries"], one["error"]) for one in seen] == [
        ("waiting", 0, ""),
        ("waiting", 0, ""),
        ("waiting", 1, "HTTP 500"),
        ("delivered", 2, ""),
    ]
    listed = ann.get("/api/v3/predictions").json()["data"]["items"]
    assert [one["webhook"] for one in listed] == [None, seen[-1]]


def owed(home, name, urls):
    """Somebody whose tasks have ended, each with a webhook to be called."""
    person = home.person(name)
    for url in urls:
        task = hooked(person, url).json()["data"]
        home.service.tasks.cancel(person.key.id, task["id"])
    return person


def test_two_webhooks_of_a_key_are_called_at_a_time(home):
    """Fifteen of one key that don't answer hold up nobody else's."""
    ann = owed(home, "ann", [f"https://h{n}.example.org/" for n in range(15)])
    bob = owed(home, "bob", ["https://bob.example.org/"] * 2)
    webhooks = caller(home)
    claimed = [webhooks.claim() for _ in range(4)]
    assert [task.key_id for _, task in claimed] == [ann.key.id] * 2 + [bob.key.id] * 2
    assert webhooks.claim() is None
    webhooks._note(claimed[0][0], "", last=True)
    assert webhooks.claim()[1].key_id == ann.key.id


def test_two_webhooks_to_a_host_are_called_at_a_time(home):
    for name in ("ann", "bob", "eve"):
        owed(home, name, ["https://busy.example.org/a", "https://BUSY.example.org:8443/b"])
    owed(home, "dan", ["https://free.example.org/"])
    webhooks = caller(home)
    hosts = [webhooks.claim()[0].host for _ in range(3)]
    assert hosts == ["busy.example.org"] * 2 + ["free.example.org"]
    assert webhooks.claim() is None
    assert untried(home) == 4


def untried(home):
    with home.service.database.reading() as session:
        return len(session.scalars(select(Delivery).where(Delivery.tries == 0)).all())


def test_a_claim_whose_caller_died_is_tried_again(home, monkeypatch):
    owed(home, "ann", ["https://a.example.org/"])
    webhooks = caller(home)
    first = webhooks.claim()[0]
    assert webhooks.claim() is None
    later = time.time() + 121
    monkeypatch.setattr("time.time", lambda: later)
    assert webhooks.claim()[0].id == first.id


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
    load(ServiceSettings(compile=asked))
    assert given == [compiled]


def test_without_a_compiler_a_gpu_works_unless_kernels_were_asked_for(monkeypatch):
    given = []

    def loaded(*_, compile=False, **__):  # noqa: A002
        given.append(compile)
        if compile:
            raise BackendUnavailable("no compiler")

    monkeypatch.setattr(devices, "choose", lambda *_: (torch.device("cuda"), torch.float32))
    monkeypatch.setattr(LipSync, "load", loaded)
    load(ServiceSettings())
    assert given == [True, False]
    with pytest.raises(BackendUnavailable, match="no compiler"):
        load(ServiceSettings(compile=True))


def test_a_failed_task_names_the_field_that_was_wrong(home, monkeypatch):
    """Never where the worker keeps its files, nor what only a command line can choose."""

    class Model:
        def run(self, _video, audio, _output, **_):
            raise MediaError(f"{str(audio)!r} has no sound{with_option('detector', ', by x')}")

    monkeypatch.setattr("latentsync.pipeline.lipsync.LipSync.load", lambda *_, **__: Model())
    ann = home.person()
    task = ann.speaking()
    home.worker(load(home.service.settings)).work_once()
    assert ann.result(task)["error"] == "audio has no sound"

    def refused(url, *_, **__):
        raise FetchRefused(f"{url} isn't there: give another")

    monkeypatch.setattr("latentsync.service.worker.fetch", refused)
    task = ann.submit()
    home.worker().work_once()
    assert ann.result(task)["error"].startswith(f"video: {ELSEWHERE['video']} isn't there")
