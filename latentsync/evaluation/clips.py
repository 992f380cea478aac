"""What is judged: outputs and the references they belong to, frame beside frame, 25 a second.

pairs     which file is held against which, by relative name without its suffix
Clip      one output, its reference, and where the face is
Moment    one frame of both: whole, and the face cut out at the same place
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path

import cv2
import numpy as np

from latentsync import align, faces
from latentsync.casting import cast
from latentsync.errors import NoFaceFound, OptionError
from latentsync.evaluation.ruler import CROP
from latentsync.faces import LARGEST
from latentsync.media import AudioReader, VideoFrame, VideoReader
from latentsync.options import Options
from latentsync.pace import FPS
from latentsync.report import report_path
from latentsync.reporter import Reporter
from latentsync.types import FaceTrack, FloatArray, Frame

__all__ = ["Clip", "Moment", "Pair", "Pairs", "find_pairs"]

SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"}


@dataclass(frozen=True)
class Pair:
    """One output, and what it is held against."""

    name: str  # of the output, below the folder that was given
    output: Path
    reference: Path | None


@dataclass(frozen=True)
class Pairs:
    """What there is to compare, and what was left over."""

    pairs: tuple[Pair, ...]
    unmatched_outputs: tuple[str, ...] = ()  # though there are references
    unmatched_references: tuple[str, ...] = ()


def find_pairs(outputs: Sequence[Path], reference: Path | None = None) -> Pairs:
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
    if reference is None:
        return Pairs(tuple(Pair(name, path, _source_of(path)) for name, path in found))
    if reference.is_file():
        return Pairs(tuple(Pair(name, path, reference) for name, path in found))
    there: dict[str, tuple[str, Path]] = {}
    for name, path in _clips(reference):
        there.setdefault(_stem(name), (name, path))
    matched = {_stem(name) for name, _ in found if _stem(name) in there}
    return Pairs(
        tuple(
            Pair(name, path, there[_stem(name)][1] if _stem(name) in there else None)
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


def _source_of(output: Path) -> Path | None:
    """The clip that a run's own report, out.json beside out.mp4, names as its source."""
    try:
        source = Path(json.loads(report_path(output).read_text())["source"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    beside = output.parent / source
    return source if source.is_file() else beside if beside.is_file() else None


@dataclass
class Moment:
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


@dataclass
class Clip:
    """One output with its reference and the face's track; frames stream by, none is kept."""

    pair: Pair
    reporter: Reporter
    output: VideoReader
    reference: VideoReader | None
    track: FaceTrack | None  # of the reference, else of the output; None: no face
    no_face: str = ""  # why there is none
    notes: list[str] = field(default_factory=list)
    frames: int = 0  # that were compared; known after `moments`

    @classmethod
    def open(cls, pair: Pair, detector: faces.Detector, reporter: Reporter) -> "Clip":
        """Open both files and find the face, in a first pass over the reference.

        Raises:
            MediaError: a file can't be read.
        """
        output = VideoReader(pair.output, fps=FPS)
        reference = VideoReader(pair.reference, fps=FPS) if pair.reference else None
        seconds = output.info.duration_seconds
        at_most = math.ceil(seconds * FPS) + 1 if seconds else None
        try:
            (track, *_) = cast(
                reference or output,
                at_most,
                detector,
                [LARGEST],
                Options(),
                resolution=CROP,
                fps=FPS,
                reporter=reporter,
            )
        except NoFaceFound as error:
            return cls(pair, reporter, output, reference, None, str(error))
        if reference and reference.info.is_image:
            shown = at_most or 1
            track = FaceTrack(track.affine.repeat(shown, axis=0), track.found.repeat(shown))
        return cls(pair, reporter, output, reference, track)

    def sound(self) -> AudioReader:
        """The output's; MediaError where it has none."""
        return AudioReader(self.pair.output)

    def moments(self) -> Iterator[Moment]:
        """Both files' frames at the same times, as far as both go; `notes` says what was left."""
        beside = _endless(self.reference) if self.reference else None
        for index, frame in enumerate(self.output.frames()):
            self.reporter.check()
            held = next(beside, None) if beside else None
            if beside and held is None:
                self.notes.append(f"the reference ends after {index} frames, the output goes on")
                return
            if not index:
                self._note_sizes(frame, held)
            self.frames = index + 1
            yield Moment(index, frame, held, self.affine(index))
        still = self.reference and self.reference.info.is_image
        if beside and not still and next(beside, None):
            self.notes.append(f"the output ends after {self.frames} frames, the reference goes on")

    def moments_at(self, indices: Iterable[int]) -> Iterator[Moment]:
        """Some of them again, in rising order."""
        numbers = list(indices)
        held = self.reference.frames(numbers) if self.reference else iter([None] * len(numbers))
        for index, frame, beside in zip(numbers, self.output.frames(numbers), held, strict=True):
            self.reporter.check()
            yield Moment(index, frame, beside, self.affine(index))

    def affine(self, index: int) -> FloatArray | None:
        """(2, 3) frame px -> crop px; None where there is no face."""
        if self.track is None or index >= len(self.track) or not self.track.found[index]:
            return None
        return self.track.affine[index]

    def _note_sizes(self, output: VideoFrame, reference: VideoFrame | None) -> None:
        if reference and (output.width, output.height) != (reference.width, reference.height):
            self.notes.append(
                f"{output.width}x{output.height} px was scaled to the reference's "
                f"{reference.width}x{reference.height}"
            )


def _endless(reader: VideoReader) -> Iterator[VideoFrame]:
    """A clip's frames; a still picture is held."""
    return reader.frames(count()) if reader.info.is_image else reader.frames()
