"""What does bfloat16 do to the result? Compared with float32, on a CPU without instructions for it.

    python benchmarks/bfloat16.py --full

Matrix products, convolutions and attention are computed in float32 from bfloat16 numbers and
rounded back, which is what a processor with such instructions does; the rest is torch's own
bfloat16. It says what the precision does, and nothing about speed. The demo model makes
examples/ speak in both; --full adds one pass of the full-size U-Net of random numbers.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map
from unet_forward import CPU, inputs, random_net, unet_config

import latentsync
from latentsync.diffusion.unet import UNet
from latentsync.evaluation import lips, pictures, ruler
from latentsync.faces import create
from latentsync.runtime.checkpoints import root

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
PRODUCTS = {
    f"aten::{name}"
    for name in ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "conv2d", "convolution",
                 "scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu")
}  # fmt: skip


class Emulated(TorchDispatchMode):
    """Products of bfloat16 numbers, summed up in float32 and rounded back."""

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch's own signature
        _types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        def is_half(one: object) -> bool:
            return isinstance(one, Tensor) and one.dtype == torch.bfloat16

        if func._schema.name not in PRODUCTS or not any(map(is_half, args)):
            return func(*args, **(kwargs or {}))
        wide = tree_map(lambda one: one.float() if is_half(one) else one, (args, kwargs or {}))
        return tree_map(
            lambda one: one.bfloat16() if isinstance(one, Tensor) else one,
            func(*wide[0], **wide[1]),
        )


def emulated(call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        with Emulated():
            return call(*args, **kwargs)

    return wrapped


def spoken(dtype: str, output: Path, steps: int) -> Path:
    """The example, by the demo model in that precision."""
    model = latentsync.load("demo", device="cpu", dtype=dtype)
    if dtype == "bfloat16":
        unet, vae = model.nets.unet, model.nets.vae
        unet.forward = emulated(unet.forward)
        vae.encode, vae.decode = emulated(vae.encode), emulated(vae.decode)
    model.run(EXAMPLES / "face.mp4", EXAMPLES / "speech.wav", output, seed=1, steps=steps, crf=0)
    return output


def demo(steps: int) -> None:
    lines = (EXAMPLES / "speech.truth.jsonl").read_text(encoding="utf-8").splitlines()
    truth = np.array([json.loads(line)["opening"] for line in lines])
    detector, reader = create("builtin", root=root() / "auxiliary"), ruler.Ruler.load()
    track = ruler.find_track(EXAMPLES / "face.mp4", detector, at_most=len(truth))
    first = None
    print("| demo model | lip correlation | amplitude | mouth PSNR to float32, dB |")
    print("| --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(prefix="bfloat16-") as folder:
        for dtype in ("float32", "bfloat16"):
            clip = spoken(dtype, Path(folder) / f"{dtype}.mp4", steps)
            measured = ruler.mouth_track(clip, reader, detector, track=track)[:, 0]
            crops = np.stack(list(ruler.aligned_crops(clip, track)))
            first = crops if first is None else first
            same = pictures.psnr(crops, first, pictures.mouth_box(ruler.CROP))
            at_zero = lips.lip_correlation(measured, truth).at_zero
            amplitude = lips.amplitude_ratio(measured, truth)
            print(f"| {dtype} | {at_zero:.4f} | {amplitude:.4f} | {same:.1f} |", flush=True)


@torch.inference_mode()
def full() -> None:
    torch.manual_seed(0)
    net = random_net(UNet, unet_config(small=False), CPU)
    sample, step, speech = inputs(net.config, 32, net.conv_in.weight)
    exact = net(sample, step, speech)
    net.bfloat16()
    with Emulated():
        error = net(sample.bfloat16(), step, speech.bfloat16()).float() - exact
    print(f"full-size U-Net: relative RMS error {(error.norm() / exact.norm()).item():.3%}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--full", action="store_true", help="needs 8 GB")
    asked = parser.parse_args()
    demo(asked.steps)
    if asked.full:
        full()


if __name__ == "__main__":
    main()
