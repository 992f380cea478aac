"""The training loop, for every net of this project: one main, read from top to bottom.

A task gives the net, the losses of a step and its validation; the loop owns the rest. All that is
random is a function of (seed, step), so a run that was killed goes on as if it had not been, and
parts of a batch on several devices, or one after another, are the batch.
"""

import logging
import math
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from latentsync.errors import Cancelled, OptionError, TrainingError
from latentsync.training.batches import Part
from latentsync.training.checkpoint import (
    Facts,
    check_same,
    read_checkpoint,
    read_rows,
    swept,
    write_checkpoint,
    write_rows,
)
from latentsync.training.distributed import Fleet
from latentsync.training.presets import TrainConfig
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
        """Figures on data that training never sees, of `net` as it is.

        Raises:
            Cancelled: it takes long and was told to stop; it is done again when the run goes on.
        """
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
    facts: Facts | None = None,
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
    accelerator: "Accelerator | None" = None,
) -> nn.Module:
    """Train `task.net` for `config.steps` steps, going on from `folder`'s checkpoint if it has one.

    Writes `<name>.checkpoint.pt` (weights, average, optimiser, scaler, rng, step, config, facts,
    revision of the code; atomically) and `<name>.csv` (a row every `log_every` steps: means of the
    losses, validation where it was due). One process at a time may fill a folder.

    Args:
        facts: what the task draws from; a run goes on with the same only.
        cancel: asked after every step.
        accelerator: the precision, and the devices to share each batch; None: one, in float32.

    Returns:
        The net in eval mode, holding the exponential moving average (EMA) of its weights.

    Raises:
        Cancelled: between two steps, or in a validation; a checkpoint of the last step was written.
        OptionError: the checkpoint there was begun with another config, net or data, or the batch
            can't be divided as wanted.
        OutputError: a file can't be written; the last checkpoint stays.
        TrainingError: a loss is not finite, or the checkpoint or table there is damaged.
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
    first, counted, before = 0, 0, 0.0
    sums: dict[str, float] = {}

    # -- Going on from a checkpoint ------------------------------------------------------------
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, table = folder / f"{config.name}.checkpoint.pt", folder / f"{config.name}.csv"
    if fleet.main:
        swept(checkpoint)
        swept(table)
    saved = read_checkpoint(checkpoint, table, config)
    if saved is not None:
        check_same(checkpoint, saved, config, facts or {})
        try:
            net.load_state_dict(saved["net"])
            optimiser.load_state_dict(saved["optimiser"])
            average = {name: saved["average"][name].to(p) for name, p in trained.items()}
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].strip()[:200]
            raise OptionError(
                f"{checkpoint} holds another net than this run's ({reason}); start from the same "
                "model to go on, or give another folder"
            ) from error
        first, before = saved["step"], saved.get("seconds", 0.0)
        fleet.load_state(saved.get("scaler", {}))
        sums, counted = saved.get("sums", {}), saved.get("counted", 0)
        if "rng" in saved:
            torch.set_rng_state(saved["rng"])
        log.info("%s goes on from step %d", config.name, first)
    del saved  # gigabytes
    rows = [row for row in read_rows(table) if int(row["step"]) <= first] if first else []
    revision, started = _revision(), time.monotonic()

    def keep(step: int) -> None:
        state = {
            "config": asdict(config),
            "facts": dict(facts or {}),
            "step": step,
            "net": net.state_dict(),
            "average": average,
            "optimiser": optimiser.state_dict(),
            "scaler": fleet.state(),
            "rng": torch.get_rng_state(),  # all chance is of (seed, step); if a layer has its own
            "sums": sums,
            "counted": counted,
            "seconds": before + time.monotonic() - started,
            "revision": revision,
        }
        write_checkpoint(checkpoint, state, config.keep_checkpoints)

    def told(done: int) -> bool:
        """Write a row of figures where one is due; False where the validation was cancelled."""
        nonlocal sums, counted
        if not counted or (done % config.log_every and done < config.steps):
            return True
        row: dict[str, float] = {"step": done} | {k: v / counted for k, v in sums.items()}
        row["learning_rate"] = _learning_rate(config, done - 1)
        row["seconds"] = before + time.monotonic() - started
        if done % config.validate_every == 0 or done == config.steps:
            net.eval()
            cut = False
            try:
                with averaged(trained, average), torch.no_grad(), fleet.autocast():
                    row |= task.validate()
            except Cancelled:
                cut = True
            net.train()
            if fleet.any(cut):
                return False
        rows.append(row)
        if fleet.main:
            write_rows(table, rows)
        log.info("%s %s", config.name, "  ".join(f"{k} {v:.4g}" for k, v in row.items()))
        sums, counted = {}, 0
        return True

    if first and counted:  # perhaps a validation that was cancelled
        if not told(first):
            raise Cancelled(f"{config.name} stopped after step {first}; it goes on from there")
        if fleet.main and not counted:
            keep(first)
    for step in range(first, config.steps):
        # -- One step --------------------------------------------------------------------------
        for group in optimiser.param_groups:
            group["lr"] = _learning_rate(config, step)
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
        finished = told(done)
        stopped = fleet.any(cancel is not None and cancel()) and not last
        if fleet.main and (done % config.checkpoint_every == 0 or last or stopped or not finished):
            keep(done)
        if progress is not None and fleet.main:
            progress(Progress(config.name, done, config.steps))
        if stopped or not finished:
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
        try:
            yield
        finally:
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


def _revision() -> str:
    """The commit of the code; empty where it is no checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return ""
    return done.stdout.strip()
