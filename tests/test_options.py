"""One declaration of an option: the command line, the task API, docs and library agree on it."""

import sys
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from latentsync import cli
from latentsync.cli import generate, upscale
from latentsync.cli.groups import FieldsOf, grouped
from latentsync.errors import OptionError
from latentsync.options import GENERAL, PUBLISHED, Option, Options, declared
from latentsync.service import requests
from scripts import options_table

KNOWN = declared(Options)
SAID_WRONG = [  # an option, and a value that it can't have
    ("guidance_scale", 10.5),
    ("seed", -1),
    ("steps", 51),
    ("smooth", 4),
    ("max_yaw", 86.5),
    ("lead_in", 3600.5),
    ("max_side", 15),
    ("audio_track", "0"),
    ("sr_ratio", 0.5),
]


@pytest.fixture(scope="module")
def flags():
    """What `latentsync generate` and `upscale` take, by command and by field."""
    commands = get_command(cli.commands).commands
    return {
        name: {one.name: one for one in commands[name].params} for name in ("generate", "upscale")
    }


def test_every_field_declares_itself():
    assert list(KNOWN) == [one.name for one in fields(Options)]
    for option in KNOWN.values():
        assert option.group
        assert option.description.endswith(".")
        assert option.description[0].isupper()
        option.check(option.default)
        if option.published is not None:
            option.check(option.published)
        for bound in option.within or ():
            option.check(bound)


def test_the_command_line_has_every_option_but_those_of_fidelity(flags):
    assert set(generate.SHOWN) == {n for n, option in KNOWN.items() if option.group != PUBLISHED}
    for command, names in (("generate", generate.SHOWN), ("upscale", upscale.SHOWN)):
        for name in names:
            option, flag = KNOWN[name], flags[command][name]
            assert flag.opts == [f"--{name.replace('_', '-')}"]
            assert flag.help.startswith(option.help)
            assert getattr(flag, "rich_help_panel", None) == (
                None if option.group == GENERAL else option.group
            )
            own = {"face": "all"} if command == "upscale" else {}
            assert flag.default == own.get(name, option.default)


def test_help_shows_bounds_choices_and_defaults(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sys, "argv", ["latentsync", "generate", "--help"])
    with pytest.raises(SystemExit):
        cli.main()
    lines = capsys.readouterr().out.splitlines()
    for name in generate.SHOWN:
        option, flag = KNOWN[name], f"--{name.replace('_', '-')} "
        (line,) = [line for line in lines if flag in line.split("<")[0]]
        assert option.help in line
        if option.types != (bool,):
            default = f"({option.unset})" if option.default is None else option.default
            assert f"[default: {default}]" in line


def test_the_api_documents_what_the_fields_declare():
    schema = requests.TaskRequest.model_json_schema()["properties"]
    for name in requests.OPTIONS:
        option, said = KNOWN[name], schema[name]
        assert said["default"] == option.default
        assert tuple(said.get("enum", ())) == option.choices
        low, high = option.within or (None, None)
        assert (said.get("minimum"), said.get("maximum")) == (low, high)
        if name not in requests.NARROWER:
            assert said["description"].startswith(option.help)
            assert option.unset in said["description"]


@pytest.mark.parametrize(("name", "value"), SAID_WRONG)
def test_a_wrong_value_gives_the_same_sentence_everywhere(name, value, monkeypatch, capsys):
    with pytest.raises(OptionError) as library:
        Options(**{name: value})
    sentence = str(library.value)
    assert sentence.startswith(f"{name} is {value!r}; it must be ")

    asked = requests.TaskRequest(audio="https://a/b", video="https://a/b", **{name: value})
    with pytest.raises(OptionError) as api:
        requests.options_of(asked.model_dump(exclude_unset=True), requests.ServiceSettings())
    assert api.value.told(requests.asker()) == sentence

    flag = f"--{name.replace('_', '-')}"
    monkeypatch.setattr(sys, "argv", ["latentsync", "generate", "a", "-o", "b", flag, str(value)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        f"latentsync: error: {flag} is {value!r}{sentence[sentence.index('; it must') :]}\n"
    )


@pytest.mark.parametrize(("flag", "value"), [("--max-upload", 0), ("--keep-hours", -1.0)])
def test_a_wrong_limit_of_the_service_is_named_by_its_flag(flag, value, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["latentsync", "serve", flag, str(value)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = f"latentsync: error: {flag} is {value}; it must be more than 0\n"
    assert capsys.readouterr().err == said


def test_the_page_of_docs_is_what_the_fields_say():
    """Else: python scripts/options_table.py."""
    assert options_table.PAGE.read_text(encoding="utf-8") == options_table.page()


@dataclass(frozen=True)
class Later:
    """Options as they may be added one day."""

    blink_seconds: Annotated[
        float | None, Option("Eyes", "Seconds of a blink.", within=(0.1, 2), unset="as drawn")
    ] = None
    gaze: Annotated[Literal["front", "aside"], Option(GENERAL, "Direction of the gaze.")] = "front"
    lashes: Annotated[bool, Option("Eyes", "Draw lashes.")] = False
    plain: int = 3  # declares nothing, and is shown nowhere


def test_an_option_that_is_added_appears_everywhere():
    given = []
    command = typer.Typer()

    @command.command()
    @grouped
    def look(asked: Annotated[dict[str, Any], FieldsOf(Later, tuple(declared(Later)))]) -> None:
        given.append(asked)

    def run(*words):
        return CliRunner().invoke(command, words, env={"COLUMNS": "200"})

    told = run("--help").output
    assert "Seconds of a blink. 0.1 to 2. [default: (as drawn)]" in told
    assert "Direction of the gaze. One of front, aside. [default: front]" in told
    assert "Eyes" in told
    assert "plain" not in told
    assert run().exit_code == run("--gaze", "front", "--blink-seconds", "1", "--lashes").exit_code
    assert given == [{}, {"gaze": "front", "blink_seconds": 1.0, "lashes": True}]

    blink, gaze, _ = declared(Later).values()
    assert options_table.row(blink) == (
        "| `blink_seconds` | Seconds of a blink. | 0.1 to 2 | as drawn |  |\n"
    )
    with pytest.raises(OptionError, match=r"^gaze is 'up'; it must be one of 'front', 'aside'$"):
        gaze.check("up")
    hint, field = requests._field(blink)
    assert hint == float | None
    assert field.json_schema_extra == {"minimum": 0.1, "maximum": 2}
