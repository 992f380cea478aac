"""Does the built-in detector find people on photographs, and nothing else?

    python benchmarks/photographs.py FOLDER --label     in an environment with mediapipe==0.10.21
    python benchmarks/photographs.py FOLDER
    python benchmarks/photographs.py --drawn            smiling and bearded drawn heads instead

FOLDER holds pictures of one's own. --label writes faces.json into it: where MediaPipe's two face
detectors see a face; look at it and correct it by hand. Without, faces of at least 60 px, on
pictures shrunk to 1600, are counted that the detector finds, and boxes where there is none. Then
the faces are painted over in their backgrounds' colour, and what is found on the rest is false.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from latentsync.faces import Builtin
from latentsync.training.synthetic import Identity, Mouth, draw
from latentsync.training.synthetic.scenes import draw_faceless, draw_pose
from latentsync.types import Frame

SIDE = 1600  # px, the most of a picture's
LEAST = 60  # px, width of MediaPipe's box; those of faces the detector accepts are that wide
SAME = 0.5  # of a face's width: how far a box's centre may lie from it
FACELESS = 200  # drawn pictures
Boxes = dict[str, list[list[float]]]


def label(folder: Path) -> None:
    import mediapipe

    kinds = (0, 1)  # near and far faces
    nets = [
        mediapipe.solutions.face_detection.FaceDetection(
            model_selection=kind, min_detection_confidence=0.5
        )
        for kind in kinds
    ]
    seen: Boxes = {}
    for name, picture in pictures(folder):
        height, width = picture.shape[:2]
        boxes: list[list[float]] = []
        for found in (one for net in nets for one in net.process(picture).detections or []):
            box = found.location_data.relative_bounding_box
            left, top = box.xmin * width, box.ymin * height
            placed = [left, top, left + box.width * width, top + box.height * height]
            if not any(alike(placed, other) for other in boxes):
                boxes.append(placed)
        seen[name] = boxes
    (folder / "faces.json").write_text(json.dumps(seen, indent=1))


def pictures(folder: Path) -> Iterator[tuple[str, Frame]]:
    for path in sorted(folder.iterdir()):
        picture = cv2.imread(str(path))
        if picture is None:
            continue
        scale = SIDE / max(picture.shape[:2])
        if scale < 1:
            picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        yield path.name, np.ascontiguousarray(picture[..., ::-1])


def alike(box: list[float], face: list[float]) -> bool:
    middles = [np.array([(one[0] + one[2]) / 2, (one[1] + one[3]) / 2]) for one in (box, face)]
    return bool(np.linalg.norm(middles[0] - middles[1]) < SAME * (face[2] - face[0]))


def covered(picture: Frame, faces: list[list[float]]) -> Frame:
    """Without its faces and what is right around them."""
    picture = picture.copy()
    for left, top, right, bottom in faces:
        width = right - left
        low, high = (max(0, round(one)) for one in (top - 0.8 * width, bottom + 0.5 * width))
        first, last = (max(0, round(one)) for one in (left - width / 2, right + width / 2))
        part = picture[low:high, first:last]
        if part.size:
            part[:] = part.reshape(-1, 3).mean(axis=0)
    return picture


def photographs(folder: Path, detector: Builtin) -> None:
    labels: Boxes = json.loads((folder / "faces.json").read_text())
    there = found = 0
    missed, beside, false = [], [], []
    spent = 0.0
    for name, picture in pictures(folder):
        begin = time.process_time()
        boxes = [list(face.box) for face in detector.detect(picture)]
        spent += time.process_time() - begin
        faces = labels.get(name, [])
        for face in (one for one in faces if one[2] - one[0] >= LEAST):
            hit = any(alike(box, face) for box in boxes)
            there, found = there + 1, found + hit
            missed += [] if hit else [name]
        if any(not any(alike(box, face) for face in faces) for box in boxes):
            beside.append(name)
        if any(
            not any(alike(list(one.box), box) for box in boxes)
            for one in detector.detect(covered(picture, faces))
        ):
            false.append(name)
    print(
        f"{found} of {there} faces on {len(labels)} pictures, {1000 * spent / len(labels):.0f} ms"
    )
    print(f"missed on: {', '.join(missed)}")
    print(f"a box elsewhere, or a face that MediaPipe missed, on: {', '.join(beside)}")
    print(f"a box where the faces are painted over, on: {', '.join(false)}")
    rng = np.random.default_rng(5)
    drawn = [bool(detector.detect(draw_faceless(rng, 480, 360))) for _ in range(FACELESS)]
    print(f"a box on {sum(drawn)} of {FACELESS} drawn pictures without a face")


def drawn(detector: Builtin, people: int = 20) -> None:
    kinds = {
        "at rest": ({"beard": "none"}, Mouth()),
        "smiling": ({"beard": "none", "smile": 0.14}, Mouth(open=0.35, wide=1.0)),
        "bearded": ({"beard": "full", "hair_style": "short"}, Mouth()),
        "bearded, smiling": (
            {"beard": "full", "hair_style": "short", "smile": 0.14},
            Mouth(open=0.35, wide=1.0),
        ),
    }
    for kind, (traits, mouth) in kinds.items():
        found = 0
        for person in range(people):
            rng = np.random.default_rng([person, 14])
            who = replace(Identity.from_seed(14000 + person), **traits)
            frame, marks = draw(who, draw_pose(rng), mouth, (512, 512), zoom=rng.uniform(0.6, 1.4))
            width = 1.6 * float(np.linalg.norm(marks[1] - marks[0]))
            middle = marks[4].tolist()
            face = [middle[0] - width / 2, middle[1], middle[0] + width / 2, middle[1]]
            found += any(alike(list(one.box), face) for one in detector.detect(frame))
        print(f"{kind}: {found} of {people}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--label", action="store_true")
    parser.add_argument("--drawn", action="store_true")
    arguments = parser.parse_args()
    if arguments.drawn:
        drawn(Builtin())
    elif arguments.label:
        label(arguments.folder)
    else:
        photographs(arguments.folder, Builtin())


if __name__ == "__main__":
    main()
