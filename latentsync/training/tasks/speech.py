"""Training a small Whisper-shaped encoder to predict phonemes and mouth tracks from log-mel.

The published model uses Whisper, which was trained on transcripts. A small encoder trained from
scratch learns faster from its own purpose: the targets of each token are the sound that is said in
it and the shape of a mouth that says it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.audio import mel
from latentsync.audio.whisper import SpeechEncoder
from latentsync.training.settings import TrainConfig
from latentsync.types import FloatArray, IntArray

__all__ = ["SpeechTask", "Utterance"]

COLUMNS = 600  # of most training windows, 6 s: cheap, and long enough
LONG_SHARE = 0.2  # of the steps have windows as long as in use, 3000 columns
IGNORED = -1  # a sound that has no class

# Weights of the losses, as the first trial balanced them: tracks first.
TRACK_WEIGHT, SOUND_WEIGHT = 4.0, 0.3


@dataclass(frozen=True)
class Utterance:
    """Speech and the truth about it."""

    columns: FloatArray  # (mels, n) log10 mel powers, not normalised; float16 is enough
    tracks: FloatArray  # (n / 2, tracks), the mouth at each token
    sounds: IntArray  # (n / 2,), the sound at each token, -1 unknown


class SpeechTask:
    """A task of `loop.fit`: log-mel in, mouth tracks and sounds out of the last state."""

    def __init__(
        self,
        encoder: SpeechEncoder,
        utterances: Sequence[Utterance],
        held_out: Sequence[Utterance],
        config: TrainConfig,
        *,
        sounds: int,
    ) -> None:
        width, tracks = encoder.config.n_audio_state, utterances[0].tracks.shape[1]
        self.encoder, self._config = encoder, config
        self.heads = nn.ModuleDict(
            {
                "norm": nn.LayerNorm(width),
                "tracks": nn.Linear(width, tracks),
                "sounds": nn.Linear(width, sounds),
            }
        )
        self.net = nn.ModuleDict({"encoder": encoder, "heads": self.heads})
        self._utterances, self._held_out = utterances, held_out

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        length = mel.WINDOW_COLUMNS if rng.random() < LONG_SHARE else COLUMNS
        count = max(1, self._config.batch * COLUMNS // length)
        windows = [self._window(rng, length) for _ in range(count)]
        columns, tracks, sounds, known = (torch.stack(x) for x in zip(*windows, strict=True))
        room = mel.token_count(mel.WINDOW_COLUMNS - length)
        logits, predicted = self._predict(columns, int(rng.integers(room + 1)))
        mask = known[..., None]
        error = (predicted - tracks).abs() * mask
        wrong = F.cross_entropy(logits.flatten(0, 1), sounds.flatten(), ignore_index=IGNORED)
        return {
            "tracks": TRACK_WEIGHT * error.sum() / (mask.sum() * error.shape[-1]),
            "sounds": SOUND_WEIGHT * wrong,
        }

    def validate(self) -> dict[str, float]:
        """Correlation of each track over all held-out speech, and the share of right sounds."""
        predicted, right = [], []
        for utterance in self._held_out:
            columns = torch.from_numpy(utterance.columns.astype(np.float32))
            window = mel.normalise(columns, float(columns.max()))
            window = F.pad(window, (0, mel.WINDOW_COLUMNS - window.shape[1]))
            logits, tracks = self._predict(window[None], 0)
            sounds = torch.from_numpy(utterance.sounds)
            right.append((logits[0, : len(sounds)].argmax(-1) == sounds)[sounds != IGNORED])
            predicted.append(tracks[0, : len(utterance.tracks)].numpy())
        a = np.concatenate(predicted)
        b = np.concatenate([utterance.tracks for utterance in self._held_out])
        found = {
            f"correlation_{i}": float(np.corrcoef(a[:, i], b[:, i])[0, 1])
            for i in range(a.shape[1])
        }
        return found | {"sounds_right": float(torch.cat(right).float().mean())}

    def _predict(self, columns: Tensor, first_token: int) -> tuple[Tensor, Tensor]:
        last = self.heads["norm"](self.encoder(columns, first_token)[:, :, -1])
        return self.heads["sounds"](last), self.heads["tracks"](last)

    def _window(
        self, rng: np.random.Generator, length: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A part of one utterance, augmented: columns, tracks, sounds, and 1 where it has a token.

        Shorter utterances are padded with zeros, as the encoder's last window is in use.
        """
        one = self._utterances[int(rng.integers(len(self._utterances)))]
        tokens = min(mel.token_count(length), len(one.tracks))
        start = int(rng.integers(len(one.tracks) - tokens + 1))
        part = one.columns[:, 2 * start : 2 * (start + tokens)].astype(np.float32)
        columns = torch.from_numpy(augment(part, rng))
        missing = mel.token_count(length) - tokens
        tracks, sounds = (
            torch.from_numpy(x[start : start + tokens]) for x in (one.tracks, one.sounds)
        )
        return (
            F.pad(mel.normalise(columns, float(columns.max())), (0, length - columns.shape[1])),
            F.pad(tracks, (0, 0, 0, missing)),
            F.pad(sounds, (0, missing), value=IGNORED),
            F.pad(torch.ones(tokens), (0, missing)),
        )


def augment(columns: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Log10 mel powers (mels, n) of the same speech by another throat, microphone and room."""
    mels = len(columns)
    bands = np.arange(mels)
    shift = np.exp(rng.normal(0, 0.06))  # formants up or down by some per cent
    places = np.clip(bands * shift, 0, mels - 1)
    low = np.floor(places).astype(int)
    share = (places - low)[:, None].astype(np.float32)
    columns = columns[low] * (1 - share) + columns[np.minimum(low + 1, mels - 1)] * share
    knots = rng.normal(0, 0.3, 6)  # decades: a microphone's colour
    colour = np.interp(bands, np.linspace(0, mels - 1, 6), knots).astype(np.float32)
    columns = columns + colour[:, None]
    if rng.random() < 0.5:  # a noise floor, two to six decades under the loudest
        slope = rng.normal(0, 0.6) * (bands / mels - 0.5)
        floor = columns.max() - rng.uniform(2, 6) + slope[:, None]
        floor = floor + 0.25 * rng.standard_normal(columns.shape)
        columns = np.log10(10.0**columns + 10.0**floor)
    if rng.random() < 0.3:  # an echo: each column contains a share of those before it
        power = 10.0**columns
        tail, fade = np.zeros(mels), rng.uniform(0.5, 0.85)
        amount = rng.uniform(0.02, 0.15)
        for i in range(power.shape[1]):
            tail = fade * (tail + amount * power[:, i])
            power[:, i] += tail
        columns = np.log10(power)
    return columns.astype(np.float32)
