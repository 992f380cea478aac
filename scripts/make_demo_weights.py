"""Write weights/demo: tiny nets of the real classes, untrained, the same at every run."""

from pathlib import Path

import torch

from latentsync.config import PRESETS
from latentsync.models.unet import UNet
from latentsync.models.vae import VAE
from latentsync.speech import SpeechEncoder
from latentsync.weights import Nets, save

SEED = 0


def main() -> None:
    torch.manual_seed(SEED)
    config = PRESETS["demo"]
    nets = Nets(config, UNet(config.unet), VAE(config.vae), SpeechEncoder(config.whisper))
    save(nets, Path(__file__).parent.parent / "weights" / "demo")


if __name__ == "__main__":
    main()
