"""Detectors end to end: nets that answer with constants, and one real photograph."""

import logging
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage
import torch
from safetensors.torch import save_file

from latentsync import faces
from latentsync.errors import BackendUnavailable, OptionError, WeightsMismatch, WeightsMissing
from latentsync.faces import Builtin, FaceFilter, InsightFace, YuNet, create, track
from latentsync.faces.detectors.base import nearest
from latentsync.faces.detectors.builtin import FEW, _box, _last_crop
from latentsync.faces.detectors.frame_view import FrameView
from latentsync.faces.detectors.landmarks import ANCHORS, COUNT, MIRRORED, REFERENCE, cut, upright
from latentsync.faces.detectors.scrfd import LANDMARK_FILE, SCRFD_FILE
from latentsync.faces.detectors.yunet import YUNET_FILE, points_from_eyes
from latentsync.media import Colour, VideoFrame
from latentsync.runtime.devices import GPU_PROVIDER
from latentsync.training.synthetic import LANDMARKS, Identity, Mouth, Pose, draw
from latentsync.training.synthetic.scenes import draw_mouth, draw_pose
from latentsync.types import Box, Face, Frame, Progress
from tests import onnx_nets

PACK = Path("models", "buffalo_l")
RED = np.full((512, 512, 3), (255, 0, 0), np.uint8)
BLUE = np.full((512, 512, 3), (0, 0, 255), np.uint8)


def solid(colour: tuple[int, int, int], height: int, width: int) -> Frame:
    return np.full((height, width, 3), colour, np.uint8)


# What all detectors share


def test_unknown_detector(tmp_path: Path) -> None:
    for name in ("dlib", "anime.onnx"):
        with pytest.raises(OptionError, match=rf"'{name}'.*insightface, yunet, builtin.*\.xml"):
            create(name, root=tmp_path)


@pytest.mark.parametrize(
    "bounds",
    [
        {"min_width": 0},
        {"min_height": -1},
        {"min_aspect": 2.0},
        {"min_aspect": -0.1},
        {"min_score": 1.1},
        {"min_score": float("nan")},
    ],
)
def test_filters_out_of_range(bounds: dict[str, float]) -> None:
    with pytest.raises(OptionError):
        FaceFilter(**bounds)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("width", "height", "score", "kept"),
    [
        (50, 80, 0.5, True),
        (49, 80, 0.5, False),
        (50, 79, 0.5, False),
        (50, 80, 0.499, False),
        (120, 80, 0.9, True),
        (121, 80, 0.9, False),
        (50, 250, 0.9, True),
        (50, 251, 0.9, False),
    ],
)
def test_published_filters(width: int, height: int, score: float, kept: bool) -> None:
    boxes = np.array([[7, 9, 7 + width, 9 + height]], float)
    assert faces.PUBLISHED.keep(boxes, np.array([score])) == ([0] if kept else [])


def test_lenient_filters() -> None:
    lenient = FaceFilter(min_score=0.6).lenient()
    assert (lenient.min_width, lenient.min_height, lenient.min_score) == (37, 60, 0.3)
    assert (lenient.min_aspect, lenient.max_aspect) == (0.2, 1.5)


def test_largest_first_and_ties_in_the_order_found() -> None:
    boxes = np.array([[0, 0, 60, 100], [0, 0, 100, 90], [0, 0, 90, 100], [0, 0, 10, 10]], float)
    assert faces.PUBLISHED.keep(boxes, np.ones(4)) == [1, 2, 0]


class Scripted:
    """A detector that answers what it was told."""

    name = "scripted"

    def __init__(self, answers: list[list[Face]]) -> None:
        self.answers = iter(answers)
        self.rounded: list[bool] = []

    def describe(self) -> str:
        return self.name

    def detect(self, frame: Frame, *, rounded: bool = False, near: object = None) -> list[Face]:  # noqa: ARG002
        assert frame.ndim == 3
        self.rounded.append(rounded)
        return next(self.answers)


def a_face(x: float) -> Face:
    return Face((0, 0, 60, 90), 0.9, np.full((3, 2), x, np.float32))


def test_track_takes_the_first_face_of_every_frame() -> None:
    heard: list[Progress] = []
    detector = Scripted([[a_face(1.25), a_face(5)], [], [a_face(2)]])
    result = track(iter([RED] * 3), detector, rounded=True, total=3, progress=heard.append)
    assert result.detected.tolist() == [True, False, True]
    assert result.points[:, 0, 0].tolist() == [1.25, 0, 2]
    assert result.points.dtype == np.float32
    assert result.points.shape == (3, 3, 2)
    assert detector.rounded == [True] * 3
    assert heard == [Progress("detect", n, 3) for n in (1, 2, 3)]


def test_track_of_nothing() -> None:
    result = track([], Scripted([]))
    assert result.detected.shape == (0,)
    assert result.points.shape == (0, 3, 2)


def test_track_keeps_no_frame() -> None:
    alive: list[int] = []

    class Counted(np.ndarray):  # type: ignore[type-arg]
        def __del__(self) -> None:
            alive.remove(id(self))

    def frames() -> Iterator[Frame]:
        for _ in range(50):
            frame = np.zeros((8, 8, 3), np.uint8).view(Counted)
            alive.append(id(frame))
            assert len(alive) <= 2
            yield frame

    assert track(frames(), Scripted([[a_face(0)]] * 50)).detected.all()


# A frame as detectors look at it


class Watched(VideoFrame):
    """Remembers how many px of it were made, small pictures aside."""

    __slots__ = ("pixels",)

    def rgb(self, box: Box | None = None) -> Frame:
        pixels = super().rgb(box)
        self.pixels = getattr(self, "pixels", 0) + pixels.size // 3
        return pixels


def watched(rgb: Frame, aspect: Fraction = Fraction(1)) -> Watched:
    """The picture, its columns so many that pixels of that aspect show it as it was."""
    width, height = round(rgb.shape[1] / aspect), rgb.shape[0]
    stored = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    return Watched(VideoFrame.from_rgb(stored).planes(), Colour(pixel_aspect=aspect))


def ramp(width: int, height: int) -> Frame:
    """Grey levels that say the column (red) and the row (green)."""
    x, y = np.meshgrid(np.linspace(20, 230, width), np.linspace(20, 230, height))
    return np.stack([x, y, np.full_like(x, 120)], axis=2).astype(np.uint8)


@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(4, 3), Fraction(8, 9), Fraction(2)])
@pytest.mark.parametrize("scale", [0.6, 3.0, 9.0])
def test_a_crop_is_the_same_of_an_array_and_of_a_picture(aspect: Fraction, scale: float) -> None:
    """From its own pixels or the small picture, wherever it lies, and with square pixels."""
    rgb = ramp(1440, 1080)
    frame = watched(rgb, aspect)
    view, half = FrameView(frame), 32 * scale
    assert (view.width, view.height, view.aspect) == (1440, 1080, pytest.approx(float(aspect)))
    for x, y in ((700, 500), (10, 1070), (1435, 8)):
        crop = np.array([[1 / half, 0.1 / half, -x / half], [-0.1 / half, 1 / half, -y / half]])
        crop[:, 2] = -crop[:, :2] @ (x, y)
        pictures = [
            cut(*one.under(crop, (-1, -1, 1, 1), 64)).astype(int)[..., :2]
            for one in (FrameView(rgb), view)
        ]
        assert np.abs(pictures[0] - pictures[1]).mean() < 1.5
    assert getattr(frame, "pixels", 0) < (0.15 if scale < 9 else 0.001) * 1440 * 1080


def test_a_part_tells_where_it_lies() -> None:
    frame = watched(ramp(1440, 1080), Fraction(4, 3))
    view, near = FrameView(frame), Box(400, 301, 500, 401)
    for part in (view.around(near), view.around(near).shrunk(64), view.small(300)):
        height, width = part.pixels.shape[:2]
        for column, row in ((0, 0), (width - 1, height - 1)):
            x, y = part.out_centred(np.array([column, row]))
            red, green = part.pixels[row, column, :2].astype(int)
            assert red == pytest.approx(20 + 210 * x / 1439, abs=3)
            assert green == pytest.approx(20 + 210 * y / 1079, abs=3)
    np.testing.assert_allclose(view.around(near).size, (200, 200), atol=2)


def test_a_face_is_read_once_however_often_it_is_looked_at() -> None:
    frame = watched(ramp(1440, 1080))
    view = FrameView(frame)
    for shift in (0, 4, -7):
        low = np.array([600.0 + shift, 500])
        view.part(low, low + 160)
    assert frame.pixels < 1.8 * 160**2
    assert FrameView(ramp(64, 48)).part(np.zeros(2), np.ones(2)).pixels.shape == (48, 64, 3)


@pytest.mark.parametrize("aspect", [Fraction(1), Fraction(4, 3), Fraction(2)])
def test_builtin_finds_the_same_in_parts_of_a_picture(aspect: Fraction) -> None:
    who = Identity.from_seed(990_002)
    rgb, marks = draw(who, Pose(x=0.4), Mouth(), (1600, 900), zoom=0.5)
    frame = watched(rgb, aspect)
    (whole,), (seen,) = Builtin().detect(rgb), Builtin().detect(frame)
    apart = np.linalg.norm(marks[1] - marks[0])
    assert np.abs(seen.points - whole.points).max() < 0.02 * apart
    assert np.abs(np.array(seen.box) - whole.box).max() < 0.1 * apart
    assert frame.pixels < 0.1 * rgb.size / 3


# Followed from frame to frame


def shifted(rgb: Frame, x: float, y: float) -> Frame:
    return moved(rgb, np.array([[1.0, 0, x], [0, 1, y]]), *rgb.shape[:2])


def test_builtin_follows_without_a_search(portrait: Frame, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two faces, one of which goes: the others' places don't depend on that."""
    detector = Builtin()
    (seen,) = detector.detect(portrait)
    monkeypatch.setattr(detector, "_propose", lambda _: pytest.fail("a search"))
    elsewhere = Face((300, 300, 400, 440), 0.9, seen.points + np.float32([120, 250]))
    later = shifted(portrait, 6, -4)
    found, gone = detector.follow(later, [seen, elsewhere])
    assert gone is None
    assert found is not None
    assert np.abs(found.points - seen.points - (6, -4)).max() < 0.03 * APART
    assert np.abs(np.subtract(found.box, seen.box) - (6, -4, 6, -4)).max() < 4
    (rounded,) = detector.follow(later, [seen], rounded=True)
    assert rounded is not None
    np.testing.assert_array_equal(rounded.points, np.round(found.points))
    assert detector.follow(later, []) == []
    assert Builtin(FaceFilter(min_width=150)).follow(later, [seen]) == [None]


def test_a_followed_face_is_looked_at_once_more_where_it_moved(portrait: Frame) -> None:
    detector, looks = Builtin(), []
    (seen,) = detector.detect(portrait)
    look = detector._landmarks.predict
    detector._landmarks.predict = lambda *a: looks.append(1) or look(*a)  # type: ignore[method-assign]
    for shift, wanted in (((0.5, 0), 2), ((6, -4), 3)):
        looks.clear()
        assert detector.follow(shifted(portrait, *shift), [seen])[0] is not None
        assert len(looks) == wanted


def test_a_face_is_followed_from_the_crop_it_was_found_in() -> None:
    half, angle = 90.0, 0.4
    linear = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / half
    crop = np.column_stack([linear, -linear @ (300, 200)])
    anchors = np.linalg.solve(linear, (REFERENCE[ANCHORS] - crop[:, 2]).T).T
    again = _last_crop(Face(tuple(_box(crop)), 0.9, anchors.astype(np.float32)))
    np.testing.assert_allclose(again, crop, atol=0.02)


def test_insightface_of_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SCRFD sees a small one, the points come from the face's own pixels."""
    root = pack(tmp_path, [((200.0, 100.0, 360.0, 300.0), 0.9)], marks_around(-0.2, 0.15, 0.05))
    detector = InsightFace(root)
    white = solid((255, 255, 255), 720, 1280)
    frame, sizes = watched(white), []
    scrfd = detector._scrfd.detect
    monkeypatch.setattr(
        detector._scrfd,
        "detect",
        lambda picture, **options: sizes.append(picture.shape) or scrfd(picture, **options),
    )
    (whole,), (seen,) = detector.detect(white), detector.detect(frame)
    assert sizes == [(720, 1280, 3), (288, 512, 3)]  # an array as published
    assert seen.box == whole.box == (500, 250, 900, 750)
    np.testing.assert_allclose(seen.points, whole.points, atol=0.01)
    small = (40.0, 40.0, 104.0, 140.0)
    detector = InsightFace(pack(tmp_path / "small", [(small, 0.9)], marks_around(-0.2, 0.2, 0)))
    (whole,), (seen,) = detector.detect(white), detector.detect(frame)
    np.testing.assert_allclose(seen.points, whole.points, atol=0.01)
    (wide,) = detector.detect(watched(white, Fraction(2)))
    np.testing.assert_allclose(wide.points, whole.points, atol=0.02)


def test_insightface_follows_by_its_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = (200.0, 100.0, 360.0, 300.0)
    detector = InsightFace(pack(tmp_path, [(box, 0.9)], marks_around(-0.2, 0.15, 0.05)))
    white = solid((255, 255, 255), 512, 512)
    (seen,) = detector.detect(white)
    monkeypatch.setattr(detector._scrfd, "detect", lambda *_, **__: pytest.fail("a search"))
    # The net puts the points where the box is; so a face whose points were elsewhere has moved.
    before = Face(seen.box, seen.score, seen.points - np.float32([9, 5]))
    bent = Face(seen.box, seen.score, seen.points + np.float32([[0, 0], [0, 0], [40, 0]]))
    small = Face((200, 100, 240, 160), 0.9, seen.points)
    for frame in (white, watched(white)):
        found, *others = detector.follow(frame, [before, bent, small])
        assert others == [None, None]
        assert found is not None
        np.testing.assert_allclose(found.points, seen.points, atol=0.01)
        np.testing.assert_allclose(np.subtract(found.box, box), (9, 5, 9, 5), atol=0.05)


def test_yunet_follows_what_is_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the part around it, at a scale of its own: here two faces are seen wherever it looks."""
    onnx_nets.yunet(
        tmp_path / YUNET_FILE,
        [((32.0, 32.0, 96.0, 120.0), POINTS, 0.9), ((128.0, 96.0, 184.0, 184.0), POINTS, 0.8)],
        *(192, 192),
    )
    detector, white = YuNet(tmp_path), solid((255, 255, 255), 1000, 1600)
    monkeypatch.setattr(detector, "detect", lambda *_, **__: pytest.fail("a search"))
    seen = Face((600, 300, 984, 684), 0.9, np.zeros((3, 2), np.float32))
    for frame in (white, watched(white)):
        (found,) = detector.follow(frame, [seen])  # from (408, 108) on, at a quarter
        assert found is not None
        np.testing.assert_allclose(found.box, (536, 236, 792, 588), atol=5)
    beside = Face((920, 490, 1140, 840), 0.9, seen.points)
    assert nearest([found, beside], Face((900, 480, 1150, 850), 0.9, seen.points)) is beside
    assert nearest([], seen) is None
    assert detector.follow(solid((0, 0, 255), 1000, 1600), [seen]) == [None]


# insightface


# The published indices, written out once more.
LEFT_BROW, RIGHT_BROW, NOSE_BASE = [43, 48, 49, 51, 50], range(101, 106), [74, 77, 83, 86]


def marks_around(left: float, right: float, nose: float) -> np.ndarray:
    """(106, 2): brows and nose at these x, spread about their centres; all others far away."""
    marks = np.full((106, 2), 0.7)
    spread = np.array([-0.02, -0.01, 0, 0.01, 0.02])
    for group, x, y in (
        (LEFT_BROW, left, -0.25),
        (RIGHT_BROW, right, -0.3),
        (NOSE_BASE, nose, 0.125),
    ):
        marks[list(group), 0] = x + (spread if len(group) == 5 else spread[[0, 1, 3, 4]])
        marks[list(group), 1] = y
    return marks


def pack(root: Path, found: list[tuple[onnx_nets.Box, float]], marks: np.ndarray) -> Path:
    onnx_nets.scrfd(root / PACK / SCRFD_FILE, found)
    onnx_nets.landmarks(root / PACK / LANDMARK_FILE, marks)
    return root


def test_insightface_from_frame_to_points(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small, large = (40.0, 40.0, 104.0, 140.0), (200.0, 100.0, 360.0, 300.0)
    root = pack(tmp_path, [(small, 0.95), (large, 0.75)], marks_around(-0.2, 0.15, 0.05))
    detector = create("insightface", root=root)
    found = detector.detect(RED)
    assert [face.box for face in found] == [large, small]
    assert [face.score for face in found] == pytest.approx([0.75, 0.95])
    # From the middle (280, 200) of the larger box, in its longer side of 200 px.
    expected = [[280 - 40, 200 - 50], [280 + 30, 200 - 60], [280 + 10, 200 + 25]]
    np.testing.assert_allclose(found[0].points, expected, atol=2e-3)
    np.testing.assert_allclose(
        found[1].points, [[72 - 20, 90 - 25], [72 + 15, 90 - 30], [72 + 5, 90 + 12.5]], atol=2e-3
    )
    assert found[0].points.dtype == np.float32
    assert capsys.readouterr().out == ""


def test_insightface_gets_rgb(tmp_path: Path) -> None:
    """The library swaps red and blue, so an RGB frame reaches the nets with red last."""
    root = pack(tmp_path, [((200.0, 100.0, 360.0, 300.0), 0.9)], marks_around(-0.2, 0.2, 0))
    detector = InsightFace(root)
    assert len(detector.detect(RED)) == 1
    assert detector.detect(BLUE) == []


def test_insightface_of_another_size_and_of_none(tmp_path: Path) -> None:
    root = pack(tmp_path, [((200.0, 100.0, 360.0, 300.0), 0.9)], marks_around(-0.2, 0.2, 0))
    detector = InsightFace(root)
    wide = detector.detect(solid((255, 255, 255), 720, 1280))  # shown to the net at 512 x 288
    assert wide[0].box == (500, 250, 900, 750)
    for height, width in ((1, 1), (16, 16), (79, 500), (500, 49), (100, 20000)):
        assert detector.detect(solid((255, 255, 255), height, width)) == []


def test_insightface_boxes_are_cut_to_whole_pixels(tmp_path: Path) -> None:
    """49.5 px from 10.75 to 60.25 count as 50."""
    found = [((10.75, 20.0, 60.25, 120.0), 0.9), ((200.25, 20.0, 249.75, 120.0), 0.9)]
    detector = InsightFace(pack(tmp_path, found, marks_around(-0.2, 0.2, 0)))
    white = solid((255, 255, 255), 512, 512)
    assert [face.box for face in detector.detect(white)] == [(10, 20, 60, 120)]


def test_insightface_takes_a_lower_score_when_told(tmp_path: Path) -> None:
    root = pack(tmp_path, [((200.0, 100.0, 360.0, 300.0), 0.3)], marks_around(-0.2, 0.2, 0))
    assert InsightFace(root).detect(RED) == []
    assert len(InsightFace(root, FaceFilter(min_score=0.25)).detect(RED)) == 1


def test_insightface_looks_twice(tmp_path: Path) -> None:
    """At the part of the frame around a place, at full size, with half the score."""
    root = pack(tmp_path, [((200.0, 100.0, 360.0, 300.0), 0.3)], marks_around(-0.2, 0.15, 0.05))
    detector, white = InsightFace(root), solid((255, 255, 255), 720, 1280)
    near = Box(200, 180, 456, 436)  # so that what is seen of the frame begins at (72, 52)
    assert detector.detect(white) == []
    (found,) = detector.detect(white, near=near)
    assert found.box == (272, 152, 432, 352)
    middle = (280 + 72, 200 + 52)
    np.testing.assert_allclose(
        found.points, np.add(middle, [[-40, -50], [30, -60], [10, 25]]), atol=4e-3
    )
    assert detector.detect(white) == []  # and the first look stays as it was


def test_insightface_rounds_as_published(tmp_path: Path) -> None:
    """First each of the 106 points, then the three means, both half to even."""
    marks = marks_around(-0.2, 0.15, 0.05)
    box = (200.0, 100.0, 360.0, 300.0)
    # In px from the middle (280, 200), the box's longer side being 200.
    marks[list(NOSE_BASE), 1] = np.array([20.1, 20.1, 21.1, 21.1]) / 200
    root = pack(tmp_path, [(box, 0.9)], marks)
    white = solid((255, 255, 255), 512, 512)
    detector = InsightFace(root)
    exact = detector.detect(white)[0].points
    rounded = detector.detect(white, rounded=True)[0].points
    assert exact[2, 1] == pytest.approx(220.6, abs=2e-3)
    assert rounded[2, 1] == 220  # 220.5 to the even number; unrounded marks would give 221
    np.testing.assert_array_equal(rounded, np.round(rounded))


def test_insightface_never_downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from insightface.utils import storage

    monkeypatch.setattr(storage, "download_file", lambda *_, **__: pytest.fail("a download"))
    with pytest.raises(WeightsMissing, match=r"det_10g\.onnx.*latentsync download buffalo_l"):
        InsightFace(tmp_path)
    onnx_nets.scrfd(tmp_path / PACK / SCRFD_FILE, [])
    with pytest.raises(WeightsMissing, match=r"2d106det\.onnx"):
        InsightFace(tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == [SCRFD_FILE]


def test_insightface_refuses_other_files(tmp_path: Path) -> None:
    root = pack(tmp_path, [], marks_around(0, 0, 0))
    scrfd, landmark = root / PACK / SCRFD_FILE, root / PACK / LANDMARK_FILE
    landmark.write_bytes(scrfd.read_bytes())
    with pytest.raises(WeightsMismatch, match=r"2d106det\.onnx"):
        InsightFace(root)
    scrfd.write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsMismatch, match=r"det_10g\.onnx"):
        InsightFace(root)


def test_insightface_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pack(tmp_path, [], marks_around(0, 0, 0))
    for module in [name for name in sys.modules if name.split(".")[0] == "insightface"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "insightface", None)
    with pytest.raises(BackendUnavailable, match=r"pip install --no-deps insightface==2\.1"):
        InsightFace(root)


def test_insightface_says_where_it_runs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import onnxruntime

    if GPU_PROVIDER in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has the GPU")
    root = pack(tmp_path, [], marks_around(0, 0, 0))
    with caplog.at_level(logging.INFO):
        detector = create("insightface", root=root, gpu=True)
    assert "on CPUExecutionProvider" in detector.describe()
    assert "50x80 px" in detector.describe()
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "asked to run on the GPU but runs on CPUExecutionProvider" in warnings[0]
    assert detector.describe() in caplog.text


# yunet

POINTS = (52.0, 64.0, 84.0, 64.0, 70.0, 80.0, 56.0, 96.0, 80.0, 96.0)  # px, eyes 32 apart


def yunet(root: Path, score: float = 0.9) -> Path:
    rows = [((40.0, 32.0, 96.0, 120.0), POINTS, score), ((128.0, 32.0, 256.0, 160.0), POINTS, 0.8)]
    onnx_nets.yunet(root / YUNET_FILE, rows, 320, 192)
    return root


def test_yunet_from_frame_to_points(tmp_path: Path) -> None:
    detector = create("yunet", root=yunet(tmp_path))
    found = detector.detect(solid((255, 255, 255), 192, 320))
    np.testing.assert_allclose(
        [face.box for face in found], [[128, 32, 256, 160], [40, 32, 96, 120]], atol=1
    )
    assert found[1].score == pytest.approx(0.9)
    expected = [[52, 64 - 0.28 * 32], [84, 64 - 0.28 * 32], [68, 64 + 0.66 * 32]]
    np.testing.assert_allclose(found[1].points, expected, atol=1e-3)
    assert found[1].points.dtype == np.float32
    rounded = detector.detect(solid((255, 255, 255), 192, 320), rounded=True)
    np.testing.assert_array_equal(rounded[1].points, [[52, 55], [84, 55], [68, 85]])


def test_yunet_gets_bgr(tmp_path: Path) -> None:
    detector = YuNet(yunet(tmp_path))
    assert len(detector.detect(solid((255, 0, 0), 192, 320))) == 2
    assert detector.detect(solid((0, 0, 255), 192, 320)) == []


def test_yunet_looks_at_a_smaller_picture(tmp_path: Path) -> None:
    detector = YuNet(yunet(tmp_path), search_side=320)
    found = detector.detect(solid((255, 255, 255), 768, 1280))
    expected = [[208, 256 - 0.28 * 128], [336, 256 - 0.28 * 128], [272, 256 + 0.66 * 128]]
    np.testing.assert_allclose(found[1].points, expected, atol=4e-3)
    assert "longest side <= 320 px" in detector.describe()


def test_yunet_filters(tmp_path: Path) -> None:
    white = solid((255, 255, 255), 192, 320)
    assert len(YuNet(yunet(tmp_path, score=0.49)).detect(white)) == 1
    assert len(YuNet(yunet(tmp_path), FaceFilter(min_width=57)).detect(white)) == 1
    assert YuNet(yunet(tmp_path)).detect(solid((255, 255, 255), 16, 16)) == []


def test_yunet_looks_twice(tmp_path: Path) -> None:
    detector = YuNet(yunet(tmp_path, score=0.3))
    white = solid((255, 255, 255), 400, 640)
    (found,) = detector.detect(white[:192, :320].copy())
    assert found.box[0] == 128
    large, small = detector.detect(white, near=Box(100, 100, 260, 196))  # seen from (20, 52) on
    np.testing.assert_allclose([large.box[:2], small.box[:2]], [[148, 84], [60, 84]], atol=1)
    eyes = np.add([[52.0, 64], [84, 64]], (20, 52))
    np.testing.assert_allclose(small.points, points_from_eyes(eyes), atol=1e-3)
    assert len(detector.detect(white[:192, :320].copy())) == 1


def test_points_follow_the_roll_of_the_face() -> None:
    upright = points_from_eyes(np.array([[-1.0, 0.0], [1.0, 0.0]]))
    turn = np.array([[0.8, -0.6], [0.6, 0.8]])  # clockwise in the picture
    turned = points_from_eyes(np.array([[-1.0, 0.0], [1.0, 0.0]]) @ turn.T)
    np.testing.assert_allclose(turned, upright @ turn.T, atol=1e-12)


def test_yunet_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"yunet_2023mar\.onnx.*latentsync download yunet"):
        YuNet(tmp_path)
    (tmp_path / YUNET_FILE).write_bytes(b"<html>not found</html>")
    with pytest.raises(WeightsMismatch, match=r"yunet_2023mar\.onnx"):
        YuNet(tmp_path)


# builtin

# Read off the photograph, 512 x 512: the brows' middles, and that of the nose's tip and nostrils.
TRUTH = np.array([[202.5, 89.7], [249.5, 92.0], [224.5, 128.5]])
APART = float(np.linalg.norm(TRUTH[1] - TRUTH[0]))


@pytest.fixture(scope="module")
def portrait() -> Frame:
    """Eileen Collins, by NASA (public domain): one face among flag, suit, helmet and shuttle."""
    picture = cv2.imread(str(Path(skimage.__file__).parent / "data" / "astronaut.png"))
    assert picture is not None
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def moved(picture: Frame, matrix: np.ndarray, height: int, width: int) -> Frame:
    return cv2.warpAffine(picture, matrix, (width, height), flags=cv2.INTER_AREA)


def expected_points(matrix: np.ndarray) -> np.ndarray:
    return TRUTH @ matrix[:, :2].T + matrix[:, 2]


@pytest.mark.parametrize(
    ("degrees", "scale", "shift"),
    [
        (0, 1.0, (0, 0)),
        (0, 2.3, (0, 0)),
        (0, 0.9, (11.3, 7.7)),
        (8, 1.0, (0, 0)),
        (-8, 1.4, (20, 30)),
        (0, 1.0, (-180, -70)),  # the box reaches over the frame's left and upper edges
        (0, 1.0, (240, 330)),  # and near its right and lower ones
    ],
)
def test_builtin_finds_a_photographed_face(
    portrait: Frame, degrees: float, scale: float, shift: tuple[float, float]
) -> None:
    matrix = cv2.getRotationMatrix2D((226, 120), degrees, scale)
    matrix[:, 2] += np.array(shift) + (scale - 1) * np.array([226, 120])
    side = int(512 * max(scale, 1))
    found = Builtin().detect(moved(portrait, matrix, side, side))
    assert len(found) >= 1
    error = np.abs(found[0].points - expected_points(matrix)).max() / (APART * scale)
    assert error < 0.09
    left, top, right, bottom = found[0].box
    assert left < found[0].points[:, 0].min()
    assert right > found[0].points[:, 0].max()
    assert top < found[0].points[:, 1].min()
    assert bottom > found[0].points[:, 1].max()
    assert 0.5 <= found[0].score <= 1


def test_builtin_is_subpixel_unless_asked(portrait: Frame) -> None:
    detector = create("builtin", root=Path("no", "such", "folder"))
    points = detector.detect(portrait)[0].points
    assert np.abs(points - np.round(points)).max() > 0.05
    np.testing.assert_array_equal(
        detector.detect(portrait, rounded=True)[0].points, np.round(points)
    )
    assert detector.describe().startswith("builtin (OpenCV cascades and a landmark net")
    assert "50x80 px" in detector.describe()


def test_builtin_is_steady(portrait: Frame) -> None:
    """A face that slides by fractions of a pixel is followed to 2 % of its brows' distance."""
    offsets = []
    detector = Builtin()
    for step in range(8):
        matrix = np.array([[1.0, 0, 0.7 * step], [0, 1, 0.4 * step]])
        points = detector.detect(moved(portrait, matrix, 512, 512))[0].points
        offsets.append(points - expected_points(matrix))
    assert np.std(offsets, axis=0).max() < 0.02 * APART


def test_builtin_filters(portrait: Frame) -> None:
    assert Builtin(FaceFilter(min_width=150)).detect(portrait) == []
    assert Builtin(FaceFilter(min_score=0.99)).detect(portrait) == []
    half = cv2.resize(portrait, None, fx=0.3, fy=0.3, interpolation=cv2.INTER_AREA)
    assert Builtin().detect(half) == []
    assert len(Builtin(FaceFilter(min_width=15, min_height=20)).detect(half)) == 1


def test_builtin_sees_no_face_where_there_is_none(portrait: Frame) -> None:
    rng = np.random.default_rng(7)
    detector = Builtin()
    noise = rng.integers(0, 256, (360, 640, 3), dtype=np.uint8)
    soft = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 6), None, 0, 255, cv2.NORM_MINMAX)
    ramp = np.broadcast_to(np.linspace(0, 255, 640, dtype=np.uint8)[None, :, None], (360, 640, 3))
    text = np.full((360, 640, 3), 255, np.uint8)
    for row in range(12):
        line = "".join(chr(c) for c in rng.integers(33, 126, 40))
        cv2.putText(text, line, (5, 30 * row + 25), row % 5, 0.8, (0, 0, 0), 2)
    faceless = portrait[200:]
    for picture in (noise, soft, np.ascontiguousarray(ramp), text, np.ascontiguousarray(faceless)):
        assert detector.detect(picture) == []


@pytest.mark.parametrize("seed", range(4))
def test_builtin_finds_drawn_faces(seed: int) -> None:
    """People that the net was not trained on, of any skin, in any pose."""
    rng = np.random.default_rng(seed)
    who, pose = Identity.from_seed(990_000 + seed), draw_pose(rng)
    frame, points = draw(who, pose, draw_mouth(rng), (400, 360), zoom=0.8)
    found = Builtin().detect(frame)
    assert len(found) == 1
    apart = np.linalg.norm(points[1] - points[0])
    assert np.abs(found[0].points - points[ANCHORS]).max() < 0.1 * apart
    assert found[0].score > 0.9


def test_builtin_finds_a_face_in_the_dark() -> None:
    """The second try: the cascade alone sees nothing here."""
    frame, _ = draw(Identity.from_seed(990_001), Pose(), Mouth(), (400, 360), zoom=0.8)
    dark = (frame * 0.12).astype(np.uint8)
    assert len(Builtin().detect(dark)) == 1


def test_builtin_looks_twice(portrait: Frame) -> None:
    """A head that leans further than the cascades know is found where it was a moment ago."""
    detector = Builtin()
    upright_face = detector.detect(portrait)[0]
    matrix = cv2.getRotationMatrix2D((226, 120), 28, 1)
    leaning = moved(portrait, matrix, 512, 512)
    near = Box(*(round(v) for v in upright_face.box))
    assert detector.detect(leaning) == []
    (found,) = detector.detect(leaning, near=near)
    assert np.abs(found.points - expected_points(matrix)).max() < 0.12 * APART
    assert detector.detect(portrait, near=Box(30, 330, 110, 440)) == []


# a cascade by path

CASCADE = Path(cv2.__file__).parent / "data" / "haarcascade_frontalface_alt2.xml"


def test_cascade_of_ones_own(portrait: Frame, tmp_path: Path) -> None:
    detector = create(str(CASCADE), root=tmp_path)
    found = detector.detect(portrait)[0]
    left, top, right, bottom = found.box
    assert left < TRUTH[:, 0].min() < TRUTH[:, 0].max() < right
    assert top < TRUTH[:, 1].min() < TRUTH[:, 1].max() < bottom
    width, height = right - left, bottom - top
    expected = np.array([[0.3, 0.26], [0.7, 0.26], [0.5, 0.57]]) * (width, height)
    np.testing.assert_allclose(found.points, np.add(expected, (left, top)), atol=1e-3)
    assert "whole pixels, points placed by the box's proportions" in detector.describe()
    assert np.abs(found.points - TRUTH).max() < 0.25 * APART
    assert 0.5 <= found.score < 1
    picky = create(str(CASCADE), root=tmp_path, filters=FaceFilter(min_score=0.99))
    assert picky.detect(portrait) == []
    again = detector.detect(portrait, near=Box(*map(int, found.box)))
    assert np.abs(np.array(again[0].box) - found.box).max() < 0.1 * width
    assert detector.detect(solid((90, 90, 90), 300, 300)) == []
    assert detector.detect(solid((90, 90, 90), 16, 16)) == []


def test_a_cascade_follows_a_face(portrait: Frame, tmp_path: Path) -> None:
    detector = create(str(CASCADE), root=tmp_path)
    seen = detector.detect(portrait)[0]
    (found,) = detector.follow(shifted(portrait, 5, 3), [seen])
    assert found is not None
    assert np.abs(np.subtract(found.points, seen.points) - (5, 3)).max() < 0.12 * APART
    assert detector.follow(solid((90, 90, 90), 512, 512), [seen]) == [None]


def test_what_is_no_cascade(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"none\.xml is not there"):
        create(str(tmp_path / "none.xml"), root=tmp_path)
    file = tmp_path / "page.xml"
    for text in ("<html>not found</html>", "", "<opencv_storage><a>1</a></opencv_storage>"):
        file.write_text(text)
        with pytest.raises(WeightsMismatch, match=r"page\.xml is no cascade"):
            create(str(file), root=tmp_path)


def test_builtin_wants_its_net(tmp_path: Path) -> None:
    file = tmp_path / "landmarks.safetensors"
    with pytest.raises(WeightsMissing, match=r"landmarks\.safetensors is missing.*train_measures"):
        Builtin(file=file)
    save_file({"mean": torch.zeros(3)}, file)
    with pytest.raises(WeightsMismatch, match=r"landmarks\.safetensors does not hold the landmark"):
        Builtin(file=file)
    file.write_bytes(b"<html>")
    with pytest.raises(WeightsMismatch, match="does not hold"):
        Builtin(file=file)


@pytest.mark.parametrize("scale", [0.4, 1.0, 5.5])
def test_crop_keeps_places(scale: float) -> None:
    """In a picture whose grey level is its column, a crop shows the columns it claims to."""
    ramp = np.tile(np.arange(0, 250, 0.5), (500, 1)).astype(np.uint8)
    ramp = np.repeat(ramp[..., None], 3, axis=2)
    half = 32 * scale  # px of the frame
    crop = np.array([[1 / half, 0, -250 / half], [0, 1 / half, -240 / half]])
    claimed = ((np.arange(64) + 0.5) / 32 - 1) * half + 250
    np.testing.assert_allclose(cut(ramp, crop)[32, :, 0], claimed / 2, atol=1.1)


def test_a_face_is_laid_upright_however_it_stood() -> None:
    points = np.random.default_rng(1).normal(0, 1, (COUNT, 2))
    points[:5] = [[-0.35, -0.65], [0.35, -0.65], [-0.35, -0.4], [0.35, -0.4], [0, -0.1]]
    turn = 90 * np.array([[0.8, -0.6], [0.6, 0.8]])
    there = points @ turn.T + [300, 200]
    crop = upright(there)
    np.testing.assert_allclose(there @ crop[:, :2].T + crop[:, 2], points, atol=1e-9)


def test_landmarks_are_those_that_are_drawn() -> None:
    assert len(LANDMARKS) == COUNT
    assert [LANDMARKS[i] for i in ANCHORS] == ["brow_left", "brow_right", "nose_base"]
    swapped = [name.replace("left", "?").replace("right", "left") for name in LANDMARKS]
    assert [LANDMARKS[i] for i in MIRRORED] == [name.replace("?", "right") for name in swapped]


def test_the_net_doubts_what_a_cascade_takes_for_a_face(portrait: Frame) -> None:
    """Wherever it is told to look where there is none."""
    squares = np.array([[x, y, 90] for x in range(60, 480, 60) for y in range(300, 480, 60)], float)
    boxes, scores, _ = Builtin()._measure(FrameView(portrait), squares)
    assert len(boxes) == len(scores)
    assert (scores < 0.5).all()


def test_the_last_look_forgets_where_the_first_was(portrait: Frame) -> None:
    squares = np.array([[226, 115, 120], [220, 110, 110], [230, 120, 135]], float)
    points = [
        Builtin()._measure(FrameView(portrait), square[None])[2][0, ANCHORS] for square in squares
    ]
    assert np.ptp(points, axis=0).max() < 0.03 * APART


def test_squares_around_one_face_give_one_face(portrait: Frame) -> None:
    around = np.array([[226, 115, 120], [220, 110, 110], [230, 120, 135]], float)
    _, scores, points = Builtin()._measure(FrameView(portrait), around)
    assert len(scores) == len(points) == 1


@pytest.mark.parametrize("size", [(1, 1), (16, 16), (79, 400), (400, 49), (90, 12000)])
def test_builtin_of_frames_too_small_for_a_face(size: tuple[int, int]) -> None:
    assert Builtin().detect(solid((90, 90, 90), *size)) == []


def test_builtin_of_a_large_blank_frame() -> None:
    assert Builtin().detect(solid((90, 90, 90), 2160, 3840)) == []


def agreeing(monkeypatch, score, windows):
    """The built-in detector, whose net is so sure of one square in which so many windows agree."""
    detector = Builtin()
    points = np.float64(
        [[70, 60], [130, 60], [75, 80], [125, 80], [100, 105], *[[100, 140]] * 6, [100, 170]]
    )
    answer = np.repeat(points[None], 1, axis=0), np.array([score])
    monkeypatch.setattr(detector._landmarks, "predict", lambda *_: answer)
    square = np.array([[100.0, 100, 150]]), np.array([windows / FEW])
    monkeypatch.setattr(detector, "_propose", lambda _: iter([square] * 3))
    return len(detector.detect(np.zeros((240, 200, 3), np.uint8)))


@pytest.mark.parametrize(
    ("score", "windows", "faces"),
    [(0.2, 12, 1), (0.4, 4, 1), (0.55, 2, 0), (0.9, 2, 1), (0.55, 1, 0), (0.05, 50, 0)],
)
def test_net_and_cascade_decide_together(monkeypatch, score, windows, faces):
    assert agreeing(monkeypatch, score, windows) == faces
