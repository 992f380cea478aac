"""A folder of clips as training data: prepared, split by people, and drawn from."""

import logging
from collections.abc import Callable, Sequence
from hashlib import sha256

import torch

from latentsync.diffusion import sampling
from latentsync.errors import Cancelled, TrainingError
from latentsync.training.batches import WHOLE, Batch, BatchPart
from latentsync.training.clip_cache import FPS, SHORTEST, CachedClip, Preparer
from latentsync.training.clips import ClipFile
from latentsync.training.crops import pictures
from latentsync.types import Progress, ProgressCallback

__all__ = ["ClipWindows", "fingerprint", "prepare", "split", "window_and_reference"]

log = logging.getLogger(__name__)

BAD_SHARE = 0.05  # of the clips may be unusable before somebody should look at the data
TOLD = 3  # of them, in the error
HELD_OUT = 50  # one of so many clips is never trained on
LARGEST_SHARE = 10  # what belongs together is held out if it is at most a tenth of the clips


def prepare(
    files: Sequence[ClipFile],
    preparer: Preparer,
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
    *,
    frames: int = 16,
) -> list[CachedClip]:
    """The usable clips of a data set; those too short are left out, as published.

    Args:
        frames: of a window; a clip has three of them at least.

    Raises:
        Cancelled: `cancel` said so; what is prepared stays.
        OutputError: the cache can't be written.
        TrainingError: more than 5 % of them can't be used for another reason, or none is left.
    """
    clips, bad, short, copies = [], [], 0, []
    seen: dict[str, ClipFile] = {}
    shortest = max(SHORTEST, 3 * frames)
    for done, file in enumerate(files, 1):
        found = preparer.clip(file)
        if isinstance(found, CachedClip) and len(found) >= shortest:
            clips.append(found)
        elif isinstance(found, CachedClip) or found.startswith("too short"):
            short += 1
        else:
            bad.append(f"{file.path.name} ({found})")
            log.warning("%s is left out: %s", file.path, found)
        first = seen.setdefault(file.digest, file)
        if first is not file and file.digest:
            copies.append((file.path.name, first.path.name))
        if progress:
            progress(Progress("prepare", done, len(files)))
        if cancel and cancel():
            raise Cancelled(f"stopped after preparing {done} of {len(files)} clips; they are kept")
    level = logging.WARNING if bad else logging.INFO
    log.log(level, "%d clips; left out: %d too short, %d unusable", len(clips), short, len(bad))
    if copies:
        log.warning("%d clips are copies of others, such as %s of %s", len(copies), *copies[0])
    if len(bad) > BAD_SHARE * len(files):
        raise TrainingError(
            f"{len(bad)} of {len(files)} clips can't be used, more than {BAD_SHARE:.0%}: "
            f"{'; '.join(bad[:TOLD])}; mend or remove such clips"
        )
    if not clips:
        raise TrainingError(
            f"none of {len(files)} clips has {shortest} frames with a face in a row "
            f"({float(shortest / FPS):g} s); give longer ones"
        )
    return clips


def fingerprint(clips: Sequence[CachedClip]) -> str:
    """Names these clips in this order, by what is in them."""
    return sha256("".join(clip.file.digest for clip in clips).encode()).hexdigest()


def split(
    clips: Sequence[CachedClip], held_out: int | None = None
) -> tuple[list[CachedClip], list[CachedClip]]:
    """For training, and held out: other people where that can be, else other footage or clips.

    Whole groups of clips are held out, evenly spread over the folder: of one person or folder of
    footage; where these are too large, of one piece of footage; else single clips. Copies of a clip
    are on the same side as it.

    Args:
        held_out: how many clips, about; None: one of 50. 0: all are trained on, and the first is
            validated on too.
    """
    everything = list(clips)
    if held_out == 0:
        return everything, everything[:1]
    for kind, name in (
        ("people", lambda clip: clip.file.people),
        ("footage", lambda clip: clip.file.source),
        ("clips", lambda clip: clip.file.path),
    ):
        held = _chosen(_groups(everything, name), len(everything), held_out)
        if held and len(held) < len(everything):
            numbers = {id(clip) for clip in held}
            left = [clip for clip in everything if id(clip) not in numbers]
            _say_what_is_held_out(kind, left, held)
            return left, held
    log.warning(
        "no clip of %d is held out: too few, or all are copies; the first is validated on, too",
        len(everything),
    )
    return everything, everything[:1]


def _groups(
    clips: Sequence[CachedClip], name: Callable[[CachedClip], object]
) -> list[list[CachedClip]]:
    """Clips that have a name in common, or that are copies of one that has."""
    leaders: dict[object, object] = {}

    def leader(key: object) -> object:
        while leaders.setdefault(key, key) != key:
            key = leaders[key]
        return key

    for clip in clips:
        leaders[leader((clip.file.digest,))] = leader(name(clip))
    groups: dict[object, list[CachedClip]] = {}
    for clip in clips:
        groups.setdefault(leader(name(clip)), []).append(clip)
    return list(groups.values())


def _chosen(
    groups: Sequence[list[CachedClip]], clips: int, held_out: int | None
) -> list[CachedClip]:
    """The clips of some groups, about as many as wanted, no more than a tenth at once."""
    wanted = held_out or -(-clips // HELD_OUT)
    largest = max(1, wanted, clips // LARGEST_SHARE)
    every = clips / wanted if held_out else HELD_OUT
    held: list[CachedClip] = []
    seen = 0
    for group in groups:
        if len(held) * every <= seen and len(group) <= largest and len(held) < wanted:
            held += group
        seen += len(group)
    return held


def _say_what_is_held_out(
    kind: str, left: Sequence[CachedClip], held: Sequence[CachedClip]
) -> None:
    known = {clip.file.people for clip in left}
    shared = sum(clip.file.people in known for clip in held)
    if shared:
        log.warning(
            "%d of %d held-out clips are of footage that is trained on, too: validation may show "
            "known people",
            shared,
            len(held),
        )
    else:
        log.info("held out by %s", kind)


class ClipWindows:
    """Windows of clips, each with a reference window of the same clip that it shares no frame with.

    Args:
        clips: at least one; each has an equal chance to be drawn.
        pixels: px, side of the crops that losses on pixels want; None: there are none.
    """

    def __init__(self, clips: Sequence[CachedClip], pixels: int | None = None) -> None:
        self._clips, self._pixels = clips, pixels

    @property
    def latent_side(self) -> int:
        return self._clips[0].latents(0, 1).masked.shape[-1]

    def draw(
        self, count: int, frames: int, generator: torch.Generator, part: BatchPart = WHOLE
    ) -> Batch:
        """See `batches.Windows`; at most 16 frames."""
        numbers = torch.randint(len(self._clips), (count,), generator=generator)[part.of(count)]
        chances = torch.rand((count, 2), generator=generator)[part.of(count)].tolist()
        shown, references, speech, pixels, mels = [], [], [], [], []
        for number, (chance, other_chance) in zip(numbers.tolist(), chances, strict=True):
            clip = self._clips[number]
            start, other = window_and_reference(len(clip), frames, chance, other_chance)
            shown.append(clip.latents(start, start + frames))
            references.append(clip.latents(other, other + frames).reference)
            speech.append(clip.speech(start, start + frames))
            mels.append(clip.mel(start, frames))
            if self._pixels:
                with torch.autocast("cpu", enabled=False):  # the geometry of crops is float32
                    crops = clip.crops(start, start + frames, self._pixels)
                pixels.append(pictures(crops))
        masked = torch.stack([one.masked for one in shown])
        return Batch(
            clean=torch.stack([one.reference for one in shown]).transpose(1, 2),
            shown=sampling.Latents(masked=masked, reference=torch.stack(references)),
            speech=torch.stack(speech),
            pixels=torch.stack(pixels).transpose(1, 2) if pixels else None,
            mel=torch.stack(mels),
        )


def window_and_reference(
    length: int, frames: int, chance: float, other_chance: float
) -> tuple[int, int]:
    """First frames of two windows without a common frame, in a clip of at least three windows.

    Chances in [0, 1) pick the first window among all, and the other among those beside it.
    """
    start = int(chance * (length - frames + 1))
    before = max(0, start - frames + 1)  # windows that end where this one begins, or earlier
    after = max(0, length - start - 2 * frames + 1)
    other = int(other_chance * (before + after))
    return start, other if other < before else start + frames + other - before
