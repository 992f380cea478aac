"""One group of frames: cut the faces out, let the network draw the mouths, paste the faces back."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from latentsync import align, diffusion
from latentsync.blend import match_colour, mouth_ring
from latentsync.errors import LatentSyncError
from latentsync.mask import keep_mask, paste_share
from latentsync.options import Options
from latentsync.reporter import Reporter
from latentsync.types import Box, FaceTrack, FloatArray, Frame, Segment
from latentsync.weights import Nets

__all__ = ["Painter", "Picture"]


class Picture(Protocol):
    """A frame that can be looked at and painted on: `media.VideoFrame`."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    def rgb(self, box: Box | None = None) -> Frame: ...
    def pasted(self, box: Box, rgb: Frame) -> "Picture": ...


class Painter:
    """Paints one group after another, by one call's options and from one noise map.

    A source frame shown again in the next group (a turn, a still picture) is encoded once. With a
    sampled posterior each showing has noise of its own, so nothing is kept then.
    """

    def __init__(self, nets: Nets, options: Options, seed: int, reporter: Reporter) -> None:
        self._nets, self._options, self._reporter = nets, options, reporter
        self._side = nets.config.resolution
        self._like = nets.unet.conv_in.weight  # what goes into the nets has its device and dtype
        draw = diffusion.seeded_draw(seed)
        self._noise = draw(nets.vae.latent_shape(self._side)).to(self._like)
        self._draw = draw if options.vae_posterior == "sample" else None
        self._mask = torch.from_numpy(keep_mask(self._side)).to(self._like)
        self._ring = torch.from_numpy(mouth_ring(self._side))
        share = torch.from_numpy(paste_share(self._side))
        self._share = share if options.paste == "mouth" else None
        self._known: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._seam = diffusion.Seam(0, 0, [])

    def paint(
        self,
        shown: Sequence[Picture],
        segment: Segment,
        track: FaceTrack,
        audio: Tensor,
        keep: int = 0,
    ) -> Iterator[Picture]:
        """The pictures of a segment, speaking.

        Args:
            shown: its source frames, in the order of the output.
            audio: (f, tokens, width), speech at each of them.
            keep: of its last frames, how many the next segment gives.

        Raises:
            LatentSyncError: the network's output is not finite.
        """
        affines = [track.affine[i] for i in segment.source]
        with self._reporter.timed("network"):
            try:
                crops = self._speak(shown, segment, affines, audio, keep)
            except torch.OutOfMemoryError as error:
                raise LatentSyncError(
                    f"{self._like.device} has too little memory for {len(shown)} frames of "
                    f"{self._side} px in {self._like.dtype}; free some, use dtype float16, or use "
                    "the smaller model v1.5"
                ) from error
        drawn = list(zip(shown, crops, affines, segment.strength, strict=True))
        for picture, crop, affine, strength in drawn[: len(drawn) - keep]:
            with self._reporter.timed("paste"):
                pasted = self._paste(picture, crop, affine, float(strength))
            yield pasted

    @torch.inference_mode()
    def _speak(
        self,
        shown: Sequence[Picture],
        segment: Segment,
        affines: list[FloatArray],
        audio: Tensor,
        keep: int,
    ) -> Tensor:
        """(f, 3, R, R) float32 crops on the CPU, about [-1, 1], with a mouth that speaks."""
        pixels, latents = self._encoded(shown, segment, affines)
        self._seam = diffusion.Seam(segment.shared, keep, self._seam.steps)
        denoised = diffusion.denoise(
            self._nets.unet,
            self._noise,
            self._mask,
            latents,
            audio.to(self._like),
            steps=self._options.effort.steps,
            guidance_scale=self._options.guidance_scale,
            before_step=self._reporter.check,
            seam=self._seam,
        )
        crops = diffusion.decode(self._nets.vae, denoised, pixels, self._mask).float().cpu()
        if self._options.color_match:
            hole = 1 - self._mask.float().cpu()
            originals = pixels.float().cpu()
            pairs = zip(crops, originals, strict=True)
            crops = torch.stack([match_colour(*pair, self._ring, hole) for pair in pairs])
        if not torch.isfinite(crops).all():
            raise LatentSyncError(
                f"frames {segment.start}-{segment.stop - 1} came out not finite in "
                f"{self._noise.dtype}; use dtype float32, and check the weights"
            )
        return crops

    def _encoded(
        self, shown: Sequence[Picture], segment: Segment, affines: list[FloatArray]
    ) -> tuple[Tensor, diffusion.Latents]:
        if self._draw is not None:
            pixels = self._pixels(zip(shown, affines, strict=True))
            return pixels, diffusion.encode(self._nets.vae, pixels, self._mask, self._draw)
        indices = [int(i) for i in segment.source]
        seen = zip(indices, shown, affines, strict=True)
        fresh = {i: (picture, affine) for i, picture, affine in seen if i not in self._known}
        if fresh:
            pixels = self._pixels(iter(fresh.values()))
            new = diffusion.encode(self._nets.vae, pixels, self._mask)
            parts = zip(pixels, new.masked, new.reference, strict=True)
            self._known |= dict(zip(fresh, parts, strict=True))
        self._known = {i: self._known[i] for i in indices}  # only this group's are kept
        pixels, masked, reference = (
            torch.stack(part) for part in zip(*(self._known[i] for i in indices), strict=True)
        )
        return pixels, diffusion.Latents(masked, reference)

    def _pixels(self, faces: Iterator[tuple[Picture, FloatArray]]) -> Tensor:
        """(f, 3, R, R) in [-1, 1]: the faces, cut out of their frames."""
        crops = torch.stack([torch.from_numpy(self._cut(*face)) for face in faces])
        return (crops.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1).to(self._like)

    def _cut(self, picture: Picture, affine: FloatArray) -> Frame:
        frame = (picture.width, picture.height)
        box = align.face_box(affine, self._side, *frame)
        region = picture.rgb(box)
        return align.cut_face(region, box, affine, self._side, frame, truncate=self._truncate)

    def _paste(
        self, picture: Picture, crop: Tensor, affine: FloatArray, strength: float
    ) -> Picture:
        frame = (picture.width, picture.height)
        box = align.face_box(affine, self._side, *frame)
        region = picture.rgb(box)
        share = self._share
        if strength < 1:
            share = strength * (torch.ones_like(crop[0]) if share is None else share)
        face = align.paste_face(
            region, box, crop, affine, frame, share=share, truncate=self._truncate
        )
        return picture.pasted(box, face)

    @property
    def _truncate(self) -> bool:
        return self._options.to_uint8 == "truncate"
