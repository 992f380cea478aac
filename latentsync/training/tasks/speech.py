"""Teaching a small Whisper-shaped encoder to hear mouths: phonemes and mouth tracks from log-mel.

The published model listens to Whisper, which was trained on transcripts. A small encoder trained
from scratch learns faster from what it is wanted for: each token is told what is said in it and
how a mouth that says it stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentsync.audio import mel
from latentsync.audio.whisper import SpeechEncoder
from latentsync.training.presets import TrainConfig
from latentsync.types import FloatArray, IntArray

__all__ = ["SpeechTask", "Utterance"]

COLUMNS = 600  # of most training windows, 6 s: cheap, and enough to hear a mouth
LONG_SHARE = 0.2  # of the steps show windows as long as in use, 3000 columns
IGNORED = -1  # a sound that has no class

# Shares of the loss, as the first trial balanced them: tracks first.
TRACK_WEIGHT, SOUND_WEIGHT = 4.0, 0.3


@dataclass(frozen=True)
class Utterance:
    """Speech and the truth about it; `columns` are log10 mel powers, not normalised."""

    columns: FloatArray  # (mels, n), float16 does
    tracks: FloatArray  # (n / 2, tracks), the mouth at each token
    sounds: IntArray  # (n / 2,), what is said, -1 unknown


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
        long = rng.random() < LONG_SHARE
        length = mel.WINDOW_COLUMNS if long else COLUMNS
        count = max(1, self._config.batch * COLUMNS // length)
        columns, tracks, sounds, heard = zip(
            *(self._window(rng, length) for _ in range(count)), strict=True
        )
        room = mel.token_count(mel.WINDOW_COLUMNS - length)
        said, shown = self._predict(torch.stack(columns), int(rng.integers(room + 1)))
        mask = torch.stack(heard)[..., None]
        wrong = (shown - torch.stack(tracks)).abs() * mask
        return {
            "tracks": TRACK_WEIGHT * wrong.sum() / (mask.sum() * wrong.shape[-1]),
            "sounds": SOUND_WEIGHT
            * F.cross_entropy(
                said.flatten(0, 1), torch.stack(sounds).flatten(), ignore_index=IGNORED
            ),
        }

    def validate(self) -> dict[str, float]:
        """Correlation of each track over all held-out speech, and the share of sounds told."""
        shown, true, right = [], [], []
        for one in self._held_out:
            columns = torch.from_numpy(one.columns.astype(np.float32))
            window = mel.normalise(columns, float(columns.max()))
            window = F.pad(window, (0, mel.WINDOW_COLUMNS - window.shape[1]))
            said, tracks = self._predict(window[None], 0)
            known = torch.from_numpy(one.sounds) != IGNORED
            hit = said[0, : len(one.sounds)].argmax(-1) == torch.from_numpy(one.sounds)
            right.append(hit[known])
            shown.append(tracks[0, : len(one.tracks)].numpy())
            true.append(one.tracks)
        a, b = np.concatenate(shown), np.concatenate(true)
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
        """A stretch of one utterance, changed as rooms and microphones change it.

        Shorter utterances are filled up as `SpeechFeatures` fills its last window: with zeros.
        """
        one = self._utterances[int(rng.integers(len(self._utterances)))]
        tokens = min(mel.token_count(length), len(one.tracks))
        start = int(rng.integers(len(one.tracks) - tokens + 1))
        part = one.columns[:, 2 * start : 2 * (start + tokens)].astype(np.float32)
        columns = torch.from_numpy(disturbed(part, rng))
        window = F.pad(mel.normalise(columns, float(columns.max())), (0, length - columns.shape[1]))
        missing = mel.token_count(length) - tokens
        tracks = torch.from_numpy(one.tracks[start : start + tokens])
        sounds = torch.from_numpy(one.sounds[start : start + tokens])
        heard = torch.ones(tokens)
        return (
            window,
            F.pad(tracks, (0, 0, 0, missing)),
            F.pad(sounds, (0, missing), value=IGNORED),
            F.pad(heard, (0, missing)),
        )


def disturbed(columns: FloatArray, rng: np.random.Generator) -> FloatArray:
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
    if rng.random() < 0.3:  # an echo: each column keeps a share of those before it
        keep = 10.0**columns
        tail, fade = np.zeros(mels), rng.uniform(0.5, 0.85)
        amount = rng.uniform(0.02, 0.15)
        for i in range(keep.shape[1]):
            tail = fade * (tail + amount * keep[:, i])
            keep[:, i] += tail
        columns = np.log10(keep)
    return columns.astype(np.float32)
