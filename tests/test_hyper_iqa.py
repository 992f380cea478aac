"""hyperIQA: the published net by its own keys and numbers, and the step that chooses by it."""

import hashlib
import os
import pickle
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ResNetConfig, ResNetModel

from latentsync import faces
from latentsync.errors import WeightsMismatch, WeightsMissing
from latentsync.evaluation.nets.hyper_iqa import LAYERS, SIDE, Backbone, HyperIQA
from latentsync.media import VideoReader
from latentsync.runtime.checkpoints import filled
from latentsync.training.preparation import (
    PreparationSettings,
    plan,
    prepare,
    quality,
    runner,
    summary,
)
from latentsync.training.preparation.quality import hyper_iqa, load_hyper_iqa
from latentsync.training.preparation.steps import Sharpness
from tests import tiny
from tests.golden.golden_rule import fill
from tests.prepared import EASY, clip, left_out, lines
from tests.stubs import StubDetector

SEED = 7


def pictures(count):
    return (tiny.tensor((count, 3, SIDE, SIDE), SEED, "pictures", 0.28) + 0.5).clamp(0, 1)


@pytest.fixture(scope="module")
def narrow():
    return tiny.filled(HyperIQA(width=4), SEED)


def test_the_keys_are_the_published_ones():
    """Of the published source, HyperNet(16, 112, 224, 112, 56, 28, 14, 7): 355 keys, 110 MB."""
    with torch.device("meta"):
        ours = HyperIQA().state_dict()
    text = "\n".join(sorted(f"{key} {list(value.shape)}" for key, value in ours.items()))
    found = hashlib.sha256(text.encode()).hexdigest()
    assert found == "99c8351302f0187b6da6268220af3bc5bf3d83499fb20bede09324980f9c0198"


@pytest.mark.slow  # 27 million numbers
def test_the_scores_are_the_published_ones():
    """Of the published source, on the same weights; 1.2 times, so that no layer goes silent."""
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in HyperIQA().state_dict().items()}
    rule = {key: torch.from_numpy(value) for key, value in fill(shapes, SEED).items()}
    state = {key: value * 1.2 if value.ndim > 1 else value for key, value in rule.items()}
    net = filled(HyperIQA, state, "golden")
    with torch.inference_mode():
        found = net(pictures(3))
    torch.testing.assert_close(
        found, torch.tensor([11.247863, 11.594039, 10.994215]), rtol=1e-4, atol=0
    )


def test_the_backbone_is_resnet():
    """Stage by stage that of transformers, and so what is judged by."""
    ours = tiny.filled(Backbone(width=4), SEED)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[16, 32, 64, 128])
    other = ResNetModel(config).eval()
    other.load_state_dict({_renamed(k): v for k, v in ours.state_dict().items() if "lda" not in k})
    seen = pictures(2)
    with torch.inference_mode():
        features, judged = ours(seen)
        stages = other(seen, output_hidden_states=True).hidden_states[1:]
        by_hand = []
        for i, stage in enumerate(stages, start=1):
            inner = stage if i == 4 else ours.get_submodule(f"lda{i}_pool.0")(stage)
            side = inner.shape[-1] // 7
            means = inner.reshape(2, -1, side, 7, side, 7).mean((3, 5))
            by_hand.append(ours.get_submodule(f"lda{i}_fc")(means.flatten(1)))
    torch.testing.assert_close(features, stages[-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(judged, torch.cat(by_hand, 1), rtol=1e-5, atol=1e-5)


def _renamed(key):
    """A torchvision name as transformers has it."""
    *path, layer, kind = key.split(".")
    part = "convolution" if layer.startswith("conv") or layer == "0" else "normalization"
    if not path:
        return f"embedder.embedder.{part}.{kind}"
    inside = "shortcut" if path[2:] else f"layer.{int(layer[-1]) - 1}"
    return f"encoder.stages.{int(path[0][-1]) - 1}.layers.{path[1]}.{inside}.{part}.{kind}"


def test_each_picture_is_judged_by_a_net_of_its_own(narrow):
    seen = pictures(2)
    with torch.inference_mode():
        scores = narrow(seen)
        mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        features, judged = narrow.res((seen - mean[:, None, None]) / deviation[:, None, None])
        rules = narrow.conv1(features)
        for n in range(2):
            values, pooled = judged[n].tolist(), rules[n].flatten(1).mean(1)
            for i, width in enumerate(LAYERS, start=1):
                numbers = narrow.get_submodule(f"fc{i}w_conv")(rules[n : n + 1]).flatten().tolist()
                biases = narrow.get_submodule(f"fc{i}b_fc")(pooled).tolist()
                values = [
                    1 / (1 + np.exp(-_dot(numbers[row * len(values) :], values) - biases[row]))
                    for row in range(width)
                ]
            last = _dot(narrow.fc5w_fc(pooled).tolist(), values) + float(narrow.fc5b_fc(pooled))
            assert float(scores[n]) == pytest.approx(last, rel=1e-5)
        assert float(narrow(seen[1:])) == pytest.approx(float(scores[1]), rel=1e-6)


def _dot(numbers, values):
    return sum(a * b for a, b in zip(numbers, values, strict=False))


# The file


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(quality, "HyperIQA", partial(HyperIQA, width=4))


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("counted", [False, True])
def test_files_of_every_torch_load(narrow, small, tmp_path, zipped, counted):  # noqa: ARG001
    """Before 1.6 files were no archives; before 0.4.1 norms did not count their batches."""
    path = tmp_path / "koniq_pretrained.pkl"
    state = {k: v for k, v in narrow.state_dict().items() if counted or "batches" not in k}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    net = load_hyper_iqa(path)
    torch.testing.assert_close(dict(net.state_dict()), dict(narrow.state_dict()))
    assert not net.training
    assert not any(value.requires_grad for value in net.parameters())


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


def test_other_files_are_refused(narrow, small, tmp_path, monkeypatch):  # noqa: ARG001
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "koniq_pretrained.pkl"
    with pytest.raises(WeightsMissing, match="latentsync download eval"):
        load_hyper_iqa(path)
    for content in (b"", b"no weights", pickle.dumps(Harmful()), pickle.dumps({"a": 1})):
        path.write_bytes(content)
        with pytest.raises(WeightsMismatch, match=r"koniq_pretrained\.pkl"):
            load_hyper_iqa(path)
    assert not (tmp_path / "harmed").exists()
    state = narrow.state_dict()
    for wrong in (
        {k: v for k, v in state.items() if k != "fc5b_fc.bias"},
        state | {"over": torch.zeros(1)},
        state | {"fc5b_fc.bias": torch.zeros(2)},
    ):
        torch.save(wrong, path)
        with pytest.raises(WeightsMismatch, match=r"fc5b_fc|over"):
            load_hyper_iqa(path)


# The measure


class Green(nn.Module):
    """Says how green the pictures are, and notes them."""

    def __init__(self):
        super().__init__()
        self.anything, self.seen = nn.Parameter(torch.zeros(1)), []

    def forward(self, shown):
        self.seen.append(shown)
        return 100 * shown[:, 1].mean((1, 2))


@pytest.mark.parametrize(("size", "starts"), [(256, [16]), (512, [32, 256])])
def test_what_is_looked_at(size, starts):
    face = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    net = Green()
    score = hyper_iqa(net, [face, face // 2])
    wanted = [
        one[y : y + 224, x : x + 224] for one in (face, face // 2) for y in starts for x in starts
    ]
    (seen,) = net.seen
    np.testing.assert_array_equal(seen.permute(0, 2, 3, 1), np.float32(wanted) / np.float32(255))
    assert score == pytest.approx(np.mean(wanted, (0, 1, 2))[1] / 2.55, rel=1e-5)
    assert hyper_iqa(net, [face, face // 2]) == score


# The step


@pytest.fixture
def net(monkeypatch):
    stub = Green()
    monkeypatch.setattr(plan, "load_hyper_iqa", lambda *_: stub)
    return stub


@pytest.fixture
def raw(tmp_path, monkeypatch):
    monkeypatch.setattr(faces, "create", lambda *_, **__: StubDetector())
    monkeypatch.setattr(runner, "write_summary", lambda *_: None)
    folder = tmp_path / "raw"
    folder.mkdir()
    clip(folder / "a.mp4", 30)
    return folder


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "weights/auxiliary/koniq_pretrained.pkl"
    path.parent.mkdir(parents=True)
    path.write_text("1")
    return path


def wish(weights, **more):
    facts = {"quality": "auto", "min_quality": 0, "weights": weights.parents[1]}
    return PreparationSettings(**{**vars(EASY), **facts, **more})


def test_clips_are_chosen_by_hyper_iqa(raw, weights, net, tmp_path, caplog):
    output = tmp_path / "out"
    prepare(raw, output, wish(weights, form="aligned"), workers=0)
    (line,) = lines(output, "index.jsonl")
    assert "laplacian" not in line
    (seen,) = net.seen
    assert line["hyper_iqa"] == round(float(net(seen).mean()), 2)
    # The first, the middle and the last frame, as the clip shows them.
    shown = [frame.rgb()[16:240, 16:240] for frame in VideoReader(output / line["clip"]).frames()]
    for one, place in zip(seen, (0, 15, 29), strict=True):
        apart = [np.abs(255 * one.permute(1, 2, 0).numpy() - rgb).mean() for rgb in shown]
        assert apart[place] == min(apart) < 4
    assert "hyperIQA" not in caplog.text
    limit = line["hyper_iqa"]
    assert prepare(raw, output, wish(weights, min_quality=limit), workers=0).clips == 1
    prepare(raw, output, wish(weights, min_quality=limit + 0.01), workers=0)
    assert left_out(output) == {"a.mp4": ("quality", "low visual quality")}
    (line,) = lines(output, "rejected.jsonl")
    assert line["figure"] == limit


def test_without_its_weights_the_stand_in_goes_by_its_own_name(raw, weights, net, tmp_path, caplog):
    weights.unlink()
    prepare(raw, tmp_path / "out", wish(weights), workers=0)
    (line,) = lines(tmp_path / "out", "index.jsonl")
    assert "hyper_iqa" not in line
    assert line["laplacian"] > 0
    assert caplog.text.count("by the variance of the Laplacian, not by hyperIQA") == 1
    assert net.seen == []


def test_asked_for_by_name_it_must_be_there(raw, weights, tmp_path):
    weights.unlink()
    with pytest.raises(WeightsMissing, match=r"koniq_pretrained\.pkl is missing"):
        prepare(raw, tmp_path / "out", wish(weights, quality="hyperiqa"), workers=0)


def test_named_the_stand_in_is_taken_and_nothing_said(weights, caplog):
    resolved = plan.resolved(wish(weights, quality="laplacian"))
    assert isinstance(plan.make_steps(resolved)[-1], Sharpness)
    assert caplog.text == ""


def test_other_weights_judge_anew(raw, weights, net, tmp_path):
    output = tmp_path / "out"

    def judged():
        before = len(net.seen)
        prepare(raw, output, wish(weights), workers=0)
        return len(net.seen) - before

    assert judged() == 1
    weights.write_text("2")
    assert [judged(), judged()] == [1, 0]
    weights.unlink()
    assert judged() == 0
    assert "laplacian" in lines(output, "index.jsonl")[0]


def test_a_file_that_comes_during_a_run_changes_nothing_in_it(raw, weights, net, tmp_path):
    clip(raw / "b.mp4", 30)
    weights.unlink()
    prepare(raw, tmp_path / "out", wish(weights), workers=0, progress=lambda _: weights.touch())
    assert all("laplacian" in line for line in lines(tmp_path / "out", "index.jsonl"))
    assert len(lines(tmp_path / "out", "index.jsonl")) == 2
    assert net.seen == []


@pytest.mark.parametrize(
    ("by", "figure", "title"),
    [
        ("hyperiqa", "hyper_iqa", "hyperIQA, 0-100"),
        ("laplacian", "laplacian", "sharpness, variance of Laplacian"),
    ],
)
def test_the_summary_names_what_was_measured(tmp_path, monkeypatch, by, figure, title):
    plots = {}
    monkeypatch.setattr(summary, "_histogram", lambda _, name, values: plots.update({name: values}))
    monkeypatch.setattr(summary, "_faces", lambda *_: "")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)
    line = {"start_seconds": 0, "stop_seconds": 5, "face_px": 200, figure: 55.5}
    record = {"clips": [line], "rejected": [], "seconds": 5}
    summary.write_summary(tmp_path, [record], wish(tmp_path / "a/b", quality=by))
    assert plots[title] == [55.5]
    assert (
        f"min_{'quality' if by == 'hyperiqa' else 'sharpness'} 0"
        in (tmp_path / "summary.html").read_text()
    )
