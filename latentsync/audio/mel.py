"""Log-mel spectrogram for Whisper, and the numbers of the speech tokens of each video frame.

    samples (16 kHz) -> columns (100 a second) -> tokens (50 a second) -> 10 tokens a video frame

Sizes: Whisper, https://arxiv.org/abs/2212.04356 and
https://github.com/openai/whisper/blob/v20250625/whisper/audio.py; the ten tokens of a frame:
https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/whisper/audio2feature.py.
"""

from collections.abc import Iterable, Iterator
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from latentsync.types import FloatArray, IntArray

__all__ = [
    "SAMPLE_RATE",
    "TOKENS_PER_FRAME",
    "WINDOW_COLUMNS",
    "log_mel",
    "normalise",
    "own_tokens",
    "published_frame_count",
    "token_count",
    "tokens_around",
    "windows",
]

SAMPLE_RATE = 16_000  # Hz
N_FFT = 400  # a window of the STFT, 25 ms
HOP = 160  # samples a column, 10 ms
COLUMNS_PER_TOKEN = 2  # Whisper's second convolution has stride 2
TOKENS_PER_SECOND = SAMPLE_RATE // HOP // COLUMNS_PER_TOKEN  # 50
WINDOW_COLUMNS = 3000  # 30 s, the length that Whisper was trained on
TOKENS_BEFORE, TOKENS_AFTER = 4, 5  # the tokens around that at a frame's time
TOKENS_PER_FRAME = TOKENS_BEFORE + 1 + TOKENS_AFTER
MIN_POWER = 1e-10  # of a mel band, before the logarithm
RANGE_DECADES = 8.0  # below the loudest value of the whole sound; what is lower is raised to it
BLOCK_COLUMNS = 1000  # computed at once, which bounds the memory


def log_mel(chunks: Iterable[FloatArray], filters: Tensor) -> Iterator[Tensor]:
    """Stream log10 mel powers, before normalisation.

    They equal one centred STFT of the whole sound without its last column. Sound shorter than one
    token (20 ms) is padded with silence.

    Args:
        chunks: mono float32 samples in [-1, 1] at 16 kHz, in chunks of any length.
        filters: (mels, 201) mel filter bank.

    Yields:
        (mels, n) float32, 0 < n <= 1000; floor(samples / 160) columns in all.
    """
    window = torch.hann_window(N_FFT)
    pending = torch.zeros(0)  # samples, from the start of the next column's window
    started = False
    edge = N_FFT // 2
    for chunk in _at_least(chunks, max(edge + 1, COLUMNS_PER_TOKEN * HOP)):
        pending = torch.cat([pending, torch.from_numpy(chunk)])
        if not started:
            pending = torch.cat([pending[1 : edge + 1].flip(0), pending])  # reflected, centred STFT
            started = True
        while len(pending) >= N_FFT + BLOCK_COLUMNS * HOP:
            block = pending[: N_FFT + (BLOCK_COLUMNS - 1) * HOP]
            yield _columns(block, window, filters)
            pending = pending[BLOCK_COLUMNS * HOP :]
    if started:
        pending = torch.cat([pending, pending[-edge - 1 : -1].flip(0)])
        columns = (len(pending) - N_FFT) // HOP  # without the last one that fits
        if columns > 0:
            yield _columns(pending[: N_FFT + (columns - 1) * HOP], window, filters)


def normalise(log_powers: Tensor, loudest: float) -> Tensor:
    """Scale to about [-1, 1], as Whisper; `loudest` is the largest value of the whole sound."""
    return (log_powers.clamp(min=loudest - RANGE_DECADES) + 4.0) / 4.0


def windows(blocks: Iterable[Tensor], hop: int) -> Iterator[Tensor]:
    """Cut streamed columns into windows of at most 3000 columns, one every `hop` columns.

    The first window that reaches the end is the last one; it may be shorter. At most one window is
    in memory.
    """
    buffer: list[Tensor] = []
    width = 0
    yielded = False
    for block in blocks:
        buffer.append(block)
        width += block.shape[1]
        while width > WINDOW_COLUMNS:  # more follows, so this window is full and not the last
            joined = torch.cat(buffer, dim=1)
            yield joined[:, :WINDOW_COLUMNS]
            yielded = True
            buffer = [joined[:, hop:]]
            width -= hop
    if width > 0 or not yielded:
        yield torch.cat(buffer, dim=1)


def token_count(columns: int) -> int:
    """Return the number of whole tokens in a number of columns."""
    return columns // COLUMNS_PER_TOKEN


def published_frame_count(tokens: int, fps: Fraction) -> int:
    """Return how many frames the published code makes: one or two more than the sound lasts.

    It appends a frame before it checks whether the frame's token lies beyond the end.
    """
    frame = 0
    while int(frame * TOKENS_PER_SECOND / fps) <= tokens:
        frame += 1
    return frame + 1


def own_tokens(times: IntArray, tick: Fraction) -> IntArray:
    """Return (n,) the number of the token at the time when each frame begins.

    Args:
        times: (n,) ticks since the sound began; negative before it.
        tick: seconds.
    """
    rate = tick * TOKENS_PER_SECOND  # tokens a tick
    return times * rate.numerator // rate.denominator


def tokens_around(own: IntArray, tokens: int) -> IntArray:
    """Return (n, 10) token numbers around those of `own`, (n,), clamped to [0, tokens)."""
    around = np.arange(-TOKENS_BEFORE, TOKENS_AFTER + 1)
    return np.clip(own[:, None] + around, 0, tokens - 1)


def _at_least(chunks: Iterable[FloatArray], samples: int) -> Iterator[FloatArray]:
    """Join chunks until the first has `samples` samples; pad a shorter sound with silence."""
    first: list[FloatArray] = []
    length = 0
    for chunk in chunks:
        if length >= samples:
            yield chunk
            continue
        first.append(chunk)
        length += len(chunk)
        if length >= samples:
            yield np.concatenate(first)
    if 0 < length < samples:
        yield np.concatenate([*first, np.zeros(samples - length, dtype=np.float32)])


def _columns(samples: Tensor, window: Tensor, filters: Tensor) -> Tensor:
    spectrum = torch.stft(samples, N_FFT, HOP, window=window, center=False, return_complex=True)
    return (filters @ spectrum.abs() ** 2).clamp(min=MIN_POWER).log10()
