"""Render photographic talking heads, for training; `make render-heads` does it.

Called again, it goes on with the people whose file isn't there; it may be killed at any time. What
is rendered of a folder's people is chosen by the first call.
"""

import argparse
import logging
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from .assets import fetch_makehuman
from .clip import write_clip
from .takes import PlanOptions, draw_plan

log = logging.getLogger("render_heads")

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-render/bin/python"
PLANNED_AHEAD = 50  # people for each worker


def main() -> None:
    parser = argparse.ArgumentParser(prog="render_heads", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/heads"))
    parser.add_argument("--data", type=Path, default=Path("out/makehuman"), help="MakeHuman's mesh")
    parser.add_argument("--people", type=_span, default=range(1200), metavar="FIRST:END")
    parser.add_argument("--windows", type=int, default=20, help="of each person")
    parser.add_argument("--frames", type=int, default=1, help="of each window; 16 to learn motion")
    parser.add_argument("--size", type=int, default=96, help="of a crop, px")
    parser.add_argument(
        "--scene", type=_size, metavar="WIDTHxHEIGHT", help="a clip and a photo instead of crops"
    )
    parser.add_argument(
        "--recordings", type=Path, help="voices of scripts/train_ear.py, beside espeak-ng's"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--python", type=Path, default=PYTHON, help="of an environment with bpy")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, datefmt="%H:%M:%S")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers are ended too
    wanted = PlanOptions(
        options.windows, options.frames, options.size, options.scene, options.recordings
    )
    data, out = fetch_makehuman(options.data).absolute(), options.out.absolute()
    missing = [number for number in options.people if not (out / f"{number:05d}.npz").is_file()]
    step = PLANNED_AHEAD * options.workers
    for start in range(0, len(missing), step):
        people = missing[start : start + step]
        plan_people(out / "plans", people, wanted)
        command = [str(options.python), "-m", f"{__package__}.worker", str(data), str(out)]
        _run(command, [people[worker :: options.workers] for worker in range(options.workers)])
        log.info("%d of %d people", start + len(people), len(missing))
        if options.scene:
            for number in people:
                write_clip(out / f"{number:05d}.npz")


def plan_people(folder: Path, people: Sequence[int], wanted: PlanOptions) -> None:
    """Write the plans that aren't there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in people:
        path = folder / f"{number:05d}.npz"
        if not path.is_file():
            draw_plan(number, wanted).save(path)


def _run(command: Sequence[str], shares: Sequence[Sequence[int]]) -> None:
    """Run the command once for each share, numbers being its last arguments, side by side."""
    running = [
        subprocess.Popen([*command, *map(str, share)], cwd=ROOT) for share in shares if share
    ]
    try:
        for worker in running:
            if worker.wait():
                raise SystemExit(f"a worker ended with code {worker.returncode}")
    finally:
        for worker in running:
            worker.terminate()


def _span(text: str) -> range:
    first, end = (int(part) for part in text.split(":"))
    return range(first, end)


def _size(text: str) -> tuple[int, int]:
    width, height = (int(part) for part in text.split("x"))
    return width, height


if __name__ == "__main__":
    main()
