"""What a run resumes from: its checkpoint and its table of figures, both checked when read."""

import csv
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

import torch

from latentsync.errors import OptionError, TrainingError
from latentsync.runtime.files import replacing
from latentsync.training.settings import TrainConfig

__all__ = [
    "PARTS",
    "Facts",
    "check_same",
    "read_checkpoint",
    "read_rows",
    "write_checkpoint",
    "write_rows",
    "write_state",
]

log = logging.getLogger(__name__)

Facts = Mapping[str, tuple[str, str]]
"""What a run reads, by option: a description, and a key that is equal for equal content."""

CHANGEABLE = {"log_every", "validate_every", "checkpoint_every", "keep_checkpoints"} | {
    "accumulate"  # as many devices: parts of a batch are the batch, but for rounding
}
PARTS = {"config", "step", "net", "average", "optimiser"}  # of a checkpoint
MAX_DIFFERENCES = 3  # named in an error


def write_checkpoint(path: Path, state: Mapping[str, Any], keep: int) -> None:
    """Replace the checkpoint; with `keep` above 1, keep that many under names with their steps.

    Raises:
        OutputError: it can't be written; the last one stays.
    """
    write_state(path, state)
    if keep == 1:
        return
    name, _, rest = path.name.partition(".checkpoint")
    numbered = path.with_name(f"{name}.{state['step']:08d}.checkpoint{rest}")
    try:
        numbered.unlink(missing_ok=True)
        os.link(path, numbered)  # the same file, so it takes no room until the next one comes
    except OSError as error:
        log.warning("%s can't be kept (%s)", numbered, error)
    for old in _numbered(path)[:-keep]:
        with suppress(OSError):
            old.unlink()


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write as `torch.save`, atomically.

    Raises:
        OutputError: it can't be written.
    """
    with replacing(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(dict(state), file)
        except RuntimeError as error:  # what torch's writer raises on a full disk
            raise OSError(str(error).splitlines()[0]) from error


def _numbered(path: Path) -> list[Path]:
    """The checkpoints of a run that are kept by their steps, oldest first."""
    name, _, rest = path.name.partition(".checkpoint")
    pattern = re.compile(rf"{re.escape(name)}\.\d+\.checkpoint{re.escape(rest)}")
    return sorted(other for other in path.parent.iterdir() if pattern.fullmatch(other.name))


def read_checkpoint(path: Path, table: Path, config: TrainConfig) -> dict[str, Any] | None:
    """Read the checkpoint; None if the run has not come as far as its first one.

    Raises:
        TrainingError: it is damaged, or gone although the figures show that it was written.
    """
    older = [
        other
        for other in (_numbered(path) if path.parent.is_dir() else [])
        if not (path.exists() and other.samefile(path))  # damaged under both names
    ]
    remedy = "put a copy there"
    if older:
        remedy += f", or rename {older[-1].name} to {path.name} to go on from there"
    remedy += "; or give another folder to start anew"
    if not path.is_file():
        rows = read_rows(table)
        last = int(rows[-1]["step"]) if rows else 0
        if older or last > config.checkpoint_every or last == config.steps:
            raise TrainingError(
                f"{path} is gone, but {(older[-1] if older else table).name} beside it is of a run "
                f"that wrote it; {remedy}"
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
    except Exception as error:  # a damaged pickle raises any exception
        raise TrainingError(
            f"{path} is damaged: its {path.stat().st_size} bytes are not a whole checkpoint; "
            f"{remedy}"
        ) from error
    return saved


def check_same(path: Path, saved: Mapping[str, Any], config: TrainConfig, facts: Facts) -> None:
    """Check that the run which wrote a checkpoint can go on with these settings, nets and data.

    A setting that the checkpoint lacks had its default. A constant learning rate does not depend on
    the number of steps.

    Raises:
        OptionError: they differ; the message names what differs.
    """
    different = [
        f"{name} is {now!r} now and was {was!r}"
        for name, was, now in _changes(saved["config"], config, saved["step"])
    ]
    if "facts" not in saved and facts:
        log.warning("%s is from an earlier version, which did not record its data", path)
    for name, (description, key) in saved.get("facts", {}).items():
        now, now_key = facts.get(name, ("not given", ""))
        if key != now_key:
            different.append(f"{name}: {now} now, {description} then")
    if different:
        raise OptionError(
            f"{path.parent} holds a run with other settings or data: "
            f"{'; '.join(different[:MAX_DIFFERENCES])}; give the same to go on, or another folder "
            "to start anew"
        )


def _changes(
    saved: Mapping[str, Any], config: TrainConfig, step: int
) -> list[tuple[str, object, object]]:
    """Settings that change the weights and differ: name, saved value, value now."""
    defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING}
    was, now = dict(_flat({**defaults, **saved})), dict(_flat(asdict(config)))
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


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def read_rows(table: Path) -> list[dict[str, Any]]:
    """Read the figures of an earlier run; none if there is no table.

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
            rows.append({name: value for name, value in row.items() if value})
            int(row["step"]), [float(value) for value in rows[-1].values()]
        if text and not text.endswith("\n"):
            raise ValueError("it is cut")
    except (csv.Error, KeyError, TypeError, ValueError, AttributeError) as error:
        raise TrainingError(
            f"{table} is damaged in line {number}; mend it, or delete it: then the run goes on "
            "from its checkpoint, and the figures begin there"
        ) from error
    return rows


def write_rows(table: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the table atomically.

    Raises:
        OutputError: it can't be written.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(table) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
