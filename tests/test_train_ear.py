"""The parts of the ear's training that need neither the teacher nor its voices."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from latentsync.audio import mel
from latentsync.training.synthetic.recordings import read_recording
from latentsync.training.synthetic.visemes import SOUNDS

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))
import train_ear

NAMES = ("h", "@", "l", "'oU", "_:", "m", "'u:", "n")
BEGINS = (0.5, 0.6, 0.66, 0.74, 0.9, 1.2, 1.3, 1.5)
STOP = 1.7


def chances(rng, tokens=120):
    """Log likelihoods of someone who hears each sound, in noise, from its true beginning on."""
    found = rng.normal(-4, 1, (tokens, len(SOUNDS))).astype(np.float32)
    ends = [*BEGINS[1:], STOP]
    for name, begin, end in zip(NAMES, BEGINS, ends, strict=True):
        sound = "" if name.startswith("_") else name.lstrip("'")[0]
        found[round(50 * begin) : round(50 * end), SOUNDS.index(sound)] += 6
    return found


def test_phonemes_are_found_where_they_are_heard():
    sentence = train_ear.Sentence(0.5, STOP, NAMES, None)
    found = train_ear._viterbi(chances(np.random.default_rng(0)), sentence)
    assert np.abs(np.subtract(found, BEGINS)).max() <= 1.01 / mel.TOKENS_PER_SECOND


def test_a_pause_that_is_not_made_is_left_out():
    sentence = train_ear.Sentence(0.5, STOP, ("h", "_:", *NAMES[1:]), None)
    found = train_ear._viterbi(chances(np.random.default_rng(0)), sentence)
    assert found[2] == pytest.approx(BEGINS[1], abs=0.021)


def test_leading_silence_and_marks_take_no_sound():
    names = ("h", "@", "l", "'oU", "_:", "(en)", "m", "'u:", "n")
    heard = np.concatenate([np.full((20, len(SOUNDS)), -4.0), chances(np.random.default_rng(0))])
    heard[:45, 0] += 6
    found = train_ear._viterbi(heard, train_ear.Sentence(0.5, STOP + 0.4, names, None))
    assert found[0] == pytest.approx(BEGINS[0] + 0.4, abs=0.021)
    assert found[6] == pytest.approx(BEGINS[5] + 0.4, abs=0.021)


def hear(sounds, rng):
    """What a teacher with a clear ear makes of each token."""
    return (np.eye(len(SOUNDS))[sounds] + rng.normal(0, 0.3, (len(sounds), len(SOUNDS)))).astype(
        np.float16
    )


@pytest.mark.slow
def test_a_voice_without_times_is_aligned_and_heard(tmp_path, monkeypatch):
    monkeypatch.setattr(train_ear, "UTTERANCE_SECONDS", 4.0)
    job, rng = train_ear.Job(tmp_path, 1, 0.001), np.random.default_rng(0)
    (tmp_path / "voices").mkdir()
    (tmp_path / "taught").mkdir()
    truth = {}
    for index in range(8):
        name = f"espeak-{index:04d}"
        train_ear._draw(tmp_path / "voices", tmp_path, ("espeak", index))
        truth[name] = phonemes = train_ear._phonemes(train_ear._sentences(job, name), [])
        with np.load(tmp_path / "voices" / f"{name}.npz") as drawn:
            wave, sentences = drawn["wave"], json.loads(str(drawn["sentences"]))
        states = hear(train_ear._sounds(phonemes, len(wave) // 320), rng)
        np.save(tmp_path / "taught" / f"{name}.npy", states)
        if index >= 6:  # the same once more, as one whose times nobody tells
            for one in sentences:
                one["times"] = None
            other = f"other-{index - 6:04d}"
            np.savez(tmp_path / f"voices/{other}.npz", wave=wave, sentences=json.dumps(sentences))
            np.save(tmp_path / "taught" / f"{other}.npy", states)
    train_ear.align(job)
    for index in (0, 1):
        _, found = read_recording(tmp_path / f"recordings/other-{index:04d}.npz")
        assert np.median(train_ear._apart(truth[f"espeak-{index + 6:04d}"], found)) < 0.015
    train_ear.distil(job)
    assert (tmp_path / "speech.pt").is_file()
