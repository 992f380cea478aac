"""The steps that choose what can be trained on, with the published order and thresholds.

    Decode     the file can be read to its end, without damage
    Resample   25 frames a second, 16 kHz, and sound for every picture
    Shots      split at cuts
    Segments   split into 5-10 s
    OneFace    exactly one face, in all frames, large enough; finds its affines
    Sync       lips and sound fit; finds by how many frames the sound is to be moved
    Quality    the face looks good, by hyperIQA
    Sharpness  the face is sharp; in place of Quality, without hyperIQA's weights

Each takes a stretch and yields stretches and rejections. Published order and thresholds:
https://github.com/bytedance/LatentSync/blob/a229c39/README.md#-data-processing-pipeline
"""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np

from latentsync import faces
from latentsync.errors import MediaError, OutputError
from latentsync.evaluation.sync import SyncScore, face_crops, sync_confidence
from latentsync.faces import align
from latentsync.faces.tracking.shots import detect_shots
from latentsync.media import AudioReader, VideoReader
from latentsync.training.preparation.quality import hyper_iqa, sharpness
from latentsync.training.preparation.stretch import (
    FPS,
    SAMPLES_PER_FRAME,
    Rejected,
    Stretch,
    Tools,
    scales,
)
from latentsync.types import FaceTrack

__all__ = [
    "LOW_CONFIDENCE",
    "Decode",
    "OneFace",
    "Quality",
    "Resample",
    "Segments",
    "Sharpness",
    "Shots",
    "Sync",
]

Results = Iterator[Stretch | Rejected]

MIN_FACE_FRAMES = 5  # in which a face must be seen to count as a person
LOW_CONFIDENCE = "low sync confidence"
SILENCE_DBFS = -60.0  # root mean square: quieter than a quiet room
FULL_SCALE = 32768  # of 16-bit samples


@dataclass(frozen=True)
class Decode:
    """Keep a source of which every frame can be decoded; find cuts in the same pass."""

    name: ClassVar[str] = "decode"
    version: ClassVar[int] = 1

    def __call__(self, stretch: Stretch, tools: Tools) -> Results:  # noqa: ARG002 - a Step
        with VideoReader(stretch.path) as reader, _damage() as damage:
            if reader.info.is_image:
                yield Rejected("a still picture")
                return
            cuts = [cut is not None for _, cut in detect_shots(reader.frames())]
        if damage:
            # Without a place: with several decoding threads, chance decides which frames survive.
            yield Rejected("damaged or cut short")
            return
        places = tuple(np.flatnonzero(cuts).tolist())
        yield replace(stretch, start=0, stop=len(cuts), cuts=places)


@dataclass(frozen=True)
class Resample:
    """Decode the sound as 16 kHz mono; leave out pictures after its end."""

    name: ClassVar[str] = "resample"
    version: ClassVar[int] = 1

    def __call__(self, stretch: Stretch, tools: Tools) -> Results:
        try:
            with _damage() as damage:
                samples = AudioReader(stretch.path).samples
            samples.tofile(tools.folder / "sound.s16")
        except MediaError as error:
            yield Rejected("no sound", None, stretch.start, stretch.stop, str(error))
            return
        except OSError as error:
            raise OutputError(f"sound can't be unpacked ({error}); is the disk full?") from error
        heard = min(stretch.stop, len(samples) // SAMPLES_PER_FRAME)
        if damage:
            yield Rejected("damaged sound", None, 0, stretch.stop)
            return
        if stretch.stop - heard >= FPS or heard == 0:
            left = stretch.stop - heard
            yield Rejected("pictures without sound", left / FPS, heard, stretch.stop)
        if heard:
            yield replace(stretch, stop=heard)


@dataclass(frozen=True)
class Shots:
    """Split at cuts."""

    name: ClassVar[str] = "shots"
    version: ClassVar[int] = 1

    def __call__(self, stretch: Stretch, tools: Tools) -> Results:  # noqa: ARG002 - a Step
        inside = [cut for cut in stretch.cuts if stretch.start < cut < stretch.stop]
        for start, stop in pairwise([stretch.start, *inside, stretch.stop]):
            yield replace(stretch, start=start, stop=stop, cuts=())


@dataclass(frozen=True)
class Segments:
    """Split into equal parts of `min_frames` to `max_frames`; leave out a rest that is shorter."""

    min_frames: int
    max_frames: int
    name: ClassVar[str] = "segments"
    version: ClassVar[int] = 1

    def __call__(self, stretch: Stretch, tools: Tools) -> Results:  # noqa: ARG002 - a Step
        frames = used = len(stretch)
        parts = -(-frames // self.max_frames)
        if frames // parts < self.min_frames:  # parts of `max_frames`, and a rest
            parts = frames // self.max_frames
            used = parts * self.max_frames
        edges = [stretch.start + used * i // max(1, parts) for i in range(parts + 1)]
        for start, stop in pairwise(edges):
            yield replace(stretch, start=start, stop=stop)
        if used < frames:
            start = stretch.start + used
            yield Rejected("too short", (frames - used) / FPS, start, stretch.stop)


@dataclass(frozen=True)
class OneFace:
    """Keep a stretch with exactly one face, in every frame, nowhere smaller than `min_face`.

    Everybody seen in 5 frames or more counts, however small: the voice may be theirs. Gaps of up to
    5 frames are filled, as by `latentsync generate`.
    """

    size: int  # px, side of the crop
    min_face: int  # px of the source, height of what the crop shows of a face
    detect_every: int  # see `faces.track_people`
    name: ClassVar[str] = "face"
    version: ClassVar[int] = 1

    def __call__(self, stretch: Stretch, tools: Tools) -> Results:
        place = stretch.start, stretch.stop
        with VideoReader(stretch.path) as reader:
            frames = reader.frames(range(*place))
            scene = faces.track_people(
                frames, tools.detector, [faces.LARGEST], detect_every=self.detect_every
            )
        people = sum(len(person) >= MIN_FACE_FRAMES for person in scene.people)
        if people != 1 or scene.shot_start.any():
            yield Rejected("no face" if people == 0 else "several faces", people, *place)
            return
        (track,) = scene.tracks(faces.LARGEST)
        if not track.detected.all():
            lost = round(1 - float(track.detected.mean()), 4)
            yield Rejected("face not in all frames", lost, *place)
            return
        affine = align.face_track(
            track.points, track.detected, self.size, pixel_aspect=track.pixel_aspect
        ).affine
        heights = align.crop_size(self.size)[1] / scales(affine)
        smallest = round(float(heights.min()), 1)
        if smallest < self.min_face:
            yield Rejected("face too small", smallest, *place)
            return
        figures = {**stretch.figures, "face_px": smallest}
        face = FaceTrack(affine=affine, detected=track.detected)
        yield replace(stretch, track=face, figures=figures)


@dataclass(frozen=True)
class Sync:
    """Keep a stretch in sync, by the published evaluation SyncNet; without it, any with sound.

    Sets `ahead`, by which the sound is to be moved so that the offset is 0. Frames whose sound is
    then before the source's start or after its end are left out.
    """

    measured: bool  # whether SyncNet is used
    size: int  # px, side of the crop that the track was made for
    min_confidence: float
    max_offset: int  # frames, either way
    min_frames: int
    name: ClassVar[str] = "sync"
    version: ClassVar[int] = 1

    def __call__(self, stretch: Stretch, tools: Tools) -> Results:
        place, wave = (stretch.start, stretch.stop), tools.sound()
        sound = wave[stretch.start * SAMPLES_PER_FRAME : stretch.stop * SAMPLES_PER_FRAME].astype(
            np.float32
        )
        sound /= FULL_SCALE
        loudness = 10 * math.log10(max(1e-10, float((sound**2).mean())))
        if loudness < SILENCE_DBFS:
            yield Rejected("silence", round(loudness, 1), *place)
            return
        if not self.measured:
            yield replace(stretch, figures={**stretch.figures, "sync": None})
            return
        assert tools.syncnet is not None
        assert stretch.track is not None
        with VideoReader(stretch.path) as reader:
            frames = reader.frames(range(*place))
            pictures = face_crops(frames, stretch.track.affine, self.size)
            score = sync_confidence(tools.syncnet, pictures, sound)
        if score.confidence < self.min_confidence:
            yield Rejected(LOW_CONFIDENCE, round(score.confidence, 3), *place)
        elif abs(score.offset) > self.max_offset:
            yield Rejected("sync offset too large", score.offset, *place)
        else:
            yield self._moved(stretch, score, len(wave) // SAMPLES_PER_FRAME)

    def _moved(self, stretch: Stretch, score: SyncScore, heard: int) -> Stretch | Rejected:
        """The stretch with its sound moved; the source has sound for `heard` frames."""
        assert stretch.track is not None
        start = max(stretch.start, score.offset)
        stop = min(stretch.stop, heard + score.offset)
        if stop - start < self.min_frames:
            return Rejected("too short once in sync", (stop - start) / FPS, start, stop)
        part = slice(start - stretch.start, stop - stretch.start)
        track = FaceTrack(affine=stretch.track.affine[part], detected=stretch.track.detected[part])
        measured = {name: round(getattr(score, name), 3) for name in ("confidence", "distance")}
        figures = {**stretch.figures, "sync": {**measured, "offset": score.offset}}
        return replace(
            stretch, start=start, stop=stop, track=track, ahead=score.offset, figures=figures
        )


@dataclass(frozen=True)
class Quality:
    """Keep a stretch whose face looks good, by hyperIQA of three pictures, as published."""

    size: int  # px, side of the crop
    min_quality: float  # 0-100
    name: ClassVar[str] = "quality"
    version: ClassVar[int] = 1

    def __call__(self, stretch: Stretch, tools: Tools) -> Results:
        assert tools.hyper_iqa is not None
        places = sorted({0, len(stretch) // 2, len(stretch) - 1})
        value = round(hyper_iqa(tools.hyper_iqa, list(stretch.crops(self.size, places))), 2)
        if not value >= self.min_quality:  # also if it is nan
            yield Rejected("low visual quality", value, stretch.start, stretch.stop)
            return
        yield replace(stretch, figures={**stretch.figures, "hyper_iqa": value})


@dataclass(frozen=True)
class Sharpness:
    """Keep a stretch whose face is sharp: the median variance of the Laplacian of its crops.

    A substitute for hyperIQA without its weights: it detects blur and enlargement, but takes noise
    and compression artefacts for detail.
    """

    size: int  # px, side of the crop
    min_sharpness: float
    every: int = 5  # frames; one of so many is measured
    name: ClassVar[str] = "quality"
    version: ClassVar[int] = 1

    def __call__(self, stretch: Stretch, tools: Tools) -> Results:  # noqa: ARG002 - a Step
        places = range(0, len(stretch), self.every)
        seen = [sharpness(crop) for crop in stretch.crops(self.size, places)]
        value = round(float(np.median(seen)), 2)
        if value < self.min_sharpness:
            yield Rejected("blurred", value, stretch.start, stretch.stop)
            return
        yield replace(stretch, figures={**stretch.figures, "laplacian": value})


@contextmanager
def _damage() -> Iterator[list[str]]:
    """Collect what media logs of a damaged file, which it reads as far as it can."""
    damage: list[str] = []

    def heard(record: logging.LogRecord) -> bool:
        damage.append(record.msg)
        return False  # rejected.jsonl contains it

    loggers = [logging.getLogger(f"latentsync.media.{name}") for name in ("container", "decoder")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addFilter(heard)
        logger.setLevel(logging.DEBUG)  # the level of a damaged packet
    try:
        yield damage
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.removeFilter(heard)
            logger.setLevel(level)
