"""Renders some people, in .venv-render; started by `__main__`.

Each person becomes `<number>.npz`, which `latentsync.training.demo_windows.SpeakerWindows` loads.
Beside what that holds there are `points` (12 landmarks in px, in the order of
`latentsync.training.synthetic.LANDMARKS`) and the plan's `tracks`, `head` and `face`. The plan is
removed when its person is whole.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .camera import Camera, crop_camera, scene_camera
from .expressions import Expression
from .makehuman import Floats, MakeHuman
from .neck import HeadPose
from .plan import Plan, write_arrays

if TYPE_CHECKING:
    from .scene import HeadScene

log = logging.getLogger("render_heads")

KEPT = ("frames", "tracks", "head", "face", "wave")  # of a plan, in the person's file
EXPOSURE_SIDE = 96  # px of the crop by which the exposure is set


def main() -> None:
    from .scene import HeadScene  # imports bpy, which only .venv-render has

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="MakeHuman's folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("people", nargs="*", type=int, help="their numbers")
    options = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, datefmt="%H:%M:%S")
    # Blender prints a line for each picture; logging goes to stderr.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    data, parent = MakeHuman(options.data), os.getppid()
    for number in options.people:
        if os.getppid() != parent:
            raise SystemExit("stopped: the program that started this one has ended")
        started = time.monotonic()
        path = options.out / f"{number:05d}.npz"
        plan_path = options.out / "plans" / path.name
        picture = options.out / f".{number:05d}.png"  # Blender hands pictures over in a file
        plan = Plan.load(plan_path)
        found = render_person(HeadScene(data, number), plan, picture)
        write_arrays(path, found | {name: getattr(plan, name) for name in KEPT})
        picture.unlink()
        plan_path.unlink()
        log.info("person %d took %.0f s", number, time.monotonic() - started)


def render_person(head: "HeadScene", plan: Plan, picture: Path) -> dict[str, Any]:
    """Return `pixels`, `mouths` and `points` of all moments, (windows, frames, ...) each."""
    shape, (width, height) = plan.frames.shape, plan.size.tolist()
    head.pose(np.zeros(5), Expression(), HeadPose())
    head.aim(_crop_camera(head, HeadPose(), plan, EXPOSURE_SIDE, np.zeros((3, 2))))
    head.expose(picture)
    pixels = np.empty((*shape, height or width, width, 3), np.uint8)
    points = np.empty((*shape, 12, 2), np.float32)
    mouths = np.empty((*shape, 3), np.float32)
    for place in np.ndindex(shape):
        track, pose = plan.tracks[place], HeadPose(*plan.head[place].tolist())
        face = Expression(*plan.face[place].tolist())
        head.pose(track, face, pose, turn_room=bool(height))
        if height:
            zoom, distance = float(plan.zoom[place]), float(plan.view[0])
            camera = scene_camera(head.centre, pose, distance, (width, height), zoom)
        else:
            camera = _crop_camera(head, pose, plan, width, plan.jitter[place])
        head.aim(camera)
        pixels[place] = head.render(picture)
        # The camera counts from the corner of the first pixel, the library from its centre.
        points[place] = camera.project(head.landmarks()) - 0.5
        mouths[place] = (*head.mouth(), track[2])
    return {"pixels": pixels, "mouths": mouths, "points": points}


def _crop_camera(
    head: "HeadScene", pose: HeadPose, plan: Plan, side: int, jitter: Floats
) -> Camera:
    distance, yaw, pitch = plan.view.tolist()
    return crop_camera(head.anchors(), head.centre, pose, (distance, yaw, pitch), side, jitter)


if __name__ == "__main__":
    main()
