"""Where does a whole run of the demo model spend its time, and how many frames a second is that?

    python benchmarks/stages.py --seconds 8 -o benchmarks/stages.png

A drawn clip of 1280 x 720 and its own voice; each way of running it in the same process, one after
the other, the best of `--turns`. Milliseconds a frame of the output that each stage was busy; they
run side by side, so that together they may be more than the run took. "waits" is the share of the
network's time in which it had no frames to work on. The last row is another voice on a clip that
`cache_dir` has seen.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import latentsync
from latentsync.training.synthetic import synthesise
from latentsync.types import Result

STAGES = ("read", "speech", "detect", "decode", "cut", "network", "paste", "write")
WAYS: dict[str, dict[str, Any]] = {
    "exact": {},
    "fast": {"speed": "fast"},
    "preview": {"speed": "preview"},
    "preview, clip known": {"speed": "preview", "cache_dir": "known"},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", "-o", type=Path, help="a PNG of the table")
    asked = parser.parse_args()
    model = latentsync.load("demo")
    best: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="stages-") as name:
        folder = Path(name)
        clip, other = synthesise(
            folder, identities=2, seconds=asked.seconds, size=(1280, 720), seed=4000
        )
        known = {"cache_dir": str(folder / "known")}
        model.run(clip, other, folder / "out.mp4", **WAYS["preview"] | known, seed=1)
        for _ in range(asked.turns):
            for way, options in WAYS.items():
                chosen = options | (known if "cache_dir" in options else {})
                result = model.run(clip, clip, folder / "out.mp4", **chosen, seed=1)
                if way not in best or total(result) < total(best[way]):
                    best[way] = result
    report(best)
    if asked.output:
        draw(best, asked.output)


def total(result: Result) -> float:
    return result.timings["total"]


def busy(result: Result) -> list[float]:
    """Milliseconds a frame of each stage."""
    return [1000 * result.timings.get(stage, 0) / result.frames for stage in STAGES]


def report(best: dict[str, Result]) -> None:
    print("| | frames/s | waits |", *(f" {stage} |" for stage in STAGES), sep="")
    print("| --- " * (3 + len(STAGES)) + "|")
    for way, result in best.items():
        network, wait = result.timings["network"], result.timings["wait"]
        cells = [f"{result.frames / total(result):.1f}", f"{wait / (wait + network):.0%}"]
        print(f"| {way} |", *(f" {cell} |" for cell in cells), sep="", end="")
        print(*(f" {spent:.1f} |" for spent in busy(result)), sep="")


def draw(best: dict[str, Result], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 0.7 + 0.6 * len(best)))
    left = [0.0] * len(best)
    for index, stage in enumerate(STAGES):
        spent = [busy(result)[index] for result in best.values()]
        axes.barh(list(best), spent, left=left, label=stage)
        left = [a + b for a, b in zip(left, spent, strict=True)]
    wall = [1000 * total(result) / result.frames for result in best.values()]
    axes.plot(wall, list(best), "kd", label="the whole run")
    axes.invert_yaxis()
    axes.set_xlabel("ms a frame that each stage is busy")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    main()
