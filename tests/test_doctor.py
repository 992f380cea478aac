"""What `latentsync doctor` finds, on this machine and on ones that lack something."""

import json
from types import SimpleNamespace

import pytest
import torch

from latentsync import cli
from latentsync.cli import doctor
from latentsync.runtime.downloads import SETS


def named(found, what):
    (one,) = (finding for finding in found if finding.what == what)
    return one


def test_a_machine_that_runs_these_tests_is_well(tmp_path):
    found = list(doctor.examine(tmp_path))
    assert not [one for one in found if one.good is False]
    assert all(one.remedy for one in found if one.good is None)  # nothing is just missing
    assert named(found, "onnxruntime").found.endswith("Provider")
    assert named(found, "model v1.6").remedy == "latentsync download v1.6"
    assert named(found, "model demo").good is None  # not in that folder
    assert named(doctor.examine(), "model demo").good


def test_another_python(monkeypatch):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 1))
    assert doctor._python().good is False
    assert "3.11" in doctor._python().remedy


def test_a_gpu_that_torch_cannot_use(monkeypatch, tmp_path):
    driver = tmp_path / "version"
    driver.touch()
    monkeypatch.setattr(doctor, "DRIVER", driver)
    one = named(doctor._device(), "device")
    assert one.good is False
    assert "CUDA build" in one.remedy


def test_a_card_that_torch_has_no_kernels_for(monkeypatch):
    def ones(*_, **__):
        raise RuntimeError("CUDA error: no kernel image is available\nsecond line")

    monkeypatch.setattr(doctor, "torch", SimpleNamespace(**vars(torch) | {"ones": ones}))
    one = named(doctor._device(), "device")
    assert one.good is False
    assert one.found.endswith("no kernel image is available")


def test_faces_found_on_the_cpu_beside_a_gpu(monkeypatch):
    monkeypatch.setattr(doctor, "choose", lambda: (torch.device("cuda"), torch.float16))
    (one,) = doctor._onnx()
    assert one.good is None
    assert "CPUExecutionProvider" in one.found
    assert "onnxruntime-gpu" in one.remedy


def test_files_that_are_torn(tmp_path):
    item = next(one for one in SETS["v1.6"] if one.size)
    path = tmp_path / item.target
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn")
    one = named(doctor._models(tmp_path), "model v1.6")
    assert one.good is False
    assert item.target in one.found


@pytest.mark.parametrize(("free", "good"), [(1, False), (4, None), (64, True)])
def test_memory(monkeypatch, free, good):
    monkeypatch.setattr(doctor, "free_memory", lambda _: free * doctor.GIB)
    assert doctor._memory().good is good
    assert bool(doctor._memory().remedy) is (good is not True)


def test_a_full_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    found = list(doctor._disk(tmp_path / "not" / "there"))
    assert [one.good for one in found] == [False] * 3


def test_the_command(monkeypatch, capsys):
    findings = [doctor.Finding("a", "b"), doctor.Finding("c", "d", None, "do this")]
    monkeypatch.setattr(doctor, "examine", lambda _: iter(findings))
    monkeypatch.setattr("sys.argv", ["latentsync", "doctor"])
    with pytest.raises(SystemExit, match="0"):
        cli.main()
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["ok", "a", "b"], ["-", "c", "d"], ["->", "do", "this"],
    ]  # fmt: skip

    findings.append(doctor.Finding("e", "f", good=False, remedy="mend it"))
    monkeypatch.setattr("sys.argv", ["latentsync", "doctor", "--json"])
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    told = capsys.readouterr()
    assert [one["good"] for one in json.loads(told.out)] == [True, None, False]
    assert told.err == "latentsync: error: wrong here: e; each has its remedy beside it\n"
