"""Which sound track of several is heard, which channel of two, and what its language is called."""

import logging
from pathlib import Path

import numpy as np
import pytest

from latentsync.errors import MediaError, OptionError
from latentsync.media import AudioReader, Sound, VideoFrame, VideoReader, VideoWriter
from latentsync.media.tracks import language_code
from latentsync.options import Options
from tests.clips import babble, ffmpeg, lag, picture, write_sound
from tests.stubs import numbered_clip, tiny_lipsync

RATE = 16000  # Hz
VOICES = {seed: babble(0.8, RATE, seed=seed) for seed in (1, 2)}
SILENCE = np.zeros(round(0.8 * RATE), np.float32)


def tracks(path: Path, *sounds: np.ndarray, words: str = "", clip: Path | None = None) -> Path:
    """A file with these sound tracks; `words` are FFmpeg's for its writer."""
    inputs = ["-i", clip] if clip else []
    maps = ["-map", "0:v"] if clip else []
    for number, sound in enumerate(sounds):
        part = write_sound(path.with_name(f"part {number}.wav"), sound, RATE)
        inputs += ["-i", part]
        maps += ["-map", f"{number + bool(clip)}:a"]
    ffmpeg(*inputs, *maps, "-c:v", "copy", *words.split(), path)
    return path


def heard(path: Path, track: str | int = "auto") -> np.ndarray:
    return np.concatenate(list(AudioReader(path, track=track).chunks()))


def like(sound: np.ndarray, other: np.ndarray) -> float:
    """Correlation of two sounds, the later one moved."""
    late = round(lag(sound, other, RATE) * RATE)
    sound, other = (sound[late:], other) if late >= 0 else (sound, other[-late:])
    n = min(len(sound), len(other))
    return float(np.corrcoef(sound[:n], other[:n])[0, 1])


LANGUAGES = "-metadata:s:a:0 language=eng -metadata:s:a:1 language={} -disposition:a:0 default"


@pytest.mark.parametrize("suffix", [".mkv", ".mp4", ".ts"])
def test_a_track_is_chosen_by_number_or_by_language(tmp_path, suffix):
    file_says = {".mkv": "ger", ".mp4": "deu", ".ts": "ger"}[suffix]
    words = LANGUAGES.format(file_says) + " -c:a aac"
    path = tracks(tmp_path / f"a{suffix}", VOICES[1], VOICES[2], words=words)
    assert like(heard(path), VOICES[1]) > 0.9
    for track in (1, "1", "en", "eng", "en-GB"):
        assert like(heard(path, track), VOICES[1]) > 0.9
    for track in (2, "2", "de", "deu", "ger", "DE_at"):
        assert like(heard(path, track), VOICES[2]) > 0.9
        sound = Sound.of(path, track=track)
        assert (sound.track.number, sound.track.of, sound.track.language) == (2, 2, "deu")


def test_a_track_that_is_not_there_is_refused_with_those_that_are(tmp_path):
    path = tracks(tmp_path / "a.mkv", VOICES[1], VOICES[2], words="-metadata:s:a:1 language=fre")
    for track in (3, "3", "it", "xx"):
        with pytest.raises(MediaError, match=r"no sound track '.+': give one of 1 \(no language\)"):
            Sound.of(path, track=track)
    with pytest.raises(MediaError, match=r"2 \(fra\)"):
        Sound.of(path, track="it")


def test_of_the_only_track_it_is_said_that_it_is_the_only_one(tmp_path):
    path = write_sound(tmp_path / "a.wav", VOICES[1], RATE)
    with pytest.raises(MediaError, match=r"track '2': give 1 \(no language\), the only one, or"):
        Sound.of(path, track=2)


@pytest.mark.parametrize("track", ["", "0", 0, -1, True, None, "english", "1.5", "a b", 1.5])
def test_what_names_no_track_is_refused(track):
    with pytest.raises(OptionError, match="audio_track is"):
        Options(audio_track=track)


def test_a_silent_track_is_passed_over_and_said(tmp_path, caplog):
    """As cameras write it: 5.1 without a microphone, beside the mono of the recorder."""
    surround = "-filter:a:0 pan=5.1|c0=c0|c1=c0|c2=c0|c3=c0|c4=c0|c5=c0"
    words = f"{surround} -c:a aac -disposition:a:0 default"
    path = tracks(tmp_path / "a.mkv", SILENCE, VOICES[2], words=words)
    assert like(heard(path), VOICES[2]) > 0.9
    assert "track 2 of 2, for track 1 is silent" in caplog.text
    assert np.abs(heard(path, 1)).max() == 0  # who asks for it gets it
    dithered = tracks(tmp_path / "b.mkv", SILENCE + 3e-5, VOICES[2], words="-c:a pcm_s16le")
    assert Sound.of(dithered).track.number == 2
    quiet = tracks(tmp_path / "c.mkv", 0.01 * VOICES[1], VOICES[2], words="-c:a pcm_s24le")
    assert Sound.of(quiet).track.number == 1
    both = tracks(tmp_path / "d.mkv", SILENCE, SILENCE, words="-c:a flac")
    assert Sound.of(both).track.number == 1


@pytest.mark.parametrize("codec", ["pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_f32le"])
def test_loudness_is_told_in_every_form_of_samples(tmp_path, codec):
    path = tracks(tmp_path / "a.mkv", SILENCE, VOICES[2], words=f"-c:a {codec}")
    assert Sound.of(path).track.number == 2


@pytest.mark.parametrize("codec", ["aac", "flac"])  # copied, encoded anew
def test_the_output_has_the_track_that_is_heard_and_its_language(tmp_path, codec):
    words = LANGUAGES.format("ger") + f" -c:a {codec}"
    path = tracks(tmp_path / "a.mkv", VOICES[1], VOICES[2], words=words)
    out = tmp_path / "out.mp4"
    with VideoWriter(out, audio=Sound.of(path, track=2), preset="ultrafast") as writer:
        for number in range(20):
            writer.write(VideoFrame.from_rgb(picture(number)))
    assert like(heard(out), VOICES[2]) > 0.9
    assert Sound.of(out).track.language == "deu"


def test_a_run_takes_the_track_that_is_asked_for_and_names_it(tmp_path, caplog):
    clip = numbered_clip(tmp_path / "clip.mp4", 20)
    words = LANGUAGES.format("ger") + " -c:a aac"
    path = tracks(tmp_path / "two.mkv", VOICES[1], VOICES[2], words=words, clip=clip)
    lipsync, out = tiny_lipsync(), tmp_path / "out.mp4"
    with caplog.at_level(logging.INFO, "latentsync"):
        result = lipsync.run(path, path, out, steps=1, audio_track="de")
    assert like(heard(out), VOICES[2]) > 0.9
    assert result.sound_tracks == {"largest": "track 2 of 2 (deu), aac, 16000 Hz, mono"}
    assert result.left_out == ("sound track 1 (eng)",)
    assert "not carried over" in caplog.text
    assert len(list(VideoReader(out).frames())) == result.frames
    result = lipsync.run(clip, path, out, steps=1, audio_track=1)
    assert like(heard(out), VOICES[1]) > 0.9
    assert result.left_out == ("sound track 2 (ger) of 'two.mkv'",)


# ---- two channels that cancel --------------------------------------------------------------------


@pytest.mark.parametrize(("left", "right", "side"), [(1, -1, 0), (0.7, -0.9, 1)])
def test_of_channels_that_cancel_the_louder_is_heard_and_it_is_said(
    tmp_path, caplog, left, right, side
):
    path = write_sound(tmp_path / "a.wav", np.stack([left * VOICES[1], right * VOICES[1]]), RATE)
    reader = AudioReader(path)
    sound = np.concatenate(list(reader.chunks()))
    wanted = (left, right)[side] * VOICES[1]
    assert np.abs(sound - wanted).max() < 2e-4
    name = ("left", "right")[side]
    assert f"cancel each other out: the {name} one is heard alone" in caplog.text
    assert reader.describe().endswith(f"stereo, only its {name} channel")
    assert caplog.text.count("heard alone") == 1


@pytest.mark.parametrize(
    "pair", [(1, 1), (1, 0), (0, 1), (1, -0.3), (1, 0.2)], ids=lambda pair: f"{pair[0]}, {pair[1]}"
)
def test_other_channels_are_mixed(tmp_path, caplog, pair):
    path = write_sound(tmp_path / "a.wav", np.stack([part * VOICES[1] for part in pair]), RATE)
    assert np.abs(heard(path) - sum(pair) / 2 * VOICES[1]).max() < 2e-4
    apart = write_sound(tmp_path / "b.wav", np.stack([VOICES[1], VOICES[2]]), RATE)
    assert np.abs(heard(apart) - (VOICES[1] + VOICES[2]) / 2).max() < 2e-4
    assert "cancel" not in caplog.text


# ---- names of languages --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("de", "deu"),
        ("ger", "deu"),
        ("deu", "deu"),
        ("de-AT", "deu"),
        ("EN_us", "eng"),
        ("zh", "zho"),
        ("chi", "zho"),
        ("fre", "fra"),
        ("und", ""),
        ("", ""),
        ("tlh", "tlh"),
    ],
)
def test_names_of_languages(text, code):
    assert language_code(text) == code
