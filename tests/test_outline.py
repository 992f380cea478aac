"""The paste of a turned face ends where the face does."""

import numpy as np
import pytest

from latentsync.faces import align
from latentsync.faces.detectors.landmarks import ANCHORS
from latentsync.faces.head_pose import nose_places
from latentsync.faces.mask import outline_edge, outline_share, paste_share
from latentsync.pipeline import compositor
from latentsync.training.synthetic import Identity, Mouth, Pose, landmarks
from latentsync.training.synthetic.geometry import project
from latentsync.training.synthetic.skin import face_outline
from tests.clips import raw_frames
from tests.test_following import clip, turning
from tests.test_following import run as run_with

SIDE = 128  # px
WORLD = np.array([[100.0, 0, 300], [0, 100, 300]])


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.mp4"


def head(seed, turn, mouth=Mouth(open=0.5, wide=0.6)):  # noqa: B008 - it is frozen
    """The nose's place, the edge of the face and its landmarks, both in px of the crop."""
    who, pose = Identity.from_seed(seed), Pose(yaw=float(np.radians(turn)))
    marks = landmarks(who, pose, mouth, WORLD)
    anchors = marks[ANCHORS][None]
    affine = align.face_track(anchors, np.array([True]), SIDE).affine[0]
    stretch = SIDE / np.array(align.crop_size(SIDE))
    edge = 100 * project(who, pose, face_outline(who)) + 300
    inside = [(points @ affine[:, :2].T + affine[:, 2]) * stretch for points in (edge, marks)]
    return nose_places(anchors)[0].tolist(), *inside


def beyond(share, edge):
    """How much of a share lies beyond the right edge of a face, above its chin."""
    rows = np.arange(round(edge[:, 1].max()))
    right = edge[edge[:, 0] > np.median(edge[:, 0])]
    order = np.argsort(right[:, 1])
    ends = np.interp(rows, right[order, 1], right[order, 0])
    return float((share[rows] * (np.arange(SIDE)[None] > ends[:, None])).sum())


@pytest.mark.parametrize("seed", range(6100, 6104))
@pytest.mark.parametrize(("turn", "left"), [(20, 0.55), (30, 0.45), (40, 0.45)])
def test_a_turned_face_has_less_paste_beside_it_and_all_of_its_mouth(seed, turn, left):
    nose, edge, marks = head(seed, turn)
    share, paste = outline_share(*nose, SIDE), paste_share(SIDE)
    assert beyond(share * paste, edge) < left * beyond(paste, edge)
    x, y = np.round(marks[5:11]).astype(int).T  # the mouth
    assert share[y, x].min() > 0.95
    assert (share[:, : SIDE // 2] == 1).all()
    mirrored = outline_share(-nose[0], nose[1], SIDE)
    np.testing.assert_array_equal(mirrored, share[:, ::-1])


def test_a_face_from_the_front_keeps_all_of_its_paste():
    for turn in (0, 3, -3):
        nose, *_ = head(6100, turn)
        assert outline_share(*nose, SIDE) is None
    assert outline_share(float("nan"), float("nan"), SIDE) is None
    barely = outline_share(0.04, 0.8, SIDE)
    assert (barely * paste_share(SIDE)).sum() > 0.99 * paste_share(SIDE).sum()


def test_the_edge_comes_nearer_with_the_turn_and_without_a_jump():
    rows = np.linspace(0, 100, 50)
    places = [head(6100, turn)[0] for turn in range(10, 41)]
    edges = np.array([outline_edge(*place, rows) for place in places])
    assert (np.diff(edges[:, 15:30], axis=0) < 0).all()
    assert np.abs(np.diff(edges, axis=0)).max() < 2


def films(out, source, monkeypatch, **options):
    """The luma of two runs on a turned face: as it is, and with the fixed mask."""
    made = []
    for fixed in (False, True):
        if fixed:
            monkeypatch.setattr(compositor, "outline_share", lambda *_: None)
        run_with(turning([30] * 4), out, 4, source, seed=3, **options)
        made.append(np.array([planes[0] for planes in raw_frames(out)]))
    return made


def test_a_run_leaves_what_is_beside_a_turned_face(tmp_path, out, monkeypatch):
    source = clip(tmp_path / "clip.mp4", 4)
    narrowed, fixed = films(out, source, monkeypatch)
    before = np.array([planes[0] for planes in raw_frames(source)])
    changed, more = (np.abs(film - before.astype(int)) > 2 for film in (narrowed, fixed))
    assert 0.5 < changed.sum() / more.sum() < 0.95
    columns = np.flatnonzero((narrowed != fixed).any(axis=(0, 1)))
    nose = 20 + 28 + 24  # LEFT, and how far the nose of a face there is turned aside
    assert columns.min() > nose - 12
    assert np.flatnonzero(changed.any(axis=(0, 1))).max() < np.flatnonzero(more.any((0, 1))).max()


@pytest.mark.parametrize("options", [{"resampling": "published"}, {"paste": "crop"}])
def test_the_published_geometry_knows_no_outline(tmp_path, out, monkeypatch, options):
    source = clip(tmp_path / "clip.mp4", 4)
    np.testing.assert_array_equal(*films(out, source, monkeypatch, **options))
