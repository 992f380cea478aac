"""Options and their ranges; models as data."""

import dataclasses
import json
import math

import pytest

from latentsync.diffusion.config import PRESETS, ModelConfig
from latentsync.errors import InputError, OptionError
from latentsync.options import MAX_SEED, SPEEDS, UNBOUNDED, Effort, Options

# Where the published code's choice is another than ours.
PUBLISHED = {
    "seed": 1247,
    "on_missing": "error",
    "sync_mode": "pingpong",
    "follow": "frame",
    "fade": 0,
    "length": "published",
    "speech_windows": "disjoint",
    "groups": "short_tail",
    "vae_posterior": "sample",
    "resampling": "published",
    "landmarks": "rounded",
    "paste": "crop",
    "conversion": "published",
}
RANGES = {
    "guidance_scale": (0, 10),
    "steps": (1, 50),
    "seed": (0, MAX_SEED),
    "crf": (0, 51),
    "lead_in": (0, 3600),
    "lead_out": (0, 3600),
    "fade": (0, 25),
    "smooth": (0, 51),
    "overlap": (0, 12),
    "cache_interval": (1, 10),
    "guidance_start": (0, 1),
    "guidance_stop": (0, 1),
    "detect_every": (1, 50),
    "batch": (1, 16),
    "cache_bytes": (2**20, 2**63),
    "sr_ratio": (1, 4),
    "mask_smooth": (0, 1),
    "sr_weight": (0, 1),
    "sr_stability": (0, 1),
}
NONE_ALLOWED = {"steps", "cache_interval", "guidance_start", "guidance_stop", "detect_every"} | {
    "batch"
}


@pytest.mark.parametrize("name", RANGES)
def test_a_number_out_of_its_range_is_refused_in_one_line_that_names_it(name):
    low, high = RANGES[name]
    for value in (low, high):
        assert getattr(Options(**{name: value}), name) == value
    wrong = (low - 1, high + 1, math.nan, math.inf, True, "5", (low,))
    for value in wrong if name in NONE_ALLOWED else (*wrong, None):
        with pytest.raises(OptionError) as caught:
            Options(**{name: value})
        line = str(caught.value)
        assert line.startswith(f"{name} is {value!r}; it must be a ")
        assert line.endswith(f"number from {low} {'on' if high == UNBOUNDED else f'to {high}'}")


@pytest.mark.parametrize("name", ["steps", "seed", "crf", "fade"])
def test_counts_are_whole(name):
    with pytest.raises(OptionError, match=rf"{name} is 2\.5; it must be a whole number"):
        Options(**{name: 2.5})
    assert Options(guidance_scale=2.5).guidance_scale == 2.5


@pytest.mark.parametrize("name", sorted(PUBLISHED.keys() - RANGES.keys()))
def test_a_choice_out_of_its_set_is_refused_with_the_set(name):
    for value in ("", "all", None, 1):
        with pytest.raises(OptionError) as caught:
            Options(**{name: value})
        line = str(caught.value)
        assert line.startswith(f"{name} is {value!r}; it must be one of ")
        assert repr(getattr(Options(), name)) in line
        assert repr(PUBLISHED[name]) in line
        assert "\n" not in line


def test_effort_is_what_speed_says_and_over_it_what_is_said_by_itself():
    assert Options().effort == Effort()
    fast = Options(speed="fast").effort
    assert fast == SPEEDS["fast"]
    assert fast != SPEEDS["preview"] != Effort()
    said = Options(speed="fast", steps=7, sampler="ddim", guidance_stop=1.0).effort
    assert said == dataclasses.replace(fast, steps=7, sampler="ddim", guidance_stop=1.0)
    assert Options.published().effort == Effort()


@pytest.mark.parametrize("name", ["speed", "sampler"])
def test_an_unknown_speed_or_sampler_is_refused(name):
    with pytest.raises(OptionError, match=f"{name} is 'quick'; it must be one of '"):
        Options(**{name: "quick"})


@pytest.mark.parametrize(
    ("asked", "net"),
    [("None", None), ("GFPGAN", "gfpgan"), ("codeFormer", "codeformer"), ("A/b.pth", "A/b.pth")],
)
def test_restoration_nets_are_known_in_any_case(asked, net):
    assert Options(superres=asked).restorer == net


def test_restoration_is_asked_for_by_name():
    for value in (None, True, 2):
        with pytest.raises(OptionError, match=r"superres is .*; it must be text"):
            Options(superres=value)


def test_the_limit_of_a_turn_has_a_range():
    assert Options(max_yaw=40).max_yaw == 40
    for value in (4, 86, "40", True):
        with pytest.raises(OptionError, match=r"max_yaw is .*; it must be a number from 5 to 85"):
            Options(max_yaw=value)


def test_published_names_every_choice_that_differs_and_only_those():
    ours, published = Options(), Options.published()
    differing = {
        field.name: getattr(published, field.name)
        for field in dataclasses.fields(Options)
        if getattr(published, field.name) != getattr(ours, field.name)
    }
    assert differing == PUBLISHED


def test_published_takes_changes():
    options = Options.published(steps=3, sync_mode="bounce")
    assert (options.steps, options.sync_mode, options.landmarks) == (3, "bounce", "rounded")
    with pytest.raises(OptionError, match="steps is 51"):
        Options.published(steps=51)


def test_an_option_error_is_bad_input_and_a_value_error():
    assert issubclass(OptionError, (InputError, ValueError))
    with pytest.raises(ValueError, match="crf is 52"):
        Options(crf=52)


def test_defaults():
    options = Options()
    assert (options.guidance_scale, options.seed, options.crf) == (1.0, 0, 17)
    assert options.effort == Effort(steps=20, sampler="ddim")


@pytest.mark.parametrize("name", PRESETS)
def test_a_model_goes_through_json(name):
    config = PRESETS[name]
    assert config.name == name
    again = ModelConfig.from_json(config.to_json())
    assert again == config
    assert hash(again) == hash(config)  # tuples came back, not lists


def test_json_is_for_people_too():
    raw = json.loads(PRESETS["v1.6"].to_json())
    assert raw["resolution"] == 512
    assert raw["unet"]["block_out_channels"] == [320, 640, 1280, 1280]
    assert PRESETS["demo"].to_json().endswith("}\n")


def test_presets_are_the_published_models_and_the_demo():
    assert [*PRESETS] == ["v1.6", "v1.5", "demo"]
    v16, v15, demo = PRESETS.values()
    assert (v16.resolution, v15.resolution, demo.resolution) == (512, 256, 96)
    assert (v16.detector, v15.detector, demo.detector) == ("insightface", "insightface", "builtin")
    assert v16.unet == v15.unet
    assert v16.vae.downsampling == 8
    for config in PRESETS.values():
        assert config.unet.cross_attention_dim == config.whisper.n_audio_state
        assert config.unet.in_channels == 2 * config.unet.out_channels + 5
