"""What nets see in frames: FID's Inception against its origin, I3D's call, VideoMAE, windows."""

import hashlib
import warnings

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latentsync.errors import OptionError, WeightsMismatch, WeightsMissing
from latentsync.evaluation import features
from latentsync.evaluation.nets.inception import Inception, average
from latentsync.evaluation.nets.loading import load_net
from latentsync.evaluation.nets.videomae import VideoMAE
from latentsync.runtime.checkpoints import filled
from tests.golden.golden_rule import fill
from tests.test_videomae import tiny
from tests.tiny import golden, tensor


def frames(count, height=20, width=24, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def stored():
    return golden("inception")


@pytest.fixture(scope="module")
def state(stored):
    """By the golden rule, convolutions times 1.6, so that no layer goes silent."""
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in Inception().state_dict().items()}
    rule = fill(shapes, int(stored["seed"]))
    return {
        key: torch.from_numpy(value) * (1.6 if key.endswith("conv.weight") else 1)
        for key, value in rule.items()
    }


@pytest.fixture(scope="module")
def net(state):
    net = filled(Inception, state, "golden")
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    return net


def test_inceptions_keys_are_the_published_ones(stored):
    with torch.device("meta"):
        ours = Inception().state_dict()
    lines = "\n".join(sorted(f"{key} {list(value.shape)}" for key, value in ours.items()))
    assert hashlib.sha256(lines.encode()).hexdigest() == str(stored["keys_sha256"])


def test_inceptions_numbers_are_the_published_ones(net, stored):
    """golden/inception.npz: torchvision's net with pytorch-fid's pools, at 160 px."""
    pictures = tensor((2, 3, 160, 160), int(stored["seed"]), "pictures")
    with torch.inference_mode():
        found = net(pictures)
    assert found.shape == (2, 2048)
    np.testing.assert_allclose(found[:, ::16], stored["features"], rtol=1e-4, atol=1e-4)


def test_averages_leave_the_border_out():
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(1))
    ones, kernel = torch.ones(1, 1, 4, 5), torch.ones(3, 1, 3, 3)
    sums = F.conv2d(x, kernel, padding=1, groups=3)
    torch.testing.assert_close(average(x), sums / F.conv2d(ones, kernel[:1], padding=1))


def test_inception_sees_frames_as_fid_wants_them():
    """Resized bilinearly between pixel centres without antialiasing, in [-1, 1], RGB."""
    seen = []

    class Told(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            seen.append(x)
            return x.mean((2, 3)).repeat(1, 683)[:, :2048]

    given = frames(features.FRAME_BATCH + 1, 350, 310)
    found = features.inception_features(Told(), given)
    assert found.shape == (features.FRAME_BATCH + 1, 2048)
    assert seen[0].shape == (features.FRAME_BATCH, 3, 299, 299)
    wanted = cv2.resize(given[0].astype(np.float32), (299, 299), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_allclose(seen[0][0].permute(1, 2, 0), wanted / 127.5 - 1, atol=2e-3)
    assert features.inception_features(Told(), given[:0]).shape == (0, 2048)
    for wrong in (given[0], given.astype(np.float32), given[..., :1]):
        with pytest.raises(OptionError, match="wanted \\(n, H, W, 3\\)"):
            features.inception_features(Told(), wrong)


def test_loading_is_strict(tmp_path):
    state = {key: torch.ones(2) for key in ("weight", "bias", "running_mean", "running_var")}
    file = tmp_path / "inception.pth"
    with pytest.raises(WeightsMissing, match="download eval"):
        load_net(lambda: nn.BatchNorm2d(2), file)
    torch.save(state, file)
    assert torch.equal(load_net(lambda: nn.BatchNorm2d(2), file).weight, torch.ones(2))
    del state["bias"]
    torch.save(state, file)
    with pytest.raises(WeightsMismatch, match="does not fit"):
        load_net(lambda: nn.BatchNorm2d(2), file)


class Script(nn.Module):
    """Says what an I3D script was asked: called by these names, as the published one."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.zeros(1))

    def forward(
        self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool
    ) -> torch.Tensor:
        flags = torch.tensor([float(rescale), float(resize), float(return_features)])
        sizes = torch.tensor([float(s) for s in x.shape[1:]])
        told = torch.cat([flags, sizes, x.min().view(1), x.max().view(1), x[0, :, 0, 0, 0]])
        return torch.nn.functional.pad(told, (0, 388)).expand(x.size(0), -1)


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    file = tmp_path_factory.mktemp("i3d") / "i3d_torchscript.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripts are to go; the published file stays one
        torch.jit.script(Script()).save(str(file))
    return features.load_i3d(file)


def test_i3d_scales_by_itself(i3d):
    clips = frames(5 * 16).reshape(5, 16, 20, 24, 3)
    clips[0, 0, 0, 0] = 10, 20, 30
    found = features.i3d_features(i3d, clips)
    wanted = [1, 1, 1, 3, 16, 20, 24, 0, 255, 10, 20, 30]
    np.testing.assert_array_equal(found[0, :12], wanted)
    assert found.shape == (5, 400)


def test_loading_i3d(tmp_path):
    file = tmp_path / "i3d_torchscript.pt"
    with pytest.raises(WeightsMissing, match="download eval"):
        features.load_i3d(file)
    for content in (b"", b"nothing"):
        file.write_bytes(content)
        with pytest.raises(WeightsMismatch, match="not the published I3D"):
            features.load_i3d(file)


def test_videomae_sees_windows():
    torch.manual_seed(0)
    net = VideoMAE(tiny())
    clips = frames(6 * 4, 12, 12).reshape(6, 4, 12, 12, 3)
    found = features.videomae_features(net, clips)
    with torch.inference_mode():
        wanted = net(torch.from_numpy(clips).permute(0, 4, 1, 2, 3) / 255)
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    with pytest.raises(OptionError, match="3 frames; VideoMAE takes 4"):
        features.videomae_features(net, clips[:, :3])
    for act in (features.videomae_features, features.i3d_features):
        with pytest.raises(OptionError, match="b, t, H, W, 3"):
            act(net, clips[0])


def test_windows_stream():
    numbered = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((2, 2, 3), np.uint8)
    found = [w[:, 0, 0, 0].tolist() for w in features.windows(iter(numbered))]
    assert found == [list(range(s, s + 16)) for s in (0, 16, 32)]
    assert not list(features.windows(numbered[:15]))
