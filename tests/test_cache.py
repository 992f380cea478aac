"""A folder that remembers clips: what is not computed twice, and that nothing else changes."""

import pickle
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from latentsync.diffusion.vae import VAE
from latentsync.errors import OutputError
from latentsync.runtime.disk_cache import Cache, digest
from latentsync.types import FaceTrack
from tests.clips import babble, picture, raw_frames, same, write_clip, write_sound
from tests.stubs import numbered_clip, tiny_lipsync
from tests.test_following import LEFT, RIGHT, WIDE, lipsync

MIB = 2**20


@pytest.fixture
def clip(tmp_path):
    return numbered_clip(tmp_path / "clip.mp4", 20)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def encoded(monkeypatch):
    """A list that every encoding adds its number of pictures to."""
    counts, encode = [], VAE.encode

    def spy(self, pixels, noise=None):
        counts.append(len(pixels))
        return encode(self, pixels, noise)

    monkeypatch.setattr(VAE, "encode", spy)
    return counts


def run(model, clip, seconds, folder, **options):
    """The frames of a run, and how many frames were searched for faces."""
    voice = write_sound(clip.with_name("voice.wav"), babble(seconds))
    out = clip.with_name("out.mp4")
    chosen = {"steps": 1, "crf": 0, "seed": 3, "cache_dir": folder and str(folder)} | options
    model.detector.seen.clear()
    model.run(clip, voice, out, **chosen)
    return list(raw_frames(out)), len(model.detector.seen)


def test_a_second_voice_needs_neither_the_detector_nor_the_encoder(clip, folder, encoded):
    model = tiny_lipsync()
    plain, _ = run(model, clip, 0.6, None)
    first, looks = run(model, clip, 0.8, folder)
    assert looks == 20
    assert sum(encoded) > 0
    encoded.clear()
    second, looks = run(tiny_lipsync(), clip, 0.6, folder)
    assert (looks, sum(encoded)) == (0, 0)
    assert alike(second, plain)
    assert len(second) < len(first)


def test_a_longer_voice_finds_all_of_the_clip_s_faces(clip, folder, encoded):
    model = tiny_lipsync()
    _, looks = run(model, clip, 0.2, folder)
    assert looks == 20  # not only the five frames that it wanted
    encoded.clear()
    longer, looks = run(model, clip, 1.2, folder)
    assert looks == 0
    assert sum(encoded) == 2 * 15
    assert alike(longer, run(model, clip, 1.2, None)[0])


@pytest.mark.parametrize(
    "change", [{"smooth": 3}, {"face": "left"}, {"landmarks": "rounded"}, {"detect_every": 2}]
)
def test_what_the_track_depends_on_makes_it_another(clip, folder, change):
    model = tiny_lipsync()
    run(model, clip, 0.4, folder)
    assert run(model, clip, 0.4, folder, **change)[1] > 0
    assert run(model, clip, 0.4, folder)[1] == 0


def test_other_bytes_are_another_clip(clip, folder):
    model = tiny_lipsync()
    run(model, clip, 0.4, folder)
    numbered_clip(clip, 19)
    frames, looks = run(model, clip, 0.4, folder)
    assert looks == 19
    assert alike(frames, run(model, clip, 0.4, None)[0])


def test_other_weights_find_no_latents_but_the_track(clip, folder, encoded):
    run(tiny_lipsync(), clip, 0.4, folder)
    other = tiny_lipsync()
    with torch.no_grad():
        next(other.nets.vae.parameters()).mul_(1.5)
    encoded.clear()
    assert run(other, clip, 0.4, folder)[1] == 0
    assert sum(encoded) == 20


def test_a_frame_shown_again_is_encoded_once(clip, encoded):
    model = tiny_lipsync()
    run(model, clip, 3.2, None)  # 80 frames of a clip of 20
    assert sum(encoded) == 2 * 20


def alike(film, other):
    return all(same(*pair) for pair in zip(film, other, strict=True))


def tracks(frames):
    affine = np.random.default_rng(frames).normal(size=(frames, 2, 3)).astype(np.float32)
    found = np.arange(frames) % 3 > 0
    return [
        FaceTrack(affine, found, shot_start=~found, gaps=((0, 1, "no face"),)),
        FaceTrack(-affine, ~found, nose=affine[:, 0]),
    ]


def test_tracks_come_back_as_they_were(folder):
    made = tracks(7)
    with Cache(folder, MIB) as cache:
        assert cache.tracks("a", lambda: made) is made
    with Cache(folder, MIB) as cache:
        again = cache.tracks("a", lambda: pytest.fail("made again"))
    for one, other in zip(made, again, strict=True):
        for name in ("affine", "detected", "shot_start", "nose"):
            np.testing.assert_equal(getattr(other, name), getattr(one, name))
        assert other.gaps == one.gaps


def test_the_folder_stays_within_its_size(folder):
    with Cache(folder, MIB) as cache:
        for number in range(100):
            cache.put(f"latents {number}", bytes(40_000))
        values = folder.rglob("*.val")
        size = sum(path.stat().st_size for path in values)
        assert 0.5 * MIB < size <= MIB
        assert cache.get("latents 99") == bytes(40_000)
        assert cache.get("latents 0") is None


def test_several_threads_share_one_folder(folder):
    def work(number):
        with Cache(folder, MIB) as cache:
            for i in range(20):
                cache.put(f"{number} {i}", f"{number} {i}".encode())
                cache.put("all", b"same")
            return [cache.get(f"{number} {i}") for i in range(20)], cache.get("all")

    with ThreadPoolExecutor(4) as pool:
        for number, (own, common) in enumerate(pool.map(work, range(4))):
            assert own == [f"{number} {i}".encode() for i in range(20)]
            assert common == b"same"


def test_what_is_damaged_is_made_again(clip, folder, encoded):
    model = tiny_lipsync()
    whole, _ = run(model, clip, 0.4, folder)
    with sqlite3.connect(folder / "cache.db") as database:
        database.execute("UPDATE Cache SET value = X'00ff', size = 0, mode = 1, filename = NULL")
    database.close()
    encoded.clear()
    frames, looks = run(model, clip, 0.4, folder)
    assert (looks, sum(encoded)) == (20, 20)
    assert alike(frames, whole)


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def test_a_pickle_that_somebody_put_there_is_not_opened(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Cache(folder, MIB) as cache:
        cache.put("a", b"value")
    with sqlite3.connect(folder / "cache.db") as database:
        database.execute("UPDATE Cache SET value = ?, mode = 4", [pickle.dumps(Bomb())])
    database.close()
    with Cache(folder, MIB) as cache:
        assert cache.get("a") is None
    assert not (tmp_path / "unpickled").exists()


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match=r"cache folder .+ be used"):
        Cache(tmp_path / "file", MIB)


def test_a_key_is_made_of_all_it_depends_on():
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    assert digest({"a": 1}) != digest({"a": 2}) != digest({"a": "2"})


@pytest.mark.parametrize(
    ("first", "second"),
    [({"face": "left"}, {"face": "right"}), ({"smooth": 0}, {"smooth": 5})],
    ids=["face", "smooth"],
)
def test_another_place_in_the_same_frame_has_latents_of_its_own(tmp_path, folder, first, second):
    source = two_faces(tmp_path / "two.mp4", 10)
    run(moving_pair(), source, 0.4, folder, **first)
    cached, _ = run(moving_pair(), source, 0.4, folder, **second)
    plain, _ = run(moving_pair(), source, 0.4, None, **second)
    other, _ = run(moving_pair(), source, 0.4, None, **first)
    assert alike(cached, plain)
    assert not alike(plain, other)


def moving_pair():
    """Sees two faces, both of which tremble, so that smoothing moves their crops."""
    return lipsync(lambda i: [(x + 3 * (i % 2), y) for x, y in (LEFT, RIGHT)])


def two_faces(path, frames):
    """A quiet shot whose halves look different, as two people do."""
    still = picture(0, *WIDE)
    still[:, WIDE[0] // 2 :] = 255 - still[:, WIDE[0] // 2 :]
    return write_clip(path, [still] * frames, size=WIDE, crf="0")
