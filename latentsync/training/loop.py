"""The training loop of every net: `fit`, read from top to bottom.

A task gives the net, the losses of a step and its validation; the loop does the rest. All that is
random is a function of (seed, step), so a resumed run equals one that was never stopped, and a
batch that is taken in parts, on several devices or one after another, equals the whole one.
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
from latentsync.runtime.extras import needs_extra
from latentsync.training.batches import BatchPart
from latentsync.training.checkpoint import (
    Facts,
    check_same,
    read_checkpoint,
    read_rows,
    write_checkpoint,
    write_rows,
)
from latentsync.training.settings import TrainConfig
from latentsync.types import Progress, ProgressCallback

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["DivisibleTask", "TrainingTask", "create_accelerator", "fit"]

log = logging.getLogger(__name__)

BETA1 = 0.9  # of AdamW
PRECISIONS = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}  # accelerate's names


class TrainingTask(Protocol):
    """What is trained, and on what."""

    @property
    def net(self) -> nn.Module:
        """All that is saved; parameters that require no gradient stay as they are."""
        ...

    def losses(self, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Named scalars whose sum is minimised; all random numbers come from the generator."""
        ...

    def validate(self) -> Mapping[str, float]:
        """Figures on data that training never sees, of `net` as it is.

        Raises:
            Cancelled: it was told to stop; the loop repeats it when the run resumes.
        """
        ...


@runtime_checkable
class DivisibleTask(TrainingTask, Protocol):
    """A task whose batch can be taken in parts."""

    def part_losses(self, generator: torch.Generator, part: BatchPart) -> Mapping[str, Tensor]:
        """As `losses`, of one part; the generator is in the same state for each."""
        ...


def fit(
    task: TrainingTask,
    config: TrainConfig,
    folder: Path,
    *,
    facts: Facts | None = None,
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
    accelerator: "Accelerator | None" = None,
) -> nn.Module:
    """Train `task.net` for `config.steps` steps, resuming from the folder's checkpoint if any.

    Writes `<name>.checkpoint.pt` (weights, average, optimiser, scaler, rng, step, config, facts,
    revision of the code; atomically) and `<name>.csv` (a row every `log_every` steps: means of the
    losses, validation where it was due). One process at a time may fill a folder.

    Args:
        facts: what the task reads; a run resumes only with the same.
        cancel: asked after every step.
        accelerator: the precision, and the devices that share each batch; None: a CPU, in float32.

    Returns:
        The net in eval mode, holding the exponential moving average (EMA) of its weights.

    Raises:
        Cancelled: between two steps, or in a validation, after writing a checkpoint.
        OptionError: the checkpoint belongs to another config, net or data, or the batch can't be
            divided as wanted.
        OutputError: a file can't be written; the last checkpoint stays.
        TrainingError: a loss is not finite, or the checkpoint or table is damaged.
    """
    run = _Run(task, config, folder, facts or {}, accelerator or create_accelerator())
    first = run.resume()
    if run.counted:  # perhaps a validation that was cancelled
        if not run.record(first):
            raise Cancelled(f"{config.name} stopped after step {first}; it goes on from there")
        if not run.counted:
            run.save(first)
    for done in range(first + 1, config.steps + 1):
        run.step(done - 1)
        last = done == config.steps
        recorded = run.record(done)
        stopped = run.any_process(cancel is not None and cancel()) and not last
        if done % config.checkpoint_every == 0 or last or stopped or not recorded:
            run.save(done)
        if progress is not None and run.accelerator.is_main_process:
            progress(Progress(config.name, done, config.steps))
        if stopped or not recorded:
            raise Cancelled(f"{config.name} stopped after step {done}; it goes on from there")
    _copy(run.average, run.trained)
    return run.net.eval()


class _Run:
    """The state of a run beside its task: optimiser, average, figures, and its files.

    Every process holds all weights and takes a part of each batch. All step by the mean of their
    gradients, so their weights stay equal.
    """

    def __init__(
        self,
        task: TrainingTask,
        config: TrainConfig,
        folder: Path,
        facts: Facts,
        accelerator: "Accelerator",
    ) -> None:
        processes = accelerator.num_processes
        parts = processes * config.accumulate
        if parts > 1 and (config.batch % parts or not isinstance(task, DivisibleTask)):
            raise OptionError(
                f"a batch of {config.batch} can't be taken in {parts} equal parts "
                f"({processes} processes, {config.accumulate} each); give a batch that is a "
                "multiple of it"
            )
        self.task, self.config, self.facts, self.accelerator = task, config, facts, accelerator
        self.net = task.net.train()
        self.trained = {n: p for n, p in self.net.named_parameters() if p.requires_grad}
        # Wrapped, it skips steps whose gradients overflowed in float16.
        self.optimiser = accelerator.prepare_optimizer(
            torch.optim.AdamW(
                self.trained.values(),
                config.learning_rate,
                betas=(BETA1, config.beta2),
                weight_decay=config.weight_decay,
            )
        )
        # The exponential moving average of the trained parameters.
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        folder.mkdir(parents=True, exist_ok=True)
        self.checkpoint = folder / f"{config.name}.checkpoint.pt"
        self.table = folder / f"{config.name}.csv"
        self.rows: list[dict[str, float]] = []
        self.sums: dict[str, float] = {}  # of figures, since the last row
        self.counted = 0  # steps since then
        self._earlier_seconds, self._started = 0.0, time.monotonic()
        self._revision = _revision()

    @property
    def seconds(self) -> float:
        """Since the run began, without the time between its starts."""
        return self._earlier_seconds + time.monotonic() - self._started

    def resume(self) -> int:
        """Load the checkpoint, if any; return the number of steps done."""
        saved = read_checkpoint(self.checkpoint, self.table, self.config)
        if saved is None:
            return 0
        check_same(self.checkpoint, saved, self.config, self.facts)
        try:
            self.net.load_state_dict(saved["net"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.average = {name: saved["average"][name].to(p) for name, p in self.trained.items()}
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[-1].strip()[:200]
            raise OptionError(
                f"{self.checkpoint} holds another net than this run's ({reason}); start from the "
                "same model to go on, or give another folder"
            ) from error
        if self.accelerator.scaler and saved.get("scaler"):
            self.accelerator.scaler.load_state_dict(saved["scaler"])
        if "rng" in saved:
            torch.set_rng_state(saved["rng"])
        self._earlier_seconds = saved.get("seconds", 0.0)
        self.sums, self.counted = saved.get("sums", {}), saved.get("counted", 0)
        done: int = saved["step"]
        self.rows = [row for row in read_rows(self.table) if int(row["step"]) <= done]
        log.info("%s goes on from step %d", self.config.name, done)
        return done

    def step(self, step: int) -> None:
        """Learn from one batch; add its losses and the norm of its gradient to the sums."""
        config, accelerator = self.config, self.accelerator
        for group in self.optimiser.param_groups:
            group["lr"] = _learning_rate(config, step)
        self.optimiser.zero_grad(set_to_none=True)
        parts: list[Mapping[str, Tensor]] = []
        for i in range(config.accumulate):
            with accelerator.autocast():
                part = self._losses(step, i)
            accelerator.backward(torch.stack(list(part.values())).sum() / config.accumulate)
            parts.append({name: value.detach() for name, value in part.items()})
        losses = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        if accelerator.num_processes > 1:
            means = accelerator.reduce(torch.stack(list(losses.values())), "mean")
            losses = dict(zip(losses, means, strict=True))
            for parameter in self.trained.values():
                if parameter.grad is not None:
                    parameter.grad = accelerator.reduce(parameter.grad, "mean")
        if not all(torch.isfinite(value) for value in losses.values()):
            named = ", ".join(f"{k} {v.item():g}" for k, v in losses.items())
            raise TrainingError(
                f"{config.name}: step {step} gave {named}; try a lower learning rate than "
                f"{config.learning_rate:g}, or look at the data of this step"
            )
        norm = accelerator.clip_grad_norm_(list(self.trained.values()), config.clip_norm)
        self.optimiser.step()
        decay = min(config.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, parameter in self.trained.items():
                self.average[name].lerp_(parameter, 1 - decay)
        for name, value in {**losses, "gradient_norm": torch.as_tensor(norm)}.items():
            self.sums[name] = self.sums.get(name, 0.0) + value.item()
        self.counted += 1

    def _losses(self, step: int, part: int) -> Mapping[str, Tensor]:
        """The losses of this process' share of a batch, or of a part of that share."""
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        parts, count = self.config.accumulate, self.accelerator.num_processes
        if parts * count > 1 and isinstance(self.task, DivisibleTask):
            index = self.accelerator.process_index * parts + part
            return self.task.part_losses(generator, BatchPart(index, parts * count))
        return self.task.losses(generator)

    def record(self, done: int) -> bool:
        """Validate and write a row of figures if due; False if the validation was cancelled."""
        config = self.config
        if not self.counted or (done % config.log_every and done < config.steps):
            return True
        row = {"step": done, **{name: total / self.counted for name, total in self.sums.items()}}
        row |= {"learning_rate": _learning_rate(config, done - 1), "seconds": self.seconds}
        if done % config.validate_every == 0 or done == config.steps:
            self.net.eval()
            cancelled = False
            try:
                with self._averaged(), torch.no_grad(), self.accelerator.autocast():
                    row |= self.task.validate()
            except Cancelled:
                cancelled = True
            self.net.train()
            if self.any_process(cancelled):
                return False
        self.rows.append(row)
        if self.accelerator.is_main_process:
            write_rows(self.table, self.rows)
        self.sums, self.counted = {}, 0
        log.info("%s %s", config.name, "  ".join(f"{k} {v:.4g}" for k, v in row.items()))
        return True

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Let the net hold the average for this block."""
        own = {name: p.detach().clone() for name, p in self.trained.items()}
        _copy(self.average, self.trained)
        try:
            yield
        finally:
            _copy(own, self.trained)

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is true in any process; all of them must call this."""
        accelerator = self.accelerator
        if accelerator.num_processes == 1:
            return flag
        return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)) > 0)

    def save(self, step: int) -> None:
        """Write the checkpoint, in the main process."""
        if not self.accelerator.is_main_process:
            return
        scaler = self.accelerator.scaler
        state = {
            "config": asdict(self.config),
            "facts": dict(self.facts),
            "step": step,
            "net": self.net.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "scaler": scaler.state_dict() if scaler else {},
            "rng": torch.get_rng_state(),  # of layers that draw by themselves, such as dropout
            "sums": self.sums,
            "counted": self.counted,
            "seconds": self.seconds,
            "revision": self._revision,
        }
        write_checkpoint(self.checkpoint, state, self.config.keep_checkpoints)


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def create_accelerator(precision: str = "float32", *, cpu: bool = True) -> "Accelerator":
    """Create the accelerator of this process; on a CPU, float16 becomes float32.

    Raises:
        BackendUnavailable: the package accelerate is not installed.
    """
    with needs_extra("training", "train"):
        from accelerate import Accelerator
    cpu = cpu or not torch.accelerator.is_available()
    name = "no" if cpu and precision == "float16" else PRECISIONS[precision]
    return Accelerator(mixed_precision=name, cpu=cpu)


def _learning_rate(config: TrainConfig, step: int) -> float:
    """A linear warm-up, then a constant rate or a cosine down to zero."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    share = (step - config.warmup_steps) / max(config.steps - config.warmup_steps, 1)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * share))


def _revision() -> str:
    """The commit of the code; empty outside of a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    except OSError:
        return ""
    return done.stdout.strip()
