"""Whose face is redrawn in films of several people, counted in frames: 0 of anybody else."""

import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from latentsync import LipSync, faces
from latentsync.faces import FaceChoice, PointTrack, TrackSelection, track_people
from latentsync.media import VideoFrame
from tests.clips import babble, raw_frames, write_clip, write_picture, write_sound
from tests.footage.films import FILMS, HEIGHT, SIDES, WIDTH, Film, film

WORDS = ("largest", "left", "right", "center")
FAST = tuple(replace(shot, frames=6) for shot in SIDES)
# Least share of their frames in which who is chosen by a point is redrawn: less in films with
# several rooms, and where the detector misses faces.
LEAST = {"dissolves": 0.15, "three": 0.3, "four": 0.3}


def scene_of(drawn: Film, *choices: FaceChoice, every: int = 1) -> TrackSelection:
    detector = faces.create("builtin", root=Path("none"))
    frames = (VideoFrame.from_rgb(frame) for frame in drawn.frames)
    return track_people(frames, detector, [*choices, faces.LARGEST], detect_every=every)


def redrawn(track: PointTrack, drawn: Film) -> Counter[str]:
    """Frames in which each person is redrawn; "?" where nobody is."""
    count: Counter[str] = Counter()
    for points, found, seen in zip(track.points, track.detected, drawn.faces, strict=True):
        if found:
            x, y = points.mean(axis=0)
            whose = [
                who
                for who, box in seen.items()
                if box.left <= x < box.right and box.top <= y < box.bottom
            ]
            count.update(whose or ["?"])
    return count


def places(drawn: Film, scene: TrackSelection) -> list[tuple[str, str]]:
    """Who, and a point on them: in the first and in the last frame in which they are found."""
    found = []
    for person in scene.people:
        track = redrawn_by_box(person.frames, person.boxes, drawn)
        for at in (0, -1) if len(person.frames) > 4 and track else ():
            (x, y), frame = person.boxes[at].reshape(2, 2).mean(axis=0), person.frames[at]
            if track in drawn.faces[frame]:
                found.append((track, f"{x:.0f},{y:.0f}@{frame / 25:g}"))
    return found


def redrawn_by_box(frames: np.ndarray, boxes: np.ndarray, drawn: Film) -> str | None:
    """Whose face the boxes are around; None: several people's, or nobody's."""
    whose = set()
    for index, box in zip(frames, boxes, strict=True):
        x, y = box.reshape(2, 2).mean(axis=0)
        whose |= {w for w, b in drawn.faces[index].items() if b.left <= x < b.right and b.top <= y}
    return whose.pop() if len(whose) == 1 else None


@pytest.mark.slow
@pytest.mark.parametrize("name", FILMS)
def test_the_chosen_person_is_redrawn_and_nobody_else(name: str, tmp_path: Path) -> None:
    drawn = film(FILMS[name])
    scene = scene_of(drawn)
    shown = Counter(who for seen in drawn.faces for who in seen)
    for word in WORDS:
        (track,) = scene.tracks(FaceChoice.parse(word))
        counts = redrawn(track, drawn)
        assert len(counts) == 1, (word, counts, track.gaps)
    for who, point in places(drawn, scene):
        (track,) = scene.tracks(FaceChoice.parse(point))
        counts = redrawn(track, drawn)
        assert set(counts) == {who}, (who, point, counts, track.gaps)
        assert counts[who] >= LEAST.get(name, 0.7) * shown[who], (who, point, track.gaps)
    chosen = [boxed(drawn, who) for who in shown]
    pictures = {who: picture_of(drawn, who, tmp_path / f"{who}.png") for who in shown}
    chosen += [(who, FaceChoice.parse(str(path))) for who, path in pictures.items() if path]
    scene = scene_of(drawn, *(choice for _, choice in chosen))
    for who, choice in chosen:
        (track,) = scene.tracks(choice)
        assert set(redrawn(track, drawn)) <= {who}, (who, choice, track.gaps)
    left, right = scene.speakers([FaceChoice.parse("left"), FaceChoice.parse("right")])
    for track in (left, right):
        assert len(redrawn(track, drawn)) == 1
    assert not (
        left.detected & right.detected & (left.points == right.points).all(axis=(1, 2))
    ).any()


def boxed(drawn: Film, who: str) -> tuple[str, FaceChoice]:
    """A box around somebody in the middle of the frames in which they are seen."""
    seen = [index for index, there in enumerate(drawn.faces) if who in there]
    index = seen[len(seen) // 2]
    box = drawn.faces[index][who]
    text = f"{box.left},{box.top},{box.width},{box.height}@{index / 25:g}"
    return who, FaceChoice.parse(text)


def picture_of(drawn: Film, who: str, path: Path) -> Path | None:
    """A frame in which somebody is alone, as a photograph; None: there is none."""
    alone = [index for index, there in enumerate(drawn.faces) if set(there) == {who}]
    return write_picture(path, drawn.frames[alone[len(alone) // 2]]) if alone else None


def test_sides_change_and_the_person_stays() -> None:
    """Both, the right one alone, both with sides changed, the left one alone."""
    drawn = film(FAST)
    scene = scene_of(drawn, every=3)
    assert np.flatnonzero(scene.shot_start).tolist() == drawn.cuts
    expected = {"left": "ann", "right": "ben", f"{WIDTH / 2},150@0.76": "ann"}
    expected |= {f"{WIDTH / 2},150@0.3": "ben"}
    for choice, who in expected.items():
        (track,) = scene.tracks(FaceChoice.parse(choice))
        assert redrawn(track, drawn) == {who: 18}, (choice, track.gaps)
    (track,) = scene.tracks(FaceChoice.parse("left"))
    assert [len(shot.faces) for shot in track.shots] == [2, 1, 2, 1]


@pytest.mark.slow
def test_the_output_differs_from_the_clip_on_the_chosen_person_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A whole run, measured in the output's pixels; its report names cuts, faces, who is taken."""
    drawn = film(SIDES)
    clip = tmp_path / "clip.mp4"
    write_clip(clip, drawn.frames, size=(WIDTH, HEIGHT), crf="0")
    voice = write_sound(tmp_path / "voice.wav", babble(len(drawn.frames) / 25))
    model = LipSync.load("demo", device="cpu")
    with caplog.at_level(logging.INFO):
        result = model.run(clip, voice, tmp_path / "out.mp4", face="left", steps=1, crf=0, seed=1)
    pairs = zip(raw_frames(tmp_path / "out.mp4"), raw_frames(clip), drawn.faces, strict=True)
    counts: Counter[str] = Counter()
    for (now, *_), (before, *_), seen in pairs:
        off = cv2.absdiff(now, before) > 6
        for who, box in seen.items():
            counts[who] += bool(off[box.top : box.bottom, box.left : box.right].mean() > 0.02)
    assert counts["ben"] == 0
    assert counts["ann"] >= 70  # of 75, of which some fade in and out
    assert result.cuts == (25, 50, 75)
    assert [len(shot.faces) for shot in result.shots] == [2, 1, 2, 1]
    assert result.lost == ((25, 50, "nobody in this shot is meant"),)
    assert "cuts at 1.00, 2.00, 3.00 s" in caplog.text
    assert "1.00-2.00 s: 1 face, at" in caplog.text
