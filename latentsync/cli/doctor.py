"""Checks of this machine: what it lacks for lip-sync, each finding with its remedy.

Nothing is fetched and no model is loaded; `latentsync verify` is for a model's own files.
"""

import importlib.util
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper

from latentsync.diffusion.config import PRESETS
from latentsync.errors import BackendUnavailable
from latentsync.media import check_codec
from latentsync.options import Codec
from latentsync.runtime.checkpoints import root
from latentsync.runtime.devices import choose, free_memory, is_cuda, onnx_providers
from latentsync.runtime.downloads import SETS
from latentsync.runtime.extras import install_command

__all__ = ["Finding", "examine"]

PYTHONS = ((3, 11), (3, 14))  # from, to before, as pyproject.toml has it
GIB = 2**30
# Seen in runs of the demo model, and of v1.6's nets with random weights (benchmarks/README.md).
LEAST_MEMORY, LARGE_MEMORY = 2 * GIB, 8 * GIB
LEAST_DISK = 2 * GIB  # an hour of 1080p at crf 17 takes about as much
EXTRAS = {  # package -> what it is for, and the command that installs it
    "insightface": (
        "the faces that published models expect",
        "pip install --no-deps insightface==2.1",
    ),
    "xformers": ("attention 'xformers'", "pip install xformers"),
    "spandrel": ("super-resolution", install_command("restore")),
    "accelerate": ("training", install_command("train")),
}
DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Finding:
    """One line. `good` is None if something is missing that not everybody needs."""

    what: str
    found: str
    good: bool | None = True
    remedy: str = ""  # what to do; "" where there is nothing to be done


def examine(weights: Path | str | None = None) -> Iterator[Finding]:
    """Check everything that a run depends on, one finding at a time.

    Args:
        weights: the folder of weights; default as in `LipSync.load`.
    """
    yield _python()
    yield from _device()
    yield from _onnx()
    yield _opencv()
    yield from _media()
    yield from _models(root(weights))
    yield from _extras()
    yield _memory()
    yield from _disk(root(weights))


def _python() -> Finding:
    here = sys.version_info[:2]
    found = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    low, high = (".".join(map(str, one)) for one in PYTHONS)
    remedy = f"take Python {low} or later, before {high}"
    good = PYTHONS[0] <= here < PYTHONS[1]
    return Finding("python", found, good, "" if good else remedy)


def _device() -> Iterator[Finding]:
    build = f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"
    yield Finding("torch", build)
    device, dtype = choose()
    try:
        torch.ones(8, 8, device=device, dtype=dtype) @ torch.ones(8, 8, device=device, dtype=dtype)
    except RuntimeError as error:  # a build without kernels for a newer or an older card
        reason = str(error).strip().splitlines()[0][:200]
        remedy = "install a torch build for this card (https://pytorch.org/get-started/locally)"
        yield Finding("device", f"{device} can't compute: {reason}", good=False, remedy=remedy)
        return
    if device.type == "cpu" and DRIVER.exists():
        remedy = "install a CUDA build of torch, or a driver as new as this build wants"
        found = "cpu, though there is an NVIDIA driver: this torch can't use it"
        yield Finding("device", found, good=False, remedy=remedy)
        return
    name = platform.processor() or platform.machine()
    if is_cuda(device):
        facts = torch.cuda.get_device_properties(device)
        name = f"{facts.name}, compute capability {facts.major}.{facts.minor}"
    found = f"{device}, {str(dtype).removeprefix('torch.')} ({name})"
    slow = device.type == "cpu"
    remedy = "published models take many minutes for a second of video on a CPU; use a GPU"
    yield Finding("device", found, None if slow else True, remedy if slow else "")


def _onnx() -> Iterator[Finding]:
    """Check which provider an ONNX session really gets; face detection runs on it."""
    gpu = is_cuda(choose()[0])
    wanted = onnx_providers(onnxruntime.get_available_providers(), gpu=gpu)
    session = onnxruntime.InferenceSession(_smallest_net(), providers=wanted)
    used = session.get_providers()[0]
    found = f"{onnxruntime.__version__}, {used}"
    if not gpu or used == wanted[0] != "CPUExecutionProvider":
        yield Finding("onnxruntime", found)
        return
    remedy = "faces are found on the CPU: install onnxruntime-gpu in place of onnxruntime, built "
    yield Finding("onnxruntime", found, None, remedy + f"for CUDA {torch.version.cuda}")


def _smallest_net() -> bytes:
    """Make the ONNX net y = x."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", [x], [y])
    # Old enough for any onnxruntime: IR 8, operators 13.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def _opencv() -> Finding:
    if _version("opencv-python") is None:
        return Finding("opencv", f"headless {_version('opencv-python-headless')}")
    remedy = "pip uninstall opencv-python, then reinstall opencv-python-headless"
    return Finding(
        "opencv", "opencv-python beside the headless one: slim images lack its libGL", None, remedy
    )


def _media() -> Iterator[Finding]:
    yield Finding("media", f"PyAV {_version('av')}, encoders h264, hevc")
    nvenc: tuple[Codec, ...] = ("h264_nvenc", "hevc_nvenc")
    for codec in nvenc:
        try:
            check_codec(codec)
            yield Finding(codec, "opens")
        except BackendUnavailable:
            remedy = f"encode by {codec.removesuffix('_nvenc')}; NVENC wants an NVIDIA driver"
            yield Finding(codec, "not here", None, remedy)
    yield _tone_mapping()


def _tone_mapping() -> Finding:
    """Check for the filters that HDR clips need, which only the FFmpeg program has."""
    import imageio_ffmpeg

    remedy = "PQ and HLG clips are refused without it: pip install --force-reinstall imageio-ffmpeg"
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        listed = subprocess.run(  # noqa: S603 - the program that the package brought
            [program, "-hide_banner", "-filters"], capture_output=True, text=True, timeout=30
        ).stdout
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        return Finding("HDR", f"no FFmpeg program ({error})", None, remedy)
    good = " zscale " in listed and " tonemap " in listed
    found = f"FFmpeg {imageio_ffmpeg.get_ffmpeg_version()}"
    return Finding("HDR", found if good else f"{found} lacks zscale or tonemap", good or None,
                   "" if good else remedy)  # fmt: skip


def _models(folder: Path) -> Iterator[Finding]:
    for name in PRESETS:
        if name not in SETS:  # part of the repository
            there = (folder / name / "unet.safetensors").is_file()
            remedy = "" if there else "it is part of the repository: restore it from there"
            yield Finding(f"model {name}", "there" if there else f"not in {folder}",
                          there or None, remedy)  # fmt: skip
            continue
        lacking = [one for one in SETS[name] if not (folder / one.target).is_file()]
        torn = [
            one
            for one in SETS[name]
            if one.size and one not in lacking and (folder / one.target).stat().st_size != one.size
        ]
        if torn:
            files = ", ".join(one.target for one in torn)
            remedy = f"delete what is of another size and run `latentsync download {name}`"
            yield Finding(f"model {name}", f"damaged: {files}", good=False, remedy=remedy)
        elif lacking:
            found = f"{len(lacking)} of {len(SETS[name])} files are not in {folder}"
            yield Finding(f"model {name}", found, None, f"latentsync download {name}")
        else:
            yield Finding(f"model {name}", "there")


def _extras() -> Iterator[Finding]:
    for package, (use, command) in EXTRAS.items():
        if importlib.util.find_spec(package):
            yield Finding(package, str(_version(package)))
        else:
            yield Finding(package, f"not installed: no {use}", None, command)


def _memory() -> Finding:
    device, _ = choose()
    parts = [(device, "GPU"), (torch.device("cpu"), "machine")]
    told = {
        name: free
        for where, name in parts[not is_cuda(device) :]
        if (free := free_memory(where)) is not None
    }
    found = ", ".join(f"{free / GIB:.1f} GiB free ({name})" for name, free in told.items())
    least = min(told.values(), default=LARGE_MEMORY)
    if least < LEAST_MEMORY:
        remedy = "close other programs; the demo model alone wants 1 GiB"
        return Finding("memory", found, good=False, remedy=remedy)
    if least < LARGE_MEMORY:
        remedy = "for v1.6 give --batch 1, or --offload sequential on a GPU; v1.5 needs less"
        return Finding("memory", found, None, remedy)
    return Finding("memory", found or "nobody tells")


def _disk(weights: Path) -> Iterator[Finding]:
    for what, folder in (
        ("weights", weights),
        ("temporary files", Path(tempfile.gettempdir())),
        ("this folder", Path.cwd()),
    ):
        there = next(path for path in (folder, *folder.resolve().parents) if path.exists())
        free = shutil.disk_usage(there).free
        found = f"{free / GIB:.1f} GiB free in {folder}"
        low = free < LEAST_DISK
        yield Finding(f"disk, {what}", found, not low, "make room" if low else "")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
