"""Make this folder's clip, photo, sentence and its truth anew: python examples/redraw.py"""

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from latentsync.training.synthetic.clips import FPS, Take, write_take, write_wave
from latentsync.training.synthetic.geometry import Pose
from latentsync.training.synthetic.heads import draw, measure
from latentsync.training.synthetic.identity import Identity
from latentsync.training.synthetic.motion import draw_motion
from latentsync.training.synthetic.mouth import Mouth
from latentsync.training.synthetic.speech import SAMPLE_RATE, Speech, Voice, join, speak
from latentsync.training.synthetic.visemes import mouth_tracks

HERE = Path(__file__).parent
# People, voices and sentences that no training run draws: `synthesise` numbers people from
# 1,000,000 on, and never says these words.
FACE, PHOTO = 9016, 9015
FACE_VOICE = Voice("en-us", "Michael", rate=150, pitch=42, pitch_range=55)
FACE_TEXT = "I was drawn this morning, and already I have plenty to say about paper and paint."
SPEECH_VOICE = Voice("en-gb-scotland", "steph2", rate=150, pitch=55, pitch_range=65)
SPEECH_TEXT = "Borrow my voice for a moment, and show me how it looks on you."


def spoken(text: str, voice: Voice, seconds: float) -> Speech:
    """The sentence with silence around it, `seconds` long."""
    speech = join([speak(text, voice)], [0.15])
    wave_ = np.zeros(round(seconds * SAMPLE_RATE), np.int16)
    if len(speech.wave) > len(wave_):
        raise SystemExit(f"{speech.seconds:.2f} s of speech do not fit into {seconds} s")
    wave_[: len(speech.wave)] = speech.wave
    return Speech(wave_, speech.phonemes)


def write_truth(path: Path, who: Identity, speech: Speech) -> None:
    """The mouth of `who` saying it, one line a frame, as `measure` has it."""
    lines = []
    for frame, row in enumerate(mouth_tracks(speech.phonemes, speech.seconds, fps=FPS)):
        values = zip(
            ("opening", "width", "rounding"), measure(who, Mouth.from_track(row)), strict=True
        )
        lines.append(json.dumps({"frame": frame} | {name: round(v, 5) for name, v in values}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    face = replace(Identity.from_seed(FACE), beard="none", glasses="none", softness=0.3, grain=1.0)
    speech = spoken(FACE_TEXT, FACE_VOICE, 6.0)
    mouths = mouth_tracks(speech.phonemes, speech.seconds)
    poses = draw_motion(np.random.default_rng(4), len(mouths), fps=FPS, amount=0.45)
    # Less than half a blink: an eye cascade shall find two eyes in every frame.
    poses = [replace(pose, blink=0.4 * pose.blink) for pose in poses]
    take = Take(face, speech, poses, mouths, zoom=1.15)
    write_take(take, HERE / "face.mp4", (512, 512), crf=21).unlink()
    sentence = spoken(SPEECH_TEXT, SPEECH_VOICE, 4.0)
    write_wave(HERE / "speech.wav", sentence)
    write_truth(HERE / "speech.truth.jsonl", face, sentence)
    still = replace(Identity.from_seed(PHOTO), grain=0.0)
    frame, _ = draw(still, Pose(yaw=0.08), Mouth(wide=0.45), (384, 384), zoom=1.15)
    cv2.imwrite(str(HERE / "photo.png"), frame[..., ::-1])


if __name__ == "__main__":
    main()
