"""Log-mel and speech features against the published numbers, and the guarantees of streaming."""

import json
from fractions import Fraction

import numpy as np
import pytest
import torch
import whisper.audio

from latentsync.audio import mel
from latentsync.audio.whisper import SpeechEncoder, SpeechStates, WhisperConfig, encode_speech
from latentsync.errors import MediaError
from tests.golden.golden_rule import unit, wave
from tests.tiny import filled, golden

FPS = Fraction(25)


class Wave:
    """A wave in memory, handed out in pieces."""

    def __init__(self, samples, piece=4001):
        self.samples, self.piece, self.passes = samples, piece, 0

    def chunks(self):
        self.passes += 1
        for i in range(0, len(self.samples), self.piece):
            yield self.samples[i : i + self.piece]


@pytest.fixture(scope="module")
def arrays():
    return golden("audio")


@pytest.fixture(scope="module")
def encoder(arrays):
    dims = json.loads(str(arrays["dims_json"]))
    config = WhisperConfig(**{k: v for k, v in dims.items() if k in WhisperConfig.__annotations__})
    return filled(SpeechEncoder(config), int(arrays["seed"]))


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    return SpeechEncoder(WhisperConfig(n_audio_state=16, n_audio_head=2, n_audio_layer=1)).eval()


def published_length(tokens):
    return mel.published_frame_count(tokens, FPS)


@pytest.mark.parametrize(
    ("name", "piece"), [("3.3s", 37), ("3.3s", 10_000_000), ("34s", 16_000), ("34s", 10_000_000)]
)
def test_log_mel_is_the_published_one_however_it_arrives(arrays, encoder, name, piece):
    samples = wave(int(arrays[f"{name}/n_samples"]), int(arrays["seed"]))
    blocks = list(mel.log_mel(Wave(samples, piece).chunks(), encoder.filters()))
    whole = torch.cat(blocks, dim=1)
    ours = mel.normalise(whole, float(whole.max()))
    assert list(ours.shape) == list(arrays[f"{name}/mel_shape"])
    columns = ours[:, arrays[f"{name}/mel_frames"]]
    np.testing.assert_allclose(columns, arrays[f"{name}/mel"], atol=1e-4)
    np.testing.assert_allclose(float(ours.max()), arrays[f"{name}/mel_max"], atol=1e-4)
    np.testing.assert_allclose(float(ours.mean()), arrays[f"{name}/mel_mean"], atol=1e-4)


@pytest.mark.parametrize("name", ["3.3s", "34s"])
def test_features_are_the_published_ones(arrays, encoder, name):
    samples = wave(int(arrays[f"{name}/n_samples"]), int(arrays["seed"]))
    features = encode_speech(encoder, Wave(samples), frames=published_length, windows="disjoint")
    assert len(features) == arrays[f"{name}/n_chunks"]
    tokens = len(features.states)
    assert [tokens, 5, 384] == list(arrays[f"{name}/feat_shape"])
    every = features.states[np.arange(tokens)]
    ours = every[arrays[f"{name}/feat_rows"]][:, :, arrays[f"{name}/feat_cols"]]
    np.testing.assert_allclose(ours, arrays[f"{name}/feat"], atol=1e-4)
    norms = every.double().square().mean(dim=(0, 2)).sqrt()  # root mean square
    np.testing.assert_allclose(norms, arrays[f"{name}/feat_l2_per_layer"], rtol=1e-4)
    assert list(features[3:4].shape[1:]) == list(arrays[f"{name}/chunk_shape"])


@pytest.mark.parametrize("case", ["T2_fps25", "T7_fps25", "T36_fps24", "T36_fps30", "T166_fps25"])
def test_frames_hear_the_published_tokens(arrays, case):
    tokens, fps = (int(part) for part in case.removeprefix("T").split("_fps"))
    count = mel.published_frame_count(tokens, Fraction(fps))
    assert count == arrays[f"slice/{case}/n"]
    own = mel.own_tokens(np.arange(count), 1 / Fraction(fps))
    indices = mel.tokens_around(own, tokens)
    np.testing.assert_array_equal(indices, arrays[f"slice/{case}/idx"])


def test_a_slice_is_time_major_with_every_state(encoder, arrays):
    samples = wave(52_800, int(arrays["seed"]))
    features = encode_speech(encoder, Wave(samples), frames=84)
    part = features[10:12]
    assert part.shape == (2, 50, 384)
    tokens = mel.tokens_around(mel.own_tokens(np.arange(10, 12), 1 / FPS), len(features.states))
    expected = features.states[tokens[1]].flatten(0, 1)
    torch.testing.assert_close(part[1], expected)


def test_overlapping_windows_remove_the_seam(small):
    """A token's surroundings, not its place in a window, decide what is heard."""
    samples = (unit((16_000 * 75,), 5, "noise") * 0.1).astype(np.float32)
    options = {"frames": 75 * 25}
    overlap = encode_speech(small, Wave(samples), **options)
    disjoint = encode_speech(small, Wave(samples), **options, windows="disjoint")
    # Up to 25 s both hear the first window; behind it the windows differ.
    torch.testing.assert_close(overlap[0:600], disjoint[0:600])
    # Every token of the overlapping rule stands at least 5 s inside its window, but at both ends.
    edge = 250
    window, offset = overlap.states._place(np.arange(edge, len(overlap.states) - edge))
    assert (edge <= offset).all()
    assert (offset < 1500).all()
    assert (offset[window < window.max()] < 1500 - edge).all()
    assert overlap[0:1875].shape == disjoint[0:1875].shape == (1875, 20, 16)


def test_any_order_of_asking_gives_the_same(small):
    samples = (unit((16_000 * 65,), 6, "noise") * 0.1).astype(np.float32)
    source = Wave(samples)
    features = encode_speech(small, source, frames=65 * 25)
    whole = features[0:1625]
    assert source.passes == 2  # one for the loudest value, one for the windows
    assert len(features.states._held) <= 2
    for start in (1500, 0, 700):
        torch.testing.assert_close(features[start : start + 16], whole[start : start + 16])


@pytest.mark.parametrize("samples", [1, 100, 319, 320, 480_000, 480_160])
def test_any_length_works(small, samples):
    sound = np.full(samples, 0.1, dtype=np.float32)
    features = encode_speech(small, Wave(sound), frames=lambda tokens: tokens // 2 + 1)
    assert len(features.states) == max(1, samples // 320)
    assert torch.isfinite(features[0 : len(features)]).all()


def test_no_sample_is_an_error(small):
    with pytest.raises(MediaError, match="holds no sample"):
        SpeechStates(small, Wave(np.zeros(0, dtype=np.float32)))


def test_the_encoder_ends_where_whisper_does(small):
    columns = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(1))
    states = small(columns)
    torch.testing.assert_close(small.encoder.ln_post(states[:, :, -1]), small.encoder(columns))


def test_log_mel_of_thirty_seconds_is_whispers_own(small):
    sound = (unit((480_000,), 7, "noise") * 0.1).astype(np.float32)
    blocks = torch.cat(list(mel.log_mel(Wave(sound).chunks(), small.filters())), dim=1)
    ours = mel.normalise(blocks, float(blocks.max()))
    torch.testing.assert_close(ours, whisper.audio.log_mel_spectrogram(sound), atol=1e-4, rtol=0)
