"""Clips, pictures and sound, in and out; the only importer of PyAV.

a file ->  formats.py     which formats are read, and the names of those that aren't
           limits.py preflight.py   upper limits, and what a file claims before it is opened
           container.py   opens a file by its content, reads its packets
           timestamps.py  closes jumps of its clock; gives a time to every frame
           crop.py        the cropping that the container asks for
           tonemap.py     PQ and HLG to SDR first, once, by FFmpeg's binary
           decoder.py     decodes and deinterlaces, from any position
           reader.py      frames by number: at a constant rate, or each source frame once
           frame.py       one picture as it was decoded: RGB of a region, a region pasted in
           tracks.py      choice of the sound track
           audio.py       sound as mono samples, as it is, or several voices mixed
           tags.py        time code, titles, languages: what is kept, and what is left out
a file <-  writer.py      the one encode, with the sound, moved into place at the end
           output_sound.py  the original's packets, or encoded anew
           encoders.py    which encoders there are, and the sizes that each takes
"""

from latentsync.media.audio import AudioReader, Sound, mix
from latentsync.media.container import (
    AudioFacts,
    MediaFacts,
    VideoFacts,
    open_media,
    probe,
    refused_address,
    same_file,
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
    "same_file",
]
