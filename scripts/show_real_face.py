"""What the demo model makes of a real face: out/real.png, before and after.

The photograph is scikit-image's `astronaut` (NASA, public domain), which is no part of this
repository; the voice is examples/speech.wav. The model was trained on drawn faces: it shows.
"""

from pathlib import Path

import cv2
import numpy as np
from skimage.data import astronaut

import latentsync
from latentsync.evaluation import image_quality, mouth_net
from latentsync.media import VideoReader

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "out"
MOMENTS = 6
SHEET_WIDTH = 1600  # px


def main() -> None:
    OUT.mkdir(exist_ok=True)
    photo, clip = OUT / "real-photo.png", OUT / "real.mp4"
    cv2.imwrite(str(photo), astronaut()[..., ::-1])
    model = latentsync.load("demo")
    result = model.run(photo, ROOT / "examples/speech.wav", clip, seed=1)
    frames = np.linspace(0, result.frames - 1, MOMENTS + 2).round().astype(int)[1:-1].tolist()
    track = mouth_net.find_track(photo, model.detector)
    mouth = image_quality.mouth_picture(next(iter(mouth_net.aligned_crops(photo, track))))
    crops = list(mouth_net.aligned_crops(clip, track))
    whole = next(VideoReader(clip).frames(frames[:1])).rgb()
    before = [astronaut(), *[mouth] * MOMENTS]
    after = [whole, *(image_quality.mouth_picture(crops[i]) for i in frames)]
    sheet = image_quality.sheet([before, after], ["before", "after"], SHEET_WIDTH)
    cv2.imwrite(str(OUT / "real.png"), sheet[..., ::-1])
    print(f"before and after: {OUT / 'real.png'}")


if __name__ == "__main__":
    main()
