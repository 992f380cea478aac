"""Clips, pictures and sound, in and out; the only importer of PyAV.

a file ->  formats.py     which formats are read, and the names of those that aren't
           container.py   opened by its content, within limits.py
           timestamps.py  jumps of its clock closed; a time for every frame
           crop.py        the part of a picture that its container says is shown
           hdr.py         PQ and HLG to SDR first, once, by FFmpeg's binary
           decoder.py     decoded, deinterlaced, from any place on
           reader.py      frames by number: at a constant rate, or each source frame once
           frame.py       one picture as it was decoded: RGB of a region, a region pasted in
           tracks.py      which of several sound tracks
           sound.py       sound as mono chunks, or as it is
           mixing.py      several voices as one sound
           tags.py        time code, titles, languages: what is kept, and what is left out
a file <-  writer.py      the one encode, with the sound, moved into place at the end
           output_sound.py  the original's packets, or encoded anew
           encoders.py    which encoders there are, and what each can hold
"""

from latentsync.media.audio import AudioReader, Sound, mix
from latentsync.media.container import (
    AudioFacts,
    MediaFacts,
    VideoFacts,
    open_media,
    probe,
    refused_address,
)
from latentsync.media.encoders import CODECS, PRESETS, check_codec, output_size
from latentsync.media.frame import PIXEL_FORMAT, Colour, VideoFrame, even_box
from latentsync.media.limits import Limits
from latentsync.media.output_sound import decide_copy
from latentsync.media.reader import VideoReader, first_frame_time
from latentsync.media.tags import OutputTags, read_tags
from latentsync.media.writer import VideoWriter, check_output

__all__ = [
    "CODECS",
    "PIXEL_FORMAT",
    "PRESETS",
    "AudioFacts",
    "AudioReader",
    "Colour",
    "Limits",
    "MediaFacts",
    "OutputTags",
    "Sound",
    "VideoFacts",
    "VideoFrame",
    "VideoReader",
    "VideoWriter",
    "check_codec",
    "check_output",
    "decide_copy",
    "even_box",
    "first_frame_time",
    "mix",
    "open_media",
    "output_size",
    "probe",
    "read_tags",
    "refused_address",
]
