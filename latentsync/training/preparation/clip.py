"""A stretch as a clip to train on: mp4 at 25 fps with 16 kHz mono sound, and the face's place.

There are two forms. "around", the default, keeps the frame around the face, upright: the region
that the crops of all frames cover and half as much on each side, never enlarged, and scaled down
only so far that crops of `size` px lose nothing. `latentsync train` then finds and aligns the face
itself, as `latentsync generate` does, and pixels are resampled once on their way to the net.
"aligned" is the published form: the affine crops themselves, `size` x `size` px, for trainers that
don't align.

The form "around" has NAME.npy beside the clip, (frames, 2, 3) float32: the affines that
`align.cut_face` takes, px of the clip -> px of the upright crop before it is squeezed to a square.

The sound becomes AAC, which the reader decodes to the same number of samples, without delay.
"""

import hashlib
import re
import unicodedata
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from scipy.io import wavfile

from latentsync.errors import OutputError
from latentsync.faces import align
from latentsync.media import VideoFrame, VideoReader, VideoWriter, even_box
from latentsync.runtime.files import file_digest
from latentsync.training.preparation.stretch import (
    FPS,
    SAMPLE_RATE,
    SAMPLES_PER_FRAME,
    Stretch,
    Tools,
    scales,
)
from latentsync.training.settings import Form
from latentsync.types import Box, FloatArray

__all__ = ["CLIPS", "Write", "clip_name"]

CLIPS = "clips"  # folder of the output
MARGIN = 0.5  # of the region that the crops cover, on each side: detectors need the whole head
CRF = 16  # without visible loss; published clips were coded at 18 once in each step
MIN_SIDE_PX = 16
MAX_NAME_CHARACTERS = 40  # of the source's name in the clip's, for disks that limit names


@dataclass(frozen=True)
class Write:
    """The last step; writes to the work folder, from which files are moved to their place."""

    size: int  # px, side of the crop
    form: Form
    crf: int = CRF
    name: ClassVar[str] = "write"
    version: ClassVar[int] = 1

    def __call__(self, stretch: Stretch, relative: str, tools: Tools) -> dict[str, Any]:
        """Write the clip; return its line in the index.

        Raises:
            OutputError: it can't be written.
        """
        path = tools.folder / clip_name(relative, stretch)
        affines = path.with_suffix(".npy")
        first = (stretch.start - stretch.ahead) * SAMPLES_PER_FRAME
        try:
            sound = tools.folder / "sound.wav"
            samples = tools.sound()[first : first + len(stretch) * SAMPLES_PER_FRAME]
            wavfile.write(sound, SAMPLE_RATE, np.asarray(samples))
            with VideoWriter(path, audio=sound, crf=self.crf) as video:
                if self.form == "around":
                    facts = _write_around(stretch, self.size, video)
                else:
                    facts = {"width": self.size, "height": self.size}
                    for crop in stretch.crops(self.size):
                        video.write(VideoFrame.from_rgb(crop))
        except OSError as error:
            raise OutputError(f"{path.name} can't be written ({error}); free some space") from error
        line = {
            "clip": f"{CLIPS}/{path.name}",
            "source": relative,
            "start_seconds": stretch.start / FPS,
            "stop_seconds": stretch.stop / FPS,
            "frames": len(stretch),
            **facts,
            **stretch.figures,
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
        }
        if self.form == "around":
            line |= {
                "affines_bytes": affines.stat().st_size,
                "affines_sha256": file_digest(affines),
            }
        return line


def clip_name(relative: str, stretch: Stretch) -> str:
    """A unique name that any disk allows, from the source's whole path and the frames."""
    stem = unicodedata.normalize("NFC", Path(relative).stem)
    plain = re.sub(r"[^\w-]+", "_", stem)[:MAX_NAME_CHARACTERS].strip("_-") or "clip"
    key = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{plain}.{key}.{stretch.start:06d}-{stretch.stop:06d}.mp4"


def _write_around(stretch: Stretch, size: int, video: VideoWriter) -> dict[str, Any]:
    """Write the frames around the face and their affines; return facts for the index."""
    assert stretch.track is not None
    affine = stretch.track.affine
    with VideoReader(stretch.path) as reader:
        aspect = float(reader.pixel_aspect)
        box = _around(affine, size, reader.info.width, reader.info.height)
        needed = float(scales(affine).max()) * size / align.crop_size(size)[0]
        scale = min(1.0, needed)
        shape = _even(box.width * aspect * scale), _even(box.height * scale)
        for frame in reader.frames(range(stretch.start, stretch.stop)):
            video.write(_cut(frame, box, shape))
    # px of the source's frame -> px of the clip; pixel borders meet.
    x, y = shape[0] / box.width, shape[1] / box.height
    shift = (x - 1) / 2 - x * box.left, (y - 1) / 2 - y * box.top
    onto = np.array([[x, 0, shift[0]], [0, y, shift[1]], [0, 0, 1]])
    homogeneous = np.concatenate([affine, np.tile([[[0, 0, 1]]], (len(affine), 1, 1))], axis=1)
    np.save(video.path.with_suffix(".npy"), (homogeneous @ np.linalg.inv(onto))[:, :2].astype("f4"))
    return {
        "width": shape[0],
        "height": shape[1],
        "box": [box.left, box.top, box.right, box.bottom],
        "scale": round(scale, 5),
    }


def _around(affine: FloatArray, size: int, width: int, height: int) -> Box:
    """The region that the crops of all frames cover, and a margin; with even edges."""
    covered = [align.face_box(one, size, width, height) for one in affine]
    left, top = (min(getattr(box, edge) for box in covered) for edge in ("left", "top"))
    right, bottom = (max(getattr(box, edge) for box in covered) for edge in ("right", "bottom"))
    x, y = MARGIN * (right - left), MARGIN * (bottom - top)
    box = even_box((left - x, top - y, right + x, bottom + y), width=width, height=height)
    assert box is not None
    return box


def _even(side: float) -> int:
    return max(MIN_SIDE_PX, round(side / 2) * 2)


def _cut(frame: VideoFrame, box: Box, size: tuple[int, int]) -> VideoFrame:
    """A region at another size, (width, height), with square pixels and its colour matrix named.

    A small picture that doesn't name it would be taken for BT.601.
    """
    planes = []
    for plane, step in zip(frame.planes(), (1, 2, 2), strict=True):
        rows = slice(box.top // step, -(-box.bottom // step))
        columns = slice(box.left // step, -(-box.right // step))
        part, target = plane[rows, columns], (size[0] // step, size[1] // step)
        if part.shape != target[::-1]:
            part = np.asarray(cv2.resize(part, target, interpolation=cv2.INTER_AREA), np.uint8)
        planes.append(np.ascontiguousarray(part).copy())
    matrix = int(frame.colour.space(frame.height))  # FFmpeg's numbers are those of H.273
    colour = replace(frame.colour, matrix=matrix, pixel_aspect=Fraction(1))
    return VideoFrame((planes[0], planes[1], planes[2]), colour)
