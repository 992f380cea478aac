"""openapi.json and /docs: what a client is made from, and a page that needs no internet."""

import importlib
import json
import re
import sys
from functools import partial
from html.parser import HTMLParser
from io import BytesIO
from subprocess import run
from urllib.parse import parse_qsl, urljoin, urlsplit

import pytest

from latentsync.service import docs
from tests.service import BASE, ELSEWHERE, SUBMIT, house


@pytest.fixture
def home(tmp_path):
    with house(tmp_path) as made:
        yield made


@pytest.fixture
def document(home):
    return home.client.get("/openapi.json").json()


def test_operations_have_names_for_people(document):
    operations = [one for path in document["paths"].values() for one in path.values()]
    assert {one["operationId"] for one in operations} == {
        "submit_task", "get_task", "cancel_task", "list_tasks", "delete_tasks", "delete_task",
        "get_webhook_secret", "create_upload", "upload_file", "download_file", "get_health",
    }  # fmt: skip
    assert not [name for name in document["components"]["schemas"] if "__" in name]
    assert document["servers"] == [{"url": BASE}]


def test_every_refusal_has_one_form(document):
    for path in document["paths"].values():
        for operation in path.values():
            answers = operation["responses"]
            assert "422" not in answers
            assert {"500", "503"} <= set(answers)
            for status, answer in answers.items():
                if status >= "400" and status != "416":  # of a range: no body
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Problem"}
    needs_key = [one for one in document["paths"] if one.startswith("/api/")]
    assert all(
        "401" in way["responses"] for one in needs_key for way in document["paths"][one].values()
    )


def test_an_upload_has_a_body(document):
    body = document["paths"]["/files/{name}"]["put"]["requestBody"]
    assert body["content"]["application/octet-stream"]["schema"]["format"] == "binary"


def test_answers_are_held_against_the_document(home):
    """What the other tests of the service rely on."""
    ann = home.person()
    del home.client.app.openapi()["paths"]["/api/v3/predictions/delete"]["post"]["responses"]["400"]
    with pytest.raises(AssertionError, match="answered 400, which isn't documented"):
        ann.post("/api/v3/predictions/delete", {})
    properties = home.client.app.openapi()["components"]["schemas"]["Problem"]["properties"]
    properties["code"]["type"] = "string"
    with pytest.raises(Exception, match="is not of type 'string'"):
        ann.post(SUBMIT, ELSEWHERE | {"steps": 99})


class _Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, _tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href")]


def test_the_page_comes_from_here_alone(home):
    page = home.client.get("/docs")
    parser = _Addresses()
    parser.feed(page.text)
    assert len(parser.found) == 3
    for address in parser.found:
        file = home.client.get(urljoin(f"{BASE}/docs", address))
        assert (file.status_code, urljoin(f"{BASE}/docs", address)[: len(BASE)]) == (200, BASE)
        assert len(file.content) > 500
    assert re.search(r"url: 'openapi.json'", page.text)
    assert home.client.get("/docs/main.py").status_code == 404


@pytest.mark.slow
def test_a_client_made_from_the_document_parses_every_answer(home, document, tmp_path, monkeypatch):
    made = _made_client(document, tmp_path, monkeypatch)
    call = _caller(made, home.client, home.person().headers["Authorization"].split()[1])
    ticket = call("files.create_upload", body=made.models.UploadRequest(size=4))
    assert ticket.code == 200
    address = urlsplit(ticket.data.upload.url)
    signed = dict(parse_qsl(address.query))
    put = partial(call, "files.upload_file", name=address.path.removeprefix("/files/"), **signed)
    body = made.types.File
    assert put(body=body(BytesIO(b"12345"))).code == 413
    assert put(body=body(BytesIO(b"1234"))).data.size == 4
    assert put(body=body(BytesIO(b"1234"))).code == 409
    video = ticket.data.download_url
    file = dict(parse_qsl(urlsplit(video).query)) | {"name": urlsplit(video).path[len("/files/") :]}
    assert call("files.download_file", **file).payload.read() == b"1234"
    assert call("files.download_file", **file | {"signature": "x"}).code == 403
    asked = made.models.TaskRequest(video=video, audio=ELSEWHERE["audio"])
    once = {"idempotency_key": "one"}
    task = call("tasks.submit_task", body=asked, **once).data
    other = made.models.TaskRequest(video=video, audio=ELSEWHERE["audio"], seed=3)
    assert call("tasks.submit_task", body=other, **once).code == 409
    wrong = made.models.TaskRequest(video=video, audio=ELSEWHERE["audio"], steps=99)
    problem = call("tasks.submit_task", body=wrong)
    assert (type(problem).__name__, problem.code) == ("Problem", 400)
    assert "steps" in problem.message
    assert call("tasks.get_task", task_id=task.id).data.status.value == "created"
    assert call("tasks.get_task", task_id="x").code == 404
    assert call("tasks.list_tasks", body=made.models.PageRequest()).data.total == 1
    assert call("tasks.cancel_task", task_id=task.id).data.status.value == "cancelled"
    assert call("tasks.delete_tasks", body=made.models.DeleteRequest(ids=["x"])).data
    assert call("tasks.delete_task", task_id=task.id).data.status == "deleted"
    assert call("tasks.get_webhook_secret").data.secret
    assert call("health.get_health").status == "ok"
    stranger = _caller(made, home.client, "ls_no")
    assert stranger("tasks.get_task", task_id=task.id).code == 401


def _made_client(document, folder, monkeypatch):
    """The package that openapi-python-client makes."""
    (folder / "openapi.json").write_text(json.dumps(document))
    (folder / "config.yml").write_text("post_hooks: []")  # no formatting of what is thrown away
    generate = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    where = ["--path", "openapi.json", "--config", "config.yml", "--output-path", "made_client"]
    done = run([*generate, *where], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Warning" not in done.stdout + done.stderr, done.stdout
    monkeypatch.syspath_prepend(folder)
    made = importlib.import_module("made_client")
    for part in ("models", "types"):
        importlib.import_module(f"made_client.{part}")
    return made


def _caller(made, served, key):
    """Calls an operation by its name; fails where the answer is one that wasn't expected."""
    client = made.AuthenticatedClient(base_url=BASE, token=key, raise_on_unexpected_status=True)

    def call(operation, /, **given):
        served.headers["Authorization"] = f"Bearer {key}"
        module = importlib.import_module(f"made_client.api.{operation}")
        answer = module.sync_detailed(client=client.set_httpx_client(served), **given)
        assert answer.parsed is not None, answer
        return answer.parsed

    return call


def test_without_swagger_ui_the_page_leads_to_the_document(home, monkeypatch):
    monkeypatch.setattr(docs, "_folder", lambda: None)
    assert "href=openapi.json" in home.client.get("/docs").text
    assert home.client.get("/docs/swagger-ui.css").status_code == 404
