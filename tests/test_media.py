"""Reading and writing pictures: what is opened, which frame is shown when, and that it stays so."""

import logging
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from latentsync.errors import MediaError, OutputError
from latentsync.media import (
    VideoFrame,
    VideoReader,
    VideoWriter,
    check_output,
    open_media,
    probe,
)
from latentsync.types import Box
from tests.clips import (
    babble,
    ffmpeg,
    fps_filtered,
    number_of,
    picture,
    raw_frames,
    same,
    write_clip,
    write_picture,
    write_sound,
)

PLAYLISTS = {
    "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{clip}\n#EXT-X-ENDLIST\n",
    "ffconcat": "ffconcat version 1.0\nfile {clip}\n",
    "concat": "file '{clip}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "xspf": '<?xml version="1.0"?><playlist version="1" xmlns="http://xspf.org/ns/0/">'
    "<trackList><track><location>{clip}</location></track></trackList></playlist>",
    "mpd": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="0" bandwidth="1">'
    "<BaseURL>{clip}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "text": "hello " * 200,
}
NAMES = [
    "two words.mp4",
    "-i.mp4",
    'it\'s "quoted".mp4',
    "new\nline.mp4",
    "\u00fcn\u00ef \u53e3\u578b.mp4",
    "concat:a|b",
    "http:x",
    "file:x",
    "%03d.png",
    "no suffix",
    "$(id) `id` ;&.mp4",
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 numbered frames at 25 fps, with B-frames and sound."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    return write_clip(path, 50, sound=babble(2, 48000), g="12", bf="2")


def numbers(reader: VideoReader, indices=None) -> list[int]:
    return [number_of(frame.rgb()) for frame in reader.frames(indices)]


# ---- what is opened ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_text_and_playlists_are_refused_and_open_nothing_else(clip, tmp_path, monkeypatch, kind):
    lure = tmp_path / "lure.mp4"
    lure.write_bytes(clip.read_bytes())
    path = tmp_path / "list.mp4"
    path.write_text(PLAYLISTS[kind].format(clip=lure.name))
    monkeypatch.chdir(tmp_path)
    before = lure.stat().st_atime_ns
    with pytest.raises(MediaError, match=r"list\.mp4") as error:
        VideoReader(path)
    assert "\n" not in str(error.value)
    assert lure.stat().st_atime_ns == before


def test_what_is_not_media_is_refused_in_one_line(clip, tmp_path):
    (tmp_path / "empty.mp4").write_bytes(b"")
    whole = clip.read_bytes()
    (tmp_path / "no moov.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    write_sound(tmp_path / "sound.mp4", babble(0.2))
    names = (
        "empty.mp4",
        "no moov.mp4",
        "noise.mp4",
        "sound.mp4",
        "missing\n.mp4",
        ".",
        "\0",
        "x" * 300,
    )
    for name in names:
        with pytest.raises(MediaError) as error:
            VideoReader(tmp_path / name)
        assert repr(str(tmp_path / name))[1:-1] in str(error.value)
        assert "\n" not in str(error.value)


def test_a_video_without_a_decodable_frame_is_refused(tmp_path):
    path = write_clip(tmp_path / "clip.mkv", 10, codec="mpeg4")
    data = bytearray(path.read_bytes())
    for at in range(data.index(b"\xa3"), len(data)):
        data[at] ^= 0x5A
    path.write_bytes(data)
    with pytest.raises(MediaError):
        VideoReader(path)


def test_odd_names_are_plain_files_to_read_and_to_write(clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        Path(name).write_bytes(clip.read_bytes())
        assert VideoReader(name).info.codec == "h264"
        out = f"out {name}.mp4"
        with VideoWriter(out, audio=name) as writer:
            writer.write(VideoFrame.from_rgb(picture(3)))
        assert numbers(VideoReader(out)) == [3]
        if not name.endswith(".png"):
            with VideoWriter(name) as writer:
                writer.write(VideoFrame.from_rgb(picture(5)))
            assert numbers(VideoReader(Path(name))) == [5]


def test_a_picture_named_like_a_pattern_is_that_very_file(tmp_path):
    write_picture(tmp_path / "001.png", picture(1))
    write_picture(tmp_path / "%03d.png", picture(2))
    assert numbers(VideoReader(tmp_path / "%03d.png")) == [2]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".bmp", ".webp"])
def test_a_still_picture_is_one_held_frame_by_content(tmp_path, suffix):
    path = write_picture(tmp_path / "face.mp4", picture(77), suffix)
    reader = VideoReader(path)
    assert reader.info.is_image
    assert reader.info.source_fps is None
    assert numbers(reader) == [77]
    held = list(reader.frames([0, 5, 1000]))
    assert held[0] is held[1] is held[2]
    assert np.abs(held[0].rgb().astype(int) - picture(77)).mean() < 12


def test_a_moving_webp_is_refused_with_a_way_out(tmp_path):
    path = tmp_path / "sticker.webp"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:r=10:d=0.3", path)
    for read in (VideoReader, probe):
        with pytest.raises(MediaError, match=r"moving WebP.* convert it to GIF or mp4"):
            read(path)


def test_media_opens_by_content_whatever_the_suffix(clip, tmp_path):
    path = tmp_path / "clip.png"
    path.write_bytes(clip.read_bytes())
    assert numbers(VideoReader(path)) == list(range(50))
    with open_media(path) as container:
        assert container.format.name == "mov"


# ---- which frame is shown when -------------------------------------------------------------------


def spread(count: int) -> list[Fraction]:
    """Uneven times, from 1 to 180 ms apart."""
    steps = np.random.default_rng(4).choice([1, 12, 33, 40, 41, 90, 180], count)
    return [Fraction(int(at), 1000) for at in np.cumsum(steps)]


CLIPS = {
    "plain": {"g": "12", "bf": "2"},
    "30 fps": {"fps": 30, "g": "20", "bf": "3"},
    "60 fps": {"fps": 60, "frames": 120},
    "10 fps": {"fps": 10, "frames": 20, "g": "5"},
    "ntsc": {"fps": Fraction(30000, 1001), "g": "15"},
    "uneven": {"times": spread(50), "g": "10", "bf": "2"},
    "open gop": {"g": "8", "bf": "3", "x264opts": "open-gop=1:b-pyramid=0:scenecut=0"},
    "intra refresh": {"g": "12", "bf": "0", "x264opts": "intra-refresh=1"},
    "one key frame": {"g": "1000", "bf": "3"},
    "late start": {"times": [Fraction(3) + Fraction(i, 25) for i in range(50)], "g": "9"},
    "mpeg-2": {"codec": "mpeg2video", "g": "8", "bf": "2"},
    "10 bit": {"pixel_format": "yuv420p10le", "g": "12", "bf": "2"},
}
CONTAINERS = {"mp4": "libx264", "mkv": "libx264", "ts": "libx264", "avi": "mpeg4", "webm": "libvpx"}


MPEG_ONLY = {"open gop", "intra refresh", "10 bit", "mpeg-2"}
UNEVEN = {"uneven", "late start"}  # which AVI can't hold
PAIRS = [
    (kind, suffix)
    for kind in CLIPS
    for suffix, codec in CONTAINERS.items()
    if (codec == "libx264" or kind not in MPEG_ONLY) and (suffix != "avi" or kind not in UNEVEN)
]


@pytest.mark.parametrize(("kind", "suffix"), PAIRS)
def test_a_frame_is_the_same_however_it_is_reached(tmp_path, monkeypatch, kind, suffix):
    options = {"codec": CONTAINERS[suffix], **CLIPS[kind]}
    if suffix == "webm":
        options.pop("bf", None)
    path = write_clip(tmp_path / f"clip.{suffix}", options.pop("frames", 50), **options)
    monkeypatch.setattr("latentsync.media.reader._KEPT_BYTES", 0)  # 16 frames, so that it seeks
    monkeypatch.setattr("latentsync.media.reader._SEEK_FRAMES", 5)
    reader = VideoReader(path)
    straight = list(reader.frames())
    shown, expected = [number_of(frame.rgb()) for frame in straight], fps_filtered(path)
    assert shown[: len(expected)] == expected
    # The filter drops a last frame whose duration the file doesn't tell; we show it.
    assert len(shown) == len(expected) or (suffix == "ts" and len(shown) == len(expected) + 1)

    count = len(straight)
    bounce = [*range(count), *reversed(range(count)), 0, 0, 1, count - 1, 3, 3, 40, 2, count // 2]
    for index, frame in zip(bounce, reader.frames(bounce), strict=True):
        assert same(frame.planes(), straight[index].planes()), index


def test_frames_are_the_decoded_ones_and_repeats_are_not_decoded_again(clip):
    reader = VideoReader(clip)
    straight = list(reader.frames())
    assert all(same(f.planes(), raw) for f, raw in zip(straight, raw_frames(clip), strict=True))
    a, b, c = reader.frames(iter([7, 7, 8]))
    assert a is b
    assert b is not c


@pytest.mark.parametrize("kind", ["plain", "open gop", "mpeg-2"])
def test_going_back_seeks_instead_of_reading_from_the_start(tmp_path, monkeypatch, kind):
    options = dict(CLIPS[kind])
    path = write_clip(tmp_path / "clip.mp4", 200, **options)
    reader, opened = VideoReader(path), []
    monkeypatch.setattr("latentsync.media.reader._KEPT_BYTES", 0)
    monkeypatch.setattr(
        "latentsync.media.decoder.open_media", lambda *a: opened.append(a) or open_media(*a)
    )
    assert numbers(reader, range(199, 40, -1)) == list(range(199, 40, -1))
    assert len(opened) == 1


def test_frames_outside_the_clip_are_our_own_bug(clip):
    reader = VideoReader(clip)
    for index in (50, 1000, -1):
        with pytest.raises(IndexError):
            list(reader.frames([0, index]))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_clip_cut_short_gives_its_good_frames_and_a_warning(tmp_path, caplog, suffix):
    path = tmp_path / f"clip.{suffix}"
    codec = "mpeg4" if suffix == "avi" else "libx264"
    muxer = {"movflags": "faststart"} if suffix == "mp4" else None
    write_clip(path, 100, codec=codec, muxer=muxer, g="10", bf="0")
    whole = [frame.planes() for frame in VideoReader(path).frames()]
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with caplog.at_level(logging.WARNING, "latentsync"):
        good = [frame.planes() for frame in VideoReader(path).frames()]
    assert 10 < len(good) < 75
    assert all(same(a, b) for a, b in zip(good, whole, strict=False))
    assert "damaged" in caplog.text


def test_a_clip_that_begins_late_is_not_taken_for_one_cut_short(tmp_path, caplog):
    plain = write_clip(tmp_path / "plain.mkv", 25)
    late = tmp_path / "late.mkv"  # its tag DURATION says when it ends, not how long it lasts
    ffmpeg("-i", plain, "-c", "copy", "-output_ts_offset", 7.3, late)
    assert len(list(VideoReader(late).frames())) == 25
    assert not caplog.text


@pytest.mark.parametrize("fps", ["25", "source"])
def test_damage_within_a_clip_is_told_once_however_often_it_is_read(tmp_path, caplog, fps):
    path = write_clip(tmp_path / "clip.mp4", 60, g="20", bf="0")
    data = bytearray(path.read_bytes())
    with open_media(path) as container:
        packets = [(one.pos, one.size) for one in container.demux(video=0) if one.size]
    at, size = packets[25]
    data[at + 8 : at + size] = bytes(size - 8)
    path.write_bytes(data)
    with caplog.at_level(logging.WARNING, "latentsync"):
        reader = VideoReader(path)
        read = reader.frames if fps == "25" else reader.source_frames
        assert not caplog.text
        shown = len(list(read()))
        list(read(range(20, 40)))
        list(read(range(5)))
    assert shown == (60 if fps == "25" else 59)
    (record,) = caplog.records
    assert record.getMessage() == f"'{path}' is damaged or cut short: its good frames are used"


# ---- writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_outside_the_pasted_box_the_output_is_the_decoded_picture_exactly(tmp_path, size):
    path = write_clip(tmp_path / "odd.mkv", 12, size=size, codec="ffv1")
    out, box = tmp_path / "out.mp4", Box(16, 16, 40, 36)
    with VideoWriter(out, crf=0) as writer:
        for frame in VideoReader(path).frames():
            writer.write(frame.pasted(box, np.full((20, 24, 3), 200, np.uint8)))
    written = list(raw_frames(out))
    assert len(written) == 12
    for before, after in zip(raw_frames(path), written, strict=True):
        for channel, (a, b) in enumerate(zip(before, after, strict=True)):
            assert (b.shape[0] % 2, b.shape[1] % 2) == (0, 0)
            b = b[: a.shape[0], : a.shape[1]].copy()
            rows, columns = (
                (slice(8, 18), slice(8, 20)) if channel else (slice(16, 36), slice(16, 40))
            )
            assert (a[rows, columns] != b[rows, columns]).any()
            b[rows, columns] = a[rows, columns]
            assert np.array_equal(a, b)


def test_odd_sizes_repeat_an_edge_and_say_so(tmp_path, caplog):
    out = tmp_path / "out.mp4"
    with caplog.at_level(logging.INFO, "latentsync"), VideoWriter(out, crf=0) as writer:
        writer.write(VideoFrame.from_rgb(picture(1, 63, 47)))
    (luma, _, _), *_ = raw_frames(out)
    assert luma.shape == (48, 64)
    assert np.array_equal(luma[-1], luma[-2])
    assert np.array_equal(luma[:, -1], luma[:, -2])
    assert "63 x 47 becomes 64 x 48" in caplog.text


def test_the_output_is_a_fast_start_mp4_at_25_fps_and_says_what_it_is(clip, tmp_path):
    out = tmp_path / "out.mp4"
    with VideoWriter(out, audio=clip, comment="made by a test") as writer:
        for frame in VideoReader(clip).frames():
            writer.write(frame)
    data = out.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    facts = probe(out)
    assert (facts.video.codec, facts.video.frames, facts.video.fps) == ("h264", 50, 25)
    assert (facts.audio.codec, facts.audio.sample_rate, facts.audio.channels) == ("aac", 48000, 1)
    assert facts.duration_seconds == pytest.approx(2, abs=0.03)
    assert facts.comment == "made by a test"


def test_nothing_is_left_behind_and_an_old_output_survives_a_failure(tmp_path):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"old")

    def fail_on_the_way() -> None:
        with VideoWriter(out) as writer:
            for number in range(3):
                writer.write(VideoFrame.from_rgb(picture(number)))
            assert out.read_bytes() == b"old"
            raise KeyError

    with pytest.raises(KeyError):
        fail_on_the_way()
    assert out.read_bytes() == b"old"
    with pytest.raises(RuntimeError, match="not one frame"), VideoWriter(out):
        pass
    with VideoWriter(out) as writer:
        writer.write(VideoFrame.from_rgb(picture(1)))
    assert list(tmp_path.iterdir()) == [out]
    assert numbers(VideoReader(out)) == [1]


def test_an_output_that_cannot_be_written_is_refused_at_once(clip, tmp_path, monkeypatch):
    link, copy = tmp_path / "link.mp4", tmp_path / "copy.mp4"
    copy.write_bytes(clip.read_bytes())
    link.symlink_to(copy)
    unfit = tmp_path / "missing" / "out.mp4", tmp_path, "/dev/null", "a\0b", tmp_path / ("x" * 300)
    for path in unfit:
        with pytest.raises(OutputError):
            VideoWriter(path)
    for path in (copy, link, tmp_path / "." / "copy.mp4"):
        with pytest.raises(OutputError, match="input"):
            check_output(path, [clip, copy])
        with pytest.raises(OutputError, match="input"):
            VideoWriter(path, audio=copy)
    for name in ("new.mp4", "new.MOV", "new.m4v", "new"):
        check_output(tmp_path / name, [clip, copy])
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(OutputError, match="permission"):
        VideoWriter(tmp_path / "out.mp4")


def test_links_devices_pipes_and_directories_are_no_output(tmp_path):
    (tmp_path / "link.mp4").symlink_to(tmp_path / "real.mp4")
    (tmp_path / "circle.mp4").symlink_to(tmp_path / "circle.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    said = {
        tmp_path / "link.mp4": "symbolic link",
        tmp_path / "circle.mp4": "symbolic link",
        tmp_path / "pipe.mp4": "device or a pipe",
        tmp_path: "directory",
        "/dev/null": "device or a pipe",
        "/dev/stdout": "symbolic link",
    }
    for path, reason in said.items():
        with pytest.raises(OutputError, match=reason) as error:
            VideoWriter(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "real.mp4").exists()


def test_a_link_that_comes_later_is_replaced_and_not_followed(tmp_path):
    out, real = tmp_path / "out.mp4", tmp_path / "real.mp4"
    real.write_bytes(b"another's")
    with VideoWriter(out) as writer:
        writer.write(VideoFrame.from_rgb(picture(1)))
        out.symlink_to(real)
    assert not out.is_symlink()
    assert real.read_bytes() == b"another's"
    assert numbers(VideoReader(out)) == [1]


def test_a_change_of_directory_does_not_move_the_output(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with VideoWriter("out.mp4") as writer:
        monkeypatch.chdir("/")
        writer.write(VideoFrame.from_rgb(picture(1)))
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


# ---- describing ----------------------------------------------------------------------------------


def test_probe_describes_clips_pictures_and_sounds(clip, tmp_path):
    facts = probe(clip)
    assert (facts.video.width, facts.video.height, facts.video.frames) == (64, 48, 50)
    assert (facts.video.codec, facts.video.fps, facts.video.pixel_format) == ("h264", 25, "yuv420p")
    still = probe(write_picture(tmp_path / "a.png", picture(0)))
    assert (still.video.frames, still.video.fps, still.audio) == (1, None, None)
    sound = probe(write_sound(tmp_path / "a.wav", babble(0.5)))
    assert (sound.video, sound.audio.codec, sound.audio.sample_rate) == (None, "pcm_s16le", 16000)
    assert sound.duration_seconds == pytest.approx(0.5)
