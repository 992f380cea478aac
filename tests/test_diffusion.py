"""The sampler against the published tables, and what goes into and comes out of the network."""

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler
from torch.utils._python_dispatch import TorchDispatchMode

from latentsync.diffusion import sampling
from latentsync.diffusion.unet import UNet, UNetConfig
from latentsync.diffusion.vae import VAE, VAEConfig
from latentsync.faces.mask import keep_mask
from latentsync.options import Effort
from tests.tiny import filled, golden, tensor

TINY = UNetConfig(
    block_out_channels=(8, 16, 16),  # three blocks and few motion modules, as the demo model
    layers_per_block=1,
    attention_heads=2,
    norm_num_groups=4,
    motion="decoder",
    motion_heads=2,
    motion_norm_groups=4,
)


@pytest.fixture(scope="module")
def vae():
    return filled(VAE(VAEConfig((16, 16, 32, 32), layers_per_block=1, norm_num_groups=8)), 1)


@pytest.fixture(scope="module")
def unet():
    return filled(UNet(TINY), 2)


class Constant(torch.nn.Module):
    """A network that always predicts the same noise; remembers what it was asked."""

    def __init__(self, value):
        super().__init__()
        self.value, self.calls = value, []

    def forward(self, sample, timestep, audio, _cache=None):
        self.calls.append((sample, timestep, audio))
        return self.value.expand(len(sample), -1, sample.shape[2], -1, -1)


def latents(frames=3):
    shape = (frames, 4, 8, 8)
    return sampling.Latents(tensor(shape, 1, "masked"), tensor(shape, 1, "reference"))


def run(unet, steps=4, guidance_scale=1.0, noise=None, **effort):
    noise = tensor((4, 8, 8), 1, "noise") if noise is None else noise
    mask = torch.from_numpy(keep_mask(64))
    return sampling.denoise(
        unet, noise, mask, latents(), torch.ones(3, 50, 384),
        Effort(steps=steps, **effort), guidance_scale=guidance_scale,
    )  # fmt: skip


@pytest.mark.parametrize("steps", [1, 4, 20, 50])
def test_timesteps_are_the_published_ones(steps):
    unet = Constant(torch.zeros(1, 4, 1, 8, 8))
    run(unet, steps)
    timesteps = golden("syncnet")[f"ddim/timesteps_{steps}"]
    np.testing.assert_array_equal([int(t) for _, t, _ in unet.calls], timesteps)


def test_the_noise_schedule_is_the_published_one():
    arrays = golden("syncnet")
    bars = sampling.alpha_bar(torch.arange(sampling.TIMESTEPS))
    np.testing.assert_allclose(bars, arrays["ddim/alphas_cumprod"], rtol=1e-6)
    np.testing.assert_allclose(bars[0], arrays["ddim/final_alpha_cumprod"], rtol=1e-6)


def test_ddim_steps_are_the_published_ones():
    arrays = golden("syncnet")
    x = torch.from_numpy(arrays["one_step/x_t"])
    predicted = torch.from_numpy(arrays["one_step/pred_noise"])
    steps = sampling._steps(Effort(steps=4))
    for step, expected in zip(steps, arrays["ddim/steps_4_const_eps"], strict=True):
        x, _ = step.step(x, predicted, x)
        np.testing.assert_allclose(x, expected, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("count", [1, 2, 8, 14])
def test_dpm_steps_are_those_of_the_reference(count):
    steps = sampling._steps(Effort(count, "dpm++"))
    reference = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        final_sigmas_type="sigma_min",
    )
    reference.set_timesteps(timesteps=[step.timestep for step in steps])
    noise = tensor((4, 8, 8), 1, "noise")
    predictions = [tensor((1, 4, 3, 8, 8), k, "predicted") for k in range(count)]
    expected = noise[None, :, None].expand_as(predictions[0])
    for step, predicted in zip(steps, predictions, strict=True):
        expected = reference.step(predicted, step.timestep, expected).prev_sample
    script = iter(predictions)
    out = run(lambda *_: next(script), count, noise=noise, sampler="dpm++")
    expected = expected[0].transpose(0, 1)
    torch.testing.assert_close(out, expected, atol=1e-5 * expected.abs().max(), rtol=0)


def test_guidance_at_most_one_runs_the_network_once():
    unet = Constant(torch.zeros(1, 4, 1, 8, 8))
    run(unet, guidance_scale=1.0)
    sample, _, audio = unet.calls[0]
    assert sample.shape == (1, 13, 3, 8, 8)
    assert audio.shape == (1, 3, 50, 384)


def test_guidance_pushes_away_from_the_prediction_without_speech():
    class Heard(torch.nn.Module):
        def forward(self, sample, _timestep, audio, _cache=None):
            level = audio.mean(dim=(1, 2, 3))
            return level[:, None, None, None, None].expand(-1, 4, sample.shape[2], 8, 8)

    plain = run(Heard(), guidance_scale=1.0)
    pushed = run(Heard(), guidance_scale=2.0)
    constant_two = run(Constant(torch.full((1, 4, 1, 8, 8), 2.0)))
    torch.testing.assert_close(pushed, constant_two)  # 0 + 2 * (1 - 0)
    assert not torch.allclose(plain, pushed)


@pytest.mark.parametrize(
    ("start", "stop", "guided"),
    [
        (0.0, 1.0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (0.25, 0.75, [2, 3, 4, 5]),
        (0.0, 0.5, [0, 1, 2, 3]),
        (0.3, 1.0, [3, 4, 5, 6, 7]),
        (0.5, 0.5, []),
    ],
)
def test_only_steps_in_the_range_are_guided(start, stop, guided):
    unet = Constant(torch.zeros(1, 4, 1, 8, 8))
    run(unet, 8, guidance_scale=1.5, guidance_start=start, guidance_stop=stop)
    assert [k for k, (sample, _, _) in enumerate(unet.calls) if len(sample) == 2] == guided
    assert all(len(audio) == len(sample) for sample, _, audio in unet.calls)


def test_guidance_that_never_acts_is_none(unet):
    with torch.inference_mode():
        assert torch.equal(run(unet, 3, 1.5, guidance_stop=0.0), run(unet, 3))


@pytest.mark.parametrize("steps", [1, 2, 8, 50])
def test_dpm_takes_as_many_steps_as_asked_for_and_draws_nothing(steps):
    unet = Constant(tensor((1, 4, 1, 8, 8), 1, "predicted"))
    before = torch.get_rng_state()
    out = run(unet, steps, sampler="dpm++")
    assert torch.equal(torch.get_rng_state(), before)
    assert out.isfinite().all()
    timesteps = [int(t) for _, t, _ in unet.calls]
    assert len(timesteps) == steps
    assert timesteps == sorted(set(timesteps), reverse=True)


def full_steps(unet, steps, **effort):
    """Which steps run the whole network, and over how many rows (batch x frames) each."""
    rows, full = [], []
    seen = [
        unet.conv_in.register_forward_hook(lambda _m, args, _out: rows.append(len(args[0]))),
        unet.mid_block.register_forward_hook(lambda *_: full.append(len(rows) - 1)),
    ]
    with torch.inference_mode():
        run(unet, steps, **effort)
    for hook in seen:
        hook.remove()
    return full, rows


def test_the_deep_layers_run_every_so_many_steps(unet):
    assert full_steps(unet, 7, cache_interval=1)[0] == [0, 1, 2, 3, 4, 5, 6]
    assert full_steps(unet, 7, cache_interval=3)[0] == [0, 3, 6]
    assert full_steps(unet, 7, cache_interval=3)[0] == [0, 3, 6]  # and afresh for each group


def test_when_guidance_begins_the_step_is_a_full_one(unet):
    options = {"guidance_scale": 1.5, "cache_interval": 4}
    full, rows = full_steps(unet, 8, guidance_start=0.25, guidance_stop=0.75, **options)
    assert rows == [3, 3, 6, 6, 6, 6, 3, 3]
    assert full == [0, 2, 4]  # not when it ends: the part with speech goes on


def test_when_guidance_ends_the_features_with_speech_stay(unet):
    kept = []
    hook = (
        unet.up_blocks[-1]
        .resnets[-1]
        .register_forward_hook(
            lambda _m, args, _out: kept.append(args[0][:, : TINY.block_out_channels[0]])
        )
    )
    with torch.inference_mode():
        run(unet, 2, 1.5, cache_interval=2, guidance_stop=0.5)
    hook.remove()
    guided, plain = kept
    assert torch.equal(plain, guided[3:])
    assert not torch.equal(plain, guided[:3])


@pytest.mark.parametrize(
    "effort",
    [Effort(steps=3), Effort(steps=4, sampler="dpm++", cache_interval=2, guidance_stop=0.5)],
)
def test_groups_side_by_side_come_out_as_one_by_one(unet, effort):
    shape = (3, 5, 4, 8, 8)  # groups, frames
    several = sampling.Latents(tensor(shape, 1, "masked"), tensor(shape, 1, "reference"))
    speech = tensor((3, 5, 50, 384), 1, "speech")
    common = (tensor((4, 8, 8), 1, "noise"), torch.from_numpy(keep_mask(64)))

    def denoised(shown, audio):
        return sampling.denoise(unet, *common, shown, audio, effort, guidance_scale=1.5)

    with torch.inference_mode():
        together = denoised(several, speech)
        parts = zip(several.masked, several.reference, speech, strict=True)
        alone = [denoised(sampling.Latents(m, r), audio) for m, r, audio in parts]
    assert together.shape == shape
    largest = max(one.abs().max().item() for one in alone)
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-5 * largest, rtol=0)
    assert (together[0] - together[1]).abs().max() > 1e-2 * largest


def test_groups_of_a_batch_do_not_overlap(unet):
    shape = (2, 3, 4, 8, 8)
    both = sampling.Latents(torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(AssertionError, match="one by one"):
        sampling.denoise(
            unet, torch.zeros(4, 8, 8), torch.ones(64, 64), both, torch.zeros(2, 3, 50, 384),
            Effort(steps=1), guidance_scale=1.0, after_step=sampling.GroupOverlap().between(0, 1),
        )  # fmt: skip


class Crossings(TorchDispatchMode):
    """Counts what is brought to a device: tensors of another one, and numbers."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        moved = func is torch.ops.aten._to_copy.default and args[0].device != out.device
        self.count += moved or func is torch.ops.aten.lift_fresh.default
        return out


@pytest.mark.parametrize("sampler", ["ddim", "dpm++"])
def test_nothing_in_the_loop_waits_for_the_device(sampler):
    """On a device without numbers: whoever asks it for one is refused."""
    with torch.device("meta"):
        unet = Constant(torch.zeros(1, 4, 1, 8, 8))
        both = sampling.Latents(torch.zeros(3, 4, 8, 8), torch.zeros(3, 4, 8, 8))
        noise, mask, speech = torch.zeros(4, 8, 8), torch.ones(64, 64), torch.zeros(3, 50, 384)
    crossings = []
    for steps in (2, 5):
        effort = Effort(steps, sampler, cache_interval=2, guidance_stop=0.5)
        overlap = sampling.GroupOverlap()
        for shared in (0, 1):
            with Crossings() as seen:
                sampling.denoise(
                    unet, noise, mask, both, speech, effort, guidance_scale=1.5,
                    after_step=overlap.between(shared, 1),
                )  # fmt: skip
            crossings.append(seen.count)
    assert crossings == [1] * 4  # the timesteps, all at once


def test_the_network_waits_for_nothing():
    with torch.device("meta"):
        unet = UNet(TINY)
        args = torch.zeros(1, 13, 2, 8, 8), torch.tensor(5), torch.zeros(2, 50, 384)
    with torch.inference_mode(), Crossings() as seen:
        unet(*args)
    assert seen.count == 0


def test_the_thirteen_channels_stand_in_their_order():
    noisy = tensor((1, 4, 3, 8, 8), 1, "noisy")
    mask = torch.from_numpy(keep_mask(64))
    shown = latents()
    out = sampling.unet_input(noisy, mask, shown)
    torch.testing.assert_close(out[:, :4], noisy)
    torch.testing.assert_close(out[0, 4, 2], mask[::8, ::8])
    torch.testing.assert_close(out[0, 5:9, 1], shown.masked[1])
    torch.testing.assert_close(out[0, 9:, 2], shown.reference[2])


def test_draws_follow_the_seed_alone():
    one, same, other = (sampling.seeded_draw(seed) for seed in (7, 7, 8))
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
        together = sampling.encode(vae, pixels, mask)
        alone = sampling.encode(vae, pixels[1:2], mask)
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
        sampled = sampling.encode(vae, pixels, mask, draw)
        posterior = vae.net.encode(pixels).latent_dist
    assert shapes == [(2, 4, 8, 8)] * 2
    expected = (posterior.mean + 2 * posterior.std) * 0.18215
    torch.testing.assert_close(sampled.reference, expected, atol=1e-5, rtol=0)


def test_decoding_keeps_what_the_mask_keeps(vae):
    pixels = tensor((2, 3, 64, 64), 1, "pixels", 0.3)
    mask = torch.from_numpy(keep_mask(64))
    with torch.inference_mode():
        out = sampling.decode(vae, tensor((2, 4, 8, 8), 1, "latents"), pixels, mask)
    kept = mask == 1
    torch.testing.assert_close(out[..., kept], pixels[..., kept])
    assert not torch.allclose(out[..., ~kept], pixels[..., ~kept])


def test_scaling_is_undone_by_decoding(vae):
    latents_ = tensor((1, 4, 8, 8), 1, "latents")
    with torch.inference_mode():
        expected = vae.net.decode(latents_ / 0.18215).sample
        torch.testing.assert_close(vae.decode(latents_), expected)


def test_a_seam_blends_what_two_groups_share_at_every_step():
    overlap = sampling.GroupOverlap()
    before, between, after = (overlap.between(*ends) for ends in ((0, 3), (3, 2), (2, 0)))
    own = 10.0
    for step in range(2):
        other = float(step + 1)
        before(step, torch.full((1, 4, 8, 2, 2), other))
        x = between(step, torch.full((1, 4, 8, 2, 2), own))
        expected = [0.25 * own + 0.75 * other, (own + other) / 2, 0.75 * own + 0.25 * other]
        assert x[0, 0, :, 0, 0].tolist() == pytest.approx([*expected, *[own] * 5])
        last = after(step, torch.full((1, 4, 8, 2, 2), own))
        assert (last == own).all()


def test_without_an_overlap_nothing_is_called():
    assert sampling.GroupOverlap().between(0, 0) is None
