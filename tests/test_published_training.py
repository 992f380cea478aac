"""The published training's choices and losses, by numbers that its own code gave."""

import json

import numpy as np
import pytest
import torch
from transformers import VideoMAEConfig

from latentsync.diffusion.vae import VAE
from latentsync.evaluation.nets.videomae import VideoMAE, renamed, trepa_loss
from latentsync.training.presets import SYNCNET_RUNS, UNET_RUNS
from tests.golden.golden_rule import fill, image
from tests.tiny import filled, golden, vae_config


@pytest.fixture(scope="module")
def arrays():
    return golden("train_step")


@pytest.mark.parametrize(
    "name", ["stage1", "stage1_512", "stage2", "stage2_512", "stage2_efficient"]
)
def test_runs_of_the_unet_have_the_published_settings(arrays, name):
    published = json.loads(str(arrays[f"{name.removesuffix('_512')}/config_json"]))
    run, asked, optimiser = UNET_RUNS[name], published["run"], published["optimizer"]
    judged = asked["pixel_space_supervise"]
    assert run.sync_weight == (asked["sync_loss_weight"] if asked["use_syncnet"] else 0)
    assert run.lpips_weight == (asked["perceptual_loss_weight"] if judged else 0)
    assert run.trepa_weight == (asked["trepa_loss_weight"] if judged else 0)
    assert list(run.trainable) == asked.get("trainable_modules", [])
    assert run.seed == asked["seed"]
    assert (run.learning_rate, run.clip_norm) == (optimiser["lr"], optimiser["max_grad_norm"])
    assert (run.schedule, run.warmup_steps) == (
        optimiser["lr_scheduler"],
        optimiser["lr_warmup_steps"],
    )


def test_the_efficient_second_stage_has_no_trepa():
    assert UNET_RUNS["stage2_efficient"].trepa_weight == 0
    assert UNET_RUNS["stage2"].trepa_weight == 10


def test_runs_of_the_syncnet_have_the_published_settings(arrays):
    """A clip gives two windows; configs/syncnet at a229c39: 256, 256, 120 and 64 of them a step."""
    seed = json.loads(str(arrays["syncnet/spec_json"]))["run_seed"]
    batches = {"pixel_attn": 128, "pixel": 128, "latent": 60, "25_pixel": 32}
    for name, batch in batches.items():
        run = SYNCNET_RUNS[name]
        assert (run.batch, run.learning_rate, run.seed, run.warmup_steps) == (batch, 1e-5, seed, 0)


# -- TREPA -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def step(arrays):
    return {
        key.removeprefix("stage2/step1/"): value
        for key, value in arrays.items()
        if key.startswith("stage2/step1/")
    }


@pytest.fixture(scope="module")
def spec(arrays):
    return json.loads(str(arrays["stage2/spec_json"]))


@pytest.fixture(scope="module")
def target(step, spec):
    """(2, 3, 16, 64, 64) in [-1, 1]: the first of each two windows that were read."""
    shown = [
        image(64, 64, spec["seed"], f"v{video}/f{first + i}")
        for video, first in step["windows_read"][::2]
        for i in range(spec["frames"])
    ]
    pixels = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2) / 255 * 2 - 1
    return pixels.unflatten(0, (spec["batch"], -1)).transpose(1, 2)


@pytest.fixture(scope="module")
def predicted(arrays, step, spec):
    """What the published step decoded, of the latents that it predicted."""
    vae = VAE(vae_config(str(arrays["stage2/vae_config_json"])))
    filled(vae.net, spec["seed"])
    latents = torch.from_numpy(step["pred_latents"]).transpose(1, 2).flatten(0, 1)
    with torch.no_grad():
        pixels = vae.decode(latents)
    np.testing.assert_allclose(
        pixels.flatten()[::29], step["pred_pixels_every29"], rtol=1e-4, atol=1e-4
    )
    return pixels.unflatten(0, (spec["batch"], -1)).transpose(1, 2)


@pytest.fixture(scope="module")
def net(arrays, spec):
    published = json.loads(str(arrays["stage2/videomae_config_json"]))
    config = VideoMAEConfig(
        image_size=published["img_size"],
        patch_size=published["patch_size"],
        num_frames=published["all_frames"],
        tubelet_size=published["tubelet_size"],
        hidden_size=published["embed_dim"],
        num_hidden_layers=published["depth"],
        num_attention_heads=published["num_heads"],
        intermediate_size=published["embed_dim"] * published["mlp_ratio"],
        layer_norm_eps=published["eps"],
    )
    shapes = json.loads(str(arrays["stage2/videomae_state_json"]))
    state = {key: torch.from_numpy(value) for key, value in fill(shapes, spec["seed"]).items()}
    net = VideoMAE(config)
    net.load_state_dict(renamed(state), strict=True)
    return net


def test_the_target_is_what_was_read(step, target):
    flat = target.transpose(1, 2).contiguous().numpy()
    np.testing.assert_allclose(flat.flatten()[::97], step["gt_pixel_values_every97"], atol=1e-6)


def test_trepa_is_the_published_loss(step, net, target, predicted):
    with torch.no_grad():
        loss = trepa_loss(net, predicted, target)
    assert loss.item() == pytest.approx(float(step["loss/trepa"]), rel=2e-5)
