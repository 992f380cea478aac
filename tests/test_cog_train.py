"""train.py: a zip of clips in, weights out that predict.py serves; called, and by Cog's server."""

import base64
import logging
import re
import tempfile
import wave
from itertools import islice
from pathlib import Path
from zipfile import ZipFile

import cv2
import numpy as np
import pytest
import requests
import torch

from latentsync import faces
from latentsync.diffusion import weights
from latentsync.errors import InputError, MediaError, WeightsMissing
from latentsync.media import VideoReader
from latentsync.runtime import scratch
from latentsync.runtime.scratch import Scratch
from latentsync.training.clips import find_clips
from tests.clips import babble, write_clip, write_sound
from tests.stubs import StubDetector, numbered_clip
from tests.test_cog import predictor, trainer
from tests.test_cog_server import CLIP, SPEECH, data_uri, eventually, frames_of, serving

SIDE, FRAMES = 192, 48  # px, and the fewest that training takes


def zipped(archive: Path, *clips: Path) -> Path:
    with ZipFile(archive, "w") as content:
        for clip in clips:
            content.write(clip, f"me/{clip.name}")
            content.writestr(f"__MACOSX/me/._{clip.name}", "what macOS adds")
    return archive


# -- Called, with a tiny model ---------------------------------------------------------------------


@pytest.fixture
def train(monkeypatch, tmp_path, folders):
    """train() with a tiny model and a temporary folder of its own; puts the log's level back."""
    monkeypatch.setattr(faces, "create", lambda *_, **__: StubDetector())
    monkeypatch.setattr("latentsync.training.tasks.unet.VALIDATION_WINDOWS", 4)
    monkeypatch.setenv("LATENTSYNC_MODEL", str(folders.model))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    level = logging.getLogger("latentsync").level

    def run(clips, steps=2, learning_rate=0, seed=3):
        return trainer()(clips=clips, steps=steps, learning_rate=learning_rate, seed=seed)

    yield run
    logging.getLogger("latentsync").setLevel(level)


def left(tmp_path):
    return [path for path in (tmp_path / "tmp").rglob("*") if path.is_file()]


def unet_of(archive):
    with ZipFile(archive) as content:
        return content.read("unet.safetensors")


def test_clips_become_weights_that_the_predictor_serves(train, folders, tmp_path, caplog):
    clips = zipped(tmp_path / "me.zip", *folders.data.iterdir())
    answer = train(clips)
    assert left(tmp_path) == [Path(answer)]
    assert re.search(r"^demo, from .*/model: 2 steps, seed 3$", "\n".join(caplog.messages), re.M)
    assert "prepare: 3 of 3" in caplog.messages
    assert "3 clips to train on, 1 to validate on" in caplog.messages
    assert re.search(r"demo step 2 +noise [\d.]+", caplog.text)

    served = predictor()()
    served.setup(str(answer))
    assert left(tmp_path) == [Path(answer)]
    nets = served.lipsync.nets
    assert nets.config.name == "tiny-demo"
    before = weights.load_nets(folders.model).unet.state_dict()
    tuned = {name: p for name, p in nets.unet.state_dict().items() if p.is_floating_point()}
    assert any(not torch.equal(before[name], p) for name, p in tuned.items())
    spoken = write_sound(tmp_path / "voice.wav", babble(0.4))
    rest = ("bounce", "25", "auto", "largest", "keep", "exact", "none", 0.5, 2, 0.5)
    film = served.predict(numbered_clip(tmp_path / "face.mp4"), spoken, 1, 7, 1, *rest)
    assert sum(1 for _ in VideoReader(Path(film)).frames()) == 10
    served.forget()

    first = unet_of(answer)
    again = train(clips)
    assert left(tmp_path) == [Path(again)]  # the first answer was sent long since
    assert Path(again).name != Path(answer).name  # an upload is stored under its name
    assert unet_of(again) == first


@pytest.fixture
def asked(train, monkeypatch, tmp_path, folders):
    """Calls train() with another `train_unet`; gives what that one was asked."""
    seen = {}

    def stub(run, settings, *, init, cancel, **_):
        assert not cancel()
        clips = [(p.name, p.resolve()) for p in find_clips(settings.data)]
        seen.update(run=run, init=init, held_out=settings.held_out, clips=clips)
        for error in seen.pop("errors", []):
            raise error
        return folders.model

    trainer()
    monkeypatch.setattr("train.train_unet", stub)

    def ask(count=1, model=None, errors=(), **inputs):
        if model:
            monkeypatch.setenv("LATENTSYNC_MODEL", model)
        seen["errors"] = list(errors)
        clips = [numbered_clip(tmp_path / f"{i}.mp4", 10 + i) for i in range(count)]
        train(zipped(tmp_path / "me.zip", *clips), **inputs)
        return seen

    return ask


@pytest.mark.parametrize(
    ("model", "inputs", "wanted"),
    [
        ("demo", {}, {"name": "demo", "learning_rate": 1e-4, "log_every": 1, "seed": 3}),
        (None, {}, {"name": "demo"}),  # it came of a model for drawn faces
        ("v1.6", {}, {"name": "stage2_efficient", "learning_rate": 1e-5, "sync_weight": 0.05}),
        ("v1.5", {"steps": 5000}, {"resolution": 0, "log_every": 100, "validate_every": 5000}),
        ("v1.5", {"steps": 80.0, "learning_rate": 0.001, "seed": 5.0},
         {"steps": 80, "learning_rate": 0.001, "seed": 5, "log_every": 4, "batch": 1}),
    ],
)  # fmt: skip
def test_the_run_suits_the_model(asked, model, inputs, wanted):
    run = asked(model=model, **inputs)["run"]
    assert {name: getattr(run, name) for name in wanted} == wanted


def test_a_seed_is_drawn(asked):
    seeds = {asked(seed=0)["run"].seed for _ in range(3)}
    assert len(seeds) == 3
    assert 0 not in seeds


def test_few_clips_are_all_learnt_from(asked):
    seen = asked(3)
    assert [name for name, _ in seen["clips"]] == ["0.mp4", "1.mp4", "2.mp4"]
    assert seen["held_out"] == 0


@pytest.mark.parametrize("error", [MediaError("no sound"), KeyboardInterrupt()])
def test_a_run_that_fails_or_is_stopped_leaves_nothing(asked, tmp_path, error):
    with pytest.raises(type(error)):
        asked(errors=[error])
    assert left(tmp_path) == []
    assert not list((tmp_path / "tmp").iterdir())


def test_what_killed_trainings_left_goes_and_downloads_are_bounded(asked, tmp_path, monkeypatch):
    """By what Cog calls first; while a run is on, its own files may be larger."""
    import train

    limits = []
    monkeypatch.setattr(scratch.resource, "setrlimit", lambda _, both: limits.append(both[0]))
    monkeypatch.setattr(Scratch, "sweep_always", lambda _: None)
    monkeypatch.setattr(train, "scratches", [])
    monkeypatch.setenv("LATENTSYNC_MAX_FILE", "1000")
    killed = tmp_path / "tmp" / f"{scratch.PREFIX}dead" / "latentsync-run"
    killed.mkdir(parents=True)
    trainer().setup()
    (folder,) = (tmp_path / "tmp").iterdir()
    (folder / "tmpleft.zip").touch()
    assert limits == [1000]
    asked()
    assert limits[1] != 1000
    assert not (folder / "tmpleft.zip").exists()
    assert len(list(folder.glob("latentsync-*"))) == 1  # the answer


def test_what_can_t_be_packed_leaves_nothing(asked, tmp_path, monkeypatch):
    def full(_folder, archive):
        archive.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr("train.pack", full)
    with pytest.raises(OSError, match="no space left"):
        asked()
    assert not list((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize(
    ("model", "fetched"), [("v1.6", ["v1.6", "train"]), ("/my/tuned", ["train"]), ("demo", None)]
)
def test_weights_that_are_missing_are_fetched(asked, monkeypatch, model, fetched):
    got = []
    monkeypatch.setattr("train.download", got.append)
    missing = WeightsMissing("judge.pt is missing")
    if fetched is None:
        with pytest.raises(WeightsMissing, match="is missing"):
            asked(model=model, errors=[missing])
        assert got == []
    else:
        assert asked(model=model, errors=[missing])["init"] == model
        assert got == fetched


def test_a_bad_zip_is_said_in_one_line(train, tmp_path):
    (tmp_path / "me.zip").write_text("no zip")
    with pytest.raises(InputError, match=r"give a zip of clips with sound, of one speaker's face"):
        train(str(tmp_path / "me.zip"))
    assert not list((tmp_path / "tmp").iterdir())
    with pytest.raises(InputError, match=r"can't be unpacked .* give the zip of a model"):
        predictor()().setup(str(tmp_path / "me.zip"))
    assert not list((tmp_path / "tmp").iterdir())


# -- By Cog's server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("training"), "train") as running:
        yield running


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Two clips of a drawn face with a voice, zipped, as a data URI."""
    folder = tmp_path_factory.mktemp("clips")
    shown = [
        cv2.resize(frame.rgb(), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        for frame in islice(VideoReader(CLIP).frames(), FRAMES + 1)
    ]
    with wave.open(str(SPEECH)) as speech:
        rate = speech.getframerate()
        pcm = np.frombuffer(speech.readframes(2 * rate), np.int16)
    sound = pcm.astype(np.float32) / 2**15
    written = [
        write_clip(
            folder / f"{i}.mp4",
            shown[i : i + FRAMES],
            size=(SIDE, SIDE),
            sound=sound,
            sound_rate=rate,
        )
        for i in range(2)
    ]
    return data_uri(zipped(folder / "me.zip", *written).read_bytes(), "application/zip")


def trained(server, **inputs):
    """The server's answer, once the one before is put away; a busy machine takes minutes."""
    eventually(lambda: server.status() == "READY")
    return requests.post(f"{server.url}/trainings", json={"input": inputs}, timeout=900)


@pytest.mark.slow
def test_the_server_checks_what_is_asked(server):
    answer = trained(server, steps=0, learning_rate=1, seed=-1)
    assert answer.status_code == 422
    assert {entry["loc"][-1]: entry["msg"] for entry in answer.json()["detail"]} == {
        "clips": "Field required",
        "steps": "0 is less than the minimum of 1",
        "learning_rate": "1 is greater than the maximum of 0.01",
        "seed": "-1 is less than the minimum of 0",
    }


def test_the_server_says_what_is_wrong_with_a_zip(server):
    answer = trained(server, clips=data_uri(b"no zip", "application/zip")).json()
    assert answer["status"] == "failed"
    assert re.search(
        r"InputError: .* can't be unpacked \(File is not a zip file\)", answer["error"]
    )
    assert "\n" not in answer["error"]
    assert server.outputs() == server.uploads() == []


def test_what_failed_downloads_leave_is_swept(server):
    (folder,) = server.folder.glob("latentsync-worker-*")
    assert trained(server, clips="data:application/zip;base64,AAA").json()["status"] == "failed"
    (folder / "tmpleft.zip").write_bytes(b"the beginning of a download")
    assert "InputError" in trained(server, clips=data_uri(b"x", "application/zip")).json()["error"]
    assert server.uploads() == server.outputs() == []


@pytest.mark.slow
def test_a_training_is_stopped(server, clips):
    body = {"input": {"clips": clips, "steps": 1000}}
    path = "/trainings/long"
    eventually(lambda: server.status() == "READY")
    assert server.ask("PUT", path, body, Prefer="respond-async").status_code == 202
    line = "\ndemo: 1 of 1000"
    eventually(lambda: line in server.ask("PUT", path, body).json().get("logs", ""), 300)
    assert len(server.outputs()) == 1
    assert server.ask("POST", f"{path}/cancel").status_code == 200
    eventually(lambda: server.status() == "READY")
    eventually(lambda: server.outputs() == server.uploads() == [])


@pytest.mark.slow
def test_what_the_server_trained_another_one_serves(server, clips, tmp_path):
    answer = trained(server, clips=clips, steps=2, seed=3).json()
    assert answer["status"] == "succeeded", answer["error"]
    assert answer["metrics"]["seed"] == 3
    assert "demo: 2 of 2" in answer["logs"]
    assert re.search(r"demo step 2 +noise [\d.]+", answer["logs"])
    assert server.uploads() == []
    (folder,) = server.outputs()
    kind, content = answer["output"].split(",", 1)
    assert kind == "data:application/zip;base64"
    archive = tmp_path / "mine.zip"
    archive.write_bytes(base64.b64decode(content))
    assert [path.read_bytes() for path in folder.iterdir()] == [archive.read_bytes()]

    with serving(tmp_path, COG_WEIGHTS=str(archive), LATENTSYNC_MODEL="nothing") as tuned:
        assert tuned.outputs() == []
        frames, _, _ = frames_of(tuned.predict(), tmp_path)
        assert frames == 10


@pytest.mark.slow
def test_setup_says_what_is_wrong_with_weights(tmp_path):
    absent = str(tmp_path / "absent.zip")
    with serving(tmp_path, health="SETUP_FAILED", COG_WEIGHTS=absent) as server:
        logs = server.health()["setup"]["logs"]
        assert "absent.zip' can't be unpacked (No such file or directory)" in logs
