"""What the frozen nets compute of clips: latents, speech and mel, computed once, cached by content.

    clip -> face track -> the longest stretch with a face -> latents, speech, mel -> files

    CACHE/ab/abcd.../facts.json    of a clip; the hash is of its bytes, the nets and the detector
                     clean.npy     (n, 4, h, w) float16, latents of the crops
                     masked.npy    latents of the crops with the mouth masked out
                     speech.npy    (tokens, states, width) float16; neighbours share tokens
                     mel.npy       (80, columns) float32
                     affine.npy    (n, 2, 3) float32
    CACHE/.work/                   folders that processes are filling

Little more than a window is read of a clip, so memory does not grow with the data. A file of the
right size counts as whole when a run starts; its rows are checked when they are read.
"""

import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from latentsync import faces
from latentsync.audio import mel
from latentsync.audio.whisper import SpeechStates
from latentsync.diffusion import sampling
from latentsync.diffusion.weights import Nets
from latentsync.errors import MediaError, NoFaceFound, OutputError, TrainingError
from latentsync.evaluation.nets import syncnet_mel
from latentsync.faces import align
from latentsync.faces.mask import keep_mask
from latentsync.media import AudioReader, VideoReader
from latentsync.runtime.files import private_folder
from latentsync.training.clips import ClipFile
from latentsync.training.crops import Pixels, aligned_crops, to_tensor
from latentsync.types import FaceTrack

__all__ = ["FPS", "MIN_FRAMES", "CachedClip", "Preparer"]

FPS = Fraction(25)
MIN_FRAMES = 48  # with a face; published: a window, and room for another one on either side
BATCH_FRAMES = 16  # encoded together
VERSION = 3  # of the cache's format
FACTS = "facts.json"
NUMBERS = ("first", "frames", "tokens", "first_token")  # among the facts
# Errors that may be gone at the next try, so they are not recorded of a clip.
TRANSIENT = {errno.EACCES, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOENT}
TRANSIENT |= {errno.ENOMEM, errno.EPERM, errno.ESTALE}


@dataclass(frozen=True, slots=True)
class CachedClip:
    """One clip's prepared stretch, n frames with a face in each; it stays on disk."""

    file: ClipFile
    folder: Path  # in the cache
    first: int  # frame of the clip that is this stretch's frame 0
    frames: int
    tokens: int = 0  # of the clip's sound
    first_token: int = 0  # in the cache

    def __len__(self) -> int:
        return self.frames

    def latents(self, start: int, stop: int) -> sampling.Latents:
        """Of frames [start, stop): (f, 4, h, w) float32."""
        masked, clean = (
            torch.from_numpy(self._rows(name, start, stop).astype(np.float32))
            for name in ("masked", "clean")
        )
        return sampling.Latents(masked=masked, reference=clean)

    def speech(self, start: int, stop: int) -> Tensor:
        """(f, tokens, width) float32."""
        around = _tokens_around(self.first + start, self.first + stop, self.tokens)
        lowest, highest = int(around.min()), int(around.max())
        rows = self._rows("speech", lowest - self.first_token, highest + 1 - self.first_token)
        return torch.from_numpy(rows[around - lowest].astype(np.float32)).flatten(1, 2)

    def mel(self, start: int, frames: int) -> Tensor:
        """(1, 80, columns) float32, StableSyncNet's input for so many frames."""
        columns = torch.from_numpy(self._array("mel"))
        return syncnet_mel.sync_window(columns, self.first + start, frames).float()

    def crops(self, start: int, stop: int, side: int) -> Pixels:
        """(f, side, side, 3), decoded from the clip."""
        affines = self._array("affine")[start:stop]
        numbers = range(self.first + start, self.first + stop)
        return np.stack(list(aligned_crops(self.file.path, numbers, affines, side)))

    def _array(self, name: str) -> NDArray[Any]:
        try:
            return _checked(np.load(self.folder / f"{name}.npy", allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(name, error) from error

    def _rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) of an array.

        It is not mapped into memory: if a mapped file is cut, the process dies by SIGBUS.
        """
        try:
            with (self.folder / f"{name}.npy").open("rb") as file:
                npy.read_magic(file)
                shape, _, kind = npy.read_array_header_1_0(file)
                row = math.prod(shape[1:])
                file.seek(start * row * kind.itemsize, os.SEEK_CUR)
                flat = np.fromfile(file, kind, (stop - start) * row)
            return _checked(flat.reshape(stop - start, *shape[1:]))
        except (OSError, ValueError) as error:
            raise self._damaged(name, error) from error

    def _damaged(self, name: str, error: Exception) -> TrainingError:
        with suppress(OSError):  # the next start checks sizes only, and this one may be right
            (self.folder / FACTS).unlink(missing_ok=True)
        return TrainingError(
            f"{self.folder / name}.npy is damaged or gone ({error}); start again: what is damaged "
            "is made anew"
        )


@dataclass(frozen=True)
class Preparer:
    """Prepares clips with these nets and this detector, and caches the result."""

    nets: Nets  # its U-Net is not used
    detector: faces.Detector
    cache: Path

    @cached_property
    def nets_digest(self) -> str:
        """Of the weights of the autoencoder and the speech encoder."""
        digest = sha256()
        for net in (self.nets.vae, self.nets.speech):
            for name, value in net.state_dict().items():
                digest.update(name.encode())
                digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def settings(self) -> str:
        """Everything but the clip that the files depend on."""
        return json.dumps(
            [VERSION, self.nets.config.resolution, self.detector.describe(), self.nets_digest]
        )

    def folder(self, file: ClipFile) -> Path:
        """Name the folder of a clip's files in the cache."""
        key = sha256(f"{self.settings} {file.digest}".encode()).hexdigest()[:32]
        return self.cache / key[:2] / key

    def clip(self, file: ClipFile) -> CachedClip | str:
        """Return the clip, prepared now or earlier, or the reason why it can't be used.

        A reason that begins with "too short" is no fault of the clip.

        Raises:
            OutputError: the cache can't be written.
        """
        if file.trouble:
            return file.trouble
        folder = self.folder(file)
        facts = _facts(folder)
        if facts is None:
            try:
                facts = self._fill(folder, file)
            except OSError as error:
                raise OutputError(
                    f"the cache {self.cache} can't be written ({error.strerror or error}); make "
                    "room, or name another place with --cache; what is in it stays"
                ) from error
        return facts["unusable"] or CachedClip(file, folder, *(facts[name] for name in NUMBERS))

    def _fill(self, folder: Path, file: ClipFile) -> dict[str, Any]:
        """Fill the clip's folder, moved to its place at the end; return the facts of the clip."""
        facts: dict[str, Any] = {"unusable": "", **dict.fromkeys(NUMBERS, 0), "files": {}}
        with private_folder(self.cache / ".work") as work:
            temporary = work / folder.name
            temporary.mkdir()
            try:
                facts |= self._write(temporary, file.path)
            except (MediaError, NoFaceFound) as error:
                reason, path = str(error), file.path
                for name in (repr(str(path)), str(path), repr(path.name), path.name):
                    reason = reason.replace(name, "it")  # copies have other names
                facts["unusable"] = reason
                if _is_transient(error, file.path):
                    return facts
                for written in temporary.iterdir():
                    written.unlink()
            facts["files"] = {path.name: path.stat().st_size for path in temporary.iterdir()}
            (temporary / FACTS).write_text(json.dumps(facts))
            for written in temporary.iterdir():  # on the disk before they are moved
                with written.open("rb+") as opened:
                    os.fsync(opened.fileno())
            folder.parent.mkdir(exist_ok=True)
            if _facts(folder) is None:
                with suppress(FileNotFoundError):
                    folder.rename(work / "damaged")
            with suppress(OSError):  # another process met the same clip under another name
                temporary.rename(folder)
            if _facts(folder) is None:
                raise OSError(f"{folder} can't be moved to its place")
        return facts

    def _write(self, folder: Path, path: Path) -> dict[str, int | str]:
        """Write the files of one clip; return its numbers, or why it is unusable.

        Raises:
            MediaError: it can't be read, or has no sound.
            NoFaceFound: it shows no face.
        """
        sound = AudioReader(path)
        heard = len(sound.samples) * FPS // mel.SAMPLE_RATE
        track = self._track(path, int(heard))
        first, stop = longest_run(track)
        if stop - first < MIN_FRAMES:
            return {"unusable": f"too short: {stop - first} frames with a face, not {MIN_FRAMES}"}
        self._write_latents(folder, path, track, first, stop)
        speech = SpeechStates(self.nets.speech, sound)
        around = _tokens_around(first, stop, len(speech))
        tokens = np.arange(lowest := int(around.min()), int(around.max()) + 1)
        with _row_writer(folder / "speech.npy", (len(tokens), *speech.token_shape)) as write:
            for part in np.split(tokens, range(BATCH_FRAMES, len(tokens), BATCH_FRAMES)):
                write(speech[part])
        wave = np.concatenate(list(sound.chunks()))
        np.save(folder / "mel.npy", syncnet_mel.sync_mel(wave).float().numpy())
        np.save(folder / "affine.npy", track.affine[first:stop])
        return dict(zip(NUMBERS, (first, stop - first, len(speech), lowest), strict=True))

    def _write_latents(
        self, folder: Path, path: Path, track: FaceTrack, first: int, stop: int
    ) -> None:
        side, like = self.nets.config.resolution, next(self.nets.vae.parameters())
        shape = (stop - first, *self.nets.vae.latent_shape(side))
        mask = torch.from_numpy(keep_mask(side)).to(like)
        crops = aligned_crops(path, range(first, stop), track.affine[first:stop], side)
        with (
            _row_writer(folder / "clean.npy", shape) as write_clean,
            _row_writer(folder / "masked.npy", shape) as write_masked,
        ):
            while batch := list(islice(crops, BATCH_FRAMES)):
                with torch.inference_mode():
                    pixels = to_tensor(np.stack(batch)).to(like)
                    latents = sampling.encode(self.nets.vae, pixels, mask)
                write_clean(latents.reference)
                write_masked(latents.masked)

    def _track(self, path: Path, max_frames: int) -> FaceTrack:
        frames = islice(VideoReader(path).frames(), max_frames)
        seen, side = faces.track(frames, self.detector), self.nets.config.resolution
        track = align.face_track(seen.points, seen.detected, side, pixel_aspect=seen.pixel_aspect)
        if not track.detected.any():
            raise NoFaceFound(f"no face by {self.detector.describe()}")
        return track


def longest_run(track: FaceTrack) -> tuple[int, int]:
    """First and one past the last frame of the longest stretch with a face in every frame."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], track.detected, [0]]).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    longest = int(np.argmax(stops - starts))
    return int(starts[longest]), int(stops[longest])


def _checked(rows: NDArray[Any]) -> NDArray[Any]:
    """Return the rows.

    Raises:
        ValueError: a row is all zeros, as a machine that goes down may leave it.
    """
    if not rows.reshape(len(rows), -1).any(axis=1).all():
        raise ValueError("it holds zeros")
    return rows


def _facts(folder: Path) -> dict[str, Any] | None:
    """The facts of a clip; None if they, or a file beside them, are missing or damaged."""
    try:
        place = str(folder)  # called a hundred thousand times: no Path
        with open(f"{place}/{FACTS}", "rb") as file:  # noqa: PTH123
            facts = json.loads(file.read())
        sizes = {name: os.stat(f"{place}/{name}").st_size for name in facts["files"]}  # noqa: PTH116
        whole = sizes == facts["files"] and isinstance(facts["unusable"], str)
        return facts if whole and all(isinstance(facts[name], int) for name in NUMBERS) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_transient(error: Exception, path: Path) -> bool:
    """Whether the machine may be the cause, and not what is in the clip."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError:
        return True
    return getattr(error.__cause__, "errno", None) in TRANSIENT


def _tokens_around(start: int, stop: int, tokens: int) -> NDArray[np.int64]:
    """(f, 10): the tokens of frames [start, stop) of a clip."""
    own = mel.own_tokens(np.arange(start, stop, dtype=np.int64), 1 / FPS)
    return mel.tokens_around(own, tokens)


@contextmanager
def _row_writer(path: Path, shape: tuple[int, ...]) -> Iterator[Callable[[Tensor], object]]:
    """Open a .npy file of float16, reserve its room, and give a function that appends rows.

    Raises:
        OSError: there is too little room.
    """
    with path.open("wb") as file:
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(file, header)
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, file.tell() + 2 * math.prod(shape))
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a disk without it
                    raise
        yield lambda rows: file.write(
            rows.half().cpu().contiguous().numpy().astype("<f2").tobytes()
        )
