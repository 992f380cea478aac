"""Mel spectrogram for StableSyncNet: Wav2Lip's, which differs from Whisper's.

Constants: https://github.com/bytedance/LatentSync/blob/a229c39/latentsync/utils/audio.py with
https://github.com/bytedance/LatentSync/blob/a229c39/configs/audio.yaml.
"""

import math
from fractions import Fraction
from functools import cache

import numpy as np
import torch
from torch import Tensor

from latentsync.audio.mel import SAMPLE_RATE
from latentsync.types import FloatArray

__all__ = ["sync_mel", "sync_window"]

N_FFT = 800  # a window of the STFT, 50 ms
HOP_SAMPLES = 200  # a column, 12.5 ms
MELS = 80
LOW_HZ, HIGH_HZ = 55.0, 7600.0
PREEMPHASIS = 0.97
REFERENCE_DB, FLOOR_DB = 20.0, -100.0
SCALE_LIMIT = 4.0  # the scale is [-4, 4]
COLUMNS_PER_FRAME = Fraction(SAMPLE_RATE, HOP_SAMPLES * 25)  # 3.2, at 25 fps


def sync_mel(samples: FloatArray) -> Tensor:
    """Compute the log-mel spectrogram of a whole sound, 80 columns a second.

    Args:
        samples: (n,) float32 in [-1, 1] at 16 kHz.

    Returns:
        (80, n // 200 + 1) float64 in [-4, 4].
    """
    sound = torch.from_numpy(samples.astype(np.float64))
    sound = torch.cat([sound[:1], sound[1:] - PREEMPHASIS * sound[:-1]])
    window = torch.hann_window(N_FFT, dtype=torch.float64)
    spectrum = torch.stft(
        sound, N_FFT, HOP_SAMPLES, window=window, pad_mode="constant", return_complex=True
    )
    loudness = 20 * (_slaney_filters() @ spectrum.abs()).clamp(min=10 ** (FLOOR_DB / 20)).log10()
    level = (loudness - REFERENCE_DB - FLOOR_DB) / -FLOOR_DB
    return (2 * SCALE_LIMIT * level - SCALE_LIMIT).clamp(-SCALE_LIMIT, SCALE_LIMIT)


def sync_window(columns: Tensor, first_frame: int, frames: int = 16) -> Tensor:
    """Slice the columns of `sync_mel` for frames of a 25 fps video: (1, 80, 52) for 16.

    Raises:
        ValueError: the sound ends before these frames do.
    """
    start = int(first_frame * COLUMNS_PER_FRAME)
    stop = start + math.ceil(frames * COLUMNS_PER_FRAME)
    if stop > columns.shape[1]:
        raise ValueError(
            f"frames {first_frame} to {first_frame + frames} need {stop} columns of sound; "
            f"there are {columns.shape[1]}"
        )
    return columns[None, :, start:stop]


@cache
def _slaney_filters() -> Tensor:
    """(80, 401) triangles of equal area, linear below 1 kHz and logarithmic above.

    The default of librosa 0.10, https://librosa.org/doc/0.10.2/generated/librosa.filters.mel.html,
    rounded to float32 as there.
    """
    step, knee, mel_knee = 200 / 3, 1000.0, 15.0  # Hz a mel, Hz, mels
    log_step = np.log(6.4) / 27  # a mel above the knee

    def mel(hertz: float) -> float:
        return hertz / step if hertz < knee else mel_knee + np.log(hertz / knee) / log_step

    mels = np.linspace(mel(LOW_HZ), mel(HIGH_HZ), MELS + 2)
    corners = np.where(mels < mel_knee, mels * step, knee * np.exp(log_step * (mels - mel_knee)))
    hertz = np.fft.rfftfreq(N_FFT, 1 / SAMPLE_RATE)
    width = np.diff(corners)[:, None]
    rising = (hertz - corners[:-2, None]) / width[:-1]
    falling = (corners[2:, None] - hertz) / width[1:]
    filters = np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
    area = 2 / (corners[2:] - corners[:-2])[:, None]
    return torch.from_numpy((filters * area).astype(np.float32).astype(np.float64))
