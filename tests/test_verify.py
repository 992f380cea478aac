"""`latentsync verify`: what its table says of files, nets and a run."""

import hashlib

import numpy as np
import pytest
import torch

from latentsync.cli import verify as module
from latentsync.cli.verify import EVAL_SYNCNET, verify
from latentsync.errors import InputError, OptionError, WeightsMissing
from latentsync.evaluation.sync import SyncScore
from latentsync.runtime.downloads import SETS, Download
from tests.clips import babble, picture, write_clip, write_sound
from tests.stubs import SIZE, numbered_clip, tiny_lipsync

CONTENT = b"weights" * 100


@pytest.fixture
def inputs(tmp_path):
    clip = numbered_clip(tmp_path / "face.mp4", 12, crf="10")
    return clip, write_sound(tmp_path / "voice.wav", babble(2))


@pytest.fixture
def weights(tmp_path):
    folder = tmp_path / "weights"
    (folder / "auxiliary").mkdir(parents=True)
    return folder


@pytest.fixture
def lipsync(monkeypatch):
    """A tiny model, loaded under any name; what `load` was given is in `loaded`."""
    made = tiny_lipsync(lambda number: number < 6)
    made.loaded = []

    def load(*args, **kwargs):
        made.loaded.append((args, kwargs))
        return made

    monkeypatch.setattr(module.LipSync, "load", load)
    return made


def table(*args, **kwargs):
    return {check.what: check for check in verify(*args, **kwargs)}


def item(name, content=CONTENT):
    sha256 = hashlib.sha256(content).hexdigest()
    return Download(name, "owner/net", name, "MIT", len(content), sha256)


def test_a_run_in_one_table(lipsync, inputs, weights):
    checks = table("tiny", *inputs, weights=weights, device="cpu", dtype="float32", seconds=0.4)
    assert lipsync.loaded == [
        (("tiny",), {"weights": weights, "device": "cpu", "dtype": "float32", "detector": None})
    ]
    count = sum(p.numel() for p in lipsync.nets.unet.parameters())
    assert checks["U-Net"].found == f"{count:,} parameters, all finite: True"
    assert checks["dimensions"].found == ("crop 64 px, latents (4, 8, 8), speech 2 states of 32")
    assert checks["run"].found == "10 frames at seed 1247, finite"
    assert checks["face found"].found == "6 of 10 source frames"
    assert checks["ran on"].found == "cpu, torch.float32"
    assert checks["detector"].found == "stub (score >= 0.5)"
    assert checks["sync confidence (local crop)"].found == (
        "not measured: auxiliary/syncnet_v2.model is not there; latentsync download eval"
    )
    first, middle, last = map(float, checks["picture"].found.removeprefix("mean luma ").split(", "))
    assert all(30 < value < 220 for value in (first, middle, last))
    assert len({first, middle, last}) == 3
    assert {what for what, check in checks.items() if check.good is False} == set()
    assert checks["PSNR outside the face"].good
    assert "GB of the process" in checks["peak memory"].found
    assert "network" in checks["seconds by stage"].found


def test_what_changes_outside_the_face_is_wrong(lipsync, inputs, weights, monkeypatch):
    run = lipsync.run

    def spoilt(source, spoken, output, *, options):
        result = run(source, spoken, output, options=options)
        pictures = [picture(i, *SIZE) for i in range(result.frames)]
        for rgb in pictures:
            rgb[-8:] = np.minimum(rgb[-8:], 245) + 10  # a band below the face
        write_clip(output, pictures, size=SIZE, crf="10", sound=babble(0.4, 48000))
        return result

    monkeypatch.setattr(lipsync, "run", spoilt)
    check = table("tiny", *inputs, weights=weights, seconds=0.4)["PSNR outside the face"]
    assert check.good is False
    assert float(check.found.removesuffix(" dB")) < 40


def test_nets_that_are_not_finite_are_wrong(lipsync, inputs, weights):
    next(lipsync.nets.vae.parameters()).data.flatten()[0] = torch.nan
    found = {}
    for check in verify("tiny", *inputs, weights=weights, seconds=0.2):
        found[check.what] = check.good
        if check.what == "speech":
            break
    assert found["U-Net"] is True
    assert found["VAE"] is False
    assert found["speech"] is True


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_seconds_that_are_none_are_refused_before_anything_is_loaded(weights, seconds):
    with pytest.raises(OptionError, match=r"seconds is .*; it must be 0\.04 or more"):
        next(verify("tiny", weights=weights, seconds=seconds))


def test_files_are_held_against_the_table(weights, monkeypatch):
    def stop(*_, **__):
        raise WeightsMissing("no model")

    names = ("right.pt", "short.pt", "other.pt", "absent.pt")
    monkeypatch.setitem(SETS, "mine", tuple(map(item, names)))
    monkeypatch.setattr(module.LipSync, "load", stop)
    for name, content in zip(names, (CONTENT, CONTENT[:-1], CONTENT[::-1]), strict=False):
        (weights / name).write_bytes(content)
    checks = {}
    with pytest.raises(WeightsMissing):  # what was found until then has been told
        checks.update((check.what, check) for check in told(checks, weights))
    remedy = "delete it and run `latentsync download mine`"
    right, other = (hashlib.sha256(c).hexdigest()[:12] for c in (CONTENT, CONTENT[::-1]))
    assert [(checks[name].found, checks[name].good) for name in names] == [
        (f"700 bytes, sha256 {right}", True),
        (f"699 bytes, not 700; {remedy}", False),
        (f"700 bytes, sha256 {other}, not {right}; {remedy}", False),
        ("not there; latentsync download mine", None),
    ]


def told(checks, weights):
    for check in verify("mine", weights=weights):
        checks[check.what] = check
        yield check


def test_lip_sync_of_the_output_is_measured_where_its_net_is_there(
    lipsync, inputs, weights, monkeypatch
):
    asked = []

    def measure(net, clip, track, resolution, sound):
        asked.append((net, clip.path.name, len(track), resolution, len(sound)))
        return SyncScore(confidence=3.217, distance=9.0, offset=-2)

    (weights / EVAL_SYNCNET).touch()
    monkeypatch.setattr(module, "load_net", lambda _, path, *, device: (path, str(device)))
    monkeypatch.setattr(module, "sync_conf_local", measure)
    found = table("tiny", *inputs, weights=weights, seconds=0.4)["sync confidence (local crop)"]
    assert (found.found, found.good) == ("3.22 at offset -2", None)
    net = (weights / EVAL_SYNCNET, str(lipsync.device))
    assert asked == [(net, "out.mp4", 10, 64, 6400)]


@pytest.mark.usefixtures("lipsync")
def test_another_net_in_its_place_is_wrong(inputs, weights):
    (weights / EVAL_SYNCNET).write_bytes(b"nothing")
    found = table("tiny", *inputs, weights=weights, seconds=0.4)["sync confidence (local crop)"]
    assert found.good is False
    assert "syncnet_v2.model can't be read as weights" in found.found


@pytest.mark.usefixtures("lipsync")
def test_a_clip_too_short_for_it_is_said(inputs, weights, monkeypatch):
    def refuse(*_):
        raise InputError("lip-sync can't be measured in 3 frames")

    (weights / EVAL_SYNCNET).touch()
    monkeypatch.setattr(module, "load_net", lambda *_, **__: None)
    monkeypatch.setattr(module, "sync_conf_local", refuse)
    found = table("tiny", *inputs, weights=weights, seconds=0.1)["sync confidence (local crop)"]
    assert found.good is None
    assert found.found == "not measured: lip-sync can't be measured in 3 frames"
