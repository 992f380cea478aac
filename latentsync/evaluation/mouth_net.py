"""The ruler: a small net that reads off a face how far its mouth is open, how wide, how round.

It knows drawn faces only. `find_track` says where the face is, by the product's own detector;
`aligned_crops` cuts it out; `mouth_track` measures it in each frame. An output is measured where
its source has the face (`track`), so that a mouth drawn anew can't move the place of measurement.
"""

from collections.abc import Iterable, Iterator
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
from latentsync.errors import NoFaceFound, OptionError, WeightsMismatch, WeightsMissing
from latentsync.faces import align
from latentsync.faces.detectors.landmark_net import SIDE, Regressor
from latentsync.media import VideoReader
from latentsync.pipeline import timeline
from latentsync.pipeline.frame_source import FPS
from latentsync.runtime.checkpoints import root
from latentsync.types import FaceTrack, FloatArray, Frame

__all__ = ["CROP", "MEASURES", "MouthNet", "aligned_crops", "find_track", "mouth_track"]

MEASURES = ("opening", "width", "rounding")
"""The columns of what the ruler gives: gap of the inner lips and distance of the mouth's corners in
eye distances, and rounding 0..1; as `latentsync.training.synthetic.measure` has them."""
CROP = 256  # px; side of the crops that are looked at
BATCH = 32  # crops
FILE = "demo/ruler.safetensors"


@dataclass(frozen=True)
class MouthNet:
    """A loaded ruler, on the CPU in float32."""

    net: Regressor
    name: str  # the file it came from, below the weights folder

    @classmethod
    def load(cls, folder: Path | str | None = None) -> "MouthNet":
        """Read demo/ruler.safetensors of the weights folder.

        Args:
            folder: default $LATENTSYNC_WEIGHTS, then `weights/` of the checkout.

        Raises:
            WeightsMissing: no such file.
            WeightsMismatch: something else is in it.
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
                f"{path} is no ruler of {len(MEASURES)} measures "
                f"({str(error).strip().splitlines()[0][:200]}); restore it from the repository"
            ) from error
        return cls(net.eval().requires_grad_(False), FILE)

    def measure(self, crops: NDArray[np.uint8]) -> FloatArray:
        """Aligned crops (n, R, R, 3) uint8 RGB of any side -> (n, 3) float32, see MEASURES.

        Raises:
            OptionError: crops of another form.
        """
        if crops.ndim != 4 or crops.shape[1] != crops.shape[2] or crops.shape[3] != 3:
            raise OptionError(f"got crops of shape {crops.shape}; the ruler takes (n, R, R, 3)")
        parts = [self._batch(crops[i : i + BATCH]) for i in range(0, len(crops), BATCH)]
        return np.concatenate([np.empty((0, len(MEASURES)), np.float32), *parts])

    def _batch(self, crops: NDArray[np.uint8]) -> FloatArray:
        method = cv2.INTER_AREA if crops.shape[1] > SIDE else cv2.INTER_LINEAR
        small = [cv2.resize(crop, (SIDE, SIDE), interpolation=method) for crop in crops]
        pictures = torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            return self.net(pictures / 127.5 - 1).numpy()


def find_track(
    video: Path | str,
    detector: faces.Detector,
    *,
    at_most: int | None = None,
    fps: Fraction = FPS,
) -> FaceTrack:
    """Where the face is in each frame, for crops of CROP px.

    Args:
        at_most: frames to look at; all by default.
        fps: frames per second at which it is read.

    Raises:
        MediaError: the file can't be read.
        NoFaceFound: there is no face in any of them.
    """
    frames = islice(VideoReader(video, fps=fps).frames(), at_most)
    seen = faces.track(frames, detector)
    track = align.face_track(seen.points, seen.found, CROP, pixel_aspect=seen.pixel_aspect)
    if not track.found.any():
        raise NoFaceFound(
            f"no face in the {len(track)} frames of {video} by {detector.describe()}; give a clip "
            "with a larger or more frontal face"
        )
    return track


def aligned_crops(video: Path | str, track: FaceTrack, *, fps: Fraction = FPS) -> Iterator[Frame]:
    """The aligned crop of each frame, (CROP, CROP, 3) uint8 RGB.

    Where the track has no face, the nearest frame's place is looked at. A clip longer than its
    track is taken to bounce, as the product's outputs do.

    Args:
        track: by `find_track`, of this clip or of the one it was made from, at the same `fps`.
    """
    found = np.flatnonzero(track.found)
    nearest = found[np.searchsorted((found[1:] + found[:-1]) / 2, np.arange(len(track)))]
    there_and_back = timeline.source_frames(max(1, 2 * len(track) - 2), len(track))
    frames = VideoReader(video, fps=fps).frames()
    for frame, source in zip(frames, cycle(there_and_back), strict=False):
        affine, size = track.affine[nearest[source]], (frame.width, frame.height)
        box = align.face_box(affine, CROP, *size)
        yield align.cut_face(frame.rgb(box), box, affine, CROP)


def mouth_track(
    video: Path | str, ruler: MouthNet, detector: faces.Detector, *, track: FaceTrack | None = None
) -> FloatArray:
    """What the ruler reads off each frame of a clip: (n, 3), see MEASURES.

    Args:
        track: where to look, the source's by `find_track`; by default found in this very clip.

    Raises:
        MediaError, NoFaceFound: as `find_track`.
    """
    crops = aligned_crops(video, track or find_track(video, detector))
    parts = [ruler.measure(np.stack(batch)) for batch in _batches(crops)]
    return np.concatenate(parts)


def _batches(crops: Iterable[Frame]) -> Iterator[list[Frame]]:
    crops = iter(crops)
    while batch := list(islice(crops, BATCH)):
        yield batch
