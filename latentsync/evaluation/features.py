"""Features of frames and of windows of frames, for `frechet_distance`: one vector each.

Three nets with three names, because distances in one net's features can't be compared with those
in another's:

    fid             Inception-v3 of FID (pt_inception-2015-12-05-6726825d.pth), single frames
    fvd             I3D (i3d_torchscript.pt), windows of 16 frames
    fvd_videomae    VideoMAE V2, windows of 16 frames; of this project, comparable with itself only
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from latentsync.errors import OptionError, WeightsMismatch, WeightsMissing
from latentsync.evaluation.nets.inception import SIDE, WIDTH, Inception
from latentsync.types import FloatArray, Frame

if TYPE_CHECKING:
    from latentsync.evaluation.nets.videomae import VideoMAE

__all__ = [
    "I3D_WIDTH",
    "WINDOW",
    "i3d_features",
    "inception_features",
    "load_i3d",
    "videomae_features",
    "windows",
]

Stack = NDArray[np.uint8]
I3D = Any  # a torchscript module, untyped

WINDOW = 16  # frames
I3D_WIDTH = 400  # of a feature: Kinetics' classes, before the softmax
FRAME_BATCH = 16  # frames
CLIP_BATCH = 4  # windows


def load_i3d(path: Path, device: torch.device | str = "cpu") -> I3D:
    """Load FVD's I3D, `i3d_torchscript.pt`. A torchscript file can run code of its own.

    Raises:
        WeightsMissing: there is no such file.
        WeightsMismatch: the file holds no torchscript.
    """
    if not path.is_file():
        raise WeightsMissing(f"{path} is not there; run `latentsync download eval`")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the published file stays as it is
            return torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise WeightsMismatch(
            f"{path} is not the published I3D; delete it and run `latentsync download eval`"
        ) from error


def inception_features(net: Inception, frames: Stack) -> FloatArray:
    """Compute FID's features: frames (n, H, W, 3) uint8 RGB of any size -> (n, 2048) float32.

    Frames are resized bilinearly to 299 px without antialiasing, as in pytorch-fid,
    https://github.com/mseitzer/pytorch-fid/blob/1232cd6/src/pytorch_fid/inception.py. Another way
    of resizing gives other distances: https://arxiv.org/abs/2104.11222.

    Raises:
        OptionError: frames of another form.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise OptionError(f"got frames {frames.dtype} of shape {frames.shape}; wanted (n, H, W, 3)")

    def infer(batch: Tensor) -> Tensor:
        small = F.interpolate(batch / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return net(2 * small - 1)

    return _in_batches(infer, net, frames, FRAME_BATCH, WIDTH)


def i3d_features(net: I3D, clips: Stack) -> FloatArray:
    """Compute FVD's features: windows (b, t, H, W, 3) uint8 RGB of any size -> (b, 400) float32.

    t is usually 16. The net scales and resizes its input itself, called as in
    https://github.com/universome/stylegan-v/blob/1f630af/src/metrics/frechet_video_distance.py.

    LatentSync's own evaluation leaves values in 0..1, although the net was trained on [-1, 1], and
    uses frames 20 to 35 of each clip; its distances are much smaller and can't be compared.
    https://github.com/bytedance/LatentSync/blob/a229c39/eval/eval_fvd.py

    Raises:
        OptionError: clips of another form.
    """
    _check_clips(clips)

    def infer(batch: Tensor) -> Tensor:
        return torch.as_tensor(net(batch, rescale=True, resize=True, return_features=True))

    return _in_batches(infer, net, clips, CLIP_BATCH, I3D_WIDTH)


def videomae_features(net: "VideoMAE", clips: Stack) -> FloatArray:
    """Compute FVD-VideoMAE's features: windows (b, 16, H, W, 3) uint8 RGB -> (b, 1408) float32.

    Not FVD: another net, that of TREPA (`nets.loading.load_videomae`), gives other numbers. It
    responds to motion where I3D responds to single frames: https://arxiv.org/abs/2404.12391.

    Raises:
        OptionError: clips of another form, or windows of another length than the net's.
    """
    _check_clips(clips)
    side, wanted = net.config.image_size, net.config.num_frames
    if clips.shape[1] != wanted:
        raise OptionError(f"got windows of {clips.shape[1]} frames; VideoMAE takes {wanted}")

    def infer(batch: Tensor) -> Tensor:
        flat = batch.transpose(1, 2).flatten(0, 1) / 255
        small = F.interpolate(flat, size=(side, side), mode="bilinear", align_corners=False)
        return net(small.unflatten(0, (-1, wanted)).transpose(1, 2))

    return _in_batches(infer, net, clips, CLIP_BATCH, net.config.hidden_size)


def windows(frames: Iterable[Frame]) -> Iterator[NDArray[np.uint8]]:
    """Split frames into windows of 16, (16, H, W, 3); a shorter rest is left out.

    One window is held at a time.
    """
    rest = iter(frames)
    while len(batch := list(islice(rest, WINDOW))) == WINDOW:
        yield np.stack(batch)


def _in_batches(
    infer: Callable[[Tensor], Tensor], net: torch.nn.Module, stack: Stack, batch: int, width: int
) -> FloatArray:
    """Features (n, width) float32 of a channels-last stack, `batch` of it at a time."""
    first = next(net.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    found = [np.empty((0, width), np.float32)]
    with torch.inference_mode():
        for i in range(0, len(stack), batch):
            few = np.ascontiguousarray(np.moveaxis(stack[i : i + batch], -1, 1))
            features = infer(torch.from_numpy(few).to(device).float())
            found.append(features.float().cpu().numpy())
    return np.concatenate(found)


def _check_clips(clips: Stack) -> None:
    if clips.ndim != 5 or clips.shape[4] != 3 or clips.dtype != np.uint8:
        raise OptionError(
            f"got clips {clips.dtype} of shape {clips.shape}; wanted uint8 (b, t, H, W, 3)"
        )
