"""Which face speaks with which sound, and what the output sounds like."""

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentsync.audio.vad import detect_speech
from latentsync.audio.whisper import SpeechFeatures
from latentsync.errors import OptionError, option_name
from latentsync.faces import FaceChoice
from latentsync.media import (
    AudioReader,
    Limits,
    Sound,
    VideoReader,
    decide_copy,
    first_frame_time,
    mix,
    output_size,
    same_file,
)
from latentsync.options import Options
from latentsync.pipeline import timeline
from latentsync.pipeline.compositor import SpeakingFace
from latentsync.pipeline.frame_source import FPS, FrameSource
from latentsync.pipeline.timeline import AudioSpan, Timeline
from latentsync.runtime.progress import RunContext
from latentsync.types import FaceTrack

__all__ = [
    "Inputs",
    "SpeakerAssignment",
    "audio_span",
    "make_timeline",
    "open_inputs",
    "open_voices",
]

log = logging.getLogger(__name__)

CLOSING_FRAMES = 3  # in which a mouth closes where silence is to close it
LAST_WORD_SECONDS = Fraction(1, 5)  # after its sound's end, in which a drawn mouth closes


@dataclass(frozen=True)
class SpeakerAssignment:
    """The faces that speak, each with its sound, and the sound of the output."""

    choices: tuple[FaceChoice, ...]
    sounds: tuple[AudioReader, ...]
    together: Sound  # the one sound, or the sum of all

    @property
    def seconds(self) -> Fraction:
        """Of the longest sound."""
        return max(sound.seconds for sound in self.sounds)

    def sources(self) -> list[Sound]:
        """List the voices' sound streams, as their files have them."""
        return [sound.sound for sound in self.sounds]

    def named(self) -> dict[str, str]:
        """Face -> sound, as a report says it."""
        pairs = zip(self.choices, self.sounds, strict=True)
        return {str(choice): str(sound.path) for choice, sound in pairs}

    def tracks(self) -> dict[str, str]:
        """Face -> which track of its sound's file is heard, and its format."""
        pairs = zip(self.choices, self.sounds, strict=True)
        return {str(choice): sound.describe() for choice, sound in pairs}


@dataclass(frozen=True)
class Inputs:
    """The clip and the voices of one run."""

    clip: FrameSource
    voices: SpeakerAssignment


@contextmanager
def open_inputs(
    video: Path | str,
    audio: Path | str | Mapping[str, Path | str],
    options: Options,
    context: RunContext,
) -> Iterator[Inputs]:
    """Open the clip and the voices, whose length bounds how much of the clip is read.

    Raises:
        MediaError: one of them can't be used. OptionError: a face is none.
        OutputError: the codec can't hold pictures as large as the clip's.
    """
    with ExitStack() as stack:
        with context.timed("speech"):
            voices = stack.enter_context(open_voices(audio, options, video))
            exact = audio_span(voices.seconds, 0, replace(options, length="exact"))
        needed = exact.clip_needed(options.sync_mode)
        used = None if needed is None else float(needed) + 1  # "published" is 2 frames longer
        with context.timed("read"):
            reader = VideoReader(video, limits=Limits.of(options), used_seconds=used)
            stack.enter_context(reader)
            size = reader.info.width, reader.info.height
            output_size(*size, codec=options.codec, max_side=options.max_side)
            frames = FrameSource.of(reader, options.fps, options.conversion)
        yield Inputs(frames, voices)


@contextmanager
def open_voices(
    audio: Path | str | Mapping[str, Path | str], options: Options, video: Path | str
) -> Iterator[SpeakerAssignment]:
    """Look at the sounds; where there are several, their sum is a temporary file.

    The clip's own keeps its place beside the pictures: what sounds before the first is left out.

    Raises:
        OptionError: a face is none, or given beside `options.face`.
        MediaError: a sound can't be used.
    """
    limits = Limits.of(options)
    voices = {options.face: audio} if isinstance(audio, Path | str) else dict(audio)
    several = len(voices) > 1
    if not voices:
        raise OptionError("no voice: give a sound, or a sound for each face that speaks")
    if options.face not in {"largest", *voices}:
        raise OptionError(
            f"{option_name('face')} is {options.face!r}, but the speakers say which faces are meant"
        )
    choices = tuple(FaceChoice.parse(face) for face in voices)
    if several and any(choice.kind == "all" for choice in choices):
        raise OptionError("speaker 'all' beside others; name each face, or give one voice to all")
    starts = [
        first_frame_time(video, limits) if same_file(path, video) else None
        for path in voices.values()
    ]
    sounds = tuple(
        AudioReader(path, limits=limits, start=start, track=options.audio_track)
        for path, start in zip(voices.values(), starts, strict=True)
    )
    for sound in sounds:
        if sound.silent:
            log.warning(
                "the sound of %r is silent (%s): give another%s",
                *(str(sound.path), sound.sound.track),
                ", or choose another of its tracks" if sound.sound.track.of > 1 else "",
            )
    if not several:
        yield SpeakerAssignment(choices, sounds, decide_copy(sounds[0].sound, sounds[0].uniform))
        return
    with tempfile.TemporaryDirectory(prefix="latentsync-") as folder:
        path = Path(folder, "voices.flac")
        mix([sound.sound for sound in sounds], path)
        together, languages = Sound.of(path, limits), {one.sound.track.language for one in sounds}
        language = languages.pop() if len(languages) == 1 else ""
        track = replace(together.track, language=language)
        yield SpeakerAssignment(choices, sounds, replace(together, track=track))


def make_timeline(
    inputs: Inputs,
    speech: Sequence[SpeechFeatures],
    tracks: Sequence[FaceTrack],
    span: AudioSpan,
    options: Options,
    context: RunContext,
) -> tuple[Timeline, list[SpeakingFace]]:
    """Lay the clip out beside the voices, and give each face what it hears and when it speaks.

    Args:
        speech: of each voice.
        tracks: of each voice's face; of one voice, also of several faces.
        span: the longest voice of all; a face whose own ends before keeps its mouth shut then.

    Raises:
        OptionError: the output ends before the voice begins.
    """
    begins = inputs.clip.begins(len(tracks[0]))
    shown = timeline.lay_out(begins, inputs.clip.time_base, span, options.sync_mode)
    if shown.seconds <= span.lead_in:
        raise OptionError(
            f"{option_name('lead_in')} is {options.lead_in:g} s, but the clip ends after"
            f" {float(shown.seconds):.2f} s, and with {option_name('sync_mode')}"
            f" {options.sync_mode} so does the output: choose a smaller one, or another mode"
        )
    with context.timed("speech"):
        pairs = zip(inputs.voices.sounds, speech, strict=True)
        heard = [_speech_and_mouth(*pair, shown, span, options) for pair in pairs]
    if len(heard) == 1:
        heard *= len(tracks)
    faces = []
    for track, (features, speaks) in zip(tracks, heard, strict=True):
        starts = track.shot_start
        plan = timeline.segments(
            shown.source,
            speaks & track.detected[shown.source],
            options.groups,
            shot_start=None if starts is None else timeline.new_shots(shown.source, starts),
            fade=options.fade,
            overlap=options.overlap,
        )
        faces.append(SpeakingFace(track, plan, features))
    return shown, faces


def _speech_and_mouth(
    sound: AudioReader,
    speech: SpeechFeatures,
    shown: Timeline,
    span: AudioSpan,
    options: Options,
) -> tuple[SpeechFeatures, NDArray[np.bool_]]:
    """The speech at each output frame, and (n,) whether the mouth is drawn there."""
    begins = shown.begins[:-1]
    end = span.lead_in + sound.seconds + LAST_WORD_SECONDS
    before_end = begins < math.ceil(end / shown.time_base)
    speaks = shown.speaks
    if options.silence != "generate":
        voice_active = detect_speech(sound).at(begins, shown.time_base, span.lead_in)
        if options.silence == "keep":
            speaks = speaks & voice_active
        else:
            before_end = before_end & voice_active
    speech = speech.at(begins, shown.time_base, span.lead_in)
    if not before_end[speaks].all():
        speech = replace(speech, weight=timeline.fading(before_end, CLOSING_FRAMES))
    return speech, speaks


def audio_span(longest: Fraction, frames: int, options: Options) -> AudioSpan:
    """All voices together, `frames` long at 25 fps, and the time around them."""
    return AudioSpan(
        seconds=frames / FPS if options.length == "published" else longest,
        lead_in=Fraction(options.lead_in).limit_denominator(1000),
        lead_out=Fraction(options.lead_out).limit_denominator(1000),
    )
