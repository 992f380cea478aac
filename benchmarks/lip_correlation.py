"""Does the mouth do what the voice says? Whole runs of a model on drawn clips, against the truth.

    python benchmarks/lip_correlation.py --clips 20 --seed 1000 --model demo --sheet out/sheet.png

For each clip a person is drawn who says A (the source, mp4), another voice says B (wav), and the
truth is drawn too: the same person and movement with the mouth of B. The product makes an mp4 of
source and voice; evaluation/mouth_net.py measures the mouth in it, where the
source has the face, and its opening is correlated with B's. Figures on each clip's line:

    r, lag      correlation as it stands; the lag in frames at which it is highest (+: mouth late)
    amplitude   standard deviation of the mouth's opening over the truth's
    psnr, ssim  of the mouth's region, against the truth clip
    flicker     of what should stand still, over the truth clip's
    mouth_net   what it makes of the truth clip itself: no model can do better than that
    source      correlation with the source's own mouth: the old mouth shines through if it is high
    leak        share of frames without speech in which the mouth is open; of the output / the truth
    closure     share of p, b and m at which the lips close; the same, and for the source's mouth

`wrong` on the last line is the mean correlation with other clips' voices, without the silence in
which all begin. Seeds from 100 on are free: training draws its people from those below. Needs
espeak-ng, extra [train].
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

import latentsync
from latentsync.audio.vad import detect_speech
from latentsync.errors import LatentSyncError
from latentsync.evaluation import image_quality, lip_correlation, mouth_net
from latentsync.evaluation.lip_closure import closed_share, leak_share, read_closures
from latentsync.media import AudioReader, VideoReader
from latentsync.training.synthetic import (
    Mouth,
    draw_speech,
    draw_take,
    draw_voice,
    measure,
    mouth_tracks,
)
from latentsync.training.synthetic.clips import write_take, write_wave
from latentsync.training.synthetic.speech import LANGUAGES
from latentsync.types import FloatArray, Frame

FIRST_SEED = 100  # training uses 1 to 99
HELD_OUT = "tr"  # no training clip speaks it
TRAINED = tuple(language for language in LANGUAGES if language != HELD_OUT)
SHEET_CLIPS = 4
SHEET_WIDTH = 2000  # px


@dataclass(frozen=True)
class Case:
    """One drawn task and its truth."""

    source: Path  # mp4: a person says A
    voice: Path  # wav: somebody else says B
    truth: Path  # mp4: the person says B, moving as in `source`
    opening_source: FloatArray  # (frames,) of A, eye distances
    opening: FloatArray  # (frames,) of B
    fps: Fraction = Fraction(25)  # of the clips


class Shut(NamedTuple):
    """How well a mouth is shut; None where B is never silent, or says no p, b or m."""

    leak: float | None
    closure: float | None

    def __str__(self) -> str:
        return "/".join("-" if share is None else f"{share:.2f}" for share in self)


@dataclass(frozen=True)
class Score:
    """What came out for one clip."""

    measured: FloatArray  # (frames,) opening in the output, eye distances
    opening: FloatArray  # (frames,) what B asks for
    lips: lip_correlation.LipCorrelation
    amplitude: float
    psnr: float  # dB
    ssim: float
    flicker: float
    mouth_net: float
    source: float
    shut: dict[str, Shut]  # of the output, the truth and the source, against B
    frames: int  # in the output
    seconds: float  # that the run took
    rows: list[list[Frame]]  # before, after, truth, for a sheet

    def line(self) -> str:
        return (
            f"r={self.lips.at_zero:.3f} lag={self.lips.best_lag:+d} ({self.lips.best:.3f}) "
            f"amplitude={self.amplitude:.2f} psnr={self.psnr:.2f} ssim={self.ssim:.3f} "
            f"flicker={self.flicker:.2f} mouth_net={self.mouth_net:.3f} source={self.source:.3f} "
            f"leak/closure={self.shut['output']} (truth {self.shut['truth']}) "
            f"({self.frames / self.seconds:.1f} frames/s)"
        )


def draw_case(
    seed: int,
    index: int,
    folder: Path,
    *,
    seconds: float,
    size: int,
    languages: tuple[str, ...],
    fps: int = 25,
) -> Case:
    """Draw clip `index` of a seed into `folder`."""
    take = draw_take(seed, index, seconds, languages=languages, fps=fps)
    rng = np.random.default_rng([seed, index, 1])  # draw_take's own is [seed, index]
    speech = draw_speech(rng, seconds, draw_voice(rng, languages))
    mouths = mouth_tracks(speech.phonemes, seconds, fps=take.fps)
    source, voice, truth = (
        folder / f"{seed}_{index:02d}_{name}" for name in ("source.mp4", "voice.wav", "truth.mp4")
    )
    write_take(take, source, (size, size))
    write_wave(voice, speech)
    write_take(replace(take, speech=speech, mouths=mouths), truth, (size, size))
    a, b = (
        np.array([measure(take.identity, Mouth.from_track(row))[0] for row in tracks], np.float32)
        for tracks in (take.mouths, mouths)
    )
    return Case(source, voice, truth, a, b, Fraction(fps))


def judge(
    model: latentsync.LipSync, reader: mouth_net.MouthNet, case: Case, options: latentsync.Options
) -> Score:
    """Run the product on a case and measure what it made."""
    output = case.source.with_name(case.source.name.replace("source", "output"))
    start = time.perf_counter()
    result = model.run(case.source, case.voice, output, options=options)
    seconds = time.perf_counter() - start
    track = mouth_net.find_track(case.source, model.detector, fps=case.fps)
    paths = (case.source, output, case.truth)
    before, after, truth = (
        np.stack(list(mouth_net.aligned_crops(path, track, fps=case.fps))) for path in paths
    )
    frames = min(len(before), len(after), len(truth))
    before, after, truth = before[:frames], after[:frames], truth[:frames]
    opening, old = case.opening[:frames], case.opening_source[:frames]
    openings = {
        name: reader.measure(crops)[:, 0]
        for name, crops in (("output", after), ("truth", truth), ("source", before))
    }
    measured = openings["output"]
    activity = detect_speech(AudioReader(case.voice))
    speaks = activity.at(np.arange(frames), 1 / case.fps)
    seconds_shown, closures = np.arange(frames) / float(case.fps), read_closures(case.truth)
    mouth = image_quality.mouth_box(mouth_net.CROP)
    stacks = zip(paths, (before, after, truth), strict=True)
    return Score(
        measured=measured,
        opening=opening,
        lips=lip_correlation.lip_correlation(measured, opening),
        amplitude=lip_correlation.amplitude_ratio(measured, opening),
        psnr=image_quality.psnr(after, truth, mouth),
        ssim=image_quality.ssim(after, truth, mouth),
        flicker=image_quality.flicker(after, truth),
        mouth_net=lip_correlation.lip_correlation(openings["truth"], opening).at_zero,
        source=lip_correlation.lip_correlation(measured, old).at_zero,
        shut={
            name: Shut(leak_share(one, speaks), closed_share(one, seconds_shown, closures))
            for name, one in openings.items()
        },
        frames=result.frames,
        seconds=seconds,
        rows=[_row(path, crops, case.fps) for path, crops in stacks],
    )


def _row(clip: Path, crops: NDArray[np.uint8], fps: Fraction) -> list[Frame]:
    """A whole frame, three mouths, and the same again: moments spread over the clip."""
    moments = np.linspace(0, len(crops) - 1, 8).round().astype(int)[1:-1].tolist()
    whole = [frame.rgb() for frame in VideoReader(clip, fps=fps).frames(moments[::3])]
    mouths = [image_quality.mouth_picture(crops[i]) for i in moments]
    return [whole[0], *mouths[:3], whole[1], *mouths[3:]]


def summary(scores: list[Score], seed: int) -> list[str]:
    """The lines below the clips' own."""
    found = lip_correlation.summarise(
        [s.measured for s in scores], [s.opening for s in scores], seed
    )
    shut = [
        f"{name} {_mean(s.shut[name].leak for s in scores)}, "
        f"{_mean(s.shut[name].closure for s in scores)}"
        for name in ("output", "truth", "source")
    ]
    in_time = sum(abs(s.lips.best_lag) <= 1 for s in scores)
    speed = sum(s.frames for s in scores) / sum(s.seconds for s in scores)
    return [
        f"in time: the best lag is within a frame of 0 in {in_time} of {len(scores)} clips",
        f"flicker: median {np.median([s.flicker for s in scores]):.2f} of the truth's own",
        f"ssim of the mouth: mean {np.mean([s.ssim for s in scores]):.3f}",
        f"leak, closure: {'; '.join(shut)}",
        f"speed: {speed:.1f} frames per second",
        f"mean={found.mean:.3f} worst={found.worst:.3f} pooled={found.pooled:.3f} "
        f"wrong={found.wrong:.3f} amplitude={found.amplitude:.3f} "
        f"mouth_psnr={np.mean([s.psnr for s in scores]):.2f} "
        f"mouth_net={np.mean([s.mouth_net for s in scores]):.3f}",
    ]


def _mean(shares: Iterable[float | None]) -> str:
    """The mean over the clips that have one, and their number."""
    known = [share for share in shares if share is not None]
    return f"{np.mean(known):.3f} ({len(known)})" if known else "-"


def write_sheet(path: Path, scores: list[Score]) -> None:
    shown = scores[:SHEET_CLIPS]
    rows = [row for score in shown for row in score.rows]
    sheet = image_quality.sheet(rows, ["before", "after", "truth"] * len(shown), SHEET_WIDTH)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), sheet[..., ::-1])


@contextmanager
def workplace(out: Path | None) -> Iterator[Path]:
    """The folder asked for, or one that goes away."""
    if out is None:
        with tempfile.TemporaryDirectory(prefix="lip-correlation-") as folder:
            yield Path(folder)
    else:
        out.mkdir(parents=True, exist_ok=True)
        yield out


def parser_of(
    text: str | None, *, clips: int, seconds: float, seed: int | None = None
) -> argparse.ArgumentParser:
    """Of a benchmark on drawn people: which they are. Without a default seed one is required."""
    parser = argparse.ArgumentParser(
        description=text, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    more = f"{FIRST_SEED} or more"
    parser.add_argument("--clips", type=int, default=clips)
    parser.add_argument("--seconds", type=float, default=seconds, help="of each clip")
    parser.add_argument("--seed", type=_unseen, default=seed, required=seed is None, help=more)
    return parser


def _unseen(text: str) -> int:
    seed = int(text)
    if seed < FIRST_SEED:
        raise argparse.ArgumentTypeError(
            f"got seed {seed}; seeds below {FIRST_SEED} are training's own, and a model is not "
            f"judged by people it knows: give {FIRST_SEED} or more"
        )
    return seed


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__, clips=20, seconds=4.0)
    parser.add_argument("--model", default="demo", help="a preset, or a folder training wrote")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=1.0)
    parser.add_argument("--language", choices=LANGUAGES, help="default: all but " + HELD_OUT)
    parser.add_argument("--size", type=int, default=512, help="px, both sides of a clip")
    parser.add_argument(
        "--fps", type=int, default=25, help="of the drawn clips; other than 25: Options.fps source"
    )
    parser.add_argument("--out", type=Path, help="keep the clips in this folder")
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the first clips (png)")
    options = parser.parse_args()
    if options.clips < 1 or options.seconds < 0.4:
        parser.error("got no clip, or clips shorter than 0.4 s; give more")
    if options.sheet and options.sheet.suffix != ".png":
        parser.error(f"got {options.sheet} for the sheet; it must be a .png")
    return options


def main() -> int:
    asked = arguments()
    try:
        options = latentsync.Options(
            steps=asked.steps,
            guidance_scale=asked.guidance_scale,
            seed=asked.seed,
            fps="25" if asked.fps == 25 else "source",
        )
        model, reader = latentsync.load(asked.model), mouth_net.MouthNet.load()
    except LatentSyncError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    languages = (asked.language,) if asked.language else TRAINED
    scores: list[Score] = []
    failed: list[int] = []
    with workplace(asked.out) as folder:
        for index in range(asked.clips):
            try:
                case = draw_case(
                    asked.seed,
                    index,
                    folder,
                    seconds=asked.seconds,
                    size=asked.size,
                    languages=languages,
                    fps=asked.fps,
                )
                scores.append(judge(model, reader, case, options))
                print(f"clip {index:2d}: {scores[-1].line()}", flush=True)
            except Exception as error:  # noqa: BLE001 - the other clips still count
                failed.append(index)
                print(f"clip {index:2d}: failed: {type(error).__name__}: {error}", flush=True)
    if asked.sheet and scores:
        write_sheet(asked.sheet, scores)
        print(f"sheet: {asked.sheet}")
    if failed:
        print(f"failed: {len(failed)} of {asked.clips} clips, number {', '.join(map(str, failed))}")
    if scores:
        print("\n".join(summary(scores, asked.seed)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
