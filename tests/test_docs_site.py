"""The site of docs/ as `make docs` builds it: whole, and from this machine alone."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

import latentsync
from tests.documentation import PAGES, ROOT

ZENSICAL = Path(sysconfig.get_path("scripts")) / "zensical"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ZENSICAL.is_file(), reason="`make docs` installs what builds it"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built into a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    config["site_dir"] = "site"
    python = config["plugins"][1]["mkdocstrings"]["handlers"]["python"]
    python["paths"] = [str(ROOT)]
    python["options"]["extensions"] = [str(ROOT / "scripts/field_comments.py")]
    shutil.copytree(ROOT / "docs", folder / "docs")
    (folder / "mkdocs.yml").write_text(yaml.safe_dump(config))
    told = subprocess.run(
        [ZENSICAL, "build", "--strict"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stdout + told.stderr
    return folder / "site"


def test_the_site_is_built(site):
    for page in PAGES[1:]:
        built = (site / page.relative_to(ROOT / "docs")).with_suffix(".html")
        (head,) = re.findall(r"^# (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert head in built.read_text(encoding="utf-8")


def test_nothing_is_loaded_from_elsewhere(site):
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"<(?:script|img|iframe|source)[^>]*src=[\"']?(?:https?:)?//", text)
        assert not re.search(r"<link[^>]*href=[\"']?(?:https?:)?//", text)
    for style in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()[\"' ]*https?:", style.read_text(encoding="utf-8"))


def test_the_reference_has_all_public_names_and_their_fields(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in latentsync.__all__:
        assert re.search(rf'id="latentsync\.[\w.]*\b{name}"', text), (
            f"{name} is not in the reference"
        )
    assert "source frames with a face" in text  # the comment behind Result.faces_found
