"""Speech features of each video frame: all hidden states of Whisper's encoder.

Only this module imports openai-whisper, and only its encoder and its mel filter bank.
"""

import math
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from typing import Literal, Protocol

import numpy as np
import torch
import whisper.audio
import whisper.model
from torch import Tensor, nn

from latentsync.audio import mel
from latentsync.errors import MediaError
from latentsync.types import FloatArray, IntArray

__all__ = [
    "SpeechEncoder",
    "SpeechFeatures",
    "SpeechSource",
    "SpeechStates",
    "WhisperConfig",
    "encode_speech",
]


@dataclass(frozen=True)
class WhisperConfig:
    """Size of the speech encoder; the defaults are openai/whisper tiny.

    Names and sizes: https://github.com/openai/whisper/blob/v20250625/whisper/model.py.
    """

    n_mels: int = 80
    n_audio_ctx: int = 1500  # tokens in a 30 s window
    n_audio_state: int = 384
    n_audio_head: int = 6
    n_audio_layer: int = 4


OVERLAP_HOP_COLUMNS = 2000  # 20 s between windows; only their middle 20 s are used


class SpeechSource(Protocol):
    """Sound to read speech from: `media.AudioReader`, or a waveform in memory."""

    def chunks(self) -> Iterator[FloatArray]:
        """Yield mono float32 samples in [-1, 1] at 16 kHz, from the start in each call."""
        ...


class SpeechEncoder(nn.Module):
    """Whisper's encoder, which returns all hidden states instead of the last one.

    They are the embedding and each block's output, before the final norm, as in the published net.
    """

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = whisper.model.AudioEncoder(
            config.n_mels,
            config.n_audio_ctx,
            config.n_audio_state,
            config.n_audio_head,
            config.n_audio_layer,
        )

    @property
    def states(self) -> int:
        """Number of states of a token: the embedding, and one for each block."""
        return self.config.n_audio_layer + 1

    def filters(self) -> Tensor:
        """Return the (mels, 201) mel filter bank, on the CPU."""
        filters: Tensor = whisper.audio.mel_filters("cpu", self.config.n_mels)
        return filters

    def forward(self, columns: Tensor, first_token: int = 0) -> Tensor:
        """Encode (b, mels, 3000) normalised log-mel; returns (b, 1500, states, width).

        Training may give fewer columns: the part of a window that begins at `first_token`.
        """
        encoder = self.encoder
        x = nn.functional.gelu(encoder.conv1(columns))
        x = nn.functional.gelu(encoder.conv2(x)).transpose(1, 2)
        positions = encoder.positional_embedding[first_token : first_token + x.shape[1]]
        x = (x + positions).to(x.dtype)
        states = [x]
        for block in encoder.blocks:
            states.append(block(states[-1]))
        return torch.stack(states, dim=2)


class SpeechStates:
    """Hidden states of each token of a sound, computed one window at a time.

    `len()` is the number of tokens (50 a second); `states[tokens]` takes an array of token numbers.
    The sound is streamed twice: once for its loudest log-mel value, on which the scale of all
    values depends, and once as windows are encoded. Two windows are kept. Threads may share it.

    Args:
        encoder: on its device, in its dtype.
        source: the sound.
        windows: "overlap" encodes each token with context on both sides; "disjoint", as published,
            cuts the sound every 30 s, where the lips then jump.

    Raises:
        MediaError: the sound holds no sample.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        source: SpeechSource,
        windows: Literal["overlap", "disjoint"] = "overlap",
    ) -> None:
        self._encoder, self._source, self._filters = encoder, source, encoder.filters()
        hop = OVERLAP_HOP_COLUMNS if windows == "overlap" else mel.WINDOW_COLUMNS
        edge = (mel.WINDOW_COLUMNS - hop) // 2  # on each side, that the neighbouring window covers
        self._hop, self._edge = hop // mel.COLUMNS_PER_TOKEN, edge // mel.COLUMNS_PER_TOKEN
        columns, self._loudest = 0, -math.inf
        for block in self._log_mel():
            columns += block.shape[1]
            self._loudest = max(self._loudest, float(block.max()))
        if columns == 0:
            raise MediaError(
                "the audio holds no sample; give a sound of at least one frame (40 ms)"
            )
        self._tokens = mel.token_count(columns)
        beyond = self._tokens * mel.COLUMNS_PER_TOKEN - mel.WINDOW_COLUMNS  # after the first window
        self._last_window = max(0, -(-beyond // hop))
        self._held: dict[int, Tensor] = {}  # window -> (tokens, states, width)
        self._stream: Iterator[tuple[int, Tensor]] = iter(())
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._tokens

    @property
    def token_shape(self) -> tuple[int, int]:
        """Shape of one token: (states, width)."""
        return self._encoder.states, self._encoder.config.n_audio_state

    def __getitem__(self, tokens: IntArray) -> Tensor:
        """Return (*tokens.shape, states, width), on the encoder's device, in its dtype."""
        window, offset = self._place(flat := tokens.ravel())
        found = self._encoder.encoder.conv1.weight.new_empty(len(flat), *self.token_shape)
        with self._lock, torch.no_grad():
            for number in np.unique(window).tolist():
                rows = torch.from_numpy(np.flatnonzero(window == number))
                found[rows] = self._window(number)[torch.from_numpy(offset)[rows]]
        return found.unflatten(0, tokens.shape)

    @cached_property
    def silence(self) -> Tensor:
        """States, (states, width), of a token in the middle of silence, on this sound's scale."""
        mels = self._filters.shape[0]
        states = self._encode(
            torch.full((mels, mel.WINDOW_COLUMNS), self._loudest - mel.RANGE_DECADES)
        )
        return states[len(states) // 2]

    def _place(self, tokens: IntArray) -> tuple[IntArray, IntArray]:
        """Find the window in whose middle each token lies, and its number in that window."""
        window = np.clip((tokens - self._edge) // self._hop, 0, self._last_window)
        return window, tokens - window * self._hop

    def _window(self, number: int) -> Tensor:
        """Return (tokens, states, width) of a window; an earlier one restarts the sound."""
        if number not in self._held:
            if not self._held or number < max(self._held):
                hop = self._hop * mel.COLUMNS_PER_TOKEN
                self._stream, self._held = enumerate(mel.windows(self._log_mel(), hop)), {}
            for index, columns in self._stream:
                if index >= number - 1:
                    self._held[index] = self._encode(columns)
                    self._held.pop(index - 2, None)
                if index == number:
                    break
        return self._held[number]

    def _encode(self, columns: Tensor) -> Tensor:
        weight = self._encoder.encoder.conv1.weight
        normalised = mel.normalise(columns, self._loudest)
        # As published, the last window is padded with 0, which is not the value of silence.
        padded = nn.functional.pad(normalised, (0, mel.WINDOW_COLUMNS - columns.shape[1]))
        with torch.inference_mode():
            states: Tensor = self._encoder(padded[None].to(weight.device, weight.dtype))[0]
        return states[: mel.token_count(columns.shape[1])].clone()

    def _log_mel(self) -> Iterator[Tensor]:
        return mel.log_mel(self._source.chunks(), self._filters)


@dataclass(frozen=True)
class SpeechFeatures:
    """Speech features of each video frame: the states of the ten tokens around its time.

    `len()` is the number of frames; `features[start:stop]` is (stop - start, 10 * states, width),
    first by token, then by state.
    """

    states: SpeechStates
    own: IntArray  # (n,) the token at each frame's time; may lie outside the sound
    weight: FloatArray | None = None  # (n,) share of speech in [0, 1], the rest is silence; None: 1

    def __len__(self) -> int:
        return len(self.own)

    def __getitem__(self, frames: slice) -> Tensor:
        around = mel.tokens_around(self.own[frames], len(self.states))
        speech = self.states[around].flatten(1, 2)
        if self.weight is None or self.weight[frames].min() == 1:
            return speech
        weight = torch.from_numpy(self.weight[frames]).to(speech)[:, None, None]
        silence = self.states.silence.repeat(mel.TOKENS_PER_FRAME, 1)
        return weight * speech + (1 - weight) * silence

    def at(
        self, begins: IntArray, time_base: Fraction, lead_in: Fraction = Fraction(0)
    ) -> "SpeechFeatures":
        """Return the features of the same speech at other frames.

        Args:
            begins: (n,) when each frame begins, in units of `time_base`.
            time_base: seconds.
            lead_in: seconds of frames before the sound begins.
        """
        fine = time_base / lead_in.denominator  # s; the sound begins at a multiple of it
        late = round(lead_in / fine)
        return replace(self, own=mel.own_tokens(begins * lead_in.denominator - late, fine))


def encode_speech(
    encoder: SpeechEncoder,
    source: SpeechSource,
    *,
    frames: int | Callable[[int], int],
    fps: Fraction = Fraction(25),
    windows: Literal["overlap", "disjoint"] = "overlap",
) -> SpeechFeatures:
    """Prepare the speech features of video frames; windows are encoded when they are needed.

    Args:
        encoder, source, windows: as in `SpeechStates`.
        frames: their number, or a function from the number of tokens to it.
        fps: frames per second.

    Raises:
        MediaError: the sound holds no sample.
    """
    states = SpeechStates(encoder, source, windows)
    count = frames(len(states)) if callable(frames) else frames
    return SpeechFeatures(states, mel.own_tokens(np.arange(count, dtype=np.int64), 1 / fps))
