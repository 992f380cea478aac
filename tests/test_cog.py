"""The container's description: the schema Cog serves, cog.yaml, requirements.txt, what cv2 links.

`python -m tests.test_cog` writes .cog/openapi_schema.json anew, as `cog build` does.
"""

import ast
import fnmatch
import importlib.metadata
import inspect
import io
import json
import re
import subprocess
import sys
import tokenize
import tomllib
import warnings
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from latentsync.diffusion.config import PRESETS
from latentsync.options import MAX_SEED, RESTORERS, SPEEDS, Options, declared
from latentsync.training.presets import UNET_RUNS

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "tests/cog"  # Cog's own, as of 0.23.1
SCHEMA = ROOT / ".cog/openapi_schema.json"
JSON_TYPES = {
    "Path": ("string", "uri"),
    "str": ("string", None),
    "float": ("number", None),
    "int": ("integer", None),
}
# One distribution stands in for another that holds the same package.
IN_PLACE_OF = {"onnxruntime": "onnxruntime-gpu"}


def table(name):
    return json.loads((TABLES / f"{name}.json").read_text())


def predictor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Cog has newer names for these
        from predict import Predictor
    return Predictor


def trainer():
    predictor()  # train.py imports its module, too, and so meets the same warnings
    from train import train

    return train


def input_schema(function, title):
    """The schema of what a function is given, from its signature."""
    properties, required = {}, []
    parameters = inspect.signature(function).parameters.values()
    for order, parameter in enumerate(one for one in parameters if one.name != "self"):
        asked = parameter.default
        if asked.choices:
            properties[parameter.name] = {
                "allOf": [{"$ref": f"#/components/schemas/{parameter.name}"}],
                "default": asked.default,
                "description": asked.description,
                "x-order": order,
            }
            continue
        kind, form = JSON_TYPES[parameter.annotation.__name__]
        facts = {
            "default": asked.default,
            "description": asked.description,
            "format": form,
            "maximum": asked.le,
            "minimum": asked.ge,
            "title": parameter.name.replace("_", " ").title(),
            "type": kind,
            "x-cog-accept": asked.accept,
            "x-order": order,
        }
        properties[parameter.name] = {k: v for k, v in facts.items() if v is not None}
        if asked.default is None:
            required.append(parameter.name)
    return {"properties": properties, "required": required, "title": title, "type": "object"}


def choices(function):
    """A schema for each input that has a set of values, by the input's name."""
    return {
        name: {
            "description": "An enumeration.",
            "enum": list(parameter.default.choices),
            "title": name,
            "type": "string",
        }
        for name, parameter in inspect.signature(function).parameters.items()
        if getattr(parameter.default, "choices", None)
    }


def whole_schema():
    """What `cog build` writes: all but what goes in and comes out is the same for every model."""
    schema = table("openapi_example")
    schemas = schema["components"]["schemas"]
    del schemas["mode"]  # an input of the example
    training = as_training(schema)
    schemas["Input"] = input_schema(predictor().predict, "Input")
    schemas |= choices(predictor().predict)
    schemas["TrainingInput"] = input_schema(trainer(), "TrainingInput")
    schemas["TrainingOutput"] = schemas["Output"]  # a file, too
    schema["paths"] = training["paths"] | schema["paths"]
    for name in ("TrainingRequest", "TrainingResponse"):
        schemas[name] = training["components"]["schemas"][name]
    return schema


def as_training(schema):
    """The same for a training: Cog words it so, and keeps what goes in and out apart by name."""
    text = json.dumps(schema)
    for word, other in (
        ("schemas/Input", "schemas/TrainingInput"),
        ("schemas/Output", "schemas/TrainingOutput"),
        ("Prediction", "Training"),
        ("prediction", "training"),
        ("Predict", "Train"),
        ("predict", "train"),
    ):
        text = text.replace(word, other)
    return json.loads(text)


def test_the_committed_schema_is_that_of_predict_and_train():
    drift = "run `cog build`, or `python -m tests.test_cog`, and commit .cog/openapi_schema.json"
    assert json.loads(SCHEMA.read_text()) == whole_schema(), drift


def test_the_inputs():
    inputs = json.loads(SCHEMA.read_text())["components"]["schemas"]["Input"]
    assert inputs["required"] == ["video", "audio"]
    said = {
        name: tuple(facts.get(k) for k in ("type", "minimum", "maximum", "default", "x-cog-accept"))
        for name, facts in inputs["properties"].items()
    }
    assert said == {
        "video": ("string", None, None, None, "video/*,image/*"),
        "audio": ("string", None, None, None, "audio/*,video/*"),
        "guidance_scale": ("number", 0, 10, 1, None),
        "seed": ("integer", 0, None, 0, None),
        "inference_steps": ("integer", 0, 50, 0, None),
        "sync_mode": (None, None, None, "bounce", None),
        "fps": (None, None, None, "25", None),
        "audio_track": ("string", None, None, "auto", None),
        "face": ("string", None, None, "largest", None),
        "on_missing": (None, None, None, "keep", None),
        "speed": (None, None, None, "exact", None),
        "superres": (None, None, None, "none", None),
        "mask_smooth": ("number", 0, 1, 0.5, None),
        "sr_ratio": ("number", 1, 4, 2, None),
        "sr_weight": ("number", 0, 1, 0.5, None),
    }


# Inputs whose text is their own: shorter, for a literal is one line; or a request can say less.
OWN_WORDS = {"guidance_scale", "seed", "inference_steps", "audio_track", "face", "superres"}


def test_the_inputs_are_those_of_the_options():
    """Bounds, choices, defaults and text; 0 steps are as many as `speed` says."""
    known = declared(Options)
    inputs = inspect.signature(predictor().predict).parameters
    asked = {name: one.default for name, one in inputs.items() if hasattr(one.default, "choices")}
    assert set(asked) - set(known) == {"video", "audio", "inference_steps"}
    for name in asked.keys() - {"video", "audio"}:
        said, option = asked[name], known["steps" if name == "inference_steps" else name]
        if name not in OWN_WORDS:
            assert said.description == option.description
        choices = ("none", *RESTORERS) if name == "superres" else option.choices
        assert tuple(said.choices or ()) == choices
        low, high = option.within or (None, None)
        assert said.ge == (0 if name == "inference_steps" else low)
        assert said.le == (None if name == "seed" else high)  # larger ones are refused by Options
        assert said.default == (0 if name == "inference_steps" else option.default)
    assert f"{SPEEDS['exact'].steps} when exact" in asked["inference_steps"].description


def test_the_inputs_of_training():
    inputs = json.loads(SCHEMA.read_text())["components"]["schemas"]["TrainingInput"]
    assert inputs["required"] == ["clips"]
    said = {
        name: tuple(facts.get(k) for k in ("type", "minimum", "maximum", "default"))
        for name, facts in inputs["properties"].items()
    }
    assert said == {
        "clips": ("string", None, None, None),
        "steps": ("integer", 1, 100000, 500),
        "learning_rate": ("number", 0, 0.01, 0),
        "seed": ("integer", 0, MAX_SEED, 0),
    }
    rates = inputs["properties"]["learning_rate"]["description"]
    for name in ("stage2_efficient", "demo"):
        assert f"{UNET_RUNS[name].learning_rate:f}".rstrip("0") in rates


@pytest.mark.parametrize(("file", "inputs"), [("predict.py", 15), ("train.py", 4)])
def test_what_cog_reads_as_text_is_literal(file, inputs):
    """Cog silently drops a bound that is an expression, and mangles a string made of two."""
    text = (ROOT / file).read_text()
    calls = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Input"
    ]
    assert len(calls) == inputs
    for call in calls:
        assert not call.args
        for keyword in call.keywords:
            source = ast.get_source_segment(text, keyword.value)
            values = getattr(keyword.value, "elts", [keyword.value])  # a list of choices, or one
            assert all(isinstance(value, ast.Constant) for value in values), source
            tokens = tokenize.generate_tokens(io.StringIO(source).readline)
            assert sum(token.type == tokenize.STRING for token in tokens) <= len(values), source


@pytest.mark.parametrize("file", ["predict.py", "train.py"])
def test_the_adapters_are_thin(file):
    assert len((ROOT / file).read_text().splitlines()) < 210


def config():
    return yaml.safe_load((ROOT / "cog.yaml").read_text())


def requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    wanted = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {requirement.name: requirement for requirement in wanted}


def pin(name):
    (specifier,) = requirements()[name].specifier
    assert specifier.operator == "=="
    return Version(specifier.version)


def test_cog_yaml_fits_cogs_schema():
    jsonschema.Draft7Validator(table("config_schema")).validate(config())
    build = config()["build"]
    assert build["sdk_version"] == importlib.metadata.version("cog")
    assert (ROOT / build["python_requirements"]).is_file()


def test_cog_yaml_names_what_exists():
    file, name = config()["predict"].split(":")
    assert predictor().__name__ == name
    assert inspect.getsourcefile(predictor()) == str(ROOT / file)
    file, name = config()["train"].split(":")
    assert trainer().__name__ == name
    assert inspect.getsourcefile(trainer()) == str(ROOT / file)
    environment = dict(line.split("=", 1) for line in config()["environment"])
    assert environment["LATENTSYNC_MODEL"] in PRESETS


def test_torch_is_one_that_cog_knows_for_this_cuda():
    build = config()["build"]
    assert next(iter(requirements())) == "torch"  # Cog looks for it, and so do people
    rows = [row for row in table("torch_compatibility") if row["CUDA"] == build["cuda"]]
    known = {Version(row["Torch"].split("+")[0]): row["Pythons"] for row in rows}
    assert pin("torch") == max(known)
    assert build["python_version"] in known[pin("torch")]
    images = [row for row in table("cuda_compatibility") if row["CUDA"].startswith(build["cuda"])]
    assert any(row["CuDNN"] == "9" for row in images)  # what onnxruntime-gpu links


def test_the_gpu_builds_fit_cuda_12():
    assert config()["build"]["cuda"].startswith("12.")
    assert Version("1.19") <= pin("onnxruntime-gpu") <= Version("1.23.2")  # later ones want CUDA 13
    assert pin("xformers") == Version("0.0.35")  # built with CUDA 12.8 for any torch from 2.10


def test_requirements_are_complete():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wants = [*project["dependencies"], *extras["train"], *extras["restore"]]
    for wanted in map(Requirement, wants):
        if (
            wanted.name == "espeakng-loader"
        ):  # for drawn clips; the container learns from given ones
            continue
        name = IN_PLACE_OF.get(wanted.name, wanted.name)
        assert pin(name) in wanted.specifier, f"{name} {pin(name)} is not {wanted}"
    assert Version(config()["build"]["python_version"]) in _specifier(project["requires-python"])


def test_what_comes_without_its_dependencies():
    """InsightFace's other OpenCV would replace ours; of lpips only the weights are wanted."""
    apart = {"insightface", "lpips"}
    assert not apart & set(requirements())
    assert not {"opencv-python", "onnxruntime", "cog"} & set(requirements())
    (command,) = config()["build"]["run"]
    start, *pins = re.split(r" (?=\w+==)", command)
    assert start == "pip install --no-deps"
    assert {f"{name}=={importlib.metadata.version(name)}" for name in apart} == set(pins)
    for needed in map(Requirement, importlib.metadata.requires("insightface")):
        if needed.marker is None and needed.name != "opencv-python":
            name = IN_PLACE_OF.get(needed.name, needed.name)
            assert pin(name) in needed.specifier
    assert "opencv-python-headless" in requirements()


def _specifier(text):
    return Requirement(f"python{text}").specifier


@pytest.mark.parametrize(
    "path",
    ["latentsync/diffusion/unet.py", "predict.py", "train.py", "requirements.txt",
     ".cog/openapi_schema.json", "weights/demo/unet.safetensors",
     "weights/v1.6/latentsync_unet.pt", "weights/whisper/tiny.pt"],
)  # fmt: skip
def test_the_image_gets_what_it_needs(path):
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    parts = Path(path).parts
    for end in range(1, len(parts) + 1):
        prefix = "/".join(parts[:end])
        assert not [p for p in patterns if fnmatch.fnmatch(prefix, p.replace("**/", "*"))]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_nothing_links_libgl():
    """A slim image has no libGL: cv2 must be the headless one, whatever was installed last."""
    script = "import cv2, av, onnxruntime; print(open('/proc/self/maps').read())"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    loaded = {Path(line.split()[-1]).name for line in done.stdout.splitlines() if ".so" in line}
    assert any(name.startswith("cv2") for name in loaded)
    assert not [name for name in loaded if re.match(r"lib(GL|glib|gthread|Qt|X11)", name)]


if __name__ == "__main__":
    SCHEMA.parent.mkdir(exist_ok=True)
    SCHEMA.write_text(json.dumps(whole_schema(), indent=2, sort_keys=True, ensure_ascii=False))
