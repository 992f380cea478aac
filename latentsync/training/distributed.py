"""The devices of a run: a single one, or as many as `accelerate launch` started processes."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from latentsync.errors import BackendUnavailable

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["ProcessGroup", "create_accelerator"]

PRECISIONS = {"float32": "no", "float16": "fp16", "bfloat16": "bf16"}  # accelerate's names


def create_accelerator(precision: str, *, cpu: bool = False) -> "Accelerator":
    """Create the accelerator of this process; on a CPU, float16 becomes float32.

    Raises:
        BackendUnavailable: the package accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise BackendUnavailable(
            f"training needs the package accelerate ({error}); pip install 'latentsync[train]'"
        ) from error
    cpu = cpu or not torch.accelerator.is_available()
    name = "no" if cpu and precision == "float16" else PRECISIONS[precision]
    return Accelerator(mixed_precision=name, cpu=cpu)


class ProcessGroup:
    """The loop's devices; without an accelerator, a single one in full precision.

    Every process holds all weights and takes a part of each batch. All step by the mean of their
    gradients, so their weights stay equal.
    """

    def __init__(self, accelerator: "Accelerator | None" = None) -> None:
        self._accelerator = accelerator
        self.rank = accelerator.process_index if accelerator else 0
        self.count = accelerator.num_processes if accelerator else 1

    @property
    def main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def optimiser(self, optimiser: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Wrap it, so that it skips steps whose gradients overflowed in float16."""
        return self._accelerator.prepare_optimizer(optimiser) if self._accelerator else optimiser

    def autocast(self) -> AbstractContextManager[Any]:
        return self._accelerator.autocast() if self._accelerator else nullcontext()

    def backward(self, loss: Tensor) -> None:
        if self._accelerator:
            self._accelerator.backward(loss)
        else:
            loss.backward()

    def clip(self, parameters: Iterable[nn.Parameter], norm: float) -> Tensor:
        """Average the gradients over the processes, then clip them; return their norm before."""
        parameters = list(parameters)
        if not self._accelerator:
            return nn.utils.clip_grad_norm_(parameters, norm)
        if self.count > 1:
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad = self._accelerator.reduce(parameter.grad, "mean")
        return torch.as_tensor(self._accelerator.clip_grad_norm_(parameters, norm))

    def mean(self, figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The mean of each figure over the processes."""
        if not self._accelerator or self.count == 1:
            return dict(figures)
        means = self._accelerator.reduce(torch.stack(list(figures.values())), "mean")
        return dict(zip(figures, means, strict=True))

    def any(self, flag: bool) -> bool:
        """Whether the flag is true in any process; all of them must call this."""
        if not self._accelerator or self.count == 1:
            return flag
        device = self._accelerator.device
        return bool(self._accelerator.reduce(torch.tensor(float(flag), device=device)) > 0)

    def state(self) -> dict[str, Any]:
        """The state of the loss scaler of float16."""
        scaler = self._accelerator.scaler if self._accelerator else None
        return scaler.state_dict() if scaler else {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if state and self._accelerator and self._accelerator.scaler:
            self._accelerator.scaler.load_state_dict(dict(state))
