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
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from latentsync import align, faces, mel, timeline
from latentsync.config import MAX_SEED, Options
from latentsync.devices import choose
from latentsync.errors import NoFaceFound
from latentsync.media import AudioReader, VideoReader, VideoWriter, check_output
from latentsync.models.attention import attention_backend
from latentsync.painter import Painter
from latentsync.reporter import Reporter
from latentsync.speech import SpeechFeatures
from latentsync.types import FaceTrack, Progress, ProgressCallback, Result, Segment, VideoInfo
from latentsync.weights import Nets, load_nets, root

__all__ = ["Clip", "LipSync"]

log = logging.getLogger(__name__)

FPS = Fraction(25)  # the rate the published nets were trained at


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
            cancelled: asked before every frame of pass 1 and every group of pass 2.

        Raises:
            InputError: a file can't be used, no face is found, the output can't be written.
            Cancelled: `cancelled` said so. Then as in every failure nothing is left behind, and an
                output that was there before is untouched.
        """
        options = replace(options or Options(), **changes)
        options = replace(options, seed=options.seed or 1 + secrets.randbelow(MAX_SEED))
        reporter = Reporter(progress, cancelled)
        check_output(output, (video, audio))
        with reporter.timed("read"):
            clip, sound = VideoReader(video), AudioReader(audio)
        with reporter.timed("speech"):
            speech = self.listen(sound, options)
        log.info("%d frames, %s, detector %s", len(speech), options, self.detector.describe())
        with reporter.timed("detect"):
            total = _frames_to_look_at(clip.info, len(speech))
            track = self.find_faces(clip, len(speech), options, reporter, total=total)
        source = timeline.source_frames(len(speech), len(track), options.turn)
        plan = timeline.segments(source, track.found, options.groups)
        with VideoWriter(output, audio=audio, fps=FPS, crf=options.crf) as writer:
            for frame in self.generate(clip, speech, track, plan, options, reporter):
                with reporter.timed("write"):
                    writer.write(frame)
            reporter.step("finish", 0, 1)
        reporter.tell(Progress("finish", 1, 1))
        return self._result(Path(output), clip.info, track, plan, options, reporter)

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
        at_most: int,
        options: Options,
        reporter: Reporter | None = None,
        *,
        total: int | None = None,
    ) -> FaceTrack:
        """Pass 1: where the face is in each of the clip's first `at_most` frames.

        `total` is for the reporter: how many frames the clip will give, where that is known.

        Raises:
            NoFaceFound: in none of them.
        """
        reporter = reporter or Reporter()
        found = faces.track(
            (frame.rgb() for frame in islice(clip.frames(), at_most)),
            self.detector,
            rounded=options.landmarks == "rounded",
            total=total,
            progress=reporter,
        )
        reporter.step("detect", len(found.found), len(found.found))
        track = align.face_track(found.points, found.found, self.nets.config.resolution)
        if not track.found.any():
            seconds = float(len(track) / FPS)
            raise NoFaceFound(
                f"no face in the {len(track)} frames looked at (0-{seconds:.2f} s of the clip) "
                f"by {self.detector.describe()}; give a clip with a larger or "
                "more frontal face, or choose another detector"
            )
        if not track.found.all():
            log.info("no face in %d of %d source frames", (~track.found).sum(), len(track))
        return track

    def generate(
        self,
        clip: Clip,
        speech: SpeechFeatures,
        track: FaceTrack,
        plan: list[Segment],
        options: Options,
        reporter: Reporter | None = None,
    ) -> Iterator[Any]:
        """Pass 2: the output's frames, in order; those without a face are the source's own."""
        reporter = reporter or Reporter()
        painter = Painter(self.nets, options, options.seed, reporter)
        pictures = clip.frames(int(i) for segment in plan for i in segment.source)
        for segment in plan:
            reporter.step("generate", segment.start, plan[-1].stop)
            with reporter.timed("decode"):
                shown = list(islice(pictures, len(segment)))
            if segment.passthrough:
                yield from shown
            else:
                audio = speech[segment.start : segment.stop]
                yield from painter.paint(shown, segment, track, audio)
        reporter.step("generate", plan[-1].stop, plan[-1].stop)

    def _result(
        self,
        path: Path,
        clip: VideoInfo,
        track: FaceTrack,
        plan: list[Segment],
        options: Options,
        reporter: Reporter,
    ) -> Result:
        frames = plan[-1].stop
        return Result(
            path=path,
            frames=frames,
            fps=float(FPS),
            seconds=float(frames / FPS),
            width=clip.width + clip.width % 2,  # H.264 has no odd sizes
            height=clip.height + clip.height % 2,
            faces_found=int(track.found.sum()),
            source_frames=len(track),
            passed_through=timeline.passed_through(plan),
            model=self.nets.config.name,
            detector=self.detector.name,
            device=str(self.device),
            dtype=str(self.dtype).removeprefix("torch."),
            seed=options.seed,
            timings=reporter.timings(),
        )


def _frames_to_look_at(clip: VideoInfo, at_most: int) -> int | None:
    """How many frames pass 1 will see; None where only reading to the end will tell."""
    if clip.is_image:
        return 1
    return at_most if (clip.duration_seconds or 0) * FPS >= at_most else None
