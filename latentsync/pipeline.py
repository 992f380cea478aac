"""The main path: a clip and a voice in, the same clip speaking that voice out.

    pass 1   video -> detect -> FaceTrack                     frames stream by, none is kept
    pass 2   for each group: decode -> cut -> encode -> denoise -> decode -> paste -> write

Two passes, because the smoothing of the face's place and the turn at the clip's end need the whole
track, and the track is tiny. Memory does not grow with the clip's length.
"""

import logging
import math
import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from latentsync import align, faces, mel, timeline
from latentsync.blend import yaw, yaw_strength
from latentsync.devices import choose, peak_memory
from latentsync.errors import NoFaceFound
from latentsync.faces import FaceChoice
from latentsync.media import (
    AudioReader,
    Limits,
    VideoReader,
    VideoWriter,
    check_codec,
    check_output,
    output_size,
)
from latentsync.models.attention import attention_backend
from latentsync.options import MAX_SEED, Options
from latentsync.pace import FPS, Pace
from latentsync.painter import Painter
from latentsync.report import comment, report_path, write_report
from latentsync.reporter import Reporter
from latentsync.speech import SpeechFeatures
from latentsync.timeline import Voice
from latentsync.types import FaceTrack, Progress, ProgressCallback, Result, Segment, VideoInfo
from latentsync.voice_activity import speaking
from latentsync.weights import Nets, load_nets, root

__all__ = ["Clip", "LipSync"]

log = logging.getLogger(__name__)

CLOSING = 3  # frames in which a mouth closes where silence is to close it


class Clip(Protocol):
    """Frames by number: `media.VideoReader`."""

    def frames(self, indices: Iterable[int] | None = None) -> Iterator[Any]: ...


class LipSync:
    """A loaded model. `load` makes one; `run` may be called as often as wanted, one at a time."""

    def __init__(self, nets: Nets, detector: faces.Detector) -> None:
        self.nets = nets
        self.detector = detector
        weight = nets.unet.conv_in.weight
        self.device, self.dtype = weight.device, weight.dtype

    @classmethod
    def load(
        cls,
        model: str | Path = "v1.6",
        *,
        weights: Path | str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        detector: str | None = None,
        attention: Literal["native", "xformers"] = "native",
    ) -> "LipSync":
        """Load a model once, onto one device.

        Args:
            model: "v1.6" (512 px), "v1.5" (256 px), "demo" (in the repository), or the path of a
                folder that training wrote.
            weights: where published weights lie; default $LATENTSYNC_WEIGHTS, then `weights/`.
            device: "cuda", "cuda:1", "mps" or "cpu"; default the best there is.
            dtype: "float32", "float16" or "bfloat16"; default what suits the device.
            detector: "insightface", "yunet" or "builtin"; default what the model was made for.
            attention: the kernel that computes attention.

        Raises:
            WeightsError: files are missing, or hold another model.
            BackendUnavailable: what was asked for can't be used here.
            OptionError: an unknown name.
        """
        attend = attention_backend(attention)
        place, precision = choose(device, dtype)
        # Said before the long part: a container's setup log may lose what is said last.
        log.info("loading model %s on %s in %s, %s attention", model, place, precision, attention)
        nets = load_nets(model, folder=weights, device=place, dtype=precision)
        nets.unet.set_attention(attend)
        finder = faces.create(
            detector or nets.config.detector,
            root=root(weights) / "auxiliary",
            gpu=place.type not in ("cpu", "mps"),  # onnxruntime knows CUDA
        )
        return cls(nets, finder)

    def run(
        self,
        video: Path | str,
        audio: Path | str,
        output: Path | str,
        *,
        options: Options | None = None,
        progress: ProgressCallback | None = None,
        cancelled: Callable[[], bool] | None = None,
        **changes: Any,  # noqa: ANN401 - fields of Options, by name
    ) -> Result:
        """Make `output`, an mp4 of `video` (a clip or a picture) speaking `audio`.

        Args:
            options: what to do; `changes` are laid over it: `run(..., seed=7)`.
            progress: called with every step forward, from this thread.
            cancelled: asked before every frame of pass 1 and every denoising step of pass 2.

        Raises:
            InputError: a file can't be used, no face is found, the output can't be written.
            Cancelled: `cancelled` said so. Then as in every failure nothing is left behind, and an
                output that was there before is untouched.
        """
        options = replace(options or Options(), **changes)
        options = replace(options, seed=options.seed or 1 + secrets.randbelow(MAX_SEED))
        reporter = Reporter(progress, cancelled)
        check_output(output, (video, audio))
        if options.report:
            check_output(report_path(Path(output)), (video, audio, output))
        check_codec(options.codec)
        with reporter.timed("read"):
            limits = Limits(options.max_pixels, options.max_seconds, options.max_bytes)
            sound = AudioReader(audio, limits=limits)
            clip = VideoReader(video, limits=limits, used_seconds=_seconds_used(sound, options))
        with clip:
            return self._run(clip, sound, Path(output), options, reporter)

    def _run(
        self,
        clip: VideoReader,
        sound: AudioReader,
        output: Path,
        options: Options,
        reporter: Reporter,
    ) -> Result:
        _size(clip.info, options)
        with reporter.timed("speech"):
            speech = self.listen(sound, options)
        log.info("%d frames, %s, detector %s", len(speech), options, self.detector.describe())
        voice = _voice(sound, len(speech), options)
        with reporter.timed("read"):
            pace = Pace.of(clip, options.fps)
        with reporter.timed("detect"):
            wanted = pace.frames_in(voice.clip_needed(options.sync_mode))
            total = _frames_to_look_at(clip.info, pace, wanted)
            tracks = self.find_faces(pace, wanted, options, reporter, total=total, fps=pace.fps)
        begins = pace.begins(len(tracks[0]))
        shown = timeline.lay_out(begins, pace.tick, voice, options.sync_mode)
        speech = speech.beside(shown.begins[:-1], shown.tick, after=voice.after)
        if options.silence != "generate":
            with reporter.timed("speech"):
                heard = speaking(sound).at(shown.begins[:-1], shown.tick, voice.after)
            if options.silence == "keep":
                shown = replace(shown, speaks=shown.speaks & heard)
            else:
                speech = speech.hushed(timeline.fading(heard, CLOSING))
        plans = [_plan(shown, track, options) for track in tracks]
        with VideoWriter(
            output,
            audio=sound.path,
            audio_at=voice.after,
            fps=pace.fps,
            time_base=pace.tick,
            codec=options.codec,
            crf=options.crf,
            preset=options.preset,
            max_side=options.max_side,
            limits=Limits(options.max_pixels, options.max_seconds, options.max_bytes),
            comment=comment(
                self.nets.config.name, options.seed, options.effort.steps, options.guidance_scale
            ),
        ) as writer:
            frames = self.generate(pace, speech, tracks, plans, options, reporter)
            for frame, (begin, end) in zip(frames, pairwise(shown.begins), strict=True):
                span = (int(begin) * shown.tick, int(end) * shown.tick)
                with reporter.timed("write"):
                    writer.write(frame, *((None, None) if pace.own is None else span))
            reporter.step("finish", 0, 1)
        result = self._result(output, clip.info, tracks, plans, shown, options, reporter)
        if options.report:
            write_report(result)
        reporter.tell(Progress("finish", 1, 1))
        return result

    def listen(self, sound: AudioReader, options: Options) -> SpeechFeatures:
        """The speech at each frame of the output; their number is the output's length.

        Raises:
            MediaError: the sound holds no sample.
        """

        def exactly(_tokens: int) -> int:
            return math.ceil(sound.sample_count(sound.sample_rate) * FPS / sound.sample_rate)

        def published(tokens: int) -> int:
            return mel.published_frame_count(tokens, FPS)

        return SpeechFeatures(
            self.nets.speech,
            sound,
            frames=published if options.length == "published" else exactly,
            fps=FPS,
            windows=options.speech_windows,
        )

    def find_faces(
        self,
        clip: Clip,
        at_most: int | None,
        options: Options,
        reporter: Reporter | None = None,
        *,
        total: int | None = None,
        fps: Fraction = FPS,
    ) -> list[FaceTrack]:
        """Pass 1: where the chosen faces are in each of the clip's first `at_most` frames.

        Args:
            total: for the reporter, how many frames the clip will give, where that is known.
            fps: of the clip.

        Raises:
            NoFaceFound: in none of them, or with on_missing "error" not in all.
            InputError: the choice fits no face.
        """
        reporter = reporter or Reporter()
        choice = FaceChoice.parse(options.face)
        followed = faces.follow(
            (frame.rgb() for frame in islice(clip.frames(), at_most)),
            self.detector,
            choice,
            rounded=options.landmarks == "rounded",
            published=options.follow == "frame",
            total=total,
            fps=float(fps),
            progress=reporter,
        )
        count = len(followed[0].found)
        reporter.step("detect", count, count)
        tracks = [self._placed(one, options) for one in followed]
        tracks = [track for track in tracks if track.found.any()]
        if not tracks:
            raise NoFaceFound(faces.no_face(self.detector, count, choice, float(fps)))
        for start, stop, reason in tracks[0].lost:
            said = f"source frames {start}-{stop - 1} ({float(start / fps):.2f} s on): {reason}"
            if options.on_missing == "error":
                raise NoFaceFound(f"{said}; on_missing keep passes such frames through")
            log.info("%s; they pass through", said)
        return tracks

    def _placed(self, face: faces.Track, options: Options) -> FaceTrack:
        resolution = self.nets.config.resolution
        track = align.face_track(face.points, face.found, resolution, face.cut, options.smooth)
        lost = [(one.start, one.stop, one.reason) for one in face.reasons]
        if options.max_yaw is None:
            return replace(track, cut=face.cut, lost=tuple(lost))
        turned = np.where(face.found, yaw(face.points), np.nan)
        strength = yaw_strength(turned, options.max_yaw, cut=face.cut)
        away = faces.runs(face.found & (strength == 0), 0, len(strength))
        lost += [(start, stop, "turned away") for start, stop in away]
        found = track.found & (strength > 0)
        return replace(
            track, cut=face.cut, lost=tuple(sorted(lost)), found=found, strength=strength
        )

    def generate(
        self,
        clip: Clip,
        speech: SpeechFeatures,
        tracks: list[FaceTrack],
        plans: list[list[Segment]],
        options: Options,
        reporter: Reporter | None = None,
    ) -> Iterator[Any]:
        """Pass 2: the output's frames, in order; those without a face are the source's own.

        Each face is painted, by its own plan, onto what came of the one before.
        """
        reporter = reporter or Reporter()
        wanted = (int(i) for segment in plans[0] for i in segment.source[segment.shared :])
        pictures = reporter.each("decode", clip.frames(wanted))
        for track, plan in zip(tracks, plans, strict=True):
            last = track is tracks[-1]
            pictures = self._painted(pictures, speech, track, plan, options, reporter, told=last)
        return pictures

    def _painted(
        self,
        pictures: Iterator[Any],
        speech: SpeechFeatures,
        track: FaceTrack,
        plan: list[Segment],
        options: Options,
        reporter: Reporter,
        *,
        told: bool,
    ) -> Iterator[Any]:
        painter = Painter(self.nets, options, options.seed, reporter)
        held: list[Any] = []  # what the next group shares
        for number, segment in enumerate(plan):
            if told:
                reporter.step("generate", segment.start, plan[-1].stop)
            shown = held + list(islice(pictures, len(segment) - len(held)))
            keep = plan[number + 1].shared if number + 1 < len(plan) else 0
            held = shown[len(shown) - keep :]
            if segment.passthrough:
                yield from shown
            else:
                audio = speech[segment.start : segment.stop]
                yield from painter.paint(shown, segment, track, audio, keep)
        if told:
            reporter.step("generate", plan[-1].stop, plan[-1].stop)

    def _result(
        self,
        path: Path,
        clip: VideoInfo,
        tracks: list[FaceTrack],
        plans: list[list[Segment]],
        shown: timeline.Timeline,
        options: Options,
        reporter: Reporter,
    ) -> Result:
        frames = len(shown.source)
        width, height = _size(clip, options)
        return Result(
            path=path,
            frames=frames,
            fps=float(frames / shown.seconds),
            seconds=float(shown.seconds),
            width=width,
            height=height,
            faces_found=int(np.any([track.found for track in tracks], axis=0).sum()),
            source_frames=len(tracks[0]),
            passed_through=timeline.passed_through(plans),
            lost=tracks[0].lost,
            model=self.nets.config.name,
            detector=self.detector.name,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            seed=options.seed,
            options=asdict(options) | asdict(options.effort),
            peak_memory=peak_memory(self.device),
            timings=reporter.timings(),
        )


def _plan(shown: timeline.Timeline, track: FaceTrack, options: Options) -> list[Segment]:
    """The output in groups: where this face is found and the voice sounds, it speaks."""
    speaks = shown.speaks & track.found[shown.source]
    cut = None if track.cut is None else timeline.new_shots(shown.source, track.cut)
    return timeline.segments(
        shown.source,
        speaks,
        options.groups,
        cut=cut,
        fade=options.fade,
        overlap=options.overlap,
        strength=None if track.strength is None else track.strength[shown.source],
    )


def _seconds(sound: AudioReader) -> Fraction:
    return Fraction(sound.sample_count(sound.sample_rate), sound.sample_rate)


def _seconds_used(sound: AudioReader, options: Options) -> float | None:
    """How much of a clip will be looked at, at most."""
    needed = _voice(sound, 0, replace(options, length="exact")).clip_needed(options.sync_mode)
    return None if needed is None else float(needed) + 1  # the published length is 2 frames longer


def _size(clip: VideoInfo, options: Options) -> tuple[int, int]:
    """Of the output; OutputError when the codec can't hold it."""
    return output_size(clip.width, clip.height, codec=options.codec, max_side=options.max_side)


def _voice(sound: AudioReader, frames: int, options: Options) -> Voice:
    """The sound, `frames` long at 25 fps, and the time around it."""
    return Voice(
        seconds=frames / FPS if options.length == "published" else _seconds(sound),
        after=Fraction(options.lead_in).limit_denominator(1000),
        then=Fraction(options.lead_out).limit_denominator(1000),
    )


def _frames_to_look_at(clip: VideoInfo, pace: Pace, at_most: int | None) -> int | None:
    """How many frames pass 1 will see; None where only reading to the end will tell."""
    if clip.is_image:
        return 1
    if pace.own is not None:
        return len(pace.own) - 1 if at_most is None else at_most
    enough = at_most is not None and (clip.duration_seconds or 0) * FPS >= at_most
    return at_most if enough else None
