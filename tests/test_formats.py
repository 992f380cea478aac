"""Which files are read and written, what others are called, and that a URL is no file."""

from pathlib import Path

import numpy as np
import pytest

from latentsync.errors import MediaError, OutputError
from latentsync.media import (
    AudioReader,
    VideoFrame,
    VideoReader,
    VideoWriter,
    check_output,
    open_media,
    probe,
)
from tests.clips import (
    babble,
    ffmpeg,
    ffmpeg_says,
    lag,
    number_of,
    picture,
    write_clip,
    write_picture,
    write_sound,
)

SECONDS = 0.6
# File name, how FFmpeg's binary makes it, the format's name, the codec's.
SOUNDS = [
    ("a.amr", "-ar 8000 -ac 1", "amr", "amr_nb"),
    ("a.caf", "", "caf", "pcm_s16be"),
    ("alac.caf", "-c:a alac", "caf", "alac"),
    ("a.au", "", "au", "pcm_s16be"),
    ("a.ac3", "", "ac3", "ac3"),
    ("a.eac3", "", "eac3", "eac3"),
    ("a.dts", "-c:a dca -strict -2", "dts", "dts"),
    ("a.wv", "", "wv", "wavpack"),
    ("a.tta", "", "tta", "tta"),
    ("a.voc", "", "voc", "pcm_s16le"),
]


@pytest.fixture(scope="module")
def wave(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("wave") / "a.wav"
    return write_sound(path, babble(SECONDS, 48000), 48000)


@pytest.mark.parametrize(("name", "words", "kind", "codec"), SOUNDS, ids=[row[0] for row in SOUNDS])
def test_sounds_that_players_open_are_read(tmp_path, wave, name, words, kind, codec):
    made = tmp_path / name
    ffmpeg("-i", wave, *words.split(), made)
    path = made.rename(tmp_path / "voice.mp3")  # the name says nothing
    facts = probe(path)
    assert (facts.container, facts.audio.codec, facts.video) == (kind, codec, None)
    heard = np.concatenate(list(AudioReader(path).chunks()))
    assert len(heard) / 16000 == pytest.approx(SECONDS, abs=0.06)  # codecs pad to whole blocks
    said = np.frombuffer(ffmpeg("-i", path, "-f", "s16le", "-ac", 1, "-ar", 16000, "-"), "<i2")
    assert abs(lag(heard, said, 16000)) <= 0.001
    assert len(heard) == pytest.approx(len(said), abs=16)
    count = min(len(heard), len(said))
    assert np.corrcoef(heard[:count], said[:count])[0, 1] > 0.99


def numbers(path: Path) -> list[int]:
    return [number_of(frame.rgb()) for frame in VideoReader(path).frames()]


@pytest.mark.parametrize(
    ("name", "words", "sound"),
    [
        ("clip.mxf", "-c:v mpeg2video -q:v 2 -ar 48000", "pcm_s16le"),
        ("clip.dv", "-vf scale=720:576:flags=neighbor -c:v dvvideo -ac 2 -ar 48000", "pcm_s16le"),
        ("clip.y4m", "", None),
    ],
)
def test_clips_that_players_open_are_read(tmp_path, wave, name, words, sound):
    source = write_clip(tmp_path / "source.mp4", 15, size=(96, 96), crf="1")
    ffmpeg("-i", source, "-i", wave, "-pix_fmt", "yuv420p", *words.split(), tmp_path / name)
    path = (tmp_path / name).rename(tmp_path / "clip.mp4")
    facts = probe(path)
    assert facts.container == name.removeprefix("clip.")
    assert (facts.video.fps, facts.video.frames) == (25, 15)
    assert (facts.audio and facts.audio.codec) == sound
    assert numbers(path) == list(range(15))
    assert numbers(path)[3:] == [number_of(f.rgb()) for f in VideoReader(path).frames(range(3, 15))]
    assert [float(at) for at in VideoReader(path).times()] == [n / 25 for n in range(15)]


@pytest.mark.parametrize(
    ("head", "name"),
    [
        (b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n", "a playlist"),
        (b"%PDF-1.7\n", "a PDF"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"MThd\0\0\0\x06", "MIDI"),
        (b".RMF\0\0\0\x12", "RealMedia"),
    ],
)
def test_other_files_are_called_by_their_name(tmp_path, head, name):
    path = tmp_path / "a.mp4"
    path.write_bytes(head + bytes(500))
    with pytest.raises(MediaError, match=f"is {name}.* not among the formats read: mp4, mov"):
        open_media(path)


def test_media_of_formats_that_are_not_read_is_called_by_its_name(tmp_path):
    with pytest.raises(MediaError, match="is a TIFF picture, which is not among the formats read"):
        open_media(write_picture(tmp_path / "a.tiff", picture(1)))
    clip = write_clip(tmp_path / "a.mp4", 3)
    ffmpeg("-i", clip, "-c", "copy", tmp_path / "a.nut")
    with pytest.raises(MediaError, match="is NUT, which is not among the formats read"):
        open_media(tmp_path / "a.nut")
    ffmpeg("-i", clip, "-c:v", "flashsv", "-f", "swf", "-c:v", "flv", tmp_path / "a.swf")
    with pytest.raises(MediaError, match="its format is not among those read: mp4"):
        open_media(tmp_path / "a.swf")


@pytest.mark.parametrize(
    ("name", "codec", "kind"),
    [
        ("a.mp4", "libx264", "mp4"),
        ("a.mov", "libx264", "mov"),
        ("a.3gp", "libx264", "3gp"),
        ("a.mkv", "libx264", "mkv"),
        ("a.webm", "libvpx", "webm"),
        ("a.ts", "mpeg2video", "ts"),
        ("a.avi", "mpeg4", "avi"),
    ],
)
def test_a_format_is_called_as_people_call_it(tmp_path, name, codec, kind):
    assert probe(write_clip(tmp_path / name, 3, size=(176, 144), codec=codec)).container == kind


def test_an_apple_sound_is_no_clip(tmp_path, wave):
    ffmpeg("-i", wave, tmp_path / "a.m4a")
    assert probe(tmp_path / "a.m4a").container == "m4a"


@pytest.mark.parametrize(("name", "brand"), [("out.mp4", "mp4"), ("OUT.MOV", "mov")])
def test_what_is_written_is_what_its_name_says(tmp_path, wave, name, brand):
    path = tmp_path / name
    with VideoWriter(path, audio=wave, comment="ours") as writer:
        for number in range(15):
            writer.write(VideoFrame.from_rgb(picture(number)))
    facts = probe(path)
    assert (facts.container, facts.comment, facts.audio.codec) == (brand, "ours", "aac")
    assert numbers(path) == list(range(15))
    assert "h264" in ffmpeg_says(path)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")  # it can be shown while it is loaded


@pytest.mark.parametrize("name", ["x.webm", "x.mkv", "x.gif", "x.avi", "x.wav", "x.mp4.part"])
def test_a_name_of_another_format_is_no_output(tmp_path, name):
    for refuse in (check_output, VideoWriter):
        with pytest.raises(OutputError, match=r"is no name for an MP4 .* give 'x.*\.mp4'") as error:
            refuse(tmp_path / name)
        assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


ADDRESS = "https://example.org/a//b.mp4?next=http://c"


def test_a_url_is_no_file_and_is_said_as_it_was_given(tmp_path, monkeypatch):
    for use, kind in ((open_media, MediaError), (check_output, OutputError)):
        with pytest.raises(kind) as error:
            use(ADDRESS)
        assert repr(ADDRESS) in str(error.value)
        with pytest.raises(kind, match=r"'https://example\.org/clip\.mp4' is an"):
            use(Path("https://example.org/clip.mp4"))
    monkeypatch.chdir(tmp_path)  # where a folder has such a name, it is that one
    (tmp_path / "clips:").mkdir()
    write_picture(tmp_path / "clips:" / "a.png", picture(1))
    assert probe("clips://a.png").video.width == 64


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", ADDRESS, "voice.wav", "-o", "out.mp4"),
        ("generate", "clip.mp4", ADDRESS, "-o", "out.mp4"),
        ("generate", "clip.mp4", "voice.wav", "-o", ADDRESS),
        ("generate", "clip.mp4", "-o", "out.mp4", "--speaker", f"left={ADDRESS}"),
        ("upscale", ADDRESS, "-o", "out.mp4"),
        ("info", ADDRESS),
        ("evaluate", ADDRESS),
        ("evaluate", "out.mp4", "--reference", ADDRESS),
        ("verify", "demo", ADDRESS),
        ("prepare", ADDRESS, "-o", "folder"),
    ],
    ids=lambda arguments: "-".join(arguments)[:12],
)
def test_commands_say_of_a_url_that_it_is_no_file(monkeypatch, capsys, arguments):
    from latentsync import cli

    monkeypatch.setattr("sys.argv", ["latentsync", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"latentsync: error: {ADDRESS!r} is an address, and only files")
    assert line.count("\n") == 1


def test_the_names_that_are_said_to_be_read_are_read():
    """The list in the message and FFmpeg's names agree: each said name is tried above or here."""
    from latentsync.media.formats import OPEN_OPTIONS, READ_FORMATS

    known = set(OPEN_OPTIONS["format_whitelist"].split(","))
    other = {"mp4": "mov", "mkv": "matroska", "ts": "mpegts", "mpg": "mpeg", "wmv": "asf"}
    other |= {"y4m": "yuv4mpegpipe", "jpg": "jpeg_pipe", "png": "png_pipe", "bmp": "bmp_pipe"}
    other |= {"webp": "webp_pipe", "avif": "mov"}
    names = READ_FORMATS.replace(";", ",").split(", ")
    assert {other.get(name, name) for name in names} <= known
