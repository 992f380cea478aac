"""Loading weights: strictly, from the published files and from our own, at a tiny size."""

import json
import os
import pickle
from collections import OrderedDict
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from latentsync.audio.whisper import SpeechEncoder, WhisperConfig
from latentsync.diffusion import memory, weights
from latentsync.diffusion.config import PRESETS, ModelConfig
from latentsync.diffusion.unet import UNet
from latentsync.diffusion.vae import VAE
from latentsync.errors import OptionError, WeightsMismatch, WeightsMissing
from latentsync.runtime import checkpoints, devices
from tests.stubs import TINY, tiny_nets
from tests.tiny import GOLDEN

ROOT = Path(__file__).parent.parent
UNET, VAE_FILE, WHISPER = (
    "v1.6/latentsync_unet.pt",
    "vae/diffusion_pytorch_model.safetensors",
    "whisper/tiny.pt",
)


@pytest.fixture(scope="module")
def nets():
    return tiny_nets()


@pytest.fixture
def published(tmp_path, nets, monkeypatch):
    """A weights folder in the published layout; v1.6 is as small as the tiny nets meanwhile."""
    monkeypatch.setitem(weights.PRESETS, "v1.6", replace(TINY, name="v1.6"))
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda *_: None)
    folder = tmp_path / "published"
    for file in (UNET, VAE_FILE, WHISPER):
        (folder / file).parent.mkdir(parents=True)
    save_checkpoint(folder / UNET, nets.unet.state_dict())
    save_file(old_names(nets.vae), folder / VAE_FILE)
    save_whisper(folder / WHISPER, nets.speech)
    return folder


def save_checkpoint(path, state, **options):
    torch.save({"global_step": 5, "state_dict": state}, path, **options)
    return path


def save_whisper(path, speech):
    decoder = {
        "decoder.positional_embedding": torch.zeros(448, 32),
        "decoder.ln.bias": torch.ones(32),
    }
    state = {**speech.state_dict(), **decoder}
    torch.save({"dims": asdict(TINY.whisper), "model_state_dict": state}, path)


def old_names(vae):
    """The VAE's tensors as its published file has them."""
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for key, value in vae.net.state_dict().items():
        for new, old in names.items():
            key = key.replace(f".{new}.", f".{old}.")
        state[key] = value.clone()
    assert sum(".query." in key for key in state) == 4  # weight and bias; encoder and decoder
    return state


def assert_same(module, other, of=lambda value: value):
    state, expected = module.state_dict(), other.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(state[key], of(value)), key


def refused(kind, function, *args, **kwargs):
    """The one line with which `function` refuses."""
    with pytest.raises(kind) as caught:
        function(*args, **kwargs)
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_what_is_saved_is_loaded(nets, tmp_path):
    folder = tmp_path / "a" / "model"
    for _ in range(2):  # over what is there, too
        weights.save(nets, folder)
    assert {p.name for p in folder.iterdir()} == {
        *("config.json", "unet.safetensors", "vae.safetensors", "whisper.safetensors")
    }
    for name in (folder, str(folder)):
        loaded = weights.load_nets(name)
        assert loaded.config == TINY
        for part in ("unet", "vae", "speech"):
            net = getattr(loaded, part)
            assert_same(net, getattr(nets, part), lambda v: v.half().float())
            assert not net.training
            assert not any(p.requires_grad for p in net.parameters())
            assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_half_precision_leaves_speech_in_float32(nets, tmp_path):
    weights.save(nets, tmp_path / "model")
    loaded = weights.load_nets(tmp_path / "model", dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.unet.parameters()} == {torch.bfloat16}
    assert loaded.vae.dtype == torch.bfloat16
    assert {p.dtype for p in loaded.speech.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("offload", "room", "comes_and_goes"),
    [
        ("none", False, False),
        ("auto", True, False),
        ("auto", False, True),
        ("sequential", True, True),
    ],
)
def test_a_net_too_large_for_its_device_is_offloaded(
    nets, tmp_path, monkeypatch, caplog, offload, room, comes_and_goes
):
    asked = []

    def has_room(needed, device):
        asked.append((needed, device.type))
        return room

    monkeypatch.setattr(devices, "has_room", has_room)
    monkeypatch.setattr(
        devices, "MIN_OFFLOADED_PARAMETERS", 5000
    )  # then convolutions are large in a tiny net
    weights.save(nets, tmp_path / "model")
    loaded = weights.load_nets(tmp_path / "model", offload=offload, dtype=torch.bfloat16)
    assert any(layer._forward_pre_hooks for layer in loaded.unet.modules()) == comes_and_goes
    assert ["come and go" in line for line in caplog.messages] == [True] * (
        offload == "auto" and not room
    )
    assert {p.dtype for p in loaded.unet.parameters()} == {torch.bfloat16}
    if asked:
        numbers = sum(p.numel() for net in (nets.unet, nets.vae) for p in net.parameters())
        work = memory.unet_work(TINY.unet, 8, torch.bfloat16)
        assert asked == [(2 * numbers + work, "cpu")]


def test_an_unknown_offload_is_refused(tmp_path):
    line = refused(OptionError, weights.load_nets, tmp_path, offload="model")
    assert line == "offload is 'model'; it must be auto, none or sequential"


def test_the_published_files_are_loaded(nets, published):
    loaded = weights.load_nets("v1.6", folder=published)
    assert loaded.config.name == "v1.6"
    for part in ("unet", "vae", "speech"):
        assert_same(getattr(loaded, part), getattr(nets, part))
    pixels = torch.rand(1, 3, 64, 64)
    latents = loaded.vae.encode(pixels)
    torch.testing.assert_close(latents, nets.vae.encode(pixels))
    torch.testing.assert_close(loaded.vae.decode(latents), nets.vae.decode(latents))


def test_todays_names_in_the_vae_are_loaded_too(nets, published):
    save_file(nets.vae.net.state_dict(), published / VAE_FILE)
    assert_same(weights.load_nets("v1.6", folder=published).vae, nets.vae)


def test_half_precision_makes_a_copy_once_and_of_the_right_net_only(nets, published):
    def load():
        return weights.load_nets("v1.6", folder=published, dtype=torch.float16)

    unet = published / UNET
    copy = unet.with_suffix(".fp16.safetensors")
    state = nets.unet.state_dict()
    save_checkpoint(unet, {k.replace("attn2", "audio_cross_attn.x"): v for k, v in state.items()})
    line = refused(WeightsMismatch, load)
    assert line.startswith(f"{unet} holds a LatentSync 1.0 U-Net")
    assert not copy.exists()

    save_checkpoint(unet, state)
    assert_same(load().unet, nets.unet, Tensor.half)
    assert_same(weights.load_nets("v1.6", folder=published).unet, nets.unet)  # the file itself
    unet.write_bytes(b"not read again")
    os.utime(copy, (unet.stat().st_mtime + 1,) * 2)
    assert_same(load().unet, nets.unet, Tensor.half)
    os.utime(unet, (copy.stat().st_mtime + 1,) * 2)
    assert str(unet) in refused(WeightsMismatch, load)  # a new file is a new model
    assert {p.name for p in unet.parent.iterdir()} == {unet.name, copy.name}


@pytest.mark.parametrize("file", [UNET, VAE_FILE, WHISPER])
def test_a_missing_file_is_named_with_the_way_out(published, file, monkeypatch):
    (published / file).unlink()
    monkeypatch.setenv("LATENTSYNC_WEIGHTS", str(published))
    line = refused(WeightsMissing, weights.load_nets, "v1.6")
    assert line == (
        f"model 'v1.6' has no {published / file}; "
        "run `latentsync download v1.6`, or use `--model demo`"
    )


def test_nothing_there_is_told_in_one_line_too(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "try_to_load_from_cache", lambda *_: None)
    line = refused(WeightsMissing, weights.load_nets, "v1.5", folder=tmp_path)
    assert f"{tmp_path / 'v1.5' / 'latentsync_unet.pt'} and 2 more" in line
    assert "`latentsync download v1.5`" in line
    assert "`--model demo`" in line
    line = refused(WeightsMissing, weights.load_nets, "demo", folder=tmp_path)
    assert str(tmp_path / "demo" / "config.json") in line


def test_a_missing_file_of_our_own_is_named(nets, tmp_path):
    weights.save(nets, tmp_path)
    (tmp_path / "vae.safetensors").unlink()
    line = refused(WeightsMissing, weights.load_nets, tmp_path)
    assert str(tmp_path / "vae.safetensors") in line


@pytest.mark.parametrize("name", ["v2", "", "V1.6", "demo2", "../demo"])
def test_an_unknown_model_is_refused_with_the_known_ones(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refused(OptionError, weights.load_nets, name)
    assert line.startswith(f"model is {name!r}; it must be one of v1.6, v1.5, demo, or a folder")


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json", '{"unet": {}}', '{"unet": 3}', "\xff"])
def test_a_configuration_that_is_none_is_refused(nets, tmp_path, text):
    weights.save(nets, tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    line = refused(WeightsMismatch, weights.load_nets, tmp_path)
    assert str(tmp_path / "config.json") in line


def test_a_unet_is_loaded_from_a_checkpoint_and_from_safetensors(nets, tmp_path):
    state = nets.unet.state_dict()
    new = save_checkpoint(tmp_path / "new.pt", state)
    old = save_checkpoint(tmp_path / "old.pt", state, _use_new_zipfile_serialization=False)
    save_file(state, tmp_path / "ours.safetensors")
    for path in (new, old, tmp_path / "ours.safetensors"):
        assert_same(weights.load_unet(path, TINY.unet), nets.unet)


def test_every_tensor_counts(nets, tmp_path):
    state = nets.unet.state_dict()
    key = "mid_block.resnets.0.conv1.bias"
    path = tmp_path / "unet.pt"

    save_checkpoint(path, {k: v for k, v in state.items() if k != key})
    line = refused(WeightsMismatch, weights.load_unet, path, TINY.unet)
    assert key in line
    assert "Missing" in line
    assert str(path) in line

    save_checkpoint(path, state | {"mid_block.more": torch.zeros(1)})
    line = refused(WeightsMismatch, weights.load_unet, path, TINY.unet)
    assert "mid_block.more" in line
    assert "Unexpected" in line

    save_checkpoint(path, state | {key: torch.zeros(7)})
    line = refused(WeightsMismatch, weights.load_unet, path, TINY.unet)
    assert key in line
    assert "size mismatch" in line


TINY_UNET = (
    "a U-Net of widths 32/32, 1 layers a block, 13 input channels, speech width 32, "
    "motion modules everywhere"
)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"block_out_channels": (32, 64)}, "widths 32/64,"),
        ({"layers_per_block": 2}, "2 layers a block"),
        ({"in_channels": 4}, "4 input channels"),
        ({"cross_attention_dim": 48}, "speech width 48"),
        ({"motion": "none"}, "motion modules none"),
        ({"motion": "decoder"}, "motion modules decoder only"),
    ],
)
def test_another_unet_is_refused_with_what_it_is_and_what_fits(tmp_path, change, found):
    path = save_checkpoint(tmp_path / "unet.pt", UNet(replace(TINY.unet, **change)).state_dict())
    line = refused(WeightsMismatch, weights.load_unet, path, TINY.unet)
    assert line.startswith(f"{path} holds a U-Net of widths ")
    assert found in line
    assert line.endswith(f", but {TINY_UNET} is wanted")


def test_a_checkpoint_of_1_0_is_told_by_its_names(nets, tmp_path):
    state = {
        k.replace(".attn2.", ".audio_cross_attn.attn."): v
        for k, v in nets.unet.state_dict().items()
    }
    path = save_checkpoint(tmp_path / "unet.pt", state)
    line = refused(WeightsMismatch, weights.load_unet, path, TINY.unet)
    assert "a LatentSync 1.0 U-Net" in line
    assert f"but {TINY_UNET} is wanted" in line


def test_the_published_unet_is_known_by_its_name(tmp_path, monkeypatch):
    with torch.device("meta"):
        state = UNet(PRESETS["v1.6"].unet).state_dict()
    monkeypatch.setattr(weights, "read", lambda *_: state)
    line = refused(WeightsMismatch, weights.load_unet, tmp_path / "x.pt", TINY.unet)
    assert "widths 320/640/1280/1280" in line
    assert line.endswith("; it fits the v1.5 and v1.6 models")
    assert weights.load_unet(tmp_path / "x.pt", PRESETS["v1.6"].unet).conv_in.weight.is_meta


def test_something_else_under_the_right_entry_is_no_unet(nets, tmp_path):
    path = save_checkpoint(tmp_path / "vae.pt", nets.vae.state_dict())
    line = refused(WeightsMismatch, weights.load_unet, path, TINY.unet)
    assert "holds no U-Net" in line
    path = save_checkpoint(tmp_path / "empty.pt", OrderedDict())
    assert "holds no U-Net (0 tensors" in refused(
        WeightsMismatch, weights.load_unet, path, TINY.unet
    )


class Code:
    """Would make a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def broken_files(state):
    """What lies in files that are no checkpoints, by name."""

    def zipped(raw):
        return lambda path: torch.save(raw, path)

    def truncated(path):
        save_checkpoint(path, state)
        path.write_bytes(path.read_bytes()[:100_000])

    return {
        "empty.pt": lambda path: path.write_bytes(b""),
        "text.pt": lambda path: path.write_text("<html>404 not found</html>\n" * 9),
        "cut.pt": truncated,
        "list.pt": zipped([1, 2]),
        "tensor.pt": zipped(torch.zeros(3)),
        "bare.pt": zipped(state),  # as it is, without an entry for it
        "other.pt": zipped({"state_dict": [1, 2]}),
        "numbers.pt": zipped({"state_dict": {"conv_in.weight": 3}}),
        "pickle.pt": lambda path: path.write_bytes(
            pickle.dumps({"state_dict": Code(path.with_name("ran"))}, 2)
        ),
        "code.pt": lambda path: torch.save({"state_dict": Code(path.with_name("ran"))}, path),
        "empty.safetensors": lambda path: path.write_bytes(b""),
        "text.safetensors": lambda path: path.write_text("version https://git-lfs..." * 9),
        "torch.safetensors": lambda path: save_checkpoint(path, state),
    }


@pytest.mark.parametrize("name", broken_files({}))
def test_what_is_no_checkpoint_is_refused_and_never_run(nets, tmp_path, name):
    path = tmp_path / name
    broken_files(nets.unet.state_dict())[name](path)
    line = refused(WeightsMismatch, weights.load_unet, path, TINY.unet)
    assert line.startswith(str(path))
    assert len(line) < len(str(path)) + 400
    assert "weights_only" not in line  # torch's advice to run it
    assert not (tmp_path / "ran").exists()


def test_a_folder_or_nothing_is_missing(tmp_path):
    for path in (tmp_path, tmp_path / "none.pt"):
        assert str(path) in refused(WeightsMissing, weights.load_unet, path, TINY.unet)


def test_another_vae_or_whisper_is_refused(published, nets):
    other = VAE(replace(TINY.vae, block_out_channels=(8, 8, 8, 16)))
    save_file(old_names(other), published / VAE_FILE)
    line = refused(WeightsMismatch, weights.load_nets, "v1.6", folder=published)
    assert line.startswith(f"{published / VAE_FILE} does not fit a VAE of this model")

    save_file(old_names(nets.vae), published / VAE_FILE)
    save_whisper(published / WHISPER, SpeechEncoder(replace(TINY.whisper, n_audio_layer=2)))
    line = refused(WeightsMismatch, weights.load_nets, "v1.6", folder=published)
    assert line.startswith(f"{published / WHISPER} does not fit a SpeechEncoder of this model")


def test_the_speech_encoder_has_whispers_own_names():
    golden = json.loads((GOLDEN / "whisper_tiny_state_dict.json").read_text())["state"]
    with torch.device("meta"):
        state = SpeechEncoder(WhisperConfig()).state_dict()
    expected = {key: tuple(shape) for key, shape in golden.items() if key.startswith("encoder.")}
    assert {key: tuple(value.shape) for key, value in state.items()} == expected
    assert len(expected) < len(golden)  # the decoder is left out


def test_the_weights_folder_is_the_given_one_or_the_environments_or_the_checkouts(
    tmp_path, monkeypatch
):
    monkeypatch.delenv("LATENTSYNC_WEIGHTS", raising=False)
    assert checkpoints.root() == ROOT / "weights"
    monkeypatch.setenv("LATENTSYNC_WEIGHTS", str(tmp_path))
    assert checkpoints.root() == tmp_path
    assert checkpoints.root(tmp_path / "given") == tmp_path / "given"


def test_the_demo_in_the_repository_is_what_training_makes_of_the_preset():
    folder = ROOT / "weights" / "demo"
    config = ModelConfig.from_json((folder / "config.json").read_text())
    assert len(config.vae.latents_mean) == len(config.vae.latents_std) == 4  # measured in training
    plain = replace(config.vae, latents_mean=(), latents_std=())
    assert replace(config, vae=plain) == PRESETS["demo"]
    sizes = {path.name: path.stat().st_size for path in folder.iterdir()}
    nets = ("unet", "vae", "whisper", "landmarks", "likeness", "ruler")
    assert sizes.keys() == {"config.json", *(f"{net}.safetensors" for net in nets)}
    assert sum(sizes.values()) < 25e6
    assert max(sizes.values()) < 16 * 2**20
    assert max(sizes["landmarks.safetensors"], sizes["ruler.safetensors"]) < 1e6


# ---- who may read what was written ---------------------------------------------------------------


@pytest.fixture(params=[0o022, 0o007], ids=oct)
def mask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_files_have_the_mode_that_the_umask_gives(nets, published, tmp_path, mask):
    weights.save(nets, tmp_path / "model")
    weights.load_nets("v1.6", folder=published, dtype=torch.float16)
    copy = (published / UNET).with_suffix(".fp16.safetensors")
    for path in (copy, *(tmp_path / "model").iterdir()):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask, path.name


def test_what_a_killed_process_left_is_swept(nets, tmp_path):
    """safetensors writes to a hidden file of its own naming first."""
    left = tmp_path / ".unet.safetensors.part/.tmpgOwVN7"
    left.parent.mkdir()
    left.write_bytes(b"half of it")
    weights.save(nets, tmp_path)
    names = {"config.json", "unet.safetensors", "vae.safetensors", "whisper.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_file_that_cannot_be_written_leaves_the_one_before(nets, tmp_path, monkeypatch):
    def fail(_state, path):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    weights.save(nets, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(checkpoints, "save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        weights.save(nets, tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def forbidden(path, *_):
    raise PermissionError(13, "Permission denied", str(path))


def test_a_copy_that_cannot_be_read_or_made_is_not_needed(nets, published, monkeypatch, caplog):
    weights.load_nets("v1.6", folder=published, dtype=torch.float16)  # another account, say
    monkeypatch.setattr(weights, "safe_open", forbidden)
    monkeypatch.setattr(weights, "locked_file", forbidden)
    monkeypatch.setattr(checkpoints, "load_file", only_published(checkpoints.load_file))
    loaded = weights.load_nets("v1.6", folder=published, dtype=torch.float16)
    assert_same(loaded.unet, nets.unet, Tensor.half)
    assert any("fp16.safetensors can't be read" in line for line in caplog.messages)
    assert any("loading latentsync_unet.pt instead" in line for line in caplog.messages)


def only_published(load):
    def checked(path):
        return load(path) if "fp16" not in path.name else forbidden(path)

    return checked


@pytest.mark.parametrize("damage", [lambda whole: whole[:-7], lambda _: b""], ids=["cut", "empty"])
def test_a_damaged_copy_is_made_anew(nets, published, damage):
    weights.load_nets("v1.6", folder=published, dtype=torch.float16)
    copy = (published / UNET).with_suffix(".fp16.safetensors")
    copy.write_bytes(damage(copy.read_bytes()))
    loaded = weights.load_nets("v1.6", folder=published, dtype=torch.float16)
    assert_same(loaded.unet, nets.unet, Tensor.half)
    assert {p.name for p in copy.parent.iterdir()} == {"latentsync_unet.pt", copy.name}
