"""Reads and writes weight files: strict loading, atomic writing."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar
from zipfile import is_zipfile

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentsync.errors import WeightsMismatch, WeightsMissing
from latentsync.runtime.downloads import Download
from latentsync.runtime.fetching import fetch_set
from latentsync.runtime.locks import locked_file

__all__ = ["download", "filled", "read", "root", "write_tensors"]

State = dict[str, Tensor]
Net = TypeVar("Net", bound=nn.Module)


def root(folder: Path | str | None = None) -> Path:
    """The weights folder: the one given, $LATENTSYNC_WEIGHTS, or `weights/` of the checkout."""
    chosen = folder or os.environ.get("LATENTSYNC_WEIGHTS")
    return Path(chosen) if chosen else Path(__file__).resolve().parents[2] / "weights"


def download(
    name: str,
    folder: Path | str | None = None,
    report: Callable[[Download], None] | None = None,
    progress: Callable[[Download, int, int | None], None] | None = None,
) -> None:
    """Fetch a set of `runtime.downloads` into the weights folder; see `fetching.fetch_set`."""
    fetch_set(name, root(folder), report, progress)


def write_tensors(state: State, path: Path) -> None:
    """Write a safetensors file; an existing one stays until the new one is whole.

    Raises:
        OSError, SafetensorError: it can't be written.
    """
    with locked_file(lock_of(path)):
        write_locked(state, path)


def lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def write_locked(state: State, path: Path) -> None:
    """Write a safetensors file whose lock the caller holds.

    safetensors writes a hidden file of mode 0600 beside its target, regardless of the umask, and a
    killed process leaves it behind. So the target is in a folder of its own first.
    """
    folder = path.with_name(f".{path.name}.part")
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process
    folder.mkdir()
    try:
        written = folder / path.name
        written.touch()
        mode = written.stat().st_mode
        save_file(state, written)
        written.chmod(mode)
        written.replace(path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def read(path: Path, *entries: str, hint: str = "put it there, or use `--model demo`") -> State:
    """Read the tensors of a .safetensors or .pt file.

    Args:
        entries: keys of a .pt file under which the tensors may be, the first one found counts; none
            or "": the file's top level.
        hint: what to do if there is no such file.

    Raises:
        WeightsMissing: there is no such file.
        WeightsMismatch: it is damaged, or holds no tensors there.
    """
    if not path.is_file():
        raise WeightsMissing(f"{path} is missing; {hint}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # Files from before torch 1.6 are no zip archives and can't be mapped into memory.
        raw = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zipfile(path))
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle raises any error
        # For pickles with code, or damaged ones, torch's message advises to run them.
        unsafe = isinstance(error, UnpicklingError)
        reason = "damaged, or more than tensors is in it" if unsafe else first_line(error)
        raise WeightsMismatch(
            f"{path} can't be read as weights ({reason}); fetch it again"
        ) from error
    found = {"": raw, **raw} if isinstance(raw, Mapping) else {}
    state = next((found[entry] for entry in entries or [""] if entry in found), None)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        place = " or ".join(repr(entry) for entry in entries if entry) or "a name each"
        raise WeightsMismatch(
            f"{path} is a checkpoint of another kind, without tensors under {place}; fetch it again"
        )
    return state


def first_line(error: Exception) -> str:
    """The first line of an error's message, shortened."""
    return (str(error).strip() or "it is empty").splitlines()[0][:200]


def filled(make: Callable[[], Net], state: State, path: Path | str) -> Net:
    """Make a net that holds `state`, without initialising it first.

    Raises:
        WeightsMismatch: a tensor is missing, unexpected, or of another shape.
    """
    with torch.device("meta"):
        net = make()
    try:
        net.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise WeightsMismatch(
            f"{path} does not fit a {type(net).__name__} of this model: {lines[0][:300]}"
        ) from error
    return net


def shapes_of(make: Callable[[], nn.Module]) -> State:
    with torch.device("meta"):
        return make().state_dict()
