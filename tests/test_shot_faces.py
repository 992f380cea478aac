"""What is said of cuts and faces, and of who was taken: in the log, the report, the summary."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest

from latentsync.cli.generate import _summary
from latentsync.errors import WeightsMismatch, WeightsMissing
from latentsync.faces.tracking.embedding import CELLS, PatchEmbedding, normalise
from latentsync.faces.tracking.linker import EMBED_EVERY_FRAMES, TrackAssociator
from latentsync.training.synthetic.scenes import draw_looks
from latentsync.training.tasks.likeness import fit_projection
from latentsync.types import Face, FaceTrack, ShotFaces
from tests.page_stub import result_of
from tests.test_following import LEFT, RIGHT, clip, lipsync, run


@pytest.mark.parametrize("side", ["left", "center"])
def test_the_only_face_that_is_found_is_not_taken_for_a_side_without_a_word(tmp_path, caplog, side):
    """Of a couple only one is found; also where the faces are known from a run before."""
    source, out = clip(tmp_path / "clip.mp4", 10), tmp_path / "out.mp4"
    for known in (False, True):
        caplog.clear()
        model = lipsync(lambda _: [RIGHT])
        result = run(model, out, 10, source, face=side, cache_dir=str(tmp_path / "cache"))
        assert bool(model.detector.seen) != known
        (said,) = [one.message for one in caplog.records if one.levelno == logging.WARNING]
        assert f"face {side}: no shot has more than one face that was found" in said
        assert "at 220,102 px" in said
        assert result.shots == (ShotFaces(0, 10, ((220, 102),), (0,)),)


def test_nothing_is_warned_of_where_there_is_a_choice(tmp_path, caplog):
    source, out = clip(tmp_path / "clip.mp4", 10), tmp_path / "out.mp4"
    with caplog.at_level(logging.INFO):
        result = run(lipsync(lambda _: [RIGHT, LEFT]), out, 10, source, face="left", report=True)
    assert not [one for one in caplog.records if one.levelno == logging.WARNING]
    assert "no cuts" in caplog.messages
    assert "0.00-0.40 s: 2 faces, at 220,102 and 50,102; taken: 50,102" in caplog.messages
    assert result.shots == (ShotFaces(0, 10, ((220, 102), (50, 102)), (1,)),)
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["cuts"] == []
    assert told["shots"] == [
        {"start": 0, "stop": 10, "faces": [[220, 102], [50, 102]], "taken": [1]}
    ]
    assert "found 2 faces, at 220,102 and 50,102; taken: 1 face, at 50,102;" in _summary(result)


def test_the_summary_of_several_shots_and_of_none():
    shots = ShotFaces(0, 5, ((9, 9),), (0,)), ShotFaces(5, 16, ((9, 9), (20, 9)), (None,))
    result = replace(result_of("out.mp4"), cuts=(5,), shots=shots)
    assert "0 frames untouched; 2 shots of up to 2 faces; model" in _summary(result)
    assert "0 frames untouched; model" in _summary(result_of("out.mp4"))


def test_a_track_cut_short_has_the_shots_of_its_frames():
    shots = ShotFaces(0, 5, ((9, 9),), (0,)), ShotFaces(5, 16, (), (None,))
    track = FaceTrack(np.zeros((16, 2, 3), np.float32), np.ones(16, bool), shots=shots)
    assert track.first(8).shots == (shots[0], replace(shots[1], stop=8))
    assert track.first(5).shots == shots[:1]


# Likeness


def test_a_person_is_known_again_in_another_room():
    """Drawn afresh: nearer to themselves in another room than to anybody in any."""
    cells, _ = draw_looks(3, 3, rooms=2, setups=1, looks=2)
    looks = normalise(PatchEmbedding().project(cells).mean(axis=2))
    cosines = np.einsum("isd,jtd->isjt", looks, looks)
    same = [cosines[i, 0, i, 1] for i in range(3)]
    others = [cosines[i, :, j].max() for i in range(3) for j in range(i)]
    assert min(same) > PatchEmbedding.other > max(others)


def test_the_projection_keeps_what_differs_between_people_alone():
    rng = np.random.default_rng(2)
    people = rng.normal(0, 1, (30, 1, 2)) @ np.float32([[3, 0, 0, 0], [0, 2, 0, 0]])
    light = rng.normal(0, 5, (30, 12, 1)) @ np.float32([[0, 0.5, 1, 1]])
    looks = (people + light + rng.normal(0, 0.1, (30, 12, 4))).astype(np.float32)
    mean, axes = fit_projection(looks, 2, 1e-6)
    projected = (looks - mean) @ axes
    within = projected.std(axis=1).mean(axis=0)
    assert np.allclose(within, 1, atol=0.15)
    assert (projected.mean(axis=1).std(axis=0) > 5).all()


def test_a_projection_that_is_missing_or_damaged(tmp_path):
    face = Face((0, 0, 60, 80), 1.0, np.float32([[15, 15], [45, 15], [30, 40]]))
    frame = np.zeros((90, 90, 3), np.uint8)
    with pytest.raises(WeightsMissing, match=r"none\.safetensors is missing.*train_likeness"):
        PatchEmbedding(tmp_path / "none.safetensors").embed(frame, face)
    for data in (b"no tensors", b""):
        (tmp_path / "bad.safetensors").write_bytes(data)
        with pytest.raises(WeightsMismatch, match=r"bad\.safetensors does not hold"):
            PatchEmbedding(tmp_path / "bad.safetensors").embed(frame, face)
    assert PatchEmbedding().embed(frame, face).shape < (CELLS,)


# One place, two people


class Looking:
    """Somebody's look follows from the grey of the frame: 0 one person, 255 another."""

    same, other = 0.9, 0.75

    def embed(self, frame, face):  # noqa: ARG002
        angle = frame[0, 0, 0] / 255 * np.pi / 2
        return np.float32([np.cos(angle), np.sin(angle)])


def linked(greys):
    """The frames of each person that a linker makes of one face at one place."""
    linker = TrackAssociator(Looking())
    face = Face((20, 20, 80, 100), 1.0, np.float32([[35, 40], [65, 40], [50, 65]]))
    for index, grey in enumerate(greys):
        linker.add(index, np.full((120, 100, 3), grey, np.uint8), [face])
    linker.end_shot()
    return [person.frames.tolist() for person in linker.people]


def test_a_face_that_slowly_becomes_anothers_is_parted():
    """As in a dissolve that is none for the thumbnails; between the two nobody is sure."""
    greys = [0] * 30 + np.linspace(0, 255, 12).astype(int).tolist() + [255] * 40
    one, other = linked(greys)
    assert one == list(range(one[-1] + 1))
    assert 20 <= one[-1] < 36  # not yet half the other's
    assert other == list(range(other[0], len(greys)))
    assert 36 <= other[0] <= 42 + 2 * EMBED_EVERY_FRAMES


def test_a_face_that_is_covered_for_a_moment_stays_a_persons():
    assert linked([0] * 30 + [200] * 8 + [0] * 30) == [list(range(68))]
    wavering = [0] * 20 + [round(100 + 90 * np.sin(i)) for i in range(40)]
    assert linked(wavering) == [list(range(60))]
