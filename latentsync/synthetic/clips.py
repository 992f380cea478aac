"""Talking clips of drawn heads: an mp4 with sound, and beside it the truth of every frame."""

import json
import tempfile
import wave
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np

from latentsync.errors import Cancelled, OptionError, OutputError
from latentsync.media import VideoFrame, VideoWriter
from latentsync.synthetic.geometry import Pose
from latentsync.synthetic.heads import LANDMARKS, draw, measure
from latentsync.synthetic.identity import Identity
from latentsync.synthetic.motion import draw_motion
from latentsync.synthetic.mouth import Mouth
from latentsync.synthetic.speech import LANGUAGES, SAMPLE_RATE, Speech, draw_speech, draw_voice
from latentsync.synthetic.visemes import mouth_tracks
from latentsync.types import FloatArray, Frame, Progress, ProgressCallback

__all__ = ["FPS", "Take", "draw_take", "frames_of", "synthesise", "write_take", "write_wave"]

FPS = 25
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


def frames_of(take: Take, size: tuple[int, int]) -> Iterator[tuple[Frame, dict[str, object]]]:
    """Each frame (height, width, 3) RGB and its truth, for JSON; `size` is (width, height)"""
    for index, (pose, row) in enumerate(zip(take.poses, take.mouths, strict=True)):
        mouth = Mouth.from_track(row)
        frame, points = draw(take.identity, pose, mouth, size, zoom=take.zoom)
        opening, width, rounding = measure(take.identity, mouth)
        truth: dict[str, object] = {
            "frame": index,
            "seconds": index / take.fps,
            "opening": round(opening, 5),
            "width": round(width, 5),
            "rounding": round(rounding, 5),
            "mouth": {name: round(value, 5) for name, value in asdict(mouth).items()},
            "pose": {name: round(value, 5) for name, value in asdict(pose).items()},
            "landmarks": dict(zip(LANDMARKS, points.astype(float).round(2).tolist(), strict=True)),
        }
        yield frame, truth


def write_wave(path: Path, speech: Speech) -> None:
    """16-bit mono at espeak-ng's rate."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes(speech.wave.astype("<i2").tobytes())


def write_take(take: Take, path: Path, size: tuple[int, int], *, crf: int = 17) -> Path:
    """`path` (mp4) and `<name>.truth.jsonl` beside it, one line a frame; returns the latter."""
    truth_path = path.with_suffix(".truth.jsonl")
    with tempfile.TemporaryDirectory() as folder:
        sound = Path(folder, "speech.wav")
        write_wave(sound, take.speech)
        with (
            VideoWriter(path, audio=sound, fps=Fraction(take.fps), crf=crf) as video,
            truth_path.open("w", encoding="utf-8") as truths,
        ):
            for frame, truth in frames_of(take, size):
                video.write(VideoFrame.from_rgb(frame))
                truths.write(json.dumps(truth) + "\n")
    return truth_path


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
    write_take(draw_take(seed, index, seconds, languages=languages), path, size)
    return path


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
    result. Raises OptionError for a count, duration or size out of range, OutputError when
    `out_dir` can't be made, BackendUnavailable without espeak-ng, Cancelled between clips.
    """
    if identities < 1 or workers < 1 or not 0.2 <= seconds <= 3600 or min(size) < 64:
        raise OptionError(
            f"got {identities} identities of {seconds} s at {size[0]} x {size[1]} by {workers}"
            " workers; wanted at least 1 of 0.2 to 3600 s, both sides 64 px or more, 1 worker"
        )
    folder = Path(out_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"can't make the folder {folder} ({error}); give another") from error
    make = partial(
        _make, out_dir=folder, seconds=seconds, seed=seed, size=size, languages=languages
    )
    paths: list[Path] = []
    for path in _run(make, identities, workers):
        paths.append(path)
        if progress is not None:
            progress(Progress("draw", len(paths), identities))
        if cancel is not None and cancel() and len(paths) < identities:
            raise Cancelled(f"stopped after {len(paths)} of {identities} clips, which were kept")
    return sorted(paths)


def _run(make: Callable[[int], Path], count: int, workers: int) -> Iterator[Path]:
    if workers == 1:
        yield from map(make, range(count))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(make, index) for index in range(count)]
        try:
            for job in as_completed(jobs):
                yield job.result()
        finally:
            pool.shutdown(cancel_futures=True)
