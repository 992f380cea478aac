"""Training in processes of its own: killed and started again, and two that share each batch."""

import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

from latentsync.training.loop import create_accelerator, fit
from latentsync.training.settings import TrainConfig
from tests.training_process import RUN
from tests.training_run import prepared_in, rows


@pytest.fixture(scope="module")
def given(folders):
    """The arguments of a training process but for its output."""
    return folders.data, folders.model, folders.cache


def started(*arguments, **environment):
    command = [sys.executable, "-m", "tests.training_process", *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)


def ended(process):
    wrong = process.communicate(timeout=200)[1].decode()
    return process.returncode, wrong


@pytest.fixture(scope="module")
def whole(given, tmp_path_factory):
    """A run of one process that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    code, wrong = ended(started(*given, folder))
    assert code == 0, wrong
    return folder


def checkpoint(folder):
    return torch.load(folder / f"{RUN.name}.checkpoint.pt", weights_only=True)


@pytest.mark.slow  # five processes import all of it
def test_a_killed_run_ends_as_the_unbroken_one_to_the_bit(given, whole, tmp_path):
    code, _ = ended(started(*given, tmp_path, 5))
    assert code == -signal.SIGKILL
    assert checkpoint(tmp_path)["step"] == 3  # between two rows of figures
    code, wrong = ended(started(*given, tmp_path))
    assert code == 0, wrong
    assert rows(tmp_path, RUN.name) == rows(whole, RUN.name)
    killed, unbroken = checkpoint(tmp_path), checkpoint(whole)
    for part in ("net", "average"):
        for name, value in unbroken[part].items():
            assert torch.equal(killed[part][name], value), name
    model = (tmp_path / "model" / "unet.safetensors").read_bytes()
    assert model == (whole / "model" / "unet.safetensors").read_bytes()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.slow
def test_two_processes_do_what_one_does(given, whole, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    both = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    cache = tmp_path / "cache"  # each prepares its share of the clips
    processes = [
        started(*given[:2], cache, tmp_path / "out", RANK=rank, LOCAL_RANK=rank, **both)
        for rank in ("0", "1")
    ]
    for process in processes:
        code, wrong = ended(process)
        assert code == 0, wrong
    assert len(prepared_in(cache)) == 3
    found, wanted = rows(tmp_path / "out", RUN.name), rows(whole, RUN.name)
    assert len(found) == len(wanted) == 4
    for one, other in zip(found, wanted, strict=True):
        for name in ("noise", "gradient_norm"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-3), name
    assert float(found[0]["noise"]) == pytest.approx(float(wanted[0]["noise"]), rel=1e-5)


class Line:
    """A task of two numbers, y = 3 x - 1; in one step its gradient is more than a scaler takes."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = torch.nn.Linear(1, 1)
        self.weights = []

    def losses(self, generator):
        self.weights.append(self.net.weight.item())
        x = torch.randn((4, 1), generator=generator)
        steep = 1e38 if len(self.weights) == 3 else 1.0
        return {"squares": steep * (self.net(x) - 3 * x + 1).abs().mean()}

    def validate(self):
        return {}


def test_a_step_that_overflows_is_left_out_and_the_scale_goes_down(tmp_path):
    accelerator = create_accelerator("float32", cpu=True)
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    task = Line()
    config = TrainConfig("line", steps=6, batch=4, learning_rate=0.01, warmup_steps=0)
    fit(task, config, tmp_path, accelerator=accelerator)
    moved = [a != b for a, b in zip(task.weights, task.weights[1:], strict=False)]
    assert moved == [True, True, False, True, True]
    kept = torch.load(tmp_path / "line.checkpoint.pt", weights_only=True)
    assert kept["scaler"]["scale"] == 512
    again = create_accelerator()
    again.scaler = torch.amp.GradScaler("cpu")
    fit(Line(), config, tmp_path, accelerator=again)
    assert again.scaler.state_dict() == kept["scaler"]
    fit(Line(), config, tmp_path)  # without a scaler


def test_float16_is_not_for_a_cpu():
    assert create_accelerator("float16", cpu=True).mixed_precision == "no"
