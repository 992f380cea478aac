"""The container's own server, `python -m cog.server.http`, with predict.py and the demo model."""

import base64
import contextlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import cv2
import numpy as np
import pytest
import requests

from latentsync.media import VideoReader
from tests.documentation import blocks

ROOT = Path(__file__).resolve().parent.parent
PHOTO = ROOT / "examples/photo.png"
CLIP = ROOT / "examples/face.mp4"
SPEECH = ROOT / "examples/speech.wav"
VOICE_SECONDS, FRAMES = 0.4, 10  # at 25 frames a second

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="finds processes in /proc")


def voice(seconds: float, times: int = 1) -> bytes:
    cut = io.BytesIO()
    with wave.open(str(SPEECH)) as whole, wave.open(cut, "wb") as part:
        part.setparams(whole.getparams())
        part.writeframes(times * whole.readframes(round(whole.getframerate() * seconds)))
    return cut.getvalue()


def data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def grey_picture() -> bytes:
    return cv2.imencode(".png", np.full((96, 96, 3), 128, np.uint8))[1].tobytes()


VOICE = data_uri(voice(VOICE_SECONDS), "audio/wav")
FACE = data_uri(PHOTO.read_bytes(), "image/png")
QUICK = {"video": FACE, "audio": VOICE, "inference_steps": 1, "seed": 7}
# Minutes, if nobody stops it: long enough for a machine where this process has to wait its turn.
LONG = QUICK | {"audio": data_uri(voice(4.0, times=8), "audio/wav"), "inference_steps": 50}


def eventually(what, seconds=90.0):
    """The first true answer of `what`; fails when none comes in time."""
    end = time.monotonic() + seconds
    while not (answer := what()):
        assert time.monotonic() < end, f"waited {seconds} s in vain"
        time.sleep(0.05)
    return answer


OUTPUTS = Path("/tmp/coglet/predictions")  # noqa: S108 - Cog 0.23.1's own, whatever TMPDIR says


class Server:
    """The server in a process of its own, with a temporary folder of its own."""

    def __init__(self, folder: Path, mode: str = "predict", **environment: str) -> None:
        if OUTPUTS.exists() and not os.access(OUTPUTS, os.W_OK):
            pytest.skip(f"{OUTPUTS} belongs to another account that ran Cog; remove it")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.folder = folder / "tmp"
        self.folder.mkdir()
        self.log = folder / "server.log"
        settings = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the worker's python
            "PORT": str(port),
            "COG_PREDICT_TYPE_STUB": "predict.py:Predictor",
            "COG_TRAIN_TYPE_STUB": "train.py:train",
            "LATENTSYNC_MODEL": "demo",
            "LATENTSYNC_WEIGHTS": str(ROOT / "weights"),
            "LOG_FORMAT": "console",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(self.folder),
        }
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cog.server.http", "--host", "127.0.0.1", "--x-mode", mode],
                cwd=ROOT,
                env=os.environ | settings | environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)

    def ask(self, method: str, path: str, body=None, **headers: str) -> requests.Response:
        return requests.request(method, self.url + path, json=body, headers=headers, timeout=60)

    def health(self) -> dict:
        with contextlib.suppress(requests.ConnectionError):
            return self.ask("GET", "/health-check").json()
        return {"status": "STARTING"}

    def status(self) -> str:
        return self.health()["status"]

    def predict(self, **inputs) -> dict:
        """The answer to one request, made again while the one before is still being put away."""
        body = {"input": QUICK | inputs}
        answer = eventually(
            lambda: a if (a := self.ask("POST", "/predictions", body)).status_code != 409 else None
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    def outputs(self) -> list[Path]:
        """Of predictions, in the worker's own folder, and of trainings, beside it."""
        found = {*self.folder.glob("latentsync-*"), *self.folder.glob("latentsync-*/latentsync-*")}
        return sorted(path for path in found if not path.name.startswith("latentsync-worker-"))

    def uploads(self) -> list[Path]:
        """What Cog keeps of the inputs; of a failed download it leaves some behind."""
        return sorted(self.folder.rglob("tmp*"))

    def worker(self) -> int:
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task").glob("*/children")
        (child,) = " ".join(file.read_text() for file in children).split()
        return int(child)


@contextlib.contextmanager
def serving(folder: Path, mode: str = "predict", *, health: str = "READY", **environment: str):
    """A server whose setup has ended so."""
    server = Server(folder, mode, **environment)
    try:
        eventually(lambda: server.status() != "STARTING")
        assert server.status() == health, server.log.read_text()
        yield server
    finally:
        server.stop()


class Web:
    """A web server: /photo/…, /clip/… and /voice/… are files; what is posted is kept."""

    def __init__(self) -> None:
        files = {
            "photo": PHOTO.read_bytes(),
            "clip": CLIP.read_bytes(),
            "voice": voice(VOICE_SECONDS),
        }
        posted: list[dict] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                content = files.get(self.path.split("/")[1])
                self.send_response(200 if content else 404)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def do_POST(self):
                length = int(self.headers["Content-Length"])
                posted.append(json.loads(self.rfile.read(length)))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.posted = posted
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def final(self, name: str) -> dict:
        """The last webhook of a prediction."""
        ends = {"succeeded", "failed", "canceled"}
        return eventually(
            lambda: next((p for p in self.posted if p["id"] == name and p["status"] in ends), None)
        )


@contextlib.contextmanager
def endless():
    """The address of a file that goes on for ever."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(2**16))

        def log_message(self, *_):
            pass

    site = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{site.server_port}/face.mp4"
    site.shutdown()
    site.server_close()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture(scope="module")
def web():
    site = Web()
    yield site
    site.server.shutdown()
    site.server.server_close()


@contextlib.contextmanager
def long_run(server, web, name):
    """A prediction under way: its request, and its state once it generates frames."""
    request = {
        "input": LONG,
        "webhook": web.url,
        "webhook_events_filter": ["start", "completed"],
    }
    path = f"/predictions/{name}"
    eventually(lambda: server.status() == "READY")
    first = server.ask("PUT", path, request, Prefer="respond-async")
    assert first.status_code == 202, first.text
    try:
        yield eventually(
            lambda: (
                state
                if "generate: "
                in (state := server.ask("PUT", path, request).json()).get("logs", "")
                else None
            )
        )
    finally:
        server.ask("POST", f"{path}/cancel")
        web.final(name)
        eventually(lambda: server.status() != "BUSY")


def frames_of(answer: dict, folder: Path) -> tuple[int, int, int]:
    """(frames, width, height) of a succeeded prediction's film."""
    assert answer["status"] == "succeeded", answer["error"]
    kind, content = answer["output"].split(",", 1)
    assert kind == "data:video/mp4;base64"
    film = folder / "film.mp4"
    film.write_bytes(base64.b64decode(content))
    reader = VideoReader(film)
    return sum(1 for _ in reader.frames()), reader.info.width, reader.info.height


def test_health(server):
    health = server.health()
    assert health["status"] == "READY"
    assert health["setup"]["status"] == "succeeded"
    # Cog 0.23.1 says READY without waiting for what was logged in setup's last moments.
    assert "loading model demo on cpu in torch.float32" in health["setup"]["logs"]
    assert "Running without schema" not in health["setup"]["logs"]


def test_schema(server):
    committed = json.loads((ROOT / ".cog/openapi_schema.json").read_text())
    assert server.ask("GET", "/openapi.json").json() == committed


def test_a_photo_and_a_wav_without_a_suffix(server, tmp_path):
    """Cog gives data:audio/wav no suffix; what a file is must be seen from its content."""
    answer = server.predict()
    height, width = cv2.imread(str(PHOTO)).shape[:2]
    assert frames_of(answer, tmp_path) == (FRAMES, width, height)
    metrics = answer["metrics"]
    assert (metrics["frames"], metrics["faces"], metrics["seed"]) == (FRAMES, 1, 7)
    assert {"detect", "network", "paste", "write", "total"} <= set(metrics["timing"])
    assert 0 < metrics["timing"]["network"] < metrics["timing"]["total"] < 60
    lines = answer["logs"].splitlines()
    assert [line for line in lines if re.fullmatch(r"(detect|generate|finish): \d+ of \d+", line)]


def test_any_data_uri(server, tmp_path):
    clip = data_uri(CLIP.read_bytes(), "application/octet-stream")
    spoken = data_uri(voice(VOICE_SECONDS), "audio/mpeg")  # a wrong suffix, .mp3
    frames, _, _ = frames_of(server.predict(video=clip, audio=spoken), tmp_path)
    assert frames == FRAMES


@pytest.mark.slow
def test_the_client_on_the_page(server, tmp_path, monkeypatch):
    (block,) = [one for one in blocks() if "urllib.request" in one.text]
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/face.mp4").write_bytes(CLIP.read_bytes())
    (tmp_path / "examples/speech.wav").write_bytes(voice(VOICE_SECONDS))
    monkeypatch.chdir(tmp_path)
    eventually(lambda: server.status() == "READY")
    exec(block.text.replace("http://127.0.0.1:5000", server.url), {})  # noqa: S102 - our own text
    assert sum(1 for _ in VideoReader(tmp_path / "out.mp4").frames()) == FRAMES


@pytest.mark.parametrize(
    "name",
    ["my clip é 話す.mp4", "-i \"a'; $HOME `ls` %d %03d.mp4", "no_suffix", "[0:v]\\,;=.mov",
     "new\nline.mp4", "x" * 300 + ".mp4", ""],
)  # fmt: skip
def test_urls_with_odd_names(server, web, tmp_path, name):
    uploads = server.uploads()
    answer = server.predict(
        video=f"{web.url}/photo/{quote(name)}?token=1", audio=f"{web.url}/voice/{quote(name)}"
    )
    frames, _, _ = frames_of(answer, tmp_path)
    assert frames == FRAMES
    assert server.uploads() == uploads


def test_whole_numbers_may_come_as_floats(server):
    answer = server.predict(guidance_scale=2, inference_steps=1.0, seed=7.0)
    assert answer["status"] == "succeeded", answer["error"]
    assert answer["metrics"]["seed"] == 7


def test_seeds(server):
    first, again, other = (server.predict(seed=seed) for seed in (5, 5, 6))
    assert first["output"] == again["output"] != other["output"]
    drawn = server.predict(seed=0)
    seed = drawn["metrics"]["seed"]
    assert seed > 0
    assert re.search(rf"\bseed\W{seed}\b", drawn["logs"])
    assert server.predict(seed=seed)["output"] == drawn["output"]


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"audio": ...}, {"audio": "Field required"}),
        ({"video": ..., "audio": ...}, {"video": "Field required", "audio": "Field required"}),
        ({"inference_steps": 51}, {"inference_steps": "51 is greater than the maximum of 50"}),
        ({"inference_steps": -1}, {"inference_steps": "-1 is less than the minimum of 0"}),
        ({"inference_steps": 1.5}, {"inference_steps": '1.5 is not of type "integer"'}),
        ({"guidance_scale": 10.5}, {"guidance_scale": "10.5 is greater than the maximum of 10"}),
        ({"guidance_scale": -1}, {"guidance_scale": "-1 is less than the minimum of 0"}),
        ({"seed": -1}, {"seed": "-1 is less than the minimum of 0"}),
        ({"seed": "5"}, {"seed": '"5" is not of type "integer"'}),
        ({"seed": None}, {"seed": 'null is not of type "integer"'}),
        ({"seed": -1, "inference_steps": 99},
         {"seed": "-1 is less than the minimum of 0",
          "inference_steps": "99 is greater than the maximum of 50"}),
    ],
)  # fmt: skip
def test_what_the_schema_refuses(server, change, wrong):
    inputs = {name: value for name, value in (QUICK | change).items() if value is not ...}
    answer = server.ask("POST", "/predictions", {"input": inputs})
    assert answer.status_code == 422
    assert {entry["loc"][-1]: entry["msg"] for entry in answer.json()["detail"]} == wrong


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"audio": data_uri(b"not sound", "text/plain")},
            "MediaError: audio can't be read as media",
        ),
        ({"audio": FACE}, "MediaError: audio has no sound"),
        ({"video": data_uri(grey_picture(), "image/png")}, "NoFaceFound: no face in the 1 frames"),
        ({"video": "/nowhere/face.mp4"}, "MediaError: video does not exist"),
        ({"video": ""}, "MediaError: video is not a file"),
        ({"video": "/etc/hostname"}, "MediaError: video can't be read as media"),
        ({"seed": 2**32}, "OptionError: seed is 4294967296"),
        ({"face": "nobody"}, "OptionError: face 'nobody'; it must be largest"),
        ({"video": "data:image/png;base64,AAA"}, "Incorrect padding"),
    ],
)
def test_a_failure_says_why_in_one_line(server, change, said):
    answer = server.predict(**change)
    assert answer["status"] == "failed"
    assert re.search(said, answer["error"])
    assert "\n" not in answer["error"]
    assert not re.search(r"\btmp|latentsync-worker|--[a-z]|detector", answer["error"])
    assert server.outputs() == []
    eventually(lambda: server.status() == "READY")


def test_a_url_that_is_not_there(server, web):
    answer = server.predict(video=f"{web.url}/nothing/a.mp4")
    assert answer["status"] == "failed"
    assert "404" in answer["error"]


def test_what_failed_downloads_leave_is_swept(server):
    assert server.predict(audio="data:audio/wav;base64,AAA")["status"] == "failed"
    (folder,) = server.folder.glob("latentsync-worker-*")
    (folder / "tmpleft.mp4").write_bytes(b"the beginning of a clip")
    assert server.predict()["status"] == "succeeded"
    assert server.uploads() == []


def test_an_input_that_never_ends_is_stopped(tmp_path):
    with serving(tmp_path, LATENTSYNC_MAX_FILE=str(2**20)) as server, endless() as address:
        answer = server.predict(video=address)
        assert answer["status"] == "failed"
        assert "File too large" in answer["error"]
        assert server.predict()["status"] == "succeeded"
        assert server.uploads() == []


@pytest.mark.slow
def test_ten_predictions_leave_one_output(server):
    names, uploads = set(), server.uploads()
    for _ in range(10):
        assert server.predict()["status"] == "succeeded"
        (folder,) = server.outputs()
        (film,) = folder.iterdir()
        names.add(film.name)
    assert len(names) == 10  # an upload is stored under its basename
    assert server.uploads() == uploads


def test_async_with_a_webhook(server, web):
    body = {
        "id": "webhook",
        "input": QUICK,
        "webhook": web.url,
        "webhook_events_filter": ["start", "logs", "output", "completed"],
    }
    eventually(lambda: server.status() == "READY")
    answer = server.ask("POST", "/predictions", body, Prefer="respond-async")
    assert (answer.status_code, answer.json()["status"]) == (202, "starting")
    final = web.final("webhook")
    assert final["status"] == "succeeded"
    assert final["output"].startswith("data:video/mp4;base64,")
    assert final["metrics"]["frames"] == FRAMES
    assert "generate: 10 of 10" in final["logs"]
    assert next(p["status"] for p in web.posted if p["id"] == "webhook") == "processing"
    eventually(lambda: server.status() == "READY")


def test_a_failure_sends_its_traceback_to_the_webhook(server, web):
    body = {"id": "bad", "input": QUICK | {"audio": FACE}, "webhook": web.url}
    eventually(lambda: server.status() == "READY")
    assert server.ask("POST", "/predictions", body).json()["status"] == "failed"
    final = web.final("bad")
    assert "has no sound" in final["error"]
    assert "Traceback" in final["logs"]


def test_busy_put_again_and_cancel(server, web):
    """One long prediction under way: progress can be read, others wait, and it can be stopped."""
    uploads = server.uploads()
    with long_run(server, web, "long") as state:
        assert re.search(r"^generate: \d+ of \d+$", state["logs"], re.MULTILINE)
        assert state["status"] == "processing"
        assert server.status() == "BUSY"
        refused = server.ask("POST", "/predictions", {"input": QUICK})
        assert refused.status_code == 409
        assert "At capacity" in refused.json()["error"]
        mismatch = server.ask("PUT", "/predictions/long", {"id": "short", "input": LONG})
        assert mismatch.status_code == 422
        assert len(server.outputs()) == 1
        assert server.ask("POST", "/predictions/long/cancel").status_code == 200
        final = web.final("long")
    assert final["status"] == "canceled"
    assert final.get("output") is None
    starts = [p for p in web.posted if p["id"] == "long" and p["status"] == "processing"]
    assert len(starts) == 1  # putting it again didn't run it again
    assert server.outputs() == []
    assert server.uploads() == uploads
    assert server.predict()["status"] == "succeeded"
    assert server.ask("POST", "/predictions/long/cancel").status_code == 404


@pytest.mark.slow
def test_a_killed_worker(tmp_path, web):
    """The caller is told, and health says that the container must be started again."""
    with serving(tmp_path) as server:
        body = {"id": "killed", "input": LONG, "webhook": web.url}
        server.ask("POST", "/predictions", body, Prefer="respond-async")
        eventually(server.outputs)
        os.kill(server.worker(), signal.SIGKILL)
        final = web.final("killed")
        assert (final["status"], final["error"]) == ("failed", "Worker crashed")
        eventually(lambda: server.status() == "UNHEALTHY")
        assert server.ask("POST", "/predictions", {"input": QUICK}).status_code == 409


@pytest.mark.slow
def test_setup_names_the_missing_file_and_its_remedy(tmp_path):
    weights = tmp_path / "weights"
    environment = {
        "LATENTSYNC_MODEL": "v1.6",
        "LATENTSYNC_WEIGHTS": str(weights),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path / "hub"),
    }
    with serving(tmp_path, health="SETUP_FAILED", **environment) as server:
        missing = str(weights / "v1.6/latentsync_unet.pt")
        logs = server.health()["setup"]["logs"].splitlines()
        assert any(f"put the file at {missing}" in line for line in logs)
        refused = server.ask("POST", "/predictions", {"input": QUICK})
        assert refused.status_code == 503
