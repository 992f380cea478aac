"""What a run goes on from: its checkpoint and its table of figures, read with suspicion."""

import contextlib
import csv
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch

from latentsync.errors import OptionError, TrainingError
from latentsync.runtime.files import process_lives, replacing
from latentsync.training.presets import TrainConfig

__all__ = [
    "PARTS",
    "Facts",
    "check_same",
    "kept",
    "read_checkpoint",
    "read_rows",
    "swept",
    "write_checkpoint",
    "write_rows",
    "write_state",
]

log = logging.getLogger(__name__)

Facts = Mapping[str, tuple[str, str]]
"""What a run draws from, by name: how it is called, and a key that is the same for the same."""

CHANGEABLE = {"log_every", "validate_every", "checkpoint_every", "keep_checkpoints"} | {
    "accumulate"  # as many devices: parts of a batch are the batch, but for rounding
}
PARTS = {"config", "step", "net", "average", "optimiser"}  # of a checkpoint
SHOWN = 3  # differences, in an error


def write_checkpoint(path: Path, state: Mapping[str, Any], keep: int) -> None:
    """Put it in the place of the last one; with `keep` above 1, that many are kept by their steps.

    Raises:
        OutputError: it can't be written; the last one stays.
    """
    write_state(path, state)
    if keep > 1:
        name, _, rest = path.name.partition(".checkpoint")
        numbered = path.with_name(f"{name}.{state['step']:08d}.checkpoint{rest}")
        try:
            numbered.unlink(missing_ok=True)
            os.link(path, numbered)  # the same file, so it takes no room until the next one comes
        except OSError as error:
            log.warning("%s can't be kept (%s)", numbered, error)
    for old in kept(path)[:-keep] if keep > 1 else ():
        with contextlib.suppress(OSError):
            old.unlink()


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """As `torch.save`, in one move; OutputError where it can't be written."""
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(dict(state), file)
        except RuntimeError as error:  # torch's writer has no other for a full disk
            raise OSError(str(error).splitlines()[0]) from error


def kept(path: Path) -> list[Path]:
    """Checkpoints of a run that are kept by their steps, oldest first."""
    name, _, rest = path.name.partition(".checkpoint")
    pattern = re.compile(rf"{re.escape(name)}\.\d+\.checkpoint{re.escape(rest)}")
    return sorted(one for one in path.parent.iterdir() if pattern.fullmatch(one.name))


def swept(path: Path) -> None:
    """Remove what a killed run of an earlier version left of a checkpoint or a table."""
    for left in path.parent.glob(f".{path.name}.*"):
        number = left.name.rpartition(".")[2]
        if number.isdecimal() and not process_lives(int(number)):
            with contextlib.suppress(OSError):
                left.unlink()


def read_checkpoint(path: Path, table: Path, config: TrainConfig) -> dict[str, Any] | None:
    """The checkpoint; None where the run has not come so far as to write one.

    Raises:
        TrainingError: it is damaged, or gone though the figures tell of it.
    """
    older = [one for one in kept(path) if not _same_file(one, path)] if path.parent.is_dir() else []
    remedy = "put a copy there"
    if older:
        remedy += f", or rename {older[-1].name} to {path.name} to go on from there"
    remedy += "; or give another folder to start anew"
    if not path.is_file():
        rows = read_rows(table)
        last = int(rows[-1]["step"]) if rows else 0
        if older or last > config.checkpoint_every or last == config.steps:
            raise TrainingError(
                f"{path} is gone, but {(older[-1] if older else table).name} beside it tells of a "
                f"run that wrote it; {remedy}"
            )
        return None
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError as error:
        raise TrainingError(
            f"{path} can't be read ({error.strerror or error}); mend that, and start again"
        ) from error
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        if not set(saved) >= PARTS:
            raise ValueError(f"no checkpoint has only {sorted(saved)}")
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle raises whatever it stumbles over
        raise TrainingError(
            f"{path} is damaged: its {path.stat().st_size} bytes are no whole checkpoint; {remedy}"
        ) from error
    return saved


def _same_file(one: Path, other: Path) -> bool:
    """Whether two names lead to one file, which is damaged under both."""
    return other.exists() and one.samefile(other)


def check_same(path: Path, saved: Mapping[str, Any], config: TrainConfig, facts: Facts) -> None:
    """Check that a run can go on as this one.

    One from before a setting existed had its default. A constant rate does not know the end.

    Raises:
        OptionError: it was begun with other settings, nets or data; the message names them.
    """
    different = [
        f"{name} is {now!r} now and was {was!r}"
        for name, was, now in _changes(saved["config"], config, saved["step"])
    ]
    if "facts" not in saved and facts:
        log.warning("%s is of an earlier version: whether its data are these is not known", path)
    for name, (words, key) in saved.get("facts", {}).items():
        said, now = facts.get(name, ("not given", ""))
        if key != now:
            different.append(f"{name}: {said} now, {words} then")
    if different:
        raise OptionError(
            f"{path.parent} holds a run that was begun otherwise: {'; '.join(different[:SHOWN])}; "
            "give the same to go on, or another folder to start anew"
        )


def _changes(
    saved: Mapping[str, Any], config: TrainConfig, step: int
) -> list[tuple[str, object, object]]:
    """Settings that change the weights, as they were and as they are."""
    defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    was, now = _flat({**defaults, **saved}), _flat(asdict(config))
    ignored = set(CHANGEABLE)
    if config.schedule == "constant":
        ignored.add("steps")
        if step >= max(config.warmup_steps, was["warmup_steps"]):
            ignored.add("warmup_steps")
    return [
        (name, was[name], now[name])
        for name in now
        if name not in ignored and name in was and was[name] != now[name]
    ]


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{before}{name}.")
        else:
            flat[before + name] = value
    return flat


def read_rows(table: Path) -> list[dict[str, Any]]:
    """The figures of an earlier run; none where there is no table.

    Raises:
        TrainingError: it is damaged.
    """
    if not table.is_file():
        return []
    number = 1
    try:
        text = table.read_text()
        rows = []
        reader = csv.DictReader(text.splitlines())
        for row in reader:
            number = reader.line_num
            rows.append({k: v for k, v in row.items() if v})
            int(row["step"]), [float(v) for v in rows[-1].values()]
        if text and not text.endswith("\n"):
            raise ValueError("it is cut")
    except (csv.Error, KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrainingError(
            f"{table} is damaged in line {number}; mend it, or delete it: then the run goes on "
            "from its checkpoint, and the figures begin there"
        ) from error
    return rows


def write_rows(table: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Raises OutputError where it can't be written."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(table) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
