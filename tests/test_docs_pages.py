"""What the pages of README.md and docs/ name exists: options, files, inputs, paths, reasons."""

import re

import pytest
import yaml

from latentsync.evaluation.runner import METRICS
from latentsync.options import Options
from tests import documentation
from tests.documentation import PAGES, ROOT, blocks, container_inputs, prose


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_page(page):
    """Fences name a language; options, files and paths between backquotes exist."""
    text = page.read_text(encoding="utf-8")
    own = [block for block in blocks() if block.page == page]
    assert text.count("```") == 2 * len(own), "a fence that is indented or not closed"
    assert {block.language for block in own} <= set(documentation.LANGUAGES)
    assert not re.search(r"^    \S", prose(page), re.MULTILINE), "a block that is not fenced"
    for span in re.findall(r"`([^`\n]+)`", prose(page)):
        if option := re.match(r"--[a-z][\w-]*", span):
            assert option[0] in documentation.options() | OTHERS_OPTIONS, f"no command has {span}"
        if span in OTHERS_FILES:
            continue
        if re.fullmatch(r"[\w-]+(/[\w.-]+)+\.(py|md|yaml)|[\w/-]+/Caddyfile", span):
            places = (ROOT / span, ROOT / "latentsync" / span)
            assert any(path.is_file() for path in places), f"{span} is not there"


OTHERS_OPTIONS = {"--upload-url", "--x-mode", "--install-completion"}  # Cog's, and typer's
OTHERS_FILES = {"scripts/inference.py", "tools/write_fileslist.py", "eval/eval_fvd.py"}  # published


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "deploy/README.md", "benchmarks/README.md"]
)
def test_links_outside_the_site(page):
    """`make docs` checks those between the pages of docs/."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if "://" in path:
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{link} is not there"
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in heads}


def test_the_container_s_inputs_are_on_its_page():
    text = (ROOT / "docs/host/cog.md").read_text(encoding="utf-8")
    first, second = (
        dict(re.findall(r"^\| `(\w+)` \|.*\| (.*?) \|$", part, re.MULTILINE))
        for part in (text[: text.index("## Output")], text[text.index("## Tune") :])
    )
    for told, name in ((first, "Input"), (second, "TrainingInput")):
        wanted = {
            key: f"`{value['default']}`"
            if isinstance(value.get("default"), str)
            else f"{value['default']:g}"
            if "default" in value
            else "required"
            for key, value in container_inputs(name).items()
        }
        assert told == wanted


def test_the_task_api_s_paths_are_on_its_page(tmp_path):
    from tests.service import house

    text = (ROOT / "docs/host/service.md").read_text(encoding="utf-8")
    told = re.findall(r"`(GET|POST|DELETE) (/\S+)`", text)
    with house(tmp_path) as home:
        paths = home.client.get("/openapi.json").json()["paths"]
    known = {re.sub(r"\{\w+\}", "{id}", path): way.keys() for path, way in paths.items()}
    known["/openapi.json"] = {"get"}
    for method, path in told:
        assert method.lower() in known[path]


@pytest.mark.parametrize(
    ("command", "pages"),
    [
        ("generate", "user/*.md"),
        ("upscale", "user/*.md"),
        ("prepare", "research/train.md"),
        ("evaluate", "research/evaluate.md"),
        ("serve", "host/service.md"),
    ],
)
def test_every_option_is_on_a_page(command, pages):
    text = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob(pages))
    named = {"--help", *re.findall(r"(?<=[\s`])--?[a-z][\w-]*", text)}
    assert [names for names in documentation.shown_options(command) if not names & named] == []


def test_published_choices_are_on_their_page():
    text = (ROOT / "docs/research/reproduce.md").read_text(encoding="utf-8")
    table = text[text.index("| option | published |") : text.index("`inference.sh` also")]
    told = {
        name: value.split(maxsplit=1)[0].strip("`,:")
        for name, value in re.findall(r"^\| `(\w+)` \| (.*?) \|", table, re.MULTILINE)
    }
    ours, published = vars(Options()), vars(Options.published())
    assert told == {name: str(published[name]) for name in ours if ours[name] != published[name]}


def test_every_metric_is_on_its_page():
    text = (ROOT / "docs/research/evaluate.md").read_text(encoding="utf-8")
    table = text[text.index("| `--metrics` | |") : text.index("| option | default |")]
    cells = re.findall(r"^\| (`[a-z].*?) \|", table, re.MULTILINE)
    assert {name for cell in cells for name in re.findall(r"`(\w+)`", cell)} == set(METRICS)


def test_reasons_for_untouched_frames_are_those_of_the_code():
    text = (ROOT / "docs/user/footage.md").read_text(encoding="utf-8")
    table = text[text.index("| reason |") : text.index("A run ends with")]
    cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    reasons = [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]
    code = "".join(
        path.read_text(encoding="utf-8")
        for room in ("faces", "pipeline")
        for path in (ROOT / "latentsync" / room).rglob("*.py")
    )
    assert len(reasons) >= 10
    assert [name for name in reasons if f'"{name}' not in code] == []


def test_every_page_is_in_the_navigation():
    listed: list[str] = []

    def walk(node: object) -> None:
        if isinstance(node, str):
            listed.append(node)
        for child in node.values() if isinstance(node, dict) else node:
            walk(child) if not isinstance(node, str) else None

    walk(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES[1:]]
    assert sorted(listed) == sorted(pages)
