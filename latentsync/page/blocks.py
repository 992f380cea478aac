"""The page, by Gradio: what is chosen on the left, what becomes of it on the right.

Everything it shows comes from this process: no fonts, scripts or statistics from elsewhere.
"""

import importlib.util
import logging
import mimetypes
import os
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np
from fastapi import FastAPI
from starlette.middleware import Middleware

from latentsync import align
from latentsync import options as ranges
from latentsync.bodies import BoundedBody
from latentsync.errors import Cancelled, InputError, LatentSyncError
from latentsync.faces.choice import WORDS
from latentsync.options import Options
from latentsync.page.form import choices, options_of
from latentsync.page.measure import drawn
from latentsync.page.run import Desk, Shown, speak
from latentsync.pipeline import LipSync
from latentsync.types import Frame, Progress, Result

__all__ = ["mount"]

log = logging.getLogger(__name__)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"  # of a checkout
LOOK_FOR_OLD_SECONDS, KEEP_SECONDS = 300, 3600  # of uploads and outputs
UPLOADS = "/gradio_api/upload"  # streamed to disk by Gradio, up to `max_file_size`
MAX_WAITING = 32  # visitors
BUG = "Something went wrong here, and not by what you gave. The log of this page says what it was."
STAGES = {
    "wait": "Waiting for the run before",
    "load": "Loading the model",
    "read": "Listening to the voice",
    "detect": "Finding the face",
    "generate": "Drawing the mouth",
    "finish": "Writing the clip",
    "measure": "Measuring how mouth and voice go together",
}
PLAY_BOTH = """() => {
  const videos = [...document.querySelectorAll(".pane video")].filter(video => video.currentSrc);
  videos.forEach((video, i) => {
    video.currentTime = 0; video.muted = i < videos.length - 1; video.play();
  });
}"""
CSS = """
.gradio-container { width: 100%; max-width: 1180px !important; margin: 0 auto !important }
.intro p { margin: 0; color: var(--body-text-color-subdued) }
.pane video, .pane img { object-fit: contain }
#voice button .wrap { min-height: 8em }
#state { min-height: 4.3em; padding: .8em 1em }
#state p { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1em; margin: 0 }
#state span { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums }
#state progress { appearance: none; display: block; width: 100%; height: .5em; margin-top: .5em;
  border: 0; border-radius: 1em; overflow: hidden; background: var(--border-color-primary) }
#state progress::-webkit-progress-bar { background: var(--border-color-primary) }
#state progress::-webkit-progress-value { background: var(--color-accent) }
#state progress::-moz-progress-bar { background: var(--color-accent) }
#state .failed { color: #b3261e; font-weight: 600; overflow-wrap: anywhere }
.dark #state .failed { color: #ff8a80 }
"""


def mount(
    app: FastAPI,
    load: Callable[[], LipSync],
    *,
    path: str = "/app",
    model: str = "",
    restoring: bool | None = None,
    max_upload_bytes: int = 2 * 2**30,
    max_seconds: float = 1800.0,
) -> None:
    """Put the page onto an application.

    Args:
        load: gives the model; called once, by the first run.
        path: where, "/" for an application that has nothing else.
        model: its name, for the page.
        restoring: whether super-resolution can be chosen; default where spandrel is installed.
        max_upload_bytes: of one file.
        max_seconds: of a clip, and of a sound.
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
        _page(desk, model, restoring, max_seconds),
        path=path,
        root_path=path if path != "/" else None,  # else addresses of examples' files lack it
        app_kwargs={
            "lifespan": lifespan,
            # Gradio reads all other bodies whole, and before it asks whether it may.
            "middleware": [Middleware(BoundedBody, streamed=lambda at: at.endswith(UPLOADS))],
        },
        max_file_size=max_upload_bytes,
        show_error=False,  # only those that are meant for a visitor
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        css=CSS,
    )


@dataclass(frozen=True)
class Told:
    """The components in which a run is told."""

    state: gr.HTML
    mouth: gr.Image
    spoken: gr.Video
    both: gr.Button
    plot: gr.Plot

    def all(self) -> list[Any]:
        return [self.state, self.mouth, self.spoken, self.both, self.plot]


def _page(desk: Desk, model: str, restoring: bool, max_seconds: float) -> gr.Blocks:
    with gr.Blocks(
        title="LatentSync",
        analytics_enabled=False,
        delete_cache=(LOOK_FOR_OLD_SECONDS, KEEP_SECONDS),
    ) as page:
        gr.Markdown(_introduction(model), elem_classes="intro")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                face, voice = _inputs()
                chosen = _choices_shown(restoring)
            with gr.Column(scale=3, min_width=320):
                with gr.Row():
                    start = gr.Button("Speak", variant="primary", elem_id="start", min_width=80)
                    cancel = gr.Button("Cancel", elem_id="cancel", min_width=80)
                before, told = _results()
        face.change(_before, face, before, queue=False, api_visibility="private")
        running = start.click(
            partial(_run, desk, tuple(chosen), max_seconds, told),
            [face, voice, *chosen.values()],
            told.all(),
            concurrency_limit=1,
            show_progress="full",
            show_progress_on=told.state,
            api_visibility="private",
        )
        cancel.click(
            lambda: {told.state: _told("Cancelled", "nothing was kept"), **_ended(told)},
            None,
            told.all(),
            cancels=running,
            queue=False,
            api_visibility="private",
        )
        told.both.click(None, js=PLAY_BOTH, api_visibility="private")
    page.queue(max_size=MAX_WAITING, api_open=False)
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


def _results() -> tuple[list[Any], Told]:
    """What was given, as a clip or as a photo; and what becomes of it."""
    state = gr.HTML(_told("Ready", ""), elem_id="state", container=True, padding=False)
    pane: dict[str, Any] = {"interactive": False, "height": 340, "min_width": 240}
    pane["elem_classes"] = "pane"
    with gr.Row():
        clip = gr.Video(label="Before", buttons=[], elem_id="before", **pane)
        photo = gr.Image(label="Before", visible=False, buttons=[], elem_id="photo", **pane)
        mouth = gr.Image(
            label="The face being drawn", visible=False, buttons=[], elem_id="mouth", **pane
        )
        spoken = gr.Video(label="After", buttons=["download"], elem_id="after", **pane)
    both = gr.Button("Play both", visible=False, size="sm", elem_id="both")
    plot = gr.Plot(show_label=False, visible=False, elem_id="plot")
    return [clip, photo], Told(state, mouth, spoken, both, plot)


def _introduction(model: str) -> str:
    known = " The demo model knows drawn faces only." if model == "demo" else ""
    return f"# LatentSync\nA clip or a photo speaks the voice that you give.{known}"


def _examples(face: gr.File, voice: gr.Audio) -> None:
    named = {"A drawn clip": "face.mp4", "A drawn photo": "photo.png"}
    if EXAMPLES.is_dir():
        pairs = [[str(EXAMPLES / name), str(EXAMPLES / "speech.wav")] for name in named.values()]
        gr.Examples(
            pairs, [face, voice], label="Examples", example_labels=list(named), elem_id="examples"
        )


def _choices_shown(restoring: bool) -> dict[str, Any]:
    """The components, by the names of the fields of Options."""
    usual = Options()
    shown: dict[str, Any] = {
        "guidance_scale": gr.Slider(
            0, ranges.MAX_GUIDANCE, usual.guidance_scale, step=0.1, label="Guidance",
            info="Above 1 the voice counts for more, at twice the time.",
        ),
    }  # fmt: skip
    shown |= {
        "speed": gr.Radio(choices("speed"), value=usual.speed, label="Speed"),
        "seed": gr.Number(
            usual.seed, label="Seed", precision=0, minimum=0, maximum=ranges.MAX_SEED,
            info="Equal seeds draw equal mouths; 0 draws a seed.",
        ),
    }  # fmt: skip
    with gr.Accordion("More options", open=False):
        shown |= {
            "steps": gr.Slider(
                0, ranges.MAX_STEPS, 0, step=1, label="Steps", info="0: as many as the speed takes."
            ),
            "sync_mode": gr.Dropdown(
                choices("sync_mode"), value=usual.sync_mode, label="Where the voice is longer"
            ),
            "fps": gr.Radio(choices("fps"), value=usual.fps, label="Frames a second"),
            "face": gr.Dropdown(
                list(WORDS), value=usual.face, label="Whose mouth", allow_custom_value=True,
                info="Or a point x,y in px, with @seconds for a later time.",
            ),
            "on_missing": gr.Radio(
                choices("on_missing"), value=usual.on_missing, label="Frames without the face"
            ),
            "silence": gr.Radio(
                choices("silence"), value=usual.silence, label="While nobody speaks"
            ),
            "color_match": gr.Checkbox(usual.color_match, label="Match colours of mouth and face"),
            "crf": gr.Slider(
                0, ranges.MAX_CRF, usual.crf, step=1, label="CRF", info="Lower: better, larger."
            ),
        }  # fmt: skip
    if restoring:
        with gr.Accordion("Super-resolution", open=False):
            shown |= _restoring(usual)
    for name, component in shown.items():
        component.elem_id = name
    return shown


def _restoring(usual: Options) -> dict[str, Any]:
    def share(name: str, label: str) -> gr.Slider:
        return gr.Slider(0, 1, getattr(usual, name), step=0.05, label=label)

    return {
        "superres": gr.Radio(
            ["none", *ranges.RESTORERS], value=usual.superres, label="Restore the face",
            info="CodeFormer is not for commercial use.",
        ),
        "sr_ratio": gr.Slider(
            *ranges.RATIOS, usual.sr_ratio, step=0.5, label="Times the model's resolution"
        ),
        "mask_smooth": share("mask_smooth", "Softness of its rim"),
        "sr_weight": share("sr_weight", "CodeFormer's fidelity"),
        "sr_stability": share("sr_stability", "Stability over time"),
    }  # fmt: skip


def _before(path: str | None) -> tuple[Any, Any]:
    """What was given, in the pane that can show it; by its name, for this is only for the eye."""
    picture = bool(path) and (mimetypes.guess_type(path or "")[0] or "").startswith("image/")
    return (
        gr.update(value=None if picture else path, visible=not picture),
        gr.update(value=path if picture else None, visible=picture),
    )


def _run(
    desk: Desk,
    names: tuple[str, ...],
    max_seconds: float,
    told: Told,
    face: str | None,
    voice: str | None,
    *values: Any,  # noqa: ANN401 - as the components give them
) -> Generator[dict[Any, Any], None, None]:
    """A visitor's run: for each moment the components that change."""
    yield {
        told.state: _told(STAGES["wait"], ""),
        told.mouth: gr.update(visible=False),
        told.spoken: gr.update(value=None, visible=True),
        told.both: gr.update(visible=False),
        told.plot: gr.update(value=None, visible=False),
    }
    try:
        if not face or not voice:
            missing = "a clip or a photo" if not face else "a voice"
            raise InputError(f"give {missing} first")
        options = options_of(dict(zip(names, values, strict=True)), max_seconds=max_seconds)
        last = Shown(Progress("wait", 0, None))
        with closing(speak(desk, Path(face), Path(voice), options)) as steps:
            for now in steps:
                yield _news(last, now, told)
                last = now
    except Cancelled:
        yield {told.state: _told("Cancelled", "nothing was kept"), **_ended(told)}
    except LatentSyncError as error:
        yield {told.state: _failed(_without_folders(str(error), face, voice)), **_ended(told)}
    except Exception:
        log.exception("a run of the page failed")
        yield {told.state: _failed(BUG), **_ended(told)}


def _ended(told: Told) -> dict[Any, Any]:
    """No face is being drawn any more."""
    return {told.mouth: gr.update(visible=False), told.spoken: gr.update(visible=True)}


def _news(last: Shown, now: Shown, told: Told) -> dict[Any, Any]:
    """The components that `now` changes."""
    at = now.progress
    state = _told(STAGES.get(at.stage, at.stage), "", at.done, at.total)
    if now.result is not None and (now.curves or now.unmeasured):
        state = _told("Done", _summary(now.result, now.unmeasured))
    news: dict[Any, Any] = {told.state: state}
    if now.face is not None and now.face is not last.face and now.result is None:
        news[told.mouth] = gr.update(value=_upright(now.face), visible=True)
        news[told.spoken] = gr.update(visible=False)
    if now.result is not None and last.result is None:
        news[told.mouth] = gr.update(visible=False)
        news[told.spoken] = gr.update(value=str(now.result.path), visible=True)
        news[told.both] = gr.update(visible=True)
    if now.curves and not last.curves:
        news[told.plot] = gr.update(value=drawn(now.curves), visible=True)
    return news


def _upright(crop: Frame) -> Frame:
    """A crop in the face's own proportions."""
    size = (round(crop.shape[0] * align.BOX_WIDTH / align.BOX_HEIGHT), crop.shape[0])
    return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_AREA), np.uint8)


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


def _without_folders(line: str, *paths: str | None) -> str:
    """The line with names in place of paths: where uploads lie is nobody's business."""
    for path in filter(None, paths):
        line = line.replace(f"{Path(path).parent}{os.sep}", "")
    return line
