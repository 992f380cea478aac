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

from latentsync.config import PRESETS

ROOT = Path(__file__).resolve().parent.parent
TABLES = ROOT / "tests/cog"  # Cog's own, as of 0.23.1
SCHEMA = ROOT / ".cog/openapi_schema.json"
JSON_TYPES = {"Path": ("string", "uri"), "float": ("number", None), "int": ("integer", None)}
# One distribution stands in for another that holds the same package.
IN_PLACE_OF = {"onnxruntime": "onnxruntime-gpu"}


def table(name):
    return json.loads((TABLES / f"{name}.json").read_text())


def predictor():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Cog has newer names for these
        from predict import Predictor
    return Predictor


def input_schema():
    """The schema of `Input`, from the signature of predict()."""
    properties, required = {}, []
    parameters = list(inspect.signature(predictor().predict).parameters.values())[1:]
    for order, parameter in enumerate(parameters):
        asked = parameter.default
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
    return {"properties": properties, "required": required, "title": "Input", "type": "object"}


def whole_schema():
    """What `cog build` writes: all but the inputs is the same for every model that makes a file."""
    schema = table("openapi_example")
    schemas = schema["components"]["schemas"]
    schemas["Input"] = input_schema()
    del schemas["mode"]  # an input of the example
    return schema


def test_the_committed_schema_is_that_of_predict():
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
        "inference_steps": ("integer", 1, 50, 20, None),
    }


def test_what_cog_reads_as_text_is_literal():
    """Cog silently drops a bound that is an expression, and mangles a string made of two."""
    text = (ROOT / "predict.py").read_text()
    calls = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Input"
    ]
    assert len(calls) == 5
    for call in calls:
        assert not call.args
        for keyword in call.keywords:
            source = ast.get_source_segment(text, keyword.value)
            assert isinstance(keyword.value, ast.Constant), source
            tokens = tokenize.generate_tokens(io.StringIO(source).readline)
            assert sum(token.type == tokenize.STRING for token in tokens) <= 1, source


def test_the_adapter_is_thin():
    assert len((ROOT / "predict.py").read_text().splitlines()) < 120


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
    for wanted in map(Requirement, project["dependencies"]):
        name = IN_PLACE_OF.get(wanted.name, wanted.name)
        assert pin(name) in wanted.specifier, f"{name} {pin(name)} is not {wanted}"
    assert Version(config()["build"]["python_version"]) in _specifier(project["requires-python"])


def test_insightface_comes_without_the_other_opencv():
    assert not {"insightface", "opencv-python", "onnxruntime", "cog"} & set(requirements())
    (command,) = config()["build"]["run"]
    version = re.fullmatch(r"pip install --no-deps insightface==(\S+)", command).group(1)
    assert version == importlib.metadata.version("insightface")
    for needed in map(Requirement, importlib.metadata.requires("insightface")):
        if needed.marker is None and needed.name != "opencv-python":
            name = IN_PLACE_OF.get(needed.name, needed.name)
            assert pin(name) in needed.specifier
    assert "opencv-python-headless" in requirements()


def _specifier(text):
    return Requirement(f"python{text}").specifier


@pytest.mark.parametrize(
    "path",
    ["latentsync/models/unet.py", "predict.py", "requirements.txt", ".cog/openapi_schema.json",
     "weights/demo/unet.safetensors", "weights/v1.6/latentsync_unet.pt", "weights/whisper/tiny.pt"],
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
    SCHEMA.write_text(json.dumps(whole_schema(), separators=(",", ":"), ensure_ascii=False))
