"""Talking heads that this project draws itself: faces, voices and the truth about both.

speech.py and sentences.py speak (espeak-ng, extra `[train]`); visemes.py turns phonemes into mouth
tracks; identity.py and motion.py draw people and movements; heads.py draws frames and crops of
them with geometry, mouth, canvas, skin, hair, eyes and room; clips.py writes clips and their truth,
and draws crops of them; scenes.py draws what the face detector is trained on.
"""

from latentsync.training.synthetic.clips import (
    Take,
    draw_take,
    frames_of,
    synthesise,
    write_take,
    write_wave,
)
from latentsync.training.synthetic.geometry import Pose
from latentsync.training.synthetic.heads import (
    LANDMARKS,
    crop_affine,
    draw,
    draw_crop,
    landmarks,
    measure,
)
from latentsync.training.synthetic.identity import Identity
from latentsync.training.synthetic.motion import draw_motion
from latentsync.training.synthetic.mouth import Mouth
from latentsync.training.synthetic.speech import (
    LANGUAGES,
    Phoneme,
    Speech,
    Voice,
    draw_speech,
    draw_voice,
    speak,
)
from latentsync.training.synthetic.visemes import TRACKS, mouth_tracks

__all__ = [
    "LANDMARKS",
    "LANGUAGES",
    "TRACKS",
    "Identity",
    "Mouth",
    "Phoneme",
    "Pose",
    "Speech",
    "Take",
    "Voice",
    "crop_affine",
    "draw",
    "draw_crop",
    "draw_motion",
    "draw_speech",
    "draw_take",
    "draw_voice",
    "frames_of",
    "landmarks",
    "measure",
    "mouth_tracks",
    "speak",
    "synthesise",
    "write_take",
    "write_wave",
]
