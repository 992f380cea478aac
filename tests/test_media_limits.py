"""Files that ask for too much, disks that are full, runs that are killed: one line, no trace."""

import signal
import struct
import subprocess
import sys
import tracemalloc
import zlib
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from latentsync.errors import MediaError
from latentsync.media import AudioReader, Limits, VideoFrame, VideoReader, VideoWriter
from latentsync.media.preflight import count_samples, count_unpacked_bytes
from tests.clips import babble, number_of, picture, write_clip, write_picture, write_sound

# ---- what may be read ----------------------------------------------------------------------------


def refused(read) -> str:
    """The one line with which a call refuses a file."""
    with pytest.raises(MediaError) as error:
        read()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("mp4", "libx264"), ("mkv", "libx264"), ("ts", "libx264"), ("avi", "mpeg4"), ("gif", "gif")],
)
def test_too_large_frames_are_refused_before_they_are_decoded(tmp_path, suffix, codec):
    pixel_format = "rgb8" if codec == "gif" else "yuv420p"
    path = write_clip(tmp_path / f"a.{suffix}", 5, codec=codec, pixel_format=pixel_format)
    VideoReader(path, limits=Limits(max_pixels=64 * 48))
    assert "max_pixels" in refused(lambda: VideoReader(path, limits=Limits(max_pixels=3000)))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def test_a_small_picture_file_that_unpacks_to_gigabytes_is_refused(tmp_path):
    side = 20_000
    packed, row = zlib.compressobj(9), bytes(1 + side // 8)
    rows = b"".join(packed.compress(row) for _ in range(side)) + packed.flush()
    path = tmp_path / "bomb.png"
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    assert path.stat().st_size < 100_000
    assert "max_pixels" in refused(lambda: VideoReader(path))


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt"])
def test_a_picture_whose_profile_or_texts_unpack_to_much_is_refused(tmp_path, kind):
    path = write_picture(tmp_path / "a.png", picture(1))
    whole = path.read_bytes()

    def noted(size: int, pieces: int, name: bytes = b"note\0\0", packed: bytes = b"") -> Path:
        note = chunk(kind, name + (packed or zlib.compress(bytes(size))))
        path.write_bytes(whole[:33] + note * pieces + whole[33:])
        return path

    for size, pieces in ((2**26, 1), (2**25, 2)):
        assert "profile or texts" in refused(lambda n=size, k=pieces: VideoReader(noted(n, k)))
        assert path.stat().st_size < 100_000
    assert "profile or texts" in refused(lambda: VideoReader(noted(1, 1, b"n" * 2**17 + b"\0\0")))
    for harmless in ((2**25, 1), (1, 9)):
        assert next(VideoReader(noted(*harmless)).frames()).width == 64
    with noted(1, 1, packed=b"no zlib").open("rb") as file:
        assert count_unpacked_bytes(file, 10) == 0


def test_too_long_clips_and_sounds_are_refused(tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 25, sound=babble(1, 48000))
    wave = write_sound(tmp_path / "a.wav", babble(1))
    just, less = Limits(max_seconds=1.05), Limits(max_seconds=0.5)
    for path in (clip, wave):
        len(AudioReader(path, limits=just).samples)
        assert "1.00 s where at most 0.5 s" in refused(lambda p=path: AudioReader(p, limits=less))
        VideoWriter(tmp_path / "out.mp4", audio=path, limits=just)
        refused(lambda p=path: VideoWriter(tmp_path / "out.mp4", audio=p, limits=less))
    assert len(list(VideoReader(clip, limits=just).frames())) == 25
    assert "max_seconds" in refused(lambda: VideoReader(clip, limits=less))


def test_a_time_far_away_fills_neither_memory_nor_disk(tmp_path):
    far = Fraction(20 * 3600)  # beyond 30 hours a time is taken for none
    path = write_clip(tmp_path / "a.mkv", 3, times=[Fraction(0), Fraction(1, 25), far])
    patient = Limits(max_seconds=1e5)
    assert "max_seconds" in refused(lambda: VideoReader(path))
    assert len(list(VideoReader(path, limits=patient).source_frames())) == 3

    wave = tmp_path / "gap.mkv"
    with av.open(str(wave), "w") as output:
        stream = output.add_stream("flac", 48000, layout="mono")
        for at in (0, 4800, 48000 * 20 * 3600):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, at, Fraction(1, 48000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert "max_seconds" in refused(lambda: len(AudioReader(wave).samples))


def test_a_clip_that_is_longer_than_it_claims_is_stopped_on_the_way(tmp_path):
    path = write_clip(tmp_path / "a.mkv", 50, g="5")
    data = bytearray(path.read_bytes())
    at = data.index(b"\x44\x89\x88") + 3  # Matroska's Duration, in ms
    data[at : at + 8] = struct.pack(">d", 200)
    path.write_bytes(data)
    reader = VideoReader(path, limits=Limits(max_seconds=1))
    assert reader.info.duration_seconds == 0.2
    for frames in (reader.frames, reader.source_frames, lambda: reader.frames([40])):
        assert "max_seconds" in refused(lambda read=frames: list(read()))


MANY = 300_000_000  # samples


def patched(path: Path, box: bytes, at: int, *values: int) -> Path:
    """The file with 32-bit values put into the content of its last such box."""
    data = bytearray(path.read_bytes())
    struct.pack_into(f">{len(values)}I", data, data.rindex(box) + 4 + at, *values)
    path.write_bytes(data)
    return path


def claimed(path: Path) -> int:
    with path.open("rb") as file:
        return count_samples(file, path.stat().st_size)


@pytest.mark.parametrize(
    ("muxer", "box", "at", "values"),
    [
        ("+faststart", b"stsz", 4, (1, MANY)),  # all of one byte
        ("frag_keyframe+empty_moov", b"trun", 0, (1, MANY)),  # all as the fragment says before
        ("+faststart", b"mvhd", -4, (int.from_bytes(b"cmov"),)),
    ],
)
def test_tables_that_claim_more_than_a_file_can_hold_are_refused(tmp_path, muxer, box, at, values):
    path = write_clip(tmp_path / "a.mp4", 5, muxer={"movflags": muxer}, sound=babble(0.2, 48000))
    assert 5 <= claimed(path) < 20
    assert len(list(VideoReader(path).frames())) == 5
    patched(path, box, at, *values)
    assert claimed(path) >= MANY
    for reader in (VideoReader, AudioReader):
        assert "made to exhaust memory" in refused(lambda kind=reader: kind(path))


def test_boxes_without_number_cost_no_memory(tmp_path):
    path = tmp_path / "boxes.mp4"
    box = struct.pack(">I", 24) + b"stts" + bytes(16)
    path.write_bytes(struct.pack(">I", 8 + 24 * 40_000) + b"trak" + box * 40_000)
    tracemalloc.start()
    try:
        assert claimed(path) == 0
        assert tracemalloc.get_traced_memory()[1] < 2**18
    finally:
        tracemalloc.stop()


def test_the_samples_of_pcm_cost_nothing_and_may_be_more_than_the_bytes(tmp_path):
    path = write_sound(tmp_path / "a.mov", babble(0.5), codec="pcm_s16le")
    whole = path.read_bytes()
    for box, at in ((b"stsz", 8), (b"stts", 8)):
        patched(path, box, at, MANY)
    assert claimed(path) == 0
    assert len(AudioReader(path).samples) == 8000
    for box, at, value in ((b"soun", -4, int.from_bytes(b"vide")), (b"stts", 12, 2)):
        path.write_bytes(whole)
        assert claimed(path) == 0
        assert claimed(patched(path, box, at, value)) == 8000


def test_too_many_bytes_are_refused_unread(tmp_path):
    path = tmp_path / "a.mp4"
    with path.open("wb") as file:
        file.truncate(2**40)
    for reader in (VideoReader, AudioReader):
        assert "max_bytes" in refused(lambda kind=reader: kind(path))
    small = write_picture(tmp_path / "a.png", picture(1))
    assert "max_bytes" in refused(lambda: VideoReader(small, limits=Limits(max_bytes=100)))


# ---- full disks and killed runs ------------------------------------------------------------------

WRITE = """
import os, resource, signal, sys
import numpy as np
from latentsync.errors import OutputError
from latentsync.media import VideoFrame, VideoWriter
path, room, die = sys.argv[1], int(sys.argv[2]), "die" in sys.argv
if "named" in sys.argv:
    del os.O_TMPFILE
if room:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
rng = np.random.default_rng(0)
try:
    with VideoWriter(path, crf=0, preset="ultrafast") as writer:
        for _ in range(12):
            writer.write(VideoFrame.from_rgb(rng.integers(0, 255, (48, 64, 3), dtype=np.uint8)))
        if die:
            os.kill(os.getpid(), signal.SIGKILL)
except OutputError as error:
    print(error)
    sys.exit(7)
"""


def run(path: Path, room: int = 0, *how: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", WRITE, str(path), str(room), *how]
    return subprocess.run(command, capture_output=True, check=False, text=True)


def test_where_space_runs_out_there_is_one_line_and_no_half_file(tmp_path):
    out = tmp_path / "out.mp4"
    assert run(out).returncode == 0
    size = out.stat().st_size
    out.write_bytes(b"old")
    for room in (20, size // 2, size - 300, size - 1):  # at the start, on the way, at the very end
        done = run(out, room)
        assert done.returncode == 7, room
        assert done.stdout.count("\n") == 1
        assert "can't be written" in done.stdout
        assert "free space" in done.stdout
        assert done.stderr == ""
        assert out.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [out]


def test_a_killed_run_leaves_nothing(tmp_path):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"old")
    assert run(out, 0, "die").returncode == -signal.SIGKILL
    assert out.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [out]


def test_where_a_killed_run_leaves_a_hidden_file_it_does_not_disturb_the_next(tmp_path):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"old")
    assert run(out, 0, "die", "named").returncode == -signal.SIGKILL
    assert out.read_bytes() == b"old"
    (left,) = set(tmp_path.iterdir()) - {out}
    assert left.name.startswith(".")
    remains = left.read_bytes()
    with VideoWriter(out) as writer:
        writer.write(VideoFrame.from_rgb(picture(3)))
    assert [number_of(frame.rgb()) for frame in VideoReader(out).frames()] == [3]
    assert left.read_bytes() == remains  # it might be another's, who is still at work
    assert set(tmp_path.iterdir()) == {out, left}


def no_link(*_, **__):
    raise PermissionError("no links here")


@pytest.mark.parametrize(
    ("way", "names"), [("without a name", 0), ("hidden", 1), ("without links", 1)]
)
def test_the_file_on_its_way_lies_where_the_output_will(tmp_path, monkeypatch, way, names):
    """So that it takes its place in one step, on whatever disk and with whatever rights."""
    if way == "hidden":
        monkeypatch.delattr("os.O_TMPFILE")
    if way == "without links":
        monkeypatch.setattr("os.link", no_link)
    (plain := tmp_path / "plain").touch()
    for name in ("new.mp4", "old.mp4"):
        (folder := tmp_path / name[:3]).mkdir()
        out = folder / name
        if name == "old.mp4":
            out.write_bytes(b"old")
        there = set(folder.iterdir())
        with VideoWriter(out) as writer:
            writer.write(VideoFrame.from_rgb(picture(3)))
            meanwhile = set(folder.iterdir()) - there
            assert [path.name[0] for path in meanwhile] == ["."] * names
        assert [number_of(frame.rgb()) for frame in VideoReader(out).frames()] == [3]
        assert list(folder.iterdir()) == [out]
        assert out.stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("way", ["with links", "without links"])
def test_the_output_is_never_copied(tmp_path, monkeypatch, way):
    """So its folder needs room for it once."""
    if way == "without links":
        monkeypatch.setattr("os.link", no_link)
    for copying in ("copyfile", "copyfileobj", "copy", "move"):
        monkeypatch.setattr(f"shutil.{copying}", None)
    with VideoWriter(tmp_path / "out.mp4") as writer:
        writer.write(VideoFrame.from_rgb(picture(3)))
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]


def test_what_fails_on_the_way_leaves_nothing_open_or_behind(tmp_path):
    held = {path.name for path in Path("/proc/self/fd").iterdir()}
    writer = VideoWriter(tmp_path / "out.mp4")
    with suppress(KeyError), writer:
        writer.write(VideoFrame.from_rgb(picture(3)))
        raise KeyError
    assert writer.frames == 1
    assert list(tmp_path.iterdir()) == []
    assert {path.name for path in Path("/proc/self/fd").iterdir()} == held
