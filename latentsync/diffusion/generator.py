"""Generates mouth crops from face crops and speech: the part of a run that needs the nets.

Everything else of a run is on either side of it, so this may also happen on other machines:
`CropGenerator` is what a compositor asks for, `Network` does it here, an `Engine` anywhere else.
"""

import logging
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor

from latentsync.diffusion import memory, sampling
from latentsync.diffusion.attention import attention_backend
from latentsync.diffusion.config import PRESETS
from latentsync.diffusion.unet import UNetConfig
from latentsync.diffusion.weights import Nets, Offload, load_nets
from latentsync.errors import LatentSyncError, OptionError
from latentsync.faces.mask import keep_mask
from latentsync.options import Options
from latentsync.runtime import devices, disk_cache
from latentsync.runtime.frame_cache import FrameCache
from latentsync.runtime.progress import RunContext
from latentsync.types import IntArray

__all__ = [
    "CropBatch",
    "CropGenerator",
    "Engine",
    "Network",
    "default_batch_size",
    "ready_nets",
    "to_float",
    "to_uint8",
]

log = logging.getLogger(__name__)

Key = TypeVar("Key")

LATENT_BYTES = 128 * 2**20  # kept for frames shown again: 80 s at 512 px in float16
MAX_GROUPS = 4  # at once, unless asked for more: their frames, at 4K 0.8 GB, wait together


@dataclass(frozen=True)
class CropBatch:
    """Neighbouring groups of frames, g of f frames each, that the network sees at once."""

    crops: Tensor  # (g, f, R, R, 3) uint8
    speech: Tensor  # (g, f, tokens, width) float32
    source: IntArray  # (g * f,) the source frame of each crop
    start: int  # first frame of the output
    stop: int  # the one after the last
    shared: int = 0  # of the first frames, how many the group before gives
    kept: int = 0  # of the last frames, how many the next group gives


class CropGenerator(Protocol):
    """Generates the mouth crops of one face, batch by batch."""

    @property
    def batch(self) -> int:
        """Number of groups in one `CropBatch`."""

    def __call__(
        self, batches: Generator[tuple[Key, CropBatch | None], None, None]
    ) -> Generator[tuple[Key, Tensor | None], None, None]:
        """Generate each batch's crops, in order: (g, f, R, R, 3) uint8 on the CPU; None for None.

        With published resampling they are (g, f, 3, R, R) float32, about [-1, 1].

        Args:
            batches: each with a key of the caller's, which comes back beside its crops.

        Raises:
            LatentSyncError: the network's output is not finite, or memory doesn't suffice.
        """


class Engine(Protocol):
    """Runs the generator in other processes or on other machines: `latentsync.diffusion.ray`."""

    def generator(self, options: Options, uses: IntArray, context: RunContext) -> CropGenerator:
        """Make the generator of one face of a run; needs `is_order_independent(options)`."""

    @property
    def device(self) -> str:
        """Its device, in words."""

    @property
    def dtype(self) -> str:
        """Its precision."""


def is_order_independent(options: Options) -> bool:
    """Whether every group comes out the same wherever and in whichever order it is generated."""
    return not options.overlap and options.vae_posterior == "mean"


def ready_nets(
    model: str | Path = "v1.6",
    *,
    weights: Path | str | None = None,
    device: str | None = None,
    dtype: str | None = None,
    attention: Literal["native", "xformers"] = "native",
    offload: Offload = "auto",
    compile: bool = False,  # noqa: A002 - what torch and its users call it
) -> Nets:
    """A model's nets on one device, with the kernels asked for; all is as `LipSync.load` says."""
    attend = attention_backend(attention)
    size = PRESETS[str(model)].unet if str(model) in PRESETS else None
    place, precision = devices.choose(device, dtype, large=size == UNetConfig())
    # Said before the long part: a container's setup log may lose what is said last.
    log.info("loading model %s on %s in %s, %s attention", model, place, precision, attention)
    if compile and offload == "sequential":
        raise OptionError("compile with offload 'sequential'; kernels want the weights in place")
    fitting: Offload = "none" if compile else offload
    nets = load_nets(model, folder=weights, device=place, dtype=precision, offload=fitting)
    nets.unet.set_attention(attend)
    for net in (nets.unet, nets.vae):
        devices.channels_last(net)
    if compile:
        side = nets.vae.latent_shape(nets.config.resolution)[1]
        like = nets.unet.conv_in.weight
        groups = default_batch_size(nets)
        rows = {1, 2, groups, 2 * groups}  # with guidance twice as many
        calls = (memory.unet_call(nets.config.unet, side, like, n) for n in sorted(rows))
        devices.compile_for(nets.unet, *calls)
    return nets


class Network:
    """Generates the crops of one face of one run with nets of this process.

    A source frame that is shown again (a turn, a loop, a still picture) is encoded once, as long as
    there is room to keep it. With a sampled posterior each showing has noise of its own, so latents
    aren't kept then.

    Args:
        uses: (n,) how often each source frame will be used.
        context: asked before every denoising step whether to stop.
        cache: latents of source frames from runs before.
    """

    def __init__(
        self,
        nets: Nets,
        options: Options,
        uses: IntArray,
        context: RunContext | None = None,
        cache: disk_cache.LatentCache | None = None,
    ) -> None:
        self._nets, self._options, self._cache = nets, options, cache
        self._context = context or RunContext()
        side = nets.config.resolution
        self._like = nets.unet.conv_in.weight  # what goes into the nets has its device and dtype
        draw = sampling.seeded_draw(options.seed)
        self._noise = draw(nets.vae.latent_shape(side)).to(self._like)
        self._posterior_noise = draw if options.vae_posterior == "sample" else None
        self._mask = torch.from_numpy(keep_mask(side)).to(self._like)
        self._latents: FrameCache[Tensor] = FrameCache(
            uses, 0 if self._posterior_noise else LATENT_BYTES
        )
        self._overlap = sampling.GroupOverlap()
        self.batch = 1
        if is_order_independent(options):
            self.batch = options.batch or default_batch_size(nets)

    def __call__(
        self, batches: Generator[tuple[Key, CropBatch | None], None, None]
    ) -> Generator[tuple[Key, Tensor | None], None, None]:
        """As `CropGenerator` says."""
        for key, batch in batches:
            faces = None
            if batch is not None:
                with self._context.timed("network"):
                    faces = self.generate(batch)
            del batch  # else it would be held while the next groups are read
            yield key, faces
            del key, faces

    @torch.inference_mode()
    def generate(self, batch: CropBatch) -> Tensor:
        """Generate the crops of one batch, as `CropGenerator` says."""
        try:
            return self._generate(batch)
        except torch.OutOfMemoryError as error:
            groups, frames = batch.crops.shape[:2]
            raise LatentSyncError(
                f"{self._like.device} has too little memory for {groups} x {frames} frames of "
                f"{self._nets.config.resolution} px in {self._like.dtype}; free some, use batch 1, "
                "dtype float16, or the smaller model v1.5"
            ) from error

    def _generate(self, batch: CropBatch) -> Tensor:
        pixels = to_float(batch.crops.to(self._like.device)).to(self._like)
        latents = self._encoded(batch, pixels)
        denoised = sampling.denoise(
            self._nets.unet,
            self._noise,
            self._mask,
            latents,
            batch.speech.to(self._like),
            self._options.effort,
            guidance_scale=self._options.guidance_scale,
            before_step=self._context.check,
            after_step=self._overlap.between(batch.shared, batch.kept),
        )
        faces = sampling.decode(
            self._nets.vae, denoised.flatten(0, 1), pixels.flatten(0, 1), self._mask
        ).float()
        if not torch.stack(faces.aminmax()).isfinite().all():  # NaN is both least and most
            raise LatentSyncError(
                f"frames {batch.start}-{batch.stop - 1} came out not finite in "
                f"{self._noise.dtype}; use dtype float32, and check the weights"
            )
        faces = faces if self._options.resampling == "published" else to_uint8(faces)
        return faces.cpu().unflatten(0, batch.crops.shape[:2])

    def _encoded(self, batch: CropBatch, pixels: Tensor) -> sampling.Latents:
        """Of (g, f, 4, h, w)."""
        flat, groups = pixels.flatten(0, 1), (len(pixels), -1)
        if self._posterior_noise is not None:
            new = sampling.encode(self._nets.vae, flat, self._mask, self._posterior_noise)
            both = torch.stack([new.masked, new.reference], dim=1)
            return _latents(both.unflatten(0, groups))
        indices = batch.source.tolist()
        known = {i: found for i in indices if (found := self._remembered(i)) is not None}
        fresh = {i: place for place, i in enumerate(indices) if i not in known}
        if fresh:
            new = sampling.encode(self._nets.vae, flat[[*fresh.values()]], self._mask)
            both = torch.stack([new.masked, new.reference], dim=1)
            known |= dict(zip(fresh, both, strict=True))
            if self._cache:
                for i in fresh:
                    self._cache.put(i, known[i])
        for i in indices:
            self._latents.shown(i, known[i])
        return _latents(torch.stack([known[i] for i in indices]).unflatten(0, groups))

    def _remembered(self, index: int) -> Tensor | None:
        """(2, 4, h, w) masked and reference latents of a source frame, if they are known."""
        found = self._latents.get(index)
        if found is None and self._cache:
            return self._cache.get(index, (2, *self._noise.shape))
        return found


def default_batch_size(nets: Nets) -> int:
    """How many groups the network sees at once: what memory allows, and 1 on a CPU."""
    like = nets.unet.conv_in.weight
    if like.device.type == "cpu":
        return 1
    side, free = nets.vae.latent_shape(nets.config.resolution)[1], devices.free_memory(like.device)
    fitting = memory.groups_that_fit(nets.config.unet, side, like.dtype, free, guided=True)
    return min(fitting, MAX_GROUPS)


def to_float(crops: Tensor) -> Tensor:
    """(..., R, R, 3) uint8 -> (..., 3, R, R) float32 in [-1, 1]."""
    return crops.movedim(-1, -3).contiguous().float().div_(127.5).sub_(1)


def to_uint8(faces: Tensor) -> Tensor:
    """(..., 3, R, R) about [-1, 1] -> (..., R, R, 3) uint8, contiguous."""
    rounded = faces.mul(127.5).add_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return rounded.movedim(-3, -1).contiguous()


def _latents(both: Tensor) -> sampling.Latents:
    """Of (..., 2, 4, h, w): masked, reference."""
    return sampling.Latents(*both.unbind(-4))
