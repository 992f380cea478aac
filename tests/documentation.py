"""What is fenced in README.md and docs/: blocks, the commands in them, and what these name."""

import ast
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from typer.main import get_command

from latentsync.cli import commands

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = ("bash", "python", "text")
FENCE = re.compile(r"```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DIRECTIVE = re.compile(r"^::: .*\n(?:    .*\n)*", re.MULTILINE)
ASSIGNMENT = re.compile(r"[A-Z_]+=.*")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Each command of a bash block, and its words without variables set in front of them."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                command = " ".join(words)
                while len(words) > 1 and ASSIGNMENT.fullmatch(words[0]):
                    words = words[1:]
                yield command, words


@cache
def blocks() -> tuple[Block, ...]:
    """All fenced blocks, page by page."""
    return tuple(
        Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])
        for page in PAGES
        for text in [page.read_text(encoding="utf-8")]
        for found in FENCE.finditer(text)
    )


def prose(page: Path) -> str:
    """A page without its fenced blocks, and without what mkdocstrings is told."""
    return FENCE.sub("", DIRECTIVE.sub("", page.read_text(encoding="utf-8")))


def parse(words: list[str]) -> None:
    """Parse a `latentsync` command by the command line itself; raises what it raises."""
    command, context = get_command(commands), None
    while True:
        context = command.make_context(words[0], words[1:], parent=context)
        if not hasattr(command, "resolve_command"):
            return
        words = [*context._protected_args, *context.args]
        _, command, rest = command.resolve_command(context, words)
        words = [words[0], *rest]


def shown_options(command: str) -> list[set[str]]:
    """The options that a command's help shows, each by all its spellings."""
    params = get_command(commands).commands[command].params
    shown = [set(one.opts) for one in params if not getattr(one, "hidden", False)]
    return [names for names in shown if all(name.startswith("-") for name in names)]


@cache
def options() -> frozenset[str]:
    """Every option of every command."""
    found, groups = {"--help"}, [get_command(commands)]
    for group in groups:
        found |= {name for one in group.params for name in (*one.opts, *one.secondary_opts)}
        groups += getattr(group, "commands", {}).values()
    return frozenset(found)


@cache
def names_of_tests(path: str) -> set[str]:
    """The names of a file's tests."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def container_inputs(name: str) -> dict[str, Any]:
    """The inputs of the container's schema: `Input` or `TrainingInput`."""
    schema = json.loads((ROOT / ".cog/openapi_schema.json").read_text())
    return schema["components"]["schemas"][name]["properties"]
