"""What does less work of the network cost? The demo model on drawn people, each setting in turn.

    python benchmarks/effort.py --clips 4 --seconds 2 --seed 1000 --plot benchmarks/effort.png

Every setting makes the same clips with the same seed. Columns of the table:

    time          processor seconds of the denoising, on one thread, over those of the full run
                  (20 steps of DDIM, all layers, no guidance) of the same clips
    psnr, ssim    of the mouth's region, against the full run of the same guidance scale
    r             lip correlation with the drawn truth; `lip_correlation.py` says how it is measured

Needs espeak-ng, extra [train], and matplotlib for the picture.
"""

import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lip_correlation import TRAINED, Case, draw_case, parser_of
from numpy.typing import NDArray

import latentsync
from latentsync.diffusion import sampling
from latentsync.evaluation import image_quality, lip_correlation, mouth_net

GUIDANCE = 1.5  # where a setting is about guidance
LIP_SPAN = 0.2  # of the plot's axis of lip correlation, so that noise does not look like news
FULL, GUIDED = "full run", f"full run, guidance {GUIDANCE}"
SETTINGS: dict[str, dict[str, Any]] = {
    FULL: {},
    "ddim, 10 steps": {"steps": 10},
    "ddim, 5 steps": {"steps": 5},
    "dpm++, 10 steps": {"steps": 10, "sampler": "dpm++"},
    "dpm++, 8 steps": {"steps": 8, "sampler": "dpm++"},
    "dpm++, 6 steps": {"steps": 6, "sampler": "dpm++"},
    "dpm++, 4 steps": {"steps": 4, "sampler": "dpm++"},
    "cache interval 2": {"cache_interval": 2},
    "cache interval 3": {"cache_interval": 3},
    "cache interval 5": {"cache_interval": 5},
    GUIDED: {"guidance_scale": GUIDANCE},
    "guided until 0.8": {"guidance_scale": GUIDANCE, "guidance_stop": 0.8},
    "guided until 0.5": {"guidance_scale": GUIDANCE, "guidance_stop": 0.5},
    "guided from 0.5": {"guidance_scale": GUIDANCE, "guidance_start": 0.5},
    "speed fast": {"speed": "fast"},
    "speed preview": {"speed": "preview"},
    "fast, guided": {"guidance_scale": GUIDANCE, "speed": "fast"},
    "preview, guided": {"guidance_scale": GUIDANCE, "speed": "preview"},
}


@dataclass(frozen=True)
class Outcome:
    """One clip by one setting."""

    seconds: float  # of the denoising
    mouth: NDArray[np.uint8]  # (n, h, w, 3), cut from the output
    r: float


@dataclass(frozen=True)
class Row:
    """A setting, over all clips."""

    time: float  # 1 is the full run's
    psnr: float  # dB
    ssim: float
    r: float

    def line(self) -> str:
        return f"{self.time:.2f} | {self.psnr:.1f} | {self.ssim:.4f} | {self.r:.3f}"


class Stopwatch:
    """Takes the place of `diffusion.denoise` and sums up its seconds.

    Processor time of its thread, since other work on a machine makes a wall clock's ratios useless.
    """

    def __init__(self) -> None:
        self.denoise, self.seconds = sampling.denoise, 0.0

    def __call__(self, *args: Any, **options: Any) -> torch.Tensor:  # noqa: ANN401 - as denoise
        start = time.thread_time()
        out = self.denoise(*args, **options)
        self.seconds += time.thread_time() - start
        return out


def outcomes(
    model: latentsync.LipSync, reader: mouth_net.MouthNet, case: Case, seed: int
) -> dict[str, Outcome]:
    """A clip by every setting."""
    track = mouth_net.find_track(case.source, model.detector, fps=case.fps)
    box = image_quality.mouth_box(mouth_net.CROP)
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    output = case.source.with_name("output.mp4")
    found = {}
    for name, choices in SETTINGS.items():
        options = latentsync.Options(seed=seed, **choices)
        sampling.denoise = watch = Stopwatch()
        model.run(case.source, case.voice, output, options=options)
        sampling.denoise = watch.denoise
        crops = np.stack(list(mouth_net.aligned_crops(output, track, fps=case.fps)))
        r = lip_correlation.lip_correlation(
            reader.measure(crops)[:, 0], case.opening[: len(crops)]
        ).at_zero
        found[name] = Outcome(watch.seconds, crops[:, rows, columns], r)
        print(f"{name}: {watch.seconds:.1f} s, r={r:.3f}", flush=True)
    return found


def table(clips: list[dict[str, Outcome]]) -> dict[str, Row]:
    """What each setting costs and saves, the mean over the clips."""
    figures = defaultdict(list)
    for found in clips:
        for name, one in found.items():
            guided = "guidance_scale" in SETTINGS[name]
            full = found[GUIDED if guided else FULL]
            same = name in (FULL, GUIDED)
            psnr = np.nan if same else image_quality.psnr(one.mouth, full.mouth)
            ssim = np.nan if same else image_quality.ssim(one.mouth, full.mouth)
            figures[name].append((one.seconds / found[FULL].seconds, psnr, ssim, one.r))
    return {name: Row(*np.mean(of_clips, axis=0).tolist()) for name, of_clips in figures.items()}


def draw_plot(rows: dict[str, Row], path: Path) -> None:
    """Quality against time: one point a setting."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    sides = figure.subplots(1, 2)
    for axis, field, label in zip(
        sides, ("psnr", "r"), ("PSNR of the mouth, dB", "lip correlation"), strict=True
    ):
        for number, (name, row) in enumerate(rows.items(), 1):
            value = getattr(row, field)
            if np.isfinite(value):
                mark = "^" if "guidance_scale" in SETTINGS[name] else "o"
                look = {"marker": mark, "color": f"C{number % 10}", "label": f"{number}  {name}"}
                axis.scatter(row.time, value, s=22, **look)
                axis.annotate(str(number), (row.time, value), (4, 3), textcoords="offset points")
        axis.set_xlabel("time of the denoising, 1 is the full run's")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    middle = np.mean([row.r for row in rows.values()])
    sides[1].set_ylim(middle - LIP_SPAN / 2, middle + LIP_SPAN / 2)
    handles, labels = sides[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=100)


def main() -> int:
    parser = parser_of(__doc__, clips=4, seconds=2.0, seed=1000)
    parser.add_argument("--model", default="demo", help="a preset, or a folder training wrote")
    parser.add_argument("--plot", type=Path, help="write a picture of the table (png)")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # so that a thread's time is all of it
    model, reader = latentsync.load(asked.model), mouth_net.MouthNet.load()
    clips = []
    with tempfile.TemporaryDirectory(prefix="effort-") as folder:
        for index in range(asked.clips):
            case = draw_case(
                asked.seed, index, Path(folder), seconds=asked.seconds, size=256, languages=TRAINED
            )
            print(f"clip {index}", flush=True)
            clips.append(outcomes(model, reader, case, asked.seed))
    rows = table(clips)
    print("| setting | time | PSNR, dB | SSIM | lip correlation |\n| --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        print(f"| {name} | {row.line()} |".replace("nan", ""))
    if asked.plot:
        draw_plot(rows, asked.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
