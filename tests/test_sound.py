"""Sound: what the network hears, and that the output plays it at the same time."""

import logging
import subprocess
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import imageio_ffmpeg
import numpy as np
import pytest

from latentsync.errors import MediaError
from latentsync.media import (
    AudioReader,
    Sound,
    VideoFrame,
    VideoReader,
    VideoWriter,
    decide_copy,
    first_frame_time,
    probe,
)
from tests.clips import babble, early, ffmpeg, heard, lag, picture, write_clip, write_sound

RATE = 16000  # Hz, what the network hears
FRAME = 1 / 25  # s


def played(path: Path, rate: int = RATE) -> np.ndarray:
    """Another decoder's view: FFmpeg's binary, every sample where its time says."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", f"file:{path}"]
    command += ["-copyts", "-af", "aresample=async=1:first_pts=0", "-ac", "1", "-ar", str(rate)]
    done = subprocess.run([*command, "-f", "s16le", "-"], capture_output=True, check=True)
    return np.frombuffer(done.stdout, "<i2").astype(np.float32) / 32768


def as_ffmpeg_says(path: Path) -> np.ndarray:
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", f"file:{path}"]
    command += ["-f", "s16le", "-ac", "1", "-ar", str(RATE), "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    return np.frombuffer(done.stdout, "<i2").astype(np.float32) / 32768


def write(out: Path, audio: Path | Sound, frames: int, **options) -> Path:
    still = VideoFrame.from_rgb(picture(1))
    with VideoWriter(out, audio=audio, preset="ultrafast", **options) as writer:
        for _ in range(frames):
            writer.write(still)
    return out


def make(folder: Path, kind: str) -> Path:
    """1.8 s of babble as one of KINDS."""
    name, rate, channels = KINDS[kind]
    sound = babble(1.8, rate)
    sound = sound if channels == 1 else np.stack([sound, 0.5 * sound])
    path = folder / name
    if "vorbis" in kind:  # PyAV can't encode it
        wave = write_sound(folder / "a.wav", sound, rate)
        command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-nostdin", "-y", "-i", wave]
        subprocess.run([*command, "-c:a", "libvorbis", path], check=True)
        return path
    if "late" in kind:
        return write_clip(path, 60, sound=sound, sound_rate=rate, sound_start=Fraction(1, 2))
    if path.suffix in (".mp4", ".mkv", ".ts"):
        return write_clip(path, 45, sound=sound, sound_rate=rate)
    return write_sound(path, sound, rate)


KINDS = {
    "wav": ("a.wav", 16000, 1),
    "wav, 8 kHz": ("a.wav", 8000, 1),
    "wav, odd rate": ("a.wav", 37800, 2),
    "mp3": ("a.mp3", 44100, 2),
    "mp3, 22 kHz": ("a.mp3", 22050, 1),
    "mp3, 8 kHz": ("a.mp3", 8000, 1),
    "m4a": ("a.m4a", 44100, 1),
    "m4a, 16 kHz": ("a.m4a", 16000, 1),
    "aac": ("a.aac", 48000, 2),
    "flac": ("a.flac", 48000, 2),
    "ogg": ("a.ogg", 48000, 1),
    "ogg, vorbis": ("vorbis.ogg", 44100, 2),
    "a video's": ("a.mp4", 48000, 1),
    "a video's, mkv": ("a.mkv", 44100, 1),
    "a video's, ts": ("a.ts", 48000, 1),
    "late": ("a.mp4", 48000, 1),
    "late, mkv": ("a.mkv", 44100, 2),
}
COPIED = {"mp3", "mp3, 22 kHz", "m4a", "m4a, 16 kHz", "aac"} | {
    kind for kind in KINDS if "video" in kind or "late" in kind
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_output_plays_what_the_network_heard_at_the_same_time(tmp_path, caplog, kind):
    path = make(tmp_path, kind)
    _, rate, channels = KINDS[kind]
    reader = AudioReader(path)
    assert (reader.sound.sample_rate, reader.sound.channels) == (rate, channels)
    sound = heard(path)
    frames = -(-len(sound) * 25 // RATE)

    with caplog.at_level(logging.INFO, "latentsync"):
        out = write(tmp_path / "out.mp4", path, frames)
    result = played(out)
    late = lag(result, sound, RATE)
    assert abs(late) <= 0.005
    shifted = result[8000 + round(late * RATE) :][:16000]
    assert np.corrcoef(shifted, sound[8000:24000])[0, 1] > 0.9
    assert abs(len(result) / RATE - frames * FRAME) <= FRAME

    facts = probe(out).audio
    source = probe(path).audio
    copied = kind in COPIED
    assert ("is copied" in caplog.text) == copied
    assert facts.codec == (source.codec if copied else "aac")
    assert facts.channels == channels
    assert facts.sample_rate == (rate if rate != 37800 else 44100)
    assert ("44100 Hz stereo, the nearest" in caplog.text) == (rate == 37800)


def test_the_network_hears_the_file_where_it_is(tmp_path):
    """Against the sound that was put in: encoders' priming is gone, a late start is silence."""
    for kind, delay in {
        "wav": 0,
        "mp3": 0,
        "m4a": 0,
        "ogg": 0,
        "late": 0.5,
        "late, mkv": 0.5,
    }.items():
        path = make(tmp_path, kind)
        sound = heard(path)
        original = np.concatenate([np.zeros(round(delay * RATE)), heard(make(tmp_path, "wav"))])
        assert abs(lag(sound, original, RATE)) <= 0.005, kind
        if delay:
            assert np.abs(sound[: round(0.49 * RATE)]).max() < 0.01
        assert abs(len(sound) / RATE - delay - 1.8) < 0.03, kind


@pytest.mark.parametrize("kind", ["wav", "wav, odd rate", "mp3", "aac", "flac", "a video's, mkv"])
def test_the_samples_are_those_of_ffmpeg(tmp_path, kind):
    path = make(tmp_path, kind)
    ours, theirs = heard(path), as_ffmpeg_says(path)
    assert len(ours) == len(theirs)
    assert np.abs(ours - theirs).max() <= 1 / 32768
    assert ours.dtype == np.float32


@pytest.mark.parametrize(
    ("name", "codec", "rate", "channels"),
    [
        ("a.wav", "pcm_u8", 8000, 1),
        ("a.wav", "pcm_alaw", 8000, 1),
        ("a.wav", "pcm_s24le", 96000, 2),
        ("a.wav", "pcm_s32le", 192000, 2),
        ("a.wav", "pcm_f32le", 48000, 2),
        ("a.wav", "pcm_f64le", 11025, 1),
        ("a.aiff", "pcm_s16be", 44100, 2),
        ("a.flac", "flac", 96000, 2),
        ("a.mov", "pcm_s24le", 48000, 2),
        ("a.webm", "libopus", 48000, 2),
        ("a.mkv", "ac3", 48000, 6),
    ],
)
def test_any_rate_depth_and_number_of_channels(tmp_path, name, codec, rate, channels):
    wave, path = tmp_path / "in.wav", tmp_path / name
    write_sound(wave, babble(0.6, rate), rate)
    ffmpeg("-i", wave, "-ac", channels, "-c:a", codec, path)
    reader = AudioReader(path)
    assert (reader.sound.sample_rate, reader.sound.channels) == (rate, channels)
    ours, theirs = heard(path), as_ffmpeg_says(path)
    shared = min(len(ours), len(theirs))
    assert abs(len(ours) - len(theirs)) <= 2
    if channels > 2:  # how much of each to mix is a matter of taste
        assert np.corrcoef(ours[:shared], theirs[:shared])[0, 1] > 0.999
    else:
        assert np.abs(ours[:shared] - theirs[:shared]).max() <= 4 / 32768
    facts = probe(write(tmp_path / "out.mp4", path, 15)).audio
    assert (facts.channels, facts.sample_rate) == (channels, min(rate, 96000))


def test_sound_and_pictures_of_one_file_keep_their_places(tmp_path):
    """Time 0 is where the first of the two starts, also where that is the pictures."""
    sound = babble(1, 48000)
    for suffix in ("mp4", "mkv"):  # a TS does not tell what the encoder put in front
        late = write_clip(tmp_path / f"late.{suffix}", 40, sound=sound, sound_start=Fraction(2, 5))
        early = write_clip(
            tmp_path / f"early.{suffix}",
            40,
            times=[Fraction(2, 5) + Fraction(n, 25) for n in range(40)],
            sound=sound,
        )
        found = lag(heard(late)[:RATE], heard(early)[:RATE], RATE, reach=0.6)
        assert found == pytest.approx(0.4, abs=0.005), suffix


def test_sound_is_streamed_counted_and_read_again(tmp_path):
    path = write_sound(tmp_path / "a.wav", babble(3.3))
    reader = AudioReader(path)
    sizes = [len(chunk) for chunk in reader.chunks()]
    assert sizes == [16000, 16000, 16000, 4800]
    assert len(reader.samples) == 52800
    assert reader.seconds == Fraction(33, 10)
    assert len(AudioReader(path).samples) == 52800
    assert all(np.array_equal(a, b) for a, b in zip(reader.chunks(), reader.chunks(), strict=True))
    assert reader.sound.codec == "pcm_s16le"


def test_a_gap_in_the_sound_is_silence(tmp_path):
    sound = babble(1.5, 48000)
    path = tmp_path / "gap.mkv"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("flac", 48000, layout="mono")
        for at in range(0, len(sound), 4800):
            block = np.ascontiguousarray((sound[None, at : at + 4800] * 32767).astype(np.int16))
            frame = av.AudioFrame.from_ndarray(block, "s16", "mono")
            frame.sample_rate, frame.time_base = 48000, Fraction(1, 48000)
            frame.pts = at + (24000 if at >= 48000 else 0)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    result = heard(path)
    assert len(result) == pytest.approx(2.0 * RATE, abs=200)
    assert np.abs(result[int(1.15 * RATE) : int(1.45 * RATE)]).max() == 0
    assert np.abs(result[int(1.55 * RATE) :]).max() > 0.05


def test_sound_is_told_by_content(tmp_path):
    path = write_sound(tmp_path / "a.mp3", babble(1, 44100), 44100)
    disguised = tmp_path / "a.wav"
    path.rename(disguised)
    assert AudioReader(disguised).sound.codec == "mp3"


def test_many_channels_are_kept_or_folded_to_stereo(tmp_path, caplog):
    for layout, kept in (("5.1", 6), ("6.1", 2)):
        path, channels = tmp_path / f"{layout}.flac", int(layout[0]) + 1
        with av.open(str(path), "w") as output:
            stream = output.add_stream("flac", 48000, layout=layout)
            block = (babble(0.5, 48000)[None].repeat(channels, 0).T * 32767).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(block.reshape(1, -1), "s16", layout)
            frame.sample_rate, frame.pts = 48000, 0
            output.mux(stream.encode(frame))
            output.mux(stream.encode(None))
        with caplog.at_level(logging.INFO, "latentsync"):
            out = write(tmp_path / f"{layout}.mp4", path, 13)
        assert probe(out).audio.channels == kept
    assert "stereo, the nearest" in caplog.text


def test_what_has_no_sound_is_refused(tmp_path):
    write_clip(tmp_path / "silent.mp4", 3)
    write_sound(tmp_path / "nothing.wav", babble(0.0))
    (tmp_path / "text.wav").write_text("hello " * 100)
    (tmp_path / "empty.mp3").write_bytes(b"")
    for name in ("silent.mp4", "nothing.wav", "text.wav", "empty.mp3", "missing.wav"):
        with pytest.raises(MediaError, match=name):
            AudioReader(tmp_path / name)


def test_a_cover_picture_is_no_video(tmp_path):
    path = tmp_path / "song.mp3"
    with av.open(str(path), "w") as output:
        voice = output.add_stream("libmp3lame", 44100, layout="mono")
        cover = output.add_stream("png", 25)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "rgb24"
        cover.disposition = av.stream.Disposition.attached_pic
        output.mux(cover.encode(av.VideoFrame.from_ndarray(picture(1), "rgb24")))
        block = av.AudioFrame.from_ndarray(babble(0.5, 44100)[None], "fltp", "mono")
        block.sample_rate = 44100
        output.mux(voice.encode(block))
        output.mux(voice.encode(None))
    with pytest.raises(MediaError, match="no pictures"):
        VideoReader(path)
    assert len(AudioReader(path).samples) == pytest.approx(8000, abs=20)
    assert probe(path).video is None


@pytest.mark.parametrize("frames", [20, 21])
@pytest.mark.parametrize("kind", KINDS)
def test_longer_sound_is_cut_where_the_pictures_end(tmp_path, kind, frames):
    out = write(tmp_path / "out.mp4", make(tmp_path, kind), frames)
    assert abs(len(played(out)) / RATE - frames * FRAME) <= FRAME
    with av.open(str(out)) as container:
        voice, video = container.streams.audio[0], container.streams.video[0]
        ends = [float((s.start_time + s.duration) * s.time_base) for s in (voice, video)]
    assert abs(ends[0] - ends[1]) <= FRAME


@pytest.mark.parametrize(
    ("name", "codec"),
    [
        ("a.mp4", "aac"),
        ("a.mp4", "libmp3lame"),
        ("a.mkv", "aac"),
        ("a.mkv", "flac"),
        ("a.ts", "aac"),
    ],
)
def test_sound_before_the_first_picture_can_be_left_out(tmp_path, name, codec):
    """Then sound and pictures of a clip keep their places; a file may count in ms, so to 0.5 ms."""
    wave = write_sound(tmp_path / "a.wav", babble(1.8, 48000), 48000)
    path = early(tmp_path / name, write_clip(tmp_path / "clip.mp4", 40), wave, 0.5, codec)
    start = first_frame_time(path)
    out = write(tmp_path / "out.mp4", Sound.of(path, start=start), 30)
    result, there = played(out, 48000), played(path, 48000)
    kept = there[round(start * 48000) :]
    late = lag(result, kept, 48000)
    assert abs(late) <= 0.0005
    result = result[round(max(late, 0) * 48000) :]
    n = min(len(result), len(kept)) - 4800
    assert n > 48000
    assert np.corrcoef(result[4800:n], kept[4800:n])[0, 1] > 0.99
    heard_now = heard(path, 48000, start)
    assert abs(lag(heard_now, kept, 48000)) <= 0.0005
    with av.open(str(out)) as container:  # no more is hidden than decoders want to have seen
        first = next(container.demux(audio=0))
        assert first.pts * first.time_base >= -Fraction(1, 4)


def test_copied_packets_follow_each_other_to_the_sample(tmp_path):
    """Matroska counts in ms, to which 1024 samples at 44.1 and 48 kHz don't fit."""
    for codec, rate, samples in (("aac", 48000, 1024), ("mp3", 44100, 1152)):
        path = write_sound(tmp_path / f"{codec}.mka", babble(1.8, rate), rate, codec=codec)
        with av.open(str(write(tmp_path / "out.mp4", path, 40))) as container:
            times = [p.pts * p.time_base for p in container.demux(audio=0) if p.size]
        assert {b - a for a, b in pairwise(times)} == {Fraction(samples, rate)}


def test_each_channel_has_its_share_of_bits(tmp_path):
    wave = babble(1, 48000)
    for channels, least in ((1, 150), (2, 150), (6, 400)):
        path, layout = tmp_path / f"{channels}.wav", {1: "mono", 2: "stereo", 6: "5.1"}[channels]
        with av.open(str(path), "w") as output:
            stream = output.add_stream("pcm_s16le", 48000, layout=layout)
            block = np.stack([np.roll(wave, 999 * i) for i in range(channels)]).T * 32767
            block = np.ascontiguousarray(block.astype(np.int16).reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(block, "s16", layout)
            frame.sample_rate = 48000
            output.mux(stream.encode(frame))
        out = write(tmp_path / f"{channels}.mp4", path, 25)
        with av.open(str(out)) as container:
            assert sum(p.size for p in container.demux(audio=0)) * 8 / 1000 > least  # kbit


@pytest.mark.parametrize("kind", ["wav", "mp3", "m4a", "late", "late, mkv"])
def test_sound_can_start_anywhere_in_the_output(tmp_path, kind):
    path = make(tmp_path, kind)
    sound = heard(path)[: round(1.3 * RATE)]
    out = write(tmp_path / "out.mp4", path, 50, audio_at=Fraction(7, 10))
    result = played(out)
    assert np.abs(result[: round(0.67 * RATE)]).max() < 0.01
    assert abs(lag(result[round(0.7 * RATE) :], sound, RATE)) <= 0.005
    assert abs(len(result) / RATE - 2) <= FRAME


def test_shorter_sound_ends_early(tmp_path):
    path = write_sound(tmp_path / "a.m4a", babble(0.5, 48000), 48000)
    out = write(tmp_path / "out.mp4", path, 50)
    assert len(played(out)) / RATE == pytest.approx(0.5, abs=FRAME)
    assert probe(out).duration_seconds == pytest.approx(2, abs=0.01)


def test_sound_and_pictures_are_interleaved(tmp_path):
    path = write_sound(tmp_path / "a.mp3", babble(25, 44100), 44100)
    out = write(tmp_path / "out.mp4", path, 625)
    latest, apart = {"audio": 0.0, "video": 0.0}, []
    with av.open(str(out)) as container:
        packets = [packet for packet in container.demux() if packet.size]
        for packet in sorted(packets, key=lambda packet: packet.pos):
            latest[packet.stream.type] = float(packet.dts * packet.time_base)
            apart.append(abs(latest["audio"] - latest["video"]))
        del packets, packet  # they point into the container
    assert max(apart) < 1.1


def test_sound_that_cannot_be_copied_is_blamed_on_the_sound(tmp_path):
    """A damaged packet that FFmpeg's muxer refuses, as about one damaged file in a hundred has."""
    sound = write_sound(tmp_path / "a.mp3", babble(1, 44100), 44100)
    out = tmp_path / "out.mp4"

    class Refusing:
        def mux(self, _packet):
            raise av.ArgumentError(22, "Invalid argument")

    def write():
        with VideoWriter(out, audio=sound) as writer:
            for _ in range(20):
                writer.write(VideoFrame.from_rgb(picture(0)))
                writer._sound._output = Refusing()

    with pytest.raises(
        MediaError, match=r"the sound of .*a\.mp3' is damaged .*: convert it to WAV"
    ):
        write()
    assert list(tmp_path.iterdir()) == [sound]


# ---- sound whose packets an output can't take as they are ----------------------------------------


def joined(folder: Path, *rates: int) -> Path:
    """Second after second of AAC in MPEG-TS, with a clock that begins anew for each."""
    parts = []
    for number, rate in enumerate(rates):
        sound = babble(1, rate, seed=number)
        channels = np.stack([sound, sound]) if rate < 30000 else sound
        parts.append(write_sound(folder / f"{number}.ts", channels, rate))
    path = folder / "joined.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


@pytest.mark.parametrize("rates", [(48000, 48000), (48000, 22050), (22050, 48000)])
def test_sound_of_joined_files_is_whole_and_encoded_anew_if_it_changes(tmp_path, caplog, rates):
    path = joined(tmp_path, *rates)
    reader = AudioReader(path)
    with caplog.at_level(logging.INFO, "latentsync"):
        out = write(tmp_path / "out.mp4", path, 50)
    uniform = len(set(rates)) == 1
    assert ("is copied" in caplog.text) == uniform
    assert ("is encoded to AAC" in caplog.text) != uniform
    result, sound = played(out), heard(path)
    for number, rate in enumerate(rates):
        original = babble(1, rate, seed=number)[: round(0.9 * rate)]
        wave = write_sound(tmp_path / "original.wav", original, rate)
        at = slice(number * RATE, (number + 1) * RATE)
        for where in (result, sound):
            late = lag(where[at], heard(wave), RATE)
            assert abs(late) < 0.1  # what AAC adds before and behind each
            there = np.roll(where, -round(late * RATE))[at][4000:12000]
            assert np.corrcoef(there, heard(wave)[4000:12000])[0, 1] > 0.9
    assert reader.uniform == uniform


def test_it_is_known_before_the_first_picture_whether_packets_fit(tmp_path, monkeypatch):
    plain = write_sound(tmp_path / "a.m4a", babble(1, 48000), 48000)
    assert decide_copy(Sound.of(plain)).copied
    assert not decide_copy(Sound.of(joined(tmp_path, 48000, 22050))).copied
    assert not decide_copy(Sound.of(write_sound(tmp_path / "a.flac", babble(1), RATE))).copied

    def refuse(_, packet):
        if packet.pts > 20000:
            raise MediaError("the muxer refuses it")

    monkeypatch.setattr("latentsync.media.output_sound._PacketCopier._hand_over", refuse)
    assert not decide_copy(Sound.of(plain)).copied
    assert probe(write(tmp_path / "out.mp4", plain, 20)).audio.codec == "aac"
