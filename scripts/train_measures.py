"""Train the two nets that measure a face, on drawn ones: the landmark net and the mouth net.

    python scripts/train_measures.py --folder out/measures

Draws what the folder lacks, trains (resuming an earlier run), reports on people that are not in the
training set, and writes weights/demo/landmarks.safetensors and ruler.safetensors. Takes about 20
minutes on one core, half of them training; repeatable on one machine.
"""

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

from latentsync.faces import Builtin, Detector, track
from latentsync.faces.detectors.landmarks import ANCHORS
from latentsync.runtime.files import replacing
from latentsync.training.loop import fit
from latentsync.training.settings import TrainConfig
from latentsync.training.synthetic import Identity, Mouth, draw, draw_take, frames_of, landmarks
from latentsync.training.synthetic.clips import draw_crops
from latentsync.training.synthetic.geometry import scene_view
from latentsync.training.synthetic.scenes import (
    Portraits,
    draw_faceless,
    draw_mouth,
    draw_portraits,
    draw_pose,
)
from latentsync.training.tasks.regression import (
    MEASURES,
    LandmarkTask,
    MouthClips,
    MouthNetTask,
    correlations,
)
from latentsync.types import Frame

DEMO = Path(__file__).parent.parent / "weights" / "demo"
TRAIN_SEED, CHECK_SEED = 1, 101
LANDMARKS = TrainConfig("landmarks", steps=1200, batch=64, learning_rate=2e-3, ema_decay=0.995)
MOUTH = TrainConfig("ruler", steps=1000, batch=64, learning_rate=2e-3, ema_decay=0.995)
CROP = 96  # px
JITTER = 0.03  # of the crops' alignment, share of the brows' distance
Arrays = dict[str, np.ndarray[Any, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path("out/measures"))
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    cv2.setNumThreads(1)
    torch.set_num_threads(1)

    # -- Draw ----------------------------------------------------------------------------------
    known = Portraits(**drawn(folder, "portraits", TRAIN_SEED, 320, 15))
    unknown = Portraits(**drawn(folder, "portraits", CHECK_SEED, 40, 5))
    faceless = drawn(folder, "faceless", TRAIN_SEED, 2000)["pixels"]
    clips = MouthClips(**drawn(folder, "clips", TRAIN_SEED, 320, 24))
    others = MouthClips(**drawn(folder, "clips", CHECK_SEED, 24, 50))

    # -- Train ---------------------------------------------------------------------------------
    torch.manual_seed(TRAIN_SEED)
    landmark_task = LandmarkTask(known, faceless, unknown, LANDMARKS.batch)
    save(fit(landmark_task, LANDMARKS, folder), LANDMARKS.name)
    torch.manual_seed(TRAIN_SEED)
    mouth_net = save(fit(MouthNetTask(clips, others, MOUTH.batch), MOUTH, folder), MOUTH.name)

    # -- Report --------------------------------------------------------------------------------
    detector = Builtin(file=DEMO / "landmarks.safetensors")
    report_landmarks(detector)
    report_false_faces(detector)
    report_jitter(detector)
    report_mouth_net(mouth_net, others)


def drawn(folder: Path, kind: str, seed: int, count: int, frames: int = 1) -> Arrays:
    """Load this kind of pictures of a seed from the folder; draw them first if they are missing."""
    file = folder / f"{kind}_{seed}_{count}_{frames}.npz"
    if not file.is_file():
        logging.info("drawing %s", file.name)
        artist = {"portraits": draw_people, "faceless": draw_nobody, "clips": draw_clips}[kind]
        arrays = artist(seed, count, frames)
        with replacing(file) as temporary, temporary.open("wb") as opened:
            np.savez(opened, **arrays)  # type: ignore[arg-type]
    with np.load(file) as arrays:
        return dict(arrays)


def draw_people(seed: int, people: int, frames: int) -> Arrays:
    pictures = draw_portraits(seed, people, frames)
    return {"pixels": pictures.pixels, "points": pictures.points}


def draw_nobody(seed: int, count: int, _: int) -> Arrays:
    rng = np.random.default_rng([seed, 8])
    return {"pixels": np.stack([draw_faceless(rng, 144, 144) for _ in range(count)])}


def draw_clips(seed: int, count: int, frames: int) -> Arrays:
    """(clips, frames, 96, 96, 3) aligned crops and their true mouths (clips, frames, 3)."""
    pixels, mouths = [], []
    for index in range(count):
        take = draw_take(seed, index, seconds=6.0)
        rng = np.random.default_rng([seed, index, 9])
        windows = draw_crops(take, rng, windows=frames, frames=1, size=CROP, jitter=JITTER)
        pixels.append(windows.pixels[:, 0])
        mouths.append(windows.mouths[:, 0])
    return {"pixels": np.stack(pixels), "mouths": np.stack(mouths)}


def save(net: nn.Module, name: str) -> nn.Module:
    """Write the net in fp16; return it with these rounded weights."""
    state = {key: value.half().contiguous() for key, value in net.state_dict().items()}
    file = DEMO / f"{name}.safetensors"
    save_file(state, file)
    file.chmod(0o644)  # safetensors leaves it to its owner alone
    print(f"{file.name}: {file.stat().st_size / 1e6:.2f} MB")
    net.load_state_dict(state)
    return net


def report_landmarks(detector: Detector, people: int = 120, frames: int = 3) -> None:
    """Print how many faces are found in frames of unseen people, and their landmarks' errors."""
    errors, missed, extra = [], 0, 0
    for person in range(people):
        rng = np.random.default_rng([CHECK_SEED, person, 10])
        who = Identity.from_seed(int(rng.integers(1 << 41, 1 << 42)))
        own = []
        for _ in range(frames):
            zoom = float(rng.uniform(0.6, 1.4))
            frame, points = draw(who, draw_pose(rng), draw_mouth(rng), (512, 512), zoom=zoom)
            found = detector.detect(frame)
            truth = points[ANCHORS]
            right = truth[1] - truth[0]
            turn = np.array([right, [-right[1], right[0]]]) / (right @ right)
            off = [(face.points - truth) @ turn.T for face in found]
            near = [error for error in off if np.abs(error).max() < 0.25]
            missed, extra = missed + (not near), extra + len(found) - len(near[:1])
            own += near[:1]
        if own:
            errors.append(np.mean(own, axis=0))
    bias, slow = np.mean(errors, axis=0), np.std(errors, axis=0)
    count = people * frames
    print(f"found {count - missed} of {count} drawn faces, {extra} false ones beside them")
    for name, b, s in zip(("left brow", "right brow", "nose base"), bias, slow, strict=True):
        print(
            f"  {name}: bias {b[0]:+.2%} along, {b[1]:+.2%} down; "
            f"a person's mean is off by (sd) {s[0]:.2%}, {s[1]:.2%}"
        )


def report_false_faces(detector: Detector, count: int = 500) -> None:
    rng = np.random.default_rng([CHECK_SEED, 11])
    sizes = ((480, 360), (640, 360), (360, 640), (512, 512))
    false = sum(
        bool(detector.detect(draw_faceless(rng, *sizes[rng.integers(len(sizes))])))
        for _ in range(count)
    )
    print(f"a face in {false} of {count} faceless frames")


def report_jitter(detector: Detector, people: int = 12, seconds: float = 2.0) -> None:
    """Print the sd over time of each anchor, on clips of talking heads that are held still."""
    spreads = []
    for person in range(people):
        take = draw_take(CHECK_SEED, 1000 + person, seconds)
        still = take.poses[0]
        poses = [replace(still, blink=p.blink, tick=p.tick, gaze_x=p.gaze_x) for p in take.poses]
        points = track(frames_of(replace(take, poses=poses), (512, 512)), detector)
        steady = landmarks(take.identity, still, Mouth(), scene_view(512, 512, take.zoom))
        eyes = float(np.linalg.norm(steady[3] - steady[2]))
        spreads.append(points.points[points.detected].std(axis=0) / eyes)
    print(
        f"jitter of a still head: {np.mean(spreads):.2%} of the eyes' distance, "
        f"{np.max(spreads):.2%} at most"
    )


def report_mouth_net(net: nn.Module, clips: MouthClips) -> None:
    for name, change in SPOILT.items():
        pixels = np.array([[change(crop) for crop in clip] for clip in clips.pixels])
        found = correlations(net, pixels, clips.mouths)
        figures = ", ".join(f"{m} {r:.3f}" for m, r in zip(MEASURES, found, strict=True))
        print(f"mouth net on unseen people, {name}: {figures}")


def squeezed(crop: Frame, side: int) -> Frame:
    small = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, crop.shape[:2], interpolation=cv2.INTER_CUBIC), np.uint8)


def packed(crop: Frame, quality: int) -> Frame:
    _, data = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


SPOILT: dict[str, Callable[[Frame], Frame]] = {
    "as drawn": lambda crop: crop,
    "blurred (sd 1.5 of 96 px)": lambda crop: cv2.GaussianBlur(crop, (0, 0), 1.5),
    "JPEG 30": lambda crop: packed(crop, 30),
    "through 64 px": lambda crop: squeezed(crop, 64),
    "through 48 px, JPEG 30": lambda crop: packed(squeezed(crop, 48), 30),
}


if __name__ == "__main__":
    main()
