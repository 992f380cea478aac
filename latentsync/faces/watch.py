"""Frame by frame, which faces are there: searched for, followed, looked for once more."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from latentsync.faces.base import Detector
from latentsync.faces.cuts import Cut
from latentsync.faces.people import Linker, Person, apart, stayed
from latentsync.faces.view import Shown, View
from latentsync.types import Face

__all__ = ["Watch"]

SECOND_LOOKS = 2  # a frame, at most: a crowd that leaves must not cost more than that
TANGLED = 0.5  # of their size: closer than this, two faces that are followed may be one


class Watch:
    """Hands each frame's faces to a linker; who was there a moment ago is looked for once more.

    The whole frame is searched in one of `every`, at a cut, where a face that is followed isn't
    sure, and as long as somebody is missed. In the others those of the frame before are followed,
    so who is new there is seen up to `every` - 1 frames late.
    """

    def __init__(self, detector: Detector, linker: Linker, every: int, *, rounded: bool) -> None:
        self._detector, self._linker, self._every = detector, linker, every
        self._rounded = rounded
        self._last: list[Face] = []
        self._next_search = 0

    def see(self, index: int, frame: Shown, *, cut: Cut | None) -> int:
        """The clip's next frame, and whether a new shot begins with it; how many faces it has."""
        if cut:
            self._linker.end_shot(index - cut.dissolve)
        seen = None if cut or index >= self._next_search else self._followed(frame)
        if seen is None:
            seen = self._detector.detect(frame, rounded=self._rounded)
            self._next_search = index + self._every
        self._linker.add(index, frame, seen)
        view = View(frame)
        missing = self._linker.missing(index, (view.width, view.height))
        for person, near in missing[:SECOND_LOOKS]:
            again = self._detector.detect(frame, rounded=self._rounded, near=near)
            face = self._linker.add_second(index, frame, person, again, seen)
            seen = [*seen, face] if face else seen
        if any(person.last < index for person, _ in missing):
            self._next_search = index + 1
        self._last = seen
        return len(seen)

    def people(self) -> list[Person]:
        """Of all shots; after the last frame."""
        self._linker.end_shot()
        return self._linker.people

    def _followed(self, frame: Shown) -> list[Face] | None:
        """The last frame's faces in this one, largest first; None where a search is due."""
        now = self._detector.follow(frame, self._last, rounded=self._rounded)
        pairs = zip(self._last, now, strict=True)
        faces = [face for before, face in pairs if face and stayed(before, face)]
        if len(faces) < len(self._last) or _tangled(faces):
            return None
        return sorted(faces, key=lambda face: -face.area)


def _tangled(faces: Sequence[Face]) -> bool:
    return any(apart(one, np.array(other.box)) < TANGLED for one, other in combinations(faces, 2))
