"""A run's memory does not grow with its length: looked at in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.clips import babble, write_clip, write_sound

ROOT = Path(__file__).parent.parent
SIZE = (640, 360)
CLIP_FRAMES = 300  # more than the reader keeps; 700 frames of output go to and fro, 2,000 thrice
# What 1,300 more frames would take if their planes alone were kept is 450 MB; a busy machine's
# threads, which meet in another order each time, leave the heap up to 40 MB apart.
ALLOWED_MB = 100

# The nets are replaced by the least that fits: what may grow is all the rest.
CHILD = """
import json, sys
from pathlib import Path
from latentsync.diffusion import sampling
from tests.stubs import tiny_lipsync

sampling.encode = lambda vae, pixels, *_: sampling.Latents(pixels, pixels)
sampling.denoise = lambda unet, noise, mask, latents, *_, **__: latents.masked
sampling.decode = lambda vae, latents, pixels, mask: -latents
clip, voice, out = sys.argv[1:]
result = tiny_lipsync().run(clip, voice, out, crf=51)
status = Path("/proc/self/status")
if status.exists():  # getrusage also counts what the parent held when it made this process
    peak = next(int(l.split()[1]) for l in status.read_text().splitlines() if "VmHWM" in l)
else:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"frames": result.frames, "source": result.source_frames, "peak_mb": peak / 1024}))
"""


def peak(clip, voice, out):
    done = subprocess.run(
        [sys.executable, "-c", CHILD, clip, voice, out],
        cwd=ROOT,
        # So small, the work is done sooner by one thread; one arena holds no other thread's holes.
        env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length(tmp_path):
    flat = np.full((SIZE[1], SIZE[0], 3), 128, np.uint8)
    frames = (
        cv2.circle(flat.copy(), (2 * n, 300), 20, (200, 0, 0), -1) for n in range(CLIP_FRAMES)
    )
    clip = write_clip(tmp_path / "clip.mp4", frames, size=SIZE, preset="ultrafast", g="25")
    short = write_sound(tmp_path / "short.wav", babble(700 / 25))
    long = write_sound(tmp_path / "long.wav", babble(2000 / 25))

    few = peak(clip, short, tmp_path / "few.mp4")
    many = peak(clip, long, tmp_path / "many.mp4")

    assert (few["frames"], few["source"]) == (700, CLIP_FRAMES)
    assert (many["frames"], many["source"]) == (2000, CLIP_FRAMES)
    assert many["peak_mb"] - few["peak_mb"] < ALLOWED_MB, (few, many)
