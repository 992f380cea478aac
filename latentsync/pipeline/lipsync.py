"""The main path: a clip and a voice in, the same clip speaking that voice out.

    pass 1   decode | detect -> FaceTrack                     frames stream by, none is kept
    pass 2   decode, crop | encode, denoise, decode | paste | write       16 frames at a time

Two passes, because smoothing the face's position, and playing the clip to and fro, need the whole
track, which is small. Stages between bars run in threads of their own, a few frames ahead of the
next stage. Memory does not grow with the clip's length.
"""

import logging
import math
import secrets
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

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
    Limits,
    VideoFrame,
    VideoReader,
    VideoWriter,
    check_codec,
    check_output,
    read_tags,
)
from latentsync.options import MAX_SEED, Options
from latentsync.pipeline.compositor import Compositor, SpeakingFace
from latentsync.pipeline.face_tracks import find_face_tracks
from latentsync.pipeline.frame_source import FPS, FrameSource
from latentsync.pipeline.report import comment, describe, report_path, write_report
from latentsync.pipeline.speakers import (
    Inputs,
    SpeakerAssignment,
    audio_span,
    make_timeline,
    open_inputs,
)
from latentsync.pipeline.timeline import Timeline
from latentsync.runtime.checkpoints import root
from latentsync.runtime.devices import choose, is_cuda, peak_memory
from latentsync.runtime.disk_cache import Cache, ClipCache, net_digest
from latentsync.runtime.prefetch import prefetch
from latentsync.runtime.progress import RunContext
from latentsync.types import (
    FaceTrack,
    Frame,
    Progress,
    ProgressCallback,
    Result,
    VideoInfo,
)

__all__ = ["LipSync"]

log = logging.getLogger(__name__)

PREFETCH_PASTED_FRAMES = 4  # frames that wait for the encoder


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
            occluder: a segmentation net's .onnx, see `latentsync.faces.occlusion`: a hand or a
                microphone before the mouth stays on top. None: the drawn mouth does.
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
        context, output = RunContext(progress, cancelled, preview), Path(output)
        audio = video if audio is None else audio
        _check_output(output, video, audio, options)
        self.restorer(options)
        with (
            open_inputs(video, audio, options, context) as inputs,
            self._cache(inputs.clip.info, options, context) as cache,
        ):
            speech = self.encode_voices(inputs.voices, options, context)
            span = audio_span(inputs.voices.seconds, max(map(len, speech)), options)
            at_most = inputs.clip.frames_in(span.clip_needed(options.sync_mode))
            choices = inputs.voices.choices
            tracks = self.find_faces(inputs.clip, at_most, options, context, choices, cache)
            _warn_of_unordered_frames(inputs.clip.reader)
            shown, faces = make_timeline(inputs, speech, tracks, span, options, context)
            frames = self.generate(inputs.clip, faces, options, context, cache, engine)
            left_out = self._write(output, frames, inputs, shown, span.lead_in, options, context)
        facts = describe(inputs, shown, faces, options) | self._where(engine)
        result = Result(path=output, left_out=left_out, timings=context.timings(), **facts)
        if options.report:
            write_report(result)
        # Not `step`: the output is written, so a cancellation would come too late.
        context.tell(Progress("finish", 1, 1))
        return result

    def _write(
        self,
        output: Path,
        frames: Generator[VideoFrame, None, None],
        inputs: Inputs,
        shown: Timeline,
        lead_in: Fraction,
        options: Options,
        context: RunContext,
    ) -> tuple[str, ...]:
        """Write each frame as it comes; returns what of the inputs is not in the output."""
        source, limits = inputs.clip, Limits.of(options)
        kept = read_tags(source.info.path, inputs.voices.sources(), source.fps, limits)
        made = options.seed, options.effort.steps, options.guidance_scale
        writer = VideoWriter(
            output,
            audio=inputs.voices.together,
            audio_at=lead_in,
            fps=source.fps,
            time_base=source.time_base,
            codec=options.codec,
            crf=options.crf,
            preset=options.preset,
            max_side=options.max_side,
            limits=limits,
            comment=comment(self.nets.config.name, *made),
            tags=kept.tags,
        )
        with writer, closing(frames):
            for frame, span in zip(frames, shown.spans(), strict=True):
                with context.timed("write"):
                    writer.write(frame, *span)
            context.step("finish", 0, 1)
        return kept.left_out

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

    def encode_voices(
        self, voices: SpeakerAssignment, options: Options, context: RunContext
    ) -> list[SpeechFeatures]:
        """Compute each voice's speech features for each output frame; the longest sets the length.

        Raises:
            MediaError: a sound holds no sample.
        """

        def features(sound: AudioReader) -> SpeechFeatures:
            def published(tokens: int) -> int:
                return mel.published_frame_count(tokens, FPS)

            return encode_speech(
                self.nets.speech,
                sound,
                frames=published
                if options.length == "published"
                else math.ceil(sound.seconds * FPS),
                fps=FPS,
                windows=options.speech_windows,
            )

        with context.timed("speech"):
            speech = [features(sound) for sound in voices.sounds]
        log.info("%d frames; %s", max(map(len, speech)), options.changes())
        return speech

    def find_faces(
        self,
        source: FrameSource,
        at_most: int | None,
        options: Options,
        context: RunContext | None = None,
        choices: Sequence[FaceChoice] = (),
        cache: ClipCache | None = None,
    ) -> list[FaceTrack]:
        """Pass 1: where the chosen faces are in each of the first `at_most` frames.

        `choices` are `options.face`, unless there are several speakers; the rest, and the errors,
        as in `find_face_tracks`.
        """
        context = context or RunContext()
        with context.timed("detect"):
            return find_face_tracks(
                source,
                at_most,
                self.detector,
                choices or [FaceChoice.parse(options.face)],
                options,
                resolution=self.nets.config.resolution,
                context=context,
                cache=cache,
            )

    def generate(
        self,
        source: FrameSource,
        faces: Sequence[SpeakingFace],
        options: Options,
        context: RunContext | None = None,
        cache: ClipCache | None = None,
        engine: Engine | None = None,
    ) -> Generator[Any, None, None]:
        """Pass 2: the output's frames, in order; those without a face are the source's own.

        Each face is painted, by its own plan, onto what came of the one before.
        """
        context = context or RunContext()
        plan = faces[0].plan
        numbers = (int(i) for segment in plan for i in segment.source[segment.shared :])
        frames: Generator[Any, None, None] = context.each("decode", source.frames(numbers))
        side, extra = self.nets.config.resolution, (self.occluder, self.restorer(options))
        for face in faces:
            generator = self._generator(face, options, context, cache, engine)
            compositor = Compositor(generator, side, face, options, context, *extra)
            groups = prefetch(compositor.crop(frames), generator.batch)
            generated = prefetch(compositor.generate(groups))
            frames = prefetch(compositor.paste(generated), PREFETCH_PASTED_FRAMES)
        context.step("generate", 0, plan[-1].stop)
        with closing(frames):
            for done, frame in enumerate(frames, start=1):
                yield frame
                context.step("generate", done, plan[-1].stop)

    def _generator(
        self,
        face: SpeakingFace,
        options: Options,
        context: RunContext,
        cache: ClipCache | None,
        engine: Engine | None,
    ) -> CropGenerator:
        """Generates the crops of one face: here, or by an engine if groups can be parted."""
        if engine is not None:
            if is_order_independent(options):
                return engine.generator(options, face.uses, context)
            log.warning(
                "groups depend on each other (overlap, or a sampled posterior): generated here"
            )
        latents = None
        if cache is not None:
            side = self.nets.config.resolution
            facts = {"vae": self._vae_digest, "dtype": self.dtype, "side": side}
            latents = cache.latents(facts, face.track.affine, self.nets.unet.conv_in.weight)
        return Network(self.nets, options, face.uses, context, latents)

    @contextmanager
    def _cache(
        self, clip: VideoInfo, options: Options, context: RunContext
    ) -> Iterator[ClipCache | None]:
        """Open the clip's part of the cache; None where no cache folder is given."""
        if options.cache_dir is None:
            yield None
            return
        with Cache(options.cache_dir, options.cache_bytes) as folder:
            pace = "25" if clip.is_image else f"{options.fps} {options.conversion}"
            with context.timed("read"):
                cache = ClipCache(folder, clip.path, {"pace": pace})
            yield cache

    @cached_property
    def _vae_digest(self) -> str:
        return net_digest(self.nets.vae)

    def _where(self, engine: Engine | None) -> dict[str, Any]:
        """Return the fields of a `Result` that name the model, the detector and the machine."""
        return {
            "model": self.nets.config.name,
            "detector": self.detector.name,
            "device": engine.device if engine else str(self.device),
            "dtype": engine.dtype if engine else str(self.dtype).removeprefix("torch."),
            "peak_memory": peak_memory(self.device),
        }


def _check_output(
    output: Path,
    video: Path | str,
    audio: Path | str | Mapping[str, Path | str],
    options: Options,
) -> None:
    """Refuse before anything is read what can't be written, or would replace an input."""
    inputs = [video, *([audio] if isinstance(audio, Path | str) else audio.values())]
    check_output(output, inputs)
    if options.report:
        check_output(report_path(output), (*inputs, output), (".json",))
    check_codec(options.codec)


def _warn_of_unordered_frames(clip: VideoReader) -> None:
    """Warn of frames that are dropped because their time is not after the one before."""
    if clip.counts.behind:
        log.warning(
            "%d of %d frames of %r have a time that is not after the one before, and are not"
            " shown: if the output stutters, rewrite the clip: ffmpeg -i IN -r 25 OUT.mp4",
            *(clip.counts.behind, clip.counts.decoded, str(clip.path)),
        )
