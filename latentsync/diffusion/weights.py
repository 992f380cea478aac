"""How weights get into the nets: strictly, by the published names.

    weights/                        or the folder named by $LATENTSYNC_WEIGHTS
      demo/                         a folder in our own form, committed: config.json and
                                    unet, vae, whisper .safetensors
      v1.5/, v1.6/                  latentsync_unet.pt, as published
      whisper/tiny.pt               as published
      vae/                          stabilityai/sd-vae-ft-mse, diffusers' layout
      auxiliary/models/buffalo_l/   InsightFace's detector and landmarks

The published project's own `checkpoints/` folder does as well: a latentsync_unet.pt that lies
directly in it serves whichever version is asked for, and the VAE is looked for in the hub's cache.
Our own form is what training writes; `load_nets` takes such a folder by its path.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentsync.audio.whisper import SpeechEncoder
from latentsync.diffusion import memory
from latentsync.diffusion.config import PRESETS, ModelConfig
from latentsync.diffusion.unet import UNet, UNetConfig
from latentsync.diffusion.vae import VAE
from latentsync.errors import OptionError, WeightsMismatch, WeightsMissing, option_name
from latentsync.runtime import devices
from latentsync.runtime.checkpoints import (
    State,
    filled,
    first_line,
    lock_of,
    read,
    root,
    shapes_of,
    write_locked,
    write_tensors,
)
from latentsync.runtime.locks import locked_file

if TYPE_CHECKING:
    pass

__all__ = ["Nets", "Offload", "load_nets", "load_unet", "save"]

log = logging.getLogger(__name__)

Offload = Literal["auto", "none", "sequential"]

PUBLISHED = ("v1.6", "v1.5")
UNET, WHISPER = "latentsync_unet.pt", "whisper/tiny.pt"
VAE_REPOSITORY, VAE_FILE = "stabilityai/sd-vae-ft-mse", "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Nets:
    """A loaded model: three nets on one device, ready for inference; speech stays in float32."""

    config: ModelConfig
    unet: UNet
    vae: VAE
    speech: SpeechEncoder


def load_nets(
    name: str | Path,
    *,
    folder: Path | str | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    offload: Offload = "none",
) -> Nets:
    """Load a model by preset name, or by the path of a folder in our own form.

    Args:
        offload: "sequential" keeps the U-Net in the CPU's memory, each of its layers on the device
            only while it computes; "auto" does so where the device is too small otherwise.

    Raises:
        OptionError: neither a preset nor a folder, or an unknown offload.
        WeightsMissing: a file is not there; the message names it and what to do.
        WeightsMismatch: a file holds another model.
    """
    if offload not in get_args(Offload):
        raise OptionError(
            f"{option_name('offload')} is {offload!r}; it must be auto, none or sequential"
        )
    base = root(folder)
    own = base / "demo" if str(name) == "demo" else Path(name)
    if str(name) in PUBLISHED:
        nets = _load_published(PRESETS[str(name)], base, half=dtype != torch.float32)
    elif (own / "config.json").is_file():
        nets = _load_own(own)
    elif str(name) == "demo":
        raise WeightsMissing(f"{own / 'config.json'} is missing; it is part of the repository")
    else:
        known = ", ".join(PRESETS)
        raise OptionError(
            f"{option_name('model')} is {str(name)!r}; it must be one of {known}, or a folder "
            "with a config.json"
        )
    _place(nets, torch.device(device), dtype, offload)
    return nets


def _place(nets: Nets, device: torch.device, dtype: torch.dtype, offload: Offload) -> None:
    """Bring the nets to the device, the U-Net's layers only on demand where it is offloaded."""
    side = nets.vae.latent_shape(nets.config.resolution)[1]
    numbers = sum(p.numel() for net in (nets.unet, nets.vae) for p in net.parameters())
    needed = numbers * dtype.itemsize + memory.unet_work(nets.config.unet, side, dtype)
    if offload == "auto" and not devices.has_room(needed, device):
        log.warning("%s is too small for %s: its layers come and go", device, nets.config.name)
        offload = "sequential"
    # Whisper's norms compute in float32 and want their weights so; it is little work anyway.
    precisions = ((nets.unet, dtype), (nets.vae, dtype), (nets.speech, torch.float32))
    for net, precision in precisions:
        net.eval().requires_grad_(False)
        if net is nets.unet and offload == "sequential":
            devices.offload(net.to(precision), device)
        else:
            net.to(device, precision)


def load_unet(path: Path, config: UNetConfig) -> UNet:
    """A U-Net, strictly, from a published .pt ({"global_step", "state_dict"}) or our safetensors.

    Raises:
        WeightsMissing: no such file.
        WeightsMismatch: another net is in it: a 1.0 checkpoint, another width, another stage.
    """
    state = read(path, "state_dict")
    found = _describe_unet(state)
    wanted = _describe_unet(shapes_of(lambda: UNet(config)))
    if found != wanted:
        fits = "; it fits the v1.5 and v1.6 models" if found == _PUBLISHED_UNET else ""
        raise WeightsMismatch(f"{path} holds {found}, but {wanted} is wanted{fits}")
    return filled(lambda: UNet(config), state, path)


def _load_own(folder: Path) -> Nets:
    file = folder / "config.json"
    try:
        config = ModelConfig.from_json(file.read_text())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsMismatch(
            f"{file} is no model's configuration ({type(error).__name__}: {first_line(error)}); it "
            "must be what training wrote beside the weights"
        ) from error
    vae = folder / "vae.safetensors"
    speech = folder / "whisper.safetensors"
    return Nets(
        config=config,
        unet=load_unet(folder / "unet.safetensors", config.unet),
        vae=filled(lambda: VAE(config.vae), read(vae), vae),
        speech=filled(lambda: SpeechEncoder(config.whisper), read(speech), speech),
    )


def _load_published(config: ModelConfig, base: Path, *, half: bool) -> Nets:
    unet, vae, whisper = _published_files(config.name, base)
    encoder = {
        key: value
        for key, value in read(whisper, "model_state_dict").items()
        if key.startswith("encoder.")
    }
    return Nets(
        config=config,
        unet=load_unet(_in_half(unet, config.unet) if half else unet, config.unet),
        vae=filled(lambda: VAE(config.vae), _vae_state(read(vae)), vae),
        speech=filled(lambda: SpeechEncoder(config.whisper), encoder, whisper),
    )


def _published_files(name: str, base: Path) -> tuple[Path, Path, Path]:
    """Find the U-Net, the VAE and Whisper, in our layout or in the published project's."""
    cached = try_to_load_from_cache(VAE_REPOSITORY, VAE_FILE)  # a path, if the hub's cache has it
    places = {
        "unet": [base / name / UNET, base / UNET],
        "vae": [base / "vae" / VAE_FILE, *([Path(cached)] if isinstance(cached, str) else [])],
        "whisper": [base / WHISPER],
    }
    found = {
        key: next((path for path in paths if path.is_file()), None) for key, paths in places.items()
    }
    missing = [str(places[key][0]) for key, path in found.items() if path is None]
    if missing:
        raise WeightsMissing(
            f"model {name!r} has no {missing[0]}"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else "")
            + f"; run `latentsync download {name}`, or use `--model demo`"
        )
    unet, vae, whisper = (path for path in found.values() if path)
    return unet, vae, whisper


def _in_half(path: Path, config: UNetConfig) -> Path:
    """A float16 copy beside a published U-Net, made once: half as large, and mapped, not unpickled.

    Where there is none that can be read, and none can be written, the published file itself.
    """
    half = path.with_suffix(".fp16.safetensors")
    if _is_copy(half, path):
        return half
    try:
        with locked_file(lock_of(half)):
            if not _is_copy(half, path):  # another process may have made it meanwhile
                log.info("making %s of %s, once", half.name, path)
                state = load_unet(path, config).state_dict()
                write_locked({k: v.half().contiguous() for k, v in state.items()}, half)
    except (OSError, SafetensorError) as error:
        log.warning("%s can't be written (%s); loading %s instead", half, error, path.name)
        return path
    return half


def _is_copy(half: Path, path: Path) -> bool:
    """Whether a float16 copy is there, as new as its original, and can be read."""
    try:
        if half.stat().st_mtime < path.stat().st_mtime:
            return False
        with safe_open(half, "pt"):  # reads the header, and holds the file's size against it
            return True
    except FileNotFoundError:
        return False
    except (OSError, SafetensorError) as error:
        log.warning("%s can't be read (%s)", half, error)
        return False


def _describe_unet(state: Mapping[str, Tensor]) -> str:
    """What kind of U-Net a state dict is, in words."""
    if "conv_in.weight" not in state:
        return f"no U-Net ({len(state)} tensors, first {next(iter(state), 'none')!r})"
    if any(".audio_cross_attn." in key for key in state):
        return "a LatentSync 1.0 U-Net (audio_cross_attn layers, other key names)"
    motion = {key.split(".")[0] for key in state if ".motion_modules." in key}
    stage = {(): "none", ("up_blocks",): "decoder only"}.get(tuple(sorted(motion)), "everywhere")
    widths = [
        state[f"down_blocks.{i}.resnets.0.conv1.weight"].shape[0]
        for i in range(len(state))
        if f"down_blocks.{i}.resnets.0.conv1.weight" in state
    ]
    layers = len({k.split(".")[3] for k in state if k.startswith("down_blocks.0.resnets.")})
    audio = [value for key, value in state.items() if key.endswith("attn2.to_k.weight")]
    return (
        f"a U-Net of widths {'/'.join(map(str, widths))}, {layers} layers a block, "
        f"{state['conv_in.weight'].shape[1]} input channels, "
        f"speech width {audio[0].shape[1] if audio else 'none'}, motion modules {stage}"
    )


_PUBLISHED_UNET = (
    "a U-Net of widths 320/640/1280/1280, 2 layers a block, 13 input channels, "
    "speech width 384, motion modules everywhere"
)

# The attention layers of the VAE's file carry names from before diffusers 0.17.
_OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _vae_state(state: State) -> State:
    """The published VAE's tensors under the names of today's AutoencoderKL."""
    renamed = {}
    for key, value in state.items():
        *path, layer, kind = key.split(".")
        renamed[".".join(["net", *path, _OLD_NAMES.get(layer, layer), kind])] = value
    return renamed


def save(nets: Nets, folder: Path) -> None:
    """Write a model in our own form: config.json and three fp16 safetensors files."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {"unet": nets.unet, "vae": nets.vae, "whisper": nets.speech}
    for part, net in parts.items():
        state = {k: v.half().contiguous().cpu() for k, v in net.state_dict().items()}
        write_tensors(state, folder / f"{part}.safetensors")
    (folder / "config.json").write_text(nets.config.to_json())
