"""`latentsync train unet`, whole: from a folder of clips to a model that speaks."""

import signal
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import latentsync
from latentsync import cli, cli_train, faces, weights
from latentsync.config import UNET_RUNS
from latentsync.errors import Cancelled, WeightsMissing
from latentsync.evaluation import ruler
from latentsync.models.syncnet import StableSyncNet
from latentsync.pipeline import LipSync
from latentsync.training import loop
from latentsync.training.main import train_unet
from latentsync.training.pixels import PixelLosses
from latentsync.training.unet import UNetTask
from tests.stubs import StubDetector
from tests.test_pixel_losses import SYNC
from tests.training_run import rows

RUN = replace(
    UNET_RUNS["demo"],
    steps=6,
    log_every=2,
    validate_every=6,
    checkpoint_every=3,
    loss_weighting="noise",
)


@pytest.fixture(autouse=True)
def stub(monkeypatch):
    """A detector that takes the clips for faces, and little to validate on."""
    monkeypatch.setattr(faces, "create", lambda *_, **__: StubDetector())
    monkeypatch.setattr("latentsync.training.unet.VALIDATION_WINDOWS", 4)


@pytest.fixture
def command(monkeypatch, capfd, folders):
    def run(*arguments):
        given = ["--init", folders.model, "--cache", folders.cache, "--cpu", "--preset", "demo"]
        monkeypatch.setattr(
            sys, "argv", ["latentsync", "train", "unet", *map(str, [*given, *arguments])]
        )
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, *capfd.readouterr()

    return run


def test_a_folder_of_clips_becomes_a_model(command, folders, tmp_path):
    out = tmp_path / "out"
    given = ["--steps", 4, "--log-every", 2, "--validate-every", 2, "--no-show"]
    code, told, wrong = command("--data", folders.data, "-o", out, *given)
    assert (code, told, wrong) == (0, f"{out / 'model'}\n", "")
    assert [row["step"] for row in rows(out)] == ["2", "4"]
    assert float(rows(out)[-1]["noise_right"]) > 0
    assert cv2.imread(str(out / "curves.png")) is not None
    wanted = {"demo.csv", "demo.checkpoint.pt", "curves.png", "model"}
    assert {p.name for p in out.iterdir()} == wanted
    model = latentsync.load(out / "model")
    assert model.nets.config.name == "tiny-demo"
    before = weights.load_nets(folders.model).unet.state_dict()
    after = model.nets.unet.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    kept = torch.load(out / "demo.checkpoint.pt", weights_only=True)
    assert {"scaler", "rng", "config", "revision", "optimiser", "net", "step"} <= set(kept)
    assert len(kept["revision"]) == 40


def test_at_each_validation_a_clip_is_made(folders, tmp_path):
    asked = []

    def show(nets, _detector, face, voice, output):
        asked.append((face.name, voice.name, output.name))
        assert not nets.unet.training
        output.touch()
        return {"lip_correlation": 0.5}

    run = replace(RUN, steps=4, validate_every=2)
    train_unet(
        run, folders.data, tmp_path, init=folders.model, cache=folders.cache, cpu=True, show=show
    )
    assert asked == [("0.mp4", "1.mp4", "0001.mp4"), ("0.mp4", "1.mp4", "0002.mp4")]
    assert [row["lip_correlation"] for row in rows(tmp_path)] == ["0.5", "0.5"]


def test_a_validation_clip_that_fails_does_not_end_the_run(folders, tmp_path, caplog):
    def show(*_):
        raise WeightsMissing("there is no ruler")

    run = replace(RUN, steps=2, validate_every=2)
    train_unet(
        run, folders.data, tmp_path, init=folders.model, cache=folders.cache, cpu=True, show=show
    )
    assert "no figures of a validation clip: there is no ruler" in caplog.text
    assert "lip_correlation" not in rows(tmp_path)[0]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--preset", "stage9"], "preset is 'stage9'; it must be one of stage1, stage2"),
        (["--steps", 0], "steps is 0; it must be a whole number from 1 on"),
        (["--learning-rate", "nan"], "learning_rate is nan"),
        (["--precision", "half"], "precision is 'half'; it must be one of float32"),
        (["--log-every", 30], "validate_every is 200; it must be a multiple of log_every, 30"),
        (["--data", "nowhere"], "nowhere holds no clip"),
        (["--accumulate", 2], "a batch of 1 can't be taken in 2 equal parts"),
        (["--init", "v9"], "model is 'v9'"),
    ],
)
def test_what_can_t_be_is_said_in_one_line(command, folders, tmp_path, given, line):
    code, told, wrong = command("--data", folders.data, "-o", tmp_path / "out", *given)
    assert (code, told) == (2, "")
    assert line in wrong
    assert wrong.count("\n") == 1


def test_losses_on_pixels_without_their_nets_name_the_download(command, folders, tmp_path):
    given = ["--sync-weight", 0.05, "--weights", tmp_path]
    code, _, wrong = command("--data", folders.data, "-o", tmp_path / "out", *given)
    assert code == 1
    assert "stable_syncnet.pt is missing; `latentsync download train` fetches it" in wrong


def test_a_stopped_run_says_so_and_goes_on(command, folders, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def interrupted(*_, **__):
        raise Cancelled("demo stopped after step 3; it goes on from there")

    with monkeypatch.context() as patch:
        patch.setattr("latentsync.training.main.fit", interrupted)
        code, told, wrong = command("--data", folders.data, "-o", out, "--steps", 2, "--no-show")
    assert (code, told) == (130, "")
    assert wrong.startswith("demo stopped after step 3; it goes on from there\n")


@pytest.mark.slow
def test_parts_one_by_one_are_the_batch(folders, tmp_path):
    for accumulate in (1, 2):
        run = replace(RUN, steps=2, batch=2, accumulate=accumulate, speech_dropout=0.5)
        train_unet(
            run,
            folders.data,
            tmp_path / str(accumulate),
            init=folders.model,
            cache=folders.cache,
            cpu=True,
        )
    whole, parts = (rows(tmp_path / name)[-1] for name in ("1", "2"))
    assert float(parts["noise"]) == pytest.approx(float(whole["noise"]), rel=1e-5)
    assert float(parts["gradient_norm"]) == pytest.approx(float(whole["gradient_norm"]), rel=1e-4)


@pytest.fixture
def judged(monkeypatch):
    """Losses on pixels by a small SyncNet, which is not fetched."""
    judge = StableSyncNet(SYNC).requires_grad_(False)

    def load(vae, config, *_, **__):
        vae.net.enable_gradient_checkpointing()
        return PixelLosses(vae, config, judge)

    monkeypatch.setattr("latentsync.training.main.load_pixel_losses", load)


@pytest.mark.usefixtures("judged")
def test_losses_on_pixels_teach_what_is_to_be_trained(folders, tmp_path):
    """The second stage: from a picture that one step gives, through the VAE and a judge."""
    run = replace(
        UNET_RUNS["stage2"], resolution=0, steps=2, log_every=1, validate_every=2, sync_weight=0.05
    )
    train_unet(run, folders.data, tmp_path, init=folders.model, cache=folders.cache, cpu=True)
    found = rows(tmp_path, "stage2")
    assert [float(row["sync"]) > 0 for row in found] == [True, True]
    assert {float(row["learning_rate"]) for row in found} == {1e-5}
    before = weights.load_nets(folders.model).unet.state_dict()
    kept = torch.load(tmp_path / "stage2.checkpoint.pt", weights_only=True)
    changed = {name for name in before if not torch.equal(before[name], kept["net"][name])}
    assert any("motion_modules." in name for name in changed)
    assert any("attn2." in name for name in changed)
    assert all("motion_modules." in name or "attentions." in name for name in changed)
    assert set(kept["average"]) == {n for n in before if "motion_" in n or "attentions." in n} - {
        n for n in before if n.endswith(".pe")
    }


@pytest.mark.slow
@pytest.mark.usefixtures("judged")
def test_half_the_precision(folders, tmp_path, monkeypatch):
    from accelerate.state import AcceleratorState

    seen, guess = set(), UNetTask._guess

    def watched(*arguments):
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        seen.add((arguments[0].net.training, half))
        return guess(*arguments)

    def show(*_):
        assert not torch.is_autocast_enabled("cpu")
        return {}

    monkeypatch.setattr(UNetTask, "_guess", watched)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        run = replace(RUN, steps=1, log_every=1, validate_every=1, precision="bfloat16")
        train_unet(
            run,
            folders.data,
            tmp_path,
            init=folders.model,
            cache=folders.cache,
            cpu=True,
            show=show,
        )
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    kept = torch.load(tmp_path / "demo.checkpoint.pt", weights_only=True)
    assert seen == {(True, torch.bfloat16), (False, torch.bfloat16)}
    assert {value.dtype for value in kept["average"].values()} == {torch.float32}
    assert 0 < float(rows(tmp_path)[-1]["noise"]) < 10


def test_the_first_signal_is_noted_and_the_next_one_ends():
    ended = []
    before = signal.signal(signal.SIGINT, lambda *_: ended.append(1))
    try:
        with cli_train._stopping() as asked:
            assert not asked()
            signal.raise_signal(signal.SIGINT)
            assert asked()
            assert not ended
            signal.raise_signal(signal.SIGINT)
            assert ended
    finally:
        signal.signal(signal.SIGINT, before)


def test_what_a_validation_says_of_the_lips(tmp_path, monkeypatch):
    """The mouth that was made, where the face's clip has it, against that of the voice's clip."""
    truth = np.sin(np.arange(60.0))[:, None]
    seen = {"face.mp4": "place", "voice.mp4": truth, "out.mp4": truth[:50]}
    monkeypatch.setattr(LipSync, "__init__", lambda *_: None)
    monkeypatch.setattr(LipSync, "run", lambda *_, **__: None)
    monkeypatch.setattr(ruler, "find_track", lambda path, _: seen[path.name])

    def mouth_track(path, _ruler, _detector, *, track=None):
        assert track == ("place" if path.name == "out.mp4" else None)
        return seen[path.name]

    monkeypatch.setattr(ruler, "mouth_track", mouth_track)
    paths = [tmp_path / f"{name}.mp4" for name in ("face", "voice", "out")]
    found = cli_train._speak(None, None, *paths)
    assert found == {"lip_correlation": pytest.approx(1.0)}


def test_a_run_of_a_constant_rate_may_be_made_longer():
    config = replace(RUN, steps=10)
    saved = {k: v for k, v in vars(config).items() if k != "accumulate"}  # an older file
    assert loop._same_settings(saved, replace(config, steps=20))
    assert not loop._same_settings(saved, replace(config, batch=2))
    assert not loop._same_settings(saved, replace(config, accumulate=2))
    assert not loop._same_settings(saved, replace(config, schedule="cosine"))
