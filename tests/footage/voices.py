"""Voices as people have them: each maker's line says what a person did to get it."""

import struct
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np

from latentsync.training.synthetic import Voice, speak
from latentsync.training.synthetic.speech import SAMPLE_RATE
from tests.clips import babble, write_sound
from tests.footage import faces

SPEECH = Path(__file__).parents[2] / "examples" / "speech.wav"
SECONDS = 0.6  # of most: fifteen frames, one group
NOTES = (("all", 50), ("the", 62), ("blue", 70), ("birds", 62))  # words and espeak-ng's pitches


def speech(zoo, seconds=str(SECONDS)):
    """Took a piece of a recording."""
    with wave.open(str(SPEECH)) as file:
        rate = file.getframerate()
        file.setpos(round(0.3 * rate))
        samples = np.frombuffer(file.readframes(round(float(seconds) * rate)), "<i2") / 32768
    return write_sound(zoo.at(f"speech_{seconds}.wav"), samples.astype(np.float32), rate)


def silent_voice(zoo):
    """Recorded with the microphone off."""
    return write_sound(zoo.at("silent_voice.wav"), np.zeros(9600, np.float32))


def telephone(zoo):
    """Kept a message from an answering machine: 8 kHz, 8 bit, mono."""
    return zoo.convert("telephone.wav", "-ac 1 -ar 8000 -c:a pcm_u8", "speech")


def cinema(zoo):
    """Exported all eight channels of a film's sound."""
    return zoo.convert("cinema.flac", "-af 'pan=7.1|FC=c0|FL=c0|BL=0.3*c0'", "speech")


def studio(zoo):
    """Recorded at 96 kHz, 24 bit, stereo."""
    return zoo.convert("studio.wav", "-ac 2 -ar 96000 -c:a pcm_s24le", "speech")


def coded(zoo, suffix):
    """Sent it through a messenger or a converter, whichever codec that likes."""
    words = {"amr": "-ar 8000 -ac 1", "dts": "-c:a dca -strict -2"}
    return zoo.convert(f"coded.{suffix}", words.get(suffix, ""), "speech")


def alac(zoo):
    """Took it from an Apple library."""
    return zoo.convert("alac.m4a", "-c:a alac", "speech")


def dolby(zoo):
    """Took the sound off a film: 5.1 AC-3 in Matroska."""
    return zoo.convert("dolby.mka", "-ac 6 -c:a ac3", "speech")


def stream_wave(zoo):
    """Piped a wave out of a program that did not know how long it would be."""
    path = zoo.copy("speech", "stream_wave.wav")
    data = bytearray(path.read_bytes())
    for at in (4, data.index(b"data") + 4):
        data[at : at + 4] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(data)
    return path


def samples(zoo, count):
    """Cut a recording down to next to nothing."""
    with wave.open(str(zoo.at(f"samples_{count}.wav")), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((babble(1)[: int(count)] * 32767).astype("<i2").tobytes())
    return zoo.at(f"samples_{count}.wav")


def cover(zoo):
    """Bought a song: MP3 with a picture of the album."""
    words = "-map 0 -map 1 -c:v copy -disposition:v:0 attached_pic"
    return zoo.convert("cover.mp3", words, "speech", "photo:png")


def dubbed(zoo):
    """Had it spoken in another language."""
    speech = speak("Guten Tag, schön dass du da bist!", Voice("de", "f4"))
    return write_sound(zoo.at("dubbed.mp3"), speech.wave / 32768, SAMPLE_RATE)


def song(zoo):
    """Took a song: somebody sings over a band, which begins alone."""
    sung = [
        speak(word, Voice(rate=80, pitch=pitch, pitch_range=0)).wave / 32768
        for word, pitch in NOTES
    ]
    vocals = np.concatenate([np.zeros(SAMPLE_RATE // 2), *sung])
    t = np.arange(len(vocals)) / SAMPLE_RATE
    vocals = np.interp(t + 0.0006 * np.sin(2 * np.pi * 6 * t), t, vocals)  # vibrato
    chord = sum(np.sin(2 * np.pi * hertz * t) for hertz in (220, 277, 330, 440))
    strum, beat = np.exp(-3 * (t % 0.5)), np.exp(-40 * (t % 0.25))
    drums = np.random.default_rng(0).standard_normal(len(t)) * beat
    left, right = (vocals + 0.03 * chord * strum + loud * drums for loud in (0.02, 0.03))
    return write_sound(zoo.at("song.mp3"), np.stack([left, right]).clip(-1, 1), SAMPLE_RATE)


def pauses(zoo):
    """Recorded two words with a second's silence between them."""
    with wave.open(str(zoo.folder / zoo("speech"))) as file:
        rate, word = file.getframerate(), file.readframes(file.getnframes())
    spoken = np.frombuffer(word, "<i2") / 32768
    parts = [spoken, np.zeros(rate), spoken]
    return write_sound(zoo.at("pauses.wav"), np.concatenate(parts).astype(np.float32), rate)


def late(zoo):
    """Filmed with a camera whose microphone wakes up 0.4 s after the pictures."""
    sound = babble(0.4, 48000)
    return zoo.film("late.mp4", faces.frames(20), sound=sound, sound_start=Fraction(2, 5))


def early(zoo):
    """Filmed with a camera whose pictures begin 0.4 s after the sound."""
    return zoo.convert(
        "early.mp4", "-map 0:v -map 1:a -c:v copy", "plain", "speech:0.8", before="-itsoffset 0.4"
    )


def gap(zoo):
    """Recorded a call in which the line went dead for a while."""
    cut = "aselect=lt(t\\,0.2)+gt(t\\,0.4)"
    return zoo.convert("gap.mka", f"-af '{cut}' -c:a pcm_s16le", "speech")


def wired_wrong(zoo):
    """Recorded with a cable whose one channel is wired the wrong way round."""
    return zoo.convert("wired_wrong.flac", "-af pan=stereo|c0=c0|c1=-0.9*c0", "speech")
