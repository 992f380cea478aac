"""How much does a restored face flicker, what does `sr_stability` do to that, at which price?

    python benchmarks/restoration.py --plot benchmarks/restoration.png
    .venv-restore/bin/python benchmarks/restoration.py --nets

Weights of GFPGAN or CodeFormer are not needed. In the first the net is a stand-in that knows the
drawn face: it draws that in full sharpness, and does wrong what such nets do wrong, differently for
each picture, however little that differs from the last: features off their places by 0.4 px, skin
with a texture of 3 grey levels (RMS both; smooth over 12 and 1.5 px). Both are drawn from a
generator that is seeded by the picture's own bytes. Real nets' errors are not as independent of the
frame before; how large they are has not been measured.

Drawn faces speak, in crops of 512 px, once held still, once trembling by 0.4 px as a detector's
crops do, and once with a living head. What is restored is the face at half the size, a little
blurred, with film grain. For each stability:

    flicker     pictures.flicker against the clip before the restoration: 1 is as much as there
    mouth       PSNR of the mouth's region against the drawn truth, dB: what is smeared or late
    sharpness   mean magnitude of the Laplacian where the mouth moves, over the truth's
    lag         frames by which it is late: where its mean difference to the truth is least

With `--nets` both architectures restore one picture, from random numbers in files as published,
each in a process of its own; processor time.
"""

import argparse
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from latentsync.evaluation import image_quality
from latentsync.faces.restoration.deflicker import TemporalSmoother
from latentsync.runtime.devices import peak_memory
from latentsync.runtime.downloads import SETS
from latentsync.training.synthetic import Identity, Mouth, crop_affine, draw_crop, draw_motion

SIDE, FRAMES, FPS = 512, 75, 25
MOVES = {"still": (0.0, 0.0), "trembling": (0.0, 0.4), "lively": (1.0, 0.4)}  # motion, px
STABILITIES = (0.0, 0.25, 0.5, 0.75, 1.0)
WITHOUT_FLOW = "1, no flow"
WOBBLE, TEXTURE = (0.4, 12.0), (3.0, 1.5)  # RMS px or grey levels, smooth over px
MOUTH = image_quality.mouth_box(SIDE)
MOVING = 6.0  # grey levels from frame to frame, in the mean over 9 x 9 px
CPU = torch.device("cpu")

Stack = NDArray[np.uint8]
Figures = tuple[float, float, float, float]


def film(seed: int, amount: float, tremble: float) -> Stack:
    """A person speaking with pauses, in aligned crops: (FRAMES, SIDE, SIDE, 3)."""
    who = replace(Identity.from_seed(seed), grain=0.0, softness=0.0)
    rng = np.random.default_rng([seed, 1])
    crops = []
    for tick, pose in enumerate(draw_motion(rng, FRAMES, amount=amount)):
        now = 2 * np.pi * tick / FPS
        speaks = np.clip(2 * np.sin(0.4 * now + seed) + 1, 0, 1)
        opening = speaks * np.clip(0.5 + 0.6 * np.sin(3.1 * now) * np.sin(1.3 * now + 1), 0, 1)
        view = crop_affine(who, pose, SIDE)
        view[:, 2] += rng.normal(0, tremble, 2)
        crops.append(draw_crop(who, pose, Mouth(open=float(opening)), SIDE, view)[0])
    return np.stack(crops)


def degraded(truth: Stack, seed: int) -> Stack:
    rng = np.random.default_rng([seed, 2])
    made = []
    for crop in truth:
        small = cv2.resize(cv2.GaussianBlur(crop, (0, 0), 1.5), None, fx=0.5, fy=0.5)
        grain = rng.normal(0, 2, (*small.shape[:2], 1)) + rng.normal(0, 1, small.shape)
        noisy = np.clip(small + grain + 0.5, 0, 255).astype(np.uint8)
        made.append(cv2.resize(noisy, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC))
    return np.stack(made)


def restored(truth: Stack, plain: Stack) -> Stack:
    """The stand-in; see above."""
    rows, columns = np.indices((SIDE, SIDE), dtype=np.float32)
    made = []
    for crop, seen in zip(truth, plain, strict=True):
        rng = np.random.default_rng(zlib.crc32(seen.tobytes()))
        x, y = _field(rng, *WOBBLE), _field(rng, *WOBBLE)
        moved = cv2.remap(
            crop, columns + x, rows + y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
        )
        levels = moved + _field(rng, *TEXTURE)[..., None] + 0.5
        made.append(np.clip(levels, 0, 255).astype(np.uint8))
    return np.stack(made)


def _field(rng: np.random.Generator, rms: float, smooth: float) -> NDArray[np.float32]:
    noise = cv2.GaussianBlur(rng.standard_normal((SIDE, SIDE), np.float32), (0, 0), smooth)
    return noise * (rms / noise.std())


def ways(net: Stack, plain: Stack) -> Iterator[tuple[str, Stack]]:
    """What the steadier makes of the net's crops, by its stability; last without the flow."""
    for stability in STABILITIES:
        yield f"{stability:g}", TemporalSmoother(stability)(net, plain, fresh=True)
    steady = TemporalSmoother(1.0)
    steady._flow = _NoFlow()  # type: ignore[assignment]
    yield WITHOUT_FLOW, steady(net, plain, fresh=True)


class _NoFlow:
    def calc(self, now: Stack, _before: Stack, _flow: None) -> NDArray[np.float32]:
        return np.zeros((*now.shape, 2), np.float32)


def measure(made: Stack, truth: Stack, plain: Stack) -> Figures:
    moving = _moving(_mouths(truth))
    return (
        image_quality.flicker(made, plain),
        image_quality.psnr(made, truth, MOUTH),
        _sharpness(_mouths(made), moving) / _sharpness(_mouths(truth), moving),
        _lag(_mouths(made), _mouths(truth)),
    )


def _mouths(stack: Stack) -> Stack:
    return stack[:, MOUTH.top : MOUTH.bottom, MOUTH.left : MOUTH.right]


def _moving(mouths: Stack) -> NDArray[np.bool_]:
    """(f - 1, h, w): where a frame differs from the one before, about lips that move."""
    steps = np.abs(np.diff(mouths.astype(np.float32), axis=0)).mean(axis=3)
    return np.stack([cv2.blur(step, (9, 9)) for step in steps]) > MOVING


def _sharpness(mouths: Stack, moving: NDArray[np.bool_]) -> float:
    greys = (cv2.cvtColor(mouth, cv2.COLOR_RGB2GRAY) for mouth in mouths[1:])
    edges = np.stack([np.abs(cv2.Laplacian(grey, cv2.CV_32F)) for grey in greys])
    return float(edges[moving].mean())


def _lag(made: Stack, truth: Stack) -> float:
    """Between whole frames by the parabola through the least three mean differences."""
    inner = made[2:-2].astype(np.float32)
    apart = [np.abs(inner - truth[2 - late : len(truth) - 2 - late]).mean() for late in (-1, 0, 1)]
    return float((apart[0] - apart[2]) / (2 * (apart[0] - 2 * apart[1] + apart[2])))


def table(people: int) -> dict[str, dict[str, Figures]]:
    """Way -> move -> figures, the mean over the people."""
    found: dict[str, dict[str, list[Figures]]] = {}
    spent = 0.0
    for seed in range(9000, 9000 + people):
        for move, (amount, tremble) in MOVES.items():
            truth = film(seed, amount, tremble)
            plain = degraded(truth, seed)
            net = restored(truth, plain)
            for way, made in ways(net, plain):
                found.setdefault(way, {}).setdefault(move, []).append(measure(made, truth, plain))
            started = time.process_time()
            TemporalSmoother(1.0)(net[:16], plain[:16], fresh=True)
            spent += (time.process_time() - started) / 16
    spent *= 1000 / len(MOVES) / people
    print(f"{people} people, {FRAMES} frames each; steadying: {spent:.0f} ms a frame of one core\n")
    return {
        way: {move: tuple(np.mean(figures, axis=0)) for move, figures in moves.items()}
        for way, moves in found.items()
    }  # type: ignore[misc]


def plot(found: dict[str, dict[str, Figures]], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.2), layout="constrained")
    titles = ("flicker, over the plain clip's", "mouth, dB to the truth", "mouth, sharpness")
    for i, (axis, title) in enumerate(zip(axes, titles, strict=True)):
        for move in MOVES:
            values = [found[f"{stability:g}"][move][i] for stability in STABILITIES]
            axis.plot(STABILITIES, values, marker="o", label=move)
        axis.set(title=title, xlabel="sr_stability", xticks=STABILITIES)
    for axis in (axes[0], axes[2]):
        axis.set_ylim(bottom=0)
        axis.axhline(1, color="grey", linewidth=0.8, linestyle=":")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def nets() -> None:
    """A process writes each file, another one reads it and restores a picture."""
    print("| net | load, s | a picture, s | peak, GiB |\n|" + " --- |" * 4, flush=True)
    with tempfile.TemporaryDirectory(prefix="restoration-") as folder:
        for name in ("gfpgan", "codeformer"):
            for task in ("--write", "--read"):
                call = [sys.executable, __file__, task, name, "--folder", folder]
                subprocess.run(call, check=True)


def write(name: str, folder: Path) -> None:
    from tests.restoration import face_nets

    path = folder / SETS[name][0].target
    path.parent.mkdir(exist_ok=True)
    torch.save({"params_ema": face_nets.random(name).state_dict()}, path)


def read(name: str, folder: Path) -> None:
    from latentsync.faces.restoration.nets import load_restorer

    times = [time.process_time()]
    net = load_restorer(name, folder=folder, device=CPU, weight=0.5)
    times.append(time.process_time())
    net.restore(torch.randint(0, 256, (1, SIDE, SIDE, 3), dtype=torch.uint8))
    times.append(time.process_time())
    cells = [f"{seconds:.1f}" for seconds in np.diff(times)]
    peak = peak_memory(CPU)["process"] / 2**30
    print(f"| {name} | " + " | ".join(cells) + f" | {peak:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--nets", action="store_true", help="needs spandrel")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.nets:
        return nets()
    if asked.write or asked.read:
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
        import tests.restoration  # lets torchvision be imported beside any torch  # noqa: F401

        return write(asked.write, asked.folder) if asked.write else read(asked.read, asked.folder)
    found = table(asked.people)
    print("| stability | " + " | ".join(f"{move}: flicker | mouth, dB | sharpness | lag"
                                        for move in MOVES) + " |")  # fmt: skip
    print("| --- |" + " --- |" * (4 * len(MOVES)))
    for way, moves in found.items():
        cells = [f"{f:.2f} | {p:.1f} | {s:.2f} | {late:+.2f}" for f, p, s, late in moves.values()]
        print(f"| {way} | " + " | ".join(cells) + " |")
    if asked.plot:
        plot(found, asked.plot)
    return None


if __name__ == "__main__":
    main()
