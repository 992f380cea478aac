"""One face through a run: crop it, let the network generate its mouth, paste it back.

    crop      frames -> groups of 16, with the crops of their face
    generate  crops and speech -> crops with a new mouth, restored where that is asked
    paste     the frames with these crops in them, one by one

Each is a generator over the one before, so that each may run in a thread of its own.
"""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from itertools import groupby, islice

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from latentsync.audio.whisper import SpeechFeatures
from latentsync.diffusion.generator import CropBatch, CropGenerator, to_float, to_uint8
from latentsync.faces import align, align_published
from latentsync.faces.colour import match_colour, mouth_ring
from latentsync.faces.mask import keep_mask, outline_share, paste_share
from latentsync.faces.occlusion import Occluder
from latentsync.faces.restoration.restoration import FaceRestorer, Restorer
from latentsync.options import Options
from latentsync.pipeline import timeline
from latentsync.runtime.frame_cache import FrameCache
from latentsync.runtime.progress import RunContext
from latentsync.types import FaceTrack, IntArray, PaintablePicture, Segment

__all__ = ["Compositor", "Group", "SpeakingFace"]

CROP_BYTES = 640 * 2**20  # of crops kept for frames shown again: 34 s at 512 px


@dataclass(frozen=True)
class SpeakingFace:
    """One face of a run: where it is, when it speaks, and what it hears."""

    track: FaceTrack
    plan: list[Segment]
    speech: SpeechFeatures

    @property
    def uses(self) -> IntArray:
        """(n,) how often each source frame's face is generated."""
        drawn = [segment.source for segment in self.plan if not segment.passthrough]
        return np.bincount(np.concatenate(drawn)) if drawn else np.zeros(0, np.int64)


@dataclass(frozen=True)
class Group:
    """A segment's frames, and the crops of their face."""

    segment: Segment
    frames: list[PaintablePicture]
    crops: list[Tensor] | None  # of each frame, (R, R, 3) uint8; None: nobody speaks


class Compositor:
    """Paints one face of a run into its frames, by one call's options.

    A source frame that is shown again (a turn, a loop, a still picture) is cropped once, as long as
    there is room to keep it.

    Args:
        generator: of the crops' new mouths.
        side: px, R of its crops.
    """

    def __init__(
        self,
        generator: CropGenerator,
        side: int,
        face: SpeakingFace,
        options: Options,
        context: RunContext,
        occluder: Occluder | None = None,
        restorer: Restorer | None = None,
    ) -> None:
        self._generator, self._side, self._face = generator, side, face
        self._context, self._occluder = context, occluder
        published = options.resampling == "published"
        resampler = align_published.PublishedResampler if published else align.FaceResampler
        self._resampler = resampler(side)
        self._restorer = FaceRestorer(restorer, side, options) if restorer else None
        self._last_restored = (-2, -1)  # output frame, and its source frame
        self._mouth = torch.from_numpy(paste_share(side)) if options.paste == "mouth" else None
        # The published geometry knows no outline, and a whole crop is pasted as it is.
        self._outlined = not (published or options.paste == "crop")
        self._match = options.color_match
        self._ring = torch.from_numpy(mouth_ring(side))
        self._hole = 1 - torch.from_numpy(keep_mask(side))
        self._crops: FrameCache[Tensor] = FrameCache(face.uses, CROP_BYTES)

    def crop(self, frames: Generator[PaintablePicture, None, None]) -> Generator[Group, None, None]:
        """Cut the face out of the run's frames, group by group, in the order of the output.

        Closing this generator also closes its input; the same holds for the two stages below.
        """
        with closing(frames):
            held: list[PaintablePicture] = []  # shared with the next group
            for segment in self._face.plan:
                shown = held + list(islice(frames, len(segment) - len(held)))
                held = shown[segment.own.stop :]
                crops = None
                if not segment.passthrough:
                    with self._context.timed("cut"):
                        faces = zip(segment.source.tolist(), shown, strict=True)
                        crops = [self._crop(*face) for face in faces]
                yield Group(segment, shown, crops)
                del shown, crops  # else they would be held while the next group is read
            next(
                frames, None
            )  # the input's end, so that the stage before isn't closed as unfinished

    def generate(
        self, groups: Generator[Group, None, None]
    ) -> Generator[tuple[Group, Tensor | None], None, None]:
        """Generate the crops of each group, (f, R, R, 3) uint8 on the CPU; None: nobody speaks.

        With published resampling they are (f, 3, R, R) float32, about [-1, 1], until they are
        pasted. Restored ones are `sr_ratio` times larger, and only of the group's own frames.

        Raises:
            LatentSyncError: as `CropGenerator` says.
        """

        def batches() -> Generator[tuple[list[Group], CropBatch | None], None, None]:
            waited = self._context.each("wait", groups)
            for _, alike in groupby(waited, lambda g: (g.crops is None, len(g.frames))):
                while neighbours := list(islice(alike, self._generator.batch)):
                    yield neighbours, self._batch(neighbours)

        with closing(groups), closing(self._generator(batches())) as generated:
            for neighbours, faces in generated:
                if faces is None:
                    yield from ((group, None) for group in neighbours)
                    continue
                last = faces[-1][-1]
                self._context.show((last if last.dtype == torch.uint8 else to_uint8(last)).numpy())
                for group, drawn in zip(neighbours, faces, strict=True):
                    yield group, self._restore(group, drawn) if self._restorer else drawn
                del neighbours, faces, last, group, drawn  # else held while the next are drawn

    def paste(
        self, generated: Generator[tuple[Group, Tensor | None], None, None]
    ) -> Generator[PaintablePicture, None, None]:
        """Lay each group's crops over its frames, and give the run's frames in order."""
        with closing(generated):
            for group, faces in generated:
                if faces is None:
                    yield from group.frames[group.segment.own]
                    continue
                for place, frame in enumerate(group.frames[group.segment.own]):
                    with self._context.timed("paste"):
                        pasted = self._pasted(frame, group, place, faces[place])
                    yield pasted

    def _crop(self, index: int, frame: PaintablePicture) -> Tensor:
        """(R, R, 3) uint8: the face of a source frame."""
        crop = self._crops.get(index)
        if crop is None:
            affine = self._face.track.affine[index]
            crop = torch.from_numpy(self._resampler.crop(frame, affine))
        self._crops.shown(index, crop)
        return crop

    def _batch(self, groups: list[Group]) -> CropBatch | None:
        """What the network is shown of neighbouring groups of equal length."""
        crops = [crop for group in groups for crop in group.crops or ()]
        if not crops:
            return None
        segments = [group.segment for group in groups]
        with self._context.timed("speech"):  # the encoder runs where a window is first needed
            heard = torch.stack([self._face.speech[one.start : one.stop] for one in segments])
        return CropBatch(
            crops=torch.stack(crops).unflatten(0, (len(groups), -1)),
            speech=heard,
            source=np.concatenate([one.source for one in segments]),
            start=segments[0].start,
            stop=segments[-1].stop,
            shared=segments[0].shared,
            kept=segments[-1].kept,
        )

    def _restore(self, group: Group, faces: Tensor) -> Tensor:
        """The crops of a group's own frames, restored."""
        assert self._restorer is not None
        self._context.check()
        with self._context.timed("restore"):
            own, source = group.segment.own, group.segment.source[group.segment.own]
            drawn = torch.stack(
                [self._matched(group, i, face) for i, face in enumerate(faces[own])]
            )
            # Flicker is suppressed only between consecutive output frames of one shot.
            first, (last, last_source) = group.segment.start, self._last_restored
            starts, fresh = self._face.track.shot_start, first != last + 1
            if starts is not None:
                pair = np.array([last_source, source[0]])
                fresh |= bool(timeline.new_shots(pair, starts)[1])
            self._last_restored = first + len(source) - 1, int(source[-1])
            affines = self._face.track.affine[source]
            return self._restorer(group.frames[own], affines, drawn, fresh=fresh)

    def _pasted(
        self, frame: PaintablePicture, group: Group, place: int, face: Tensor
    ) -> PaintablePicture:
        """One frame with its face: mouth mask x outline x strength x what is not covered."""
        source = int(group.segment.source[place])
        affine, strength = self._face.track.affine[source], float(group.segment.strength[place])
        if self._restorer is None:
            face, weight = self._matched(group, place, face), self._mouth
        else:
            weight = self._restorer.share(affine)
        if weight is not None:
            weight = self._within_outline(weight, source)
        if strength < 1:
            weight = strength * (torch.ones(self._side, self._side) if weight is None else weight)
        if self._occluder is not None and group.crops is not None:
            seen = self._occluder.visible(to_float(group.crops[place])[None])[0]
            if weight is not None and weight.shape != seen.shape:
                seen = interpolate(seen[None, None], weight.shape, mode="bilinear")[0, 0]
            weight = seen if weight is None else seen * weight
        return self._resampler.paste(frame, face, affine, weight)

    def _within_outline(self, weight: Tensor, source: int) -> Tensor:
        """A weight without what lies beside the face, where a source frame shows it turned."""
        noses = self._face.track.nose
        if noses is None or not self._outlined:
            return weight
        aside, below = noses[source].tolist()
        face = outline_share(aside, below, weight.shape[-1])
        return weight if face is None else weight * torch.from_numpy(face)

    def _matched(self, group: Group, place: int, face: Tensor) -> Tensor:
        """A drawn crop, in the colours of its face where that is asked."""
        if not self._match or group.crops is None:
            return face
        ring = self._within_outline(self._ring, int(group.segment.source[place]))
        as_bytes = face.dtype == torch.uint8
        drawn, own = to_float(face) if as_bytes else face, to_float(group.crops[place])
        matched = match_colour(drawn, own, ring, self._hole)
        return to_uint8(matched) if as_bytes else matched
