"""Loads the nets that judge and supervise: StableSyncNet, LPIPS, VideoMAE."""

from importlib.util import find_spec
from pathlib import Path

import torch

from latentsync.errors import BackendUnavailable, WeightsMissing
from latentsync.evaluation.nets.lpips import LPIPS
from latentsync.evaluation.nets.syncnet import StableSyncNet, SyncNetConfig
from latentsync.evaluation.nets.videomae import VideoMAE
from latentsync.runtime.checkpoints import filled, first_line, read

__all__ = ["load_lpips", "load_syncnet", "load_videomae"]

LPIPS_LINEAR = "lpips_vgg.pth"
LPIPS_PACKAGE = "lpips==0.1.4"
FETCH = "`latentsync download train` fetches it"


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
        config: one of `nets.syncnet.SYNCNETS`; None: the published stable_syncnet.pt.
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
        from latentsync.evaluation.nets.videomae import VideoMAE, renamed
    except ImportError as error:
        raise BackendUnavailable(
            "VideoMAE needs the package transformers, which can't be loaded "
            f"({first_line(error)}); install latentsync[train]"
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
