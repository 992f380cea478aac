"""The sampler against the published tables, and what goes into and comes out of the network."""

import numpy as np
import pytest
import torch

from latentsync import diffusion
from latentsync.config import VAEConfig
from latentsync.mask import keep_mask
from latentsync.models.vae import VAE
from tests.tiny import filled, golden, tensor


@pytest.fixture(scope="module")
def vae():
    return filled(VAE(VAEConfig((16, 16, 32, 32), layers_per_block=1, norm_num_groups=8)), 1)


class Constant(torch.nn.Module):
    """A network that always predicts the same noise; remembers what it was asked."""

    def __init__(self, value):
        super().__init__()
        self.value, self.calls = value, []

    def forward(self, sample, timestep, audio):
        self.calls.append((sample, timestep, audio))
        return self.value.expand(len(sample), -1, sample.shape[2], -1, -1)


def latents(frames=3):
    shape = (frames, 4, 8, 8)
    return diffusion.Latents(tensor(shape, 1, "masked"), tensor(shape, 1, "reference"))


def run(unet, steps=4, guidance_scale=1.0, noise=None):
    noise = tensor((4, 8, 8), 1, "noise") if noise is None else noise
    mask = torch.from_numpy(keep_mask(64))
    return diffusion.denoise(
        unet, noise, mask, latents(), torch.ones(3, 50, 384),
        steps=steps, guidance_scale=guidance_scale,
    )  # fmt: skip


@pytest.mark.parametrize("steps", [1, 4, 20, 50])
def test_timesteps_are_the_published_ones(steps):
    unet = Constant(torch.zeros(1, 4, 1, 8, 8))
    run(unet, steps)
    timesteps = golden("syncnet")[f"ddim/timesteps_{steps}"]
    np.testing.assert_array_equal([int(t) for _, t, _ in unet.calls], timesteps)


def test_the_noise_schedule_is_the_published_one():
    arrays = golden("syncnet")
    scheduler = diffusion._scheduler()
    np.testing.assert_allclose(scheduler.alphas_cumprod, arrays["ddim/alphas_cumprod"], rtol=1e-6)
    np.testing.assert_allclose(
        scheduler.final_alpha_cumprod, arrays["ddim/final_alpha_cumprod"], rtol=1e-6
    )


def test_guidance_at_most_one_runs_the_network_once():
    unet = Constant(torch.zeros(1, 4, 1, 8, 8))
    run(unet, guidance_scale=1.0)
    sample, _, audio = unet.calls[0]
    assert sample.shape == (1, 13, 3, 8, 8)
    assert audio.shape == (3, 50, 384)


def test_guidance_pushes_away_from_the_prediction_without_speech():
    class Heard(torch.nn.Module):
        def forward(self, sample, _timestep, audio):
            level = audio.unflatten(0, (len(sample), -1)).mean(dim=(1, 2, 3))
            return level[:, None, None, None, None].expand(-1, 4, sample.shape[2], 8, 8)

    plain = run(Heard(), guidance_scale=1.0)
    pushed = run(Heard(), guidance_scale=2.0)
    constant_two = run(Constant(torch.full((1, 4, 1, 8, 8), 2.0)))
    torch.testing.assert_close(pushed, constant_two)  # 0 + 2 * (1 - 0)
    assert not torch.allclose(plain, pushed)


def test_the_thirteen_channels_stand_in_their_order():
    noisy = tensor((1, 4, 3, 8, 8), 1, "noisy")
    mask = torch.from_numpy(keep_mask(64))
    shown = latents()
    out = diffusion.unet_input(noisy, mask, shown)
    torch.testing.assert_close(out[:, :4], noisy)
    torch.testing.assert_close(out[0, 4, 2], mask[::8, ::8])
    torch.testing.assert_close(out[0, 5:9, 1], shown.masked[1])
    torch.testing.assert_close(out[0, 9:, 2], shown.reference[2])


def test_draws_follow_the_seed_alone():
    one, same, other = (diffusion.seeded_draw(seed) for seed in (7, 7, 8))
    first = one((2, 3))
    assert torch.equal(first, same((2, 3)))
    assert not torch.equal(first, other((2, 3)))
    assert not torch.equal(first, one((2, 3)))


def test_every_frame_starts_from_the_same_noise():
    unet = Constant(torch.zeros(1, 4, 1, 8, 8))
    run(unet, steps=1)
    noisy = unet.calls[0][0][0, :4]
    assert torch.equal(noisy[:, 0], noisy[:, 2])


def test_the_posterior_mean_does_not_depend_on_the_group(vae):
    pixels = tensor((3, 3, 64, 64), 1, "pixels", 0.3)
    mask = torch.from_numpy(keep_mask(64))
    with torch.inference_mode():
        together = diffusion.encode(vae, pixels, mask)
        alone = diffusion.encode(vae, pixels[1:2], mask)
    torch.testing.assert_close(together.reference[1:2], alone.reference, atol=1e-5, rtol=0)
    torch.testing.assert_close(together.masked[1:2], alone.masked, atol=1e-5, rtol=0)


def test_sampling_the_posterior_draws_masked_first(vae):
    shapes = []

    def draw(shape):
        shapes.append(shape)
        return torch.full(shape, float(len(shapes)))

    pixels = tensor((2, 3, 64, 64), 1, "pixels", 0.3)
    mask = torch.from_numpy(keep_mask(64))
    with torch.inference_mode():
        sampled = diffusion.encode(vae, pixels, mask, draw)
        posterior = vae.net.encode(pixels).latent_dist
    assert shapes == [(2, 4, 8, 8)] * 2
    expected = (posterior.mean + 2 * posterior.std) * 0.18215
    torch.testing.assert_close(sampled.reference, expected, atol=1e-5, rtol=0)


def test_decoding_keeps_what_the_mask_keeps(vae):
    pixels = tensor((2, 3, 64, 64), 1, "pixels", 0.3)
    mask = torch.from_numpy(keep_mask(64))
    with torch.inference_mode():
        out = diffusion.decode(vae, tensor((2, 4, 8, 8), 1, "latents"), pixels, mask)
    kept = mask == 1
    torch.testing.assert_close(out[..., kept], pixels[..., kept])
    assert not torch.allclose(out[..., ~kept], pixels[..., ~kept])


def test_scaling_is_undone_by_decoding(vae):
    latents_ = tensor((1, 4, 8, 8), 1, "latents")
    with torch.inference_mode():
        expected = vae.net.decode(latents_ / 0.18215).sample
        torch.testing.assert_close(vae.decode(latents_), expected)


def test_a_seam_blends_what_two_groups_share_at_every_step():
    before = [torch.full((1, 4, 3, 2, 2), float(step)) for step in (1, 2)]
    seam = diffusion.Seam(shared=3, keep=2, steps=list(before))
    for step in range(2):
        x = seam.blended(step, torch.full((1, 4, 8, 2, 2), 10.0))
        own, other = 10.0, float(step + 1)
        expected = [0.25 * own + 0.75 * other, (own + other) / 2, 0.75 * own + 0.25 * other]
        assert x[0, 0, :, 0, 0].tolist() == pytest.approx([*expected, *[own] * 5])
        assert seam.steps[step].shape == (1, 4, 2, 2, 2)
        assert (seam.steps[step] == own).all()


def test_without_a_seam_nothing_changes():
    x = torch.rand(1, 4, 8, 2, 2)
    assert diffusion.Seam(0, 0, []).blended(0, x) is x
