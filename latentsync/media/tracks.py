"""Choice of a file's sound track, and the codes of languages."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer

from latentsync.errors import MediaError
from latentsync.media.container import decode, demux, open_media, quote_path
from latentsync.media.limits import Limits

__all__ = [
    "AUTO",
    "ONLY_TRACK",
    "SILENCE_LEVEL",
    "AudioTrack",
    "choose_track",
    "language_code",
    "quicktime_code",
    "sound_streams",
]

log = logging.getLogger(__name__)

AUTO = "auto"
SILENCE_LEVEL = 10 ** (-70 / 20)  # of full scale: the absolute gate of ITU-R BS.1770-5
_NO_LANGUAGE_CODES = ("", "und", "zxx", "mis", "mul")  # ISO 639-2's codes that name no language
# Of each language the ISO 639-1 code and the 639-2/T one, joined; then 639-2/B where it differs.
_TWO_AND_THREE = (
    "aaaar ababk aeave afafr akaka amamh anarg arara asasm avava ayaym azaze babak bebel bgbul "
    "bibis bmbam bnben bobod brbre bsbos cacat ceche chcha cocos crcre csces cuchu cvchv cycym "
    "dadan dedeu dvdiv dzdzo eeewe elell eneng eoepo esspa etest eueus fafas ffful fifin fjfij "
    "fofao frfra fyfry gagle gdgla glglg gngrn guguj gvglv hahau heheb hihin hohmo hrhrv hthat "
    "huhun hyhye hzher iaina idind ieile igibo iiiii ikipk ioido isisl itita iuiku jajpn jvjav "
    "kakat kgkon kikik kjkua kkkaz klkal kmkhm knkan kokor krkau kskas kukur kvkom kwcor kykir "
    "lalat lbltz lglug lilim lnlin lolao ltlit lulub lvlav mgmlg mhmah mimri mkmkd mlmal mnmon "
    "mrmar msmsa mtmlt mymya nanau nbnob ndnde nenep ngndo nlnld nnnno nonor nrnbl nvnav nynya "
    "ococi ojoji omorm orori ososs papan pipli plpol pspus ptpor quque rmroh rnrun roron rurus "
    "rwkin sasan scsrd sdsnd sesme sgsag sisin skslk slslv smsmo snsna sosom sqsqi srsrp ssssw "
    "stsot susun svswe swswa tatam tetel tgtgk ththa titir tktuk tltgl tntsn toton trtur tstso "
    "tttat twtwi tytah uguig ukukr ururd uzuzb veven vivie vovol wawln wowol xhxho yiyid yoyor "
    "zazha zhzho zuzul "
)
_B_AND_T = (
    "albsqi armhye baqeus burmya chizho czeces dutnld frefra geokat gerdeu greell iceisl macmkd "
    "maomri maymsa perfas rumron sloslk tibbod welcym "
)
_B_OF_T = {pair[3:]: pair[:3] for pair in _B_AND_T.split()}
_CODES = {pair[:-3]: pair[-3:] for pair in (_TWO_AND_THREE + _B_AND_T).split()}


@dataclass(frozen=True)
class AudioTrack:
    """One sound track of a file."""

    number: int  # from 1, among the file's sound tracks
    of: int  # how many there are
    language: str = ""  # ISO 639-2/T, "deu" for instance; "" where the file doesn't say

    def __str__(self) -> str:
        named = f"track {self.number} of {self.of}"
        return f"{named} ({self.language})" if self.language else named


ONLY_TRACK = AudioTrack(1, 1)


def quicktime_code(code: str) -> str:
    """Convert an ISO 639-2/T code to 639-2/B, which FFmpeg's QuickTime writer takes."""
    return _B_OF_T.get(code, code)


def language_code(text: str) -> str:
    """Return the ISO 639-2/T code of "de", "ger", "deu" or "de-AT"; "" for no language."""
    code = text.strip().lower().replace("_", "-").partition("-")[0]
    code = _CODES.get(code, code)
    return "" if code in _NO_LANGUAGE_CODES else code


def sound_streams(container: InputContainer) -> list[AudioStream]:
    """Return a file's sound tracks, in order, without those that no decoder reads."""
    return [stream for stream in container.streams.audio if stream.codec_context is not None]


def choose_track(
    container: InputContainer, path: Path, limits: Limits, wanted: str | int
) -> AudioTrack:
    """Choose the first track of a file, opened from `path`, by its number or language.

    "auto" is FFmpeg's choice (the track marked as default, then the one of most channels), unless
    that is silent from start to end and another one isn't: then the first of the others.

    Raises:
        MediaError: the file has no sound, or no such track.
    """
    streams = sound_streams(container)
    if not streams:
        raise MediaError(f"{quote_path(path)} has no sound: give a file with a sound stream")
    codes = [language_code(stream.metadata.get("language", "")) for stream in streams]
    tracks = [AudioTrack(n, len(streams), code) for n, code in enumerate(codes, 1)]
    if wanted != AUTO:
        return _find_track(tracks, str(wanted), quote_path(path))
    best = container.streams.best("audio")
    first = tracks[streams.index(best) if isinstance(best, AudioStream) else 0]
    if first.of == 1:
        return first
    by_rank = [first, *(one for one in tracks if one is not first)]
    track = next((one for one in by_rank if not _is_silent(path, limits, one)), first)
    silence = "" if track is first else f", for track {first.number} is silent"
    level = logging.WARNING if silence else logging.INFO
    log.log(level, "the sound of %s is %s%s", quote_path(path), track, silence)
    return track


def _find_track(tracks: list[AudioTrack], wanted: str, name: str) -> AudioTrack:
    if wanted.isdecimal() and 1 <= int(wanted) <= len(tracks):
        return tracks[int(wanted) - 1]
    code = language_code(wanted)
    fitting = [track for track in tracks if code and track.language == code]
    if fitting:
        return fitting[0]
    listed = ", ".join(f"{one.number} ({one.language or 'no language'})" for one in tracks)
    has = f"one of {listed}" if len(tracks) > 1 else f"{listed}, the only one, or leave it out"
    raise MediaError(f"{name} has no sound track {wanted!r}: give {has}")


def _is_silent(path: Path, limits: Limits, track: AudioTrack) -> bool:
    """Read a track up to the first sample that is louder than silence; True if there is none."""
    with open_media(path, limits) as container:
        for packet in demux(container, sound_streams(container)[track.number - 1]):
            for frame in decode(packet, AudioFrame):
                samples = np.asarray(frame.to_ndarray(), np.float64)
                if frame.format.name.startswith("u8"):
                    samples = samples / 128 - 1
                elif frame.format.name.startswith("s"):
                    samples = samples / 2 ** (8 * frame.format.bytes - 1)
                if np.abs(samples).max(initial=0) > SILENCE_LEVEL:
                    return False
    return True
