"""The metrics that `latentsync evaluate` knows, by name; those of pictures are here.

The arithmetic lies in the files beside this one; here it is asked in batches, as a clip passes by.
See metric.py.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from latentsync.errors import InputError, OptionError
from latentsync.evaluation import features, identity, landmarks
from latentsync.evaluation import image_quality as pictures
from latentsync.evaluation.clips import EvaluatedClip, FramePair
from latentsync.evaluation.frechet import Moments, frechet_distance
from latentsync.evaluation.image_quality import compared
from latentsync.evaluation.metric import Figure, Metric, Setup
from latentsync.evaluation.mouth_net import CROP
from latentsync.evaluation.nets import loading
from latentsync.evaluation.nets.lpips import LPIPS
from latentsync.evaluation.sync_metrics import (
    LipMetrics,
    SyncConfidence,
    SyncLocal,
    SyncNetAccuracy,
    why_no_truth,
)
from latentsync.faces.align import face_of
from latentsync.runtime.devices import is_cuda
from latentsync.types import Box, Face, FloatArray, Frame

__all__ = ["METRICS", "lpips_distance"]

Stack = NDArray[np.uint8]
REGIONS = ("frame", "face")


def _both(
    name: str, unit: str, better: Literal["higher", "lower"], what: str
) -> tuple[Figure, ...]:
    where = {"frame": "the whole frame", "face": f"the face, aligned in {CROP} px"}
    return tuple(
        Figure(f"{name}_{region}", unit, better, f"{what} of {where[region]}") for region in REGIONS
    )


@dataclass
class _Pending:
    """Pictures that wait for their batch."""

    indices: list[int] = field(default_factory=list)
    pictures: list[Frame] = field(default_factory=list)
    truth: list[Frame] = field(default_factory=list)

    def add(self, index: int, picture: Frame, truth: Frame) -> int:
        self.indices.append(index)
        self.pictures.append(picture)
        self.truth.append(truth)
        return len(self.indices)


class _Batched(Metric):
    """Sees both regions of both files, a batch at a time."""

    batch: ClassVar[int]

    def begin(self, clip: EvaluatedClip) -> None:
        super().begin(clip)
        self._pending = {region: _Pending() for region in REGIONS}

    def update(self, moment: FramePair) -> None:
        self._add("frame", moment.index, moment.whole, moment.whole_reference)
        if moment.affine is not None:
            self._add("face", moment.index, moment.face, moment.face_reference)

    def _add(self, region: str, index: int, picture: Frame, truth: Frame) -> None:
        if self._pending[region].add(index, picture, truth) == self.batch:
            self._flush(region)

    def _flush(self, region: str) -> None:
        waiting, self._pending[region] = self._pending[region], _Pending()
        if waiting.indices:
            both = np.stack(waiting.pictures), np.stack(waiting.truth)
            self._see(region, waiting.indices, *both)

    def _see(self, region: str, indices: list[int], pictures: Stack, truth: Stack) -> None:
        raise NotImplementedError


class _PerFrame(_Batched):
    """A value for each frame and region, pooled over the clip."""

    batch = 4
    name: ClassVar[str]

    def compare(self, pictures: Stack, truth: Stack) -> NDArray[np.floating]:
        """(n,) values of (n, H, W, 3)."""
        raise NotImplementedError

    def pool(self, curve: NDArray[np.float64]) -> float:
        return float(curve.mean())

    def _see(self, region: str, indices: list[int], pictures: Stack, truth: Stack) -> None:
        for index, value in zip(indices, self.compare(pictures, truth), strict=True):
            self.on_curve(f"{self.name}_{region}", index, float(value))

    def end(self) -> dict[str, float]:
        for region in REGIONS:
            self._flush(region)
        curves = {name: np.array(curve) for name, curve in self.curves.items()}
        return {name: self.pool(curve[~np.isnan(curve)]) for name, curve in curves.items()}


class Psnr(_PerFrame):
    name = "psnr"
    figures = _both(name, "dB", "higher", "peak signal-to-noise ratio")

    def compare(self, pictures_: Stack, truth: Stack) -> NDArray[np.floating]:
        return pictures.psnr_curve(pictures_, truth)

    def pool(self, curve: NDArray[np.float64]) -> float:
        return pictures.pooled_psnr(curve)


class Ssim(_PerFrame):
    name = "ssim"
    figures = _both(name, "", "higher", "structural similarity")

    def compare(self, pictures_: Stack, truth: Stack) -> NDArray[np.floating]:
        return pictures.ssim_curve(pictures_, truth)


class Lpips(_PerFrame):
    name = "lpips"
    figures = _both(name, "", "lower", "LPIPS distance on VGG16")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        path = setup.weights / "auxiliary/vgg16-397923af.pth"
        self.net = loading.load_lpips(path, device=setup.device)

    def compare(self, pictures_: Stack, truth: Stack) -> NDArray[np.floating]:
        return lpips_distance(self.net, pictures_, truth)


class _Frechet(_Batched):
    """The distance between what two nets' features of all outputs and all references are like."""

    name: ClassVar[str]
    width: ClassVar[int]
    whole_set = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.sums = {
            region: [Moments.none(self.width), Moments.none(self.width)] for region in REGIONS
        }

    def features(self, stack: Stack) -> FloatArray:
        """(n, width) of a batch."""
        raise NotImplementedError

    def _see(self, region: str, indices: list[int], pictures: Stack, truth: Stack) -> None:  # noqa: ARG002
        for side, stack in enumerate((pictures, truth)):
            self.sums[region][side] += Moments.of(self.features(stack))

    def total(self) -> dict[str, tuple[float, int]]:
        return {
            f"{self.name}_{region}": (frechet_distance(*sums), sums[0].count)
            for region, sums in self.sums.items()
            if sums[0].count > 1
        }


class Fid(_Frechet):
    name, width, batch = "fid", 2048, 16
    figures = _both(name, "", "lower", "Frechet distance of Inception's features, of all clips,")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        path = setup.weights / "auxiliary/pt_inception-2015-12-05-6726825d.pth"
        self.net = features.load_inception(path, setup.device)

    def features(self, stack: Stack) -> FloatArray:
        return features.inception_features(self.net, stack)

    def end(self) -> dict[str, float]:
        for region in REGIONS:
            self._flush(region)
        return {}


class _OfWindows(_Frechet):
    batch = 16  # frames in a window; what is left of a clip is no window

    def _add(self, region: str, index: int, picture: Frame, truth: Frame) -> None:
        waiting = self._pending[region].indices
        if waiting and waiting[-1] != index - 1:  # a window is unbroken
            self._pending[region] = _Pending()
        super()._add(region, index, picture, truth)


class Fvd(_OfWindows):
    name, width = "fvd", 400
    figures = _both(name, "", "lower", "Frechet distance of I3D's features, of all clips,")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.net = features.load_i3d(setup.weights / "auxiliary/i3d_torchscript.pt", setup.device)

    def features(self, stack: Stack) -> FloatArray:
        return features.i3d_features(self.net, stack[None])


class FvdVideoMae(_OfWindows):
    name, width = "fvd_videomae", 1408
    figures = _both(name, "", "lower", "Frechet distance of VideoMAE's features, of all clips,")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        path = setup.weights / "auxiliary/vit_g_hybrid_pt_1200e_ssv2_ft.pth"
        self.net = loading.load_videomae(path, device=setup.device)

    def features(self, stack: Stack) -> FloatArray:
        return features.videomae_features(self.net, stack[None])


class _OfFace(Metric):
    """What nets say of the face in both files: its curves, and the mean of each."""

    needs_face = True

    def compare(self, moment: FramePair, face: Face) -> dict[str, float]:
        """The values of a frame, by figure; the face is at the same place in both."""
        raise NotImplementedError

    def update(self, moment: FramePair) -> None:
        if moment.affine is not None:
            for name, value in self.compare(moment, face_of(moment.affine, CROP)).items():
                self.on_curve(name, moment.index, value)

    def end(self) -> dict[str, float]:
        return {name: float(np.nanmean(curve)) for name, curve in self.curves.items()}


class Lmd(_OfFace):
    figures = (
        Figure("lmd", "px", "lower", "lips' landmarks to the reference's, of one sound"),
        Figure("lmd_norm", "", "lower", "the same, in sizes of the face"),
    )

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.detector = landmarks.mouth_finder(setup.detector)

    def begin(self, clip: EvaluatedClip) -> None:
        super().begin(clip)
        if why := why_no_truth(clip):
            raise InputError(why)

    def compare(self, moment: FramePair, face: Face) -> dict[str, float]:
        frames = (moment.whole, moment.whole_reference)
        mouths = [self.detector.mouth(frame, face)[None] for frame in frames]
        distance = float(landmarks.landmark_distance(*mouths)[0])
        _, top, _, bottom = face.box
        return {"lmd": distance, "lmd_norm": distance / (bottom - top)}


class IdentitySimilarity(_OfFace):
    figures = (Figure("identity", "", "higher", "ArcFace's cosine to the reference's face"),)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        gpu = is_cuda(torch.device(setup.device))
        self.net = identity.ArcFace(setup.weights / identity.ARCFACE_FILE, gpu=gpu)

    def compare(self, moment: FramePair, face: Face) -> dict[str, float]:
        frames = (moment.whole, moment.whole_reference)
        look, truth = (self.net.embed(frame, face)[None] for frame in frames)
        return {"identity": identity.identity_similarity(look, truth)}


class Flicker(Metric):
    figures = (
        Figure("flicker", "", "lower", "trembling of what stands still; 1: as the reference"),
    )
    needs_face = True

    def begin(self, clip: EvaluatedClip) -> None:
        super().begin(clip)
        self.sum = pictures.FlickerAccumulator()

    def update(self, moment: FramePair) -> None:
        if moment.affine is not None:
            self.sum.add(moment.face, moment.face_reference)

    def end(self) -> dict[str, float]:
        return {"flicker": self.sum.value}


METRICS: dict[str, type[Metric]] = {
    "psnr": Psnr,
    "ssim": Ssim,
    "lpips": Lpips,
    "fid": Fid,
    "fvd": Fvd,
    "fvd_videomae": FvdVideoMae,
    "lmd": Lmd,
    "identity": IdentitySimilarity,
    "flicker": Flicker,
    "sync": SyncConfidence,
    "sync_local": SyncLocal,
    "stable": SyncNetAccuracy,
    "lips": LipMetrics,
}
"""By the names that `--metrics` takes, in the order in which they are reported."""


LEAST_SIDE = 16  # px; what four poolings leave one pixel of
BATCH = 8  # pictures; VGG16's first layers hold 64 channels at full size


def lpips_distance(
    net: LPIPS,
    pictures: NDArray[np.uint8],
    truth: NDArray[np.uint8],
    region: Box | None = None,
) -> FloatArray:
    """How different each picture is from its truth in `region`: 0 is equal, 1 is as good as all.

    https://arxiv.org/abs/1801.03924 on VGG16, version 0.1. Pictures are looked at in their own
    size, so compare figures of one size only.

    Args:
        net: by `latentsync.evaluation.nets.loading.load_lpips`.
        pictures, truth: (n, H, W, 3) uint8 RGB.

    Returns:
        (n,), one a frame.

    Raises:
        OptionError: stacks of different shapes, or less than 16 x 16 px of them.
    """
    a, b = compared(pictures, truth, region)
    if min(a.shape[1:3]) < LEAST_SIDE:
        raise OptionError(
            f"LPIPS was asked of {a.shape[2]} x {a.shape[1]} px; it needs {LEAST_SIDE} x "
            f"{LEAST_SIDE}: measure larger crops"
        )
    like = next(net.parameters())
    found = []
    with torch.inference_mode():
        for i in range(0, len(a), BATCH):
            both = np.stack([a[i : i + BATCH], b[i : i + BATCH]]).transpose(0, 1, 4, 2, 3)
            x, y = torch.from_numpy(both).to(like) / 127.5 - 1
            found.append(net(x, y).cpu().numpy())
    return np.concatenate(found)
