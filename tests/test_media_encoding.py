"""What the output is encoded with, how large it may be, and when each frame is shown."""

import logging
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync.errors import BackendUnavailable, OptionError, OutputError
from latentsync.media import (
    CODECS,
    PRESETS,
    Colour,
    VideoFrame,
    VideoReader,
    VideoWriter,
    check_codec,
    output_size,
    probe,
)
from latentsync.media.encoders import encoder_of
from tests.clips import (
    babble,
    ffmpeg,
    ffmpeg_says,
    ffmpeg_times,
    number_of,
    picture,
    write_clip,
    write_sound,
)

SIZE = (64, 48)  # px
SOFTWARE = ["h264", "hevc"]
TAGGED = Colour(matrix=1, primaries=1, transfer=1, range=1, pixel_aspect=Fraction(4, 3))


def write(path: Path, size: tuple[int, int] = (64, 48), frames: int = 6, **options) -> Path:
    with VideoWriter(path, **options) as writer:
        for number in range(frames):
            writer.write(VideoFrame.from_rgb(picture(number, *size), TAGGED))
    return path


def planes(path: Path) -> bytes:
    return ffmpeg("-i", path, "-f", "rawvideo", "-pix_fmt", "yuv420p", "-")


# ---- encoders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("codec", "said"), [("h264", "h264 (High) (avc1"), ("hevc", "hevc (Main) (hvc1")]
)
def test_other_decoders_see_the_codec_its_tag_and_the_colours(tmp_path, capfd, codec, said):
    out = write(tmp_path / "out.mp4", codec=codec)
    line = ffmpeg_says(out).replace(", progressive", "")  # which HEVC doesn't say
    assert said in line
    assert "yuv420p(tv, bt709), 64x48 [SAR 4:3" in line
    assert [number_of(frame.rgb()) for frame in VideoReader(out).frames()] == list(range(6))
    captured = capfd.readouterr()
    assert captured.out == captured.err == ""  # x265 would talk


@pytest.mark.parametrize("codec", SOFTWARE)
def test_a_clip_of_one_or_two_frames_is_decoded_when_it_is_shown(tmp_path, codec):
    for turn in range(12):  # x265 is wrong by what was in its memory before
        frames = 1 + turn % 2
        out = write(tmp_path / f"{turn}.mp4", (96 + 32 * turn, 96), frames=frames, codec=codec)
        with av.open(f"file:{out}") as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
            assert [packet.dts for packet in packets] == [packet.pts for packet in packets]
            assert [packet.pts * packet.time_base * 25 for packet in packets] == list(range(frames))


@pytest.mark.parametrize("codec", SOFTWARE)
@pytest.mark.parametrize("size", [(64, 48), (22, 18), (130, 96)])
def test_crf_0_loses_nothing(tmp_path, codec, size):
    out = write(tmp_path / "out.mp4", size, crf=0, codec=codec)
    frames = [VideoFrame.from_rgb(picture(number, *size), TAGGED).planes() for number in range(6)]
    assert planes(out) == b"".join(plane.tobytes() for frame in frames for plane in frame)
    assert out.stat().st_size > write(tmp_path / "lossy.mp4", size, codec=codec).stat().st_size


@pytest.mark.parametrize("codec", SOFTWARE)
def test_presets_reach_the_encoder(tmp_path, codec):
    sign = {"h264": b"cabac=0", "hevc": b" no-sao "}[codec]  # of haste, in the encoder's own words
    for preset, hasty in (("ultrafast", True), ("slow", False)):
        data = write(tmp_path / "out.mp4", codec=codec, preset=preset).read_bytes()
        assert (sign in data) == hasty


def test_every_name_has_its_options():
    for codec in CODECS:
        for preset in PRESETS:
            quick = encoder_of(codec).options(17, preset, (640, 480))
            best = encoder_of(codec).options(0, preset, (640, 480))
            assert quick != best
            assert quick["preset"] == (preset if "nvenc" not in codec else quick["preset"])
    assert encoder_of("h264_nvenc").options(20, "placebo", (64, 64))["preset"] == "p7"


@pytest.mark.parametrize(
    ("preset", "size", "frames"),
    [
        *(("medium", (1920, 1080), 40), ("slow", (1080, 1920), 50), ("ultrafast", (64, 64), 0)),
        *(
            ("medium", (2560, 1440), 22),
            ("medium", (3840, 2160), 10),
            ("veryfast", (3840, 2160), 10),
        ),
        *(("superfast", (3840, 2160), 0), ("placebo", (8192, 4320), 10)),
    ],
)
def test_large_pictures_are_looked_ahead_at_in_no_more_memory(preset, size, frames):
    assert encoder_of("h264").options(17, preset, size)["rc-lookahead"] == str(frames)


@pytest.mark.parametrize("preset", PRESETS)
def test_up_to_full_hd_presets_are_x264s_own(tmp_path, preset):
    said = []
    for options in ({"preset": preset, "crf": "23"}, encoder_of("h264").options(23, preset, SIZE)):
        data = write_clip(tmp_path / "clip.mp4", 2, size=SIZE, **options).read_bytes()
        said += re.findall(rb"options: ([^\0]*)\0", data)  # x264 writes them into its stream
    assert len(said) == 2
    assert said[0] == said[1]


def test_the_same_pictures_make_the_same_file(tmp_path):
    # x264's code for AVX-512 made 2 to 8 different files of pictures of these sizes
    for size in ((64, 48), (96, 96), (160, 120)):
        made = {write(tmp_path / "out.mp4", size, 40).read_bytes() for _ in range(8)}
        assert len(made) == 1, size


def test_an_unknown_codec_names_those_that_there_are():
    with pytest.raises(OptionError, match=r"av1.*h264, hevc, h264_nvenc, hevc_nvenc"):
        check_codec("av1")


def opens(codec: str) -> bool:
    try:
        check_codec(codec)
    except BackendUnavailable:
        return False
    return True


@pytest.mark.parametrize("codec", ["h264_nvenc", "hevc_nvenc"])
def test_nvenc_works_or_says_in_one_line_that_it_is_not_there(tmp_path, codec):
    if not opens(codec):
        with pytest.raises(BackendUnavailable, match=f"ask for {codec.split('_')[0]}$") as error:
            VideoWriter(tmp_path / "out.mp4", codec=codec)
        assert "\n" not in str(error.value)
        assert list(tmp_path.iterdir()) == []
        return
    for crf in (0, 20):
        out = write(tmp_path / f"{crf}.mp4", (256, 192), codec=codec, crf=crf)
        assert [number_of(f.rgb()) for f in VideoReader(out).frames()] == list(range(6))
        assert "hvc1" in ffmpeg_says(out) or codec == "h264_nvenc"


# ---- sizes ---------------------------------------------------------------------------------------


def test_what_a_codec_cannot_hold_is_refused_and_max_side_makes_it_fit():
    assert output_size(7680, 4320) == (7680, 4320)
    for codec, width, height in (
        ("h264", 8192, 8192),
        ("hevc", 20_000, 100),
        ("h264_nvenc", 4320, 7680),
        ("hevc_nvenc", 9000, 1000),
    ):
        with pytest.raises(OutputError, match="set max_side to") as error:
            output_size(width, height, codec=codec)
        fits = int(str(error.value).split("max_side to ")[1].split()[0])
        small = output_size(width, height, codec=codec, max_side=fits)
        assert max(small) <= fits
        assert small[1] == pytest.approx(small[0] * height / width, abs=2)
    assert output_size(63, 47) == (64, 48)
    assert output_size(63, 47, max_side=64) == (64, 48)
    assert output_size(4000, 3, max_side=16) == (16, 2)
    assert output_size(20, 16, codec="hevc") == (20, 16)
    with pytest.raises(OutputError, match=r"hold 16 x 10 px: .* 16 px or more"):
        output_size(640, 400, codec="hevc", max_side=16)
    with pytest.raises(OptionError, match="16 px or more"):
        output_size(64, 48, max_side=15)


@pytest.mark.parametrize("codec", SOFTWARE)
def test_max_side_scales_the_output_and_keeps_its_colours(tmp_path, caplog, codec):
    with caplog.at_level(logging.INFO, "latentsync"):
        out = write(tmp_path / "out.mp4", (160, 120), max_side=80, codec=codec, crf=0)
    assert "160 x 120 is scaled down to 80 x 60" in caplog.text
    line = ffmpeg_says(out).replace(", progressive", "")
    assert "yuv420p(tv, bt709), 80x60 [SAR 4:3" in line
    for number, frame in enumerate(VideoReader(out).frames()):
        whole = VideoFrame.from_rgb(picture(number, 160, 120), TAGGED).rgb()
        halved = whole.reshape(60, 2, 80, 2, 3).mean(axis=(1, 3))
        assert np.abs(frame.rgb()[18:] - halved[18:]).mean() < 0.8
        assert number_of(frame.rgb()) == number


def test_a_picture_too_large_for_its_codec_leaves_nothing_behind(tmp_path, monkeypatch):
    small = replace(encoder_of("h264"), max_side=40)
    monkeypatch.setattr("latentsync.media.encoders._ENCODERS", {"h264": small})
    with pytest.raises(OutputError, match="64 x 48 px"):
        write(tmp_path / "out.mp4")
    assert list(tmp_path.iterdir()) == []


# ---- times ---------------------------------------------------------------------------------------

UNEVEN = [Fraction(ms, 1000) for ms in (0, 33, 100, 300, 350, 500, 507, 900, 940, 1000)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("delay", [0, 3])
def test_times_are_those_of_the_file_and_each_frame_comes_once(tmp_path, suffix, delay):
    shifted = [delay + time for time in UNEVEN]
    path = write_clip(tmp_path / f"clip.{suffix}", 10, times=shifted, g="4", bf="2")
    reader = VideoReader(path)
    assert list(reader.times()) == UNEVEN
    assert list(reader.times()) == UNEVEN
    assert [number_of(frame.rgb()) for frame in reader.source_frames()] == list(range(10))


def test_times_of_even_clips_are_exact(tmp_path):
    film = Fraction(24000, 1001)
    for fps in (25, film, Fraction(30000, 1001)):
        path = write_clip(tmp_path / "clip.mp4", 30, fps=fps, bf="2")
        assert list(VideoReader(path).times()) == [n / Fraction(fps) for n in range(30)]


def test_source_frames_are_found_by_number_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr("latentsync.media.reader._KEPT_BYTES", 0)
    monkeypatch.setattr("latentsync.media.reader._SEEK_FRAMES", 4)
    rng = np.random.default_rng(3)
    times = [Fraction(int(ms), 1000) for ms in np.cumsum(rng.choice([5, 17, 40, 120], 80))]
    path = write_clip(tmp_path / "clip.mkv", 80, times=times, g="9", bf="2")
    reader = VideoReader(path)
    asked = [*reversed(range(80)), 0, 79, 3, 3, 40, 12, *range(60, 70)]
    assert [number_of(frame.rgb()) for frame in reader.source_frames(asked)] == asked
    for number in (80, -1):
        with pytest.raises(IndexError):
            list(reader.source_frames([number]))


def test_an_edit_list_cuts_before_times_begin(tmp_path):
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    write_clip(whole, 40, g="20", bf="2")
    ffmpeg("-ss", "0.52", "-i", whole, "-c", "copy", cut)
    reader = VideoReader(cut)
    numbers = [number_of(frame.rgb()) for frame in reader.source_frames()]
    times = list(reader.times())
    assert 10 < numbers[0] < 15
    assert numbers == list(range(numbers[0], 40))
    assert times == [Fraction(n, 25) for n in range(len(numbers))]
    assert len(times) == len(ffmpeg_times(cut))


def test_where_times_start_anew_they_go_on(tmp_path):
    path = tmp_path / "clip.ts"
    first = write_clip(tmp_path / "a.ts", 20, g="5")
    second = write_clip(tmp_path / "b.ts", map(picture, range(100, 120)), g="5")
    path.write_bytes(first.read_bytes() + second.read_bytes())
    reader = VideoReader(path)
    assert list(reader.times()) == [Fraction(n, 25) for n in range(40)]
    straight = [number_of(frame.rgb()) for frame in reader.source_frames()]
    assert straight == [*range(20), *range(100, 120)]
    assert [number_of(f.rgb()) for f in reader.source_frames([39, 0, 39])] == [119, 0, 119]


def test_a_still_picture_has_one_time(tmp_path):
    path = tmp_path / "a.png"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48", "-frames:v", "1", path)
    reader = VideoReader(path)
    assert list(reader.times()) == [0]
    assert len(list(reader.source_frames())) == 1


@pytest.mark.parametrize("codec", SOFTWARE)
@pytest.mark.parametrize("preset", ["ultrafast", "medium"])
def test_uneven_in_is_uneven_out(tmp_path, codec, preset):
    path = write_clip(tmp_path / "clip.mkv", 10, times=UNEVEN)
    sound = write_sound(tmp_path / "a.wav", babble(2))
    reader = VideoReader(path)
    for out, audio in ((tmp_path / "mute.mp4", None), (tmp_path / "out.mp4", sound)):
        with VideoWriter(out, audio=audio, codec=codec, preset=preset) as writer:
            for frame, time in zip(reader.source_frames(), reader.times(), strict=True):
                writer.write(frame, time)
        assert ffmpeg_times(out) == UNEVEN
        again = VideoReader(out)
        assert list(again.times()) == UNEVEN
        assert [number_of(frame.rgb()) for frame in again.source_frames()] == list(range(10))
        assert probe(out).duration_seconds == pytest.approx(1.06, abs=0.002)  # 0.06 for the last


def test_a_source_s_own_time_base_keeps_film_exact(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", 12, fps=Fraction(24000, 1001))
    reader, out = VideoReader(path), tmp_path / "out.mp4"
    with VideoWriter(out, time_base=reader.time_base, fps=Fraction(24000, 1001)) as writer:
        for frame, time in zip(reader.source_frames(), reader.times(), strict=True):
            writer.write(frame, time)
    assert list(VideoReader(out).times()) == [Fraction(1001 * n, 24000) for n in range(12)]
    with av.open(str(out)) as container:
        assert container.streams.video[0].average_rate == Fraction(24000, 1001)


@pytest.mark.parametrize(
    "times",
    [
        (Fraction(0), Fraction(0)),
        (Fraction(0), None),
        (None, Fraction(1)),
        (Fraction(1), Fraction(0)),
    ],
)
def test_times_that_do_not_rise_are_our_own_bug(tmp_path, times):
    frame, first, second = VideoFrame.from_rgb(picture(0)), *times

    def write_both() -> None:
        with VideoWriter(tmp_path / "out.mp4") as writer:
            writer.write(frame, first)
            writer.write(frame, second)

    with pytest.raises(ValueError, match="time"):
        write_both()
    assert list(tmp_path.iterdir()) == []
