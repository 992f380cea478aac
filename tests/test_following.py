"""Whole runs by face: which one speaks, and what becomes of frames without it."""

import cv2
import numpy as np
import pytest
import torch

from latentsync.diffusion import sampling
from latentsync.errors import NoFaceFound, OptionError
from latentsync.faces import align
from latentsync.faces.head_pose import NOSE_DEPTH
from latentsync.types import Face
from tests.clips import babble, number_of, picture, raw_frames, same, write_clip, write_sound
from tests.stubs import SIZE, StubDetector, tiny_lipsync
from tests.test_pipeline import group_sizes

LEFT, RIGHT = (20, 60), (190, 60)  # px, upper left corners
POINTS = np.float32([[12, 20], [44, 20], [28, 44]])  # from there
WIDE = (300, 180)


class Scripted(StubDetector):
    """Sees faces at the places that a script has for each frame; its first frame is number 0."""

    def __init__(self, script):
        super().__init__()
        self.script, self.looks = script, -1

    def detect(self, frame, *, rounded=False, near=None):  # noqa: ARG002
        if near is not None:
            return []
        self.looks += 1
        self.seen.append(number_of(frame if isinstance(frame, np.ndarray) else frame.rgb()))
        return [
            Face((x, y, x + 60, y + 84), 1.0, POINTS + np.float32([x, y]))
            for x, y in self.script(self.looks)
        ]


def lipsync(script):
    made = tiny_lipsync()
    made.detector = Scripted(script)
    return made


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.mp4"


def clip(path, frames, size=WIDE, pictures=None):
    """One quiet shot."""
    still = picture(0, *size)
    return write_clip(path, pictures or [still] * frames, size=size, crf="0")


def run(model, out, frames, source, **options):
    voice = write_sound(out.with_name("voice.wav"), babble(frames / 25))
    return model.run(source, voice, out, **({"steps": 1, "crf": 0} | options))


def touched(out, source):
    """(frames, 2) whether the left and the right half of each frame differ from the source's."""
    halves = []
    for planes, before in zip(raw_frames(out), raw_frames(source), strict=True):
        luma, other = planes[0], before[0]
        half = luma.shape[1] // 2
        parts = (slice(0, half), slice(half, None))
        halves.append([not np.array_equal(luma[:, part], other[:, part]) for part in parts])
    return np.array(halves)


@pytest.mark.parametrize(
    ("face", "expected"),
    [
        ("largest", [False, True]),
        ("left", [True, False]),
        ("right", [False, True]),
        ("40,90", [True, False]),
        ("210,90@0.2", [False, True]),
        ("all", [True, True]),
    ],
)
def test_the_chosen_face_speaks_and_no_other(tmp_path, out, face, expected):
    source = clip(tmp_path / "clip.mp4", 10)

    def script(index):  # the left one is seen in fewer frames
        return [RIGHT, LEFT] if index > 1 or face in ("all", "left") else [RIGHT]

    model = lipsync(script)
    run(model, out, 10, source, face=face, seed=3)
    assert touched(out, source)[4:].tolist() == [expected] * 6


def test_two_speakers_in_one_clip_are_what_each_is_alone(tmp_path, out):
    source = clip(tmp_path / "clip.mp4", 20)
    films = {}
    for face in ("left", "right", "all"):
        run(lipsync(lambda _: [RIGHT, LEFT]), out, 20, source, face=face, seed=3)
        films[face] = [planes[0] for planes in raw_frames(out)]
    half = WIDE[0] // 2
    for left, right, both in zip(*films.values(), strict=True):
        np.testing.assert_array_equal(both[:, :half], left[:, :half])
        np.testing.assert_array_equal(both[:, half:], right[:, half:])


@pytest.mark.parametrize(("options", "whole"), [({}, False), ({"follow": "frame"}, True)])
def test_whole_frames_are_made_for_the_published_way_alone(tmp_path, out, options, whole):
    shown = []

    class Seeing(Scripted):
        def detect(self, frame, *, rounded=False, near=None):
            shown.append(isinstance(frame, np.ndarray))
            return super().detect(frame, rounded=rounded, near=near)

    model = tiny_lipsync()
    model.detector = Seeing(lambda _: [LEFT])
    run(model, out, 5, clip(tmp_path / "clip.mp4", 5), **options)
    assert shown == [whole] * 5


@pytest.mark.parametrize(("options", "searches"), [({}, 10), ({"detect_every": 4}, 3)])
def test_faces_are_searched_for_in_one_of_so_many_frames(tmp_path, out, options, searches):
    model = tiny_lipsync()
    model.detector = detector = Scripted(lambda _: [LEFT])
    detector.follow = lambda _frame, seen, **_: list(seen)
    result = run(model, out, 10, clip(tmp_path / "clip.mp4", 10), **options)
    assert len(detector.seen) == searches
    assert result.faces_found == 10


def test_a_face_in_wide_pixels_speaks_in_its_place(tmp_path, out):
    """Stored half as wide: the same half of the picture is touched, nothing beside it."""
    still = cv2.resize(picture(0, *WIDE), (WIDE[0] // 2, WIDE[1]), interpolation=cv2.INTER_AREA)
    half = (WIDE[0] // 2, WIDE[1])
    source = write_clip(tmp_path / "clip.mp4", [still] * 6, size=half, crf="0", x264opts="sar=2/1")
    run(lipsync(lambda _: [RIGHT]), out, 6, source, seed=3)
    assert touched(out, source).tolist() == [[False, True]] * 6


def test_a_short_gap_is_filled_and_a_long_one_passes_through(tmp_path, out):
    source = clip(tmp_path / "clip.mp4", 40)
    model = lipsync(lambda i: [] if i in (5, 6, 7) or 15 <= i < 25 else [LEFT])
    result = run(model, out, 40, source)
    assert result.passed_through == ((15, 25, "no face"),)
    assert result.lost == ((15, 25, "no face"),)
    assert result.faces_found == 30
    alike = [same(a, b) for a, b in zip(raw_frames(out), raw_frames(source), strict=True)]
    assert [i for i, same_ in enumerate(alike) if same_] == list(range(15, 25))


def test_the_mouth_fades_beside_frames_that_pass_through(tmp_path, out, monkeypatch):
    shares = []
    paste = align.warp_to_frame

    def spy(*arguments, weight, **options):
        shares.append(float(weight.max()))
        return paste(*arguments, weight=weight, **options)

    monkeypatch.setattr(align, "warp_to_frame", spy)
    source = clip(tmp_path / "clip.mp4", 30)
    run(lipsync(lambda i: [] if 10 <= i < 20 else [LEFT]), out, 30, source)
    assert shares == pytest.approx([1] * 7 + [0.75, 0.5, 0.25] + [0.25, 0.5, 0.75] + [1] * 7)


def test_a_missing_face_may_be_an_error(tmp_path, out):
    source = clip(tmp_path / "clip.mp4", 40)
    model = lipsync(lambda i: [] if 15 <= i < 25 else [LEFT])
    with pytest.raises(NoFaceFound) as caught:
        run(model, out, 40, source, on_missing="error")
    assert str(caught.value) == (
        "source frames 15-24 (0.60 s on): no face; to let such frames pass through, set on_missing "
        "to keep"
    )
    assert not out.exists()


def test_each_speakers_missing_frames_are_told(tmp_path, out):
    source = clip(tmp_path / "clip.mp4", 30)
    voice = write_sound(tmp_path / "voice.wav", babble(1.2))
    voices = {"left": voice, "right": voice}

    def model():
        return lipsync(lambda i: [LEFT] if 10 <= i < 20 else [LEFT, RIGHT])

    result = model().run(source, voices, out, steps=1)
    assert result.lost == ((10, 20, "right: only other faces"),)
    with pytest.raises(NoFaceFound, match=r"source frames 10-19 .*: right: only other faces"):
        model().run(source, voices, out, steps=1, on_missing="error")


def test_no_group_crosses_a_cut(tmp_path, out, monkeypatch):
    sizes = group_sizes(monkeypatch)
    another = 255 - picture(3, *WIDE)
    another[30:, :100] = picture(0, *WIDE)[30:, :100]  # where the face is
    shots = [picture(0, *WIDE)] * 12 + [another] * 8
    source = clip(tmp_path / "clip.mp4", 20, pictures=shots)
    run(lipsync(lambda _: [LEFT]), out, 30, source)
    assert sizes == [12, 15, 3]  # 12 | 8 and back to the cut | the first shot again


def test_groups_that_share_frames_show_each_once(tmp_path, out, monkeypatch):
    sizes = group_sizes(monkeypatch)
    shown = [np.roll(picture(0, *WIDE), k, axis=1) for k in range(40)]
    source = clip(tmp_path / "clip.mp4", 40, pictures=shown)
    result = run(lipsync(lambda _: [LEFT]), out, 40, source, overlap=4)
    assert sizes == [16, 16, 16]
    assert result.frames == 40 == len(list(raw_frames(out)))
    right = WIDE[0] // 2 + 1
    for planes, before in zip(raw_frames(out), raw_frames(source), strict=True):
        np.testing.assert_array_equal(planes[0][:, right:], before[0][:, right:])


def paused(out):
    """A voice of 1 s, a pause of 1.2 s, and another second."""
    pause = np.zeros(round(1.2 * 16000), np.float32)
    parts = [babble(1.0), pause, babble(1.0, seed=1)]
    return write_sound(out.with_name("paused.wav"), np.concatenate(parts))


def test_the_clip_keeps_its_own_mouth_while_nobody_speaks(tmp_path, out):
    source = clip(tmp_path / "clip.mp4", 80)
    result = lipsync(lambda _: [LEFT]).run(source, paused(out), out, steps=1, silence="keep")
    ((start, stop, why),) = result.passed_through
    assert why == "nobody speaks"
    assert 25 <= start <= 33  # the voice ends at 25, and what is left of a word
    assert 48 <= stop <= 56  # it begins again at 55
    result = lipsync(lambda _: [LEFT]).run(source, paused(out), out, steps=1)
    assert result.passed_through == ()


def test_a_mouth_hears_silence_while_nobody_speaks(tmp_path, out, monkeypatch):
    heard = []
    denoise = sampling.denoise

    def spy(unet, noise, mask, latents, audio, effort, **options):
        heard.extend(audio.flatten(0, 1))
        return denoise(unet, noise, mask, latents, audio, effort, **options)

    monkeypatch.setattr(sampling, "denoise", spy)
    source, voice = clip(tmp_path / "clip.mp4", 80), paused(out)
    films = {}
    for silence in ("generate", "close"):
        heard.clear()
        lipsync(lambda _: [LEFT]).run(source, voice, out, steps=1, silence=silence)
        films[silence] = torch.stack(heard)
    alike = [torch.equal(a, b) for a, b in zip(*films.values(), strict=True)]
    assert all(alike[:22])
    assert all(alike[58:])
    amid = films["close"][35:46]
    assert torch.equal(amid, amid[:1].expand_as(amid))
    assert not torch.equal(films["generate"][35:46], amid)
    steps = (films["close"][1:] - films["close"][:-1]).abs().amax(dim=(1, 2))
    assert steps.max() <= 1.5 * (films["generate"][1:] - films["generate"][:-1]).abs().max()


class Turning(Scripted):
    """Sees one face, turned in some of its looks by about so many degrees."""

    def __init__(self, turns):
        super().__init__(lambda _: [LEFT])
        self.turns = turns

    def detect(self, frame, *, rounded=False, near=None):
        found = super().detect(frame, rounded=rounded, near=near)
        for face in found:
            brows = face.points[1, 0] - face.points[0, 0]
            face.points[2, 0] += NOSE_DEPTH * brows * np.tan(np.radians(self.turns[self.looks]))
        return found


def turning(turns):
    model = tiny_lipsync()
    model.detector = Turning(turns)
    return model


def test_a_face_turned_away_keeps_its_own_mouth(tmp_path, out):
    source = clip(tmp_path / "clip.mp4", 60)
    turns = [0] * 25 + [60] * 15 + [0] * 20
    result = run(turning(turns), out, 60, source, max_yaw=30)
    ((start, stop, why),) = result.passed_through
    assert why == "turned away"
    assert 24 <= start <= 26
    assert 39 <= stop <= 42
    assert result.lost == ((start, stop, "turned away"),)
    assert result.faces_found == 60
    np.testing.assert_array_equal(
        ~touched(out, source).any(axis=1), (np.arange(60) >= start) & (np.arange(60) < stop)
    )
    assert run(turning(turns), out, 60, source).passed_through == ()


def test_a_face_about_the_limit_shows_one_mouth_at_a_time(tmp_path, out):
    source = clip(tmp_path / "clip.mp4", 60)
    model = turning((33 + 2 * np.sin(np.arange(60))).tolist())
    said = r"all turned further than max_yaw 30 degrees \(31 to 35\)"
    with pytest.raises(NoFaceFound, match=said):
        run(model, out, 60, source, max_yaw=30)
    model = turning([0] * 20 + [33] * 40)
    ((start, stop, _),) = run(model, out, 60, source, max_yaw=30).passed_through
    assert 20 <= start <= 23
    assert stop == 60
    assert not touched(out, source)[start:].any()


@pytest.mark.parametrize("options", [{"face": "left"}, {"face": "all"}, {"follow": "frame"}])
def test_faces_that_are_all_turned_too_far_are_counted(tmp_path, out, options):
    source = clip(tmp_path / "clip.mp4", 30)
    said = r"is found in 30 of 30 frames, all turned further.*\(50 to 50\); give a larger max_yaw"
    with pytest.raises(NoFaceFound, match=said):
        run(turning([50] * 30), out, 30, source, max_yaw=30, **options)
    assert not out.exists()


def test_the_mouth_takes_on_the_colours_of_its_rim(tmp_path, out, monkeypatch):
    monkeypatch.setattr(  # a decoder with a cast, where it draws anew
        sampling, "decode", lambda _vae, _latents, pixels, mask: pixels + 0.12 * (1 - mask)
    )
    source = clip(tmp_path / "clip.mp4", 4)
    off = {}
    for match in (False, True):
        run(lipsync(lambda _: [LEFT]), out, 4, source, color_match=match)
        pairs = zip(raw_frames(out), raw_frames(source), strict=True)
        off[match] = np.mean([np.abs(a[0].astype(float) - b[0]).max() for a, b in pairs])
    assert off[False] > 10
    assert off[True] < off[False] / 2


@pytest.mark.parametrize("face", ["nobody", "5,5@99", "-3,4", "missing.png"])
def test_a_choice_that_means_nobody_is_one_line(tmp_path, out, face):
    source = clip(tmp_path / "clip.mp4", 5, size=SIZE)
    with pytest.raises(OptionError) as caught:
        run(lipsync(lambda _: [(10, 10)]), out, 5, source, face=face)
    assert "\n" not in str(caught.value)
    assert not out.exists()
