"""How long does a full-size U-Net take to load: published .pt, first float16 load, later ones?

    python benchmarks/cold_start.py

Random numbers in the published file's form (float32, 5.07 GB); needs 8 GB of disk and of memory.
Each load is a process of its own; the page cache is warm, as after a download.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from latentsync.diffusion.config import PRESETS
from latentsync.diffusion.unet import UNet

LOAD = """
import sys, time
from pathlib import Path
start = time.perf_counter()
import torch
from latentsync.diffusion.config import PRESETS
from latentsync.diffusion.weights import _in_half, load_unet
imported = time.perf_counter()
path, config = Path(sys.argv[1]), PRESETS["v1.6"].unet
unet = load_unet(_in_half(path, config) if sys.argv[2] == "half" else path, config)
loaded = time.perf_counter()
for tensor in unet.state_dict().values():
    tensor.flatten().view(torch.uint8)[::4096].sum()  # every page
read = time.perf_counter()
status = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in status if "VmHWM" in line) / 2**20
print(f"import {imported - start:.1f} s, load {loaded - imported:.1f} s, "
      f"read {read - loaded:.1f} s, peak {peak:.1f} GiB")
"""


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="latentsync-cold-start-") as folder:
        path = Path(folder) / "latentsync_unet.pt"
        with torch.device("meta"):
            shapes = {k: v.shape for k, v in UNet(PRESETS["v1.6"].unet).state_dict().items()}
        torch.save(
            {"global_step": 1, "state_dict": {k: torch.rand(s) for k, s in shapes.items()}}, path
        )
        rows = (("published .pt, float32", "full"), ("first float16 load", "half"),
                ("later float16 loads", "half"), ("again", "half"))  # fmt: skip
        for name, kind in rows:
            done = subprocess.run(
                [sys.executable, "-c", LOAD, str(path), kind],
                capture_output=True,
                text=True,
                check=True,
            )
            print(f"{name:<24} {done.stdout.strip()}")


if __name__ == "__main__":
    main()
