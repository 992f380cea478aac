"""Leak and closure: is the mouth shut while nobody speaks, and at every p, b and m?

Both compare an opening, read off each frame, with OPEN_EYE_DISTANCES. A mouth that never opens
leaks nothing and closes at every sound: read them beside the lip correlation.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentsync.errors import InputError

__all__ = ["Closure", "closed_share", "leak_share", "read_closures", "truth_path"]

# 2.5 mm where the eyes are 63 mm apart, as they are on average (Dodgson, "Variation and extrema of
# human interpupillary distance", 2004). The mouth net reads at most 0.030 in 99 % of the frames in
# which a drawn mouth is shut, and at least 0.038 in 95 % of those in which it is open by 0.05-0.08.
OPEN_EYE_DISTANCES = 0.04
# By which viewers don't notice lips that are late (sound that is 45 ms early, ITU-R BT.1359-1).
TOLERANCE_SECONDS = 0.045
CLOSED_PHONEMES = ("p", "b", "m")


@dataclass(frozen=True)
class Closure:
    """When a p, b or m is heard, in seconds of the sound."""

    start_seconds: float
    stop_seconds: float


def leak_share(opening: NDArray[np.floating], speaks: NDArray[np.bool_]) -> float | None:
    """Measure the share of frames without speech in which the mouth is open.

    Args:
        opening: (n,) eye distances; NaN where it is not known, which doesn't count.
        speaks: (n,) whether somebody speaks then.

    Returns:
        0..1, or None if somebody speaks in every frame with a known opening.
    """
    silent = opening[~speaks & np.isfinite(opening)]
    return float((silent > OPEN_EYE_DISTANCES).mean()) if len(silent) else None


def closed_share(
    opening: NDArray[np.floating], seconds: NDArray[np.floating], closures: Sequence[Closure]
) -> float | None:
    """Measure at which share of the closures the mouth is shut in some frame.

    The frames are those of the sound itself and of TOLERANCE_SECONDS before and after it.

    Args:
        opening: (n,) eye distances; NaN where it is not known.
        seconds: (n,) when each frame is shown.

    Returns:
        0..1, or None if there is no closure with a known opening.
    """
    shut = []
    for closure in closures:
        start, stop = closure.start_seconds, closure.stop_seconds
        during = (seconds >= start - TOLERANCE_SECONDS) & (seconds <= stop + TOLERANCE_SECONDS)
        known = opening[during & np.isfinite(opening)]
        if len(known):
            shut.append(bool(known.min() <= OPEN_EYE_DISTANCES))
    return float(np.mean(shut)) if shut else None


def truth_path(clip: Path) -> Path:
    """Where `latentsync synthesise` writes the truth of a clip."""
    return clip.with_suffix(".truth.jsonl")


def read_closures(clip: Path) -> list[Closure]:
    """Read the p, b and m of a drawn clip from the truth beside it.

    Raises:
        InputError: there is no such file, or it holds no phonemes.
    """
    path = truth_path(clip)
    if not path.is_file():
        raise InputError(
            f"no phoneme times: {path.name} is not beside {clip.name}; clips by `latentsync "
            "synthesise` have it"
        )
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        phonemes = [(float(at), str(name)) for row in rows for at, name in row["phonemes"]]
        end = float(rows[-1]["seconds"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"no phoneme times: {path.name} lacks them ({error!r}); draw {clip.name} again with "
            "`latentsync synthesise`"
        ) from error
    return [
        Closure(start, stop)
        for (start, name), (stop, _) in pairwise([*phonemes, (end, "")])
        if name.lstrip("',%=").startswith(CLOSED_PHONEMES)
    ]
