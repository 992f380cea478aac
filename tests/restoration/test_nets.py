"""What `restore` gives is what the net itself gives, in its range and with its padding."""

import pytest
import torch
import torch.nn.functional as F
from spandrel.architectures.Compact import Compact
from spandrel.architectures.SAFMN import SAFMN
from torch import nn

from latentsync.errors import WeightsMismatch
from latentsync.faces.restoration.nets import load_restorer
from latentsync.runtime import devices
from latentsync.runtime.downloads import SETS
from tests.restoration import face_nets

SIDE = 512
CPU = torch.device("cpu")


def load(name, folder=None, weight=0.3):
    return load_restorer(str(name), folder=folder, device=CPU, weight=weight)


def saved(net, path, entry="params"):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({entry: net.state_dict()}, path)
    return path


def pictures(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.manual_seed(0))


def colours(some):
    return some.permute(0, 3, 1, 2).contiguous() / 255


def levels(answer):
    return (answer.clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


@torch.inference_mode()
def directly(net, some):
    """The nets for faces by hand: [-1, 1] in, [-1, 1] out."""
    if isinstance(net, face_nets.NETS["gfpgan"]):
        answer, _ = net(colours(some) * 2 - 1, randomize_noise=False)
    else:
        answer, _ = net(colours(some) * 2 - 1, weight=0.3)
    return levels((answer + 1) / 2)


@pytest.mark.parametrize("name", face_nets.NETS)
def test_the_nets_for_faces(name, tmp_path):
    net = face_nets.random(name)
    saved(net, tmp_path / SETS[name][0].target, "params_ema")
    restorer = load(name.upper(), tmp_path)
    assert (restorer.name, restorer.scale, restorer.side) == (name, 1, SIDE)
    assert restorer.faces
    assert restorer.licence == SETS[name][0].licence
    one = pictures(1, SIDE, SIDE, 3)
    restored = restorer.restore(one)
    assert restored.shape == one.shape
    assert restored.float().std() > 1
    apart = (restored.int() - directly(net, one).int()).abs()
    assert apart.max() <= 1, apart.max()
    assert (apart > 0).float().mean() < 1e-3


def test_any_size_and_a_scale(tmp_path):
    torch.manual_seed(0)
    net = Compact(num_feat=8, num_conv=2, upscale=2)
    restorer = load(saved(net, tmp_path / "small.pth"))
    assert (restorer.name, restorer.scale, restorer.side) == ("small.pth", 2, None)
    assert not restorer.faces
    two = pictures(2, 13, 17, 3)
    with torch.inference_mode():
        expected = torch.cat([levels(net(colours(one[None]))) for one in two])
    assert expected.shape == (2, 26, 34, 3)
    assert torch.equal(restorer.restore(two), expected)


def test_padding(tmp_path):
    torch.manual_seed(0)
    net = SAFMN(dim=8, n_blocks=1, upscaling_factor=2)
    restorer = load(saved(net, tmp_path / "multiples_of_8.pth"))
    one = pictures(1, 13, 22, 3)
    with torch.inference_mode():
        padded = net(F.pad(colours(one), (0, 2, 0, 3), "reflect"))
    assert torch.equal(restorer.restore(one), levels(padded[..., :26, :44]))


@pytest.mark.parametrize(("make", "half"), [(Compact, True), (SAFMN, False)])
def test_half_precision_only_where_the_net_bears_it(make, half, tmp_path, monkeypatch):
    sizes = {"num_feat": 8, "num_conv": 2} if half else {"dim": 8, "n_blocks": 1}
    path = saved(make(**sizes), tmp_path / "net.pth")
    monkeypatch.setattr(devices, "choose", lambda _: (CPU, torch.float16))
    seen, forward = [], make.forward
    monkeypatch.setattr(make, "forward", lambda net, x: seen.append(x.dtype) or forward(net, x))
    load(path).restore(pictures(1, 16, 16, 3))
    assert seen == [torch.float16 if half else torch.float32]


def test_other_nets_are_refused(tmp_path):
    place = tmp_path / SETS["gfpgan"][0].target
    for name, state, told in (
        (place, Compact(num_feat=8, num_conv=2), "holds Compact .* not GFPGAN"),
        (tmp_path / "grey.pth", Compact(num_in_ch=1, num_out_ch=1), "1 channels to 1"),
        (tmp_path / "unknown.pth", nn.Linear(2, 2), "does not hold a net"),
    ):
        saved(state, name)
        with pytest.raises(WeightsMismatch, match=told) as caught:
            load("gfpgan" if name == place else name, tmp_path)
        assert "\n" not in str(caught.value)


def test_a_net_with_names_missing_is_refused(tmp_path):
    net = Compact(num_feat=8, num_conv=2)
    del net.body[2].bias
    with pytest.raises(WeightsMismatch, match="does not hold a net") as caught:
        load(saved(net, tmp_path / "less.pth"))
    assert "\n" not in str(caught.value)
