"""Which face speaks with which sound, and what the output sounds like."""

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentsync.audio.vad import detect_speech
from latentsync.audio.whisper import SpeechFeatures
from latentsync.errors import OptionError, option_name
from latentsync.faces import FaceChoice
from latentsync.media import AudioReader, Limits, Sound, decided, first_shown, mix
from latentsync.options import Options
from latentsync.pipeline import timeline
from latentsync.pipeline.frame_source import FPS
from latentsync.pipeline.timeline import AudioSpan, Timeline

__all__ = ["SpeakerAssignment", "align_speech", "audio_span", "speakers"]

logger = logging.getLogger(__name__)

CLOSING = 3  # frames in which a mouth closes where silence is to close it
LAST_WORD = Fraction(1, 5)  # s after a sound's end in which a mouth that goes on being drawn closes


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

    def read(self) -> list[Sound]:
        """The sounds that are heard, each as its file has it."""
        return [sound.sound for sound in self.sounds]

    def named(self) -> dict[str, str]:
        """Face -> sound, as a report says it."""
        pairs = zip(self.choices, self.sounds, strict=True)
        return {str(choice): str(sound.path) for choice, sound in pairs}

    def tracks(self) -> dict[str, str]:
        """Face -> which track of its sound's file is heard, and its format."""
        pairs = zip(self.choices, self.sounds, strict=True)
        return {str(choice): sound.described() for choice, sound in pairs}


@contextmanager
def speakers(
    audio: Path | str | Mapping[str, Path | str],
    options: Options,
    limits: Limits,
    video: Path | str,
) -> Iterator[SpeakerAssignment]:
    """Look at the sounds; where there are several, their sum is a temporary file.

    The clip's own keeps its place beside the pictures: what sounds before the first is left out.

    Raises:
        OptionError: a face is none, or given beside `options.face`.
        MediaError: a sound can't be used.
    """
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
        first_shown(video, limits) if _same(path, video) else None for path in voices.values()
    ]
    sounds = tuple(
        AudioReader(path, limits=limits, start=start, track=options.audio_track)
        for path, start in zip(voices.values(), starts, strict=True)
    )
    for sound in sounds:
        if sound.silent:
            logger.warning(
                "the sound of %r is silent (%s): give another%s",
                *(str(sound.path), sound.sound.track),
                ", or choose another of its tracks" if sound.sound.track.of > 1 else "",
            )
    if not several:
        yield SpeakerAssignment(choices, sounds, decided(sounds[0].sound, sounds[0].uniform))
        return
    with tempfile.TemporaryDirectory(prefix="latentsync-") as folder:
        together = Path(folder, "voices.flac")
        mix([sound.sound for sound in sounds], together)
        yield SpeakerAssignment(
            choices, sounds, _in_one_language(Sound.of(together, limits), sounds)
        )


def _in_one_language(together: Sound, sounds: Sequence[AudioReader]) -> Sound:
    """The sum of sounds, with their language where that is one."""
    languages = {sound.sound.track.language for sound in sounds}
    language = languages.pop() if len(languages) == 1 else ""
    return replace(together, track=replace(together.track, language=language))


def _same(path: Path | str, other: Path | str) -> bool:
    """Whether both are one file, by whatever names."""
    try:
        return Path(path).samefile(other)
    except (OSError, ValueError):  # whoever opens them says what is wrong
        return False


def align_speech(
    sound: AudioReader, speech: SpeechFeatures, shown: Timeline, voice: AudioSpan, options: Options
) -> tuple[SpeechFeatures, NDArray[np.bool_]]:
    """What a face hears beside the output's frames, and in which of them it speaks, (n,).

    Args:
        sound: the face's own.
        speech: the same, as the network hears it.
        voice: the longest one of all; a face whose sound ends before keeps its mouth shut then.

    Raises:
        OptionError: the output ends before the voice begins.
    """
    if shown.seconds <= voice.after:
        raise OptionError(
            f"{option_name('lead_in')} is {options.lead_in:g} s, but the clip ends after"
            f" {float(shown.seconds):.2f} s, and with {option_name('sync_mode')}"
            f" {options.sync_mode} so does the output: choose a smaller one, or another mode"
        )
    begins = shown.begins[:-1]
    speech = speech.at(begins, shown.tick, voice.after)
    end = voice.after + sound.seconds + LAST_WORD
    sounding = begins < math.ceil(end / shown.tick)
    speaks = shown.speaks
    if options.silence != "generate":
        aloud = detect_speech(sound).at(begins, shown.tick, voice.after)
        if options.silence == "keep":
            speaks = speaks & aloud
        else:
            sounding = sounding & aloud
    if not sounding[speaks].all():
        speech = replace(speech, weight=timeline.fading(sounding, CLOSING))
    return speech, speaks


def audio_span(longest: Fraction, frames: int, options: Options) -> AudioSpan:
    """All voices together, `frames` long at 25 fps, and the time around them."""
    return AudioSpan(
        seconds=frames / FPS if options.length == "published" else longest,
        after=Fraction(options.lead_in).limit_denominator(1000),
        then=Fraction(options.lead_out).limit_denominator(1000),
    )
