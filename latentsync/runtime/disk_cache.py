"""Cache of a clip's face tracks and latents on disk, for a second voice on the same clip.

Keys are digests of everything that a value depends on: the clip's bytes, the weights and options.
So no value is ever out of date, and processes, models and clips may share a folder.
"""

import hashlib
import io
import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self
from zipfile import BadZipFile

import diskcache
import numpy as np
import torch
from torch import Tensor, nn

from latentsync.errors import OutputError
from latentsync.runtime.files import file_digest
from latentsync.types import FaceTrack, FloatArray, ShotFaces

__all__ = ["Cache", "ClipCache", "LatentCache", "digest", "net_digest"]

log = logging.getLogger(__name__)

FORMAT = 4  # raise it when the values or their encoding change


class _BytesOnly(diskcache.Disk):  # type: ignore[misc]  # it has no types
    """Reads no pickles, which can run code; none are written."""

    def fetch(self, mode: int, filename: str, value: object, read: bool) -> object:
        return (
            None
            if mode == diskcache.core.MODE_PICKLE
            else super().fetch(mode, filename, value, read)
        )


class ClipCache:
    """The cache for one clip, read with given settings."""

    def __init__(self, cache: "Cache", clip: Path, facts: Mapping[str, Any]) -> None:
        self._cache, self._clip = cache, {"clip": file_digest(clip), **facts}

    def tracks(
        self, facts: Mapping[str, Any], make: Callable[[], list[FaceTrack]]
    ) -> list[FaceTrack]:
        """Get the tracks for `facts`; `make` is called if they are not cached."""
        return self._cache.tracks(digest({**self._clip, **facts}), make)

    def latents(self, facts: Mapping[str, Any], affine: FloatArray, like: Tensor) -> "LatentCache":
        """The latents of a face in all frames, for the weights and precision in `facts`."""
        return LatentCache(self._cache, digest({**self._clip, **facts}), affine, like)


class Cache:
    """A folder of about `max_bytes` at most; the values written first are removed first.

    Raises:
        OutputError: the folder can't be used.
    """

    def __init__(self, folder: Path | str, max_bytes: int) -> None:
        self.folder = Path(folder)
        # diskcache opens a connection in each calling thread, and closes only that of the last.
        self._thread = ThreadPoolExecutor(1, "cache")
        try:
            self._disk = self._thread.submit(
                diskcache.Cache,
                str(folder),
                disk=_BytesOnly,
                size_limit=max_bytes,
                eviction_policy="least-recently-stored",
            ).result()
        except (OSError, diskcache.core.sqlite3.Error) as error:
            self._thread.shutdown()
            raise OutputError(
                f"cache folder {folder} can't be used ({error}); give one that may be written"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.submit(self._disk.close).result()
        self._thread.shutdown()

    def tracks(self, key: str, make: Callable[[], list[FaceTrack]]) -> list[FaceTrack]:
        """Get the tracks of a key; `make` is called if they are not cached."""
        found = self.get(f"tracks {key}")
        if found is not None and (known := _decode(found)) is not None:
            log.info("the faces of this clip are known: %s", self.folder)
            return known
        tracks = make()
        self.put(f"tracks {key}", _encode(tracks))
        return tracks

    def get(self, key: str) -> bytes | None:
        """Get a value; None if it is not cached, or can't be read."""
        try:
            value = self._thread.submit(self._disk.get, key, retry=True).result()
        except (OSError, diskcache.core.sqlite3.Error, diskcache.Timeout) as error:
            log.warning("cache folder %s can't be read (%s)", self.folder, error)
            return None
        return value if isinstance(value, bytes) else None

    def put(self, key: str, value: bytes) -> None:
        """Store a value; if that fails, for example on a full disk, only log a warning."""
        try:
            self._thread.submit(self._disk.set, key, value, retry=True).result()
        except (OSError, diskcache.core.sqlite3.Error, diskcache.Timeout) as error:
            log.warning("cache folder %s can't be written (%s)", self.folder, error)


class LatentCache:
    """The masked and the reference latents of a clip's frames, by frame and place of the face.

    Args:
        key: of the clip, the autoencoder and its precision.
        affine: (n, 2, 3), of the face in each source frame.
        like: a tensor with the device and dtype of the latents.
    """

    def __init__(self, cache: Cache, key: str, affine: FloatArray, like: Tensor) -> None:
        self._cache, self._key, self._affine, self._like = cache, key, affine, like

    def get(self, index: int, shape: Sequence[int]) -> Tensor | None:
        """Get a frame's latents, (2, 4, h, w), or None."""
        data = self._cache.get(self._name(index))
        if data is None or len(data) != math.prod(shape) * self._like.dtype.itemsize:
            return None
        flat = torch.frombuffer(bytearray(data), dtype=self._like.dtype)
        return flat.reshape(*shape).to(self._like.device)

    def put(self, index: int, latents: Tensor) -> None:
        raw = latents.detach().cpu().contiguous().flatten().view(torch.uint8)
        self._cache.put(self._name(index), raw.numpy().tobytes())

    def _name(self, index: int) -> str:
        place = hashlib.sha256(self._affine[index].tobytes()).hexdigest()[:16]
        return f"latents {self._key} {index} {place}"


def digest(facts: Mapping[str, Any]) -> str:
    """Make a key from everything that a value depends on."""
    text = json.dumps({**facts, "format": FORMAT}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def net_digest(net: nn.Module) -> str:
    """SHA-256 of a net's weights, in hexadecimal."""
    together = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        together.update(name.encode())
        together.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return together.hexdigest()


def _encode(tracks: list[FaceTrack]) -> bytes:
    arrays: dict[str, np.ndarray] = {}
    for i, track in enumerate(tracks):
        parts = {"affine": track.affine, "found": track.detected, "cut": track.shot_start}
        parts["nose"] = track.nose
        arrays |= {f"{name} {i}": part for name, part in parts.items() if part is not None}
        arrays[f"lost {i}"] = np.array(json.dumps(track.gaps))
        arrays[f"shots {i}"] = np.array(json.dumps([asdict(shot) for shot in track.shots]))
    file = io.BytesIO()
    np.savez_compressed(file, count=np.array(len(tracks)), **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def _decode(data: bytes) -> list[FaceTrack] | None:
    """The tracks, or None if the data is damaged."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return [
                FaceTrack(
                    affine=arrays[f"affine {i}"],
                    detected=arrays[f"found {i}"],
                    shot_start=arrays.get(f"cut {i}"),
                    gaps=tuple((a, b, why) for a, b, why in json.loads(str(arrays[f"lost {i}"]))),
                    nose=arrays.get(f"nose {i}"),
                    shots=tuple(_shot(**facts) for facts in json.loads(str(arrays[f"shots {i}"]))),
                )
                for i in range(int(arrays["count"]))
            ]
    except (ValueError, KeyError, OSError, BadZipFile):
        return None


def _shot(start: int, stop: int, faces: list[list[int]], taken: list[int | None]) -> ShotFaces:
    return ShotFaces(start, stop, tuple((x, y) for x, y in faces), tuple(taken))
