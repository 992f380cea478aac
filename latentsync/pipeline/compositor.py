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

from latentsync import types
from latentsync.audio.whisper import SpeechFeatures
from latentsync.diffusion.generator import CropBatch, CropGenerator, to_float, to_uint8
from latentsync.faces import align, align_published
from latentsync.faces.colour import match_colour, mouth_ring
from latentsync.faces.mask import keep_mask, paste_share
from latentsync.faces.occlusion import Occluder
from latentsync.faces.outline import outline_share
from latentsync.faces.restoration.restoration import FaceRestorer, Restorer
from latentsync.options import Options
from latentsync.pipeline import timeline
from latentsync.runtime.frame_cache import FrameCache
from latentsync.runtime.progress import RunContext
from latentsync.types import Box, FaceTrack, FloatArray, Frame, IntArray, Segment

__all__ = ["Compositor", "Group", "PaintablePicture", "SpeakingFace"]

CROP_BYTES = 640 * 2**20  # of frames that will be shown again: at 512 px, half a minute


class PaintablePicture(types.Picture, Protocol):
    """A frame that can be looked at and painted on: `media.VideoFrame`."""

    def pasted(self, box: Box, rgb: Frame, weight: Frame | None = None) -> "PaintablePicture": ...


@dataclass(frozen=True)
class SpeakingFace:
    """One face of a run: where it is, when it speaks, and what it hears."""

    track: FaceTrack
    plan: list[Segment]
    speech: SpeechFeatures

    @property
    def times(self) -> IntArray:
        """(n,) how often the face of each source frame is drawn."""
        drawn = [segment.source for segment in self.plan if not segment.passthrough]
        return np.bincount(np.concatenate(drawn)) if drawn else np.zeros(0, np.int64)


@dataclass(frozen=True)
class Group:
    """A segment's frames, on their way through the network."""

    segment: Segment
    shown: list[PaintablePicture]
    keep: int  # of its last frames, how many the next segment gives
    crops: Tensor | None  # (f, R, R, 3) uint8; None: nobody speaks

    @property
    def fresh(self) -> slice:
        """The frames that no other group gives."""
        return slice(0, len(self.shown) - self.keep)


class Compositor:
    """Paints one face through one run, by one call's options.

    A source frame that is shown again (a turn, a loop, a still picture) is cut out once, as long as
    there is room to keep it.

    Args:
        draw: the network.
        side: px, R of its crops.
    """

    def __init__(
        self,
        draw: CropGenerator,
        side: int,
        role: SpeakingFace,
        options: Options,
        reporter: RunContext,
        occluder: Occluder | None = None,
        restorer: Restorer | None = None,
    ) -> None:
        self._draw, self._side, self._role = draw, side, role
        self._options, self._reporter, self._occluder = options, reporter, occluder
        self._upscaler = FaceRestorer(restorer, self._side, options) if restorer else None
        self._before = (-2, -1)  # the output frame restored last, and its source frame
        self._ring = torch.from_numpy(mouth_ring(self._side))
        self._hole = 1 - torch.from_numpy(keep_mask(self._side))
        share = torch.from_numpy(paste_share(self._side))
        self._share = share if options.paste == "mouth" else None
        self._crops: FrameCache[Tensor] = FrameCache(role.times, CROP_BYTES)

    def crop(
        self, pictures: Generator[PaintablePicture, None, None]
    ) -> Generator[Group, None, None]:
        """Cut the face out of the run's frames, group by group, in the order of the output.

        Closing this generator also closes its input; the same holds for the two stages below.
        """
        with closing(pictures):
            plan = self._role.plan
            held: list[PaintablePicture] = []  # what the next group shares
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

    def generate(
        self, groups: Generator[Group, None, None]
    ) -> Generator[tuple[Group, Tensor | None], None, None]:
        """Generate the crops of each group: (f, R, R, 3) uint8 on the CPU.

        With published resampling they are (f, 3, R, R) float32, about [-1, 1], until they are
        pasted. With super-resolution they are `sr_ratio` times larger, and frames that the next
        group repeats are left out.

        Raises:
            LatentSyncError: as `CropGenerator` says.
        """

        def batches() -> Generator[tuple[list[Group], CropBatch | None], None, None]:
            for batch in self._batches(self._reporter.each("wait", groups)):
                yield batch, self._work(batch)

        with closing(groups), closing(self._draw(batches())) as drawn:
            for batch, faces in drawn:
                if faces is None:
                    yield from ((group, None) for group in batch)
                    continue
                last = faces[-1][-1]
                self._reporter.show((to_uint8(last) if self._as_published else last).numpy())
                yield from map(self._upscaled, batch, faces)
                del batch, faces, last  # else they would be held while the next are drawn

    def paste(
        self, drawn: Generator[tuple[Group, Tensor | None], None, None]
    ) -> Generator[PaintablePicture, None, None]:
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
            while batch := list(islice(alike, self._draw.batch)):
                yield batch

    def _work(self, batch: list[Group]) -> CropBatch | None:
        """What the network needs of a batch; None where nobody speaks."""
        crops = [group.crops for group in batch if group.crops is not None]
        if not crops:
            return None
        segments = [group.segment for group in batch]
        with self._reporter.timed("speech"):  # the encoder runs where a window is first needed
            heard = torch.stack([self._role.speech[one.start : one.stop] for one in segments])
        return CropBatch(
            crops=torch.stack(crops),
            speech=heard,
            source=np.concatenate([one.source for one in segments]),
            start=segments[0].start,
            stop=segments[-1].stop,
            shared=segments[0].shared,
            keep=batch[-1].keep,
        )

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

    def _crop(self, index: int, picture: PaintablePicture) -> Tensor:
        """(R, R, 3) uint8: the face, cut out of its frame."""
        crop = self._crops.get(index)
        if crop is None:
            affine = self._role.track.affine[index]
            frame = (picture.width, picture.height)
            box = align.face_box(affine, self._side, *frame)
            region = picture.rgb(box)
            if self._as_published:
                cut = align_published.cut_face(region, box, affine, self._side, frame)
            else:
                cut = align.cut_face(region, box, affine, self._side)
            crop = torch.from_numpy(cut)
        self._crops.shown(index, crop)
        return crop

    def _pasted(
        self, picture: PaintablePicture, group: Group, place: int, face: Tensor
    ) -> PaintablePicture:
        segment = group.segment
        affine: FloatArray = self._role.track.affine[segment.source[place]]
        frame = (picture.width, picture.height)
        share, strength = self._share, float(segment.strength[place])
        if self._upscaler is not None:
            share = self._upscaler.share(affine)
        else:
            face = self._matched(group, place, face)
        share = self._within(share, int(segment.source[place]))
        if strength < 1:
            share = strength * (torch.ones(self._side, self._side) if share is None else share)
        if self._occluder is not None and group.crops is not None:
            seen = self._occluder.visible(to_float(group.crops[place])[None])[0]
            if share is not None and share.shape != seen.shape:
                seen = interpolate(seen[None, None], share.shape, mode="bilinear")[0, 0]
            share = seen if share is None else seen * share
        if not self._as_published:
            laid = align.paste_face(face.numpy(), affine, frame, share=share, resolution=self._side)
            return picture.pasted(*laid)
        box = align.face_box(affine, self._side, *frame)
        region = picture.rgb(box)
        pasted = align_published.paste_face(region, box, face, affine, frame, share=share)
        return picture.pasted(box, pasted)

    def _within(self, share: Tensor | None, index: int) -> Tensor | None:
        """A share without what lies beside the face, where a source frame shows it turned.

        The published geometry knows no outline, and a whole crop is pasted as it is.
        """
        noses = self._role.track.nose
        if share is None or noses is None or self._as_published or self._options.paste == "crop":
            return share
        aside, below = noses[index].tolist()
        face = outline_share(aside, below, share.shape[-1])
        return share if face is None else share * torch.from_numpy(face)

    def _matched(self, group: Group, place: int, face: Tensor) -> Tensor:
        """A drawn crop, in the colours of its face where that is asked."""
        if not self._options.color_match or group.crops is None:
            return face
        pair = (face if self._as_published else to_float(face), to_float(group.crops[place]))
        ring = self._within(self._ring, int(group.segment.source[place]))
        assert ring is not None
        matched = match_colour(*pair, ring, self._hole)
        return matched if self._as_published else to_uint8(matched)

    @property
    def _as_published(self) -> bool:
        return self._options.resampling == "published"
