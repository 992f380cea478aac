"""What training gave, as the published code reads it."""

from dataclasses import replace

import pytest
import torch

from latentsync.diffusion import weights
from latentsync.diffusion.unet import UNet
from latentsync.diffusion.weights import load_unet
from latentsync.errors import InputError, OptionError, OutputError, WeightsMismatch
from latentsync.training.export import export
from latentsync.training.loop import fit
from latentsync.training.settings import UNetTrainConfig
from tests.stubs import TINY, tiny_nets

RUN = UNetTrainConfig("stage2", 3, 1, 1e-3, log_every=1, validate_every=3, checkpoint_every=1)


class Shaken:
    """A task that moves all weights of a U-Net a little."""

    def __init__(self, net):
        self.net = net.requires_grad_(True)

    def losses(self, _generator):
        return {"sum": sum(p.square().sum() for p in self.net.parameters())}

    def validate(self):
        return {}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run, and the average it ended with."""
    folder = tmp_path_factory.mktemp("run")
    nets = tiny_nets()
    unet = fit(Shaken(nets.unet), replace(RUN, keep_checkpoints=2), folder)
    weights.save(nets, folder / "model")
    return folder, {name: value.clone() for name, value in unet.state_dict().items()}


def test_a_run_comes_back_from_its_file_to_the_bit(run, tmp_path):
    folder, wanted = run
    file = tmp_path / "latentsync_unet.pt"
    for source in (folder, folder / "stage2.checkpoint.pt"):
        assert export(source, file) == 3
        raw = torch.load(file, weights_only=True)
        assert set(raw) == {"global_step", "state_dict"}
        assert raw["global_step"] == 3
        assert set(raw["state_dict"]) == set(UNet(TINY.unet).state_dict())
        back = load_unet(file, TINY.unet).state_dict()
        assert all(torch.equal(back[name], value) for name, value in wanted.items())
        assert {value.dtype for value in raw["state_dict"].values()} == {torch.float32}


def test_an_older_checkpoint_and_a_model_can_be_exported(run, tmp_path):
    folder, wanted = run
    assert export(folder / "stage2.00000002.checkpoint.pt", tmp_path / "older.pt") == 2
    assert export(folder / "model", tmp_path / "model.pt") == 0
    back = load_unet(tmp_path / "model.pt", TINY.unet).state_dict()
    for name, value in wanted.items():
        assert torch.equal(back[name], value.half().float()), name


def test_what_the_published_code_has_not_is_refused(tmp_path):
    config = replace(TINY, unet=replace(TINY.unet, speech_positions=20))
    nets = replace(tiny_nets(), config=config, unet=UNet(config.unet))
    weights.save(nets, tmp_path / "demo")
    with pytest.raises(WeightsMismatch, match="learned speech positions"):
        export(tmp_path / "demo", tmp_path / "out.pt")
    assert not (tmp_path / "out.pt").exists()


def test_what_can_t_be_exported_is_said(run, tmp_path):
    with pytest.raises(InputError, match="holds 0 checkpoints; give a folder that"):
        export(tmp_path, tmp_path / "out.pt")
    (tmp_path / "half.checkpoint.pt").write_bytes(b"half")
    with pytest.raises(WeightsMismatch, match=r"half\.checkpoint\.pt can't be read as"):
        export(tmp_path, tmp_path / "out.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(WeightsMismatch, match=r"other\.pt is no checkpoint of a run"):
        export(tmp_path / "other.pt", tmp_path / "out.pt")
    with pytest.raises(OptionError, match="is a folder"):
        export(run[0], tmp_path)
    with pytest.raises(OutputError, match="can't be written"):
        export(run[0], tmp_path / "no" / "out.pt")


def test_a_full_disk_is_no_bug_and_leaves_nothing(run, tmp_path, monkeypatch):
    def full(_state, file):
        file.write(b"half")
        raise RuntimeError("unexpected pos 88192 vs 88144")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"unet\.pt can't be written \(unexpected pos.*make room"):
        export(run[0], tmp_path / "unet.pt")
    assert not list(tmp_path.glob("*unet.pt*"))


def test_a_source_that_is_not_there_is_said(tmp_path):
    with pytest.raises(InputError, match="gone is not there; give a folder that"):
        export(tmp_path / "gone", tmp_path / "unet.pt")
