"""Cuts between shots, and what looks like one."""

import cv2
import numpy as np

from latentsync.faces.cuts import with_cuts
from latentsync.media import VideoFrame
from latentsync.types import Frame


def test_cuts_and_what_is_none() -> None:
    rng = np.random.default_rng(5)
    rooms = [cv2.resize(rng.integers(0, 256, (6, 30, 3), np.uint8), (960, 96)) for _ in range(3)]

    def cuts(frames: list[Frame]) -> list[int]:
        seen = list(with_cuts(iter(frames)))
        assert [id(frame) for frame, _ in seen] == [id(frame) for frame in frames]
        return [i for i, (_, cut) in enumerate(seen) if cut]

    a, b, c = (room[:, :128] for room in rooms)
    assert cuts([a] * 10 + [b] * 6 + [c] * 10) == [10, 16]
    for length in (1, 2, 3):
        flash = [np.full_like(a, 250)] * length
        assert cuts([a] * 10 + flash + [a] * 10) == []
    pan = [rooms[0][:, x : x + 128] for x in range(0, 800, 50)]
    assert cuts([a] * 5 + pan + [pan[-1]] * 5) == []
    assert [cut for _, cut in with_cuts(map(VideoFrame.from_rgb, [a] * 9 + [b] * 9))].index(
        True
    ) == 9
    dissolve = [((1 - s) * a + s * b).astype(np.uint8) for s in np.linspace(0, 1, 14)]
    assert cuts(dissolve) == []
    assert cuts([a] * 5 + [b]) == [5]
    assert cuts([a]) == cuts([]) == []
    assert cuts([np.ascontiguousarray(np.tile(x, (12, 12, 1))) for x in (a, a, b, b)]) == [2]
