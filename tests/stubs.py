"""A whole model so small that a run takes a tenth of a second, and clips it takes for faces."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from latentsync.audio.whisper import SpeechEncoder, WhisperConfig
from latentsync.diffusion.config import ModelConfig
from latentsync.diffusion.unet import UNet, UNetConfig
from latentsync.diffusion.vae import VAE, VAEConfig
from latentsync.diffusion.weights import Nets
from latentsync.pipeline.lipsync import LipSync
from latentsync.types import Face
from tests.clips import number_of, write_clip

SIZE = (128, 112)  # px, of the clips
TINY = ModelConfig(
    name="tiny",
    resolution=64,
    detector="builtin",
    unet=UNetConfig(
        block_out_channels=(32, 32),
        layers_per_block=1,
        attention_heads=2,
        cross_attention_dim=32,
        norm_num_groups=8,
        motion_heads=2,
    ),
    vae=VAEConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4),
    whisper=WhisperConfig(n_audio_state=32, n_audio_head=2, n_audio_layer=1),
)


def tiny_nets(seed: int = 0) -> Nets:
    """Untrained nets, but with an output that follows the speech."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet, vae, speech = UNet(TINY.unet), VAE(TINY.vae), SpeechEncoder(TINY.whisper)
        nn.init.normal_(unet.conv_out.weight, std=0.2)
    for net in (unet, vae, speech):
        net.eval().requires_grad_(False)
    return Nets(TINY, unet, vae, speech)


class StubDetector:
    """Sees a face at one place in every frame, or in those whose drawn number is in `faces`."""

    name = "stub"
    same, other = 0.9, 0.5
    points = np.array([[52, 46], [80, 46], [66, 60]], np.float32)

    def __init__(self, faces: Callable[[int], bool] = lambda _: True) -> None:
        self.faces = faces
        self.seen: list[int] = []  # numbers of the frames it was shown

    def describe(self) -> str:
        return "stub (score >= 0.5)"

    def embed(self, frame, face):  # noqa: ARG002
        """Everybody is one person: what it takes for a face is a picture that changes."""
        return np.ones(1, np.float32)

    def detect(self, frame, *, rounded=False, near=None):  # noqa: ARG002
        self.seen.append(number_of(frame if isinstance(frame, np.ndarray) else frame.rgb()))
        return [Face((40, 32, 92, 102), 1.0, self.points)] if self.faces(self.seen[-1]) else []

    def follow(self, frame, faces, *, rounded=False):
        return [*self.detect(frame, rounded=rounded), None][: len(faces)]


class Brightness:
    """In the mouth net's place: how bright a crop is."""

    def measure(self, crops):
        return np.repeat(crops.mean(axis=(1, 2, 3))[:, None] / 255, 3, axis=1)


def tiny_lipsync(faces: Callable[[int], bool] = lambda _: True) -> LipSync:
    return LipSync(tiny_nets(), StubDetector(faces))


def numbered_clip(path: Path, frames: int = 20, **options) -> Path:
    """A clip of numbered pictures, in which the stub sees a face below the number."""
    return write_clip(path, frames, size=SIZE, **options)
