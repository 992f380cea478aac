"""What a run goes on from: which changes it allows, what it says of damage, what it keeps."""

import csv
import errno
import resource
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn

from latentsync.errors import Cancelled, OptionError, OutputError, TrainingError
from latentsync.training.loop import fit
from latentsync.training.presets import SYNCNET_RUNS, UNET_RUNS
from latentsync.training.settings import TrainConfig

RUN = TrainConfig(
    "line", steps=12, batch=4, learning_rate=0.05, warmup_steps=3, log_every=3, validate_every=6,
    checkpoint_every=3,
)  # fmt: skip
FACTS = {"--data": ("3 clips", "abc"), "--init": ("v1.6", "123")}


class Line:
    """A task of two numbers: y = 3 x - 1."""

    def __init__(self, stop_at=()):
        torch.manual_seed(0)
        self.net = nn.Linear(1, 1)
        self.steps, self.validated, self.stop_at = 0, 0, set(stop_at)

    def losses(self, generator):
        self.steps += 1
        x = torch.randn((4, 1), generator=generator)
        return {"squares": (self.net(x) - 3 * x + 1).square().mean()}

    def validate(self):
        self.validated += 1
        if self.validated in self.stop_at:
            raise Cancelled("stopped")
        return {"slope": self.net.weight.item()}


class Divisible(Line):
    def part_losses(self, generator, _part):
        return self.losses(generator)


def rows(folder):
    with (folder / "line.csv").open() as file:
        return list(csv.DictReader(file))


def names(folder):
    return {path.name for path in folder.iterdir()}


# -- What may change -------------------------------------------------------------------------------


@pytest.mark.parametrize("free", ["log_every", "validate_every", "checkpoint_every"])
def test_what_does_not_change_the_weights_may_change(tmp_path, free):
    with pytest.raises(Cancelled):
        fit(Line(), RUN, tmp_path, cancel=lambda: True)
    fit(Line(), replace(RUN, **{free: 1}), tmp_path)
    assert rows(tmp_path)[-1]["step"] == "12"


def test_a_run_goes_on_in_smaller_parts_on_a_smaller_device(tmp_path):
    task = Divisible()
    with pytest.raises(Cancelled):
        fit(task, RUN, tmp_path, cancel=lambda: task.steps == 6)
    fit(Divisible(), replace(RUN, accumulate=2), tmp_path)
    assert rows(tmp_path)[-1]["step"] == "12"


def test_what_changes_the_weights_is_named_as_it_was_and_is(tmp_path):
    fit(Line(), RUN, tmp_path)
    with pytest.raises(OptionError, match=r"learning_rate is 0\.01 now and was 0\.05;") as caught:
        fit(Line(), replace(RUN, learning_rate=0.01), tmp_path)
    assert "batch" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
    with pytest.raises(OptionError, match=r"steps is 20 now and was 12; .*seed is 2 now"):
        fit(Line(), replace(RUN, steps=20, seed=2), tmp_path)


def test_a_setting_inside_another_is_named(tmp_path):
    run = replace(SYNCNET_RUNS["small"], name="line", steps=1)
    fit(Line(), run, tmp_path)
    with pytest.raises(OptionError, match=r"net\.side is 16 now and was 12"):
        fit(Line(), replace(run, net=replace(run.net, side=16)), tmp_path)


@pytest.mark.parametrize("name", FACTS)
def test_other_data_or_nets_are_refused_and_named(tmp_path, name):
    fit(Line(), RUN, tmp_path, facts=FACTS)
    fit(Line(), RUN, tmp_path, facts={**FACTS, name: ("called otherwise", FACTS[name][1])})
    other = {**FACTS, name: ("another", "456")}
    with pytest.raises(OptionError, match=rf"{name}: another now, {FACTS[name][0]} then"):
        fit(Line(), RUN, tmp_path, facts=other)
    missing = {key: value for key, value in FACTS.items() if key != name}
    with pytest.raises(OptionError, match=rf"{name}: not given now"):
        fit(Line(), RUN, tmp_path, facts=missing)


def test_a_checkpoint_from_before_a_setting_existed_goes_on(tmp_path, caplog):
    fit(Line(), RUN, tmp_path)
    file = tmp_path / "line.checkpoint.pt"
    saved = torch.load(file, weights_only=True)
    del saved["facts"], saved["seconds"], saved["config"]["keep_checkpoints"]
    del saved["config"]["accumulate"]
    torch.save(saved, file)
    fit(Line(), RUN, tmp_path, facts=FACTS)
    assert "which did not record its data" in caplog.text


def test_a_constant_rate_does_not_know_the_end(tmp_path):
    run = replace(RUN, schedule="constant", steps=6)
    fit(Line(), run, tmp_path)
    fit(Line(), replace(run, steps=9, warmup_steps=0), tmp_path)
    assert rows(tmp_path)[-1]["step"] == "9"
    with pytest.raises(OptionError, match="schedule"):
        fit(Line(), replace(run, schedule="cosine"), tmp_path)


def test_another_net_is_refused(tmp_path):
    fit(Line(), RUN, tmp_path)
    task = Line()
    task.net = nn.Linear(2, 1)
    with pytest.raises(OptionError, match=r"line\.checkpoint\.pt holds another net"):
        fit(task, RUN, tmp_path)


# -- Time and validation ---------------------------------------------------------------------------


def test_seconds_go_on_over_a_resume(tmp_path, monkeypatch):
    clock = [100.0]

    def tick():
        clock[0] += 1
        return clock[0]

    monkeypatch.setattr("latentsync.training.loop.time.monotonic", tick)
    task = Line()
    with pytest.raises(Cancelled):
        fit(task, RUN, tmp_path, cancel=lambda: task.steps == 7)
    clock[0] = 5000.0
    fit(Line(), RUN, tmp_path)
    seconds = [float(row["seconds"]) for row in rows(tmp_path)]
    assert seconds == sorted(set(seconds))
    assert seconds[-1] < 100  # not the time in between


def test_a_cancelled_validation_is_made_up_when_the_run_goes_on(tmp_path):
    fit(Line(), RUN, tmp_path / "whole")
    for stopped, step in ((1, 6), (2, 12)):
        folder = tmp_path / str(stopped)
        with pytest.raises(Cancelled, match=f"after step {step}; it goes on from there"):
            fit(Line([stopped]), RUN, folder)
        with pytest.raises(Cancelled, match=f"after step {step}"):
            fit(Line([1]), RUN, folder)
        again = Line()
        fit(again, RUN, folder)
        assert again.validated == 3 - stopped
        last = Line()
        fit(last, RUN, folder)
        assert last.validated == 0
        for one, other in zip(rows(folder), rows(tmp_path / "whole"), strict=True):
            assert {**one, "seconds": 0} == {**other, "seconds": 0}


# -- Damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"half", "cut", "list"])
def test_a_damaged_checkpoint_is_named_with_a_remedy(tmp_path, content):
    fit(Line(), RUN, tmp_path)
    file = tmp_path / "line.checkpoint.pt"
    if content == "cut":
        content = file.read_bytes()[:-700]
    if content == "list":
        torch.save([1], file)
    else:
        file.write_bytes(content)
    with pytest.raises(
        TrainingError, match=r"line\.checkpoint\.pt is damaged: its \d+ bytes"
    ) as told:
        fit(Line(), RUN, tmp_path)
    assert str(told.value).endswith(
        "bytes are not a whole checkpoint; put a copy there; or give another folder to start anew"
    )


def test_a_checkpoint_that_can_t_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    fit(Line(), RUN, tmp_path)

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refused)
    with pytest.raises(TrainingError, match=r"line\.checkpoint\.pt can't be read \(Permission den"):
        fit(Line(), RUN, tmp_path)


@pytest.mark.parametrize("every", [RUN.checkpoint_every, 1000])
def test_a_checkpoint_that_is_gone_is_missed(tmp_path, every):
    run = replace(RUN, checkpoint_every=every)
    fit(Line(), run, tmp_path)
    (tmp_path / "line.checkpoint.pt").unlink()
    with pytest.raises(TrainingError, match=r"line\.checkpoint\.pt is gone, but line\.csv beside"):
        fit(Line(), run, tmp_path)


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    task = Line()
    with pytest.raises(Cancelled):
        fit(task, RUN, tmp_path, cancel=lambda: task.steps == 3)
    (tmp_path / "line.checkpoint.pt").unlink()  # killed after the row of step 3
    fit(Line(), RUN, tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == ["3", "6", "9", "12"]


@pytest.mark.parametrize("cut", ["middle", "last number", "zeros", "no text"])
def test_a_damaged_table_is_named_with_a_remedy(tmp_path, cut):
    task = Line()
    with pytest.raises(Cancelled):
        fit(task, RUN, tmp_path, cancel=lambda: task.steps == 9)
    file = tmp_path / "line.csv"
    whole = file.read_bytes()
    file.write_bytes(
        {
            "middle": whole[: len(whole) * 2 // 3],
            "last number": whole[:-4],
            "zeros": whole[:-20] + bytes(20),
            "no text": b"step\xff\xfe\n",
        }[cut]
    )
    with pytest.raises(TrainingError, match=r"line\.csv is damaged in line \d; mend it, or delete"):
        fit(Line(), RUN, tmp_path)
    file.unlink()
    fit(Line(), RUN, tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == ["12"]


def test_an_emptied_table_begins_anew_where_the_run_goes_on(tmp_path):
    task = Line()
    with pytest.raises(Cancelled):
        fit(task, RUN, tmp_path, cancel=lambda: task.steps == 9)
    (tmp_path / "line.csv").write_bytes(b"")
    fit(Line(), RUN, tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == ["12"]


@pytest.fixture
def small_files():
    """No file may grow beyond so many bytes, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(("size", "file"), [(1000, "line.checkpoint.pt"), (100, "line.csv")])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(tmp_path, small_files, size, file):
    task = Line()
    with pytest.raises(Cancelled):
        fit(task, RUN, tmp_path, cancel=lambda: task.steps == 3)
    kept = (tmp_path / "line.checkpoint.pt").read_bytes()
    small_files(size)
    with pytest.raises(OutputError, match=rf"{file} can't be written \(.*\); make room") as told:
        fit(Line(), RUN, tmp_path)
    small_files(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
    assert "\n" not in str(told.value)
    assert names(tmp_path) == {"line.csv", "line.checkpoint.pt"}
    assert (tmp_path / "line.checkpoint.pt").read_bytes() == kept
    fit(Line(), RUN, tmp_path)
    assert [row["step"] for row in rows(tmp_path)] == ["3", "6", "9", "12"]


# -- What is kept ----------------------------------------------------------------------------------


def test_the_last_checkpoints_are_kept(tmp_path):
    run = replace(RUN, keep_checkpoints=2)
    fit(Line(), run, tmp_path)
    older = {"line.00000009.checkpoint.pt", "line.00000012.checkpoint.pt"}
    assert names(tmp_path) == {"line.csv", "line.checkpoint.pt", *older}
    whole = (tmp_path / "line.checkpoint.pt").read_bytes()
    (tmp_path / "line.checkpoint.pt").write_bytes(b"")  # the same file as that of step 12
    with pytest.raises(TrainingError, match=r"or rename line\.00000009\.checkpoint\.pt to line\."):
        fit(Line(), run, tmp_path)
    (tmp_path / "line.00000012.checkpoint.pt").unlink()
    (tmp_path / "line.00000012.checkpoint.pt").write_bytes(whole)  # another file
    with pytest.raises(TrainingError, match=r"or rename line\.00000012\.checkpoint\.pt to line\."):
        fit(Line(), run, tmp_path)
    (tmp_path / "line.checkpoint.pt").unlink()
    with pytest.raises(TrainingError, match=r"is gone, but line\.00000012\.checkpoint\.pt beside"):
        fit(Line(), run, tmp_path)
    (tmp_path / "line.00000009.checkpoint.pt").rename(tmp_path / "line.checkpoint.pt")
    task = Line()
    fit(task, run, tmp_path)
    assert task.steps == 3


def test_one_checkpoint_is_kept_as_a_rule(tmp_path):
    fit(Line(), RUN, tmp_path)
    assert names(tmp_path) == {"line.csv", "line.checkpoint.pt"}
    assert {run.keep_checkpoints for run in UNET_RUNS.values()} == {1}
