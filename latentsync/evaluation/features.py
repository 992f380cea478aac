"""What nets see in frames and in clips, for `frechet_distance`: one feature a picture or a window.

Three nets, three names, for distances in one say nothing about distances in another:

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
from latentsync.runtime import checkpoints
from latentsync.types import FloatArray, Frame

if TYPE_CHECKING:
    from latentsync.evaluation.nets.videomae import VideoMAE

__all__ = [
    "I3D_WIDTH",
    "WINDOW",
    "i3d_features",
    "inception_features",
    "load_i3d",
    "load_inception",
    "videomae_features",
    "windows",
]

Stack = NDArray[np.uint8]
I3D = Any  # a torchscript module, untyped

WINDOW = 16  # frames
I3D_WIDTH = 400  # of its features: Kinetics' classes, before the softmax
BATCH = 16  # pictures
CLIP_BATCH = 4  # windows


def load_inception(path: Path, device: torch.device | str = "cpu") -> Inception:
    """FID's Inception-v3, strictly, from pytorch-fid's state dict; float32, frozen.

    Raises:
        WeightsMissing: no such file.
        WeightsMismatch: something else is in it.
    """
    state = checkpoints.read(path, hint="run `latentsync download eval`")
    return checkpoints.filled(Inception, state, path).to(device)


def load_i3d(path: Path, device: torch.device | str = "cpu") -> I3D:
    """The I3D that FVD is measured with, `i3d_torchscript.pt`; a script runs code of its own.

    Raises:
        WeightsMissing: no such file.
        WeightsMismatch: the file holds no torchscript.
    """
    if not path.is_file():
        raise WeightsMissing(f"{path} is not there; run `latentsync download eval`")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # the file won't become another
            return torch.jit.load(str(path), map_location=device).eval()
    except RuntimeError as error:
        raise WeightsMismatch(
            f"{path} is not the published I3D; delete it and run `latentsync download eval`"
        ) from error


def inception_features(net: Inception, frames: Stack) -> FloatArray:
    """Frames (n, H, W, 3) uint8 RGB of any side -> (n, 2048) float32, for FID.

    Resized bilinearly to 299 px without antialiasing, as pytorch-fid does,
    https://github.com/mseitzer/pytorch-fid/blob/1232cd6/src/pytorch_fid/inception.py. (Whoever
    resizes otherwise gets other distances: https://arxiv.org/abs/2104.11222.)

    Raises:
        OptionError: frames of another form.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise OptionError(f"got frames {frames.dtype} of shape {frames.shape}; wanted (n, H, W, 3)")

    def look(batch: Tensor) -> Tensor:
        small = F.interpolate(batch / 255, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        return net(2 * small - 1)

    return _looked(look, frames.transpose(0, 3, 1, 2), _device(net), BATCH, WIDTH)


def i3d_features(net: I3D, clips: Stack) -> FloatArray:
    """Windows (b, t, H, W, 3) uint8 RGB of any side -> (b, 400) float32, for FVD; t is mostly 16.

    The net scales and resizes what it is given itself, called as in
    https://github.com/universome/stylegan-v/blob/1f630af/src/metrics/frechet_video_distance.py.

    LatentSync's own evaluation leaves values in 0..1, where the net was trained on [-1, 1], and
    sees frames 20 to 35 of each clip; its distances are much smaller and can't be compared.
    https://github.com/bytedance/LatentSync/blob/a229c39/eval/eval_fvd.py

    Raises:
        OptionError: clips of another form.
    """
    _check_clips(clips)

    def look(batch: Tensor) -> Tensor:
        return torch.as_tensor(net(batch, rescale=True, resize=True, return_features=True))

    return _looked(look, clips.transpose(0, 4, 1, 2, 3), _device(net), CLIP_BATCH, I3D_WIDTH)


def videomae_features(net: "VideoMAE", clips: Stack) -> FloatArray:
    """Windows (b, 16, H, W, 3) uint8 RGB of any side -> (b, 1408) float32, for FVD-VideoMAE.

    Not FVD: another net (the one of TREPA, `nets.loading.load_videomae`) gives other numbers.
    It sees motion where I3D sees single frames: https://arxiv.org/abs/2404.12391.

    Raises:
        OptionError: clips of another form, or of another number of frames than the net's.
    """
    _check_clips(clips)
    side, wanted = net.config.image_size, net.config.num_frames
    if clips.shape[1] != wanted:
        raise OptionError(f"got windows of {clips.shape[1]} frames; VideoMAE takes {wanted}")

    def look(batch: Tensor) -> Tensor:
        flat = batch.transpose(1, 2).flatten(0, 1) / 255
        small = F.interpolate(flat, size=(side, side), mode="bilinear", align_corners=False)
        return net(small.unflatten(0, (-1, wanted)).transpose(1, 2))

    width = net.config.hidden_size
    return _looked(look, clips.transpose(0, 4, 1, 2, 3), _device(net), CLIP_BATCH, width)


def windows(frames: Iterable[Frame]) -> Iterator[NDArray[np.uint8]]:
    """Stretches of 16 consecutive frames, (16, H, W, 3), one after the other.

    What is over at the end is left out; one window is held at a time.
    """
    rest = iter(frames)
    while len(batch := list(islice(rest, WINDOW))) == WINDOW:
        yield np.stack(batch)


def _looked(
    look: Callable[[Tensor], Tensor],
    pictures: Stack,
    device: torch.device,
    batch: int,
    width: int,
) -> FloatArray:
    """What a net makes of channels-first pictures, a few at a time: (n, width) float32."""
    found = [np.empty((0, width), np.float32)]
    with torch.inference_mode():
        for i in range(0, len(pictures), batch):
            few = torch.from_numpy(np.ascontiguousarray(pictures[i : i + batch]))
            found.append(look(few.to(device).float()).float().cpu().numpy())
    return np.concatenate(found)


def _device(net: torch.nn.Module) -> torch.device:
    first = next(net.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _check_clips(clips: Stack) -> None:
    if clips.ndim != 5 or clips.shape[4] != 3 or clips.dtype != np.uint8:
        raise OptionError(
            f"got clips {clips.dtype} of shape {clips.shape}; wanted uint8 (b, t, H, W, 3)"
        )
