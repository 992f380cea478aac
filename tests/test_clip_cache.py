"""The cache of prepared clips: damage is made anew, a full disk is told, the dead are swept."""

import errno
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from latentsync.audio.whisper import encode_speech
from latentsync.errors import OutputError, TrainingError
from latentsync.media import AudioReader
from latentsync.training import clip_cache
from latentsync.training.clip_cache import Preparer
from latentsync.training.dataset import prepare
from tests.clips import babble
from tests.stubs import StubDetector, numbered_clip, tiny_nets
from tests.training_run import files_of, prepared_in

FILES = ["facts.json", "clean.npy", "masked.npy", "speech.npy", "mel.npy", "affine.npy"]


@pytest.fixture(scope="module")
def nets():
    return tiny_nets()


@pytest.fixture(scope="module")
def filled(tmp_path_factory, nets):
    """A clip and the cache that holds what was made of it; to be copied."""
    folder = tmp_path_factory.mktemp("filled")
    path = numbered_clip(folder / "a.mp4", 50, sound=babble(2.0, 48000))
    Preparer(nets, StubDetector(), folder / "cache").clip(*files_of(path))
    return folder


@pytest.fixture
def place(filled, tmp_path):
    return shutil.copytree(filled, tmp_path / "place")


def preparer(nets, place, **options):
    return Preparer(nets, StubDetector(**options), place / "cache")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "emptied", "deleted"])
def test_whatever_is_damaged_is_made_anew(place, nets, name, damage):
    (folder,) = prepared_in(place / "cache")
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(whole) == sorted(FILES)
    file = folder / name
    if damage == "cut":
        file.write_bytes(whole[name][:-9])
    elif damage == "emptied":
        file.write_bytes(b"")
    else:
        file.unlink()
    again = preparer(nets, place)
    (found,) = prepare(files_of(place / "a.mp4"), again)
    assert len(again.detector.seen) == 50
    assert found.folder == folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == whole
    assert list((place / "cache" / ".work").glob("*/")) == []


@pytest.mark.parametrize("text", ["null", "{}", "[]", '{"unusable": 3, "files": {}}', "\xff"])
def test_facts_that_are_none_are_made_anew(place, nets, text):
    (folder,) = prepared_in(place / "cache")
    (folder / "facts.json").write_text(text)
    assert len(preparer(nets, place).clip(*files_of(place / "a.mp4"))) == 50


@pytest.mark.parametrize("name", ["clean.npy", "speech.npy", "mel.npy", "affine.npy"])
def test_damage_in_mid_run_is_named(place, nets, name):
    found = preparer(nets, place).clip(*files_of(place / "a.mp4"))
    (found.folder / name).write_bytes((found.folder / name).read_bytes()[:200])
    with pytest.raises(TrainingError, match=rf"{name} is damaged or gone \(.*\); start again"):
        found.latents(30, 46), found.speech(30, 46), found.mel(30, 16), found.crops(30, 46, 64)


@pytest.mark.parametrize("kept", [0, 600])
@pytest.mark.parametrize("name", ["clean.npy", "masked.npy", "speech.npy", "mel.npy", "affine.npy"])
def test_zeros_of_the_right_size_are_named_and_made_anew_at_the_next_start(place, nets, name, kept):
    (file,) = files_of(place / "a.mp4")
    found = preparer(nets, place).clip(file)
    path = found.folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[:kept].ljust(len(whole), b"\0"))
    with pytest.raises(TrainingError, match=rf"{name} is damaged or gone \(.*\); start again"):
        found.latents(30, 46), found.speech(30, 46), found.mel(30, 16), found.crops(30, 46, 64)
    preparer(nets, place).clip(file)
    assert path.read_bytes() == whole


def test_what_is_made_is_on_the_disk_before_it_has_its_name(place, nets, monkeypatch):
    (folder,) = prepared_in(place / "cache")
    shutil.rmtree(folder)
    synced = set()

    def noted(descriptor):
        assert not folder.exists()
        synced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", noted)
    preparer(nets, place).clip(*files_of(place / "a.mp4"))
    assert {path.stat().st_ino for path in folder.iterdir()} <= synced


def test_speech_is_kept_without_its_repetition(place, nets):
    found = preparer(nets, place).clip(*files_of(place / "a.mp4"))
    kept = np.load(found.folder / "speech.npy")
    assert kept.shape == (found.tokens - found.first_token, 2, 32)  # two states of a tiny Whisper
    assert len(kept) <= 2 * len(found) + 9
    heard = encode_speech(nets.speech, AudioReader(place / "a.mp4"), frames=50)
    for start, stop in ((0, 16), (20, 21), (34, 50)):
        wanted = heard[start:stop].half().float()
        assert np.array_equal(found.speech(start, stop), wanted)


def test_a_late_face_hears_its_own_tokens(place, nets):
    late = preparer(nets, place, faces=lambda number: number >= 2)
    late.cache.joinpath("digests.jsonl").unlink(missing_ok=True)
    shutil.rmtree(prepared_in(place / "cache")[0])
    found = late.clip(*files_of(place / "a.mp4"))
    assert (found.first, len(found)) == (2, 48)
    heard = encode_speech(nets.speech, AudioReader(place / "a.mp4"), frames=50)
    assert np.array_equal(found.speech(0, 48), heard[2:50].half().float())


# -- A full disk -----------------------------------------------------------------------------------


def test_room_is_taken_before_anything_is_computed(place, nets, monkeypatch):
    shutil.rmtree(prepared_in(place / "cache")[0])

    def full(_descriptor, start, size):
        assert (start, size) == (0, 128 + 50 * 4 * 8 * 8 * 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(clip_cache.sampling, "encode", None)
    with pytest.raises(OutputError, match=r"cache .* can't be written \(No space left on device\)"):
        preparer(nets, place).clip(*files_of(place / "a.mp4"))
    assert prepared_in(place / "cache") == []
    assert list((place / "cache" / ".work").glob("*/")) == []


def test_a_disk_that_gives_no_room_ahead_is_written_all_the_same(place, nets, monkeypatch):
    shutil.rmtree(prepared_in(place / "cache")[0])

    def refused(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", refused)
    assert len(preparer(nets, place).clip(*files_of(place / "a.mp4"))) == 50


# -- Clips that can't be used ----------------------------------------------------------------------


def test_a_kept_refusal_names_no_other_file(tmp_path, nets):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{folder}.mp4").write_bytes(b"no clip at all")
    maker = preparer(nets, tmp_path)
    first = maker.clip(*files_of(tmp_path / "one/one.mp4"))
    second = maker.clip(*files_of(tmp_path / "two/two.mp4"))
    assert len(prepared_in(tmp_path / "cache")) == 1
    assert first == second
    assert "one" not in first.replace("none", "")
    assert str(tmp_path) not in first


def test_a_refusal_that_may_pass_is_not_kept(tmp_path, nets):
    path = numbered_clip(tmp_path / "a.mp4", 50, sound=babble(2.0, 48000))
    (file,) = files_of(path)
    path.rename(tmp_path / "away")  # between hashing and reading
    maker = preparer(nets, tmp_path)
    assert "does not exist" in maker.clip(file)
    (tmp_path / "away").rename(path)
    assert len(maker.clip(file)) == 50


# -- What killed processes leave -------------------------------------------------------------------


def test_folders_of_killed_processes_are_swept_and_those_of_living_ones_stay(place, nets):
    work = place / "cache" / ".work"
    holding = (
        "import sys, time; from pathlib import Path\n"
        "from latentsync.runtime.files import private_folder\n"
        "with private_folder(Path(sys.argv[1])) as folder:\n"
        "    (folder / 'half').touch(); print(folder, flush=True); time.sleep(60)"
    )
    living, killed = (
        subprocess.Popen([sys.executable, "-c", holding, work], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    )
    try:
        living_folder, killed_folder = (one.stdout.readline().strip() for one in (living, killed))
        killed.kill()
        killed.wait()
        assert os.path.exists(killed_folder)  # noqa: PTH110
        shutil.rmtree(prepared_in(place / "cache")[0])
        preparer(nets, place).clip(*files_of(place / "a.mp4"))
        assert [str(path) for path in work.glob("*/")] == [living_folder]
        assert os.listdir(living_folder).count("half") == 1  # noqa: PTH208
    finally:
        for one in (living, killed):
            one.kill()
            one.communicate()


def test_facts_say_how_large_each_file_is(place):
    (folder,) = prepared_in(place / "cache")
    facts = json.loads((folder / "facts.json").read_text())
    assert facts["files"] == {name: (folder / name).stat().st_size for name in FILES[1:]}
