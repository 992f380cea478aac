"""Time stamps as containers, joins and recorders leave them, held against FFmpeg's binary.

    python -m tests.footage.timing [--keep FOLDER] [NAME ...]

Each picture of a clip carries its number and no stretch of its sound is like another, so that what
is read tells which picture is shown when, and how far the sound beside it is off.
"""

import argparse
import sys
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise, product
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from latentsync.media import VideoReader, first_frame_time
from latentsync.types import FloatArray
from tests.clips import babble, ffmpeg, heard, lag, number_of, picture, write_clip

SIZE = 128, 96  # px
PIECE = 30  # frames; a clip is two pieces
SECONDS = PIECE / 25
RATE = 48000  # Hz
WINDOW = 0.25  # s of sound that are compared at a time
REACH = 0.1  # s to either side in which that sound is looked for
SAME_SOUND = 0.01  # s, which Matroska rounds to a ms again and again
WRAP = 2**33 / 90000  # s after which the clock of MPEG-TS and MPEG-PS begins anew

# Pictures' and sound's codec; the first has no B-frames, the others do.
CODECS = {
    "avi": ("mpeg4 -bf 0|libmp3lame", "mpeg4 -bf 2|libmp3lame", "libx264 -bf 3|libmp3lame"),
    "asf": ("wmv2|wmav2", "mpeg4 -bf 2|wmav2", "libx264 -bf 3|wmav2"),
    "mpg": ("mpeg1video -bf 0|mp2", "mpeg1video -bf 2|mp2"),
    "vob": ("mpeg2video -bf 0|mp2", "mpeg2video -bf 2|ac3"),
    "ts": ("libx264 -bf 0|aac", "libx264 -bf 3|aac", "mpeg2video -bf 2|mp2"),
    "m2ts": ("libx264 -bf 0|ac3", "libx264 -bf 3|aac", "libx265 -bf 3|aac"),
    "flv": ("flv|libmp3lame", "libx264 -bf 3|aac"),
    "mkv": ("mpeg4 -bf 2|flac", "libx264 -bf 3|aac"),
    "webm": ("libvpx|libvorbis", "libvpx-vp9|libopus"),
    "mp4": ("libx264 -bf 0|aac", "libx264 -bf 3|aac", "mpeg4 -bf 2|libmp3lame"),
    "mov": ("prores_ks|pcm_s16le", "libx264 -bf 3|aac"),
    "ogv": ("libtheora|libvorbis",),
}
MUXERS = {"mpg": "mpeg", "ts": "mpegts", "m2ts": "mpegts", "mkv": "matroska", "ogv": "ogg"}
JOINABLE = ("mpg", "vob", "ts", "m2ts")
KINDS = (
    *("plain", "late_pictures", "late_sound", "negative"),
    "jumped",  # by 12 s: closed where FFmpeg closes it, a still picture elsewhere
    "joined",
    "joined_far",  # the second piece is an hour on
    "joined_back",  # the second piece is an hour back
    "wrapped",  # the clock begins anew in the first piece
    "joined_wrapped",
)
FAST = (
    *("avi/2/plain", "asf/2/plain", "ts/1/joined", "vob/1/joined", "ts/1/joined_far"),
    *("ts/1/wrapped", "mp4/1/negative", "mkv/1/late_pictures"),
)


def matrix() -> list[str]:
    """All clips: container, number of its codecs, kind."""
    names = (
        (suffix, number, kind)
        for suffix, codecs in CODECS.items()
        for number, kind in product(range(len(codecs)), KINDS)
    )
    return [f"{one}/{number}/{kind}" for one, number, kind in names if _can_be(one, kind)]


def _can_be(suffix: str, kind: str) -> bool:
    if suffix == "ogv":  # has no times before 0, and counts in frames, too coarse for a join
        return kind in ("plain", "late_pictures", "late_sound")
    return suffix in JOINABLE or not ("joined" in kind or kind == "wrapped")


# ---- making them ---------------------------------------------------------------------------------


def pieces(folder: Path) -> tuple[Path, Path, Path]:
    """Both halves and the whole, lossless."""
    sound = babble(2 * SECONDS, RATE, seed=3)
    half = len(sound) // 2
    kinds = {"one": (0, 1), "two": (1, 2), "whole": (0, 2)}
    paths = []
    for name, (start, stop) in kinds.items():
        path = folder / f"{name}.mkv"
        if not path.exists():
            frames = [picture(n, *SIZE) for n in range(start * PIECE, stop * PIECE)]
            part = sound[start * half : stop * half]
            lossless = {"codec": "ffv1", "sound_codec": "flac"}
            write_clip(path, frames, size=SIZE, sound=part, sound_rate=RATE, **lossless)
        paths.append(path)
    return paths[0], paths[1], paths[2]


def make(folder: Path, name: str) -> Path:
    """The clip of that name, made by FFmpeg's binary."""
    suffix, number, kind = name.split("/")
    one, two, whole = pieces(folder)
    path = folder / f"{kind}_{number}.{suffix}"
    video, audio = CODECS[suffix][int(number)].split("|")
    coding = ["-c:v", *video.split(), "-b:v", "2M", "-c:a", audio, "-f", MUXERS.get(suffix, suffix)]
    if audio in ("libvorbis", "libopus", "aac"):
        coding += ["-ac", 1]

    def encode(to: Path, source: Path, *how: object, before: tuple[object, ...] = ()) -> Path:
        ffmpeg(*before, "-i", f"file:{source}", "-g", 12, *coding, *how, f"file:{to}")
        return to

    if kind.startswith("joined"):
        starts = {"joined": (0, 0), "joined_far": (0, 3600), "joined_back": (3600, 0)}
        begins = starts.get(kind, (round(WRAP - SECONDS), 0))
        halves = [
            encode(folder / f"{half}_{path.name}", source, "-output_ts_offset", start)
            for half, (source, start) in enumerate(zip((one, two), begins, strict=True))
        ]
        path.write_bytes(b"".join(half.read_bytes() for half in halves))
        return path
    if kind == "wrapped":
        return encode(path, whole, "-output_ts_offset", round(WRAP - SECONDS))
    if kind == "jumped":
        jump = "setts=pts='PTS+gte({0})*12/TB':dts='DTS+gte({0})*12/TB'"
        filters = ("-bsf:v", jump.format(f"N,{PIECE}"), "-bsf:a", jump.format(f"DTS*TB,{SECONDS}"))
        # However far apart sound and pictures come to it: the muxer would not wait beyond 10 s.
        return encode(path, whole, *filters, "-g", PIECE, "-max_interleave_delta", 0)
    if kind == "negative":
        how = ("-avoid_negative_ts", "disabled", "-output_ts_offset", "-0.48")
        return encode(path, whole, *how)
    if kind in ("late_pictures", "late_sound"):
        late, early = ("v", "a") if kind == "late_pictures" else ("a", "v")
        inputs = ("-i", f"file:{whole}", "-itsoffset", 0.48)
        return encode(path, whole, "-map", f"1:{late}", "-map", f"0:{early}", before=inputs)
    return encode(path, whole)


# ---- reading them --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Read:
    """What a clip shows, and when."""

    numbers: list[int]  # of every picture
    times: list[Fraction]  # s, of every picture, from the first one on
    at_25: list[int]  # numbers at 25 frames a second
    sound: FloatArray  # (n,) from the first picture on, at RATE


def ours(path: Path) -> Read:
    """As the product reads it."""
    with VideoReader(path) as reader:
        return Read(
            numbers=[number_of(frame.rgb()) for frame in reader.source_frames()],
            times=list(reader.times()),
            at_25=[number_of(frame.rgb()) for frame in reader.frames()],
            sound=heard(path, RATE, first_frame_time(path)),
        )


def theirs(path: Path) -> Read:
    """As FFmpeg's binary decodes it, which writes what it shows and when into a NUT file."""
    pictures = list(_decoded(path, "-fps_mode", "passthrough", "-enc_time_base:v", "demux"))
    shown = list(_rising([(at, number_of(frame)) for at, frame in pictures]))
    start = shown[0][0]
    filtered = _decoded(path, "-vf", "setpts=PTS-STARTPTS,fps=25")
    return Read(
        numbers=[number for _, number in shown],
        times=[at - start for at, _ in shown],
        at_25=[number_of(frame) for _, frame in filtered],
        sound=_heard(path, start),
    )


def _decoded(path: Path, *how: str) -> Iterator[tuple[Fraction, NDArray[np.uint8]]]:
    """Pictures and their times. The sound is mapped too: it has a say in the file's clock."""
    nut = _nut(path, *how)
    with av.open(str(nut)) as container:
        for frame in container.decode(video=0):
            yield frame.pts * frame.time_base, frame.to_ndarray(format="rgb24")


def _rising(shown: list[tuple[Fraction, int]]) -> Iterator[tuple[Fraction, int]]:
    """Without what can't be shown: of several pictures of one time, or of earlier ones, the last.

    FFmpeg writes a time that doesn't rise as one that rises by a tick.
    """
    tick = Fraction(3, 2 * 90000)
    for (at, number), (following, _) in pairwise([*shown, (shown[-1][0] + 1, 0)]):
        if following - at > tick:
            yield at, number


def _heard(path: Path, start: Fraction) -> FloatArray:
    """The sound from `start` on, each sample where its time says."""
    nut = _nut(path, "-fps_mode", "passthrough", "-enc_time_base:v", "demux")
    placed = np.zeros(0, np.float32)
    with av.open(str(nut)) as container:
        for frame in container.decode(audio=0):
            at = round((frame.pts * frame.time_base - start) * RATE)
            samples = frame.to_ndarray().reshape(-1).astype(np.float32) / 32768
            samples = samples[max(0, -at) :]
            at = max(0, at)
            placed.resize(max(len(placed), at + len(samples)), refcheck=False)
            placed[at : at + len(samples)] = samples
    return placed


def _nut(path: Path, *how: str) -> Path:
    out = path.with_name(f"{path.name}.{zlib.crc32(' '.join(how).encode())}.nut")
    if not out.exists():
        raw = ("-c:v", "rawvideo", "-pix_fmt", "yuv420p", "-c:a", "pcm_s16le")
        loud = ("-ac", 1, "-ar", RATE, "-map", "0:v:0", "-map", "0:a:0")
        ffmpeg("-i", f"file:{path}", *loud, *how, *raw, "-f", "nut", f"file:{out}")
    return out


# ---- comparing them ------------------------------------------------------------------------------


def differences(got: Read, want: Read) -> list[str]:
    """What is not as FFmpeg has it; nothing when all is well."""
    wrong = []
    if got.numbers != want.numbers:
        wrong.append(f"shows {got.numbers}, not {want.numbers}")
    elif apart := [
        f"{n}: {float(a):.4f}, not {float(b):.4f} s"
        for n, a, b in zip(want.numbers, got.times, want.times, strict=True)
        if abs(a - b) > Fraction(1, 1000)
    ]:
        wrong.append(f"pictures at other times: {', '.join(apart)}")
    # The filter drops a last frame whose duration the file doesn't tell; it is shown here.
    shown = got.at_25[: len(want.at_25)] if len(got.at_25) == len(want.at_25) + 1 else got.at_25
    if shown != want.at_25:
        wrong.append(f"at 25 fps shows {got.at_25}, not {want.at_25}")
    return wrong + list(_sound_apart(got.sound, want.sound))


def _sound_apart(got: FloatArray, want: FloatArray) -> Iterator[str]:
    if abs(len(got) - len(want)) > 0.05 * RATE:
        yield f"sound ends at {len(got) / RATE:.3f}, not {len(want) / RATE:.3f} s"
    size, reach = round(WINDOW * RATE), round(REACH * RATE)
    for at in range(reach, min(len(got), len(want)) - size - reach, size):
        given, due = (sound[at - reach : at + size + reach] for sound in (got, want))
        if np.abs(due).max() < 0.01 and np.abs(given).max() < 0.01:
            continue
        late = lag(given, due, RATE, REACH)
        if abs(late) > SAME_SOUND:
            yield f"sound at {at / RATE:.2f} s is {1000 * late:.1f} ms late"


def try_out(folder: Path, name: str) -> list[str]:
    """Make a clip, read it both ways, and say what differs."""
    path = make(folder, name)
    return differences(ours(path), theirs(path))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.footage.timing", description=__doc__)
    parser.add_argument("names", nargs="*", help="of clips; default all")
    parser.add_argument("--keep", type=Path, help="a new folder for the clips")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        failed = []
        for name in given.names or matrix():
            try:
                wrong = try_out(folder, name)
            except Exception as error:  # noqa: BLE001 - the others are run all the same
                wrong = [f"could not be tried: {error!r}"]
            sys.stdout.write(f"{name:<26} {'FAIL' if wrong else 'PASS'}\n")
            sys.stdout.writelines(f"    {line}\n" for line in wrong)
            sys.stdout.flush()
            failed += [name] if wrong else []
    count = len(given.names or matrix())
    sys.stdout.write(f"{count - len(failed)} of {count} passed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
