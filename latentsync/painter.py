"""One face through a run: cut it out, let the network draw its mouth, paste it back.

    cut     frames -> groups of 16, with the crops of their face
    speak   the network: crops and speech -> crops with a new mouth, restored where that is asked
    paste   the frames with these in them, one by one

Each is an iterator over the one before, so that each may run in a thread of its own.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from latentsync import align, as_published, cache, diffusion, timeline, types
from latentsync.blend import match_colour, mouth_ring
from latentsync.devices import free_memory, groups_that_fit
from latentsync.errors import LatentSyncError
from latentsync.kept import Kept
from latentsync.mask import keep_mask, paste_share
from latentsync.occlusion import Occluder
from latentsync.options import Options
from latentsync.reporter import Reporter
from latentsync.speech import SpeechFeatures
from latentsync.types import Box, FaceTrack, FloatArray, Frame, Segment
from latentsync.upscale import Restorer, Upscaler
from latentsync.weights import Nets

__all__ = ["Group", "Painter", "Picture", "Role"]

# Of what is kept of frames that will be shown again, at 512 px: crops of half a minute, on the CPU,
# and latents of a minute and a half, where the nets are.
CROP_BYTES, LATENT_BYTES = 640 * 2**20, 128 * 2**20


MOST_GROUPS = 4  # at once, unless asked for more: their frames, at 4K 0.8 GB, wait together


class Picture(types.Picture, Protocol):
    """A frame that can be looked at and painted on: `media.VideoFrame`."""

    def pasted(self, box: Box, rgb: Frame, weight: Frame | None = None) -> "Picture": ...


@dataclass(frozen=True)
class Role:
    """One face of a run: where it is, when it speaks, and what it hears."""

    track: FaceTrack
    plan: list[Segment]
    speech: SpeechFeatures


@dataclass(frozen=True)
class Group:
    """A segment's frames, on their way through the network."""

    segment: Segment
    shown: list[Picture]
    keep: int  # of its last frames, how many the next segment gives
    crops: Tensor | None  # (f, R, R, 3) uint8; None: nobody speaks

    @property
    def fresh(self) -> slice:
        """The frames that no other group gives."""
        return slice(0, len(self.shown) - self.keep)


class Painter:
    """Paints one face through one run, by one call's options and from one noise map.

    A source frame that is shown again (a turn, a loop, a still picture) is cut out and encoded
    once, as long as there is room to keep it. With a sampled posterior each showing has noise of
    its own, so latents aren't kept then.
    """

    def __init__(
        self,
        nets: Nets,
        role: Role,
        options: Options,
        reporter: Reporter,
        known: cache.Latents | None = None,
        occluder: Occluder | None = None,
        restorer: Restorer | None = None,
    ) -> None:
        self._nets, self._role, self._options, self._reporter = nets, role, options, reporter
        self._occluder = occluder
        self._side = nets.config.resolution
        self._upscaler = Upscaler(restorer, self._side, options) if restorer else None
        self._before = (-2, -1)  # the output frame restored last, and its source frame
        self._like = nets.unet.conv_in.weight  # what goes into the nets has its device and dtype
        draw = diffusion.seeded_draw(options.seed)
        self._noise = draw(nets.vae.latent_shape(self._side)).to(self._like)
        self._draw = draw if options.vae_posterior == "sample" else None
        self._mask = torch.from_numpy(keep_mask(self._side)).to(self._like)
        self._ring = torch.from_numpy(mouth_ring(self._side))
        self._hole = 1 - self._mask.float().cpu()
        share = torch.from_numpy(paste_share(self._side))
        self._share = share if options.paste == "mouth" else None
        self.batch = 1 if options.overlap or self._draw else options.batch or usual_batch(nets)
        drawn = [segment.source for segment in role.plan if not segment.passthrough]
        times = np.bincount(np.concatenate(drawn)) if drawn else np.zeros(0, np.int64)
        self._crops: Kept[Tensor] = Kept(times, CROP_BYTES)
        self._latents: Kept[Tensor] = Kept(times, 0 if self._draw else LATENT_BYTES)
        self._known = known
        self._seam = diffusion.Seam(0, 0, [])

    def cut(self, pictures: Generator[Picture, None, None]) -> Generator[Group, None, None]:
        """The run's frames, in the order of the output, in groups, with the face cut out.

        Here and below, who is closed closes what comes before it.
        """
        with closing(pictures):
            plan = self._role.plan
            held: list[Picture] = []  # what the next group shares
            for segment, after in zip(plan, [*plan[1:], None], strict=True):
                shown = held + list(islice(pictures, len(segment) - len(held)))
                keep = after.shared if after else 0
                held = shown[len(shown) - keep :]
                crops = None
                if not segment.passthrough:
                    with self._reporter.timed("cut"):
                        faces = zip(segment.source.tolist(), shown, strict=True)
                        crops = torch.stack([self._crop(*face) for face in faces])
                yield Group(segment, shown, keep, crops)
                del shown, crops  # else they would be held while the next group is read
            next(pictures, None)  # there is none, but now the stage before knows that it is done

    def speak(
        self, groups: Generator[Group, None, None]
    ) -> Generator[tuple[Group, Tensor | None], None, None]:
        """Each group, with crops that speak: (f, R, R, 3) uint8 on the CPU.

        As published they are (f, 3, R, R) float32, about [-1, 1], until they lie in the frame. With
        a restorer they are larger, and of the frames that no other group gives.

        Raises:
            LatentSyncError: the network's output is not finite, or memory doesn't suffice.
        """
        with closing(groups):
            for batch in self._batches(self._reporter.each("wait", groups)):
                if batch[0].crops is None:
                    yield from ((group, None) for group in batch)
                    continue
                with self._reporter.timed("network"):
                    try:
                        drawn = self._spoken(batch)
                    except torch.OutOfMemoryError as error:
                        raise LatentSyncError(
                            f"{self._like.device} has too little memory for {len(batch)} x "
                            f"{len(batch[0].shown)} frames of {self._side} px in "
                            f"{self._like.dtype}; free some, use batch 1, dtype float16, or the "
                            "smaller model v1.5"
                        ) from error
                last = drawn[-1][-1]
                self._reporter.show((_levels(last) if self._as_published else last).numpy())
                yield from map(self._upscaled, batch, drawn)

    def paste(
        self, drawn: Generator[tuple[Group, Tensor | None], None, None]
    ) -> Generator[Picture, None, None]:
        """The run's frames, in order, speaking."""
        with closing(drawn):
            for group, faces in drawn:
                if faces is None:
                    yield from group.shown[group.fresh]
                    continue
                for place, picture in enumerate(group.shown[group.fresh]):
                    with self._reporter.timed("paste"):
                        pasted = self._pasted(picture, group, place, faces[place])
                    yield pasted

    def _batches(self, groups: Iterator[Group]) -> Iterator[list[Group]]:
        """Neighbouring groups of equal length that the network sees at once."""
        for _, alike in groupby(groups, lambda g: (g.crops is None, len(g.shown))):
            while batch := list(islice(alike, self.batch)):
                yield batch

    @torch.inference_mode()
    def _spoken(self, batch: list[Group]) -> Tensor:
        """The crops of each group, as `speak` gives them."""
        first, last = batch[0], batch[-1]
        crops = torch.stack([group.crops for group in batch if group.crops is not None])
        pixels = _in_range(crops.to(self._like.device)).to(self._like)
        latents = self._encoded(batch, pixels)
        speech = [self._role.speech[g.segment.start : g.segment.stop] for g in batch]
        self._seam = diffusion.Seam(first.segment.shared, last.keep, self._seam.steps)
        denoised = diffusion.denoise(
            self._nets.unet,
            self._noise,
            self._mask,
            latents,
            torch.stack(speech).to(self._like),
            self._options.effort,
            guidance_scale=self._options.guidance_scale,
            before_step=self._reporter.check,
            seam=self._seam,
        )
        faces = diffusion.decode(
            self._nets.vae, denoised.flatten(0, 1), pixels.flatten(0, 1), self._mask
        ).float()
        if not torch.stack(faces.aminmax()).isfinite().all():  # NaN is both least and most
            raise LatentSyncError(
                f"frames {first.segment.start}-{last.segment.stop - 1} came out not finite in "
                f"{self._noise.dtype}; use dtype float32, and check the weights"
            )
        faces = faces if self._as_published else _levels(faces)
        return faces.cpu().unflatten(0, crops.shape[:2])

    def _upscaled(self, group: Group, faces: Tensor) -> tuple[Group, Tensor]:
        """The group with its crops, restored if there is a restorer."""
        if self._upscaler is None:
            return group, faces
        self._reporter.check()
        with self._reporter.timed("restore"):
            shown, source = group.shown[group.fresh], group.segment.source[group.fresh]
            drawn = torch.stack([self._matched(group, i, faces[i]) for i in range(len(shown))])
            affines = self._role.track.affine[source]
            fresh = self._apart(group.segment.start, int(source[0]))
            self._before = group.segment.start + len(shown) - 1, int(source[-1])
            return group, self._upscaler(shown, affines, drawn, fresh=fresh)

    def _apart(self, frame: int, source: int) -> bool:
        """Whether an output frame doesn't follow the one restored last, or in another shot."""
        last, shown = self._before
        cut = self._role.track.cut
        if frame != last + 1 or cut is None:
            return frame != last + 1
        return bool(timeline.new_shots(np.array([shown, source]), cut)[1])

    def _encoded(self, batch: list[Group], pixels: Tensor) -> diffusion.Latents:
        """Of (g, f, 4, h, w)."""
        flat, groups = pixels.flatten(0, 1), (len(batch), -1)
        if self._draw is not None:
            new = diffusion.encode(self._nets.vae, flat, self._mask, self._draw)
            both = torch.stack([new.masked, new.reference], dim=1)
            return _latents(both.unflatten(0, groups))
        indices = np.concatenate([group.segment.source for group in batch]).tolist()
        known = {i: found for i in indices if (found := self._remembered(i)) is not None}
        fresh = {i: place for place, i in enumerate(indices) if i not in known}
        if fresh:
            new = diffusion.encode(self._nets.vae, flat[[*fresh.values()]], self._mask)
            both = torch.stack([new.masked, new.reference], dim=1)
            known |= dict(zip(fresh, both, strict=True))
            if self._known:
                for i in fresh:
                    self._known.put(i, known[i])
        for i in indices:
            self._latents.shown(i, known[i])
        return _latents(torch.stack([known[i] for i in indices]).unflatten(0, groups))

    def _remembered(self, index: int) -> Tensor | None:
        """(2, 4, h, w) masked and reference latents of a source frame, if they are known."""
        found = self._latents.get(index)
        if found is None and self._known:
            return self._known.get(index, (2, *self._noise.shape))
        return found

    def _crop(self, index: int, picture: Picture) -> Tensor:
        """(R, R, 3) uint8: the face, cut out of its frame."""
        crop = self._crops.get(index)
        if crop is None:
            affine = self._role.track.affine[index]
            frame = (picture.width, picture.height)
            box = align.face_box(affine, self._side, *frame)
            region = picture.rgb(box)
            if self._as_published:
                cut = as_published.cut_face(region, box, affine, self._side, frame)
            else:
                cut = align.cut_face(region, box, affine, self._side)
            crop = torch.from_numpy(cut)
        self._crops.shown(index, crop)
        return crop

    def _pasted(self, picture: Picture, group: Group, place: int, face: Tensor) -> Picture:
        segment = group.segment
        affine: FloatArray = self._role.track.affine[segment.source[place]]
        frame = (picture.width, picture.height)
        share, strength = self._share, float(segment.strength[place])
        if self._upscaler is not None:
            share = self._upscaler.share(affine)
        else:
            face = self._matched(group, place, face)
        if strength < 1:
            share = strength * (torch.ones(self._side, self._side) if share is None else share)
        if self._occluder is not None and group.crops is not None:
            seen = self._occluder.visible(_in_range(group.crops[place])[None])[0]
            if share is not None and share.shape != seen.shape:
                seen = interpolate(seen[None, None], share.shape, mode="bilinear")[0, 0]
            share = seen if share is None else seen * share
        if not self._as_published:
            laid = align.paste_face(face.numpy(), affine, frame, share=share, resolution=self._side)
            return picture.pasted(*laid)
        box = align.face_box(affine, self._side, *frame)
        region = picture.rgb(box)
        pasted = as_published.paste_face(region, box, face, affine, frame, share=share)
        return picture.pasted(box, pasted)

    def _matched(self, group: Group, place: int, face: Tensor) -> Tensor:
        """A drawn crop, in the colours of its face where that is asked."""
        if not self._options.color_match or group.crops is None:
            return face
        pair = (face if self._as_published else _in_range(face), _in_range(group.crops[place]))
        matched = match_colour(*pair, self._ring, self._hole)
        return matched if self._as_published else _levels(matched)

    @property
    def _as_published(self) -> bool:
        return self._options.to_uint8 == "truncate"


def usual_batch(nets: Nets) -> int:
    """How many groups the network sees at once: what memory allows, and 1 on a CPU."""
    like = nets.unet.conv_in.weight
    if like.device.type == "cpu":
        return 1
    side, free = nets.vae.latent_shape(nets.config.resolution)[1], free_memory(like.device)
    fitting = groups_that_fit(nets.config.unet, side, like.dtype, free, guided=True)
    return min(fitting, MOST_GROUPS)


def _in_range(crops: Tensor) -> Tensor:
    """(..., R, R, 3) uint8 -> (..., 3, R, R) float32 in [-1, 1]."""
    return crops.movedim(-1, -3).contiguous().float().div_(127.5).sub_(1)


def _levels(faces: Tensor) -> Tensor:
    """(..., 3, R, R) about [-1, 1] -> (..., R, R, 3) uint8, contiguous."""
    levels = faces.mul(127.5).add_(127.5).round_().clamp_(0, 255).to(torch.uint8)
    return levels.movedim(-3, -1).contiguous()


def _latents(both: Tensor) -> diffusion.Latents:
    """Of (..., 2, 4, h, w): masked, reference."""
    return diffusion.Latents(*both.unbind(-4))
