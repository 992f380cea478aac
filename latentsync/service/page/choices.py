"""The components by which a run is chosen, by the names of the fields of Options."""

from typing import Any

import gradio as gr

from latentsync import options
from latentsync.options import Options
from latentsync.service.page.form import labelled

__all__ = ["choices_shown"]


def choices_shown(restoring: bool) -> dict[str, Any]:
    """The components, on the page from here on; with `restoring` those of super-resolution too."""
    usual = Options()
    shown: dict[str, Any] = {
        "speed": gr.Radio(
            labelled("speed"), value=usual.speed, label="Quality",
            info="Fewer steps are faster and less exact.",
        ),
        "guidance_scale": gr.Slider(
            0, options.MAX_GUIDANCE, usual.guidance_scale, step=0.1,
            label="How strongly the voice moves the lips",
            info="Up to 1: as the model has learnt it. 1.5 to 2.5: stronger, at twice the time.",
        ),
        "seed": gr.Number(
            usual.seed, label="Start of the noise (seed)", precision=0, minimum=0,
            maximum=options.MAX_SEED,
            info="The same number draws the same mouth again. 0: a new one each time.",
        ),
    }  # fmt: skip
    with gr.Accordion("More options", open=False):
        shown |= _more(usual)
    if restoring:
        with gr.Accordion("Super-resolution", open=False):
            shown |= _restoring(usual)
    for name, component in shown.items():
        component.elem_id = name
    return shown


def _more(usual: Options) -> dict[str, Any]:
    return {
        "face": gr.Dropdown(
            labelled("face"), value=usual.face, label="Whose mouth", allow_custom_value=True,
            info="Or type where the face is: x,y in pixels, and @seconds for a later time.",
        ),
        "sync_mode": gr.Dropdown(
            labelled("sync_mode"), value=usual.sync_mode, label="Where the voice is longer",
            info="What is shown after the clip's end. Photos stay as they are.",
        ),
        "fps": gr.Radio(labelled("fps"), value=usual.fps, label="Pictures a second"),
        "audio_track": gr.Textbox(
            usual.audio_track, label="Sound track of the voice",
            info="Where it has several: auto, its number from 1, or a language such as eng.",
        ),
        "on_missing": gr.Radio(
            labelled("on_missing"), value=usual.on_missing, label="Pictures without the face"
        ),
        "silence": gr.Radio(
            labelled("silence"), value=usual.silence, label="The mouth while nobody speaks"
        ),
        "color_match": gr.Checkbox(
            usual.color_match, label="Match the colours of the mouth to the face around it"
        ),
        "steps": gr.Slider(
            0, options.MAX_STEPS, 0, step=1, label="Steps of drawing",
            info="More take longer. 0: as many as the quality above takes.",
        ),
        "crf": gr.Slider(
            0, options.MAX_CRF, usual.crf, step=1, label="Compression of the video file (CRF)",
            info="0: no loss, a very large file. 17: no loss that can be seen. 30: a small file.",
        ),
    }  # fmt: skip


def _restoring(usual: Options) -> dict[str, Any]:
    def share(name: str, label: str, info: str) -> gr.Slider:
        return gr.Slider(0, 1, getattr(usual, name), step=0.05, label=label, info=info)

    return {
        "superres": gr.Radio(
            labelled("superres"), value=usual.superres, label="Sharpen the face",
            info="By a net that restores faces, after the mouth is drawn.",
        ),
        "sr_ratio": gr.Slider(
            *options.RATIOS, usual.sr_ratio, step=0.5, label="How much finer",
            info="Times the resolution of the drawn face.",
        ),
        "mask_smooth": share(
            "mask_smooth", "Softness of the rim", "0: sharp. 1: fades over far into the face."
        ),
        "sr_weight": share(
            "sr_weight", "Likeness to the clip (CodeFormer)", "0: cleanest. 1: nearest to the clip."
        ),
        "sr_stability": share(
            "sr_stability", "Stability over time", "0: each picture by itself. 1: least flicker."
        ),
    }  # fmt: skip
