"""A stretch as a clip to train on: mp4 at 25 fps with 16 kHz mono sound, and where its face is.

Two forms. "around", the default, keeps the frame around the face, upright: the region that its
crops cover over all frames and half as much on each side, never enlarged, and scaled down only as
far as crops of `size` px lose nothing. So `latentsync train` finds and aligns the face itself, as a
run does, and pixels are resampled once on their way to the net. "aligned" is the published form:
the affine crops themselves, `size` x `size` px, for trainers that align nothing.

Beside a clip "around" lies NAME.npy, (frames, 2, 3) float32: the affines that `align.cut_face`
takes, px of the clip -> px of the upright crop behind its square.

The sound becomes AAC, which the reader gives back to the sample: as long, and not late.
"""

import hashlib
import re
import unicodedata
import wave
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from latentsync.errors import OutputError
from latentsync.faces import align
from latentsync.media import VideoFrame, VideoReader, VideoWriter, even_box
from latentsync.runtime.disk_cache import file_digest
from latentsync.training.preparation.steps import crops, scales
from latentsync.training.preparation.stretch import FPS, SAMPLE_RATE, SAMPLES, Stretch, Tools
from latentsync.types import Box, FloatArray

__all__ = ["CLIPS", "Form", "Write", "clip_name"]

Form = Literal["around", "aligned"]
CLIPS = "clips"  # folder of the output
MARGIN = 0.5  # of the region that the crops cover, on each side: detectors want the whole head
CRF = 16  # below what the eye sees, and published clips were coded at 18 once a step
SMALLEST = 16  # px, of a side
NAME_CHARACTERS = 40  # of the source's name in the clip's, so that no name is too long for a disk


@dataclass(frozen=True)
class Write:
    """The last step; its files go to the work folder, from where they are moved to their place."""

    size: int  # px, side of the crop
    form: Form
    crf: int = CRF
    name: ClassVar[str] = "write"
    version: ClassVar[int] = 1

    def __call__(self, stretch: Stretch, relative: str, tools: Tools) -> dict[str, Any]:
        """The clip's line in the index.

        Raises:
            OutputError: it can't be written.
        """
        path = tools.folder / clip_name(relative, stretch)
        try:
            sound = tools.folder / "sound.wav"
            _write_wave(sound, _heard(tools.sound(), stretch))
            write = _write_around if self.form == "around" else _write_aligned
            with VideoWriter(path, audio=sound, crf=self.crf) as video:
                facts = write(stretch, self.size, video)
        except OSError as error:
            raise OutputError(f"{path.name} can't be written ({error}); free some space") from error
        return {
            "clip": f"{CLIPS}/{path.name}",
            "source": relative,
            "start_seconds": stretch.start / FPS,
            "stop_seconds": stretch.stop / FPS,
            "frames": len(stretch),
            **facts,
            **stretch.figures,
            "bytes": path.stat().st_size,
            "sha256": file_digest(path),
            **_affines(path.with_suffix(".npy")),
        }


def clip_name(relative: str, stretch: Stretch) -> str:
    """A name for any disk that no other clip has: by the source's whole path, and the frames."""
    stem = unicodedata.normalize("NFC", Path(relative).stem)
    plain = re.sub(r"[^\w-]+", "_", stem)[:NAME_CHARACTERS].strip("_-") or "clip"
    key = hashlib.sha256(relative.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    return f"{plain}.{key}.{stretch.start:06d}-{stretch.stop:06d}.mp4"


def _write_around(stretch: Stretch, size: int, video: VideoWriter) -> dict[str, Any]:
    """The frame around the face; what is to be known of it."""
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
    onto = _onto_clip(box, shape)
    homogeneous = np.concatenate([affine, np.tile([[[0, 0, 1]]], (len(affine), 1, 1))], axis=1)
    np.save(video.path.with_suffix(".npy"), (homogeneous @ np.linalg.inv(onto))[:, :2].astype("f4"))
    return {
        "width": shape[0],
        "height": shape[1],
        "box": [box.left, box.top, box.right, box.bottom],
        "scale": round(scale, 5),
    }


def _write_aligned(stretch: Stretch, size: int, video: VideoWriter) -> dict[str, Any]:
    for crop in crops(stretch, size):
        video.write(VideoFrame.from_rgb(crop))
    return {"width": size, "height": size}


def _around(affine: FloatArray, size: int, width: int, height: int) -> Box:
    """What the crops of all frames cover, and more of it on each side; even edges."""
    covered = [align.face_box(one, size, width, height) for one in affine]
    left, top = (min(getattr(box, edge) for box in covered) for edge in ("left", "top"))
    right, bottom = (max(getattr(box, edge) for box in covered) for edge in ("right", "bottom"))
    x, y = MARGIN * (right - left), MARGIN * (bottom - top)
    box = even_box((left - x, top - y, right + x, bottom + y), width=width, height=height)
    assert box is not None
    return box


def _even(side: float) -> int:
    return max(SMALLEST, round(side / 2) * 2)


def _cut(frame: VideoFrame, box: Box, size: tuple[int, int]) -> VideoFrame:
    """A region at another size, (width, height), with square pixels and its colours named.

    Named, as a small picture that doesn't say would be taken for BT.601.
    """
    planes = []
    for plane, step in zip(frame.planes(), (1, 2, 2), strict=True):
        rows = slice(box.top // step, -(-box.bottom // step))
        columns = slice(box.left // step, -(-box.right // step))
        part, target = plane[rows, columns], (size[0] // step, size[1] // step)
        if part.shape != target[::-1]:
            part = np.asarray(cv2.resize(part, target, interpolation=cv2.INTER_AREA), np.uint8)
        planes.append(np.ascontiguousarray(part).copy())
    matrix = int(frame.colour.space(frame.height))  # FFmpeg numbers them as H.273 does
    colour = replace(frame.colour, matrix=matrix, pixel_aspect=Fraction(1))
    return VideoFrame((planes[0], planes[1], planes[2]), colour)


def _onto_clip(box: Box, size: tuple[int, int]) -> NDArray[np.float64]:
    """(3, 3): px of the source's frame -> px of the clip; pixel borders meet."""
    x, y = size[0] / box.width, size[1] / box.height
    shift = (x - 1) / 2 - x * box.left, (y - 1) / 2 - y * box.top
    return np.array([[x, 0, shift[0]], [0, y, shift[1]], [0, 0, 1]])


def _affines(path: Path) -> dict[str, Any]:
    """What is to be known of the file of affines, where there is one."""
    if not path.is_file():
        return {}
    return {"affines_bytes": path.stat().st_size, "affines_sha256": file_digest(path)}


def _heard(sound: NDArray[np.int16], stretch: Stretch) -> NDArray[np.int16]:
    """The samples that belong to the stretch's frames."""
    first = (stretch.start - stretch.ahead) * SAMPLES
    return sound[first : first + len(stretch) * SAMPLES]


def _write_wave(path: Path, samples: NDArray[np.int16]) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(samples.astype("<i2").tobytes())
