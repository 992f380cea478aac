"""The training loop, and the tasks it is given."""

import csv
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from latentsync.audio.whisper import SpeechEncoder, WhisperConfig
from latentsync.diffusion import sampling
from latentsync.diffusion.unet import UNet, UNetConfig
from latentsync.diffusion.vae import VAE, VAEConfig
from latentsync.errors import Cancelled, InputError, TrainingError
from latentsync.faces.mask import keep_mask
from latentsync.training.demo_windows import (
    PreparedWindows,
    SpeakerWindows,
    encode_latents,
    encode_sound,
)
from latentsync.training.loop import fit
from latentsync.training.plots import draw_curves
from latentsync.training.settings import TrainConfig, UNetTrainConfig
from latentsync.training.sound_degradation import degrade
from latentsync.training.tasks.autoencoder import AutoencoderTask, DecoderTask, latent_statistics
from latentsync.training.tasks.speech import SpeechTask, Utterance, another_throat
from latentsync.training.tasks.unet import UNetTask, place_weights

RUN = TrainConfig(
    "line", steps=30, batch=4, learning_rate=0.05, warmup_steps=3, log_every=5, validate_every=10
)
SIDE = 32  # px of the crops here


class Line:
    """A task of two numbers: y = 3 x - 1."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Linear(1, 1)
        self.seen = []

    def losses(self, generator):
        x = torch.randn((4, 1), generator=generator)
        self.seen.append(x.sum().item())
        return {"squares": (self.net(x) - 3 * x + 1).square().mean()}

    def validate(self):
        return {"slope": self.net.weight.item()}


def rows(folder, name="line"):
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_run_learns_and_keeps_its_figures(tmp_path):
    task = Line()
    progress = []
    net = fit(task, replace(RUN, steps=200), tmp_path, progress=progress.append)
    assert net.weight.item() == pytest.approx(3, abs=0.3)
    assert (progress[-1].stage, progress[-1].done, progress[-1].total) == ("line", 200, 200)
    table = rows(tmp_path)
    assert [row["step"] for row in table[:2]] == ["5", "10"]
    assert not table[0]["slope"]
    assert float(table[-1]["slope"]) == pytest.approx(net.weight.item())  # validated: the average
    assert float(table[-1]["squares"]) < 0.1 * float(table[0]["squares"])


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path):
    whole, broken = Line(), Line()
    fit(whole, RUN, tmp_path / "whole")
    with pytest.raises(Cancelled, match="after step 13"):
        fit(broken, RUN, tmp_path / "broken", cancel=lambda: len(broken.seen) == 13)
    resumed = Line()
    fit(resumed, RUN, tmp_path / "broken")
    assert broken.seen + resumed.seen == whole.seen
    assert torch.equal(resumed.net.weight, whole.net.weight)
    kept = [
        torch.load(tmp_path / name / "line.checkpoint.pt", weights_only=True)
        for name in ("whole", "broken")
    ]
    assert torch.equal(kept[0]["net"]["weight"], kept[1]["net"]["weight"])
    assert [row["step"] for row in rows(tmp_path / "broken")] == ["5", "10", "15", "20", "25", "30"]


def test_the_average_is_not_the_last_step(tmp_path):
    net = fit(Line(), RUN, tmp_path)
    last = torch.load(tmp_path / "line.checkpoint.pt", weights_only=True)
    assert torch.equal(net.weight, last["average"]["weight"])
    assert not torch.equal(net.weight, last["net"]["weight"])


def test_a_loss_that_is_not_finite_stops_with_its_step(tmp_path):
    task = Line()
    task.losses = lambda _: {"squares": task.net.weight.sum() * float("nan")}
    with pytest.raises(TrainingError, match="step 0 gave squares nan"):
        fit(task, RUN, tmp_path)


# -- Speech ----------------------------------------------------------------------------------------


def utterance(seed, tokens=400):
    """A tone that opens the mouth wherever it is heard."""
    rng = np.random.default_rng(seed)
    heard = np.repeat(rng.random(tokens // 10) < 0.5, 10)
    tone = np.sin(2 * np.pi * 1000 * np.arange(320 * tokens) / 16_000) * np.repeat(heard, 320)
    tracks = np.repeat(heard[:, None], 5, axis=1).astype(np.float32)
    return Utterance(
        wave=(8000 * tone + rng.normal(0, 20, len(tone))).astype(np.int16),
        tracks=tracks,
        sounds=heard.astype(np.int64),
        taught=np.stack([heard, ~heard, heard], axis=1).astype(np.float16),
    )


def test_the_encoder_learns_to_hear_a_mouth(tmp_path):
    torch.manual_seed(0)
    encoder = SpeechEncoder(WhisperConfig(n_audio_state=16, n_audio_head=2, n_audio_layer=1))
    run = TrainConfig(
        "speech", steps=60, batch=4, learning_rate=1e-2, warmup_steps=5, ema_decay=0.9
    )
    spoken = [utterance(i) for i in range(6)]
    task = SpeechTask(encoder, spoken[:4], spoken[4:], run, sounds=2)
    with torch.no_grad():
        assert task.validate()["correlation_0"] < 0.5
    fit(task, run, tmp_path)
    with torch.no_grad():
        found = task.validate()
    assert found["correlation_0"] > 0.9
    assert found["sounds_right"] > 0.9


def test_the_teacher_is_learned_too(tmp_path):
    torch.manual_seed(0)
    encoder = SpeechEncoder(WhisperConfig(n_audio_state=16, n_audio_head=2, n_audio_layer=1))
    run = TrainConfig("speech", steps=60, batch=4, learning_rate=1e-2, warmup_steps=5)
    task = SpeechTask(encoder, [utterance(i) for i in range(4)], [utterance(5)], run, sounds=2)
    before = task.losses(torch.Generator().manual_seed(1))["taught"]
    fit(task, run, tmp_path)
    assert task.losses(torch.Generator().manual_seed(1))["taught"] < 0.5 * before


def test_another_throat_keeps_shape_and_time():
    columns = np.full((80, 50), -6.0, np.float32)
    columns[20:30, 20:] = -1
    once, again = (another_throat(columns, np.random.default_rng(3)) for _ in range(2))
    assert once.shape == columns.shape
    assert np.array_equal(once, again)
    assert np.abs(once - columns).max() > 0.1
    assert np.ptp(once[:, :20], axis=1).max() == np.ptp(once[:, 20:], axis=1).max() == 0


@pytest.mark.parametrize("seed", range(12))
def test_a_degraded_voice_stays_where_it_was(seed):
    rng = np.random.default_rng(seed)
    wave = np.zeros(32_000, np.float32)
    wave[16_000:20_000] = rng.normal(0, 0.3, 4000)
    degraded = degrade(wave, rng, np.zeros_like(wave))
    assert degraded.shape == wave.shape
    assert degraded.dtype == np.float32
    alike = np.correlate(degraded[15_000:22_000], wave[16_000:20_000], "valid")
    assert abs(np.argmax(np.abs(alike)) - 1000) <= 16  # samples: 1 ms, by which filters are late


def test_degraded_voices_differ():
    wave = np.random.default_rng(0).normal(0, 0.3, 16_000).astype(np.float32)
    made = [degrade(wave, np.random.default_rng(seed), wave[::-1]) for seed in range(6)]
    assert len({one.tobytes() for one in made}) == 6


def test_part_of_a_window_is_heard_at_its_place():
    torch.manual_seed(0)
    encoder = SpeechEncoder(WhisperConfig(n_audio_state=16, n_audio_head=2, n_audio_layer=1))
    columns = torch.randn((1, 80, 3000))
    with torch.no_grad():
        whole = encoder(columns)
        part = encoder(columns[..., 1000:1400], first_token=500)
    # the embedding hears two tokens around itself; later states hear everything
    torch.testing.assert_close(part[:, 2:-2, 0], whole[:, 502:698, 0], atol=1e-5, rtol=1e-5)


# -- Pictures --------------------------------------------------------------------------------------


def person(seed, windows=2, frames=3):
    rng = np.random.default_rng(seed)
    colour = rng.integers(40, 216, (1, 1, 1, 1, 3))
    noise = rng.integers(-20, 20, (windows, frames, SIDE, SIDE, 3))
    at = np.arange(windows)[:, None] * 10 + np.arange(frames)
    wave = rng.normal(0, 0.1, 16000 * 2).astype(np.float32)
    mouths = rng.random((windows, frames, 3), np.float32)
    return SpeakerWindows((colour + noise).astype(np.uint8), at, mouths, wave)


def small_vae(**changes):
    torch.manual_seed(0)
    return VAE(VAEConfig((8, 8), 1, norm_num_groups=4, scaling_factor=1.0, **changes))


def test_a_person_comes_back_from_its_file(tmp_path):
    one = person(0)
    one.save(tmp_path / "one.npz")
    back = SpeakerWindows.load(tmp_path / "one.npz")
    assert np.array_equal(one.pixels, back.pixels)
    assert np.array_equal(one.frames, back.frames)
    np.testing.assert_allclose(one.wave, back.wave, atol=1 / 32767)
    assert [path.name for path in tmp_path.iterdir()] == ["one.npz"]


def test_the_autoencoder_learns_and_its_latents_are_brought_to_one_scale(tmp_path):
    crops = np.concatenate([person(i).pixels.reshape(-1, SIDE, SIDE, 3) for i in range(12)])
    run = TrainConfig("vae", steps=40, batch=4, learning_rate=5e-3, warmup_steps=5, ema_decay=0.9)
    vae = small_vae()
    task = AutoencoderTask(vae, crops, crops[:8], run)
    with torch.no_grad():
        before = task.validate()
    fit(task, run, tmp_path)
    with torch.no_grad():
        after = task.validate()
    assert after["mouth_psnr"] > before["mouth_psnr"] + 3
    found = latent_statistics(vae, crops)
    scaled = small_vae(latents_mean=found.mean, latents_std=found.std)
    scaled.load_state_dict(vae.state_dict())
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = scaled.encode(pixels)
        torch.testing.assert_close(scaled.decode(latents), vae.decode(vae.encode(pixels)))
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4), atol=1e-2, rtol=0)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)


def test_the_decoder_learns_on_from_latents_that_stay(tmp_path):
    crops = np.concatenate([person(i).pixels.reshape(-1, SIDE, SIDE, 3) for i in range(8)])
    vae = small_vae()
    pixels = torch.from_numpy(crops).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels)
    run = TrainConfig(
        "polish", steps=40, batch=4, learning_rate=5e-3, warmup_steps=5, ema_decay=0.9
    )
    task = DecoderTask(vae, latents, crops, crops[:8], run)
    with torch.no_grad():
        before = task.validate()
    fit(task, run, tmp_path)
    with torch.no_grad():
        assert task.validate()["mouth_psnr"] > before["mouth_psnr"] + 3
        torch.testing.assert_close(vae.encode(pixels), latents)


# -- The U-Net -------------------------------------------------------------------------------------

SMALL = UNetConfig(
    block_out_channels=(8, 8),
    layers_per_block=1,
    attention_heads=2,
    cross_attention_dim=16,
    norm_num_groups=4,
    motion="decoder",
    motion_heads=2,
    motion_norm_groups=4,
    speech_positions=20,
)
ONE = UNetTrainConfig(
    "unet", steps=4, batch=3, learning_rate=1e-2, frames=1, loss_weighting="velocity", mask_weight=3
)


@pytest.fixture(scope="module")
def prepared():
    encoder = SpeechEncoder(WhisperConfig(n_audio_state=16, n_audio_head=2, n_audio_layer=1))
    people = [person(i) for i in range(5)]
    return PreparedWindows(
        **encode_latents(small_vae().eval(), people), **encode_sound(encoder.eval(), people)
    )


def unet(**changes):
    torch.manual_seed(0)
    net = UNet(replace(SMALL, **changes))
    nn.init.normal_(net.conv_out.weight, std=0.1)  # it starts as zeros, which stops all gradients
    return net


def test_what_is_prepared(prepared):
    assert prepared.clean.shape == prepared.masked.shape == (10, 3, 4, 16, 16)
    assert prepared.speech.shape == (10, 3, 20, 16)
    assert prepared.person.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert not torch.equal(prepared.clean, prepared.masked)


def test_a_reference_is_another_window_of_the_same_person(prepared):
    marked = prepared.person.reshape(-1, 1, 1, 1, 1) + 0.1 * (torch.arange(10) % 2).reshape(
        -1, 1, 1, 1, 1
    )
    data = PreparedWindows(
        marked.expand(10, 3, 4, 16, 16),
        prepared.masked,
        prepared.speech,
        prepared.person,
    )
    batch = data.draw(50, ONE.frames, torch.Generator().manual_seed(0))
    own = batch.clean[:, 0, 0, 0, 0]
    other = batch.shown.reference[:, 0, 0, 0, 0]
    assert torch.equal(own.round(), other.round())
    torch.testing.assert_close((own - other).abs(), torch.full((50,), 0.1))


@pytest.mark.parametrize("frames", [1, 3])
def test_a_step_of_training(prepared, tmp_path, frames):
    run = replace(ONE, frames=frames)
    before = unet()
    trained = fit(UNetTask(unet(), prepared, prepared, SIDE, run), run, tmp_path)
    changed = [
        name
        for (name, old), new in zip(before.named_parameters(), trained.parameters(), strict=True)
        if not torch.equal(old, new)
    ]
    assert any("speech_positions" in name for name in changed)
    assert any("motion_modules" in name for name in changed)
    assert any("attn2" in name for name in changed)
    row = rows(tmp_path, "unet")[-1]
    assert float(row["noise_right"]) > 0
    assert float(row["noise_wrong"]) > 0


def test_only_what_is_named_is_trained(prepared, tmp_path):
    run = replace(ONE, frames=3, trainable=("motion_modules.",))
    before = unet()
    trained = fit(UNetTask(unet(), prepared, prepared, SIDE, run), run, tmp_path)
    for (name, old), new in zip(before.named_parameters(), trained.parameters(), strict=True):
        if "motion_modules." not in name:
            assert torch.equal(old, new), name
    last = "up_blocks.0.motion_modules.0.temporal_transformer.proj_out.weight"
    assert trained.state_dict()[last].abs().max() > 0


def test_dropped_speech_reaches_the_net_as_zeros(prepared):
    heard = []

    class Ear(UNet):
        def forward(self, sample, timestep, audio):
            heard.append(audio)
            return super().forward(sample, timestep, audio)

    for share in (0.0, 1.0):
        run = replace(ONE, speech_dropout=share)
        UNetTask(Ear(SMALL), prepared, prepared, SIDE, run).losses(torch.Generator().manual_seed(0))
    assert heard[0].abs().amax((1, 2, 3)).min() > 0
    assert not heard[1].any()


def test_the_weights_of_time_and_place(prepared):
    def loss(**changes):
        torch.manual_seed(0)
        task = UNetTask(unet(), prepared, prepared, SIDE, replace(ONE, **changes))
        return task.losses(torch.Generator().manual_seed(5))["noise"].item()

    assert loss() > loss(loss_weighting="noise")
    weight = place_weights(torch.from_numpy(keep_mask(SIDE)), SIDE // 2, ONE.mask_weight)
    assert (weight.max() / weight.min()).item() == pytest.approx(4, abs=0.1)
    assert weight.mean().item() == pytest.approx(1)


def test_noise_comes_off_as_it_went_on():
    clean, noise = torch.randn((2, 3, 4, 2, 8, 8), generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([1, 400, 990])
    noisy = sampling.add_noise(clean, noise, timesteps)
    bars = sampling.alpha_bar(timesteps)
    assert bars[0] > 0.99
    assert bars[2] < 0.01
    torch.testing.assert_close(
        noisy[2], bars[2].sqrt() * clean[2] + (1 - bars[2]).sqrt() * noise[2]
    )
    back = sampling.predict_x0(noisy, noise, timesteps)
    torch.testing.assert_close(back, clean, atol=1e-3, rtol=1e-3)


# -- Curves ----------------------------------------------------------------------------------------


def test_curves_show_each_figure(tmp_path):
    fit(Line(), RUN, tmp_path)
    fit(Line(), replace(RUN, name="other"), tmp_path)
    picture = tmp_path / "curves.png"
    draw_curves([tmp_path / "line.csv", tmp_path / "other.csv"], picture)
    drawn = cv2.imread(str(picture))
    assert drawn.shape[0] > 400
    rows, columns = (drawn[: drawn.shape[0] // 2], drawn[drawn.shape[0] // 2 :])
    assert (rows < 128).any()
    assert (columns < 128).any()
    (tmp_path / "empty.csv").write_text("step,loss\n")
    with pytest.raises(InputError, match="has no rows"):
        draw_curves([tmp_path / "empty.csv"], picture)
