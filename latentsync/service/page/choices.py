"""Components of the page that choose the options of a run, by the names of the fields."""

from typing import Any

import gradio as gr

from latentsync.options import Options, declared
from latentsync.service.page.form import labelled

__all__ = ["choices_shown"]


def choices_shown(restoring: bool) -> dict[str, Any]:
    """Make the components, on the page from here on; `restoring` adds those of super-resolution."""
    seeds = declared(Options)["seed"]
    assert seeds.within is not None
    shown: dict[str, Any] = {
        "speed": _radio("speed", "Quality", "Fewer steps are faster and less exact."),
        "guidance_scale": _slider(
            "guidance_scale", 0.1, "How strongly the voice moves the lips",
            "Up to 1: as the model has learnt it. 1.5 to 2.5: stronger, at twice the time.",
        ),
        "seed": gr.Number(
            seeds.default, label="Start of the noise (seed)", precision=0,
            minimum=seeds.within[0], maximum=seeds.within[1],
            info="The same number draws the same mouth again. 0: a new one each time.",
        ),
    }  # fmt: skip
    with gr.Accordion("More options", open=False):
        shown |= _more()
    if restoring:
        with gr.Accordion("Super-resolution", open=False):
            shown |= _restoring()
    for name, component in shown.items():
        component.elem_id = name
    return shown


def _more() -> dict[str, Any]:
    return {
        "face": gr.Dropdown(
            labelled("face"), value=Options.face, label="Whose mouth", allow_custom_value=True,
            info="Or type where the face is: x,y in pixels, and @seconds for a later time.",
        ),
        "sync_mode": gr.Dropdown(
            labelled("sync_mode"), value=Options.sync_mode, label="Where the voice is longer",
            info="What is shown after the clip's end. Photos stay as they are.",
        ),
        "fps": _radio("fps", "Pictures a second"),
        "audio_track": gr.Textbox(
            str(Options.audio_track), label="Sound track of the voice",
            info="Where it has several: auto, its number from 1, or a language such as eng.",
        ),
        "on_missing": _radio("on_missing", "Pictures without the face"),
        "silence": _radio("silence", "The mouth while nobody speaks"),
        "color_match": gr.Checkbox(
            Options.color_match, label="Match the colours of the mouth to the face around it"
        ),
        "steps": _slider(
            "steps", 1, "Steps of drawing",
            "More take longer. 0: as many as the quality above takes.",
            minimum=0, value=0,
        ),
        "crf": _slider(
            "crf", 1, "Compression of the video file (CRF)",
            "0: no loss, a very large file. 17: no loss that can be seen. 30: a small file.",
        ),
    }  # fmt: skip


def _restoring() -> dict[str, Any]:
    return {
        "superres": _radio(
            "superres", "Sharpen the face",
            "By a net that restores faces, after the mouth is drawn.",
        ),
        "sr_ratio": _slider(
            "sr_ratio", 0.5, "How much finer", "Times the resolution of the drawn face."
        ),
        "mask_smooth": _slider(
            "mask_smooth", 0.05, "Softness of the rim",
            "0: sharp. 1: fades over far into the face.",
        ),
        "sr_weight": _slider(
            "sr_weight", 0.05, "Likeness to the clip (CodeFormer)",
            "0: cleanest. 1: nearest to the clip.",
        ),
        "sr_stability": _slider(
            "sr_stability", 0.05, "Stability over time",
            "0: each picture by itself. 1: least flicker.",
        ),
    }  # fmt: skip


def _radio(name: str, label: str, info: str | None = None) -> gr.Radio:
    return gr.Radio(labelled(name), value=declared(Options)[name].default, label=label, info=info)


def _slider(
    name: str,
    step: float,
    label: str,
    info: str,
    **changes: float,
) -> gr.Slider:
    """Make a slider over the option's range; `changes` override its bounds and value."""
    option = declared(Options)[name]
    assert option.within is not None
    low, high = option.within
    given = {"minimum": low, "maximum": high, "value": option.default} | changes
    return gr.Slider(**given, step=step, label=label, info=info)
