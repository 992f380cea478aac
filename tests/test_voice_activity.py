"""Who speaks when: words found in noise, none invented, none cut off."""

from collections.abc import Iterator
from fractions import Fraction

import numpy as np
import pytest

from latentsync.audio import vad
from latentsync.audio.vad import VoiceActivity, detect_speech
from latentsync.types import FloatArray

RATE = 16_000  # Hz


class Wave:
    def __init__(self, wave: FloatArray, chunk: int = 4000) -> None:
        self.wave, self.chunk = wave.astype(np.float32), chunk

    def chunks(self) -> Iterator[FloatArray]:
        yield from np.split(self.wave, range(self.chunk, len(self.wave), self.chunk))


def sounding(*spans: tuple[float, float], seconds: float = 10.0, noise: float = 0.0) -> FloatArray:
    """Syllables of about 0.2 s, in these spans of seconds, over noise."""
    t = np.arange(round(seconds * RATE)) / RATE
    voice = sum(np.sin(2 * np.pi * 130 * h * t) / h for h in range(2, 12))
    voice *= 0.1 * (0.55 + 0.45 * np.sin(2 * np.pi * 5 * t))
    spoken = np.any([(start <= t) & (t < stop) for start, stop in spans], axis=0)
    return voice * spoken + noise * np.random.default_rng(0).standard_normal(len(t))


def heard(wave: FloatArray, **options: int) -> list[tuple[float, float]]:
    """[start, stop) seconds of each stretch of speech."""
    blocks = detect_speech(Wave(wave, **options)).blocks
    borders = np.flatnonzero(np.diff(blocks, prepend=False, append=False)) / 50
    return [(float(a), float(b)) for a, b in borders.reshape(-1, 2)]


@pytest.mark.parametrize("noise", [0.0, 0.003, 0.01])
def test_words_are_found_and_widened(noise):
    wave = sounding((1, 3), (5, 8), noise=noise)
    assert np.allclose(heard(wave), [(0.92, 3.2), (4.92, 8.2)], atol=0.1)


def test_a_short_pause_is_part_of_speech_and_a_click_is_none():
    assert np.allclose(heard(sounding((2, 4), (4.5, 6))), [(1.92, 6.2)], atol=0.05)
    assert len(heard(sounding((2, 4), (4.7, 6)))) == 2
    assert heard(sounding((2, 4), (7, 7.035))) == heard(sounding((2, 4)))


def test_what_is_always_there_is_no_speech():
    t = np.arange(12 * RATE) / RATE
    chord = sum(0.005 * np.sin(2 * np.pi * f * t) for f in (262, 330, 392))
    fan = sounding(seconds=12, noise=0.006) * (t > 4)
    for steady in (chord, fan):
        spoken = heard(steady + sounding((6, 8), seconds=12))
        assert np.allclose(spoken, [(5.92, 8.2)], atol=0.1)


def test_a_word_that_fades_is_heard_to_its_end():
    t = np.arange(10 * RATE) / RATE
    hum = np.sin(2 * np.pi * 1000 * t)
    fading = hum * 0.1 * 10 ** (-2 * np.clip(t - 3, 0, None)) * (t > 2)  # 40 dB a second
    noise = 0.003 * np.random.default_rng(0).standard_normal(len(t))
    ((start, stop),) = heard(fading + noise)
    assert start == pytest.approx(1.92, abs=0.05)
    # 5 dB over the noise, of which a half lies in the band, comes at 3.7 s; 10 dB over it, at 3.6.
    assert stop > 3.85


def test_a_word_with_nothing_around_it_is_speech():
    word = sounding((0, 1))[: RATE // 2]
    assert detect_speech(Wave(word)).blocks.all()


def test_silence_and_nothing_at_all():
    assert not detect_speech(Wave(np.zeros(RATE))).blocks.any()
    assert not detect_speech(
        Wave(1e-4 * np.random.default_rng(0).standard_normal(RATE))
    ).blocks.any()
    assert len(detect_speech(Wave(np.zeros(0))).blocks) == 0


def test_chunks_of_any_length_are_heard_alike():
    wave = sounding((1, 2), (4, 5))[: 6 * RATE + 7]
    blocks = detect_speech(Wave(wave)).blocks
    assert len(blocks) == 6 * 50 + 1
    for chunk in (111, 333, len(wave)):
        np.testing.assert_array_equal(detect_speech(Wave(wave, chunk)).blocks, blocks)


def test_frames_of_a_video_beside_it():
    activity = VoiceActivity(np.repeat([False, True, False], 50))  # the second second of three
    begins = np.arange(100)
    tick = Fraction(1, 25)
    np.testing.assert_array_equal(activity.at(begins, tick), (begins >= 25) & (begins < 50))
    later = activity.at(begins, tick, Fraction(1, 2))
    np.testing.assert_array_equal(later, (begins >= 37.5) & (begins < 62.5))
    film = activity.at(begins * 1001, Fraction(1, 24000))
    seconds = begins * 1001 / 24000
    np.testing.assert_array_equal(film, (seconds >= 1) & (seconds < 2))
    blocks = np.random.default_rng(0).random(9000) < 0.5
    each = VoiceActivity(blocks).at(np.arange(9000) * 49, Fraction(1, 49 * 50))
    np.testing.assert_array_equal(each, blocks)
    assert not VoiceActivity(np.ones(50, bool)).at(np.array([-1, 25]), tick).any()


@pytest.mark.parametrize("blocks", [1, 20, 299, 301, 700])
def test_the_floor_is_that_of_the_six_seconds_on_either_side(blocks):
    levels = np.random.default_rng(blocks).normal(-40, 10, blocks).astype(np.float32)
    size = vad.FLOOR_BLOCKS
    around = np.pad(levels, 2 * size, mode="symmetric")
    rank = size * vad.FLOOR_PERCENT // 100
    wanted = [
        max(np.sort(around[start : start + size])[rank] for start in (at - size + 1, at - 1))
        for at in range(2 * size, 2 * size + blocks)
    ]
    np.testing.assert_array_equal(vad._floor(levels), wanted)
