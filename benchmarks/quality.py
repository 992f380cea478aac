"""How good is the demo model, by which setting? What `latentsync evaluate` says of it.

    python benchmarks/quality.py --clips 20 --seconds 2.4 --seed 2000 --work out/quality

People are drawn who say A, voices that say B, and the truth: the same people saying B. Every
setting makes the same clips with the same seed; the truth is the reference they are held against.
Besides the settings there are rows for what bounds them: the truth itself, the source as it came
(still saying A), and the voice of another clip. `lips` is the mouth's opening, read off the clip by
the mouth net, correlated with what the drawn truth opens. Clips that lie in `--work` are not made
again, so it goes on where it was stopped. Writes benchmarks/quality.md and quality.png.

Needs espeak-ng, extra [train].
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lip_correlation import TRAINED, Case, draw_case, parser_of

import latentsync
from latentsync import faces
from latentsync.evaluation import lip_correlation, mouth_net, runner
from latentsync.evaluation.clips import find_pairs
from latentsync.types import FloatArray

HERE = Path(__file__).parent
SETTINGS: dict[str, dict[str, Any]] = {
    "exact": {},
    "steps-10": {"steps": 10},
    "steps-4": {"steps": 4},
    "guidance-1.5": {"guidance_scale": 1.5},
    "guidance-2": {"guidance_scale": 2.0},
    "guidance-3": {"guidance_scale": 3.0},
    "fast": {"speed": "fast"},
    "preview": {"speed": "preview"},
    "wrong-voice": {},
}
ROWS = {
    "truth": "the truth itself",
    "source": "the source, still saying A",
    "exact": "`exact`: 20 steps, guidance 1",
    "steps-10": "10 steps",
    "steps-4": "4 steps",
    "guidance-1.5": "guidance 1.5",
    "guidance-2": "guidance 2",
    "guidance-3": "guidance 3",
    "fast": "`fast`",
    "preview": "`preview`",
    "wrong-voice": "`exact`, another clip's voice",
}
METRICS = ("psnr", "ssim", "lmd", "flicker")
COLUMNS = {
    "lips": ("lips", 3),
    "lmd": ("LMD, px", 2),
    "psnr_face": ("PSNR of the face, dB", 2),
    "ssim_face": ("SSIM of the face", 4),
    "psnr_frame": ("PSNR of the frame, dB", 2),
    "flicker": ("flicker", 2),
}
FOUND = "found.json"
DRAWN = ("clips", "seconds", "size", "seed")  # what the drawn clips follow from
INTRODUCTION = """\
# How good is the demo model, by which setting?

    python benchmarks/quality.py {command}

Drawn people whom no training saw, each saying A in a clip and made to say B, held against the drawn
truth: the same person saying B. Means over the clips with 95 % intervals. `lips` is the mouth's
opening, measured by the mouth net, correlated with the truth's; LMD the distance of the lips'
landmarks to the truth's; flicker 1 is as much as in the truth. What changes the network, the
sampler or the paste is judged by this table: run it before and after.
"""


class Figure(NamedTuple):
    """The mean over the clips; without an interval where it is infinite."""

    mean: float
    low: float | None
    high: float | None


Table = dict[str, dict[str, Figure]]


def make(asked: argparse.Namespace) -> list[Case]:
    """All clips of all settings: WORK/SETTING/NN.mp4, beside WORK/truth and WORK/source."""
    cases = [_case(asked, index) for index in range(asked.clips)]
    model = latentsync.load("demo")
    for index, case in enumerate(cases):
        for name, choices in SETTINGS.items():
            output = asked.work / name / f"{index:02d}.mp4"
            if output.exists():
                continue
            output.parent.mkdir(parents=True, exist_ok=True)
            other = cases[(index + 1) % len(cases)]
            voice = (other if name == "wrong-voice" else case).voice
            result = model.run(case.source, voice, output, seed=asked.seed, **choices)
            print(f"{output}: {result.timings['total']:.1f} s", flush=True)
    return cases


def _case(asked: argparse.Namespace, index: int) -> Case:
    """Drawn from the same seed every time, so that it needn't be kept."""
    folder = asked.work / "drawn"
    folder.mkdir(parents=True, exist_ok=True)
    case = draw_case(
        asked.seed, index, folder, seconds=asked.seconds, size=asked.size, languages=TRAINED
    )
    for name, path in (("source", case.source), ("truth", case.truth)):
        place = asked.work / name / f"{index:02d}.mp4"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.hardlink_to(path)
    return case


def measure(work: Path, cases: list[Case]) -> Table:
    """Every row; those that were measured before are taken from WORK/found.json."""
    kept = work / FOUND
    table: Table = {}
    if kept.exists():
        told = json.loads(kept.read_text())
        table = {
            row: {name: Figure(*one) for name, one in figures.items()}
            for row, figures in told.items()
        }
    reader, detector = mouth_net.MouthNet.load(), faces.create("builtin", root=work)
    for row in ROWS:
        if row in table:
            continue
        found = runner.evaluate(find_pairs([work / row], work / "truth"), METRICS)
        figures = {
            name: Figure(one.mean, one.low, one.high)
            for name, one in found.means.items()
            if name in COLUMNS
        }
        said = [
            _lips(work / row / f"{index:02d}.mp4", case, reader, detector)
            for index, case in enumerate(cases)
        ]
        mean = runner.mean_of(said)
        assert mean is not None
        table[row] = {"lips": Figure(mean.mean, mean.low, mean.high)} | figures
        kept.write_text(json.dumps(table))
        print(row, table[row], flush=True)
    return table


def _lips(output: Path, case: Case, reader: mouth_net.MouthNet, detector: faces.Detector) -> float:
    """How the mouth's opening follows the truth's."""
    track = mouth_net.find_track(case.source, detector)
    crops = np.stack(list(mouth_net.aligned_crops(output, track)))
    opening: FloatArray = case.opening[: len(crops)]
    return lip_correlation.lip_correlation(
        reader.measure(crops)[: len(opening), 0], opening
    ).at_zero


def page(table: Table, asked: argparse.Namespace) -> str:
    """The table, as Markdown."""
    heads = [head for head, _ in COLUMNS.values()]
    command = " ".join(f"--{name} {getattr(asked, name)}" for name in DRAWN)
    lines = [INTRODUCTION.format(command=command)]
    lines += [f"| | {' | '.join(heads)} |", f"| --- |{' --- |' * len(heads)}"]
    for row, what in ROWS.items():
        cells = [_cell(table[row].get(name), digits) for name, (_, digits) in COLUMNS.items()]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", "![lips and PSNR of each setting](quality.png)", ""])


def _cell(figure: Figure | None, digits: int) -> str:
    if figure is None:
        return ""
    if not np.isfinite(figure.mean):
        return "equal"
    if figure.low is None or figure.high is None:
        return f"{figure.mean:.{digits}f}"
    return f"{figure.mean:.{digits}f} ± {(figure.high - figure.low) / 2:.{digits}f}"


def draw(table: Table, path: Path) -> None:
    """Two columns of it, with their intervals."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(9, 3.6), layout="constrained")
    sides = picture.subplots(1, 2, sharey=True)
    rows = [row for row in ROWS if row != "truth"]
    for axis, name in zip(sides, ("lips", "psnr_face"), strict=True):
        for place, row in enumerate(rows):
            one = table[row][name]
            half = 0 if one.low is None or one.high is None else (one.high - one.low) / 2
            axis.errorbar(one.mean, place, xerr=half, fmt="o", color="C0", capsize=3)
        axis.set_xlabel(COLUMNS[name][0])
        axis.grid(alpha=0.3)
    sides[0].axvline(table["truth"]["lips"].mean, color="grey", linestyle=":")
    sides[0].set_yticks(range(len(rows)), [ROWS[row].replace("`", "") for row in rows])
    sides[0].invert_yaxis()
    picture.savefig(path, dpi=90)


def main() -> int:
    parser = parser_of(__doc__, clips=20, seconds=2.4, seed=2000)
    parser.add_argument("--size", type=int, default=384, help="px, both sides of a clip")
    parser.add_argument("--work", type=Path, default=Path("out/quality"))
    asked = parser.parse_args()
    table = measure(asked.work, make(asked))
    (HERE / "quality.md").write_text(page(table, asked))
    draw(table, HERE / "quality.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
