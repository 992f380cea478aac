"""Where a model runs, in which precision and how much memory: decided once, at load."""

import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentsync.errors import BackendUnavailable, OptionError, WeightsMismatch, WeightsMissing

__all__ = [
    "DTYPES",
    "GPU_PROVIDER",
    "channels_last",
    "choose",
    "compile_for",
    "drop_empty_kernel_cache",
    "free_memory",
    "has_room",
    "is_cuda",
    "offload",
    "onnx_providers",
    "onnx_session",
    "peak_memory",
    "slow_on_cpu",
]

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INSTRUCTIONS = {  # for matrices, any of them; as torch.cpu.get_capabilities calls them
    torch.bfloat16: ("amx_bf16", "avx512_bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16"),
}
GPU_PROVIDER = "CUDAExecutionProvider"  # onnxruntime's name
FIRST_FAST_HALF = 7  # CUDA compute capability with half precision matrix units (Volta)
# Of what is free; the rest is for what kernels borrow: 0.51 GiB counted, 0.68 GiB measured on a CPU
# (benchmarks/unet_forward.py).
SHARE = 0.7
# Numbers: a smaller layer is not worth a journey. Among them are those whose weight is looked at
# from outside, for its device: the U-Net's conv_in and time_embedding.linear_1.
STAYS = 2**20

Call = tuple[Tensor, ...]


def drop_empty_kernel_cache() -> None:
    """Remove the folder for compiled kernels that torch._dynamo makes in TMPDIR when imported.

    Only while it is empty; torch makes it again where something is compiled.
    """
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
    if folder.parent == Path(tempfile.gettempdir()).absolute():  # else it was chosen by the user
        with suppress(OSError):
            folder.rmdir()


def choose(
    device: str | None = None, dtype: str | None = None, *, large: bool = False
) -> tuple[torch.device, torch.dtype]:
    """The device and precision to use; what is not asked for is chosen by what is there.

    A CUDA device is preferred, with float16 from compute capability 7.0 on; then Apple's MPS and
    the CPU, with float32 (half precision loses black frames on MPS and time on most CPUs). A CPU
    with instructions for bfloat16 takes that for `large` nets; small ones have no use for it. What
    it changes is in benchmarks/README.md; where it is asked for without instructions, it is warned.

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
        if chosen.type == "cpu" and slow_on_cpu(DTYPES[dtype]):
            log.warning("this CPU has no instructions for %s; float32 is far faster on it", dtype)
        return chosen, DTYPES[dtype]
    if chosen.type == "cpu" and large and _fast_on_cpu(torch.bfloat16):
        return chosen, torch.bfloat16
    half = chosen.type == "cuda" and torch.cuda.get_device_capability(chosen)[0] >= FIRST_FAST_HALF
    return chosen, torch.float16 if half else torch.float32


def is_cuda(device: torch.device) -> bool:
    """Whether it is a GPU by CUDA, the only one that onnxruntime is asked to use here."""
    return device.type == "cuda"


def onnx_providers(available: Sequence[str], *, gpu: bool) -> list[str]:
    """What onnxruntime computes with, of what its build has: the GPU where it is wanted and can."""
    usable = gpu and GPU_PROVIDER in available
    return [GPU_PROVIDER, "CPUExecutionProvider"] if usable else ["CPUExecutionProvider"]


def onnx_session(path: Path, *, gpu: bool, download: str | None = None) -> Any:  # noqa: ANN401
    """A net of an .onnx file, as an `onnxruntime.InferenceSession`.

    Args:
        gpu: whether to run on the GPU where onnxruntime can.
        download: what `latentsync download` calls the file's set; None: it is a user's own.

    Raises:
        WeightsMissing: the file is not there.
        WeightsMismatch: it is no ONNX model.
        BackendUnavailable: onnxruntime is not installed.
    """
    if not path.is_file():
        remedy = f"run `latentsync download {download}`" if download else "give one that is"
        raise WeightsMissing(f"{path} is not there; {remedy}")
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendUnavailable(
            f"{path.name} wants onnxruntime, which can't be loaded ({error}); "
            "run `pip install onnxruntime`"
        ) from error
    providers = onnx_providers(onnxruntime.get_available_providers(), gpu=gpu)
    try:
        return onnxruntime.InferenceSession(str(path), providers=providers)
    except Exception as error:  # onnxruntime's errors share no other base
        remedy = f"delete it and run `latentsync download {download}`" if download else "give one"
        raise WeightsMismatch(
            f"{path} is not an ONNX model ({type(error).__name__}); {remedy}"
        ) from error


def _fast_on_cpu(dtype: torch.dtype) -> bool:
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(map(told.get, INSTRUCTIONS.get(dtype, ())))


def slow_on_cpu(dtype: torch.dtype) -> bool:
    """Whether this CPU is known to multiply matrices of that precision without instructions for it.

    Known of x86 from torch 2.13 on. It is slower there than float32 by far: benchmarks/README.md.
    """
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    needed = INSTRUCTIONS.get(dtype, ())
    return needed != () and told.get("architecture") == "x86_64" and not any(map(told.get, needed))


def free_memory(device: torch.device) -> int | None:
    """Bytes that could still be had on a device; None where nobody tells (a CPU outside Linux).

    On a CUDA device with what torch holds for tensors to come; of the CPU what the kernel could
    make available, and no more than the process's control group may still take.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    free = [*_available(Path("/proc/meminfo")), *_left_in_group(Path("/sys/fs/cgroup"))]
    return min(free, default=None)


def _available(meminfo: Path) -> Iterator[int]:
    """Bytes by Linux' own reckoning, https://docs.kernel.org/filesystems/proc.html#meminfo."""
    with suppress(OSError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield 1024 * int(line.split()[1])


def _left_in_group(root: Path) -> Iterator[int]:
    """Bytes that a container may still take: its limit less its use, files' cache not counted.

    https://docs.kernel.org/admin-guide/cgroup-v2.html, and v1 in a folder of its own.
    """
    versions = (
        (root, "memory.max", "memory.current", "inactive_file"),
        (root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    for folder, limit, used, cache in versions:
        with suppress(OSError, ValueError):  # not there, or "max": no limit
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            lines = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
            yield most - now + int(dict(lines).get(cache, 0))


def has_room(needed: int, device: torch.device) -> bool:
    """Whether so many bytes of weights and work fit in a CUDA device's free memory.

    Elsewhere always: there the weights lie in the CPU's memory as it is.
    """
    free = free_memory(device) if device.type == "cuda" else None
    return free is None or needed <= SHARE * free


def offload(net: nn.Module, device: torch.device) -> None:
    """Keep a net's large layers in the CPU's memory, each on the device only while it computes.

    The device then holds the small layers and one large one beside the work, and every pass moves
    all weights once. For inference.
    """

    def bring(layer: nn.Module, _: object = None) -> None:
        for name, home in layer.named_parameters(recurse=False):
            there = nn.Parameter(home.to(device), requires_grad=False)
            layer.register_parameter(name, there)

    for layer in net.modules():
        for name, buffer in layer.named_buffers(recurse=False):
            layer.register_buffer(name, buffer.to(device))
        kept = dict(layer.named_parameters(recurse=False))
        if sum(parameter.numel() for parameter in kept.values()) < STAYS:
            bring(layer)
        else:
            layer.register_forward_pre_hook(bring)
            layer.register_forward_hook(
                lambda at, *_, kept=kept: at._parameters.update(kept), always_call=True
            )


def channels_last(net: nn.Module) -> None:
    """Lay convolutions out as fast kernels want them, a tenth faster on a CPU too, in place.

    For inference: on a CPU, torch 2.13 crashes (segmentation fault) in such a net's backward pass.
    """
    nn.utils.convert_conv2d_weight_memory_format(net, torch.channels_last)


def compile_for(net: nn.Module, *calls: Call) -> None:
    """Let torch.compile make kernels for calls of these shapes, in place; others run as before.

    Each is made here once, so nobody else waits for a compiler: a server warms up what it will be
    asked. No CUDA graphs: torch ties them to the thread that recorded them, and a run's network has
    one of its own.

    Args:
        calls: what the net will be given, in its device and dtype.

    Raises:
        BackendUnavailable: there is no compiler here, or it can't compile the net.
    """
    plain = net.forward
    fast = torch.compile(plain, dynamic=False)
    warm: set[object] = set()

    def forward(*args: Any, **more: Any) -> Any:  # noqa: ANN401 - as the net's own
        given = tuple(one for one in args if one is not None)
        if more or _shapes(given) not in warm or torch.is_grad_enabled():
            return plain(*args, **more)
        return fast(*given)

    for call in calls:
        warm.add(_shapes(call))
        try:
            with torch.inference_mode():
                forward(*call)
        except (ImportError, OSError, RuntimeError) as error:
            reason = (str(error).strip() or "it does not say why").splitlines()[0][:200]
            raise BackendUnavailable(
                f"the net can't be compiled here ({type(error).__name__}: {reason}); install a C++ "
                "compiler, on a GPU Triton too, or leave compile out"
            ) from error
    net.forward = forward


def _shapes(call: tuple[Any, ...]) -> tuple[object, ...]:
    """What tells calls apart; one with anything but tensors is like no other."""
    return tuple(getattr(one, "shape", one) for one in call)


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
