"""What one run did, as a JSON file beside its output, and in the output's own comment."""

import json
import uuid
from dataclasses import asdict
from pathlib import Path

from latentsync.errors import OutputError
from latentsync.types import Result

__all__ = ["comment", "report_path", "write_report"]


def comment(model: str, seed: int, steps: int, guidance_scale: float) -> str:
    """For the mp4's tags: that the picture is synthetic, and how it came to be."""
    return (
        f"Synthetic picture: the mouth was drawn to the sound by LatentSync, model {model}, "
        f"seed {seed}, {steps} steps, guidance {guidance_scale:g}"
    )


def report_path(output: Path) -> Path:
    """Where the report of an output goes: out.json beside out.mp4."""
    return output.with_suffix(".json")


def write_report(result: Result) -> Path:
    """Write all of a `Result` as JSON, in one move; OutputError when that can't be."""
    path = report_path(result.path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.json")
    try:
        temporary.write_text(json.dumps(asdict(result), indent=2, default=str) + "\n")
        temporary.replace(path)
    except OSError as error:
        raise OutputError(
            f"{path} can't be written ({error.strerror}); {result.path} is finished"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
