"""Tags that an output takes over from its inputs, and what is left out."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from av.container import InputContainer
from av.stream import Disposition

from latentsync.media.audio import Sound
from latentsync.media.container import frame_rate, open_media, quote_path, same_file, video_stream
from latentsync.media.frame import has_alpha
from latentsync.media.limits import DEFAULT_LIMITS, Limits
from latentsync.media.tracks import sound_streams

__all__ = ["OutputTags", "read_tags", "timecode_at"]

log = logging.getLogger(__name__)

# Tags that describe a clip, by FFmpeg's names, which MP4 can hold.
_KEPT_TAGS = (
    *("title", "artist", "album_artist", "composer", "album", "date", "genre", "copyright"),
    *("description", "synopsis", "show", "episode_id", "network", "keywords", "lyrics"),
)
_APPLE_PREFIX = "com.apple.quicktime."
_SYNONYMS = {"author": "artist", "creationdate": "creation_time", "displayname": "title"}
# Tags that programs write for themselves.
_TECHNICAL = re.compile(
    r"major_brand|minor_version|compatible_brands|encoder|encoded_by|duration|handler_name"
    r"|vendor_id|language|variant_bitrate|bps|number_of_\w+|_statistics_\w+|\w*uid|\w+_ul"
    r"|\w+_umid|\w*version\w*|product_name|company_name|application_platform|modification_date"
    r"|\w*package_name|timecode|creation_time|isvbr|devicename|deviceconformance\w*|wm/\w+"
)
_TIMECODE = re.compile(r"(\d\d):([0-5]\d):([0-5]\d)([:;.])(\d\d)")
_DROP_RATES = (Fraction(30000, 1001), Fraction(60000, 1001))  # frames/s; SMPTE ST 12-1


@dataclass(frozen=True)
class OutputTags:
    """The output's tags, and what of the inputs isn't in the output."""

    tags: dict[str, str] = field(default_factory=dict)  # by FFmpeg's names
    left_out: tuple[str, ...] = ()  # in words


def read_tags(
    video: Path | str, sounds: Iterable[Sound], fps: Fraction, limits: Limits = DEFAULT_LIMITS
) -> OutputTags:
    """Read the tags of a clip and of the sounds it is given; `fps` is the output's.

    Kept are creation time, time code (of the output's first frame), title and the like. A location
    is left out on purpose: who publishes a clip need not tell where they live.
    """
    sounds = tuple(sounds)
    with open_media(video, limits) as container:
        tags, left_out = _read_metadata(container)
        left_out += _list_streams(container)
        stream = video_stream(container)
        every = (container.metadata, *(one.metadata for one in container.streams))
        codes = [value for tag in every for key, value in tag.items() if key.lower() == "timecode"]
        code = codes[0] if codes else ""
        if code and stream is not None:
            at = timecode_at(code, frame_rate(stream) or fps, fps)
            if at is None:
                left_out.append(f"time code {code!r}, which is none")
            else:
                tags["timecode"] = at
        own = len(sound_streams(container))
        voiced = [one for one in sounds if same_file(one.path, video)]
        if own and not voiced:
            left_out.append("the clip's own sound" + (f", {own} tracks" if own > 1 else ""))
        for sound in sounds:
            if sound in voiced:
                left_out += _list_unused_tracks(sound, container)
            else:
                left_out += _list_unused(sound)
    left_out = list(dict.fromkeys(left_out))
    if left_out:
        log.info("not carried over from %s: %s", quote_path(video), "; ".join(left_out))
    return OutputTags(tags, tuple(left_out))


def timecode_at(code: str, rate: Fraction, fps: Fraction) -> str | None:
    """Convert a first frame's time code to another frame rate; None where it is none."""
    found = _TIMECODE.fullmatch(code.strip())
    usual, new = round(rate), round(fps)
    if not found or int(found[5]) >= usual or int(found[1]) > 23:
        return None
    frame = int(found[5]) * new // usual
    drop = found[4] != ":" and fps in _DROP_RATES
    if drop and found[3] == "00" and found[2][1] != "0":
        frame = max(frame, 2 * new // 30)  # drop-frame skips the first numbers of such minutes
    return f"{found[1]}:{found[2]}:{found[3]}{';' if drop else ':'}{frame:02d}"


def _read_metadata(container: InputContainer) -> tuple[dict[str, str], list[str]]:
    """Read a file's tags that are kept, and name those that are not."""
    said = {}
    for key, value in container.metadata.items():
        if value.strip():
            name = key.lower().removeprefix(_APPLE_PREFIX)
            said[_SYNONYMS.get(name, name)] = value
    stream = video_stream(container)
    if "creation_time" not in said and stream is not None and "creation_time" in stream.metadata:
        said["creation_time"] = stream.metadata["creation_time"]
    kept = {name: said[name] for name in (*_KEPT_TAGS, "creation_time") if name in said}
    rest = {name for name in said if name not in kept and not _TECHNICAL.fullmatch(name)}
    left_out = []
    if any(name.startswith("location") for name in rest):
        left_out.append("location (on purpose)")
    if "comment" in rest:
        left_out.append("comment (the output's own says how it was made)")
    others = sorted(n for n in rest if not n.startswith("location") and n != "comment")
    if others:
        left_out.append(f"tags {', '.join(others)}")
    return kept, left_out


def _list_streams(container: InputContainer) -> list[str]:
    """Name what a clip has beside its main pictures and sound."""
    left_out = []
    main = video_stream(container)
    if main is not None and (
        has_alpha(main.codec_context.pix_fmt or "")
        or main.metadata.get("alpha_mode") == "1"  # WebM's, which not every decoder reads
    ):
        left_out.append("alpha channel")
    pictures = [one for one in container.streams.video if one != main]
    covers = [one for one in pictures if one.disposition & Disposition.attached_pic]
    data = [s for s in container.streams.data if "timecode" not in map(str.lower, s.metadata)]
    counted = {
        "cover picture": len(covers),
        "other picture stream": len(pictures) - len(covers),
        "subtitle track": len(container.streams.subtitles),
        "data track": len(data),
        "attachment": len(container.streams.attachments),
        "chapter": len(container.chapters()),
    }
    return left_out + [
        f"{count} {what}{'s' if count > 1 else ''}" for what, count in counted.items() if count
    ]


def _list_unused(sound: Sound) -> list[str]:
    """Name the tracks and the tags of a sound's file that aren't used."""
    of_file = f" of {quote_path(sound.path.name)}"
    with open_media(sound.path, sound.limits) as container:
        left_out = [f"{one}{of_file}" for one in _list_unused_tracks(sound, container)]
        tags = sorted(_read_metadata(container)[0])
    return [*left_out, *([f"{', '.join(tags)}{of_file}"] if tags else [])]


def _list_unused_tracks(sound: Sound, container: InputContainer) -> list[str]:
    """Name the sound tracks of an open file beside that of `sound`, in one phrase."""
    languages = [s.metadata.get("language", "und") for s in sound_streams(container)]
    others = [
        f"{n}" if code == "und" else f"{n} ({code})"
        for n, code in enumerate(languages, 1)
        if n != sound.track.number
    ]
    return [f"sound track{'s' if len(others) > 1 else ''} {', '.join(others)}"] if others else []
