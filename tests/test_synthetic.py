"""Drawn heads: the same each time, and what is written down about them is what can be seen."""

import json
import signal
import sys
import wave
from dataclasses import replace

import cv2
import numpy as np
import pytest

from latentsync.errors import BackendUnavailable, Cancelled, InputError, OptionError, OutputError
from latentsync.media import AudioReader, VideoReader, VideoWriter
from latentsync.training.synthetic import (
    LANDMARKS,
    TRACKS,
    Identity,
    Mouth,
    Pose,
    clips,
    crop_affine,
    draw,
    draw_crop,
    draw_motion,
    draw_take,
    landmarks,
    measure,
    mouth_tracks,
    synthesise,
    write_take,
    write_wave,
)
from latentsync.training.synthetic.clips import draw_crops
from latentsync.training.synthetic.geometry import (
    TEMPLATE,
    chain,
    invert,
    project,
    scene_view,
    unproject,
)
from latentsync.training.synthetic.identity import BEARDS, HAIR_STYLES
from latentsync.training.synthetic.recordings import (
    draw_recording,
    read_recording,
    write_recording,
)
from latentsync.training.synthetic.sentences import draw_sentence
from latentsync.training.synthetic.speech import (
    LANGUAGES,
    SAMPLE_RATE,
    Phoneme,
    Voice,
    draw_speech,
    draw_voice,
    join,
    speak,
)
from latentsync.training.synthetic.visemes import SOUNDS, sound_track

SIZE = (128, 128)
SHUT, WIDE_OPEN = Mouth(), Mouth(open=1.0)


@pytest.fixture(scope="module")
def face() -> Identity:
    """Beardless, bare-eyed, evenly lit."""
    who = Identity.from_seed(9009)
    return replace(who, beard="none", glasses="none", grain=0.0, softness=0.0, light=0.2)


def at(frame, point):
    """The mean colour of the 3 x 3 pixels around a landmark."""
    x, y = np.round(point).astype(int)
    return frame[y - 1 : y + 2, x - 1 : x + 2].reshape(-1, 3).astype(float).mean(axis=0)


# Speech.


def test_equal_sentences_are_equal_samples_whatever_was_said_between():
    voice = Voice("en-us", "f4", rate=150)
    first = speak("My mother bought a bumpy boat.", voice)
    speak("Der Hund schläft.", Voice("de", "m3", pitch=20))
    again = speak("My mother bought a bumpy boat.", voice)
    np.testing.assert_array_equal(first.wave, again.wave)
    assert first.phonemes == again.phonemes
    assert first.wave.dtype == np.int16
    assert np.abs(first.wave).max() > 3000
    times = [phoneme.start_seconds for phoneme in first.phonemes]
    assert times == sorted(times)
    assert times[-1] <= first.seconds + 0.02


def test_rate_and_pitch_are_heard():
    slow = speak("We are far away.", Voice(rate=110))
    quick = speak("We are far away.", Voice(rate=220))
    assert slow.seconds > 1.4 * quick.seconds
    low, high = (speak("aaaaa", Voice(pitch=p)).wave.astype(float) for p in (5, 95))
    crossings = [np.mean(np.diff(np.sign(w)) != 0) for w in (low, high)]
    assert crossings[0] != crossings[1]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_speaks(language):
    rng = np.random.default_rng(5)
    speech = draw_speech(rng, 2.0, draw_voice(rng, (language,)))
    assert len(speech.wave) == 2 * SAMPLE_RATE
    assert len(speech.phonemes) > 8
    assert mouth_tracks(speech.phonemes, 2.0)[:, 0].std() > 0.08


def test_phoneme_times_go_on_after_a_gap():
    one = speak("Papa.", Voice())
    both = join([one, one], [0.5, 0.25])
    assert both.seconds == pytest.approx(2 * one.seconds + 0.75, abs=1e-3)
    names = [p.name for p in one.phonemes]
    assert [p.name for p in both.phonemes] == ["_:", *names, "_:", *names, "_:"]
    assert both.phonemes[1].start_seconds == pytest.approx(0.5 + one.phonemes[0].start_seconds)
    silence = both.wave[: int(0.45 * SAMPLE_RATE)]
    assert not silence.any()


def test_a_voice_that_is_not_there_is_named():
    with pytest.raises(OptionError, match="tlhingan"):
        speak("nuqneH", Voice("tlhingan"))
    with pytest.raises(OptionError, match="nothing to say"):
        speak("", Voice())


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(BackendUnavailable, match=r"\[train\]"):
        speak("Hello", Voice())


def test_sentences_differ_by_seed_and_language():
    english = [draw_sentence(np.random.default_rng(seed), "en-us") for seed in range(20)]
    assert len(set(english)) == 20
    assert english[3] == draw_sentence(np.random.default_rng(3), "en-us")
    assert all(4 <= len(sentence.split()) <= 11 for sentence in english)
    assert draw_sentence(np.random.default_rng(3), "xx")  # no list: words that don't exist


# Mouths.


def test_lips_are_shut_in_p_b_m_at_every_frame_rate():
    phonemes = [Phoneme(0.0, "'A:"), Phoneme(0.4, "m"), Phoneme(0.47, "'A:"), Phoneme(0.9, "_")]
    for fps in (25, 30, 50):
        tracks = mouth_tracks(phonemes, 1.0, fps=fps)
        assert tracks.shape == (fps, len(TRACKS))
        during = np.abs(np.arange(fps) / fps - 0.43) <= 0.021
        assert tracks[during, 0].max() < 0.02
        assert tracks[:, 0].max() > 0.7
        assert tracks[-1, 0] < 0.05


def test_sounds_have_their_shapes():
    def middle(name):
        return mouth_tracks([Phoneme(0.0, name)], 0.6)[7]

    assert middle("'u:")[2] > 0.9  # round
    assert middle("'i:")[1] > 0.8  # wide
    assert middle("'A:")[0] > 0.8  # open
    assert middle("f")[3] > 0.9  # lip at the teeth
    assert middle("T")[4] > 0.9  # tongue at the teeth
    glide = mouth_tracks([Phoneme(0.0, "'aU")], 0.6)[:, 2]
    assert glide[-3] > glide[2] + 0.5


def test_the_mouth_opens_with_the_voice():
    rng = np.random.default_rng(2)
    speech = draw_speech(rng, 6.0, Voice("en-us"))
    opening = mouth_tracks(speech.phonemes, 6.0)[:, 0]
    samples = speech.wave.astype(float)
    hop = SAMPLE_RATE // 25
    loudness = [samples[max(0, i * hop - hop) : i * hop + hop].std() for i in range(len(opening))]
    assert np.corrcoef(opening, np.sqrt(loudness))[0, 1] > 0.5
    late = np.corrcoef(np.roll(opening, 12), np.sqrt(loudness))[0, 1]
    assert late < 0.3


def test_tracks_refuse_no_time():
    with pytest.raises(OptionError, match="above 0"):
        mouth_tracks([], 0.0)


# Heads.


def test_people_are_alike_by_seed_and_differ_between_seeds():
    assert Identity.from_seed(3) == Identity.from_seed(3)
    people = [Identity.from_seed(seed) for seed in range(150)]
    assert {who.hair_style for who in people} == set(HAIR_STYLES)
    assert {who.beard for who in people} == set(BEARDS)
    lightness = [np.mean(who.skin) for who in people]
    assert min(lightness) < 60
    assert max(lightness) > 205


def test_equal_arguments_are_equal_bytes():
    who, pose = Identity.from_seed(7), Pose(yaw=0.2, roll=0.05, tick=3)
    first, points = draw(who, pose, Mouth(0.5, 0.3), (96, 80))
    from latentsync.training.synthetic.heads import _paint

    _paint.cache_clear()
    again, _ = draw(who, pose, Mouth(0.5, 0.3), (96, 80))
    assert first.tobytes() == again.tobytes()
    assert (first.shape, first.dtype) == ((80, 96, 3), np.uint8)
    assert points.shape == (len(LANDMARKS), 2)
    other, _ = draw(who, replace(pose, tick=4), Mouth(0.5, 0.3), (96, 80))
    assert not np.array_equal(first, other)  # film grain


def test_the_turned_face_is_found_back(face):
    points = np.random.default_rng(0).uniform((-0.9, -1.2), (0.9, 1.2), (200, 2))
    pose = Pose(yaw=0.35, pitch=-0.12)
    turned = project(face, pose, points).astype(np.float32)
    back = np.stack(unproject(face, pose, turned[:, 0], turned[:, 1]), axis=1)
    assert np.abs(back - points).max() < 0.01


@pytest.mark.parametrize("size", [(64, 48), (96, 96), (201, 151), (640, 360)])
def test_any_size(face, size):
    frame, points = draw(face, Pose(), SHUT, size)
    assert frame.shape == (size[1], size[0], 3)
    assert (points > 0).all()
    assert (points < size).all()


def test_too_small_a_frame_is_refused(face):
    with pytest.raises(OptionError, match="16 or more"):
        draw_crop(face, Pose(), SHUT, 8)


@pytest.mark.parametrize("pose", [Pose(), Pose(yaw=0.25, roll=0.1, pitch=0.08, x=0.2)])
def test_landmarks_lie_where_they_are_drawn(face, pose):
    frame, points = draw(face, pose, WIDE_OPEN, (512, 512))
    where = dict(zip(LANDMARKS, points, strict=True))
    inside = (where["lip_upper_inner"] + where["lip_lower_inner"]) / 2
    below = where["lip_lower_inner"] * 0.5 + where["lip_lower_outer"] * 0.5
    chin = where["chin"] + (where["lip_lower_outer"] - where["chin"]) * 0.35
    skin = at(frame, chin)
    assert at(frame, inside).mean() < 0.5 * skin.mean()  # the dark of the mouth
    red, green, _ = at(frame, below)
    assert red / green > 1.15 * skin[0] / skin[1]  # a lip is redder than skin
    for side in ("left", "right"):
        assert at(frame, where[f"eye_{side}"]).mean() < 0.5 * skin.mean()  # pupil
        assert at(frame, where[f"brow_{side}"]).mean() < 0.75 * skin.mean()
    # The corners: lips on the inner side, skin beyond.
    across = where["mouth_right"] - where["mouth_left"]
    inner = at(frame, where["mouth_left"] + 0.06 * across)
    outer = at(frame, where["mouth_left"] - 0.16 * across)
    assert np.abs(inner - outer).sum() > 40


def test_the_mouth_changes_and_little_else(face):
    shut, _ = draw(face, Pose(), SHUT, (256, 256))
    wide, points = draw(face, Pose(), WIDE_OPEN, (256, 256))
    changed = np.abs(shut.astype(int) - wide).max(axis=2)
    nose_y = int(points[LANDMARKS.index("nose_base"), 1])
    assert changed[: nose_y - 8].max() <= 2
    assert (changed[nose_y:] > 40).sum() > 150


def test_openings_are_measured_and_drawn(face):
    gaps = []
    for share in (0.0, 0.3, 0.6, 1.0):
        points = landmarks(face, Pose(), Mouth(share), scene_view(512, 512))
        where = dict(zip(LANDMARKS, points, strict=True))
        gap = where["lip_lower_inner"][1] - where["lip_upper_inner"][1]
        distance = where["eye_right"][0] - where["eye_left"][0]
        assert gap / distance == pytest.approx(measure(face, Mouth(share))[0], rel=0.05, abs=1e-3)
        assert where["lip_upper_outer"][1] < where["lip_upper_inner"][1]
        assert where["lip_lower_inner"][1] < where["lip_lower_outer"][1] < where["chin"][1]
        gaps.append(gap)
    assert gaps[0] < 0.5
    assert np.all(np.diff(gaps) > 5)
    narrow, rest, wide = (measure(face, m)[1] for m in (Mouth(0.2, -0.5, 1), SHUT, Mouth(0.2, 1)))
    assert narrow < 0.85 * rest < rest < wide


def test_a_closure_shows_no_inside(face):
    lip = np.array(face.lips)
    frame, points = draw_crop(face, Pose(), SHUT, 192)
    seam = at(frame, points[LANDMARKS.index("lip_upper_inner")])
    assert seam[0] > 0.4 * lip[0]  # darker than the lips, but no cavity
    opened, points = draw_crop(face, Pose(), Mouth(0.8), 192)
    column = opened[:, round(float(points[LANDMARKS.index("lip_upper_inner"), 0]))].astype(int)
    upper, lower = (points[LANDMARKS.index(f"lip_{n}_inner"), 1] for n in ("upper", "lower"))
    inside = column[int(upper) + 2 : int(lower) - 1]
    assert inside.min() < 40
    assert inside.min(axis=1).max() > 140  # teeth


def test_blinks_hide_the_eyes(face):
    seen, points = draw(face, Pose(), SHUT, (256, 256))
    blinked, _ = draw(face, Pose(blink=1.0), SHUT, (256, 256))
    eye = points[LANDMARKS.index("eye_left")]
    assert at(blinked, eye - (0, 2)).mean() > 2 * at(seen, eye).mean()


def test_the_crop_is_latentsyncs(face):
    pose = Pose(roll=0.15, x=0.3, scale=1.1)
    _, points = draw_crop(face, pose, SHUT, 100)
    three = points[[LANDMARKS.index(n) for n in ("brow_left", "brow_right", "nose_base")]]
    goal = TEMPLATE * (100 / 75, 1.0)
    assert np.abs(three - goal).max() < 6
    assert np.abs(three.mean(axis=0) - goal.mean(axis=0)).max() < 0.05
    level = three[1] - three[0]
    assert abs(np.arctan2(level[1] * 1.0, level[0] * 0.75)) < 0.02


def test_the_crop_is_cut_from_the_same_picture(face):
    """The scene, warped by crop view after the scene's inverse, is the crop."""
    pose, mouth = Pose(yaw=0.1, roll=0.08), Mouth(0.7, 0.2)
    scene, _ = draw(face, pose, mouth, (768, 768))
    crop, _ = draw_crop(face, pose, mouth, 128)
    view, into = scene_view(768, 768), crop_affine(face, pose, 128)
    to_crop = chain(into, invert(view))
    blurred = cv2.GaussianBlur(scene, (0, 0), 0.8)
    warped = cv2.warpAffine(blurred, to_crop, (128, 128), flags=cv2.INTER_LINEAR)
    difference = np.abs(crop.astype(int) - warped)[4:-4, 4:-4]
    assert difference.mean() < 4
    into[0, 2] += 9
    jittered, _ = draw_crop(face, pose, mouth, 128, into)
    assert np.abs(crop[:, :-9].astype(int) - jittered[:, 9:]).mean() < 3


def test_a_cascade_finds_drawn_faces():
    cascade = cv2.CascadeClassifier(cv2.data.haarcascades + "haarcascade_frontalface_alt2.xml")
    found = 0
    for seed in range(24):
        pose = draw_motion(np.random.default_rng(seed), 10)[5]
        frame, points = draw(Identity.from_seed(seed), pose, Mouth(0.3, 0.2), (240, 240), zoom=1.1)
        boxes = cascade.detectMultiScale(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), 1.1, 3)
        x, y = points[LANDMARKS.index("nose_base")]
        found += any(a < x < a + w and b < y < b + h for a, b, w, h in boxes)
    assert found >= 22


# Clips.


def test_clips_come_with_their_truth(tmp_path):
    seen = []
    paths = synthesise(
        tmp_path / "raw", identities=2, seconds=1.0, seed=3, size=(96, 80), progress=seen.append
    )
    assert [path.name for path in paths] == ["003_00000.mp4", "003_00001.mp4"]
    assert [(p.done, p.total) for p in seen] == [(0, 2), (1, 2), (2, 2)]
    for path in paths:
        frames = [frame.rgb() for frame in VideoReader(path).frames()]
        truth = [
            json.loads(line) for line in path.with_suffix(".truth.jsonl").read_text().splitlines()
        ]
        assert len(frames) == len(truth) == 25
        assert frames[0].shape == (80, 96, 3)
        assert len(AudioReader(path).samples) == pytest.approx(16000, abs=1100)
        for index, line in enumerate(truth):
            assert line["frame"] == index
            assert set(line) == {
                *("frame", "seconds", "opening", "width", "rounding"),
                *("phonemes", "mouth", "pose", "landmarks"),
            }
            assert tuple(line["landmarks"]) == LANDMARKS
            assert tuple(line["mouth"]) == TRACKS
            assert 0 <= line["opening"] < 0.7
            assert 0 <= line["rounding"] <= 1
    take = draw_take(3, 1, 1.0)
    drawn, _ = draw(
        take.identity, take.poses[4], Mouth.from_track(take.mouths[4]), (96, 80), zoom=take.zoom
    )
    assert np.abs(drawn.astype(int) - frames[4]).mean() < 6  # only the codec is between them


def test_a_take_is_the_same_again_and_others_differ():
    one, again, other = draw_take(1, 5, 1.0), draw_take(1, 5, 1.0), draw_take(1, 6, 1.0)
    np.testing.assert_array_equal(one.speech.wave, again.speech.wave)
    np.testing.assert_array_equal(one.mouths, again.mouths)
    assert one.poses == again.poses
    assert one.identity == again.identity != other.identity
    assert len(one) == len(one.poses) == 25


def test_cancel_keeps_whole_clips_only(tmp_path):
    with pytest.raises(Cancelled, match="1 of 3"):
        synthesise(tmp_path, identities=3, seconds=0.4, size=(64, 64), cancel=lambda: True)
    assert len(list(tmp_path.glob("*.mp4"))) == 1


SHORT = {"identities": 2, "seconds": 0.2, "size": (64, 64)}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_finished_is_not_drawn_again(tmp_path, monkeypatch):
    first, second = synthesise(tmp_path, **SHORT)
    made = contents(tmp_path)
    drawn = []
    real = clips.write_take

    def counted(take, path, size, **options):
        drawn.append(path)
        return real(take, path, size, **options)

    monkeypatch.setattr(clips, "write_take", counted)

    def again(**changes):
        drawn.clear()
        synthesise(tmp_path, **(SHORT | changes))
        return list(drawn)

    assert again() == []
    first.with_suffix(".truth.jsonl").unlink()
    assert again() == [first]
    second.write_bytes(b"")
    assert again() == [second]
    truth = second.with_suffix(".truth.jsonl")
    truth.write_text(truth.read_text()[:-20])
    assert again() == [second]
    assert contents(tmp_path) == made
    for change in ({"size": (80, 64)}, {"seconds": 0.24}, {"languages": ("de",)}):
        assert again(**change) == [first, second]


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(KeyboardInterrupt(), KeyboardInterrupt), (OSError(28, "No space left"), OutputError)],
)
def test_a_clip_that_fails_leaves_all_as_it_was(tmp_path, monkeypatch, failure, raised):
    synthesise(tmp_path, **SHORT)
    before = contents(tmp_path)
    drawn = []

    def draw_and_fail(*arguments, **options):
        drawn.append(1)
        if len(drawn) == 3:
            raise failure
        return draw(*arguments, **options)

    monkeypatch.setattr(clips, "draw", draw_and_fail)
    with pytest.raises(raised, match="No space left" if raised is OutputError else None):
        synthesise(tmp_path, **(SHORT | {"size": (80, 64)}))
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("obeys_sigint")
def test_an_interrupt_while_espeak_calls_back_is_not_lost(tmp_path, monkeypatch):
    spoken = []

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGINT)
        spoken.append(draw_take(*arguments, **options))  # uninterrupted
        return spoken[-1]

    monkeypatch.setattr(clips, "draw_take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthesise(tmp_path, **SHORT)
    assert len(spoken) == 1
    assert contents(tmp_path) == {}


def test_the_truth_is_never_there_without_its_clip(tmp_path, monkeypatch):
    take, path = draw_take(1, 0, 0.2), tmp_path / "a.mp4"
    write_take(take, path, (64, 64))
    seen = []
    real = VideoWriter._finish

    def finish(writer):
        seen.append(sorted(contents(tmp_path)))  # the old clip is about to be replaced
        real(writer)
        seen.append(sorted(contents(tmp_path)))

    monkeypatch.setattr(VideoWriter, "_finish", finish)
    write_take(take, path, (64, 64))
    assert ["a.truth.jsonl" in names for names in seen] == [False, False]
    assert sorted(contents(tmp_path)) == ["a.mp4", "a.truth.jsonl"]


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"identities": 0}, "0 identities; wanted 1 or more"),
        ({"seconds": 0.1}, "0.1 seconds; wanted 0.2 to 3600"),
        ({"seconds": float("nan")}, "nan seconds"),
        ({"seed": -1}, "seed -1; wanted 0 to"),
        ({"size": (63, 64)}, "63 x 64; wanted both sides from 64"),
        ({"size": (64, 5000)}, "64 x 5000"),
        ({"workers": 0}, "0 workers"),
        ({"languages": ("de", "tlh")}, "languages de, tlh; wanted some of en-us"),
        ({"languages": ()}, "languages none"),
    ],
)
def test_wishes_out_of_range_are_refused(tmp_path, wish, words):
    with pytest.raises(OptionError, match=words):
        synthesise(tmp_path / "raw", **wish)
    assert not (tmp_path / "raw").exists()


def test_waves_are_plain_wav(tmp_path):
    speech = speak("Hello.", Voice())
    write_wave(tmp_path / "a.wav", speech)
    with wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, 22050)
        assert file.getnframes() == len(speech.wave)


def test_what_is_said_at_each_moment():
    said = [Phoneme(0.0, "_:"), Phoneme(0.1, "m"), Phoneme(0.2, "'a:"), Phoneme(0.3, "%$")]
    track = sound_track(said, 0.4, fps=20)
    names = [SOUNDS[i] if i >= 0 else None for i in track]
    assert names == ["", "", "m", "m", "a", "a", None, None]


def test_crops_are_windows_of_the_take():
    take = draw_take(3, 1, 1.2, languages=("en-us",))
    exact, loose = (
        draw_crops(take, np.random.default_rng(7), windows=2, frames=3, size=48, jitter=jitter)
        for jitter in (0.0, 0.05)
    )
    assert exact.pixels.shape == (2, 3, 48, 48, 3)
    assert (np.diff(exact.frames, axis=1) == 1).all()
    number = int(exact.frames[1, 2])
    mouth = Mouth.from_track(take.mouths[number])
    pixels, points = draw_crop(take.identity, take.poses[number], mouth, 48)
    assert np.array_equal(exact.pixels[1, 2], pixels)
    np.testing.assert_allclose(exact.points[1, 2], points, atol=1e-3)
    np.testing.assert_allclose(exact.mouths[1, 2], measure(take.identity, mouth), atol=1e-6)
    moved = np.linalg.norm(loose.points - exact.points, axis=-1)
    assert 0.1 < moved.mean() < 3  # px


# -- Recordings ------------------------------------------------------------------------------------


def test_a_stretch_of_a_recording(tmp_path):
    wave = (1000 * np.sin(np.arange(16_000 * 4) / 5)).astype(np.int16)
    phonemes = [Phoneme(0.0, "_:"), Phoneme(0.5, "m"), Phoneme(3.9, "a")]
    write_recording(tmp_path / "a.npz", wave, phonemes)
    assert read_recording(tmp_path / "a.npz")[1] == phonemes
    speech = draw_recording(tmp_path, np.random.default_rng(0), 2.0)
    assert len(speech.wave) == 2 * SAMPLE_RATE
    assert [phoneme.name for phoneme in speech.phonemes] == ["m"]  # begun before the cut at 1.27 s
    assert speech.phonemes[0].start_seconds == 0
    assert np.abs(speech.wave[1000:-1000]).max() == pytest.approx(1000, rel=0.02)


def test_a_recording_that_is_too_short_ends_in_silence(tmp_path):
    write_recording(tmp_path / "a.npz", np.full(16_000, 500, np.int16), [Phoneme(0.2, "m")])
    speech = draw_recording(tmp_path, np.random.default_rng(0), 3.0)
    assert speech.seconds == 3
    assert not speech.wave[int(1.1 * SAMPLE_RATE) :].any()
    take = draw_take(1, 1, 3.0, speech=speech)
    assert take.speech is speech
    assert len(take) == 75


def test_no_recordings(tmp_path):
    with pytest.raises(InputError, match=r"no recordings in .*train_ear\.py"):
        draw_recording(tmp_path, np.random.default_rng(0), 1.0)
