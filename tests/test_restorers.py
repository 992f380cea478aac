"""Asking for restoration nets, as far as it goes without spandrel; the rest: tests/restoration."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from latentsync.errors import BackendUnavailable, WeightsMismatch, WeightsMissing
from latentsync.faces.restoration.nets import OF_CODEFORMER, load_restorer
from latentsync.runtime.downloads import SETS


def load(name, folder):
    return load_restorer(str(name), folder=folder, device=torch.device("cpu"), weight=0.5)


@pytest.fixture
def some_net(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({"some.weight": torch.zeros(2)}, path)
    return path


@pytest.mark.parametrize("name", ["gfpgan", "GFPGAN", "CodeFormer"])
def test_a_net_that_was_not_fetched(name, tmp_path):
    with pytest.raises(WeightsMissing, match=f"run `latentsync download {name.lower()}`") as caught:
        load(name, tmp_path)
    assert str(tmp_path / SETS[name.lower()][0].target) in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(WeightsMissing, match="give gfpgan, codeformer or the file of another net"):
        load("gfpgen", tmp_path)


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0 a picture", b""])
def test_a_file_that_is_no_net(content, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsMismatch, match="can't be read as weights") as caught:
        load(path, tmp_path)
    assert "\n" not in str(caught.value)


def test_nothing_in_a_file_is_run(tmp_path):
    path = tmp_path / "net.pth"
    torch.save({"params": torch.nn.Linear(2, 2)}, path)  # a pickled object, not its tensors
    with pytest.raises(WeightsMismatch, match="can't be read as weights"):
        load(path, tmp_path)


def test_codeformer_only_by_its_name(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file({name: torch.zeros(2) for name in OF_CODEFORMER}, path)
    with pytest.raises(WeightsMismatch, match=r"forbids commercial use.* asked for by name"):
        load(path, tmp_path)
    assert "non-commercial" in SETS["codeformer"][0].licence


def test_without_spandrel(some_net, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(BackendUnavailable, match=r"pip install .*\[restore\]"):
        load(some_net, tmp_path)


def test_beside_a_torchvision_of_another_build(some_net, tmp_path, monkeypatch):
    """Its import ends so: tests/restoration/__init__.py."""

    class Broken(ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "spandrel", ModuleType("spandrel"))
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", Broken("spandrel_extra_arches"))
    with pytest.raises(BackendUnavailable, match=r"nms does not exist.*a torchvision made for"):
        load(some_net, tmp_path)


# ---- with a stand-in for spandrel ----------------------------------------------------------------


class Net:
    """Keeps what it was called with; answers twice as large, with one number more."""

    def __init__(self):
        self.calls = []

    def __call__(self, pictures, **options):
        self.calls.append((pictures.clone(), options))
        return torch.nn.functional.interpolate(pictures, scale_factor=2), "and more"


class Descriptor:
    """What spandrel says of a file."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, kind="RealESRGAN", purpose="SR", channels=(3, 3), scale=2):
        self.architecture = SimpleNamespace(id=kind)
        self.purpose, self.scale, self.supports_half = purpose, scale, True
        self.input_channels, self.output_channels = channels
        self.model, self.placed = Net(), None

    def to(self, **place):
        self.placed = place
        return self

    def eval(self):
        return self

    def __call__(self, pictures):
        return self.model(pictures)[0]


@pytest.fixture
def spandrel(monkeypatch):
    """A module that finds `found` in any file; `asked` are the tensors it was shown."""
    module, extra = ModuleType("spandrel"), ModuleType("spandrel_extra_arches")
    module.found, module.asked, module.registries = Descriptor(), [], []

    class Registry:
        def __init__(self):
            self.added = []

        def add(self, architecture):
            self.added.append(architecture)

    class Loader:
        def __init__(self, registry):
            module.registries.append(registry)

        def load_from_state_dict(self, state):
            module.asked.append(set(state))
            if isinstance(module.found, Exception):
                raise module.found
            return module.found

    module.ArchRegistry, module.ModelLoader, module.MAIN_REGISTRY = Registry, Loader, "all of them"
    extra.EXTRA_REGISTRY = {"CodeFormer": "CodeFormer's"}
    monkeypatch.setitem(sys.modules, "spandrel", module)
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", extra)
    return module


def by_name(name, folder):
    path = folder / SETS[name][0].target
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"params_ema": {"some.weight": torch.zeros(2)}}, path)
    return load(name, folder)


def test_a_net_from_a_file_is_handed_each_picture_in_0_to_1(some_net, tmp_path, spandrel, caplog):
    caplog.set_level("INFO")
    net = load(some_net, tmp_path)
    assert (net.name, net.scale, net.side, net.faces) == ("net.safetensors", 2, None, False)
    assert spandrel.asked == [{"some.weight"}]
    assert spandrel.registries == ["all of them"]
    assert spandrel.found.placed == {"device": torch.device("cpu"), "dtype": torch.float32}
    assert "whatever the author of the file says" in caplog.text
    pictures = torch.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).to(torch.uint8)
    out = net.restore(pictures)
    assert out.dtype == torch.uint8
    assert torch.equal(out, pictures.repeat_interleave(2, 1).repeat_interleave(2, 2))
    first, _ = spandrel.found.model.calls[0]
    assert first.shape == (1, 3, 4, 6)
    assert first.is_contiguous()
    torch.testing.assert_close(first[0], pictures[0].permute(2, 0, 1) / 255)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("gfpgan", "GFPGAN", {"return_rgb": False, "randomize_noise": False}),
        ("codeformer", "CodeFormer", {"weight": 0.5}),
    ],
)
def test_nets_for_faces_are_handed_them_in_their_own_range(
    name, kind, options, tmp_path, spandrel, caplog
):
    spandrel.found = Descriptor(kind, "FaceSR", scale=2)
    net = by_name(name, tmp_path)
    assert (net.name, net.side, net.faces) == (name, 512, True)
    assert net.licence == SETS[name][0].licence
    assert ("non-commercial" in caplog.text) == (name == "codeformer")  # a warning
    picture = torch.full((1, 512, 512, 3), 51, dtype=torch.uint8)  # 0.2
    out = net.restore(picture)
    assert out.shape == (1, 1024, 1024, 3)
    assert set(out.unique().tolist()) == {51}
    ((seen, given),) = spandrel.found.model.calls
    assert given == options
    torch.testing.assert_close(seen, torch.full_like(seen, -0.6))
    with pytest.raises(AssertionError):
        net.restore(picture[:, :256])


def test_codeformer_is_looked_for_among_the_extra_nets_only(tmp_path, spandrel):
    spandrel.found = Descriptor("CodeFormer", "FaceSR")
    by_name("codeformer", tmp_path)
    (registry,) = spandrel.registries
    assert registry.added == ["CodeFormer's"]


def test_answers_beyond_white_and_black_are_cut(some_net, tmp_path, spandrel):
    spandrel.found = Descriptor(scale=1)
    spandrel.found.model = lambda x: (torch.stack([x - 2, x + 2, x * 0 + 0.5], 1)[:, :, 0],)
    out = load(some_net, tmp_path).restore(torch.zeros(1, 2, 2, 3, dtype=torch.uint8))
    assert out[0, 0, 0].tolist() == [0, 255, 128]


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Descriptor("MAT", "Inpainting"), r"holds MAT \(Inpainting, 3 channels to 3\), not a net"),
        (Descriptor("SPAN", channels=(1, 1)), r"holds SPAN \(SR, 1 channels to 1\)"),
        (ValueError("unsupported\nno architecture fits"), "does not hold .* [(]no architecture"),
        (KeyError(), "does not hold a net .*unknown names"),
    ],
)
def test_what_is_no_net_for_pictures_is_refused(some_net, tmp_path, spandrel, found, said):
    spandrel.found = found
    with pytest.raises(WeightsMismatch, match=said) as caught:
        load(some_net, tmp_path)
    assert "give another file" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_net_under_a_known_name_is_refused(tmp_path, spandrel):
    spandrel.found = Descriptor("CodeFormer", "FaceSR")
    with pytest.raises(WeightsMismatch, match=r"holds CodeFormer .*, not GFPGAN"):
        by_name("gfpgan", tmp_path)
