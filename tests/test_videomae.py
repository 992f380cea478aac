"""VideoMAE V2 and TREPA: the published names and sizes, and a forward written here on its own."""

import importlib
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import VideoMAEConfig

from latentsync.errors import BackendUnavailable, WeightsMismatch, WeightsMissing
from latentsync.evaluation import nets
from latentsync.evaluation.nets import videomae
from latentsync.evaluation.nets.loading import load_videomae
from latentsync.evaluation.nets.videomae import VideoMAE, renamed, trepa_loss
from tests.golden.golden_rule import fill

EPS = 1e-6
WIDTH, HEADS, LAYERS, INNER, PATCH, SIDE, FRAMES = 24, 3, 2, 40, 4, 12, 4


def tiny():
    return VideoMAEConfig(
        image_size=SIDE,
        patch_size=PATCH,
        num_frames=FRAMES,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=INNER,
        layer_norm_eps=EPS,
    )


def published_shapes(width, layers, inner, patch):
    """Keys and shapes of a published checkpoint, the classifier of 174 actions included."""
    shapes = {
        "patch_embed.proj.weight": (width, 3, 2, patch, patch),
        "patch_embed.proj.bias": (width,),
        "fc_norm.weight": (width,),
        "fc_norm.bias": (width,),
        "head.weight": (174, width),
        "head.bias": (174,),
    }
    block = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "attn.q_bias": (width,),
        "attn.v_bias": (width,),
        "attn.qkv.weight": (3 * width, width),
        "attn.proj.weight": (width, width),
        "attn.proj.bias": (width,),
        "norm2.weight": (width,),
        "norm2.bias": (width,),
        "mlp.fc1.weight": (inner, width),
        "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (width, inner),
        "mlp.fc2.bias": (width,),
    }
    for i in range(layers):
        shapes |= {f"blocks.{i}.{key}": shape for key, shape in block.items()}
    return shapes


@pytest.fixture(scope="module")
def published():
    """A checkpoint with every weight drawn, norms and biases too."""
    shapes = published_shapes(WIDTH, LAYERS, INNER, PATCH)
    return {key: torch.from_numpy(value) for key, value in fill(shapes, 5).items()}


@pytest.fixture
def net(published):
    net = VideoMAE(tiny())
    net.load_state_dict(renamed(published), strict=True)
    return net


def features(video, state):
    """(b, 3, f, h, w) in [0, 1] -> (b, WIDTH), of the published names and arithmetic."""
    batch = len(video)
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    patches = video.unfold(2, 2, 2).unfold(3, PATCH, PATCH).unfold(4, PATCH, PATCH)
    patches = patches.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(4).flatten(1, 3)
    x = patches @ weight.flatten(1).T + bias
    place = np.arange(x.shape[1])[:, None] / 10_000 ** (np.arange(WIDTH) // 2 * 2 / WIDTH)
    table = np.where(np.arange(WIDTH) % 2, np.cos(place), np.sin(place))
    x = x + torch.from_numpy(table.astype(np.float32)).to(x)

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"], EPS)

    for i in range(LAYERS):
        at = f"blocks.{i}."
        q, k, v = (norm(x, at + "norm1") @ state[at + "attn.qkv.weight"].T).chunk(3, dim=-1)
        q, v = q + state[at + "attn.q_bias"], v + state[at + "attn.v_bias"]
        q, k, v = (t.reshape(batch, -1, HEADS, WIDTH // HEADS).transpose(1, 2) for t in (q, k, v))
        heard = (q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v
        heard = heard.transpose(1, 2).reshape(batch, -1, WIDTH)
        x = x + heard @ state[at + "attn.proj.weight"].T + state[at + "attn.proj.bias"]
        inner = norm(x, at + "norm2") @ state[at + "mlp.fc1.weight"].T + state[at + "mlp.fc1.bias"]
        x = x + F.gelu(inner) @ state[at + "mlp.fc2.weight"].T + state[at + "mlp.fc2.bias"]
    return norm(x.mean(1), "fc_norm")


def clips(seed, side=SIDE):
    generator = torch.Generator().manual_seed(seed)
    return 2.4 * torch.rand((2, 3, FRAMES, side, side), generator=generator) - 1.2


@pytest.mark.slow
def test_the_published_checkpoint_fits_the_giant():
    shapes = published_shapes(1408, 40, 6144, 14)
    with torch.device("meta"):
        net = VideoMAE()
        state = {key: torch.empty(shape) for key, shape in shapes.items()}
        video = torch.empty(1, 3, 16, 224, 224)
    net.load_state_dict(renamed(state), strict=True, assign=True)
    assert net(video).shape == (1, 1408)


def test_features_are_those_of_a_forward_of_its_own(net, published):
    video = (clips(0) / 2 + 0.5).clamp(0, 1).double()
    expected = features(video, {key: value.double() for key, value in published.items()})
    torch.testing.assert_close(net.double()(video), expected, rtol=1e-9, atol=1e-9)


def test_trepa_is_the_published_loss(net, published):
    a, b = clips(1, side=20), clips(2, side=20)

    def unit(video):
        frames = [
            F.interpolate(video[:, :, i], size=(SIDE, SIDE), mode="bicubic", align_corners=False)
            for i in range(FRAMES)
        ]
        found = features((torch.stack(frames, dim=2) / 2 + 0.5).clamp(0, 1), published)
        return found / found.square().sum(1, keepdim=True).sqrt()

    expected = ((unit(a) - unit(b)) ** 2).mean()
    torch.testing.assert_close(trepa_loss(net, a, b), expected, rtol=1e-4, atol=1e-8)
    assert trepa_loss(net, a, a) == 0
    shuffled = trepa_loss(net, a, a.flip(2))
    assert shuffled > 1e-5  # it sees the order of frames
    with pytest.raises(ValueError, match="has 3 frames; it needs 4"):
        trepa_loss(net, a[:, :, :3], b[:, :, :3])


def test_gradients_reach_the_video_also_through_checkpoints(net):
    def gradient():
        video = clips(1).requires_grad_()
        trepa_loss(net, video, clips(2)).backward()
        return video.grad

    calls = []
    net.model.encoder.layer[0].attention.register_forward_pre_hook(lambda *_: calls.append(1))
    plain = gradient()
    assert len(calls) == 2  # of the video and of its target
    assert plain.abs().amax((0, 1, 3, 4)).min() > 0  # of every frame
    net.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), plain)
    assert len(calls) == 5  # the video's again
    assert all(p.grad is None and not p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("entry", ["module", "model", ""])
def test_the_published_file_is_loaded(published, net, tmp_path, monkeypatch, entry):
    monkeypatch.setattr(videomae, "giant", tiny)
    file = tmp_path / "vit_g.pth"
    torch.save({entry: published, "epoch": 3} if entry else published, file)
    loaded = load_videomae(file)
    assert not loaded.training
    video = clips(3)
    assert torch.equal(loaded(video), net(video))
    half = load_videomae(file, dtype=torch.float16)
    assert {p.dtype for p in half.parameters()} == {torch.float16}
    assert trepa_loss(half, clips(1), clips(2)).dtype == torch.float32


def test_loading_is_strict(published, tmp_path, monkeypatch):
    monkeypatch.setattr(videomae, "giant", tiny)
    file = tmp_path / "vit_g.pth"
    with pytest.raises(WeightsMissing, match="latentsync download train"):
        load_videomae(file)
    fewer = {k: v for k, v in published.items() if k != "blocks.1.attn.v_bias"}
    more = {**published, "blocks.1.attn.k_bias": torch.zeros(WIDTH)}
    for broken in (fewer, more, {}, {"model": [1]}):
        torch.save(broken, file)
        with pytest.raises(WeightsMismatch, match=r"vit_g\.pth") as caught:
            load_videomae(file)
        assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "latentsync.evaluation.nets.videomae", None)
    monkeypatch.delitem(sys.modules, "latentsync.evaluation.nets.loading")
    monkeypatch.setattr(nets, "loading", nets.loading)  # put back afterwards
    fresh = importlib.import_module("latentsync.evaluation.nets.loading")
    with pytest.raises(BackendUnavailable, match=r"pip install .*\[train\]"):
        fresh.load_videomae(file)
