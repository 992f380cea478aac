"""The metrics of lip-sync: what mouth and sound have to do with each other. See metric.py."""

from array import array
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentsync.errors import MediaError
from latentsync.evaluation import features, sync
from latentsync.evaluation import (
    lip_correlation as lips,
)
from latentsync.evaluation import (
    published_sync as published,
)
from latentsync.evaluation.clips import EvaluatedClip, FramePair
from latentsync.evaluation.metric import NEEDS_REFERENCE, Figure, Metric, Setup
from latentsync.evaluation.mouth_net import CROP, MouthNet
from latentsync.evaluation.nets import loading, syncnet_mel
from latentsync.evaluation.nets.eval_syncnet import EvalSyncNet
from latentsync.evaluation.stable import stable_syncnet_accuracy
from latentsync.faces.align import face_of
from latentsync.media import AudioReader
from latentsync.types import FloatArray, Frame

__all__ = [
    "LipMetrics",
    "SyncConfidence",
    "SyncLocal",
    "SyncNetAccuracy",
    "loudness_of",
    "why_no_truth",
]

SYNCNET_FILE, S3FD_FILE = "auxiliary/syncnet_v2.model", "auxiliary/sfd_face.pth"

SAMPLE_RATE = 16000  # Hz
SAMPLES = SAMPLE_RATE // 25  # of a frame
QUIET = 1e-3  # of full scale, -60 dB: what is taken for silence
SAME_SOUND = 0.95  # correlation of loudness from which two clips are taken to say the same
MOSTLY = 0.5  # of the frames: in so many a box lies around a face to be that face's
MAX_LAG = 12  # frames by which a mouth may come late or early


class SyncConfidence(Metric):
    """On the published geometry, in two passes: all faces that S3FD follows, or the chosen one."""

    needs_reference = False
    figures = (
        Figure("sync_conf", "", "higher", "SyncNet's confidence (LSE-C) in S3FD's face tracks"),
        Figure("sync_dist", "", "lower", "SyncNet's distance (LSE-D) there"),
        Figure("sync_offset", "frames", "", "by which the sound runs ahead of the picture there"),
    )

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.net = _syncnet(setup)
        self.detector = published.load_s3fd(setup.weights / S3FD_FILE, setup.device)

    def end(self) -> dict[str, float]:
        clip = self.clip
        scores = published.sync_conf(
            self.net,
            self.detector,
            clip.output,
            _wave(clip),
            wanted=self._of_chosen,
            check=clip.reporter.check,
        )
        rows = [(score.confidence, score.distance, score.offset) for score in scores]
        names = [one.name for one in self.figures]
        return dict(zip(names, map(float, np.mean(rows, axis=0)), strict=True))

    def _of_chosen(self, start: int, boxes: NDArray[np.float64]) -> bool:
        """Whether boxes, from a frame on, are around the chosen face, in most frames."""
        clip = self.clip
        if not clip.chosen or clip.track is None:
            return not clip.chosen
        shown = (clip.reference or clip.output).info
        inside = []
        for index, box in enumerate(boxes, start):
            affine = clip.affine(index)
            if affine is not None:
                nose = face_of(affine, CROP).points[2] / (shown.width, shown.height)
                inside.append(bool((box[:2] < nose).all() and (nose < box[2:]).all()))
        return bool(inside) and float(np.mean(inside)) > MOSTLY


class SyncLocal(Metric):
    """Of the longest stretch with a face, where the reference has it, in a pass of its own."""

    needs_reference, needs_face = False, True
    figures = (
        Figure("sync_conf_local", "", "higher", "SyncNet's confidence in our own face track"),
        Figure("sync_dist_local", "", "lower", "SyncNet's distance there"),
        Figure("sync_offset_local", "frames", "", "by which the sound runs ahead there"),
    )

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.net = _syncnet(setup)

    def end(self) -> dict[str, float]:
        clip = self.clip
        assert clip.track is not None
        sound = _wave(clip)
        start, stop = sync.longest_run(clip.track.found[: clip.frames])
        shown = (moment.shown for moment in clip.moments_at(range(start, stop)))
        crops = sync.face_crops(shown, clip.track.affine[start:stop], CROP)
        distances = sync.sync_distances(self.net, crops, sound[start * SAMPLES : stop * SAMPLES])
        found, curve = sync.score(distances.mean(dim=1)), sync.sync_curve(distances)
        for i, (confidence, offset) in enumerate(zip(curve.confidence, curve.offset, strict=True)):
            self.on_curve("sync_conf_local", start + i, float(confidence))
            self.on_curve("sync_offset_local", start + i, float(offset))
        return {
            "sync_conf_local": found.confidence,
            "sync_dist_local": found.distance,
            "sync_offset_local": float(found.offset),
        }


class SyncNetAccuracy(Metric):
    """Of neighbouring stretches of 16 frames in the longest stretch with a face."""

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
        return {"stable_accuracy": stable_syncnet_accuracy(self.net, self._pairs()).accuracy}

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Two stretches and their sounds, each (1, 2, ...), as far as both go."""
        clip, columns = self.clip, syncnet_mel.sync_mel(_wave(self.clip))
        assert clip.track is not None
        start, stop = sync.longest_run(clip.track.found[: clip.frames])
        stretches = features.windows(m.face for m in clip.moments_at(range(start, stop)))
        for one, other in zip(stretches, stretches, strict=False):
            try:
                heard = [
                    syncnet_mel.sync_window(columns, first) for first in (start, start + len(one))
                ]
            except ValueError:  # the sound is over
                return
            seen = torch.from_numpy(np.stack([one, other])).permute(0, 4, 1, 2, 3)
            yield seen[None].float() / 127.5 - 1, torch.stack(heard)[None].float()
            start += 2 * len(one)


class LipMetrics(Metric):
    """What needs no weights from elsewhere; the ruler reads drawn faces, and no others."""

    needs_reference, needs_face = False, True
    batch = 32
    figures = (
        Figure("lip_correlation", "", "higher", "mouth (ruler) to the reference's, of one sound"),
        Figure("lip_loudness", "", "higher", "mouth (ruler, for drawn faces) to the loudness"),
        Figure("lip_lag", "frames", "", "by which the mouth comes late, by its loudness"),
    )

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.ruler = MouthNet.load(setup.weights)

    def begin(self, clip: EvaluatedClip) -> None:
        super().begin(clip)
        self.loudness = loudness_of(clip.sound())
        self.no_truth = why_no_truth(clip)
        self._waiting: list[tuple[int, str, Frame]] = []

    def update(self, moment: FramePair) -> None:
        if moment.affine is None:
            return
        self._waiting.append((moment.index, "mouth", moment.face))
        if not self.no_truth:
            self._waiting.append((moment.index, "mouth_reference", moment.face_reference))
        if len(self._waiting) >= self.batch:
            self._measure()

    def _measure(self) -> None:
        if self._waiting:
            openings = self.ruler.measure(np.stack([crop for *_, crop in self._waiting]))[:, 0]
            for (index, name, _), opening in zip(self._waiting, openings, strict=True):
                self.on_curve(name, index, float(opening))
        self._waiting = []

    def end(self) -> dict[str, float]:
        self._measure()
        mouth = _filled(self.curves["mouth"])
        count = min(len(mouth), len(self.loudness))
        self.curves["loudness"] = array("d", self.loudness[:count])
        heard = lips.lip_correlation(mouth[:count], self.loudness[:count], MAX_LAG)
        found = {"lip_loudness": heard.at_zero, "lip_lag": float(heard.best_lag)}
        self.absent["lip_correlation"] = self.no_truth
        if "mouth_reference" in self.curves:
            truth = _filled(self.curves["mouth_reference"])
            found["lip_correlation"] = lips.lip_correlation(mouth, truth, 0).at_zero
        return found


def _syncnet(setup: Setup) -> EvalSyncNet:
    return sync.load_eval_syncnet(setup.weights / SYNCNET_FILE, setup.device)


def _wave(clip: EvaluatedClip) -> FloatArray:
    """(n,) at 16 kHz: 230 MB an hour."""
    chunks = [np.empty(0, np.float32), *clip.sound().chunks()]
    return np.concatenate(chunks).astype(np.float32)


def loudness_of(sound: AudioReader) -> NDArray[np.float64]:
    """(frames,) dB of full scale, of the sound while each frame is shown."""
    return np.array(list(_levels(sound.chunks())), np.float64)


def _levels(chunks: Iterator[FloatArray]) -> Iterator[float]:
    rest = np.empty(0, np.float32)
    for chunk in chunks:
        rest = np.concatenate([rest, chunk])
        whole = len(rest) // SAMPLES * SAMPLES
        mean = np.sqrt(np.mean(rest[:whole].reshape(-1, SAMPLES).astype(np.float64) ** 2, axis=1))
        yield from 20 * np.log10(np.maximum(mean, QUIET))
        rest = rest[whole:]


def why_no_truth(clip: EvaluatedClip) -> str:
    """Why the reference's mouth is not the truth for the output's; "" where it is.

    It is where both say the same at the same time. A reference is heard where its frames are shown.
    """
    if clip.no_truth is None:
        clip.no_truth = _why_no_truth(clip)
    return clip.no_truth


def _why_no_truth(clip: EvaluatedClip) -> str:
    if clip.pair.reference is None:
        return NEEDS_REFERENCE
    levels = []
    for name, path in (("output", clip.pair.output), ("reference", clip.pair.reference)):
        try:
            levels.append(loudness_of(AudioReader(path)))
        except MediaError:
            return f"the {name} has no sound, so nothing tells whether both say the same"
    own, other = levels
    if clip.beside:
        slots = np.round(clip.beside.seconds * SAMPLE_RATE / SAMPLES).astype(int)
        own, slots = own[: len(slots)], slots[: len(own)]
        there = slots < len(other)
        own, other = own[there], other[slots[there]]
    count = min(len(own), len(other))
    same = count > 0 and lips.lip_correlation(own[:count], other[:count], 0).at_zero >= SAME_SOUND
    return "" if same else "the reference says something else"


def _filled(curve: "array[float]") -> NDArray[np.float64]:
    """Without its gaps, by straight lines."""
    values = np.array(curve)
    there = np.flatnonzero(~np.isnan(values))
    return np.interp(np.arange(len(values)), there, values[there])
