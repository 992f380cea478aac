"""The two tasks: what they learn from, and the committed nets on freshly drawn unseen people."""

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from latentsync.faces.detectors.landmark_net import SIDE, PointNet, Regressor
from latentsync.faces.detectors.landmarks import ANCHORS, MIRRORED
from latentsync.training.loop import fit
from latentsync.training.settings import TrainConfig
from latentsync.training.synthetic import (
    Identity,
    Mouth,
    Pose,
    crop_affine,
    draw,
    draw_crop,
    measure,
)
from latentsync.training.synthetic.scenes import (
    Portraits,
    draw_faceless,
    draw_mouth,
    draw_portraits,
)
from latentsync.training.tasks import regression
from latentsync.training.tasks.regression import (
    LandmarkTask,
    MouthClips,
    MouthNetTask,
    correlations,
    degrade,
)

DEMO = Path(__file__).parent.parent / "weights" / "demo"


@pytest.fixture(scope="module")
def portraits() -> Portraits:
    """People of a seed that training doesn't use."""
    return draw_portraits(500, 6, 3)


@pytest.fixture(scope="module")
def faceless() -> np.ndarray:
    rng = np.random.default_rng(500)
    return np.stack([draw_faceless(rng, 144, 144) for _ in range(20)])


@pytest.fixture(scope="module")
def clips() -> MouthClips:
    """Aligned crops of unseen people, a little misaligned, their mouths by chance."""
    pixels, mouths = np.empty((6, 24, 96, 96, 3), np.uint8), np.empty((6, 24, 3), np.float32)
    for person, frame in np.ndindex(6, 24):
        rng = np.random.default_rng([500, person, frame])
        who, mouth, pose = Identity.from_seed(880_000 + person), draw_mouth(rng), Pose(tick=frame)
        view = crop_affine(who, pose, 96)
        view[:, 2] += rng.normal(0, 1.0, 2)
        pixels[person, frame], _ = draw_crop(who, pose, mouth, 96, view)
        mouths[person, frame] = measure(who, mouth)
    return MouthClips(pixels, mouths)


def darkness(face: np.ndarray, points: np.ndarray) -> float:
    """How dark the pupils' places are against the picture, in its standard deviations."""
    places = np.clip(((points[2:4] + 1) * SIDE / 2).astype(int), 1, SIDE - 2)
    grey = face.mean(axis=2)
    dark = np.mean([grey[y - 1 : y + 2, x - 1 : x + 2].mean() for x, y in places])
    return float((dark - grey.mean()) / grey.std())


def test_points_stay_on_the_face(portraits, faceless, monkeypatch) -> None:
    """Through every turn, bend and mirror the eyes' points stay where the eyes are."""
    monkeypatch.setattr(regression, "degrade", lambda _rng, picture, **_: picture)
    monkeypatch.setattr(regression, "_covered", lambda _rng, picture, _others: picture)
    fair, dark = (244, 208, 184), (40, 24, 18)
    who = replace(Identity.from_seed(7), skin=fair, iris=dark, glasses="none", hair_style="short")
    drawn = [draw(who, Pose(yaw=yaw), Mouth(), (144, 144)) for yaw in (-0.3, 0.0, 0.3)]
    faces = Portraits(*(np.stack(part) for part in zip(*drawn, strict=True)))
    task = LandmarkTask(faces, faceless, portraits, batch=8)
    rng = np.random.default_rng(3)
    samples = [task._face(rng) for _ in range(60)]
    assert np.mean([darkness(*sample) for sample in samples]) < -0.7
    assert all(points[2, 0] < points[3, 0] for _, points in samples)  # left is left


def test_a_step_is_a_function_of_its_generator(portraits, faceless, clips) -> None:
    for task in (LandmarkTask(portraits, faceless, portraits, 6), MouthNetTask(clips, clips, 4)):
        task.net.eval()
        first, again, other = (
            {k: v.item() for k, v in task.losses(torch.Generator().manual_seed(s)).items()}
            for s in (1, 1, 2)
        )
        assert first == again
        assert first != other


def test_both_learn(portraits, faceless, clips, tmp_path) -> None:
    """A few steps bring the loss down, and the figures that are reported are there."""
    torch.manual_seed(0)
    for name, task, figures in (
        ("landmarks", LandmarkTask(portraits, faceless, portraits, 8), {"error", "bias", "seen"}),
        ("ruler", MouthNetTask(clips, clips, 8), {"opening", "width", "rounding"}),
    ):
        config = TrainConfig(name, steps=25, batch=8, learning_rate=2e-3, warmup_steps=2)
        with torch.no_grad():
            assert set(task.validate()) == figures
        generator = torch.Generator().manual_seed(9)
        before = sum(v.item() for v in task.losses(generator).values())
        fit(task, config, tmp_path)
        generator = torch.Generator().manual_seed(9)
        assert sum(v.item() for v in task.losses(generator).values()) < 0.9 * before


def test_spoilt_pictures_keep_their_form() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    for strength in (0.0, 1.0):
        degraded = [degrade(rng, picture, strength) for _ in range(30)]
        assert {(p.shape, p.dtype) for p in degraded} == {((SIDE, SIDE, 3), np.dtype(np.uint8))}
        assert len({p.tobytes() for p in degraded}) > 10


def test_committed_landmarks_on_unseen_people(portraits, faceless) -> None:
    task = LandmarkTask(portraits, faceless, portraits, 8)
    net = PointNet(12)
    net.load_state_dict(load_file(DEMO / "landmarks.safetensors"))
    task.net = net.eval()
    with torch.no_grad():
        figures = task.validate()
    assert figures["error"] < 0.03
    assert figures["seen"] == 1


@pytest.mark.parametrize("side", [96, 64, 48])
def test_committed_mouth_net_on_unseen_people(clips, side: int) -> None:
    """Also where the crop has come through fewer pixels, as generated mouths do."""
    net = Regressor(3)
    net.load_state_dict(load_file(DEMO / "ruler.safetensors"))
    small = [[cv2.resize(crop, (side, side)) for crop in clip] for clip in clips.pixels]
    back = np.array([[cv2.resize(crop, (96, 96)) for crop in clip] for clip in small])
    opening, width, rounding = correlations(net.eval(), back, clips.mouths)
    assert opening > 0.97
    assert width > 0.85
    assert rounding > 0.75


def test_mirrored_twice_is_as_it_was() -> None:
    assert [MIRRORED[i] for i in MIRRORED] == list(range(12))
    assert {MIRRORED[i] for i in ANCHORS} == set(ANCHORS)
