"""Cuts between shots, and what looks like one."""

import cv2
import numpy as np
import pytest

from latentsync.faces.tracking.shots import detect_shots
from latentsync.media import VideoFrame
from latentsync.training.synthetic import Identity, Mouth, Pose, draw
from latentsync.types import Frame


def rooms() -> list[Frame]:
    rng = np.random.default_rng(5)
    return [cv2.resize(rng.integers(0, 256, (6, 30, 3), np.uint8), (960, 96)) for _ in range(3)]


def cuts(frames: list[Frame]) -> list[int]:
    seen = list(detect_shots(iter(frames)))
    assert [id(frame) for frame, _ in seen] == [id(frame) for frame in frames]
    return [i for i, (_, cut) in enumerate(seen) if cut]


def mixed(a: Frame, b: Frame, frames: int) -> list[Frame]:
    """So many frames between two."""
    shares = np.linspace(0, 1, frames + 2)[1:-1]
    return [((1 - s) * a + s * b).astype(np.uint8) for s in shares]


def test_cuts_and_what_is_none() -> None:
    wide = rooms()
    a, b, c = (room[:, :128] for room in wide)
    assert cuts([a] * 10 + [b] * 6 + [c] * 10) == [10, 16]
    for length in (1, 2, 3):
        flash = [np.full_like(a, 250)] * length
        assert cuts([a] * 10 + flash + [a] * 10) == []
    pan = [wide[0][:, x : x + 128] for x in range(0, 800, 50)]
    assert cuts([a] * 5 + pan + [pan[-1]] * 5) == []
    pictures = [*map(VideoFrame.from_rgb, [a] * 9 + [b] * 9)]
    assert [i for i, (_, cut) in enumerate(detect_shots(pictures)) if cut] == [9]
    smooth = cv2.resize(np.random.default_rng(6).integers(0, 256, (3, 16, 3), np.uint8), (1600, 96))
    for moved in (7, 9):  # px a frame; every fifth frame is left out
        steps = [2 * moved if i % 5 == 4 else moved for i in range(25)]
        assert cuts([smooth[:, x : x + 640] for x in np.cumsum([0, *steps])]) == []
    assert cuts([a] * 5 + [b]) == [5]
    assert cuts([a]) == cuts([]) == []
    assert cuts([np.ascontiguousarray(np.tile(x, (12, 12, 1))) for x in (a, a, b, b)]) == [2]


@pytest.mark.parametrize("length", [5, 14, 30, 70])
def test_a_shot_begins_where_a_dissolve_ends(length: int) -> None:
    a, b = (room[:, :128] for room in rooms()[:2])
    (begins,) = cuts([a] * 20 + mixed(a, b, length) + [b] * 20)
    assert 0 <= 20 + length - begins <= 0.03 * length + 1
    assert cuts([a] * 20 + mixed(a, b, length)) == []  # nobody knows whether it is over


def test_two_shots_with_black_between_them() -> None:
    a, b = (room[:, :128] for room in rooms()[:2])
    for length in (1, 12):
        black = [np.zeros_like(a)] * length
        faded = [*mixed(a, black[0], 10), *black]
        assert cuts([a] * 20 + faded + mixed(black[0], b, 10) + [b] * 9) == [40 + length]
        assert cuts([a] * 20 + faded + mixed(black[0], a, 10) + [a] * 9) == []


@pytest.mark.parametrize(("length", "most"), [(5, 5), (14, 14), (30, 30), (70, 50)])
def test_a_dissolve_says_in_how_many_frames_both_shots_are_seen(length: int, most: int) -> None:
    """A very long one is seen by its last part."""
    a, b = (room[:, :128] for room in rooms()[:2])
    (cut,) = [cut for _, cut in detect_shots([a] * 20 + mixed(a, b, length) + [b] * 20) if cut]
    assert 0.8 * most - 1 <= cut.dissolve <= most
    (hard,) = [cut for _, cut in detect_shots([a] * 9 + [b] * 9) if cut]
    assert hard.dissolve == 0


GRAPHICS = {
    "lower third": [(0, 68, 128, 22)],
    "caption in a box": [(12, 66, 80, 20)],
    "side bar": [(84, 0, 44, 96)],
    "half": [(0, 0, 64, 96)],
    "inset": [(76, 8, 40, 30)],
    "lower third and logo": [(0, 68, 128, 22), (102, 6, 20, 16)],
}


@pytest.mark.parametrize("name", GRAPHICS)
@pytest.mark.parametrize("cover", [1.0, 0.75])
@pytest.mark.parametrize("fade", [0, 8])
def test_a_graphic_over_part_of_the_picture_is_no_cut(name: str, cover: float, fade: int) -> None:
    """It comes at once or fades in, stays, and goes at once."""
    before, other = (room[:, :128] for room in rooms()[:2])
    moves = 12 if not fade else 60  # frames in which the camera moves by a pixel
    frames = [np.roll(before, i // moves, axis=1) for i in range(60)]
    for i in range(20, 45):
        share = cover * min(1.0, (i - 19) / (fade + 1))
        for x, y, width, height in GRAPHICS[name]:
            area = frames[i][y : y + height, x : x + width]
            area[:] = (area * (1 - share) + np.multiply((30, 40, 160), share)).astype(np.uint8)
    assert cuts(frames) == []
    # A cut under it is one all the same.
    assert cuts(
        [
            *frames[:20],
            *(np.where(np.arange(96)[:, None, None] > 68, f, other) for f in frames[20:]),
        ]
    ) == [20]


def test_who_takes_anothers_place_in_the_same_room_is_a_cut() -> None:
    """Most of the picture stays, as with a graphic."""
    room = Identity.from_seed(21)
    shots = [
        [
            draw(Identity.from_seed(who).in_room_of(room), Pose(tick=i), Mouth(), (160, 90))[0]
            for i in range(4)
        ]
        for who in (9016, 9015)
    ]
    assert cuts([frame for shot in shots for frame in shot]) == [4]


def test_what_looks_like_a_dissolve() -> None:
    a = rooms()[0][:, :128]
    dark = (0.4 * a).astype(np.uint8)
    assert cuts([a] * 20 + mixed(a, dark, 12) + [dark] * 20) == []
    columns = np.linspace(0, 2 * np.pi, 128)[None, :, None]
    for far in np.linspace(0.3, np.pi, 10):
        way = [0.0] * 20 + np.linspace(0, far, 12).tolist() + [far] * 20
        pan = [np.tile(128 + 90 * np.sin(columns + at), (96, 1, 3)).astype(np.uint8) for at in way]
        assert cuts(pan) == []
