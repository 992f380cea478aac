"""Check of a model's weights on this machine: files, strict load, one run.

It prints one table, which also fits into a bug report.
"""

import math
import platform
import resource
import sys
import tempfile
import time
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import latentsync
from latentsync.audio.mel import SAMPLE_RATE
from latentsync.errors import InputError, OptionError, WeightsMismatch, option_name
from latentsync.evaluation.nets.eval_syncnet import EvalSyncNet
from latentsync.evaluation.nets.loading import load_net
from latentsync.evaluation.sync import sync_conf_local
from latentsync.faces import align
from latentsync.media import AudioReader, VideoReader
from latentsync.options import Effort, Options
from latentsync.pipeline.frame_source import FPS, FrameSource
from latentsync.pipeline.lipsync import LipSync
from latentsync.runtime.checkpoints import root
from latentsync.runtime.downloads import SETS, Download
from latentsync.runtime.files import file_digest
from latentsync.types import FaceTrack, Result

__all__ = ["Check", "verify"]

SEED = Options.published().seed
LEAST_PSNR = 40.0  # dB outside the face; one encode at crf 17 leaves more
EVAL_SYNCNET = "auxiliary/syncnet_v2.model"
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@dataclass(frozen=True)
class Check:
    """One line of the table. `good` is None if there was nothing to judge."""

    what: str
    found: str
    good: bool | None = None


def verify(
    model: str,
    clip: Path | None = None,
    voice: Path | None = None,
    *,
    weights: Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    detector: str | None = None,
    steps: int = Effort.steps,
    seconds: float = 4.0,
) -> Iterator[Check]:
    """Check a model's files, load it, run it on the first `seconds` of a voice.

    Raises:
        OptionError: `steps` or `seconds` is out of its range.
        LatentSyncError: from loading and running; the checks before it have been yielded.
    """
    if not 1 / FPS <= seconds < math.inf:
        raise OptionError(
            f"{option_name('seconds')} is {seconds:g}; it must be 0.04 or more, and finite"
        )
    options = Options(steps=steps, seed=SEED)
    yield Check("latentsync", version(latentsync.__name__))
    yield Check("python, torch, machine", f"{sys.version.split()[0]}, {torch.__version__}, "
                f"{platform.machine()}")  # fmt: skip
    for item in SETS.get(model, ()):
        yield _file(item, root(weights) / item.target, model)
    start = time.perf_counter()
    lipsync = LipSync.load(model, weights=weights, device=device, dtype=dtype, detector=detector)
    yield Check("strict load", f"{time.perf_counter() - start:.1f} s", good=True)
    yield from _nets(lipsync)
    with tempfile.TemporaryDirectory(prefix="latentsync-verify-") as folder:
        spoken = _beginning(voice or EXAMPLES / "speech.wav", seconds, Path(folder) / "voice.wav")
        source = clip or EXAMPLES / "face.mp4"
        output = Path(folder) / "out.mp4"
        result = lipsync.run(source, spoken, output, options=options)
        yield Check("run", f"{result.frames} frames at seed {SEED}, finite", good=True)
        yield Check("face found", f"{result.faces_found} of {result.source_frames} source frames")
        yield Check("picture", _fingerprint(output))
        yield _outside(lipsync, source, output, result)
        yield from _cost(lipsync, result)  # before another net takes memory
        yield _sync(lipsync, output, result, root(weights) / EVAL_SYNCNET)


def _file(item: Download, path: Path, name: str) -> Check:
    """Compare a file with the published one."""
    if not path.is_file():
        return Check(item.target, f"not there; latentsync download {name}", good=None)
    size = path.stat().st_size
    remedy = f"delete it and run `latentsync download {name}`"
    if size != item.size:
        return Check(item.target, f"{size:,} bytes, not {item.size:,}; {remedy}", good=False)
    found = file_digest(path)
    if found != item.sha256:
        wrong = f"sha256 {found[:12]}, not {item.sha256[:12]}; {remedy}"
        return Check(item.target, f"{size:,} bytes, {wrong}", good=False)
    return Check(item.target, f"{size:,} bytes, sha256 {found[:12]}", good=True)


def _nets(lipsync: LipSync) -> Iterator[Check]:
    nets, config = lipsync.nets, lipsync.nets.config
    for name, net in (("U-Net", nets.unet), ("VAE", nets.vae), ("speech", nets.speech)):
        parameters = list(net.parameters())
        finite = all(bool(torch.isfinite(p).all()) for p in parameters)
        count = sum(p.numel() for p in parameters)
        yield Check(name, f"{count:,} parameters, all finite: {finite}", good=finite)
    shape = nets.vae.latent_shape(config.resolution)
    yield Check("dimensions", f"crop {config.resolution} px, latents {shape}, speech "
                f"{nets.speech.states} states of {config.whisper.n_audio_state}")  # fmt: skip
    yield Check("ran on", f"{lipsync.device}, {lipsync.dtype}")
    yield Check("detector", lipsync.detector.describe())


def _beginning(voice: Path, seconds: float, short: Path) -> Path:
    """Write the first seconds of a voice as a 16 kHz wave file."""
    left = round(seconds * SAMPLE_RATE)
    with wave.open(str(short), "wb") as out:
        out.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        for chunk in AudioReader(voice).chunks():
            out.writeframes((chunk[:left] * 32767).astype("<i2").tobytes())
            left -= len(chunk)
            if left <= 0:
                break
    return short


def _fingerprint(output: Path) -> str:
    """Describe the mean grey levels of three frames, for comparison by eye."""
    frames = [frame.planes()[0].mean() for frame in VideoReader(output).frames()]
    chosen = (frames[0], frames[len(frames) // 2], frames[-1])
    return "mean luma " + ", ".join(f"{value:.2f}" for value in chosen)


def _outside(lipsync: LipSync, source: Path, output: Path, result: Result) -> Check:
    """Measure the PSNR of the luma outside the face, which only the encode may change."""
    clip = VideoReader(source)
    (track,) = lipsync.find_faces(FrameSource.of(clip), result.frames, Options(seed=SEED))
    error, count = 0.0, 0
    shown = range(min(len(track), result.frames))
    pairs = zip(clip.frames(shown), VideoReader(output).frames(shown), strict=True)
    for index, (before, after) in enumerate(pairs):
        outside = _mask(track, index, lipsync.nets.config.resolution, before.height, before.width)
        luma = after.planes()[0][: before.height, : before.width].astype(np.float64)
        error += float(np.square(luma - before.planes()[0])[outside].sum())
        count += int(outside.sum())
    psnr = 10 * math.log10(255**2 * count / error) if error else math.inf
    return Check("PSNR outside the face", f"{psnr:.1f} dB", good=psnr >= LEAST_PSNR)


def _mask(track: FaceTrack, index: int, side: int, height: int, width: int) -> NDArray[np.bool_]:
    outside = np.ones((height, width), dtype=bool)
    if track.detected[index]:
        box = align.face_box(track.affine[index], side, width, height)
        outside[box.top : box.bottom, box.left : box.right] = False
    return outside


def _sync(lipsync: LipSync, output: Path, result: Result, weights: Path) -> Check:
    """Measure how well the mouth fits the voice; only a bad file of weights is wrong."""
    what = "sync confidence (local crop)"
    if not weights.is_file():
        missing = f"{EVAL_SYNCNET} is not there; latentsync download eval"
        return Check(what, f"not measured: {missing}")
    clip = VideoReader(output)
    try:
        net = load_net(EvalSyncNet, weights, device=lipsync.device)
        (track,) = lipsync.find_faces(FrameSource.of(clip), result.frames, Options(seed=SEED))
        sound = np.concatenate(list(AudioReader(output).chunks()))
        score = sync_conf_local(net, clip, track, lipsync.nets.config.resolution, sound)
    except InputError as error:  # too short, or no face left in it
        return Check(what, f"not measured: {error}")
    except WeightsMismatch as error:
        return Check(what, str(error), good=False)
    return Check(what, f"{score.confidence:.2f} at offset {score.offset}")


def _cost(lipsync: LipSync, result: Result) -> Iterator[Check]:
    total = result.timings["total"]
    yield Check("speed", f"{total / result.seconds:.2f} s per second of video")
    stages = (f"{k} {v:.1f}" for k, v in result.timings.items() if k != "total")
    yield Check("seconds by stage", ", ".join(stages))
    if lipsync.device.type == "cpu":
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        yield Check("peak memory", f"{peak / 1e9:.2f} GB of the process")
    else:
        peak = torch.cuda.max_memory_allocated(lipsync.device)
        yield Check("peak memory", f"{peak / 1e9:.2f} GB on the device")
