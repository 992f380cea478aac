"""Device, precision and memory of a model, chosen once, when it is loaded."""

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

from latentsync.errors import (
    BackendUnavailable,
    OptionError,
    WeightsMismatch,
    WeightsMissing,
    option_name,
)

__all__ = [
    "DTYPES",
    "GPU_PROVIDER",
    "channels_last",
    "choose",
    "compile_for",
    "drop_empty_kernel_cache",
    "free_memory",
    "has_cpu_instructions",
    "has_room",
    "is_cuda",
    "offload",
    "onnx_providers",
    "onnx_session",
    "peak_memory",
]

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INSTRUCTIONS = {  # for matrices, one is enough; named as by torch.cpu.get_capabilities
    torch.bfloat16: ("amx_bf16", "avx512_bf16"),
    torch.float16: ("amx_fp16", "avx512_fp16"),
}
GPU_PROVIDER = "CUDAExecutionProvider"  # onnxruntime's name
FIRST_FAST_HALF = 7  # CUDA compute capability with half precision matrix units (Volta)
# Of the free memory; the rest is for kernels' workspaces: 0.51 GiB counted, 0.68 GiB measured on a
# CPU (benchmarks/unet_forward.py).
USABLE_SHARE = 0.7
# Smaller layers stay on the device. Among them are those whose device is read from outside: the
# U-Net's conv_in and time_embedding.linear_1.
MIN_OFFLOADED_PARAMETERS = 2**20

Call = tuple[Tensor, ...]


def drop_empty_kernel_cache() -> None:
    """Remove the folder for compiled kernels that torch._dynamo makes in TMPDIR, if it is empty.

    torch makes it again when something is compiled.
    """
    folder = Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", ""))
    if folder.parent == Path(tempfile.gettempdir()).absolute():  # else it was chosen by the user
        with suppress(OSError):
            folder.rmdir()


def choose(
    device: str | None = None, dtype: str | None = None, *, large: bool = False
) -> tuple[torch.device, torch.dtype]:
    """Choose the device and precision; None means the best available one.

    A CUDA device is preferred, with float16 from compute capability 7.0 on; then Apple's MPS and
    the CPU, with float32 (half precision gives black frames on MPS, and is slow on most CPUs). A
    CPU with bfloat16 instructions uses bfloat16 for `large` nets; small ones gain nothing. For its
    effect see benchmarks/README.md. Half precision without instructions causes a warning.

    Raises:
        BackendUnavailable: the device isn't available.
        OptionError: an unknown device or dtype.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    try:
        chosen = torch.device(device or ("cuda" if cuda else "mps" if mps else "cpu"))
    except RuntimeError as error:
        raise OptionError(
            f"{option_name('device')} is {device!r}; it must be cpu, cuda, cuda:N or mps"
        ) from error
    there = {"cuda": cuda, "mps": mps, "cpu": True}.get(chosen.type, False)
    if there and chosen.type == "cuda" and chosen.index is not None:
        there = chosen.index < torch.cuda.device_count()
    if not there:
        raise BackendUnavailable(
            f"device {device!r} was asked for, but torch {torch.__version__} can't use it here; "
            "install a torch build for it, or leave the device out"
        )
    if dtype is not None and dtype not in DTYPES:
        raise OptionError(
            f"{option_name('dtype')} is {dtype!r}; it must be one of {', '.join(DTYPES)}"
        )
    if dtype is not None:
        if chosen.type == "cpu" and has_cpu_instructions(DTYPES[dtype]) is False:
            log.warning("this CPU has no instructions for %s; float32 is far faster on it", dtype)
        return chosen, DTYPES[dtype]
    if chosen.type == "cpu" and large and has_cpu_instructions(torch.bfloat16):
        return chosen, torch.bfloat16
    half = chosen.type == "cuda" and torch.cuda.get_device_capability(chosen)[0] >= FIRST_FAST_HALF
    return chosen, torch.float16 if half else torch.float32


def is_cuda(device: torch.device) -> bool:
    """Whether a device is a CUDA GPU, the only kind of GPU that onnxruntime uses here."""
    return device.type == "cuda"


def onnx_providers(available: Sequence[str], *, gpu: bool) -> list[str]:
    """Choose onnxruntime's providers: the GPU if it is wanted and available, and the CPU."""
    usable = gpu and GPU_PROVIDER in available
    return [GPU_PROVIDER, "CPUExecutionProvider"] if usable else ["CPUExecutionProvider"]


def onnx_session(path: Path, *, gpu: bool, download: str | None = None) -> Any:  # noqa: ANN401
    """Load an .onnx file as an `onnxruntime.InferenceSession`.

    Args:
        gpu: whether to run on the GPU if onnxruntime can.
        download: name of the file's set for `latentsync download`; None: a user's own file.

    Raises:
        WeightsMissing: there is no such file.
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
    except Exception as error:  # onnxruntime's errors have no other common base
        remedy = f"delete it and run `latentsync download {download}`" if download else "give one"
        raise WeightsMismatch(
            f"{path} is not an ONNX model ({type(error).__name__}); {remedy}"
        ) from error


def has_cpu_instructions(dtype: torch.dtype) -> bool | None:
    """Whether this CPU has matrix instructions for a precision; None: needs none, or is unknown.

    Without them a precision is far slower than float32, see benchmarks/README.md. torch tells from
    2.13 on, and reliably for x86 only.
    """
    told: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if any(map(told.get, needed := INSTRUCTIONS.get(dtype, ()))):
        return True
    return False if needed and told.get("architecture") == "x86_64" else None


def free_memory(device: torch.device) -> int | None:
    """Free memory of a device in bytes; None if unknown (a CPU on other systems than Linux).

    On a CUDA device it includes what torch has reserved; on the CPU it is what the kernel can make
    available, within the limit of the process's control group.
    """
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    free = [*_available(Path("/proc/meminfo")), *_left_in_group(Path("/sys/fs/cgroup"))]
    return min(free, default=None)


def _available(meminfo: Path) -> Iterator[int]:
    """Bytes available, by https://docs.kernel.org/filesystems/proc.html#meminfo."""
    with suppress(OSError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield 1024 * int(line.split()[1])


def _left_in_group(root: Path) -> Iterator[int]:
    """Bytes left in a container: its limit minus its use without the page cache.

    https://docs.kernel.org/admin-guide/cgroup-v2.html; v1 is in a folder of its own.
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
    """Whether weights and work of so many bytes fit in a CUDA device's free memory.

    True on other devices, where the weights are in the CPU's memory in any case.
    """
    free = free_memory(device) if device.type == "cuda" else None
    return free is None or needed <= USABLE_SHARE * free


def offload(net: nn.Module, device: torch.device) -> None:
    """Keep a net's large layers in the CPU's memory; each is on the device only while it computes.

    So the device holds the small layers and one large one, and every pass copies all weights once.
    For inference.
    """

    def bring(layer: nn.Module, _: object = None) -> None:
        for name, home in layer.named_parameters(recurse=False):
            there = nn.Parameter(home.to(device), requires_grad=False)
            layer.register_parameter(name, there)

    for layer in net.modules():
        for name, buffer in layer.named_buffers(recurse=False):
            layer.register_buffer(name, buffer.to(device))
        kept = dict(layer.named_parameters(recurse=False))
        if sum(parameter.numel() for parameter in kept.values()) < MIN_OFFLOADED_PARAMETERS:
            bring(layer)
        else:
            layer.register_forward_pre_hook(bring)
            layer.register_forward_hook(
                lambda at, *_, kept=kept: at._parameters.update(kept), always_call=True
            )


def channels_last(net: nn.Module) -> None:
    """Convert convolutions to channels-last in place; a tenth faster, also on a CPU.

    For inference: on a CPU, torch 2.13 crashes (segmentation fault) in such a net's backward pass.
    """
    nn.utils.convert_conv2d_weight_memory_format(net, torch.channels_last)


def compile_for(net: nn.Module, *calls: Call) -> None:
    """Compile a net in place for calls of these shapes; calls of other shapes are not compiled.

    Kernels are compiled here, so that no request waits for the compiler. CUDA graphs are not used,
    because torch ties them to the thread that recorded them, and each run has its own thread.

    Args:
        calls: example arguments, on the net's device and in its dtype.

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
    """The shapes of a call's tensors; other arguments stand for themselves."""
    return tuple(getattr(one, "shape", one) for one in call)


def peak_memory(device: torch.device) -> dict[str, int]:
    """Peak memory so far in bytes: `process`, and on a CUDA device `gpu`.

    `process` counts since its start (unknown on Windows), `gpu` what torch allocated for tensors.
    """
    peak = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes there, KiB on Linux
        peak["process"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        peak["gpu"] = torch.cuda.max_memory_allocated(device)
    return peak
