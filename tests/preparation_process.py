"""Prepares a folder with the stub detector, here and in all workers: RAW OUTPUT WORKERS [LEFT].

After LEFT files that were moved to their place it is killed, at the moment of the next.
"""

import os
import signal
import sys
from pathlib import Path

from latentsync import faces
from latentsync.training.preparation import prepare
from tests.prepared import EASY
from tests.stubs import StubDetector

DEADLY = 144  # px, the width of frames that no process survives


class Deadly(StubDetector):
    def detect(self, frame, *, rounded=False, near=None):
        if frame.width == DEADLY:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().detect(frame, rounded=rounded, near=near)


if __name__ in ("__main__", "__mp_main__"):  # here and in workers, not where a test imports it
    faces.create = lambda *_, **__: Deadly()


def main() -> None:
    raw, output, workers, *left = sys.argv[1:]
    move, moves = Path.replace, [*left, ""]

    def dying(path, target):
        if moves[0] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        if moves[0]:
            moves[0] = str(int(moves[0]) - 1)
        return move(path, target)

    Path.replace = dying
    prepare(raw, output, EASY, workers=int(workers))


if __name__ == "__main__":
    main()
