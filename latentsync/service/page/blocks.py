"""The page, by Gradio: what is chosen on the left, what becomes of it on the right.

Everything it shows comes from this process: no fonts, scripts or statistics from elsewhere.
"""

import importlib.util
import logging
import mimetypes
import os
from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from html import escape
from io import BytesIO
from pathlib import Path
from typing import Any

import gradio as gr
from anyio import to_thread
from fastapi import FastAPI
from starlette.middleware import Middleware

from latentsync.errors import (
    HOST,
    Asker,
    BackendUnavailable,
    Cancelled,
    InputError,
    LatentSyncError,
)
from latentsync.evaluation.image_quality import true_proportions
from latentsync.pipeline.lipsync import LipSync
from latentsync.service.middleware import BodyLimit
from latentsync.service.page import look
from latentsync.service.page.choices import choices_shown
from latentsync.service.page.form import options_of
from latentsync.service.page.measure import DARK, LIGHT, Curves, drawn
from latentsync.service.page.run import Desk, Given, PageRun, Shown
from latentsync.service.settings import ServiceSettings
from latentsync.types import Progress, Result

__all__ = ["mount"]

log = logging.getLogger(__name__)

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"  # of a checkout
LOOK_FOR_OLD_SECONDS, KEEP_SECONDS = 300, 3600  # of uploads and outputs
UPLOADS = "/gradio_api/upload"  # streamed to disk by Gradio, up to `max_file_size`
BUG = "Something went wrong here, and not by what you gave. The log of this page says what it was."
STAGES = {
    "wait": "Waiting",
    "load": "Loading the model",
    "read": "Listening to the voice",
    "detect": "Finding the face",
    "generate": "Drawing the mouth",
    "finish": "Writing the clip",
    "measure": "Measuring how mouth and voice go together",
}


def mount(
    app: FastAPI,
    load: Callable[[], LipSync],
    *,
    path: str = "/app",
    model: str = "",
    restoring: bool | None = None,
    max_upload_bytes: int = ServiceSettings.max_upload_bytes,
    max_seconds: float = ServiceSettings.max_seconds,
    at_host: bool = False,
) -> None:
    """Put the page onto an application.

    Args:
        load: gives the model; called once, by the first run.
        path: where, "/" for an application that has nothing else.
        model: its name, for the page.
        restoring: whether super-resolution can be chosen; default where spandrel is installed.
        max_upload_bytes: of one file.
        max_seconds: of a clip, and of a sound.
        at_host: whether visitors sit at this machine, and are told what is wrong with it.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    if restoring is None:
        restoring = importlib.util.find_spec("spandrel") is not None
    desk = Desk(load)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    gr.mount_gradio_app(
        app,
        _page(desk, model, restoring, max_seconds, at_host),
        path=path,
        root_path=path if path != "/" else None,  # else addresses of examples' files lack it
        app_kwargs={
            "lifespan": lifespan,
            # Gradio reads all other bodies whole, and before it asks whether it may.
            "middleware": [Middleware(BodyLimit, streamed=lambda at: at.endswith(UPLOADS))],
        },
        max_file_size=max_upload_bytes,
        show_error=False,  # only those that are meant for a visitor
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        theme=look.theme(),
        css=look.CSS,
    )


@dataclass(frozen=True)
class Told:
    """The components in which a run is told, and the buttons that depend on one."""

    start: gr.Button
    cancel: gr.Button
    state: gr.HTML
    mouth: gr.Image
    spoken: gr.Video
    both: gr.Button
    plot: gr.HTML

    def all(self) -> list[Any]:
        return list(vars(self).values())


News = dict[Any, Any]
"""The components that change, each with its new value."""


def _page(desk: Desk, model: str, restoring: bool, max_seconds: float, at_host: bool) -> gr.Blocks:
    with gr.Blocks(
        title="LatentSync",
        analytics_enabled=False,
        delete_cache=(LOOK_FOR_OLD_SECONDS, KEEP_SECONDS),
    ) as page:
        known = " The demo model knows drawn faces only." if model == "demo" else ""
        title = "# LatentSync\nA clip or a photo speaks the voice that you give."
        gr.Markdown(f"{title}{known}", elem_classes="intro")
        name = gr.Textbox(visible=False)  # filled in by the browser: look.BEGUN, look.ASKED
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                face, voice = _inputs()
                chosen = choices_shown(restoring)
            with gr.Column(scale=3, min_width=320):
                with gr.Row():
                    start = gr.Button("Speak", variant="primary", elem_id="start", min_width=80)
                    cancel = gr.Button("Cancel", interactive=False, elem_id="cancel", min_width=80)
                before, told = _results(start, cancel)
        face.change(_before, face, before, queue=False, api_visibility="private")
        given = [face, voice, *chosen.values()]
        visits = Visits(desk, given, tuple(chosen), told, max_seconds, at_host)
        # Nothing of Gradio's own is shown of events: a run itself says what becomes of it.
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        every: dict[str, Any] = {"concurrency_limit": None, **quiet}
        start.click(visits.begin, [name, *given], told.all(), js=look.BEGUN, **every)
        page.load(visits.restore, [name], [*given, *told.all()], js=look.ASKED, **every)
        cancel.click(visits.cancel, [name], told.all(), js=look.ASKED, queue=False, **quiet)
        told.both.click(None, js=look.PLAY_BOTH, api_visibility="private")
    page.queue(api_open=False)
    return page


def _inputs() -> tuple[gr.File, gr.Audio]:
    """What is put together, and examples of it."""
    face = gr.File(
        label="Clip or photo", file_types=["video", "image"], height=140, elem_id="given"
    )
    voice = gr.Audio(
        label="Voice",
        type="filepath",
        sources=["upload", "microphone"],
        buttons=[],
        elem_id="voice",
    )
    _examples(face, voice)
    return face, voice


def _results(start: gr.Button, cancel: gr.Button) -> tuple[list[Any], Told]:
    """What was given, as a clip or as a photo; and what becomes of it."""
    state = gr.HTML(_told("Ready", ""), elem_id="state", container=True, padding=False)
    pane: dict[str, Any] = {"interactive": False, "height": 340, "min_width": 240}
    pane["elem_classes"] = "pane"
    with gr.Row(elem_classes="results"):
        clip = gr.Video(label="Before", buttons=[], elem_id="before", **pane)
        photo = gr.Image(label="Before", visible=False, buttons=[], elem_id="photo", **pane)
        mouth = gr.Image(
            label="The face being drawn", visible=False, buttons=[], elem_id="mouth", **pane
        )
        spoken = gr.Video(label="After", buttons=["download"], elem_id="after", **pane)
    both = gr.Button("Play both", visible=False, size="sm", elem_id="both")
    plot = gr.HTML(visible=False, elem_id="plot", padding=False)
    return [clip, photo], Told(start, cancel, state, mouth, spoken, both, plot)


def _examples(face: gr.File, voice: gr.Audio) -> None:
    named = {"A drawn clip": "face.mp4", "A drawn photo": "photo.png"}
    if EXAMPLES.is_dir():
        pairs = [[str(EXAMPLES / name), str(EXAMPLES / "speech.wav")] for name in named.values()]
        gr.Examples(
            pairs, [face, voice], label="Examples", example_labels=list(named), elem_id="examples"
        )


def _before(path: str | None) -> tuple[Any, Any]:
    """What was given, in the pane that can show it; by its name, for this is only for the eye."""
    picture = bool(path) and (mimetypes.guess_type(path or "")[0] or "").startswith("image/")
    return (
        gr.update(value=None if picture else path, visible=not picture),
        gr.update(value=path if picture else None, visible=picture),
    )


@dataclass(frozen=True)
class Visits:
    """What the page's events do. A visitor's run is told by one event at a time, to its end."""

    desk: Desk
    given: list[Any]  # the components of the clip, of the voice, and of the options
    names: tuple[str, ...]  # of the options
    told: Told
    max_seconds: float
    at_host: bool

    async def begin(
        self,
        name: str,
        face: str | None,
        voice: str | None,
        *values: Any,  # noqa: ANN401 - as the components give them
    ) -> AsyncIterator[News]:
        """Begin a run of that name, and tell it."""
        try:
            if not face or not voice:
                missing = "a clip or a photo" if not face else "a voice"
                raise InputError(f"give {missing} first")
            chosen = dict(zip(self.names, values, strict=True))
            options = options_of(chosen, max_seconds=self.max_seconds)
            run = self.desk.begin(name, Given(Path(face), Path(voice), values), options)
        except LatentSyncError as error:
            yield {self.told.state: _failed(error.told(self._asker())), **self._idle()}
            return
        async for news in self._watched(run):
            yield news

    async def restore(self, name: str) -> AsyncIterator[News]:
        """Where a page is loaded anew: what was given, and the run as it goes on."""
        run = self.desk.find(name)
        if run is None:
            yield {self.told.state: gr.skip()}
            return
        paths = [str(path) if path.exists() else None for path in (run.given.face, run.given.voice)]
        yield dict(zip(self.given, (*paths, *run.given.values), strict=True))
        async for news in self._watched(run):
            yield news

    def cancel(self, name: str) -> News:
        """Give a run up; whoever tells it sees that, and says the same at last."""
        run = self.desk.find(name)
        if run is None or run.now.ended:
            return {self.told.cancel: gr.skip()}
        run.cancel()
        if run.now.result is not None:  # only its curves are missing
            return {self.told.cancel: gr.update(interactive=False)}
        return {self.told.state: CANCELLED, **self._idle()}

    async def _watched(self, run: PageRun) -> AsyncIterator[News]:
        yield self._begun()
        last = Shown(Progress("wait", 0, None))
        async for now in run.watched():
            if now.ended:
                yield await self._ended(run, last, now)
            else:  # also where there is no news: Gradio sees only then whether anybody listens
                yield self._news(last, now)
            last = now

    def _begun(self) -> News:
        return {
            self.told.state: _told(STAGES["wait"], ""),
            self.told.start: gr.update(interactive=False),
            self.told.cancel: gr.update(interactive=True),
            self.told.mouth: gr.update(visible=False),
            self.told.spoken: gr.update(value=None, visible=True),
            self.told.both: gr.update(visible=False),
            self.told.plot: gr.update(value="", visible=False),
        }

    def _news(self, last: Shown, now: Shown) -> News:
        """What `now` changes while the run goes on."""
        at, told = now.progress, self.told
        news: News = {told.state: _told(STAGES.get(at.stage, at.stage), "", at.done, at.total)}
        if at.stage == "wait":
            runs = f"{at.done} run{'' if at.done == 1 else 's'} before this one"
            news[told.state] = _told(STAGES["wait"], runs if at.done else "")
        if now.face is not None and now.face is not last.face and now.result is None:
            news[told.mouth] = gr.update(value=true_proportions(now.face), visible=True)
            news[told.spoken] = gr.update(visible=False)
        if now.result is not None and last.result is None:
            news[told.mouth] = gr.update(visible=False)
            news[told.spoken] = gr.update(value=str(now.result.path), visible=True)
            news[told.both] = gr.update(visible=True)
        return news

    async def _ended(self, run: PageRun, last: Shown, now: Shown) -> News:
        asker = self._asker(run)
        if isinstance(now.error, Cancelled):
            return {self.told.state: CANCELLED, **self._idle()}
        if isinstance(now.error, LatentSyncError):
            if not isinstance(now.error, InputError):
                log.warning("a run of the page failed: %s", now.error)
            return {self.told.state: _failed(now.error.told(asker)), **self._idle()}
        if now.error or now.result is None:
            log.error("a run of the page failed", exc_info=now.error)
            return {self.told.state: _failed(BUG), **self._idle()}
        unmeasured = now.unmeasured.told(asker) if now.unmeasured else ""
        news = self._idle() | self._news(last, now)
        news[self.told.state] = _told("Done", _summary(now.result, unmeasured))
        if now.curves:
            shown = await to_thread.run_sync(_pictures, now.curves)
            news[self.told.plot] = gr.update(value=shown, visible=bool(shown))
        return news

    def _idle(self) -> News:
        """Nothing runs, and no face is being drawn."""
        return {
            self.told.start: gr.update(interactive=True),
            self.told.cancel: gr.update(interactive=False),
            self.told.mouth: gr.update(visible=False),
            self.told.spoken: gr.update(visible=True),
        }

    def _asker(self, run: PageRun | None = None) -> Asker:
        """What a visitor calls things: as the page does."""
        face, voice, *chosen = (component.label for component in self.given)
        labels = dict(zip(self.names, chosen, strict=True)) | ({HOST: ""} if self.at_host else {})
        paths = {}
        if run:
            given = run.given
            paths = {
                str(given.face): f"{face} ({given.face.name})",
                str(given.voice): f"{voice} ({given.voice.name})",
                str(run.output): "the output",
            }
        return Asker(labels.get, paths, at_host=self.at_host)


def _pictures(curves: Curves) -> str:
    """HTML of the curves, for light and for dark; nothing where there is nothing to draw with."""
    shown = []
    try:
        for name, colours in (("light", LIGHT), ("dark", DARK)):
            file = BytesIO()
            drawn(curves, colours).savefig(file, format="svg")
            address = f"data:image/svg+xml;base64,{b64encode(file.getvalue()).decode()}"
            shown.append(f'<img class="in-{name}" alt="Curves of mouth and voice" src="{address}">')
    except BackendUnavailable as error:
        log.warning("%s", error)
    return "".join(shown)


def _summary(result: Result, unmeasured: str) -> str:
    untouched = sum(stop - start for start, stop, _ in result.passed_through)
    parts = [f"{result.seconds:.1f} s in {result.timings['total']:.0f} s", f"seed {result.seed}"]
    if untouched:
        parts.append(f"{untouched} of {result.frames} frames untouched")
    if unmeasured:
        parts.append(f"no plot: {unmeasured}")
    return ", ".join(parts)


def _told(what: str, more: str, done: int = 0, total: int | None = None) -> str:
    """HTML of one line, with a bar where it is known how long it takes."""
    count = f"{done} of {total} frames" if total and total > 1 else more
    bar = f'<progress value="{done}" max="{total}"></progress>' if total else ""
    return f'<p role="status"><b>{escape(what)}</b><span>{escape(count)}</span></p>{bar}'


def _failed(line: str) -> str:
    return f'<p role="alert" class="failed">{escape(line[:1].upper() + line[1:])}</p>'


CANCELLED = _told("Cancelled", "nothing was kept")
