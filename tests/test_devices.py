"""What is chosen where: the machine is made up, so that each case runs everywhere."""

import shutil
import sys
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentsync.diffusion import memory
from latentsync.diffusion.config import PRESETS
from latentsync.diffusion.unet import UNet
from latentsync.diffusion.vae import VAE, VALUES_PER_PIXEL
from latentsync.errors import BackendUnavailable, OptionError
from latentsync.runtime import devices
from latentsync.runtime.devices import choose
from tests.stubs import tiny_nets

PUBLISHED_SPEECH = (50, 384)  # tokens of a frame, numbers of a token


def machine(monkeypatch, *, cuda=0, capability=(9, 0), mps=False):
    """A machine with so many CUDA devices of that compute capability."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: capability)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({}, ("cpu", torch.float32)),
        ({"mps": True}, ("mps", torch.float32)),
        ({"cuda": 1}, ("cuda", torch.float16)),
        ({"cuda": 1, "mps": True}, ("cuda", torch.float16)),
        ({"cuda": 1, "capability": (7, 0)}, ("cuda", torch.float16)),
        ({"cuda": 1, "capability": (6, 1)}, ("cuda", torch.float32)),
    ],
)
def test_the_best_there_is(monkeypatch, there, expected):
    machine(monkeypatch, **there)
    device, dtype = choose()
    assert (device.type, dtype) == expected


def test_what_is_asked_for_is_taken(monkeypatch):
    machine(monkeypatch, cuda=2)
    assert choose("cpu") == (torch.device("cpu"), torch.float32)
    assert choose("cuda:1", "bfloat16") == (torch.device("cuda:1"), torch.bfloat16)
    assert choose(dtype="float32") == (torch.device("cuda"), torch.float32)
    assert choose("cpu", "float16") == (torch.device("cpu"), torch.float16)


@pytest.mark.parametrize(
    ("told", "large", "expected"),
    [
        ({"architecture": "x86_64", "amx_bf16": True}, True, torch.bfloat16),
        ({"architecture": "x86_64", "avx512_bf16": True}, True, torch.bfloat16),
        ({"architecture": "x86_64", "avx512_bf16": True}, False, torch.float32),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True, torch.float32),
        ({}, True, torch.float32),
    ],
)
def test_large_nets_compute_in_bfloat16_where_the_cpu_can(monkeypatch, told, large, expected):
    machine(monkeypatch)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)
    assert choose(large=large) == (torch.device("cpu"), expected)
    assert choose(dtype="float32", large=large)[1] == torch.float32


@pytest.mark.parametrize(
    ("device", "there"),
    [("cuda", {}), ("mps", {}), ("cuda:2", {"cuda": 2}), ("cuda", {"mps": True}), ("xpu", {})],
)
def test_a_device_that_is_not_there_is_never_replaced(monkeypatch, device, there):
    machine(monkeypatch, **there)
    with pytest.raises(BackendUnavailable, match=f"device '{device}' was asked for") as caught:
        choose(device)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cpu:-1", "0"])
def test_an_unknown_device_is_refused_with_the_known_ones(monkeypatch, device):
    machine(monkeypatch)
    with pytest.raises(OptionError, match=f"device is '{device}'; it must be cpu, cuda, cuda:N"):
        choose(device)


def test_an_unknown_dtype_is_refused_with_the_known_ones(monkeypatch):
    machine(monkeypatch)
    with pytest.raises(OptionError, match=r"'fp16'.*float32, float16, bfloat16"):
        choose(dtype="fp16")


def cpu(monkeypatch, *instructions):
    """A machine with nothing but an x86 CPU that has those."""
    machine(monkeypatch)
    told = {"architecture": "x86_64", "avx512_bw": True, "amx_bf16": False}
    told |= dict.fromkeys(instructions, True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told, raising=False)


def test_the_cpu_stays_in_float32_even_where_it_knows_bfloat16(monkeypatch, caplog):
    """So equal seeds give equal results on every CPU."""
    cpu(monkeypatch, "amx_bf16")
    assert choose() == (torch.device("cpu"), torch.float32)
    assert choose(dtype="bfloat16") == (torch.device("cpu"), torch.bfloat16)
    assert not caplog.records


@pytest.mark.parametrize(
    ("dtype", "instructions", "warned"),
    [
        ("bfloat16", (), True),
        ("bfloat16", ("avx512_bf16",), False),
        ("bfloat16", ("amx_fp16",), True),
        ("float16", ("avx512_fp16",), False),
        ("float16", ("amx_bf16",), True),
        ("float32", (), False),
    ],
)
def test_a_cpu_without_the_instructions_is_warned_of(
    monkeypatch, caplog, dtype, instructions, warned
):
    cpu(monkeypatch, *instructions)
    choose("cpu", dtype)
    assert [f"no instructions for {dtype}" in line for line in caplog.messages] == [True] * warned
    caplog.clear()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "arm64"})
    choose("cpu", dtype)  # nothing is known
    assert not caplog.messages


class Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and the most there were."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._known = weakref.WeakSet()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known.add(storage)
                self._add(storage.nbytes())
                weakref.finalize(storage, self._add, -storage.nbytes())
        return out

    def _add(self, size):
        self.now += size
        self.most = max(self.most, self.now)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_work_that_is_reckoned_with_is_that_of_the_published_widths(dtype):
    """Without numbers: on the meta device tensors have sizes only."""
    config, side = PRESETS["v1.6"], 32
    with torch.device("meta"), torch.inference_mode():
        unet = UNet(replace(config.unet, layers_per_block=1)).to(dtype)
        unet.set_attention(lambda query, _key, _value: torch.empty_like(query))  # fused: no scores
        call = memory.unet_call(config.unet, side, unet.conv_in.weight)
        assert call[0].shape == (1, 13, 16, side, side)
        assert call[2].shape == (1, 16, *PUBLISHED_SPEECH)
        with Live() as live:
            unet(*call)
        reckoned = memory.unet_work(config.unet, side, dtype)
        assert 0.9 < live.most / reckoned <= 1
        for read_from_outside in (unet.conv_in, unet.time_embedding.linear_1):
            assert (
                sum(p.numel() for p in read_from_outside.parameters())
                < devices.MIN_OFFLOADED_PARAMETERS
            )
        vae = VAE(config.vae).to(dtype)
        for call, shape in ((vae.net.decode, (4, 32, 32)), (vae.net.encode, (3, 256, 256))):
            with Live() as live:
                call(torch.empty(1, *shape, dtype=dtype))
            per_pixel = VALUES_PER_PIXEL * config.vae.block_out_channels[0] * dtype.itemsize
            assert 0.8 < live.most / (per_pixel * 256**2) <= 1.001


def test_groups_that_fit():
    config = PRESETS["v1.6"].unet
    each = memory.unet_work(config, 32, torch.float16)

    def fit(free, **more):
        return memory.groups_that_fit(config, 32, torch.float16, free, **more)

    enough = round(4 * each / devices.USABLE_SHARE) + 1
    assert fit(enough) == 4
    assert fit(enough, guided=True) == 2
    assert fit(enough - 2) == 3
    assert fit(0) == fit(None) == 1
    assert memory.groups_that_fit(config, 64, torch.float16, enough) == 1


def test_free_memory_of_the_cpu_is_what_linux_and_the_container_leave(tmp_path):
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 24689 kB\nMemAvailable:    2048 kB\n")
    assert list(devices._available(meminfo)) == [2 * 2**20]
    assert not list(devices._available(tmp_path / "none"))
    assert not list(devices._left_in_group(tmp_path))
    written = {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 1\nfile 9\n"}
    for name, text in written.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 150\n")
    assert list(devices._left_in_group(tmp_path)) == [450]
    (tmp_path / "memory.max").write_text("max\n")
    assert not list(devices._left_in_group(tmp_path))
    (tmp_path / "memory").mkdir()
    old = {"limit_in_bytes": "50", "usage_in_bytes": "20", "stat": "total_inactive_file 5"}
    for name, text in old.items():
        (tmp_path / "memory" / f"memory.{name}").write_text(text)
    assert list(devices._left_in_group(tmp_path)) == [35]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_free_memory_of_this_machine():
    free = devices.free_memory(torch.device("cpu"))
    assert 10**7 < free < 10**14


def test_free_memory_of_a_gpu_counts_what_torch_keeps_for_later(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 100)
    assert devices.free_memory(torch.device("cuda")) == 1200


def test_only_a_cuda_device_may_lack_room(monkeypatch):
    monkeypatch.setattr(devices, "free_memory", lambda _device: 1000)
    assert devices.has_room(700, torch.device("cuda"))
    assert not devices.has_room(701, torch.device("cuda"))
    assert devices.has_room(10**12, torch.device("cpu"))
    assert devices.has_room(10**12, torch.device("mps"))


def call_of(unet, rows=1, frames=2):
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(rows, 13, frames, 8, 8, generator=generator),
        torch.tensor(5),
        torch.randn(rows, frames, 10, unet.config.cross_attention_dim, generator=generator),
    )


def test_an_offloaded_net_computes_the_same_and_comes_home(monkeypatch):
    monkeypatch.setattr(
        devices, "MIN_OFFLOADED_PARAMETERS", 5000
    )  # then convolutions are large in a tiny net
    unet = tiny_nets().unet
    with torch.inference_mode():
        expected = unet(*call_of(unet))
    devices.offload(unet, torch.device("cpu"))
    homes = dict(unet.named_parameters())
    with torch.inference_mode():
        assert torch.equal(unet(*call_of(unet)), expected)
    assert all(homes[name] is parameter for name, parameter in unet.named_parameters())


def test_an_offloaded_net_runs_where_its_weights_are_brought(monkeypatch):
    """The meta device stands for a GPU: a tensor left behind on the CPU would be refused."""
    monkeypatch.setattr(devices, "MIN_OFFLOADED_PARAMETERS", 5000)
    unet = tiny_nets().unet
    before = {name: parameter.clone() for name, parameter in unet.named_parameters()}
    devices.offload(unet, torch.device("meta"))
    moved = {n for n, parameter in unet.named_parameters() if parameter.is_meta}
    assert "conv_in.weight" in moved
    assert "mid_block.resnets.0.conv1.weight" not in moved
    with torch.inference_mode():
        out = unet(*(tensor.to("meta") for tensor in call_of(unet)))
    assert out.is_meta
    assert out.shape == (1, 4, 2, 8, 8)
    after = dict(unet.named_parameters())
    assert {n for n, parameter in after.items() if parameter.is_meta} == moved
    assert all(torch.equal(after[name], before[name]) for name in before if name not in moved)
    with pytest.raises(RuntimeError):  # also after a failure the weights go home
        unet(*call_of(unet))
    assert {n for n, parameter in unet.named_parameters() if parameter.is_meta} == moved


def test_only_what_was_warmed_up_runs_compiled(monkeypatch):
    seen = []

    def compile_nothing(call, **settings):
        seen.append(settings)
        return lambda *args: 2 * call(*args)

    monkeypatch.setattr(torch, "compile", compile_nothing)
    unet = tiny_nets().unet
    warm, other = call_of(unet), call_of(unet, rows=2)
    with torch.inference_mode():
        plain = unet(*warm), unet(*other)
        devices.compile_for(unet, warm)
        assert torch.equal(unet(*warm), 2 * plain[0])
        assert torch.equal(unet(*warm, None), 2 * plain[0])
        assert torch.equal(unet(*other), plain[1])
    assert torch.equal(unet(*warm), plain[0])  # with gradients, nothing of it is compiled
    assert seen == [{"dynamic": False}]


def test_without_a_compiler_it_says_so(monkeypatch):
    def fails(*_args):
        raise RuntimeError("No working C++ compiler found\nand much more")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    unet = tiny_nets().unet
    forward = unet.forward
    with pytest.raises(BackendUnavailable, match="No working C\\+\\+ compiler found\\); install"):
        devices.compile_for(unet, call_of(unet))
    assert unet.forward == forward


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_compiled_net_computes_the_same():
    unet = tiny_nets().unet
    call = call_of(unet, frames=16)
    with torch.inference_mode():
        expected = unet(*call)
        devices.compile_for(unet, call)
        torch.testing.assert_close(unet(*call), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_compiled_and_an_offloaded_net_compute_the_same():
    device = torch.device("cuda")
    unet = tiny_nets().unet.to(device)
    call = tuple(tensor.to(device) for tensor in call_of(unet, frames=16))
    with torch.inference_mode():
        expected = unet(*call)
        devices.compile_for(unet, call)
        torch.testing.assert_close(unet(*call), expected, rtol=1e-2, atol=1e-3)
        del unet.forward
        devices.offload(unet.cpu(), device)
        torch.testing.assert_close(unet(*call), expected, rtol=1e-2, atol=1e-3)


def test_channels_last_is_another_layout_of_the_same_net():
    net = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.GroupNorm(4, 16))
    pictures = torch.rand(2, 8, 9, 9)
    with torch.inference_mode():
        before = net(pictures)
    devices.channels_last(net)
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        torch.testing.assert_close(net(pictures), before)
