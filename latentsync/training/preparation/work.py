"""The outcome of one file: a function of its bytes and the settings only."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentsync.errors import InputError, LatentSyncError, OutputError
from latentsync.runtime.files import file_digest
from latentsync.training.preparation.clip import Write
from latentsync.training.preparation.stretch import FPS, Rejected, Step, Stretch, Tools

__all__ = ["Line", "Outcome", "Source", "examine", "failed"]

log = logging.getLogger(__name__)

Line = dict[str, Any]
"""A line of index.jsonl or rejected.jsonl."""
CANT_BE_READ, FAILED = "can't be read", "failed"  # by the file's fault; by an unknown cause


@dataclass(frozen=True)
class Source:
    """A file below the raw folder."""

    path: Path
    relative: str  # to the folder, with slashes; its name in records and lists
    size: int  # bytes
    changed: int  # ns since 1970

    @classmethod
    def of(cls, path: Path, folder: Path) -> "Source":
        try:
            facts = path.stat()
            size, changed = facts.st_size, facts.st_mtime_ns
        except OSError:  # such as a link that leads nowhere; `examine` rejects it
            size = changed = 0
        return cls(path, path.relative_to(folder).as_posix(), size, changed)


@dataclass(frozen=True)
class Outcome:
    """The result of one file."""

    digest: str = ""  # of its bytes
    seconds: float = 0.0  # of decoded pictures
    clips: tuple[Line, ...] = ()
    rejected: tuple[Line, ...] = ()
    final: bool = True  # False: an accident, perhaps not the file's fault; tried again next time


def examine(source: Source, steps: Sequence[Step], write: Write, tools: Tools) -> Outcome:
    """Take a file through all steps; write its clips to the tools' folder.

    Raises:
        OutputError: the disk is full, or can't be written.
        WeightsError, BackendUnavailable: the tools don't work.
    """
    rejected: list[Line] = []
    name, digest, end = steps[0].name, "", 0
    try:
        if not source.path.is_file():  # a link to nowhere, or to a pipe
            raise InputError(f"{source.relative} leads to no file")
        digest = file_digest(source.path)
        kept = [Stretch(source.path)]
        for step in steps:
            name = step.name
            results = [result for stretch in kept for result in step(stretch, tools)]
            kept = [result for result in results if isinstance(result, Stretch)]
            rejected += [_line(source, name, one) for one in results if isinstance(one, Rejected)]
            end = max([end, *(result.stop for result in results)])
        name = write.name
        clips = tuple(
            {**write(stretch, source.relative, tools), "source_sha256": digest} for stretch in kept
        )
        return Outcome(digest, end / FPS, clips, tuple(rejected))
    except OutputError:
        raise
    except InputError as error:
        reason, final, detail = CANT_BE_READ, True, str(error)
    except OSError as error:  # it may be readable next time
        reason, final, detail = CANT_BE_READ, False, str(error)
    except LatentSyncError:
        raise
    except Exception as error:
        log.warning("%s: step %s failed", source.relative, name, exc_info=True)
        reason, final, detail = FAILED, False, f"{type(error).__name__}: {error}"
    # The whole file is rejected: its other clips may be damaged in the same way.
    rejected = [*rejected, _line(source, name, Rejected(reason, detail=detail))]
    return Outcome(digest, end / FPS, (), tuple(rejected), final)


def failed(source: Source, detail: str) -> Outcome:
    """The outcome of a file that ended its process."""
    line = _line(source, "decode", Rejected(FAILED, detail=detail))
    return Outcome(rejected=(line,), final=False)


def _line(source: Source, step: str, rejected: Rejected) -> Line:
    # The line doesn't depend on where the raw folder is.
    detail = rejected.detail.replace(str(source.path), source.relative)
    detail = " ".join(detail.replace(repr(str(source.path)), repr(source.relative)).split())
    return {
        "file": source.relative,
        "step": step,
        "reason": rejected.reason,
        "figure": rejected.figure,
        "start_seconds": rejected.start / FPS,
        "stop_seconds": rejected.stop / FPS,
        "detail": detail,
    }
