"""Draws the plans of people: voices, movements and cameras. Needs the library's environment."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

from latentsync.training.synthetic import Take, draw_take
from latentsync.training.synthetic.motion import drift
from latentsync.training.synthetic.recordings import draw_recording
from latentsync.training.synthetic.speech import TRAINED_LANGUAGES

from .makehuman import Floats
from .plan import Plan

__all__ = ["PlanOptions", "draw_plan"]

SEED = 3  # of all rendered people; drawn ones have 1
LEAST_SECONDS = 8.0
JITTER = 0.03  # standard deviation of the alignment's error, as of the drawn crops
WINDOW_SHARE = 0.7  # of that error stays the same through a window
DISTANCE_DM = (5.5, 22.0)  # from a phone in the hand to a camera across a desk


@dataclass(frozen=True)
class PlanOptions:
    """What is rendered of each person."""

    windows: int = 20
    frames: int = 1  # a window
    crop: int = 96  # side, px
    scene: tuple[int, int] | None = None  # width, height in px; instead of crops
    recordings: Path | None = None  # of train_ear.py, said by two of three people; None: by nobody


def draw_plan(index: int, options: PlanOptions) -> Plan:
    """Draw the voice, the movements and the camera of person number `index`."""
    windows, frames = options.windows, options.frames
    seconds = max(LEAST_SECONDS, frames / 25)
    rng = np.random.default_rng([SEED, index, 1])
    speech = None
    if options.recordings is not None and index % 3:
        speech = draw_recording(options.recordings, rng, seconds)
    take = draw_take(SEED, index, seconds, languages=TRAINED_LANGUAGES, speech=speech)
    places = len(take) - frames + 1
    starts = np.sort(rng.choice(places, windows, replace=windows > places))
    if options.scene:
        starts = np.zeros(1, np.int64)  # from the beginning, as its sound
    numbers = starts[:, None] + np.arange(frames)
    shape = (len(starts), frames)
    own = JITTER * np.sqrt(1 - WINDOW_SHARE**2) * (0.3 if frames > 1 else 1.0)
    same = rng.normal(0, JITTER * WINDOW_SHARE, (len(starts), 1, 3, 2))
    head = [(pose.yaw, pose.pitch, pose.roll, pose.x, pose.y) for pose in take.poses]
    wave = resample_poly(take.speech.wave.astype(np.float32), 320, 441)  # 22,050 Hz to 16,000
    return Plan(
        frames=numbers,
        tracks=take.mouths[numbers].astype(np.float64),
        head=np.array(head)[numbers],
        face=_draw_expressions(take, rng)[numbers],
        jitter=same + rng.normal(0, own, (*shape, 3, 2)),
        zoom=take.zoom * np.array([pose.scale for pose in take.poses])[numbers],
        view=np.array([rng.uniform(*DISTANCE_DM), rng.normal(0, 0.2), rng.normal(0, 0.09)]),
        size=np.array(options.scene or (options.crop, 0)),
        wave=np.clip(np.round(wave), -32768, 32767).astype(np.int16),
    )


def _draw_expressions(take: Take, rng: np.random.Generator) -> Floats:
    """(frames, 6): blinks and glances of the take, smiles, brows and squints besides."""
    times = (np.arange(len(take)) / take.fps).astype(np.float32)
    smile = rng.normal(0.05, 0.2) + drift(rng, times, 0.25, 0.15)
    brows = rng.normal(0, 0.15) + drift(rng, times, 0.4, 0.25)
    squint = abs(rng.normal(0, 0.15)) + drift(rng, times, 0.15, 0.2)
    given = [(pose.blink, pose.gaze_x, pose.gaze_y) for pose in take.poses]
    own = np.stack([np.clip(smile, -1, 1), np.clip(brows, -1, 1), np.clip(squint, 0, 1)], axis=1)
    return np.concatenate([np.array(given), own], axis=1)
