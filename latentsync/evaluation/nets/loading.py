"""Loads the nets that judge and supervise, from the files they were published in."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import nn

from latentsync.errors import BackendUnavailable, WeightsMissing
from latentsync.evaluation.nets.lpips import LPIPS
from latentsync.evaluation.nets.syncnet import StableSyncNet, SyncNetConfig
from latentsync.runtime.checkpoints import filled, first_line, read
from latentsync.runtime.extras import install_command

if TYPE_CHECKING:  # it needs transformers, which only the extra `train` installs
    from latentsync.evaluation.nets.videomae import VideoMAE

__all__ = ["load_lpips", "load_net", "load_syncnet", "load_videomae"]

LPIPS_LINEAR = "lpips_vgg.pth"
LPIPS_PACKAGE = "lpips==0.1.4"
FETCH = "`latentsync download train` fetches it"

Net = TypeVar("Net", bound=nn.Module)


def load_net(
    make: Callable[[], Net],
    path: Path,
    *entries: str,
    hint: str = "run `latentsync download eval`",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Net:
    """Load a net from its file, strictly; in eval mode, without gradients.

    Args:
        make: the net's class.
        entries: under which of these keys a .pt file holds the tensors; none: it is the state dict.
        hint: what to do if there is no such file.
        dtype: default the file's.

    Raises:
        WeightsMissing: there is no such file.
        WeightsMismatch: the file holds something else.
    """
    net = filled(make, read(path, *entries, hint=hint), path)
    return net.to(device, dtype).eval().requires_grad_(False)


def load_syncnet(
    path: Path,
    config: SyncNetConfig | None = None,
    *,
    hint: str = FETCH,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> StableSyncNet:
    """Load StableSyncNet from a published .pt or from safetensors; raises as `load_net`.

    Args:
        config: one of `nets.syncnet.SYNCNETS`; None: the published stable_syncnet.pt.
    """
    make = lambda: StableSyncNet(config)  # noqa: E731
    return load_net(make, path, "state_dict", hint=hint, device=device, dtype=dtype)


def load_lpips(
    vgg: Path, linear: Path | None = None, *, device: torch.device | str = "cpu"
) -> LPIPS:
    """Load LPIPS in float32, strictly, from the two files it was published in; frozen.

    Args:
        vgg: torchvision's vgg16-397923af.pth.
        linear: weights/v0.1/vgg.pth of the lpips package. None: lpips_vgg.pth beside `vgg`, or the
            package's own file. The package is never imported, because it needs torchvision.

    Raises:
        WeightsMissing: there is no such file, or no such package.
        WeightsMismatch: one of the files holds something else.
    """
    if linear is None:
        linear = vgg.with_name(LPIPS_LINEAR)
        spec = None if linear.is_file() else find_spec("lpips")
        if spec and spec.origin:
            linear = Path(spec.origin).parent / "weights/v0.1/vgg.pth"
        elif not linear.is_file():
            raise WeightsMissing(
                f"{LPIPS_LINEAR} is missing, the file of LPIPS' linear layers; {FETCH}, or install "
                f"it with `pip install --no-deps {LPIPS_PACKAGE}`"
            )
    features = {k: v for k, v in read(vgg, hint=FETCH).items() if not k.startswith("classifier.")}
    state = features | read(linear, hint=f"it is part of {LPIPS_PACKAGE}")
    return filled(LPIPS, state, f"{vgg} with {linear}").to(device).eval()


def load_videomae(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> "VideoMAE":
    """Load VideoMAE V2 (ViT-g/14), strictly, from the published .pth; frozen. float16 as published.

    Raises:
        BackendUnavailable: the package transformers is not installed.
        WeightsMissing: there is no such file.
        WeightsMismatch: the file holds another net.
    """
    try:  # it takes seconds to import, and only training and FVD need it
        from latentsync.evaluation.nets.videomae import VideoMAE, renamed
    except ImportError as error:
        raise BackendUnavailable(
            "VideoMAE needs the package transformers, which can't be loaded "
            f"({first_line(error)}): {install_command('train')}"
        ) from error
    state = renamed(read(path, "model", "module", "", hint=FETCH))
    return filled(VideoMAE, state, path).to(device, dtype).eval()
