"""LPIPS against the published package, its gradient, and its loading from two files."""

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from torch import nn

from latentsync.errors import WeightsMismatch, WeightsMissing
from latentsync.evaluation.nets import loading
from latentsync.evaluation.nets.loading import load_lpips
from latentsync.evaluation.nets.lpips import LPIPS
from latentsync.runtime.downloads import SETS


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """A file as torchvision's, but of random features; with its classifier, in the old format."""
    torch.manual_seed(0)
    state = {k: v for k, v in LPIPS().state_dict().items() if k.startswith("features.")}
    file = tmp_path_factory.mktemp("vgg") / "vgg16-397923af.pth"
    old = {"_use_new_zipfile_serialization": False}
    torch.save(state | {"classifier.0.weight": torch.zeros(4, 4)}, file, **old)
    return file


@pytest.fixture(scope="module")
def net(vgg):
    return load_lpips(vgg)  # with the linear layers of the package


@pytest.fixture
def package(monkeypatch):
    """The package lpips, which needs no more of torchvision than VGG16's layers."""

    def vgg16(**_):
        return types.SimpleNamespace(features=LPIPS().features)

    models = types.SimpleNamespace(vgg16=vgg16)
    monkeypatch.setitem(sys.modules, "torchvision", types.SimpleNamespace(models=models))
    module = importlib.import_module("lpips")
    yield module
    for name in [name for name in sys.modules if name.split(".")[0] == "lpips"]:
        del sys.modules[name]


def pictures(seed, shape=(3, 3, 48, 37)):
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def test_distances_are_the_packages(net, package):
    published = package.LPIPS(net="vgg", verbose=False)
    layers = [layer for slice_ in published.net.children() for layer in slice_.children()]
    nn.Sequential(*layers[: len(net.features)]).load_state_dict(net.features.state_dict())
    a, b = pictures(1), pictures(2)
    expected = published(a, b).flatten()
    assert expected.min() > 0.01
    torch.testing.assert_close(net(a, b), expected.detach(), rtol=1e-5, atol=0)


def test_gradients_reach_the_picture_only(net):
    a = pictures(1).requires_grad_()
    net(a, pictures(2)).sum().backward()
    assert a.grad.abs().amin((1, 2, 3)).max() < a.grad.abs().amax((1, 2, 3)).min()
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())


def test_what_looks_the_same_is_at_no_distance_and_has_a_gradient(net):
    a = pictures(1).requires_grad_()
    distance = net(a, pictures(1))
    assert distance.tolist() == [0, 0, 0]
    distance.sum().backward()
    assert a.grad.abs().max() == 0


def test_loading_is_strict(vgg, tmp_path, monkeypatch):
    with pytest.raises(WeightsMissing, match="latentsync download train"):
        load_lpips(tmp_path / "none.pth")
    linear = tmp_path / "linear.pth"
    with pytest.raises(WeightsMissing, match="part of lpips"):
        load_lpips(vgg, linear)
    torch.save({f"lin{i}.model.1.weight": torch.ones(1, 64, 1, 1) for i in range(5)}, linear)
    with pytest.raises(WeightsMismatch, match=r"vgg16.* with .*linear\.pth does not fit") as caught:
        load_lpips(vgg, linear)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    with pytest.raises(WeightsMissing, match=r"lpips_vgg\.pth is missing.*download train"):
        load_lpips(vgg)


def test_downloads_alone_are_enough(vgg, monkeypatch):
    """What `latentsync download train` fetches; the package lpips is not installed then."""
    monkeypatch.setattr(loading, "find_spec", lambda _: None)
    wanted = {Path(item.target).name for item in SETS["train"]}
    assert {"vgg16-397923af.pth", loading.LPIPS_LINEAR} <= wanted
    widths = (64, 128, 256, 512, 512)
    state = {
        f"lin{i}.model.1.weight": torch.full((1, width, 1, 1), 0.5)
        for i, width in enumerate(widths)
    }
    torch.save(state, vgg.with_name(loading.LPIPS_LINEAR))
    try:
        assert load_lpips(vgg).lin2.model[1].weight.unique().tolist() == [0.5]
    finally:
        vgg.with_name(loading.LPIPS_LINEAR).unlink()


def test_the_package_is_not_imported(net):
    assert net.lin4.model[1].weight.min() >= 0
    assert "lpips" not in sys.modules
