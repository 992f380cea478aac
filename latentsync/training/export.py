"""Export of a trained net as the published code reads it: a .pt of global_step, state_dict."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from latentsync.diffusion import weights
from latentsync.diffusion.unet import UNet, UNetConfig
from latentsync.errors import InputError, OptionError, WeightsMismatch
from latentsync.training.checkpoint import PARTS, write_state

__all__ = ["export"]

NUMBERED = re.compile(r"\.\d+\.checkpoint\.pt$")  # kept under its step beside the last one
WANTED = "give a folder that `latentsync train` wrote, its checkpoint, or a model's folder"


def export(source: Path, output: Path) -> int:
    """Write the U-Net or the SyncNet of a run, or of a model's folder, in full precision.

    Of a run, export the average of the weights at its last checkpoint.

    Args:
        source: the folder of a run, its checkpoint, or the folder of a model.

    Returns:
        The step of the run; 0 if it isn't known.

    Raises:
        InputError: there is nothing to export, or the published code has no such net.
        OutputError: the file can't be written.
    """
    if output.is_dir():
        raise OptionError(f"{output} is a folder; give the name of a .pt file")
    step, state, config = _read(source)
    if config is not None:
        _check_published(source, state, config)
    write_state(output, {"global_step": step, "state_dict": state})
    return step


def _read(source: Path) -> tuple[int, dict[str, Tensor], UNetConfig | None]:
    """Read the step, the weights in float32, and the config of a U-Net."""
    if not source.exists():
        raise InputError(f"{source} is not there; {WANTED}")
    checkpoints = [source]
    if source.is_dir():
        found = sorted(source.glob("*.checkpoint.pt"))
        checkpoints = [path for path in found if not NUMBERED.search(path.name)]
    if (source / "config.json").is_file():
        nets = weights.load_nets(source)
        return 0, _float32(nets.unet.state_dict()), nets.config.unet
    if len(checkpoints) != 1 or not checkpoints[0].is_file():
        raise InputError(f"{source} holds {len(checkpoints)} checkpoints; {WANTED}")
    file = checkpoints[0]
    try:
        saved = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        missing = PARTS - set(saved)
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle raises any exception
        raise WeightsMismatch(f"{file} can't be read as a checkpoint; {WANTED}") from error
    if missing:
        raise WeightsMismatch(f"{file} is no checkpoint of a run; {WANTED}")
    state = _float32({**saved["net"], **saved["average"]})
    if "conv_in.weight" not in state:
        return int(saved["step"]), state, None
    return int(saved["step"]), state, weights.load_nets(file.parent / "model").config.unet


def _float32(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.detach().float().contiguous() if value.is_floating_point() else value
        for name, value in state.items()
    }


def _check_published(source: Path, state: Mapping[str, Tensor], config: UNetConfig) -> None:
    """Check that the published code has such a net, parameter by parameter.

    Raises:
        WeightsMismatch: it has none.
    """
    if config.speech_positions:
        raise WeightsMismatch(
            f"{source} holds a U-Net with learned speech positions, as `demo` has them; the "
            "published code has none; export one that was begun with v1.5 or v1.6"
        )
    with torch.device("meta"):
        wanted = {name: value.shape for name, value in UNet(config).state_dict().items()}
    if wanted != {name: value.shape for name, value in state.items()}:
        raise WeightsMismatch(f"{source} holds weights and a config.json that don't fit; {WANTED}")
