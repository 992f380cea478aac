"""The autoencoder takes pictures in slices, as memory allows, and none depends on another."""

import pytest
import torch

from latentsync.diffusion import vae as module
from tests.stubs import TINY, tiny_nets

SIDE = 32  # px
VALUES = module.VALUES_PER_PIXEL * TINY.vae.block_out_channels[0] * SIDE**2
EACH = 4 * VALUES  # bytes that a picture takes


@pytest.fixture(scope="module")
def vae():
    return tiny_nets().vae


def pictures(count=5, side=SIDE):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def counted(monkeypatch, vae):
    """How many pictures each pass of the encoder and the decoder sees."""
    sizes = []

    def counting(real):
        return lambda x: sizes.append(len(x)) or real(x)

    for name in ("encode", "decode"):
        monkeypatch.setattr(vae.net, name, counting(getattr(vae.net, name)))
    return sizes


def there_and_back(vae, pixels):
    with torch.inference_mode():
        latents = vae.encode(pixels, torch.ones(len(pixels), *vae.latent_shape(pixels.shape[-1])))
        return latents, vae.decode(latents)


@pytest.mark.parametrize(
    ("free", "at_once", "expected"),
    [
        (None, 5, [5]),
        (10**12, 2, [2, 2, 1]),
        (3.1 * EACH / module.USABLE_SHARE, 5, [3, 2]),
        (EACH / module.USABLE_SHARE + 1, 5, [1] * 5),
    ],
)
def test_slices_are_as_large_as_memory_allows_and_change_nothing(
    monkeypatch, vae, free, at_once, expected
):
    pixels = pictures()
    whole = there_and_back(vae, pixels)
    monkeypatch.setattr(module, "free_memory", lambda _device: free)
    monkeypatch.setattr(module, "MAX_BATCH_PIXELS", at_once * SIDE**2)
    sizes = counted(monkeypatch, vae)
    for part, same in zip(there_and_back(vae, pixels), whole, strict=True):
        torch.testing.assert_close(part, same, rtol=1e-5, atol=1e-5)
    assert sizes == expected * 2


def test_training_sees_all_pictures_at_once(monkeypatch, vae):
    monkeypatch.setattr(module, "free_memory", lambda _device: 0)
    sizes = counted(monkeypatch, vae)
    vae.decode(vae.encode(pictures()))
    assert sizes == [5, 5]
    assert not vae.net.use_tiling


def test_a_picture_that_does_not_fit_is_cut_into_tiles_and_that_is_said(monkeypatch, caplog):
    vae = tiny_nets().vae
    pixels = pictures(1, 96)
    whole = there_and_back(vae, pixels)
    monkeypatch.setattr(vae.net, "tile_sample_min_size", 64)
    monkeypatch.setattr(vae.net, "tile_latent_min_size", 8)
    monkeypatch.setattr(module, "free_memory", lambda _device: 1)
    tiled = there_and_back(vae, pixels)
    assert [part.shape for part in tiled] == [part.shape for part in whole]
    assert not torch.equal(tiled[0], whole[0])
    there_and_back(vae, pixels)  # says nothing new
    assert [line.split(";")[0] for line in caplog.messages] == [
        "cpu has too little memory for one picture of 9216 px in the autoencoder"
    ]
    monkeypatch.setattr(module, "free_memory", lambda _device: 10**12)
    for part, same in zip(there_and_back(vae, pixels), whole, strict=True):
        assert torch.equal(part, same)


def test_tiles_are_of_the_size_that_is_said(vae):
    assert vae.net.tile_sample_min_size == module.TILE_SIDE_PX
    assert vae.net.tile_latent_min_size == vae.latent_shape(module.TILE_SIDE_PX)[1]
