"""A model for the page's tests, which does what the name of its clip says."""

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np

from latentsync.errors import Cancelled, MediaError
from latentsync.options import Options
from latentsync.types import Frame, Progress, ProgressCallback, Result

FACE_SIZE = (48, 40)  # px


class StubLipSync:
    """`bug.mp4`: an exception of its own; `broken.mp4`: an error for the visitor; `slow.mp4`: it
    goes on until it is released or cancelled; every other name: an output at once.
    """

    def __init__(self, output: bytes = b"an mp4") -> None:
        self.output = output
        self.released = threading.Event()
        self.started = threading.Event()
        self.ended: list[str] = []  # how, of each run

    def run(
        self,
        video: Path,
        voice: Path,  # noqa: ARG002
        output: Path,
        *,
        options: Options,
        progress: ProgressCallback,
        cancelled: Callable[[], bool],
        preview: Callable[[Frame], None],
    ) -> Result:
        self.started.set()
        if video.stem.startswith("bug"):
            raise RuntimeError("a secret")
        if video.stem.startswith("broken"):
            raise MediaError(f"{video} is <b>not</b> media")
        progress(Progress("generate", 8, 16))
        preview(np.full((*FACE_SIZE, 3), 128, np.uint8))
        while video.stem.startswith("slow") and not self.released.wait(0.01):
            if cancelled():
                self.ended.append("cancelled")
                raise Cancelled("cancelled at frame 8")
        output.write_bytes(self.output)
        self.ended.append("done")
        return result_of(output, options)


def result_of(path: Path, options: Options | None = None, seconds: float = 0.64) -> Result:
    return Result(
        path=path,
        source=Path("face.mp4"),
        frames=16,
        fps=25.0,
        seconds=seconds,
        width=64,
        height=48,
        faces_found=16,
        source_frames=16,
        passed_through=(),
        lost=(),
        model="stub",
        detector="stub",
        device="cpu",
        dtype="float32",
        seed=(options and options.seed) or 7,
        timings={"total": 0.1},
    )
