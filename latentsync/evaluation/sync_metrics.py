"""The lip-sync metrics: SyncNet, StableSyncNet, and the mouth's opening against the sound."""

from array import array
from collections.abc import Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from latentsync.audio.vad import detect_speech
from latentsync.diffusion.generator import to_float
from latentsync.errors import InputError
from latentsync.evaluation import features, published_sync, sync
from latentsync.evaluation.clips import EvaluatedClip, FramePair
from latentsync.evaluation.lip_closure import closed_share, leak_share, read_closures
from latentsync.evaluation.lip_correlation import lip_correlation, loudness_of
from latentsync.evaluation.metric import Figure, Metric, Setup
from latentsync.evaluation.mouth_net import CROP, MouthNet
from latentsync.evaluation.nets import loading, syncnet_mel
from latentsync.evaluation.nets.eval_syncnet import EvalSyncNet
from latentsync.evaluation.nets.s3fd import S3FD
from latentsync.evaluation.nets.syncnet import StableSyncNet, accuracies, stacked
from latentsync.evaluation.sync import SAMPLES_PER_FRAME
from latentsync.faces.align import face_of
from latentsync.media import AudioReader
from latentsync.pipeline.frame_source import FPS
from latentsync.types import FloatArray, Frame

__all__ = [
    "LipMetrics",
    "SyncConfidence",
    "SyncLocal",
    "SyncNetAccuracy",
    "syncnet_accuracy",
]

SYNCNET_FILE, S3FD_FILE = "auxiliary/syncnet_v2.model", "auxiliary/sfd_face.pth"

MIN_TRACK_SHARE = 0.5  # of the frames in which a box surrounds a face, for it to be that face's box
MAX_LAG = 12  # frames by which a mouth may be late or early


class SyncConfidence(Metric):
    """SyncNet on the published crop geometry: of all faces that S3FD tracks, or of the chosen one.

    It reads the clip twice more.
    """

    needs_reference = False
    figures = (
        Figure("sync_conf", "", "higher", "SyncNet's confidence (LSE-C) in S3FD's face tracks"),
        Figure("sync_dist", "", "lower", "SyncNet's distance (LSE-D) there"),
        Figure("sync_offset", "frames", "", "by which the sound runs ahead of the picture there"),
    )

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        load, device = loading.load_net, setup.device
        self.net = load(EvalSyncNet, setup.weights / SYNCNET_FILE, device=device)
        self.detector = load(S3FD, setup.weights / S3FD_FILE, device=device)

    def end(self) -> dict[str, float]:
        clip = self.clip
        scores = published_sync.sync_conf(
            self.net,
            self.detector,
            clip.output,
            _samples(clip),
            wanted=self._is_chosen,
            check=clip.context.check,
        )
        rows = [(score.confidence, score.distance, score.offset) for score in scores]
        names = [figure.name for figure in self.figures]
        return dict(zip(names, map(float, np.mean(rows, axis=0)), strict=True))

    def _is_chosen(self, start: int, boxes: NDArray[np.float64]) -> bool:
        """Whether a track's boxes surround the chosen face in most of its frames."""
        clip = self.clip
        if not clip.chosen or clip.track is None:
            return not clip.chosen
        info = (clip.reference or clip.output).info
        inside = []
        for index, box in enumerate(boxes, start):
            affine = clip.affine(index)
            if affine is not None:
                nose = face_of(affine, CROP).points[2] / (info.width, info.height)
                inside.append(bool((box[:2] < nose).all() and (nose < box[2:]).all()))
        return bool(inside) and float(np.mean(inside)) > MIN_TRACK_SHARE


class SyncLocal(Metric):
    """SyncNet on the longest run of frames with a face, cropped where the reference has it."""

    needs_reference, needs_face = False, True
    figures = (
        Figure("sync_conf_local", "", "higher", "SyncNet's confidence in our own face track"),
        Figure("sync_dist_local", "", "lower", "SyncNet's distance there"),
        Figure("sync_offset_local", "frames", "", "by which the sound runs ahead there"),
    )

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        path = setup.weights / SYNCNET_FILE
        self.net = loading.load_net(EvalSyncNet, path, device=setup.device)

    def end(self) -> dict[str, float]:
        clip = self.clip
        assert clip.track is not None
        start, stop = sync.longest_run(clip.track.detected[: clip.frames])
        outputs = (frames.scaled_output for frames in clip.frame_pairs_at(range(start, stop)))
        crops = sync.face_crops(outputs, clip.track.affine[start:stop], CROP)
        sound = _samples(clip)[start * SAMPLES_PER_FRAME : stop * SAMPLES_PER_FRAME]
        distances = sync.sync_distances(self.net, crops, sound)
        found, curve = sync.score(distances.mean(dim=1)), sync.sync_curve(distances)
        for i, (confidence, offset) in enumerate(zip(curve.confidence, curve.offset, strict=True)):
            self.add_to_curve("sync_conf_local", start + i, float(confidence))
            self.add_to_curve("sync_offset_local", start + i, float(offset))
        return {
            "sync_conf_local": found.confidence,
            "sync_dist_local": found.distance,
            "sync_offset_local": float(found.offset),
        }


class SyncNetAccuracy(Metric):
    """StableSyncNet on pairs of neighbouring windows of the longest run of frames with a face."""

    needs_reference, needs_face = False, True
    figures = (
        Figure(
            "stable_accuracy", "", "higher", "share of lips and sounds StableSyncNet tells right"
        ),
    )

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.net = loading.load_syncnet(setup.weights / "stable_syncnet.pt", device=setup.device)

    def end(self) -> dict[str, float]:
        return {"stable_accuracy": syncnet_accuracy(self.net, self._windows())}

    def _windows(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Two windows and their sounds, each (1, 2, ...), as long as there are both."""
        clip, columns = self.clip, syncnet_mel.sync_mel(_samples(self.clip))
        assert clip.track is not None
        start, stop = sync.longest_run(clip.track.detected[: clip.frames])
        windows = features.windows(pair.face for pair in clip.frame_pairs_at(range(start, stop)))
        for pair in zip(windows, windows, strict=False):
            starts = start, start + features.WINDOW
            try:
                mel = torch.stack([syncnet_mel.sync_window(columns, first) for first in starts])
            except ValueError:  # the sound is over
                return
            video = to_float(torch.from_numpy(np.stack(pair))).transpose(1, 2)
            yield video[None], mel[None].float()
            start += 2 * features.WINDOW


def syncnet_accuracy(net: StableSyncNet, windows: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Measure how often StableSyncNet tells right whether lips and sound belong together.

    https://arxiv.org/abs/2412.09262. Each clip gives two windows without a common frame, each with
    its own sound and with the other's, as in training: so only lips and sound together can tell
    which fit. Chance is 0.5.

    Args:
        windows: batches of (video, mel): video (b, 2, 3, 16, R, R) in [-1, 1], or
            (b, 2, 4, 16, h, w) latents; mel (b, 2, 1, 80, 52) as `nets.syncnet_mel.sync_window`.

    Raises:
        InputError: there is no window.
    """
    in_sync: list[Tensor] = []
    out_of_sync: list[Tensor] = []
    like = next(net.parameters())
    with torch.inference_mode():
        for video, mel in windows:
            frames = stacked(video.flatten(0, 1).to(like), net.config)
            visual, audio = (x.float() for x in net(frames, mel.flatten(0, 1).to(like)))
            swapped = audio.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)
            in_sync.append(F.cosine_similarity(visual, audio).cpu())
            out_of_sync.append(F.cosine_similarity(visual, swapped).cpu())
    if not in_sync:
        raise InputError("there is no window to ask StableSyncNet about; give a clip of 32 frames")
    cosines = torch.cat(in_sync + out_of_sync)
    accuracy, _ = accuracies(cosines, torch.arange(len(cosines)) < len(cosines) // 2)
    return accuracy


class LipMetrics(Metric):
    """The mouth's opening against loudness, speech and reference; it needs no download.

    The mouth net knows drawn faces only.
    """

    needs_reference, needs_face = False, True
    batch = 32
    figures = (
        Figure("lip_correlation", "", "higher", "mouth's opening to the reference's, of one sound"),
        Figure("lip_loudness", "", "higher", "mouth's opening (of drawn faces) to the loudness"),
        Figure("lip_lag", "frames", "", "by which the mouth comes late, by its loudness"),
        Figure("leak", "", "lower", "share of frames without speech in which the mouth is open"),
        Figure("closure", "", "higher", "share of p, b and m at which the lips close"),
    )

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.mouth_net = MouthNet.load(setup.weights)

    def begin(self, clip: EvaluatedClip) -> None:
        super().begin(clip)
        sound = AudioReader(clip.pair.output)
        self.loudness, self.activity = loudness_of(sound), detect_speech(sound)
        self._pending: list[tuple[int, str, Frame]] = []

    def update(self, frames: FramePair) -> None:
        if frames.affine is None:
            return
        self._pending.append((frames.index, "mouth", frames.face))
        if not self.clip.no_truth:
            self._pending.append((frames.index, "mouth_reference", frames.face_reference))
        if len(self._pending) >= self.batch:
            self._flush()

    def _flush(self) -> None:
        if self._pending:
            openings = self.mouth_net.measure(np.stack([crop for *_, crop in self._pending]))[:, 0]
            for (index, name, _), opening in zip(self._pending, openings, strict=True):
                self.add_to_curve(name, index, float(opening))
        self._pending = []

    def end(self) -> dict[str, float]:
        self._flush()
        mouth = _interpolated(self.curves["mouth"])
        count = min(len(mouth), len(self.loudness))
        self.curves["loudness"] = array("d", self.loudness[:count])
        to_sound = lip_correlation(mouth[:count], self.loudness[:count], MAX_LAG)
        found = {"lip_loudness": to_sound.at_zero, "lip_lag": float(to_sound.best_lag)}
        found |= self._shut()
        self.absent["lip_correlation"] = self.clip.no_truth
        if "mouth_reference" in self.curves:
            truth = _interpolated(self.curves["mouth_reference"])
            found["lip_correlation"] = lip_correlation(mouth, truth, 0).at_zero
        return found

    def _shut(self) -> dict[str, float]:
        """Leak and closure, as far as there is silence, and a p, b or m with known times."""
        opening, clip = np.array(self.curves["mouth"]), self.clip
        frames = np.arange(len(opening))
        leak = leak_share(opening, self.activity.at(frames, 1 / FPS))
        closure, self.absent["leak"] = None, "the voice is never silent"
        self.absent["closure"] = clip.no_truth or "the voice says no p, b or m"
        if clip.pair.reference and not clip.no_truth:
            seconds = clip.mapping.seconds[frames] if clip.mapping else frames / float(FPS)
            try:
                closure = closed_share(opening, seconds, read_closures(clip.pair.reference))
            except InputError as error:
                self.absent["closure"] = str(error)
        found = {"leak": leak, "closure": closure}
        return {name: value for name, value in found.items() if value is not None}


def _samples(clip: EvaluatedClip) -> FloatArray:
    """(n,) the output's sound at 16 kHz: 230 MB an hour. MediaError if it has none."""
    chunks = AudioReader(clip.pair.output).chunks()
    return np.concatenate([np.empty(0, np.float32), *chunks]).astype(np.float32)


def _interpolated(curve: "array[float]") -> NDArray[np.float64]:
    """The curve with its gaps filled by straight lines."""
    values = np.array(curve)
    there = np.flatnonzero(~np.isnan(values))
    return np.interp(np.arange(len(values)), there, values[there])
