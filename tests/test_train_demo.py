"""`make train-demo` from nothing, with next to no data: what comes out is a model that runs."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import latentsync
from latentsync.audio.whisper import SpeechEncoder
from latentsync.diffusion.config import PRESETS
from latentsync.training.synthetic.recordings import write_recording
from latentsync.training.synthetic.speech import Phoneme

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_whole_training(tmp_path):
    ear = tmp_path / "ear"
    (ear / "recordings").mkdir(parents=True)
    torch.save(SpeechEncoder(PRESETS["demo"].whisper).state_dict(), ear / "speech.pt")
    noise = np.random.default_rng(0).normal(0, 1000, 160_000).astype(np.int16)
    write_recording(ear / "recordings" / "a.npz", noise, [Phoneme(0.0, "a"), Phoneme(0.3, "m")])
    script = [sys.executable, str(ROOT / "scripts/train_demo.py"), "--scale", "0.002"]
    script += ["--ear", str(ear)]
    places = ["--out", str(tmp_path / "out"), "--weights", str(tmp_path / "demo")]
    subprocess.run([*script, *places, "--workers", "2"], check=True, timeout=1200)
    for name in ("autoencoder", "speak", "move", "polish"):
        with (tmp_path / "out" / f"{name}.csv").open() as file:
            assert len(list(csv.DictReader(file))) == 1, name
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
    model = latentsync.load(tmp_path / "demo", device="cpu")
    assert len(model.nets.config.vae.latents_mean) == 4
    examples = ROOT / "examples"
    result = model.run(
        examples / "photo.png", examples / "speech.wav", tmp_path / "out.mp4", steps=1
    )
    assert result.frames == 100
