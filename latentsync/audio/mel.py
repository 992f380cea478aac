"""From sound to Whisper's input, and from a video frame to the speech tokens it hears. Pure.

    samples (16 kHz) -> columns (100 a second) -> tokens (50 a second) -> 10 tokens a video frame

Sizes: Whisper, https://arxiv.org/abs/2212.04356 and
https://github.com/openai/whisper/blob/v20250625/whisper/audio.py; the ten tokens of a frame:
https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/whisper/audio2feature.py.

`sync_mel` and `sync_window` are what StableSyncNet hears in training, another mel altogether:
Wav2Lip's, https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/utils/audio.py with
https://github.com/bytedance/LatentSync/blob/a229c39/configs/audio.yaml.
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
N_FFT = 400  # samples, 25 ms
HOP = 160  # samples a column, 10 ms
COLUMNS_PER_TOKEN = 2  # Whisper's second convolution has stride 2
TOKENS_PER_SECOND = SAMPLE_RATE // HOP // COLUMNS_PER_TOKEN  # 50
WINDOW_COLUMNS = 3000  # 30 s, what Whisper was trained on
TOKENS_BEFORE, TOKENS_AFTER = 4, 5  # around a frame's own token
TOKENS_PER_FRAME = TOKENS_BEFORE + 1 + TOKENS_AFTER
FLOOR = 1e-10  # of a mel power, before the logarithm
RANGE_DECADES = 8.0  # below the loudest value of the whole file that are kept
BLOCK_COLUMNS = 1000  # computed at a time: bounds the memory

SYNC_FFT = 800  # samples, 50 ms
SYNC_HOP = 200  # samples a column, 12.5 ms
SYNC_MELS = 80
SYNC_LOW, SYNC_HIGH = 55.0, 7600.0  # Hz
PREEMPHASIS = 0.97
REFERENCE, FLOOR_DB = 20.0, -100.0  # dB
SYNC_LIMIT = 4.0  # the scale is [-4, 4]
SYNC_COLUMNS_PER_FRAME = Fraction(SAMPLE_RATE, SYNC_HOP * 25)  # 3.2, at 25 fps


def log_mel(chunks: Iterable[FloatArray], filters: Tensor) -> Iterator[Tensor]:
    """Stream log10 mel powers, not normalised yet.

    Equal to one centred STFT over the whole sound with its last column dropped. Sound shorter than
    one token (20 ms) is followed by silence up to it.

    Args:
        chunks: mono float32 samples in [-1, 1] at 16 kHz, in pieces of any length.
        filters: (mels, 201) mel filter bank.

    Yields:
        (mels, n) float32, 0 < n <= 1000; floor(samples / 160) columns in all.
    """
    window = torch.hann_window(N_FFT)
    pending = torch.zeros(0)  # samples from the left edge of the next column's window on
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
        columns = (len(pending) - N_FFT) // HOP  # one less than fit: the last is dropped
        if columns > 0:
            yield _columns(pending[: N_FFT + (columns - 1) * HOP], window, filters)


def normalise(log_powers: Tensor, loudest: float) -> Tensor:
    """Whisper's scale, about [-1, 1]; `loudest` is the largest value of the whole file."""
    return (log_powers.clamp(min=loudest - RANGE_DECADES) + 4.0) / 4.0


def windows(blocks: Iterable[Tensor], hop: int) -> Iterator[Tensor]:
    """Cut streamed columns into windows of at most 3000 columns, one every `hop` columns.

    The last window is the first one that reaches the end; it may be shorter. Holds one window.
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
    """Whole tokens in a sound of so many columns."""
    return columns // COLUMNS_PER_TOKEN


def published_frame_count(tokens: int, fps: Fraction) -> int:
    """Frames the published code makes of `tokens`: one or two more than the sound lasts.

    It appends a frame and only then looks whether that frame's token lies behind the end.
    """
    frame = 0
    while _own_token(frame, fps) <= tokens:
        frame += 1
    return frame + 1


def own_tokens(times: IntArray, tick: Fraction) -> IntArray:
    """(n,) the token that sounds when each frame begins.

    Args:
        times: (n,) ticks since the sound began; negative before it.
        tick: seconds.
    """
    rate = tick * TOKENS_PER_SECOND  # tokens a tick
    return times * rate.numerator // rate.denominator


def tokens_around(own: IntArray, tokens: int) -> IntArray:
    """(n, 10) the tokens heard around each frame's own, (n,), clamped to the `tokens` there are."""
    around = np.arange(-TOKENS_BEFORE, TOKENS_AFTER + 1)
    return np.clip(own[:, None] + around, 0, tokens - 1)


def _own_token(frame: int, fps: Fraction) -> int:
    return int(frame * TOKENS_PER_SECOND / fps)


def _at_least(chunks: Iterable[FloatArray], samples: int) -> Iterator[FloatArray]:
    """The same samples, the first chunk and the whole at least `samples` long (silence added)."""
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
    return (filters @ spectrum.abs() ** 2).clamp(min=FLOOR).log10()
