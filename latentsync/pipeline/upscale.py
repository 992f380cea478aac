"""A clip's own faces restored, or its whole frames enlarged; nobody speaks anew."""

import logging
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from latentsync import faces
from latentsync.errors import MediaError, OptionError
from latentsync.faces import FaceChoice, align
from latentsync.faces.restoration.restoration import FaceRestorer, Restorer, enlarged
from latentsync.media import (
    Limits,
    OutputTags,
    Sound,
    VideoFrame,
    VideoReader,
    VideoWriter,
    check_codec,
    check_output,
    first_frame_time,
    output_size,
    probe,
    read_tags,
)
from latentsync.options import Options
from latentsync.pipeline import timeline
from latentsync.pipeline.face_tracks import find_face_tracks
from latentsync.pipeline.frame_source import FrameSource
from latentsync.runtime.prefetch import prefetch
from latentsync.runtime.progress import RunContext
from latentsync.types import FaceTrack, Progress, ProgressCallback

__all__ = ["Upscaled", "upscale_clip"]

log = logging.getLogger(__name__)

RESOLUTION = 512  # px, of the crop that `sr_ratio` counts from: that of the model v1.6

Pictures = Generator[VideoFrame, None, None]


@dataclass(frozen=True)
class Upscaled:
    """What one run did."""

    path: Path
    frames: int
    seconds: float
    width: int  # px
    height: int  # px
    faces_found: int  # frames with a face; 0 where whole frames were enlarged
    net: str
    licence: str  # of the net's weights
    sound: str = ""  # which track of the clip is kept, and its format; "" where it has none
    left_out: tuple[str, ...] = ()  # what of the clip is not in the output
    timings: dict[str, float] = field(default_factory=dict)  # seconds by stage


def upscale_clip(
    video: Path | str,
    output: Path | str,
    restorer: Restorer,
    detector: faces.Detector | None,
    *,
    options: Options | None = None,
    progress: ProgressCallback | None = None,
    cancelled: Callable[[], bool] | None = None,
    **changes: Any,  # noqa: ANN401 - fields of Options, by name
) -> Upscaled:
    """Write the clip with its faces restored, its own sound and frame times, to an mp4.

    Args:
        detector: finds the faces that `options.face` means; None: whole frames are enlarged, to
            the net's scale times their size.
        options: of them count those of super-resolution, faces, limits and encoding.

    Raises:
        InputError: a file can't be used, no face is found, the output can't be written.
        Cancelled: `cancelled` said so. As in every failure nothing is left behind.
    """
    options = replace(options or Options(face="all"), fps="source", **changes)
    context = RunContext(progress, cancelled)
    check_output(output := Path(output), (video,))
    check_codec(options.codec)
    scale = _scale(restorer, whole=detector is None)
    with VideoReader(video, limits=Limits.of(options)) as reader:
        if reader.info.is_image:
            raise MediaError(f"{video} is a picture; this takes a clip")
        size = reader.info.width * scale, reader.info.height * scale
        width, height = output_size(*size, codec=options.codec, max_side=options.max_side)
        with context.timed("read"):
            source = FrameSource.of(reader, options.fps)
        assert source.pts is not None  # only a picture has none
        times = [int(begin) * source.time_base for begin in source.pts]
        frames = len(times) - 1
        tracks = _tracks(source, detector, options, context) if detector else []
        sound = _sound(video, options)
        kept = read_tags(video, [sound] if sound else [], source.fps, Limits.of(options))
        with (
            _writer(output, sound, kept, source, restorer, options) as writer,
            closing(_pictures(source, frames, tracks, restorer, options, context)) as pictures,
        ):
            for picture, span in zip(pictures, pairwise(times), strict=True):
                with context.timed("write"):
                    writer.write(picture, *span)
                context.step("restore", writer.frames, frames)
            context.step("finish", 0, 1)
    context.tell(Progress("finish", 1, 1))
    return Upscaled(
        *(output, frames, float(times[-1]), width, height),
        faces_found=int(np.any([track.detected for track in tracks], axis=0).sum()),
        net=restorer.name,
        licence=restorer.licence,
        sound=str(sound or ""),
        left_out=kept.left_out,
        timings=context.timings(),
    )


def _sound(video: Path | str, options: Options) -> Sound | None:
    """The clip's own sound, from its first frame on; None if it has none."""
    if not probe(video).audio:
        return None
    limits = Limits.of(options)
    return Sound.of(video, limits, first_frame_time(video, limits), options.audio_track)


def _scale(restorer: Restorer, *, whole: bool) -> int:
    """Of the output; OptionError where whole frames are no task for the net."""
    if whole and (restorer.faces or restorer.scale == 1):
        raise OptionError(
            f"{restorer.name} enlarges no whole frames; they want a net for any picture, such as "
            "RealESRGAN"
        )
    return restorer.scale if whole else 1


def _writer(
    output: Path,
    sound: Sound | None,
    kept: OutputTags,
    source: FrameSource,
    restorer: Restorer,
    options: Options,
) -> VideoWriter:
    return VideoWriter(
        output,
        audio=sound,
        fps=source.fps,
        time_base=source.time_base,
        codec=options.codec,
        crf=options.crf,
        preset=options.preset,
        max_side=options.max_side,
        limits=Limits.of(options),
        comment=f"Restored by LatentSync with {restorer.name}",
        tags=kept.tags,
    )


def _tracks(
    source: FrameSource, detector: faces.Detector, options: Options, context: RunContext
) -> list[FaceTrack]:
    choices = [FaceChoice.parse(options.face)]
    with context.timed("detect"):
        return find_face_tracks(
            source, None, detector, choices, options, resolution=RESOLUTION, context=context
        )


def _pictures(
    source: FrameSource,
    frames: int,
    tracks: list[FaceTrack],
    restorer: Restorer,
    options: Options,
    context: RunContext,
) -> Pictures:
    """The output's frames; what is read, restored and written runs side by side."""
    pictures = prefetch(context.each("decode", source.frames(range(frames))))
    if not tracks:
        pictures = _enlarged(pictures, restorer, context)
    for track in tracks:
        pictures = _restored(pictures, track, restorer, options, context)
    return prefetch(pictures)


def _enlarged(pictures: Pictures, restorer: Restorer, context: RunContext) -> Pictures:
    with closing(pictures):
        for picture in pictures:
            context.check()
            colour = picture.colour.resolved(picture.height)  # a larger one would pass for HD
            with context.timed("restore"):
                large = VideoFrame.from_rgb(enlarged(picture.rgb(), restorer), colour)
            yield large


def _restored(
    pictures: Pictures,
    track: FaceTrack,
    restorer: Restorer,
    options: Options,
    context: RunContext,
) -> Pictures:
    """The frames with one face of theirs restored, where it is found."""
    upscaler = FaceRestorer(restorer, RESOLUTION, options, mouths=False)
    numbers = np.arange(len(track))
    starts = np.zeros(len(track), bool) if track.shot_start is None else track.shot_start
    plan = timeline.segments(numbers, track.detected, shot_start=starts, fade=options.fade)
    last = -2  # the frame restored last
    with closing(pictures):
        for segment in plan:
            shown = list(islice(pictures, len(segment)))
            if segment.passthrough:
                yield from shown
                continue
            context.check()
            affines = track.affine[segment.start : segment.stop]
            fresh = segment.start != last + 1 or bool(starts[segment.start])
            with context.timed("restore"):
                crops = upscaler(shown, affines, fresh=fresh).numpy()
            last = segment.stop - 1
            for picture, affine, crop, strength in zip(
                shown, affines, crops, segment.strength.tolist(), strict=True
            ):
                with context.timed("paste"):
                    frame = picture.width, picture.height
                    weight = strength * upscaler.share(affine)
                    laid = align.warp_to_frame(
                        crop, affine, frame, weight=weight, resolution=RESOLUTION
                    )
                    pasted = picture.pasted(*laid)
                yield pasted
        next(pictures, None)  # to the end, else the stage before would be closed as unfinished
