"""Runs of preparation: ended and taken up again, with other files, with other settings."""

import json
import os
import signal
from pathlib import Path

import pytest

from latentsync import faces
from latentsync.errors import InputError, OptionError, OutputError
from latentsync.runtime.files import file_digest
from latentsync.training.preparation import (
    PreparationSettings,
    journal,
    prepare,
    runner,
    work,
    workers,
)
from latentsync.training.preparation.journal import Journal
from tests.prepared import EASY, clip, left_out, lines, tree
from tests.stubs import StubDetector


@pytest.fixture(autouse=True)
def no_page(monkeypatch):
    monkeypatch.setattr(runner, "write_summary", lambda *_: None)


@pytest.fixture
def stub(monkeypatch):
    detector = StubDetector()
    monkeypatch.setattr(faces, "create", lambda *_, **__: detector)
    return detector


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    return folder


@pytest.fixture
def once(raw, tmp_path, stub):  # noqa: ARG001
    for name in "abc":
        clip(raw / f"{name}.mp4", 25 + ord(name) % 3)
    (raw / "d.mp4").write_text("no clip")
    output = tmp_path / "out"
    prepare(raw, output, EASY, workers=0)
    return output


@pytest.fixture
def worked_on(monkeypatch):
    names, examine = [], workers.examine

    def noted(source, *rest):
        names.append(source.relative)
        return examine(source, *rest)

    monkeypatch.setattr(workers, "examine", noted)
    return names


def test_finished_files_are_not_worked_on_again(once, raw, worked_on):
    before = tree(once)
    prepare(raw, once, EASY, workers=0)
    os.utime(raw / "b.mp4", (1, 1))  # a copy, say
    prepare(raw, once, EASY, workers=0)
    assert worked_on == []
    assert tree(once, hidden=False) == {k: v for k, v in before.items() if k[0] != "."}


def test_a_killed_run_is_taken_up(once, raw, worked_on):
    before = tree(once)
    records = once / ".prepare" / "records"
    lost = next(p for p in records.iterdir() if json.loads(p.read_text())["source"] == "b.mp4")
    lost.unlink()  # killed when the clips were in place, and the record not yet
    left = once / ".prepare" / "work" / "0"
    left.mkdir(parents=True)
    (left / "half.mp4").write_text("half a clip")
    next(p for p in records.iterdir() if p != lost).write_bytes(b"")  # power went, too
    (once / "clips" / "other.mp4").write_text("of other settings")
    (once / "index.jsonl").unlink()
    prepare(raw, once, EASY, workers=0)
    assert len(worked_on) == 2
    assert "b.mp4" in worked_on
    assert tree(once) == before


def test_what_changed_is_done_again(once, raw, worked_on):
    clip(raw / "a.mp4", 45)
    removed = next((once / "clips").glob("b.*.mp4"))
    removed.unlink()
    (raw / "c.mp4").unlink()
    prepare(raw, once, EASY, workers=0)
    assert worked_on == ["a.mp4", "b.mp4"]
    assert [line["source"] for line in lines(once, "index.jsonl")] == ["a.mp4", "b.mp4"]
    assert {path.name[0] for path in (once / "clips").iterdir()} == {"a", "b"}
    worked_on.clear()
    prepare(raw, once, PreparationSettings(**{**vars(EASY), "min_face": 41}), workers=0)
    assert worked_on == ["a.mp4", "b.mp4", "d.mp4"]


def damaged(file, how):
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "emptied":
        file.write_bytes(b"")
    elif how == "changed":  # as large as before
        content = bytearray(file.read_bytes())
        content[-50] ^= 255
        file.write_bytes(content)
        os.utime(file, (2e9, 2e9))
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["cut", "emptied", "changed", "deleted"])
@pytest.mark.parametrize("suffix", [".mp4", ".npy"])
def test_what_was_made_is_looked_at_and_made_anew(once, raw, worked_on, suffix, how):
    before = tree(once)
    damaged(next((once / "clips").glob(f"b.*{suffix}")), how)
    prepare(raw, once, EASY, workers=0)
    assert worked_on == ["b.mp4"]
    assert tree(once) == before


@pytest.mark.parametrize("content", ["{}", "null", "[1]", "7", '{"source": 3}', "cut", "no clips"])
def test_a_record_that_is_none_is_made_anew(once, raw, worked_on, content):
    before = tree(once)
    records = (once / ".prepare" / "records").iterdir()
    file = next(path for path in records if json.loads(path.read_text())["source"] == "b.mp4")
    text = file.read_text()
    if content == "no clips":
        content = json.dumps({**json.loads(text), "clips": [{"clip": 1}]})
    file.write_text(text[:-9] if content == "cut" else content)
    prepare(raw, once, EASY, workers=0)
    assert worked_on == ["b.mp4"]
    assert tree(once) == before


def test_a_copied_output_is_read_once(once, raw, worked_on, monkeypatch):
    for path in (once / "clips").iterdir():
        os.utime(path, (2e9, 2e9))  # younger than its record
    read = []
    monkeypatch.setattr(journal, "file_digest", lambda path: read.append(path) or file_digest(path))
    prepare(raw, once, EASY, workers=0)
    assert len(read) == 6
    for path in (once / ".prepare" / "records").iterdir():
        os.utime(path, (2.1e9, 2.1e9))
    prepare(raw, once, EASY, workers=0)
    assert (len(read), worked_on) == (6, [])


@pytest.mark.parametrize("name", ["bytes", "sha256", "affines_bytes"])
def test_a_record_without_a_fact_of_a_clip_is_made_anew(once, raw, worked_on, name):
    before = tree(once)
    for path in (once / ".prepare" / "records").iterdir():
        record = json.loads(path.read_text())
        for line in record["clips"]:
            del line[name]
        path.write_text(json.dumps(record))
    prepare(raw, once, EASY, workers=0)
    assert worked_on == ["a.mp4", "b.mp4", "c.mp4"]
    assert tree(once) == before


def test_a_folder_in_place_of_a_record_is_named(once, raw, worked_on):
    file = next((once / ".prepare" / "records").iterdir())
    file.unlink()
    file.mkdir()
    with pytest.raises(OutputError, match=rf"{file} is a folder, in the place of a record"):
        prepare(raw, once, EASY, workers=0)
    file.rmdir()
    prepare(raw, once, EASY, workers=0)  # the lock is free again
    assert len(worked_on) == 1


@pytest.mark.usefixtures("obeys_sigint")
def test_an_ended_run_with_other_settings_spoils_nothing(once, raw, monkeypatch):
    before = tree(once)
    other = PreparationSettings(
        **{**vars(EASY), "form": "aligned"}
    )  # whose clips have the same names
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "_write", lambda *_: os.kill(os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            prepare(raw, once, other, workers=0)
    assert tree(once) != before
    prepare(raw, once, EASY, workers=0)
    assert tree(once) == before


def test_a_full_disk_is_one_line_and_the_run_goes_on(raw, tmp_path, stub, monkeypatch):  # noqa: ARG001
    for name in "ab":
        clip(raw / f"{name}.mp4")
    output = tmp_path / "out"

    def full(path, _content):
        with path.open("wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(OutputError, match=r"can't be written \(No space left on device\)"):
            prepare(raw, output, EASY, workers=0)
    assert prepare(raw, output, EASY, workers=0).clips == 2
    assert not list(output.rglob("*.part"))


def test_a_file_that_can_t_be_read_now_is_tried_again(raw, tmp_path, stub, monkeypatch):  # noqa: ARG001
    clip(raw / "a.mp4")

    def refused(_path):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(work, "file_digest", refused)
        assert prepare(raw, tmp_path / "out", EASY, workers=0).clips == 0
    assert left_out(tmp_path / "out") == {"a.mp4": ("decode", "can't be read")}
    assert prepare(raw, tmp_path / "out", EASY, workers=0).clips == 1


def test_counting_does_not_look_at_all_files(once, raw, monkeypatch):
    """What is told after each file comes from counts that are kept, and they are right."""
    for name in "efg":
        clip(raw / f"{name}.mp4", 25 + ord(name) % 3)
    told = []
    monkeypatch.setattr(runner, "REPORT_SECONDS", 0)
    monkeypatch.setattr(runner, "MIN_WRITE_SECONDS", 1e9)  # however slow this machine is
    asked = []
    records = Journal.records

    def noted(self):
        asked.append(1)
        return records(self)

    monkeypatch.setattr(Journal, "records", noted)
    last = prepare(raw, once, EASY, workers=0, progress=told.append)
    assert [tally.files for tally in told] == [4, 5, 6, 7, 7]
    assert len(asked) == 3  # for the lists, for what is swept, for the page
    assert (last.clips, last.rejected) == (6, {"decode: can't be read": 1})
    assert last.seconds == pytest.approx(
        sum(c["stop_seconds"] - c["start_seconds"] for c in lines(once, "index.jsonl"))
    )


def test_an_accident_is_tried_again(raw, tmp_path, stub, monkeypatch):
    clip(raw / "a.mp4")
    clip(raw / "b.mp4")
    detect = stub.detect
    monkeypatch.setattr(stub, "detect", lambda *_, **__: 1 / 0)
    prepare(raw, tmp_path / "out", EASY, workers=0)
    assert set(left_out(tmp_path / "out").values()) == {("face", "failed")}
    assert "ZeroDivisionError" in (tmp_path / "out" / "rejected.jsonl").read_text()
    monkeypatch.setattr(stub, "detect", detect)
    assert prepare(raw, tmp_path / "out", EASY, workers=0).clips == 2


def test_an_interrupt_leaves_the_lists_of_what_is_done(raw, tmp_path, stub):  # noqa: ARG001
    for name in "abc":
        clip(raw / f"{name}.mp4")
    output = tmp_path / "out"

    def stop(tally):
        if tally.files:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "REPORT_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            prepare(raw, output, EASY, workers=0, progress=stop)
    assert [line["source"] for line in lines(output, "index.jsonl")] == ["a.mp4"]
    assert prepare(raw, output, EASY, workers=0).clips == 3


# Bad input


def test_bad_folders_are_refused(once, raw, tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        prepare(tmp_path / "gone", tmp_path / "o", EASY, workers=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no video"):
        prepare(tmp_path / "empty", tmp_path / "o", EASY, workers=0)
    for output in (raw, raw / "inside", tmp_path):
        with pytest.raises(OutputError, match="is inside the other"):
            prepare(raw, output, EASY, workers=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(OutputError, match="holds other files"):
        prepare(raw, tmp_path / "mine", EASY, workers=0)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is not a folder"):
        prepare(raw, tmp_path / "file", EASY, workers=0)
    (tmp_path / "raw2").mkdir()
    clip(tmp_path / "raw2" / "z.mp4")
    with pytest.raises(OutputError, match="filled from other files"):
        prepare(tmp_path / "raw2", once, EASY, workers=0)
    assert len(lines(once, "index.jsonl")) == 3


def test_one_run_at_a_time(raw, tmp_path, stub):  # noqa: ARG001
    clip(raw / "a.mp4")
    refused = []

    def second(_tally):
        with pytest.raises(OutputError, match=r"out is being filled by process \d+ on"):
            prepare(raw, tmp_path / "out", EASY, workers=0)
        refused.append(True)

    prepare(raw, tmp_path / "out", EASY, workers=0, progress=second)
    assert refused


@pytest.mark.parametrize(
    "wish",
    [
        {"size": 300}, {"form": "square"}, {"sync": "always"}, {"min_seconds": 0},
        {"min_seconds": 11}, {"max_offset": 16}, {"min_face": 0}, {"min_sharpness": -1},
        {"min_confidence": float("nan")}, {"quality": "musiq"}, {"min_quality": 101},
    ],
)  # fmt: skip
def test_options_out_of_range(wish):
    with pytest.raises(OptionError):
        PreparationSettings(**wish)


def test_a_folder_among_the_clips_is_somebody_s_own(tmp_path):
    with Journal(tmp_path / "out", "settings") as journal:
        (journal.clips / "mine").mkdir()
        (journal.clips / "old.mp4").write_bytes(b"")
        journal.sweep()
        assert [path.name for path in journal.clips.iterdir()] == ["mine"]
