"""Which clips there are, what is known of them without reading them, and who is held out."""

import json
import logging
import os
import random
from pathlib import Path

import pytest

from latentsync.errors import Cancelled, InputError
from latentsync.runtime.files import file_digest
from latentsync.training import clips as clip_files
from latentsync.training.clip_cache import CachedClip
from latentsync.training.clips import ClipFile, find_clips, identify_clips
from latentsync.training.dataset import split

OLD = 1_600_000_000  # s since 1970


def test_a_folder_is_searched_to_its_end(tmp_path):
    for folder in ("deep", ".prepare"):
        (tmp_path / folder).mkdir()
    for name in ("b.MP4", "a.mkv", "deep/c.webm", "b.truth.jsonl", "d.wav", ".prepare/half.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "nowhere.mp4").symlink_to("gone")
    assert [p.name for p in find_clips(tmp_path)] == ["a.mkv", "b.MP4", "c.webm"]
    with pytest.raises(InputError, match="holds no clip"):
        find_clips(tmp_path / "nowhere")


# -- What is in them -------------------------------------------------------------------------------


@pytest.fixture
def read(monkeypatch):
    """Names of files that were read to be hashed."""
    names = []

    def noted(path):
        names.append(path.name)
        return file_digest(path)

    monkeypatch.setattr(clip_files, "file_digest", noted)
    return names


@pytest.fixture
def data(tmp_path):
    """Two clips as `latentsync prepare` leaves them, with their index."""
    folder = tmp_path / "data"
    (folder / "clips").mkdir(parents=True)
    lines = []
    for name, source in (("a", "alice/1.mp4"), ("b", "2.mp4")):
        clip = folder / "clips" / f"{name}.mp4"
        clip.write_bytes(name.encode() * 9)
        os.utime(clip, (OLD, OLD))
        facts = {"bytes": 9, "sha256": file_digest(clip)}
        lines.append({"clip": f"clips/{name}.mp4", "source": source, **facts})
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def found(folder, cache, **more):
    return identify_clips(find_clips(folder), folder, cache, **more)


def test_clips_of_an_index_are_not_read(data, tmp_path, read):
    for folder in (data, data / "clips"):
        a, b = found(folder, tmp_path / "cache")
        assert read == []
        assert a == ClipFile(data / "clips/a.mp4", file_digest(a.path), "alice", "alice/1.mp4")
        assert (b.people, b.source) == ("2.mp4", "2.mp4")


@pytest.mark.parametrize("change", ["longer", "younger", "no hash", "damaged"])
def test_clips_that_are_not_as_the_index_says_are_read(data, tmp_path, read, change):
    clip, index = data / "clips/a.mp4", data / "index.jsonl"
    if change == "longer":
        clip.write_bytes(b"longer than it was")
        os.utime(clip, (OLD, OLD))
    elif change == "younger":
        clip.write_bytes(b"x" * 9)
        os.utime(clip, (4 * OLD, 4 * OLD))
    elif change == "no hash":
        index.write_text(index.read_text().replace("sha256", "md5", 1))
    else:
        index.write_text(index.read_text()[5:])
    (a, _) = found(data, tmp_path / "cache")
    assert read == ["a.mp4"]
    assert a.digest == file_digest(clip)


def test_a_hash_is_remembered_as_long_as_the_file_stays(tmp_path, read):
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    for name in "ab":
        (data / f"{name}.mp4").write_text(name)
    first = found(data, cache)
    assert sorted(read) == ["a.mp4", "b.mp4"]
    assert found(data, cache) == first
    assert len(read) == 2
    (data / "a.mp4").write_text("c")
    os.utime(data / "a.mp4", (OLD, OLD))
    assert found(data, cache)[0].digest != first[0].digest
    assert read[2:] == ["a.mp4"]
    assert len(found(data, cache)) == 2
    assert len(read) == 3


@pytest.mark.parametrize(
    "damage", [b"", b'{"path": "/a", "by', b"\xff\xfe\x00", b"null\n[1]\n{}\n"]
)
def test_damaged_hashes_are_made_again(tmp_path, read, damage):
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    (data / "a.mp4").write_text("a")
    (one,) = found(data, cache)
    (cache / "digests.jsonl").write_bytes(damage)
    assert found(data, cache) == [one] == found(data, cache)
    assert len(read) == 2  # once more, then it is known again


def test_clips_are_hashed_side_by_side_and_that_can_be_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(clip_files, "HASH_BATCH", 2)
    data, cache = tmp_path / "data", tmp_path / "cache"
    data.mkdir()
    for name in "abc":
        (data / f"{name}.mp4").write_text(name)
    told = []
    with pytest.raises(Cancelled, match="after reading 2 of 3 clips"):
        found(data, cache, progress=told.append, cancel=lambda: True)
    found(data, cache, progress=told.append)
    assert [(one.stage, one.done, one.total) for one in told] == [("hash", 2, 3), ("hash", 1, 1)]


def test_a_clip_that_can_t_be_read_says_why(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").touch()

    def refused(_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(clip_files, "file_digest", refused)
    (one,) = found(tmp_path, tmp_path / "cache")
    assert (one.digest, one.trouble) == ("", "it can't be read (Permission denied)")


def test_names_that_are_no_text_are_remembered(tmp_path, read):
    data = tmp_path / "data"
    data.mkdir()
    (data / os.fsdecode(b"\xff.mp4")).write_text("a")
    assert found(data, tmp_path / "cache") == found(data, tmp_path / "cache")
    assert len(read) == 1


# -- Who is held out -------------------------------------------------------------------------------


def clips_of(*people, each=1, source=None):
    return [
        CachedClip(
            ClipFile(Path(f"{person}/{i}"), f"{person} {i}", person, source or f"{person}/{i}"),
            Path(), 0, 48,
        )
        for person in people
        for i in range(each)
    ]  # fmt: skip


def names(clips):
    return [str(clip.file.path) for clip in clips]


def test_one_of_fifty_clips_is_held_out():
    clips = clips_of(*map(str, range(120)))
    shown, held = split(clips)
    assert names(held) == ["0/0", "50/0", "100/0"]
    assert sorted(map(id, shown + held)) == sorted(map(id, clips))
    assert split(clips[:2]) == ([clips[1]], [clips[0]])
    assert split(clips[:1]) == (clips[:1], clips[:1])


def test_nobody_who_is_held_out_is_trained_on():
    clips = clips_of(*map(str, range(100)), each=7)
    random.Random(1).shuffle(clips)  # noqa: S311
    for wanted in (None, 20, 70):
        shown, held = split(clips, wanted)
        assert {c.file.people for c in shown}.isdisjoint(c.file.people for c in held)
        assert len(held) >= (wanted or 14)
        assert len(held) < (wanted or 14) + 7


def test_copies_are_on_one_side():
    clips = clips_of(*map(str, range(60)))
    copy = CachedClip(ClipFile(Path("copy"), clips[0].file.digest, "else", "else"), Path(), 0, 48)
    shown, held = split([*clips, copy])
    assert names(held)[:2] == ["0/0", "copy"]
    assert "copy" not in names(shown)


def test_of_a_few_people_footage_is_held_out_and_said(caplog):
    clips = [
        CachedClip(ClipFile(Path(f"{p}{s}{i}"), f"{p}{s}{i}", p, f"{p}{s}"), Path(), 0, 48)
        for p in "ab" for s in range(15) for i in range(2)
    ]  # fmt: skip
    shown, held = split(clips)
    assert {c.file.source for c in shown}.isdisjoint(c.file.source for c in held)
    assert len(held) == 2
    assert "validation may show known people" in caplog.text


def test_of_one_piece_of_footage_clips_are_held_out_and_said(caplog):
    clips = clips_of("a", each=40, source="a")
    shown, held = split(clips)
    assert (len(shown), len(held)) == (39, 1)
    assert "validation may show known people" in caplog.text


def test_all_clips_may_be_trained_on(caplog):
    caplog.set_level(logging.INFO)
    clips = clips_of(*"abc")
    assert split(clips, 0) == (clips, clips[:1])
    same = clips_of("a", "a", "a")
    assert "no clip of" not in caplog.text
    assert split(same) == (same, same[:1])
    assert "no clip of 3 is held out" in caplog.text
