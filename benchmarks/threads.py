"""How should a run's threads wait for each other on a CPU that has other work too?

    python benchmarks/threads.py --rounds 3

Runs of the demo model on examples/, each a process of its own, with OpenMP's threads as they come
(they spin for a while when they wait), with OMP_WAIT_POLICY=PASSIVE (they sleep), and with one
thread; by themselves and beside as many busy processes as --busy says. All of a round run one after
another, so that they meet the same machine; the table has the median of the rounds. A run is
stopped at --limit.
"""

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
OMP = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "GOMP_SPINCOUNT")
WAYS = {
    "as it comes": {},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
    "OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
}
RUN = """
import sys, tempfile, time
import latentsync
model = latentsync.load("demo", device="cpu")
with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    model.run(sys.argv[1], sys.argv[2], folder + "/out.mp4", seed=1, steps=int(sys.argv[3]))
    print(time.perf_counter() - start)
"""


@contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but count, while this lasts."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def seconds(settings: dict[str, str], voice: Path, asked: argparse.Namespace) -> float:
    """Of one run, without the loading; infinite beyond the limit."""
    environment = {k: v for k, v in os.environ.items() if k not in OMP} | settings
    given = [str(EXAMPLES / "face.mp4"), str(voice), str(asked.steps)]
    try:
        done = subprocess.run(
            [sys.executable, "-c", RUN, *given],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=asked.limit,
        )
    except subprocess.TimeoutExpired:
        return math.inf
    return float(done.stdout)


def cut(sound: Path, target: Path, length: float) -> Path:
    """The first so many seconds of a WAV file."""
    with wave.open(str(sound)) as source, wave.open(str(target), "wb") as part:
        part.setparams(source.getparams())
        part.writeframes(source.readframes(round(length * source.getframerate())))
    return target


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1, help="of speech")
    parser.add_argument("--limit", type=float, default=120, help="seconds")
    asked = parser.parse_args()
    taken: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="threads-") as folder:
        voice = cut(EXAMPLES / "speech.wav", Path(folder) / "voice.wav", asked.seconds)
        for _ in range(asked.rounds):
            for count in (0, asked.busy):
                with busy(count):
                    for name, settings in WAYS.items():
                        one = seconds(settings, voice, asked)
                        taken.setdefault((name, count), []).append(one)
                        print(f"{name}, {count} busy: {one:.1f} s", file=sys.stderr, flush=True)
    found = {key: statistics.median(values) for key, values in taken.items()}
    first = found[next(iter(WAYS)), 0]
    load = " / ".join(f"{one:.1f}" for one in os.getloadavg())
    print(f"{os.cpu_count()} logical cores, load {load} at the end\n")
    print(f"| | alone, s | ratio | beside {asked.busy} busy processes, s | ratio |")
    print("| --- | --- | --- | --- | --- |")
    for name in WAYS:
        cells = [f"{found[name, n]:.1f} | {found[name, n] / first:.2f}" for n in (0, asked.busy)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
