"""The command line: what it prints, what it exits with, and one line for every error."""

import io
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import wave
from dataclasses import asdict
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from latentsync import cli, media
from latentsync.diffusion import weights
from latentsync.errors import WeightsMismatch
from latentsync.media import probe
from latentsync.options import Options
from latentsync.pipeline.lipsync import LipSync
from latentsync.runtime.extras import install_command
from latentsync.training.synthetic import synthesise
from latentsync.types import Progress, Result
from tests.clips import babble, picture, write_clip, write_picture, write_sound

ROOT = Path(__file__).parent.parent
FACE = ROOT / "examples" / "face.mp4"
SPEECH = ROOT / "examples" / "speech.wav"
SPELLINGS = [
    *("--video_path", "--audio_path", "--video_out_path"),
    *("--inference_steps", "--guidance_scale", "--seed"),
]


@pytest.fixture
def latentsync(monkeypatch, capfd):
    """Runs the command in this process: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["latentsync", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code, *capfd.readouterr()

    return run


@pytest.fixture
def voice(tmp_path):
    return write_sound(tmp_path / "voice.wav", babble(0.2))


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "clip.mp4", 10, sound=babble(0.4, 48000))


@pytest.fixture
def out(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "out.mp4"


class Fake:
    """Stands for LipSync and keeps what it was asked for."""

    def __init__(self, monkeypatch):
        self.loaded = self.ran = self.options = None
        monkeypatch.setattr(LipSync, "load", self.load)
        monkeypatch.setattr(media, "check_output", lambda *_: None)
        monkeypatch.setattr(media, "open_media", lambda _path, _limits: io.BytesIO())

    def load(self, *arguments, **options):
        self.loaded = (arguments, options)
        return self

    def run(self, video, audio, output, *, options, progress, cancelled=None, engine=None):  # noqa: ARG002
        self.ran, self.options = (video, audio, output), options
        progress(Progress("detect", 1, None))
        return Result(
            path=output,
            source=Path(video),
            frames=1234,
            fps=25.0,
            seconds=49.36,
            width=640,
            height=360,
            faces_found=7,
            source_frames=9,
            passed_through=((3, 5, "no face"), (9, 10, "nobody speaks")),
            lost=((3, 5, "no face"),),
            model="tiny",
            detector="stub",
            device="cpu",
            dtype="float32",
            seed=11,
            timings={"total": 2.0},
        )


@pytest.fixture
def fake(monkeypatch):
    return Fake(monkeypatch)


def one_line(told):
    """The one line of an error, after checking that nothing else was printed."""
    _, stdout, stderr = told
    assert stdout == ""
    assert stderr.startswith("latentsync: error: ")
    assert stderr.endswith("\n")
    assert stderr.count("\n") == 1
    return stderr.strip()


# ---- what works ----------------------------------------------------------------------------------


def test_generate_prints_the_path_and_a_summary(latentsync, voice, out):
    told = latentsync("generate", FACE, voice, "-o", out, "--model", "demo", "--steps", 1)
    code, stdout, stderr = told
    assert (code, stderr) == (0, "")
    path, summary = stdout.splitlines()
    assert path == str(out)
    for word in ("5 frames, 0.20 s, 512x512", "5 of 5", "model demo", "builtin", "seed "):
        assert word in summary
    assert probe(out).video.frames == 5


def test_generate_prints_json(latentsync, fake, out):
    code, stdout, stderr = latentsync("generate", "a", "b", "-o", out, "--json")
    assert (code, stderr) == (0, "")
    told = json.loads(stdout)
    assert told.keys() == asdict(fake.run("a", "b", out, options=None, progress=id)).keys()
    assert (told["path"], told["frames"], told["seed"]) == (str(out), 1234, 11)
    assert told["passed_through"] == [[3, 5, "no face"], [9, 10, "nobody speaks"]]
    assert told["timings"] == {"total": 2.0}


def test_the_summary_counts_what_was_left_untouched(latentsync, fake):
    _, stdout, _ = latentsync("generate", "a", "b", "-o", "c.mp4")
    assert "1234 frames, 49.36 s, 640x360" in stdout
    assert "face in 7 of 9 source frames, 3 frames untouched" in stdout
    assert "seed 11; took 2.0 s" in stdout
    assert fake.ran == (Path("a"), Path("b"), Path("c.mp4"))


def test_defaults_are_the_librarys(latentsync, fake):
    latentsync("generate", "a", "b", "-o", "c")
    (model,), options = fake.loaded
    assert model == "v1.6"
    assert options == {
        "weights": None,
        "device": None,
        "dtype": None,
        "detector": None,
        "occluder": None,
        "attention": "native",
        "offload": "auto",
        "compile": False,
    }
    assert fake.options == Options()


def test_options_reach_the_library(latentsync, fake):
    told = latentsync(
        *("generate", "a", "b", "--output", "c", "--model", "m", "--weights", "w"),
        *("--device", "cpu", "--dtype", "bfloat16", "--detector", "yunet"),
        *("--attention", "xformers", "--guidance-scale", "1.5", "--steps", "5"),
        *("--seed", "7", "--crf", "20", "--published"),
    )
    assert told[0] == 0
    (model,), options = fake.loaded
    assert (model, options["weights"], options["device"]) == ("m", Path("w"), "cpu")
    assert (options["dtype"], options["detector"]) == ("bfloat16", "yunet")
    assert options["attention"] == "xformers"
    assert fake.options == Options.published(guidance_scale=1.5, steps=5, seed=7, crf=20)
    assert latentsync("generate", "a", "b", "--output", "c", "--published")[0] == 0
    assert fake.options == Options.published()
    assert (fake.options.seed, fake.options.on_missing) == (1247, "error")
    changed = ("--seed", "0", "--on-missing", "keep")
    assert latentsync("generate", "a", "b", "--output", "c", "--published", *changed)[0] == 0
    assert fake.options == Options.published(seed=0, on_missing="keep")


def test_every_option_but_those_of_fidelity_is_on_the_command_line(latentsync, fake):
    asked = {
        "guidance_scale": 1.5,
        "speed": "fast",
        "steps": 5,
        "sampler": "dpm++",
        "cache_interval": 3,
        "guidance_start": 0.1,
        "guidance_stop": 0.9,
        "detect_every": 2,
        "batch": 3,
        "cache_dir": "remembered",
        "cache_bytes": 10**8,
        "seed": 7,
        "sync_mode": "freeze",
        "lead_in": 0.5,
        "lead_out": 1.5,
        "fps": "source",
        "fade": 5,
        "audio_track": "ger",
        "face": "left",
        "on_missing": "error",
        "smooth": 9,
        "overlap": 4,
        "silence": "close",
        "max_yaw": 40.0,
        "max_pixels": 10**6,
        "max_seconds": 60.0,
        "max_bytes": 10**7,
        "codec": "hevc",
        "crf": 20,
        "preset": "fast",
        "max_side": 640,
        "superres": "codeformer",
        "sr_ratio": 3.5,
        "mask_smooth": 0.25,
        "sr_weight": 0.7,
        "sr_stability": 0.2,
    }
    words = [w for k, v in asked.items() for w in ("--" + k.replace("_", "-"), str(v))]
    asked |= {"report": True, "color_match": True}
    flags = ("--report", "--color-match")
    assert latentsync("generate", "a", "b", "-o", "c", *words, *flags)[0] == 0
    assert fake.options == Options(**asked)
    fidelity = Options.published().__dict__.items() - Options().__dict__.items()
    assert Options().__dict__.keys() == asked.keys() | {name for name, _ in fidelity}
    assert {name for name, _ in fidelity} - asked.keys() == {
        *("follow", "length", "speech_windows", "groups", "vae_posterior", "resampling"),
        *("landmarks", "paste", "conversion"),
    }


def test_speakers_bring_a_voice_each(latentsync, fake):
    speakers = ("--speaker", "left=a=1.wav", "--speaker", "420,160@2.5=b.wav")
    assert latentsync("generate", "two.mp4", "-o", "c", *speakers)[0] == 0
    voices = {"left": Path("a=1.wav"), "420,160@2.5": Path("b.wav")}
    assert fake.ran == (Path("two.mp4"), voices, Path("c"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["voice.wav", "--speaker", "left=a.wav"], "voice.wav beside --speaker"),
        (["--speaker", "a.wav"], "--speaker 'a.wav'; it must be FACE=AUDIO"),
        (["--speaker", "left="], "--speaker 'left='; it must be FACE=AUDIO"),
        (["--speaker", "left=a.wav", "--speaker", "left=b.wav"], "names one face twice"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_speakers_that_are_none_are_refused(latentsync, words, said):
    code, _, stderr = latentsync("generate", "two.mp4", *words, "-o", "c")
    assert code == 2
    assert said in stderr


def test_lossless_and_a_clip_s_own_sound(latentsync, fake):
    assert latentsync("generate", "a", "-o", "c", "--lossless")[0] == 0
    assert fake.options == Options(crf=0)
    assert fake.ran == (Path("a"), Path("a"), Path("c"))


@pytest.mark.usefixtures("fake")
def test_lossless_is_no_crf_of_20(latentsync):
    code, _, stderr = latentsync("generate", "a", "-o", "c", "--lossless", "--crf", "20")
    assert code == 2
    assert "--crf is 20, but --lossless means 0" in stderr


def test_the_published_scripts_spellings_work(latentsync, fake):
    values = ["in put.mp4", "voice.wav", "out.mp4", "3", "1.5", "1247"]
    pairs = [word for pair in zip(SPELLINGS, values, strict=True) for word in pair]
    assert latentsync("generate", *pairs)[0] == 0
    assert fake.ran == tuple(map(Path, values[:3]))
    assert fake.options == Options(steps=3, guidance_scale=1.5, seed=1247)


def test_the_spellings_of_a_fork_with_super_resolution_work(latentsync, fake):
    words = "--superres GFPGAN --mask_smooth 0.4 --sr_ratio 3 --inference_steps 25"
    assert latentsync("generate", "a", "b", "-o", "c", *words.split())[0] == 0
    assert fake.options == Options(superres="GFPGAN", mask_smooth=0.4, sr_ratio=3, steps=25)
    assert fake.options.restorer == "gfpgan"


def test_the_published_scripts_spellings_are_not_in_the_help(latentsync, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    code, stdout, _ = latentsync("generate", "--help")
    assert code == 0
    for name in ("--output", "--guidance-scale", "--steps", "--seed", "--model", "v1.6"):
        assert name in stdout
    for name in SPELLINGS[:-1]:
        assert name not in stdout


def test_nothing_asked_for_is_help(latentsync):
    code, stdout, stderr = latentsync()
    assert (code, stderr) == (0, "")
    for word in ("generate", "info", "download", "--debug", "--verbose"):
        assert word in stdout
    assert latentsync("--help") == (0, stdout, "")


def test_names_are_printed_as_they_are(latentsync, fake):
    for name in (":smile:.mp4", "[red]x[/red].mp4", "ü 'ß\".mp4", "-dash.mp4", "x" * 150):
        code, stdout, _ = latentsync("generate", "a", "b", "-o", name)
        assert code == 0
        assert stdout.splitlines()[0] == name
    assert fake.ran[2] == Path(name)


def test_verbose_says_what_is_done_and_quiet_only_what_is_odd(latentsync, clip, monkeypatch):
    chosen = []
    monkeypatch.setattr(logging, "basicConfig", lambda **options: chosen.append(options["level"]))
    latentsync("info", clip)
    latentsync("--verbose", "info", clip)
    latentsync("-v", "info", clip)
    assert chosen == [logging.WARNING, logging.INFO, logging.INFO]


def test_info_describes_a_clip_a_sound_and_a_picture(latentsync, clip, voice, tmp_path):
    code, stdout, stderr = latentsync("info", clip)
    assert (code, stderr) == (0, "")
    lines = dict(line.split(maxsplit=1) for line in stdout.splitlines())
    assert lines["path"] == str(clip)
    assert "codec h264  width 64  height 48  fps 25  frames 10" in lines["video"]
    assert "sample rate 48000" in lines["audio"]

    code, stdout, _ = latentsync("info", "--json", clip)
    told = json.loads(stdout)
    assert (told["video"]["frames"], told["audio"]["codec"]) == (10, "aac")

    assert json.loads(latentsync("info", voice, "--json")[1])["video"] is None
    still = write_picture(tmp_path / "still.png", picture(1))
    assert json.loads(latentsync("info", still, "--json")[1])["video"]["codec"] == "png"


def test_synthesise_fills_a_folder_and_sums_up(latentsync, tmp_path):
    folder = tmp_path / "raw"
    arguments = ("-o", folder, "--identities", 2, "--seconds", 0.2, "--seed", 4)
    chosen = ("--size", "64x80", "--languages", "de,fr", "--languages", "fi")
    told = latentsync("synthesise", *arguments, *chosen)
    assert told == (0, f"2 clips, 0.4 s in all, in {folder}\n", "")
    names = ["004_00000.mp4", "004_00000.truth.jsonl", "004_00001.mp4", "004_00001.truth.jsonl"]
    assert sorted(path.name for path in folder.iterdir()) == names
    video = probe(folder / names[2]).video
    assert (video.width, video.height, video.frames) == (64, 80, 5)
    same = {"seed": 4, "size": (64, 80), "languages": ("de", "fr", "fi")}
    for path in synthesise(tmp_path / "same", identities=2, seconds=0.2, **same):
        truth = path.with_suffix(".truth.jsonl")
        assert truth.read_bytes() == (folder / truth.name).read_bytes()


# ---- what does not -------------------------------------------------------------------------------


def no_frames(path):
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", 25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        output.start_encoding()
    return path


def no_samples(path):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
    return path


def written(path, data):
    path.write_bytes(data)
    return path


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\n{}\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\nfile '{}'\n"
# What lies at tmp_path / name, and a word of the error.
BAD_VIDEOS = {
    "noise.mp4": (lambda p, _: written(p, np.random.default_rng(0).bytes(5000)), "can't be read"),
    "empty.mp4": (lambda p, _: written(p, b""), "is empty, of 0 bytes"),
    "cut.mp4": (lambda p, clip: written(p, clip.read_bytes()[:3000]), "can't be read"),
    "text.mp4": (lambda p, _: written(p, b"Dear reader,\n" * 99), "can't be read"),
    "playlist.mp4": (lambda p, c: written(p, PLAYLIST.format(c).encode()), "is a playlist"),
    "concat.mp4": (lambda p, c: written(p, CONCAT.format(c).encode()), "can't be read"),
    "no frames.mp4": (lambda p, _: no_frames(p), "holds no"),
    "sound.mp4": (lambda p, _: write_sound(p, babble(0.2)), "holds no pictures"),
    "missing.mp4": (lambda p, _: p, "does not exist"),
    "missing\nin two lines.mp4": (lambda p, _: p, "does not exist"),
    "folder.mp4": (lambda p, _: p.mkdir() or p, "is not a file"),
}
BAD_SOUNDS = {
    "silent clip.mp4": (lambda p, _: write_clip(p, 5), "has no sound"),
    "still.png": (lambda p, _: write_picture(p, picture(1)), "has no sound"),
    "no samples.wav": (lambda p, _: no_samples(p), "without a single sample"),
    "noise.wav": (lambda p, _: written(p, bytes(range(256)) * 9), "can't be read"),
    "empty.wav": (lambda p, _: written(p, b""), "is empty, of 0 bytes"),
    "playlist.wav": (lambda p, c: written(p, PLAYLIST.format(c).encode()), "is a playlist"),
    "missing.wav": (lambda p, _: p, "does not exist"),
}


@pytest.fixture(scope="module")
def demo():
    return LipSync.load("demo")


@pytest.fixture
def loaded(demo, monkeypatch):
    """Loading costs no time, the rest is real."""
    monkeypatch.setattr(LipSync, "load", lambda *_, **__: demo)


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("name", BAD_VIDEOS)
def test_a_bad_video_is_one_line(latentsync, clip, voice, out, tmp_path, name):
    make, words = BAD_VIDEOS[name]
    path = make(tmp_path / name, clip)
    told = latentsync("generate", path, voice, "-o", out, "--model", "demo")
    assert told[0] == 2
    line = one_line(told)
    assert words in line
    assert repr(str(path))[1:-1] in line
    assert not any(out.parent.iterdir())


@pytest.mark.usefixtures("loaded")
@pytest.mark.parametrize("name", BAD_SOUNDS)
def test_a_bad_sound_is_one_line(latentsync, clip, out, tmp_path, name):
    make, words = BAD_SOUNDS[name]
    path = make(tmp_path / name, clip)
    told = latentsync("generate", FACE, path, "-o", out, "--model", "demo")
    assert told[0] == 2
    line = one_line(told)
    assert words in line
    assert str(path) in line
    assert not any(out.parent.iterdir())


@pytest.mark.usefixtures("loaded")
def test_an_output_that_cannot_be_is_one_line(latentsync, clip, voice, out, tmp_path):
    link = tmp_path / "link.mp4"
    link.symlink_to(clip)
    before = clip.read_bytes()
    for output, words in (
        (tmp_path / "nowhere" / "out.mp4", "no directory"),
        (out.parent, "is a directory"),
        (clip, "is an input too"),
        (link, "is an input too"),
        (voice, "is an input too"),
        (tmp_path / ("x" * 300), "give another name"),
        (clip / "out.mp4", "no directory"),
    ):
        told = latentsync("generate", clip, voice, "-o", output, "--model", "demo")
        assert told[0] == 2
        assert words in one_line(told)
    assert clip.read_bytes() == before
    assert not any(out.parent.iterdir())


@pytest.mark.usefixtures("loaded")
def test_no_face_is_one_line(latentsync, voice, out, tmp_path):
    grey = write_clip(
        tmp_path / "grey.mp4", [np.full((96, 128, 3), 90, np.uint8)] * 3, size=(128, 96)
    )
    told = latentsync("generate", grey, voice, "-o", out, "--model", "demo")
    assert told[0] == 2
    assert "no face in the 3 frames" in one_line(told)
    assert "builtin" in told[2]
    assert not any(out.parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "0"], "steps is 0; it must be a whole number from 1 to 50"),
        (["--steps", "51"], "from 1 to 50"),
        (["--inference_steps", "51"], "from 1 to 50"),
        (["--steps", "many"], "--steps"),
        (["--steps"], "--steps"),
        (
            ["--guidance-scale", "10.5"],
            "--guidance-scale is 10.5; it must be a number from 0 to 10",
        ),
        (["--guidance_scale", "nan"], "from 0 to 10"),
        (["--seed", "-1"], "seed is -1; it must be a whole number from 0 to 4294967295"),
        (["--crf", "52"], "crf is 52; it must be a whole number from 0 to 51"),
        (["--superres", "gfpgan", "--published"], "--superres is 'gfpgan', but --published"),
        (["--dtype", "int8"], "dtype is 'int8'"),
        (["--device", "gpu"], "device is 'gpu'"),
        (["--detector", "haar"], "'haar'"),
        (["--attention", "flash"], "'flash'"),
        (["--model", "v9"], "--model is 'v9'; it must be one of v1.6, v1.5, demo"),
        (["--model", "v\n9"], "v1.5"),
        (["--nonsense", "1"], "--nonsense"),
        (["--occluder", "none.onnx"], "'none.onnx' does not exist"),
        (["one too many"], "one too many"),
    ],
)
def test_a_bad_option_is_one_line(latentsync, clip, voice, out, arguments, words):
    model = [] if "--model" in arguments else ["--model", "demo"]
    told = latentsync("generate", clip, voice, "-o", out, *model, *arguments)
    assert told[0] == 2
    assert words in one_line(told)
    assert not any(out.parent.iterdir())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate"], "VIDEO, --output missing"),
        (["generate", "a", "b"], "--output missing"),
        (["generate", "--audio_path", "b", "-o", "c"], "VIDEO missing"),
        (["generate", "a", "b", "-o"], "-o"),
        (["produce"], "produce"),
        (["--nonsense"], "--nonsense"),
        (["info"], "FILE"),
        (["info", "missing.mp4"], "does not exist"),
        (["info", str(Path(__file__))], "can't be read as media"),
        (["download"], "NAME"),
        (["synthesise"], "--output"),
        (["synthesise", "-o", "raw", "--size", "512"], "'512'; it must be WIDTHxHEIGHT"),
        (["synthesise", "-o", "raw", "--size", "-1x64"], "'-1x64'; it must be WIDTHxHEIGHT"),
        (["synthesise", "-o", "raw", "--languages", "de,tlh"], "languages de, tlh; wanted some"),
        (["synthesise", "-o", "raw", "--identities", "0"], "0 identities; wanted 1 or more"),
        (["synthesise", "-o", __file__], "can't make the folder"),
        (["download", "v9"], "v1.6"),
    ],
)
def test_bad_usage_is_one_line(latentsync, arguments, words):
    told = latentsync(*arguments)
    assert told[0] == 2
    assert words.lower() in one_line(told).lower()


def test_without_weights_the_default_model_names_both_ways_out(
    latentsync, clip, voice, out, tmp_path, monkeypatch
):
    monkeypatch.setenv("LATENTSYNC_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda *_: None)
    told = latentsync("generate", clip, voice, "-o", out)
    assert told[0] == 1
    line = one_line(told)
    assert "model 'v1.6' has no " in line
    assert str(tmp_path / "weights" / "v1.6" / "latentsync_unet.pt") in line
    assert "`latentsync download v1.6`" in line
    assert "`--model demo`" in line


def test_without_espeak_the_extra_is_named(latentsync, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    told = latentsync("synthesise", "-o", tmp_path, "--identities", 1)
    assert told[0] == 1
    assert install_command("train") in one_line(told)


def test_weights_and_devices_that_fail_exit_with_1(
    latentsync, clip, voice, out, tmp_path, monkeypatch
):
    shutil.copytree(ROOT / "weights" / "demo", tmp_path / "mine")
    (tmp_path / "mine" / "unet.safetensors").write_bytes(b"nonsense")
    command = ("generate", clip, voice, "-o", out, "--model")
    told = latentsync(*command, tmp_path / "mine")
    assert told[0] == 1
    assert "unet.safetensors can't be read as weights" in one_line(told)
    told = latentsync(*command, "v1.5", "--weights", tmp_path / "in two\nlines")
    assert told[0] == 1
    assert str(tmp_path / "in two lines" / "v1.5") in one_line(told)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = latentsync(*command, "demo", "--device", "cuda")
    assert told[0] == 1
    assert "device 'cuda' was asked for" in one_line(told)


def test_a_bug_is_one_line_that_says_so(latentsync, fake, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr(fake, "run", fail)
    told = latentsync("generate", "a", "b", "-o", "c")
    assert told[0] == 1
    line = one_line(told)
    assert "ZeroDivisionError: first second" in line
    assert "--debug" in line


@pytest.mark.parametrize("place", [0, 1, 5])
def test_debug_shows_where_from_and_the_line_last(latentsync, fake, monkeypatch, place):
    def fail(*_, **__):
        raise WeightsMismatch("wrong file")

    monkeypatch.setattr(fake, "run", fail)
    command = ["generate", "a", "b", "-o", "c"]
    command.insert(place, "--debug")
    code, stdout, stderr = latentsync(*command)
    assert (code, stdout) == (1, "")
    assert "Traceback" in stderr
    assert "in fail" in stderr
    assert stderr.splitlines()[-1] == "latentsync: error: wrong file"


def test_an_interrupt_exits_with_130(latentsync, fake, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(fake, "run", interrupt)
    for debug in ([], ["--debug"]):
        told = latentsync("generate", "a", "b", "-o", "c", *debug)
        assert told[0] == 130
        assert one_line(told) == "latentsync: error: interrupted"


# ---- as processes --------------------------------------------------------------------------------


@pytest.mark.slow
def test_as_a_module_with_nothing_but_the_output_left(tmp_path, voice):
    cwd, temporary = tmp_path / "cwd", tmp_path / "temporary"
    cwd.mkdir()
    temporary.mkdir()
    done = subprocess.run(
        [
            *(sys.executable, "-m", "latentsync", "generate", FACE, voice, "-o", "-spoken ü.mp4"),
            *("--model", "demo", "--steps", "1", "--seed", "5"),
        ],
        cwd=cwd,
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    path, summary = done.stdout.splitlines()
    assert path == "-spoken ü.mp4"
    assert "seed 5" in summary
    assert [p.name for p in cwd.iterdir()] == ["-spoken ü.mp4"]
    assert not any(temporary.iterdir())


def test_the_installed_command_is_this_one():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"latentsync": "latentsync.cli:main"}


# A shell may have had the signal ignored for whatever it starts in the background.
MAIN = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from latentsync.cli import main
main()
"""


# Ctrl-C once there is a second file in the folder: from within, since this process may have to wait
# for its turn longer than the whole run takes.
INTERRUPTED = """
import os, signal, sys, threading, time
from pathlib import Path
def begun(folder):
    for held in Path("/proc/self/fd").iterdir():
        try:
            if os.readlink(held).startswith(folder):
                return True
        except OSError:  # closed meanwhile
            pass
def interrupt(folder):
    while not begun(folder):
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=interrupt, args=[sys.argv.pop(1)], daemon=True).start()
"""


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_behind(out):
    out.write_bytes(b"before")
    command = ("generate", FACE, SPEECH, "-o", out, "--model", "demo", "--steps", "50")
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED + MAIN, out.parent, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},  # more wait for each other on a busy machine
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (
        *(130, ""),
        "latentsync: error: interrupted\n",
    )
    assert [p.name for p in out.parent.iterdir()] == ["out.mp4"]
    assert out.read_bytes() == b"before"


@pytest.mark.parametrize(
    ("workers", "there"),
    [
        pytest.param(1, "raw/0*.truth.jsonl", marks=pytest.mark.slow),
        (2, "raw/0*.truth.jsonl"),
        pytest.param(2, "raw", marks=pytest.mark.slow),  # workers start
    ],
)
def test_ctrl_c_leaves_whole_clips_and_starts_again(latentsync, tmp_path, workers, there):
    folder = tmp_path / "raw"
    arguments = ("--seconds", "0.4", "--size", "64x64", "-o", folder)
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", MAIN, "synthesise", "--identities", "500", *arguments),
            *("--workers", str(workers)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(there)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.25)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
    try:
        stdout, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, stdout) == (130, "")
    assert stderr == "latentsync: error: interrupted\n"
    clips = {path.stem for path in folder.glob("*.mp4")}
    assert {path.name for path in folder.iterdir()} == (
        {f"{name}.mp4" for name in clips} | {f"{name}.truth.jsonl" for name in clips}
    )
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert latentsync("synthesise", "--identities", 3, *arguments)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {f"001_0000{n}.mp4" for n in range(3)} <= {path.name for path in folder.iterdir()}


def test_bad_input_is_said_before_the_model_is_loaded(latentsync, monkeypatch, out, tmp_path):
    def load(*_arguments, **_options):
        raise AssertionError("gigabytes were loaded first")

    monkeypatch.setattr(LipSync, "load", load)
    (tmp_path / "text.mp4").write_text("no clip")
    told = latentsync("generate", tmp_path / "text.mp4", SPEECH, "-o", out)
    assert told[0] == 2
    assert "text.mp4" in one_line(told)
    told = latentsync("generate", FACE, tmp_path / "none.wav", "-o", out)
    assert told[0] == 2
    assert "none.wav" in one_line(told)
    told = latentsync("generate", FACE, SPEECH, "-o", tmp_path / "nowhere" / "out.mp4")
    assert told[0] == 2
    assert "nowhere" in one_line(told)
