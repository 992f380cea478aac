"""Fit the projection that tells people apart (faces/tracking/embedding.py) to drawn people.

    python scripts/train_likeness.py

Draws 132 people in three rooms each and writes weights/demo/likeness.safetensors; takes two minutes
on one core. benchmarks/likeness.py measures it on other people.
"""

import argparse
from pathlib import Path

import cv2
import numpy as np
from safetensors.numpy import save_file

from latentsync.faces.tracking.embedding import FILE
from latentsync.training.synthetic.scenes import draw_looks
from latentsync.training.tasks.likeness import fit_projection

SEED = 1
PEOPLE = 132
AXES = 40
SHRINKAGE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--people", type=int, default=PEOPLE)
    parser.add_argument("--output", type=Path, default=FILE)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    looks, _ = draw_looks(SEED, arguments.people)
    flat = looks.reshape(arguments.people, -1, looks.shape[-1])
    mean, axes = fit_projection(flat, AXES, SHRINKAGE)
    save_file({"mean": mean.astype(np.float16), "axes": axes.astype(np.float16)}, arguments.output)
    arguments.output.chmod(0o644)  # safetensors leaves it to its owner alone
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
