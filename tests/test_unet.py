"""The U-Net against the published net's names, shapes, outputs and gradients."""

import hashlib
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from latentsync.diffusion.attention import attention_backend
from latentsync.diffusion.unet import FeatureCache, FrameSharedGroupNorm, UNet, UNetConfig
from latentsync.errors import BackendUnavailable, OptionError
from latentsync.runtime.devices import channels_last
from tests.golden.golden_rule import f32
from tests.tiny import GOLDEN, filled, golden, tensor, unet_config

STAGES = {"stage1": "none", "stage2": "all", "stage2_efficient": "decoder"}
CASES = [
    ("stage1", "b1f5"),
    ("stage1", "b2f16"),
    ("stage2", "b1f16"),
    ("stage2", "b2f5"),
    ("stage2", "b2f5t"),
    ("stage2_efficient", "b1f16"),
]


def load(stage: str):
    arrays = golden(f"unet_tiny_{stage}")
    return arrays, filled(UNet(unet_config(str(arrays["config_json"]))), int(arrays["seed"]))


def inputs(arrays, stage: str, case: str):
    shape = tuple(arrays[f"{case}/audio_shape"])
    audio = tensor(shape, int(arrays["seed"]), f"{stage}/{case}/audio")
    return (
        torch.from_numpy(arrays[f"{case}/sample"]),
        torch.from_numpy(np.asarray(arrays[f"{case}/timestep"])),
        audio,
    )


@pytest.mark.parametrize("stage", STAGES)
def test_state_dict_is_the_published_one(stage):
    published = json.loads((GOLDEN / "unet_full_state_dict.json").read_text())[stage]
    with torch.device("meta"):
        unet = UNet(replace(UNetConfig(), motion=STAGES[stage]))
    ours = {key: list(value.shape) for key, value in unet.state_dict().items()}
    assert ours == published["state"]
    assert sum(p.numel() for p in unet.parameters()) == published["parameters"]


@pytest.mark.parametrize(("stage", "case"), CASES)
def test_outputs_match_the_published_net(stage, case):
    arrays, unet = load(stage)
    probes = {}
    prefix = f"{case}/probe/"
    for key in (key for key in arrays if key.startswith(prefix)):
        name = key.removeprefix(prefix)
        unet.get_submodule(name).register_forward_hook(
            lambda _module, _args, out, name=name: probes.__setitem__(name, out)
        )
    with torch.inference_mode():
        out = unet(*inputs(arrays, stage, case))
    np.testing.assert_allclose(out, arrays[f"{case}/out"], atol=1e-4, rtol=0)
    assert probes
    batch, frames = out.shape[0], out.shape[2]
    for name, value in probes.items():
        if value.dim() == 4 and value.shape[0] == batch * frames:  # the published net keeps 5-D
            value = value.unflatten(0, (batch, frames)).transpose(1, 2)
        flat = value.flatten()
        sample = flat[:: max(1, flat.numel() // 64)][:64]
        expected = arrays[prefix + name]
        np.testing.assert_allclose(sample, expected, atol=2e-4, rtol=0, err_msg=name)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_gradients_match_the_published_net(stage, checkpointing):
    arrays, unet = load(stage)
    case = str(arrays["grad/case"])
    unet.enable_gradient_checkpointing(checkpointing)
    out = unet(*inputs(arrays, stage, case))
    cotangent = tensor(tuple(out.shape), int(arrays["seed"]), f"{stage}/{case}/cotangent")
    (out * cotangent).mean().backward()
    parameters = dict(unet.named_parameters())
    for i, key in enumerate(arrays["grad/keys"]):
        gradient = parameters[str(key)].grad.flatten()
        expected = arrays["grad/head"][i][: gradient.numel()]
        largest = float(gradient.abs().max())
        head = gradient[: len(expected)]
        np.testing.assert_allclose(head, expected, atol=1e-3 * largest, rtol=0, err_msg=key)
        np.testing.assert_allclose(gradient.norm(), arrays["grad/l2"][i], rtol=1e-3, err_msg=key)


NORMS = {"cpu": FrameSharedGroupNorm.forward, "others": FrameSharedGroupNorm._by_variance}


@pytest.mark.parametrize("device", NORMS)
def test_groups_share_statistics_over_frames(device):
    norm = FrameSharedGroupNorm(4, 8, 1e-5)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = tensor((6, 8, 5, 7), 1, "norm", 3.0) + 2
    expected = torch.nn.functional.group_norm(
        x.unflatten(0, (2, 3)).transpose(1, 2), 4, norm.weight, norm.bias, 1e-5
    )
    ours = NORMS[device](norm, x, 3).unflatten(0, (2, 3)).transpose(1, 2)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    last = x.to(memory_format=torch.channels_last)
    assert NORMS[device](norm, last, 3).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("frames", [1, 3])
@pytest.mark.parametrize("device", NORMS)
def test_half_precision_keeps_statistics_of_large_numbers(dtype, frames, device):
    norm = FrameSharedGroupNorm(4, 8, 1e-5).to(dtype)
    x = (tensor((6, 8, 5, 7), 1, "norm") * 4000 + 9000).to(dtype)  # squares are beyond float16
    expected = torch.nn.functional.group_norm(
        x.float().unflatten(0, (-1, frames)).transpose(1, 2), 4, eps=1e-5
    )
    ours = NORMS[device](norm, x, frames)
    assert ours.dtype == dtype
    ours = ours.float().unflatten(0, (-1, frames)).transpose(1, 2)
    torch.testing.assert_close(ours, expected, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_and_finite(dtype):
    arrays, unet = load("stage2")
    sample, timestep, audio = inputs(arrays, "stage2", "b1f16")
    with torch.inference_mode():
        out = unet.to(dtype)(sample.to(dtype), timestep, audio.to(dtype))
    assert out.dtype == dtype
    relative = (out.float() - torch.from_numpy(arrays["b1f16/out"])).std() / out.float().std()
    assert relative < (0.05 if dtype is torch.bfloat16 else 0.01)


def test_channels_last_gives_the_same():
    arrays, unet = load("stage2")
    args = inputs(arrays, "stage2", "b1f16")
    with torch.inference_mode():
        out = unet.to(memory_format=torch.channels_last)(*args)
    np.testing.assert_allclose(out, arrays["b1f16/out"], atol=1e-4, rtol=0)


class Calls(TorchDispatchMode):
    """Notes the names of the operations that it sees."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        self.names.add(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", ["b1f16", "b2f5"])
def test_every_projection_is_one_matrix_product(case):
    # A projection of tokens that don't lie side by side becomes a batch of products, each of a copy
    # of its weights or of the tokens.
    arrays, unet = load("stage2")
    channels_last(unet.requires_grad_(False))
    args = inputs(arrays, "stage2", case)
    with torch.no_grad(), Calls() as calls:
        unet(*args)
    assert "aten::mm" in calls.names
    assert "aten::bmm" not in calls.names


@pytest.mark.slow
def test_compiles_whole_and_does_not_recompile_for_each_group_size():
    config = replace(UNetConfig(), block_out_channels=(32, 64), layers_per_block=1)
    unet = filled(UNet(config), 1)
    counter = CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()
    compiled = torch.compile(unet, backend=counter, fullgraph=True)
    sample, audio = tensor((1, 13, 16, 8, 8), 1, "sample"), tensor((16, 50, 384), 1, "audio")
    with torch.inference_mode():
        for frames in (16, 9, 8, 12, 5, 16):
            args = (sample[:, :, :frames], torch.tensor(500), audio[:frames])
            torch.testing.assert_close(compiled(*args), unet(*args), atol=1e-4, rtol=0)
    assert counter.frame_count <= 2  # one for the first size, one for every other


@pytest.mark.slow
def test_compiles_whole_with_a_feature_cache():
    config = replace(UNetConfig(), block_out_channels=(32, 64), layers_per_block=1)
    unet = filled(UNet(config), 1)
    counter = CompileCounterWithBackend("eager")
    torch._dynamo.reset()
    compiled = torch.compile(unet, backend=counter, fullgraph=True, dynamic=False)
    sample, audio = tensor((2, 1, 13, 4, 8, 8), 1, "sample"), tensor((4, 50, 384), 1, "audio")
    ours, expected = FeatureCache(), FeatureCache()
    with torch.inference_mode():
        for k in range(6):
            for cache in (ours, expected):
                cache.prepare(4, full=k % 3 == 0)
            args = (sample[k % 2], torch.tensor(900 - k), audio)
            torch.testing.assert_close(compiled(*args, ours), unet(*args, expected))
            torch.testing.assert_close(ours.features, expected.features)
    assert counter.frame_count == 2  # a full step and a cheap one


@pytest.mark.parametrize("stage", STAGES)
def test_a_cheap_step_runs_the_last_layer_on_what_was_kept(stage):
    arrays, unet = load(stage)
    sample, timestep, audio = inputs(arrays, stage, "b1f16" if stage != "stage1" else "b1f5")
    sample, audio = sample[:, :, :2], audio.reshape(-1, 50, 384)[:2]
    ran = []
    last = len(unet.up_blocks[-1].resnets) - 1
    for name, module in unet.named_modules():
        if type(module).__name__ in ("Conv2d", "Resnet", "Transformer", "MotionModule"):
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    cache = FeatureCache()
    with torch.inference_mode():
        full = unet(sample, timestep, audio, cache)
        assert torch.equal(full, unet(sample, timestep, audio))
        kept = cache.features.clone()
        ran.clear()
        assert torch.equal(unet(sample, timestep, audio, cache), full)
        assert torch.equal(cache.features, kept)
        kinds = ("resnets", "attentions", "motion_modules")
        layer = {f"up_blocks.3.{kind}.{last}" for kind in kinds}
        layer = {name for name in layer if name in dict(unet.named_modules())}
        outside = {name for name in ran if not name.startswith(tuple(layer))}
        assert outside == {"conv_in", "conv_out"}
        assert layer <= set(ran)
        other = unet(sample + 1, timestep + 7, audio + 1, cache)  # all three are looked at afresh
        assert not torch.equal(unet(sample, timestep + 7, audio + 1, cache), other)
        assert not torch.equal(unet(sample + 1, timestep, audio + 1, cache), other)
        assert not torch.equal(unet(sample + 1, timestep + 7, audio, cache), other)


def test_a_feature_cache_forgets_what_is_of_no_use():
    cache = FeatureCache()
    cache.prepare(4, full=False)
    assert cache.features is None
    cache.features = kept = torch.arange(4.0)
    cache.prepare(4, full=False)
    assert torch.equal(cache.features, kept)
    cache.prepare(2, full=False)
    assert cache.features.tolist() == [2, 3]
    cache.prepare(4, full=False)
    assert cache.features is None
    cache.features = kept
    cache.prepare(4, full=True)
    assert cache.features is None


def test_without_audio_cross_attention_is_left_out():
    arrays, unet = load("stage2")
    sample, timestep, audio = inputs(arrays, "stage2", "b1f16")
    with torch.inference_mode():
        assert not torch.allclose(unet(sample, timestep, None), unet(sample, timestep, audio))


def test_refuses_what_it_cannot_take():
    unet = UNet(replace(UNetConfig(), block_out_channels=(32, 32), layers_per_block=1))
    audio = torch.zeros(1, 50, 384)
    with pytest.raises(ValueError, match="multiples of 2"):
        unet(torch.zeros(1, 13, 1, 3, 4), 1, audio)
    with pytest.raises(ValueError, match="at most 24"):
        unet(torch.zeros(1, 13, 25, 4, 4), 1, audio)


def test_attention_backend_is_chosen_by_name():
    calls = []

    def spy(query, key, value):
        calls.append(query.shape)
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    _, unet = load("stage2")
    unet.set_attention(spy)
    unet(torch.zeros(1, 13, 2, 8, 8), 1, torch.zeros(2, 50, 384))
    modules = [m for m in unet.modules() if type(m).__name__.endswith("Attention")]
    assert len(calls) == len(modules) > 0
    assert attention_backend("native") is torch.nn.functional.scaled_dot_product_attention
    with pytest.raises(OptionError, match="'native' or 'xformers'"):
        attention_backend("flash9")


def test_missing_xformers_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "xformers.ops", None)
    with pytest.raises(BackendUnavailable, match="install the xformers build made for your torch"):
        attention_backend("xformers")


def test_golden_inputs_are_the_ones_the_numbers_were_made_with():
    arrays = golden("unet_tiny_stage2")
    audio = f32(tuple(arrays["b1f16/audio_shape"]), int(arrays["seed"]), "stage2/b1f16/audio")
    assert hashlib.sha256(audio.tobytes()).hexdigest() == str(arrays["b1f16/audio_sha256"])


def test_speech_positions_tell_tokens_apart_and_scale_away():
    config = UNetConfig(
        block_out_channels=(8, 8),
        layers_per_block=1,
        attention_heads=2,
        cross_attention_dim=16,
        norm_num_groups=4,
        motion="none",
        speech_positions=3,
    )
    torch.manual_seed(0)
    unet = UNet(config)
    torch.nn.init.normal_(unet.conv_out.weight)
    sample, audio = torch.randn(1, 13, 2, 8, 8), torch.randn(2, 3, 16)
    with torch.no_grad():
        out = unet(sample, 5, audio)
        torch.testing.assert_close(unet(sample, 5, 7 * audio), out, atol=1e-3, rtol=1e-3)
        assert (unet(sample, 5, audio.flip(1)) - out).abs().max() > 1e-2
        del unet.speech_positions
        unet.config = replace(config, speech_positions=0)
        plain = unet(sample, 5, audio)
        torch.testing.assert_close(unet(sample, 5, audio.flip(1)), plain, atol=1e-4, rtol=1e-4)
