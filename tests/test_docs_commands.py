"""What README.md and docs/ tell people to type works.

Every command and every block of Python is run here, by a tiny model on tiny clips, unless NOT_RUN
says why not. Those are still held against the command line: an option that is gone is found.
"""

import ast
import importlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml

from latentsync import cli
from latentsync.options import Options
from latentsync.pipeline.lipsync import LipSync
from latentsync.types import Face
from tests import documentation
from tests.clips import babble, write_clip, write_picture, write_sound
from tests.documentation import ROOT, blocks, container_inputs, names_of_tests
from tests.stubs import StubDetector, tiny_nets

NETWORK = "fetches from the network"
WEIGHTS = "needs published weights"
SERVES = "serves until it is stopped"
SERVER = "needs the server that the page starts"
RUNS_TESTS = "runs tests"
# Commands, as patterns, or the first lines of blocks of Python -> why they are not run here, and
# the test that does the same by other means where there is one.
NOT_RUN = {
    ".ci/run": RUNS_TESTS,
    ".venv/bin/pytest *": RUNS_TESTS,
    ".venv/bin/python -m tests.test_cog": "writes the schema that is committed",
    ".venv/bin/python scripts/options_table.py": (
        "writes the page that is committed; "
        "tests/test_options.py::test_the_page_of_docs_is_what_the_fields_say"
    ),
    "make test": RUNS_TESTS,
    "make test-all": RUNS_TESTS,
    "make footage": RUNS_TESTS,
    "make bench": "takes half an hour",
    "make demo": f"{NETWORK}; tests/test_cli.py::test_generate_prints_the_path_and_a_summary",
    "make docs": f"{NETWORK}; tests/test_docs_site.py::test_the_site_is_built",
    "pip install *": NETWORK,
    "python3.11 -m venv *": "makes an environment for the next lines",
    ". .venv-cog/bin/activate": "is of the shell",
    "export *": "is of the shell",
    "python benchmarks/gpu.py *": "needs a GPU",
    "python benchmarks/train_step.py": "needs a GPU",
    "python benchmarks/quality.py *": "takes an hour",
    "python scripts/download_weights.py *": NETWORK,
    "latentsync download *": (
        f"{NETWORK}; tests/test_downloads.py::test_from_the_hub_by_way_of_its_cdn"
    ),
    "latentsync doctor": "finds what this machine lacks; tests/test_doctor.py::test_the_command",
    "latentsync verify *": f"{WEIGHTS}; tests/test_verify.py::test_a_run_in_one_table",
    "latentsync generate * --superres *": (
        f"{WEIGHTS}; tests/test_upscale.py::test_frames_without_a_face_stay_and_faces_are_restored"
    ),
    "latentsync upscale *": (
        f"{WEIGHTS}; tests/test_upscale.py::test_upscale_restores_a_clip_s_faces"
    ),
    "latentsync generate * --engine ray *": (
        "needs a cluster; tests/test_cluster_replicas.py::test_a_run_by_replicas_is_the_same"
    ),
    "latentsync prepare *": (
        f"{WEIGHTS}; tests/test_preparation.py::test_a_clip_is_what_training_reads"
    ),
    "latentsync synthesise --identities 200 *": "draws for hours",
    "latentsync train unet --data clips/ *": (
        f"{WEIGHTS}; tests/test_train_cli.py::test_a_folder_of_clips_becomes_a_model"
    ),
    "latentsync train unet --data dataset/ *": (
        f"{WEIGHTS}; tests/test_preparation.py::test_training_takes_the_folder"
    ),
    "latentsync train syncnet *": (
        f"{WEIGHTS}; tests/test_train_syncnet.py::test_clips_become_a_judge_of_a_run"
    ),
    "latentsync train export *": (
        "needs a run; tests/test_training_export.py::test_a_run_comes_back_from_its_file_to_the_bit"
    ),
    "accelerate launch *": (
        f"{WEIGHTS}; tests/test_training_processes.py::test_two_processes_do_what_one_does"
    ),
    "python -m http.server *": SERVES,
    "latentsync app *": f"{SERVES}; tests/test_app_browser.py::test_the_command_tidies_up",
    "latentsync serve *": (
        f"{SERVES}; tests/test_service_processes.py::test_the_published_client_unmodified"
    ),
    "latentsync work *": (
        f"{SERVES}; tests/test_service_processes.py::test_postgresql_with_workers_elsewhere"
    ),
    "* python -m cog.server.http *": f"{SERVES}; tests/test_cog_server.py::test_health",
    "cog *": "needs Docker; tests/test_cog_server.py::test_any_data_uri",
    "docker compose *": "needs Docker",
    "ray *": "needs a cluster; tests/test_cluster_replicas.py::test_a_cluster_is_joined_and_left",
    "curl *": f"{SERVER}; tests/test_cog_server.py::test_urls_with_odd_names",
    "from wavespeed import Client": (
        f"{SERVER}; tests/test_service_processes.py::test_the_published_client_unmodified"
    ),
    "import base64\nimport json\nimport urllib.request": (
        f"{SERVER}; tests/test_cog_server.py::test_the_client_on_the_page"
    ),
}
SLOW = ("latentsync synthesise *", "latentsync train unet --data drawn/ *", "python scripts/*")
BASH = [one for one in blocks() if one.language == "bash"]
PYTHON = [one for one in blocks() if one.language == "python"]
COMMANDS = [command for block in BASH for command, _ in block.commands()]
SIZE = (480, 270)  # px; the pages name places in a frame
CENTRES = (110, 420)  # px from the left, of two faces


def reason(text: str) -> str | None:
    """Why a command, or a block of Python, is not run."""
    return next((why for known, why in NOT_RUN.items() if fnmatchcase(text, known)), None)


def is_slow(command: str) -> bool:
    return any(fnmatchcase(command, pattern) for pattern in SLOW)


def fast_commands(block: documentation.Block) -> list[list[str]]:
    """The commands of a block that are run here, and quickly."""
    told = block.commands()
    return [words for command, words in told if reason(command) is None and not is_slow(command)]


class TwoFaces(StubDetector):
    """Sees one face at the left and one at 420,160 in any frame."""

    def detect(self, frame, *, rounded=False, near=None):  # noqa: ARG002
        moved = (self.points + np.float32((x - 66, 93)) for x in CENTRES)
        return [
            Face((x - 26, 125, x + 26, 195), 1.0, m) for x, m in zip(CENTRES, moved, strict=True)
        ]

    def follow(self, frame, faces, *, rounded=False):
        found = self.detect(frame, rounded=rounded)
        return [min(found, key=lambda one: abs(one.box[0] - face.box[0])) for face in faces]

    def embed(self, frame, face):  # noqa: ARG002
        left = face.box[0] < SIZE[0] / 2
        return np.array([left, not left], np.float32)


class OneStep(LipSync):
    """Takes one step, whatever is asked for."""

    def run(self, *inputs, options=None, **changes):
        return super().run(*inputs, options=replace(options or Options(), steps=1), **changes)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with every file that the commands which are run here name."""
    folder = tmp_path_factory.mktemp("files")
    voice = write_sound(folder / "short.wav", babble(0.16))
    write_sound(folder / "long.wav", babble(0.56))
    short = write_clip(folder / "face.mp4", 5, size=SIZE, sound=babble(0.2, 48000))
    long = write_clip(folder / "two.mp4", 15, size=SIZE, preset="ultrafast")
    write_picture(folder / "photo.png", np.full((SIZE[1], SIZE[0], 3), 90, np.uint8))
    for name in ("speech.wav", "ann.wav", "ben.wav", "voice.wav", "examples/speech.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(voice, folder / name)
    for name in ("talk", "clip", "out", "examples/face", "originals/a", "outputs/a"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(short, folder / f"{name}.mp4")
    shutil.copy(long, folder / "film.mp4")
    return folder


@pytest.fixture(scope="module")
def tiny():
    return OneStep(tiny_nets(), TwoFaces())


@pytest.fixture
def place(files, tiny, tmp_path, monkeypatch):
    """A copy of it as the working folder, and the tiny model in the place of any other."""
    place = tmp_path / "work"
    shutil.copytree(files, place, copy_function=os.link)
    monkeypatch.chdir(place)
    monkeypatch.setattr(LipSync, "load", lambda *_, **__: tiny)
    return place


def run(words: list[str], monkeypatch) -> None:
    """Run one command: those of latentsync in this process, scripts as a user does."""
    if words[0] == "python":
        subprocess.run([sys.executable, *words[1:]], cwd=ROOT, check=True)
        return
    assert words[0] == "latentsync", f"{words[0]} is neither run nor in NOT_RUN"
    if "@0.5" in " ".join(words):  # a time that the voice must reach
        Path("speech.wav").unlink()
        Path("speech.wav").hardlink_to("long.wav")
    for name, value in pairwise(words):
        if name in ("-o", "--output", "--video_out_path"):
            Path(value).unlink(missing_ok=True)
            outputs = [Path(value)]
            break
    else:
        outputs = []
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert all(path.exists() for path in outputs), f"{words} wrote no output"


@pytest.mark.parametrize("block", [one for one in BASH if fast_commands(one)], ids=str)
@pytest.mark.usefixtures("place")
def test_commands_run(block, monkeypatch):
    for words in fast_commands(block):
        run(words, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize(
    "block",
    [one for one in BASH if any(is_slow(name) and not reason(name) for name, _ in one.commands())],
    ids=str,
)
def test_slow_commands_run(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command, words in block.commands():
        if reason(command) is None:
            run(words, monkeypatch)


@pytest.mark.parametrize("block", PYTHON, ids=str)
@pytest.mark.usefixtures("place")
def test_python_runs(block, capsys):
    code = compile(block.text, str(block), "exec")
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("latentsync"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)
    if reason(block.text.split("\n\n")[0]) is None:
        exec(code, {})  # noqa: S102 - text of this repository
        capsys.readouterr()


def test_the_receiver_on_the_page_takes_our_webhooks():
    from latentsync.service.signing import Signer

    (block,) = [one for one in PYTHON if "def is_genuine" in one.text]
    names: dict = {}
    exec(block.text, names)  # noqa: S102 - text of this repository
    signer = Signer((b"s" * 32,))
    headers = signer.webhook_headers("ann", message_id="task", body=b"{}")
    secret = signer.webhook_secret("ann")
    assert names["is_genuine"](headers, b"{}", secret)
    assert not names["is_genuine"](headers, b"{ }", secret)


# ---- what is not run -----------------------------------------------------------------------------


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_what_is_not_run_is_on_a_page_and_tested_where_it_says(pattern):
    told = COMMANDS + [b.text.split("\n\n")[0] for b in PYTHON]
    assert any(fnmatchcase(text, pattern) for text in told), "no page has such a command any more"
    for path, name in re.findall(r"(tests/\S+\.py)::(\w+)", NOT_RUN[pattern]):
        assert name in names_of_tests(path)


@pytest.mark.parametrize("block", BASH, ids=str)
def test_what_commands_name_exists(block, monkeypatch):
    for command, words in block.commands():
        if words[0] == "export":
            for assignment in words[1:]:
                monkeypatch.setenv(*assignment.split("=", 1))
        if "--module" in words:  # accelerate launch
            words = words[words.index("--module") + 1 :]
        assert words[0] in CHECKS, f"{command}: say in CHECKS what of it can be checked"
        CHECKS[words[0]](words)


def _check_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for extras in re.findall(r"\[(.*)\]", " ".join(words)):
        assert set(extras.split(",")) <= project["optional-dependencies"].keys()
    if "-r" in words:
        assert (ROOT / words[words.index("-r") + 1]).is_file()


def _check_make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words[1:]) <= set(targets)


def _check_python(words: list[str]) -> None:
    """A script is there and has the options; or a module is."""
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2])
        return
    beside = (ROOT / words[1]).parent.glob("*.py")  # benchmarks share options
    text = (ROOT / words[1]).read_text(encoding="utf-8") + "".join(map(Path.read_text, beside))
    assert all(f'"{word}"' in text for word in words[2:] if word.startswith("-"))


def _check_pytest(words: list[str]) -> None:
    assert all((ROOT / word).is_file() for word in words if word.startswith("tests/"))


def _check_cog(words: list[str]) -> None:
    known = container_inputs("TrainingInput" if words[1] == "train" else "Input")
    asked = {word.split("=")[0] for name, word in pairwise(words) if name == "-i"}
    assert asked <= known.keys()


def _check_curl(words: list[str]) -> None:
    if "-d" in words:
        asked = json.loads(words[words.index("-d") + 1])["input"]
        assert asked.keys() <= container_inputs("Input").keys()


def _check_docker(words: list[str]) -> None:
    compose = yaml.safe_load((ROOT / words[words.index("-f") + 1]).read_text())
    assert words[words.index("--scale") + 1].split("=")[0] in compose["services"]


def _check_export(words: list[str]) -> None:
    read = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("latentsync", "deploy")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".yaml")
    )
    assert all(word.split("=")[0] in read for word in words[1:])


CHECKS = {
    "latentsync": documentation.parse,
    "pip": _check_pip,
    "make": _check_make,
    "python": _check_python,
    ".venv/bin/python": _check_python,
    "python3.11": lambda _: None,
    ".venv/bin/pytest": _check_pytest,
    ".ci/run": lambda words: (ROOT / words[0]).stat(),
    ".": lambda _: None,
    "cog": _check_cog,
    "curl": _check_curl,
    "docker": _check_docker,
    "export": _check_export,
    "ray": lambda _: None,
}
