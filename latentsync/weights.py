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
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Literal, TypeVar, get_args
from zipfile import is_zipfile

import torch
from huggingface_hub import try_to_load_from_cache
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latentsync import devices
from latentsync.config import PRESETS, ModelConfig, SyncNetConfig, UNetConfig
from latentsync.downloads import Download
from latentsync.errors import BackendUnavailable, OptionError, WeightsMismatch, WeightsMissing
from latentsync.fetching import fetch_set
from latentsync.models.lpips import LPIPS
from latentsync.models.syncnet import StableSyncNet
from latentsync.models.unet import UNet
from latentsync.models.vae import VAE
from latentsync.speech import SpeechEncoder
from latentsync.transfer import locked

if TYPE_CHECKING:
    from latentsync.models.videomae import VideoMAE

__all__ = [
    "Nets",
    "Offload",
    "download",
    "filled",
    "load_lpips",
    "load_nets",
    "load_syncnet",
    "load_unet",
    "load_videomae",
    "read",
    "root",
    "save",
    "write_tensors",
]

log = logging.getLogger(__name__)

State = dict[str, Tensor]
Net = TypeVar("Net", bound=nn.Module)
Offload = Literal["auto", "none", "sequential"]

PUBLISHED = ("v1.6", "v1.5")
UNET, WHISPER = "latentsync_unet.pt", "whisper/tiny.pt"
LPIPS_LINEAR = "lpips_vgg.pth"
LPIPS_PACKAGE = "lpips==0.1.4"
FETCH = "`latentsync download train` fetches it"
VAE_REPOSITORY, VAE_FILE = "stabilityai/sd-vae-ft-mse", "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class Nets:
    """A loaded model: three nets on one device, ready for inference; speech stays in float32."""

    config: ModelConfig
    unet: UNet
    vae: VAE
    speech: SpeechEncoder


def root(folder: Path | str | None = None) -> Path:
    """The weights folder: the one given, $LATENTSYNC_WEIGHTS, or `weights/` of the checkout."""
    chosen = folder or os.environ.get("LATENTSYNC_WEIGHTS")
    return Path(chosen) if chosen else Path(__file__).resolve().parent.parent / "weights"


def download(
    name: str,
    folder: Path | str | None = None,
    report: Callable[[Download], None] | None = None,
    progress: Callable[[Download, int, int | None], None] | None = None,
) -> None:
    """Fetch a set of `latentsync.downloads` into the weights folder, as `fetching.fetch_set`."""
    fetch_set(name, root(folder), report, progress)


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
        raise OptionError(f"offload is {offload!r}; it must be auto, none or sequential")
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
            f"model is {str(name)!r}; it must be one of {known}, or a folder with a config.json"
        )
    _place(nets, torch.device(device), dtype, offload)
    return nets


def _place(nets: Nets, device: torch.device, dtype: torch.dtype, offload: Offload) -> None:
    """Bring the nets to the device, the U-Net's layers only on demand where it is offloaded."""
    side = nets.vae.latent_shape(nets.config.resolution)[1]
    numbers = sum(p.numel() for net in (nets.unet, nets.vae) for p in net.parameters())
    needed = numbers * dtype.itemsize + devices.unet_work(nets.config.unet, side, dtype)
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
    wanted = _describe_unet(_shapes(lambda: UNet(config)))
    if found != wanted:
        fits = "; it fits the v1.5 and v1.6 models" if found == _PUBLISHED_UNET else ""
        raise WeightsMismatch(f"{path} holds {found}, but {wanted} is wanted{fits}")
    return filled(lambda: UNet(config), state, path)


def load_syncnet(
    path: Path,
    config: SyncNetConfig | None = None,
    *,
    hint: str = FETCH,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> StableSyncNet:
    """StableSyncNet, strictly, from a published .pt ("state_dict") or safetensors; frozen.

    Args:
        config: one of `latentsync.config.SYNCNETS`; None: the published stable_syncnet.pt.
        hint: what to do where there is no such file.

    Raises:
        WeightsMissing: no such file.
        WeightsMismatch: another net is in it.
    """
    net = filled(lambda: StableSyncNet(config), read(path, "state_dict", hint=hint), path)
    return net.to(device, dtype).eval().requires_grad_(False)


def load_lpips(
    vgg: Path, linear: Path | None = None, *, device: torch.device | str = "cpu"
) -> LPIPS:
    """LPIPS in float32, strictly, from the two files that it lies in; frozen.

    Args:
        vgg: torchvision's vgg16-397923af.pth.
        linear: weights/v0.1/vgg.pth of the lpips package; None: lpips_vgg.pth beside `vgg`, or that
            of the package. It is never imported, for it needs torchvision.

    Raises:
        WeightsMissing: no such file, or no such package.
        WeightsMismatch: something else is in one of them.
    """
    beside = vgg.with_name(LPIPS_LINEAR)
    linear = linear or (beside if beside.is_file() else _lpips_package() / "weights/v0.1/vgg.pth")
    features = {k: v for k, v in read(vgg, hint=FETCH).items() if not k.startswith("classifier.")}
    state = features | read(linear, hint=f"it is part of {LPIPS_PACKAGE}")
    return filled(LPIPS, state, f"{vgg} with {linear}").to(device).eval()


def load_videomae(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> "VideoMAE":
    """VideoMAE V2 (ViT-g/14), strictly, from the published .pth; frozen. float16 as published.

    Raises:
        BackendUnavailable: the package transformers is not installed.
        WeightsMissing: no such file.
        WeightsMismatch: another net is in it.
    """
    try:  # it takes seconds to import, and nothing but training needs it
        from latentsync.models.videomae import VideoMAE, renamed
    except ImportError as error:
        raise BackendUnavailable(
            f"VideoMAE needs the package transformers, which can't be loaded ({_reason(error)}); "
            "install latentsync[train]"
        ) from error
    state = renamed(read(path, "model", "module", "", hint=FETCH))
    return filled(VideoMAE, state, path).to(device, dtype).eval()


def _lpips_package() -> Path:
    spec = find_spec("lpips")
    if spec is None or spec.origin is None:
        raise WeightsMissing(
            f"{LPIPS_LINEAR} is missing, LPIPS' linear layers; {FETCH}, or install it with "
            f"`pip install --no-deps {LPIPS_PACKAGE}`"
        )
    return Path(spec.origin).parent


def _load_own(folder: Path) -> Nets:
    file = folder / "config.json"
    try:
        config = ModelConfig.from_json(file.read_text())
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise WeightsMismatch(
            f"{file} is no model's configuration ({type(error).__name__}: {_reason(error)}); it "
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
    """Where the U-Net, the VAE and Whisper lie, in our layout or in the published project's."""
    places: dict[str, list[Path | None]] = {
        "unet": [base / name / UNET, base / UNET],
        "vae": [base / "vae" / VAE_FILE, _cached(VAE_REPOSITORY, VAE_FILE)],
        "whisper": [base / WHISPER],
    }
    found = {
        key: next((path for path in paths if path and path.is_file()), None)
        for key, paths in places.items()
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


def _cached(repository: str, file: str) -> Path | None:
    """The file in the hub's own cache, if it lies there."""
    path = try_to_load_from_cache(repository, file)
    return Path(path) if isinstance(path, str) else None


def _in_half(path: Path, config: UNetConfig) -> Path:
    """A float16 copy beside a published U-Net, made once: half as large, and mapped, not unpickled.

    Where there is none that can be read, and none can be written, the published file itself.
    """
    half = path.with_suffix(".fp16.safetensors")
    if _is_copy(half, path):
        return half
    try:
        with locked(_lock_of(half)):
            if not _is_copy(half, path):  # another process may have made it meanwhile
                log.info("making %s of %s, once", half.name, path)
                state = load_unet(path, config).state_dict()
                _write({k: v.half().contiguous() for k, v in state.items()}, half)
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


def write_tensors(state: State, path: Path) -> None:
    """Write a safetensors file in one step; one that is there stays until the new one is whole.

    Raises:
        OSError, SafetensorError: it can't be written.
    """
    with locked(_lock_of(path)):
        _write(state, path)


def _lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def _write(state: State, path: Path) -> None:
    """Write a safetensors file; the caller holds its lock.

    safetensors writes a hidden file of mode 0600 in the target's folder and renames it, whatever
    the umask says; a process that is killed leaves it behind. So it gets a folder of its own.
    """
    folder = path.with_name(f".{path.name}.part")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed
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
    """The tensors of a .safetensors file, or those in a .pt file.

    There they lie in the first of `entries` that it has; none, or "", is the file itself.
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
    except Exception as error:  # a damaged pickle raises whatever it stumbles over
        # Where a pickle holds code, or nonsense, torch advises to run it.
        unsafe = isinstance(error, UnpicklingError)
        reason = "damaged, or more than tensors is in it" if unsafe else _reason(error)
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


def _reason(error: Exception) -> str:
    """The first line of what an error says, shortened."""
    return (str(error).strip() or "it is empty").splitlines()[0][:200]


def filled(make: Callable[[], Net], state: State, path: Path | str) -> Net:
    """A net holding `state`, never initialised twice.

    Raises:
        WeightsMismatch: a tensor is missing, over, or of another shape.
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


def _shapes(make: Callable[[], nn.Module]) -> State:
    with torch.device("meta"):
        return make().state_dict()


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
