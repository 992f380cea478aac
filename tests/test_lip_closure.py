"""Leak and closure: a mouth that is open in silence, and one that stays open at p, b and m."""

import json
from fractions import Fraction

import numpy as np
import pytest
from scipy.signal import resample_poly

from latentsync.audio.vad import detect_speech
from latentsync.errors import InputError
from latentsync.evaluation import runner, sync_metrics
from latentsync.evaluation.clips import find_pairs
from latentsync.evaluation.lip_closure import (
    OPEN_EYE_DISTANCES,
    Closure,
    closed_share,
    leak_share,
    read_closures,
)
from latentsync.evaluation.runner import evaluate
from latentsync.media import AudioReader
from latentsync.training.synthetic import draw_take
from latentsync.training.synthetic.clips import truth_of
from tests.clips import babble, write_clip
from tests.stubs import SIZE, Brightness, StubDetector

AT_25_FPS = np.arange(50) / 25


def truth(clip, *rows):
    path = clip.with_suffix(".truth.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def row(index, *phonemes):
    return {"frame": index, "seconds": index / 25, "phonemes": phonemes}


# ---- the shares themselves -----------------------------------------------------------------------


def test_the_leak_is_the_share_of_silent_frames_with_an_open_mouth():
    opening = np.array([0.3, 0.0, 0.04, 0.041, 0.2, np.nan, 0.3])
    speaks = np.array([True, True, False, False, False, False, False])
    assert leak_share(opening, speaks) == pytest.approx(3 / 4)  # 0.04 is shut; NaN doesn't count
    assert leak_share(opening[:2], speaks[:2]) is None
    assert leak_share(np.array([0.3, np.nan]), np.array([True, False])) is None


def test_the_lips_close_where_one_frame_is_shut():
    closures = [Closure(0.4, 0.46), Closure(1.2, 1.26)]
    opening = np.full(50, 0.2)
    assert closed_share(opening, AT_25_FPS, closures) == 0
    opening[11] = OPEN_EYE_DISTANCES  # at 0.44 s
    assert closed_share(opening, AT_25_FPS, closures) == 0.5
    opening[30] = -0.01  # as the mouth net reads it now and then
    assert closed_share(opening, AT_25_FPS, closures) == 1
    assert closed_share(opening, AT_25_FPS, []) is None
    opening[28:34] = np.nan
    assert closed_share(opening, AT_25_FPS, closures) == 1  # of the one that is known


@pytest.mark.parametrize(("shut", "share"), [(8, 0), (9, 1), (10, 1), (12, 1), (13, 0)])
def test_a_frame_early_or_late_is_no_error(shut, share):
    opening = np.full(50, 0.2)
    opening[shut] = 0
    assert closed_share(opening, AT_25_FPS, [Closure(0.4, 0.46)]) == share


# ---- the times -----------------------------------------------------------------------------------


def test_closures_are_read_from_the_truth_beside_the_clip(tmp_path):
    clip = tmp_path / "1.mp4"
    truth(
        clip,
        row(0, (0.0, "_:"), (0.012, "m")),
        row(1, (0.06, "'a")),
        row(2),
        row(3, (0.12, "'p"), (0.14, "t")),
        row(4, (0.16, "b")),
    )
    assert read_closures(clip) == [Closure(0.012, 0.06), Closure(0.12, 0.14), Closure(0.16, 0.16)]


def test_a_clip_without_phoneme_times_says_so(tmp_path):
    clip = tmp_path / "1.mp4"
    with pytest.raises(InputError, match=r"no phoneme times: 1.truth.jsonl is not beside 1.mp4"):
        read_closures(clip)
    for wrong in ({"frame": 0, "seconds": 0}, {**row(0), "phonemes": 3}, [3]):
        truth(clip, wrong)
        with pytest.raises(InputError, match=r"1.truth.jsonl lacks them .*synthesise"):
            read_closures(clip)
    truth(clip)
    with pytest.raises(InputError, match="lacks them"):
        read_closures(clip)


def test_a_drawn_mouth_closes_and_does_not_leak(tmp_path):
    class Sound:
        def chunks(self):
            yield resample_poly(take.speech.wave.astype(np.float32) / 32768, 320, 441)

    shares = []
    for index in range(4):
        take, clip = draw_take(7, index, 4.0), tmp_path / f"{index}.mp4"
        rows = list(truth_of(take, (64, 64)))
        truth(clip, *rows)
        opening = np.array([row["opening"] for row in rows])
        seconds, closures = np.arange(len(rows)) / 25, read_closures(clip)
        speaks = detect_speech(Sound()).at(np.arange(len(rows)), Fraction(1, 25))
        shares.append(
            (
                closed_share(opening, seconds, closures),
                closed_share(opening[::-1], seconds, closures),
                leak_share(opening, speaks),
                leak_share(opening[::-1], speaks),
            )
        )
    right, wrong, leak, wrong_leak = np.mean(shares, axis=0)
    assert right == 1
    assert wrong < 0.7
    assert leak < 0.1
    assert wrong_leak > 0.3


# ---- latentsync evaluate -------------------------------------------------------------------------


@pytest.fixture
def evaluated(tmp_path, monkeypatch):
    """Figures of a clip as bright as its mouth is open; it speaks for 1 s of 2."""
    monkeypatch.setattr(sync_metrics.MouthNet, "load", lambda *_: Brightness())
    monkeypatch.setattr(runner.faces, "create", lambda *_, **__: StubDetector())
    sound = np.concatenate([babble(1, 48000), np.zeros(48000)]).astype(np.float32)

    def run(bright, reference=None, sound=sound):
        shades = np.where(np.isin(np.arange(50), bright), 120, 0)
        frames = [np.full((SIZE[1], SIZE[0], 3), shade, np.uint8) for shade in shades]
        output = write_clip(tmp_path / "output.mp4", frames, size=SIZE, crf="0", sound=sound)
        (only,) = evaluate(find_pairs([output], reference and output), ["lips"]).clips
        return output, only

    return run


def test_evaluate_tells_the_leak_of_the_voice(evaluated):
    output, found = evaluated([*range(2, 20), 44, 45, 46, 47])
    silent = ~detect_speech(AudioReader(output)).at(np.arange(50), Fraction(1, 25))
    assert 10 < silent.sum() < 25
    assert found.figures["leak"] == pytest.approx(4 / silent.sum())
    assert evaluated(range(2, 20))[1].figures["leak"] == 0
    assert found.missing["closure"] == "needs --reference"
    _, found = evaluated([3], sound=babble(2, 48000))
    assert found.missing["leak"] == "the voice is never silent"


def test_evaluate_tells_the_closures_of_the_reference(evaluated, tmp_path):
    open_but_at_10 = [index for index in range(50) if index != 10]
    _, found = evaluated(open_but_at_10, True)
    assert found.missing["closure"].startswith("no phoneme times: output.truth.jsonl is not beside")
    clip = tmp_path / "output.mp4"
    rows = [row(index) for index in range(50)]
    truth(clip, *rows)
    assert evaluated([], True)[1].missing["closure"] == "the voice says no p, b or m"
    rows[10], rows[20], rows[22] = row(10, (0.4, "b")), row(20, (0.8, "m")), row(22, (0.88, "a"))
    truth(clip, *rows)
    assert evaluated([*range(9), *range(23, 50)], True)[1].figures["closure"] == 1
    _, found = evaluated([*range(9), *range(10, 50)], True)
    assert found.figures["closure"] == 0.5
    assert found.figures["leak"] == 1
