"""Zip archives from outside, unpacked safely: clips for training, and trained models."""

import stat
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from latentsync.errors import InputError, WeightsError
from latentsync.media.container import quote_path
from latentsync.runtime.transfer import reason, transfer

__all__ = ["fetch_model", "pack", "unpack"]

MAX_BYTES = 1 << 34  # unpacked; hours of clips, or six times the largest model
MAX_FILES = 1000
MODEL = "the zip of a model as training gives it: a config.json and .safetensors files"


def unpack(archive: Path, folder: Path, suffixes: Collection[str], wanted: str) -> list[Path]:
    """Extract the files with these suffixes below `folder`; folders in the zip are kept.

    Hidden files, and the `__MACOSX` that macOS adds, are skipped.

    Args:
        suffixes: in lower case, with their dots.
        wanted: what to give instead, for error messages.

    Returns:
        The files, at least one, in the order of their names.

    Raises:
        InputError: no zip, a damaged one, no or too many such files, or an entry that is a link or
            leads out of the zip.
    """
    try:
        with ZipFile(archive) as zipped:
            everything = zipped.infolist()
            chosen = [entry for entry in everything if _is_wanted(entry, suffixes)]
            if not chosen:
                ends = ", ".join(sorted(suffixes))
                raise InputError(f"none of its {len(everything)} entries ends in {ends}")
            size = sum(entry.file_size for entry in chosen)  # zipfile extracts no more than this
            if size > MAX_BYTES or len(chosen) > MAX_FILES:
                raise InputError(
                    f"it unpacks to {len(chosen)} files of {size / 1e9:.1f} GB, but at most "
                    f"{MAX_FILES} of {MAX_BYTES / 1e9:.1f} GB are taken"
                )
            return sorted({Path(zipped.extract(entry, folder)) for entry in chosen})
    except Exception as error:  # a damaged zip, each of its codecs and the disk raise their own
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise InputError(
            f"{quote_path(archive)} can't be unpacked ({reason}); give {wanted}"
        ) from error


def _is_wanted(entry: ZipInfo, suffixes: Collection[str]) -> bool:
    path = PurePosixPath(entry.filename)
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"its entry {entry.filename!r} lies outside of it")
    if any(part.startswith(".") or part == "__MACOSX" for part in path.parts):
        return False
    if stat.S_ISLNK(entry.external_attr >> 16):
        raise InputError(f"its entry {entry.filename!r} is a link, not a file")
    return not entry.is_dir() and path.suffix.lower() in suffixes


def pack(folder: Path, archive: Path) -> None:
    """Zip a folder's files without compression: weights hardly shrink."""
    with ZipFile(archive, "w", ZIP_STORED) as zipped:
        for path in sorted(folder.iterdir()):
            zipped.write(path, path.name)


def fetch_model(source: str, folder: Path) -> Path:
    """Fetch and unpack a model if needed; returns its folder, for `LipSync.load`.

    Args:
        source: a folder, its zip, or the address (http, https) of its zip.
        folder: where to unpack it.

    Raises:
        InputError: no such file, or not the zip of one model.
        WeightsError: the address can't be fetched.
    """
    if Path(source).is_dir():
        return Path(source)
    archive = Path(source)
    if "://" in source:
        archive = folder / "weights.zip"
        try:
            with archive.open("w+b") as file:
                transfer(source, file)
        except (OSError, ValueError) as error:  # requests' errors are OSErrors, or of bad URLs both
            raise WeightsError(
                f"{quote_path(source)} can't be fetched ({reason(error)}); give the address of "
                f"{MODEL}"
            ) from error
    found = unpack(archive, folder / "model", {".json", ".safetensors"}, MODEL)
    folders = [path.parent for path in found if path.name == "config.json"]
    if len(folders) != 1:
        raise InputError(f"{quote_path(source)} holds {len(folders)} config.json; give {MODEL}")
    return folders[0]
