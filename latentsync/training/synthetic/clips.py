"""Talking clips of drawn heads: an mp4 with sound, and beside it the truth of every frame."""

import json
import signal
import tempfile
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.io import wavfile

from latentsync.errors import Cancelled, OptionError, OutputError
from latentsync.media import VideoFrame, VideoWriter
from latentsync.options import MAX_SEED
from latentsync.runtime.files import replacing
from latentsync.runtime.progress import interruptible
from latentsync.training.synthetic.geometry import Pose, crop_view, scene_view
from latentsync.training.synthetic.heads import (
    LANDMARKS,
    alignment_points,
    draw,
    draw_crop,
    landmarks,
    measure,
)
from latentsync.training.synthetic.identity import Identity
from latentsync.training.synthetic.motion import draw_motion
from latentsync.training.synthetic.mouth import Mouth
from latentsync.training.synthetic.speech import (
    LANGUAGES,
    SAMPLE_RATE,
    Speech,
    draw_speech,
    draw_voice,
)
from latentsync.training.synthetic.visemes import mouth_tracks
from latentsync.types import FloatArray, Frame, IntArray, Progress, ProgressCallback

__all__ = [
    "FPS",
    "Crops",
    "Take",
    "draw_crops",
    "draw_take",
    "frames_of",
    "synthesise",
    "truth_of",
    "write_take",
    "write_wave",
]

FPS = 25
_SEEDS_APART = 1_000_000  # identities of two seeds never meet below this many clips
_WINDOW_SHARE = 0.7  # of the alignment's error that stays the same through a window
_stop: Event | None = None  # in a process of `_run`: set when its clip is no longer wanted


@dataclass(frozen=True)
class Take:
    """All that a clip is made of; frames and crops are drawn from it."""

    identity: Identity
    speech: Speech
    poses: Sequence[Pose]  # one a frame
    mouths: FloatArray  # (frames, 5), the columns of visemes.TRACKS
    zoom: float  # size of the head in the frame, 1 is common
    fps: int = FPS

    def __len__(self) -> int:
        return len(self.mouths)


@dataclass(frozen=True)
class Crops:
    """Windows of consecutive frames of one take, as aligned crops."""

    pixels: NDArray[np.uint8]  # (windows, frames, size, size, 3) RGB
    frames: IntArray  # (windows, frames), their numbers in the take
    mouths: FloatArray  # (windows, frames, 3): opening, width, rounding, as `measure` has them
    points: FloatArray  # (windows, frames, 12, 2) px of LANDMARKS


def draw_take(
    seed: int,
    index: int,
    seconds: float,
    *,
    languages: Sequence[str] = LANGUAGES,
    speech: Speech | None = None,
    fps: int = FPS,
) -> Take:
    """Draw person, voice, sentences and movement of clip number `index` of a seed.

    Args:
        speech: said instead, `seconds` of it.
    """
    rng = np.random.default_rng([seed, index])
    identity = Identity.from_seed(seed * _SEEDS_APART + index)
    speech = speech or draw_speech(rng, seconds, draw_voice(rng, languages))
    mouths = mouth_tracks(speech.phonemes, seconds, fps=fps)
    poses = draw_motion(rng, len(mouths), fps=fps, amount=rng.uniform(0.3, 1.1))
    return Take(identity, speech, poses, mouths, float(rng.uniform(0.85, 1.25)), fps)


def draw_crops(
    take: Take, rng: np.random.Generator, *, windows: int, frames: int, size: int, jitter: float
) -> Crops:
    """Draw `windows` stretches of `frames` frames out of the take, each at a place by chance.

    Args:
        jitter: standard deviation of the alignment's error, for each anchor and axis, as a share of
            the distance between the brows. Most of it is the same through a window, as the errors
            of a detector are.
    """
    starts = np.sort(rng.integers(0, len(take) - frames + 1, windows))
    numbers = starts[:, None] + np.arange(frames)
    same = rng.normal(0, jitter * _WINDOW_SHARE, (windows, 1, 3, 2))
    own = rng.normal(0, jitter * np.sqrt(1 - _WINDOW_SHARE**2) * 0.3, (windows, frames, 3, 2))
    pixels = np.empty((windows, frames, size, size, 3), np.uint8)
    points = np.empty((windows, frames, len(LANDMARKS), 2), np.float32)
    mouths = np.empty((windows, frames, 3), np.float32)
    for place in np.ndindex(windows, frames):
        number = int(numbers[place])
        pose, mouth = take.poses[number], Mouth.from_track(take.mouths[number])
        anchors = alignment_points(take.identity, pose)
        brows_apart = float(np.linalg.norm(anchors[1] - anchors[0]))
        view = crop_view(anchors + (same + own)[place] * brows_apart, size)
        pixels[place], points[place] = draw_crop(take.identity, pose, mouth, size, view)
        mouths[place] = measure(take.identity, mouth)
    return Crops(pixels, numbers, mouths, points)


def truth_of(take: Take, size: tuple[int, int]) -> Iterator[dict[str, object]]:
    """What is true of each frame, for JSON, without drawing it; `size` is (width, height)."""
    view = scene_view(*size, take.zoom)
    heard: defaultdict[int, list[tuple[float, str]]] = defaultdict(list)
    for phoneme in take.speech.phonemes:
        begin = round(phoneme.start_seconds, 5), phoneme.name
        heard[int(phoneme.start_seconds * take.fps)].append(begin)
    for index, (pose, row) in enumerate(zip(take.poses, take.mouths, strict=True)):
        mouth = Mouth.from_track(row)
        points = landmarks(take.identity, pose, mouth, view)
        measures = zip(("opening", "width", "rounding"), measure(take.identity, mouth), strict=True)
        yield {
            "frame": index,
            "seconds": index / take.fps,
            **{name: round(value, 5) for name, value in measures},
            "phonemes": heard[index],
            "mouth": {name: round(value, 5) for name, value in asdict(mouth).items()},
            "pose": {name: round(value, 5) for name, value in asdict(pose).items()},
            "landmarks": dict(zip(LANDMARKS, points.astype(float).round(2).tolist(), strict=True)),
        }


def frames_of(take: Take, size: tuple[int, int]) -> Iterator[Frame]:
    """Draw each frame, (height, width, 3) RGB; `size` is (width, height)."""
    for pose, row in zip(take.poses, take.mouths, strict=True):
        yield draw(take.identity, pose, Mouth.from_track(row), size, zoom=take.zoom)[0]


def write_wave(path: Path, speech: Speech) -> None:
    """Write 16-bit mono at espeak-ng's rate."""
    wavfile.write(path, SAMPLE_RATE, speech.wave)


def write_take(
    take: Take,
    path: Path,
    size: tuple[int, int],
    *,
    crf: int = 17,
    stopped: Callable[[], bool] | None = None,
) -> Path:
    """Write `path` (mp4) and `<name>.truth.jsonl` beside it, one line a frame; return the latter.

    If anything fails, either both are there and whole or neither is, and never the truth alone.

    Raises:
        Cancelled: `stopped`, asked between frames, returned true.
        OutputError: they can't be written.
    """
    truth = path.with_suffix(".truth.jsonl")
    with replacing(truth) as waiting, tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, "speech.wav")
        write_wave(sound, take.speech)
        with VideoWriter(path, audio=sound, fps=Fraction(take.fps), crf=crf) as video:
            waiting.write_text(_lines(take, size), encoding="utf-8")
            for frame in frames_of(take, size):
                if stopped is not None and stopped():
                    raise Cancelled(f"stopped at frame {video.frames} of {path.name}")
                video.write(VideoFrame.from_rgb(frame))
            truth.unlink(missing_ok=True)  # an older clip's, which is replaced now
    return truth


def _lines(take: Take, size: tuple[int, int]) -> str:
    return "".join(json.dumps(line) + "\n" for line in truth_of(take, size))


def synthesise(
    out_dir: Path | str,
    *,
    identities: int = 200,
    seconds: float = 20.0,
    seed: int = 1,
    size: tuple[int, int] = (512, 512),
    languages: Sequence[str] = LANGUAGES,
    workers: int = 1,
    progress: ProgressCallback | None = None,
    cancel: Callable[[], bool] | None = None,
) -> list[Path]:
    """Draw one clip of each of `identities` people, `<seed>_<number>.mp4`, with its truth.

    A clip that is there already, finished and of the same choices, is not drawn again.

    Args:
        size: (width, height).
        workers: processes that draw side by side; they change nothing in the result.

    Raises:
        OptionError: a count, duration, seed, size or language out of range.
        OutputError: `out_dir` can't be made, or written into.
        BackendUnavailable: there is no espeak-ng.
        Cancelled: `cancel`, asked between clips, returned true. As after every error or interrupt,
            only finished clips stay.
    """
    _check(identities, seconds, seed, size, languages, workers)
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make the folder {folder} ({error}); give another") from error
    make = partial(_make, folder, seconds, seed, size, languages)
    paths: list[Path] = []
    report = progress or (lambda _: None)
    report(Progress("draw", 0, identities))
    with closing(_run(make, identities, workers)) as finished:
        for path in finished:
            paths.append(path)
            report(Progress("draw", len(paths), identities))
            if cancel is not None and cancel() and len(paths) < identities:
                raise Cancelled(
                    f"stopped after {len(paths)} of {identities} clips, which were kept"
                )
    return sorted(paths)


def _check(
    identities: int,
    seconds: float,
    seed: int,
    size: tuple[int, int],
    languages: Sequence[str],
    workers: int,
) -> None:
    spoken = len(languages) > 0 and set(languages) <= set(LANGUAGES)
    named = ", ".join(languages) or "none"
    in_size = min(size) >= 64 and max(size) <= 4096
    for good, got, wanted in (
        (identities >= 1, f"{identities} identities", "1 or more"),
        (0.2 <= seconds <= 3600, f"{seconds} seconds", "0.2 to 3600"),
        (0 <= seed <= MAX_SEED, f"seed {seed}", f"0 to {MAX_SEED}"),
        (in_size, f"a size of {size[0]} x {size[1]}", "both sides from 64 to 4096 px"),
        (workers >= 1, f"{workers} workers", "1 or more"),
        (spoken, f"languages {named}", f"some of {', '.join(LANGUAGES)}"),
    ):
        if not good:
            raise OptionError(f"got {got}; wanted {wanted}")


def _run(make: Callable[[int], Path], count: int, workers: int) -> Generator[Path, None, None]:
    if workers == 1:
        yield from map(make, range(count))
        return
    context = get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(
        min(workers, count), mp_context=context, initializer=_start_worker, initargs=(stop,)
    ) as pool:
        try:
            # Ctrl-C reaches every process. Workers inherit the block: they could only print a
            # traceback, and when one dies, the pool kills the others with files half-written.
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                jobs = [pool.submit(make, index) for index in range(count)]
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            for job in as_completed(jobs):
                yield job.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop


def _make(
    folder: Path,
    seconds: float,
    seed: int,
    size: tuple[int, int],
    languages: Sequence[str],
    index: int,
) -> Path:
    cv2.setNumThreads(1)  # clips are drawn in parallel
    path = folder / f"{seed:03d}_{index:05d}.mp4"
    # In a thread of its own, which Ctrl-C never reaches: espeak-ng calls back into Python, where a
    # KeyboardInterrupt would be lost.
    take = interruptible(lambda _stop: draw_take(seed, index, seconds, languages=languages))
    if not _is_written(take, path, size):
        write_take(take, path, size, stopped=None if _stop is None else _stop.is_set)
    return path


def _is_written(take: Take, path: Path, size: tuple[int, int]) -> bool:
    """Whether `path` holds this take: the truth is written last, and depends on every choice."""
    try:
        if path.stat().st_size == 0:
            return False
        truth = path.with_suffix(".truth.jsonl").read_bytes()
        return truth == _lines(take, size).encode()
    except OSError:
        return False
