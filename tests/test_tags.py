"""What an output takes over from its clip beside pictures and sound, and that the rest is said."""

import json
import logging
import re
import subprocess
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from latentsync.media import Sound, VideoFrame, VideoWriter, probe, read_tags
from latentsync.media.tags import timecode_at
from tests.clips import babble, ffmpeg, picture, write_clip, write_picture, write_sound
from tests.stubs import numbered_clip, tiny_lipsync

NTSC, PAL, FILM = Fraction(30000, 1001), Fraction(25), Fraction(24000, 1001)


def said(path: Path) -> str:
    """What FFmpeg's binary says of a file, tags and all."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-i", str(path)]
    return subprocess.run(command, capture_output=True, check=False, text=True).stderr


def tag(path: Path, name: str) -> list[str]:
    return [found.strip() for found in re.findall(rf"^ +{name} +: (.*)$", said(path), re.MULTILINE)]


def tagged(path: Path, *words: str, inputs: tuple = (), **clip) -> Path:
    """A numbered clip with sound that FFmpeg's binary has given tags."""
    source = numbered_clip(path.with_name("source.mp4"), 20, **clip)
    wave = write_sound(path.with_name("source.wav"), babble(0.8, 48000), 48000)
    maps = ("-map", "0:v", "-map", "1:a") if "-map" not in words else ()
    more = [part for one in inputs for part in ("-i", one)]
    ffmpeg("-i", source, "-i", wave, *more, *maps, "-c:v", "copy", "-c:a", "aac", *words, path)
    return path


def run(clip: Path, out: Path, voice: Path | None = None, **options):
    return tiny_lipsync().run(clip, voice or clip, out, steps=1, **options)


META = {
    "title": "Take 2",
    "artist": "Ann",
    "album": "Rushes",
    "genre": "Talk",
    "copyright": "2026 Ann",
    "creation_time": "2024-05-06T07:08:09Z",
    "comment": "the clip's own",
    "location": "+52.5200+013.4050/",
}
WORDS = [word for name, value in META.items() for word in ("-metadata", f"{name}={value}")]


@pytest.mark.parametrize(
    ("suffix", "output"), [(".mov", ".mp4"), (".mp4", ".mov"), (".mkv", ".mp4")]
)
def test_titles_and_times_are_kept_and_the_place_is_not(tmp_path, suffix, output):
    clip = tagged(tmp_path / f"clip{suffix}", *WORDS, "-metadata:s:a:0", "language=ger")
    out = tmp_path / f"out{output}"
    result = run(clip, out)
    for name in ("title", "artist", "album", "genre", "copyright"):
        assert tag(out, name) == [META[name]]
    assert {one[:19] for one in tag(out, "creation_time")} == {META["creation_time"][:19]}
    assert Sound.of(out).track.language == "deu"
    assert re.search(r"\((deu|ger)\): Audio", said(out))
    assert "52.52" not in said(out)
    assert b"+52.5200" not in out.read_bytes()
    assert probe(out).comment.startswith("Synthetic picture")
    assert "location (on purpose)" in result.left_out
    assert "comment (the output's own says how it was made)" in result.left_out
    assert not [said for said in result.left_out if "title" in said or "creation" in said]


@pytest.mark.parametrize("options", [{}, {"fps": "source"}])
def test_the_time_code_labels_the_first_frame(tmp_path, options):
    clip = tagged(tmp_path / "clip.mov", "-timecode", "10:11:12:13")
    out = tmp_path / "out.mp4"
    result = run(clip, out, **options)
    assert set(tag(out, "timecode")) == {"10:11:12:13"}
    assert result.left_out == ()
    assert result.frames == 20


def test_a_time_code_of_another_rate_is_kept_to_the_frame(tmp_path):
    clip = tagged(tmp_path / "clip.mov", "-timecode", "01:02:03;15", fps=NTSC)
    for options, label in (({}, "01:02:03:12"), ({"fps": "source"}, "01:02:03;15")):
        run(clip, tmp_path / "out.mp4", **options)
        assert set(tag(tmp_path / "out.mp4", "timecode")) == {label}


@pytest.mark.parametrize(
    ("code", "rate", "fps", "label"),
    [
        ("10:00:00:24", PAL, PAL, "10:00:00:24"),
        ("10:00:00:29", Fraction(30), PAL, "10:00:00:24"),
        ("10:00:00;15", NTSC, PAL, "10:00:00:12"),
        ("10:01:00;02", NTSC, NTSC, "10:01:00;02"),
        ("10:00:00;00", NTSC, NTSC, "10:00:00;00"),
        ("10:01:00;02", NTSC, Fraction(60000, 1001), "10:01:00;04"),
        ("10:00:00:12", NTSC, NTSC, "10:00:00:12"),
        ("10:00:00:23", FILM, PAL, "10:00:00:23"),
        ("10:00:00.10", PAL, Fraction(50), "10:00:00:20"),
        ("10:00:00:25", PAL, PAL, None),
        ("24:00:00:00", PAL, PAL, None),
        ("soon", PAL, PAL, None),
    ],
)
def test_a_time_code_at_another_rate(code, rate, fps, label):
    assert timecode_at(code, rate, fps) == label


def test_a_time_code_that_is_none_is_said_and_costs_nothing(tmp_path):
    clip = tagged(tmp_path / "clip.mkv", "-metadata", "timecode=soon")
    result = run(clip, tmp_path / "out.mp4")
    assert result.left_out == ("time code 'soon', which is none",)
    assert tag(tmp_path / "out.mp4", "timecode") == []


def test_what_is_not_carried_over_is_said_in_log_and_report(tmp_path, caplog):
    lines, notes = tmp_path / "lines.srt", tmp_path / "notes.txt"
    lines.write_text("1\n00:00:00,000 --> 00:00:00,700\nSomebody speaks.\n")
    notes.write_text(";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/10\nSTART=0\nEND=5\ntitle=One\n")
    words = ("-map", "0:v", "-map", "1:a", "-map", "1:a", "-map", "2:s")
    words += ("-map_metadata", "3", "-map_chapters", "3", "-metadata", "make=Some Camera")
    words += ("-metadata:s:a:1", "language=fra")
    clip = tagged(tmp_path / "clip.mkv", *words, inputs=(lines, notes))
    with caplog.at_level(logging.INFO, "latentsync"):
        result = run(clip, tmp_path / "out.mp4", report=True)
    wanted = ("tags make", "1 subtitle track", "1 chapter", "sound track 2 (fra)")
    assert result.left_out == wanted
    assert f"not carried over from '{clip}': {'; '.join(wanted)}" in caplog.text
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["left_out"] == list(wanted)
    assert report["sound_tracks"] == {"largest": "track 1 of 2, aac, 48000 Hz, mono"}


def test_another_voice_takes_the_place_of_the_clips_sound(tmp_path):
    clip = tagged(tmp_path / "clip.mp4", "-metadata", "title=The clip")
    voice = tmp_path / "song.mp3"
    ffmpeg(
        "-i", tmp_path / "source.wav", "-metadata", "title=A song", "-metadata", "artist=Ben", voice
    )
    result = run(clip, tmp_path / "out.mp4", voice)
    assert tag(tmp_path / "out.mp4", "title") == ["The clip"]
    assert result.left_out == ("the clip's own sound", "artist, title of 'song.mp3'")


def test_alpha_is_said(tmp_path):
    clear = np.dstack([picture(1), np.full((48, 64), 99, np.uint8)])
    photo = write_picture(tmp_path / "a.png", clear[..., [0, 1, 2, 3]])
    assert read_tags(photo, [], PAL).left_out == ("alpha channel",)
    film = tmp_path / "a.webm"
    ffmpeg("-loop", 1, "-i", photo, "-t", 0.2, "-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p", film)
    assert read_tags(film, [], PAL).left_out == ("alpha channel",)
    assert read_tags(write_clip(tmp_path / "a.mp4", 3), [], PAL).left_out == ()


def test_tags_go_where_players_look(tmp_path):
    path = tmp_path / "out.mp4"
    with VideoWriter(path, tags={"title": "Ours", "date": "2026"}, comment="synthetic") as writer:
        writer.write(VideoFrame.from_rgb(picture(1)))
    assert (tag(path, "title"), tag(path, "date"), tag(path, "comment")) == (
        ["Ours"],
        ["2026"],
        ["synthetic"],
    )


def test_iphone_s_tags_are_understood(tmp_path):
    words = ("-movflags", "use_metadata_tags", "-metadata")
    names = "com.apple.quicktime."
    clip = tagged(
        *(tmp_path / "clip.mov", *words, f"{names}location.ISO6709=+52.5+013.4/"),
        *("-metadata", f"{names}creationdate=2024-05-06T09:08:09+0200"),
        *("-metadata", f"{names}title=Holiday", "-metadata", f"{names}model=Phone"),
    )
    found = read_tags(clip, [Sound.of(clip)], PAL)
    assert found.tags == {"title": "Holiday", "creation_time": "2024-05-06T09:08:09+0200"}
    assert found.left_out == ("location (on purpose)", "tags model")
    run(clip, tmp_path / "out.mp4")
    assert {one[:19] for one in tag(tmp_path / "out.mp4", "creation_time")} == {
        "2024-05-06T07:08:09"
    }
