"""The commands of the task API: keys, and what `serve` and `work` refuse."""

import re
import socket
import time
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from latentsync.cli import serve
from latentsync.errors import InputError, OptionError, OutputError
from latentsync.service.container import Service
from latentsync.service.keys import Keys
from latentsync.service.settings import ServiceSettings
from latentsync.service.tables import Database

ROOT = Path(__file__).parent.parent

app = typer.Typer()
app.command()(serve.serve)
app.command()(serve.work)
app.add_typer(serve.keys, name="keys")
check_port = serve.check_port


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serve, "check_port", lambda *_: None)  # others may use port 8000

    def called(*arguments):
        return CliRunner().invoke(app, arguments, catch_exceptions=False).output

    return called


def test_keys_are_made_shown_and_revoked(call, tmp_path):
    limits = ("--per-minute", "7", "--at-once", "3", "--max-bytes", str(3 * 2**29))
    shown = call("keys", "create", "ann", *limits).strip()
    call("keys", "create", "bob")
    database = Database(f"sqlite:///{tmp_path}/latentsync-data/tasks.db")
    assert Keys(database).find(shown).name == "ann"
    call("keys", "revoke", "ann")
    assert Keys(database).find(shown) is None
    database.close()
    ann, bob = call("keys", "list").splitlines()
    assert re.match(r"ann +7 a minute, 3 at once, 1.5 GiB +used \d{4}-.* revoked$", ann)
    assert re.match(r"bob +60 a minute, 20 at once, 10 GiB +never used +0 unfinished$", bob)
    with pytest.raises(OptionError, match="no key 'eve'"):
        call("keys", "revoke", "eve")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "--no-auth", "--host", "192.0.2.1"), "open to everybody"),
        (("serve", "--host", "0.0.0.0"), "give --public-url"),  # noqa: S104 - refused
        (("serve", "--public-url", "lips.example.org"), "public_url is"),
        (("serve", "--max-stored", "0"), "max_stored_bytes is 0"),
        (
            ("serve", "--no-auth", "--url-hours", "169"),
            "url_hours is 169.0; .* at most 168",
        ),
        (("serve", "--database", "nonsense"), "sqlite:///FILE or"),
        (("work", "--database", "sqlite:///x.db", "--storage", ""), "--database and --storage"),
    ],
)
def test_refused_before_anything_starts(call, arguments, said):
    with pytest.raises(InputError, match=said):
        call(*arguments)


@pytest.mark.parametrize("data", ["taken", "taken/data", "/proc/no/such"])
def test_a_data_folder_that_can_not_be(call, tmp_path, data):
    (tmp_path / "taken").touch()
    for command in (("serve", "--workers", "0"), ("keys", "list")):
        with pytest.raises(OutputError, match="give --data a folder that may be written"):
            call(*command, "--data", data)


@pytest.fixture
def started(monkeypatch):
    """The settings of what `serve` and `work` would start."""
    made = []

    class Supervisor:
        def __init__(self, settings, *_):
            made.append(settings)

        def start(self):
            pass

        wait = stop = start

    monkeypatch.setattr("latentsync.service.supervisor.Supervisor", Supervisor)
    monkeypatch.setattr("uvicorn.run", lambda *_, **__: None)
    return made


ELSEWHERE = ("--database", "sqlite:///shared.db", "--storage", "shared")


def test_what_all_processes_agree_on_is_said_once(call, started, caplog):
    limits = (
        *("--keep-hours", "720", "--max-upload", "5", "--max-stored", "50", "--max-seconds", "7"),
        *("--upload-hours", "3", "--lease-seconds", "9", "--private-addresses"),
    )
    call("serve", "--workers", "0", *ELSEWHERE, *limits)
    call("work", *ELSEWHERE)
    with Service.open(started[-1]) as service:
        told = service.settings
        assert (told.keep_hours, told.max_upload_bytes, told.max_stored_bytes) == (720.0, 5, 50)
        assert (told.max_seconds, told.upload_hours, told.lease_seconds) == (7.0, 3.0, 9.0)
        assert told.private_addresses is True
        assert service.files.keep_until() == pytest.approx(time.time() + 720 * 3600, abs=60)
        assert service.refreshed() is service
        assert "from now on" not in caplog.text
        call("serve", "--workers", "0", *ELSEWHERE, "--keep-hours", "1")  # while workers work
        assert "keep_hours is 1.0 from now on; it was 720.0" in caplog.text
        told = service.refreshed()
        assert (told.settings.keep_hours, told.settings.max_upload_bytes) == (1.0, 2 * 2**30)
        assert told.files.keep_until() == pytest.approx(time.time() + 3600, abs=60)


def test_a_server_that_cannot_listen_decides_nothing(call, started, monkeypatch):
    call("serve", "--workers", "0", *ELSEWHERE, "--keep-hours", "720")
    monkeypatch.setattr(serve, "check_port", check_port)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        with pytest.raises(
            OptionError, match=rf"can't listen on 127.0.0.1, port {port} \(.*in use"
        ):
            call("serve", "--workers", "0", *ELSEWHERE, "--keep-hours", "1", "--port", port)
    with Service.open(started[-1]) as service:
        assert service.settings.keep_hours == 720


def test_workers_leave_no_folder_and_sweep_those_of_killed_ones(
    call, started, tmp_path, monkeypatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    killed = tmp_path / "tmp/latentsync-work-killed"
    killed.mkdir(parents=True)
    (killed / "half a clip").touch()
    call("work", *ELSEWHERE)
    assert started
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.parametrize("name", ["a?b=c", "50%41", "a#b", "\xfc @:"])
def test_the_data_folder_may_have_any_name(call, tmp_path, name):
    call("keys", "create", "ann", "--data", name)
    assert (tmp_path / name / "tasks.db").is_file()
    assert "ann" in call("keys", "list", "--data", name)


def test_workers_that_come_before_the_server_have_the_defaults(call, started):
    call("work", *ELSEWHERE)
    with Service.open(started[-1]) as service:
        assert service.settings == started[-1]


@pytest.mark.parametrize("option", ["--max-seconds", "--keep-hours", "--lease-seconds"])
def test_a_worker_has_no_limits_of_its_own(call, option):
    assert "No such option" in call("work", *ELSEWHERE, option, "7")


def test_links_that_only_this_machine_can_sign_are_warned_of(call, started, caplog, monkeypatch):
    monkeypatch.delenv("LATENTSYNC_SECRET", raising=False)
    for arguments in ((), ELSEWHERE[:2], ELSEWHERE[2:]):
        call("serve", "--workers", "0", *arguments)
    assert "LATENTSYNC_SECRET" not in caplog.text
    call("serve", "--workers", "0", *ELSEWHERE)
    assert "give all servers the same $LATENTSYNC_SECRET" in caplog.text
    caplog.clear()
    monkeypatch.setenv("LATENTSYNC_SECRET", "x" * 32)
    call("serve", "--workers", "0", *ELSEWHERE)
    assert "LATENTSYNC_SECRET" not in caplog.text
    assert started


def test_the_compose_file_gives_all_containers_what_they_must_share():
    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())
    api, work = compose["services"]["api"], compose["services"]["work"]
    assert api["environment"]["LATENTSYNC_SECRET"].startswith("${LATENTSYNC_SECRET:?")  # required
    assert f"data:{api['environment']['LATENTSYNC_DATA']}" in api["volumes"]
    assert "data" in compose["volumes"]
    commands = typer.main.get_command(app).commands
    for service, name in ((api, "serve"), (work, "work")):
        given = re.findall(r"--[a-z-]+", service["command"])
        known = {spelling for one in commands[name].params for spelling in one.opts}
        assert set(given) <= known


def test_the_defaults_are_those_of_settings():
    command = {
        parameter.name: parameter.default
        for name in ("work", "serve")
        for parameter in typer.main.get_command(app).commands[name].params
    }
    for name in ("data", "model", "max_upload_bytes", "max_stored_bytes", "max_seconds",
                 "keep_hours", "upload_hours", "url_hours", "lease_seconds"):  # fmt: skip
        assert command[name] == getattr(ServiceSettings, name), name
