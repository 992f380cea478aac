"""Restoration nets: GFPGAN and CodeFormer by name, others by their files.

The architectures come from spandrel (extra `[restore]`), which recognises a net by the tensors of
its file. Only tensors are read from a file: nothing in it is run.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentsync.errors import BackendUnavailable, WeightsMismatch
from latentsync.faces.restoration.restoration import Restorer
from latentsync.runtime import checkpoints, devices
from latentsync.runtime.downloads import SETS
from latentsync.runtime.extras import install_command

__all__ = ["load_restorer"]

log = logging.getLogger(__name__)

Call = Callable[[Tensor], Tensor]

NAMES = {"gfpgan": "GFPGAN", "codeformer": "CodeFormer"}  # ours -> spandrel's
FACE_SIDE = 512  # px; the side of FFHQ's aligned faces, on which nets for faces are trained
ENTRIES = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
OF_CODEFORMER = {"quantize.embedding.weight", "idx_pred_layer.1.weight"}
BY_ITS_AUTHOR = "whatever the author of the file says"


def load_restorer(
    name_or_path: str, *, folder: Path, device: torch.device, weight: float
) -> Restorer:
    """Load a restoration net.

    CodeFormer, whose licence forbids commercial use, is loaded only by name.

    Args:
        name_or_path: "gfpgan" or "codeformer", in any case, or a .pth, .pt or .safetensors file of
            a net that spandrel knows: three channels in and out, no mask.
        folder: the weights folder, in which the two have their places.
        weight: 0-1, CodeFormer's fidelity: 0 gives the cleanest face, 1 the one nearest to the
            picture. Other nets ignore it.

    Raises:
        WeightsMissing: the file is not there.
        WeightsMismatch: it holds no such net.
        BackendUnavailable: spandrel can't be imported.
    """
    name = name_or_path.lower()
    if name in NAMES:
        (item,) = SETS[name]
        path, licence = folder / item.target, item.licence
        hint = f"run `latentsync download {name}`"
    else:
        path, licence, name = Path(name_or_path), BY_ITS_AUTHOR, Path(name_or_path).name
        hint = f"give {', '.join(NAMES)} or the file of another net"
    state = checkpoints.read(path, *ENTRIES, "", hint=hint)
    if name != "codeformer" and state.keys() >= OF_CODEFORMER:
        raise WeightsMismatch(
            f"{path} holds CodeFormer, whose licence forbids commercial use: it is loaded only "
            f"where it is asked for by name; put it at {folder / SETS['codeformer'][0].target}"
        )
    descriptor = _load_descriptor(state, path, NAMES.get(name))
    _, dtype = devices.choose(str(device))
    half = dtype == torch.float16 and descriptor.supports_half
    descriptor.to(device=device, dtype=torch.float16 if half else torch.float32).eval()
    say = log.warning if "non-commercial" in licence else log.info
    say("restoration by %s from %s; licence: %s", descriptor.architecture.id, path, licence)
    return _Net(descriptor, name=name, licence=licence, weight=weight)


class _Net:
    """A net loaded by spandrel, as a `Restorer`."""

    def __init__(self, descriptor: Any, *, name: str, licence: str, weight: float) -> None:  # noqa: ANN401
        self.name, self.licence = name, licence
        self.scale: int = descriptor.scale
        self.faces: bool = descriptor.purpose == "FaceSR"
        self.side = FACE_SIDE if self.faces else None
        self._place = {"device": descriptor.device, "dtype": descriptor.dtype}
        self._call = _make_call(descriptor, weight)

    @torch.inference_mode()
    def restore(self, pictures: Tensor) -> Tensor:
        """Restore as in `Restorer`, one picture at a time, for memory; returned on their device."""
        count, height, width, _ = pictures.shape
        assert self.side is None or (height, width) == (self.side, self.side), pictures.shape
        drawn = pictures.new_empty((count, height * self.scale, width * self.scale, 3))
        for i, picture in enumerate(pictures):
            # GFPGAN needs contiguous planes, because it views tensors of its input's layout.
            colours = picture.to(**self._place).permute(2, 0, 1)[None].contiguous() / 255
            levels = self._call(colours)[0].float().clamp(0, 1) * 255
            drawn[i] = levels.round().to(torch.uint8).permute(1, 2, 0)
        return drawn


def _make_call(descriptor: Any, weight: float) -> Call:  # noqa: ANN401 - spandrel is optional
    """Make a function (1, 3, H, W) in [0, 1] -> (1, 3, H * scale, W * scale), about in [0, 1].

    A descriptor pads to the sizes that its net takes. But it passes the range [0, 1] on to these
    two, which were trained on [-1, 1] (`normalize` in
    https://github.com/TencentARC/GFPGAN/blob/v1.3.8/gfpgan/utils.py), so they are called directly.
    """
    net = descriptor.model
    if descriptor.architecture.id == "GFPGAN":
        # Fresh noise for each picture would flicker; the file holds a fixed one.
        return lambda x: net(x * 2 - 1, return_rgb=False, randomize_noise=False)[0] / 2 + 0.5
    if descriptor.architecture.id == "CodeFormer":
        return lambda x: net(x * 2 - 1, weight=weight)[0] / 2 + 0.5
    return lambda x: descriptor(x)


def _load_descriptor(state: dict[str, Tensor], path: Path, wanted: str | None) -> Any:  # noqa: ANN401
    """Load spandrel's descriptor of the net, on the CPU; of the architecture `wanted`, if given."""
    try:
        import spandrel
        from spandrel_extra_arches import EXTRA_REGISTRY
    except (ImportError, RuntimeError) as error:  # torchvision of another build: RuntimeError
        raise BackendUnavailable(
            f"restoration needs spandrel, which can't be imported ({error}); run "
            f"`{install_command('restore')}`, with a torchvision made for torch "
            f"{torch.__version__}"
        ) from error
    registry = spandrel.MAIN_REGISTRY
    if wanted == "CodeFormer":
        registry = spandrel.ArchRegistry()
        registry.add(EXTRA_REGISTRY[wanted])
    fitting = wanted or "a net for pictures of three channels that spandrel knows"
    try:
        found = spandrel.ModelLoader(registry=registry).load_from_state_dict(state)
    except Exception as error:  # a net guessed by a few names fails on the rest in many ways
        reason = next((line.strip() for line in str(error).splitlines()[:2][-1:]), "unknown names")
        raise WeightsMismatch(
            f"{path} does not hold {fitting} ({reason[:200]}); give another file"
        ) from error
    channels = (found.input_channels, found.output_channels)
    kind = found.architecture.id
    if kind != (wanted or kind) or found.purpose == "Inpainting" or channels != (3, 3):
        raise WeightsMismatch(
            f"{path} holds {kind} ({found.purpose}, {channels[0]} channels to {channels[1]}), not "
            f"{fitting}; give another file"
        )
    return found
