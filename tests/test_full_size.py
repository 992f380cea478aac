"""The published sizes and layout, with random numbers in the published files' place."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latentsync.audio.whisper import SpeechEncoder
from latentsync.cli.verify import verify
from latentsync.diffusion.config import PRESETS
from latentsync.diffusion.unet import UNet
from latentsync.diffusion.vae import VAE
from latentsync.diffusion.weights import _OLD_NAMES

NEW_NAMES = {new: old for old, new in _OLD_NAMES.items()}


def random_state(net: nn.Module) -> dict[str, torch.Tensor]:
    """Small random numbers of a net's shapes, in half precision to spare the disk."""
    generator = torch.Generator().manual_seed(0)
    return {
        key: torch.randn(value.shape, generator=generator).mul_(0.02).half()
        for key, value in net.state_dict().items()
    }


def published_name(key: str) -> str:
    """A VAE key as the published file has it."""
    for new, old in NEW_NAMES.items():
        key = key.replace(f".{new}.", f".{old}.")
    return key.removeprefix("net.")


@pytest.mark.slow
def test_the_published_files_load_strictly_and_run(tmp_path):
    config = PRESETS["v1.5"]
    with torch.device("meta"):
        unet, vae, speech = UNet(config.unet), VAE(config.vae), SpeechEncoder(config.whisper)
    for folder in ("checkpoints/whisper", "checkpoints/vae"):
        (tmp_path / folder).mkdir(parents=True)
    weights = tmp_path / "checkpoints"  # the published project's own layout
    state = {"global_step": 1, "state_dict": random_state(unet)}
    torch.save(state, weights / "latentsync_unet.pt")
    del state
    dims = {"n_mels": 80, "n_audio_ctx": 1500}
    state = {"dims": dims, "model_state_dict": random_state(speech)}
    torch.save(state, weights / "whisper/tiny.pt")
    named = {published_name(key): value for key, value in random_state(vae).items()}
    assert any(".proj_attn." in key for key in named)
    save_file(named, weights / "vae/diffusion_pytorch_model.safetensors")

    checks = {
        check.what: check
        for check in verify(
            "v1.5", weights=weights, device="cpu", detector="builtin", steps=1, seconds=0.1
        )
    }
    assert "1,267,099,844 parameters" in checks["U-Net"].found
    assert "(4, 32, 32)" in checks["dimensions"].found
    assert checks["run"].found.startswith("3 frames")
    # Random numbers have not the published hashes; all the rest is as it should be.
    wrong = {what for what, check in checks.items() if check.good is False}
    assert wrong == {"whisper/tiny.pt", "vae/diffusion_pytorch_model.safetensors"}
