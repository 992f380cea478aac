"""Does the picture jump where two groups of 16 frames meet, and what does `overlap` do to that?

    python benchmarks/seams.py --clips 6 --seed 2000

For each drawn person that never was in training a whole run is made for each overlap, with the
same seed. Between two neighbouring frames the mouth's region changes by so many grey levels (mean
absolute difference of the aligned crops); "border" is the median of that where a group begins,
"inside" everywhere else, and the jump is border / inside. The drawn truth, in which nothing is
grouped, has about 1. `r` is the lip correlation of benchmarks/lip_correlation.py.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from lip_correlation import TRAINED, Case, draw_case, parser_of

import latentsync
from latentsync.evaluation import lips, pictures, ruler
from latentsync.pipeline import timeline

OVERLAPS = (0, 2, 4, 8)


def changes(path: Path, track: latentsync.types.FaceTrack) -> np.ndarray:
    """(frames - 1,) grey levels by which the mouth's region changes."""
    top, bottom, left, right = _mouth()
    crops = np.stack([crop[top:bottom, left:right] for crop in ruler.aligned_crops(path, track)])
    return np.abs(np.diff(crops.astype(np.float32), axis=0)).mean(axis=(1, 2, 3))


def _mouth() -> tuple[int, int, int, int]:
    box = pictures.mouth_box(ruler.CROP)
    return box.top, box.bottom, box.left, box.right


def borders(frames: int, overlap: int) -> list[int]:
    """The changes that lie where what one group made ends and the next begins."""
    groups = timeline.segments(np.arange(frames), np.ones(frames, bool), overlap=overlap)
    return [group.start - 1 for group in groups[1:]]


def main() -> None:
    parser = parser_of(__doc__, clips=6, seconds=4.0, seed=2000)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--size", type=int, default=256, help="px")
    asked = parser.parse_args()
    model, reader = latentsync.load("demo"), ruler.Ruler.load()
    with tempfile.TemporaryDirectory(prefix="seams-") as folder:
        cases = [
            draw_case(
                asked.seed,
                index,
                Path(folder),
                seconds=asked.seconds,
                size=asked.size,
                languages=TRAINED,
            )
            for index in range(asked.clips)
        ]
        tracks = [ruler.find_track(case.source, model.detector) for case in cases]
        truth = [changes(case.truth, track) for case, track in zip(cases, tracks, strict=True)]
        print(f"{'':10} border inside  jump     r  seconds")
        print(f"{'truth':10} {_line(truth, 0)}")
        for overlap in OVERLAPS:
            started, made, found = time.perf_counter(), [], []
            for case, track in zip(cases, tracks, strict=True):
                output = case.source.with_name(f"{overlap}_{case.source.name}")
                model.run(
                    case.source, case.voice, output, steps=asked.steps, seed=1, overlap=overlap
                )
                made.append(changes(output, track))
                found.append(_correlation(reader, output, track, case))
            seconds = time.perf_counter() - started
            print(
                f"overlap {overlap:2} {_line(made, overlap)} {np.mean(found):.3f} {seconds:8.1f}",
                flush=True,
            )


def _correlation(
    reader: ruler.Ruler, output: Path, track: latentsync.types.FaceTrack, case: Case
) -> float:
    crops = np.stack(list(ruler.aligned_crops(output, track)))
    count = min(len(crops), len(case.opening))
    return lips.lip_correlation(reader.measure(crops[:count])[:, 0], case.opening[:count]).at_zero


def _line(made: list[np.ndarray], overlap: int) -> str:
    at, inside = [], []
    for change in made:
        edges = borders(len(change) + 1, overlap)
        at.append(np.median(change[edges]))
        inside.append(np.median(np.delete(change, edges)))
    return f"{np.mean(at):6.2f} {np.mean(inside):6.2f} {np.mean(at) / np.mean(inside):5.2f}"


if __name__ == "__main__":
    main()
