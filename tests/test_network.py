"""What the U-Net is shown: the 13 channels of a default run, each frame with its own latents."""

import numpy as np
import pytest
import torch

from latentsync.diffusion.generator import CropBatch, Network, to_float
from latentsync.faces.mask import keep_mask
from latentsync.options import Options
from tests.clips import babble, write_sound
from tests.stubs import TINY, numbered_clip, tiny_lipsync, tiny_nets

CLIP = 20  # frames
SIDE = TINY.resolution


class Seen:
    """Every work that the network drew, and the first U-Net input of each."""

    def __init__(self, nets, monkeypatch):
        self.works, self.inputs = [], []
        nets.unet.register_forward_pre_hook(self.shown)
        drawn = Network.generate

        def spy(network, work):
            self.works.append(work)
            return drawn(network, work)

        monkeypatch.setattr(Network, "generate", spy)

    def shown(self, _module, arguments):
        if len(self.inputs) < len(self.works):
            self.inputs.append(arguments[0])


def parts(sample):
    """(f, 13, h, w) -> noisy, mask, masked, reference."""
    return sample.split([4, 1, 4, 4], dim=1)


def check(nets, work, sample):
    """Each frame's channels are those of its own crop, encoded by itself."""
    keep = torch.from_numpy(keep_mask(SIDE))
    for crops, channels in zip(work.crops, sample.transpose(1, 2), strict=True):
        noisy, mask, masked, reference = parts(channels)
        for index, crop in enumerate(to_float(crops)):
            whole, holed = nets.vae.encode(crop[None]), nets.vae.encode((crop * keep)[None])
            torch.testing.assert_close(reference[index], whole[0], atol=1e-4, rtol=0)
            torch.testing.assert_close(masked[index], holed[0], atol=1e-4, rtol=0)
            assert (whole - holed).abs().max() > 0.01  # else nothing is told apart
            assert torch.equal(noisy[index], noisy[0])
            assert torch.equal(mask[index, 0], keep[:: SIDE // 8, :: SIDE // 8])


@pytest.mark.parametrize(
    "options", [{}, {"guidance_scale": 2.0}, {"batch": 2}, {"overlap": 4}], ids=str
)
def test_the_unet_sees_each_frame_masked_and_whole(tmp_path, monkeypatch, options):
    """Of 30 frames of a clip of 20, so that the clip turns inside the second group."""
    lipsync = tiny_lipsync()
    seen = Seen(lipsync.nets, monkeypatch)
    clip = numbered_clip(tmp_path / "clip.mp4", CLIP)
    voice = write_sound(tmp_path / "voice.wav", babble(1.2))
    lipsync.run(clip, voice, tmp_path / "out.mp4", steps=1, seed=3, **options)
    shown = np.concatenate([work.source for work in seen.works])
    there, back = [*range(CLIP)], [*range(CLIP - 2, CLIP - 12, -1)]
    if not options.get("overlap"):
        assert shown.tolist() == there + back
    assert any(CLIP - 1 in work.source[1:-1] for work in seen.works)
    for work, sample in zip(seen.works, seen.inputs, strict=True):
        groups = len(work.crops)
        if options.get("guidance_scale"):  # without and with speech: the same pictures
            assert torch.equal(sample[:groups], sample[groups:])
        with torch.inference_mode():
            check(lipsync.nets, work, sample[:groups])


def test_a_frame_shown_again_has_the_latents_of_its_own_crop():
    """Frames of three works come in any order; each crop is a picture of its own."""
    nets, rng = tiny_nets(), np.random.default_rng(5)
    pictures = torch.from_numpy(rng.integers(0, 255, (6, SIDE, SIDE, 3), np.uint8))
    orders = ([0, 1, 2, 3], [3, 2, 4, 1], [5, 0, 0, 4])
    times = np.bincount(np.concatenate(orders))
    network = Network(nets, Options(steps=1, seed=1), times)
    inputs = []
    nets.unet.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    for order in orders:
        speech = torch.zeros(1, 4, 20, TINY.whisper.n_audio_state)
        work = CropBatch(pictures[order][None], speech, np.array(order), 0, 4)
        network.generate(work)
        with torch.inference_mode():
            check(nets, work, inputs[-1])
    assert len(inputs) == len(orders)
