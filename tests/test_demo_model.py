"""The committed demo model does what it is for: of drawn people it never saw, lips follow a voice.

Whole runs, mp4 to mp4, held against the drawn truth by the mouth net. benchmarks/lip_correlation.py
does the same at length and says more.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

import latentsync
from latentsync.evaluation import lip_correlation
from latentsync.evaluation.mouth_net import MouthNet, find_track, mouth_track
from latentsync.training.synthetic import (
    Mouth,
    draw_speech,
    draw_take,
    draw_voice,
    measure,
    mouth_tracks,
)
from latentsync.training.synthetic.clips import write_take, write_wave
from latentsync.types import FaceTrack, FloatArray

SEED = 704  # training draws from 1 to 99; of these four voices no two say alike
CLIPS, SECONDS, SIZE, STEPS = 4, 2.0, 256, 4
LANGUAGES = ("en-us", "de", "fr", "it")  # of those training heard


@dataclass(frozen=True)
class Case:
    source: Path  # somebody says A
    voice: Path  # another voice says B
    truth: Path  # the first person says B
    track: FaceTrack  # where the source has the face
    opening: FloatArray  # (frames,) of B


@pytest.fixture(scope="module")
def model():
    return latentsync.load("demo", device="cpu")


@pytest.fixture(scope="module")
def cases(tmp_path_factory, model):
    folder = tmp_path_factory.mktemp("demo")
    return [draw_case(folder, index, model.detector) for index in range(CLIPS)]


def draw_case(folder, index, detector):
    take = draw_take(SEED, index, SECONDS, languages=LANGUAGES)
    rng = np.random.default_rng([SEED, index, 1])
    speech = draw_speech(rng, SECONDS, draw_voice(rng, LANGUAGES))
    mouths = mouth_tracks(speech.phonemes, SECONDS)
    source, voice, truth = (folder / f"{index}{end}" for end in (".mp4", ".wav", "_truth.mp4"))
    write_take(take, source, (SIZE, SIZE))
    write_wave(voice, speech)
    write_take(replace(take, speech=speech, mouths=mouths), truth, (SIZE, SIZE))
    opening = [measure(take.identity, Mouth.from_track(row))[0] for row in mouths]
    return Case(source, voice, truth, find_track(source, detector), np.array(opening, np.float32))


def judged(cases, model, clips):
    """What the mouth net measures in one clip for each case."""
    net = MouthNet.load()
    measured = [
        mouth_track(clip, net, model.detector, track=case.track)[:, 0]
        for clip, case in zip(clips, cases, strict=True)
    ]
    return lip_correlation.summarise(measured, [case.opening for case in cases])


@pytest.mark.slow
def test_the_lips_follow_the_voice(cases, model, tmp_path):
    outputs = [tmp_path / case.source.name for case in cases]
    for case, output in zip(cases, outputs, strict=True):
        model.run(case.source, case.voice, output, steps=STEPS, seed=1)
    found = judged(cases, model, outputs)
    assert found.pooled > 0.55, found
    assert abs(found.wrong) < 0.3, found


@pytest.mark.slow
def test_the_measure_tells_good_from_bad(cases, model):
    perfect = judged(cases, model, [case.truth for case in cases])
    assert perfect.pooled > 0.9, perfect
    assert abs(perfect.wrong) < 0.3, perfect
    untouched = judged(cases, model, [case.source for case in cases])
    assert untouched.pooled < 0.4, untouched
