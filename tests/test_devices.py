"""What is chosen where: the machine is made up, so that each case runs everywhere."""

import pytest
import torch

from latentsync.devices import choose
from latentsync.errors import BackendUnavailable, OptionError


def machine(monkeypatch, *, cuda=0, capability=(9, 0), mps=False):
    """A machine with so many CUDA devices of that compute capability."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: capability)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({}, ("cpu", torch.float32)),
        ({"mps": True}, ("mps", torch.float32)),
        ({"cuda": 1}, ("cuda", torch.float16)),
        ({"cuda": 1, "mps": True}, ("cuda", torch.float16)),
        ({"cuda": 1, "capability": (7, 0)}, ("cuda", torch.float16)),
        ({"cuda": 1, "capability": (6, 1)}, ("cuda", torch.float32)),
    ],
)
def test_the_best_there_is(monkeypatch, there, expected):
    machine(monkeypatch, **there)
    device, dtype = choose()
    assert (device.type, dtype) == expected


def test_what_is_asked_for_is_taken(monkeypatch):
    machine(monkeypatch, cuda=2)
    assert choose("cpu") == (torch.device("cpu"), torch.float32)
    assert choose("cuda:1", "bfloat16") == (torch.device("cuda:1"), torch.bfloat16)
    assert choose(dtype="float32") == (torch.device("cuda"), torch.float32)
    assert choose("cpu", "float16") == (torch.device("cpu"), torch.float16)


@pytest.mark.parametrize(
    ("device", "there"),
    [("cuda", {}), ("mps", {}), ("cuda:2", {"cuda": 2}), ("cuda", {"mps": True}), ("xpu", {})],
)
def test_a_device_that_is_not_there_is_never_replaced(monkeypatch, device, there):
    machine(monkeypatch, **there)
    with pytest.raises(BackendUnavailable, match=f"device '{device}' was asked for") as caught:
        choose(device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:-1", "0"])
def test_an_unknown_device_is_refused_with_the_known_ones(monkeypatch, device):
    machine(monkeypatch)
    with pytest.raises(OptionError, match=f"device is '{device}'; it must be cpu, cuda, cuda:N"):
        choose(device)


def test_an_unknown_dtype_is_refused_with_the_known_ones(monkeypatch):
    machine(monkeypatch)
    with pytest.raises(OptionError, match=r"'fp16'.*float32, float16, bfloat16"):
        choose(dtype="fp16")
