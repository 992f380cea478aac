"""The model that a run starts from."""

from dataclasses import replace

import pytest
import torch

from latentsync.diffusion import weights
from latentsync.errors import OptionError
from latentsync.training.init_model import init_model
from latentsync.training.presets import UNET_RUNS
from tests.stubs import TINY, tiny_nets

RUN = replace(UNET_RUNS["stage2"], resolution=0)


def saved(tmp_path, motion):
    nets = tiny_nets()
    config = replace(TINY, unet=replace(TINY.unet, motion=motion))
    unet = type(nets.unet)(config.unet)
    unet.load_state_dict(nets.unet.state_dict(), strict=False)
    weights.save(replace(nets, config=config, unet=unet), tmp_path / motion)
    return tmp_path / motion


def spoken(nets):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn((1, 13, 16, 8, 8), generator=generator)
    speech = torch.randn((1, 16, 20, 32), generator=generator)
    with torch.inference_mode():
        return nets.unet(sample, 500, speech)


def test_motion_modules_come_in_without_a_change_of_what_is_drawn(tmp_path):
    still = saved(tmp_path, "none")
    before, after = init_model(still, replace(RUN, motion="none")), init_model(still, RUN)
    assert (before.config.unet.motion, after.config.unet.motion) == ("none", "all")
    assert any("motion_modules." in name for name in after.unet.state_dict())
    torch.testing.assert_close(spoken(after), spoken(before))
    again = init_model(still, RUN)
    for name, value in after.unet.state_dict().items():
        assert torch.equal(value, again.unet.state_dict()[name]), name


@pytest.mark.parametrize(
    ("has", "wanted", "gets"),
    [("all", "decoder", "all"), ("decoder", "all", "all"), ("all", "none", "none")],
)
def test_motion_modules_that_are_there_stay_unless_none_are_wanted(tmp_path, has, wanted, gets):
    nets = init_model(saved(tmp_path, has), replace(RUN, motion=wanted))
    assert nets.config.unet == nets.unet.config == replace(TINY.unet, motion=gets)


def test_the_model_that_comes_out_can_be_loaded(tmp_path):
    nets = init_model(saved(tmp_path, "none"), replace(RUN, resolution=32))
    assert (nets.config.name, nets.config.resolution) == ("tiny-stage2", 32)
    weights.save(nets, tmp_path / "out")
    assert weights.load_nets(tmp_path / "out").config == nets.config
    with pytest.raises(OptionError, match="init is 'nothing'"):
        init_model("nothing", RUN)
