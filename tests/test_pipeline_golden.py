"""The whole pipeline against the published one, draw for draw, on frames in memory."""

import json
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from latentsync.audio import mel
from latentsync.audio.whisper import SpeechEncoder, WhisperConfig, encode_speech
from latentsync.diffusion import sampling
from latentsync.diffusion.config import ModelConfig
from latentsync.diffusion.unet import UNet
from latentsync.diffusion.vae import VAE
from latentsync.diffusion.weights import Nets
from latentsync.options import Options
from latentsync.pipeline import timeline
from latentsync.pipeline.compositor import SpeakingFace
from latentsync.pipeline.frame_source import FrameSource
from latentsync.pipeline.lipsync import FPS, LipSync
from latentsync.types import Face
from tests.golden.golden_rule import image, landmarks106, wave
from tests.tiny import filled, golden, unet_config, vae_config

CASES = ["plain", "pingpong", "deepcache", pytest.param("res256", marks=pytest.mark.slow)]


@dataclass
class ArrayPicture:
    """A frame in memory with the interface of media.VideoFrame."""

    array: np.ndarray

    @property
    def width(self):
        return self.array.shape[1]

    @property
    def height(self):
        return self.array.shape[0]

    def rgb(self, box=None):
        return self.array if box is None else self.array[box.top : box.bottom, box.left : box.right]

    def pasted(self, box, rgb):
        out = self.array.copy()
        out[box.top : box.bottom, box.left : box.right] = rgb
        return ArrayPicture(out)


class ArrayClip:
    info = SimpleNamespace(is_image=False, duration_seconds=None)

    def __init__(self, arrays):
        self.pictures = [ArrayPicture(a) for a in arrays]

    def frames(self, indices=None):
        wanted = range(len(self.pictures)) if indices is None else indices
        return (self.pictures[i] for i in wanted)


class Wave:
    def __init__(self, samples):
        self.samples = samples

    def chunks(self):
        yield self.samples


class StoredLandmarks:
    """The detector of the golden run: its k-th call sees the k-th stored face."""

    name = "stored"

    def __init__(self, height, width, seed):
        self.size, self.seed, self.calls = (height, width), seed, 0

    def describe(self):
        return "stored landmarks"

    def detect(self, _frame, *, rounded=False):
        assert rounded
        marks = landmarks106(self.calls, *self.size, self.seed)
        self.calls += 1
        groups = ([43, 48, 49, 51, 50], list(range(101, 106)), [74, 77, 83, 86])
        points = np.round(np.stack([marks[g].mean(axis=0) for g in groups]))
        return [Face((0, 0, 100, 100), 1.0, points.astype(np.float32))]


def model(arrays, spec):
    config = ModelConfig(
        name="golden",
        resolution=spec["resolution"],
        detector="stored",
        unet=unet_config(str(arrays["unet_config_json"])),
        vae=vae_config(str(arrays["vae_config_json"])),
    )
    vae = VAE(config.vae).eval()
    filled(vae.net, spec["seed"])
    nets = Nets(
        config=config,
        unet=filled(UNet(config.unet), spec["seed"]),
        vae=vae,
        speech=filled(SpeechEncoder(WhisperConfig()), spec["seed"]),
    )
    height, width = spec["frame_hw"]
    return LipSync(nets, StoredLandmarks(height, width, spec["seed"]))


@pytest.mark.parametrize("case", CASES)
def test_frames_are_the_published_ones(case, monkeypatch):
    arrays = golden(f"pipeline_{case}")
    spec = json.loads(str(arrays["spec_json"]))
    height, width = spec["frame_hw"]
    frames = [image(height, width, spec["seed"], f"v{i}") for i in range(spec["n_video_frames"])]
    source = FrameSource(ArrayClip(frames))
    lipsync = model(arrays, spec)
    draws = iter(
        arrays[f"draw_{k}"] for k in range(len(json.loads(str(arrays["draw_shapes_json"]))))
    )
    monkeypatch.setattr(
        sampling,
        "seeded_draw",
        lambda _seed: lambda shape: torch.from_numpy(next(draws)).reshape(shape),
    )
    crops, latents = [], []
    monkeypatch.setattr(sampling, "decode", spy(sampling.decode, crops))
    monkeypatch.setattr(sampling, "denoise", spy(sampling.denoise, latents))

    options = Options.published(
        guidance_scale=spec["guidance_scale"],
        steps=spec["num_inference_steps"],
        cache_interval=3 if spec["deepcache"] else 1,
    )
    speech = encode_speech(
        lipsync.nets.speech,
        Wave(wave(spec["n_audio_samples"], spec["seed"])),
        frames=lambda tokens: mel.published_frame_count(tokens, FPS),
        windows=options.speech_windows,
    )
    assert len(speech) == arrays["n_frames_out"]
    (track,) = lipsync.find_faces(source, len(speech), options)
    shown = timeline.source_frames(len(speech), len(track), options.sync_mode)
    plan = timeline.segments(shown, track.detected[shown], options.groups)
    np.testing.assert_allclose(track.affine[shown], arrays["affine_matrices"], atol=1e-4)

    frames = [
        f.array
        for f in lipsync.generate(
            source, [SpeakingFace(track, plan, speech)], replace(options, seed=1)
        )
    ]

    assert next(draws, None) is None  # every published draw was used, in order
    every = 61 if case == "res256" else 5
    for k, (group, crop) in enumerate(zip(latents, crops, strict=True)):
        expected = arrays[f"final_latents_{k}"].swapaxes(1, 2)
        # With random weights and guidance, steps amplify float noise a thousandfold ("pingpong").
        np.testing.assert_allclose(group.reshape(expected.shape), expected, atol=2e-3, rtol=0)
        expected = arrays[f"combined_pixels_{k}_every{every}"]
        np.testing.assert_allclose(crop.flatten()[::every], expected, atol=5e-4, rtol=0)
    assert len(frames) == arrays["n_frames_out"]
    for index, expected in zip(arrays["frames_kept"], arrays["frames"], strict=True):
        difference = np.abs(frames[index].astype(int) - expected)
        assert difference.max() <= 1
        assert (difference > 0).mean() <= 0.001


def spy(function, seen):
    def call(*args, **kwargs):
        out = function(*args, **kwargs)
        seen.append(out)
        return out

    return call
