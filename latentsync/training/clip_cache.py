"""What the frozen nets make of clips: latents, speech and mel, made once and kept by content.

    clip -> face track -> the longest stretch with a face -> latents, speech, mel -> files

    CACHE/ab/abcd.../facts.json    of the clip of that hash, with those nets
                     clean.npy     (n, 4, h, w) float16, latents of the crops
                     masked.npy    of the crops with the mouth masked out
                     speech.npy    (tokens, states, width) float16; neighbours share tokens
                     mel.npy       (80, columns) float32
                     affine.npy    (n, 2, 3) float32
    CACHE/.work/                   what living processes are making

Of a clip that is drawn from, little more than the window is read: so memory does not grow with the
data. What has the right size is taken for whole at a start; each row is looked at when it is read.
"""

import errno
import json
import logging
import math
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor, nn

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
from latentsync.runtime.files import private_folder, process_lives
from latentsync.training.clips import ClipFile
from latentsync.training.crops import Pixels, pictures
from latentsync.types import FaceTrack, FloatArray, Frame

__all__ = ["FPS", "SHORTEST", "CachedClip", "Preparer", "swept"]

log = logging.getLogger(__name__)

FPS = Fraction(25)
SHORTEST = 48  # frames with a face; published: a window, and room for another one on either side
BATCH = 16  # frames that are encoded together
VERSION = 3  # of what is in the cache
FACTS = "facts.json"
WORK = ".work"
PASSING = {errno.EACCES, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOENT, errno.ENOMEM} | {
    errno.EPERM,
    errno.ESTALE,
}  # may be gone next time: no reason to refuse a clip for ever
OLD_FOLDER = re.compile(r"[0-9a-f]{32}")  # as version 2 named what it kept
OLD_WORK = re.compile(r"\.[0-9a-f]{32}\.(\d+)")  # and what it was making, with its process


@dataclass(frozen=True, slots=True)
class CachedClip:
    """One clip's prepared stretch, n frames with a face in each; nothing of it is in memory."""

    file: ClipFile
    folder: Path  # of the cache
    first: int  # frame of the clip that is this stretch's frame 0
    frames: int
    tokens: int = 0  # of the clip's sound
    first_token: int = 0  # that is kept

    def __len__(self) -> int:
        return self.frames

    @property
    def path(self) -> Path:
        return self.file.path

    def latents(self, start: int, stop: int) -> sampling.Latents:
        """Of frames [start, stop): (f, 4, h, w) float32."""
        masked, clean = (
            torch.from_numpy(self._rows(name, start, stop).astype(np.float32))
            for name in ("masked", "clean")
        )
        return sampling.Latents(masked=masked, reference=clean)

    def speech(self, start: int, stop: int) -> Tensor:
        """(f, tokens, width) float32."""
        around = _tokens_heard(self.first + start, self.first + stop, self.tokens)
        lowest = int(around.min())
        rows = self._rows(
            "speech", lowest - self.first_token, int(around.max()) + 1 - self.first_token
        )
        heard = torch.from_numpy(rows[around - lowest].astype(np.float32))
        return heard.flatten(1, 2)

    def mel(self, start: int, frames: int) -> Tensor:
        """(1, 80, columns) float32, what StableSyncNet hears beside so many frames."""
        columns = self._array("mel")
        return syncnet_mel.sync_window(
            torch.from_numpy(columns), self.first + start, frames
        ).float()

    def crops(self, start: int, stop: int, side: int) -> Pixels:
        """(f, side, side, 3), cut out of the clip."""
        affines = self._array("affine")[start:stop]
        numbers = range(self.first + start, self.first + stop)
        return np.stack(list(_cut(self.path, numbers, affines, side)))

    def _array(self, name: str) -> NDArray[Any]:
        try:
            return _checked(np.load(self.folder / f"{name}.npy", allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:
            raise self._damaged(name, error) from error

    def _rows(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """Rows [start, stop) of an array.

        Nothing is mapped into memory: where a mapped file is cut, the process dies by SIGBUS.
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
        with suppress(OSError):  # the next start sees sizes only, and this one may be right
            (self.folder / FACTS).unlink(missing_ok=True)
        return TrainingError(
            f"{self.folder / name}.npy is damaged or gone ({error}); start again: what is damaged "
            "is made anew"
        )


@dataclass(frozen=True)
class Preparer:
    """What clips are prepared with, and where the result is kept."""

    nets: Nets  # its U-Net is not used
    detector: faces.Detector
    cache: Path

    @cached_property
    def nets_digest(self) -> str:
        """Of the weights of the autoencoder and the speech encoder."""
        digest = sha256()
        for net in (self.nets.vae, self.nets.speech):
            _add_weights(digest, net)
        return digest.hexdigest()

    @cached_property
    def settings(self) -> str:
        """Everything but the clip that the files depend on."""
        said = [VERSION, self.nets.config.resolution, self.detector.describe(), self.nets_digest]
        return json.dumps(said)

    def folder(self, file: ClipFile) -> Path:
        """Where what is made of a clip lies."""
        key = sha256(f"{self.settings} {file.digest}".encode()).hexdigest()[:32]
        return self.cache / key[:2] / key

    def clip(self, file: ClipFile) -> CachedClip | str:
        """The clip, prepared now or earlier; or in words why it can't be used.

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
        return facts["unusable"] or CachedClip(
            file, folder, facts["first"], facts["frames"], facts["tokens"], facts["first_token"]
        )

    def _fill(self, folder: Path, file: ClipFile) -> dict[str, Any]:
        """Make the clip's folder, in one move at the end; what it says of the clip."""
        facts = {
            "unusable": "",
            "first": 0,
            "frames": 0,
            "tokens": 0,
            "first_token": 0,
            "files": {},
        }
        with private_folder(self.cache / WORK) as work:
            temporary = work / folder.name
            temporary.mkdir()
            try:
                facts |= self._write(temporary, file.path)
            except (MediaError, NoFaceFound) as error:
                facts["unusable"] = _impersonal(str(error), file.path)
                if _may_pass(error, file.path):
                    return facts
                for one in temporary.iterdir():
                    one.unlink()
            facts["files"] = {one.name: one.stat().st_size for one in temporary.iterdir()}
            (temporary / FACTS).write_text(json.dumps(facts))
            for one in temporary.iterdir():  # on the disk before they have their names
                with one.open("rb+") as written:
                    os.fsync(written.fileno())
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
        """The files of one clip.

        Raises:
            MediaError: it can't be read, or has no sound.
            NoFaceFound: it shows no face.
        """
        sound = AudioReader(path)
        heard = len(sound.samples) * FPS // mel.SAMPLE_RATE
        track = self._track(path, int(heard))
        first, stop = longest_run(track)
        if stop - first < SHORTEST:
            return {"unusable": f"too short: {stop - first} frames with a face, not {SHORTEST}"}
        self._write_latents(folder, path, track, first, stop)
        speech = SpeechStates(self.nets.speech, sound)
        around = _tokens_heard(first, stop, len(speech))
        tokens = np.arange(lowest := int(around.min()), int(around.max()) + 1)
        with _Rows(folder / "speech.npy", (len(tokens), *speech.token_shape)) as rows:
            for part in np.split(tokens, range(BATCH, len(tokens), BATCH)):
                rows.write(speech[part])
        wave = np.concatenate(list(sound.chunks()))
        np.save(folder / "mel.npy", syncnet_mel.sync_mel(wave).float().numpy())
        np.save(folder / "affine.npy", track.affine[first:stop])
        return {
            "first": first,
            "frames": stop - first,
            "tokens": len(speech),
            "first_token": lowest,
        }

    def _write_latents(
        self, folder: Path, path: Path, track: FaceTrack, first: int, stop: int
    ) -> None:
        side, like = self.nets.config.resolution, next(self.nets.vae.parameters())
        shape = (stop - first, *self.nets.vae.latent_shape(side))
        mask = torch.from_numpy(keep_mask(side)).to(like)
        crops = _cut(path, range(first, stop), track.affine[first:stop], side)
        with (
            _Rows(folder / "clean.npy", shape) as clean,
            _Rows(folder / "masked.npy", shape) as masked,
        ):
            while batch := list(islice(crops, BATCH)):
                with torch.inference_mode():
                    pixels = pictures(np.stack(batch)).to(like)
                    latents = sampling.encode(self.nets.vae, pixels, mask)
                clean.write(latents.reference)
                masked.write(latents.masked)

    def _track(self, path: Path, at_most: int) -> FaceTrack:
        frames = islice(VideoReader(path).frames(), at_most)
        seen, side = faces.track(frames, self.detector), self.nets.config.resolution
        track = align.face_track(seen.points, seen.found, side, pixel_aspect=seen.pixel_aspect)
        if not track.found.any():
            raise NoFaceFound(f"no face by {self.detector.describe()}")
        return track


def swept(cache: Path) -> None:
    """Remove what killed runs of an earlier version left, and say what of it is of no use."""
    if not cache.is_dir():
        return
    old = 0
    for path in cache.iterdir():
        made_by = OLD_WORK.fullmatch(path.name)
        if made_by and not process_lives(int(made_by[1])):
            shutil.rmtree(path, ignore_errors=True)
        old += OLD_FOLDER.fullmatch(path.name) is not None
    if old:
        log.warning(
            "%s holds %d clips that an earlier version prepared; delete the folders named by 32 "
            "digits there, nothing reads them any more",
            cache,
            old,
        )


def longest_run(track: FaceTrack) -> tuple[int, int]:
    """First and one past the last frame of the longest stretch with a face in every frame."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], track.found, [0]]).astype(np.int8)))
    starts, stops = edges[::2], edges[1::2]
    longest = int(np.argmax(stops - starts))
    return int(starts[longest]), int(stops[longest])


def _checked(rows: NDArray[Any]) -> NDArray[Any]:
    """The same; ValueError where a row is all zeros, as a machine that goes down may leave it."""
    if not rows.reshape(len(rows), -1).any(axis=1).all():
        raise ValueError("it holds zeros")
    return rows


def _facts(folder: Path) -> dict[str, Any] | None:
    """What is known of a clip; None where that, or a file beside it, is not there or damaged."""
    try:
        place = str(folder)  # a hundred thousand times: no Path
        with open(f"{place}/{FACTS}", "rb") as file:  # noqa: PTH123
            facts = json.loads(file.read())
        sizes = {name: os.stat(f"{place}/{name}").st_size for name in facts["files"]}  # noqa: PTH116
        whole = sizes == facts["files"] and isinstance(facts["unusable"], str)
        numbers = [facts[name] for name in ("first", "frames", "tokens", "first_token")]
        return facts if whole and all(isinstance(one, int) for one in numbers) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _may_pass(error: Exception, path: Path) -> bool:
    """Whether the trouble may be the machine's, and not what is in the clip."""
    try:
        with path.open("rb") as file:
            file.read(1)
    except OSError:
        return True
    return getattr(error.__cause__, "errno", None) in PASSING


def _impersonal(reason: str, path: Path) -> str:
    """A reason that is true of a copy under another name as well."""
    for name in (repr(str(path)), str(path), repr(path.name), path.name):
        reason = reason.replace(name, "it")
    return reason


def _tokens_heard(start: int, stop: int, tokens: int) -> NDArray[np.int64]:
    """(f, 10) the tokens that frames [start, stop) of a clip hear."""
    own = mel.own_tokens(np.arange(start, stop, dtype=np.int64), 1 / FPS)
    return mel.tokens_around(own, tokens)


class _Rows:
    """A .npy file of float16, written row by row; on a full disk it is an error, not a signal.

    Raises:
        OSError: there is too little room, which is known before the first row.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]) -> None:
        self._file = path.open("wb")
        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
        npy.write_array_header_1_0(self._file, header)
        if hasattr(os, "posix_fallocate"):
            try:
                size = self._file.tell() + 2 * math.prod(shape)
                os.posix_fallocate(self._file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a disk without it
                    self._file.close()
                    raise

    def write(self, rows: Tensor) -> None:
        self._file.write(rows.half().cpu().contiguous().numpy().astype("<f2").tobytes())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _cut(path: Path, numbers: Sequence[int], affines: FloatArray, side: int) -> Iterator[Frame]:
    shown = VideoReader(path).frames(numbers)
    for frame, affine in zip(shown, affines, strict=True):
        size = (frame.width, frame.height)
        box = align.face_box(affine, side, *size)
        yield align.cut_face(frame.rgb(box), box, affine, side)


def _add_weights(digest: Any, net: nn.Module) -> None:  # noqa: ANN401 - hashlib's have no type
    for name, value in net.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
