"""Whole runs through real files, with tiny nets and a detector that says what it is told."""

import dataclasses
import inspect
import json
import math
import tempfile
import threading
from contextlib import closing, contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from latentsync import faces
from latentsync.audio.whisper import SpeechStates
from latentsync.diffusion import sampling, weights
from latentsync.errors import (
    Cancelled,
    InputError,
    LatentSyncError,
    MediaError,
    NoFaceFound,
    OptionError,
    OutputError,
)
from latentsync.faces import align
from latentsync.media import AudioReader, VideoReader, probe
from latentsync.options import Options
from latentsync.pipeline import timeline
from latentsync.pipeline.compositor import Compositor
from latentsync.pipeline.lipsync import LipSync
from latentsync.runtime.progress import RunContext
from latentsync.types import Progress, Result
from tests.clips import (
    babble,
    heard,
    lag,
    number_of,
    picture,
    raw_frames,
    same,
    write_clip,
    write_picture,
    write_sound,
)
from tests.stubs import SIZE, StubDetector, numbered_clip, tiny_lipsync, tiny_nets

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def lipsync():
    return tiny_lipsync()


@pytest.fixture
def clip(tmp_path):
    return numbered_clip(tmp_path / "clip.mp4")


@pytest.fixture
def voice(tmp_path):
    """0.8 s: as long as the clip."""
    return write_sound(tmp_path / "voice.wav", babble(0.8))


@pytest.fixture
def out(tmp_path, monkeypatch):
    """An output in a folder of its own; beside it, in cwd and in the temp folder nothing stays."""
    folder, cwd, temporary = (tmp_path / name for name in ("out", "cwd", "temporary"))
    for path in (folder, cwd, temporary):
        path.mkdir()
    monkeypatch.chdir(cwd)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield folder / "out.mp4"
    assert {p.name for p in folder.iterdir()} <= {"out.mp4"}
    assert not any(cwd.iterdir())
    assert not any(temporary.iterdir())


def pictures(path):
    return list(raw_frames(path))


def numbers(path):
    return [number_of(frame.rgb()) for frame in VideoReader(path).frames()]


def equal(path, other):
    a, b = pictures(path), pictures(other)
    return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def group_sizes(monkeypatch):
    """A list that every group the network is given adds its length to."""
    sizes = []
    denoise = sampling.denoise

    def spy(unet, noise, mask, latents, audio, effort, **options):
        sizes.extend([audio.shape[1]] * len(audio))
        return denoise(unet, noise, mask, latents, audio, effort, **options)

    monkeypatch.setattr(sampling, "denoise", spy)
    return sizes


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (44100, 44100),  # 25 frames exactly, the clip turns
        (44101, 44100),
        (46080, 48000),  # 24 exactly
        (46081, 48000),
        (30000, 22050),
        (4000, 8000),  # 12.5, the clip is cut
        (6400, 16000),  # 10 exactly
        (1, 16000),
        (16001, 16000),
    ],
)
def test_the_output_lasts_as_long_as_the_sound(lipsync, clip, out, tmp_path, samples, rate):
    voice = write_sound(tmp_path / "voice.wav", babble(samples / rate, rate)[:samples], rate)
    frames = math.ceil(Fraction(samples * 25, rate))

    result = lipsync.run(clip, voice, out, steps=1, crf=30)

    assert result.frames == frames == len(pictures(out))
    assert result.seconds == frames / 25
    assert numbers(out) == timeline.source_frames(frames, 20).tolist()
    assert lipsync.detector.seen == list(range(min(frames, 20)))  # no frame that isn't needed
    assert abs(AudioReader(out).seconds * 25 - frames) <= 1
    assert probe(out).audio.sample_rate == rate


@pytest.mark.parametrize("suffix", [".mp3", ".m4a", ".ogg", ".flac"])
def test_compressed_sound_is_as_long_as_it_sounds(lipsync, clip, out, tmp_path, suffix):
    rate = 48000
    wave = babble(1.3, rate)
    voice = write_sound(tmp_path / f"voice{suffix}", wave, rate)
    result = lipsync.run(clip, voice, out, steps=1, crf=30)
    assert result.frames == math.ceil(AudioReader(voice).seconds * 25)
    assert abs(result.seconds - 1.3) < 0.05
    assert len(pictures(out)) == result.frames
    sound = heard(out, rate)
    assert abs(len(sound) / rate - result.seconds) < 1 / 25
    assert abs(lag(sound, wave, rate)) <= 0.005


def test_the_voice_may_be_the_sound_of_a_clip(lipsync, out, tmp_path):
    both = numbered_clip(tmp_path / "both.mp4", 15, sound=babble(0.6, 48000))
    for voice in (both, None):
        assert lipsync.run(both, voice, out, steps=1, crf=30).frames in (15, 16)  # AAC's last block


def test_published_turns_and_length(lipsync, clip, out, tmp_path):
    voice = write_sound(tmp_path / "voice.wav", babble(1.0))
    options = Options.published(steps=1, crf=30, seed=3)
    result = lipsync.run(clip, voice, out, options=options)
    assert result.frames == 50 // 2 + 2  # floor(tokens / 2) + 2
    assert numbers(out) == [*range(20), *range(19, 12, -1)]
    assert equal(out, rerun(lipsync, clip, voice, out, options=options))


def rerun(lipsync, clip, voice, out, **options):
    """The path of another run's output."""
    again = out.parent.parent / "again.mp4"
    lipsync.run(clip, voice, again, **options)
    return again


def test_a_seed_makes_a_run_reproducible(lipsync, clip, voice, out):
    result = lipsync.run(clip, voice, out, steps=1, seed=7, crf=0)
    assert result.seed == 7
    assert equal(out, rerun(lipsync, clip, voice, out, steps=1, seed=7, crf=0))
    assert not equal(out, rerun(lipsync, clip, voice, out, steps=1, seed=8, crf=0))


def test_seed_0_draws_one_and_says_which(lipsync, clip, voice, out):
    drawn = lipsync.run(clip, voice, out, steps=1, crf=0).seed
    assert drawn > 0
    assert equal(out, rerun(lipsync, clip, voice, out, steps=1, seed=drawn, crf=0))
    assert drawn != lipsync.run(clip, voice, out, steps=1).seed


def test_voice_steps_and_guidance_change_the_mouth(lipsync, clip, voice, out, tmp_path):
    plain = {"steps": 2, "seed": 7, "crf": 0}
    lipsync.run(clip, voice, out, **plain)
    other = write_sound(tmp_path / "other.wav", babble(0.8, seed=1))
    assert not equal(out, rerun(lipsync, clip, other, out, **plain))
    assert not equal(out, rerun(lipsync, clip, voice, out, **plain | {"steps": 1}))
    assert not equal(out, rerun(lipsync, clip, voice, out, **plain, guidance_scale=2.0))


def test_a_model_runs_again_after_a_run_and_after_a_failure(
    lipsync, clip, voice, out, tmp_path, monkeypatch
):
    lipsync.run(clip, voice, out, steps=1, seed=7, crf=0)
    with monkeypatch.context() as broken:
        broken.setattr(sampling, "decode", raising(1))
        with pytest.raises(ZeroDivisionError):
            lipsync.run(clip, voice, tmp_path / "broken.mp4", steps=1)
    longer = write_sound(tmp_path / "longer.wav", babble(1.5))
    lipsync.run(clip, longer, tmp_path / "longer.mp4", steps=1, seed=9)
    assert equal(out, rerun(lipsync, clip, voice, out, steps=1, seed=7, crf=0))


def test_the_result_says_what_ran(clip, voice, out):
    lipsync = tiny_lipsync(lambda n: n not in {3, 4, 9})
    result = lipsync.run(clip, voice, str(out), options=Options(steps=1, follow="frame"), seed=5)
    timings = result.timings
    asked = Options(steps=1, follow="frame", seed=5)
    assert result.options == dataclasses.asdict(asked) | dataclasses.asdict(asked.effort)
    assert result.peak_memory["process"] > 10**8
    assert dataclasses.replace(result, timings={}, options={}, peak_memory={}) == Result(
        path=out,
        source=clip,
        frames=20,
        fps=25.0,
        seconds=0.8,
        width=SIZE[0],
        height=SIZE[1],
        faces_found=17,
        source_frames=20,
        passed_through=((3, 5, "no face"), (9, 10, "no face")),
        lost=((3, 5, "no face"), (9, 10, "no face")),
        model="tiny",
        detector="stub",
        device="cpu",
        dtype="float32",
        seed=5,
        voices={"largest": str(voice)},
        decoding={"decoded": 20, "shown": 20, "behind": 0},
        sound_tracks={"largest": "track 1 of 1, pcm_s16le, 16000 Hz, mono"},
        timings={},
    )
    stages = {"read", "speech", "detect", "decode", "cut", "wait", "network", "paste", "write"}
    assert set(timings) == {*stages, "total"}
    assert all(0 < timings[stage] <= timings["total"] for stage in stages)


def test_what_is_done_to_the_voice_is_timed_as_speech(lipsync, clip, voice, out, monkeypatch):
    now, encoded, read = threading.local(), [], []
    timed, encode, chunks = RunContext.timed, SpeechStates._encode, AudioReader.chunks

    @contextmanager
    def named(context, stage):
        now.stages = [*getattr(now, "stages", []), stage]
        with timed(context, stage):
            yield
        now.stages.pop()

    def watched(function, seen):
        def call(*arguments):
            seen.append([*now.stages])
            return function(*arguments)

        return call

    monkeypatch.setattr(RunContext, "timed", named)
    monkeypatch.setattr(SpeechStates, "_encode", watched(encode, encoded))
    monkeypatch.setattr(AudioReader, "chunks", watched(chunks, read))
    lipsync.run(clip, voice, out, steps=1)
    assert encoded
    assert read
    assert {tuple(stages) for stages in encoded + read} == {("speech",)}


@pytest.mark.parametrize("choices", [{}, {"resampling": "published"}])
def test_the_face_is_shown_as_it_is_drawn(lipsync, clip, voice, out, choices):
    seen = []
    lipsync.run(clip, voice, out, steps=1, preview=seen.append, **choices)
    side = lipsync.nets.config.resolution
    assert {(face.shape, str(face.dtype)) for face in seen} == {((side, side, 3), "uint8")}
    assert len({face.tobytes() for face in seen}) == len(seen) > 1


def test_the_output_says_that_it_is_synthetic_and_how_it_was_made(lipsync, clip, voice, out):
    lipsync.run(clip, voice, out, steps=1, seed=5)
    with av.open(str(out)) as container:
        assert container.metadata["comment"] == (
            "Synthetic picture: the mouth was drawn to the sound by LatentSync, model tiny, "
            "seed 5, 1 steps, guidance 1"
        )


def test_the_log_names_the_options_that_were_asked_for(lipsync, clip, voice, out, caplog):
    caplog.set_level("INFO", "latentsync.pipeline.lipsync")
    lipsync.run(clip, voice, out, seed=7, face="left")
    assert caplog.messages[0] == "20 frames; seed 7, face 'left'"


def test_a_report_on_request(clip, voice, tmp_path):
    lipsync = tiny_lipsync(lambda n: not 3 <= n < 12)
    out = tmp_path / "out.mp4"
    result = lipsync.run(clip, voice, out, steps=1, report=True)
    told = json.loads(out.with_suffix(".json").read_text())
    assert told == json.loads(json.dumps(dataclasses.asdict(result), default=str))
    assert told["lost"] == [[3, 8, "no face"], [8, 12, "no face"]]  # a shot ends between them
    assert told["options"]["report"] is True
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    out.with_suffix(".json").unlink()
    out.with_suffix(".json").mkdir()
    with pytest.raises(OutputError, match=r"out\.json.* is a directory"):
        lipsync.run(clip, voice, out, steps=1, report=True)


@pytest.mark.parametrize("limit", [{"max_pixels": 9999}, {"max_seconds": 0.5}, {"max_bytes": 99}])
def test_an_input_that_asks_for_too_much_is_refused(lipsync, clip, voice, out, limit):
    (name,) = limit
    with pytest.raises(InputError, match=rf"raise {name}$"):
        lipsync.run(clip, voice, out, steps=1, **limit)
    assert not out.exists()


def test_an_odd_size_is_told_as_it_is_written(lipsync, voice, out, tmp_path):
    odd = write_picture(tmp_path / "odd.png", picture(1, SIZE[0] + 1, SIZE[1] + 1))
    result = lipsync.run(odd, voice, out, steps=1)
    video = probe(out).video
    assert (result.width, result.height) == (video.width, video.height)
    assert (result.width, result.height) == (SIZE[0] + 2, SIZE[1] + 2)


def test_frames_without_a_face_and_all_around_it_are_the_source_exactly(clip, out, monkeypatch):
    lipsync = tiny_lipsync(lambda n: n not in {5, 6, 7, 15})
    voice = write_sound(clip.with_name("long.wav"), babble(1.2))
    sizes = group_sizes(monkeypatch)

    result = lipsync.run(clip, voice, out, steps=1, crf=0, follow="frame")

    # Frames 0-4, 8-14, 16-19 and back to 16, then from 14 to 9: no group bridges a gap.
    assert sizes == [5, 7, 7, 6]
    assert result.passed_through == (
        *((5, 8, "no face"), (15, 16, "no face"), (23, 24, "no face")),
    )
    points = StubDetector.points[None]
    affine = align.face_track(points, np.array([True]), 64).affine[0]
    box = align.face_box(affine, 64, *SIZE)
    source, untouched = pictures(clip), {5, 6, 7, 15}
    for planes, index in zip(pictures(out), timeline.source_frames(30, 20), strict=True):
        assert same(planes, source[index]) == (int(index) in untouched)
        for plane, original, half in zip(planes, source[index], (1, 2, 2), strict=True):
            outside = np.ones(plane.shape, bool)
            outside[box.top // half : box.bottom // half, box.left // half : box.right // half] = 0
            np.testing.assert_array_equal(plane[outside], original[outside])


@pytest.mark.parametrize(
    ("options", "expected"), [(Options(follow="frame"), [8, 9]), (Options.published(), [16, 3])]
)
def test_17_frames_are_split_evenly_unless_published(
    lipsync, clip, out, tmp_path, monkeypatch, options, expected
):
    voice = write_sound(tmp_path / "voice.wav", babble(17 / 25))
    sizes = group_sizes(monkeypatch)
    lipsync.run(clip, voice, out, options=options, steps=1)
    assert sizes == expected


def test_a_still_picture_is_looked_at_and_encoded_once(lipsync, out, tmp_path, monkeypatch):
    still = write_picture(tmp_path / "still.png", picture(9, *SIZE))
    voice = write_sound(tmp_path / "voice.wav", babble(2.0))
    encoded = []
    encode = sampling.encode
    monkeypatch.setattr(
        sampling, "encode", lambda vae, pixels, *a: encoded.append(1) or encode(vae, pixels, *a)
    )
    result = lipsync.run(still, voice, out, steps=1)
    assert (result.frames, result.source_frames, result.faces_found) == (50, 1, 1)
    assert lipsync.detector.seen == [9]
    assert encoded == [1]
    assert len(pictures(out)) == 50


def test_no_face_names_detector_thresholds_and_range(voice, out, tmp_path):
    grey = write_clip(tmp_path / "grey.mp4", [np.full((112, 128, 3), 90, np.uint8)] * 10)
    lipsync = LipSync(tiny_nets(), faces.create("builtin", root=tmp_path))
    with pytest.raises(NoFaceFound, match=r"no face in the 10 frames .*0-0\.40 s") as caught:
        lipsync.run(grey, voice, out)
    line = str(caught.value)
    assert faces.create("builtin", root=tmp_path).describe() in line
    assert "face >= 50x80 px" in line
    assert "score >= 0.5" in line
    assert "\n" not in line
    assert not out.exists()


@pytest.mark.parametrize(("seconds", "known"), [(0.4, 10), (2.0, None)])
def test_progress_only_grows_and_ends_at_its_total(lipsync, clip, out, tmp_path, seconds, known):
    voice = write_sound(tmp_path / "voice.wav", babble(seconds))
    heard: list[Progress] = []
    lipsync.run(clip, voice, out, steps=1, progress=heard.append)
    stages = {p.stage: [q for q in heard if q.stage == p.stage] for p in heard}
    assert list(stages) == ["detect", "generate", "finish"]
    assert [p.stage for p in heard] == [s for s, told in stages.items() for _ in told]
    for told in stages.values():
        done = [p.done for p in told]
        assert done == sorted(done)
        assert told[-1].done == told[-1].total
        assert all(p.total is None or p.done <= p.total for p in told)
    assert [p.total for p in stages["detect"][:-1]] == [known] * min(20, round(seconds * 25))
    assert stages["generate"][-1].total == seconds * 25


def test_cancelled_at_any_question_leaves_nothing(lipsync, out, tmp_path, monkeypatch):
    clip = numbered_clip(tmp_path / "clip.mp4", 5)
    voice = write_sound(tmp_path / "voice.wav", babble(1.6))  # 3 groups
    sizes = group_sizes(monkeypatch)
    groups_done = []  # at each question

    def cancelled():
        groups_done.append(len(sizes))
        return len(groups_done) == stop_at

    for stop_at in [*range(1, 9), *range(9, 200, 8)]:
        groups_done.clear()
        sizes.clear()
        there_before = stop_at % 2 == 1
        out.unlink(missing_ok=True)
        if there_before:
            out.write_bytes(b"before")
        try:
            lipsync.run(clip, voice, out, steps=1, crf=40, cancelled=cancelled)
        except Cancelled:
            assert len(list(out.parent.iterdir())) == there_before
            assert not there_before or out.read_bytes() == b"before"
        else:
            break
    assert len(groups_done) < stop_at  # it came through because nobody said stop
    # Asked at each of 5 frames and between groups, and no more once the output is in place.
    assert groups_done[:5] == [0] * 5
    assert set(groups_done) == {0, 1, 2, 3}
    assert probe(out).video.frames == 40


def raising(at_call):
    calls = 0

    def function(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == at_call:
            raise ZeroDivisionError("a bug")
        return kept(*args, **kwargs)

    kept = sampling.decode
    return function


def test_a_failure_in_mid_run_leaves_nothing(lipsync, clip, out, tmp_path, monkeypatch):
    voice = write_sound(tmp_path / "voice.wav", babble(1.6))
    monkeypatch.setattr(sampling, "decode", raising(3))
    with pytest.raises(ZeroDivisionError):
        lipsync.run(clip, voice, out, steps=1)
    assert not any(out.parent.iterdir())


def test_an_error_is_told_while_frames_made_before_it_are_still_written(
    lipsync, clip, voice, out, monkeypatch
):
    pasted, ended = [], threading.Event()
    whole, paste = Compositor._pasted, Compositor.paste

    def broken(*given):
        pasted.append(True)
        if len(pasted) == 4:
            raise MediaError("no colours")
        return whole(*given)

    def watched(compositor, drawn):
        try:
            yield from paste(compositor, drawn)
        finally:
            ended.set()

    def wait(progress):
        if progress.stage == "generate" and progress.done == 1:
            assert ended.wait(30)

    monkeypatch.setattr(Compositor, "_pasted", broken)
    monkeypatch.setattr(Compositor, "paste", watched)
    with pytest.raises(MediaError, match="no colours"):
        lipsync.run(clip, voice, out, progress=wait)


def test_an_interrupt_leaves_nothing_and_the_old_output(lipsync, clip, voice, out):
    out.write_bytes(b"before")

    def progress(now):
        if now.stage == "generate":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lipsync.run(clip, voice, out, steps=1, progress=progress)
    assert out.read_bytes() == b"before"


def test_numbers_that_are_not_finite_are_an_error(lipsync, clip, voice, out, monkeypatch):
    monkeypatch.setattr(
        sampling, "decode", lambda _vae, _latents, pixels, _mask: pixels * float("nan")
    )
    with pytest.raises(LatentSyncError, match=r"frames 0-7 .*not finite.*float32"):
        lipsync.run(clip, voice, out, steps=1)
    assert not out.exists()


def test_a_device_too_small_is_an_error_with_a_way_out(lipsync, clip, voice, out, monkeypatch):
    def full(*_args, **_kwargs):
        raise torch.OutOfMemoryError("tried to allocate 2.00 GiB")

    monkeypatch.setattr(sampling, "denoise", full)
    said = r"cpu has too little memory for 1 x 8 frames of .*v1\.5"
    with pytest.raises(LatentSyncError, match=said):
        lipsync.run(clip, voice, out, steps=1)
    assert not out.exists()


def test_inputs_and_options_are_refused_before_any_work(lipsync, clip, voice, out, tmp_path):
    with pytest.raises(OutputError, match="is an input too"):
        lipsync.run(clip, voice, clip)
    with pytest.raises(OutputError, match="is an input too"):
        lipsync.run(clip, voice, voice)
    with pytest.raises(OutputError, match="no directory"):
        lipsync.run(clip, voice, tmp_path / "nowhere" / "out.mp4")
    with pytest.raises(OptionError, match="steps is 0"):
        lipsync.run(clip, voice, out, steps=0)
    with pytest.raises(InputError, match="holds no pictures"):
        lipsync.run(voice, voice, out)
    with pytest.raises(InputError, match="has no sound"):
        lipsync.run(clip, clip, out)
    assert lipsync.detector.seen == []
    assert not out.exists()


def test_load_takes_the_demo_with_what_is_asked_for(caplog):
    caplog.set_level("INFO")
    lipsync = LipSync.load("demo", device="cpu", dtype="bfloat16")
    assert lipsync.nets.config.name == "demo"
    assert (lipsync.device.type, lipsync.dtype) == ("cpu", torch.bfloat16)
    assert lipsync.detector.name == "builtin"
    assert not any(p.requires_grad for p in lipsync.nets.unet.parameters())
    assert not lipsync.nets.vae.training
    # What ran is in the log.
    assert "model demo on cpu in torch.bfloat16, native attention" in caplog.text
    assert "face detector: builtin" in caplog.text


def test_load_refuses_what_it_does_not_know():
    with pytest.raises(OptionError, match=r"'haar'.*insightface"):
        LipSync.load("demo", detector="haar")
    with pytest.raises(OptionError, match=r"'flash'.*native"):
        LipSync.load("demo", attention="flash")
    with pytest.raises(OptionError, match=r"'v9'.*v1\.6, v1\.5, demo"):
        LipSync.load("v9")
    assert inspect.signature(LipSync.load).parameters["model"].default == "v1.6"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_runs_end_to_end(clip, voice, out, tmp_path, dtype):
    weights.save(tiny_nets(), tmp_path / "tiny")
    lipsync = LipSync.load(tmp_path / "tiny", device="cpu", dtype=dtype)
    lipsync.detector = StubDetector()
    lipsync.run(clip, voice, out, steps=2, seed=7, crf=0, guidance_scale=1.5)
    exact = rerun(tiny_lipsync(), clip, voice, out, steps=2, seed=7, crf=0, guidance_scale=1.5)
    for planes, others in zip(pictures(out), pictures(exact), strict=True):
        assert np.abs(planes[0].astype(int) - others[0]).mean() < 1
    assert not equal(out, exact)


def test_the_example_speaks_with_the_demo_and_the_builtin_detector(out, tmp_path):
    voice = write_sound(tmp_path / "voice.wav", babble(0.4))
    result = LipSync.load("demo").run(EXAMPLES / "face.mp4", voice, out, steps=1)
    assert (result.frames, result.faces_found, result.passed_through) == (10, 10, ())
    with closing(av.open(str(out))) as container:
        assert container.streams.video[0].average_rate == 25


def test_groups_at_once_give_what_they_give_one_by_one(lipsync, clip, out, tmp_path, monkeypatch):
    voice = write_sound(tmp_path / "long.wav", babble(2.6))  # 65 frames: 5 groups of 13
    calls, denoise = [], sampling.denoise

    def spy(unet, noise, mask, latents, audio, effort, **options):
        calls.append(len(audio))
        return denoise(unet, noise, mask, latents, audio, effort, **options)

    monkeypatch.setattr(sampling, "denoise", spy)
    films = []
    for batch in (1, 2):
        chosen = {"steps": 2, "seed": 7, "crf": 0, "follow": "frame"}  # which knows no cuts
        lipsync.run(clip, voice, out, **chosen, batch=batch)
        films.append([planes[0].astype(int) for planes in raw_frames(out)])
    assert calls == [1] * 5 + [2, 2, 1]
    assert len(films[0]) == 65
    worst = max(np.abs(one - other).max() for one, other in zip(*films, strict=True))
    assert worst <= 1
