"""Clips as whole devices, programs and sites write them: all their habits at once, with sound."""

from fractions import Fraction
from itertools import accumulate

from tests.clips import ffmpeg
from tests.footage import faces

SOUND = "-c:a aac -ac 2 -ar 48000"


def phone(zoo):
    """Filmed upright with a phone, HDR on, and cut it there: turned, HLG, an edit list."""
    graded = (
        "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=limited,"
        "crop=192:256,transpose=cclock,zscale=transfer=linear:npl=203,format=gbrpf32le,"
        "zscale=primaries=bt2020,"
        "zscale=transfer=arib-std-b67:npl=203:matrix=bt2020nc:range=limited,format=yuv420p10le"
    )
    words = f"-vf {graded} -c:v libx265 -x265-params log-level=none {SOUND} -tag:v hvc1"
    lying = zoo.convert("phone_lying.mp4", words, "rate:30000_1001", "speech:1")
    ffmpeg("-ss", 0.2, "-display_rotation", -90, "-i", lying, "-c", "copy", zoo.at("phone.mov"))
    return zoo.at("phone.mov")


def selfie(zoo):
    """Filmed with the front camera, which notes that its pictures are mirrored."""
    mirrored = zoo.convert("mirrored.mp4", "-vf hflip", "plain")
    ffmpeg("-display_hflip", "-i", mirrored, "-c", "copy", zoo.at("selfie.mp4"))
    return zoo.at("selfie.mp4")


def messenger(zoo):
    """Got it by a messenger: small, baseline, mono, times in odd units."""
    words = "-c:v libx264 -profile:v baseline -crf 28 -video_track_timescale 15360"
    return zoo.convert("messenger.mp4", f"{words} -c:a aac -ac 1 -ar 44100", "rate:30", "speech:1")


def short(zoo):
    """Downloaded it from a site of short clips: portrait, in fragments."""
    words = "-vf crop=144:256 -c:v libx265 -x265-params log-level=none -tag:v hev1"
    muxer = "-movflags empty_moov+frag_keyframe+default_base_moof"
    return zoo.convert("short.mp4", f"{words} {SOUND} {muxer}", "rate:30", "speech:1")


def camcorder(zoo):
    """Took it off a camcorder's card: packets of 192 bytes, interlaced, wide pixels, AC-3."""
    woven = "fps=50,tinterlace=interleave_top,scale=192:256:interl=1,setfield=tff,setsar=4/3"
    words = f"-vf {woven} -c:v libx264 -x264opts tff=1 -c:a ac3 -ac 2 -mpegts_m2ts_mode 1"
    return zoo.convert("camcorder.mts", f"{words} -f mpegts", "plain", "speech:1")


def tape(zoo, suffix="avi"):
    """Copied a DV tape."""
    scaled = "scale=720:576,setsar=16/15,setfield=bff"
    return zoo.convert(f"tape.{suffix}", f"-vf {scaled} -c:v dvvideo -pix_fmt yuv420p", "plain")


def browser(zoo):
    """Recorded in a browser: a stream without duration or index, frames when they came."""
    milliseconds = [*accumulate([0, *[33, 34, 33, 16, 51, 33, 100, 33, 34, 33] * 3])]
    times = [Fraction(at, 1000) for at in milliseconds]
    zoo.film("came.mkv", faces.frames(len(times)), times=times)
    words = "-c:v libvpx -b:v 1M -fps_mode passthrough -c:a libopus -live 1 -cues_to_front 0"
    path = zoo.at("browser.webm")
    given = ("-i", zoo.at("came.mkv"), "-i", zoo.folder / zoo("speech:1.2"))
    path.write_bytes(ffmpeg(*given, *words.split(), "-f", "webm", "pipe:1"))
    return path


def screen(zoo):
    """Recorded a call on a screen: a frame a second while nothing moves, sixty while it does."""
    gaps = [1000, *[17, 17, 16] * 10, 500, *[33] * 5]
    times = [Fraction(at, 1000) for at in accumulate([0, *gaps])]
    return zoo.film("screen.mp4", faces.frames(len(times)), times=times)


def many_tracks(zoo):
    """Exported for television: two languages, subtitles, chapters and a time code beside it."""
    notes = zoo.at("notes.txt")
    notes.write_text(
        ";FFMETADATA1\ntitle=Take 2\n"
        "[CHAPTER]\nTIMEBASE=1/10\nSTART=0\nEND=5\ntitle=One\n"
        "[CHAPTER]\nTIMEBASE=1/10\nSTART=5\nEND=10\ntitle=Two\n"
    )
    lines = zoo.at("lines.srt")
    lines.write_text("1\n00:00:00,000 --> 00:00:00,900\nSomebody speaks.\n")
    path = zoo.at("many_tracks.mov")
    media = [zoo.folder / zoo(one) for one in ("silent_voice", "speech:1", "plain")]
    given = [part for one in (*media, lines, notes) for part in ("-i", one)]
    maps = "-map 0:a -map 1:a -map 2:v -map 3:s -map_metadata 4 -map_chapters 4"
    words = f"{maps} -c:v copy -c:a aac -c:s mov_text -timecode 10:00:00:00"
    chosen = "-disposition:a:0 0 -disposition:a:1 default -metadata:s:a:1 language=ger"
    ffmpeg(*given, *words.split(), *chosen.split(), path)
    return path


def silent_surround(zoo):
    """Filmed with a camera that writes 5.1 without a microphone, and the recorder's mono beside."""
    wide = "-filter:a:0 pan=5.1|c0=0*c0|c1=0*c0|c2=0*c0|c3=0*c0|c4=0*c0|c5=0*c0"
    words = f"-map 0:v -map 1:a -map 1:a -c:v copy {wide} -c:a aac -disposition:a:0 default"
    return zoo.convert("silent_surround.mkv", words, "plain", "speech:0.8")
