"""One picture: upright, 8-bit 4:2:0, in its colours; RGB and back without moving a sample."""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from latentsync.media import Colour, VideoFrame, VideoReader, VideoWriter, even_box, probe
from latentsync.types import Box
from tests.clips import number_of, picture, raw_frames, same, write_clip, write_picture

# ---- upright, 8-bit 4:2:0, with its colours ------------------------------------------------------


def turned(path: Path, matrix: tuple[int, int, int, int]) -> Path:
    """Give an mp4 a display matrix (a, b, c, d), as telephones do."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 44  # version and flags, five times, 8 reserved, four shorts
    a, b, c, d = (value << 16 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("matrix", "degrees", "upright"),
    [
        ((1, 0, 0, 1), 0, lambda p: p),
        ((0, 1, -1, 0), 90, lambda p: np.rot90(p, -1)),
        ((-1, 0, 0, -1), 180, lambda p: np.rot90(p, 2)),
        ((0, -1, 1, 0), 270, np.rot90),
        ((-1, 0, 0, 1), 0, np.fliplr),
        ((0, 1, 1, 0), 270, np.transpose),
    ],
)
def test_rotated_clips_come_upright(tmp_path, matrix, degrees, upright):
    path = turned(write_clip(tmp_path / "phone.mp4", 3), matrix)
    reader = VideoReader(path)
    for frame, raw in zip(reader.frames(), raw_frames(path), strict=True):
        assert (frame.height, frame.width) == (reader.info.height, reader.info.width)
        assert same(frame.planes(), [upright(plane) for plane in raw])
    assert probe(path).video.rotation == degrees


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda p: p),
        (2, np.fliplr),
        (3, lambda p: np.rot90(p, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, lambda p: np.rot90(p, -1)),
        (7, lambda p: np.rot90(p, 2).T),
        (8, np.rot90),
    ],
)
def test_photographs_come_upright(tmp_path, orientation, upright):
    path = write_picture(tmp_path / "a.jpg", picture(5))
    plain = next(VideoReader(path).frames()).planes()
    entry = struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entry
    data = path.read_bytes()
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + data[2:])
    frame = next(VideoReader(path).frames())
    assert same(frame.planes(), [upright(plane) for plane in plain])


# In a process of its own, which PyAV would crash, if only when all its objects go.
LOOK = "import sys; from latentsync.media import probe; print(probe(sys.argv[1]).video.width)"


def test_pictures_with_a_colour_profile_crash_nothing(tmp_path):
    path = write_picture(tmp_path / "a.png", picture(5))
    data, body = path.read_bytes(), b"iCCPname\0\0" + zlib.compress(bytes(600))
    profile = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    path.write_bytes(data[:33] + profile + data[33:])  # after the signature and the header
    look = [sys.executable, "-c", LOOK, path]
    done = subprocess.run(look, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "64\n", "")


@pytest.mark.parametrize(
    ("codec", "pixel_format", "tags"),
    [
        ("libx264", "yuv422p10le", {"colorspace": 9, "color_range": 1}),
        ("libx264", "yuv444p", {"colorspace": 1, "color_range": 2}),
        ("ffv1", "gray", {"color_range": 1}),
        ("ffv1", "gray", {"color_range": 2}),
        ("ffv1", "bgr0", {}),
        ("png", "rgba", {}),
        ("png", "gray", {}),
        ("mjpeg", "yuvj420p", {}),
        ("libx264", "yuvj420p", {"colorspace": 6, "color_range": 2}),
    ],
)
def test_every_pixel_format_becomes_the_same_picture(tmp_path, codec, pixel_format, tags):
    quality = {"crf": "4"} if codec == "libx264" else {"qscale": "1"} if codec == "mjpeg" else {}
    grey = np.repeat(picture(0)[..., 1:2], 3, axis=2)
    drawn = grey if pixel_format == "gray" else picture(0)
    path = tmp_path / f"clip.{'mov' if codec == 'png' else 'mkv'}"
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, 25, options=quality)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixel_format
        for name, value in tags.items():
            setattr(stream.codec_context, name, value)
        frame = av.VideoFrame.from_ndarray(drawn, "rgb24").reformat(
            format=pixel_format,
            src_color_range=2,
            dst_color_range=tags.get("color_range", 2 if "j" in pixel_format else 0),
            dst_colorspace={9: 9, 1: 1}.get(tags.get("colorspace", 6), 5),
        )
        if pixel_format == "gray":
            low, high = (16, 235) if tags.get("color_range") == 1 else (0, 255)
            samples = np.frombuffer(frame.planes[0], np.uint8).reshape(48, -1)
            samples[:, :64] = (low + grey[..., 0] * ((high - low) / 255)).round()
            frame.color_range = tags.get("color_range", 0)
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    (frame,) = VideoReader(path).frames()
    difference = np.abs(frame.rgb()[16:].astype(int) - drawn[16:])
    assert difference.mean() < 3
    assert frame.colour.range == {"yuvj420p": 2}.get(
        pixel_format, tags.get("color_range", frame.colour.range)
    )


def test_a_grey_photo_is_not_tagged_as_rgb(tmp_path):
    """Players would show its YUV as green and magenta."""
    photo = write_picture(tmp_path / "grey.png", picture(0)[..., 1])
    (frame,) = VideoReader(photo).frames()
    assert frame.colour.matrix == 6


def test_colour_tags_reach_the_output(tmp_path):
    tags = {"colorspace": 6, "color_range": 2, "color_primaries": 5, "color_trc": 1}
    path = write_clip(tmp_path / "clip.mp4", 3, pixel_format="yuvj420p", tags=tags)
    out = tmp_path / "out.mp4"
    with VideoWriter(out) as writer:
        for frame in VideoReader(path).frames():
            writer.write(frame)
    with av.open(str(out)) as container:
        context = container.streams.video[0].codec_context
        assert {name: getattr(context, name) for name in tags} == tags
        assert context.codec.name == "h264"
    assert next(VideoReader(out).frames()).colour == next(VideoReader(path).frames()).colour


# ---- RGB and back --------------------------------------------------------------------------------

COLOURS = [Colour(), Colour(matrix=1, range=1), Colour(matrix=5, range=2), Colour(matrix=9)]


def noisy(width: int, height: int, colour: Colour) -> VideoFrame:
    """Planes that a camera might give: smooth, with a few levels of noise."""
    rng = np.random.default_rng(1)
    smooth = VideoFrame.from_rgb(picture(9, width, height), colour)
    planes = [(p + rng.integers(-4, 5, p.shape)).clip(16, 235) for p in smooth.planes()]
    return VideoFrame(tuple(p.astype(np.uint8) for p in planes), colour)


@pytest.mark.parametrize("colour", COLOURS)
def test_rgb_follows_the_tagged_matrix_and_range(colour):
    red, blue = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}.get(colour.matrix, (0.299, 0.114))
    for y, u, v in ((100, 90, 180), (200, 140, 120), (60, 128, 128)):
        planes = (np.full((16, 16), y), np.full((8, 8), u), np.full((8, 8), v))
        frame = VideoFrame(tuple(p.astype(np.uint8) for p in planes), colour)
        luma = float(y) if colour.range == 2 else (y - 16) * 255 / 219
        scale = 1 if colour.range == 2 else 255 / 224
        r = luma + 2 * (1 - red) * (v - 128) * scale
        b = luma + 2 * (1 - blue) * (u - 128) * scale
        g = (luma - red * r - blue * b) / (1 - red - blue)
        assert np.abs(frame.rgb()[8, 8] - np.clip([r, g, b], 0, 255)).max() <= 1


@pytest.mark.parametrize("size", [(96, 64), (95, 63)])
def test_a_region_holds_the_values_of_the_whole(size):
    width, height = size
    frame = noisy(width, height, Colour())
    whole = frame.rgb()
    for rect in ((0, 0, 10, 10), (20, 14, 60, 40), (70, 40, width, height), (2, 2, 4, 4)):
        box = even_box(rect, width=width, height=height)
        assert np.array_equal(frame.rgb(box), whole[box.top : box.bottom, box.left : box.right])


@pytest.mark.parametrize("size", [(160, 120), (159, 121), (90, 161)])
@pytest.mark.parametrize("colour", COLOURS)
def test_a_thumbnail_is_the_whole_picture_scaled(size, colour):
    frame = VideoFrame.from_rgb(picture(77, *size), colour)
    assert np.array_equal(frame.thumbnail(161), frame.rgb())
    small = frame.thumbnail(80)
    assert max(small.shape[:2]) == 80
    assert abs(small.shape[1] / small.shape[0] - size[0] / size[1]) < 0.02
    assert number_of(small) == 77
    expected = cv2.resize(frame.rgb(), small.shape[1::-1], interpolation=cv2.INTER_AREA)
    quarter = small.shape[0] // 4 + 3
    odd = size[0] % 2 or size[1] % 2  # where a place is off by up to a pixel of the whole
    difference = np.abs(small[quarter:].astype(int) - expected[quarter:]).mean()
    assert difference < (4 if odd else 1.5)


def test_regions_are_even_and_inside():
    assert even_box((3.2, 5.0, 9.1, 7.5), width=64, height=48) == Box(2, 4, 10, 8)
    assert even_box((-5, -5, 99, 99), width=63, height=47) == Box(0, 0, 63, 47)
    assert even_box((70, 0, 80, 9), width=64, height=48) is None
    assert even_box((-9, 0, 0, 9), width=64, height=48) is None
    frame = noisy(63, 47, Colour())
    for box in (
        Box(1, 0, 4, 4),
        Box(0, 0, 5, 4),
        Box(0, 0, 66, 4),
        Box(-2, 0, 4, 4),
        Box(4, 4, 4, 8),
    ):
        with pytest.raises(ValueError, match="even-aligned"):
            frame.rgb(box)


@pytest.mark.parametrize("size", [(96, 64), (95, 63)])
@pytest.mark.parametrize("colour", COLOURS)
def test_pasting_what_is_there_changes_nothing_and_a_change_stays_local(size, colour):
    width, height = size
    frame = noisy(width, height, colour)
    box = even_box((20, 20, width, height), width=width, height=height)
    rgb = frame.rgb(box)
    assert same(frame.pasted(box, rgb).planes(), frame.planes())

    rgb[8:21, 10:25] = rgb[8:21, 10:25][::-1] // 2 + 60
    pasted = frame.pasted(box, rgb)
    masks = [np.zeros(plane.shape, bool) for plane in frame.planes()]
    masks[0][28:41, 30:45] = True
    for mask in masks[1:]:
        mask[14:21, 15:23] = True
    for before, after, mask in zip(frame.planes(), pasted.planes(), masks, strict=True):
        assert np.array_equal(before[~mask], after[~mask])
        assert (before != after)[mask].mean() > 0.5

    red, blue = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}.get(colour.matrix, (0.299, 0.114))
    luma = rgb[8:21, 10:25] @ np.array([red, 1 - red - blue, blue])
    asked = luma if colour.range == 2 else 16 + luma * 219 / 255
    assert np.abs(pasted.planes()[0][28:41, 30:45] - asked).max() <= 1


def test_every_pixel_counts_in_the_chroma_that_is_written():
    frame = VideoFrame.from_rgb(np.full((32, 32, 3), 128, np.uint8))
    stripes = np.zeros((16, 16, 3), np.uint8)
    stripes[:, ::2], stripes[:, 1::2] = (200, 80, 80), (80, 80, 200)
    _, u, v = frame.pasted(Box(8, 8, 24, 24), stripes).planes()
    _, mean_u, mean_v = VideoFrame.from_rgb(np.full((4, 4, 3), (140, 80, 140), np.uint8)).planes()
    assert np.abs(u[6:10, 6:10].astype(int) - mean_u[0, 0]).max() <= 2
    assert np.abs(v[6:10, 6:10].astype(int) - mean_v[0, 0]).max() <= 2


@pytest.mark.parametrize("size", [(96, 64), (95, 63)])
def test_a_picture_is_laid_on_by_its_weight(size):
    width, height = size
    frame = noisy(width, height, Colour())
    box = even_box((20, 20, width, height), width=width, height=height)
    rgb = np.full((box.height, box.width, 3), (230, 90, 40), np.uint8)
    weight = np.zeros((box.height, box.width), np.uint8)
    weight[4:12, 6:14] = 255
    weight[4:12, 14:20] = 102
    pasted = frame.pasted(box, rgb, weight)
    full = VideoFrame.from_rgb(rgb, Colour()).planes()
    for plane, (before, after) in enumerate(zip(frame.planes(), pasted.planes(), strict=True)):
        step = 1 if plane == 0 else 2
        top, left, dyed = 20 // step, 20 // step, full[plane][0, 0]
        share = np.zeros(before.shape)
        share[top:, left:][: 12 // step, : 20 // step] = weight[:12:step, :20:step] / 255
        assert np.array_equal(before[share == 0], after[share == 0])
        expected = before + share * (dyed.astype(float) - before)
        assert np.abs(after - expected).max() <= 0.51
        assert (after != before).any()


def test_the_smallest_region_may_be_pasted():
    frame = noisy(63, 47, Colour())
    for box in (Box(62, 46, 63, 47), Box(0, 0, 2, 2)):
        white = np.full((box.height, box.width, 3), 255, np.uint8)
        for weight in (None, np.full((box.height, box.width), 255, np.uint8)):
            luma, u, v = frame.pasted(box, white, weight).planes()
            assert (luma[box.top : box.bottom, box.left : box.right] == 235).all()
            assert u[box.top // 2, box.left // 2] == v[box.top // 2, box.left // 2] == 128
            assert (luma != frame.planes()[0]).sum() == box.width * box.height
