"""A process's own temporary files: what is swept, and what is not."""

import os
import tempfile

import pytest

from latentsync.runtime import scratch
from latentsync.runtime.scratch import Scratch


@pytest.fixture
def made(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return Scratch()


def temporary():
    file = tempfile.NamedTemporaryFile(suffix=".mp4", delete=False)  # noqa: SIM115 - as Cog does
    file.write(b"x")
    return file


def test_inputs_stay_and_leftovers_go(made):
    left, video = temporary(), temporary()
    output = tempfile.mkdtemp(prefix="latentsync-")
    made.use(video.name, "/elsewhere/voice.wav")
    assert sorted(made.folder.iterdir()) == sorted(map(type(made.folder), (video.name, output)))
    left.close()
    video.close()


def test_nothing_is_swept_while_a_download_is_under_way(made, monkeypatch):
    done, coming = temporary(), temporary()
    done.close()
    for one in (done, coming):
        os.utime(one.name, (0, 0))
    made.sweep_idle()
    assert len(list(made.folder.iterdir())) == 2
    coming.close()
    os.utime(coming.name, (0, 0))
    fresh = temporary()
    fresh.close()
    made.sweep_idle()
    assert [str(one) for one in made.folder.iterdir()] == [fresh.name]
    monkeypatch.setattr(scratch, "SWEEP_SECONDS", -1.0)
    made.use(fresh.name)
    made.sweep_idle()
    assert len(list(made.folder.iterdir())) == 1


def test_folders_of_ended_processes_go(made, tmp_path, monkeypatch):
    dead = tmp_path / f"{scratch.PREFIX}dead"
    (dead / "sub").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = Scratch()
    assert sorted(tmp_path.iterdir()) == sorted([made.folder, other.folder])


def test_no_file_exceeds_the_bound_or_its_share_of_the_room(made, monkeypatch):
    limits = []
    monkeypatch.setattr(scratch.resource, "setrlimit", lambda _, both: limits.append(both[0]))
    assert made.bound(1000) == limits[0] == 1000
    assert 0 < made.bound(2**62) == limits[1] < 2**62
