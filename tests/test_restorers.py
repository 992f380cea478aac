"""Asking for restoration nets, as far as it goes without spandrel; the rest: tests/restoration."""

import sys
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from latentsync.downloads import SETS
from latentsync.errors import BackendUnavailable, WeightsMismatch, WeightsMissing
from latentsync.restorers import OF_CODEFORMER, load_restorer


def load(name, folder):
    return load_restorer(str(name), folder=folder, device=torch.device("cpu"), weight=0.5)


@pytest.fixture
def some_net(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"some.weight": torch.zeros(2)}, path)
    return path


@pytest.mark.parametrize("name", ["gfpgan", "GFPGAN", "CodeFormer"])
def test_a_net_that_was_not_fetched(name, tmp_path):
    with pytest.raises(WeightsMissing, match=f"run `latentsync download {name.lower()}`") as caught:
        load(name, tmp_path)
    assert str(tmp_path / SETS[name.lower()][0].target) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(WeightsMissing, match="give gfpgan, codeformer or the file of another net"):
        load("gfpgen", tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0 a picture", b""])
def test_a_file_that_is_no_net(content, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsMismatch, match="can't be read as weights") as caught:
        load(path, tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_in_a_file_is_run(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"params": torch.nn.Linear(2, 2)}, path)  # a pickled object, not its tensors
    with pytest.raises(WeightsMismatch, match="can't be read as weights"):
        load(path, tmp_path)


def test_codeformer_only_by_its_name(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({name: torch.zeros(2) for name in OF_CODEFORMER}, path)
    with pytest.raises(WeightsMismatch, match=r"forbids commercial use.* asked for by name"):
        load(path, tmp_path)
    assert "non-commercial" in SETS["codeformer"][0].licence


def test_without_spandrel(some_net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(BackendUnavailable, match=r'pip install "latentsync\[restore\]"'):
        load(some_net, tmp_path)


def test_beside_a_torchvision_of_another_build(some_net, tmp_path, monkeypatch):
    """Its import ends so: tests/restoration/__init__.py."""

    class Broken(ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "spandrel", ModuleType("spandrel"))
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", Broken("spandrel_extra_arches"))
    with pytest.raises(BackendUnavailable, match=r"nms does not exist.*a torchvision made for"):
        load(some_net, tmp_path)
