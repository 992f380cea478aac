"""Where a model runs and in which precision: decided once, at load."""

import sys

import torch

from latentsync.errors import BackendUnavailable, OptionError

__all__ = ["choose", "peak_memory"]

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FIRST_FAST_HALF = 7  # CUDA compute capability with half precision matrix units (Volta)


def choose(device: str | None = None, dtype: str | None = None) -> tuple[torch.device, torch.dtype]:
    """The device and precision to use; what is not asked for is chosen by what is there.

    A CUDA device is preferred, with float16 from compute capability 7.0 on; then Apple's MPS and
    the CPU, with float32 (half precision loses black frames on MPS and time on a CPU).

    Raises:
        BackendUnavailable: a device was asked for that isn't there.
        OptionError: an unknown device or dtype.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    try:
        chosen = torch.device(device or ("cuda" if cuda else "mps" if mps else "cpu"))
    except RuntimeError as error:
        raise OptionError(f"device is {device!r}; it must be cpu, cuda, cuda:N or mps") from error
    there = {"cuda": cuda, "mps": mps, "cpu": True}.get(chosen.type, False)
    if there and chosen.type == "cuda" and chosen.index is not None:
        there = chosen.index < torch.cuda.device_count()
    if not there:
        raise BackendUnavailable(
            f"device {device!r} was asked for, but torch {torch.__version__} can't use it here; "
            "install a torch build for it, or leave the device out"
        )
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(f"dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    if dtype is not None:
        return chosen, DTYPES[dtype]
    half = chosen.type == "cuda" and torch.cuda.get_device_capability(chosen)[0] >= FIRST_FAST_HALF
    return chosen, torch.float16 if half else torch.float32


def peak_memory(device: torch.device) -> dict[str, int]:
    """The most that was in use so far, in bytes: `process`, and on a CUDA device `gpu`.

    Of the process since its start (Windows does not tell); of the GPU what torch gave to tensors.
    """
    peak = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated(device)
    return peak
