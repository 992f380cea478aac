"""Recognition of a chosen person in the other shots, by their embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from latentsync.faces.tracking.embedding import Embedder
from latentsync.faces.tracking.linker import Tracklet
from latentsync.types import FloatArray

__all__ = ["ShotPerson", "recognise"]

MIN_MARGIN = 0.03  # of the similarity to the chosen person over that to anybody else


@dataclass(frozen=True)
class ShotPerson:
    """The chosen person in one shot."""

    person: Tracklet | None
    doubt: bool = False  # nobody is recognised, but somebody may be the chosen person


def recognise(
    shots: Sequence[Sequence[Tracklet]],
    embeddings: Sequence[FloatArray],
    chosen: Mapping[int, Tracklet],
    others: Sequence[FloatArray],
    embedder: Embedder,
) -> list[ShotPerson]:
    """Find the chosen person in each shot.

    The surest shot is decided first. Each embedding of the chosen person that is sure, and each of
    somebody seen beside them, helps to decide the shots that are left.

    Args:
        shots: the people of each shot.
        embeddings: of the chosen person: one at least.
        chosen: shot -> the chosen person, where that is known.
        others: embeddings of people who are known to be others.
    """
    embeddings, others, known = [*embeddings], [*others], dict(chosen)
    for shot, person in chosen.items():
        others += [p.embedding for p in shots[shot] if _share_a_frame(p, person)]
    while True:
        candidates = []
        for shot, people in enumerate(shots):
            if shot not in known and people:
                found = _find_surest(people, embeddings, others, embedder.same)
                candidates += [(found[0], shot, found[1])] if found else []
        if not candidates:
            break
        _, shot, person = max(candidates, key=lambda one: one[0])
        known[shot] = person
        embeddings.append(person.embedding)
        others += [p.embedding for p in shots[shot] if _share_a_frame(p, person)]
    recognised = []
    for shot, people in enumerate(shots):
        doubt = shot not in known and any(
            _is_possible(person, embeddings, others, embedder.other) for person in people
        )
        recognised.append(ShotPerson(known.get(shot), doubt))
    return recognised


def _find_surest(
    people: Sequence[Tracklet],
    embeddings: Sequence[FloatArray],
    others: Sequence[FloatArray],
    same: float,
) -> tuple[float, Tracklet] | None:
    """Return similarity and person of who is surely the chosen one; None: nobody is."""
    scores = [_max_similarity(person, embeddings) for person in people]
    best = int(np.argmax(scores))
    person, score = people[best], scores[best]
    beside = [s for p, s in zip(people, scores, strict=True) if _share_a_frame(p, person)]
    rival = max([*beside, _max_similarity(person, others)])
    return (score, person) if score >= same and score >= rival + MIN_MARGIN else None


def _is_possible(
    person: Tracklet, embeddings: Sequence[FloatArray], others: Sequence[FloatArray], other: float
) -> bool:
    """Whether a person may be the chosen one."""
    score = _max_similarity(person, embeddings)
    return score >= other and score > _max_similarity(person, others) - MIN_MARGIN


def _max_similarity(person: Tracklet, embeddings: Sequence[FloatArray]) -> float:
    return max((person.similarity(look) for look in embeddings), default=-1.0)


def _share_a_frame(one: Tracklet, other: Tracklet) -> bool:
    """Whether two people are seen in one frame."""
    return one is not other and bool(np.isin(one.frames, other.frames, assume_unique=True).any())
