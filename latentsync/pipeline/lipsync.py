"""The main path: a clip and a voice in, the same clip speaking that voice out.

    pass 1   decode | detect -> FaceTrack                     frames stream by, none is kept
    pass 2   decode, cut | encode, denoise, decode | paste | write       16 frames at a time

Two passes, because the smoothing of the face's place and the turn at the clip's end need the whole
track, and the track is tiny. What a bar parts runs in threads of its own, a few frames ahead of
what comes next. Memory does not grow with the clip's length.
"""

import logging
import math
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentsync import faces
from latentsync.audio import mel
from latentsync.audio.whisper import SpeechFeatures, encode_speech
from latentsync.diffusion.generator import (
    CropGenerator,
    Engine,
    Network,
    is_order_independent,
    ready_nets,
)
from latentsync.diffusion.weights import Nets, Offload
from latentsync.faces import FaceChoice
from latentsync.faces.occlusion import Occluder, OnnxOccluder
from latentsync.faces.restoration.nets import load_restorer
from latentsync.faces.restoration.restoration import Restorer
from latentsync.media import (
    AudioReader,
    Carried,
    Limits,
    Sound,
    VideoReader,
    VideoWriter,
    carried,
    check_codec,
    check_output,
    output_size,
)
from latentsync.options import MAX_SEED, Options
from latentsync.pipeline import face_tracks, timeline
from latentsync.pipeline import speakers as voices
from latentsync.pipeline.compositor import Compositor, SpeakingFace
from latentsync.pipeline.face_tracks import Clip
from latentsync.pipeline.frame_source import FPS, FrameSource, frames_to_look_at
from latentsync.pipeline.report import comment, report_path, write_report
from latentsync.pipeline.speakers import SpeakerAssignment
from latentsync.runtime.checkpoints import root
from latentsync.runtime.devices import choose, is_cuda, peak_memory
from latentsync.runtime.disk_cache import Cache, ClipCache, LatentCache, net_digest
from latentsync.runtime.prefetch import prefetch
from latentsync.runtime.progress import RunContext
from latentsync.types import (
    FaceTrack,
    Frame,
    Progress,
    ProgressCallback,
    Result,
    Segment,
    VideoInfo,
)

__all__ = ["LipSync"]

log = logging.getLogger(__name__)

PASTED_AHEAD = 4  # frames that wait for the encoder


class LipSync:
    """A loaded model. `load` makes one; `run` may be called as often as wanted, one at a time."""

    def __init__(
        self,
        nets: Nets,
        detector: faces.Detector,
        occluder: Occluder | None = None,
        folder: Path | None = None,
    ) -> None:
        self.nets = nets
        self.detector = detector
        self.occluder = occluder
        self.folder = folder or root()  # where weights lie
        self._restorers: dict[tuple[str, float], Restorer] = {}
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
        occluder: str | Path | None = None,
        attention: Literal["native", "xformers"] = "native",
        offload: Offload = "auto",
        compile: bool = False,  # noqa: A002 - what torch and its users call it
    ) -> "LipSync":
        """Load a model once, onto one device.

        Args:
            model: "v1.6" (512 px), "v1.5" (256 px), "demo" (in the repository), or the path of a
                folder that training wrote.
            weights: where published weights lie; default $LATENTSYNC_WEIGHTS, then `weights/`.
            device: "cuda", "cuda:1", "mps" or "cpu"; default the best there is.
            dtype: "float32", "float16" or "bfloat16"; default what suits the device.
            detector: "insightface", "yunet" or "builtin"; default what the model was made for.
            occluder: a segmentation net's .onnx, see `latentsync.occlusion`: a hand or a microphone
                before the mouth stays on top. None: the drawn mouth does.
            attention: the kernel that computes attention.
            offload: "sequential" keeps the weights in the CPU's memory and moves each layer to the
                GPU when it computes; "auto" does so where they don't fit, "none" never.
            compile: let torch.compile make kernels for the U-Net now. It takes minutes, and pays
                where a process makes many clips; groups shorter than 16 frames run without.

        Raises:
            WeightsError: files are missing, or hold another model.
            BackendUnavailable: what was asked for can't be used here.
            OptionError: an unknown name.
        """
        gpu = is_cuda(choose(device)[0])
        cover = OnnxOccluder(occluder, gpu=gpu) if occluder else None
        if cover:
            log.info("occluder: %s", cover.describe())
        nets = ready_nets(
            model,
            weights=weights,
            device=device,
            dtype=dtype,
            attention=attention,
            offload=offload,
            compile=compile,
        )
        finder = faces.create(
            detector or nets.config.detector,
            root=root(weights) / "auxiliary",
            gpu=gpu,
        )
        return cls(nets, finder, cover, root(weights))

    def run(
        self,
        video: Path | str,
        audio: Path | str | Mapping[str, Path | str] | None,
        output: Path | str,
        *,
        options: Options | None = None,
        progress: ProgressCallback | None = None,
        cancelled: Callable[[], bool] | None = None,
        preview: Callable[[Frame], None] | None = None,
        engine: Engine | None = None,
        **changes: Any,  # noqa: ANN401 - fields of Options, by name
    ) -> Result:
        """Make `output`, an mp4 or mov of `video` (a clip or a picture) speaking `audio`.

        Args:
            audio: a sound, or a video's (None: that of `video`); or for each face that is to speak,
                named as in `Options.face`, a sound of its own. They begin and are heard together.
            options: what to do; `changes` are laid over it: `run(..., seed=7)`.
            progress: called with every step forward, from this thread.
            cancelled: asked before every frame of pass 1, and from another thread before every
                denoising step of pass 2.
            preview: called from another thread with the last face of every group that speaks,
                (R, R, 3) uint8, an upright box squeezed into a square.
            engine: generates the crops elsewhere, see `diffusion.ray.engine.replicas`; None: here.

        Raises:
            InputError: a file can't be used, no face is found, the output can't be written.
            WeightsError, BackendUnavailable: of the super-resolution that was asked for.
            Cancelled: `cancelled` said so. Then as in every failure nothing is left behind, and an
                output that was there before is untouched.
        """
        options = replace(options or Options(), **changes)
        options = replace(options, seed=options.seed or 1 + secrets.randbelow(MAX_SEED))
        reporter, audio = (
            RunContext(progress, cancelled, preview),
            video if audio is None else audio,
        )
        sounds = [audio] if isinstance(audio, Path | str) else audio.values()
        check_output(output, (video, *sounds))
        if options.report:
            check_output(report_path(Path(output)), (video, *sounds, output), (".json",))
        check_codec(options.codec)
        self.restorer(options)
        with ExitStack() as inputs:
            limits = Limits.of(options)
            with reporter.timed("speech"):
                speakers = inputs.enter_context(voices.speakers(audio, options, limits, video))
                used = _seconds_used(speakers, options)
            with reporter.timed("read"):
                clip = inputs.enter_context(VideoReader(video, limits=limits, used_seconds=used))
                known = inputs.enter_context(self._cache(clip, options))
            return self._run(clip, speakers, Path(output), options, reporter, known, engine)

    def _run(
        self,
        clip: VideoReader,
        speakers: SpeakerAssignment,
        output: Path,
        options: Options,
        reporter: RunContext,
        known: ClipCache | None,
        engine: Engine | None,
    ) -> Result:
        _size(clip.info, options)
        with reporter.timed("speech"):
            speeches = [self.listen(sound, options) for sound in speakers.sounds]
        longest = max(map(len, speeches))
        log.info("%d frames; %s", longest, options.changes())
        voice = voices.audio_span(speakers.seconds, longest, options)
        with reporter.timed("read"):
            pace = FrameSource.of(clip, options.fps, options.conversion)
        with reporter.timed("detect"):
            wanted = pace.frames_in(voice.clip_needed(options.sync_mode))
            total = frames_to_look_at(clip.info, pace, wanted)
            tracks = self.find_faces(
                pace,
                wanted,
                options,
                reporter,
                speakers.choices,
                total=total,
                fps=pace.fps,
                known=known,
            )
        _warn_of_lost_frames(clip)
        begins = pace.begins(len(tracks[0]))
        shown = timeline.lay_out(begins, pace.tick, voice, options.sync_mode)
        with reporter.timed("speech"):
            heard = [
                voices.align_speech(sound, speech, shown, voice, options)
                for sound, speech in zip(speakers.sounds, speeches, strict=True)
            ]
        if len(heard) == 1:  # one voice, also of several faces
            heard *= len(tracks)
        roles = [
            SpeakingFace(track, _plan(shown, track, speaks, options), speech)
            for track, (speech, speaks) in zip(tracks, heard, strict=True)
        ]
        kept = carried(clip.path, speakers.read(), pace.fps, Limits.of(options))
        with (
            self._writer(output, speakers.together, voice.after, pace, options, kept) as writer,
            closing(self.generate(pace, roles, options, reporter, known, engine)) as frames,
        ):
            for frame, (begin, end) in zip(frames, pairwise(shown.begins), strict=True):
                span = (int(begin) * shown.tick, int(end) * shown.tick)
                with reporter.timed("write"):
                    writer.write(frame, *((None, None) if pace.own is None else span))
            reporter.step("finish", 0, 1)
        result = self._result(output, clip.info, roles, shown, options, speakers, reporter, engine)
        result = replace(result, decoding=asdict(clip.tally), left_out=kept.left_out)
        if options.report:
            write_report(result)
        reporter.tell(Progress("finish", 1, 1))
        return result

    def _writer(
        self,
        output: Path,
        sound: Sound,
        sound_at: Fraction,
        pace: FrameSource,
        options: Options,
        kept: Carried,
    ) -> VideoWriter:
        how = (options.seed, options.effort.steps, options.guidance_scale)
        return VideoWriter(
            output,
            audio=sound,
            audio_at=sound_at,
            fps=pace.fps,
            time_base=pace.tick,
            codec=options.codec,
            crf=options.crf,
            preset=options.preset,
            max_side=options.max_side,
            limits=Limits.of(options),
            comment=comment(self.nets.config.name, *how),
            tags=kept.tags,
        )

    def restorer(self, options: Options) -> Restorer | None:
        """The restoration net that is asked for; loaded once, then kept.

        Raises:
            WeightsError, BackendUnavailable: it can't be loaded; see `load_restorer`.
        """
        if options.restorer is None:
            return None
        key = options.restorer, options.sr_weight
        if key not in self._restorers:
            self._restorers[key] = load_restorer(
                key[0], folder=self.folder, device=self.device, weight=key[1]
            )
        return self._restorers[key]

    def listen(self, sound: AudioReader, options: Options) -> SpeechFeatures:
        """The speech at each frame of the output; their number is the output's length.

        Raises:
            MediaError: the sound holds no sample.
        """

        def frames(tokens: int) -> int:
            if options.length == "published":
                return mel.published_frame_count(tokens, FPS)
            return math.ceil(sound.seconds * FPS)

        windows = options.speech_windows
        return encode_speech(self.nets.speech, sound, frames=frames, fps=FPS, windows=windows)

    def find_faces(
        self,
        clip: Clip,
        at_most: int | None,
        options: Options,
        reporter: RunContext | None = None,
        choices: Sequence[FaceChoice] = (),
        *,
        total: int | None = None,
        fps: Fraction = FPS,
        known: ClipCache | None = None,
    ) -> list[FaceTrack]:
        """Pass 1: where the chosen faces are in each of the clip's first `at_most` frames.

        `choices` are `options.face`, unless there are several speakers; the rest, and the errors,
        as in `find_face_tracks`.
        """
        return face_tracks.find_face_tracks(
            clip,
            at_most,
            self.detector,
            choices or [FaceChoice.parse(options.face)],
            options,
            resolution=self.nets.config.resolution,
            fps=fps,
            total=total,
            reporter=reporter or RunContext(),
            known=known,
        )

    def generate(
        self,
        clip: Clip,
        roles: Sequence[SpeakingFace],
        options: Options,
        reporter: RunContext | None = None,
        known: ClipCache | None = None,
        engine: Engine | None = None,
    ) -> Generator[Any, None, None]:
        """Pass 2: the output's frames, in order; those without a face are the source's own.

        Each face is painted, by its own plan, onto what came of the one before.
        """
        reporter = reporter or RunContext()
        first = roles[0].plan
        wanted = (int(i) for segment in first for i in segment.source[segment.shared :])
        pictures = reporter.each("decode", clip.frames(wanted))
        side, extra = self.nets.config.resolution, (self.occluder, self.restorer(options))
        for role in roles:
            draw = self._drawing(role, options, reporter, known, engine)
            compositor = Compositor(draw, side, role, options, reporter, *extra)
            groups = prefetch(compositor.crop(pictures), draw.batch)
            drawn = prefetch(compositor.generate(groups))
            pictures = prefetch(compositor.paste(drawn), PASTED_AHEAD)
        reporter.step("generate", 0, first[-1].stop)
        with closing(pictures):
            for done, picture in enumerate(pictures, start=1):
                yield picture
                reporter.step("generate", done, first[-1].stop)

    def _drawing(
        self,
        role: SpeakingFace,
        options: Options,
        reporter: RunContext,
        known: ClipCache | None,
        engine: Engine | None,
    ) -> CropGenerator:
        """Draws one face: here, or by the engine if there is one, and groups can be parted."""
        if engine is not None:
            if is_order_independent(options):
                return engine.drawing(options, role.times, reporter)
            log.warning("groups depend on each other (overlap, or a sampled posterior): drawn here")
        return Network(self.nets, options, role.times, reporter, self._latents(known, role))

    @contextmanager
    def _cache(self, clip: VideoReader, options: Options) -> Iterator[ClipCache | None]:
        """What is known of the clip, where a folder for it is given."""
        if options.cache_dir is None:
            yield None
            return
        with Cache(options.cache_dir, options.cache_bytes) as cache:
            pace = "25" if clip.info.is_image else f"{options.fps} {options.conversion}"
            yield ClipCache(cache, clip.path, {"pace": pace})

    def _latents(self, known: ClipCache | None, role: SpeakingFace) -> LatentCache | None:
        """Of one face; the pictures they are made of follow from the clip and the face's place."""
        if known is None:
            return None
        facts = {"vae": self._vae_digest, "dtype": self.dtype, "side": self.nets.config.resolution}
        return known.latents(facts, role.track.affine, self.nets.unet.conv_in.weight)

    @cached_property
    def _vae_digest(self) -> str:
        return net_digest(self.nets.vae)

    def _result(
        self,
        path: Path,
        clip: VideoInfo,
        roles: Sequence[SpeakingFace],
        shown: timeline.Timeline,
        options: Options,
        speakers: SpeakerAssignment,
        reporter: RunContext,
        engine: Engine | None,
    ) -> Result:
        frames, tracks = len(shown.source), [role.track for role in roles]
        width, height = _size(clip, options)
        lost = face_tracks.lost(tracks, speakers.choices)
        plans, why = [role.plan for role in roles], timeline.reasons(shown, lost)
        return Result(
            path=path,
            source=clip.path.absolute(),
            frames=frames,
            fps=float(frames / shown.seconds),
            seconds=float(shown.seconds),
            width=width,
            height=height,
            faces_found=face_tracks.faces_found(tracks),
            source_frames=len(tracks[0]),
            passed_through=timeline.passed_through(plans, why),
            lost=lost,
            model=self.nets.config.name,
            detector=self.detector.name,
            device=engine.device if engine else str(self.device),
            dtype=engine.dtype if engine else str(self.dtype).removeprefix("torch."),
            seed=options.seed,
            **face_tracks.told(tracks),
            options=asdict(options) | asdict(options.effort),
            voices=speakers.named(),
            sound_tracks=speakers.tracks(),
            peak_memory=peak_memory(self.device),
            timings=reporter.timings(),
        )


def _warn_of_lost_frames(clip: VideoReader) -> None:
    """Frames that a lower rate leaves out are no loss; those that come at the wrong time are."""
    if clip.tally.behind:
        log.warning(
            "%d of %d frames of %r have a time that is not after the one before, and are not"
            " shown: if the output stutters, rewrite the clip: ffmpeg -i IN -r 25 OUT.mp4",
            *(clip.tally.behind, clip.tally.decoded, str(clip.path)),
        )


def _plan(
    shown: timeline.Timeline, track: FaceTrack, speaks: NDArray[np.bool_], options: Options
) -> list[Segment]:
    """The output in groups: where this face is found and its voice sounds, it speaks."""
    speaks = speaks & track.found[shown.source]
    cut = None if track.cut is None else timeline.new_shots(shown.source, track.cut)
    return timeline.segments(
        shown.source,
        speaks,
        options.groups,
        cut=cut,
        fade=options.fade,
        overlap=options.overlap,
    )


def _seconds_used(speakers: SpeakerAssignment, options: Options) -> float | None:
    """How much of a clip will be looked at, at most."""
    exact = replace(options, length="exact")
    needed = voices.audio_span(speakers.seconds, 0, exact).clip_needed(options.sync_mode)
    return None if needed is None else float(needed) + 1  # the published length is 2 frames longer


def _size(clip: VideoInfo, options: Options) -> tuple[int, int]:
    """Of the output; OutputError when the codec can't hold it."""
    return output_size(clip.width, clip.height, codec=options.codec, max_side=options.max_side)
