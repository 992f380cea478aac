"""Makes clean pictures of faces look photographed, by chance: for rendered and drawn people.

Real faces are often small, compressed, noisy, and tinted by their light. Applied when a person is
loaded, one rendering becomes another photograph each time.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from latentsync.training.crops import Pixels
from latentsync.types import FloatArray

__all__ = ["Degradation", "degrade", "draw_degradation"]

ASPECT = 0.75  # width / height of the crop's place in its frame; crops are squeezed to a square
_FACE_PX = (50.0, 220.0)  # height of that place in the camera's picture
_TINTED = 0.15  # share of strongly tinted pictures
_COLOURLESS = 0.03  # share of grey pictures
_SHARPENING_RADIUS_PX = 1.0


@dataclass(frozen=True)
class Degradation:
    """One camera with its settings; levels are in 0..1."""

    face_px: float  # height of the crop's place in the camera's picture
    gain: tuple[float, float, float]  # of red, green and blue
    gamma: float
    black: float  # what black is lifted to, by haze or a flat profile
    saturation: float  # 0 grey .. 1 as it is
    blur_px: float  # standard deviation, px of the camera's picture
    noise: float  # standard deviation at a level of 1
    quality: int  # of JPEG, 1..100
    sharpening: float  # 0 none .. 1


def draw_degradation(rng: np.random.Generator) -> Degradation:
    tint = 0.15 if rng.random() < _TINTED else 0.05
    gain = np.exp(rng.normal(0, 0.12) + rng.normal(0, tint, 3) * (1.0, 0.6, 1.0))
    return Degradation(
        face_px=float(np.exp(rng.uniform(*np.log(_FACE_PX)))),
        gain=(float(gain[0]), float(gain[1]), float(gain[2])),
        gamma=float(np.exp(rng.normal(0, 0.12))),
        black=float(rng.uniform(0, 0.08) * (rng.random() < 0.5)),
        saturation=0.0 if rng.random() < _COLOURLESS else float(rng.uniform(0.6, 1.25)),
        blur_px=float(rng.uniform(0.0, 0.7)),
        noise=float(0.035 * rng.random() ** 2),
        quality=int(rng.integers(45, 98)),
        sharpening=float(rng.uniform(0, 0.8) * (rng.random() < 0.4)),
    )


def degrade(pixels: Pixels, settings: Degradation, rng: np.random.Generator) -> Pixels:
    """Photograph all pictures with the same camera, each with noise of its own.

    Give it all crops of a person at once: the colours of a face and of its reference must agree.

    Args:
        pixels: (..., R, R, 3).
    """
    flat = pixels.reshape(-1, *pixels.shape[-3:])
    shot = [_photograph(picture, settings, rng) for picture in flat]
    return np.stack(shot).reshape(pixels.shape)


def _photograph(picture: Pixels, settings: Degradation, rng: np.random.Generator) -> Pixels:
    side = picture.shape[0]
    levels = np.power(picture / np.float32(255), np.float32(settings.gamma))
    levels = levels * np.array(settings.gain, np.float32)
    grey = levels.mean(axis=2, keepdims=True)
    levels = grey + settings.saturation * (levels - grey)
    levels = settings.black + (1 - settings.black) * levels
    height = round(min(settings.face_px, side / ASPECT))  # more would show no more
    size = (max(1, round(height * ASPECT)), height)
    levels = cv2.resize(levels, size, interpolation=cv2.INTER_AREA)
    if settings.blur_px > 0:
        levels = cv2.GaussianBlur(levels, (0, 0), settings.blur_px)
    # The noise of a sensor's shot grows with the root of the light; some is there in the dark.
    spread = settings.noise * np.sqrt(0.15 + 0.85 * np.clip(levels, 0, 1))
    levels = levels + spread * rng.standard_normal(levels.shape, dtype=np.float32)
    return _sharpened(_compressed(_bytes(levels), settings.quality), side, settings.sharpening)


def _bytes(levels: FloatArray) -> Pixels:
    return np.asarray(np.clip(levels * 255 + 0.5, 0, 255), np.uint8)


def _compressed(picture: Pixels, quality: int) -> Pixels:
    done, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done, "OpenCV writes JPEG of any uint8 picture"
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)[..., ::-1]


def _sharpened(picture: Pixels, side: int, amount: float) -> Pixels:
    """Resize to a square of `side` px, sharpened as cameras do."""
    large = np.asarray(cv2.resize(picture, (side, side), interpolation=cv2.INTER_CUBIC), np.float32)
    soft = cv2.GaussianBlur(large, (0, 0), _SHARPENING_RADIUS_PX)
    return _bytes((large + amount * (large - soft)) / 255)
