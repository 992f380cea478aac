"""The training loop, for every net of this project: one main, read from top to bottom.

A task gives the net, the losses of a step and its validation; the loop owns the rest. All that is
random is a function of (seed, step), so a run that was killed goes on as if it had not been.
"""

import csv
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from latentsync.config import TrainConfig
from latentsync.errors import Cancelled, OptionError, TrainingError
from latentsync.types import Progress, ProgressCallback

__all__ = ["Task", "fit"]

log = logging.getLogger(__name__)

BETAS = (0.9, 0.99)  # a shorter memory than AdamW's default suits runs of some thousand steps


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


def fit(
    task: Task,
    config: TrainConfig,
    folder: Path,
    *,
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
) -> nn.Module:
    """Train `task.net` for `config.steps` steps, going on from `folder`'s checkpoint if it has one.

    Writes `<name>.checkpoint.pt` (weights, average, optimiser, step, config; atomically) and
    `<name>.csv` (a row every `log_every` steps: means of the losses, validation where it was due).

    Returns:
        The net in eval mode, holding the exponential moving average (EMA) of its weights.

    Raises:
        Cancelled: between two steps; a checkpoint of the last one was written.
        OptionError: the checkpoint there was made with another config.
        TrainingError: a loss is not finite.
    """
    # -- What is trained -----------------------------------------------------------------------
    net = task.net.train()
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(
        trained.values(), config.learning_rate, betas=BETAS, weight_decay=config.weight_decay
    )
    average = {name: p.detach().clone() for name, p in trained.items()}
    first = 0

    # -- Going on from a checkpoint ------------------------------------------------------------
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, table = folder / f"{config.name}.checkpoint.pt", folder / f"{config.name}.csv"
    if checkpoint.is_file():
        saved = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if saved["config"] != asdict(config):
            raise OptionError(
                f"{checkpoint} was made with other settings than {config}; "
                "give another folder, or delete the file to start anew"
            )
        net.load_state_dict(saved["net"])
        optimiser.load_state_dict(saved["optimiser"])
        average = {name: saved["average"][name].to(p) for name, p in trained.items()}
        first = saved["step"]
        log.info("%s goes on from step %d", config.name, first)

    def keep(step: int) -> None:
        state = {
            "config": asdict(config),
            "step": step,
            "net": net.state_dict(),
            "average": average,
            "optimiser": optimiser.state_dict(),
        }
        temporary = checkpoint.with_name(f".{checkpoint.name}.{os.getpid()}")
        torch.save(state, temporary)
        temporary.replace(checkpoint)

    rows = _read_rows(table, first)
    sums: dict[str, float] = {}
    counted, started = 0, time.monotonic()
    for step in range(first, config.steps):
        # -- One step --------------------------------------------------------------------------
        rate = _learning_rate(config, step)
        for group in optimiser.param_groups:
            group["lr"] = rate
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
        losses = task.losses(generator)
        total = torch.stack(list(losses.values())).sum()
        if not torch.isfinite(total):
            named = ", ".join(f"{k} {v.item():g}" for k, v in losses.items())
            raise TrainingError(
                f"{config.name}: step {step} gave {named}; try a lower learning rate than "
                f"{config.learning_rate:g}, or look at the data of this step"
            )
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(trained.values(), config.clip_norm)
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
                with averaged(trained, average), torch.no_grad():
                    row |= task.validate()
                net.train()
            rows.append(row)
            _write_rows(table, rows)
            log.info("%s %s", config.name, "  ".join(f"{k} {v:.4g}" for k, v in row.items()))
            sums, counted = {}, 0
        stopped = cancel is not None and not last and cancel()
        if done % config.checkpoint_every == 0 or last or stopped:
            keep(done)
        if progress is not None:
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
    """A linear warm-up, then a cosine down to nothing."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def _read_rows(table: Path, first: int) -> list[dict[str, Any]]:
    """The rows of an earlier run that lie before step `first`."""
    if not first or not table.is_file():
        return []
    with table.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row for row in rows if int(row["step"]) <= first]


def _write_rows(table: Path, rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with table.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
