"""`latentsync train syncnet`: what it is shown, that it learns, and that a U-Net can use it."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from latentsync import cli, faces
from latentsync.diffusion.sampling import Latents
from latentsync.diffusion.weights import load_nets
from latentsync.errors import Cancelled, OptionError, WeightsMismatch
from latentsync.evaluation.nets.loading import load_syncnet
from latentsync.evaluation.nets.syncnet import (
    StableSyncNet,
    SyncNetConfig,
    SyncNetTower,
    accuracies,
    cosine_loss,
    stacked,
)
from latentsync.training.batches import WHOLE, BatchPart
from latentsync.training.clip_cache import CachedClip, Preparer
from latentsync.training.clips import ClipFile, find_clips
from latentsync.training.crops import to_tensor
from latentsync.training.dataset import fingerprint, prepare
from latentsync.training.loop import fit
from latentsync.training.main import train_syncnet
from latentsync.training.pixel_losses import load_pixel_losses
from latentsync.training.presets import SYNCNET_RUNS, SyncNetTrainConfig
from latentsync.training.tasks.syncnet import ClipPairs, SyncNetTask, WindowPairs, contrast_loss
from tests.stubs import TINY, StubDetector, tiny_nets
from tests.training_run import files_of, rows

LATENT = SyncNetConfig(
    visual=SyncNetTower(64, (32, 64), ((2, 2), (4, 4))),
    audio=SyncNetTower(1, (32, 64), ((16, 13), (5, 4))),
    side=8,
    lower_half=False,
    latent=True,
)
PIXEL = replace(
    LATENT, visual=SyncNetTower(48, (32, 64), ((8, 8), (4, 8))), side=TINY.resolution,
    latent=False, lower_half=True,
)  # fmt: skip
RUN = SyncNetTrainConfig(
    "tiny", 4, 4, 1e-3, warmup_steps=0, log_every=2, validate_every=2, checkpoint_every=2,
    net=LATENT,
)  # fmt: skip


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    """A detector that takes the clips for faces, little to validate on, and tiny presets."""
    monkeypatch.setattr(faces, "create", lambda *_, **__: StubDetector())
    monkeypatch.setattr("latentsync.training.tasks.syncnet.VALIDATION_CLIPS", 4)
    monkeypatch.setattr("latentsync.training.tasks.syncnet.VALIDATION_PARTS", 2)
    monkeypatch.setattr("latentsync.training.tasks.unet.VALIDATION_WINDOWS", 4)
    monkeypatch.setitem(SYNCNET_RUNS, "latent", replace(RUN, name="latent"))
    monkeypatch.setitem(SYNCNET_RUNS, "pixel", replace(RUN, name="pixel", net=PIXEL))


@pytest.fixture
def command(monkeypatch, capfd, folders):
    def run(what, output, *arguments):
        given = ["--data", folders.data, "-o", output, "--cache", folders.cache, "--cpu"]
        monkeypatch.setattr(
            sys, "argv", ["latentsync", "train", what, *map(str, [*given, *arguments])]
        )
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, *capfd.readouterr()

    return run


# -- What it is shown ------------------------------------------------------------------------------


@pytest.fixture
def clips(folders):
    preparer = Preparer(load_nets(folders.model), StubDetector(), folders.cache)
    return prepare(files_of(*find_clips(folders.data)), preparer)


@pytest.mark.parametrize("frames", [48, 49, 90])
def test_both_windows_are_of_one_clip_and_share_no_frame(tmp_path, monkeypatch, frames):
    def latents(clip, start, stop):
        assert stop - start == 16
        shown = torch.full((16, 1, 1, 1), 100.0 * clip.first + start)
        return Latents(shown, shown)

    def mel(clip, start, frames):
        assert frames == 16
        return torch.full((1, 1, 1), 100.0 * clip.first + start)

    monkeypatch.setattr(CachedClip, "latents", latents)
    monkeypatch.setattr(CachedClip, "mel", mel)
    file = ClipFile(tmp_path, "", "", "")
    clips = [CachedClip(file, tmp_path, first, frames) for first in range(2)]
    pairs = ClipPairs(clips).draw(400, torch.Generator().manual_seed(0))
    seen, heard = pairs.visual[:, :, 0, 0, 0, 0], pairs.mel[:, :, 0, 0, 0]
    assert seen.shape == (400, 2)
    assert torch.equal(seen, heard)
    clip, start = seen // 100, seen % 100
    assert torch.equal(clip[:, 0], clip[:, 1])
    assert clip[:, 0].unique().tolist() == [0, 1]
    assert (start[:, 0] - start[:, 1]).abs().min() >= 16
    assert (start[:, 0].min(), start[:, 0].max()) == (0, frames - 16)


@pytest.mark.parametrize("side", [None, TINY.resolution])
def test_windows_and_sounds_are_those_of_the_clip(clips, side):
    clip = clips[0]
    pairs = ClipPairs(clips[:1], side).draw(4, torch.Generator().manual_seed(1))
    starts = range(len(clip) - 15)
    if side:
        frames = to_tensor(clip.crops(0, len(clip), side))
    else:
        frames = clip.latents(0, len(clip)).reference
    shown = [frames[start : start + 16].transpose(0, 1) for start in starts]
    sounds = [clip.mel(start, 16) for start in starts]
    for seen, mel in zip(pairs.visual.flatten(0, 1), pairs.mel.flatten(0, 1), strict=True):
        (start,) = (i for i, one in enumerate(shown) if torch.equal(one, seen))
        (heard,) = (i for i, one in enumerate(sounds) if torch.equal(one, mel))
        assert start == heard


def test_the_fingerprint_tells_clips_and_their_order(clips):
    same, turned, fewer = list(clips), clips[::-1], clips[:2]
    found = [fingerprint(some) for some in (clips, same, turned, fewer)]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_parts_of_a_batch_are_the_batch(clips):
    windows = ClipPairs(clips)
    whole, *parts = (
        windows.draw(4, torch.Generator().manual_seed(1), part)
        for part in (WHOLE, BatchPart(0, 2), BatchPart(1, 2))
    )
    for name in ("visual", "mel"):
        assert torch.equal(torch.cat([getattr(one, name) for one in parts]), getattr(whole, name))


# -- That it learns --------------------------------------------------------------------------------


class Gestures:
    """The upper half lights up, then the lower one, or the other way; each with its pitch."""

    def draw(self, count, generator, part=WHOLE):
        first = torch.randint(2, (count,), generator=generator)
        seen = 0.3 * torch.randn((count, 2, 4, 16, 8, 8), generator=generator)
        mel = 0.3 * torch.randn((count, 2, 1, 80, 52), generator=generator)
        for i in range(count):
            for window, half in enumerate((first[i], 1 - first[i])):
                seen[i, window, :, :, 4 * half : 4 * half + 4] += 1
                mel[i, window, :, 40 * half : 40 * half + 40] += 2
        mine = part.of(count)
        return WindowPairs(seen[mine], mel[mine])


def test_it_learns_what_belongs_together(tmp_path, monkeypatch):
    torch.manual_seed(0)
    run = replace(
        RUN, steps=30, batch=4, learning_rate=2e-3, ema_decay=0.8, log_every=30,
        validate_every=30, checkpoint_every=30,
    )  # fmt: skip
    monkeypatch.setattr("latentsync.training.tasks.syncnet.VALIDATION_CLIPS", 32)
    task = SyncNetTask(StableSyncNet(LATENT), Gestures(), Gestures(), run)
    before = task.validate()
    fit(task, run, tmp_path)
    after = task.validate()
    assert before["accuracy"] <= 0.7
    assert after["accuracy"] >= 0.9
    assert after["best_accuracy"] >= after["accuracy"]


def test_its_loss_is_that_of_each_window_with_either_sound():
    net = StableSyncNet(LATENT)
    task = SyncNetTask(net, Gestures(), Gestures(), RUN)
    found = task.losses(torch.Generator().manual_seed(3))["sync"]
    pairs = Gestures().draw(RUN.batch, torch.Generator().manual_seed(3))
    wanted = 0
    for clip in range(RUN.batch):
        for seen in range(2):
            for heard in range(2):
                shown = stacked(pairs.visual[clip, seen][None], LATENT)
                embedded = net(shown, pairs.mel[clip, heard][None])
                wanted += cosine_loss(*embedded, torch.tensor([float(seen == heard)])).mean()
    torch.testing.assert_close(found, wanted / (4 * RUN.batch))


def test_the_contrast_is_what_it_costs_to_find_the_own_sound_and_the_own_window():
    places = torch.eye(3)
    visual, audio = places, torch.stack([places[0], places[2], places[2]])
    heard = [(1, 0, 0), (0, 0, 0), (0, 1, 1)]  # each window's cosine with the three sounds
    wanted = 0.0
    for table in (heard, list(zip(*heard, strict=True))):
        for i, row in enumerate(table):
            powers = np.exp(np.array(row) / 0.05)
            wanted -= np.log(powers[i] / powers.sum()) / 6
    assert contrast_loss(visual, audio).item() == pytest.approx(wanted, rel=1e-5)


def test_the_contrast_is_added_where_it_has_a_weight():
    task = SyncNetTask(StableSyncNet(LATENT), Gestures(), Gestures(), RUN)
    plain = task.losses(torch.Generator().manual_seed(3))
    task._config = replace(RUN, contrast_weight=2.0)
    both = task.losses(torch.Generator().manual_seed(3))
    pairs = Gestures().draw(RUN.batch, torch.Generator().manual_seed(3))
    shown = stacked(pairs.visual.flatten(0, 1), LATENT)
    wanted = contrast_loss(*task.net(shown, pairs.mel.flatten(0, 1)))
    torch.testing.assert_close(both, plain | {"contrast": 2 * wanted})


def test_accuracies():
    in_sync = torch.tensor([True, False, True, False])
    assert accuracies(torch.tensor([0.9, 0.1, 0.6, 0.4]), in_sync) == (1, 1)
    assert accuracies(torch.tensor([0.9, 0.7, 0.8, 0.6]), in_sync) == (0.5, 1)
    assert accuracies(torch.tensor([0.1, 0.2, 0.3, 0.4]), in_sync) == (0.5, 0.5)
    assert accuracies(torch.full((4,), 0.2), in_sync) == (0.5, 0.5)


def test_the_small_preset_fits_the_demo_models_latents():
    net = StableSyncNet(SYNCNET_RUNS["small"].net)
    video = torch.zeros(2, 4, 16, 12, 12)
    visual, audio = net(stacked(video, net.config), torch.zeros(2, 1, 80, 52))
    assert visual.shape == audio.shape == (2, 256)
    assert sum(p.numel() for p in net.parameters()) < 5e6


# -- The command -----------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["latent", pytest.param("pixel", marks=pytest.mark.slow)])
def test_clips_become_a_judge_of_a_run(command, folders, tmp_path, preset):
    out = tmp_path / "sync"
    given = ["--model", folders.model, "--preset", preset, "--steps", 2]
    code, told, wrong = command("syncnet", out, *given)
    file = out / "syncnet.safetensors"
    assert (code, told, wrong) == (0, f"{file}\n", "")
    assert {p.name for p in out.iterdir()} == {
        file.name, f"{preset}.csv", f"{preset}.checkpoint.pt", "curves.png",
        "best.safetensors", "best.json",
    }  # fmt: skip
    (row,) = rows(out, preset)
    assert 0 <= float(row["accuracy"]) <= float(row["best_accuracy"]) <= 1
    net = load_syncnet(file, SYNCNET_RUNS[preset].net)
    kept = torch.load(out / f"{preset}.checkpoint.pt", weights_only=True)["average"]
    assert all(torch.equal(value, kept[name]) for name, value in net.state_dict().items())
    given = [
        "--init",
        folders.model,
        "--preset",
        "demo",
        "--steps",
        1,
        "--log-every",
        1,
        "--no-show",
    ]
    judge = ["--sync-weight", 0.05, "--syncnet", file, "--syncnet-preset", preset]
    code, _, wrong = command("unet", tmp_path / "unet", *given, "--validate-every", 1, *judge)
    assert (code, wrong) == (0, "")
    assert float(rows(tmp_path / "unet", "demo")[0]["sync"]) > 0


@pytest.mark.slow
def test_a_stopped_run_goes_on_as_if_it_had_not_been(folders, clips, tmp_path):
    def train(folder, **more):
        return train_syncnet(
            RUN,
            folders.settings(tmp_path / folder),
            model=folders.model,
            **more,
        )

    told = []
    answers = iter([False, True])  # when the last clip is prepared, after the first step
    with pytest.raises(Cancelled):
        train(
            "a",
            progress=told.append,
            cancel=lambda: (told[-1].stage, told[-1].done) == ("prepare", 3) and next(answers),
        )
    kept = torch.load(tmp_path / "a" / "tiny.checkpoint.pt", weights_only=True)
    assert kept["step"] == 1
    assert kept["facts"]["--data"] == ("3 clips", fingerprint(clips))
    for folder in ("a", "b"):
        train(folder)
    assert rows(tmp_path / "a", "tiny") == rows(tmp_path / "b", "tiny")
    found, wanted = (load_syncnet(tmp_path / f / "syncnet.safetensors", LATENT) for f in "ab")
    for name, value in wanted.state_dict().items():
        np.testing.assert_array_equal(found.state_dict()[name], value)


@pytest.mark.parametrize(
    ("what", "given", "line"),
    [
        ("syncnet", ["--preset", "huge"], "preset is 'huge'; it must be one of pixel_attn"),
        ("syncnet", ["--batch", 0], "batch is 0"),
        ("unet", ["--syncnet-preset", "huge"], "--syncnet-preset is 'huge'; it must be one of"),
    ],
)
def test_what_can_t_be_is_said_in_one_line(command, tmp_path, what, given, line):
    code, told, wrong = command(what, tmp_path / "out", *given)
    assert (code, told) == (2, "")
    assert line in wrong
    assert wrong.count("\n") == 1


def test_a_judge_that_does_not_fit_is_refused(tmp_path):
    from safetensors.torch import save_file

    from latentsync.training.settings import UNetTrainConfig

    file, vae = tmp_path / "syncnet.safetensors", tiny_nets().vae
    save_file(StableSyncNet(LATENT).state_dict(), file)
    run = UNetTrainConfig("sync", 1, 1, 1e-5, sync_weight=0.05)
    own = {"syncnet_file": file, "syncnet_config": LATENT}
    assert load_pixel_losses(vae, run, side=64, **own) is not None
    with pytest.raises(OptionError, match="of crops of 64 px; this run's crops have 96 px"):
        load_pixel_losses(vae, run, side=96, **own)
    with pytest.raises(OptionError, match="sync_weight is 0, so"):
        load_pixel_losses(vae, replace(run, sync_weight=0.0), **own)
    with pytest.raises(WeightsMismatch):
        load_pixel_losses(vae, run, syncnet_file=file, syncnet_config=PIXEL)
