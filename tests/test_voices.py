"""Several faces, each with a voice of its own."""

import numpy as np
import pytest

from latentsync.errors import NoFaceFound, OptionError
from latentsync.media import Sound, mix
from latentsync.options import Options
from latentsync.pipeline.speakers import open_voices
from tests.clips import babble, heard, raw_frames, write_sound
from tests.stubs import tiny_lipsync
from tests.test_following import LEFT, RIGHT, WIDE, clip, lipsync

HALF = WIDE[0] // 2


@pytest.fixture
def source(tmp_path):
    return clip(tmp_path / "clip.mp4", 20)


@pytest.fixture
def sounds(tmp_path):
    """Two voices: 0.8 s, and 0.32 s of another."""
    voices = babble(0.8), babble(1.4)[-5120:]
    return [write_sound(tmp_path / f"{i}.wav", voice) for i, voice in enumerate(voices)]


def film(source, audio, out, **options):
    result = lipsync(lambda _: [RIGHT, LEFT]).run(
        source, audio, out, **({"steps": 1, "crf": 0, "seed": 3} | options)
    )
    return result, [planes[0] for planes in raw_frames(out)]


def test_each_face_speaks_with_its_own_voice(source, sounds, tmp_path):
    out = tmp_path / "out.mp4"
    result, both = film(source, {"left": sounds[0], "right": sounds[1]}, out)
    assert len(both) == 20
    assert result.voices == {"left": str(sounds[0]), "right": str(sounds[1])}
    # The shorter one's mouth: as by itself while it sounds, drawn shut afterwards.
    _, left = film(source, sounds[0], out, face="left")
    _, right = film(source, sounds[1], out, face="right", sync_mode="silence")
    for index in range(20):
        np.testing.assert_array_equal(both[index][:, :HALF], left[index][:, :HALF])
    for index in range(5):
        assert np.abs(both[index][:, HALF:] - right[index][:, HALF:].astype(int)).max() <= 60
    own = next(iter(raw_frames(source)))[0]
    assert not np.array_equal(both[19][:, HALF:], own[:, HALF:])
    _, exchanged = film(source, {"left": sounds[1], "right": sounds[0]}, out)
    assert not np.array_equal(exchanged[3][:, :HALF], both[3][:, :HALF])


def test_after_its_voice_a_face_hears_silence(source, sounds, tmp_path):
    """The last frames of the shorter voice's face don't depend on what that voice said."""
    out = tmp_path / "out.mp4"
    other = write_sound(tmp_path / "other.wav", babble(0.32))
    _, one = film(source, {"left": sounds[0], "right": sounds[1]}, out)
    _, two = film(source, {"left": sounds[0], "right": other}, out)
    assert not np.array_equal(one[3][:, HALF:], two[3][:, HALF:])


@pytest.mark.parametrize("peak", [0, 8])  # 16-bit steps; -72 dBFS
def test_of_a_silent_voice_it_is_said(tmp_path, caplog, peak):
    silent = np.full(8000, peak / 2**15, np.float32)
    paths = {
        "left": write_sound(tmp_path / "muted.wav", silent, 16000),
        "right": write_sound(tmp_path / "low.wav", silent + 4 / 2**15, 16000),
    }
    if not peak:
        paths["right"] = write_sound(tmp_path / "low.wav", babble(0.5, 16000, seed=1), 16000)
    with open_voices(paths, Options(), tmp_path / "no clip") as voices:
        told = voices.tracks()
    said = [r.getMessage() for r in caplog.records if "is silent" in r.getMessage()]
    assert told["left"].endswith(", silent")
    assert not told["right"].endswith(", silent")
    assert len(said) == 1
    assert "muted.wav' is silent (track 1 of 1): give another" in said[0]


def test_the_voices_are_summed_and_kept_within_full_scale(tmp_path):
    rate = 24000
    times = np.arange(rate) / rate
    loud = 0.8 * np.sin(2 * np.pi * 220 * times)
    quiet = 0.1 * np.sin(2 * np.pi * 440 * times[: rate // 2])
    paths = [
        write_sound(tmp_path / f"{i}.wav", wave.astype(np.float32), rate=rate)
        for i, wave in enumerate((loud, loud, quiet))
    ]
    mix([Sound.of(path) for path in paths[::2]], tmp_path / "soft.flac")
    soft = heard(tmp_path / "soft.flac", rate)
    expected = loud + np.pad(quiet, (0, rate - len(quiet)))
    assert len(soft) == rate
    assert np.abs(soft - expected).max() < 0.01
    mix([Sound.of(path) for path in paths[:2]], tmp_path / "loud.flac")
    limited = heard(tmp_path / "loud.flac", rate)
    assert 0.9 < np.abs(limited[2000:]).max() <= 0.96


def test_the_output_s_sound_is_that_of_all(source, sounds, tmp_path):
    out = tmp_path / "out.mp4"
    film(source, {"left": sounds[0], "right": sounds[1]}, out)
    sound = heard(out)
    first, second = (heard(path) for path in sounds)
    expected = first + np.pad(second, (0, len(first) - len(second)))
    both = np.corrcoef(sound[: len(expected)], expected[: len(sound)])[0, 1]
    alone = np.corrcoef(sound[: len(first)], first[: len(sound)])[0, 1]
    assert both > 0.98 > alone


@pytest.mark.parametrize(
    ("voices", "options", "said"),
    [
        ({}, {}, "no voice"),
        ({"left": 0, "right": 1}, {"face": "center"}, "face is 'center'"),
        ({"all": 0, "right": 1}, {}, "speaker 'all' beside others"),
        ({"left": 0, "40,90": 1}, {}, "speakers left and 40,90 are the same face"),
        ({"left": 0, "right": 1}, {"follow": "frame"}, "follow is 'frame'"),
        ({"left": 0, "nobody.png": 1}, {}, "face 'nobody.png'"),
    ],
)
def test_speakers_that_make_no_sense_are_refused(source, sounds, tmp_path, voices, options, said):
    audio = {face: sounds[i] for face, i in voices.items()}
    with pytest.raises(OptionError, match=said):
        film(source, audio, tmp_path / "out.mp4", **options)
    assert not (tmp_path / "out.mp4").exists()


def test_no_face_is_said_of_speakers_too(source, sounds, tmp_path):
    voices = {"left": sounds[0], "right": sounds[1]}
    with pytest.raises(NoFaceFound):
        tiny_lipsync(lambda _: False).run(source, voices, tmp_path / "out.mp4", steps=1)


def test_silence_is_each_speaker_s_own(source, tmp_path):
    """With silence=keep, a mouth stays the clip's own while its own voice pauses."""
    speech, nothing = babble(0.8), np.zeros(12800, np.float32)
    left = write_sound(tmp_path / "left.wav", speech)
    right = write_sound(tmp_path / "right.wav", nothing)
    out = tmp_path / "out.mp4"
    _, kept = film(source, {"left": left, "right": right}, out, silence="keep")
    own = next(iter(raw_frames(source)))[0]
    assert all(np.array_equal(frame[:, HALF:], own[:, HALF:]) for frame in kept)
    assert not all(np.array_equal(frame[:, :HALF], own[:, :HALF]) for frame in kept)


@pytest.mark.parametrize("order", [(48000, 8000), (8000, 48000)])
def test_the_sum_has_the_rate_of_the_best_voice(tmp_path, order):
    """What only it holds is kept: here a tone of 10 kHz."""
    tones = {48000: 10_000, 8000: 1000}  # Hz
    paths = []
    for rate in order:
        tone = 0.3 * np.sin(2 * np.pi * tones[rate] * np.arange(rate) / rate)
        paths.append(write_sound(tmp_path / f"{rate}.wav", tone.astype(np.float32), rate=rate))
    mix([Sound.of(path) for path in paths], tmp_path / "sum.flac")
    assert Sound.of(tmp_path / "sum.flac").sample_rate == 48000
    sound = heard(tmp_path / "sum.flac", 48000)
    assert len(sound) == 48000
    spectrum = np.abs(np.fft.rfft(sound)) * 2 / len(sound)
    assert spectrum[1000] == pytest.approx(0.3, abs=0.02)
    assert spectrum[10_000] == pytest.approx(0.3, abs=0.02)
