"""How fast is the full-size model on this GPU, and how near to what the GPU can do at all?

    python benchmarks/gpu.py -o benchmarks/results/gpu.json
    python benchmarks/gpu.py --small        # a net of a thousandth, on any device, for a trial

It needs no weights: the nets are of full size, their numbers drawn by chance, so only time and
memory mean anything. Clip, voice and face detector are the repository's own. For each side,
guidance and speed first the network alone, then a whole run of `LipSync`, both for the second time.

- "s / s": seconds for a second of video (25 frames); below 1 is faster than real time.
- "of matmul": floating-point operations of the denoising loop a second, over those of the best
  large matrix product measured just before in the same precision. Operations are counted, those of
  the net's layers and attention, not estimated.
- "busy": the share of the denoising loop's time in which the GPU computes (torch.profiler).
- Peak memory is what torch gave to tensors at most, weights included.

Rows are printed and the file is written as they come; no case is begun after --limit seconds.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.profiler import DeviceType, ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from unet_forward import inputs, matmul_rate, random_net, seconds_of

from latentsync import faces
from latentsync.audio.whisper import SpeechEncoder
from latentsync.diffusion import memory, sampling
from latentsync.diffusion.config import PRESETS, ModelConfig
from latentsync.diffusion.memory import FRAMES, TOKENS
from latentsync.diffusion.unet import FeatureCache, UNet, UNetConfig
from latentsync.diffusion.vae import VAE, VAEConfig
from latentsync.diffusion.weights import Nets
from latentsync.errors import BackendUnavailable
from latentsync.faces.mask import keep_mask
from latentsync.media import check_codec
from latentsync.options import SPEEDS, Effort, Options, Speed
from latentsync.pipeline.lipsync import LipSync
from latentsync.runtime import devices
from latentsync.runtime.checkpoints import root

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
FPS = 25
GUIDANCE = (1.0, 1.5)
NETWORK = ("px", "speed", "guidance", "groups", "encode, s / s", "denoise, s / s", "decode, s / s",
           "TFLOP/s", "of matmul", "busy", "peak, GiB")  # fmt: skip
WHOLE = ("px", "speed", "guidance", "groups", "whole, s / s", "by stage, s / s", "peak, GiB")


class Report:
    """Rows as they come: printed as Markdown, and all so far in a JSON file."""

    def __init__(self, path: Path | None, limit: float) -> None:
        self._path, self._limit, self._start = path, limit, time.perf_counter()
        self._found: dict[str, Any] = {}

    def add(self, name: str, value: object) -> None:
        """One fact about the machine."""
        self._found[name] = value
        print(f"- {name}: {value}", flush=True)
        self._write()

    def table(self, name: str, columns: tuple[str, ...]) -> None:
        self._found[name] = []
        print(f"\n{name}\n\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}", flush=True)

    def row(self, name: str, columns: tuple[str, ...], make: Callable[[], dict[str, Any]]) -> None:
        """What `make` measures, or why it can't; nothing when the time is up."""
        if time.perf_counter() - self._start > self._limit:
            self._found.setdefault("not begun", []).append(name)
            return
        try:
            row = make()
        except (torch.OutOfMemoryError, BackendUnavailable) as error:
            row = {columns[1]: str(error).splitlines()[0]}
        self._found[name].append(row)
        print(f"| {' | '.join(_cell(row.get(column, '')) for column in columns)} |", flush=True)
        self._write()

    def _write(self) -> None:
        if self._path:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(self._found, indent=1) + "\n")


def _cell(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(one)}" for key, one in value.items())
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def configs(*, small: bool) -> list[ModelConfig]:
    """256 and 512 px; their nets are alike."""
    if not small:
        return [PRESETS["v1.5"], PRESETS["v1.6"]]
    base = PRESETS["v1.6"]
    unet = replace(base.unet, block_out_channels=(32,) * 4, layers_per_block=1)
    vae = VAEConfig(block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=8)
    return [replace(base, resolution=64, unet=unet, vae=vae)]


def random_nets(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Nets:
    unet = random_net(UNet, config.unet, device).to(dtype)
    vae = random_net(VAE, config.vae, device).to(dtype)
    return Nets(config, unet, vae, random_net(SpeechEncoder, config.whisper, device))


def flop(call: Callable[[], object]) -> int:
    """Operations of a call on the meta device."""
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        call()
    return counter.get_total_flops()


class Work:
    """Operations that the U-Net is asked for, by the calls it gets."""

    def __init__(self, config: UNetConfig, side: int) -> None:
        with torch.device("meta"):
            net = UNet(config)
        cache = FeatureCache()
        given = inputs(config, side, net.conv_in.weight)
        self._full, self._shallow = (flop(lambda: net(*given, cache)) for _ in range(2))
        self.total = 0

    def hook(self, _net: object, args: tuple[Any, ...]) -> None:
        cached = len(args) > 3 and args[3] is not None and args[3].features is not None
        self.total += len(args[0]) * (self._shallow if cached else self._full)


def busy_seconds(call: Callable[[], object]) -> float:
    """How long the GPU's kernels run in a call, all together."""
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.accelerator.synchronize()
    events = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    return sum(event.self_device_time_total for event in events) / 1e6


class Bench:
    """The nets and inputs of one side."""

    def __init__(self, nets: Nets, device: torch.device, matmul: float) -> None:
        self.nets, self.device, self._matmul = nets, device, matmul
        self.side = nets.config.resolution
        self._like: Tensor = nets.unet.conv_in.weight
        self._mask = torch.from_numpy(keep_mask(self.side)).to(self._like)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, device=self.device).to(self._like)

    def denoising(
        self,
        effort: Effort,
        guidance: float,
        groups: int,
        before_step: Callable[[], None] | None = None,
    ) -> Callable[[], Tensor]:
        """The loop, as the pipeline calls it."""
        latent = self.nets.vae.latent_shape(self.side)
        shown = sampling.Latents(*(self._normal(groups, FRAMES, *latent) for _ in range(2)))
        noise = self._normal(*latent)
        speech = self._normal(groups, FRAMES, TOKENS, self.nets.config.unet.cross_attention_dim)
        return lambda: sampling.denoise(
            self.nets.unet,
            noise,
            self._mask,
            shown,
            speech,
            effort,
            guidance_scale=guidance,
            before_step=before_step,
        )

    @torch.inference_mode()
    def network(self, speed: Speed, guidance: float, groups: int) -> dict[str, Any]:
        """One row: a batch of groups through the network."""
        self._reset()
        frames = groups * FRAMES
        pixels = self._normal(frames, 3, self.side, self.side)
        latents = self._normal(frames, *self.nets.vae.latent_shape(self.side))
        denoise = self.denoising(SPEEDS[speed], guidance, groups)
        work = Work(self.nets.config.unet, latents.shape[-1])
        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: sampling.encode(self.nets.vae, pixels, self._mask),
            "denoise": denoise,
            "decode": lambda: sampling.decode(self.nets.vae, latents, pixels, self._mask),
        }
        taken = {}
        for name, call in calls.items():
            call()  # kernels are chosen the first time
            handle = self.nets.unet.register_forward_pre_hook(work.hook)
            taken[name] = seconds_of(call, self.device)
            handle.remove()
        rate = work.total / taken["denoise"]
        row = {"px": self.side, "speed": speed, "guidance": guidance, "groups": groups}
        row |= {f"{name}, s / s": one * FPS / frames for name, one in taken.items()}
        row |= {"TFLOP/s": rate / 1e12, "of matmul": rate / self._matmul, "peak, GiB": self._peak()}
        if self.device.type != "cpu":
            row["busy"] = busy_seconds(denoise) / taken["denoise"]
        return row

    def whole(self, speed: Speed, guidance: float, groups: int) -> dict[str, Any]:
        """One row: a whole run, from file to file."""
        self._reset()
        model = LipSync(self.nets, faces.create("builtin", root=root() / "auxiliary"))
        options = Options(speed=speed, guidance_scale=guidance, batch=groups, seed=1)
        files = (EXAMPLES / "face.mp4", EXAMPLES / "speech.wav")  # 4 s
        with tempfile.TemporaryDirectory(prefix="gpu-") as folder:
            for _ in range(2):
                start = time.perf_counter()
                result = model.run(*files, Path(folder) / "out.mp4", options=options)
                taken = time.perf_counter() - start
        return {
            "px": self.side,
            "speed": speed,
            "guidance": guidance,
            "groups": groups,
            "whole, s / s": taken / result.seconds,
            "by stage, s / s": {k: v / result.seconds for k, v in result.timings.items()},
            "peak, GiB": self._peak(),
        }

    @torch.inference_mode()
    def waits(self) -> str:
        """Whether the denoising loop ever lets the CPU wait for the GPU."""
        if self.device.type == "cpu":
            return "not looked at: there is no GPU"
        self.denoising(SPEEDS["exact"], GUIDANCE[1], 1)()

        def refuse_to_wait() -> None:
            torch.cuda.set_sync_debug_mode("error")

        try:  # what is laid out before the first step may wait
            self.denoising(SPEEDS["exact"], GUIDANCE[1], 1, refuse_to_wait)()
        except RuntimeError as error:
            return f"waits: {str(error).splitlines()[0]}"
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return "never waits"

    def _reset(self) -> None:
        if self.device.type != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def _peak(self) -> float:
        peak = devices.peak_memory(self.device)
        return peak.get("gpu", peak.get("process", math.nan)) / 2**30


def opens(codec: str) -> str:
    try:
        check_codec(codec)
    except BackendUnavailable as error:
        return str(error)
    return "opens"


def both(report: Report, bench: Bench, groups: int, *, few: bool) -> None:
    """What the network takes, then whole runs."""
    cases = [(speed, guidance, groups) for guidance in GUIDANCE for speed in get_args(Speed)]
    cases = [cases[0], cases[-1]] if few else cases
    name = f"{bench.side} px, the network"
    report.table(name, NETWORK)
    for case in [*cases, ("exact", GUIDANCE[0], 1)]:
        report.row(name, NETWORK, partial(bench.network, *case))
    name = f"{bench.side} px, whole runs"
    report.table(name, WHOLE)
    for case in cases:
        report.row(name, WHOLE, partial(bench.whole, *case))


def variants(report: Report, bench: Bench) -> None:
    """The first side again, compiled, then with the U-Net's layers in the CPU's memory."""
    unet = bench.nets.unet
    report.table("compiled", NETWORK)

    def compiled() -> dict[str, Any]:
        side = bench.nets.vae.latent_shape(bench.side)[1]
        call = memory.unet_call(bench.nets.config.unet, side, unet.conv_in.weight)
        devices.compile_for(unet, call)
        try:
            return bench.network("exact", 1.0, 1)
        finally:
            del unet.forward  # the class's own again

    report.row("compiled", NETWORK, compiled)
    report.table("offloaded", NETWORK)

    def offloaded() -> dict[str, Any]:
        devices.offload(unet.cpu(), bench.device)
        return bench.network("exact", 1.0, 1)

    report.row("offloaded", NETWORK, offloaded)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("-o", "--output", type=Path, help="JSON")
    parser.add_argument("--batch", type=int, default=4, help="groups at once; with --small 1")
    parser.add_argument("--limit", type=float, default=480, help="seconds")
    parser.add_argument("--small", action="store_true")
    asked = parser.parse_args()
    asked.batch = 1 if asked.small else asked.batch
    device, dtype = devices.choose()
    if device.type == "cpu" and not asked.small:
        sys.exit("a CUDA device is wanted, and torch finds none; --small runs anywhere")
    report = Report(asked.output, asked.limit)
    name = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    report.add("device", f"{name}, torch {torch.__version__}, {dtype}")
    matmul = matmul_rate(device, dtype, largest=1024 if asked.small else 16384)
    report.add("matmul, TFLOP/s", round(matmul / 1e12, 3))
    first, *others = configs(small=asked.small)
    nets = random_nets(first, device, dtype)
    models = [nets, *(replace(nets, config=config) for config in others)]
    benches = [Bench(one, device, matmul) for one in models]
    report.add("the denoising loop", benches[0].waits())
    for codec in ("h264_nvenc", "hevc_nvenc"):
        report.add(codec, opens(codec))
    for bench in benches:
        both(report, bench, asked.batch, few=asked.small)
    variants(report, benches[0])


if __name__ == "__main__":
    main()
