"""A folder of clips as training data: prepared, split by people, and drawn from."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256

import torch
from torch import Tensor

from latentsync.diffusion import sampling
from latentsync.errors import Cancelled, TrainingError
from latentsync.training.batches import WHOLE, Batch, BatchPart
from latentsync.training.clip_cache import FPS, MIN_FRAMES, CachedClip, Preparer
from latentsync.training.clips import ClipFile
from latentsync.training.crops import to_tensor
from latentsync.types import Progress, ProgressCallback

__all__ = ["ClipWindows", "fingerprint", "prepare", "split", "window_and_reference"]

log = logging.getLogger(__name__)

MAX_UNUSABLE_SHARE = 0.05  # of the clips; above it somebody should look at the data
MAX_REASONS = 3  # in the error
CLIPS_PER_HELD_OUT = 50
MIN_GROUPS = 10  # a group of more than a tenth of the clips is not held out


def prepare(
    files: Sequence[ClipFile],
    preparer: Preparer,
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
    *,
    frames: int = 16,
) -> list[CachedClip]:
    """Prepare the clips of a data set and return the usable ones, without the short ones.

    Args:
        frames: of a window; a clip must have three times as many.

    Raises:
        Cancelled: `cancel` returned true; what is prepared stays.
        OutputError: the cache can't be written.
        TrainingError: more than 5 % are unusable, not counting short ones, or none is left.
    """
    clips: list[CachedClip] = []
    unusable: list[str] = []
    copies: list[tuple[str, str]] = []
    first_of: dict[str, ClipFile] = {}
    short, min_frames = 0, max(MIN_FRAMES, 3 * frames)
    for done, file in enumerate(files, 1):
        found = preparer.clip(file)
        if isinstance(found, CachedClip) and len(found) >= min_frames:
            clips.append(found)
        elif isinstance(found, CachedClip) or found.startswith("too short"):
            short += 1
        else:
            unusable.append(f"{file.path.name} ({found})")
            log.warning("%s is left out: %s", file.path, found)
        first = first_of.setdefault(file.digest, file)
        if first is not file and file.digest:
            copies.append((file.path.name, first.path.name))
        if progress:
            progress(Progress("prepare", done, len(files)))
        if cancel and cancel():
            raise Cancelled(f"stopped after preparing {done} of {len(files)} clips; they are kept")
    level = logging.WARNING if unusable else logging.INFO
    said = "%d clips; left out: %d too short, %d unusable"
    log.log(level, said, len(clips), short, len(unusable))
    if copies:
        log.warning("%d clips are copies of others, such as %s of %s", len(copies), *copies[0])
    if len(unusable) > MAX_UNUSABLE_SHARE * len(files):
        raise TrainingError(
            f"{len(unusable)} of {len(files)} clips can't be used, more than "
            f"{MAX_UNUSABLE_SHARE:.0%}: {'; '.join(unusable[:MAX_REASONS])}; mend or remove such "
            "clips"
        )
    if not clips:
        raise TrainingError(
            f"none of {len(files)} clips has {min_frames} frames with a face in a row "
            f"({float(min_frames / FPS):g} s); give longer ones"
        )
    return clips


def fingerprint(clips: Sequence[CachedClip]) -> str:
    """Hash what is in these clips, in this order."""
    return sha256("".join(clip.file.digest for clip in clips).encode()).hexdigest()


def split(
    clips: Sequence[CachedClip], held_out: int | None = None
) -> tuple[list[CachedClip], list[CachedClip]]:
    """Split into clips to train on and held-out ones, of other people where possible.

    Whole groups are held out, evenly spread over the folder: the clips of one person or folder of
    footage; if these groups are too large, those of one piece of footage; else single clips. Copies
    of a clip are on the same side as the clip.

    Args:
        held_out: number of clips, about; None: one of 50. 0: train on all, and validate on the
            first.
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
        if not held or len(held) == len(everything):
            continue
        numbers = {id(clip) for clip in held}
        left = [clip for clip in everything if id(clip) not in numbers]
        known_people = {clip.file.people for clip in left}
        if known := sum(clip.file.people in known_people for clip in held):
            log.warning(
                "%d of %d held-out clips are from footage that is trained on, too: validation may "
                "show known people",
                known,
                len(held),
            )
        else:
            log.info("held out by %s", kind)
        return left, held
    log.warning(
        "no clip of %d is held out: too few, or all are copies; the first is validated on, too",
        len(everything),
    )
    return everything, everything[:1]


def _groups(
    clips: Sequence[CachedClip], name: Callable[[CachedClip], object]
) -> list[list[CachedClip]]:
    """Group clips that have a name in common, or are copies of one in the group (union-find)."""
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
    """Choose evenly spaced groups, about as many clips as wanted, no large group."""
    wanted = held_out or -(-clips // CLIPS_PER_HELD_OUT)
    max_size = max(1, wanted, clips // MIN_GROUPS)
    spacing = clips / wanted if held_out else CLIPS_PER_HELD_OUT
    held: list[CachedClip] = []
    passed = 0
    for group in groups:
        if len(held) * spacing <= passed and len(group) <= max_size and len(held) < wanted:
            held += group
        passed += len(group)
    return held


@dataclass(frozen=True)
class ClipWindows:
    """Draws windows of clips, each with a reference window of the same clip, no frame in common.

    Args:
        clips: at least one; each has an equal chance to be drawn.
        pixels: px, side of the crops for losses on pixels; None: without crops.
    """

    clips: Sequence[CachedClip]
    pixels: int | None = None

    def draw(
        self, count: int, frames: int, generator: torch.Generator, part: BatchPart = WHOLE
    ) -> Batch:
        """See `batches.Windows`; at most 16 frames."""
        numbers = torch.randint(len(self.clips), (count,), generator=generator)[part.of(count)]
        chances = torch.rand((count, 2), generator=generator)[part.of(count)].tolist()
        masked, clean, references, speech, mels = [], [], [], [], []
        pixels: list[Tensor] = []
        for number, (chance, other_chance) in zip(numbers.tolist(), chances, strict=True):
            clip = self.clips[number]
            start, other = window_and_reference(len(clip), frames, chance, other_chance)
            latents = clip.latents(start, start + frames)
            masked.append(latents.masked)
            clean.append(latents.reference)
            references.append(clip.latents(other, other + frames).reference)
            speech.append(clip.speech(start, start + frames))
            mels.append(clip.mel(start, frames))
            if self.pixels:
                with torch.autocast("cpu", enabled=False):  # the geometry of crops is float32
                    crops = clip.crops(start, start + frames, self.pixels)
                pixels.append(to_tensor(crops))
        reference = torch.stack(references)
        return Batch(
            clean=torch.stack(clean).transpose(1, 2),
            shown=sampling.Latents(masked=torch.stack(masked), reference=reference),
            speech=torch.stack(speech),
            pixels=torch.stack(pixels).transpose(1, 2) if pixels else None,
            mel=torch.stack(mels),
        )


def window_and_reference(
    length: int, frames: int, chance: float, other_chance: float
) -> tuple[int, int]:
    """First frames of two windows without a common frame, in a clip of at least three windows.

    Chances in [0, 1) choose the first window among all, the other among those on either side.
    """
    start = int(chance * (length - frames + 1))
    before = max(0, start - frames + 1)  # windows that end where this one begins, or earlier
    after = max(0, length - start - 2 * frames + 1)
    other = int(other_chance * (before + after))
    return start, other if other < before else start + frames + other - before
