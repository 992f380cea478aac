"""The training loop, for every net of this project: one main, read from top to bottom.

A task gives the net, the losses of a step and its validation; the loop owns the rest. All that is
random is a function of (seed, step), so a run that was killed goes on as if it had not been, and
parts of a batch on several devices, or one after another, are the batch.
"""

import csv
import logging
import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from latentsync.config import TrainConfig
from latentsync.errors import Cancelled, OptionError, TrainingError
from latentsync.training.batches import Part
from latentsync.training.fleet import Fleet
from latentsync.types import Progress, ProgressCallback

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["DivisibleTask", "Task", "fit"]

log = logging.getLogger(__name__)

BETA1 = 0.9  # of AdamW


class Task(Protocol):
    """What is trained."""

    @property
    def net(self) -> nn.Module:
        """Holds it all; parameters that want no gradient stay as they are."""
        ...

    def losses(self, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Named scalars whose sum is minimised; all chance comes from the generator."""
        ...

    def validate(self) -> Mapping[str, float]:
        """Figures on data that training never sees, of `net` as it is."""
        ...


@runtime_checkable
class DivisibleTask(Task, Protocol):
    """A task whose batch can be taken in parts."""

    def part_losses(self, generator: torch.Generator, part: Part) -> Mapping[str, Tensor]:
        """As `losses`, of one part; the generator is at the same place for each."""
        ...


def fit(
    task: Task,
    config: TrainConfig,
    folder: Path,
    *,
    data: str = "",
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
    accelerator: "Accelerator | None" = None,
) -> nn.Module:
    """Train `task.net` for `config.steps` steps, going on from `folder`'s checkpoint if it has one.

    Writes `<name>.checkpoint.pt` (weights, average, optimiser, scaler, rng, step, config, data,
    revision of the code; atomically) and `<name>.csv` (a row every `log_every` steps: means of the
    losses, validation where it was due).

    Args:
        data: names what the task draws from; a run goes on with the same only. Empty: not known.
        cancel: asked after every step.
        accelerator: the precision, and the devices to share each batch; None: one, in float32.

    Returns:
        The net in eval mode, holding the exponential moving average (EMA) of its weights.

    Raises:
        Cancelled: between two steps; a checkpoint of the last one was written.
        OptionError: the checkpoint there was made with another config or data, or the batch can't
            be divided as wanted.
        TrainingError: a loss is not finite.
    """
    # -- What is trained -----------------------------------------------------------------------
    fleet = Fleet(accelerator)
    parts = fleet.count * config.accumulate
    if parts > 1 and (config.batch % parts or not isinstance(task, DivisibleTask)):
        raise OptionError(
            f"a batch of {config.batch} can't be taken in {parts} equal parts ({fleet.count} "
            f"processes, {config.accumulate} each); give a batch that is a multiple of it"
        )
    net = task.net.train()
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    optimiser = fleet.optimiser(
        torch.optim.AdamW(
            trained.values(),
            config.learning_rate,
            betas=(BETA1, config.beta2),
            weight_decay=config.weight_decay,
        )
    )
    average = {name: p.detach().clone() for name, p in trained.items()}
    first, counted = 0, 0
    sums: dict[str, float] = {}

    # -- Going on from a checkpoint ------------------------------------------------------------
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, table = folder / f"{config.name}.checkpoint.pt", folder / f"{config.name}.csv"
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if not _same_settings(saved["config"], config):
            raise OptionError(
                f"{checkpoint} was made with other settings than {config}; "
                "give another folder, or delete the file to start anew"
            )
        if saved.get("data", data) != data:
            raise OptionError(
                f"{checkpoint} was made with other data; give what it was begun with, another "
                "folder, or delete the file to start anew"
            )
        net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
        average = {name: saved["average"][name].to(p) for name, p in trained.items()}
        first = saved["step"]
        fleet.load_state(saved.get("scaler", {}))
        sums, counted = saved.get("sums", {}), saved.get("counted", 0)
        if "rng" in saved:
            torch.set_rng_state(saved["rng"])
        log.info("%s goes on from step %d", config.name, first)

    revision = _revision()

    def keep(step: int) -> None:
        state = {
            "config": asdict(config),
            "data": data,
            "step": step,
            "net": net.state_dict(),
            "average": average,
            "optimiser": optimiser.state_dict(),
            "scaler": fleet.state(),
            "rng": torch.get_rng_state(),  # all chance is of (seed, step); if a layer has its own
            "sums": sums,
            "counted": counted,
            "revision": revision,
        }
        temporary = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}")
        torch.save(state, temporary)
        temporary.replace(checkpoint)

    rows = _read_rows(table, first)
    started = time.monotonic()
    for step in range(first, config.steps):
        # -- One step --------------------------------------------------------------------------
        rate = _learning_rate(config, step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        shares: list[Mapping[str, Tensor]] = []
        for i in range(config.accumulate):
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            with fleet.autocast():
                if isinstance(task, DivisibleTask) and parts > 1:
                    part = Part(fleet.rank * config.accumulate + i, parts)
                    share = task.part_losses(generator, part)
                else:
                    share = task.losses(generator)
            fleet.backward(torch.stack(list(share.values())).sum() / config.accumulate)
            shares.append({name: value.detach() for name, value in share.items()})
        losses = {name: torch.stack([one[name] for one in shares]).mean() for name in shares[0]}
        losses = fleet.mean(losses)
        if not all(torch.isfinite(value) for value in losses.values()):
            named = ", ".join(f"{k} {v.item():g}" for k, v in losses.items())
            raise TrainingError(
                f"{config.name}: step {step} gave {named}; try a lower learning rate than "
                f"{config.learning_rate:g}, or look at the data of this step"
            )
        norm = fleet.clip(trained.values(), config.clip_norm)
        optimiser.step()
        decay = min(config.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, parameter in trained.items():
                average[name].lerp_(parameter, 1 - decay)

        # -- Figures, and what is kept -----------------------------------------------------------
        for key, value in (*losses.items(), ("gradient_norm", norm)):
            sums[key] = sums.get(key, 0.0) + value.item()
        counted += 1
        done = step + 1
        last = done == config.steps
        if done % config.log_every == 0 or last:
            row: dict[str, float] = {"step": done} | {k: v / counted for k, v in sums.items()}
            row |= {"learning_rate": rate, "seconds": time.monotonic() - started}
            if done % config.validate_every == 0 or last:
                net.eval()
                with averaged(trained, average), torch.no_grad(), fleet.autocast():
                    row |= task.validate()
                net.train()
            rows.append(row)
            if fleet.main:
                _write_rows(table, rows)
            log.info("%s %s", config.name, "  ".join(f"{k} {v:.4g}" for k, v in row.items()))
            sums, counted = {}, 0
        stopped = fleet.any(cancel is not None and cancel()) and not last
        if fleet.main and (done % config.checkpoint_every == 0 or last or stopped):
            keep(done)
        if progress is not None and fleet.main:
            progress(Progress(config.name, done, config.steps))
        if stopped:
            raise Cancelled(f"{config.name} stopped after step {done}; it goes on from there")

    # -- The result: the average ---------------------------------------------------------------
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(average[name])
    return net.eval()


@contextmanager
def averaged(trained: Mapping[str, nn.Parameter], average: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, the parameters hold their averages."""
    own = {name: p.detach().clone() for name, p in trained.items()}
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(average[name])
        yield
        for name, parameter in trained.items():
            parameter.copy_(own[name])


def _learning_rate(config: TrainConfig, step: int) -> float:
    """A linear warm-up; then the same to the end, or a cosine down to nothing."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    share = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def _same_settings(saved: Mapping[str, Any], config: TrainConfig) -> bool:
    """Whether a checkpoint's run can go on as this one.

    One from before a setting existed had its default. A constant rate does not know the end.
    """
    wanted = asdict(config)
    before = {field.name: field.default for field in fields(config)} | dict(saved)
    if config.schedule == "constant":
        wanted["steps"] = before["steps"]
    return before == wanted


def _revision() -> str:
    """The commit of the code; empty where it is no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return ""
    return done.stdout.strip()


def _read_rows(table: Path, first: int) -> list[dict[str, Any]]:
    """The rows of an earlier run that lie before step `first`."""
    if not first or not table.is_file():
        return []
    with table.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row for row in rows if int(row["step"]) <= first]


def _write_rows(table: Path, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    temporary = table.with_name(f".{table.name}.{os.getpid()}")
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(table)
