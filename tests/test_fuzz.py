"""Hostile input: damaged files and options of any kind. It works, or one line says why not."""

import math
import os
import re
import subprocess
import sys
from dataclasses import fields
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple, get_args, get_origin, get_type_hints

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from latentsync.errors import BackendUnavailable, InputError, MediaError, OptionError
from latentsync.faces import FaceChoice
from latentsync.media import AudioReader, Limits, VideoReader, probe
from latentsync.media.decoder import Decoder
from latentsync.options import Options
from tests.clips import babble, number_of, picture, write_clip, write_picture, write_sound
from tests.stubs import numbered_clip, tiny_lipsync

ROOT = Path(__file__).parent.parent

always_the_same = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def refusal(kinds: type[Exception] | tuple[type[Exception], ...], call, *args) -> str | None:
    """The one line with which a call refuses; None where it doesn't. Nothing else may go wrong."""
    try:
        call(*args)
    except kinds as error:
        line = str(error)
    else:
        return None
    assert line.splitlines() == [line]
    return line


# ---- files ---------------------------------------------------------------------------------------

CLIPS = {
    "mp4": {"bf": "2"},
    "fragments.mp4": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "mov": {"sound_codec": "pcm_s16le"},
    "mkv": {},
    "webm": {"codec": "libvpx", "sound_codec": "libopus"},
    "ts": {"codec": "mpeg2video", "sound_codec": "mp2", "flags": "+ildct+ilme"},
    "avi": {"codec": "mpeg4", "sound_codec": "libmp3lame"},
    "mxf": {"codec": "mpeg2video", "sound_codec": "pcm_s16le"},
    "y4m": {"codec": "rawvideo", "sound": None},
    "gif": {"codec": "gif", "pixel_format": "rgb8", "sound": None},
}
PICTURES = ("png", "jpg", "webp", "bmp")
SOUNDS = ("wav", "mp3", "ogg", "flac", "m4a", "aac", "caf", "au", "ac3", "wv", "tta")
SAMPLES = (*CLIPS, *PICTURES, *SOUNDS)
LIMITS = Limits(max_pixels=2**20, max_seconds=30, max_bytes=2**20)

# What lengths and counts are, when a file lies about them.
ODD_NUMBERS = (0, 1, 7, 255, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 8, 2**32 - 1)
NAME = re.compile(rb"(?=[A-Za-z]{3}[A-Za-z0-9 ])")  # of a box of an mp4, a chunk of a wav or png


class Edit(NamedTuple):
    """One damage to a file."""

    kind: Literal["bit", "number", "box", "cut", "zero", "repeat", "splice", "drop"]
    place: float  # 0-1: where in the file, or which of its boxes
    length: int  # bytes
    number: int
    order: Literal["big", "little"]

    def of(self, data: bytes, other: bytes) -> bytes:
        start = int(self.place * (len(data) - 1))
        stop = start + self.length
        match self.kind:
            case "bit":
                return _over(data, start, bytes([data[start] ^ 1 << self.length % 8]))
            case "number":
                return _over(data, start, self.number.to_bytes(4, self.order))
            case "box":  # its size, which stands before its name, or what stands after it
                names = [found.start() for found in NAME.finditer(data)] or [start]
                name = names[int(self.place * (len(names) - 1))]
                field = max(0, name + (-4, 4, 8, 12, 16, 20)[self.length % 6])
                return _over(data, field, self.number.to_bytes(4, self.order))
            case "cut":
                return data[:start]
            case "zero":
                return _over(data, start, bytes(self.length))
            case "repeat":
                return data[:stop] + data[start:]
            case "splice":
                return data[:start] + other[start:stop] + data[stop:]
            case "drop":
                return data[:start] + data[stop:]


def _over(data: bytes, start: int, patch: bytes) -> bytes:
    return (data[:start] + patch + data[start + len(patch) :])[: len(data)]


EDITS = st.builds(
    Edit,
    st.sampled_from(get_args(get_type_hints(Edit)["kind"])),
    st.floats(0, 1),
    st.integers(0, 500),
    st.sampled_from(ODD_NUMBERS),
    st.sampled_from(["big", "little"]),
)


def make_samples(folder: Path) -> dict[str, bytes]:
    """A small whole file of each kind."""
    sound = babble(0.3, 48000)
    for suffix, options in CLIPS.items():
        write_clip(folder / f"a.{suffix}", 6, g="3", **({"sound": sound} | options))
    for suffix in PICTURES:
        write_picture(folder / f"a.{suffix}", picture(5))
    for suffix in SOUNDS:
        write_sound(folder / f"a.{suffix}", np.stack([sound, -sound]), 48000)
    return {kind: (folder / f"a.{kind}").read_bytes() for kind in SAMPLES}


def every_picture(path: Path) -> None:
    with VideoReader(path, limits=LIMITS) as clip:
        counts = sum(1 for _ in clip.frames()), len(list(clip.times()))
        for read, count in zip((clip.frames, clip.source_frames), counts, strict=True):
            for frame in read([count - 1, 0, count // 2]):  # to and fro, as a run reads
                assert frame.rgb().shape == (clip.info.height, clip.info.width, 3)


def every_sample(path: Path) -> None:
    for chunk in AudioReader(path, limits=LIMITS).chunks():
        assert np.abs(chunk).max(initial=0) <= 1


READS = (probe, every_picture, every_sample)


def works_or_says_why(path: Path, data: bytes) -> int:
    """Read a file of these bytes in every way; how many of them were refused."""
    path.write_bytes(data)
    refused = 0
    for read in READS:
        said = refusal(MediaError, read, path)
        assert said is None or repr(str(path)) in said
        refused += said is not None
    assert path.read_bytes() == data
    assert list(path.parent.iterdir()) == [path]
    return refused


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    return make_samples(tmp_path_factory.mktemp("samples"))


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    """A path whose suffix says nothing, alone in its folder."""
    return tmp_path_factory.mktemp("victim") / "file"


@pytest.mark.parametrize("kind", SAMPLES)
def test_the_samples_are_whole(samples, victim, kind):
    assert works_or_says_why(victim, samples[kind]) == (kind in (*PICTURES, *SOUNDS, "gif", "y4m"))


def damaged(samples: dict[str, bytes], path: Path, examples: int) -> None:
    """Read so many damaged files."""

    @settings(always_the_same, max_examples=examples)
    @given(st.sampled_from(SAMPLES), st.sampled_from(SAMPLES), st.lists(EDITS, min_size=1))
    def one(kind: str, other: str, edits: list[Edit]) -> None:
        data = samples[kind]
        for edit in edits:
            assume(data)
            data = edit.of(data, samples[other])
        works_or_says_why(path, data)

    one()


def test_damaged_files_are_read_or_refused(samples, victim):
    damaged(samples, victim, examples=40)


@settings(always_the_same, max_examples=30)
@given(data=st.binary(max_size=4000))
def test_bytes_of_any_kind_are_read_or_refused(victim, data):
    works_or_says_why(victim, data)


# What such files have found, each by itself.


def test_a_place_that_no_file_has_is_not_told_on_stderr(victim, capfd):
    write_clip(victim, 3, codec="wmv2", container="asf")
    whole = victim.read_bytes()
    size = 30 + 16  # of the first object in the header: after the header's own 30 bytes, its name
    works_or_says_why(victim, _over(whole, size, (3 * 10**18).to_bytes(8, "little")))
    assert "Error" not in capfd.readouterr().err


def test_pixels_that_swscale_does_not_know_are_refused(victim):
    write_clip(victim, 3, size=(16, 16), codec="rawvideo", container="matroska")
    data = victim.read_bytes().replace(b"I420", b"BGR\4")
    assert works_or_says_why(victim, data) == 2
    assert "(bgr4: Operation not supported)" in refusal(MediaError, every_picture, victim)


def test_more_channels_than_can_be_mixed_are_refused(victim):
    write_sound(victim.with_suffix(".wav"), babble(0.1)).rename(victim)
    data = victim.read_bytes()
    assert works_or_says_why(victim, _over(data, 22, (256).to_bytes(2, "little"))) == 2
    assert "16000 Hz, 256 channels" in refusal(MediaError, every_sample, victim)


@pytest.mark.parametrize("size", [(64, 4), (2, 16)])
def test_pictures_too_small_to_deinterlace_stay_as_they_are(victim, size):
    write_clip(victim, 3, size=size, container="mp4", flags="+ildct+ilme")
    assert works_or_says_why(victim, victim.read_bytes()) == 1


@pytest.mark.parametrize("rescued", [4, 0])
def test_frames_that_a_second_reading_loses_are_held(victim, monkeypatch, rescued):
    write_clip(victim, 6, container="mp4")
    clip = VideoReader(victim)
    assert len(list(clip.frames())) == 6
    for name, frames in (("spans", rescued), ("spans_from", 5)):
        whole = getattr(Decoder, name)
        monkeypatch.setattr(
            Decoder, name, lambda *args, whole=whole, frames=frames: islice(whole(*args), frames)
        )
    assert [number_of(frame.rgb()) for frame in clip.frames(range(6))] == [0, 1, 2, 3, 4, 4]
    with pytest.raises(IndexError):
        list(clip.frames([6]))


def test_a_clip_of_which_nothing_is_rescued_is_refused(victim, monkeypatch):
    write_clip(victim, 3, container="mp4")
    clip = VideoReader(victim)
    monkeypatch.setattr(Decoder, "_frames", lambda *_: iter(()))
    for read in (clip.frames, clip.times, lambda: clip.source_frames([0])):
        said = refusal(MediaError, lambda read=read: list(read()))
        assert "no frame of it can be decoded" in said


# In a process of its own, for what it may do to it: crash, or take all memory.
HUNT = """
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
from tests.test_fuzz import damaged, make_samples
folder, victim = map(Path, sys.argv[1:])
damaged(make_samples(folder), victim, examples=1000)
# Not getrusage, which also counts what the parent held when it made this process.
print(next(l.split()[1] for l in open("/proc/self/status") if "VmHWM" in l))
"""


@pytest.mark.slow
def test_thousands_of_damaged_files_crash_nothing(tmp_path):
    folders = [tmp_path / name for name in ("samples", "victim")]
    for folder in folders:
        folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", HUNT, folders[0], folders[1] / "file"],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert "Traceback" not in done.stderr
    assert int(done.stdout) < 1.5 * 2**20  # KiB


# ---- options -------------------------------------------------------------------------------------

NAMES = [one.name for one in fields(Options)]
HINTS = get_type_hints(Options)
ODD = (None, True, -1, 0, 10**400, 0.5, math.nan, math.inf, "", "a\nb", "25", b"", [], {}, object())
WORDS = sorted({word for hint in HINTS.values() for word in get_args(hint) if type(word) is str})
ANYTHING = st.one_of(st.sampled_from([*ODD, *WORDS]), st.integers(-2, 60), st.floats(), st.text())


def taken_or_refused(changes: dict[str, object]) -> None:
    said = refusal(OptionError, lambda: Options(**changes))
    assert said is None or said.split()[0] in changes


@pytest.mark.parametrize("name", NAMES)
def test_an_option_of_any_kind_is_taken_or_refused_by_name(name):
    for value in (*ODD, *WORDS):
        taken_or_refused({name: value})


@settings(always_the_same, max_examples=60)
@given(changes=st.dictionaries(st.sampled_from(NAMES), ANYTHING, min_size=2, max_size=5))
def test_options_of_any_kind_are_taken_or_refused_by_name(changes):
    taken_or_refused(changes)


@settings(always_the_same, max_examples=40)
@given(text=st.one_of(st.text(), st.from_regex(r"[-0-9.e]+(,[-0-9.e]*){0,4}(@.*)?")))
@example(text="a" * 5000)
@example(text="\0")
def test_a_choice_of_faces_of_any_kind_is_taken_or_refused(text):
    said = refusal(OptionError, FaceChoice.parse, text)
    assert said is None or repr(text) in said


CLIP, VOICE = 6, Fraction(32, 100)  # frames at 25 a second; seconds
RANGES = {  # of numbers; small ones, so that a run is short, and in each some that can't be
    "guidance_scale": [1.0, 2.5],
    "steps": [None, 1, 2],
    "cache_interval": [None, 1, 2, 10],
    "guidance_start": [None, 0, 0.5, 1.0],
    "guidance_stop": [None, 0, 0.5, 1.0],
    "detect_every": [None, 1, 2, 50],
    "batch": [None, 1, 2, 16],
    "seed": [1, 2**32 - 1],
    "crf": [0, 30, 51],
    "max_side": [None, 16, 64, 16384],
    "lead_in": [0.0, 0.04, 0.1],
    "lead_out": [0, 0.01, 0.4],
    "face": ["largest", "left", "all", "66,60", "40,32,52,70@0.1", "1,1", "no.jpg"],
    "smooth": [0, 1, 51],
    "max_yaw": [None, 5, 85.0],
    "overlap": [0, 1, 12],
    "max_pixels": [2**26, 2**26, 2**26, 1000],
    "max_seconds": [60.0, 60.0, 60.0, 0.3],
    "max_bytes": [2**30, 2**30, 2**30, 100],
    "fade": [0, 3, 25],
}


def allowed(name: str) -> st.SearchStrategy[object]:
    """Values that `Options` takes."""
    if name in RANGES:
        return st.sampled_from(RANGES[name])
    hints = (HINTS[name], *get_args(HINTS[name]))
    words = next((get_args(hint) for hint in hints if get_origin(hint) is Literal), (False, True))
    return st.sampled_from(words)


def expected_frames(options: Options) -> int:
    voice = VOICE if options.length == "exact" else Fraction(10, 25)  # floor(T / 2) + 2 frames
    whole = voice + sum(Fraction(str(s)) for s in (options.lead_in, options.lead_out))
    frames = math.ceil(whole * 25)
    match options.sync_mode:
        case "cut_off":
            return min(frames, CLIP)
        case "silence":
            return max(frames, CLIP)
        case _:
            return frames


def whole_runs(folder: Path, examples: int) -> None:
    """So many runs, each with options drawn from all there are."""
    clip = numbered_clip(folder / "clip.mp4", CLIP)
    voice = write_sound(folder / "voice.wav", babble(float(VOICE)))
    out = folder / "out" / "out.mp4"
    out.parent.mkdir()
    lipsync = tiny_lipsync()

    @settings(always_the_same, max_examples=examples)
    @given(st.fixed_dictionaries({}, optional={name: allowed(name) for name in NAMES}))
    def one(changes: dict[str, object]) -> None:
        changes = {"steps": 1, "seed": 1, "preset": "ultrafast"} | changes
        kinds = (InputError, BackendUnavailable)
        said = refusal(kinds, lambda: lipsync.run(clip, voice, out, **changes))
        left = {path.name for path in out.parent.iterdir()}
        if said is not None:
            assert left == set()
            return
        options = Options(**changes)
        assert left == ({"out.mp4", "out.json"} if options.report else {"out.mp4"})
        assert probe(out).video.frames == expected_frames(options)
        assert probe(out).duration_seconds == pytest.approx(expected_frames(options) / 25)
        for path in out.parent.iterdir():
            path.unlink()

    one()


def test_runs_with_any_options_are_as_long_as_they_say(tmp_path):
    whole_runs(tmp_path, examples=8)


@pytest.mark.slow
def test_hundreds_of_runs_with_any_options_are_as_long_as_they_say(tmp_path):
    whole_runs(tmp_path, examples=150)
