"""Losses on the decoded picture: what each looks at, its weight, and what is missing for it."""

from dataclasses import replace

import pytest
import torch
from transformers import VideoMAEConfig

from latentsync.diffusion.sampling import Latents
from latentsync.errors import WeightsMissing
from latentsync.evaluation.nets.lpips import LPIPS
from latentsync.evaluation.nets.syncnet import (
    StableSyncNet,
    SyncNetConfig,
    SyncNetTower,
    cosine_loss,
    stacked,
)
from latentsync.evaluation.nets.videomae import VideoMAE, trepa_loss
from latentsync.training.batches import Batch
from latentsync.training.pixel_losses import PixelLosses, load_pixel_losses
from latentsync.training.presets import UNET_RUNS
from latentsync.training.settings import UNetTrainConfig
from tests.stubs import TINY, tiny_nets

RUN = UNetTrainConfig(
    "pixels", 1, 1, 1e-5, sync_weight=0.05, lpips_weight=0.1, trepa_weight=10.0
)  # the published weights
SYNC = SyncNetConfig(
    visual=SyncNetTower(48, (32, 128), ((2, 2), (4, 8))),
    audio=SyncNetTower(1, (32, 128), ((16, 13), (5, 4))),
    side=16,
)
SIDE = TINY.resolution


@pytest.fixture(scope="module")
def losses():
    torch.manual_seed(0)
    small = VideoMAEConfig(
        image_size=12,
        patch_size=4,
        num_frames=16,
        hidden_size=24,
        num_hidden_layers=1,
        num_attention_heads=3,
        intermediate_size=40,
    )
    nets = StableSyncNet(SYNC).requires_grad_(False), LPIPS(), VideoMAE(small)
    return PixelLosses(tiny_nets().vae, RUN, *nets)


@pytest.fixture(scope="module")
def latents():
    return torch.randn((1, 4, 16, 8, 8), generator=torch.Generator().manual_seed(1))


def batch(clean, pixels):
    empty = torch.zeros((1, 16, 4, 8, 8))
    sound = torch.randn((1, 1, 80, 52), generator=torch.Generator().manual_seed(2))
    return Batch(clean, Latents(empty, empty), torch.zeros((1, 16, 20, 32)), pixels, sound)


def decoded(losses, latents):
    with torch.no_grad():
        frames = losses.vae.decode(latents.transpose(1, 2).flatten(0, 1))
    return frames.unflatten(0, (1, 16)).transpose(1, 2)


def test_each_loss_is_its_net_s_times_its_weight(losses, latents):
    seen = decoded(losses, latents)
    target = torch.rand(seen.shape, generator=torch.Generator().manual_seed(3)) * 2 - 1
    given = batch(latents, target)
    found = losses(latents.requires_grad_(), given)
    sync = cosine_loss(*losses.syncnet(stacked(seen, SYNC), given.mel)).mean()
    lower = [x[0, :, :, SIDE // 2 :].transpose(0, 1) for x in (seen, target)]
    torch.testing.assert_close(found["sync"], 0.05 * sync)
    torch.testing.assert_close(found["lpips"], 0.1 * losses.lpips(*lower).mean())
    torch.testing.assert_close(found["trepa"], 10 * trepa_loss(losses.videomae, seen, target))
    for name, loss in found.items():
        (gradient,) = torch.autograd.grad(loss, latents, retain_graph=True)
        assert gradient.abs().max() > 0, name
    assert all(p.grad is None for p in losses.vae.parameters())


def test_a_judge_of_latents_needs_no_picture(losses, latents, monkeypatch):
    own = SyncNetConfig(
        visual=SyncNetTower(64, (32, 64), ((2, 2), (4, 4))),
        audio=SyncNetTower(1, (32, 64), ((16, 13), (5, 4))),
        side=8,
        lower_half=False,
        latent=True,
    )
    judge = StableSyncNet(own).requires_grad_(False)
    alone = replace(losses, syncnet=judge, lpips=None, videomae=None)
    assert [one.sees_pixels for one in (losses, replace(alone, syncnet=losses.syncnet), alone)] == [
        True, True, False,
    ]  # fmt: skip
    monkeypatch.setattr(type(losses.vae), "decode", None)
    given = batch(torch.zeros(1, 4, 16, 8, 8), None)
    found = alone(latents.requires_grad_(), given)
    wanted = 0.05 * cosine_loss(*judge(stacked(latents, own), given.mel)).mean()
    torch.testing.assert_close(found, {"sync": wanted})
    (gradient,) = torch.autograd.grad(found["sync"], latents)
    assert gradient.abs().max() > 0


def test_the_right_picture_costs_nothing_but_sync(losses, latents):
    found = losses(latents, batch(latents, decoded(losses, latents)))
    assert found["lpips"].item() == pytest.approx(0, abs=1e-6)
    assert found["trepa"].item() == pytest.approx(0, abs=1e-6)


def test_lpips_looks_at_the_lower_half_only(losses, latents):
    only = replace(losses, syncnet=None, videomae=None)
    target = decoded(losses, latents)
    target[..., : SIDE // 2, :] += 1
    assert only(latents, batch(latents, target))["lpips"].item() == pytest.approx(0, abs=1e-6)
    target[..., SIDE // 2 :, :] += 1
    found = only(latents, batch(latents, target))["lpips"].item()
    assert abs(found) > 1e-5  # the layers' random weights give it either sign


def test_only_what_has_a_weight_is_loaded(tmp_path):
    vae = tiny_nets().vae
    none = replace(RUN, sync_weight=0.0, lpips_weight=0.0, trepa_weight=0.0)
    assert load_pixel_losses(vae, none, tmp_path) is None
    files = {
        "sync_weight": "stable_syncnet.pt",
        "lpips_weight": "vgg16-397923af.pth",
        "trepa_weight": "vit_g_hybrid_pt_1200e_ssv2_ft.pth",
    }
    for weight, file in files.items():
        with pytest.raises(WeightsMissing, match=rf"{file} is missing; .latentsync download train"):
            load_pixel_losses(vae, replace(none, **{weight: 1.0}), tmp_path)


def test_the_published_runs():
    names = ["stage1", "stage2", "stage2_efficient", "stage1_512", "stage2_512", "demo"]
    assert list(UNET_RUNS) == names
    for name, run in UNET_RUNS.items():
        first = name.startswith("stage1")
        pixel = (run.sync_weight, run.lpips_weight, run.trepa_weight)
        if name != "demo":
            trepa = 0 if name == "stage2_efficient" else 10
            assert pixel == ((0, 0, 0) if first else (0.05, 0.1, trepa))
            assert (run.motion == "none") == first
            assert run.speech_dropout == 0
            assert run.loss_weighting == "noise"
            assert (run.learning_rate, run.clip_norm, run.frames) == (1e-5, 1.0, 16)
            assert run.resolution == (512 if name.endswith("512") else 256)
    assert UNET_RUNS["stage1"].trainable == ()
    assert UNET_RUNS["stage2_512"].trainable == ("motion_modules.", "attentions.")
    assert UNET_RUNS["stage2_efficient"].trainable == ("motion_modules.", "attn2.")
