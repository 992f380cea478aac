"""A folder of clips as training data: what the frozen nets make of each, cached by its content.

    clip -> face track -> the longest stretch with a face -> latents, speech, mel -> files

Of a clip that is drawn from, only the window is read: its files are mapped, its crops cut out of
the clip itself. So memory does not grow with the data.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor, nn

from latentsync import align, diffusion, faces, mel
from latentsync.errors import Cancelled, InputError, NoFaceFound, TrainingError
from latentsync.mask import keep_mask
from latentsync.media import AudioReader, VideoReader
from latentsync.speech import SpeechFeatures
from latentsync.training.batches import WHOLE, Batch, Part
from latentsync.training.crops import Pixels, pictures
from latentsync.types import FaceTrack, FloatArray, Frame, Progress, ProgressCallback
from latentsync.weights import Nets

__all__ = ["Clip", "ClipWindows", "Preparer", "find_clips", "fingerprint", "prepare", "split"]

log = logging.getLogger(__name__)

FPS = Fraction(25)
SUFFIXES = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpg", ".ts", ".webm"}
SHORTEST = 48  # frames with a face; published: a window, and room for another one on either side
BAD_SHARE = 0.05  # of the clips may be unusable before somebody should look at the data
TOLD = 3  # of them, in the error
HELD_OUT = 50  # one of so many clips is never trained on
BATCH = 16  # frames that are encoded together
VERSION = 2  # of what is in the cache


def find_clips(folder: Path) -> list[Path]:
    """The clips in a folder and below it, in the order of their names; none that is hidden.

    Raises:
        InputError: no folder, or no clip in it.
    """
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in SUFFIXES
        and path.is_file()
        # What `latentsync prepare` hasn't finished lies in a hidden folder.
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not found:
        raise InputError(
            f"{folder} holds no clip; give a folder of clips with sound: "
            f"{', '.join(sorted(SUFFIXES))}"
        )
    return found


@dataclass(frozen=True)
class Clip:
    """One clip's prepared stretch, n frames with a face in each; nothing of it is in memory."""

    path: Path
    folder: Path  # of the cache
    first: int  # frame of the clip that is this stretch's frame 0
    frames: int

    def __len__(self) -> int:
        return self.frames

    def latents(self, start: int, stop: int) -> diffusion.Latents:
        """Of frames [start, stop): (f, 4, h, w) float32."""
        masked, clean = (self._part(name, start, stop) for name in ("masked", "clean"))
        return diffusion.Latents(masked=masked, reference=clean)

    def speech(self, start: int, stop: int) -> Tensor:
        """(f, tokens, width) float32."""
        return self._part("speech", start, stop)

    def mel(self, start: int, frames: int) -> Tensor:
        """(1, 80, 52) float32, what StableSyncNet hears beside 16 frames."""
        columns = torch.from_numpy(np.load(self.folder / "mel.npy", mmap_mode="c"))
        return mel.sync_window(columns, self.first + start, frames).float()

    def crops(self, start: int, stop: int, side: int) -> Pixels:
        """(f, side, side, 3), cut out of the clip."""
        affines = np.load(self.folder / "affine.npy")[start:stop]
        numbers = range(self.first + start, self.first + stop)
        return np.stack(list(_cut(self.path, numbers, affines, side)))

    def _part(self, name: str, start: int, stop: int) -> Tensor:
        mapped = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return torch.from_numpy(mapped[start:stop].astype(np.float32))


@dataclass(frozen=True)
class Preparer:
    """What clips are prepared with, and where the result is kept."""

    nets: Nets  # its U-Net is not used
    detector: faces.Detector
    cache: Path

    @cached_property
    def settings(self) -> str:
        """Everything but the clip that the files depend on."""
        config = self.nets.config
        digest = sha256()
        for net in (self.nets.vae, self.nets.speech):
            _add_weights(digest.update, net)
        said = [VERSION, config.resolution, self.detector.describe(), digest.hexdigest()]
        return json.dumps(said)

    def clip(self, path: Path) -> Clip | str:
        """The clip, prepared now or earlier; or in words why it can't be used.

        A reason that begins with "too short" is no fault of the clip.
        """
        digest = sha256(self.settings.encode())
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        folder = self.cache / digest.hexdigest()[:32]
        facts = folder / "facts.json"
        if not facts.is_file():
            self._fill(folder, path)
        told = json.loads(facts.read_text())
        return told["unusable"] or Clip(path, folder, told["first"], told["frames"])

    def _fill(self, folder: Path, path: Path) -> None:
        """Make the clip's folder, in one move at the end."""
        temporary = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        facts = {"clip": path.name, "unusable": "", "first": 0, "frames": 0}
        try:
            facts |= self._write(temporary, path)
        except InputError as error:
            facts["unusable"] = str(error)
        (temporary / "facts.json").write_text(json.dumps(facts))
        try:
            temporary.rename(folder)
        except OSError:  # another process met the same clip under another name
            if not folder.is_dir():
                raise
            shutil.rmtree(temporary)

    def _write(self, folder: Path, path: Path) -> dict[str, int | str]:
        """The files of one clip.

        Raises:
            InputError: it can't be read, has no sound, or shows no face.
        """
        sound = AudioReader(path)
        heard = sound.sample_count(mel.SAMPLE_RATE) * FPS // mel.SAMPLE_RATE
        track = self._track(path, int(heard))
        first, stop = longest_run(track)
        if stop - first < SHORTEST:
            return {"unusable": f"too short: {stop - first} frames with a face, not {SHORTEST}"}
        side, like = self.nets.config.resolution, next(self.nets.vae.parameters())
        shape = (stop - first, *self.nets.vae.latent_shape(side))
        files = {
            name: open_memmap(folder / f"{name}.npy", "w+", np.float16, shape)
            for name in ("clean", "masked")
        }
        mask = torch.from_numpy(keep_mask(side)).to(like)
        crops = _cut(path, range(first, stop), track.affine[first:stop], side)
        done = 0
        while batch := list(islice(crops, BATCH)):
            with torch.inference_mode():
                pixels = pictures(np.stack(batch)).to(like)
                latents = diffusion.encode(self.nets.vae, pixels, mask)
            part = slice(done, done := done + len(batch))
            files["clean"][part] = latents.reference.half().cpu().numpy()
            files["masked"][part] = latents.masked.half().cpu().numpy()
        features = SpeechFeatures(self.nets.speech, sound, frames=stop, fps=FPS)
        speech = [
            features[i : min(i + BATCH, stop)].half().cpu() for i in range(first, stop, BATCH)
        ]
        np.save(folder / "speech.npy", torch.cat(speech).numpy())
        wave = np.concatenate(list(sound.chunks(mel.SAMPLE_RATE)))
        np.save(folder / "mel.npy", mel.sync_mel(wave).float().numpy())
        np.save(folder / "affine.npy", track.affine[first:stop])
        return {"first": first, "frames": stop - first}

    def _track(self, path: Path, at_most: int) -> FaceTrack:
        frames = islice(VideoReader(path).frames(), at_most)
        seen, side = faces.track(frames, self.detector), self.nets.config.resolution
        track = align.face_track(seen.points, seen.found, side, pixel_aspect=seen.pixel_aspect)
        if not track.found.any():
            raise NoFaceFound(f"no face by {self.detector.describe()}")
        return track


def prepare(
    paths: Sequence[Path],
    preparer: Preparer,
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[Clip]:
    """The usable clips of a data set; those too short are left out, as published.

    Raises:
        Cancelled: `cancel` said so; what is prepared stays.
        TrainingError: more than 5 % of them can't be used for another reason, or none is left.
    """
    clips, bad, short = [], [], 0
    for done, path in enumerate(paths, 1):
        found = preparer.clip(path)
        if isinstance(found, Clip):
            clips.append(found)
        elif found.startswith("too short"):
            short += 1
        else:
            bad.append(f"{path.name} ({found})")
            log.warning("%s is left out: %s", path, found)
        if progress:
            progress(Progress("prepare", done, len(paths)))
        if cancel and cancel():
            raise Cancelled(f"stopped after preparing {done} of {len(paths)} clips; they are kept")
    level = logging.WARNING if bad else logging.INFO
    log.log(level, "%d clips; left out: %d too short, %d unusable", len(clips), short, len(bad))
    if len(bad) > BAD_SHARE * len(paths):
        raise TrainingError(
            f"{len(bad)} of {len(paths)} clips can't be used, more than {BAD_SHARE:.0%}: "
            f"{'; '.join(bad[:TOLD])}; mend or remove such clips"
        )
    if not clips:
        raise TrainingError(
            f"none of {len(paths)} clips has {SHORTEST} frames with a face in a row "
            f"({float(SHORTEST / FPS):g} s); give longer ones"
        )
    return clips


def fingerprint(clips: Sequence[Clip]) -> str:
    """Names these clips in this order, by what is in them and what they were prepared with."""
    return sha256("".join(clip.folder.name for clip in clips).encode()).hexdigest()


def split(clips: Sequence[Clip]) -> tuple[list[Clip], list[Clip]]:
    """For training, and held out: every 50th clip, at least one; a single clip is both."""
    if len(clips) == 1:
        return list(clips), list(clips)
    return [one for i, one in enumerate(clips) if i % HELD_OUT], list(clips[::HELD_OUT])


class ClipWindows:
    """Windows of clips, each with a reference window of the same clip that it shares no frame with.

    Args:
        clips: at least one; each has an equal chance to be drawn.
        pixels: px, side of the crops that losses on pixels want; None: there are none.
    """

    def __init__(self, clips: Sequence[Clip], pixels: int | None = None) -> None:
        self._clips, self._pixels = clips, pixels

    @property
    def latent_side(self) -> int:
        return self._clips[0].latents(0, 1).masked.shape[-1]

    def draw(
        self, count: int, frames: int, generator: torch.Generator, part: Part = WHOLE
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
            shown=diffusion.Latents(masked=masked, reference=torch.stack(references)),
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


def longest_run(track: FaceTrack) -> tuple[int, int]:
    """First and one past the last frame of the longest stretch with a face in every frame."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], track.found, [0]]).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    longest = int(np.argmax(stops - starts))
    return int(starts[longest]), int(stops[longest])


def _cut(path: Path, numbers: Sequence[int], affines: FloatArray, side: int) -> Iterator[Frame]:
    shown = VideoReader(path).frames(numbers)
    for frame, affine in zip(shown, affines, strict=True):
        size = (frame.width, frame.height)
        box = align.face_box(affine, side, *size)
        yield align.cut_face(frame.rgb(box), box, affine, side)


def _add_weights(update: Callable[[bytes], None], net: nn.Module) -> None:
    for name, value in net.state_dict().items():
        update(name.encode())
        update(value.detach().float().cpu().contiguous().numpy().tobytes())
