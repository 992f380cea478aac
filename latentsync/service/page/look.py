"""How the page looks, and what its browser does by itself: colours, CSS, a few lines of script.

Text has a contrast of 4.5:1 or more on its ground, in light and in dark (WCAG 2.2, 1.4.3); the
browser's test measures it.
"""

import gradio as gr

__all__ = ["ASKED", "BEGUN", "CSS", "NARROW_PX", "PLAY_BOTH", "theme"]

NARROW_PX = 700  # a phone: below it, the columns lie one above the other

# A run's name is kept by the tab, and survives loading the page anew: whoever has it sees the run.
KEY = "latentsync-run"
ASKED = f"() => [sessionStorage.getItem('{KEY}') || '']"
BEGUN = f"""(_, ...given) => {{
  const name = [...crypto.getRandomValues(new Uint8Array(16))]
    .map(byte => byte.toString(16).padStart(2, "0")).join("");
  sessionStorage.setItem("{KEY}", name);
  if (innerWidth < {NARROW_PX}) document.querySelector("#state").scrollIntoView();
  return [name, ...given];
}}"""
PLAY_BOTH = """() => {
  const videos = [...document.querySelectorAll(".pane video")].filter(video => video.currentSrc);
  videos.forEach((video, i) => {
    video.currentTime = 0; video.muted = i < videos.length - 1; video.play();
  });
}"""
CSS = f"""
.gradio-container {{ width: 100%; max-width: 1180px !important; margin: 0 auto !important }}
.intro p {{ margin: 0; color: var(--body-text-color-subdued) }}
.pane video, .pane img {{ object-fit: contain }}
#voice button .wrap {{ min-height: 8em }}
#state {{ min-height: 4.3em; padding: .8em 1em; scroll-margin-top: .5em }}
#state p {{ display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1em; margin: 0 }}
#state span {{ color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums }}
#state progress {{ appearance: none; display: block; width: 100%; height: .5em; margin-top: .5em;
  border: 0; border-radius: 1em; overflow: hidden; background: var(--border-color-primary) }}
#state progress::-webkit-progress-bar {{ background: var(--border-color-primary) }}
#state progress::-webkit-progress-value {{ background: var(--color-accent) }}
#state progress::-moz-progress-bar {{ background: var(--color-accent) }}
#state .failed {{ color: #b3261e; font-weight: 600; overflow-wrap: anywhere }}
.dark #state .failed {{ color: #ff8a80 }}
#voice #time, #voice #duration, #voice .playback {{ color: var(--body-text-color-subdued) }}
#plot img {{ width: 100% }}
#plot .in-dark, .dark #plot .in-light {{ display: none }}
.dark #plot .in-dark {{ display: inline }}
button:disabled {{ cursor: not-allowed }}
@media (max-width: {NARROW_PX}px) {{
  .results {{ flex-direction: column-reverse }}  /* what was made before what was given */
}}
"""


def theme() -> gr.themes.Base:
    """Gradio's own, with fonts of the machine and with text that can be read."""
    made = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    return made.set(
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_800",
        block_title_text_color_dark="*neutral_100",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_800",
        button_primary_border_color="*primary_700",
        button_primary_border_color_dark="*primary_700",
    )
