"""Which picture is shown when, and the sound beside it, where time stamps are not plain."""

import logging
from types import SimpleNamespace

import av
import pytest

from latentsync.media import AudioReader, Sound, VideoReader, decide_copy, open_media
from latentsync.media.timestamps import best_effort
from tests.clips import same
from tests.footage import timing


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("timing")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in timing.FAST else pytest.mark.slow)
        for name in timing.matrix()
    ],
)
def test_pictures_and_sound_are_where_ffmpeg_has_them(folder, name):
    assert timing.try_out(folder, name) == []


def test_the_comparison_sees_what_differs(folder):
    read = timing.ours(timing.make(folder, "ts/1/joined"))
    late = timing.RATE // 50
    changed = {
        "shows": {"numbers": [*read.numbers[:7], *read.numbers[8:]]},
        "pictures at other times: 9": {
            "times": [at + (n == 9) / timing.RATE * 100 for n, at in enumerate(read.times)]
        },
        "at 25 fps shows": {"at_25": read.at_25[1:]},
        "sound ends": {"sound": read.sound[: len(read.sound) // 2]},
        "ms late": {"sound": timing.np.roll(read.sound, late)},
    }
    assert timing.differences(read, read) == []
    for said, change in changed.items():
        wrong = timing.differences(timing.Read(**vars(read) | change), read)
        assert wrong, said
        assert all(said in line for line in wrong)


@pytest.mark.parametrize("name", ["avi/2/plain", "ts/1/joined", "vob/1/joined_far", "asf/1/plain"])
def test_a_frame_has_the_same_time_when_it_is_sought(folder, monkeypatch, name):
    path = timing.make(folder, name)
    monkeypatch.setattr("latentsync.media.reader._KEPT_BYTES", 0)
    monkeypatch.setattr("latentsync.media.reader._SEEK_FRAMES", 5)
    opened = []
    monkeypatch.setattr(
        "latentsync.media.decoder.open_media", lambda *a: opened.append(a) or open_media(*a)
    )
    reader = VideoReader(path)
    straight = list(reader.frames())
    bounce = [*reversed(range(len(straight))), 50, 3, 31, 29]
    opened.clear()
    for index, frame in zip(bounce, reader.frames(bounce), strict=True):
        assert same(frame.planes(), straight[index].planes()), index
    assert len(opened) < 9  # 3 where every run is sought, 10 where none is


def test_a_join_is_no_damage(folder, caplog):
    path = timing.make(folder, "ts/1/joined")
    with open_media(path) as container:
        corrupt = [one for one in container.demux(video=0) if one.is_corrupt]
    assert corrupt  # as FFmpeg sees it
    with caplog.at_level(logging.INFO, "latentsync"):
        assert len(list(VideoReader(path).frames())) == 2 * timing.PIECE
        len(AudioReader(path).samples)
    assert "damaged" not in caplog.text


def test_packets_of_sound_that_overlap_at_a_join_are_not_copied(folder):
    assert decide_copy(Sound.of(timing.make(folder, "ts/1/plain"))).copied
    assert not decide_copy(Sound.of(timing.make(folder, "ts/1/joined"))).copied


def stamped(*stamps):
    """The times of frames of 40 ticks with these pts and dts, in a file that starts at 7."""
    frames = [SimpleNamespace(pts=pts, dts=dts, duration=40) for pts, dts in stamps]
    start = SimpleNamespace(start_time=7)
    stream = SimpleNamespace(
        container=start, time_base=timing.Fraction(1, 10**6), average_rate=None
    )
    return [frame.pts for frame in best_effort(frames, stream)]


def test_the_time_of_a_frame_is_its_pts_unless_pts_fall():
    assert stamped((0, 0), (40, 40), (80, None)) == [0, 40, 80]
    assert stamped((None, 40), (None, 80), (None, None), (None, None)) == [40, 80, 120, 160]
    assert stamped((None, None), (None, None), (300, None)) == [7, 47, 300]
    falling = ((0, 40), (120, 80), (40, 120), (80, 160), (240, None))
    assert stamped(*falling) == [0, 120, 120, 160, 200]
    assert stamped((0, 9), (40, 8), (30, 7), (80, 6)) == [0, 40, 30, 80]  # dts fall more often


def test_a_time_beyond_all_measure_is_none(folder):
    """Ogg has no times before 0: FFmpeg writes them as times near the end of the world."""
    path = timing.make(folder, "ogv/0/negative")
    with av.open(str(path)) as container:
        first = next(container.demux(video=0))
    assert first.pts * first.time_base > 1e15
    assert len(list(VideoReader(path).source_frames())) > timing.PIECE
    len(AudioReader(path).samples)
