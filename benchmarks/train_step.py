"""How long does a training step take, and how much memory? Full size, without data or weights.

    python benchmarks/train_step.py --presets stage1 stage2 stage2_efficient
    python benchmarks/train_step.py --small        # nets of a thousandth, to try the script itself

All numbers are drawn by chance, so only time and memory mean anything: one window of 16 frames a
step, the nets, losses and precision of the preset, AdamW. Peak memory is the device's, or on a CPU
the process's so far (there the presets are best run one by one).
"""

import argparse
import resource
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from latentsync.diffusion.config import PRESETS, ModelConfig
from latentsync.diffusion.sampling import Latents
from latentsync.diffusion.unet import UNet
from latentsync.diffusion.vae import VAE, VAEConfig
from latentsync.evaluation.nets.lpips import LPIPS
from latentsync.evaluation.nets.syncnet import StableSyncNet, SyncNetConfig
from latentsync.evaluation.nets.videomae import VideoMAE
from latentsync.training.batches import WHOLE, Batch, BatchPart
from latentsync.training.loop import create_accelerator
from latentsync.training.pixel_losses import PixelLosses
from latentsync.training.presets import UNET_RUNS
from latentsync.training.settings import UNetTrainConfig
from latentsync.training.tasks.unet import UNetTask

PUBLISHED = [name for name in UNET_RUNS if name != "demo"]
TOKENS = 50  # of speech, a frame


class Chance:
    """Windows of normally distributed numbers."""

    def __init__(self, config: ModelConfig, device: torch.device) -> None:
        self._config, self._device = config, device

    def draw(
        self, count: int, frames: int, generator: torch.Generator, part: BatchPart = WHOLE
    ) -> Batch:
        assert part == WHOLE
        crop = self._config.resolution
        side = crop // self._config.vae.downsampling

        def normal(*shape: int) -> Tensor:
            return torch.randn((count, *shape), generator=generator).to(self._device)

        return Batch(
            clean=normal(4, frames, side, side),
            shown=Latents(*(normal(frames, 4, side, side) for _ in range(2))),
            speech=normal(frames, TOKENS, self._config.unet.cross_attention_dim),
            pixels=normal(3, frames, crop, crop).clamp(-1, 1),
            mel=normal(1, 80, 52),
        )


def task_of(run: UNetTrainConfig, device: torch.device, *, small: bool) -> UNetTask:
    """The preset's task, its nets new."""
    base = PRESETS["v1.6"]
    unet = replace(base.unet, motion=run.motion)
    vae = base.vae
    if small:
        unet = replace(unet, block_out_channels=(32, 32, 32, 32), layers_per_block=1)
        vae = VAEConfig(block_out_channels=(32, 32, 32, 32), layers_per_block=1)
        run = replace(run, resolution=64, trepa_weight=0.0, sync_weight=0.0)
    config = replace(base, resolution=run.resolution, unet=unet, vae=vae)
    half = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(run.precision)
    dtype = half if half and device.type != "cpu" else torch.float32
    with device:
        frozen = VAE(vae).to(dtype).requires_grad_(False)
        judges = None
        if run.sync_weight or run.lpips_weight or run.trepa_weight:
            judges = PixelLosses(
                frozen,
                run,
                syncnet=StableSyncNet(SyncNetConfig()).to(dtype) if run.sync_weight else None,
                lpips=LPIPS() if run.lpips_weight else None,
                videomae=VideoMAE().to(dtype) if run.trepa_weight else None,
            )
            for net in (judges.syncnet, judges.videomae):
                if net is not None:
                    net.requires_grad_(False).enable_gradient_checkpointing()
            frozen.net.enable_gradient_checkpointing()
        net = UNet(unet)
    windows = Chance(config, device)
    return UNetTask(net, windows, windows, config.resolution, run, pixel_losses=judges)


def timed(run: UNetTrainConfig, steps: int, *, small: bool) -> Iterator[float]:
    """Seconds of each step."""
    accelerator = create_accelerator(run.precision, cpu=False)
    device = accelerator.device
    task = task_of(run, device, small=small)
    trained = [p for p in task.net.parameters() if p.requires_grad]
    optimiser = accelerator.prepare_optimizer(torch.optim.AdamW(trained, run.learning_rate))
    for step in range(steps):
        start = time.perf_counter()
        with accelerator.autocast():
            losses = task.losses(torch.Generator().manual_seed(step))
        accelerator.backward(torch.stack(list(losses.values())).sum())
        accelerator.clip_grad_norm_(trained, run.clip_norm)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if device.type != "cpu":
            torch.accelerator.synchronize()
        yield time.perf_counter() - start


def peak_gib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=PUBLISHED, choices=PUBLISHED)
    parser.add_argument("--steps", type=int, default=6, help="the first two are left out")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{name}, torch {torch.__version__}\n")
    print("| preset | s a step | peak GiB |\n| --- | --- | --- |")
    for preset in options.presets:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = list(timed(UNET_RUNS[preset], max(3, options.steps), small=options.small))[2:]
        print(f"| {preset} | {sorted(seconds)[len(seconds) // 2]:.2f} | {peak_gib():.1f} |")


if __name__ == "__main__":
    main()
