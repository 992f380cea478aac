"""What does a SyncNet of one's own do to a short run of the U-Net? The demo model, on drawn faces.

    latentsync synthesise -o raw --identities 150 --seconds 4 --size 256x256 --seed 4000
    latentsync synthesise -o raw --identities 90 --seconds 4 --size 256x256 --seed 4001
    latentsync synthesise -o held --identities 16 --seconds 4 --size 256x256 --seed 5000
    latentsync train syncnet --preset small --model demo --cpu --data raw -o sync --cache cache
    python benchmarks/syncnet_effect.py --cpu --data raw --held-out held --cache cache -o effect \
        --syncnet sync/syncnet.safetensors --sync-weight 0.05 0.5

First how often the SyncNet is right about people and sentences it never saw. Then a run from the
demo model without it, and one with each weight, of equal seeds, so that all are shown the same
windows and noise; then what each makes of clips drawn afresh, as `lip_correlation.py` measures it,
beside the demo model as it was. A run that is there already is not trained again. Needs espeak-ng,
extra [train].
"""

import argparse
import logging
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lip_correlation import TRAINED, Case, draw_case, judge

import latentsync
from latentsync import faces
from latentsync.diffusion import weights
from latentsync.evaluation import lips, ruler
from latentsync.evaluation.nets import loading
from latentsync.runtime import checkpoints
from latentsync.training.dataset import Preparer, find_clips, prepare
from latentsync.training.main import train_unet
from latentsync.training.presets import SYNCNET_RUNS, UNET_RUNS
from latentsync.training.tasks.syncnet import ClipPairs, SyncNetTask

MODEL = "demo"
JUDGE = SYNCNET_RUNS["small"]
DRAWN = 1024  # pairs of windows, each seen with either sound, to tell how often it is right


def held_out_accuracy(file: Path, folder: Path, cache: Path) -> str:
    nets = weights.load_nets(MODEL)
    finder = faces.create(
        nets.config.detector, root=checkpoints.root(None) / "auxiliary", gpu=False
    )
    clips = prepare(find_clips(folder), Preparer(nets, finder, cache))
    net = loading.load_syncnet(file, JUDGE.net)
    pairs = ClipPairs(clips)
    with torch.inference_mode():
        found = SyncNetTask(net, pairs, pairs, JUDGE, validation_clips=DRAWN).validate()
    return f"{len(clips)} people never seen: " + "  ".join(f"{k} {v:.3f}" for k, v in found.items())


def trained(asked: argparse.Namespace, weight: float) -> Path:
    """The model of a run with this weight of the SyncNet's loss."""
    output: Path = asked.output / f"weight-{weight:g}"
    if (output / "finished").exists():
        return output / "model"
    run = replace(
        UNET_RUNS["demo"], steps=asked.steps, validate_every=asked.steps, sync_weight=weight
    )
    model = train_unet(
        run,
        asked.data,
        output,
        init=MODEL,
        syncnet_file=asked.syncnet if weight else None,
        syncnet_config=JUDGE.net,
        cache=asked.cache,
        cpu=asked.cpu,
    )
    (output / "finished").touch()
    return model


def measured(model: str | Path, cases: list[Case], seed: int) -> str:
    """A row of the table."""
    lipsync, reader = latentsync.load(model), ruler.Ruler.load()
    options = latentsync.Options(steps=20, guidance_scale=1.0, seed=seed)
    scores = [judge(lipsync, reader, case, options) for case in cases]
    found = lips.summarise([s.measured for s in scores], [s.opening for s in scores], seed)
    means = [float(np.mean([getattr(s, name) for s in scores])) for name in ("psnr", "ssim")]
    figures = [found.mean, found.worst, found.wrong, found.amplitude, *means]
    return " | ".join(f"{figure:.3f}" for figure in figures)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="clips to train the U-Net on")
    parser.add_argument("--held-out", type=Path, required=True, help="clips the SyncNet never saw")
    parser.add_argument("--syncnet", type=Path, required=True, help="of the preset small")
    parser.add_argument("--cache", type=Path, required=True, help="of prepared clips")
    parser.add_argument("-o", "--output", type=Path, required=True, help="for the runs")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--sync-weight", type=float, nargs="+", default=[0.05])
    parser.add_argument("--clips", type=int, default=8, help="drawn to measure on")
    parser.add_argument("--seed", type=int, default=1000, help="of those clips, 100 or more")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    asked = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("latentsync.training").setLevel(logging.INFO)
    print(held_out_accuracy(asked.syncnet, asked.held_out, asked.cache), flush=True)
    models: dict[str, str | Path] = {"as it was": MODEL}
    for weight in (0.0, *asked.sync_weight):
        models[f"{asked.steps} steps, weight {weight:g}"] = trained(asked, weight)
    with tempfile.TemporaryDirectory() as folder:
        cases = [
            draw_case(asked.seed, i, Path(folder), seconds=4, size=512, languages=TRAINED)
            for i in range(asked.clips)
        ]
        print("| model | lip correlation | worst | wrong voice | amplitude | PSNR, dB | SSIM |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for name, model in models.items():
            print(f"| {name} | {measured(model, cases, asked.seed)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
