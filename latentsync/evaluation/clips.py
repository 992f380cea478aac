"""The clips that are judged: outputs beside their references, frame by frame, at 25 fps.

find_pairs      which file is compared with which, by relative name without its suffix
EvaluatedClip   one output, its reference, and whose face is where
FramePair       one frame of both: whole, and the face cropped at the same place
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import count
from pathlib import Path, PurePath

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync import faces
from latentsync.errors import MediaError, NoFaceFound, OptionError
from latentsync.evaluation.lip_correlation import lip_correlation, loudness_of
from latentsync.evaluation.mouth_net import CROP
from latentsync.evaluation.run_report import ReportedRun
from latentsync.evaluation.sync import SAMPLE_RATE, SAMPLES_PER_FRAME
from latentsync.faces import LARGEST, FaceChoice, align
from latentsync.media import AudioReader, VideoFrame, VideoReader
from latentsync.options import Options
from latentsync.pipeline.face_tracks import find_face_tracks
from latentsync.pipeline.frame_source import FPS, FrameSource
from latentsync.runtime.progress import RunContext
from latentsync.types import FaceTrack, FloatArray, Frame, IntArray

__all__ = ["NEEDS_REFERENCE", "EvaluatedClip", "FramePair", "Pair", "PairedFiles", "find_pairs"]

NEEDS_REFERENCE = "needs --reference"
SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"}
MIN_SAME_SOUND = 0.95  # correlation of two clips' loudness from which they say the same
MAX_DRIFT_SECONDS = 0.2  # between an output's length and the length that its report states


@dataclass(frozen=True)
class Pair:
    """One output and its reference."""

    name: str  # of the output, below the folder that was given
    output: Path
    reference: Path | None
    run: ReportedRun | None = None  # that made the output, by its own report


@dataclass(frozen=True)
class PairedFiles:
    """The pairs to compare, and the files left over."""

    pairs: tuple[Pair, ...]
    unmatched_outputs: tuple[str, ...] = ()  # although there are references
    unmatched_references: tuple[str, ...] = ()


def find_pairs(outputs: Sequence[Path], reference: Path | None = None) -> PairedFiles:
    """Pair outputs with references of the same relative name; suffixes don't count.

    Args:
        outputs: files, or folders that are searched with their subfolders.
        reference: a folder, or one file for all outputs. Default the source that the report beside
            an output names, if it is there.

    Raises:
        OptionError: a path is not there, or there is no clip at all.
    """
    found = [clip for path in outputs for clip in _clips(path)]
    if not found:
        given = ", ".join(map(str, outputs)) or "nothing"
        raise OptionError(
            f"no clip in {given}; give clips ({', '.join(sorted(SUFFIXES))}) or a folder of them"
        )
    runs = [ReportedRun.of(path) for _, path in found]
    if reference is None or reference.is_file():
        sources = [run.source if run and run.has_source() else None for run in runs]
        references = sources if reference is None else [reference] * len(found)
        pairs = zip(found, references, runs, strict=True)
        return PairedFiles(tuple(Pair(*clip, source, run) for clip, source, run in pairs))
    there: dict[PurePath, tuple[str, Path]] = {}
    for clip in _clips(reference):
        there.setdefault(PurePath(clip[0]).with_suffix(""), clip)
    stems = [PurePath(name).with_suffix("") for name, _ in found]
    return PairedFiles(
        tuple(
            Pair(*clip, there[stem][1] if stem in there else None, run)
            for clip, stem, run in zip(found, stems, runs, strict=True)
        ),
        tuple(name for (name, _), stem in zip(found, stems, strict=True) if stem not in there),
        tuple(name for stem, (name, _) in there.items() if stem not in stems),
    )


def _clips(path: Path) -> list[tuple[str, Path]]:
    """(relative name, path) of a file, whatever its suffix, or of all clips below a folder."""
    if not path.is_dir():
        if not path.is_file():
            raise OptionError(f"{path} is not there; give a clip or a folder of clips")
        return [(path.name, path)]
    below = (file for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES)
    return [(file.relative_to(path).as_posix(), file) for file in below if file.is_file()]


@dataclass
class FramePair:
    """An output's frame and the reference's; pixels are converted when they are first asked for."""

    index: int  # frames from the start
    output: VideoFrame
    reference: VideoFrame | None
    affine: FloatArray | None  # (2, 3) px of the whole frame -> crop px; None: no face here

    @cached_property
    def whole(self) -> Frame:
        """The output's frame, in the reference's size."""
        rgb, wanted = self.output.rgb(), self.reference or self.output
        size = wanted.width, wanted.height
        if size == (self.output.width, self.output.height):
            return rgb
        method = cv2.INTER_AREA if wanted.width < rgb.shape[1] else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(rgb, size, interpolation=method), np.uint8)

    @property
    def scaled_output(self) -> VideoFrame:
        """The output's frame in the reference's size, unconverted if it has that size already."""
        wanted = self.reference or self.output
        same = (wanted.width, wanted.height) == (self.output.width, self.output.height)
        return self.output if same else VideoFrame.from_rgb(self.whole)

    @cached_property
    def whole_reference(self) -> Frame:
        assert self.reference is not None
        return self.reference.rgb()

    @cached_property
    def face(self) -> Frame:
        """The output's aligned crop, (CROP, CROP, 3), where the reference has its face."""
        return self._crop(self.whole)

    @cached_property
    def face_reference(self) -> Frame:
        return self._crop(self.whole_reference)

    def _crop(self, whole: Frame) -> Frame:
        assert self.affine is not None
        box = align.face_box(self.affine, CROP, whole.shape[1], whole.shape[0])
        region = whole[box.top : box.bottom, box.left : box.right]
        return align.cut_face(region, box, self.affine, CROP)


def _shortened(reference: VideoReader) -> MediaError:
    return MediaError(
        f"{reference.path} has fewer frames than when the output was made of it; put that clip "
        "back, or delete the report beside the output"
    )


@dataclass(frozen=True)
class FrameMapping:
    """Which frame of the reference belongs to each frame of the output, at 25 fps."""

    numbers: IntArray  # (n,) of the reference's frames
    own_pace: bool  # these number the frames of the file; else frames at 25 fps
    seconds: NDArray[np.float64]  # (n,) when each is shown in the reference

    def frames(self, reference: VideoReader, indices: Sequence[int]) -> Iterator[VideoFrame]:
        """Read the reference's frames that belong to the output's.

        Raises:
            MediaError: the reference has fewer frames than the run's source had.
        """
        numbers = self.numbers[list(indices)].tolist()
        read = reference.source_frames if self.own_pace else reference.frames
        try:
            yield from read(numbers)
        except IndexError as error:
            raise _shortened(reference) from error


@dataclass
class EvaluatedClip:
    """One output with its reference and the face's track; frames are streamed, none is kept."""

    pair: Pair
    context: RunContext
    output: VideoReader
    reference: VideoReader | None
    track: FaceTrack | None  # in the output's frames whose mouth was generated; None: no face
    no_face: str = ""  # why there is no track
    notes: list[str] = field(default_factory=list)
    frames: int = 0  # compared; known after `frame_pairs`
    face: FaceChoice = LARGEST
    chosen: bool = False  # whether an option or the report chose the face
    mapping: FrameMapping | None = None  # None: the same index in both

    @classmethod
    def open(
        cls, pair: Pair, detector: faces.Detector, context: RunContext, face: str | None = None
    ) -> "EvaluatedClip":
        """Open both files and find the face, in a first pass over the reference.

        Args:
            face: whose, as in `Options.face`. Default the one that the run's report names, without
                a report the largest. The report also tells the source frame of each output frame,
                and which were left untouched.

        Raises:
            MediaError: a file can't be read.
            OptionError: `face` has no meaning.
        """
        output = VideoReader(pair.output, fps=FPS)
        reference = VideoReader(pair.reference, fps=FPS) if pair.reference else None
        clip = cls(pair, context, output, reference, None)
        seconds = output.info.duration_seconds
        run = clip._valid_run(seconds)
        clip._choose_face(run, face)
        own = None
        if run and run.source_frames is not None:
            own = _own_frames(run, output)
            if pair.reference and run.is_source(pair.reference):
                clip._map_frames(run, own)
            elif pair.reference:
                clip.notes.append(
                    f"{pair.reference.name} is not the source that its report names: their frames "
                    "are compared by time"
                )
        at_most = math.ceil(seconds * FPS) + 1 if seconds else None
        if clip.no_face:
            return clip
        try:
            track = clip._find_face(detector, at_most)
        except (NoFaceFound, OptionError) as error:  # the latter: nobody is at the point
            clip.no_face = str(error)
            return clip
        if run and own is not None:
            track = clip._without_untouched(track, run.generated()[own])
        if track.detected.any():
            clip.track = track
        else:
            clip.no_face = "by its report, no frame with the face has a generated mouth"
        return clip

    def _valid_run(self, seconds: float | None) -> ReportedRun | None:
        """The run of the report, unless the report is of another output or damaged."""
        run = self.pair.run
        if run and run.problem:
            self.notes.append(f"its report {run.problem}: the report is ignored")
        elif run and run.seconds and seconds and abs(seconds - run.seconds) > MAX_DRIFT_SECONDS:
            self.notes.append(
                f"its report says {run.seconds:.2f} s, but it lasts {seconds:.2f} s: the report "
                "belongs to another output and is ignored"
            )
            return None
        return run

    def _choose_face(self, run: ReportedRun | None, face: str | None) -> None:
        drawn = run.faces if run else ()
        self.chosen = bool(face or drawn)
        try:
            self.face = FaceChoice.parse(face or (drawn[0] if drawn else "largest"))
        except OptionError:
            if face:
                raise
            self.no_face = f"its report says face {drawn[0]!r}, which is not there; give --face"
        if face is None and (len(drawn) > 1 or self.face.kind == "all"):
            which = "largest" if self.face.kind == "all" else self.face
            self.notes.append(
                f"the run generated the mouths of {' and '.join(drawn)}; the figures are those of "
                f"the face {which}, choose another with --face"
            )

    def _map_frames(self, run: ReportedRun, own: IntArray) -> None:
        """Map the output's frames to those of the reference, which is the run's source."""
        assert run.source_frames is not None
        assert self.reference is not None
        numbers = run.source_frames[own]
        times = numbers / float(FPS)
        if run.own_pace and not self.reference.info.is_image:
            begins = np.array([float(at) for at in self.reference.times()])
            if numbers.max() >= len(begins):
                raise _shortened(self.reference)
            times = begins[numbers]
        self.mapping = FrameMapping(numbers, run.own_pace, times)

    def _find_face(self, detector: faces.Detector, at_most: int | None) -> FaceTrack:
        """Find the face in each of the output's frames; NoFaceFound if it is in none."""
        own = False
        if self.mapping:
            at_most = int(self.mapping.numbers.max()) + 1
            own = self.mapping.own_pace and self.reference is not None
        (track, *_) = find_face_tracks(
            FrameSource.of(self.reference or self.output, "source" if own else "25"),
            at_most,
            detector,
            [self.face],
            Options(),
            resolution=CROP,
            context=self.context,
        )
        if self.mapping:
            there = np.minimum(self.mapping.numbers, len(track) - 1)
        elif self._is_still:
            there = np.zeros(at_most or 1, np.int64)
        else:
            return track
        return FaceTrack(track.affine[there], track.detected[there])

    def _without_untouched(self, track: FaceTrack, generated: NDArray[np.bool_]) -> FaceTrack:
        count = min(len(track), len(generated))
        found = track.detected.copy()
        found[:count] &= generated[:count]
        if not generated.all():
            self.notes.append(
                f"{(~generated).sum()} of {len(generated)} frames were left untouched: they count "
                "in the whole frame's figures only"
            )
        return FaceTrack(track.affine, found)

    def frame_pairs(self) -> Iterator[FramePair]:
        """Stream both files' frames as far as both go; `notes` says what was left over.

        With a mapping these are the output's frames and their source frames, else the frames of
        the same times.
        """
        references: Iterator[VideoFrame] | None = None
        if self.reference and self.mapping:
            references = self.mapping.frames(self.reference, range(len(self.mapping.numbers)))
        elif self.reference:
            references = self.reference.frames(count() if self._is_still else None)
        for index, frame in enumerate(self.output.frames()):
            self.context.check()
            reference = next(references, None) if references else None
            if references and reference is None:
                self.notes.append(f"the reference ends after {index} frames, the output goes on")
                return
            if not index and reference:
                size, wanted = (f"{one.width}x{one.height}" for one in (frame, reference))
                if size != wanted:
                    self.notes.append(f"{size} px was scaled to the reference's {wanted}")
            self.frames = index + 1
            yield FramePair(index, frame, reference, self.affine(index))
        if references and not self.mapping and not self._is_still and next(references, None):
            self.notes.append(f"the output ends after {self.frames} frames, the reference goes on")

    def frame_pairs_at(self, indices: Iterable[int]) -> Iterator[FramePair]:
        """Read some of the frame pairs again, in rising order."""
        numbers = list(indices)
        references: Iterable[VideoFrame | None] = [None] * len(numbers)
        if self.reference and self.mapping:
            references = self.mapping.frames(self.reference, numbers)
        elif self.reference:
            references = self.reference.frames(numbers)
        outputs = self.output.frames(numbers)
        for index, frame, reference in zip(numbers, outputs, references, strict=True):
            self.context.check()
            yield FramePair(index, frame, reference, self.affine(index))

    def affine(self, index: int) -> FloatArray | None:
        """(2, 3) frame px -> crop px; None if there is no face."""
        if self.track is None or index >= len(self.track) or not self.track.detected[index]:
            return None
        return self.track.affine[index]

    @cached_property
    def no_truth(self) -> str:
        """Why the reference's mouth is no ground truth for the output's; "" if it is.

        It is one if both say the same at the same time.
        """
        if self.pair.reference is None:
            return NEEDS_REFERENCE
        levels = []
        for name, path in (("output", self.pair.output), ("reference", self.pair.reference)):
            try:
                levels.append(loudness_of(AudioReader(path)))
            except MediaError:
                return f"the {name} has no sound, so nothing tells whether both say the same"
        own, other = levels
        if self.mapping:  # the reference is heard at the times at which its frames are shown
            frames = np.round(self.mapping.seconds * SAMPLE_RATE / SAMPLES_PER_FRAME).astype(int)
            own, frames = own[: len(frames)], frames[: len(own)]
            there = frames < len(other)
            own, other = own[there], other[frames[there]]
        count = min(len(own), len(other))
        same = count and lip_correlation(own[:count], other[:count], 0).at_zero >= MIN_SAME_SOUND
        return "" if same else "the reference says something else"

    @property
    def _is_still(self) -> bool:
        return self.reference is not None and self.reference.info.is_image


def _own_frames(run: ReportedRun, output: VideoReader) -> IntArray:
    """(n,) which frame of the file is shown at each of the output's frames at 25 fps."""
    assert run.source_frames is not None
    if not run.own_pace:
        return np.arange(len(run.source_frames))
    times = list(output.times())
    begins = np.array([math.floor(at * FPS + Fraction(1, 2)) for at in times])
    last = round((times[-1] - times[-2]) * FPS) if len(times) > 1 else 1
    at = np.arange(begins[-1] + max(1, last))
    own = np.searchsorted(begins, at, side="right") - 1
    return np.minimum(own, len(run.source_frames) - 1)
