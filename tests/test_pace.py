"""Whole runs by length and cadence: how long the output lasts, and when each frame is shown."""

from fractions import Fraction

import numpy as np
import pytest

from latentsync.audio.whisper import SpeechFeatures
from latentsync.errors import NoFaceFound, OptionError
from latentsync.media import AudioReader, VideoReader, probe
from latentsync.options import Options
from latentsync.pipeline.frame_source import FPS, FrameSource, converted
from tests.clips import (
    babble,
    early,
    ffmpeg,
    ffmpeg_times,
    heard,
    lag,
    number_of,
    picture,
    raw_frames,
    same,
    write_clip,
    write_picture,
    write_sound,
)
from tests.stubs import SIZE, numbered_clip, tiny_lipsync
from tests.test_pipeline import group_sizes

CLIP = 20  # frames
RATE = 16000


@pytest.fixture
def lipsync():
    return tiny_lipsync()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.mp4"


def run(lipsync, clip, out, seconds, **options):
    voice = write_sound(out.with_name("voice.wav"), babble(seconds))
    return lipsync.run(clip, voice, out, **({"steps": 1, "crf": 1} | options))


def numbers(path):
    """The frames shown, as the file has them, at whatever rate."""
    return [number_of(frame.rgb()) for frame in VideoReader(path).source_frames()]


def sound_seconds(path):
    return float(AudioReader(path).seconds)


there, back = list(range(CLIP)), list(range(CLIP - 2, 0, -1))


@pytest.mark.parametrize(
    ("mode", "longer", "shorter"),  # frames beside a voice of 30 and of 8
    [
        ("bounce", there + back[:10], there[:8]),
        ("pingpong", [*there, 19, *back[:9]], there[:8]),
        ("loop", there + there[:10], there[:8]),
        ("freeze", there + 10 * [19], there[:8]),
        ("cut_off", there, there[:8]),
        ("silence", there + back[:10], there),
        ("remap", [2 * k // 3 for k in range(30)], [5 * k // 2 for k in range(8)]),
    ],
)
def test_each_mode_lasts_as_long_as_it_says(lipsync, tmp_path, out, mode, longer, shorter):
    clip = numbered_clip(tmp_path / "clip.mp4", CLIP)
    for count, expected in ((30, longer), (8, shorter)):
        result = run(lipsync, clip, out, count / 25, sync_mode=mode)
        assert numbers(out) == expected
        assert result.frames == len(expected)
        assert result.seconds == pytest.approx(len(expected) / 25)
        assert sound_seconds(out) == pytest.approx(min(count, len(expected)) / 25, abs=0.04)
    untouched = len(expected) - 8
    assert sum(b - a for a, b, _ in result.passed_through) == untouched
    assert (untouched > 0) == (mode == "silence")


def test_a_clip_has_time_before_and_after_the_voice(lipsync, tmp_path, out):
    clip = numbered_clip(tmp_path / "clip.mp4", CLIP)
    wave = babble(0.4)
    result = run(lipsync, clip, out, 0.4, lead_in=0.12, lead_out=0.1, crf=0)
    assert result.frames == 16  # 3 + 10 + 2.5
    assert result.passed_through == ((0, 3, "before the voice"), (13, 16, "after the voice"))
    alike = [same(a, b) for a, b in zip(raw_frames(out), raw_frames(clip), strict=False)]
    assert alike == [True] * 3 + [False] * 10 + [True] * 3
    sound = heard(out)
    assert abs(lag(sound, np.concatenate([np.zeros(round(0.12 * RATE)), wave]), RATE)) < 0.005


def test_copied_sound_too_begins_after_the_lead(lipsync, tmp_path, out):
    clip = numbered_clip(tmp_path / "clip.mp4", CLIP)
    wave = babble(0.6, 48000)
    voice = write_sound(tmp_path / "voice.m4a", wave, 48000)
    lipsync.run(clip, voice, out, steps=1, lead_in=0.2)
    assert probe(out).audio.codec == "aac"
    sound = heard(out, 48000)
    assert abs(lag(sound, np.concatenate([np.zeros(9600), wave]), 48000, 0.3)) < 0.005


def test_a_clip_s_own_sound_keeps_its_place(lipsync, tmp_path, out):
    """What sounds before the first picture is left out, unless it is another clip's voice."""
    wave = babble(0.8, 48000)
    clip = numbered_clip(tmp_path / "clip.mp4", CLIP)
    own = early(tmp_path / "own.mov", clip, write_sound(tmp_path / "a.wav", wave, 48000), 0.2)
    for video, missing in ((own, 0.2), (clip, 0)):
        lipsync.run(video, own, out, steps=1)
        sound = heard(out, 48000)
        kept = wave[round(missing * 48000) :]
        assert lag(sound, kept, 48000) == 0
        assert numbers(out) == list(range(round((0.8 - missing) * 25)))


def test_a_clip_that_ends_before_the_voice_begins_is_refused(lipsync, tmp_path, out):
    clip = numbered_clip(tmp_path / "clip.mp4", CLIP)
    with pytest.raises(OptionError, match=r"lead_in is 1 s, but the clip ends after 0\.80 s"):
        run(lipsync, clip, out, 0.4, sync_mode="cut_off", lead_in=1)
    assert run(lipsync, clip, out, 0.4, lead_in=1).frames == 35


@pytest.mark.parametrize("fps", ["24000/1001", "24", "30000/1001", "30", "50", "60"])
def test_every_frame_of_the_clip_is_shown_at_its_own_time(lipsync, tmp_path, out, fps):
    clip = numbered_clip(tmp_path / "clip.mp4", CLIP, fps=Fraction(fps))
    period = 1 / Fraction(fps)
    result = run(lipsync, clip, out, float(30 * period) - 0.001, fps="source")
    assert numbers(out) == there + back[:10]
    assert [float(t) for t in ffmpeg_times(out)] == pytest.approx(
        [float(k * period) for k in range(30)], abs=1e-4
    )
    assert result.frames == 30
    assert result.fps == pytest.approx(float(Fraction(fps)))
    assert result.seconds == pytest.approx(float(30 * period))
    run(lipsync, clip, out, 0.2)
    assert probe(out).video.fps == 25


def test_a_varying_rate_stays_as_it_is(lipsync, tmp_path, out):
    times = [Fraction(t, 1000) for t in (0, 40, 60, 160, 200, 201, 300, 380, 400, 500)]
    clip = numbered_clip(tmp_path / "clip.mp4", 10, times=times)
    run(lipsync, clip, out, 0.55, fps="source")
    assert numbers(out) == list(range(10))
    assert [float(t) for t in ffmpeg_times(out)] == pytest.approx([float(t) for t in times])
    assert sound_seconds(out) == pytest.approx(0.55, abs=0.001)  # the last frame is a long one
    result = run(lipsync, clip, out, 1.0, fps="source")  # the way back has the same steps
    assert numbers(out) == [*range(10), *range(8, 1, -1)]
    gaps = np.diff([float(t) for t in ffmpeg_times(out)])
    assert gaps[10:].tolist() == pytest.approx([0.1, 0.02, 0.08, 0.099, 0.001, 0.04], abs=1e-4)
    assert result.seconds == pytest.approx(1.02, abs=0.1)


def test_each_frame_hears_its_own_time(lipsync, tmp_path, out, monkeypatch):
    asked, at = [], SpeechFeatures.at

    def spy(self, begins, tick, after):
        asked.extend((float(begin * tick), after) for begin in begins)
        return at(self, begins, tick, after)

    monkeypatch.setattr(SpeechFeatures, "at", spy)
    clip = numbered_clip(tmp_path / "clip.mp4", CLIP, fps=50)
    run(lipsync, clip, out, 0.1, fps="source", lead_in=0.06)
    assert [t for t, _ in asked] == pytest.approx([k / 50 for k in range(8)])
    assert {late for _, late in asked} == {Fraction(6, 100)}


def test_a_picture_keeps_25(lipsync, tmp_path, out):
    still = write_picture(tmp_path / "still.png", picture(3, *SIZE))
    for mode in ("bounce", "loop", "freeze", "remap"):
        result = run(lipsync, still, out, 0.4, fps="source", sync_mode=mode)
        assert (result.frames, result.fps) == (10, 25)


def test_no_group_bridges_the_end_of_the_voice(lipsync, tmp_path, out, monkeypatch):
    sizes = group_sizes(monkeypatch)
    clip = numbered_clip(tmp_path / "clip.mp4", CLIP)
    run(lipsync, clip, out, 0.2, sync_mode="silence")
    assert sizes == [5]


# ---- to 25 frames a second as the published code does it -----------------------------------------


def by_command(clip, folder):
    """Which frame is shown at each index of what the published code makes of a clip first."""
    ffmpeg("-i", clip, "-r", 25, "-crf", 18, folder / "converted.mp4")
    return numbers(folder / "converted.mp4")


RATES = [10, 12, 15, 24, Fraction(24000, 1001), 25, Fraction(30000, 1001), 30, 48, 50, 60, 120]


@pytest.mark.parametrize("rate", RATES, ids=str)
def test_a_clip_is_converted_as_by_ffmpegs_command(tmp_path, rate):
    clip = write_clip(tmp_path / "clip.mp4", 60, size=SIZE, fps=rate)
    pace = FrameSource.of(VideoReader(clip), "25", "published")
    shown = [number_of(frame.rgb()) for frame in pace.frames()]
    assert shown == by_command(clip, tmp_path)
    some = [*range(len(shown) - 1, 0, -3), 0, 1]
    assert [number_of(frame.rgb()) for frame in pace.frames(some)] == [shown[i] for i in some]
    with pytest.raises(IndexError):
        list(pace.frames([len(shown)]))


@pytest.mark.parametrize("reordered", [0, 3])
def test_a_clip_of_varying_rate_is_converted_as_by_ffmpegs_command(tmp_path, reordered):
    steps = [33, 33, 34, 200, 17, 16, 17, 17, 100, 40, 40, 5, 5, 5, 5, 60, 330, 33, 33, 34]
    times = [Fraction(sum(steps[:i]), 1000) for i in range(len(steps) + 1)]
    clip = write_clip(tmp_path / "clip.mp4", len(times), size=SIZE, times=times, bf=str(reordered))
    pace = FrameSource.of(VideoReader(clip), "25", "published")
    assert [number_of(frame.rgb()) for frame in pace.frames()] == by_command(clip, tmp_path)


def test_of_30_frames_a_second_the_first_12_are_shown():
    """The numbers of FFmpeg 9.0.2."""
    shown = converted([Fraction(i, 30) for i in range(60)], [Fraction(1, 30)] * 60, FPS)
    assert len(shown) == 52
    assert shown[:13] == [*range(12), 13]
    assert converted([Fraction(0)], [Fraction(0)], FPS) == [0]


def test_a_published_run_shows_the_frames_that_the_command_keeps(lipsync, out, tmp_path):
    clip = numbered_clip(tmp_path / "clip.mp4", 60, fps=60)
    expected = by_command(clip, tmp_path)
    assert expected != numbers_at_25(clip)
    published = Options.published(steps=1, crf=1)
    voice = write_sound(tmp_path / "voice.wav", babble(0.6))
    result = lipsync.run(clip, voice, out, options=published)
    assert numbers(out) == expected[: result.frames]
    assert result.seed == 1247
    kept = lipsync.run(clip, voice, out, options=Options.published(steps=1, crf=1, fps="source"))
    assert kept.fps == 60


def numbers_at_25(path):
    return [number_of(frame.rgb()) for frame in VideoReader(path).frames()]


def test_a_published_run_fails_where_a_frame_has_no_face(out, tmp_path):
    clip = numbered_clip(tmp_path / "clip.mp4", 20)
    voice = write_sound(tmp_path / "voice.wav", babble(0.6))
    with pytest.raises(NoFaceFound, match="frame"):
        tiny_lipsync(lambda number: number != 5).run(
            clip, voice, out, options=Options.published(steps=1)
        )


def test_a_cache_tells_the_two_conversions_apart(lipsync, out, tmp_path):
    clip = numbered_clip(tmp_path / "clip.mp4", 60, fps=60)
    cache = str(tmp_path / "cache")
    for conversion in ("exact", "published"):
        run(lipsync, clip, out, 0.6, conversion=conversion, seed=3, cache_dir=cache)
        cached = out.read_bytes()
        run(lipsync, clip, out, 0.6, conversion=conversion, seed=3)
        pairs = zip(raw_frames(out), raw_of(cached, tmp_path), strict=True)
        assert all(same(*pair) for pair in pairs)


def raw_of(content, folder):
    (folder / "cached.mp4").write_bytes(content)
    return raw_frames(folder / "cached.mp4")


@pytest.mark.parametrize("fps", ["25", "source"])
def test_frames_decoded_are_held_against_frames_shown(lipsync, tmp_path, out, caplog, fps):
    smooth = numbered_clip(tmp_path / "smooth.mp4", 40, fps=50)
    told = run(lipsync, smooth, out, 0.7, fps=fps).decoding
    if fps == "25":  # pass 1 ends where the voice does
        assert 34 <= told["decoded"] <= 37
        assert told["shown"] == 18
    else:
        assert (told["decoded"], told["shown"]) == (40, 40)
    assert told["behind"] == 0
    assert "have a time" not in caplog.text

    plain = numbered_clip(tmp_path / "plain.mkv", CLIP, bf="0")
    stutters = tmp_path / "stutters.mkv"
    same_time = "setts=ts='if(between(N,8,11),TS-40*(N-7),TS)'"
    ffmpeg("-i", f"file:{plain}", "-c", "copy", "-bsf:v", same_time, f"file:{stutters}")
    told = run(lipsync, stutters, out, 0.8, fps=fps).decoding
    assert told == {"decoded": 20, "shown": 16, "behind": 4}
    assert "4 of 20 frames of '" in caplog.text
    assert "not shown: if the output stutters" in caplog.text
