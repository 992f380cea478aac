"""Clips, pictures and sound, in and out; the only importer of PyAV.

container.py opens every file that comes from outside and describes it; frame.py holds one picture
as it was decoded; reader.py and sound.py stream pictures and sound; writer.py encodes, once.
"""

from latentsync.media.container import AudioFacts, MediaFacts, VideoFacts, open_media, probe
from latentsync.media.frame import PIXEL_FORMAT, Colour, VideoFrame, even_box
from latentsync.media.reader import VideoReader
from latentsync.media.sound import AudioReader
from latentsync.media.writer import VideoWriter, check_output

__all__ = [
    "PIXEL_FORMAT",
    "AudioFacts",
    "AudioReader",
    "Colour",
    "MediaFacts",
    "VideoFacts",
    "VideoFrame",
    "VideoReader",
    "VideoWriter",
    "check_output",
    "even_box",
    "open_media",
    "probe",
]
