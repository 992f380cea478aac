"""Photos as cameras, scanners and programs write them."""

import struct

import cv2

from tests.clips import write_picture
from tests.footage import faces, heif


def turned_photo(zoo, orientation):
    """Took a photo with the phone turned: EXIF says so, in one of its ways."""
    back = {3: cv2.ROTATE_180, 6: cv2.ROTATE_90_COUNTERCLOCKWISE, 8: cv2.ROTATE_90_CLOCKWISE}
    lying = cv2.rotate(faces.frames(1)[0][:, 32:-32], back[int(orientation)])
    ok, data = cv2.imencode(".jpg", lying[..., ::-1])
    assert ok
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, int(orientation), 0)  # Orientation, a short
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 1) + entry + b"\0\0\0\0"
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    path = zoo.at(f"turned_photo_{orientation}.jpg")
    path.write_bytes(data.tobytes()[:2] + segment + data.tobytes()[2:])
    return path


def png(zoo, kind):
    """Saved it from a program that paints: 16 bits, grey, a palette, or see-through."""
    forms = {"16bit": "rgb48be", "grey": "gray", "palette": "pal8", "alpha": "rgba"}
    words = f"-frames:v 1 -pix_fmt {forms[kind]}"
    if kind == "palette":
        words = '-filter_complex "split[a][b];[a]palettegen[p];[b][p]paletteuse" -frames:v 1'
    return zoo.convert(f"{kind}.png", words, "photo:png")


def jpeg(zoo, kind):
    """Got it from a print shop, a scanner or a site: CMYK, grey, progressive."""
    from PIL import Image

    image = Image.fromarray(faces.frames(1)[0])
    image = image.convert({"cmyk": "CMYK", "grey": "L"}.get(kind, "RGB"))
    image.save(zoo.at(f"{kind}.jpg"), quality=95, progressive=kind == "progressive")
    return zoo.at(f"{kind}.jpg")


def avif(zoo):
    """Saved it from a site."""
    return zoo.convert("photo.avif", "-frames:v 1 -c:v libaom-av1 -still-picture 1", "photo:png")


def narrow(zoo):
    """Took a photo upright with a phone."""
    return write_picture(zoo.at("narrow.png"), faces.frames(1)[0][:, 32:-32])


def heic(zoo, tiles):
    """Took it with a phone that keeps photos as HEIC: HEVC in tiles, or in one piece."""
    face, rows = faces.frames(1)[0], round(int(tiles) ** 0.5)
    side = len(face) // rows
    path = zoo.at(f"photo{tiles}.heic")
    parts = [face[y * side :, x * side :][:side, :side] for y in range(rows) for x in range(rows)]
    path.write_bytes(
        heif.photo([heif.hevc(zoo.at("piece.mp4"), part) for part in parts], rows, side)
    )
    return path
