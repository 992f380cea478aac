"""Does a generated mouth on a real face move and look as the speaker's own?

    python benchmarks/real_faces.py CLIPS... --model demo --work out/real_faces --json real.json

CLIPS are filmed clips, or folders of them, of one's own: people who speak, with their sound. Each
is generated anew with its own sound, and held against the original by MediaPipe's FaceMesh, which
belongs to neither. The first table:

    opening, best   correlation of the mouth's opening with the original's; the highest within 8
                    frames, and its lag (+: the generated mouth is late)
    amplitude       standard deviation of the opening over the original's
    means           mean opening, original / generated, in distances of the eyes
    width           correlation of the mouth's width; turns of the head are part of it
    sharpness       of the mouth's region, over the original's
    contrast        of lips and skin (distance in Lab), over the original's
    dE              distance of the lips' and the skin's colour to the original's, in Lab

The second table is of the speech encoder alone: a drawn face, which the demo model draws well, says
the clip's sound, and its opening, read by the project's own mouth net, is correlated with that of
the real speaker. Loudness is the sound's in dB; a model that hears nothing else opens the mouth by
it.

Below them stands what chance gives: generated clips against other clips' originals. Clips that lie
in --work are not made again. FaceMesh needs mediapipe 0.10.21 and an older numpy: an environment
for it is made in the user's cache directory on the first run, by a Python of 3.9 to 3.12. Where it
can't be made the script says why and exits with 77. Needs espeak-ng, extra [train].
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from lip_correlation import workplace
from numpy.typing import NDArray

import latentsync
from latentsync.errors import LatentSyncError
from latentsync.evaluation import mouth_net
from latentsync.evaluation.clips import find_pairs
from latentsync.evaluation.lip_correlation import (
    amplitude_ratio,
    lip_correlation,
    loudness_of,
    wrong_pairs,
)
from latentsync.media import AudioReader, VideoReader
from latentsync.pipeline.frame_source import FPS
from latentsync.training.synthetic import draw_take
from latentsync.training.synthetic.clips import write_take
from latentsync.types import Frame

PACKAGES = ("mediapipe==0.10.21", "numpy==1.26.4", "opencv-contrib-python==4.11.0.86")
PYTHONS = range(9, 13)  # 3.9 to 3.12 have wheels of that mediapipe
SKIPPED = 77  # exit status of a skipped test in Automake and Meson
MAX_LAG = 8  # frames
DRAWN_SIZE = (512, 512)  # px
MIN_SHARPNESS = 1e-3  # of the original, for the ratio
NO_NUMBERS = {"clip", "curves"}
Curve = NDArray[np.float64]


class Unavailable(Exception):
    """FaceMesh can't be had here; the message says why, in one line."""


LOOKS = {
    "clip": "{clip}",
    "frames": "{frames:.0f}",
    "eyes, px": "{eyes_px:.0f}",
    "found": "{found:.2f}",
    "opening": "{opening:.2f}",
    "best": "{opening_best:.2f}",
    "lag": "{opening_lag:+.0f}",
    "amplitude": "{amplitude:.2f}",
    "means": "{mean_original:.3f} / {mean_generated:.3f}",
    "width": "{width:.2f}",
    "sharpness": "{sharpness:.2f}",
    "contrast": "{contrast:.2f}",
    "dE lips / skin": "{lips_distance:.1f} / {skin_distance:.1f}",
}
HEARING = {
    "clip": "{clip}",
    "drawn face to speaker": "{drawn:.2f}",
    "best": "{drawn_best:.2f}",
    "lag": "{drawn_lag:+.0f}",
    "drawn face to loudness": "{drawn_loudness:.2f}",
    "generated to loudness": "{generated_loudness:.2f}",
    "speaker to loudness": "{original_loudness:.2f}",
}
"""Columns of the two tables: how each writes the figures of a clip."""


def face_mesh_python() -> Path:
    """The interpreter of the environment with FaceMesh, which is made if it is not there.

    Raises:
        Unavailable: there is no Python that fits, or pip fails.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "latentsync" / PACKAGES[0].replace("==", "-")
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    finished = folder / "packages.txt"
    if finished.is_file() and finished.read_text().split() == [*PACKAGES]:
        return python
    print(f"making an environment for FaceMesh in {folder}", file=sys.stderr)
    base = _base_python()
    _run([base, "-m", "venv", "--clear", folder])
    _run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES])
    _run([python, "-I", "-c", "import mediapipe"])
    finished.write_text("\n".join(PACKAGES))
    return python


def _base_python() -> str:
    if sys.version_info[1] in PYTHONS:
        return sys.executable
    names = [f"python3.{minor}" for minor in reversed(PYTHONS)]
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    candidates = [shutil.which(name) for name in names]
    candidates += [str(path) for name in names for path in sorted(pyenv.glob(f"*/bin/{name}"))]
    for candidate in filter(None, candidates):
        # One of pyenv's shims is there also where its version is not chosen, and only fails.
        if subprocess.run([candidate, "-c", "import venv"], capture_output=True).returncode == 0:
            return candidate
    raise Unavailable(
        f"{PACKAGES[0]} needs Python 3.{PYTHONS[0]} to 3.{PYTHONS[-1]}, and there is only "
        f"{sys.version.split()[0]}: install one of them"
    )


def _run(command: list[str | Path]) -> None:
    """Run a command; Unavailable with the last line that it printed if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise Unavailable(f"{' '.join(map(str, command))} failed: {last}")


def measure(python: Path, original: Path, generated: Path) -> dict[str, Curve]:
    """What face_mesh.py says of two clips, frame by frame at 25 fps."""
    sides = [VideoReader(path, fps=FPS) for path in (original, generated)]
    size = sides[0].info.width, sides[0].info.height
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder, "result.npz"), Path(folder, "log.txt")
        command: list[str | Path] = [
            python,
            "-I",
            Path(__file__).with_name("face_mesh.py"),
            *map(str, size),
            result,
        ]
        with (
            log.open("wb") as errors,
            subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors) as process,
        ):
            assert process.stdin is not None
            try:
                for pair in zip(*(side.frames() for side in sides), strict=False):
                    for frame in pair:
                        process.stdin.write(fitted(frame.rgb(), size).data)
                process.stdin.close()
            except BrokenPipeError:
                pass  # it has ended, and its status says so
        if process.returncode:
            raise RuntimeError(f"face_mesh.py failed: {log.read_text().strip()}")
        with np.load(result) as found:
            return dict(found)


def fitted(picture: Frame, size: tuple[int, int]) -> Frame:
    """The picture at (width, height), in consecutive memory."""
    if picture.shape[1::-1] != size:
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
    return np.ascontiguousarray(picture)


def filled(curve: Curve) -> Curve:
    """The curve with its gaps filled by straight lines."""
    there = np.flatnonzero(np.isfinite(curve))
    if not len(there):
        raise RuntimeError("FaceMesh finds no face")
    return np.interp(np.arange(len(curve)), there, curve[there])


def looks_of(found: dict[str, Curve]) -> dict[str, float]:
    """The first table's figures of a clip, of what `measure` found."""
    original, generated = [filled(curve) for curve in found["opening"].T]
    opening = lip_correlation(generated, original, MAX_LAG)
    widths = [filled(curve) for curve in found["width"].T]
    sharpness = found["sharpness"][:, 1] / np.maximum(found["sharpness"][:, 0], MIN_SHARPNESS)
    contrasts = np.nanmean(np.linalg.norm(found["lips"] - found["skin"], axis=2), axis=0)
    distances = {
        name: np.nanmean(np.linalg.norm(np.diff(found[name], axis=1)[:, 0], axis=1))
        for name in ("lips", "skin")
    }
    figures = {
        "frames": len(original),
        "eyes_px": np.nanmedian(found["eyes"][:, 0]),
        "found": np.isfinite(found["opening"][:, 1]).mean(),
        "opening": opening.at_zero,
        "opening_best": opening.best,
        "opening_lag": opening.best_lag,
        "amplitude": amplitude_ratio(generated, original),
        "mean_original": original.mean(),
        "mean_generated": generated.mean(),
        "width": lip_correlation(widths[1], widths[0], 0).at_zero,
        "sharpness": np.nanmedian(sharpness),
        "contrast": contrasts[1] / contrasts[0],
        "lips_distance": distances["lips"],
        "skin_distance": distances["skin"],
    }
    return {name: float(value) for name, value in figures.items()}


def hearing_of(curves: dict[str, Curve]) -> dict[str, float]:
    """The second table's figures of a clip: its curves, as far as all of them go."""
    count = min(map(len, curves.values()))
    drawn, generated, original, loudness = (curve[:count] for curve in curves.values())
    ear = lip_correlation(drawn, original, MAX_LAG)
    return {
        "drawn": ear.at_zero,
        "drawn_best": ear.best,
        "drawn_lag": float(ear.best_lag),
        "drawn_loudness": lip_correlation(drawn, loudness, 0).at_zero,
        "generated_loudness": lip_correlation(generated, loudness, 0).at_zero,
        "original_loudness": lip_correlation(original, loudness, 0).at_zero,
    }


class Runs:
    """The runs of one model in a folder; what lies there already is not made again."""

    def __init__(self, asked: argparse.Namespace, work: Path) -> None:
        self.model = latentsync.load(asked.model)
        self.net = mouth_net.MouthNet.load()
        self.seed, self.work = asked.seed, work

    def generated(self, clip: Path) -> Path:
        """The clip, generated with its own sound at the default options."""
        output = self.work / f"{clip.stem}.mp4"
        if not output.exists():
            self.model.run(clip, None, output, seed=self.seed)
        return output

    def drawn_opening(self, clip: Path, index: int) -> Curve:
        """(frames,) opening of drawn person `index` who says the clip's sound."""
        source = self.work / f"{clip.stem}_drawn.mp4"
        output = self.work / f"{clip.stem}_drawn_generated.mp4"
        if not output.exists():
            take = draw_take(self.seed, index, float(AudioReader(clip).seconds))
            write_take(take, source, DRAWN_SIZE)
            self.model.run(source, clip, output, seed=self.seed)
        track = mouth_net.find_track(source, self.model.detector)
        mouth = mouth_net.mouth_track(output, self.net, self.model.detector, track=track)
        return mouth[:, 0].astype(np.float64)


def chance(curves: list[dict[str, Curve]]) -> str:
    """What the mean opening correlation would be with other clips' originals."""
    found = []
    for i, j in wrong_pairs(len(curves)):
        generated, original = curves[i]["generated"], curves[j]["original"]
        count = min(len(generated), len(original))
        found.append(lip_correlation(generated[:count], original[:count], 0).at_zero)
    return f"chance: {np.mean(found):.2f}, sd {np.std(found):.2f} a clip, {len(found)} pairs"


def table(columns: dict[str, str], rows: list[dict[str, Any]]) -> str:
    line = f"| {' | '.join(columns.values())} |"
    head = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    return "\n".join(head + [line.format(**row) for row in rows])


def judge(clips: list[Path], python: Path, runs: Runs) -> tuple[list[dict[str, Any]], int]:
    """The figures and curves of each clip, and how many clips failed."""
    rows: list[dict[str, Any]] = []
    for index, clip in enumerate(clips):
        try:
            found = measure(python, clip, runs.generated(clip))
            curves = {
                "drawn": runs.drawn_opening(clip, index),
                "generated": filled(found["opening"][:, 1]),
                "original": filled(found["opening"][:, 0]),
                "loudness": loudness_of(AudioReader(clip)),
            }
            figures = looks_of(found) | hearing_of(curves)
        except (LatentSyncError, RuntimeError) as error:
            print(f"{clip}: {error}", file=sys.stderr)
            continue
        rows.append({"clip": clip.stem, **figures, "curves": curves})
        print(f"{clip.stem}: opening {figures['opening']:.2f}", file=sys.stderr)
    return rows, len(clips) - len(rows)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("clips", type=Path, nargs="+", help="filmed clips, or folders of them")
    parser.add_argument("--model", default="demo", help="a preset, or a folder training wrote")
    parser.add_argument("--seed", type=int, default=1000, help="of noise and drawn people")
    parser.add_argument("--work", type=Path, help="keep the generated clips in this folder")
    parser.add_argument("--json", type=Path, help="write figures and curves to this file")
    asked = parser.parse_args()
    try:
        clips = [pair.output for pair in find_pairs(asked.clips).pairs]
        python = face_mesh_python()
        with workplace(asked.work) as work:
            rows, failed = judge(clips, python, Runs(asked, work))
    except Unavailable as error:
        print(f"skipped: {error}")
        return SKIPPED
    except LatentSyncError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not rows:
        return 1
    mean = {name: np.mean([row[name] for row in rows]) for name in rows[0].keys() - NO_NUMBERS}
    for columns in (LOOKS, HEARING):
        print(table(columns, [*rows, {"clip": "mean", **mean}]), end="\n\n")
    if len(rows) > 1:
        print(chance([row["curves"] for row in rows]))
    if asked.json:
        document = {"model": asked.model, "seed": asked.seed, "mean": mean, "clips": rows}
        asked.json.write_text(json.dumps(document, indent=1, default=list) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
