"""The commands of the task API: keys, and what `serve` and `work` refuse."""

import re

import pytest
import typer
from typer.testing import CliRunner

from latentsync import cli_serve
from latentsync.errors import InputError, OptionError, OutputError
from latentsync.service.keys import Keys
from latentsync.service.settings import Settings
from latentsync.service.tables import Database

app = typer.Typer()
app.command()(cli_serve.serve)
app.command()(cli_serve.work)
app.add_typer(cli_serve.keys, name="keys")


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def called(*arguments):
        return CliRunner().invoke(app, arguments, catch_exceptions=False).output

    return called


def test_keys_are_made_shown_and_revoked(call, tmp_path):
    shown = call("keys", "create", "ann", "--per-minute", "7", "--at-once", "3").strip()
    call("keys", "create", "bob")
    database = Database(f"sqlite:///{tmp_path}/latentsync-data/tasks.db")
    assert Keys(database).find(shown).name == "ann"
    call("keys", "revoke", "ann")
    assert Keys(database).find(shown) is None
    database.close()
    ann, bob = call("keys", "list").splitlines()
    assert re.match(r"ann +7 a minute, 3 at once +used \d{4}-.* revoked$", ann)
    assert re.match(r"bob +60 a minute, 20 at once +never used +0 unfinished$", bob)
    with pytest.raises(OptionError, match="no key 'eve'"):
        call("keys", "revoke", "eve")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("serve", "--no-auth", "--host", "192.0.2.1"), "open to everybody"),
        (("serve", "--host", "0.0.0.0"), "give --public-url"),  # noqa: S104 - refused
        (("serve", "--public-url", "lips.example.org"), "public_url is"),
        (("serve", "--max-stored", "0"), "max_stored_bytes is 0"),
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


def test_the_defaults_are_those_of_settings():
    command = {
        parameter.name: parameter.default
        for name in ("serve", "work")
        for parameter in typer.main.get_command(app).commands[name].params
    }
    of_command = {
        "max_upload_bytes": "max_upload",
        "max_stored_bytes": "max_stored",
    }
    for name in ("data", "model", "max_upload_bytes", "max_stored_bytes", "max_seconds",
                 "keep_hours", "upload_hours", "url_hours", "lease_seconds"):  # fmt: skip
        assert command[of_command.get(name, name)] == getattr(Settings, name), name
