"""A rendered scene as a clip with its sound, and its first frame as a photo."""

import tempfile
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from scipy.io import wavfile

from latentsync.media import VideoFrame, VideoWriter
from latentsync.training.synthetic.clips import FPS

__all__ = ["write_clip"]

SAMPLE_RATE = 16000


def write_clip(path: Path) -> None:
    """Write <name>.mp4 and <name>.png beside a person's .npz."""
    with np.load(path) as file:
        frames, wave = file["pixels"][0], file["wave"]
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, "voice.wav")
        wavfile.write(sound, SAMPLE_RATE, wave[: len(frames) * SAMPLE_RATE // FPS])
        with VideoWriter(path.with_suffix(".mp4"), audio=sound, fps=Fraction(FPS)) as video:
            for frame in frames:
                video.write(VideoFrame.from_rgb(frame))
    cv2.imwrite(str(path.with_suffix(".png")), frames[0, ..., ::-1])
