"""The two small nets: form, size, and that the committed files are theirs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from latentsync.faces.detectors.landmark_net import SIDE, PointNet, Regressor

DEMO = Path(__file__).parent.parent / "weights" / "demo"
PICTURES = torch.rand(5, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_numbers_come_in_their_own_units() -> None:
    net = Regressor(3)
    raw = net(PICTURES)
    assert raw.shape == (5, 3)
    net.mean.copy_(torch.tensor([1.0, 2, 3]))
    net.std.fill_(10)
    torch.testing.assert_close(net(PICTURES), raw * 10 + torch.tensor([1.0, 2, 3]))


def test_points_lie_in_the_picture() -> None:
    points, face = PointNet(12)(PICTURES)
    assert points.shape == (5, 12, 2)
    assert face.shape == (5,)
    assert points.abs().max() < 1


def test_a_point_is_the_centre_of_its_heat() -> None:
    """x runs to the right, y down: heat in one cell puts the point there."""

    class Heat(nn.Module):
        def forward(self, features: torch.Tensor) -> torch.Tensor:
            heat = torch.full((len(features), 1, 16, 16), -1e4)
            heat[:, :, 2, 11] = 0
            return heat

    net = PointNet(1)
    net.maps = Heat()  # type: ignore[assignment]
    points, _ = net(PICTURES[:1])
    torch.testing.assert_close(points[0, 0], torch.tensor([11.5, 2.5]) / 8 - 1)


@pytest.mark.parametrize("make", [lambda: Regressor(3), lambda: PointNet(12)])
def test_light_and_contrast_do_not_matter(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    net = make().eval()
    dim, as_is = net(PICTURES * 0.2 - 0.5), net(PICTURES)
    for a, b in zip(dim, as_is, strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "make"), [("landmarks", lambda: PointNet(12)), ("ruler", lambda: Regressor(3))]
)
def test_committed_weights(name: str, make: Callable[[], nn.Module]) -> None:
    net = make()
    file = DEMO / f"{name}.safetensors"
    assert file.stat().st_size < 1e6
    state = load_file(file)
    assert {value.dtype for value in state.values()} == {torch.float16}
    net.load_state_dict(state, strict=True)
    assert sum(p.numel() for p in net.parameters()) < 450_000
