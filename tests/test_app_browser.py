"""The web page in a browser: upload, run, see the result play, see errors, wait, cancel, leave.

Needs Chromium; without it these tests are skipped.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np
import pytest

from latentsync.evaluation.clips import Pair, PairedFiles
from latentsync.evaluation.metric import Figure
from latentsync.evaluation.report import as_html
from latentsync.evaluation.runner import METRICS, ClipResult, Evaluation, Mean
from latentsync.pipeline.lipsync import LipSync
from latentsync.service.page import run
from latentsync.service.page.measure import Curves
from tests.clips import babble, picture, write_clip, write_picture, write_sound
from tests.page_stub import StubLipSync

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    # Gradio's own sums of how long events took, by a pandas newer than it.
    pytest.mark.filterwarnings("ignore:The copy keyword is deprecated"),
    pytest.mark.filterwarnings("ignore:'future.no_silent_downcasting' is deprecated"),
    pytest.mark.filterwarnings(  # a visitor's connections, closed by the server's loop
        r"ignore:Exception ignored in. <socket.socket \[closed\]"
        ":pytest.PytestUnraisableExceptionWarning"
    ),
    pytest.mark.skipif(not CHROMIUM, reason="no chromium to show the page in"),
]

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDE, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 40_000  # ms; a shared machine may be slow, and nothing waits for nothing
PLAYED = """async () => {
  const video = document.querySelector("#after video");
  video.muted = true;
  await video.play();
  await new Promise(done => { video.ontimeupdate = () => video.currentTime > 0.1 && done(); });
  return {width: video.videoWidth, height: video.videoHeight, seconds: video.duration};
}"""


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def stub(tmp_path_factory):
    clip = write_clip(tmp_path_factory.mktemp("stub") / "spoken.mp4", 16)
    return StubLipSync(clip.read_bytes())


@pytest.fixture(scope="module")
def address(stub, tmp_path_factory):
    """Of a server in this process: the demo model's page at /demo/, the stub's at /stub/."""
    uvicorn = pytest.importorskip("uvicorn")
    fastapi = pytest.importorskip("fastapi")
    pytest.importorskip("gradio")
    from latentsync.service.page.blocks import mount

    app = fastapi.FastAPI()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        patch.setattr(run, "measure", _measured_unless_stub)
        mount(app, lambda: LipSync.load("demo", device="cpu"), path="/demo", model="demo")
        mount(app, lambda: stub, path="/stub", restoring=True, max_upload_bytes=2**20)
        patch.setattr(run, "UNWATCHED_SECONDS", 5.0)
        server = uvicorn.Server(
            uvicorn.Config(app, port=0, log_level="warning", ws="none", timeout_graceful_shutdown=1)
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.05)
        yield "http://127.0.0.1:{1}".format(*server.servers[0].sockets[0].getsockname()[:2])
        server.should_exit = True
        thread.join()


def _measured_unless_stub(lipsync, *rest, real=run.measure):
    if isinstance(lipsync, StubLipSync):
        return Curves({}, {"motion": np.arange(16.0), "loudness": np.arange(16.0)})
    return real(lipsync, *rest)


@pytest.fixture
def opened(browser, address):
    """Opens pages; at the end nothing of them came from elsewhere, and no script has failed."""
    pages, requested, failed = [], [], []

    def opened(path, viewport=WIDE):
        page = browser.new_page(viewport=viewport)
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: requested.append(request.url))
        page.on("pageerror", lambda error: failed.append(str(error)))
        page.on("response", lambda answer: answer.status < 400 or failed.append(answer.url))
        page.goto(address + path)
        page.wait_for_selector("#start")
        pages.append(page)
        return page

    yield opened
    for page in pages:
        page.close()
    hosts = {urlsplit(url).netloc for url in requested if urlsplit(url).scheme in ("http", "https")}
    assert hosts == {urlsplit(address).netloc}
    assert not failed


@pytest.fixture
def files(tmp_path):
    def named(name):
        path = tmp_path / name
        if path.suffix == ".wav":
            return write_sound(path, babble(0.64))
        if path.suffix == ".png":
            return write_picture(path, picture(3))
        return write_clip(path, 16)

    return named


def give(page, face, voice):
    for field, path in (("#given", face), ("#voice", voice)):
        page.set_input_files(f"{field} input[type=file]", str(path))
    page.wait_for_selector(f"#given :text('{Path(face).stem}')")
    page.wait_for_selector("#voice #waveform", state="attached")


def state(page, text):
    page.wait_for_selector(f"#state :text('{text}')")


def test_a_clip_is_made_to_speak(opened, tmp_path):
    voice = write_sound(tmp_path / "voice.wav", babble(0.64))
    page = opened("/demo/")
    give(page, EXAMPLES / "face.mp4", voice)
    page.wait_for_selector("#before video")
    page.click("label:has-text('first look')")
    page.click("#start")
    state(page, "Done")
    assert page.evaluate(PLAYED) == {"width": 512, "height": 512, "seconds": pytest.approx(0.64)}
    page.wait_for_selector("#plot img.in-light")
    assert page.locator("#plot img.in-dark").is_hidden()
    page.click("#both")
    page.wait_for_function("() => !document.querySelector('#before video').paused")


@pytest.mark.parametrize("example", ["A drawn clip", "A drawn photo"])
def test_examples_fill_the_page(opened, example):
    page = opened("/stub/")
    page.click(f"text={example}")
    page.wait_for_selector("#voice #waveform", state="attached")
    page.wait_for_selector("#before video" if "clip" in example else "#photo img")
    page.click("#start")
    state(page, "Done")


def test_errors_are_one_line_for_the_visitor(opened, files):
    page = opened("/stub/")
    page.click("#start")
    state(page, "Give a clip or a photo first")
    give(page, files("broken.mp4"), files("voice.wav"))
    page.click("#start")
    state(page, "Clip or photo (broken.mp4) is <b>not</b> media")
    page.wait_for_selector("#after", state="visible")
    give_again(page, files("bug.mp4"))
    page.click("#start")
    state(page, "Something went wrong here")
    assert "secret" not in page.content()


def test_what_is_no_clip_is_said_in_one_line(opened, tmp_path):
    page = opened("/demo/")
    text = tmp_path / "text.mp4"
    text.write_text("no clip\n" * 100)
    give(page, text, write_sound(tmp_path / "voice.wav", babble(0.64)))
    page.click("#start")
    page.wait_for_selector("#state [role=alert]")
    said = page.inner_text("#state")
    assert "Clip or photo (text.mp4) can't be read as media" in said
    assert "/" not in said.replace("mp4/", "")


def give_again(page, face):
    page.click("#given [aria-label='Clear']")
    page.set_input_files("#given input[type=file]", str(face))
    page.wait_for_selector(f"#given :text('{face.stem}')")


def test_one_waits_for_the_other_and_sees_it(opened, files, stub):
    stub.released.clear()
    stub.ended.clear()
    voice = files("voice.wav")
    first, second, third = (opened("/stub/") for _ in range(3))
    for page, name in ((first, "slow.mp4"), (second, "ann.mp4"), (third, "ben.mp4")):
        give(page, files(name), voice)
    first.click("#start")
    first.wait_for_selector("#mouth img")
    second.click("#start")
    state(second, "1 run before this one")
    third.click("#start")
    state(third, "2 runs before this one")
    third.click("#cancel")
    state(third, "Cancelled")
    assert not stub.ended
    stub.released.set()
    for page in (first, second):
        state(page, "Done")
    assert stub.ended == ["done", "done"]


def test_a_run_is_cancelled_and_nothing_is_left(opened, files, stub, tmp_path, monkeypatch):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    stub.released.clear()
    stub.ended.clear()
    page = opened("/stub/")
    give(page, files("slow.mp4"), files("voice.wav"))
    page.click("#start")
    page.wait_for_selector("#mouth img")
    page.click("#cancel")
    state(page, "Cancelled")
    page.wait_for_selector("#mouth", state="hidden")
    eventually(lambda: stub.ended == ["cancelled"])
    eventually(lambda: not any(temporary.glob("latentsync-*")))
    assert page.is_disabled("#cancel")
    page.wait_for_timeout(1000)  # for whatever would come after it
    state(page, "Cancelled")
    assert page.locator(".error").count() == 0
    page.click("#start")  # and the page can be used again
    page.wait_for_selector("#mouth img")
    page.close()  # who leaves for good gives the run up as well
    eventually(lambda: stub.ended == ["cancelled", "cancelled"])


def test_a_page_that_is_loaded_anew_goes_on(opened, files, stub):
    stub.released.clear()
    page = opened("/stub/")
    assert page.is_disabled("#cancel")
    give(page, files("slow.mp4"), files("voice.wav"))
    page.fill("#seed input", "77")
    page.click("#start")
    page.wait_for_selector("#mouth img")
    assert page.is_disabled("#start")
    page.reload()
    page.wait_for_selector("#mouth img")
    page.wait_for_selector("#given :text('slow')")
    page.wait_for_selector("#voice #waveform", state="attached")
    assert page.input_value("#seed input") == "77"
    assert page.is_enabled("#cancel")
    stub.released.set()
    state(page, "Done")
    assert page.is_enabled("#start")
    assert page.is_disabled("#cancel")
    page.reload()
    state(page, "Done")
    page.wait_for_selector("#after video")


def test_on_a_phone_the_result_is_in_view(opened, files):
    page = opened("/stub/", PHONE)
    give(page, files("ann.mp4"), files("voice.wav"))
    page.click("#start")
    state(page, "Done")
    page.wait_for_selector("#after video")
    for what in ("#state", "#after"):
        box = page.locator(what).bounding_box()
        assert box["y"] >= 0
        assert box["y"] + box["height"] <= PHONE["height"]


# The texts that can be seen and whose contrast with their ground is under what WCAG 2.2 wants of
# them (1.4.3: 4.5, or 3 where they are large; controls that are disabled are exempt).
PALE = """() => {
  const parts = colour => {
    const context = Object.assign(document.createElement("canvas"), {width: 1, height: 1})
      .getContext("2d", {willReadFrequently: true});
    context.fillStyle = colour;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = rgb => rgb.map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    const own = parts(getComputedStyle(element).backgroundColor);
    if (own[3] === 1) return own.slice(0, 3);
    return over(own, element.parentElement ? ground(element.parentElement) : [255, 255, 255]);
  };
  const pale = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, style = getComputedStyle(element);
    const text = texts.currentNode.textContent.trim();
    if (!text || !element.checkVisibility({opacityProperty: true, visibilityProperty: true}))
      continue;
    if (element.closest(":disabled") || ["SCRIPT", "STYLE"].includes(element.tagName)) continue;
    const below = ground(element), [a, b] = [light(over(parts(style.color), below)), light(below)];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const size = parseFloat(style.fontSize), bold = parseInt(style.fontWeight) >= 700;
    if (contrast < (size >= 24 || bold && size >= 18.66 ? 3 : 4.5))
      pale.push(`${text.slice(0, 40)}: ${contrast.toFixed(2)}`);
  }
  return pale;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(opened, files, scheme):
    page = opened(f"/stub/?__theme={scheme}")
    for folded in ("More options", "Super-resolution"):
        page.click(f"text={folded}")
    page.wait_for_selector("#sr_stability")
    assert page.evaluate(PALE) == []
    give(page, files("ann.mp4"), files("voice.wav"))
    page.click("#start")
    state(page, "Done")
    page.wait_for_selector(f"#plot img.in-{scheme}")
    assert page.locator("#plot img").filter(visible=True).count() == 1
    assert page.evaluate(PALE) == []
    page.evaluate("document.querySelector('#state b').style.color = '#999'")
    (pale,) = [one for one in page.evaluate(PALE) if one.startswith("Done")] or [None]
    assert bool(pale) == (scheme == "light")


def eventually(what):
    end = time.monotonic() + PATIENCE / 1000
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_it_fits(opened, viewport):
    page = opened("/stub/", viewport)
    for folded in ("More options", "Super-resolution"):
        page.click(f"text={folded}")
    for name in ("sync_mode", "on_missing", "silence", "superres", "mask_smooth"):
        page.wait_for_selector(f"#{name}")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_without_super_resolution_it_is_not_shown(opened):
    page = opened("/demo/")
    page.click("text=More options")
    page.wait_for_selector("#silence")
    assert page.locator("text=Super-resolution").count() == 0


@pytest.mark.parametrize("path", ["/etc/passwd", str(ROOT / "pyproject.toml"), "pyproject.toml"])
def test_files_of_the_machine_are_not_served(address, path):
    with pytest.raises(HTTPError) as error:
        urlopen(f"{address}/stub/gradio_api/file={path}")  # noqa: S310 - an http address of ours
    assert error.value.code in (403, 404)


def test_uploads_have_a_limit(opened, tmp_path):
    page = opened("/stub/")
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(2**20 + 1))
    page.set_input_files("#given input[type=file]", str(large))
    page.wait_for_selector("text=/maximum|exceed|large|size/i")
    assert page.locator("#before video").count() == 0


def test_the_command_tidies_up(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "latentsync", "app", "--model", "demo", "--port", str(port)]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == f"http://127.0.0.1:{port}\n".encode()
        eventually(lambda: _answers(port))
        assert re.fullmatch("latentsync-app-.*", next(tmp_path.iterdir()).name)
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert not any(tmp_path.iterdir())


def _answers(port):
    try:
        return urlopen(f"http://127.0.0.1:{port}/").status == 200
    except OSError:
        return False


def test_a_wide_table_of_the_evaluation_uses_the_window(browser, tmp_path):
    """Side by side with others at 1300 px nothing of it is cut; on a phone it can be moved."""
    names = [
        one.name for metric in METRICS.values() for one in metric.figures if not metric.whole_set
    ]
    pair = Pair("clip.mp4", tmp_path, None)
    found = Evaluation(
        figures=tuple(Figure(name, "dB", "higher", "how near it is") for name in names),
        clips=(ClipResult(pair, 100, dict.fromkeys(names, 1.23456)),),
        means={name: Mean(1.23456, 1.0, 2.0, 1) for name in names},
        missing={},
        pairs=PairedFiles((pair,)),
        detector="builtin",
    )
    (tmp_path / "report.html").write_text(as_html(found))
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.goto(f"file://{tmp_path}/report.html")
    boxes = page.locator(".wide")
    for box in (boxes.nth(n) for n in range(boxes.count())):
        assert box.evaluate("e => e.scrollWidth - e.clientWidth") <= 0
        assert box.evaluate("e => e.getBoundingClientRect().left") >= 0
        assert box.evaluate("e => e.getBoundingClientRect().right - window.innerWidth") <= 0
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") <= 0
    page.close()
