"""How long does one forward pass of the full-size U-Net take on this CPU, in how much memory?

    python benchmarks/unet_forward.py
    python benchmarks/unet_forward.py --side 64 --dtypes float32     # 512 px
    python benchmarks/unet_forward.py --small      # a net of a hundredth, to try the script itself

One group of 16 frames, without guidance, random numbers for weights; each precision is a process of
its own. Beside it the machine's own rate of matrix multiplication in that precision, measured just
before and just after, for a share of it is what can be compared between machines. `work` is the
memory beyond what was held before the pass; `rule` what `latentsync.diffusion.memory` reckons with.
A precision in which the pass would not end within --limit seconds at that rate is left out.
"""

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from latentsync.diffusion.config import PRESETS
from latentsync.diffusion.memory import unet_call, unet_work
from latentsync.diffusion.unet import UNet, UNetConfig
from latentsync.runtime.devices import DTYPES, channels_last, peak_memory

LONG_ENOUGH = 0.3  # s, for a multiplication to be timed
CPU = torch.device("cpu")
Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class Pass:
    dtype: str
    threads: int
    matmul: tuple[float, float]  # FLOP/s before and after
    flop: int
    seconds: float | None = None  # None: not run
    held: int = 0  # bytes before
    peak: int = 0
    rule: int = 0


def unet_config(*, small: bool) -> UNetConfig:
    full = PRESETS["v1.6"].unet
    return replace(full, block_out_channels=(32, 64, 128, 128)) if small else full


def random_net(make: Callable[[Any], Net], config: object, device: torch.device) -> Net:
    """A net of small random numbers, drawn where they stay, laid out as for a run."""
    with device:
        net = make(config)
    for parameter in net.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.02)
    channels_last(net)
    return net.eval().requires_grad_(False)


def inputs(config: UNetConfig, side: int, like: Tensor) -> tuple[Tensor, ...]:
    """What the U-Net takes for one group: latents, a timestep, speech."""
    sample, step, speech = unet_call(config, side, like)
    return sample.normal_(), step + 500, speech.normal_()


def flop(config: UNetConfig, side: int) -> int:
    """Of one forward pass of one group, counted operation by operation."""
    with torch.device("meta"):
        net = UNet(config).requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        net(*inputs(config, side, net.conv_in.weight))
    return counter.get_total_flops()


def matmul_rate(device: torch.device, dtype: torch.dtype, largest: int = 4096) -> float:
    """FLOP/s of square matrices, doubled until one takes long enough: the best of five."""
    side = 128
    while True:
        a = torch.randn(side, side, device=device).to(dtype)
        seconds = min(seconds_of(partial(torch.matmul, a, a), device) for _ in range(5))
        if seconds > LONG_ENOUGH or side >= largest:
            return 2 * side**3 / seconds
        side *= 2


def seconds_of(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize()
    start = time.perf_counter()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


def held() -> int:
    """Bytes of this process that are in memory now."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


@torch.inference_mode()
def measured(dtype: str, side: int, limit: float, *, small: bool) -> Pass:
    config, precision = unet_config(small=small), DTYPES[dtype]
    done = Pass(
        dtype, torch.get_num_threads(), (matmul_rate(CPU, precision),) * 2, flop(config, side)
    )
    if done.flop / done.matmul[0] > limit:
        return done
    torch.set_default_dtype(precision)
    net = random_net(UNet, config, CPU)
    given = inputs(config, side, net.conv_in.weight)
    before = held()
    seconds = seconds_of(lambda: net(*given), CPU)
    return replace(
        done,
        matmul=(done.matmul[0], matmul_rate(CPU, precision)),
        seconds=seconds,
        held=before,
        peak=peak_memory(CPU)["process"],
        rule=unet_work(config, side, precision),
    )


def row(one: Pass) -> str:
    rates = " / ".join(f"{rate / 1e9:.1f}" for rate in one.matmul)
    head = f"| {one.dtype} | {one.threads} | {rates} |"
    if one.seconds is None:
        return f"{head} left out | | | | |"
    share = one.flop / one.seconds / (sum(one.matmul) / 2)
    gib = [f"{size / 2**30:.2f}" for size in (one.peak, one.peak - one.held, one.rule)]
    return f"{head} {one.seconds:.1f} | {share:.0%} | {' | '.join(gib)} |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], choices=DTYPES)
    parser.add_argument("--side", type=int, default=32, help="of the latents: 32 or 64")
    parser.add_argument("--limit", type=float, default=600, help="seconds")
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    work = flop(unet_config(small=asked.small), asked.side)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}; ", end="")
    print(f"{asked.side} x {asked.side}, {work / 1e12:.2f} TFLOP\n")
    print("| precision | threads | matmul, GFLOP/s | s | of matmul | peak, GiB | work | rule |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for dtype in asked.dtypes:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            done = process.submit(measured, dtype, asked.side, asked.limit, small=asked.small)
            print(row(done.result()), flush=True)


if __name__ == "__main__":
    main()
