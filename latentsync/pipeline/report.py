"""What one run did, as a JSON file beside its output, and in the output's own comment."""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentsync.errors import OutputError
from latentsync.media import output_size
from latentsync.options import Options
from latentsync.pipeline import face_tracks, timeline
from latentsync.pipeline.compositor import SpeakingFace
from latentsync.pipeline.speakers import Inputs
from latentsync.pipeline.timeline import Timeline
from latentsync.runtime.progress import RunContext
from latentsync.types import Result

__all__ = ["comment", "describe", "report_path", "write_report"]


def comment(model: str, seed: int, steps: int, guidance_scale: float) -> str:
    """For the mp4's tags: that the picture is synthetic, and how it came to be."""
    return (
        f"Synthetic picture: the mouth was drawn to the sound by LatentSync, model {model}, "
        f"seed {seed}, {steps} steps, guidance {guidance_scale:g}"
    )


def describe(
    path: Path,
    inputs: Inputs,
    shown: Timeline,
    faces: Sequence[SpeakingFace],
    options: Options,
    context: RunContext,
    made_by: Mapping[str, Any],
    left_out: tuple[str, ...],
) -> Result:
    """Sum up a run whose output is written.

    Args:
        made_by: the fields of a `Result` that say which model made it, and on what.
        left_out: what of the inputs is not in the output.
    """
    clip, voices, tracks = inputs.clip.info, inputs.voices, [face.track for face in faces]
    lost = face_tracks.lost(tracks, voices.choices)
    frames, why = len(shown.source), timeline.reasons(shown, lost)
    width, height = output_size(
        clip.width, clip.height, codec=options.codec, max_side=options.max_side
    )
    return Result(
        path=path,
        source=clip.path.absolute(),
        frames=frames,
        fps=float(frames / shown.seconds),
        seconds=float(shown.seconds),
        width=width,
        height=height,
        faces_found=face_tracks.faces_found(tracks),
        source_frames=len(tracks[0]),
        passed_through=timeline.passed_through([face.plan for face in faces], why),
        lost=lost,
        seed=options.seed,
        cuts=face_tracks.cuts(tracks),
        shots=face_tracks.shots(tracks),
        options=asdict(options) | asdict(options.effort),
        voices=voices.named(),
        decoding=asdict(inputs.clip.reader.counts),
        sound_tracks=voices.tracks(),
        left_out=left_out,
        timings=context.timings(),
        **made_by,
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
