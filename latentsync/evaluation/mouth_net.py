"""The mouth net, which measures how far a face's mouth is open, how wide and how round.

It knows drawn faces only. `find_track` finds the face with the product's own detector,
`aligned_crops` crops it, `mouth_track` measures each frame. An output is measured where its source
has the face (`track`), so that the generated mouth can't move the place of measurement.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import cycle, islice
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from latentsync import faces
from latentsync.diffusion.generator import to_float
from latentsync.errors import NoFaceFound, OptionError, WeightsMismatch, WeightsMissing
from latentsync.faces import align
from latentsync.faces.detectors.landmark_net import SIDE, Regressor
from latentsync.media import VideoReader
from latentsync.pipeline import timeline
from latentsync.pipeline.frame_source import FPS
from latentsync.runtime.checkpoints import first_line, root
from latentsync.types import FaceTrack, FloatArray, Frame

__all__ = ["CROP", "MEASURES", "MouthNet", "aligned_crops", "find_track", "mouth_track"]

MEASURES = ("opening", "width", "rounding")
"""The net's outputs: gap of the inner lips and distance of the mouth's corners in eye distances,
and rounding 0..1; as in `latentsync.training.synthetic.measure`."""
CROP = 256  # px, side of an aligned crop
BATCH = 32  # crops
FILE = "demo/ruler.safetensors"


@dataclass(frozen=True)
class MouthNet:
    """The loaded net, on the CPU in float32."""

    net: Regressor
    name: str  # the file it came from, below the weights folder

    @classmethod
    def load(cls, folder: Path | str | None = None) -> "MouthNet":
        """Load demo/ruler.safetensors of the weights folder.

        Args:
            folder: default $LATENTSYNC_WEIGHTS, then `weights/` of the checkout.

        Raises:
            WeightsMissing: there is no such file.
            WeightsMismatch: the file holds something else.
        """
        path = root(folder) / FILE
        if not path.is_file():
            raise WeightsMissing(
                f"{path} is not there, and nothing else measures drawn mouths; it is part of the "
                "repository: restore it from there, or unset LATENTSYNC_WEIGHTS"
            )
        net = Regressor(len(MEASURES))
        try:
            net.load_state_dict(load_file(path), strict=True)
        except (RuntimeError, SafetensorError) as error:
            raise WeightsMismatch(
                f"{path} is no mouth net of {len(MEASURES)} measures ({first_line(error)}); "
                "restore it from the repository"
            ) from error
        return cls(net.eval().requires_grad_(False), FILE)

    def measure(self, crops: NDArray[np.uint8]) -> FloatArray:
        """Measure aligned crops (n, R, R, 3) uint8 RGB of any side: (n, 3) float32, see MEASURES.

        Raises:
            OptionError: crops of another form.
        """
        if crops.ndim != 4 or crops.shape[1] != crops.shape[2] or crops.shape[3] != 3:
            raise OptionError(f"got crops of shape {crops.shape}; the mouth net takes (n, R, R, 3)")
        method = cv2.INTER_AREA if crops.shape[1] > SIDE else cv2.INTER_LINEAR
        found = [np.empty((0, len(MEASURES)), np.float32)]
        for i in range(0, len(crops), BATCH):
            small = [
                cv2.resize(crop, (SIDE, SIDE), interpolation=method)
                for crop in crops[i : i + BATCH]
            ]
            with torch.inference_mode():
                found.append(self.net(to_float(torch.from_numpy(np.stack(small)))).numpy())
        return np.concatenate(found)


def find_track(
    video: Path | str,
    detector: faces.Detector,
    *,
    at_most: int | None = None,
    fps: Fraction = FPS,
) -> FaceTrack:
    """Find the face in each frame, for crops of CROP px.

    Args:
        at_most: frames to search; default all.
        fps: frames per second at which the clip is read.

    Raises:
        MediaError: the file can't be read.
        NoFaceFound: there is no face in any of them.
    """
    frames = islice(VideoReader(video, fps=fps).frames(), at_most)
    seen = faces.track(frames, detector)
    track = align.face_track(seen.points, seen.detected, CROP, pixel_aspect=seen.pixel_aspect)
    if not track.detected.any():
        raise NoFaceFound(
            f"no face in the {len(track)} frames of {video} by {detector.describe()}; give a clip "
            "with a larger or more frontal face"
        )
    return track


def aligned_crops(video: Path | str, track: FaceTrack, *, fps: Fraction = FPS) -> Iterator[Frame]:
    """Cut out the aligned crop of each frame, (CROP, CROP, 3) uint8 RGB.

    A frame without a face is cropped where the nearest frame with one has it. If a clip is longer
    than its track, the track plays forwards and backwards, as the product's outputs do.

    Args:
        track: by `find_track`, of this clip or of its source, at the same `fps`.
    """
    found = np.flatnonzero(track.detected)
    nearest = found[np.searchsorted((found[1:] + found[:-1]) / 2, np.arange(len(track)))]
    there_and_back = timeline.source_frames(max(1, 2 * len(track) - 2), len(track))
    frames = VideoReader(video, fps=fps).frames()
    for frame, source in zip(frames, cycle(there_and_back), strict=False):
        affine, size = track.affine[nearest[source]], (frame.width, frame.height)
        box = align.face_box(affine, CROP, *size)
        yield align.cut_face(frame.rgb(box), box, affine, CROP)


def mouth_track(
    video: Path | str,
    net: MouthNet,
    detector: faces.Detector,
    *,
    track: FaceTrack | None = None,
) -> FloatArray:
    """Measure the mouth in each frame of a clip: (n, 3), see MEASURES.

    Args:
        track: where to crop, the source's by `find_track`; default found in this clip.

    Raises:
        MediaError, NoFaceFound: as `find_track`.
    """
    crops = aligned_crops(video, track or find_track(video, detector))
    batches = iter(lambda: list(islice(crops, BATCH)), [])
    return np.concatenate([net.measure(np.stack(batch)) for batch in batches])
