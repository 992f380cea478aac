"""Patches of drawn people in several rooms: what `faces.likeness` is fitted to and measured on."""

from dataclasses import replace

import numpy as np

from latentsync.faces.tracking.embedding import CELLS, cells
from latentsync.training.synthetic.heads import draw
from latentsync.training.synthetic.identity import Identity
from latentsync.training.synthetic.motion import draw_motion
from latentsync.training.synthetic.scenes import draw_mouth
from latentsync.types import FloatArray, IntArray

__all__ = ["draw_looks"]

SIZE = (320, 180)  # px
MISPLACED = 0.012  # of the brows' distance, standard deviation: how far off a landmark is
TURNS = 12  # frames between two looks of one set-up
ROOMS = 24  # in which all people of a seed are


def draw_looks(
    seed: int, people: int, rooms: int = 3, setups: int = 2, looks: int = 3
) -> tuple[FloatArray, IntArray]:
    """Cells (people, rooms * setups, looks, CELLS), and the room of each set-up (people, ...).

    Each person is in `rooms` rooms and lights, and in each filmed from `setups` distances and at as
    many places, by cameras that all people of a seed share. No person is in a clip of `draw_take`.
    """
    made = np.zeros((people, rooms * setups, looks, CELLS), np.float32)
    where = np.zeros((people, rooms * setups), np.int64)
    places = [Identity.from_seed((1 << 42) + seed * ROOMS + room) for room in range(ROOMS)]
    for person in range(people):
        rng = np.random.default_rng([seed, person, 12])
        who = Identity.from_seed(int(rng.integers(1 << 43, 1 << 44)))
        chosen = np.repeat(rng.choice(ROOMS, rooms, replace=False), setups)
        where[person] = chosen
        for setup, room in enumerate(chosen):
            there = who.in_room_of(places[room])
            zoom, x = float(rng.uniform(0.6, 1.3)), float(rng.uniform(-1.5, 1.5))
            poses = draw_motion(rng, TURNS * looks, amount=float(rng.uniform(0.4, 1.3)))
            for look, pose in enumerate(poses[::TURNS]):
                moved = replace(pose, x=pose.x + x)
                frame, marks = draw(there, moved, draw_mouth(rng), SIZE, zoom=zoom)
                points = marks[[0, 1, 4]]
                brows = np.linalg.norm(points[1] - points[0])
                off = rng.normal(0, MISPLACED * brows, (3, 2)).astype(np.float32)
                made[person, setup, look] = cells(frame, points + off)
    return made, where
