"""Training a small Whisper-shaped encoder to hear in noisy speech what Whisper hears in it clean.

The targets of each token are the last state of a larger Whisper, the teacher, which knows real
voices; the sound that is said in the token; and the shape of a mouth that says it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from latentsync.audio import mel
from latentsync.audio.whisper import SpeechEncoder
from latentsync.training.settings import TrainConfig
from latentsync.training.sound_degradation import degrade
from latentsync.types import FloatArray, IntArray

__all__ = ["SpeechTask", "Utterance"]

COLUMNS = 600  # of most training windows, 6 s: cheap, and long enough
LONG_SHARE = 0.2  # of the steps have windows as long as in use, 3000 columns
IGNORED = -1  # a sound that has no class
FULL_SCALE = 32768.0  # of a wave's int16
TOKEN_SAMPLES = mel.COLUMNS_PER_TOKEN * mel.HOP

# Weights of the losses, so that each begins with about a third of the sum.
TRACK_WEIGHT, SOUND_WEIGHT, TEACHER_WEIGHT = 4.0, 0.3, 1.0


@dataclass(frozen=True)
class Utterance:
    """Speech and the truth about it."""

    wave: NDArray[np.int16]  # (n * 320,) at 16 kHz
    tracks: FloatArray  # (n, tracks), the mouth at each token
    sounds: IntArray  # (n,), the sound at each token, -1 unknown
    taught: FloatArray  # (n, teacher's width), the teacher's state; float16 is enough


class SpeechTask:
    """A task of `loop.fit`: speech in; mouth tracks, sounds and the teacher's state out.

    All three are read off the encoder's last state.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        utterances: Sequence[Utterance],
        held_out: Sequence[Utterance],
        config: TrainConfig,
        *,
        sounds: int,
    ) -> None:
        width, first = encoder.config.n_audio_state, utterances[0]
        self.encoder, self._config = encoder, config
        self.heads = nn.ModuleDict(
            {
                "norm": nn.LayerNorm(width),
                "tracks": nn.Linear(width, first.tracks.shape[1]),
                "sounds": nn.Linear(width, sounds),
                "taught": nn.Linear(width, first.taught.shape[1]),
            }
        )
        self.net = nn.ModuleDict({"encoder": encoder, "heads": self.heads})
        self._utterances, self._held_out = utterances, held_out
        self._filters = encoder.filters()
        some = np.concatenate([one.taught[::8] for one in utterances]).astype(np.float32)
        self._mean, self._spread = (torch.from_numpy(x) for x in (some.mean(0), some.std(0)))

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        length = mel.WINDOW_COLUMNS if rng.random() < LONG_SHARE else COLUMNS
        count = max(1, self._config.batch * COLUMNS // length)
        windows = [self._window(rng, length) for _ in range(count)]
        columns, tracks, sounds, taught, known = map(torch.stack, zip(*windows, strict=True))
        room = mel.token_count(mel.WINDOW_COLUMNS - length)
        predicted = self._predict(columns, int(rng.integers(room + 1)))
        mask = known[..., None]
        logits = predicted["sounds"].flatten(0, 1)
        errors = {
            "tracks": (predicted["tracks"] - tracks).abs(),
            "taught": (predicted["taught"] - taught).square(),
        }
        track, teacher = ((mask * e).sum() / (mask.sum() * e.shape[-1]) for e in errors.values())
        return {
            "tracks": TRACK_WEIGHT * track,
            "sounds": SOUND_WEIGHT
            * F.cross_entropy(logits, sounds.flatten(), ignore_index=IGNORED),
            "taught": TEACHER_WEIGHT * teacher,
        }

    def validate(self) -> dict[str, float]:
        """Correlation of each track over all held-out speech, and the share of right sounds."""
        predicted, right = [], []
        for utterance in self._held_out:
            tokens = len(utterance.tracks)
            columns = self._columns(utterance.wave.astype(np.float32) / FULL_SCALE)
            window = mel.normalise(columns, float(columns.max()))
            window = F.pad(window, (0, mel.WINDOW_COLUMNS - window.shape[1]))
            found = self._predict(window[None], 0)
            sounds = torch.from_numpy(utterance.sounds)
            right.append((found["sounds"][0, :tokens].argmax(-1) == sounds)[sounds != IGNORED])
            predicted.append(found["tracks"][0, :tokens].numpy())
        a = np.concatenate(predicted)
        b = np.concatenate([utterance.tracks for utterance in self._held_out])
        return {
            f"correlation_{i}": float(np.corrcoef(a[:, i], b[:, i])[0, 1])
            for i in range(a.shape[1])
        } | {"sounds_right": float(torch.cat(right).float().mean())}

    def _predict(self, columns: Tensor, first_token: int) -> dict[str, Tensor]:
        last = self.heads["norm"](self.encoder(columns, first_token)[:, :, -1])
        return {name: self.heads[name](last) for name in ("tracks", "sounds", "taught")}

    def _columns(self, wave: FloatArray) -> Tensor:
        """Log10 mel powers, (mels, samples / 160)."""
        return torch.cat(list(mel.log_mel([wave], self._filters)), dim=1)

    def _window(self, rng: np.random.Generator, length: int) -> tuple[Tensor, ...]:
        """Cut a part of an utterance: degraded columns, tracks, sounds, states, 1 for each token.

        Shorter utterances are padded with zeros, as the encoder's last window is in use.
        """
        one, other = (self._utterances[int(i)] for i in rng.integers(len(self._utterances), size=2))
        tokens = min(mel.token_count(length), len(one.tracks))
        start = int(rng.integers(len(one.tracks) - tokens + 1))
        samples = slice(TOKEN_SAMPLES * start, TOKEN_SAMPLES * (start + tokens))
        wave, noise = one.wave[samples] / FULL_SCALE, np.resize(other.wave, TOKEN_SAMPLES * tokens)
        degraded = degrade(wave.astype(np.float32), rng, noise.astype(np.float32))
        columns = torch.from_numpy(another_throat(self._columns(degraded).numpy(), rng))
        missing = mel.token_count(length) - tokens
        tracks, sounds, taught = (
            torch.from_numpy(x[start : start + tokens])
            for x in (one.tracks, one.sounds, one.taught)
        )
        return (
            F.pad(mel.normalise(columns, float(columns.max())), (0, length - columns.shape[1])),
            F.pad(tracks, (0, 0, 0, missing)),
            F.pad(sounds, (0, missing), value=IGNORED),
            F.pad((taught.float() - self._mean) / self._spread, (0, 0, 0, missing)),
            F.pad(torch.ones(tokens), (0, missing)),
        )


def another_throat(columns: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Log10 mel powers (mels, n) of the same speech by another throat and microphone."""
    mels = len(columns)
    bands = np.arange(mels)
    places = np.clip(bands * np.exp(rng.normal(0, 0.06)), 0, mels - 1)  # formants, some per cent
    low = np.floor(places).astype(int)
    share = (places - low)[:, None].astype(np.float32)
    columns = columns[low] * (1 - share) + columns[np.minimum(low + 1, mels - 1)] * share
    knots = rng.normal(0, 0.3, 6)  # decades: a microphone's colour
    colour = np.interp(bands, np.linspace(0, mels - 1, 6), knots)
    return (columns + colour[:, None]).astype(np.float32)
