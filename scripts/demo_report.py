"""How well did `make demo` do? The mouth of out/demo.mp4 against the truth of its sentence.

Prints one line and writes out/demo.png: rows of the same moments before and after.
"""

import json
import sys
from pathlib import Path

import cv2
import numpy as np

from latentsync.errors import LatentSyncError
from latentsync.evaluation import image_quality, lip_correlation, mouth_net
from latentsync.faces import create
from latentsync.media import VideoReader
from latentsync.runtime.checkpoints import root
from latentsync.types import FaceTrack, Frame

ROOT = Path(__file__).resolve().parent.parent
SOURCE, TRUTH = ROOT / "examples/face.mp4", ROOT / "examples/speech.truth.jsonl"
OUTPUT, SHEET = ROOT / "out/demo.mp4", ROOT / "out/demo.png"
MOMENTS = 6
SHEET_WIDTH = 1600  # px


def row(clip: Path, track: FaceTrack, frames: list[int]) -> list[Frame]:
    """A whole frame, then the mouth at each moment."""
    whole = next(VideoReader(clip).frames(frames[:1])).rgb()
    crops = list(mouth_net.aligned_crops(clip, track))
    return [whole, *(image_quality.mouth_picture(crops[i]) for i in frames)]


def main() -> int:
    lines = TRUTH.read_text(encoding="utf-8").splitlines()
    opening = np.array([json.loads(line)["opening"] for line in lines])
    try:
        detector = create("builtin", root=root() / "auxiliary")
        track = mouth_net.find_track(SOURCE, detector, at_most=len(opening))
        frames = np.linspace(0, len(opening) - 1, MOMENTS + 2).round().astype(int)[1:-1].tolist()
        rows = [row(clip, track, frames) for clip in (SOURCE, OUTPUT)]
        cv2.imwrite(
            str(SHEET), image_quality.sheet(rows, ["before", "after"], SHEET_WIDTH)[..., ::-1]
        )
        reader = mouth_net.MouthNet.load()
        measured = mouth_net.mouth_track(OUTPUT, reader, detector, track=track)[:, 0]
        found = lip_correlation.lip_correlation(measured, opening)
        amplitude = lip_correlation.amplitude_ratio(measured, opening)
    except LatentSyncError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(
        f"lip correlation {found.at_zero:.2f} with what the voice asks for, {amplitude:.2f} of its "
        f"movement, read by {reader.name}; before and after: {SHEET.relative_to(ROOT)}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
