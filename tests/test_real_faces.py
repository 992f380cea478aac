"""benchmarks/real_faces.py, without FaceMesh: its figures, and what it says where there is none."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from latentsync.media import VideoReader
from tests.clips import number_of, write_clip

ECHO = """
import sys
import numpy as np
width, height = map(int, sys.argv[1:3])
pairs = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(-1, 2, height, width, 3)
np.savez(sys.argv[3], pairs=pairs)
"""
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def real_faces(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    import real_faces

    return real_faces


def test_the_figures_are_those_of_a_known_difference(real_faces):
    opening = 0.2 + 0.1 * np.sin(np.arange(53) / 3) * np.hanning(53)
    original, late = opening[2:], 0.1 + 0.5 * opening[:-2]  # by 2 frames, half as far
    late[10] = np.nan  # not found there
    red, brown = np.array([50.0, 40.0, 20.0]), np.array([50.0, 10.0, 20.0])
    found = {
        "opening": np.stack([original, late], axis=1),
        "width": np.stack([original, -original], axis=1),
        "eyes": np.full((51, 2), 80.0),
        "sharpness": np.tile([30.0, 15.0], (51, 1)),
        "lips": np.tile([red, red - np.array([0, 15, 0])], (51, 1, 1)),
        "skin": np.tile([brown, brown + np.array([3, 0, 4])], (51, 1, 1)),
    }
    figures = real_faces.looks_of(found)
    assert (figures["opening_lag"], figures["eyes_px"], figures["frames"]) == (2, 80, 51)
    assert figures["opening_best"] > 0.99 > figures["opening"] > 0
    assert figures["found"] == pytest.approx(50 / 51)
    assert figures["amplitude"] == pytest.approx(0.5, abs=0.02)
    assert figures["width"] == pytest.approx(-1)
    assert figures["sharpness"] == pytest.approx(0.5)
    assert (figures["lips_distance"], figures["skin_distance"]) == pytest.approx((15, 5))
    assert figures["contrast"] == pytest.approx(np.linalg.norm([3, 15, 4]) / 30)


def test_the_second_table_compares_as_far_as_all_curves_go(real_faces):
    wave = np.sin(np.arange(40) / 3)
    curves = {"drawn": wave, "generated": -wave[:30], "original": wave[:35], "loudness": wave}
    figures = real_faces.hearing_of(curves)
    assert figures["drawn"] == figures["drawn_loudness"] == pytest.approx(1)
    assert figures["original_loudness"] == pytest.approx(1)
    assert figures["generated_loudness"] == pytest.approx(-1)


def test_the_measuring_program_is_given_both_clips_frames_of_the_same_times(
    real_faces, tmp_path, monkeypatch
):
    original = write_clip(tmp_path / "original.mp4", 12, fps=30)
    generated = write_clip(tmp_path / "generated.mp4", 8, size=(128, 96))
    (tmp_path / "face_mesh.py").write_text(ECHO)
    monkeypatch.setattr(real_faces, "__file__", str(tmp_path / "real_faces.py"))
    pairs = real_faces.measure(Path(sys.executable), original, generated)["pairs"]
    numbers = [[number_of(frame) for frame in pair] for pair in pairs.astype(np.uint8)]
    shown = [number_of(frame.rgb()) for frame in VideoReader(original, fps=25).frames()]
    assert numbers == [[one, other] for one, other in zip(shown, range(8), strict=False)]
    assert shown != list(range(len(shown)))


def test_a_measuring_program_that_fails_is_quoted(real_faces, tmp_path, monkeypatch):
    clip = write_clip(tmp_path / "clip.mp4", 100)
    (tmp_path / "face_mesh.py").write_text("import sys; sys.exit('no such thing')")
    monkeypatch.setattr(real_faces, "__file__", str(tmp_path / "real_faces.py"))
    with pytest.raises(RuntimeError, match=r"face_mesh.py failed: no such thing$"):
        real_faces.measure(Path(sys.executable), clip, clip)


def test_without_a_python_that_fits_it_is_skipped(real_faces, tmp_path, monkeypatch, capsys):
    clip = tmp_path / "clip.mp4"
    clip.touch()
    monkeypatch.setattr(real_faces, "PYTHONS", range(90, 92))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["real_faces.py", str(clip)])
    assert real_faces.main() == 77
    assert capsys.readouterr().out.startswith(
        "skipped: mediapipe==0.10.21 needs Python 3.90 to 3.91, and there is only 3."
    )


def test_a_failed_installation_is_told_in_one_line(real_faces):
    command = [sys.executable, "-c", "raise OSError('no network\\nat all')"]
    with pytest.raises(real_faces.Unavailable, match=r"failed: at all$") as told:
        real_faces._run(command)
    assert "Traceback" not in str(told.value)
