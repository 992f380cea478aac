"""Talking clips of drawn heads: an mp4 with sound, and beside it the truth of every frame."""

import json
import signal
import tempfile
import wave
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

from latentsync.errors import Cancelled, OptionError, OutputError
from latentsync.media import VideoFrame, VideoWriter
from latentsync.options import MAX_SEED
from latentsync.runtime.progress import interruptible
from latentsync.training.synthetic.geometry import Pose, scene_view
from latentsync.training.synthetic.heads import LANDMARKS, draw, landmarks, measure
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
from latentsync.types import FloatArray, Frame, Progress, ProgressCallback

__all__ = [
    "FPS",
    "Take",
    "draw_take",
    "frames_of",
    "synthesise",
    "truth_of",
    "write_take",
    "write_wave",
]

FPS = 25
_stop: Event | None = None  # in a process of `_run`: set when its clip is no longer wanted
_SEEDS_APART = 1_000_000  # identities of two seeds never meet below this many clips


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


def draw_take(
    seed: int,
    index: int,
    seconds: float,
    *,
    languages: Sequence[str] = LANGUAGES,
    motion: float = 1.0,
    fps: int = FPS,
) -> Take:
    """Clip number `index` of a seed: person, voice, sentences and movement, all by chance."""
    rng = np.random.default_rng([seed, index])
    identity = Identity.from_seed(seed * _SEEDS_APART + index)
    speech = draw_speech(rng, seconds, draw_voice(rng, languages))
    mouths = mouth_tracks(speech.phonemes, seconds, fps=fps)
    poses = draw_motion(rng, len(mouths), fps=fps, amount=motion * rng.uniform(0.3, 1.1))
    return Take(identity, speech, poses, mouths, float(rng.uniform(0.85, 1.25)), fps)


def truth_of(take: Take, size: tuple[int, int]) -> Iterator[dict[str, object]]:
    """What is true of each frame, for JSON, without drawing it; `size` is (width, height)."""
    view = scene_view(*size, take.zoom)
    for index, (pose, row) in enumerate(zip(take.poses, take.mouths, strict=True)):
        mouth = Mouth.from_track(row)
        points = landmarks(take.identity, pose, mouth, view)
        opening, width, rounding = measure(take.identity, mouth)
        yield {
            "frame": index,
            "seconds": index / take.fps,
            "opening": round(opening, 5),
            "width": round(width, 5),
            "rounding": round(rounding, 5),
            "mouth": {name: round(value, 5) for name, value in asdict(mouth).items()},
            "pose": {name: round(value, 5) for name, value in asdict(pose).items()},
            "landmarks": dict(zip(LANDMARKS, points.astype(float).round(2).tolist(), strict=True)),
        }


def frames_of(take: Take, size: tuple[int, int]) -> Iterator[tuple[Frame, dict[str, object]]]:
    """Each frame (height, width, 3) RGB and its truth, for JSON; `size` is (width, height)."""
    for pose, row, truth in zip(take.poses, take.mouths, truth_of(take, size), strict=True):
        mouth = Mouth.from_track(row)
        yield draw(take.identity, pose, mouth, size, zoom=take.zoom)[0], truth


def write_wave(path: Path, speech: Speech) -> None:
    """16-bit mono at espeak-ng's rate."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(speech.wave.astype("<i2").tobytes())


def write_take(
    take: Take,
    path: Path,
    size: tuple[int, int],
    *,
    crf: int = 17,
    stopped: Callable[[], bool] | None = None,
) -> Path:
    """`path` (mp4) and `<name>.truth.jsonl` beside it, one line a frame; returns the latter.

    Whatever goes wrong, both stand there finished or not at all, and never the truth alone.
    Raises Cancelled when `stopped` says so between frames, OutputError when they can't be written.
    """
    truth_path = _truth_path(path)
    waiting = truth_path.with_name(f".{truth_path.name}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            sound = Path(folder, "speech.wav")
            write_wave(sound, take.speech)
            with VideoWriter(path, audio=sound, fps=Fraction(take.fps), crf=crf) as video:
                waiting.write_text(_lines(truth_of(take, size)), encoding="utf-8")
                for frame, _ in frames_of(take, size):
                    if stopped is not None and stopped():
                        raise Cancelled(f"stopped at frame {video.frames} of {path.name}")
                    video.write(VideoFrame.from_rgb(frame))
                truth_path.unlink(missing_ok=True)  # an older clip's, which is replaced now
        waiting.replace(truth_path)
    except OSError as error:
        raise OutputError(
            f"{path} and its truth can't be written ({error}); check space and permissions"
        ) from error
    finally:
        waiting.unlink(missing_ok=True)
    return truth_path


def _truth_path(path: Path) -> Path:
    return path.with_suffix(".truth.jsonl")


def _lines(truth: Iterator[dict[str, object]]) -> str:
    return "".join(json.dumps(line) + "\n" for line in truth)


def _is_written(take: Take, path: Path, size: tuple[int, int]) -> bool:
    """Whether `path` is this very take: its truth comes last, and holds all that was chosen."""
    try:
        if path.stat().st_size == 0:
            return False
        return _truth_path(path).read_bytes() == _lines(truth_of(take, size)).encode()
    except OSError:
        return False


def _make(
    index: int,
    out_dir: Path,
    seconds: float,
    seed: int,
    size: tuple[int, int],
    languages: Sequence[str],
) -> Path:
    cv2.setNumThreads(1)  # the clips are what runs side by side
    path = out_dir / f"{seed:03d}_{index:05d}.mp4"
    # In a thread of its own, where Ctrl-C never arrives: espeak-ng calls back into Python, and an
    # interrupt raised in there would be lost.
    take = interruptible(lambda _stop: draw_take(seed, index, seconds, languages=languages))
    if not _is_written(take, path, size):
        write_take(take, path, size, stopped=None if _stop is None else _stop.is_set)
    return path


def _start_worker(stop: Event) -> None:
    global _stop
    _stop = stop


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
    """One clip of each of `identities` drawn people, `<seed>_<number>.mp4` with its truth.

    `size` is (width, height); `workers` processes draw side by side and change nothing in the
    result. A clip that stands there finished, of the same choices, is not drawn again.

    Raises:
        OptionError: a count, duration, seed, size or language out of range.
        OutputError: `out_dir` can't be made, or written into.
        BackendUnavailable: there is no espeak-ng.
        Cancelled: `cancel`, asked between clips, said so; as after every error or interrupt,
            finished clips stay and nothing else does.
    """
    _check(identities, seconds, seed, size, languages, workers)
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make the folder {folder} ({error}); give another") from error
    make = partial(
        _make, out_dir=folder, seconds=seconds, seed=seed, size=size, languages=languages
    )
    paths: list[Path] = []
    report = progress or (lambda _: None)
    report(Progress("draw", 0, identities))
    with closing(_run(make, identities, workers)) as finished:
        for path in finished:
            paths.append(path)
            report(Progress("draw", len(paths), identities))
            if cancel is not None and cancel() and len(paths) < identities:
                kept = f"{len(paths)} of {identities} clips, which were kept"
                raise Cancelled(f"stopped after {kept}")
    return sorted(paths)


def _check(
    identities: int,
    seconds: float,
    seed: int,
    size: tuple[int, int],
    languages: Sequence[str],
    workers: int,
) -> None:
    wanted = {
        f"{identities} identities": (identities >= 1, "1 or more"),
        f"{seconds} seconds": (0.2 <= seconds <= 3600, "0.2 to 3600"),
        f"seed {seed}": (0 <= seed <= MAX_SEED, f"0 to {MAX_SEED}"),
        f"a size of {size[0]} x {size[1]}": (
            min(size) >= 64 and max(size) <= 4096,
            "both sides from 64 to 4096 px",
        ),
        f"{workers} workers": (workers >= 1, "1 or more"),
        f"languages {', '.join(languages) or 'none'}": (
            bool(languages) and set(languages) <= set(LANGUAGES),
            f"some of {', '.join(LANGUAGES)}",
        ),
    }
    for got, (good, want) in wanted.items():
        if not good:
            raise OptionError(f"got {got}; wanted {want}")


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
            # Ctrl-C reaches every process. Workers inherit the block: a traceback would be all they
            # have to say, and one that dies has the pool kill the others with files half-written.
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
