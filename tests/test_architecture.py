"""The layout as CONTRIBUTING.md draws it: imports point downwards, each room keeps its rules."""

import ast
import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

import latentsync

PACKAGE = Path(latentsync.__file__).parent
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
RANKS = [  # low to high: a file imports from rooms below its own, or from its own
    {"errors", "types"},
    {"options"},
    {"audio", "media"},
    {"runtime"},
    {"faces"},
    {"diffusion"},
    {"pipeline"},
    {"evaluation"},
    {"service", "training"},
    {"cli"},
    {"__init__", "__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}
ONLY = {  # library -> the one place that imports it
    "av": "media",
    "gradio": "service/page",
    "insightface": "faces/detectors",
    "ray": "diffusion/ray",
    "whisper": "audio",
}
DEVICES = "runtime/devices.py"  # the one place that names "cuda"
MAX_LINES, MAX_FUNCTION = 500, 60


def room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of everything imported, anywhere in the file."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", FILES, ids=str)
def test_room(path):
    text = (PACKAGE / path).read_text()
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    assert len(text.splitlines()) <= MAX_LINES
    for name in imports(tree):
        library, *rest = name.split(".")
        if library == "latentsync" and rest and rest[0] in RANK and rest[0] != room(path):
            assert RANK[rest[0]] < RANK[room(path)], f"{path} imports {name}, which is not below it"
        if library in ONLY:
            assert path.as_posix().startswith(ONLY[library]), f"{path} imports {library}"
    for node in nodes:
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{path}:{node.lineno} {node.name} is long"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path}:{node.lineno} prints"
        if isinstance(node, ast.keyword) and node.arg == "shell":
            raise AssertionError(f"{path}:{node.lineno} uses a shell")
        if isinstance(node, ast.Constant) and node.value == "cuda":
            assert path.as_posix() == DEVICES, f"{path}:{node.lineno} names a device"
    exported = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"
    ]
    for names in exported:
        # ruff sorts constants first, then classes, then functions
        assert names == sorted(names, key=lambda n: (not n.isupper(), not n[:1].isupper(), n))


def test_the_ground_floor_can_be_taken_in_at_a_glance():
    rooms = {room(path) for path in FILES}
    assert rooms == set(RANK)
    assert len(rooms - {"__init__", "__main__"}) <= 13


def test_a_class_name_exists_once():
    homes = defaultdict(list)
    for path in FILES:
        for node in ast.walk(ast.parse((PACKAGE / path).read_text())):
            if isinstance(node, ast.ClassDef):
                homes[node.name.lstrip("_")].append(path.as_posix())
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


def test_the_public_interface():
    assert set(latentsync.__all__) == {
        "LatentSyncError", "LipSync", "ModelConfig", "Options", "Progress", "Result", "load",
    }  # fmt: skip
    for name in latentsync.__all__:
        assert getattr(latentsync, name) is not None


def test_importing_the_library_says_nothing_and_leaves_nothing(tmp_path):
    modules = "latentsync, latentsync.cli, latentsync.faces.restoration.nets"
    command = [sys.executable, "-c", f"import {modules}"]
    environment = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
    environment["TMPDIR"] = str(tmp_path)
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert done.returncode == 0
    assert done.stdout == done.stderr == b""
    assert not any(tmp_path.iterdir())
