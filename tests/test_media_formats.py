"""Pictures as cameras and editors give them: interlaced, HDR, with alpha, turned, not square."""

import gc
import logging
import struct
import subprocess
import sys
from contextlib import suppress
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from latentsync.errors import MediaError
from latentsync.media import VideoReader, VideoWriter
from latentsync.media.crop import _of_matroska, _of_mp4
from tests.clips import (
    ffmpeg,
    ffmpeg_says,
    number_of,
    picture,
    raw_frames,
    same,
    write_clip,
    write_picture,
)

# ---- interlaced ----------------------------------------------------------------------------------

BAR = "lum='if(between(X,mod(N*6,130),mod(N*6,130)+20)*between(Y,20,80),235,90)':cb=128:cr=128"


def interlaced(path: Path, field: str, *, start: int = 0) -> Path:
    """One second of a bar that moves 6 px a field, the top or the bottom field first."""
    drawn = f"color=gray:s=160x96:r=50:d=1,geq={BAR}"
    woven = f"tinterlace=interleave_{'top' if field == 'tff' else 'bottom'},setfield={field}"
    codec = ["-c:v", "libx264", "-crf", "5", "-x264opts", f"{field}=1:keyint=8"]
    if path.suffix == ".ts":
        codec = ["-c:v", "mpeg2video", "-q:v", "2", "-g", "8", "-flags", "+ildct+ilme"]
    ffmpeg(
        *("-f", "lavfi", "-i", drawn, "-vf", woven, *codec, "-bf", "2"),
        *("-output_ts_offset", start, path),
    )
    return path


def luma(path: Path, *filters: str) -> np.ndarray:
    """(frames, 96, 160) as FFmpeg's binary decodes and filters a clip."""
    raw = ffmpeg(
        *("-i", path, "-vf", ",".join(filters) or "null", "-f", "rawvideo"),
        *("-pix_fmt", "yuv420p", "-"),
    )
    return np.frombuffer(raw, np.uint8).reshape(-1, 144 * 160)[:, : 96 * 160].reshape(-1, 96, 160)


@pytest.mark.parametrize("field", ["tff", "bff"])
@pytest.mark.parametrize("suffix", ["mp4", "ts"])
def test_interlaced_clips_come_deinterlaced(tmp_path, monkeypatch, caplog, field, suffix):
    path = interlaced(tmp_path / f"clip.{suffix}", field)
    monkeypatch.setattr("latentsync.media.reader._KEPT_BYTES", 0)
    monkeypatch.setattr("latentsync.media.reader._SEEK_FRAMES", 3)
    with caplog.at_level(logging.INFO, "latentsync"):
        reader = VideoReader(path)
    assert "is interlaced" in caplog.text
    frames = list(reader.frames())
    ours = np.stack([frame.planes()[0] for frame in frames])
    assert len(ours) == 25
    assert np.array_equal(ours, luma(path, "bwdif=mode=send_frame"))
    comb = np.abs(np.diff(ours[:, 24:76].astype(int), axis=1)).mean()
    assert comb < 0.1 * np.abs(np.diff(luma(path)[:, 24:76].astype(int), axis=1)).mean()

    bounce = [*reversed(range(25)), 20, 1, 12, 24, 8, 9, 7]
    for index, frame in zip(bounce, reader.frames(bounce), strict=True):
        assert same(frame.planes(), frames[index].planes()), index


def test_in_a_mixed_clip_only_interlaced_frames_are_touched(tmp_path, monkeypatch):
    before, after = (interlaced(tmp_path / f"{n}.ts", "tff", start=n) for n in (2, 6))
    whole, between = tmp_path / "whole.ts", tmp_path / "between.ts"
    write_clip(whole, 25, size=(160, 96), codec="mpeg2video", g="8", bf="2")
    ffmpeg("-i", whole, "-c", "copy", "-output_ts_offset", 4, between)
    path = tmp_path / "clip.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in (before, between, after)))
    monkeypatch.setattr("latentsync.media.reader._KEPT_BYTES", 0)
    monkeypatch.setattr("latentsync.media.reader._SEEK_FRAMES", 3)
    reader, decoded = VideoReader(path), list(raw_frames(path))
    frames = list(reader.source_frames())
    assert len(frames) == len(decoded) == 75
    for number, (frame, raw) in enumerate(zip(frames, decoded, strict=True)):
        assert same(frame.planes(), raw) == (25 <= number < 50), number
    bounce = [*reversed(range(75)), 30, 2, 49, 50, 51]
    for number, frame in zip(bounce, reader.source_frames(bounce), strict=True):
        assert same(frame.planes(), frames[number].planes()), number


# ---- HDR -----------------------------------------------------------------------------------------

CURVES = {"pq": "smpte2084", "hlg": "arib-std-b67"}


def hdr(path: Path, curve: str, *options: object) -> Path:
    """Six numbered pictures, their white put at HDR's reference white of 203 cd / m2."""
    plain = path.with_name("sdr.mkv")
    tags = {"colorspace": 1, "color_primaries": 1, "color_trc": 1, "color_range": 1}
    write_clip(plain, 6, codec="ffv1", tags=tags, size=(96, 64))
    chain = (
        "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=tv,"
        "zscale=t=linear:npl=203,format=gbrpf32le,"
        f"zscale=p=bt2020:t={curve}:m=bt2020nc:r=tv:npl=203,format=yuv420p10le"
    )
    codec = ("-c:v", "libx265", "-x265-params", "log-level=error:ctu=16", "-crf", 4)
    ffmpeg("-i", plain, "-vf", chain, *codec, *options, path)
    return path


@pytest.mark.parametrize("curve", CURVES)
def test_hdr_becomes_sdr_of_the_same_brightness(tmp_path, caplog, curve):
    path = hdr(tmp_path / "clip.mp4", CURVES[curve])
    with av.open(str(path)) as container:
        flat = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(flat.astype(int) - picture(0, 96, 64)).mean() > 12  # what reading it as SDR shows
    with caplog.at_level(logging.INFO, "latentsync"), VideoReader(path) as reader:
        assert "is HDR" in caplog.text
        frames = list(reader.frames())
        assert reader.info.pixel_format == "yuv420p10le"
        assert reader.info.codec == "hevc"
    assert [number_of(frame.rgb()) for frame in frames] == list(range(6))
    (plain, *_) = VideoReader(tmp_path / "sdr.mkv").frames()
    assert np.abs(frames[0].rgb()[16:].astype(int) - plain.rgb()[16:]).mean() < 5
    colour = frames[0].colour
    assert (colour.matrix, colour.primaries, colour.transfer, colour.range) == (1, 1, 1, 1)


def test_the_temporary_goes_with_the_reader(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path = hdr(tmp_path / "clip.mp4", CURVES["pq"])

    def folders() -> list[Path]:
        return list(tmp_path.glob("latentsync-*"))

    reader = VideoReader(path)
    assert len(folders()) == 1
    del reader
    gc.collect()
    assert not folders()
    with VideoReader(path) as reader:
        assert len(list(reader.frames([5, 0]))) == 2
    assert not folders()
    with pytest.raises(MediaError):
        list(reader.frames())

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("subprocess.run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            VideoReader(path)
    monkeypatch.setattr("latentsync.media.tonemap._FILTERS", "nosuchfilter,{tags}")
    with pytest.raises(MediaError, match="can't be tone-mapped") as error:
        VideoReader(path)
    assert "\n" not in str(error.value)
    assert not folders()


def test_turned_uneven_hdr_keeps_its_way_up_and_its_times(tmp_path):
    path = hdr(tmp_path / "clip.mp4", CURVES["hlg"], "-bf", 2)
    turned = tmp_path / "turned.mov"
    uneven = "setts=pts='PTS+200*eq(N,3)':time_base=1/12800"
    ffmpeg("-display_rotation", 90, "-i", path, "-c", "copy", "-bsf:v", uneven, turned)
    with VideoReader(turned) as reader, av.open(str(turned)) as container:
        stream = container.streams.video[0]
        frames = list(container.decode(stream))
        first = frames[0].pts
        times = [(frame.pts - first) * stream.time_base for frame in frames]
        assert list(reader.times()) == times
        assert len({b - a for a, b in pairwise(times)}) > 1
        assert (reader.info.width, reader.info.height) == (64, 96)
        shown = [
            np.rot90(frame.rgb(), frames[0].rotation // -90) for frame in reader.source_frames()
        ]
    assert [number_of(rgb) for rgb in shown] == list(range(6))


def test_only_what_is_used_is_tone_mapped(tmp_path):
    path, late = hdr(tmp_path / "clip.mp4", CURVES["pq"]), tmp_path / "late.mkv"
    sound = ("-f", "lavfi", "-i", "sine=d=3")
    ffmpeg(*sound, "-itsoffset", 2, "-i", path, "-map", 0, "-map", 1, "-c:v", "copy", late)
    for clip in (path, late):
        with VideoReader(clip, used_seconds=0.08) as reader:
            assert [number_of(frame.rgb()) for frame in reader.frames()] == [0, 1]


def test_hdr_that_says_nothing_but_its_curve_is_taken_for_bt_2020(tmp_path):
    whole, bare = hdr(tmp_path / "clip.mp4", CURVES["pq"]), tmp_path / "bare.mp4"
    unsaid = "hevc_metadata=colour_primaries=2:matrix_coefficients=2"
    ffmpeg("-i", whole, "-c", "copy", "-bsf:v", unsaid, bare)
    with VideoReader(whole) as told, VideoReader(bare) as untold:
        for a, b in zip(told.frames(), untold.frames(), strict=True):
            assert same(a.planes(), b.planes())


# ---- alpha, shape, turn --------------------------------------------------------------------------

ALPHA = {
    "png": ("clip.mov", "png", "rgba"),
    "prores 4444": ("clip.mov", "prores_ks", "yuva444p10le"),
    "vp9": ("clip.webm", "libvpx-vp9", "yuva420p"),
    "ffv1": ("clip.mkv", "ffv1", "yuva420p"),
}


@pytest.mark.parametrize("kind", ALPHA)
def test_alpha_is_dropped_and_what_is_beneath_shows(tmp_path, caplog, kind):
    name, codec, pixel_format = ALPHA[kind]
    path = tmp_path / name
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, 25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        rgba = np.dstack([picture(5), np.full((48, 64), 90, np.uint8)])
        rgba[:, :32, 3] = 255
        frame = av.VideoFrame.from_ndarray(rgba, "rgba").reformat(format=pixel_format)
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    with caplog.at_level(logging.INFO, "latentsync"):
        (shown,) = VideoReader(path).frames()
    assert number_of(shown.rgb()) == 5
    assert np.abs(shown.rgb()[16:].astype(int) - picture(5)[16:]).mean() < 8
    assert ("alpha" in caplog.text) == (kind != "vp9")  # FFmpeg's VP9 decoder doesn't tell


def test_gifs_are_clips(tmp_path):
    path = tmp_path / "clip.gif"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:r=10:d=0.5", path)
    reader = VideoReader(path)
    assert not reader.info.is_image
    assert len(list(reader.times())) == 5
    assert reader.info.source_fps == 10


def test_a_transparent_picture_is_a_picture(tmp_path):
    rgb = picture(9)
    path = write_picture(
        tmp_path / "a.png", np.dstack([rgb, np.zeros((48, 64), np.uint8)])[..., :4]
    )
    assert VideoReader(path).info.is_image


@pytest.mark.parametrize(("turn", "aspect"), [(0, Fraction(4, 3)), (90, Fraction(3, 4))])
def test_pixels_that_are_not_square_stay_so_also_when_turned(tmp_path, turn, aspect):
    plain, path = tmp_path / "plain.mp4", tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:d=0.12", "-vf", "setsar=4/3", plain)
    ffmpeg("-display_rotation", turn, "-i", plain, "-c", "copy", path)
    reader, out = VideoReader(path), tmp_path / "out.mp4"
    assert reader.pixel_aspect == aspect
    with VideoWriter(out) as writer:
        for frame in reader.frames():
            writer.write(frame)
    width, height = reader.info.width, reader.info.height
    assert f"{width}x{height} [SAR {aspect.numerator}:{aspect.denominator}" in ffmpeg_says(out)
    assert (width > height) == (turn == 0)


COPY = """
import resource, sys
from itertools import islice
from latentsync.media import VideoReader, VideoWriter
with VideoWriter(sys.argv[2], preset="ultrafast") as writer:
    for frame in islice(VideoReader(sys.argv[1]).frames(), int(sys.argv[3])):
        writer.write(frame)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le"])
def test_memory_does_not_grow_with_a_4k_clip(tmp_path, pixel_format):
    path, out = tmp_path / "clip.mp4", tmp_path / "out.mp4"
    source = "testsrc2=s=2160x3840:d=2.4"
    ffmpeg("-f", "lavfi", "-i", source, "-preset", "ultrafast", "-pix_fmt", pixel_format, path)
    peaks = []
    for frames in ("15", "60"):
        command = [sys.executable, "-c", COPY, str(path), str(out), frames]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True).stdout))
    assert "2160x3840" in ffmpeg_says(out)
    frame_bytes = 2160 * 3840 * 3 // 2
    assert peaks[1] - peaks[0] < 8 * frame_bytes  # of 45 more


# ---- clips that change on the way ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "scaler", "tags"),
    [
        ((160, 120), "out_color_matrix=bt601", "-pix_fmt yuv420p"),
        ((96, 96), "out_color_matrix=bt601", "-pix_fmt yuv444p"),
        ((128, 96), "out_color_matrix=bt709", "-pix_fmt yuv420p10le -colorspace bt709"),
        ((128, 96), "out_color_matrix=bt601:out_range=pc", "-pix_fmt yuv422p -color_range pc"),
    ],
)
def test_a_clip_that_changes_on_the_way_is_brought_to_its_first_size(
    tmp_path, caplog, size, scaler, tags
):
    def piece(numbers, size, scaler, tags):
        frames = [picture(number, *size) for number in numbers]
        lossless = write_clip(
            tmp_path / "a.mkv", frames, size=size, codec="ffv1", pixel_format="bgr0"
        )
        out = tmp_path / f"{numbers[0]}.ts"
        filters = ("-vf", f"scale={scaler}:flags=accurate_rnd+full_chroma_int")
        how = (*filters, *tags.split(), "-c:v", "libx264", "-crf", 6)
        ffmpeg("-i", f"file:{lossless}", *how, f"file:{out}")
        return out.read_bytes()

    first = "out_color_matrix=bt601", "-pix_fmt yuv420p -colorspace smpte170m"
    path = tmp_path / "changes.ts"
    parts = piece(range(12), (128, 96), *first), piece(range(12, 24), size, scaler, tags)
    path.write_bytes(b"".join(parts))
    with caplog.at_level(logging.WARNING, "latentsync"):
        reader = VideoReader(path)
        assert (reader.info.width, reader.info.height) == (128, 96)
        shown = [frame.rgb() for frame in reader.frames()]
        back = [frame.rgb() for frame in reader.frames(range(23, -1, -1))]
    assert [number_of(rgb) for rgb in shown] == list(range(24))
    assert all(np.array_equal(a, b) for a, b in zip(shown, reversed(back), strict=True))
    # Whichever size, matrix and range a picture had: its colours are the drawn ones.
    for number, drawn in ((3, (128, 96)), (20, size)):
        small = cv2.resize(picture(number, *drawn)[drawn[1] // 3 :], (32, 16), interpolation=3)
        soft = cv2.resize(shown[number][32:], (32, 16), interpolation=3)
        assert np.abs(soft * 1.0 - small).mean() < 2.5, number
    (record,) = caplog.records
    assert "changes on the way from 128 x 96 (yuv420p) to" in record.getMessage()


# ---- pictures of which a part is shown -----------------------------------------------------------


def with_clap(path: Path, out: Path, crop: tuple[int, int, int, int]) -> Path:
    """The same MP4, whose track says how much is cut off its pictures: a `clap` box is put in."""
    data = path.read_bytes()
    entry = data.index(b"avc1", data.index(b"stsd")) - 4
    length = struct.unpack(">I", data[entry : entry + 4])[0]
    width, height = struct.unpack(">2H", data[entry + 32 : entry + 36])
    left, top, right, bottom = crop
    sizes = (width - left - right, 1, height - top - bottom, 1)
    box = struct.pack(">I4s8i", 40, b"clap", *sizes, left - right, 2, top - bottom, 2)
    whole = bytearray(data[: entry + length] + box + data[entry + length :])
    starts = [
        data.index(kind, data.index(b"moov")) - 4
        for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
    ]
    for at in (*starts, entry):
        grown = struct.unpack(">I", whole[at : at + 4])[0] + len(box)
        whole[at : at + 4] = struct.pack(">I", grown)
    out.write_bytes(whole)
    return out


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "sps.mp4", "sps.ts"])
@pytest.mark.parametrize("crop", [(10, 6, 4, 8), (32, 0, 0, 0), (0, 2, 16, 0)])
def test_what_is_cut_off_a_picture_is_not_shown(tmp_path, suffix, crop):
    left, top, right, bottom = crop
    plain = write_clip(tmp_path / "plain.mp4", 30, size=(128, 96), g="10", bf="2")
    path = tmp_path / f"out.{suffix}"
    if "sps" in suffix:
        sides = dict(zip(("left", "top", "right", "bottom"), crop, strict=True))
        said = ":".join(f"crop_{side}={pixels}" for side, pixels in sides.items())
        bsf = ("-bsf:v", f"h264_metadata={said}")
        ffmpeg("-i", f"file:{plain}", "-c", "copy", *bsf, f"file:{path}")
    else:
        mp4 = with_clap(plain, tmp_path / "clap.mp4", crop)
        ffmpeg("-i", f"file:{mp4}", "-c", "copy", f"file:{path}")
    whole = [frame.planes() for frame in VideoReader(plain).frames()]
    reader = VideoReader(path)
    assert (reader.info.width, reader.info.height) == (128 - left - right, 96 - top - bottom)
    for index in (*range(30), 11, 4):
        (frame,) = reader.frames([index])
        for plane, uncut, halved in zip(frame.planes(), whole[index], (1, 2, 2), strict=True):
            rows = slice(top // halved, (96 - bottom) // halved)
            columns = slice(left // halved, (128 - right) // halved)
            assert np.array_equal(plane, uncut[rows, columns])
    theirs = ffmpeg("-i", f"file:{path}", "-frames:v", 1, "-f", "rawvideo", "-")
    if "sps" not in suffix or not left % 16:  # FFmpeg's command line is careless of the left there
        (first,) = reader.frames([0])
        assert theirs == b"".join(plane.tobytes() for plane in first.planes())


@pytest.mark.parametrize("kind", [b"clap", b"stsd", b"avc1", b"\x54\xaa", b"\x54\xcc", b"\xe0"])
def test_nonsense_about_the_crop_is_no_crop(tmp_path, kind):
    plain = write_clip(tmp_path / "plain.mp4", 3, size=(128, 96))
    path = with_clap(plain, tmp_path / "clap.mp4", (10, 6, 4, 8))
    if len(kind) < 4:
        mp4, path = path, tmp_path / "clap.mkv"
        ffmpeg("-i", f"file:{mp4}", "-c", "copy", f"file:{path}")
    data = bytearray(path.read_bytes())
    at = data.index(kind)
    for filler in (b"\xff" * 12, bytes(12), b"\x7f" + bytes(11)):
        data[at + len(kind) : at + len(kind) + 12] = filler
        path.write_bytes(data)
        with path.open("rb") as file:
            for reader in (_of_mp4, _of_matroska):
                assert len(list(reader(file, len(data)))) <= 1
        with suppress(MediaError):
            list(VideoReader(path).frames())
