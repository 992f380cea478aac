"""predict.py without Cog's server: what of a request reaches the library."""

import inspect
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from latentsync.options import Options
from latentsync.types import Result
from tests.test_cog import predictor

# Of each input a value that is neither its default nor that of another.
ASKED = {
    "guidance_scale": 2.5,
    "seed": 7,
    "inference_steps": 9,
    "sync_mode": "freeze",
    "fps": "source",
    "audio_track": "2",
    "face": "left",
    "on_missing": "error",
    "speed": "fast",
    "superres": "codeformer",
    "mask_smooth": 0.25,
    "sr_ratio": 3.5,
    "sr_weight": 0.75,
}


class Fake:
    """Stands for LipSync and keeps what it was asked for."""

    def run(self, video, audio, output, *, progress, cancelled, **options):  # noqa: ARG002
        self.ran, self.options = (video, audio), options
        output.write_bytes(b"film")
        return Result(
            path=output,
            source=Path(video),
            frames=12,
            fps=25.0,
            seconds=0.48,
            width=64,
            height=64,
            faces_found=11,
            source_frames=12,
            passed_through=(),
            lost=(),
            model="tiny",
            detector="stub",
            device="cpu",
            dtype="float32",
            seed=99,
            timings={"network": 1.23456},
        )


@pytest.fixture
def served(monkeypatch):
    """A predictor with the stand-in, and what it downloaded and measured."""
    served = predictor()()
    served.lipsync, served.folder = Fake(), None
    served.fetched, served.metrics, served.kept = [], {}, []
    served.scratch = SimpleNamespace(use=lambda *inputs: served.kept.append(inputs))
    monkeypatch.setattr("predict.download", served.fetched.append)
    served.record_metric = served.metrics.__setitem__
    yield served
    served.forget()


def default_inputs():
    parameters = inspect.signature(predictor().predict).parameters
    given = {name: one.default.default for name, one in parameters.items() if name != "self"}
    return {name: value for name, value in given.items() if name not in ("video", "audio")}


def test_options_reach_the_library(served):
    assert ASKED.keys() == default_inputs().keys()
    assert not [name for name, value in default_inputs().items() if value == ASKED[name]]
    film = served.predict("face.mp4", "voice.wav", **ASKED)
    assert served.lipsync.ran == ("face.mp4", "voice.wav")
    assert served.kept == [("face.mp4", "voice.wav")]  # from being swept meanwhile
    assert served.lipsync.options == {"steps": 9} | {
        name: value for name, value in ASKED.items() if name != "inference_steps"
    }
    assert Options(**served.lipsync.options).effort.steps == 9
    assert served.fetched == ["codeformer"]
    assert Path(str(film)).read_bytes() == b"film"


def test_defaults_are_the_librarys(served):
    served.predict("face.mp4", "voice.wav", **default_inputs())
    assert Options(**served.lipsync.options) == Options()
    assert served.lipsync.options.keys() < {one.name for one in fields(Options)}
    assert served.fetched == []


def test_without_steps_of_its_own_a_request_takes_those_of_its_speed(served):
    for speed, steps in (("exact", 20), ("fast", 8), ("preview", 6)):
        asked = default_inputs() | {"speed": speed}
        served.predict("face.mp4", "voice.wav", **asked)
        assert Options(**served.lipsync.options).effort.steps == steps


def test_numbers_that_json_made_whole_are_taken(served):
    whole = {"guidance_scale": 2, "mask_smooth": 1, "sr_ratio": 2, "sr_weight": 0, "seed": 5.0}
    served.predict("face.mp4", "voice.wav", **(default_inputs() | whole))
    for name, value in whole.items():
        got = served.lipsync.options[name]
        assert (got, type(got)) == (value, int if name == "seed" else float)


def test_metrics_say_what_ran(served):
    served.predict("face.mp4", "voice.wav", **default_inputs())
    assert served.metrics == {"frames": 12, "faces": 11, "seed": 99, "timing.network": 1.235}
