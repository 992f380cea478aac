"""Clips and photos as people have them: each maker's line says what a person did to get it."""

from fractions import Fraction
from itertools import chain

import av
import cv2
import numpy as np

from tests.clips import ffmpeg, picture, write_picture
from tests.footage import faces
from tests.footage.faces import BERT, SECOND, SIDE

# ---- containers, codecs, names -------------------------------------------------------------------


def plain(zoo):
    """Filmed somebody for a second."""
    return zoo.film("plain.mp4", faces.frames(SECOND))


def talkie(zoo):
    """Filmed somebody with sound."""
    return zoo.convert("talkie.mp4", "-c:v copy -shortest", "plain", "speech:0.8")


def coded_as(zoo, kind):
    """Took it from another camera, program or site."""
    suffix, codec = kind.split("/")
    more = {
        "dnxhd": "-profile:v dnxhr_sq -pix_fmt yuv422p",
        "libvpx": "-b:v 1M",
        "libaom-av1": "-cpu-used 8 -crf 30",
    }
    words = f"-c:v {codec} {more.get(codec, '-q:v 3')}"
    return zoo.convert(f"coded_as_{codec}.{suffix}", words, "plain")


def named(zoo, name):
    """Gave it a name as people give names."""
    return zoo.copy("plain", {"newline": "two\nlines.mp4"}.get(name, name))


def one_frame(zoo):
    """Stopped the camera at once."""
    return zoo.film("one_frame.mp4", faces.frames(1))


def open_gop(zoo):
    """Took a broadcast, whose pictures lean on pictures before their key frame."""
    return zoo.convert("open_gop.ts", "-c:v mpeg2video -bf 2 -g 6 -q:v 2", "plain")


def without_times(zoo, suffix):
    """Converted it to a container that keeps no presentation times, with B-frames all the same."""
    return zoo.convert(f"without_times.{suffix}", "-c:v libx264 -bf 3 -crf 18", "plain")


def joined(zoo, suffix):
    """Put two recordings behind each other with `cat`; the second one's clock begins anew."""
    codecs = {"ts": "-c:v libx264 -c:a aac", "mpg": "-c:v mpeg2video -q:v 2 -c:a mp2"}[suffix]
    piece = zoo.convert(f"piece.{suffix}", f"{codecs} -bf 2", "talkie")
    path = zoo.at(f"joined.{suffix}")
    path.write_bytes(2 * piece.read_bytes())
    return path


def switched(zoo):
    """Recorded a broadcast that goes over to another size and sound in the middle."""
    small = "-vf scale=192:192 -pix_fmt yuv422p -ar 22050 -ac 2"
    parts = [
        zoo.convert(f"switched_{n}.ts", f"-c:v libx264 -c:a aac {how}", "talkie")
        for n, how in enumerate(("", small))
    ]
    path = zoo.at("switched.ts")
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def cut_by_copy(zoo):
    """Cut it without coding anew: an edit list hides the frames before the cut."""
    return zoo.convert("cut_by_copy.mp4", "-c copy", "plain", before="-ss 0.4")


def an_hour_in(zoo):
    """Recorded a broadcast that had been running for an hour."""
    return zoo.convert("an_hour_in.ts", "-c:v copy -output_ts_offset 3600", "plain")


# ---- sizes and pixels ----------------------------------------------------------------------------


def cropped(zoo, size):
    """Cut a piece out of it with a program that likes any size."""
    width, height = map(int, size.split("x"))
    x, y = (SIDE - width) // 2, (SIDE - height) // 2
    pieces = [frame[y : y + height, x : x + width] for frame in faces.frames(SECOND)]
    choices = {"pixel_format": "yuv444p"} if width % 2 or height % 2 else {}
    return zoo.film(f"cropped_{size}.mp4", pieces, **choices)


def scaled(zoo, size):
    """Filmed in another resolution, the person in the middle; a few frames."""
    width, height = map(int, size.split("x"))
    scenes = []
    for frame in faces.frames(3):
        scene = faces.wall(width, height)
        x = (width - height) // 2
        scene[:, x : x + height] = cv2.resize(frame, (height, height))
        scenes.append(scene)
    return zoo.film(f"scaled_{size}.mp4", scenes, preset="ultrafast")


def still_8k(zoo):
    """Photographed with a very good camera."""
    scene = faces.wall(7680, 4320)
    scene[:, 1680:6000] = cv2.resize(faces.frames(1)[0], (4320, 4320))
    return write_picture(zoo.at("still_8k.jpg"), scene)


def wallpaper(zoo, size):
    """Gave a picture for a whole wall."""
    width, height = map(int, size.split("x"))
    return write_picture(zoo.at(f"wallpaper_{size}.jpg"), faces.wall(width, height))


def specks(zoo, size):
    """Gave a counting pixel in place of a clip."""
    width, height = map(int, size.split("x"))
    return write_picture(zoo.at(f"specks_{size}.png"), picture(1, max(8, width), height)[:, :width])


def rotated(zoo, degrees):
    """Turned the phone; it notes so, and stores the pictures lying."""
    turns = int(degrees) // 90
    lying = [np.ascontiguousarray(np.rot90(f[:, 32:-32], turns)) for f in faces.frames(SECOND)]
    zoo.film(f"lying_{degrees}.mp4", lying)
    path = zoo.at(f"rotated_{degrees}.mp4")
    turn = ("-display_rotation", -int(degrees), "-i", zoo.at(f"lying_{degrees}.mp4"))
    ffmpeg(*turn, "-c", "copy", path)
    return path


def wide_pixels(zoo):
    """Took it from a DVD, whose pixels are wider than high."""
    return zoo.convert("wide_pixels.mp4", "-vf scale=192:256,setsar=4/3", "plain")


def interlaced(zoo):
    """Took it from a tape: two half pictures in each frame."""
    woven = "fps=50,tinterlace=interleave_top,setfield=tff"
    return zoo.convert("interlaced.mp4", f"-vf {woven} -x264opts tff=1", "plain")


def pixels(zoo, kind):
    """Exported from an editor with more, fewer or other bits a pixel than cameras have."""
    codec = {"rgb24": "libx264rgb"}.get(kind, "libx264")
    words = f"-c:v {codec} -pix_fmt {kind} -crf 15"
    return zoo.convert(f"pixels_{kind}.mkv", words, "plain")


def full_range(zoo):
    """Filmed with a phone that uses all 256 levels."""
    words = "-vf scale=out_range=full,format=yuvj420p -color_range pc"
    return zoo.convert("full_range.mp4", words, "plain")


def hdr(zoo, curve):
    """Filmed with HDR on."""
    graded = (
        "zscale=transfer=linear:npl=203,format=gbrpf32le,zscale=primaries=bt2020,"
        f"zscale=transfer={curve}:npl=203:matrix=bt2020nc:range=limited,format=yuv420p10le"
    )
    known = "setparams=color_primaries=bt709:color_trc=bt709:colorspace=bt709:range=limited"
    words = f"-vf {known},{graded} -c:v libx265 -x265-params log-level=none -tag:v hvc1"
    return zoo.convert(f"hdr_{curve}.mp4", words, "plain")


def alpha(zoo, suffix):
    """Cut the person out of the background."""
    codec = {
        "mov": "-c:v prores_ks -profile:v 4444 -pix_fmt yuva444p10le",
        "webm": "-c:v libvpx-vp9 -pix_fmt yuva420p -b:v 1M -cpu-used 8",
    }
    keys = "format=gbrp,split[a][b];[b]geq='lum=255*lt(hypot(X-128,Y-128),120)',format=gray[c]"
    words = f'-filter_complex "{keys};[a][c]alphamerge" {codec[suffix]}'
    return zoo.convert(f"alpha.{suffix}", words, "plain")


def photo(zoo, suffix):
    """Took a photo."""
    return write_picture(zoo.at(f"photo.{suffix}"), faces.frames(1)[0])


def sticker(zoo, suffix):
    """Made a moving picture for a chat."""
    return zoo.convert(f"sticker.{suffix}", "-r 12.5 -loop 0", "plain")


# ---- time ----------------------------------------------------------------------------------------


def rate(zoo, fps):
    """Filmed at another rate: a second of it."""
    wanted = Fraction(fps.replace("_", "/"))
    return zoo.film(f"rate_{fps}.mp4", faces.frames(round(wanted)), fps=wanted)


def uneven(zoo):
    """Filmed with a phone, which skips frames in the dark."""
    milliseconds = [0, 33, 66, 133, 166, 266, 300, 333, 400, 433, 466, 600, 633, 700, 733, 800]
    times = [Fraction(at, 1000) for at in milliseconds]
    return zoo.film("uneven.mp4", faces.frames(len(times)), times=times)


def slides(zoo):
    """Recorded a screen on which next to nothing moved."""
    times = [Fraction(0), Fraction(1, 2), Fraction(9, 10)]
    return zoo.film("slides.mp4", faces.frames(3), times=times)


# ---- scenes --------------------------------------------------------------------------------------


def two_people(zoo):
    """Filmed two people beside each other."""
    return zoo.film("two_people.mp4", faces.side_by_side(SECOND))


def crossing(zoo):
    """Filmed two people who change sides, one in front of the other."""
    return zoo.film("crossing.mp4", faces.crossing(SECOND))


def away_and_back(zoo):
    """Looked away with the camera, and back."""
    shifts = [*[0] * 8, *np.linspace(0, 1, 5), *[1] * 6, *np.linspace(1, 0, 5), *[0] * 8]
    return zoo.film("away_and_back.mp4", faces.panned(shifts))


def cuts(zoo, count):
    """Edited it: another person every so many frames, three times."""
    shots = [faces.frames(int(count), who) for who in (faces.ANNE, BERT, faces.ANNE)]
    return zoo.film(f"cuts_{count}.mp4", [*chain(*shots)])


def black_start(zoo):
    """Faded in from black."""
    black = np.zeros((SIDE, SIDE, 3), np.uint8)
    return zoo.film("black_start.mp4", [black] * 6 + faces.frames(19))


def nobody(zoo):
    """Filmed the wall."""
    return zoo.film("nobody.mp4", [picture(index, SIDE, SIDE) for index in range(10)])


def tiny_face(zoo):
    """Filmed somebody from across the street."""
    return zoo.film("tiny_face.mp4", faces.tiny(10))


def upside_down(zoo):
    """Held the camera the wrong way up; nothing notes it."""
    turned = [np.ascontiguousarray(np.rot90(frame, 2)) for frame in faces.frames(10)]
    return zoo.film("upside_down.mp4", turned)


# ---- broken --------------------------------------------------------------------------------------


def missing(zoo):
    """Mistyped the name."""
    return zoo.at("missing.mp4")


def empty(zoo):
    """Ran out of space while it was saved."""
    zoo.at("empty.mp4").write_bytes(b"")
    return zoo.at("empty.mp4")


def text(zoo):
    """Gave the notes in place of the clip."""
    zoo.at("text.mp4").write_text("Scene 1. Somebody speaks.\n" * 50)
    return zoo.at("text.mp4")


def playlist(zoo):
    """Gave a list of clips, as streaming sites have them."""
    name = zoo("plain")
    zoo.at("playlist.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n")
    return zoo.at("playlist.m3u8")


def no_frames(zoo):
    """Pressed record and stop: an mp4 with a picture stream and no picture in it."""
    with av.open(str(zoo.at("no_frames.mp4")), "w") as output:
        stream = output.add_stream("libx264", 25)
        stream.width = stream.height = SIDE
        output.start_encoding()
    return zoo.at("no_frames.mp4")


def truncated(zoo, part):
    """Lost the connection: so many percent came through of a file of this kind."""
    kind, percent = part.split("/")
    words = "-c:v libx264 -g 5 -bf 2" + " -movflags +faststart" * (kind == "fast.mp4")
    whole = zoo.convert(f"whole.{kind}", words, "plain")
    path = zoo.at(f"truncated_{percent}.{kind}")
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * int(percent) // 100])
    return path


def half(zoo, wanted):
    """Lost the connection after half of any other file."""
    whole = zoo.folder / zoo(wanted)
    path = zoo.at(f"half_{whole.name}")
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return path


def scratched(zoo):
    """Kept it on a failing disk: a stretch in the middle is noise."""
    whole = bytearray((zoo.folder / zoo("an_hour_in")).read_bytes())
    middle = len(whole) // 2
    noise = np.random.default_rng(1).integers(0, 256, 3000, dtype=np.uint8).tobytes()
    whole[middle : middle + 3000] = noise
    zoo.at("scratched.ts").write_bytes(whole)
    return zoo.at("scratched.ts")


def grown(zoo):
    """Recorded a stream that changed its resolution on the way."""
    small, large = zoo.at("small.ts"), zoo.at("large.ts")
    for path, side, start in ((small, 192, 0), (large, SIDE, 1)):
        words = f"-output_ts_offset {start} -vf scale={side}:{side} -c:v mpeg2video -q:v 2"
        zoo.convert(path.name, words, "plain")
    zoo.at("grown.ts").write_bytes(small.read_bytes() + large.read_bytes())
    return zoo.at("grown.ts")
