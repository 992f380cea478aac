"""StableSyncNet against the published numbers: outputs, loss, the mel it hears; and its loading."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentsync.errors import WeightsMismatch, WeightsMissing
from latentsync.evaluation.nets import syncnet_mel
from latentsync.evaluation.nets.loading import load_syncnet
from latentsync.evaluation.nets.syncnet import (
    SYNCNETS,
    StableSyncNet,
    SyncNetConfig,
    SyncNetTower,
    cosine_loss,
    stacked,
)
from tests.tiny import GOLDEN, filled, golden, tensor

SMALL = SyncNetConfig(
    visual=SyncNetTower(6, (32, 128), ((2, 2), (4, 8)), attention=(0,)),
    audio=SyncNetTower(1, (32, 128), ((2, 1), (5, 3))),
    side=16,
)
GOLDEN_FRAMES = {"pixel_attn_tiny": (2, 48, 128, 256), "latent_tiny": (2, 64, 32, 32)}


def tower(published):
    pairs = [s if isinstance(s, list) else [s, s] for s in published["downsample_factors"]]
    return SyncNetTower(
        in_channels=published["in_channels"],
        block_out_channels=tuple(published["block_out_channels"]),
        strides=tuple((height, width) for height, width in pairs),
        attention=tuple(i for i, wanted in enumerate(published["attn_blocks"]) if wanted),
    )


@pytest.fixture(scope="module")
def arrays():
    return golden("syncnet")


@pytest.fixture
def net():
    torch.manual_seed(0)
    return StableSyncNet(SMALL)


@pytest.mark.parametrize("case", GOLDEN_FRAMES)
def test_outputs_and_loss_are_the_published(arrays, case):
    raw = json.loads(str(arrays[f"{case}/config_json"]))
    config = SyncNetConfig(tower(raw["visual_encoder"]), tower(raw["audio_encoder"]))
    seed = int(arrays[f"{case}/seed"])
    net = filled(StableSyncNet(config), seed)
    frames = tensor(GOLDEN_FRAMES[case], seed, f"{case}/vision")
    with torch.inference_mode():
        visual, audio = net(frames, torch.from_numpy(arrays[f"{case}/audio"]))
    np.testing.assert_allclose(visual, arrays[f"{case}/vision_embeds"], atol=1e-5)
    np.testing.assert_allclose(audio, arrays[f"{case}/audio_embeds"], atol=1e-5)
    loss = arrays[f"{case}/cosine_loss_ones"]
    np.testing.assert_allclose(cosine_loss(visual, audio), loss, atol=1e-5)


@pytest.mark.parametrize("name", SYNCNETS)
def test_names_and_shapes_are_the_published(name):
    published = json.loads((GOLDEN / "syncnet_state_dict.json").read_text())
    config = SYNCNETS[name]
    with torch.device("meta"):
        net = StableSyncNet(config)
        video = torch.empty(1, 4 if config.latent else 3, config.frames, config.side, config.side)
        columns = {16: 52, 25: 80}[config.frames]
        embeddings = net(stacked(video, config), torch.empty(1, 1, 80, columns))
    shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
    full = name if name.startswith("25") else f"16_{name}"
    assert shapes == published[f"syncnet_{full}"]["state"]
    assert {e.shape for e in embeddings} == {(1, config.audio.block_out_channels[-1])}


def test_gradients_reach_the_video_also_through_checkpoints(net):
    def gradient():
        video = (torch.arange(2 * 3 * 2 * 20 * 20.0).reshape(2, 3, 2, 20, 20) / 7).sin()
        video.requires_grad_()
        cosine_loss(*net(stacked(video, SMALL), torch.ones(2, 1, 10, 3))).sum().backward()
        return video.grad

    calls = []
    net.requires_grad_(False)
    net.visual_encoder.down_blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    plain = gradient()
    assert len(calls) == 1
    assert plain.abs().amax((0, 1, 3, 4)).min() > 0  # of every frame
    assert plain[..., :7, :].abs().max() == 0  # the upper half, but for what resizing reaches
    net.enable_gradient_checkpointing()
    torch.testing.assert_close(gradient(), plain)
    assert len(calls) == 3  # the block is computed again


def test_frames_lie_in_channels_the_lower_half_of_each():
    video = torch.arange(2 * 3 * 2 * 16 * 16.0).reshape(2, 3, 2, 16, 16)
    seen = stacked(video, SMALL)
    assert seen.shape == (2, 6, 8, 16)
    assert torch.equal(seen[1, 3 * 1 + 2], video[1, 2, 1, 8:])  # frame 1, blue
    assert torch.equal(stacked(video, replace(SMALL, lower_half=False))[:, :, 8:], seen)
    large = torch.rand(2, 3, 2, 40, 40)
    resized = F.interpolate(large[:, :, 1], size=(16, 16), mode="bicubic", antialias=False)
    torch.testing.assert_close(stacked(large, SMALL)[:, 3:], resized[:, :, 8:])


def test_what_a_net_was_not_made_for_is_refused():
    with pytest.raises(ValueError, match="3 frames of 3 channels"):
        stacked(torch.zeros(1, 3, 3, 16, 16), SMALL)
    with pytest.raises(ValueError, match="latents are 64x64"):
        stacked(torch.zeros(1, 4, 16, 64, 64), SYNCNETS["latent"])


def test_the_loss_is_the_cross_entropy_of_the_cosine():
    a = F.normalize(torch.rand(100, 64))
    assert cosine_loss(a, 3 * a).max() < 1e-5  # though rounding gives cosines above 1
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]])
    assert cosine_loss(x, y).item() == pytest.approx(-np.log(0.6))
    assert cosine_loss(x, y, torch.zeros(1)).item() == pytest.approx(-np.log(0.4))
    assert cosine_loss(x.half(), y.half()).dtype == torch.float32


def test_the_mel_is_the_published(arrays):
    found = syncnet_mel.sync_mel(arrays["train_mel/wave"])
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found, arrays["train_mel/mel"], rtol=0, atol=1e-12)


def test_the_mel_ends_at_four():
    assert (syncnet_mel.sync_mel(np.zeros(500, np.float32)) == -4).all()
    loud = 100 * np.sin(np.arange(16_000, dtype=np.float32))
    assert syncnet_mel.sync_mel(loud).max() == 4


def test_a_window_of_the_mel_lies_beside_its_frames():
    columns = syncnet_mel.sync_mel(
        np.random.default_rng(0).normal(size=3 * 16_000).astype(np.float32)
    )
    last = 3 * 25 - 16
    for first in (0, 1, 7, last):  # the last frames' sound is there, too
        window = syncnet_mel.sync_window(columns, first)
        start = int(80.0 * (first / 25.0))
        assert torch.equal(window, columns[None, :, start : start + 52])
        assert window.shape == (1, 80, 52)
    assert syncnet_mel.sync_window(columns, 0, frames=5).shape == (1, 80, 16)
    with pytest.raises(ValueError, match="there are 241"):
        syncnet_mel.sync_window(columns, last + 1)


def test_loading_is_strict(net, tmp_path):
    file = tmp_path / "stable_syncnet.pt"
    with pytest.raises(WeightsMissing, match="latentsync download train"):
        load_syncnet(file)
    state = net.state_dict()
    torch.save({"global_step": 7, "state_dict": state, "train_loss_list": [0.7]}, file)
    loaded = load_syncnet(file, SMALL, dtype=torch.float16)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert all(torch.equal(v, state[k].half()) for k, v in loaded.state_dict().items())
    for broken in ({**state, "more": torch.zeros(1)}, {"a": torch.zeros(1)}, None):
        torch.save({"state_dict": broken}, file)
        with pytest.raises(WeightsMismatch, match=r"stable_syncnet\.pt") as caught:
            load_syncnet(file, SMALL)
        assert "\n" not in str(caught.value)
    torch.save({"state_dict": state}, file)
    with pytest.raises(WeightsMismatch, match="does not fit a StableSyncNet"):
        load_syncnet(file)  # of the published size
