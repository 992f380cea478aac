"""The task API over HTTP: paths and fields, who may see what, and every refusal."""

import asyncio
import json
import sys
import time
from dataclasses import replace
from subprocess import run
from urllib.parse import urlsplit

import pytest
from anyio import to_thread
from sqlalchemy import update

from latentsync.options import Options
from latentsync.service.middleware import MAX_BODY_BYTES
from latentsync.service.requests import OPTIONS, TaskRequest, options_of
from latentsync.service.tables import File
from tests.service import BASE, ELSEWHERE, SUBMIT, house, joined


@pytest.fixture
def home(tmp_path):
    with house(tmp_path) as made:
        yield made


@pytest.fixture
def ann(home):
    return home.person("ann")


@pytest.fixture
def bob(home):
    return home.person("bob")


def problem(answer):
    """The message of an error, which has the hosted API's form."""
    body = answer.json()
    assert body["code"] == answer.status_code
    return body["message"]


def test_a_task_from_submit_to_output(home, ann):
    answer = ann.post(
        SUBMIT, {"video": ann.upload(b"face"), "audio": ann.upload(b"voice"), "seed": 7}
    )
    body = answer.json()
    task = body["data"]
    assert (answer.status_code, body["code"], body["message"]) == (200, 200, "success")
    assert task["model"] == "bytedance/lipsync/audio-to-video"
    assert task["urls"]["get"] == f"{BASE}/api/v3/predictions/{task['id']}/result"
    assert (task["outputs"], task["has_nsfw_contents"], task["status"]) == ([], [], "created")
    assert (task["error"], task["timings"]) == ("", {"inference": 0})
    assert task["created_at"].endswith("Z")
    assert home.worker().work_once()
    done = ann.get(task["urls"]["get"]).json()["data"]
    assert (done["status"], done["has_nsfw_contents"]) == ("completed", [False])
    assert isinstance(done["timings"]["inference"], int)
    output = home.client.get(done["outputs"][0])  # without a key: the address is signed
    assert output.content == b"face+voice7"
    assert output.headers["content-type"] == "video/mp4"
    assert output.headers["content-disposition"].startswith("attachment")
    part = home.client.get(done["outputs"][0], headers={"Range": "bytes=0-3"})
    assert (part.status_code, part.content) == (206, b"face")
    assert home.client.head(done["outputs"][0]).status_code == 200
    assert ann.get(f"/api/v3/predictions/{task['id']}").json()["data"]["id"] == task["id"]


def test_an_output_becomes_an_input(home, ann):
    first = ann.speaking()
    home.worker().work_once()
    second = ann.submit(video=ann.result(first)["outputs"][0], audio=ann.upload(b"more"))
    home.worker().work_once()
    assert home.client.get(ann.result(second)["outputs"][0]).content == b"face+voice0+more0"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"audio": None}, "audio: "),
        (
            {"video": "file:///etc/passwd"},
            "video: it has another form than wanted; http(s) address",
        ),
        ({"video": "http://ann:word@example.org/x.mp4"}, "video: 'http://example.org/x.mp4' comes"),
        ({"audio": "https:///x.mp4"}, "audio: 'https:///x.mp4' is no URL (its host"),
        ({"audio": f"{BASE}/files/0123/4567/voice.wav"}, "no file '0123/4567/voice.wav'"),
        ({"frobnicate": 1}, "frobnicate: this request has no such field"),
        ({"guidance_scale": 11}, "from 0 to 10"),
        ({"guidance_scale": "much"}, "guidance_scale"),
        ({"steps": 51}, "from 1 to 50"),
        ({"inference_steps": 51}, "from 1 to 50"),
        ({"sync_mode": "sideways"}, "sync_mode"),
        ({"face": "/etc/passwd"}, "face is '/etc/passwd'"),
        ({"face": "3"}, "face is '3'"),
        ({"face": "largest/../a.png"}, "face is 'largest/../a.png'"),
        ({"video": f"{BASE}/files/a%00b"}, "no file 'a\\x00b'"),
        ({"superres": "/data/net.pth"}, "superres is '/data/net.pth'"),
        ({"cache_dir": "/tmp"}, "cache_dir"),  # noqa: S108 - a name that is refused
        ({"seed": -5}, "seed"),
        ({"seed": True}, "seed"),
        ({"steps": "7"}, "steps is '7'; it must be a whole number from 1 to 50"),
        ({"on_missing": "skip"}, "on_missing is 'skip'; it must be one of 'keep', 'error'"),
        ({"on_missing": "skip" * 1000}, "on_missing: "),
        ({"color_match": 1}, "color_match is 1; it must be true or false"),
        ({"face": "left" * 1000}, "face: "),
        ({"smooth": 4}, "odd"),
    ],
)
def test_refused_with_the_reason(ann, changes, said):
    answer = ann.post(SUBMIT, ELSEWHERE | changes)
    assert answer.status_code == 400
    assert said in problem(answer)
    assert len(problem(answer)) < 500
    assert ann.get("/api/v3/predictions").json()["data"]["total"] == 0


def test_other_bodies_are_refused(ann):
    assert ann.post(SUBMIT, {"video": ELSEWHERE["video"]}).status_code == 400
    assert ann.post(SUBMIT, [1]).status_code == 400
    bad = ann.client.post(SUBMIT, content=b"{", headers=ann.headers)
    assert bad.status_code == 400
    huge = ann.post(SUBMIT, ELSEWHERE | {"face": "x" * MAX_BODY_BYTES})
    assert huge.status_code == 413
    assert "bytes" in problem(huge)


def test_the_request_follows_options():
    fields = TaskRequest.model_fields
    assert {name: fields[name].default for name in OPTIONS} == {
        name: getattr(Options(), name) for name in OPTIONS
    }


PROTECTED = (
    ("POST", SUBMIT),
    ("POST", "/api/v3/media/uploads"),
    ("POST", "/api/v3/predictions"),
    ("GET", "/api/v3/predictions"),
    ("GET", "/api/v3/predictions/x"),
    ("GET", "/api/v3/predictions/x/result"),
    ("POST", "/api/v3/predictions/x/cancel"),
    ("POST", "/api/v3/predictions/delete"),
    ("DELETE", "/api/v3/predictions/x"),
    ("GET", "/api/v3/webhook/secret"),
    ("POST", "/api/v3/some/other/model"),
)


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer ls_no"}, {"Authorization": "x"}])
def test_nothing_without_a_key(home, header):
    for method, path in PROTECTED:
        answer = home.client.request(method, path, headers=header, json=ELSEWHERE)
        assert answer.status_code == 401, path
        assert "Bearer KEY" in problem(answer)


def test_of_every_route_it_is_known_whether_it_needs_a_key(home):
    """A route that is added has to be named above, or here."""
    named = {(method, path.replace("/x", "/{task_id}")) for method, path in PROTECTED}
    open_to_all = {("GET", "/health"), ("GET", "/files/{name}"), ("PUT", "/files/{name}")}
    paths = home.client.get("/openapi.json").json()["paths"]
    shown = {(method.upper(), path) for path, way in paths.items() for method in way}
    assert shown <= named | open_to_all


@pytest.mark.parametrize("path", [SUBMIT, "/app/gradio_api/queue/join", "/app"])
@pytest.mark.parametrize("header", ["", "Bearer ls_no", "Basic eDpsc19ubw==", "Basic ?"])
def test_without_a_key_no_body_is_read(home, path, header):
    async def receive():
        raise AssertionError("the body was asked for")

    sent = []

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "http_version": "1.1", "scheme": "http",
        "headers": [(b"content-length", b"600000000"), (b"content-type", b"application/json"),
                    (b"authorization", header.encode())],
    }  # fmt: skip
    asyncio.run(home.client.app(scope, receive, send))
    assert sent[0]["status"] == 401
    assert dict(sent[0]["headers"])[b"www-authenticate"]


def test_a_key_is_looked_up_apart_from_the_threads_that_answer(home, monkeypatch):
    """However many keys strangers try, the threads of everybody else stay free."""
    seen = []

    async def run_sync(work, *given, limiter=None):
        seen.append(limiter)
        return work(*given)

    monkeypatch.setattr("latentsync.service.middleware.to_thread.run_sync", run_sync)
    assert home.client.get("/api/v3/x", headers={"Authorization": "Bearer ls_x"}).status_code == 401
    assert [limiter.total_tokens for limiter in seen] == [4]
    assert home.client.get("/api/v3/x", headers={"Authorization": "Bearer x"}).status_code == 401
    assert len(seen) == 1


def test_a_revoked_key_opens_nothing(home, ann):
    task = ann.submit()
    home.service.keys.revoke("ann")
    assert ann.get(task["urls"]["get"]).status_code == 401


def test_without_auth_everybody_is_the_same(tmp_path):
    with house(tmp_path, needs_key=False) as open_house:
        task = open_house.client.post(SUBMIT, json=ELSEWHERE).json()["data"]
        assert open_house.client.get(task["urls"]["get"]).json()["data"]["id"] == task["id"]


def test_one_key_never_sees_anothers(home, ann, bob):
    task = ann.speaking()
    home.worker().work_once()
    done = ann.result(task)
    for method, path in (
        ("GET", f"/api/v3/predictions/{task['id']}/result"),
        ("GET", f"/api/v3/predictions/{task['id']}"),
        ("POST", f"/api/v3/predictions/{task['id']}/cancel"),
        ("DELETE", f"/api/v3/predictions/{task['id']}"),
    ):
        answer = home.client.request(method, path, headers=bob.headers)
        unknown = home.client.request(
            method, path.replace(task["id"], "0" * 32), headers=bob.headers
        )
        assert answer.status_code == unknown.status_code == 404
        assert problem(answer).replace(task["id"], "") == problem(unknown).replace("0" * 32, "")
    assert bob.post("/api/v3/predictions", {}).json()["data"] == {
        "page": 1,
        "total": 0,
        "items": [],
    }
    deleted = bob.post("/api/v3/predictions/delete", {"ids": [task["id"]]})
    assert deleted.json()["data"] == {"deleted_count": 0}
    # Not even who was shown an address can make its file an input.
    for address in (done["outputs"][0], done["input"]["video"]):
        assert bob.post(SUBMIT, ELSEWHERE | {"video": address}).status_code == 400
    assert ann.result(task) | {"outputs": []} == done | {"outputs": []}


def test_addresses_are_signed_for_one_file_and_end(home, ann, monkeypatch):
    first, second = ann.upload(b"one"), ann.upload(b"two")
    assert home.client.get(first).content == b"one"
    other = second.split("?")[0] + "?" + urlsplit(first).query
    for wrong in (other, first.split("?")[0], first[:-1], first.replace("expires=", "expires=9")):
        answer = home.client.get(wrong)
        assert answer.status_code in (400, 403)
        assert problem(answer)
    assert home.client.put(first, content=b"three").status_code == 403
    tomorrow = time.time() + 25 * 3600
    monkeypatch.setattr("time.time", lambda: tomorrow)
    assert "ended" in problem(home.client.get(first))


def ticket(person, size=4, **more):
    answer = person.post("/api/v3/media/uploads", {"filename": "a.mp4", "size": size} | more)
    return answer.json()["data"]


def test_an_upload_holds_what_was_announced_and_once(home, ann):
    made = ticket(ann, 4)
    url = made["upload"]["url"]
    early = ann.post(SUBMIT, ELSEWHERE | {"video": made["download_url"]})
    assert "nothing was uploaded" in problem(early)
    assert home.client.get(made["download_url"]).status_code == 404
    assert "4 bytes" in problem(home.client.put(url, content=b"12345"))
    assert home.client.put(url, content=b"").status_code == 400
    assert "3 bytes, 4 bytes were" in problem(home.client.put(url, content=b"123"))
    for pieces in ([b"12", b"3"], [b"12", b"345"]):  # whose length no header tells
        assert "4 bytes were announced" in problem(home.client.put(url, content=iter(pieces)))
    assert home.client.put(url, content=b"1234").json()["data"] == {"size": 4}
    assert home.client.put(url, content=b"4321").status_code == 409
    assert home.client.get(made["download_url"]).content == b"1234"
    assert list(home.context.incoming.iterdir()) == []


def test_a_server_leaves_alone_what_others_on_its_folder_receive(home):
    folder = home.service.settings.data
    (folder / "incoming" / "killed").mkdir(parents=True)
    with home.client, house(folder) as other:
        coming = home.context.incoming / "half a clip"
        coming.touch()
        assert not (folder / "incoming" / "killed").exists()
        with other.client:
            assert other.context.incoming != home.context.incoming
            assert coming.exists()
    assert not list((folder / "incoming").glob("*/"))


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ("bytes=1-2", b"bc"),
        ("BYTES = 2-", b"cd"),
        ("bytes=-1", b"d"),
        ("bytes=4-", 416),
        ("bytes=2-1", 400),
        ("bytes=x", 400),
        ("bytes=", 400),
        ("items=0-1", 400),
        ("bytes=0-" + "9" * 5000, 400),
    ],
)
def test_parts_of_a_file(home, ann, asked, given):
    url = ann.upload(b"abcd")
    answer = home.client.get(url, headers={"Range": asked})
    if given == 400:
        assert "such as bytes=0-1023" in problem(answer)
    elif given == 416:
        assert (answer.status_code, answer.headers["content-range"]) == (416, "bytes */4")
    else:
        assert (answer.status_code, answer.content) == (206, given)


@pytest.mark.parametrize(
    ("body", "kind", "said"),
    [
        (b"{", "application/json", "body: it isn't JSON, at character 1: Expecting"),
        (b"[]", "application/json", "body: it must be a JSON object, sent with Content-Type: "),
        (b"{}", "text/plain", "body: it must be a JSON object, sent with Content-Type: "),
        (b'{"video": "http://x/\\u0000"}', "application/json", "body: 'video' holds NUL"),
    ],
)
def test_a_body_that_cannot_be_read_is_said_in_plain_words(ann, body, kind, said):
    headers = ann.headers | {"Content-Type": kind}
    assert problem(ann.client.post(SUBMIT, content=body, headers=headers)).startswith(said)


def test_uploads_that_cannot_be(home, ann):
    for size in (0, -1, 3 * 2**30):
        answer = ann.post("/api/v3/media/uploads", {"filename": "a", "size": size})
        assert answer.status_code == 400
        assert "must have from 1" in problem(answer)
    odd = ticket(ann, filename="../../.ssh/ü key?.mp4", content_type="text/html")
    assert urlsplit(odd["download_url"]).path.endswith("/_key_.mp4")
    assert home.client.request(**odd["upload"], content=b"<ht>").status_code == 200
    page = home.client.get(odd["download_url"])
    assert page.headers["content-disposition"].startswith("attachment")
    assert page.headers["x-content-type-options"] == "nosniff"


def post_escaped(person, path, asked):
    """As JSON whose escapes may stand for what UTF-8 can't hold."""
    headers = person.headers | {"Content-Type": "application/json"}
    return person.client.post(path, content=json.dumps(asked), headers=headers)


@pytest.mark.parametrize(
    "kind", ["image/名", "video/mp4\0", "video/mp4\r\nX: y", "a\ud800/b", "mp4"]
)
def test_a_content_type_is_what_a_header_can_hold(ann, kind):
    asked = post_escaped(ann, "/api/v3/media/uploads", {"size": 4, "content_type": kind})
    assert asked.status_code == 400
    assert "content_type" in problem(asked)


def test_text_that_no_database_holds_finds_nothing(home, ann):
    for odd in ("%00", "%ED%A0%80", "a%00b"):
        for path in (f"/api/v3/predictions/{odd}/result", f"/api/v3/predictions/{odd}"):
            assert ann.get(path).status_code == 404
        assert ann.post(f"/api/v3/predictions/{odd}/cancel").status_code == 404
        gone = home.client.delete(f"/api/v3/predictions/{odd}", headers=ann.headers)
        assert gone.status_code == 404
    assert ann.get("/api/v3/predictions?status=%00").status_code == 400
    for odd in ("\0", "\ud800"):
        for path, asked in (
            ("/api/v3/predictions/delete", {"ids": [odd]}),
            ("/api/v3/predictions", {"status": odd}),
            ("/api/v3/predictions", {"model": odd}),
            ("/api/v3/predictions", {odd: 1}),
            ("/api/v3/media/uploads", {"size": 1, "filename": odd}),
            (SUBMIT, ELSEWHERE | {"superres": odd}),
        ):
            answer = post_escaped(ann, path, asked)
            assert answer.status_code == 400, (path, asked)
            assert problem(answer)
    for odd in ("a\0b", "\ud800"):
        assert home.service.files.find(odd) is None


def test_an_upload_larger_than_announced_past_the_service_is_refused(home, ann, tmp_path):
    """A storage that takes uploads itself tells their size only when they are there."""
    made = ticket(ann, 4)
    name = urlsplit(made["download_url"]).path.removeprefix("/files/")
    (tmp_path / "large").write_bytes(b"12345")
    home.service.files.storage.put(name, tmp_path / "large")
    refused = ann.post(SUBMIT, ELSEWHERE | {"video": made["download_url"]})
    assert refused.status_code == 400
    assert "5 bytes were uploaded, 4 announced" in problem(refused)
    assert home.service.files.sweep() == 1
    assert list(home.service.files.storage.entries()) == []


def test_an_upload_lives_on_for_upload_hours_after_a_task_named_it(tmp_path, monkeypatch):
    with house(tmp_path, upload_hours=2.0, url_hours=100.0) as home:
        ann = home.person()
        clip, hours = ann.upload(b"face"), [1.0, 2.9, 3.1]
        began = time.time()
        monkeypatch.setattr("time.time", lambda: began + 3600 * hours[0])
        task = ann.submit(video=clip)
        home.service.tasks.cancel(ann.key.id, task["id"])
        hours.pop(0)
        assert home.service.files.sweep() == 0
        assert home.client.get(clip).content == b"face"
        hours.pop(0)
        assert home.service.files.sweep() == 1


def test_a_run_is_bounded_by_the_services_own_seconds(home, ann):
    assert options_of({}, replace(home.service.settings, max_seconds=77.0)).max_seconds == 77.0
    given = []
    ann.speaking()
    home.worker(lambda *told: (given.append(told[3]), joined(*told))).work_once()
    assert given[0].max_seconds == home.service.settings.max_seconds
    assert given[0].max_bytes == home.service.settings.max_upload_bytes


def test_a_full_storage_says_so(tmp_path):
    with house(tmp_path, max_stored_bytes=10) as small:
        ann = small.person()
        ann.upload(b"12345678")
        full = ann.post("/api/v3/media/uploads", {"filename": "a", "size": 4})
        assert full.status_code == 507
        assert "no room for 4 bytes" in problem(full)
        assert full.headers["retry-after"]


def test_a_key_keeps_no_more_than_its_share(tmp_path):
    with house(tmp_path, max_stored_bytes=100) as small:
        ann, bob = small.person("ann", max_bytes=None), small.person("bob", max_bytes=50)
        ask = "/api/v3/media/uploads"
        assert ann.post(ask, {"size": 15}).status_code == 200
        over = ann.post(ask, {"size": 6})  # a fifth of all, where the key has no other share
        assert over.status_code == 507
        assert "have 15 of 20 bytes, 6 more don't fit" in problem(over)
        assert bob.post(ask, {"size": 50}).status_code == 200
        assert bob.post(ask, {"size": 1}).status_code == 507


def test_who_needs_no_key_may_fill_the_storage(tmp_path):
    with house(tmp_path, needs_key=False, max_stored_bytes=100) as small:
        ask = "/api/v3/media/uploads"
        assert small.client.post(ask, json={"size": 100}).status_code == 200
        assert small.client.post(ask, json={"size": 1}).status_code == 507


def test_a_key_has_so_many_open_tickets(home):
    few = home.person("few", at_once=1)
    made = [ticket(few) for _ in range(2)]  # a video and an audio for each task
    refused = few.post("/api/v3/media/uploads", {"size": 4})
    assert refused.status_code == 429
    assert refused.headers["retry-after"]
    assert "2 tickets without an upload" in problem(refused)
    assert home.client.request(**made[0]["upload"], content=b"face").status_code == 200
    assert few.post("/api/v3/media/uploads", {"size": 4}).status_code == 200
    with home.service.database.writing() as session:
        session.execute(update(File).values(expires_at=time.time() - 1))
    assert few.post("/api/v3/media/uploads", {"size": 4}).status_code == 200


def test_a_ticket_is_used_by_one_request_at_a_time(home, ann):
    made = ticket(ann, 4)

    def slowly():
        yield b"fa"
        second = home.client.put(made["upload"]["url"], content=b"eyes")
        assert second.status_code == 409
        assert "another request" in problem(second)
        yield b"ce"

    first = home.client.request(**made["upload"], content=slowly())
    assert first.status_code == 200
    assert home.client.get(made["download_url"]).content == b"face"


def test_strangers_take_no_thread(home, ann, monkeypatch):
    address = ann.upload(b"face")
    run_sync, threads = to_thread.run_sync, []

    async def counted(*given, **more):
        threads.append(given)
        return await run_sync(*given, **more)

    monkeypatch.setattr(to_thread, "run_sync", counted)
    for method in ("GET", "HEAD", "PUT"):
        assert home.client.request(method, address[:-1], content=b"").status_code == 403
    assert home.client.get("/nowhere").status_code == 404
    assert home.client.post(SUBMIT, json=ELSEWHERE).status_code == 401
    assert threads == []
    assert home.client.get(address).status_code == 200
    assert threads


def test_so_many_a_minute(home):
    slow = home.person("slow", per_minute=2)
    assert slow.post("/api/v3/media/uploads", {"size": 1}).status_code == 200
    assert slow.post(SUBMIT, ELSEWHERE).status_code == 200
    refused = slow.post(SUBMIT, ELSEWHERE)
    assert refused.status_code == 429
    assert 0 < int(refused.headers["retry-after"]) <= 30
    assert slow.get("/api/v3/predictions").status_code == 200  # looking costs nothing


def test_so_many_at_once(home):
    few = home.person("few", at_once=1)
    few.submit()
    refused = few.post(SUBMIT, ELSEWHERE)
    assert refused.status_code == 429
    assert refused.headers["retry-after"]
    assert "1 at once" in problem(refused)


def test_the_same_idempotency_key_is_the_same_task(ann, bob):
    once = {"Idempotency-Key": "one"}
    first = ann.post(SUBMIT, ELSEWHERE, **once).json()["data"]["id"]
    assert ann.post(SUBMIT, ELSEWHERE, **once).json()["data"]["id"] == first
    assert bob.post(SUBMIT, ELSEWHERE, **once).json()["data"]["id"] != first
    assert ann.post(SUBMIT, ELSEWHERE | {"seed": 1}, **once).status_code == 409
    other_hook = ann.post(f"{SUBMIT}?webhook=https://example.org/hook", ELSEWHERE, **once)
    assert other_hook.status_code == 409


def test_cancel_list_and_delete(home, ann):
    made = [ann.submit(seed=seed) for seed in range(3)]
    cancelled = ann.post(f"/api/v3/predictions/{made[0]['id']}/cancel").json()["data"]
    assert cancelled["status"] == "cancelled"
    listed = ann.post("/api/v3/predictions", {"page": 1, "page_size": 2}).json()["data"]
    assert [item["id"] for item in listed["items"]] == [made[2]["id"], made[1]["id"]]
    assert (listed["page"], listed["total"]) == (1, 3)
    assert listed["items"][0]["input"]["seed"] == 2
    assert ann.get("/api/v3/predictions?status=cancelled").json()["data"]["total"] == 1
    soon = {"created_after": "2100-01-01T00:00:00Z"}
    assert ann.post("/api/v3/predictions", soon).json()["data"]["total"] == 0
    assert ann.post("/api/v3/predictions", {"page_size": 101}).status_code == 400
    gone = ann.post("/api/v3/predictions/delete", {"ids": [made[0]["id"], made[1]["id"]]})
    assert gone.json()["data"]["deleted_count"] == 2
    one = home.client.delete(f"/api/v3/predictions/{made[2]['id']}", headers=ann.headers)
    assert one.json()["data"] == {"id": made[2]["id"], "status": "deleted"}
    assert ann.get(made[2]["urls"]["get"]).status_code == 404


def test_deleting_takes_the_output_along(home, ann):
    task = ann.speaking()
    home.worker().work_once()
    address = ann.result(task)["outputs"][0]
    home.client.delete(f"/api/v3/predictions/{task['id']}", headers=ann.headers)
    assert home.client.get(address).status_code == 404
    assert home.service.files.sweep() == 1
    left = home.service.files.storage.entries()
    assert sorted(entry.size for entry in left) == [len(b"face"), len(b"voice")]


def test_sync_mode_answers_when_it_ended(tmp_path, monkeypatch):
    monkeypatch.setattr("latentsync.service.context.POLL_SECONDS", 0.01)
    with house(tmp_path, sync_seconds=0.05) as home:
        ann = home.person()
        late = ann.submit(enable_sync_mode=True)
        assert late["status"] == "processing"
        assert late["error"].startswith("Sync mode timed out")
        assert late["urls"]["get"] in late["error"]
        home.service.tasks.cancel(ann.key.id, late["id"])
        monkeypatch.setattr("latentsync.service.context.POLL_SECONDS", 0)
        create = home.service.tasks.create

        def worked_on(*given, **more):
            task = create(*given, **more)
            home.worker().work_once()
            return task

        object.__setattr__(home.service.tasks, "create", worked_on)
        done = ann.speaking(enable_sync_mode=True)
        assert done["status"] == "completed"
        assert done["outputs"]


def test_a_redirect_to_the_storage_holds_for_the_method(home, ann, monkeypatch):
    url, methods = ann.upload(b"face"), []
    monkeypatch.setattr(
        home.service.files.storage,
        "download_url",
        lambda _name, *, method, **_: methods.append(method),
    )
    for method in ("GET", "HEAD"):
        assert home.client.request(method, url).status_code == 200
    assert methods == ["GET", "HEAD"]


def test_monitors_ask_without_a_body(home):
    assert home.client.head("/health").status_code == 200


def test_health_docs_and_models(home, ann):
    ann.submit()
    assert home.client.get("/health").json() == {"status": "ok", "tasks": {"created": 1}}
    assert home.client.get("/docs").status_code == 200
    paths = home.client.get("/openapi.json").json()["paths"]
    assert {SUBMIT, "/api/v3/predictions/{task_id}/result", "/api/v3/media/uploads"} <= set(paths)
    other = ann.post("/api/v3/some/other/model", {})
    assert other.status_code == 404
    assert "bytedance/lipsync/audio-to-video" in problem(other)
    assert home.client.get("/nowhere").status_code == 404


def test_a_fault_tells_no_secrets(home, ann, monkeypatch):
    def broken(*_):
        raise RuntimeError("postgresql://ann:password@db")

    monkeypatch.setattr(home.service.tasks, "get", broken)
    answer = ann.get("/api/v3/predictions/x/result")
    assert answer.status_code == 500
    assert "password" not in problem(answer)


def test_the_web_process_has_no_torch():
    seen = "import sys, latentsync.service.app, latentsync.service.supervisor, latentsync.cli.serve"
    done = run([sys.executable, "-c", f"{seen}; sys.exit('torch' in sys.modules)"], check=False)
    assert done.returncode == 0
