"""Draw docs/steps.png: what the network is shown of examples/face.mp4, step by step."""

from pathlib import Path

import cv2
import numpy as np

from latentsync import faces
from latentsync.faces import align
from latentsync.faces.mask import keep_mask
from latentsync.media import VideoReader

ROOT = Path(__file__).parent.parent
FRAME, SIDE = 30, 256


def main() -> None:
    picture = next(VideoReader(ROOT / "examples/face.mp4").frames([FRAME]))
    frame = picture.rgb()
    found = faces.track([frame], faces.create("builtin", root=ROOT))
    affine = align.face_track(found.points, found.detected, SIDE).affine[0]
    size = (picture.width, picture.height)
    box = align.face_box(affine, SIDE, *size)
    crop = align.cut_face(picture.rgb(box), box, affine, SIDE)
    mask = keep_mask(SIDE)[..., None]
    masked = (crop * mask + 127.5 * (1 - mask)).astype(np.uint8)

    corners = np.array([[0, 0], [1, 0], [1, 1], [0, 1]]) * align.crop_size(SIDE)
    outline = cv2.transform(corners[None].astype(np.float32), cv2.invertAffineTransform(affine))
    marked = frame.copy()
    cv2.polylines(marked, [np.int32(outline[0] * 8)], True, (255, 255, 255), 2, cv2.LINE_AA, 3)
    for x, y in found.points[0]:
        cv2.circle(marked, (round(x), round(y)), 4, (255, 60, 60), -1, cv2.LINE_AA)
    tiles = [
        cv2.resize(t, (320, 320), interpolation=cv2.INTER_AREA) for t in (marked, crop, masked)
    ]
    gap = np.full((320, 12, 3), 255, np.uint8)
    sheet = np.hstack([tiles[0], gap, tiles[1], gap, tiles[2]])
    cv2.imwrite(str(ROOT / "docs/steps.png"), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))


if __name__ == "__main__":
    main()
