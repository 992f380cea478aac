"""The image metrics: PSNR, SSIM, LPIPS, flicker, FID and FVD."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from latentsync.diffusion.generator import to_float
from latentsync.errors import OptionError
from latentsync.evaluation import features
from latentsync.evaluation.clips import EvaluatedClip, FramePair
from latentsync.evaluation.frechet import Moments, frechet_distance
from latentsync.evaluation.image_quality import (
    FlickerAccumulator,
    compared,
    pooled_psnr,
    psnr_curve,
    ssim_curve,
)
from latentsync.evaluation.metric import Figure, Metric, Setup
from latentsync.evaluation.mouth_net import CROP
from latentsync.evaluation.nets import loading
from latentsync.evaluation.nets.inception import Inception
from latentsync.evaluation.nets.lpips import LPIPS
from latentsync.types import Box, FloatArray, Frame

__all__ = ["Fid", "Flicker", "Fvd", "FvdVideoMae", "Lpips", "Psnr", "Ssim", "lpips_distance"]

Stack = NDArray[np.uint8]  # (n, H, W, 3) RGB
REGIONS = {"frame": "the whole frame", "face": f"the face, aligned in {CROP} px"}
MIN_LPIPS_SIDE = 16  # px; four poolings leave one pixel of it
LPIPS_BATCH = 8  # images; VGG16's first layers hold 64 channels at full size


def _figures(
    name: str, unit: str, better: Literal["higher", "lower"], what: str
) -> tuple[Figure, ...]:
    return tuple(
        Figure(f"{name}_{region}", unit, better, f"{what} of {where}")
        for region, where in REGIONS.items()
    )


class _Batched(Metric):
    """A metric of both regions that processes `batch` frames at once."""

    name: ClassVar[str]
    batch: ClassVar[int]
    windows: ClassVar[bool] = False  # a batch is 16 consecutive frames, never fewer

    def begin(self, clip: EvaluatedClip) -> None:
        super().begin(clip)
        self._pending: dict[str, list[tuple[int, Frame, Frame]]] = {name: [] for name in REGIONS}

    def update(self, frames: FramePair) -> None:
        pairs = {"frame": (frames.whole, frames.whole_reference)}
        if frames.affine is not None:
            pairs["face"] = frames.face, frames.face_reference
        for region, (image, reference) in pairs.items():
            pending = self._pending[region]
            if self.windows and pending and pending[-1][0] != frames.index - 1:
                pending.clear()
            pending.append((frames.index, image, reference))
            if len(pending) == self.batch:
                self._flush(region)

    def _flush(self, region: str) -> None:
        if self._pending[region]:
            indices, images, references = zip(*self._pending[region], strict=True)
            self._pending[region].clear()
            self._process(region, indices, np.stack(images), np.stack(references))

    def _process(
        self, region: str, indices: tuple[int, ...], images: Stack, references: Stack
    ) -> None:
        raise NotImplementedError

    def end(self) -> dict[str, float]:
        for region in () if self.windows else REGIONS:
            self._flush(region)
        return {}


class _PerFrame(_Batched):
    """A value for each frame and region, pooled over the clip."""

    batch = 4
    compare: Callable[[Stack, Stack], NDArray[np.floating]]  # (n,) values of n image pairs
    pool: Callable[..., Any] = staticmethod(np.mean)  # (n,) -> a number

    def _process(
        self, region: str, indices: tuple[int, ...], images: Stack, references: Stack
    ) -> None:
        for index, value in zip(indices, self.compare(images, references), strict=True):
            self.add_to_curve(f"{self.name}_{region}", index, float(value))

    def end(self) -> dict[str, float]:
        super().end()
        curves = {name: np.array(curve) for name, curve in self.curves.items()}
        return {name: float(self.pool(curve[~np.isnan(curve)])) for name, curve in curves.items()}


class Psnr(_PerFrame):
    name = "psnr"
    figures = _figures(name, "dB", "higher", "peak signal-to-noise ratio")
    compare = staticmethod(psnr_curve)
    pool = staticmethod(pooled_psnr)


class Ssim(_PerFrame):
    name = "ssim"
    figures = _figures(name, "", "higher", "structural similarity")
    compare = staticmethod(ssim_curve)


class Lpips(_PerFrame):
    name = "lpips"
    figures = _figures(name, "", "lower", "LPIPS distance on VGG16")

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        path = setup.weights / "auxiliary/vgg16-397923af.pth"
        self.compare = partial(lpips_distance, loading.load_lpips(path, device=setup.device))


class _Frechet(_Batched):
    """The Frechet distance between the features of all outputs and those of all references."""

    width: ClassVar[int]  # of a feature
    whole_set = True

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        none = Moments.none(self.width)
        self.moments = {region: [none, none] for region in REGIONS}  # outputs', references'
        self.features = self.load(setup)

    def load(self, setup: Setup) -> Callable[[Stack], FloatArray]:
        """Load the net; the function returned gives (n, width) features of a batch."""
        raise NotImplementedError

    def _process(
        self,
        region: str,
        indices: tuple[int, ...],  # noqa: ARG002
        images: Stack,
        references: Stack,
    ) -> None:
        for side, stack in enumerate((images, references)):
            batch = stack[None] if self.windows else stack
            self.moments[region][side] += Moments.of(self.features(batch))

    def total(self) -> dict[str, tuple[float, int]]:
        return {
            f"{self.name}_{region}": (frechet_distance(*moments), moments[0].count)
            for region, moments in self.moments.items()
            if moments[0].count > 1
        }


class Fid(_Frechet):
    name, width, batch = "fid", 2048, 16
    figures = _figures(name, "", "lower", "Frechet distance of Inception's features, of all clips,")

    def load(self, setup: Setup) -> Callable[[Stack], FloatArray]:
        path = setup.weights / "auxiliary/pt_inception-2015-12-05-6726825d.pth"
        net = loading.load_net(Inception, path, device=setup.device)
        return partial(features.inception_features, net)


class Fvd(_Frechet):
    name, width, batch, windows = "fvd", 400, features.WINDOW, True
    figures = _figures(name, "", "lower", "Frechet distance of I3D's features, of all clips,")

    def load(self, setup: Setup) -> Callable[[Stack], FloatArray]:
        net = features.load_i3d(setup.weights / "auxiliary/i3d_torchscript.pt", setup.device)
        return partial(features.i3d_features, net)


class FvdVideoMae(_Frechet):
    name, width, batch, windows = "fvd_videomae", 1408, features.WINDOW, True
    figures = _figures(name, "", "lower", "Frechet distance of VideoMAE's features, of all clips,")

    def load(self, setup: Setup) -> Callable[[Stack], FloatArray]:
        path = setup.weights / "auxiliary/vit_g_hybrid_pt_1200e_ssv2_ft.pth"
        net = loading.load_videomae(path, device=setup.device)
        return partial(features.videomae_features, net)


class Flicker(Metric):
    needs_face = True
    figures = (
        Figure("flicker", "", "lower", "trembling of what stands still; 1: as the reference"),
    )

    def begin(self, clip: EvaluatedClip) -> None:
        super().begin(clip)
        self.accumulator = FlickerAccumulator()

    def update(self, frames: FramePair) -> None:
        if frames.affine is not None:
            self.accumulator.add(frames.face, frames.face_reference)

    def end(self) -> dict[str, float]:
        return {"flicker": self.accumulator.value}


def lpips_distance(
    net: LPIPS, images: Stack, references: Stack, region: Box | None = None
) -> FloatArray:
    """Measure how different each image looks from its reference: 0 is equal, about 1 unrelated.

    https://arxiv.org/abs/1801.03924 on VGG16, version 0.1. Images are not resized, so compare only
    figures of one size.

    Args:
        net: by `latentsync.evaluation.nets.loading.load_lpips`.
        images, references: (n, H, W, 3) uint8 RGB.
        region: px, default the whole image.

    Returns:
        (n,), one for each image.

    Raises:
        OptionError: the stacks differ in shape, or there are less than 16 x 16 px of them.
    """
    a, b = compared(images, references, region)
    if min(a.shape[1:3]) < MIN_LPIPS_SIDE:
        raise OptionError(
            f"LPIPS got {a.shape[2]} x {a.shape[1]} px; it needs {MIN_LPIPS_SIDE} x "
            f"{MIN_LPIPS_SIDE}: measure larger crops"
        )
    like = next(net.parameters())
    found = []
    with torch.inference_mode():
        for i in range(0, len(a), LPIPS_BATCH):
            both = torch.from_numpy(np.stack([a[i : i + LPIPS_BATCH], b[i : i + LPIPS_BATCH]]))
            x, y = to_float(both).to(like)
            found.append(net(x, y).cpu().numpy())
    return np.concatenate(found)
