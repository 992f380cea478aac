"""Report of a run: a JSON file beside the output, and the output's comment tag."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from latentsync.media import output_size
from latentsync.options import Options
from latentsync.pipeline import face_tracks, timeline
from latentsync.pipeline.compositor import SpeakingFace
from latentsync.pipeline.speakers import Inputs
from latentsync.pipeline.timeline import Timeline
from latentsync.runtime.files import replacing
from latentsync.types import Result

__all__ = ["comment", "describe", "report_path", "write_report"]


def comment(model: str, seed: int, steps: int, guidance_scale: float) -> str:
    """Return the output's comment tag: that the picture is synthetic, and how it was made."""
    return (
        f"Synthetic picture: the mouth was drawn to the sound by LatentSync, model {model}, "
        f"seed {seed}, {steps} steps, guidance {guidance_scale:g}"
    )


def describe(
    inputs: Inputs, shown: Timeline, faces: Sequence[SpeakingFace], options: Options
) -> dict[str, Any]:
    """Return the fields of a `Result` that follow from its inputs, options and plan."""
    clip, voices, tracks = inputs.clip.info, inputs.voices, [face.track for face in faces]
    lost = face_tracks.lost(tracks, voices.choices)
    frames, why = len(shown.source), timeline.reasons(shown, lost)
    width, height = output_size(
        clip.width, clip.height, codec=options.codec, max_side=options.max_side
    )
    return {
        "source": clip.path.absolute(),
        "frames": frames,
        "fps": float(frames / shown.seconds),
        "seconds": float(shown.seconds),
        "width": width,
        "height": height,
        "faces_found": face_tracks.faces_found(tracks),
        "source_frames": len(tracks[0]),
        "passed_through": timeline.passed_through([face.plan for face in faces], why),
        "lost": lost,
        "seed": options.seed,
        "cuts": face_tracks.cuts(tracks),
        "shots": face_tracks.shots(tracks),
        "options": asdict(options) | asdict(options.effort),
        "voices": voices.named(),
        "decoding": asdict(inputs.clip.reader.counts),
        "sound_tracks": voices.tracks(),
    }


def report_path(output: Path) -> Path:
    """Return the path of an output's report: out.json beside out.mp4."""
    return output.with_suffix(".json")


def write_report(result: Result) -> Path:
    """Write all of a `Result` as JSON; OutputError if that can't be."""
    path = report_path(result.path)
    with replacing(path, unique=True) as temporary:
        temporary.write_text(json.dumps(asdict(result), indent=2, default=str) + "\n")
    return path
