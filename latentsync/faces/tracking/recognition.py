"""Who of each shot's people is the one that was chosen in another shot, told by looks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latentsync.faces.tracking.embedding import Embedder
from latentsync.faces.tracking.linker import Tracklet
from latentsync.types import FloatArray

__all__ = ["Taken", "recognise"]

MIN_MARGIN = 0.03  # of the similarity to the chosen person over that to anybody else


@dataclass(frozen=True)
class Taken:
    """Who is taken in one shot."""

    person: Tracklet | None
    doubt: bool = False  # nobody is taken, but somebody there may be the chosen person


def recognise(
    shots: Sequence[Sequence[Tracklet]],
    looks: Sequence[FloatArray],
    chosen: Mapping[int, Tracklet],
    others: Sequence[FloatArray],
    embedder: Embedder,
) -> list[Taken]:
    """Who is taken in each shot.

    The surest shot is decided first. Each look at the chosen person that is sure, and each at
    somebody seen beside them, helps to decide the shots that are left.

    Args:
        shots: the people of each shot.
        looks: what the chosen person looks like: one at least.
        chosen: shot -> the person who is taken there, where that is known.
        others: what people look like who are known to be others.
    """
    looks, others, taken = [*looks], [*others], dict(chosen)
    for shot, person in chosen.items():
        others += [p.embedding for p in shots[shot] if _together(p, person)]
    while True:
        left = [shot for shot in range(len(shots)) if shot not in taken and shots[shot]]
        found = [(shot, _surest(shots[shot], looks, others, embedder.same)) for shot in left]
        sure = [(score, shot, person) for shot, one in found if one for score, person in [one]]
        if not sure:
            break
        _, shot, person = max(sure, key=lambda one: one[0])
        taken[shot] = person
        looks.append(person.embedding)
        others += [p.embedding for p in shots[shot] if _together(p, person)]
    return [
        Taken(taken[shot])
        if shot in taken
        else Taken(None, any(_maybe(p, looks, others, embedder.other) for p in people))
        for shot, people in enumerate(shots)
    ]


def _surest(
    people: Sequence[Tracklet],
    looks: Sequence[FloatArray],
    others: Sequence[FloatArray],
    same: float,
) -> tuple[float, Tracklet] | None:
    """The likeness of who is surely the chosen person, and who that is; None: nobody surely is."""
    scores = [_most(person, looks) for person in people]
    best = int(np.argmax(scores))
    person, score = people[best], scores[best]
    beside = [s for p, s in zip(people, scores, strict=True) if _together(p, person)]
    rival = max([*beside, _most(person, others)])
    return (score, person) if score >= same and score >= rival + MIN_MARGIN else None


def _maybe(
    person: Tracklet, looks: Sequence[FloatArray], others: Sequence[FloatArray], other: float
) -> bool:
    """Whether somebody may be the chosen person."""
    score = _most(person, looks)
    return score >= other and score > _most(person, others) - MIN_MARGIN


def _most(person: Tracklet, looks: Sequence[FloatArray]) -> float:
    return max((person.similarity(look) for look in looks), default=-1.0)


def _together(one: Tracklet, other: Tracklet) -> bool:
    """Whether two people are seen in one frame."""
    return one is not other and bool(np.isin(one.frames, other.frames, assume_unique=True).any())
