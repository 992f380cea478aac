"""What is judged: outputs and the references they belong to, frame beside frame, 25 a second.

pairs     which file is held against which, by relative name without its suffix
Clip      one output, its reference, whose face it is and where
FramePair one frame of both: whole, and the face cut out at the same place
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from itertools import count
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync import faces
from latentsync.errors import MediaError, NoFaceFound, OptionError
from latentsync.evaluation.mouth_net import CROP
from latentsync.evaluation.run_report import ReportedRun
from latentsync.faces import LARGEST, FaceChoice, align
from latentsync.media import AudioReader, VideoFrame, VideoReader
from latentsync.options import Options
from latentsync.pipeline.face_tracks import find_face_tracks
from latentsync.pipeline.frame_source import FPS, FrameSource
from latentsync.runtime.progress import RunContext
from latentsync.types import FaceTrack, FloatArray, Frame, IntArray

__all__ = ["EvaluatedClip", "FramePair", "Pair", "PairedFiles", "find_pairs"]

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"}
STALE_SECONDS = 0.2  # by which an output and what its report tells of may differ


@dataclass(frozen=True)
class Pair:
    """One output, and what it is held against."""

    name: str  # of the output, below the folder that was given
    output: Path
    reference: Path | None
    run: ReportedRun | None = None  # that made it, by its own report


@dataclass(frozen=True)
class PairedFiles:
    """What there is to compare, and what was left over."""

    pairs: tuple[Pair, ...]
    unmatched_outputs: tuple[str, ...] = ()  # though there are references
    unmatched_references: tuple[str, ...] = ()


def find_pairs(outputs: Sequence[Path], reference: Path | None = None) -> PairedFiles:
    """Hold outputs against references of the same relative name, whatever their suffixes.

    Args:
        outputs: files, or folders that are searched with all below them.
        reference: a folder, or one file that all outputs are held against. Without any, what a
            run's own report beside the output names as its source, and else none.

    Raises:
        OptionError: a path is not there, or there is no clip at all.
    """
    found = [one for path in outputs for one in _clips(path)]
    if not found:
        said = ", ".join(map(str, outputs)) or "nothing"
        raise OptionError(
            f"no clip in {said}; give clips ({', '.join(sorted(SUFFIXES))}) or a folder of them"
        )
    runs = {path: ReportedRun.of(path) for _, path in found}
    if reference is None:
        return PairedFiles(tuple(_by_report(name, path, runs[path]) for name, path in found))
    if reference.is_file():
        return PairedFiles(tuple(Pair(name, path, reference, runs[path]) for name, path in found))
    there: dict[str, tuple[str, Path]] = {}
    for name, path in _clips(reference):
        there.setdefault(_stem(name), (name, path))
    matched = {_stem(name) for name, _ in found if _stem(name) in there}
    return PairedFiles(
        tuple(
            Pair(name, path, there.get(_stem(name), (name, None))[1], runs[path])
            for name, path in found
        ),
        tuple(name for name, _ in found if _stem(name) not in there),
        tuple(name for stem, (name, _) in there.items() if stem not in matched),
    )


def _clips(path: Path) -> list[tuple[str, Path]]:
    """(relative name, path) of a file, whatever its suffix, or of all clips below a folder."""
    if not path.is_dir():
        if not path.is_file():
            raise OptionError(f"{path} is not there; give a clip or a folder of clips")
        return [(path.name, path)]
    below = (one for one in sorted(path.rglob("*")) if one.suffix.lower() in SUFFIXES)
    return [(one.relative_to(path).as_posix(), one) for one in below if one.is_file()]


def _stem(name: str) -> str:
    return name.rpartition(".")[0] or name


def _by_report(name: str, path: Path, run: ReportedRun | None) -> Pair:
    """The output beside the clip that its report names as its source, if that is there."""
    return Pair(name, path, run.source if run and run.has_source() else None, run)


@dataclass
class FramePair:
    """The frame of an output at one time, and of its reference; made when it is looked at."""

    index: int  # frames from the start
    output: VideoFrame
    reference: VideoFrame | None
    affine: FloatArray | None  # (2, 3) px of the whole frame -> crop px; None: no face here

    @cached_property
    def whole(self) -> Frame:
        """The output's frame, in the reference's size."""
        rgb, wanted = self.output.rgb(), self.reference or self.output
        if not self._scaled:
            return rgb
        size, smaller = (wanted.width, wanted.height), wanted.width < rgb.shape[1]
        method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        return np.asarray(cv2.resize(rgb, size, interpolation=method), np.uint8)

    @property
    def shown(self) -> VideoFrame:
        """The same, of which parts can be had."""
        return VideoFrame.from_rgb(self.whole) if self._scaled else self.output

    @property
    def _scaled(self) -> bool:
        wanted = self.reference or self.output
        return (wanted.width, wanted.height) != (self.output.width, self.output.height)

    @cached_property
    def whole_reference(self) -> Frame:
        assert self.reference is not None
        return self.reference.rgb()

    @cached_property
    def face(self) -> Frame:
        """The output's aligned crop, (CROP, CROP, 3), at the reference's place."""
        return self._cut(self.whole)

    @cached_property
    def face_reference(self) -> Frame:
        return self._cut(self.whole_reference)

    def _cut(self, whole: Frame) -> Frame:
        assert self.affine is not None
        box = align.face_box(self.affine, CROP, whole.shape[1], whole.shape[0])
        region = whole[box.top : box.bottom, box.left : box.right]
        return align.cut_face(region, box, self.affine, CROP)


def _cut_since(reference: VideoReader) -> MediaError:
    return MediaError(
        f"{reference.path} has fewer frames than when the output was made of it; put that clip "
        "back, or delete the report beside the output"
    )


@dataclass(frozen=True)
class FrameMapping:
    """Which frame of the reference belongs to each frame of the output, 25 a second."""

    numbers: IntArray  # (n,) of the reference's frames
    own_pace: bool  # these are the frames of the file; else 25 a second
    seconds: NDArray[np.float64]  # (n,) when each is shown in the reference

    def frames(self, reference: VideoReader, indices: Sequence[int]) -> Iterator[VideoFrame]:
        """The reference's frames that belong to frames of the output.

        Raises:
            MediaError: the reference has fewer frames than the run's source had.
        """
        numbers = self.numbers[list(indices)].tolist()
        read = reference.source_frames if self.own_pace else reference.frames
        try:
            yield from read(numbers)
        except IndexError as error:
            raise _cut_since(reference) from error


@dataclass
class EvaluatedClip:
    """One output with its reference and the face's track; frames stream by, none is kept."""

    pair: Pair
    reporter: RunContext
    output: VideoReader
    reference: VideoReader | None
    track: FaceTrack | None  # in the output's frames, where a mouth was drawn; None: no face
    no_face: str = ""  # why there is none
    notes: list[str] = field(default_factory=list)
    frames: int = 0  # that were compared; known after `moments`
    face: FaceChoice = LARGEST  # whose it is
    chosen: bool = False  # whether somebody said so
    beside: FrameMapping | None = (
        None  # None: the output's frame i belongs to the reference's frame i
    )
    no_truth: str | None = None  # why the reference's mouth is no truth; "": it is; None: not asked

    @classmethod
    def open(
        cls, pair: Pair, detector: faces.Detector, reporter: RunContext, face: str | None = None
    ) -> "EvaluatedClip":
        """Open both files and find the face, in a first pass over the reference.

        Args:
            face: whose, as in `Options.face`. None: the one that the run's report names, which
                also tells the source frame of each output frame, and those left untouched; without
                a report the largest.

        Raises:
            MediaError: a file can't be read.
            OptionError: `face` means none.
        """
        output = VideoReader(pair.output, fps=FPS)
        reference = VideoReader(pair.reference, fps=FPS) if pair.reference else None
        seconds, run, notes = output.info.duration_seconds, pair.run, list[str]()
        if run and run.seconds and seconds and abs(seconds - run.seconds) > STALE_SECONDS:
            notes.append(
                f"its report tells of {run.seconds:.2f} s, but it lasts {seconds:.2f} s: the "
                "report is of another output, and left aside"
            )
            run = None
        made = cls(pair, reporter, output, reference, None, notes=notes)
        made._choose(run, face)
        own = _own_frames(run, output) if run and run.shown is not None else None
        if run and own is not None and pair.reference:
            made._lay_beside(run, own, pair.reference)
        at_most = math.ceil(seconds * FPS) + 1 if seconds else None
        try:
            track = made._find(detector, at_most) if not made.no_face else None
        except (NoFaceFound, OptionError) as error:  # the latter: nobody is at the point
            made.no_face = str(error)
            track = None
        if track is None:
            return made
        drawn = None if own is None or run is None else run.drawn()[own]
        if drawn is not None:
            track = made._masked(track, drawn)
        if track.found.any():
            made.track = track
        else:
            made.no_face = "no frame with the face has a mouth that was drawn, says its report"
        return made

    def _lay_beside(self, run: ReportedRun, own: IntArray, reference: Path) -> None:
        """Find the reference's frame for each of the output's, if the reference is the source."""
        assert run.shown is not None
        assert self.reference is not None
        if not run.is_source(reference):
            self.notes.append(
                f"{reference.name} is not the source that its report names: their frames are "
                "compared by time"
            )
            return
        numbers = run.shown[own]
        times = numbers / float(FPS)
        if run.own_pace and not self.reference.info.is_image:
            shown = np.array([float(at) for at in self.reference.times()])
            if numbers.max() >= len(shown):
                raise _cut_since(self.reference)
            times = shown[numbers]
        self.beside = FrameMapping(numbers, run.own_pace, times)

    def _find(self, detector: faces.Detector, at_most: int | None) -> FaceTrack:
        """The face in each of the output's frames; NoFaceFound where it is in none."""
        looked: FrameSource | VideoReader = self.reference or self.output
        fps, beside = FPS, self.beside
        if beside:
            at_most = int(beside.numbers.max()) + 1
        if beside and beside.own_pace and self.reference:
            looked = FrameSource.of(self.reference, "source")
            fps = looked.fps
        (track, *_) = find_face_tracks(
            looked,
            at_most,
            detector,
            [self.face],
            Options(),
            resolution=CROP,
            fps=fps,
            reporter=self.reporter,
        )
        if beside:
            there = np.minimum(beside.numbers, len(track) - 1)
        elif self._still:
            there = np.zeros(at_most or 1, np.int64)
        else:
            return track
        return FaceTrack(track.affine[there], track.found[there])

    def _masked(self, track: FaceTrack, drawn: NDArray[np.bool_]) -> FaceTrack:
        """The track without the frames that the run left untouched."""
        count = min(len(track), len(drawn))
        found = track.found.copy()
        found[:count] &= drawn[:count]
        if not drawn.all():
            self.notes.append(
                f"{(~drawn).sum()} of {len(drawn)} frames were left untouched: they count in the "
                "whole frame's figures only"
            )
        return FaceTrack(track.affine, found)

    def _choose(self, run: ReportedRun | None, face: str | None) -> None:
        """Whose face is measured."""
        drawn = run.faces if run else ()
        self.chosen = bool(face or drawn)
        try:
            self.face = FaceChoice.parse(face or (drawn[0] if drawn else "largest"))
        except OptionError:
            if face:
                raise
            self.no_face = f"its report says face {drawn[0]!r}, which is not there; give --face"
        if face is None and (len(drawn) > 1 or self.face.kind == "all"):
            which = "the largest" if self.face.kind == "all" else f"that of {self.face}"
            self.notes.append(
                f"the mouths of {' and '.join(drawn)} were drawn; {which} is measured, --face "
                "measures another"
            )

    def sound(self) -> AudioReader:
        """The output's; MediaError where it has none."""
        return AudioReader(self.pair.output)

    def moments(self) -> Iterator[FramePair]:
        """Both files' frames that belong together, as far as both go; `notes` says what was left.

        By a run's report these are the output's frames and their source frames; else the frames
        of the same times.
        """
        beside = self._all_references() if self.reference else None
        for index, frame in enumerate(self.output.frames()):
            self.reporter.check()
            held = next(beside, None) if beside else None
            if beside and held is None:
                self.notes.append(f"the reference ends after {index} frames, the output goes on")
                return
            if not index:
                self._note_sizes(frame, held)
            self.frames = index + 1
            yield FramePair(index, frame, held, self.affine(index))
        if beside and not self.beside and not self._still and next(beside, None):
            self.notes.append(f"the output ends after {self.frames} frames, the reference goes on")

    def moments_at(self, indices: Iterable[int]) -> Iterator[FramePair]:
        """Some of them again, in rising order."""
        numbers = list(indices)
        held: Iterator[VideoFrame | None] = iter([None] * len(numbers))
        if self.reference and self.beside:
            held = self.beside.frames(self.reference, numbers)
        elif self.reference:
            held = self.reference.frames(numbers)
        for index, frame, beside in zip(numbers, self.output.frames(numbers), held, strict=True):
            self.reporter.check()
            yield FramePair(index, frame, beside, self.affine(index))

    def affine(self, index: int) -> FloatArray | None:
        """(2, 3) frame px -> crop px; None where there is no face."""
        if self.track is None or index >= len(self.track) or not self.track.found[index]:
            return None
        return self.track.affine[index]

    @property
    def _still(self) -> bool:
        return self.reference is not None and self.reference.info.is_image

    def _all_references(self) -> Iterator[VideoFrame]:
        assert self.reference is not None
        if self.beside:
            return self.beside.frames(self.reference, range(len(self.beside.numbers)))
        return self.reference.frames(count()) if self._still else self.reference.frames()

    def _note_sizes(self, output: VideoFrame, reference: VideoFrame | None) -> None:
        if reference and (output.width, output.height) != (reference.width, reference.height):
            self.notes.append(
                f"{output.width}x{output.height} px was scaled to the reference's "
                f"{reference.width}x{reference.height}"
            )


def _own_frames(run: ReportedRun, output: VideoReader) -> IntArray:
    """(n,) which frame of the file is shown at each of the output's frames, 25 a second."""
    assert run.shown is not None
    if not run.own_pace:
        return np.arange(len(run.shown))
    times = list(output.times())
    begins = np.array([math.floor(at * FPS + Fraction(1, 2)) for at in times])
    last = round((times[-1] - times[-2]) * FPS) if len(times) > 1 else 1
    at = np.arange(begins[-1] + max(1, last))
    own = np.searchsorted(begins, at, side="right") - 1
    return np.minimum(own, len(run.shown) - 1)
