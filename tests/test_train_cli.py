"""`latentsync train unet`, whole: from a folder of clips to a model that speaks."""

import json
import os
import signal
import sys
from dataclasses import fields, replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

import latentsync
from latentsync import cli, faces
from latentsync.cli import train as cli_train
from latentsync.diffusion import weights
from latentsync.errors import Cancelled, WeightsMissing
from latentsync.evaluation import mouth_net
from latentsync.evaluation.nets.syncnet import StableSyncNet
from latentsync.pipeline.lipsync import LipSync
from latentsync.runtime.locks import locked_folder
from latentsync.training.main import train_unet
from latentsync.training.pixel_losses import PixelLosses
from latentsync.training.presets import UNET_RUNS
from latentsync.training.settings import TrainingSettings
from latentsync.training.tasks.unet import UNetTask
from tests.stubs import StubDetector, tiny_nets
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
    monkeypatch.setattr("latentsync.training.tasks.unet.VALIDATION_WINDOWS", 4)


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
    wanted = {"demo.csv", "demo.checkpoint.pt", "curves.png", "model", "best"}
    assert {p.name for p in out.iterdir()} == wanted
    figures = json.loads((out / "best" / "figures.json").read_text())
    assert figures["lowest"] == pytest.approx(min(float(r["noise_right"]) for r in rows(out)))
    assert weights.load_nets(out / "best").config.name == "tiny-demo"
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

    def show(nets, _detector, face, voice, output, _cancel):
        asked.append((face.name, voice.name, output.name))
        assert not nets.unet.training
        output.touch()
        return {"lip_correlation": 0.5}

    run = replace(RUN, steps=4, validate_every=2)
    train_unet(run, folders.settings(tmp_path), init=folders.model, show=show)
    assert asked == [("0.mp4", "1.mp4", "0001.mp4"), ("0.mp4", "1.mp4", "0002.mp4")]
    assert [row["lip_correlation"] for row in rows(tmp_path)] == ["0.5", "0.5"]


def test_a_validation_clip_is_stopped_with_the_run(folders, tmp_path, caplog):
    """Each is made anew when the run goes on, and takes no other's name."""
    asked, stop = [], [False]

    def show(_nets, _detector, _face, _voice, output, cancel):
        asked.append(output.name)
        output.touch()
        stop[0] = len(asked) == 1
        if cancel():
            raise Cancelled("the run was cancelled")
        return {}

    def train():
        train_unet(
            replace(RUN, steps=2, validate_every=2), folders.settings(tmp_path),
            init=folders.model, show=show, cancel=lambda: stop[0],
        )  # fmt: skip

    with pytest.raises(Cancelled, match="demo stopped after step 2; it goes on from there"):
        train()
    assert not (tmp_path / "demo.csv").exists()
    stop[0] = False
    train()
    assert asked == ["0001.mp4", "0002.mp4"]
    assert [row["step"] for row in rows(tmp_path)] == ["2"]
    assert "no figures of a validation clip" not in caplog.text


def test_figures_of_a_validation_can_be_stopped():
    task = UNetTask.__new__(UNetTask)
    batch = SimpleNamespace(clean=torch.zeros(1), speech=torch.zeros(1), to=lambda _: batch)
    task._held_out = SimpleNamespace(draw=lambda *_: batch)
    task._config, task._cancel = RUN, lambda: True
    task._device = "cpu"
    with pytest.raises(Cancelled):
        task.validate()


def test_a_validation_clip_that_fails_does_not_end_the_run(folders, tmp_path, caplog):
    def show(*_):
        raise WeightsMissing("there is no mouth net")

    run = replace(RUN, steps=2, validate_every=2)
    train_unet(run, folders.settings(tmp_path), init=folders.model, show=show)
    assert "no figures of a validation clip: there is no mouth net" in caplog.text
    assert "lip_correlation" not in rows(tmp_path)[0]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["--preset", "stage9"], "preset is 'stage9'; it must be one of stage1, stage2"),
        (["--steps", 0], "--steps is 0; it must be a whole number from 1 on"),
        (["--learning-rate", "nan"], "--learning-rate is nan; it must be a number from 0 on"),
        (["--seed", -1], "--seed is -1; it must be a whole number from 0 on"),
        (["--precision", "half"], "precision is 'half'; it must be one of 'float32'"),
        (["--log-every", 30], "--validate-every is 200; it must be a multiple of --log-every, 30"),
        (["--data", "nowhere"], "nowhere holds no clip"),
        (["--accumulate", 2], "a batch of 1 can't be taken in 2 equal parts"),
        (["--init", "v9"], "init is 'v9'; it must be"),
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
    code, _, wrong = command(
        "--data", folders.data, "-o", tmp_path / "out", *given, "--syncnet", tmp_path / "own.pt"
    )
    assert code == 1
    assert "own.pt is missing; give the syncnet.safetensors that `train syncnet` wrote" in wrong


def test_a_stopped_run_says_so_and_goes_on(command, folders, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def interrupted(*_, **__):
        raise Cancelled("demo stopped after step 3; it goes on from there")

    with monkeypatch.context() as patch:
        patch.setattr("latentsync.training.main.fit", interrupted)
        code, told, wrong = command("--data", folders.data, "-o", out, "--steps", 2, "--no-show")
    assert (code, told) == (130, "")
    assert wrong.startswith("demo stopped after step 3; it goes on from there\n")


@pytest.fixture
def asked(monkeypatch):
    """What `train_unet` is asked, which then trains nothing."""
    seen = {}

    def stub(run, settings, **options):
        seen.update(run=run, settings=settings, **options)
        return settings.output / "model"

    monkeypatch.setattr("latentsync.training.main.train_unet", stub)
    return seen


def told_by(monkeypatch, capfd, *arguments):
    monkeypatch.setattr(sys, "argv", ["latentsync", "train", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, *capfd.readouterr()


@pytest.mark.parametrize(
    ("preset", "init"), [("demo", "demo"), ("stage1", "v1.6"), ("stage2_512", "v1.6")]
)
def test_a_preset_starts_from_the_model_it_is_for(monkeypatch, capfd, asked, preset, init):
    given = ["unet", "--data", "d", "-o", "o", "--preset", preset]
    assert told_by(monkeypatch, capfd, *given)[0] == 0
    assert (asked["init"], asked["settings"].held_out) == (init, None)


def test_options_reach_the_run(monkeypatch, capfd, asked):
    given = ["unet", "--data", "d", "-o", "o", "--init", "mine", "--held-out", 0]
    assert told_by(monkeypatch, capfd, *given, "--keep-checkpoints", 3)[0] == 0
    assert (asked["init"], asked["settings"].held_out) == ("mine", 0)
    assert asked["run"].keep_checkpoints == 3


def test_missing_weights_are_not_answered_by_an_option_of_other_commands(
    monkeypatch, capfd, folders, tmp_path
):
    given = ["unet", "--data", folders.data, "-o", tmp_path / "out", "--weights", tmp_path, "--cpu"]
    code, _, wrong = told_by(monkeypatch, capfd, *given)
    assert code == 1
    assert "`latentsync download v1.6`, or use `--preset demo --init demo`" in wrong
    assert "--model" not in wrong
    given[0] = "syncnet"
    _, _, wrong = told_by(monkeypatch, capfd, *given, "--preset", "small")
    assert "`latentsync download v1.6`, or use `--preset small --model demo`" in wrong


def test_a_second_run_is_told_who_fills_the_folder(command, folders, tmp_path):
    with locked_folder(tmp_path):
        code, told, wrong = command("--data", folders.data, "-o", tmp_path)
    assert (code, told) == (2, "")
    assert f"{tmp_path} is being filled by process {os.getpid()} on" in wrong
    assert wrong.count("\n") == 1


def test_another_model_to_start_from_is_noticed(command, folders, tmp_path):
    given = ["--data", folders.data, "-o", tmp_path / "out", "--steps", 1, "--no-show"]
    assert command(*given)[0] == 0
    weights.save(tiny_nets(seed=1), tmp_path / "other")
    code, _, wrong = command(*given, "--init", tmp_path / "other")
    assert code == 2
    assert f"--init: {tmp_path / 'other'} now, {folders.model} then" in wrong


@pytest.mark.slow
def test_parts_one_by_one_are_the_batch(folders, tmp_path):
    for accumulate in (1, 2):
        run = replace(RUN, steps=2, batch=2, accumulate=accumulate, speech_dropout=0.5)
        train_unet(run, folders.settings(tmp_path / str(accumulate)), init=folders.model)
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
    train_unet(run, folders.settings(tmp_path), init=folders.model)
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

    seen, predict = set(), UNetTask._predict

    def watched(*arguments):
        half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
        seen.add((arguments[0].net.training, half))
        return predict(*arguments)

    def show(*_):
        assert not torch.is_autocast_enabled("cpu")
        return {}

    monkeypatch.setattr(UNetTask, "_predict", watched)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        run = replace(RUN, steps=1, log_every=1, validate_every=1, precision="bfloat16")
        train_unet(run, folders.settings(tmp_path), init=folders.model, show=show)
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
    monkeypatch.setattr(mouth_net, "find_track", lambda path, _: seen[path.name])

    def mouth_track(path, _net, _detector, *, track=None):
        assert track == ("place" if path.name == "out.mp4" else None)
        return seen[path.name]

    monkeypatch.setattr(mouth_net, "mouth_track", mouth_track)
    paths = [tmp_path / f"{name}.mp4" for name in ("face", "voice", "out")]
    found = cli_train._speak(None, None, *paths)
    assert found == {"lip_correlation": pytest.approx(1.0)}


def test_the_files_of_the_command_line_are_fields_of_the_settings():
    settings = {one.name: one.default for one in fields(TrainingSettings)}
    assert {one.name: one.default for one in fields(cli_train.TrainingFiles)} == settings
