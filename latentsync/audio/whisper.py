"""Speech features for each video frame: every state of Whisper's encoder, window by window.

The only importer of openai-whisper, and of that only the encoder and the mel filter bank.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, Protocol

import numpy as np
import torch
import whisper.audio
import whisper.model
from torch import Tensor, nn

from latentsync.audio import mel
from latentsync.errors import MediaError
from latentsync.types import FloatArray, IntArray

__all__ = ["SpeechEncoder", "SpeechFeatures", "SpeechSource", "WhisperConfig"]


@dataclass(frozen=True)
class WhisperConfig:
    """Size of the speech encoder; the defaults are openai/whisper tiny.

    Only the encoder is used. States = layers + 1 (the embedding, then each block's output).
    """

    n_mels: int = 80
    n_audio_ctx: int = 1500  # tokens in a 30 s window
    n_audio_state: int = 384
    n_audio_head: int = 6
    n_audio_layer: int = 4


log = logging.getLogger(__name__)

# Windows start every 20 s and give up 5 s on either side: each token is heard with context.
OVERLAP_HOP = 2000  # columns
OVERLAP_EDGE = (mel.WINDOW_COLUMNS - OVERLAP_HOP) // 2  # columns


class SpeechSource(Protocol):
    """What speech is read from: `media.AudioReader`, or a wave in memory."""

    def chunks(self) -> Iterator[FloatArray]:
        """Mono float32 samples in [-1, 1] at 16 kHz; may be asked for again, from the start."""
        ...


class SpeechEncoder(nn.Module):
    """Whisper's encoder, giving all its states instead of the last one.

    The published net listens to the embedding and to each block's output, before the final norm.
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
        """States per token: the embedding and one a block."""
        return self.config.n_audio_layer + 1

    def filters(self) -> Tensor:
        """(mels, 201) mel filter bank, on the CPU."""
        filters: Tensor = whisper.audio.mel_filters("cpu", self.config.n_mels)
        return filters

    def forward(self, columns: Tensor, first_token: int = 0) -> Tensor:
        """(b, mels, 3000) normalised log-mel -> (b, 1500, states, width).

        Training may give fewer columns, as tokens `first_token` and following of such a window.
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


class SpeechFeatures:
    """What the network hears at each video frame, computed when asked for.

    `len()` is the number of video frames; `features[start:stop]` is (stop - start, 10 * states,
    width), the ten tokens around each frame, time-major, every state of each. The sound is read in
    two streaming passes, because the floor of a log-mel depends on the loudest value of the whole
    file; then window by window, of which two are held.

    Args:
        encoder: on its device, in its dtype.
        source: the sound.
        frames: a number, or the rule that makes it of the number of tokens.
        fps: frames per second of the video.
        windows: "overlap" hears each token with context on both sides; "disjoint", as published,
            cuts every 30 s, which shows as a twitch of the lips there.

    Raises:
        MediaError: the sound holds no sample.
    """

    def __init__(
        self,
        encoder: SpeechEncoder,
        source: SpeechSource,
        *,
        frames: int | Callable[[int], int],
        fps: Fraction = Fraction(25),
        windows: Literal["overlap", "disjoint"] = "overlap",
    ) -> None:
        self._encoder = encoder
        self._source = source
        self._filters = encoder.filters()
        self._hop = OVERLAP_HOP if windows == "overlap" else mel.WINDOW_COLUMNS
        self._edge = OVERLAP_EDGE if windows == "overlap" else 0
        self._loudest, columns = self._measure()
        self.tokens = mel.token_count(columns)
        count = frames(self.tokens) if callable(frames) else frames
        self._own = mel.own_tokens(np.arange(count, dtype=np.int64), 1 / fps)
        self._share: FloatArray | None = None  # of what is heard; the rest is silence
        self._states: dict[int, Tensor] = {}  # window -> (tokens kept, states, width)
        self._stream: Iterator[tuple[int, Tensor]] = iter(())

    def __len__(self) -> int:
        return len(self._own)

    def __getitem__(self, frames: slice) -> Tensor:
        start, stop, step = frames.indices(len(self))
        assert step == 1
        indices = mel.tokens_around(self._own[start:stop], self.tokens)
        rows = [self._token(int(index)) for index in indices.ravel()]
        heard = torch.stack(rows).unflatten(0, indices.shape).flatten(1, 2)
        if self._share is None or (share := self._share[start:stop]).min() == 1:
            return heard
        weight = torch.from_numpy(share).to(heard)[:, None, None]
        return weight * heard + (1 - weight) * self._quiet().expand_as(heard)

    @property
    def token_shape(self) -> tuple[int, int]:
        """(states, width) of one token."""
        return self._encoder.states, self._encoder.config.n_audio_state

    def states(self, start: int, stop: int) -> Iterator[Tensor]:
        """(states, width) of each token in [start, stop), whatever frames there are."""
        return (self._token(token) for token in range(start, stop))

    def beside(
        self, begins: IntArray, tick: Fraction, *, after: Fraction = Fraction(0)
    ) -> "SpeechFeatures":
        """The same sound beside other frames.

        Args:
            begins: (n,) ticks at which each frame begins.
            tick: seconds.
            after: seconds of frames before the sound begins.
        """
        other = self._again()
        fine = tick / after.denominator  # the sound begins at a whole number of these
        late = round(after / fine)
        other._own = mel.own_tokens(begins * after.denominator - late, fine)
        return other

    def hushed(self, share: FloatArray) -> "SpeechFeatures":
        """The same beside the same frames, faded into silence: (n,) in [0, 1], 0 is silence."""
        other = self._again()
        other._share = share
        return other

    def _again(self) -> "SpeechFeatures":
        """A copy that reads the sound by itself, so that it may serve another thread."""
        other = copy.copy(self)
        other._states, other._stream = {}, iter(())
        return other

    def _quiet(self) -> Tensor:
        """(10 * states, width), what a frame amid silence hears in this sound."""
        mels = self._filters.shape[0]
        columns = torch.full((mels, mel.WINDOW_COLUMNS), self._loudest - mel.RANGE)
        states = self._encode(columns)
        middle = states[len(states) // 2]
        return middle.repeat(mel.TOKENS_PER_FRAME, 1)

    def _token(self, token: int) -> Tensor:
        """(states, width) of one token."""
        window, offset = self._place(token)
        if window not in self._states:
            self._advance_to(window)
        return self._states[window][offset]

    def _place(self, token: int) -> tuple[int, int]:
        """The window whose centre holds the token, and the token's place in that window."""
        hop, edge = self._hop // mel.COLUMNS_PER_TOKEN, self._edge // mel.COLUMNS_PER_TOKEN
        last = self._window_count - 1
        window = min(max((token - edge) // hop, 0), last)
        return window, token - window * hop

    @property
    def _window_count(self) -> int:
        columns = self.tokens * mel.COLUMNS_PER_TOKEN
        return 1 + max(0, -(-(columns - mel.WINDOW_COLUMNS) // self._hop))

    def _advance_to(self, window: int) -> None:
        if not self._states or window < max(self._states):
            self._stream = enumerate(mel.windows(self._log_mel(), self._hop))
            self._states.clear()
        for index, columns in self._stream:
            if index < window - 1:
                continue
            while len(self._states) > 1:
                del self._states[min(self._states)]
            self._states[index] = self._encode(columns)
            if index == window:
                return
        raise AssertionError(f"window {window} lies behind the end of the sound")

    def _encode(self, columns: Tensor) -> Tensor:
        weight = self._encoder.encoder.conv1.weight
        normalised = mel.normalise(columns, self._loudest)
        # As published, the last window is filled up with 0, which is not the value of silence.
        padded = nn.functional.pad(normalised, (0, mel.WINDOW_COLUMNS - columns.shape[1]))
        with torch.inference_mode():
            states: Tensor = self._encoder(padded[None].to(weight.device, weight.dtype))[0]
        return states[: mel.token_count(columns.shape[1])].clone()

    def _log_mel(self) -> Iterator[Tensor]:
        return mel.log_mel(self._source.chunks(), self._filters)

    def _measure(self) -> tuple[float, int]:
        """The loudest log-mel value and the number of columns of the whole sound."""
        loudest, columns = float("-inf"), 0
        for block in self._log_mel():
            loudest = max(loudest, float(block.max()))
            columns += block.shape[1]
        if columns == 0:
            raise MediaError(
                "the audio holds no sample; give a sound of at least one frame (40 ms)"
            )
        return loudest, columns
